"""A batch: rows to jobs, a journal beside the pictures, and the run that goes on where an earlier one stopped."""

from __future__ import annotations

import hashlib
import os
import queue
import secrets
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import msgspec

from sdcli import metadata, output, pipeline, settings
from sdcli.errors import BadInput, SdcliError, UsageError
from sdcli.jobs import again, rows
from sdcli.jobs.jobs import WINDOW, Asked, Job, Refused, Seeds, check, count, fitted, lift, of_asked, pack_size
from sdcli.jobs.journal import Index, Journal, is_digest, pictures
from sdcli.jobs.rows import BadRow, Row
from sdcli.metadata import carried
from sdcli.models import Model
from sdcli.output import Destination, OutputPlan
from sdcli.pipeline import LARGEST_PACK, Pipeline
from sdcli.prompts.wildcards import Expander, looks_dynamic
from sdcli.record import ModelRecord, job_id, said_of
from sdcli.request import GenerationRequest, JobOptions
from sdcli.settings import Given, Merged, Source

# So many that any JSON reader keeps them all.
RUN_SEED_BITS = 53
# Folders that rows have of their own, in which pictures of killed runs are looked for.
MOST_FOLDERS = 1000
DEFAULT = "sdcli-batch/{prompt:40}-{seed}-{id:8}.{format}"


