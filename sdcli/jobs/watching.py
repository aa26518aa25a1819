"""What is kept of a picture's steps: an animation from noise to picture, and each step's pictures and numbers."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sdcli import output
from sdcli.errors import CannotCreateOutput, UsageError
from sdcli.jobs.jobs import Job
from sdcli.output import Destination

if TYPE_CHECKING:
    from sdcli.pipeline import Listener, Pipeline, Step
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


class Watch(Protocol):
    """Whoever looks on while a pack is drawn."""

    def pack(self, pipeline: Pipeline, jobs: Sequence[Job]) -> Listener:
        """Return what hears the steps of a pack."""

    def drawn(self, job: Job, image: GeneratedImage) -> None:
        """Hear that the next picture of the pack is there. It may raise nothing."""

    def finish(self) -> None:
        """Do what is to be done once the pack's pictures are there. Raises what writing a file raises."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One step of one picture: `Step`'s, of the picture alone (1, channels, height / 8, width / 8), in main memory."""

    number: int
    of: int
    part: int
    timestep: float
    latents: Any
    before: Any
    noise: Any
    clean: Any
    sigma: float | None
    signal: float | None

    @property
    def shown(self) -> Any:
        """The latents that the step began with, at the size of clean ones, so that they can be decoded."""
        if self.before is None or self.sigma is None or self.signal is None:
            return self.latents
        return self.before / (self.signal**2 + self.sigma**2) ** 0.5


class Recorder:
    """Keeps the steps of a pack: a listener. A picture that is drawn in two passes (enlarged) has two parts."""

    hears = frozenset({"estimates"})

    def __init__(self) -> None:
        self._steps: list[tuple[int, Step]] = []
        self._taken = 0

    def __call__(self, step: Step) -> None:
        import dataclasses

        if self._steps and step.number <= self._steps[-1][1].number:
            part, last = self._steps[-1]
            if self._taken or step.latents.shape[-1] <= last.latents.shape[-1]:
                # Another pass of the pack, or the same one again with less memory.
                self._steps, self._taken, part = [], 0, 0
            part += 1
        else:
            part = self._steps[-1][0] if self._steps else 1
        names = ("latents", "before", "noise", "clean")
        held = {name: t.detach().to("cpu", copy=True) for name in names if (t := getattr(step, name)) is not None}
        self._steps.append((part, dataclasses.replace(step, **held)))

    def taken(self) -> list[Moment]:
        """Return the steps of the next picture."""
        at, found = self._taken, []
        self._taken += 1
        for part, step in self._steps:
            rows: dict[str, Any] = {
                name: None if (t := getattr(step, name)) is None else t[at : at + 1]
                for name in ("latents", "before", "noise", "clean")
            }
            told: dict[str, Any] = {
                name: getattr(step, name) for name in ("number", "of", "timestep", "sigma", "signal")
            }
            found.append(Moment(part=part, **told, **rows))
        return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """A picture that was drawn, and its steps."""

    job: Job
    image: GeneratedImage
    moments: list[Moment]


Keeper = Callable[["Pipeline", Run], None]


class Keeping:
    """Writes what is wanted of each picture's steps. Steps are only held while a pack is drawn; all else comes after."""

    def __init__(self, *keepers: Keeper) -> None:
        self._keepers = keepers
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
            for keep in self._keepers:
                keep(self._pipeline, run)


def kept(
    animate: str | None,
    save_steps: str | None,
    where: Destination,
    *,
    clean: bool,
    pictures: int,
    say: Callable[[str], None],
) -> Keeping | None:
    """Return what keeps the steps of so many pictures, which go to `where`; None where nothing is kept.

    Raises UsageError and CannotCreateOutput for paths that can't be written or are taken.
    """
    keepers: list[Keeper] = []
    if animate is not None:
        to = animation(animate, pictures=pictures, overwrite=where.overwrite)
        if where.kind == "exact" and os.path.realpath(where.text) == os.path.realpath(to.text):
            raise UsageError(f"{animate} is where the picture goes", "give --animate another path")
        if where.kind == "template" and where.text.replace("{format}", where.format) == to.text:
            raise UsageError(f"{animate} is where the pictures go", "give --animate another name")
        keepers.append(Animation(to, clean=clean, say=say))
    if save_steps is not None:
        # What a whole path says for a picture, it says for its steps not: they are many files.
        folder = steps_folder(save_steps, overwrite=where.overwrite and where.kind != "exact")
        keepers.append(Steps(folder, several=pictures > 1, say=say))
    return Keeping(*keepers) if keepers else None


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
    output.check_folder(Path(path).parent, "choose another place")
    return Destination(kind="exact", text=path, format=ending[1:], overwrite=True)


class Animation:
    """Writes an animation of each picture: what each step began with, and at last the picture, which stays a while.

    `clean`: beside it the clean picture that each step predicted. Frames are decoded by the model's own autoencoder.
    """

    def __init__(self, where: Destination, *, clean: bool, say: Callable[[str], None]) -> None:
        self._where, self._clean, self._say = where, clean, say

    def __call__(self, pipeline: Pipeline, run: Run) -> None:
        every = max(1, -(-len(run.moments) // MOST_FRAMES))
        data = animated(
            frames(pipeline, run.moments[::every], run.image.image, clean=self._clean), f".{self._where.format}"
        )
        path = output.save(self._where, data, _naming(run))
        self._say(f"animation: {path}")


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
    output.check_folder(folder, "choose another place")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise CannotCreateOutput(f"{folder} is not empty", "give another folder to --save-steps, or --overwrite")
    return folder


class Steps:
    """Writes each step's pictures, what it began with and the clean one that it predicted, and its numbers.

    One picture's steps go into the folder, those of several into folders of their own in it.
    """

    def __init__(self, folder: Path, *, several: bool, say: Callable[[str], None]) -> None:
        self._folder, self._several, self._say = folder, several, say

    def __call__(self, pipeline: Pipeline, run: Run) -> None:
        record, folder = run.image.record, self._folder
        if self._several:
            folder = folder / f"{record.request.seed}-{record.id[:8]}"
        width = len(str(max((m.of for m in run.moments), default=1)))
        lines = []
        for moment, (now, at_end) in zip(run.moments, _pictures(pipeline, run.moments, clean=True), strict=True):
            second = f"{moment.part}-" if moment.part > 1 else ""
            name = f"step-{second}{moment.number:0{width}}"
            files = {f"{name}.png": now} | ({f"{name}-clean.png": at_end} if moment.clean is not None else {})
            for file, picture in files.items():
                data = io.BytesIO()
                picture.save(data, "PNG")
                output.write(folder / file, data.getvalue(), overwrite=True)
            lines.append(json.dumps(_numbers(moment) | {"pictures": list(files)}, allow_nan=False) + "\n")
        # Last: where it is, all that it names is.
        output.write(folder / "steps.jsonl", "".join(lines).encode(), overwrite=True)
        self._say(f"steps: {folder}{os.sep}")


def _numbers(moment: Moment) -> dict[str, Any]:
    """Return a step's numbers, for JSON."""
    found: dict[str, Any] = {
        "schema": 1, "step": moment.number, "of": moment.of, "part": moment.part, "timestep": moment.timestep,
        "sigma": moment.sigma, "signal": moment.signal,
    }  # fmt: skip
    for name in ("before", "noise", "clean", "latents"):
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
