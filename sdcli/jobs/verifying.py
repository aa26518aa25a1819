"""Pictures drawn again from their own records: whether they are what their records say, and what could explain it if not.

A verdict is over pixels. *Identical*: the same, bit for bit. *Equal to the eye*: what other kernels make of the same request,
at least 40 dB over the whole picture and 30 dB in every square of 8 x 8 pixels. In PSNR's usual reading differences are
hardly to be seen from 40 dB on, and plain below 30; a whole picture's alone would let a small spot pass in a large one. On
the bundled model another pack size, thread count or sliced attention in fp32 changes a channel by 1 at most (71 dB or more),
which a JPEG, WebP or AVIF makes 46 dB and more of (31 dB in the worst square), and bf16 leaves 47 dB and more of most
pictures, while one that took another way has 20 to 37. *Different*: all else, and any picture or record that was changed by
hand: what is tolerated is arithmetic.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from sdcli import metadata, models, pipeline, schedulers, settings
from sdcli.device import DevicePlan, Probe
from sdcli.errors import BadInput, InputMissing, ModelUnavailable, SdcliError, UsageError
from sdcli.jobs import again
from sdcli.jobs.runner import ENDS_ALL
from sdcli.metadata import infotext, inspecting, ours
from sdcli.metadata.bounds import MOST_FILE
from sdcli.metadata.inspecting import SHEET, Found
from sdcli.metadata.readers import a1111
from sdcli.models import ModelSpec, adapters
from sdcli.models.hub import Say
from sdcli.pipeline import Listener, Pipeline
from sdcli.pipeline.requests import KINDS
from sdcli.record import SCHEMA, EncodingRecord, GeneratedImage, ModelRecord, PlanRecord, Record, job_id, pixels_of
from sdcli.request import GenerationRequest, PackSize

if TYPE_CHECKING:
    from PIL.Image import Image

# What is equal to the eye, in dB: over the whole picture, and in each square of so many pixels a side.
WHOLE, SQUARE, SIDE = 40.0, 30.0, 8
CHANGED = "the picture was changed after it was drawn: its pixels are not those that its record hashes"
UNTOLD = "nothing that the record tells of: a processor of another kind can change pixels, and so can a record that was edited"
# What is decoded; drawing so many takes far more memory.
MOST_PIXELS = 2**25
# So many differences of one kind are named, and so much of each value.
MOST_NAMED, LONGEST = 10, 60
# What a plan says of a fall-back, which need not be taken again.
_IN_THE_PLAN = ("batch-size", "attention-slicing", "vae-tiling", "offload")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What came of drawing a picture again.

    `psnr` is in dB over all channels, None where the pixels are the same or of another size; `max_difference` the largest
    of any channel in 0 to 255, None for another size. `causes` name what was other then than now, and what was edited.
    """

    verdict: Literal["identical", "equal", "different"]
    psnr: float | None
    max_difference: int | None
    causes: tuple[str, ...] = ()

    def as_event(self, path: str) -> dict[str, Any]:
        """Return the object that `sdcli verify --json` prints."""
        return {
            "schema": SCHEMA, "event": "verify", "path": path, "verdict": self.verdict, "psnr": self.psnr,
            "max_difference": self.max_difference, "causes": list(self.causes),
        }  # fmt: skip


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A picture as it lies there: its record, its pixels, and the signs without drawing that its record was edited."""

    record: Record
    image: Image
    edits: tuple[str, ...] = ()


def verify(path: Path, pipe: Pipeline) -> Verdict:
    """Draw a picture again, as its record says, with a model that is loaded; its record's threads are not set.

    Raises InputMissing, BadInput for a picture without a whole record of sdcli's, and what drawing raises.
    """
    subject = take(path)
    record = subject.record
    size = _that_fits(pipe, record, _pack_size(record.plan))
    (drawn,) = pipe.generate([_redraw(record, path, pipe)], batch_size=size)
    return judge(subject, drawn)


def _redraw(record: Record, path: Path, pipe: Pipeline) -> GenerationRequest:
    """Return the request that draws a picture again. Nothing is downloaded at a picture's word: ModelUnavailable."""
    request = again.as_drawn(record, path)
    for kind in KINDS:
        for one in getattr(request, kind):
            try:
                here = adapters.find(kind, one, pipe.model.adapter_folders).path is not None
            except ModelUnavailable:
                here = False
            if not here:
                raise ModelUnavailable(
                    f"it was drawn with {_short(one.name)}, which is not here with that content",
                    "put it beside the picture, or into the folder of adapters",
                )
    return request


