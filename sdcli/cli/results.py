"""stdout: results and nothing else, flushed one by one."""

from __future__ import annotations

import json
import sys
from typing import Any

from sdcli.cli.screen import Screen, printable
from sdcli.errors import CannotCreateOutput, ClosedPipe, OutputFailed


class Results:
    """Prints a run's results: paths a line, NUL-separated, or JSON objects; nothing where stdout carries the picture.

    On a terminal what moves on `screen` gives way to them.
    """

    def __init__(
        self, *, as_json: bool = False, print0: bool = False, to_stdout: bool = False, screen: Screen | None = None
    ) -> None:
        self.screen = screen
        self.as_json = as_json
        self.print0 = print0
        self.to_stdout = to_stdout

    def event(self, event: dict[str, Any]) -> None:
        """Print an event where JSON is wanted, else its path where it is a picture's or a sheet's."""
        if self.as_json:
            self.line(json.dumps(event))
        elif event["event"] in ("image", "sheet") and not self.to_stdout:
            self.line(event["path"])

    def text(self, text: str) -> None:
        """Print a result that somebody else may have written: on a terminal it can't steer it, elsewhere it is as it is."""
        self.line(printable(text) if sys.stdout is not None and sys.stdout.isatty() else text)

    def line(self, text: str) -> None:
        """Print one result."""
        # Paths are bytes to the system: what is no UTF-8 goes out as it came in.
        self.data(text.encode("utf-8", "surrogateescape") + (b"\0" if self.print0 else b"\n"))

    def data(self, data: bytes) -> None:
        """Write a result as it is."""
        if sys.stdout is None:
            raise CannotCreateOutput("stdout is closed", "redirect it, as in > /dev/null")
        if self.screen is not None and sys.stdout.isatty():
            self.screen.stop()
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise ClosedPipe from None
        except OSError as error:
            raise OutputFailed(f"stdout can't be written: {error.strerror}", "redirect it elsewhere") from error
