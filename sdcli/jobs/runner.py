"""The one runner: jobs to pictures in files, and an event for each."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from sdcli import metadata, output
from sdcli.errors import (
    Bug,
    CannotCreateOutput,
    ClosedPipe,
    Interrupted,
    OutOfMemory,
    OutputFailed,
    SdcliError,
    SomeFailed,
)
from sdcli.jobs import events
from sdcli.jobs.jobs import Job, Refused, packs
from sdcli.jobs.journal import Journal, holds
from sdcli.jobs.watching import Watch
from sdcli.output import Destination, OutputPlan
from sdcli.pipeline import Listener, Together
from sdcli.request import GenerationRequest

if TYPE_CHECKING:
    from sdcli.pipeline import Pipeline, Step
    from sdcli.record import GeneratedImage

# What ends a run whatever else is left to draw: the next job would meet it too.
ENDS_ALL = (OutputFailed, Interrupted, ClosedPipe)
# What is hardly one job's own if so many in a row fail of it: the next would too.
NOT_ONES_OWN = (OutOfMemory, CannotCreateOutput, Bug)
IN_A_ROW = 3
# So many bad rows are told to people one by one.
TOLD = 100


class Tally(msgspec.Struct, kw_only=True):
    """How far a run is, in pictures; `total` is None where nobody knows."""

    total: int | None
    done: int = 0
    failed: int = 0
    skipped: int = 0
    began: float = msgspec.field(default_factory=time.monotonic)
    drawing_since: float | None = None

    @property
    def pace(self) -> float:
        """Pictures a second since drawing began, without what was loaded and skipped before."""
        since = self.drawing_since
        return self.done / (time.monotonic() - since) if self.done and since is not None else 0.0

    @property
    def left(self) -> int:
        return max(0, (self.total or 0) - self.done - self.failed - self.skipped)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class Watcher(Protocol):
    """Whoever tells a person how a run goes."""

    def say(self, text: str, level: int = 0) -> None: ...
    def warn(self, text: str) -> None: ...
    def error(self, error: SdcliError, where: str | None = None) -> None: ...
    def step(self, step: Step, label: str) -> None: ...
    def tally(self, tally: Tally, prompt: str) -> None: ...
    def stop(self) -> None: ...


def _never() -> None:
    return None


class How(msgspec.Struct, frozen=True, kw_only=True):
    """How a run goes, besides its jobs.

    `load` gives the pipeline when the first picture must be drawn, `id_of` a job's id before that, `shape` what
    requests must share to be drawn in one pass. With a journal, what it
    knows as finished is skipped, and equal jobs are drawn once; `left_behind` names the picture with a job's id that a
    killed run left without a line. `interrupted` gives the number of the signal that asks to stop after what is in
    flight. After `max_failures` the run stops. `each`: people get a line a picture, else `tally` tells of them all.
    `answers`: each line that comes is answered in its turn, with the event of an earlier run where that has done it.
    `watches` look on while packs are drawn; `show` is given each picture (Pillow, RGB) once it has been written.
    """

    load: Callable[[], Pipeline]
    id_of: Callable[[GenerationRequest], str]
    shape: Callable[[GenerationRequest], Hashable]
    destination: Destination
    files: OutputPlan
    batch_size: int
    tell: Callable[[dict[str, Any]], None]
    watcher: Watcher
    tally: Tally
    in_order: bool = True
    each: bool = True
    answers: bool = False
    journal: Journal | None = None
    left_behind: Callable[[str], Path | None] = lambda id: None
    # The paths of pictures that say no id and have no line: without metadata, a killed run left them.
    nameless: set[str] = msgspec.field(default_factory=set)
    retry_failed: bool = False
    max_failures: int | None = None
    interrupted: Callable[[], int | None] = _never
    watches: Sequence[Watch] = ()
    show: Callable[[Any], None] | None = None


class _Written(msgspec.Struct, frozen=True, kw_only=True):
    """What the writing thread did: the event of the picture, and where its line stands in the journal."""

    event: dict[str, Any]
    place: tuple[int, int] | None
    image: GeneratedImage


class Runner:
    """Draws jobs; made for one run."""

    def __init__(self, how: How) -> None:
        self.how = how
        self.watcher, self.tally, self.journal = how.watcher, how.tally, how.journal
        self._pipeline: Pipeline | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: deque[tuple[Job, Future[_Written]]] = deque()
        # Jobs on their way, by id and own destination, each with the lines of the equal ones that are reported with it.
        self._equal: dict[tuple[str, Destination | None], list[int | None]] = {}
        # The ids that the jobs on their way had when they came, by their place: a file of theirs may go, or change, before the end.
        self._ids: dict[int, str] = {}
        self._failed_before = self._refused = 0
        self._in_a_row: list[type[SdcliError]] = []
        self._last_failure: SdcliError | None = None
        self._cannot_write = False

    def run(self, jobs: Iterable[Job | Refused | None]) -> None:
        """Draw all jobs and write their pictures; `tell` hears an event as each is finished or has failed.

        Pictures are encoded and written in a thread, beside the next pack. One bad job does not stop the others. A None among
        the jobs says that the next is not there yet. Raises what ends a run, the only job's own failure, or SomeFailed.
        """
        how = self.how
        self._show("")
        try:
            for pack in packs(self._to_draw(jobs), how.batch_size, how.shape, in_order=how.in_order):
                if pack and not self._stops:
                    self._draw(pack)
                self._collect(at_most=how.batch_size if pack else 0)
                if self._stops:
                    break
            self._collect(at_most=0)
        except OutputFailed:
            for _, future in self._writing:
                future.cancel()
            raise
        except ClosedPipe:
            raise
        except BaseException:
            with suppress(Exception):
                self._collect(at_most=0)  # What was drawn is written and told.
            raise
        finally:
            self._pool.shutdown()
            self.watcher.stop()
        self._judge()

    @property
    def _stops(self) -> bool:
        limit = self.how.max_failures
        return self.how.interrupted() is not None or (limit is not None and self.tally.failed - self._refused >= limit)

    def _judge(self) -> None:
        """Raise what a run that came to its end must say besides."""
        tally, number = self.tally, self.how.interrupted()
        if number is not None:
            raise Interrupted(number)
        if tally.failed:
            of = tally.total or tally.done + tally.failed + tally.skipped
            failed = SomeFailed(f"{tally.failed} of {of} pictures failed", "the lines above say why")
            if of == 1 and self._last_failure is not None:
                failed.exit_code = self._last_failure.exit_code
            raise failed
        if self._failed_before:
            raise SomeFailed(
                f"{self._failed_before} failed in an earlier run, and were not tried again",
                "--retry-failed tries them",
            )

    # What need not be drawn

    def _to_draw(self, jobs: Iterable[Job | Refused | None]) -> Iterator[Job | None]:
        """Yield the jobs that are to be drawn, and tell of the others."""
        for job in jobs:
            if self._stops:
                return
            if self.how.answers and (isinstance(job, Refused) or (job is not None and self._is_there(job))):
                # What came before is drawn and told first.
                yield None
            if isinstance(job, Refused):
                self._refused += 1
                self._fail(job, job.error, said=self._refused <= TOLD)
            elif job is None or self.journal is None:
                yield job
            elif self._id_of(job) is None:
                self._gone(job)
            elif not self._is_known(job, self.journal):
                yield job

    def _id_of(self, job: Job) -> str | None:
        """Return the id that a job had when it came, None where a file of it is gone since it was looked at."""
        if job.index not in self._ids:
            try:
                self._ids[job.index] = self.how.id_of(job.request)
            except ENDS_ALL:
                raise
            except SdcliError:
                return None
        return self._ids[job.index]

    def _gone(self, job: Job) -> None:
        """Tell of a job that has no id, why."""
        try:
            self.how.id_of(job.request)
        except SdcliError as error:
            self._fail(job, error)

    def _is_there(self, job: Job) -> bool:
        id = self._id_of(job)
        return (
            id is not None
            and (id, job.destination) in self._equal
            or (id is not None and self.journal is not None and self.journal.find(id) is not None)
        )

    def _is_known(self, job: Job, journal: Journal) -> bool:
        """Say whether a job needs no drawing: an equal one is on its way, or it ended in this run or an earlier one."""
        id = self._ids.pop(job.index)
        if (id, job.destination) in self._equal:
            self._equal[id, job.destination].append(job.line)
            return True
        found = journal.find(id, lambda line: line["event"] == "error" or _goes_there(line, job))
        line = found.line if found is not None else None
        if found is not None and line is not None and found.of_this_run:
            return self._again(line, job)
        if line is not None and line["event"] == "error" and not self.how.retry_failed:
            self._failed_before += 1
            return self._again(line, job, earlier=True) if self.how.answers else self._skip(id, None, job)
        if line is not None and line["event"] == "image":
            path = Path(line["path"])
            if self._is_whole(path, id, line["pixels"]):
                return self._again(line, job, earlier=True) if self.how.answers else self._skip(id, str(path), job)
            if path.exists():
                self.watcher.warn(f"{path} is not as it was drawn, or does not say its job: drawing it again")
        own = job.destination
        left = Path(own.text) if own is not None and own.kind == "exact" else self.how.left_behind(id)
        if left is not None and self._is_whole(left, id, None):
            event = events.found(job, id, left)
            self._note(event, journal)
            # The run that drew it was killed before it could tell anybody.
            self._tell(event)
            return True
        self._equal[id, job.destination], self._ids[job.index] = [], id
        return False

    def _is_whole(self, path: Path, id: str, pixels: str | None) -> bool:
        """Say whether a picture is there with its id in it and the pixels that were drawn; without metadata, by its
        pixels alone."""
        return holds(path, None if self.how.files.metadata == "none" else id, pixels)

    def _again(self, line: dict[str, Any], job: Job, *, earlier: bool = False) -> bool:
        """Tell what the journal says of a job, as this row's; an `earlier` run's counts as skipped."""
        only_kept = ("time", "prompt", "seed") if line["event"] == "error" else ("time",)
        event = {key: value for key, value in line.items() if key not in only_kept} | {"line": job.line}
        if "prompt" in event:  # The journal may be silent about it, and whoever asked is told.
            event["prompt"] = job.request.prompt
        if earlier:
            self.tally.skipped += 1
            self.how.tell(event)
        else:
            self._tell(event)
        return True

    def _skip(self, id: str, path: str | None, job: Job) -> bool:
        self.tally.skipped += 1
        self.how.tell(events.skipped(id, path, job.line))
        self._show(job.request.prompt)
        return True

    # Drawing

    def _draw(self, pack: list[Job]) -> None:
        """Draw a pack; where it fails, what is left of it is tried one by one, so that no good job is lost with a bad."""
        if self._pipeline is None:
            self._pipeline = self.how.load()
            self.tally.drawing_since = time.monotonic()
        done = 0
        try:
            for image in self._pipeline.generate(
                [job.request for job in pack],
                batch_size=self.how.batch_size,
                templates=[job.template for job in pack],
                tags=[job.tags for job in pack],
                listener=self._listener(self._pipeline, pack),
            ):
                if self.how.each:
                    self.watcher.stop()
                for watch in self.how.watches:
                    watch.drawn(pack[done], image)
                future = self._pool.submit(self._write_if_possible, pack[done], image, len(pack))
                self._writing.append((pack[done], future))
                done += 1
                self._collect(at_most=2 * self.how.batch_size)
        except Exception as error:
            if isinstance(error, SdcliError) and not isinstance(error, ENDS_ALL) and len(pack) - done == 1:
                error.id = self._id_of(pack[-1])
            if isinstance(error, ENDS_ALL) or done == len(pack) or not self._is_a_jobs(error):
                raise
            if len(pack) - done > 1:
                for job in pack[done:]:
                    if not self._stops:
                        self._draw([job])
                return
            self._collect(at_most=0)
            self._fail(pack[-1], _as_failure(error))
        if any(watch.waits for watch in self.how.watches):
            self._collect(at_most=0)  # Pictures come before what is made of their steps.
        for watch in self.how.watches:
            watch.finish()

    def _listener(self, pipeline: Pipeline, pack: list[Job]) -> Listener:
        own = partial(self._step, pack[0])
        if not self.how.watches:
            return own
        return Together([own, *(watch.pack(pipeline, pack) for watch in self.how.watches)])

    def _is_a_jobs(self, error: Exception) -> bool:
        """Whether an error is told as a job's own: what nobody expected ends `generate` and no batch."""
        return not self.how.each or (isinstance(error, SdcliError) and self.tally.total != 1)

    def _step(self, job: Job, step: Step) -> None:
        if self.how.each:
            self.watcher.step(step, label=_label(job, self.tally.total))
        self._collect(at_most=None)

    def _fail(self, job: Job | Refused, error: SdcliError, *, said: bool = True) -> None:
        """Tell of a job that failed; it is in the journal, so that it is not tried again unless that is wanted.

        Raises the failure that is the last of too many of its kind in a row.
        """
        if said:
            self.watcher.error(error, job.origin or None)
        error.line = job.line
        own = None
        if isinstance(job, Job):
            error.id, own = self._id_of(job), job.destination
            self._ids.pop(job.index, None)
        event = events.error(error, line=job.line)
        if self.journal is not None and error.id is not None and isinstance(job, Job):
            # What failed last night is looked for by its words.
            self._note({**event, "prompt": job.request.prompt, "seed": job.request.seed}, self.journal)
        self._last_failure = error
        self._tell(event, own)
        if isinstance(error, NOT_ONES_OWN) and not (isinstance(error, CannotCreateOutput) and own is not None):
            self._in_a_row = [
                *(kind for kind in self._in_a_row if kind is type(error)),
                type(error),
            ]
            if len(self._in_a_row) == IN_A_ROW:
                error.told = True
                raise error

    def _note(self, event: dict[str, Any], journal: Journal) -> None:
        """Write a job's event into the journal, and remember it."""
        try:
            place = journal.write(self._kept(event))
        except OutputFailed as error:
            error.id, error.line = event["id"], event["line"]
            raise
        journal.note(event, place)

    def _kept(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return what the journal keeps of an event: no more of the prompt than the pictures do. Warnings quote what was cut."""
        if self.how.files.metadata == "full":
            return event
        return {**event, **{key: none for key, none in (("prompt", None), ("warnings", [])) if key in event}}

    # Writing

    def _write_if_possible(self, job: Job, image: GeneratedImage, among: int) -> _Written:
        """Write a picture, unless one before it could not be: that ends the run, and nobody would be told of it."""
        if self._cannot_write:
            raise CancelledError
        try:
            return self._write(job, image, among)
        except OutputFailed:
            self._cannot_write = True
            raise

    def _write(self, job: Job, image: GeneratedImage, among: int) -> _Written:
        """Encode a picture, write it, and then its line. Runs in the writing thread."""
        record, files = image.record, self.how.files
        destination = job.destination or self.how.destination
        made = metadata.encoded(image.image, record, destination.format, files.metadata, destination.quality)
        data = made.data
        if self.how.destination.signer is not None:
            data = self.how.destination.signer.signed(data, destination.format)
        naming = output.naming(record, index=job.index, when=datetime.now(), line=job.line, name=job.name)
        path = self._left_under_its_name(record.id, destination, naming, data, made.pixels)
        if path is None:
            hint = "choose another output for this row" if job.destination is not None else output.ELSEWHERE
            path = output.save(destination, data, naming, hint)
        event = events.image(
            job,
            record,
            str(path) if path else None,
            destination.format,
            made.pixels,
            (*image.warnings, *made.warnings),
            among=min(among, record.plan.pack_size),
        )
        place = self.journal.write(self._kept(event)) if self.journal is not None else None
        return _Written(event=event, place=place, image=image)

    def _left_under_its_name(
        self,
        id: str,
        destination: Destination,
        naming: output.Naming,
        data: bytes,
        pixels: str,
    ) -> Path | None:
        """Return this very picture where an earlier run left it under its name, and no line tells of it.

        With its id in it `left_behind` knows it, unless other lines came since; without metadata its bytes tell. A path that
        may be overwritten is: that makes no second picture.
        """
        if self.journal is None or self.journal.fresh or destination.overwrite:
            return None
        name = Path(output.path_of(destination, naming))
        if self.how.files.metadata != "none":
            return name if os.path.lexists(name) and holds(name, id, pixels) else None
        if not self.how.nameless:
            return None
        for path in takewhile(os.path.lexists, output.names(name)):
            here = os.path.realpath(path)
            with suppress(OSError):
                if here in self.how.nameless and path.read_bytes() == data:
                    self.how.nameless.discard(here)
                    return path
        return None

    def _collect(self, at_most: int | None) -> None:
        """Tell of the pictures that are written; wait until no more than `at_most` are not (None: wait for none)."""
        while self._writing:
            job, future = self._writing[0]
            if not future.done() and (at_most is None or len(self._writing) <= at_most):
                return
            try:
                written = future.result()
            except Exception as error:
                if isinstance(error, SdcliError):
                    error.id, error.line = self._id_of(job), job.line
                if isinstance(error, ENDS_ALL) or not self._is_a_jobs(error):
                    raise
                self._writing.popleft()
                self._fail(job, _as_failure(error))
                continue
            self._writing.popleft()
            self._in_a_row = []
            if self.journal is not None and written.place is not None:
                self.journal.note(written.event, written.place)
            for warning in written.event["warnings"]:
                self.watcher.warn(warning)
            self._say(written.image)
            self._tell(written.event, job.destination, self._ids.pop(job.index, None))
            if self.how.show is not None:
                self.how.show(written.image.image)

    def _say(self, image: GeneratedImage) -> None:
        record = image.record
        pack = f", pack of {record.plan.pack_size}" if record.plan.pack_size > 1 else ""
        self.watcher.say(
            f"seed {record.request.seed}, {record.pixels.width}x{record.pixels.height}, "
            f"{record.seconds.draw + record.seconds.decode:.1f} s{pack}",
            level=0 if self.how.each else 1,
        )

    def _tell(
        self,
        event: dict[str, Any],
        own: Destination | None = None,
        id: str | None = None,
    ) -> None:
        """Count an event and tell it, and the same of each equal job that came meanwhile; `id` is what they came with."""
        id = id or event["id"]
        equal = self._equal.pop((id, own), []) if id else []
        for one in (event, *({**event, "line": line} for line in equal)):
            if one["event"] == "image":
                self.tally.done += 1
            else:
                self.tally.failed += 1
            self.how.tell(one)
        self._show(event.get("prompt", ""))

    def _show(self, prompt: str) -> None:
        if not self.how.each:
            self.watcher.tally(self.tally, prompt)


def _goes_there(line: dict[str, Any], job: Job) -> bool:
    """Say whether the picture of a journal's line lies where a job's own destination says."""
    own = job.destination
    if own is None:
        return True
    if own.kind == "exact":
        return bool(os.path.realpath(line["path"]) == os.path.realpath(own.text))
    folder = os.path.realpath(output.folder_of(own)[0])
    return bool(line["format"] == own.format and os.path.realpath(line["path"]).startswith(folder + os.sep))


def _as_failure(error: Exception) -> SdcliError:
    """Return what a job failed of; what nobody expected is a bug."""
    if isinstance(error, SdcliError):
        return error
    bug = Bug(
        f"{type(error).__name__}: {error}",
        "this is a bug in sdcli: please report it, with what -vv says",
    )
    bug.__cause__ = error
    return bug


def _label(job: Job, of: int | None) -> str:
    text = " ".join(job.request.prompt.split())
    text = text if len(text) <= 30 else text[:29] + "…"
    return f"{job.index}/{of} {text}" if of and of > 1 else text
