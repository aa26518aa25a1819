"""What many commands have: options, and a prompt that comes on stdin."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sdcli.errors import BadInput, InputMissing

Json = Annotated[bool, typer.Option("--json/--no-json", show_default=False, help="Print a JSON object a line.")]
Print0 = Annotated[bool, typer.Option("--print0/--no-print0", "-0", show_default=False, help="End each path with NUL.")]
Offline = Annotated[bool, typer.Option("--offline/--no-offline", show_default=False, help="Make no connection.")]
Quiet = Annotated[bool, typer.Option("--quiet/--no-quiet", "-q", show_default=False, help="Say errors only.")]
Verbose = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, show_default=False, metavar="", help="Say reasons; twice: tracebacks."),
]


def prompt_of_stdin() -> str:
    """Return the text on stdin, without the line's end. Raises InputMissing, and BadInput for what is not UTF-8."""
    if sys.stdin is None:
        raise InputMissing("stdin is closed", "give the prompt as an argument")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"stdin is not UTF-8: {error.reason} at byte {error.start}", "convert it, for example with iconv"
        ) from None
    except OSError as error:
        raise BadInput(f"stdin can't be read: {error.strerror}", "give the prompt as an argument") from None
    return text.removesuffix("\n").removesuffix("\r")
