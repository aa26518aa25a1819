"""What a run shows in the terminal: pictures as they form and finished, and the options for that."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from sdcli.cli.main import screen
from sdcli.cli.screen import printable
from sdcli.cli.terminal import Protocol, Terminal
from sdcli.errors import UsageError, nearest
from sdcli.pipeline.hearing import ESTIMATES

if TYPE_CHECKING:
    from sdcli.jobs.jobs import Job
    from sdcli.pipeline import Listener, Pipeline, Step
    from sdcli.record import GeneratedImage

LOOKING = "What you see of it"
# The share of the time that may go into previews, and the seconds that the first is taken to cost. What the steps' estimates
# cost comes on top.
SHARE, FIRST = 0.015, 0.005
GRAPHICS = "kitty, iterm2, sixel, blocks; else it is asked."

Preview = Annotated[
    bool,
    typer.Option(
        "--preview/--no-preview", show_default=False, help="Show it as it forms.", rich_help_panel=LOOKING
    ),
]  # fmt: skip
Show = Annotated[
    bool,
    typer.Option("--show/--no-show", show_default=False, help="Show it in the terminal.", rich_help_panel=LOOKING),
]
Graphics = Annotated[
    str | None,
    typer.Option(
        "--graphics", metavar="NAME", help=GRAPHICS, rich_help_panel=LOOKING,
        autocompletion=lambda: list(get_args(Protocol)),
    ),
]  # fmt: skip
Animate = Annotated[
    str | None,
    typer.Option("--animate", metavar="FILE", help="Noise to picture: .gif, .webp, .apng.", rich_help_panel=LOOKING),
]
AnimateClean = Annotated[
    bool,
    typer.Option(
        "--animate-clean/--no-animate-clean", show_default=False, help="Each step's prediction beside it.",
        rich_help_panel=LOOKING,
    ),
]  # fmt: skip
SaveSteps = Annotated[
    str | None,
    typer.Option("--save-steps", metavar="DIR", help="Keep steps: pictures, numbers.", rich_help_panel=LOOKING),
]


def protocol(name: str | None, **wanted: bool) -> Protocol | None:
    """Return a way of putting pictures into a terminal by its name. `wanted`: what it is for, if not for all.

    Raises UsageError, also where nothing that it is for is wanted.
    """
    if name is not None and wanted and not any(wanted.values()):
        options = [f"--{option}" for option in wanted]
        raise UsageError(f"--graphics is for {' and '.join(options)}", f"add {' or '.join(options)}, or leave it out")
    if name is not None and name not in get_args(Protocol):
        known = get_args(Protocol)
        raise UsageError(f"unknown graphics {name!r}{nearest(name, known)}", f"there is {', '.join(known)}")
    return cast("Protocol | None", name)


def terminal(way: Protocol | None, *, wanted: bool) -> Terminal | None:
    """Return stderr as a terminal that pictures are put into, None where it is none, or all is quiet, or nothing is wanted."""
    return Terminal(sys.stderr, way) if wanted and screen.draws else None


def between(terminal: Terminal | None) -> Callable[[Any], None] | None:
    """Return what puts pictures into a terminal on which a bar may be drawn, which is taken away first."""
    if terminal is None:
        return None

    def put(image: Any) -> None:
        screen.stop()
        terminal.put(image)

    return put


class Previewing:
    """Shows the first picture of each pack as it forms. At most SHARE of the time goes into that.

    `pictures`: how many there will be, None where nobody knows. Of a model whose steps can't be shown that is said once.
    """

    waits = False

    def __init__(self, terminal: Terminal, pictures: int | None) -> None:
        self._terminal, self._pictures = terminal, pictures
        self._can: bool | None = None

    def pack(self, pipeline: Pipeline, jobs: Sequence[Job]) -> Listener:
        from sdcli.pipeline import previewing

        if self._can is None:
            try:
                previewing.check(pipeline)
                self._can, screen.preview = True, self._terminal
            except UsageError as error:
                self._can = False
                screen.say(f"no preview: {error.message}")
        if not self._can:
            return lambda step: None
        return _Forming(self._terminal, pipeline, jobs[0], self._pictures)

    def drawn(self, job: Job, image: GeneratedImage) -> None:
        self._terminal.clear()

    def finish(self) -> None:
        pass


class _Forming:
    """Hears the steps of a pack, and shows those that the time so far has paid for, at what the last one has cost."""

    hears = frozenset({ESTIMATES})

    def __init__(self, terminal: Terminal, pipeline: Pipeline, job: Job, pictures: int | None) -> None:
        from sdcli.pipeline import previewing

        self._terminal = terminal
        self._linear: previewing.Linear | None = None
        try:
            self._linear = previewing.linear(pipeline)
        except (RuntimeError, MemoryError) as error:
            # The picture itself may be drawn all the same; no preview is worth it.
            pipeline.forget(error)
        text = printable(" ".join(job.request.prompt.split()))
        number = f"{job.index}: " if pictures is None else f"{job.index}/{pictures} " if pictures > 1 else ""
        self._label = f"{number}{text}"
        # On a CPU this thread's own time too: while others have that, the clock says nothing of what a step takes.
        self._own = time.thread_time if pipeline.decision.device == "cpu" else time.monotonic
        self._began, self._began_own = time.monotonic(), self._own()
        self._spent, self._last = 0.0, FIRST

    def __call__(self, step: Step) -> None:
        passed = min(time.monotonic() - self._began, self._own() - self._began_own)
        if self._linear is None or self._spent + self._last > SHARE * passed:
            return
        shown = step.clean if step.clean is not None else step.latents
        try:
            # Where a GPU is still at the step, that ends here: it is no cost of looking on.
            latents = shown[:1].cpu()
            now = time.monotonic()
            (image,) = self._linear.pictures(latents)
        except (RuntimeError, MemoryError):
            self._linear = None  # Looking on may not change how it is drawn.
            return
        if self._terminal.is_clear:
            screen.stop()  # A batch's bar stands there between two pictures.
        pace = (now - self._began - self._spent) / step.number
        self._terminal.over(image, f"{step.number}/{step.of}, {pace:.2f} s/step  {self._label}")
        self._last = time.monotonic() - now
        self._spent += self._last