@dataclass(kw_only=True)
class Planner:
    """What rows are merged over and checked against: the values of the command line, the model, and the wildcards."""

    given: Given
    model: Model
    expander: Expander | None
    _checked: set[Hashable] = field(default_factory=set)
    _presets: dict[str, tuple[Source, ...]] = field(default_factory=dict)

    @cached_property
    def _files(self) -> dict[str, str] | None:
        return pipeline.identity(self.model).files if self.model.is_here else None

    @cached_property
    def _metadata(self) -> carried.How:
        return self.base.build(OutputPlan).metadata

    @cached_property
    def base(self) -> Merged:
        return self.given.merged()

    def learn(self, model: Model) -> None:
        """Take the place of a model that was not here by what it has turned out to be, with the defaults of its family."""
        self.model = model
        self.given = self.given.knowing(model.defaults)
        for kept in ("base", "_files", "_metadata"):
            self.__dict__.pop(kept, None)
        self._checked.clear()

    def merged(self, row: Row) -> Merged:
        """Return a row's values over those of the command line; its own presets lie directly under it."""
        values = dict(row.values)
        presets = values.pop("preset", [])
        return self.over(presets, (f"{row.file}:{row.line}", values))

    def over(self, presets: Iterable[str], *sources: Source) -> Merged:
        """Return values over those of the command line; presets lie directly under them, and their styles go on last."""
        return self.base.over(*(source for name in presets for source in self._preset(name)), *sources)

    def _preset(self, name: str) -> tuple[Source, ...]:
        if name not in self._presets:
            sources = settings.preset(name)
            for key in (key for _, values in sources for key in values):
                if (option := settings.names().get(key)) and not rows.of_a_row(option.record, option.field):
                    raise UsageError(
                        f"preset {name} sets {option.field}, which is set for the whole run",
                        f"give it as --preset {name}",
                    )
            self._presets[name] = sources
        return self._presets[name]

    def ask(self, row: Row, merged: Merged) -> Asked:
        """Return what a row asks for. Raises what can be known to be wrong with it."""
        asked = self.asked(merged, f"{row.file}:{row.line}", row.line)
        if {"output", "format"} & row.values.keys():
            destination = self._destination(merged.build(OutputPlan), asked.options)
            return msgspec.structs.replace(asked, destination=destination)
        return asked

    def asked(self, merged: Merged, origin: str, line: int | None = None, *, was_expanded: bool = False) -> Asked:
        """Return what merged values ask for. Raises what can be known to be wrong with it."""
        merged, _ = fitted(merged, self.model)
        request, options = merged.build(GenerationRequest), merged.build(JobOptions)
        expands = self.expander is not None and not was_expanded
        key = pipeline.shape(request, self.model)
        if key not in self._checked or "<" in request.prompt:
            check(request if expands else lift(request), self.model, merged)
            if len(self._checked) < WINDOW:
                self._checked.add(key)
        if expands and self.expander is not None:
            self.expander.check(request.prompt)
        asked = Asked(
            request=request, options=options, origin=origin, line=line, was_expanded=was_expanded, styles=merged.templates
        )  # fmt: skip
        if self.expander is None or was_expanded:
            pipeline.check_prompt(lift(asked.styled), self.model)
            metadata.check_length(asked.styled, self._metadata)
        return msgspec.structs.replace(asked, pictures=count(asked, self.expander))

    def _destination(self, files: OutputPlan, options: JobOptions) -> Destination:
        if files.output == "-":
            raise UsageError("a row's picture can't go to stdout", "leave its output out, or name a file")
        if files.output is not None and any(unicodedata.category(c) in ("Cc", "Cf") for c in files.output):
            raise UsageError("the output has control characters in it", "leave them out")
        # Who signs is looked at once, for the whole run.
        files = msgspec.structs.replace(files, sign=None)
        several = options.count > 1 or options.expand == "all"
        return output.resolve(
            files, pictures=2 if several else 1, json=False, print0=False, stdout_is_tty=False, default=DEFAULT
        )

    def of_picture(self, path: str) -> tuple[Asked, Merged] | Refused | None:
        """Return what a picture asks for, with options on top, or why it can't be drawn again; None for a grid's sheet."""
        try:
            found = again.look(path)
            if found is None:
                return None
            merged = self.given.merged((path, again.values(found)), nothing=again.nothing(found))
            asked = self.asked(merged, path, was_expanded=True)
            notes = tuple(again.missing(found, self._files))
            return msgspec.structs.replace(asked, template=again.template(found), notes=notes), merged
        except SdcliError as error:
            where = f"{path}: "
            return Refused(error=BadInput(where + error.message.removeprefix(where), error.hint))

    def of_pictures(self, paths: Iterable[str]) -> Iterator[tuple[Asked, Merged] | Refused]:
        """Yield what pictures ask for, with the values that it is made of, and refusals: `PATH: reason`."""
        for path in paths:
            one = self.of_picture(path)
            if one is not None:
                yield one

    def of_rows(self, all_rows: Iterable[Row | BadRow]) -> Iterator[tuple[Asked, Merged] | Refused]:
        """Yield what rows ask for, with the values that it is made of, and the refusals of bad ones: `FILE:LINE: reason`."""
        return map(self.of_row, all_rows)

    def of_row(self, row: Row | BadRow) -> tuple[Asked, Merged] | Refused:
        """Return what a row asks for, or why it can't be drawn."""
        where = f"{row.file}:{row.line}: "
        if isinstance(row, BadRow):
            return Refused(error=BadInput(where + row.reason, "mend the row"), line=row.line)
        try:
            merged = self.merged(row)
            return self.ask(row, merged), merged
        except SdcliError as error:
            # A source's name stands in its merge's messages already.
            return Refused(error=BadInput(where + error.message.removeprefix(where), error.hint), line=row.line)


# Before anything is loaded


@dataclass(kw_only=True)
class Survey:
    """What the first reading of all rows found: `total` pictures, the shapes of the first and a request of each, the
    folders of outputs that rows have of their own, what is wrong with the bad, and what people should be told. With
    `coming` there was none: rows are read as they come."""

    total: int = 0
    coming: bool = False
    bad: int = 0
    first_line: int | None = None
    refusals: list[SdcliError] = field(default_factory=list)
    shapes: list[Hashable] = field(default_factory=list)
    first: dict[Hashable, GenerationRequest] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    folders: set[tuple[Path, int]] = field(default_factory=set)
    dynamic: str | None = None

    # So many refusals are told one by one.
    TOLD = 100


