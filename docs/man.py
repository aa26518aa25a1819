"""Make the manual's pages out of what `--help` says: python docs/man.py [FOLDER]

A page a command, by help2man (Debian: help2man), into docs/man/ if no other folder is named.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

# Read when Typer is imported: help in plain text, its lines as long as they are.
os.environ |= {"TYPER_USE_RICH": "0", "COLUMNS": "500"}

from sdcli import __version__, errors  # noqa: E402
from sdcli.cli.main import main  # noqa: E402

ROOT = Path(__file__).parent.parent
COMMAND = re.compile(r"^  ([a-z][a-z-]*)(?:  |$)", re.MULTILINE)
# help2man's form for sections of one's own; a page begins its lines with no dot or quote that is not meant.
CODES = "[EXIT STATUS]\n.nf\n{}\n.fi\n\n"
OTHERS = "[SEE ALSO]\n{}\n"


def helps(*words: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the words of a command and of all those in it, each with what its --help says."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main([*words, "--help"])
    assert code == 0, words
    text = said.getvalue()
    yield words, text
    _, _, commands = text.partition("\nCommands:\n")
    for name in COMMAND.findall(commands):
        yield from helps(*words, name)


def page(name: str, text: str, others: list[str], scratch: Path) -> str:
    """Return a page: `others` are the pages that it names at its end."""
    usage, _, rest = text.partition("\n\n")
    about, options, more = re.split(r"^(Arguments:|Options:)$", rest, maxsplit=1, flags=re.MULTILINE)
    # It is indented, which help2man would take for an example.
    about = textwrap.dedent(about).strip()
    about, examples, shown = about.partition("Examples:\n")
    first, _, about = about.partition("\n\n")
    said = scratch / f"{name}.txt"
    # help2man puts examples last, and what stands after them with them.
    said.write_text("\n\n".join([usage, about.strip(), options + more.rstrip(), examples + shown]) + "\n", "utf-8")
    program = scratch / name
    program.write_text(f"#!/bin/sh\ncat '{said}'\n")
    program.chmod(0o755)
    include = scratch / f"{name}.h2m"
    codes = textwrap.dedent(str(errors.__doc__).partition("\n\n")[2]).strip().splitlines()
    include.write_text(
        (CODES.format("\n".join(f"\\&{line}" for line in codes)) if name == "sdcli" else "")
        + OTHERS.format(",\n".join(f".BR {other} (1)" for other in others)),
        "utf-8",
    )
    title = " ".join(first.split()).rstrip(".")
    done = subprocess.run(
        [
            "help2man", "--no-info", "--locale=C.UTF-8", "--manual=sdcli", f"--version-string={__version__}",
            f"--name={title}", f"--include={include}", program,
        ],
        capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    made = re.sub(
        r"^\.\\\" DO NOT.*$", '.\\\\" Made by docs/man.py, with help2man.', done.stdout, count=1, flags=re.MULTILINE
    )
    # The day of the release, so that the same texts make the same page on any day.
    return re.sub(r'^(\.TH \S+ "1") "[^"]*"', rf'\1 "{released()}"', made, count=1, flags=re.MULTILINE)


def released() -> str:
    """Return the date of the newest release, nothing before the first."""
    dated = re.search(r"^## \[\d[^]]*\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    return dated[1] if dated else ""


def make(folder: Path) -> None:
    """Write all pages into a folder, and take those away that no command has any more."""
    found = {"-".join(("sdcli", *words)): text for words, text in helps()}
    pages = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in found.items():
            inside = [n for n in found if n.startswith(f"{name}-") and "-" not in n[len(name) + 1 :]]
            above = [name.rpartition("-")[0]] if name != "sdcli" else []
            pages[f"{name}.1"] = page(name, text, [*above, *inside], Path(scratch))
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.1"):
        file.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/man")
