"""`sdcli inspect`: what a picture was made with, whoever made it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from sdcli import output
from sdcli.cli.main import app, screen
from sdcli.cli.results import Results
from sdcli.cli.screen import printable
from sdcli.errors import BadInput, InputMissing, UsageError
from sdcli.jobs import events
from sdcli.metadata import inspecting, signing
from sdcli.metadata.inspecting import Found
from sdcli.metadata.readers import FIELDS
from sdcli.record import Record

# What a picture on stdin may have; it is kept on disk.
MOST_STDIN = 2**28
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
and mold: PNG, JPEG, WebP and AVIF. Ends with 1 if one says nothing, or is not as its record says.

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
    results = Results(as_json=as_json)
    codes: list[int] = []
    for name in pictures:
        for path in _pictures(name):
            if codes and not as_json:
                results.line("")
            codes.append(_one(path, check, raw, results))
    # One picture's own code; of several, that some were not as they should be.
    return codes[0] if len(codes) == 1 else int(any(codes))


def _pictures(name: str) -> Iterator[Path | None]:
    """Yield a file as it is, or a folder's pictures in the order of their paths, or the folder if it has none; None: stdin."""
    if name == "-":
        yield None
        return
    inside = [Path(folder, file) for folder, _, files in os.walk(name) for file in files]
    wanted = sorted(path for path in inside if path.suffix.lower() in output.ENDINGS and not path.name.startswith("."))
    yield from wanted or [Path(name)]


def _one(path: Path | None, check: bool, raw: bool, results: Results) -> int:
    """Tell of one picture; return its exit code."""
    try:
        if path is not None and os.path.isdir(path):
            endings = ", ".join(output.ENDINGS)
            raise InputMissing(f"{path}: no picture is in this folder", f"looked for: {endings}")
        found = inspecting.inspect(path, check) if path is not None else _stdin(check)
    except (BadInput, InputMissing) as error:
        screen.error(error)
        screen.say("".join(traceback.format_exception(error.__cause__ or error)).rstrip(), level=2)
        if results.as_json:
            results.event({**events.error(error), "path": str(path or "-")})
        return error.exit_code
    screen.say(f"{found.path}: its texts are {', '.join(found.raw) or 'none'}", level=1)
    if results.as_json:
        results.event(found.as_json())
    else:
        results.line(f"{_line(found.path)}: {found.format or 'no record'}")
        lines = _raw(found) if raw else _table(found)
        while block := list(islice(lines, 1000)):
            results.line("\n".join(block))
    return 0 if found.good else 1


def _stdin(check: bool) -> Found:
    if sys.stdin is None:
        raise InputMissing("stdin is closed", "redirect the picture into it")
    with tempfile.SpooledTemporaryFile(max_size=2**24) as file:
        try:
            size = 0
            while size <= MOST_STDIN and (piece := sys.stdin.buffer.read(2**20)):
                size += file.write(piece)
            if size > MOST_STDIN:
                raise BadInput(f"-: more than {MOST_STDIN // 2**20} MiB", "give the picture as a file")
            file.seek(0)
            return inspecting.inspect_open(_seekable(file), "-", check)
        except OSError as error:
            raise BadInput(f"-: {error.strerror}") from error


def _seekable(file: Any) -> BinaryIO:
    """Before Python 3.11 it was not all that a file is; its type still says so."""
    opened: BinaryIO = file
    return opened


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
    yield from ((k, found.request[k]) for k in FIELDS if found.request.get(k) not in (None, ""))
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
        yield "PIXELS", told[found.pixels] if found.pixels else "not checked: no record says what they were"
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
