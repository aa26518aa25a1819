"""A job: one picture to draw in a run."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from sdcli import models, output, pipeline, schedulers, settings
from sdcli.errors import SdcliError, UsageError
from sdcli.jobs.journal import Index
from sdcli.models import Model, checking
from sdcli.output import Destination
from sdcli.prompts.wildcards import Expander
from sdcli.record import said_of
from sdcli.request import MOST_ADAPTERS, GenerationRequest, JobOptions, draw_seed
from sdcli.settings import Merged

# Where values come from that somebody has just typed.
TYPED = ("flag", "--set", "argument")
# So many a prompt is expanded to without a word: a second's work. More are hardly meant.
MOST_PROMPTS = 100_000


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One picture to draw: its request with the seed filled in, its place in the run (from 1), the line that it came
    from, and what travels with it. `destination` is its own, None where it goes where the run's pictures go; `origin` is where
    it stands, as people are told."""

    request: GenerationRequest
    index: int
    line: int | None = None
    template: str | None = None
    name: str | None = None
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    destination: Destination | None = None
    origin: str = ""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for before it has its seeds: a request that may be without one, and how many pictures of it.

    `origin` is where it stands: `FILE:LINE`. What has `shares` has the seed of that request, as all others that do;
    what `was_expanded` is never expanded again. `styles` are templates that are put on the prompt after that, the innermost
    first. `pictures` is how many are asked for, as `count` says; `notes` what people should be told of it.
    """

    request: GenerationRequest
    options: JobOptions
    origin: str = ""
    line: int | None = None
    destination: Destination | None = None
    shares: GenerationRequest | None = None
    was_expanded: bool = False
    template: str | None = None
    styles: tuple[str, ...] = ()
    pictures: int = 1
    notes: tuple[str, ...] = ()

    @property
    def styled(self) -> GenerationRequest:
        """The request with its prompt's styles on, and nothing expanded."""
        return msgspec.structs.replace(self.request, prompt=settings.styled(self.request.prompt, self.styles))


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A row that cannot be drawn, and why; `origin` is where it stands, if the error does not say that."""

    error: SdcliError
    line: int | None = None
    origin: str = ""


class Seeds:
    """Seeds for what comes without one: those of a run seed are the same whenever the run goes on."""

    def __init__(self, run_seed: int | None, index: Index | None) -> None:
        self._run_seed = run_seed
        self._index = index

    def of(self, request: GenerationRequest, *, shared: bool = False) -> int:
        """Return the request's own seed, or one for it.

        The first 32 bits of SHA-256 over the run seed, the request and how many equal ones came before it (`shared`: 0);
        without a run seed, a fresh one.
        """
        if request.seed not in (None, -1):
            assert request.seed is not None
            return request.seed
        if self._run_seed is None or self._index is None:
            return draw_seed()
        said = said_of(msgspec.structs.replace(request, seed=None))
        digest = hashlib.sha256(msgspec.json.encode(said, order="sorted")).digest()[:16]
        equal = 0 if shared else self._index.count(digest)
        text = msgspec.json.encode([self._run_seed, said, equal], order="sorted")
        return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def of_asked(
    asked: Asked,
    seeds: Seeds,
    expander: Expander | None,
    resolve: Callable[[GenerationRequest], GenerationRequest],
    index: int,
) -> Iterator[Job]:
    """Yield the jobs of what is asked for, the first of them the run's number `index`.

    Picture k of n has the seed + k. A prompt that is expanded at random is drawn from each picture's seed, so that it can be
    drawn again; of one that is expanded to all that it can be, each has its own seed and n pictures.
    """
    options, template = asked.options, asked.request.prompt
    expander = None if asked.was_expanded else expander
    is_random = expander is not None and options.expand != "all"
    prompts: Iterable[str] = [template]
    if expander is not None and options.expand == "all":
        prompts = expander.all(template, options.limit)
    for prompt in prompts:
        request = msgspec.structs.replace(asked.request, prompt=settings.styled(prompt, asked.styles))
        own = request.seed not in (None, -1)
        shares = asked.shares if asked.shares is not None and not own else None
        first = seeds.of(resolve(shares or request), shared=shares is not None)
        to = request.variation
        if to is not None and to.seed == -1:
            # Without it, it would be the picture's own.
            whole = msgspec.structs.replace(asked.shares or request, seed=None, variation=None)
            to = msgspec.structs.replace(to, seed=seeds.of(resolve(whole), shared=asked.shares is not None))
        for k in range(options.count):
            number = (first + k) % 2**63
            # Variations are of one picture: theirs is the seed that is counted, as in A1111. Seeds go round where they end.
            seed = first if to is not None else number
            variation = msgspec.structs.replace(to, seed=(to.seed + k) % 2**63) if to is not None else None
            drawn = expander.random(prompt, number) if expander is not None and is_random else prompt
            drawn = settings.styled(drawn, asked.styles)
            lifted = lift(msgspec.structs.replace(request, prompt=drawn, seed=seed, variation=variation))
            # What a picture says it was expanded from is what somebody typed.
            before = asked.template if asked.template is not None or lifted.prompt == template else template
            yield Job(
                request=lifted, index=index, line=asked.line, template=before, name=options.name, tags=options.tags or {},
                destination=asked.destination, origin=asked.origin,
            )  # fmt: skip
            index += 1


def lift(request: GenerationRequest) -> GenerationRequest:
    """Return a request with the adapters that its prompt names, `<lora:NAME:SCALE>`, in their field and no longer in the prompt."""
    if request.prompt_syntax == "plain" or "<" not in request.prompt:
        return request
    from sdcli.models import adapters

    prompt, loras = adapters.tags(request.prompt)
    if len(request.lora) + len(loras) > MOST_ADAPTERS:
        raise UsageError(
            f"the prompt and --lora name {len(request.lora) + len(loras)} LoRAs", f"{MOST_ADAPTERS} at most"
        )
    return msgspec.structs.replace(request, prompt=prompt, lora=(*request.lora, *loras)) if loras else request


def count(asked: Asked, expander: Expander | None) -> int:
    """Return how many pictures are asked for. Raises UsageError for a prompt that would be expanded without an end."""
    options = asked.options
    if expander is None or asked.was_expanded or options.expand != "all":
        return options.count
    most = options.limit or MOST_PROMPTS
    prompts = sum(1 for _ in itertools.islice(expander.all(asked.request.prompt, options.limit), most + 1))
    if prompts > most:
        raise UsageError(f"it is expanded to more than {most} prompts", "--limit N takes the first N of them")
    return options.count * prompts


def fitted(merged: Merged, model: Model) -> tuple[Merged, tuple[str, ...]]:
    """Return merged values without what presets say and the model can't use, and what that was, in words.

    A preset is made for many models; what somebody asks for by a flag of its own is refused instead. Settings of the format
    give way to the output's ending.
    """
    family, left, merged = model.family, [], _located(merged)
    said = output.format_of(merged.values.get("output"))
    if said and settings.is_setting(merged.origins.get("format")):
        merged = merged.without("format")
    if settings.is_setting(merged.origins.get("quality")) and (said or merged.values.get("format", "png")) == "png":
        merged = merged.without("quality")
    for name in checking.idle(merged.build(GenerationRequest, **({} if "prompt" in merged.values else {"prompt": ""}))):
        origin = merged.origins.get(name, "")
        taken_away = any(merged.values.get(other, True) in (None, ()) for other in checking.NEEDS[name])
        if settings.is_setting(origin) or origin.startswith("preset ") or (taken_away and origin not in TYPED):
            merged = merged.without(name)
            left += [f"{name} ({origin})"] * origin.startswith("preset ")
    if family is None:
        return merged, tuple(left)
    useless = {"scheduler": family.own_scheduler is not None, "attention_slicing": not family.slices}
    useless["vae_tiling"] = not family.tiles
    for name, is_useless in useless.items():
        if is_useless and (origin := merged.origins.get(name, "")).startswith("preset "):
            merged = merged.without(name)
            left.append(f"{name} ({origin})")
    if "negative_prompt" in merged.styles and not models.heeds_negative(
        model, merged.values.get("true_cfg_scale", 1.0)
    ):
        left.append(f"negative_prompt ({merged.styles['negative_prompt'][0][0]})")
        merged = msgspec.structs.replace(
            merged, styles={k: v for k, v in merged.styles.items() if k != "negative_prompt"}
        )
    return merged, tuple(left)


def _located(merged: Merged) -> Merged:
    """Return merged values with the pictures that a preset names as records do, where they lie in the current folder."""
    asked = merged.build(GenerationRequest, **({} if "prompt" in merged.values else {"prompt": ""}))
    here = pipeline.located(asked, (Path(),))
    if here is asked:
        return merged
    found = {
        name: getattr(here, name) for name in merged.values if getattr(here, name, None) != getattr(asked, name, None)
    }
    return msgspec.structs.replace(merged, values={**merged.values, **found})


def _explained(error: UsageError, merged: Merged) -> UsageError:
    """Say where a value that is refused comes from, if it was not typed."""
    origin = merged.origins.get(error.field or "", "flag")
    if origin not in TYPED:
        error.hint = "; ".join(filter(None, [error.hint, f"it is set by: {origin}"]))
    return error


def check(request: GenerationRequest, model: Model, merged: Merged) -> None:
    """Refuse what can be refused of a request without torch; `merged` is what it was made of, and says who asked."""
    try:
        models.check(request, model)
        pipeline.check_files(request, model)
    except UsageError as error:
        raise _explained(error, merged) from None
    entry = pipeline.scheduler_of(request, model)
    if entry is not None and request.scheduler:
        schedulers.require(entry)
    if entry is not None:
        schedulers.check(entry, eta=request.eta, steps=request.num_inference_steps)


# Packs

# How many jobs wait to be put into packs.
WINDOW = 1024


def packs(
    jobs: Iterable[Job | None],
    size: int,
    shape: Callable[[GenerationRequest], Hashable],
    *,
    in_order: bool,
) -> Iterator[list[Job]]:
    """Put jobs that can share a pass together, up to `size` of them; the oldest that waits is always in the next pack.

    They are looked for among the next 1,024; with `in_order`, only among neighbours. A None among the jobs says that the
    next is not there yet: what waits is given out, and then an empty pack, before the next is asked for.
    """
    source, ended = iter(jobs), False
    waiting: dict[Hashable, deque[tuple[int, Job]]] = {}
    held = taken = 0
    while held or not ended:
        idle = False
        while not ended and not idle and held < (size if in_order else WINDOW):
            try:
                job = next(source)
            except StopIteration:
                ended = True
                break
            if job is None:
                idle = True
                break
            waiting.setdefault(shape(job.request), deque()).append((taken, job))
            held, taken = held + 1, taken + 1
        while held:
            oldest = min(waiting, key=lambda s: waiting[s][0][0])
            line = waiting[oldest]
            others = [jobs[0][0] for s, jobs in waiting.items() if s != oldest]
            until = min(others, default=taken) if in_order else taken
            pack: list[Job] = []
            while line and line[0][0] < until and len(pack) < size:
                pack.append(line.popleft()[1])
            if not line:
                del waiting[oldest]
            held -= len(pack)
            yield pack
            if not idle and not ended:
                break
        if idle:
            yield []


def pack_size(shapes: Sequence[Hashable], at_most: int) -> int:
    """Return the largest power of two at which packs of these shapes are filled up by at most a quarter."""
    size = 1 << max(0, at_most.bit_length() - 1)
    counts: dict[Hashable, int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + 1
    while size > 1 and sum(-(-n // size) * size for n in counts.values()) > 1.25 * len(shapes):
        size //= 2
    return size
