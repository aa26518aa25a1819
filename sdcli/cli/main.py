"""The command line's frame: the app, and how every ending gets its exit code."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any

import typer

from sdcli import __version__
from sdcli.cli.screen import Screen
from sdcli.errors import BUG, Interrupted, OutputFailed, SdcliError, UsageError

app = typer.Typer(
    name="sdcli",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
screen = Screen()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sdcli {__version__}")
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
    # No garbage worth looking for is made before a picture is drawn; `import_libraries` says more.
    gc.disable()
    code = main(sys.argv[1:])
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str]) -> int:
    """Run a command line; return its exit code."""
    screen.verbosity = 0
    try:
        # A command's rooms are imported when it is called for.
        _import_commands(argv)
        done = app(args=list(argv), prog_name="sdcli", standalone_mode=False)
        sys.stdout.flush()
        return done if isinstance(done, int) else 0
    except KeyboardInterrupt:
        return _fail(Interrupted(signal.SIGINT), argv)
    except SdcliError as error:
        return _fail(error, argv)
    except BrokenPipeError:
        return _closed_pipe()
    except typer.Abort:
        return _fail(Interrupted(signal.SIGINT), argv)
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is not None:  # Typer's own word on argv
            command = getattr(getattr(error, "ctx", None), "command_path", "sdcli")
            return _fail(UsageError(usage(), f"`{command} --help` lists what there is"), argv)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            return _fail(OutputFailed(f"stdout can't be written: {error.strerror}", "redirect it elsewhere"), [])
        traceback.print_exc()
        return _fail(Bug(f"{type(error).__name__}: {error}", "this is a bug in sdcli: please report it with the lines above"), argv)


class Bug(SdcliError):
    exit_code = BUG
    slug = "bug"


def _fail(error: SdcliError, argv: Sequence[str]) -> int:
    screen.error(error)
    if screen.verbosity >= 2 and not isinstance(error, Interrupted):
        traceback.print_exception(error.__cause__ or error)
    if "--json" in argv and "--" not in argv[: argv.index("--json")] and error.slug != "some-failed":
        from sdcli.cli.results import Results
        from sdcli.jobs import events

        try:
            Results(as_json=True).event(events.error(error))
        except BrokenPipeError:
            return _closed_pipe()
    return error.exit_code


def _closed_pipe() -> int:
    # What Python would still flush at its end goes nowhere, in silence.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _terminate(number: int, frame: FrameType | None) -> Any:
    raise Interrupted(number)


COMMANDS = ("generate", "schedulers")


def _import_commands(argv: Sequence[str]) -> None:
    """Import the command that argv names; all of them for the overall help, none for the version."""
    from importlib import import_module

    named = next((a for a in argv if not a.startswith("-")), None)
    if named is None and "--version" in argv:
        return
    for command in [named] if named in COMMANDS else COMMANDS:
        import_module(f"sdcli.cli.{command}")
