"""What is kept of a picture's steps: an animation from noise to picture, and each step's pictures and numbers."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from sdcli import output
from sdcli.errors import CannotCreateOutput, UsageError
from sdcli.jobs.jobs import Job
from sdcli.output import Destination
from sdcli.pipeline.hearing import ESTIMATES, Step
from sdcli.record import SCHEMA

if TYPE_CHECKING:
    from sdcli.pipeline import Listener, Pipeline
    from sdcli.record import GeneratedImage

# An animation's endings, and what Pillow calls their formats and is to be told.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".gif": ("GIF", {"disposal": 1, "optimize": False}),
    ".webp": ("WEBP", {"lossless": True, "quality": 50, "method": 3}),
    ".apng": ("PNG", {"disposal": 0, "blend": 0}),
}
# Milliseconds: what all steps take together, the least and the most that one does, and how long the picture stays.
MOVING, FASTEST, SLOWEST, HELD = 3000, 40, 200, 2000
# Of a run of more steps, as many frames are taken, evenly.
MOST_FRAMES = 60
ELSEWHERE = "choose another place"
# The file of the steps' numbers, and what those of their pictures are called.
NUMBERS = "steps.jsonl"
PICTURE = re.compile(r"step-([0-9]+-)?[0-9]+(-clean)?\.png")
# What a step has a tensor of.
TENSORS = ("before", "noise", "clean", "latents")


class Watch(Protocol):
    """Whoever looks on while a pack is drawn; `waits`: what is done at its finish wants the pack's pictures to be written."""

    waits: bool

    def pack(self, pipeline: Pipeline, jobs: Sequence[Job]) -> Listener:
        """Return what hears the steps of a pack."""

    def drawn(self, job: Job, image: GeneratedImage) -> None:
        """Hear that the next picture of the pack is there. It may raise nothing."""

    def finish(self) -> None:
        """Do what is to be done once the pack's pictures are there. Raises what writing a file raises."""


class Moment(Step, frozen=True, kw_only=True):
    """One step of one picture: its tensors are of the picture alone (1, channels, height / 8, width / 8), in main memory."""

    part: int

    @property
    def shown(self) -> Any:
        """The latents that the step began with, at the size of clean ones, so that they can be decoded."""
        return self.latents if self.before is None else self.unit


class Recorder:
    """Keeps the steps of a pack: a listener. A picture that is drawn in two passes (enlarged) has two parts."""

    hears = frozenset({ESTIMATES})

    def __init__(self) -> None:
        self._steps: list[tuple[int, Step]] = []
        self._taken = 0

    def __call__(self, step: Step) -> None:
        if self._steps and step.number <= self._steps[-1][1].number:
            part, last = self._steps[-1]
            if self._taken or step.latents.shape[-1] <= last.latents.shape[-1]:
                # Another pass of the pack, or the same one again with less memory.
                self._steps, self._taken, part = [], 0, 0
            part += 1
        else:
            part = self._steps[-1][0] if self._steps else 1
        held = {name: t.detach().to("cpu", copy=True) for name in TENSORS if (t := getattr(step, name)) is not None}
        self._steps.append((part, msgspec.structs.replace(step, **held)))

    def taken(self) -> list[Moment]:
        """Return the steps of the next picture."""
        at, found = self._taken, []
        self._taken += 1
        for part, step in self._steps:
            told = msgspec.structs.asdict(step)
            own = {name: told[name][at : at + 1] for name in TENSORS if told[name] is not None}
            found.append(Moment(part=part, **(told | own)))
        return found


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that was drawn, and its steps."""

    job: Job
    image: GeneratedImage
    moments: list[Moment]


Keeper = Callable[["Pipeline", Run], None]
# Hears what was written, of which picture, and where.
Tell = Callable[[str, Run, str], None]


class Keeping:
    """Writes what is wanted of each picture's steps. Steps are only held while a pack is drawn; all else comes after."""

    waits = True

    def __init__(self, *keepers: Keeper, say: Callable[[str], None]) -> None:
        self._keepers, self._say = keepers, say
        self._recorder = Recorder()
        self._pipeline: Pipeline | None = None
        self._runs: list[Run] = []

    def check(self, pipeline: Pipeline) -> None:
        """Raise UsageError for a model whose steps can't be shown."""
        from sdcli.pipeline import previewing

        previewing.check(pipeline)

    def pack(self, pipeline: Pipeline, jobs: Sequence[Job]) -> Listener:
        self._pipeline, self._recorder = pipeline, Recorder()
        return self._recorder

    def drawn(self, job: Job, image: GeneratedImage) -> None:
        self._runs.append(Run(job=job, image=image, moments=self._recorder.taken()))

    def finish(self) -> None:
        assert self._pipeline is not None
        while self._runs:
            run = self._runs.pop(0)
            if not run.moments:
                self._say("no step was drawn: there is nothing but the picture")
            for keep in self._keepers:
                keep(self._pipeline, run)


