"""What people see: stderr, and on it a bar where it is a terminal. stdout belongs to results."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sdcli.errors import SdcliError

if TYPE_CHECKING:
    from sdcli.cli.terminal import Terminal
    from sdcli.jobs.runner import Tally
    from sdcli.pipeline import Step


class _Escapes(dict[int, str]):
    """For `str.translate`: what each character becomes, found out when it is met first."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        kept = char == "\n" or unicodedata.category(char) not in ("Cc", "Cf", "Cs")
        shown = char if kept else char.encode("unicode_escape").decode()
        if len(self) < 10_000:  # A hostile text has every character there is.
            self[code] = shown
        return shown


_ESCAPES = _Escapes()


def printable(text: str) -> str:
    """Return a text that can't steer a terminal: control and format characters become escapes."""
    return text.translate(_ESCAPES)


def is_dumb() -> bool:
    """Whether the terminal says that it knows no escape sequence."""
    return os.environ.get("TERM") == "dumb"


def styled(text: str, code: str) -> str:
    """Return `text` in an ANSI style, on a terminal that wants it (no-color.org)."""
    wanted = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and not is_dumb()
    return f"\x1b[{code}m{text}\x1b[0m" if wanted else text


class Screen:
    """Tells a person how it goes. `verbosity`: -1 quiet (errors only), 0, 1 with reasons, 2 with tracebacks."""

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        self.argv: Sequence[str] = ()
        # Whether machines are told, and who is to be told before a signal ends the process.
        self.as_json = False
        self.at_leaving: Callable[[SdcliError], None] | None = None
        # Where pictures form, if they are shown: what tells of the steps then, instead of the bar.
        self.preview: Terminal | None = None
        self._progress: Any = None
        self._task: Any = None

    @property
    def draws(self) -> bool:
        """Whether bars are drawn: on a terminal that can, unless quiet."""
        return self.verbosity >= 0 and sys.stderr.isatty() and not is_dumb()

    def say(self, text: str, level: int = 0) -> None:
        """Say a line, if that much is wanted."""
        if self.verbosity >= level:
            self._line(printable(text.replace("\n", " ")))

    def warn(self, text: str) -> None:
        """Say a warning; quiet does not hide it from the record or the JSON."""
        if self.verbosity >= 0:
            self._line(styled("warning: ", "33") + printable(text.replace("\n", " ")))

    def error(self, error: SdcliError, where: str | None = None) -> None:
        """Say what happened, and what to do about it; `where`: in what, if the message does not say."""
        self.stop()
        text = f"{where}: {error.message}" if where else error.message
        self._line(styled("error: ", "31") + printable(text.replace("\n", " ")))
        if error.hint:
            self._line(styled("  hint: ", "36") + printable(error.hint.replace("\n", " ")))

    def step(self, step: Step, label: str) -> None:
        """Move the bar: step, time per step and time left. Drawn on a terminal only."""
        if not self.draws or self.preview is not None:
            return
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
            from rich.text import Text

            class Pace(ProgressColumn):
                """Seconds a step."""

                def render(self, task: Any) -> Text:
                    return Text(f"{1 / task.speed:.2f} s/step" if task.speed else "")

            self._progress = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"), Pace(),
                TextColumn("ETA"), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task(printable(label), total=step.of)
        self._progress.update(self._task, completed=step.number, total=step.of, description=printable(label))

    def tally(self, tally: Tally, prompt: str) -> None:
        """Move the bar over a batch's pictures: done, failed, left, pictures a minute and time left at that pace."""
        if not self.draws or tally.total is None:
            return
        if self.preview is not None:
            self.preview.clear()
        ended = tally.done + tally.failed + tally.skipped
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("{task.completed}/{task.total}"), BarColumn(24), TextColumn("{task.fields[counts]}", markup=False),
                TextColumn("{task.description}", markup=False), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task("", total=tally.total, counts="")
        counts = f"{tally.failed} failed, " if tally.failed else ""
        counts += f"{tally.left} left"
        if tally.pace:
            seconds = round(tally.left / tally.pace)
            counts += f", {tally.pace * 60:.0f}/min, ETA {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        text = " ".join(printable(prompt).split())
        text = text if len(text) <= 30 else text[:29] + "…"
        self._progress.update(self._task, completed=ended, description=text, counts=counts)

    def stop(self) -> None:
        """Take the bar away, or what is shown of a picture that is being drawn."""
        if self.preview is not None:
            self.preview.clear()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _line(self, text: str) -> None:
        # Without a stderr there is nobody to tell.
        with suppress(OSError, ValueError, AttributeError, RuntimeError):
            if self.preview is not None:
                self.preview.clear()
            if self._progress is not None:
                self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                sys.stderr.write(text + "\n")
                sys.stderr.flush()