# Reading


def take(path: Path) -> Subject:
    """Return a picture with its record. Raises InputMissing, and BadInput where it can't be drawn again from it."""
    found = inspecting.inspect(path)
    record = _record(found)
    return Subject(record=record, image=_decoded(path), edits=edits(found, record))


def _record(found: Found) -> Record:
    """Return the record that a picture is drawn again from; BadInput where it has none that is whole."""
    if found.record is not None:
        if found.record.request.seed in (None, -1):
            raise BadInput(f"{found.path}: its record has no seed", "nothing can be drawn again without it")
        return found.record
    if found.is_sheet:
        raise BadInput(f"{found.path} is the sheet of a grid, which is drawn from no record", f"{SHEET}: verify those")
    if ours.KEYWORD in found.raw and ours.decode(found.raw[ours.KEYWORD]) is None:
        raise BadInput(
            f"{found.path} was saved with --metadata minimal: its record has no prompt",
            "only full records can be verified",
        )
    if found.format is not None:
        raise BadInput(
            f"{found.path} has no sdcli record, but one of {found.format}", "sdcli generate --from can draw from it"
        )
    raise BadInput(f"{found.path} has no sdcli record", "it does not say what it was made from")


def _decoded(path: Path) -> Image:
    """Return a file's pixels as they are stored."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if path.stat().st_size > MOST_FILE:
                raise BadInput(f"{path} is too large to verify", f"up to {MOST_FILE >> 20} MiB are")
            with Image.open(path, formats=("PNG", "JPEG", "WEBP", "AVIF")) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise BadInput(
                        f"{path} has {image.width * image.height / 1e6:.0f} megapixels, too many to verify",
                        f"up to {MOST_PIXELS / 1e6:.0f} are",
                    )
                image.load()
                return image.copy()
    except SdcliError:
        raise
    except Exception as error:  # Decoders raise what they like.
        raise BadInput(f"{path}: its pixels can't be decoded: {error}") from error


def edits(found: Found, record: Record) -> tuple[str, ...]:
    """Return the signs that a record was edited: its id hashes its request and model, and A1111's text says them again."""
    beside = a1111.read(found.raw)
    # Both as they come out of infotext, which can't hold all.
    own = a1111.read({"parameters": infotext.infotext(record)})
    told = []
    if beside is not None and own is not None:
        for name in sorted({*beside.request, *own.request}):
            then, now = beside.request.get(name), own.request.get(name)
            if then != now:
                told.append(f"{name} is {_short(now)}, and {_short(then)} in A1111's text beside it")
    if job_id(record.request, record.model) == record.id:
        if not told:
            return ()
        return (f"A1111's text was edited: {'; '.join(told[:MOST_NAMED])}",)
    text = "the record was edited: its id is not that of its request and model"
    return (f"{text} ({'; '.join(told[:MOST_NAMED])})" if told else text,)


# Judging