def kept(
    animate: str | None,
    save_steps: str | None,
    where: Destination,
    *,
    clean: bool,
    pictures: int,
    overwrite: bool,
    say: Callable[[str], None],
    tell: Callable[[dict[str, Any]], None],
) -> Keeping | None:
    """Return what keeps the steps of so many pictures, which go to `where`; None where nothing is kept.

    `tell` hears an event of each file or folder that is written. Raises UsageError and CannotCreateOutput for paths that
    can't be written or are taken.
    """

    def told(event: str, run: Run, path: str) -> None:
        say(f"{event}: {path}")
        tell({"schema": SCHEMA, "event": event, "id": run.image.record.id, "path": path})

    keepers: list[Keeper] = []
    if animate is not None:
        to = animation(animate, pictures=pictures, overwrite=overwrite)
        if _meet(where, to):
            raise UsageError(
                f"{animate} may be where a picture goes", "give --animate another folder, or end it in .gif or .apng"
            )
        keepers.append(Animation(to, clean=clean, tell=told))
    if save_steps is not None:
        folder = steps_folder(save_steps, overwrite=overwrite)
        keepers.append(Steps(folder, several=pictures > 1, overwrite=overwrite, tell=told))
    return Keeping(*keepers, say=say) if keepers else None


def _meet(where: Destination, to: Destination) -> bool:
    """Whether an animation would get its picture's path, or may replace some picture's.

    Of two that do not both overwrite, the later one gets another name.
    """
    folders = {os.path.realpath(output.folder_of(place)[0]) for place in (where, to)}
    if where.kind == "stdout" or where.format != to.format or len(folders) > 1:
        return False
    replaces = where.overwrite and to.overwrite and "template" in (where.kind, to.kind)
    return replaces or os.path.basename(where.text).replace("{format}", where.format) == os.path.basename(to.text)


# Animations


def animation(path: str, *, pictures: int, overwrite: bool) -> Destination:
    """Return where animations go: a path, or a template as the pictures have. Raises UsageError and CannotCreateOutput."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in FORMATS:
        raise UsageError(f"--animate: {path!r} does not end in {', '.join(FORMATS)}", "name a file that does")
    if "{" in path:
        output.fields_of(path)
        return Destination(kind="template", text=path, format=ending[1:], overwrite=overwrite)
    if pictures > 1:
        raise UsageError(
            f"--animate: {pictures} pictures can't all be animated in one file",
            f"give a template, for example {{seed}}{ending}",
        )
    if os.path.isdir(path):
        raise CannotCreateOutput(f"{path} is a folder", "name a file")
    output.check_folder(Path(path).parent, ELSEWHERE)
    # What is there is replaced, as a picture's path is; what comes there meanwhile is a picture of this run.
    return Destination(kind="exact", text=path, format=ending[1:], overwrite=os.path.lexists(path))


class Animation:
    """Writes an animation of each picture: what each step began with, and at last the picture, which stays a while.

    `clean`: beside it the clean picture that each step predicted. Frames are decoded by the model's own autoencoder.
    """

    def __init__(self, where: Destination, *, clean: bool, tell: Tell) -> None:
        self._where, self._clean, self._tell = where, clean, tell
        self._written: set[Path] = set()

    def __call__(self, pipeline: Pipeline, run: Run) -> None:
        every = max(1, -(-len(run.moments) // MOST_FRAMES))
        data = animated(
            frames(pipeline, run.moments[::every], run.image.image, clean=self._clean), f".{self._where.format}"
        )
        path = Path(output.path_of(self._where, _naming(run)))
        # What is overwritten was there before the run.
        path = output.write(path, data, overwrite=self._where.overwrite and path not in self._written, hint=ELSEWHERE)
        self._written.add(path)
        self._tell("animation", run, str(path))


def frames(pipeline: Pipeline, moments: Sequence[Moment], picture: Any, *, clean: bool) -> list[Any]:
    """Return an animation's frames (Pillow, RGB), all of the picture's size, or twice as wide with the clean ones."""
    from PIL import Image

    def paired(left: Any, right: Any) -> Any:
        frame = Image.new("RGB", (picture.width * (2 if clean else 1), picture.height))
        for at, one in enumerate((left, right)[: 2 if clean else 1]):
            frame.paste(one if one.size == picture.size else one.resize(picture.size), (at * picture.width, 0))
        return frame

    made = [paired(now, at_end) for now, at_end in _pictures(pipeline, moments, clean=clean)]
    return [*made, paired(picture, picture)]


def animated(pictures: Sequence[Any], ending: str) -> bytes:
    """Return an animation's file, in the format of an ending; the last frame stays."""
    kind, options = FORMATS[ending]
    moving = max(1, len(pictures) - 1)
    # GIF counts hundredths of a second.
    each = round(min(SLOWEST, max(FASTEST, MOVING / moving)) / 10) * 10
    if kind == "GIF":
        # A palette of its own for each: one for all would be the noise's.
        pictures = [picture.quantize(256) for picture in pictures]
    file = io.BytesIO()
    pictures[0].save(
        file, kind, save_all=True, append_images=pictures[1:], duration=[*[each] * moving, HELD][-len(pictures) :], loop=0,
        **options,
    )  # fmt: skip
    return file.getvalue()


