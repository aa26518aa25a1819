"""`sdcli inspect`: what a picture was made with, whoever made it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli import output
from sdcli.cli.main import app, screen
from sdcli.cli.results import Results
from sdcli.cli.screen import printable
from sdcli.errors import BadInput, InputMissing, SdcliError, UsageError
from sdcli.jobs import events, journal
from sdcli.metadata import inspecting, signing
from sdcli.metadata.inspecting import SHEET, Found
from sdcli.metadata.readers import FIELDS
from sdcli.record import Record

# A table's labels are so wide, its values so long, and what is not mapped so many.
LABEL = 22
LONGEST = 10_000
MOST_ROWS = 200
# What a signature's state means; `by` is whom its certificate names.
SIGNATURES = {
    "valid": "nothing has changed since{by} signed it; nobody vouches here for that name",
    "expired": "nothing has changed since{by} signed it, with a certificate that has expired",
    "invalid": "something has changed since it was signed",
    "unchecked": f"that takes {signing.INSTALL}",
}


@app.command(
    help="""Say what pictures were made with, by sdcli or by other programs.

Reads those by sdcli, A1111, Forge, SD.Next, ComfyUI, InvokeAI, Fooocus, NovelAI, Draw Things, stable-diffusion.cpp, mflux
and mold: PNG, JPEG, WebP and AVIF. Ends with 1 if one says nothing, or is not as its record says, and with 2 if all that is
wrong is that a signature can't be checked, since c2pa-python is not installed.

Examples:

  sdcli inspect dusk.png

  sdcli inspect --check pictures/

  sdcli inspect --json pictures/ | jq -r .request.prompt
"""
)
def inspect(
    pictures: Annotated[
        list[str], typer.Argument(metavar="PICTURE...", help="Files or folders of them; - reads a picture from stdin.")
    ],
    check: Annotated[
        bool, typer.Option("--check/--no-check", show_default=False, help="Check pixels and signature.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw/--no-raw", show_default=False, help="Print the texts in the picture as they are.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json/--no-json", show_default=False, help="Print a JSON object a line.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet/--no-quiet", "-q", show_default=False, help="Say errors only.")
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, show_default=False, metavar="", help="Say reasons; twice: tracebacks."
        ),
    ] = 0,
) -> int:
    screen.verbosity = -1 if quiet else verbose
    if raw and as_json:
        raise UsageError("--json prints the texts anyway", "leave --raw out")
    if pictures.count("-") > 1:
        raise UsageError("stdin can be read once", "give - once")
    told = _Told(check=check, raw=raw, results=Results(as_json=as_json))
    for name in pictures:
        told.named(name)
    return told.end()


class _Told:
    """Tells of each picture, and what they come to."""

    def __init__(self, *, check: bool, raw: bool, results: Results) -> None:
        self.check, self.raw, self.results = check, raw, results
        self.codes: list[int] = []

    def named(self, name: str) -> None:
        """Tell of a file, of a folder's pictures, or of what comes through stdin."""
        if name == "-" or not os.path.isdir(name):
            self.one(None if name == "-" else Path(name))
            return
        before, paths = len(self.codes), list(journal.pictures(Path(name)))
        for path in paths:
            self.one(path, among=True)
        if not paths:
            error: SdcliError = InputMissing(
                f"{name}: no picture is in this folder", f"looked for: {', '.join(output.ENDINGS)}"
            )
        elif len(self.codes) == before:
            error = BadInput(f"{name}: nothing to check is in this folder but sheets of grids", SHEET)
        else:
            return
        self._failed(name, error)

    def one(self, path: Path | None, *, among: bool = False) -> None:
        """Tell of one picture, None: that on stdin; `among` those of a folder a sheet with nothing to check is left out."""
        try:
            found = inspecting.inspect(path, self.check) if path is not None else _stdin(self.check)
        except (BadInput, InputMissing) as error:
            self._failed(str(path or "-"), error)
            return
        if among and self.check and found.is_sheet and found.signature is None:
            screen.say(f"{found.path} is the sheet of a grid, and not checked: {SHEET}")
            return
        self._begin()
        screen.say(f"{found.path}: its texts are {', '.join(found.raw) or 'none'}", level=1)
        if self.results.as_json:
            self.results.event(found.as_json())
        else:
            what = f"{found.format}{', the sheet of a grid' if found.is_sheet else ''}"
            self.results.line(f"{_line(found.path)}: {what if found.format else 'no record'}")
            lines = _raw(found) if self.raw else _table(found)
            while block := list(islice(lines, 1000)):
                self.results.line("\n".join(block))
        self.codes.append(1 if not found.good else UsageError.exit_code if found.is_unchecked else 0)

    def _failed(self, name: str, error: SdcliError) -> None:
        self._begin()
        screen.error(error)
        screen.say("".join(traceback.format_exception(error.__cause__ or error)).rstrip(), level=2)
        if self.results.as_json:
            self.results.event({**events.error(error), "path": name})
        self.codes.append(error.exit_code)

    def _begin(self) -> None:
        if self.codes and not self.results.as_json:
            self.results.line("")

    def end(self) -> int:
        """Return the exit code: one picture's own; of several, that some were not as they should be.

        A signature that could not be looked at is neither good nor bad; said once, it has the code that `--sign` has there.
        """
        bad = [code for code in self.codes if code]
        if UsageError.exit_code in bad:
            unchecked = bad.count(UsageError.exit_code)
            what = "a signature was" if unchecked == 1 else f"{unchecked} signatures were"
            screen.error(UsageError(f"{what} not checked: c2pa-python is not installed", signing.INSTALL))
        if len(self.codes) == 1 or set(bad) == {UsageError.exit_code}:
            return bad[0] if bad else 0
        return int(bool(bad))


