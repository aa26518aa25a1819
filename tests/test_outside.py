"""What other programs say of sdcli's pictures. Marker `outside`: `.ci/run` installs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Sdcli

pytestmark = pytest.mark.outside

PROMPTS = ("a red circle on a blue background", "ein großer Stern – 星 ✨, (mit: allem)\nund einer zweiten Zeile")


def _run(*command: str) -> str:
    assert shutil.which(command[0]), f"{command[0]} is not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def pictures(sdcli: Sdcli) -> list[str]:
    done = sdcli(
        "generate", *PROMPTS, "-m", "demo", "--steps", "2", "-s", "7", "--negative", "grey: all, of it", "-o", "x/"
    )
    assert done.code == 0
    return done.lines


def test_pngcheck_finds_no_fault(pictures: list[str]) -> None:
    for picture in pictures:
        said = _run("pngcheck", "-v", picture)
        assert "No errors detected" in said
        # Before the pixels, where readers that stop at IDAT find them.
        assert said.index("keyword: parameters") < said.index("chunk IDAT") and said.index(
            "keyword: sdcli"
        ) < said.index("IDAT")


def test_exiftool_reads_it_and_finds_no_fault(pictures: list[str]) -> None:
    for picture, prompt in zip(pictures, PROMPTS, strict=True):
        (read,) = json.loads(
            _run("exiftool", "-json", "-validate", "-warning", "-error", "-Parameters", "-Sdcli", picture)
        )
        assert read["Validate"] == "OK" and "Warning" not in read and "Error" not in read
        assert read["Parameters"].startswith(prompt)
        assert "\nNegative prompt: grey: all, of it\nSteps: 2, Sampler: " in read["Parameters"]
        assert json.loads(read["Sdcli"])["request"]["prompt"] == prompt


def test_file_knows_it_in_a_pipe(tmp_path: Path) -> None:
    assert shutil.which("file"), "file is not installed"
    command = f"{sys.executable} -m sdcli generate 'a star' -m demo --steps 2 -o - | file -"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, check=True, timeout=120)
    assert "PNG image data, 128 x 128, 8-bit/color RGB" in done.stdout
