"""The one runner: jobs to pictures in files, and an event for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sdcli import metadata, output
from sdcli.errors import ClosedPipe, Interrupted, OutOfMemory, OutputFailed, SdcliError, SomeFailed
from sdcli.jobs import events
from sdcli.jobs.jobs import Job

if TYPE_CHECKING:
    from sdcli.pipeline import Pipeline, Step
    from sdcli.record import GeneratedImage

# What ends a run whatever else is left to draw: the next job would meet it too.
ENDS_ALL = (OutputFailed, OutOfMemory, Interrupted, ClosedPipe)


class Watcher(Protocol):
    """Whoever tells a person how a run goes."""

    def say(self, text: str, level: int = 0) -> None: ...
    def warn(self, text: str) -> None: ...
    def error(self, error: SdcliError) -> None: ...
    def step(self, step: Step, label: str) -> None: ...
    def stop(self) -> None: ...


def run(
    jobs: Sequence[Job],
    pipeline: Pipeline,
    *,
    destination: output.Destination,
    how: Literal["full", "none"],
    batch_size: int,
    tell: Callable[[dict[str, Any]], None],
    watcher: Watcher,
) -> None:
    """Draw all jobs and write their pictures; `tell` hears an event as each is finished or has failed.

    One bad job does not stop the others. Raises what ends a run, the only job's own failure, or SomeFailed.
    """
    failed = 0
    packs = [list(jobs[i : i + batch_size]) for i in range(0, len(jobs), batch_size)]
    while packs:
        pack, done = packs.pop(0), 0
        listen = partial(watcher.step, label=_label(pack[0], len(jobs)))
        try:
            for image in pipeline.generate(
                [j.request for j in pack],
                batch_size=batch_size,
                templates=[j.template for j in pack],
                tags=[j.tags for j in pack],
                listener=listen,
            ):
                watcher.stop()
                _finish(pack[done], image, destination, how, tell, watcher)
                done += 1
        except SdcliError as error:
            if len(pack) == 1:
                error.id = pipeline.id_of(pack[0].request)
            if len(jobs) == 1 or isinstance(error, ENDS_ALL):
                raise
            if len(pack) > 1:
                # A pack fails as one: what is left of it is tried alone, so that no good job is lost with a bad one.
                packs[:0] = [[job] for job in pack[done:]]
                continue
            failed += 1
            watcher.error(error)
            tell(events.error(error, line=pack[0].line))
        finally:
            watcher.stop()
    if failed:
        raise SomeFailed(f"{failed} of {len(jobs)} pictures failed", "the lines above say why")


def _finish(
    job: Job,
    image: GeneratedImage,
    destination: output.Destination,
    how: Literal["full", "none"],
    tell: Callable[[dict[str, Any]], None],
    watcher: Watcher,
) -> None:
    """Write a picture, then tell of it."""
    record = image.record
    data = metadata.encode(image.image, record, destination.format, how)
    naming = output.naming(record, index=job.index, when=datetime.now(), line=job.line, name=job.name)
    path = output.save(destination, data, naming)
    for warning in image.warnings:
        watcher.warn(warning)
    seconds = record.seconds
    watcher.say(
        f"seed {record.request.seed}, {record.pixels.width}x{record.pixels.height}, "
        f"{seconds.draw + seconds.decode:.1f} s"
        + (f", pack of {record.plan.pack_size}" if record.plan.pack_size > 1 else "")
    )
    tell(events.image(job, record, str(path) if path else None, destination.format, image.warnings))


def _label(job: Job, of: int) -> str:
    text = " ".join(job.request.prompt.split())
    text = text if len(text) <= 30 else text[:29] + "…"
    return f"{job.index}/{of} {text}" if of > 1 else text
