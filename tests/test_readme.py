"""The README says what the commands say. `python -m tests.test_readme` writes the help texts into it anew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sdcli import __version__
from sdcli.cli.main import COMMANDS
from sdcli.models import adapters, known
from sdcli.models.families import FAMILIES
from sdcli.options import options_of
from sdcli.settings import RECORDS, presets_folder

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TABLE = re.compile(r"(<!-- models -->\n).*?(<!-- /models -->)", re.DOTALL)
ABILITIES = re.compile(r"(<!-- families -->\n).*?(<!-- /families -->)", re.DOTALL)
PICTURE = re.compile(r"!\[([^]]*)\]\(([^)]+)\)")
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


def abilities() -> str:
    """Return a table of what each family can do, families that can do the same in one row."""
    able: dict[tuple[bool, ...], list[str]] = {}
    for family in FAMILIES.values():
        takes = [adapters.takes(kind, family.class_name) for kind in ("lora", "embedding", "controlnet", "ip_adapter")]
        row = (family.weighs, "image" in family.starts, "mask" in family.starts, *takes)
        able.setdefault(row, []).append(family.name)
    columns = "families", "weights, any length", "picture", "mask", "LoRA", "embedding", "ControlNet", "IP-Adapter"
    rows = [columns, ("---",) * len(columns)]
    rows += [(", ".join(names), *("yes" if can else "-" for can in row)) for row, names in able.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def renewed(text: str) -> str:
    """Return the README with each block of help, and the tables of models and families, made anew."""
    text = TABLE.sub(lambda m: m[1] + known.markdown() + m[2], text)
    text = ABILITIES.sub(lambda m: m[1] + abilities() + m[2], text)
    return BLOCK.sub(lambda m: m[1] + help_of(m[2]) + m[3], text)


def test_help_in_the_readme_is_not_stale() -> None:
    text = README.read_text("utf-8")
    assert [m[1] for m in BLOCK.findall(text)] == list(COMMANDS)
    assert renewed(text) == text, "run `python -m tests.test_readme`"


def test_the_tables_are_in_the_readme() -> None:
    text = README.read_text("utf-8")
    assert TABLE.search(text) and ABILITIES.search(text)


def test_pictures_in_the_readme_are_there_and_each_is_drawn_by_the_script() -> None:
    """And each picture that is there is shown, with words for those who do not see it."""
    shown = PICTURE.findall(README.read_text("utf-8"))
    files = {path for _, path in shown}
    there = {file for file in (ROOT / "docs").iterdir() if file.suffix in (".png", ".webp", ".gif")}
    assert files == {f"docs/{file.name}" for file in there} and len(files) > 5
    assert all(words for words, _ in shown)
    drawn = re.findall(r"^def (\w+)\(folder: Path\)", (ROOT / "docs" / "pictures.py").read_text("utf-8"), re.MULTILINE)
    assert set(drawn) == {file.stem for file in there}
    assert all(file.stat().st_size < 200_000 for file in there)


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


def test_every_command_and_every_extra_for_users_is_listed() -> None:
    rows = [line for line in README.read_text("utf-8").splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`sdcli (\w+)`", row.split("|")[1])}
    assert listed == set(COMMANDS)
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"].keys() - {"test", "full", "lint"}
    assert extras and all(any(row.startswith(f"| `{extra}` |") for row in rows) for extra in extras)


def test_changelog_has_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" and __version__ in headings


if __name__ == "__main__":
    README.write_text(renewed(README.read_text("utf-8")), "utf-8")
