"""What can go wrong, and the exit code of each.

* SdcliError                  1
  + SomeFailed                1    some of several jobs failed; each has been told already
  + UsageError                2    an option, name or value that cannot be
  + BadInput                  65   data that was read is bad: a row, picture, checkpoint, settings file
  + Bug                       70   anything else that escapes
  + InputMissing              66   a file that was named is not there
  + ModelUnavailable          69   weights that are neither here nor reachable
    + ModelGated              77   weights that need an account's permission
  + CannotCreateOutput        73   a folder or file that cannot be made
  + OutputFailed              74   writing failed midway: disk full, I/O error
  + OutOfMemory               75   after every fall-back
  + NotFinite                 76   the networks' values were not finite: no picture
  + Interrupted               128 + signal
  + ClosedPipe                141  whoever read stdout has gone; nothing is said

Codes are those of sysexits.h where it has one.
"""

from __future__ import annotations

from collections.abc import Iterable


class SdcliError(Exception):
    """An expected failure: `message` says what happened, `hint` what to do about it, `id` and `line` which job it
    happened to, `field` which value is refused. `told`: machines have heard of it already, and get no line of its own for it.
    """

    exit_code = 1
    slug = "error"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.id: str | None = None
        self.line: int | None = None
        self.field: str | None = None
        self.told = False


class SomeFailed(SdcliError):
    slug = "some-failed"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.told = True


class Bug(SdcliError):
    exit_code = 70
    slug = "bug"


class UsageError(SdcliError):
    exit_code = 2
    slug = "usage"


class BadInput(SdcliError):
    exit_code = 65
    slug = "bad-input"


class InputMissing(SdcliError):
    exit_code = 66
    slug = "input-missing"


class ModelUnavailable(SdcliError):
    exit_code = 69
    slug = "model-unavailable"


class ModelGated(ModelUnavailable):
    exit_code = 77
    slug = "model-gated"


class CannotCreateOutput(SdcliError):
    exit_code = 73
    slug = "cannot-create-output"


class OutputFailed(SdcliError):
    exit_code = 74
    slug = "io-error"


class OutOfMemory(SdcliError):
    exit_code = 75
    slug = "out-of-memory"


class NotFinite(SdcliError):
    exit_code = 76
    slug = "not-finite"


class Interrupted(SdcliError):
    """A signal ended the run; `number` is the signal's."""

    slug = "interrupted"

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by signal {number}")
        self.exit_code = 128 + number


class ClosedPipe(SdcliError):
    """Nobody reads stdout any more. Not left as BrokenPipeError: Typer would end with 1."""

    exit_code = 141
    slug = "closed-pipe"

    def __init__(self) -> None:
        super().__init__("stdout was closed")


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return "; did you mean a, b?" for the known names nearest to `name`, or nothing."""
    import difflib

    by_folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=count, cutoff=0.5)
    return f"; did you mean {', '.join(by_folded[c] for c in close)}?" if close else ""
