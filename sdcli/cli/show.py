"""`sdcli show`: pictures in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, get_args

import typer

from sdcli import pictures
from sdcli.cli import seeing
from sdcli.cli.main import app, closing, screen
from sdcli.cli.results import Results
from sdcli.cli.screen import is_dumb
from sdcli.cli.seeing import GRAPHICS
from sdcli.cli.shared import Quiet, Verbose
from sdcli.cli.terminal import MOST_CELLS, Protocol, Terminal
from sdcli.errors import BadInput, CannotCreateOutput, InputMissing, SomeFailed, UsageError


@app.command(
    help="""Put pictures into the terminal.

kitty's, iTerm2's and sixel graphics, else coloured half blocks. Into a pipe or a file nothing is put, unless --graphics says how.

Examples:

  sdcli show dusk.png

  sdcli show --width 30 pictures/*.png

  sdcli generate "a red circle" --model demo -o - | sdcli show -
"""
)
def show(
    files: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="Files; - reads a picture from stdin.")],
    width: Annotated[
        int | None, typer.Option("--width", metavar="COLS", min=1, max=MOST_CELLS, help="Columns across.")
    ] = None,
    graphics: Annotated[
        str | None,
        typer.Option("--graphics", metavar="NAME", help=GRAPHICS, autocompletion=lambda: list(get_args(Protocol))),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    screen.verbosity = -1 if quiet else verbose
    way = seeing.protocol(graphics)
    if files.count("-") > 1:
        raise UsageError("stdin can be read once", "give - once")
    if sys.stdout is None:
        raise CannotCreateOutput("stdout is closed: there is nowhere to show a picture", "leave it open")
    if way is None and (not sys.stdout.isatty() or is_dumb()):
        what = "is a dumb terminal (TERM=dumb)" if sys.stdout.isatty() else "is no terminal"
        raise UsageError(f"stdout {what}: there is nowhere to show a picture", "--graphics says what to write there")
    terminal: Terminal | None = None
    failed = 0
    for name in files:
        try:
            image = pictures.on_white(pictures.open_picture(_path(name)))
        except (BadInput, InputMissing) as error:
            if len(files) == 1:
                raise
            screen.error(error)
            failed += 1
            continue
        # Asked once stdin has come to its end: whoever writes there may ask the terminal too.
        terminal = terminal or Terminal(sys.stdout, way, write=_write)
        if len(files) > 1:
            screen.say(name)
        terminal.put(image, columns=width)
    if failed:
        raise SomeFailed(f"{failed} of {len(files)} pictures could not be shown", "the lines above say why")


def _write(text: str) -> None:
    encoding = sys.stdout.encoding
    try:
        data = text.encode(encoding, sys.stdout.errors or "strict")
    except UnicodeEncodeError as error:
        raise CannotCreateOutput(
            f"stdout's encoding is {encoding}, which lacks {text[error.start]}",
            "set PYTHONIOENCODING=utf-8, or take --graphics sixel or iterm2",
        ) from None
    Results().data(data)


def _path(file: str) -> Path:
    if file != "-":
        return Path(file)
    if sys.stdin is None:
        raise InputMissing("stdin is closed", "give the picture's path")
    folder = closing.enter_context(TemporaryDirectory(prefix="sdcli-"))
    return pictures.spooled(sys.stdin.buffer, Path(folder))
