"""The manual's pages: made from what --help says, and as new as it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdcli.cli.main import COMMANDS
from sdcli.device import DevicePlan
from sdcli.models import ModelSpec
from sdcli.options import options_of
from sdcli.output import OutputPlan
from sdcli.request import GenerationRequest, JobOptions
from tests.conftest import ROOT

PAGES = ROOT / "docs" / "man"


def test_every_command_has_a_page_and_every_option_stands_in_it() -> None:
    pages = {f.stem for f in PAGES.glob("*.1")}
    assert {"sdcli", *(f"sdcli-{c}" for c in COMMANDS)} <= pages
    page = (PAGES / "sdcli-generate.1").read_text("utf-8").replace("\\-", "-")
    flags = {
        f
        for r in (GenerationRequest, JobOptions, ModelSpec, DevicePlan, OutputPlan)
        for o in options_of(r)
        for f in o.flags
    }
    assert len(flags) > 30
    assert {f for f in flags if f"\\fB{f}\\fR" not in page} == set()


@pytest.mark.outside
def test_the_pages_are_what_help2man_makes_of_the_help_now(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "docs" / "man.py", tmp_path / "man"], check=True, cwd=tmp_path, timeout=240)
    made = {f.name: f.read_text("utf-8") for f in (tmp_path / "man").iterdir()}
    kept = {f.name: f.read_text("utf-8") for f in PAGES.iterdir()}
    assert made == kept, "run docs/man.py"


@pytest.mark.outside
def test_the_pages_are_sound() -> None:
    pages = sorted(PAGES.glob("*.1"))
    assert len(pages) > 8
    linted = subprocess.run(["mandoc", "-Tlint", "-Wwarning", *pages], capture_output=True, text=True, timeout=60)
    assert (linted.returncode, linted.stdout) == (0, "")
    shown = subprocess.run(["mandoc", "-Tutf8", PAGES / "sdcli-generate.1"], capture_output=True, text=True, check=True)
    assert "sdcli-generate - Draw pictures from text" in shown.stdout
