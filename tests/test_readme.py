"""The README says what the commands say. `python -m tests.test_readme` writes the help texts into it anew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sdcli import __version__
from sdcli.cli.main import COMMANDS
from sdcli.models import known
from sdcli.options import options_of
from sdcli.settings import RECORDS, presets_folder

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TABLE = re.compile(r"(<!-- models -->\n).*?(<!-- /models -->)", re.DOTALL)
BLOCK = re.compile(r"(<!-- help: (\S+) -->\n```\n).*?(```\n)", re.DOTALL)


def help_of(command: str) -> str:
    """Return a command's help as a plain terminal of 110 columns shows it."""
    env = {**os.environ, "COLUMNS": "110", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sdcli", command, "--help"],
        capture_output=True,
        text=True,
        env=env,
        check=True,
        timeout=60,
    )
    return "".join(line.rstrip() + "\n" for line in done.stdout.strip("\n").splitlines())


def renewed(text: str) -> str:
    """Return the README with each block of help, and the table of models, made anew."""
    text = TABLE.sub(lambda m: m[1] + known.markdown() + m[2], text)
    return BLOCK.sub(lambda m: m[1] + help_of(m[2]) + m[3], text)


def test_help_in_the_readme_is_not_stale() -> None:
    text = README.read_text("utf-8")
    assert [m[1] for m in BLOCK.findall(text)] == list(COMMANDS)
    assert renewed(text) == text, "run `python -m tests.test_readme`"


def test_the_table_of_models_is_in_the_readme() -> None:
    assert TABLE.search(README.read_text("utf-8"))


def test_every_option_is_in_the_help() -> None:
    said = help_of("generate")
    for record in RECORDS:
        for option in options_of(record):
            for flag in option.flags:
                assert re.search(rf"(?<![\w-]){flag}(?![\w-])", said)
            assert option.help, f"{option.field} has no help"


def test_help_opens_with_examples_and_takes_h() -> None:
    for command in COMMANDS:
        said = help_of(command)
        assert "Examples:" in said and f"sdcli {command}" in said
    done = subprocess.run([sys.executable, "-m", "sdcli", "-h"], capture_output=True, text=True, check=True, timeout=60)
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("switch", ["safety-checker", "vae-tiling", "overwrite", "json", "print0", "dry-run", "quiet"])
def test_every_switch_has_its_no(switch: str) -> None:
    assert f"--no-{switch}" in help_of("generate")


def test_presets_are_in_the_readme() -> None:
    text = README.read_text("utf-8")
    for preset in presets_folder().glob("*.toml"):
        assert f"`{preset.stem}`" in text


def test_changelog_has_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" and __version__ in headings


if __name__ == "__main__":
    README.write_text(renewed(README.read_text("utf-8")), "utf-8")