def survey(asked: Iterable[Asked | Refused], planner: Planner) -> Survey:
    """Read all rows once and check them; memory does not grow with them."""
    found, index = Survey(), Index()
    for one in asked:
        if isinstance(one, Asked) and one.destination is not None:
            one = _check_output(one, one.destination, found, index)
        if isinstance(one, Refused):
            found.bad += 1
            found.first_line = found.first_line or one.line
            if len(found.refusals) < Survey.TOLD:
                found.refusals.append(one.error)
            continue
        n = one.pictures
        found.notes += one.notes[: Survey.TOLD - len(found.notes)]
        found.total += n
        request = pipeline.resolve(one.styled, planner.model)
        shape, room = pipeline.shape(request, planner.model), min(n, WINDOW - len(found.shapes))
        if room > 0:
            found.shapes += [shape] * room
            found.first.setdefault(shape, request)
        if found.dynamic is None and planner.expander is None and looks_dynamic(one.request.prompt):
            found.dynamic = one.request.prompt
    index.close()
    return found


def _check_output(asked: Asked, destination: Destination, found: Survey, index: Index) -> Asked | Refused:
    """Refuse an exact path that two rows have; remember the folder."""
    if destination.kind == "exact":
        path = os.fsencode(os.path.abspath(destination.text))
        seeded = asked.request.seed not in (None, -1)
        whole = path + b"\0" + (msgspec.json.encode(said_of(asked.styled), order="sorted") if seeded else b"")
        others, equal = (index.count(hashlib.sha256(what).digest()[:16], "outputs") for what in (path, whole))
        # Rows that are equal in all are one picture.
        if others and not (seeded and equal):
            return Refused(
                error=BadInput(f"{asked.origin}: another row writes {destination.text} too", "give it another output"),
                line=asked.line,
            )
    elif len(found.folders) < MOST_FOLDERS:
        found.folders.add(output.folder_of(destination))
    return asked


# The run


@dataclass(kw_only=True)
class Ready:
    """What a run of jobs knows before its first picture: how ids are made, the seeds, the pack size, the journal."""

    model: Model
    identity: ModelRecord
    seeds: Seeds
    batch_size: int
    index: Index
    journal: Journal | None
    nameless: set[str] = field(default_factory=set)
    say: Callable[[str], None] = lambda text: None

    def id_of(self, request: GenerationRequest) -> str:
        """Return a job's id."""
        return job_id(self.pin(request), self.identity)

    def pin(self, request: GenerationRequest) -> GenerationRequest:
        """Return the resolved request as records keep it."""
        return pipeline.pinned(self.resolve(request), self.model, self.say)

    def shape(self, request: GenerationRequest) -> Hashable:
        """Return what requests must share to be drawn in one pass."""
        return pipeline.shape(self.resolve(request), self.model)

    def resolve(self, request: GenerationRequest) -> GenerationRequest:
        """Return the request with all that the model decides filled in."""
        return pipeline.resolve(request, self.model)

    def left_behind(self, id: str) -> Path | None:
        """Return the picture that a killed run left with this id, and without a line in the journal."""
        path = self.index.picture(id)
        return Path(path) if path is not None else None

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()
        self.index.close()