def _stdin(check: bool) -> Found:
    if sys.stdin is None:
        raise InputMissing("stdin is closed", "redirect the picture into it")
    return inspecting.inspect_stream(sys.stdin.buffer, "-", check)


def _raw(found: Found) -> Iterator[str]:
    for keyword, text in found.raw.items():
        yield f"  {_line(keyword)}"
        for line in text.split("\n"):
            # In pieces: what it takes to escape all of a long text at once is many times as long.
            yield "    " + "".join(printable(line[i : i + 2**16]) for i in range(0, len(line), 2**16))


def _table(found: Found) -> Iterator[str]:
    for label, value in _rows(found):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        more = len(text) - LONGEST
        text = printable(text[:LONGEST].rstrip("\n"))
        if more > 0:
            text += f" ... ({more} more characters: --raw or --json shows them)"
        # What a text says on its later lines stands under its first, so that none looks like a row.
        for i, line in enumerate(text.split("\n")):
            yield from _folded(f"  {_line(label[:100]):<{LABEL}} " if i == 0 else " " * (LABEL + 3), line)


def _line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def _folded(head: str, text: str) -> Iterator[str]:
    """Yield a row, folded to the terminal's width; off a terminal it is one line."""
    width = shutil.get_terminal_size().columns - LABEL - 3 if sys.stdout.isatty() else 0
    start = 0
    while 20 <= width < len(text) - start:
        end = text.rfind(" ", start + 1, start + width) + 1 or start + width
        yield (head + text[start:end]).rstrip()
        start, head = end, " " * (LABEL + 3)
    yield (head + text[start:]).rstrip()


def _rows(found: Found) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a picture's table: its request, its model, what sdcli's record says besides, and what is unmapped."""
    # Lists, and switches that stand at nothing, are of no interest where nothing is in them.
    for name in FIELDS:
        value = found.request.get(name)
        if value is not None and value is not False and value not in ("", [], ()):
            yield name, value
    if found.model:
        yield from ((f"model {k}" if k != "name" else "model", v) for k, v in found.model.items() if v)
    if found.record:
        yield from _record(found.record)
    if found.unmapped:
        yield "NOT MAPPED", ""
    yield from islice(found.unmapped.items(), MOST_ROWS)
    if len(found.unmapped) > MOST_ROWS:
        yield "...", f"{len(found.unmapped) - MOST_ROWS} more: --raw or --json shows them"
    if found.checked:
        told = {"match": "match: as the record says", "differ": "differ from what the record says"}
        nothing = f"a sheet is drawn from no record; {SHEET}" if found.is_sheet else "no record says what they were"
        yield "PIXELS", told[found.pixels] if found.pixels else f"not checked: {nothing}"
    if found.signature is not None:
        by = f" {found.signature.by}" if found.signature.by else ""
        yield "SIGNATURE", f"{found.signature.state}: {SIGNATURES[found.signature.state].format(by=by)}"


def _record(record: Record) -> Iterator[tuple[str, Any]]:
    """Yield what sdcli's record says beyond the request and the model."""
    ran, plan, tokens, seconds = record.scheduler, record.plan, record.tokens, record.seconds
    yield "scheduler that ran", f"{ran.name or ran.class_name} ({ran.class_name})"
    if record.template is not None:
        yield "template", record.template
    if record.tags:
        yield "tags", _pairs(record.tags)
    yield "device", f"{plan.device}, {plan.dtype}, {plan.threads} threads, pack of {plan.pack_size}"
    yield (
        "memory",
        f"slicing {plan.attention_slicing}, tiling {'on' if plan.vae_tiling else 'off'}, offload {plan.offload}",
    )
    yield "tokens", f"{tokens.used} in {tokens.chunks} chunk{'s' if tokens.chunks > 1 else ''}"
    if tokens.cut:
        yield "tokens cut", tokens.cut
    if record.fallbacks:
        yield "fall-backs", "; ".join(record.fallbacks)
    if record.flagged is not None:
        yield "safety checker", "flagged" if record.flagged else "not flagged"
    yield "seconds", f"load {seconds.load:.2f}, draw {seconds.draw:.2f}, decode {seconds.decode:.2f}"
    if record.encoding:
        yield "encoding", f"{record.encoding.format}, quality {record.encoding.quality}"
    yield "versions", _pairs(record.versions)
    yield "id", record.id


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