# Steps


def steps_folder(path: str, *, overwrite: bool) -> Path:
    """Return the folder that steps go to; CannotCreateOutput for one that has something in it, unless `overwrite`."""
    folder = Path(path)
    output.check_folder(folder, ELSEWHERE)
    if not overwrite and not output.is_empty(folder, "give another folder to --save-steps"):
        raise CannotCreateOutput(f"{folder} is not empty", "give another folder to --save-steps, or --overwrite")
    return folder


class Steps:
    """Writes each step's pictures, what it began with and the clean one that it predicted, and its numbers.

    One picture's steps go into the folder, those of several into folders of their own in it.
    """

    def __init__(self, folder: Path, *, several: bool, overwrite: bool, tell: Tell) -> None:
        self._folder, self._several, self._tell = folder, several, tell
        self._folders: set[Path] = set()
        # What was there gives way, unless it has changed since: then it is a picture of this run.
        self._there: dict[Path, int] = {}
        self._before: dict[Path, int] = {}
        if overwrite:
            for path in (*folder.glob("step*"), *folder.glob("*/step*")):
                with suppress(OSError):
                    self._there[path] = path.stat().st_mtime_ns
            self._before = output.of_a_run_before(folder / NUMBERS, _named(folder / NUMBERS), PICTURE)

    def __call__(self, pipeline: Pipeline, run: Run) -> None:
        record, folder = run.image.record, self._folder
        if self._several:
            folder = folder / f"{record.request.seed}-{record.id[:8]}"
        if folder in self._folders:
            folder = folder.with_name(f"{folder.name}-{run.job.index}")
        self._folders.add(folder)
        width = len(str(max((m.of for m in run.moments), default=1)))
        lines = []
        for moment, (now, at_end) in zip(run.moments, _pictures(pipeline, run.moments, clean=True), strict=True):
            second = f"{moment.part}-" if moment.part > 1 else ""
            name = f"step-{second}{moment.number:0{width}}"
            files = {f"{name}.png": now} | ({f"{name}-clean.png": at_end} if moment.clean is not None else {})
            written = []
            for file, picture in files.items():
                data = io.BytesIO()
                picture.save(data, "PNG")
                written.append(self._write(folder / file, data.getvalue()).name)
            lines.append(json.dumps(_numbers(moment) | {"pictures": written}, allow_nan=False) + "\n")
        # Last: where it is, all that it names is.
        self._write(folder / NUMBERS, "".join(lines).encode())
        output.remove(self._before)
        self._tell("steps", run, f"{folder}{os.sep}")

    def _write(self, path: Path, data: bytes) -> Path:
        as_it_was = False
        with suppress(OSError):
            as_it_was = self._there.get(path) == path.stat().st_mtime_ns
        return output.write(path, data, overwrite=as_it_was, hint=ELSEWHERE)


def _named(numbers: Path) -> list[object]:
    """Return what a file of steps' numbers names as their pictures."""
    names: list[object] = []
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        for line in numbers.read_bytes().splitlines():
            names += json.loads(line)["pictures"]
    return names


def _numbers(moment: Moment) -> dict[str, Any]:
    """Return a step's numbers, for JSON."""
    found: dict[str, Any] = {
        "schema": SCHEMA, "step": moment.number, "of": moment.of, "part": moment.part, "timestep": moment.timestep,
        "sigma": moment.sigma, "signal": moment.signal,
    }  # fmt: skip
    for name in TENSORS:
        values = getattr(moment, name)
        found[name] = None if values is None else _spread(values.double())
    return found


def _spread(values: Any) -> dict[str, float]:
    return {
        "mean": round(float(values.mean()), 6), "std": round(float(values.std(correction=0)), 6),
        "min": round(float(values.min()), 6), "max": round(float(values.max()), 6),
    }  # fmt: skip


def _pictures(pipeline: Pipeline, moments: Sequence[Moment], *, clean: bool) -> Iterator[tuple[Any, Any]]:
    """Yield for each step the picture of what it began with, and of the clean latents that it predicted if asked for."""
    from sdcli.pipeline import previewing

    for moment in moments:
        (now,) = previewing.decode(pipeline, moment.shown)
        at_end = now
        if clean and moment.clean is not None:
            (at_end,) = previewing.decode(pipeline, moment.clean)
        yield now, at_end


def _naming(run: Run) -> output.Naming:
    job = run.job
    return output.naming(run.image.record, index=job.index, when=datetime.now(), line=job.line, name=job.name)