def prepare(
    *,
    model: Model,
    load: Callable[[], Pipeline],
    folder: tuple[Path, int] | None,
    asked_size: int | str | None,
    found: Survey,
    fresh: bool = False,
    say: Callable[[str], None],
) -> Ready:
    """Open the journal in `folder` (with how deep pictures lie in it; None: there is none) and settle seeds and packs.

    `load` is called only where the model is not here yet, or where the pack size must be found out with it.
    """
    index = Index()
    journal = Journal(folder[0], index, fresh=fresh) if folder is not None else None
    try:
        if not model.is_here:
            loaded = load()
            model, identity = loaded.model, loaded.model_record
        else:
            identity = pipeline.identity(model)
        alone = model.family is not None and model.family.alone
        size = 1 if alone else asked_size
        if size is None and journal is not None and journal.lines:
            size = journal.batch_size  # That of the pictures that are there.
        if size in (None, "auto"):
            size = pack_size(found.shapes, LARGEST_PACK)
            if found.shapes and size > 1:
                size = load().largest_pack(found.first[Counter(found.shapes).most_common(1)[0][0]], size)
        assert isinstance(size, int)
        seed = None
        nameless: set[str] = set()
        if journal is not None and folder is not None:
            if journal.lines and journal.batch_size not in (None, size):
                say(
                    f"packs of {size} now, {journal.batch_size} before: the pictures may differ by 1/255 from what they would be"
                )
            seed = journal.seed if journal.seed is not None else secrets.randbits(RUN_SEED_BITS)
            if found.total or found.coming:
                journal.begin(seed, size)
            output.sweep(folder[0])
            for where, depth in {folder, *found.folders}:
                for path in pictures(where, depth, journal.is_newer):
                    _remember(path, index, nameless)
    except BaseException:
        if journal is not None:
            journal.close()
        index.close()
        raise
    return Ready(
        model=model,
        identity=identity,
        seeds=Seeds(seed, index),
        batch_size=size,
        index=index,
        journal=journal,
        nameless=nameless,
        say=say,
    )


def _remember(path: Path, index: Index, nameless: set[str]) -> None:
    """Remember a picture by its id, or by its path where it says none and has no line in the journal."""
    try:
        identity = metadata.identity(path)
    except SdcliError:
        return
    if identity is not None and is_digest(identity.id):
        index.put_picture(identity.id, str(path))
    elif identity is None and not index.is_told(here := os.path.realpath(path)):
        nameless.add(here)


def jobs(
    asked: Iterable[Asked | Refused | None], ready: Ready, expander: Expander | None
) -> Iterator[Job | Refused | None]:
    """Yield the jobs of what is asked for, one after the other."""
    index = 1
    for one in asked:
        if not isinstance(one, Asked):
            yield one
            continue
        try:
            for job in of_asked(one, ready.seeds, expander, ready.pin, index):
                index = job.index + 1
                try:
                    ready.pin(job.request)
                except SdcliError as error:  # What a prompt was expanded to may name what is not here.
                    yield Refused(error=error, line=job.line, origin=job.origin)
                    continue
                yield job
        except SdcliError as error:
            yield Refused(error=error, line=one.line, origin=one.origin)


# As a coprocess


def arriving(
    stdin: BinaryIO, planner: Planner, input_format: str | None, interrupted: Callable[[], int | None]
) -> Iterator[Asked | Refused | None]:
    """Yield what the lines of stdin ask for as they come, and None whenever the next is not there yet."""
    came: queue.Queue[Row | BadRow | BaseException | None] = queue.Queue(WINDOW)

    def read() -> None:
        try:
            for row in rows.from_lines(rows.lines_of(stdin), "stdin", input_format):
                came.put(row)
            came.put(None)
        except BaseException as error:
            came.put(error)

    # Whoever waits for input can't be interrupted: the thread is left behind at the end.
    threading.Thread(target=read, daemon=True, name="read").start()
    while True:
        try:
            row = came.get_nowait()
        except queue.Empty:
            yield None
            row = _next(came, interrupted)
        if row is None:
            return
        if isinstance(row, BaseException):
            raise row
        one = planner.of_row(row)
        yield one if isinstance(one, Refused) else one[0]


def _next(
    came: queue.Queue[Row | BadRow | BaseException | None], interrupted: Callable[[], int | None]
) -> Row | BadRow | BaseException | None:
    # A signal's handler runs between waits only.
    while interrupted() is None:
        try:
            return came.get(timeout=0.1)
        except queue.Empty:
            continue
    return None
