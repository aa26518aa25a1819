"""Options that many commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json/--no-json", show_default=False, help="Print a JSON object a line.")]
Print0 = Annotated[bool, typer.Option("--print0/--no-print0", "-0", show_default=False, help="End each path with NUL.")]
Offline = Annotated[bool, typer.Option("--offline/--no-offline", show_default=False, help="Make no connection.")]
Quiet = Annotated[bool, typer.Option("--quiet/--no-quiet", "-q", show_default=False, help="Say errors only.")]
Verbose = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, show_default=False, metavar="", help="Say reasons; twice: tracebacks."),
]
