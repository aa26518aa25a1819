"""A loaded model that draws: packs, fall-backs when memory runs out, and the record of each picture."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from sdcli import models, schedulers
from sdcli.device import GIB, Decision
from sdcli.errors import OutOfMemory, SdcliError, UsageError
from sdcli.models import Model, distilled
from sdcli.models.hub import Say
from sdcli.pipeline import files, upscaling
from sdcli.pipeline.adapters import Adapters
from sdcli.pipeline.conditions import Conditions, conditions
from sdcli.pipeline.encoding import Encoder
from sdcli.pipeline.hearing import Listener
from sdcli.pipeline.machine import backend, out_of_memory, quiet, versions
from sdcli.pipeline.passes import way
from sdcli.pipeline.requests import LARGEST_PACK, check_prompt, drawn, pinned, resolve, seed_of, seeded, shape
from sdcli.prompts import syntax, tokens
from sdcli.record import (
    GeneratedImage,
    ModelRecord,
    PlanRecord,
    Record,
    SchedulerRecord,
    SecondsRecord,
    TokenRecord,
    job_id,
    pixels_of,
)
from sdcli.request import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A picture of a pass, what was fallen back to for it, and the plan as it was then."""

    image: Any
    fallbacks: tuple[str, ...]
    plan: PlanRecord


def _read(text: str, reader: tokens.Reader, how: syntax.How, passes: Sequence[int]) -> TokenRecord:
    """Return how a prompt is read; of one whose words change, as in the first step that is drawn."""
    read = reader.read(syntax.texts(text, how.syntax, passes[0])[0], syntax=how.syntax, long=how.long)
    chunks = max(tokens.chunk_count(text, reader, how.syntax, steps, how.long) for steps in passes)
    return TokenRecord(used=read.used, chunks=chunks, cut=read.cut)


def _told(adapter: dict[str, Any]) -> dict[str, Any]:
    """Return an adapter as records keep it: its picture by name and content."""
    image = adapter["image"]
    return adapter | {"image": msgspec.to_builtins(files.pinned_picture(image) if isinstance(image, str) else image)}


