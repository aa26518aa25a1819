"""The command line's frame: the app, and how every ending gets its exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Annotated, Any

import typer

from sdcli import __version__
from sdcli.cli import completing
from sdcli.cli.results import Results
from sdcli.cli.screen import Screen
from sdcli.errors import Bug, ClosedPipe, Interrupted, OutputFailed, SdcliError, UsageError

app = typer.Typer(
    name="sdcli",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
screen = Screen()
# What a command leaves behind that goes when it has ended.
closing = ExitStack()


def _version(wanted: bool) -> None:
    if wanted:
        Results().line(f"sdcli {__version__}")
        raise typer.Exit


@app.callback()
def sdcli(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True, expose_value=False)
    ] = False,
) -> None:
    """Draw pictures from text with Stable Diffusion.

    Example: sdcli generate "a red circle on a blue background" --model demo
    """


def entry() -> None:
    """The console script. Leaves without Python's tidying up, which takes a tenth of a short run, once all is flushed."""
    signal.signal(signal.SIGTERM, _terminate)
    if sys.stderr is None:  # closed by whoever started us: nobody is to be told
        sys.stderr = open(os.devnull, "w")
    if completing.VARIABLE in os.environ:
        os._exit(completing.complete())
    code = main(sys.argv[1:])
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str]) -> int:
    """Run a command line; return its exit code."""
    with closing:
        return _main(argv)


def _main(argv: Sequence[str]) -> int:
    screen.verbosity, screen.as_json, screen.at_leaving, screen.preview = 0, False, None, None
    screen.argv = argv
    interrupted = 128 + signal.SIGINT
    try:
        # A command's rooms are imported when it is called for.
        import_commands(argv)
        code = app(args=list(argv), prog_name="sdcli", standalone_mode=False)
        # Typer makes this code, and no word, of Ctrl-C.
        return _fail(Interrupted(signal.SIGINT), argv) if code == interrupted else code or 0
    except KeyboardInterrupt:
        return _fail(Interrupted(signal.SIGINT), argv)
    except ClosedPipe as error:
        return _closed_pipe(error)
    except SdcliError as error:
        return _fail(error, argv)
    except SystemExit as ended:
        # So Typer ends once it has shown or installed the shells' scripts, and where its own help meets a closed pipe.
        return _closed_pipe(ClosedPipe()) if ended.code else 0
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is not None:  # Typer's own word on argv
            command = getattr(getattr(error, "ctx", None), "command_path", "sdcli")
            return _fail(UsageError(usage(), f"`{command} --help` lists what there is"), argv)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO):  # Typer's own printing of help
            return _fail(OutputFailed(f"stdout can't be written: {error.strerror}", "redirect it elsewhere"), argv)
        traceback.print_exc()
        return _fail(
            Bug(f"{type(error).__name__}: {error}", "this is a bug in sdcli: please report it with the lines above"),
            argv,
        )


def _fail(error: SdcliError, argv: Sequence[str]) -> int:
    screen.error(error)
    if screen.verbosity >= 2 and not isinstance(error, Interrupted):
        traceback.print_exception(error.__cause__ or error)
    typed = "--json" in argv and "--" not in argv[: argv.index("--json")]
    if (typed or screen.as_json) and not error.told:
        from sdcli.jobs import events

        try:
            Results(as_json=True).event(events.error(error))
        except ClosedPipe as closed:
            return _closed_pipe(closed)
        except OutputFailed:
            _drop_stdout()  # a full stdout: what happened has been said, and its code stands
    elif isinstance(error, OutputFailed):
        _drop_stdout()
    return error.exit_code


def _closed_pipe(error: ClosedPipe) -> int:
    screen.stop()
    _drop_stdout()
    return error.exit_code


def _drop_stdout() -> None:
    """Let what Python would still flush at its end go nowhere, in silence."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> Any:
    raise Interrupted(number)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Let a signal end the process here and now, while there is nothing to lose.

    Libraries that are being imported are not ready for an exception out of a signal handler: PyTorch aborts.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        error = Interrupted(number)
        if screen.at_leaving is not None:
            screen.at_leaving(error)
        os._exit(_fail(error, screen.argv))

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def finishing() -> Iterator[Callable[[], int | None]]:
    """Let a first signal ask a run to stop once it has finished what is in flight, and a second end it at once.

    Gives a function that returns the first one's number, None while there was none.
    """
    came: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        # The signal may have come while a stream was written, which then can't be written again: straight to the system.
        if came:
            _straight(f"\nerror: interrupted by signal {number}\n")
            os._exit(128 + number)
        came.append(number)
        before = (screen.preview.leave() if screen.preview is not None else "") or "\n"
        if screen.verbosity >= 0:
            _straight(f"{before}finishing what is in flight; once more stops at once\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _straight(text: str) -> None:
    """Write to stderr past Python's streams, if it takes it at once; and show the cursor that a bar may hide."""
    import select

    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, (("\x1b[?25h" if os.isatty(2) else "") + text).encode())


COMMANDS = (
    "generate", "batch", "grid", "inspect", "verify", "tokens", "schedulers", "models", "presets", "config", "doctor", "show",
    "gallery", "explain",
)  # fmt: skip


def import_commands(argv: Sequence[str]) -> None:
    """Import the command that argv names; all of them for the overall help, none for the version."""
    from importlib import import_module

    named = next((a for a in argv if not a.startswith("-")), None)
    if named is None and not {"--version", "--show-completion", "--install-completion"}.isdisjoint(argv):
        return
    for command in [named] if named in COMMANDS else COMMANDS:
        import_module(f"sdcli.cli.{command}")