def judge(subject: Subject, drawn: GeneratedImage) -> Verdict:
    """Return what the redraw of a picture says of it. Raises BadInput and UsageError for an encoding that can't be."""
    import numpy as np

    then, now = subject.record, drawn.record
    # Lossy files hold other pixels than were drawn; so the redraw goes through the same encoder first.
    redrawn = metadata.as_stored(drawn.image, then.encoding) if then.encoding else drawn.image
    image = subject.image
    changed = image.mode != "RGB" or pixels_of(image).sha256 != (then.pixels.stored_sha256 or then.pixels.sha256)
    found = list(subject.edits)
    if image.size != redrawn.size:
        sizes = [f"{w}x{h}" for w, h in (image.size, redrawn.size)]
        found += [f"size: {sizes[0]} is the picture's, {sizes[1]} its record's", *([CHANGED] if changed else [])]
        return Verdict(verdict="different", psnr=None, max_difference=None, causes=tuple(found))
    apart = np.asarray(image.convert("RGB"), dtype=np.int16) - np.asarray(redrawn, dtype=np.int16)
    psnr, square, largest = _apart(apart)
    if largest == 0 and image.mode == "RGB":
        if changed:
            found.append(
                "the record was edited: it hashes other pixels than the picture's, which are drawn again as they are"
            )
        elif then.pixels.sha256 != now.pixels.sha256:
            found.append("the record hashes other pixels than were drawn, before they were encoded")
        if then.model.files != now.model.files:
            found += _of_models(then.model, now.model)
        return Verdict(verdict="identical", psnr=None, max_difference=0, causes=tuple(found))
    if changed:
        found.append(CHANGED if image.mode == "RGB" else f"{CHANGED} (stored as {image.mode})")
    by_hand = bool(found)
    if now.pixels.sha256 != then.pixels.sha256:
        found += differences(then, now)
    if then.encoding:
        found += _apart_in("", then.encoding.versions, _encoders(then.encoding))
    equal = not by_hand and psnr >= WHOLE and square >= SQUARE
    return Verdict(
        verdict="equal" if equal else "different", psnr=round(psnr, 2) if math.isfinite(psnr) else None,
        max_difference=largest, causes=tuple(found or [UNTOLD]),
    )  # fmt: skip