class Pipeline:
    """A loaded model that draws.

    When memory runs out it goes down a ladder (packs of one, attention slicing, VAE tiling, offload), says so, and
    stays there; the records of what it draws from then on tell.
    """

    def __init__(self, pipe: Any, model: Model, record: ModelRecord, decision: Decision, say: Say = quiet) -> None:
        self.pipe = pipe
        assert model.family is not None
        self.model, self.family = model, model.family
        self.model_record = record
        self.decision = decision
        self.reasons = dict(decision.reasons)
        self.say = say
        self.seconds_to_load = 0.0
        self.fallbacks: list[str] = []
        self.slicing = decision.attention_slicing
        self.tiling = decision.vae_tiling
        self.offload: str = decision.offload
        self.pack_limit: int | None = None
        self.own_scheduler = pipe.scheduler
        self.encoder = Encoder(pipe, model) if self.family.weighs else None
        self.way = way(pipe, self)
        self.adapters = Adapters(pipe, model, model.adapter_folders, say)
        self.adapted: tuple[dict[str, Any], ...] = ()
        self.decoding = 0.0
        pipe.set_progress_bar_config(disable=True)
        if self.slicing != "off":
            self._slice_attention(self.slicing)
        if self.tiling:
            self._autoencoder.enable_tiling()
        self._place()

    def _place(self) -> None:
        """Move the networks to the device; where they do not fit, offload them."""
        try:
            if self.offload == "none":
                self.pipe.to(self.decision.device)
            else:
                self._offload(self.offload)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._fall_back_to_offload(error)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        batch_size: int = 1,
        templates: Sequence[str | None] | None = None,
        tags: Sequence[dict[str, str]] | None = None,
        listener: Listener | None = None,
    ) -> Iterator[GeneratedImage]:
        """Draw requests in their order, up to `batch_size` neighbours that can share a pass at once.

        Every pass has `batch_size` pictures: where fewer are left, copies of the last fill it up and are thrown away, so
        that at one size a picture is the same, bit for bit on a CPU with one thread, whoever its neighbours are; several threads
        may round a few values in other ways (one level of 255). A request without a seed
        gets one. Raises OutOfMemory after every fall-back, and NotFinite for a picture whose values were not finite, which
        takes its pack with it; the packs before have been yielded. Families in which the prompts of a pass touch each other's
        pictures are drawn one by one.
        """
        templates = templates or [None] * len(requests)
        tags = tags or [{}] * len(requests)
        resolved = [seeded(resolve(r, self.model)) for r in requests]
        start = 0
        while start < len(resolved):
            end = start + 1
            limit = min(batch_size, self.pack_limit or batch_size, 1 if self.family.alone else batch_size)
            while (
                end < len(resolved)
                and end - start < limit
                and shape(resolved[end], self.model) == shape(resolved[start], self.model)
            ):
                end += 1
            try:
                yield from self._draw(resolved[start:end], templates[start:end], tags[start:end], limit, listener)
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, SdcliError) or not out_of_memory(error):
                    raise
                self._fall_back(limit, error)
                continue
            start = end

    def largest_pack(self, request: GenerationRequest, at_most: int = LARGEST_PACK) -> int:
        """Return how many pictures like `request` fit into one pass: a power of two, at most `at_most`.

        On an accelerator passes of the network are tried, the largest first. A CPU's memory runs out only when another
        process is killed for it; so there it is reckoned: what all layers of one pass give out, against half of what is free.
        """
        size = 1 if self.family.alone else 1 << max(0, at_most.bit_length() - 1)
        request = resolve(request, self.model)
        if request.hires is not None:
            width, height = models.enlarged(request, self.model)
            request = msgspec.structs.replace(request, width=width, height=height, hires=None)
        if self.decision.device == "cpu":
            import psutil

            room = psutil.virtual_memory().available // 2
            try:
                taken = self._trial(request, 1) if size > 1 else 0
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self.forget(error)
                return 1
            while size > 1 and size * taken > room:
                size //= 2
            return size
        while size > 1:
            try:
                self._trial(request, size)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self.forget(error)
                size //= 2
        return size

    def id_of(self, request: GenerationRequest) -> str:
        """Return the id that a request with its seed has as a job on this model."""
        return job_id(pinned(resolve(request, self.model), self.model, self.say), self.model_record)

    def _draw(
        self,
        pack: Sequence[GenerationRequest],
        templates: Sequence[str | None],
        tags: Sequence[dict[str, str]],
        size: int,
        listener: Listener | None,
    ) -> list[GeneratedImage]:
        """Draw one pack in a pass of `size`; its pictures are made before any is given out, so that it can be tried again."""
        import torch

        first, began = pack[0], time.monotonic()
        models.check(first, self.model)
        for request in pack:
            self._check_prompt(request)
        # What is on the hub only is fetched here.
        kept = [pinned(request, self.model, self.say) for request in pack]
        filled = [*pack, *[pack[-1]] * (size - len(pack))]
        given = conditions(first, size)
        self._adapt(first)
        scheduler_record = self._scheduler(filled)[1]
        with torch.no_grad(), warnings.catch_warnings():
            # torchsde tells of how far past a step's end rounding takes it.
            warnings.filterwarnings("ignore", module="torchsde")
            made = [*self._pass(filled, len(pack), given, listener)]
            if first.hires is not None:
                made = [*self._pass_over(filled, made, given, listener)]
            images = [one.image for one in made]
            flags = self._flag(images)
            if self.offload != "none":
                # Decoding brought the autoencoder back after the pass had sent all away.
                self.pipe.maybe_free_model_hooks()
            if first.upscale is not None:
                images = [upscaling.enlarge(image, first.upscale, device=self.decision.device) for image in images]
        ended = time.monotonic()
        seconds = SecondsRecord(
            load=round(self.seconds_to_load, 3),
            draw=round(ended - began - self.decoding, 3),
            decode=round(self.decoding, 3),
        )
        results = []
        for request, image, one, flagged, template, own_tags in zip(
            kept, images, made, flags, templates, tags, strict=True
        ):
            fallen, plan = one.fallbacks, one.plan
            counted, negative = self._count(request)
            record = Record(
                id=job_id(request, self.model_record), request=request, template=template, tags=own_tags,
                model=msgspec.structs.replace(self.model_record, adapters=self.adapted), plan=plan, versions=versions(),
                tokens=counted, scheduler=scheduler_record,
                flagged=flagged, fallbacks=fallen, seconds=seconds, pixels=pixels_of(image),
            )  # fmt: skip
            results.append(
                GeneratedImage(image=image, record=record, warnings=self._warnings(counted, negative, request, flagged))
            )
        return results

    def _check_prompt(self, request: GenerationRequest) -> None:
        """Refuse prompts that can't be read as asked for, by the tokenizer that is loaded."""
        check_prompt(request, self.model)
        if request.long_prompt == "error" and self.encoder is None:
            for counted in self._count(request):
                tokens.refuse_cut(counted.cut, counted.used)

    def _adapt(self, request: GenerationRequest) -> None:
        """Put a request's adapters on, and take all others off."""
        before, moved = self.adapters.encoding, self.offload != "none" and self.adapters.changes(request)
        if moved:
            # What is offloaded has hooks on its parts, which are other parts afterwards.
            self.pipe.remove_all_hooks()
            self.pipe.to("cpu")
        try:
            self.adapted = tuple(_told(adapter) for adapter in self.adapters.apply(request))
        finally:
            if self.encoder is not None and self.adapters.encoding != before:
                self.encoder.forget()
            if moved:
                self._offload(self.offload)

    def _pass(
        self, filled: Sequence[GenerationRequest], wanted: int, given: Conditions, listener: Listener | None
    ) -> Iterator[_Made]:
        """Yield the first `wanted` pictures of one pass."""
        self.decoding = 0.0
        if given.sources and given.strength == 0:
            # Nothing may change: the networks have no part in it (and diffusers fails without a step).
            for source in given.sources[:wanted]:
                yield _Made(image=source, fallbacks=(*self.fallbacks,), plan=self._plan(len(filled)))
            return
        self._tile_by_need(filled[0])
        self.pipe.scheduler = self._scheduler(filled)[0]
        denoised = self.way.denoise(filled, given, listener)[:wanted]
        backend(self.decision.device).synchronize()
        began = time.monotonic() - self.way.decoding
        # What a picture's decoding fell back to holds for it and those after it, and not for those before.
        for index, (image, noted) in enumerate(self.way.images(denoised)):
            image = given.kept(image, index)
            yield _Made(image=image, fallbacks=(*self.fallbacks, *noted), plan=self._plan(len(filled)))
        self.decoding += time.monotonic() - began

    def _pass_over(
        self, filled: Sequence[GenerationRequest], made: Sequence[_Made], given: Conditions, listener: Listener | None
    ) -> Iterator[_Made]:
        """Yield pictures that are drawn over, enlarged."""
        size = models.enlarged(filled[0], self.model)
        # The second pass starts from the picture: a variation is of the first one's noise.
        request = [msgspec.structs.replace(r, width=size[0], height=size[1], variation=None) for r in filled]
        drawn = [one.image for one in made]
        over = given.over([*drawn, *[drawn[-1]] * (len(filled) - len(drawn))], filled[0], size)
        decoding = self.decoding
        for before, one in zip(made, self._pass(request, len(made), over, listener), strict=True):
            noted = tuple(n for n in before.fallbacks if n not in one.fallbacks)
            yield replace(one, fallbacks=(*one.fallbacks, *noted))
        self.decoding += decoding

    def _warnings(
        self, counted: TokenRecord, negative: TokenRecord, request: GenerationRequest, flagged: bool | None
    ) -> tuple[str, ...]:
        found, guided = [*distilled.ruins(request, self.model)], self.way.guided(request)
        texts = f"{request.prompt} {request.negative_prompt}".lower()
        for token in (a["token"] for a in self.adapted if a["kind"] == "embedding"):
            if token not in texts:
                found.append(f'the embedding\'s word "{token}" is in neither prompt: it has no effect')
        if counted.cut:
            found.append(f'the prompt is longer than {counted.used} tokens; this was cut off: "{counted.cut}"')
        for field in ("negative_prompt", "guidance_rescale"):
            if getattr(request, field) and not guided:
                found.append(f"{field} has no effect without guidance (a guidance scale over {self.family.unguided:g})")
        if negative.cut and guided:
            found.append(
                f'the negative prompt is longer than {negative.used} tokens; this was cut off: "{negative.cut}"'
            )
        if flagged:
            found.append("the safety checker flags this picture")
        return tuple(found)

    def _count(self, request: GenerationRequest) -> tuple[TokenRecord, TokenRecord]:
        """Return how much of the prompt and the negative prompt is read, by the tokenizer that reads most of it."""
        how, passes = syntax.how(request, self.family), drawn(request, self.family)
        both = request.prompt, request.negative_prompt
        if self.encoder is None:
            there = ((getattr(self.pipe, name, None), most) for name, most in self.family.readers)
            tokenizer, most = next((one, most) for one, most in there if one is not None)
            found = [tokens.count(text, tokenizer, most) for text in both]
        else:
            found = [_read(text, self.encoder.reader, how, passes) for text in both]
        chunks = max(one.chunks for one in found)
        prompt, negative = (msgspec.structs.replace(one, chunks=chunks, syntax=how.syntax) for one in found)
        return prompt, negative

    @property
    def _autoencoder(self) -> Any:
        return getattr(self.pipe, self.family.autoencoder)

    def _trial(self, request: GenerationRequest, size: int) -> int:
        import torch

        with torch.no_grad():
            return self.way.trial(request, size)

    def _scheduler(self, pack: Sequence[GenerationRequest]) -> tuple[Any, SchedulerRecord]:
        own = self.own_scheduler
        asked = pack[0].scheduler
        if asked is None:
            scheduler, entry = schedulers.renew(own), schedulers.from_class(type(own).__name__, own.config)
        else:
            entry = schedulers.find(asked)
            scheduler = schedulers.build(entry, own.config, [seed_of(r) for r in pack])
        if entry is not None:
            schedulers.check(entry, eta=pack[0].eta, steps=pack[0].num_inference_steps)
        settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_") and own.config.get(k) != v}
        return scheduler, SchedulerRecord(
            name=entry.name if entry else None,
            class_name=type(scheduler).__name__,
            settings={k: v for k, v in settings.items() if isinstance(v, (str, int, float, bool, type(None)))},
            sampler=(entry.a1111 if entry else None) or type(scheduler).__name__,
            schedule_type=entry.schedule_type if entry and entry.a1111 else None,
        )

    def _flag(self, images: Sequence[Any]) -> list[bool | None]:
        """Return what the safety checker says of each picture; the pictures stay as they are."""
        if getattr(self.pipe, "safety_checker", None) is None:
            return [None] * len(images)
        import numpy as np

        found: list[bool | None] = []
        for image in images:
            features = self.pipe.feature_extractor(image, return_tensors="pt")
            pixels = features.pixel_values.to(self.pipe._execution_device, self.pipe.safety_checker.dtype)
            # It blackens the array that it is given: a copy.
            _, flags = self.pipe.safety_checker(images=np.asarray(image)[None] / 255.0, clip_input=pixels)
            found.append(bool(flags[0]))
        return found

    def _fall_back(self, pack_size: int, error: BaseException) -> None:
        """Take the next rung of the ladder, or raise OutOfMemory where there is none left."""
        self.forget(error)
        if pack_size > 1:
            self.pack_limit = max(1, pack_size // 2)
            self._note(f"batch-size-{self.pack_limit}", f"out of memory; drawing {self.pack_limit} at a time")
        elif self._slices and self.slicing == "off":
            self._slice_attention("on")
            self._note("attention-slicing", "out of memory; slicing attention", "attention_slicing")
        elif self._slices and self.slicing != "max":
            self._slice_attention("max")
            text = "out of memory; slicing attention as finely as it goes"
            self._note("attention-slicing-max", text, "attention_slicing")
        elif self.family.tiles and not self.tiling:
            self.tile()
        else:
            self._fall_back_to_offload(error)

    @property
    def _slices(self) -> bool:
        """Whether attention can be sliced, as the model is now."""
        return self.family.slices and self.adapters.sliceable

    def _fall_back_to_offload(self, error: BaseException) -> None:
        """Offload more than now, or raise OutOfMemory."""
        while self.decision.device != "cpu" and self.offload != "sequential":
            self.forget(error)
            how = "model" if self.offload == "none" else "sequential"
            self._note(f"offload-{how}", f"out of memory; offloading ({how})", "offload")
            self.offload = how
            try:
                self._offload(how)
                return
            except (RuntimeError, MemoryError) as again:
                if not out_of_memory(again):
                    raise
                error = again
        raise OutOfMemory(
            "out of memory, after every fall-back", "draw it smaller, or close what else uses the memory"
        ) from None

    def forget(self, error: BaseException) -> None:
        """Let go of what a failed pass held."""
        # The exception's traceback holds its tensors.
        error.__traceback__ = None
        gc.collect()
        empty = getattr(backend(self.decision.device), "empty_cache", None)
        if empty:
            empty()

    def _slice_attention(self, how: str) -> None:
        self.slicing = how
        try:
            self.pipe.enable_attention_slicing({"on": "auto", "max": "max"}.get(how) or int(how))
        except ValueError:
            raise UsageError(
                f"{self.model.name}'s attention can't be cut into slices of {how} heads: it has fewer", "use on, or max"
            ) from None

    def tile(self, why: str = "out of memory") -> None:
        self.tiling = True
        self._autoencoder.enable_tiling()
        self._note("vae-tiling", f"{why}; decoding in tiles", "vae_tiling")

    def _tile_by_need(self, request: GenerationRequest) -> None:
        """Decode in tiles what would not fit: on a CPU nothing says so before another process is killed for it.

        At the picture's full size the decoder's last block holds its own input, twice as wide, and three layers more.
        """
        if self.tiling or not self.family.tiles or self.decision.device != "cpu":
            return
        import psutil

        assert request.width is not None and request.height is not None
        vae = self._autoencoder
        channels = (getattr(vae.config, "block_out_channels", None) or [128])[0]
        need = request.width * request.height * 5 * channels * vae.dtype.itemsize
        room = psutil.virtual_memory().available
        if need > room:
            self.tile(
                f"decoding {request.width}x{request.height} at once takes {need / GIB:.1f} GiB, {room / GIB:.1f} are free"
            )

    def _offload(self, how: str) -> None:
        self.pipe.remove_all_hooks()
        self.pipe.to("cpu")
        if how == "model":
            self.pipe.enable_model_cpu_offload(device=self.decision.device)
        else:
            self.pipe.enable_sequential_cpu_offload(device=self.decision.device)

    def _note(self, slug: str, text: str, field: str | None = None) -> None:
        """Say a fall-back that stays, and keep it for the records, with the plan's field that it changes."""
        self.fallbacks.append(slug)
        if field:
            self.reasons[field] = text
        self.say(text)

    def _plan(self, pack_size: int) -> PlanRecord:
        import torch

        d = self.decision
        return PlanRecord(
            device=d.device, dtype=d.dtype, attention_slicing=self.slicing, vae_tiling=self.tiling, offload=self.offload,
            threads=torch.get_num_threads(), pack_size=pack_size, reasons=dict(self.reasons),
        )  # fmt: skip