def _apart(apart: Any) -> tuple[float, float, int]:
    """Return the PSNR in dB of a difference (height, width, 3), that of its worst square, and its largest value."""
    import numpy as np

    squared = np.square(apart, dtype=np.float64)
    pad = [(0, -length % SIDE) for length in squared.shape[:2]]
    rows, columns = ((length + p) // SIDE for length, (_, p) in zip(squared.shape, pad, strict=False))
    squares = np.pad(squared, [*pad, (0, 0)]).reshape(rows, SIDE, columns, SIDE, 3).mean((1, 3, 4))
    return _db(float(squared.mean())), _db(float(squares.max())), int(np.abs(apart).max())


def _db(mean_square: float) -> float:
    return 10 * math.log10(255**2 / mean_square) if mean_square else math.inf


def differences(then: Record, now: Record) -> Iterator[str]:
    """Yield what is other in the record of a redraw, and could explain other pixels."""
    yield from _of_models(then.model, now.model)
    yield from _apart_in("", then.versions, now.versions)
    plans = [{k: v for k, v in msgspec.to_builtins(r.plan).items() if k != "reasons"} for r in (then, now)]
    yield from _apart_in("", *plans)
    yield from _apart_in(
        "scheduler ", *({"class": r.scheduler.class_name, **r.scheduler.settings} for r in (then, now))
    )
    yield from _apart_in("tokens ", *(msgspec.to_builtins(r.tokens) for r in (then, now)))
    taken = [{f for f in r.fallbacks if not f.startswith(_IN_THE_PLAN)} for r in (then, now)]
    yield from (f"fall-back {_short(f)}: taken then, not now" for f in sorted(taken[0] - taken[1])[:MOST_NAMED])
    yield from (f"fall-back {_short(f)}: taken now, not then" for f in sorted(taken[1] - taken[0])[:MOST_NAMED])


def _of_models(then: ModelRecord, now: ModelRecord) -> Iterator[str]:
    if then.files and not then.files.keys() & now.files.keys():
        yield f"model: {_short(then.name)} then, {_short(now.name)} now, with no file in common"
        return
    pinned = [{"repo": m.repo, "commit": m.commit} for m in (then, now)]
    if None not in (then.commit, now.commit):
        yield from _apart_in("model ", *pinned)
    # Hashes as people compare them: the first ten digits.
    files = [{name: f"sha256 {sha256[:10]}" for name, sha256 in m.files.items()} for m in (then, now)]
    yield from _apart_in("model file ", *files)
    if then.adapters != now.adapters:
        yield f"adapters: {_short(list(then.adapters))} then, {_short(list(now.adapters))} now"


def _apart_in(kind: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of which two mappings say different things."""
    names = [k for k in {**then, **now} if then.get(k) != now.get(k)]
    for name in names[:MOST_NAMED]:
        yield f"{kind}{_short(name)}: {_short(then.get(name))} then, {_short(now.get(name))} now"
    if len(names) > MOST_NAMED:
        yield f"and {len(names) - MOST_NAMED} more of this kind"


def _short(value: object) -> str:
    text = "none" if value is None else {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _encoders(encoding: EncodingRecord) -> dict[str, str]:
    """Return the versions, here, of what an encoding's record names."""
    import PIL
    from PIL import features

    lossy = metadata.FORMATS[encoding.format].lossy
    if lossy is None:  # A record that was edited.
        return {"pillow": PIL.__version__}
    name, feature = lossy.library
    return {"pillow": PIL.__version__, name: features.version(feature) or "unknown"}


# The model and the place


def spec_of(
    record: ModelRecord, model: str | None = None, vae: str | None = None, config: str | None = None
) -> ModelSpec:
    """Return the model to draw again with: the recorded one, or what is given in its place.

    A repository is pinned to its commit. What lay on somebody's disk is recorded by its name, which is looked for nowhere:
    whoever has it says where. Raises ModelUnavailable, and BadInput for what is no model.
    """
    folder = settings.merge(*settings.sources()).values.get("adapter_dir")
    if model is not None:
        return ModelSpec(model=model, vae=vae, model_config=config, adapter_dir=folder)
    others = [name.removeprefix("--vae/") for name in record.files if name.startswith("--vae/")]
    if others and vae is None:
        raise ModelUnavailable(
            f"it was drawn with another autoencoder ({_short(others[0])}), and its record does not say where that lies",
            "say it with --vae",
        )
    if record.repo is not None:
        name = models.hub_name(record.repo, record.commit)
        if name is None:
            said = f"{record.repo}@{record.commit}" if record.commit is not None else record.repo
            raise BadInput(f"its record names a model that can't be: {_short(said)}", "say another with --model")
        return ModelSpec(model=name, vae=vae, adapter_dir=folder)
    if record.name in models.ALIASES and models.ALIASES[record.name].repo is None:
        return ModelSpec(model=record.name, vae=vae, adapter_dir=folder)
    raise ModelUnavailable(
        f"it was drawn by {_short(record.name)}, and its record does not say where that lies",
        "say it with --model PATH: its files are compared with those that the record hashes",
    )


def _require(spec: ModelSpec) -> None:
    """Refuse what a record names and is not on this machine: nothing is downloaded at a picture's word."""
    if not models.find(ModelSpec(model=spec.model)).is_here:
        raise ModelUnavailable(
            f"it was drawn by {spec.model}, which is not in the hub's cache",
            f"--model {spec.model} downloads it; or --model PATH says where it lies",
        )


def plan_of(record: PlanRecord) -> DevicePlan:
    """Return the plan that repeats a recorded one. Raises BadInput for one that can't be."""
    said = {name: getattr(record, name) for name in DevicePlan.__struct_fields__}
    # The only device of its kind, which a plan calls by the kind alone.
    said["device"] = record.device.removesuffix(":0") if record.device.startswith("mps") else record.device
    try:
        plan = msgspec.convert(said, DevicePlan)
    except msgspec.ValidationError as error:
        raise BadInput(f"its record's plan can't be: {error}".replace("`", ""), "the record was edited") from None
    if "auto" in (plan.device, plan.dtype, plan.attention_slicing):
        raise BadInput("its record's plan can't be: it has auto in it", "the record was edited")
    return plan


def nearest(plan: DevicePlan, probe: Probe) -> DevicePlan:
    """Return the plan, or the nearest to it that this machine can do: another GPU of its kind, any GPU, the CPU."""
    there = [a.device for a in probe.accelerators]
    kind, _, number = plan.device.partition(":")
    wanted = f"{kind}:{number or 0}"
    if kind != "cpu" and wanted not in there:
        device = next((d for d in there if d.startswith(f"{kind}:")), there[0] if there else "cpu")
        plan = msgspec.structs.replace(plan, device=device)
    if plan.device != "cpu":
        return plan
    # PyTorch has no fast fp16 on a CPU; fp32 is what fp16 is nearest to.
    dtype: Literal["bf16", "fp32"] = "bf16" if plan.dtype == "bf16" else "fp32"
    return msgspec.structs.replace(plan, dtype=dtype, offload="none")


def load(spec: ModelSpec, plan: DevicePlan, *, say: Say) -> Pipeline:
    """Load a model as recorded, or on the nearest plan that this machine can do."""
    pipeline.import_libraries()
    return pipeline.load(spec, nearest(plan, pipeline.probe(plan.device)), say=say)


def _pack_size(plan: PlanRecord) -> int:
    try:
        size: int = msgspec.convert(plan.pack_size, PackSize)
        return size
    except msgspec.ValidationError:
        raise BadInput(f"its record's pack size can't be: {plan.pack_size}", "the record was edited") from None


def _that_fits(pipe: Pipeline, record: Record, size: int) -> int:
    """Return the pack size, or what of it fits: an accelerator says so itself, and a CPU's process would be killed."""
    if size == 1 or pipe.decision.device != "cpu":
        return size
    return min(size, pipe.largest_pack(record.request, 1 << (size - 1).bit_length()))


# Many pictures


class Verifier(msgspec.Struct, kw_only=True):
    """Verifies pictures, those of one model and plan together, so that each model is loaded once.

    Pictures that were drawn in packs of one size are drawn again in such packs, with whatever neighbours: at one size a
    picture does not depend on them. `tell` hears of each as soon as it is done, with its path, and `say` of what is left out.
    One that can't be verified does not stop the others.
    """

    load: Callable[[ModelSpec, DevicePlan], Pipeline]
    tell: Callable[[str, Verdict | SdcliError], None]
    say: Say
    model: str | None = None
    vae: str | None = None
    model_config: str | None = None
    listener: Listener | None = None
    _groups: dict[tuple[ModelSpec, DevicePlan], dict[tuple[int, Hashable], list[Path]]] = msgspec.field(
        default_factory=dict
    )

    def survey(self, names: Iterable[str]) -> int:
        """Read the records of the pictures that files and folders mean, before anything is loaded; return how many will
        be drawn. `tell` hears of those that can't be."""
        drawn = 0
        for name in names:
            try:
                paths = again.pictures([name])
                if not paths:
                    raise InputMissing(f"{name}: no picture is in this folder", "check the path")
            except SdcliError as error:
                self.tell(name, error)
                continue
            sheets = 0
            for path in map(Path, paths):
                try:
                    taken = self._sort(path, among=os.path.isdir(name))
                    drawn += taken
                    sheets += not taken
                except SdcliError as error:
                    self._fail(path, error)
            if sheets == len(paths):
                self.tell(name, BadInput(f"{name}: nothing to verify is in this folder but sheets of grids", SHEET))
        return drawn

    def _sort(self, path: Path, *, among: bool) -> bool:
        """Put a picture to those that it is drawn with; say whether it is to be drawn. `among` those of a folder a sheet
        is not."""
        found = inspecting.inspect(path)
        if found.is_sheet and among:
            self.say(f"{path} is the sheet of a grid, and not verified: {SHEET}")
            return False
        record = _record(found)
        if record.request.scheduler:
            try:
                entry = schedulers.find(record.request.scheduler)
            except UsageError as error:
                raise _as_data(error) from None
            schedulers.require(entry)
        key = (spec_of(record.model, self.model, self.vae, self.model_config), plan_of(record.plan))
        in_a_pass = (_pack_size(record.plan), (*pipeline.likeness(record.request), record.tokens.chunks))
        if key not in self._groups and self.model is None:
            _require(key[0])
        self._groups.setdefault(key, {}).setdefault(in_a_pass, []).append(path)
        return True

    def draw(self) -> None:
        """Draw again what the survey found."""
        for (spec, plan), passes in self._groups.items():
            pipe: Pipeline | None = None
            failed: SdcliError | None = None
            fallbacks = 0
            for size, pack in _packs(passes):
                if pipe is None or len(pipe.fallbacks) > fallbacks:
                    # A fall-back stays with a pipeline, and the next picture was drawn without. What this one holds is let
                    # go of first.
                    pipe = None
                    try:
                        pipe = self.load(spec, plan) if failed is None else None
                        fallbacks = len(pipe.fallbacks) if pipe is not None else 0
                    except SdcliError as error:
                        failed = error
                if pipe is not None:
                    self._draw(pipe, pack, size)
                elif failed is not None:
                    for path in pack:
                        self._fail(path, failed)

    def _draw(self, pipe: Pipeline, paths: Sequence[Path], size: int) -> None:
        """Draw a pack again; where that fails, what is left of it is tried one by one."""
        taken: list[tuple[Path, Subject]] = []
        for path in paths:
            try:
                taken.append((path, take(path)))
            except SdcliError as error:
                self._fail(path, error)
        if not taken:
            return
        done = 0
        try:
            size = _that_fits(pipe, taken[0][1].record, size)
            requests = [_redraw(subject.record, path, pipe) for path, subject in taken]
            for drawn in pipe.generate(requests, batch_size=size, listener=self.listener):
                path, subject = taken[done]
                done += 1
                self._judge(path, subject, drawn)
        except SdcliError as error:
            left = [path for path, _ in taken[done:]]
            if isinstance(error, ENDS_ALL):
                raise
            if len(left) == 1:
                self._fail(left[0], _as_data(error))
                return
            for path in left:
                self._draw(pipe, [path], size)

    def _judge(self, path: Path, subject: Subject, drawn: GeneratedImage) -> None:
        try:
            verdict = judge(subject, drawn)
        except (BadInput, UsageError) as error:
            self._fail(path, _as_data(error))
        else:
            self.tell(str(path), verdict)

    def _fail(self, path: Path, error: SdcliError) -> None:
        """Tell of a picture that can't be verified; raise what ends all."""
        if isinstance(error, ENDS_ALL):
            raise error
        message = error.message if error.message.startswith(str(path)) else f"{path}: {error.message}"
        self.tell(str(path), type(error)(message, error.hint))


def _packs(passes: Mapping[tuple[int, Hashable], Sequence[Path]]) -> Iterator[tuple[int, Sequence[Path]]]:
    """Yield the pictures that are drawn in one pass, with the size of its pack."""
    for (size, _), paths in passes.items():
        for start in range(0, len(paths), size):
            yield size, paths[start : start + size]


def _as_data(error: SdcliError) -> SdcliError:
    """Return an error about values out of a record: bad usage is not what that is."""
    if not isinstance(error, UsageError):
        return error
    return BadInput(
        f"what its record asks for can't be drawn: {error.message}", "the record was edited, or is another model's"
    )
