"""The only door to torch, diffusers and transformers: probe the machine, load a model, draw."""

from __future__ import annotations

import gc
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from sdcli import __version__, models, schedulers
from sdcli.device import Accelerator, Decision, DevicePlan, Probe, decide
from sdcli.errors import BadInput, NotFinite, OutOfMemory, SdcliError, UsageError
from sdcli.models import Model, ModelSpec, Weights
from sdcli.prompts import tokens
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
from sdcli.request import GenerationRequest, draw_seed

# Set before transformers is imported: it tells of packages that are not missed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

# What embeddings of prompts that may come again are kept: some 280 texts of SD 1.5 in fp16.
ENCODED_BYTES = 32 * 2**20
# The largest pack that `auto` takes: larger ones gain little (benchmarks/README.md), and more is lost with a kill.
LARGEST_PACK = 16
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a listener hears after each step: its number from 1, of how many, the timestep, and the latents
    (pack, channels, height / 8, width / 8) as they are then."""

    number: int
    of: int
    timestep: float
    latents: Any


Listener = Callable[[Step], None]


def _quiet(_: str) -> None:
    """Say nothing."""


@cache
def import_libraries() -> None:
    """Import torch, diffusers and transformers, without the garbage collector looking at each new object.

    The imports make some millions of objects that live as long as the process: looking for garbage among them, again
    and again, is a quarter of a plain script's start (benchmarks/README.md). Freezing sets them aside for good. Once:
    a model that is loaded by then would be set aside with them. The collector is then on again, for a long batch.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion
            import torch  # noqa: F401
            import transformers
        # Their bars for loading would stand among results that a person reads; sdcli says itself what it does.
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def probe(device: str = "auto") -> Probe:
    """Look at the machine: which accelerators PyTorch sees, and whether the CPU computes in bf16.

    Free memory is asked of the device in question only: asking takes hundreds of megabytes on each GPU that is asked.
    """
    import torch

    def free(name: str) -> int | None:
        wanted = {"auto": 0}.get(device, device if ":" in device else f"{device}:0")
        if wanted not in (name, 0) or (wanted == 0 and not name.endswith(":0")):
            return None
        return int(getattr(torch, name.partition(":")[0]).mem_get_info(name)[0])

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found.append(
            Accelerator(
                device=f"cuda:{index}",
                name=torch.cuda.get_device_name(index),
                memory_free=free(f"cuda:{index}"),
                # From Ampere on; older cards emulate it, slowly.
                bf16=torch.cuda.get_device_capability(index) >= (8, 0),
                efficient_attention=torch.version.hip is not None or torch.cuda.get_device_capability(index) >= (5, 0),
            )
        )
    xpu = getattr(torch, "xpu", None)
    for index in range(xpu.device_count() if xpu and xpu.is_available() else 0):
        found.append(
            Accelerator(
                device=f"xpu:{index}",
                name=torch.xpu.get_device_name(index),
                memory_free=free(f"xpu:{index}"),
                bf16=True,
            )
        )
    if torch.backends.mps.is_available():
        # Metal's attention computes its full matrix.
        found.append(Accelerator(device="mps:0", name="Apple GPU", efficient_attention=False))
    return Probe(accelerators=tuple(found), cpu_bf16=cpu_has_bf16())


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16: AVX512-BF16, AMX or Arm's BF16."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        # Apple's chips have them from the M2 on, but PyTorch's CPU kernels there are no faster with them.
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def load(spec: ModelSpec | str, plan: DevicePlan | None = None, *, say: Say = _quiet) -> Pipeline:
    """Load a model onto the device that `plan` means; `say` is told of downloads and fall-backs.

    Raises what `models.find` and `models.fetch` raise, BadInput for weights that can't be read, OutOfMemory, and
    UsageError for a device that is not there.
    """
    spec, plan = ModelSpec(model=spec) if isinstance(spec, str) else spec, plan or DevicePlan()
    model = models.find(spec)
    if not model.is_here and (plan.device not in ("auto", "cpu") or plan.dtype == "fp16" or plan.offload != "none"):
        # What this machine can't do is refused before gigabytes are downloaded for it.
        import_libraries()
        decide(plan, probe(plan.device))
    model = models.fetch(model, safety_checker=spec.safety_checker, say=say)
    began = time.monotonic()
    # Hashing reads the files that loading reads next, on another core.
    with ThreadPoolExecutor(1) as pool:
        hashed = pool.submit(models.hashes, model)
        import_libraries()
        import torch

        assert model.family is not None
        parameters = models.count_parameters(model)
        decision = decide(plan, probe(plan.device), family_dtype=model.family.dtype, parameters=parameters)
        if decision.threads:
            torch.set_num_threads(decision.threads)
        pipe = _load_pipe(model, spec.safety_checker, getattr(torch, DTYPES[decision.dtype]))
        hashed.result()
    pipeline = Pipeline(pipe, model, identity(model), decision, say)
    pipeline.seconds_to_load = time.monotonic() - began
    return pipeline


def _load_pipe(model: Model, checker: bool, dtype: Any) -> Any:
    """Load a model's components from this machine, with no connection."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    # The checker is loaded apart: what older models say of it names classes that transformers no longer has.
    parts: dict[str, Any] = {"requires_safety_checker": False, "safety_checker": None, "feature_extractor": None}
    # What the libraries raise for files that are not what they say has no common base.
    try:
        if model.vae is not None:
            parts["vae"] = _load_vae(model.vae, dtype)
        if model.single_file:
            pipe = StableDiffusionPipeline.from_single_file(
                str(model.path), config=str(model.config), dtype=dtype, local_files_only=True, **parts
            )
        else:
            parts["text_encoder"] = _load_whole(CLIPTextModel, model, "text_encoder", dtype)
            pipe = StableDiffusionPipeline.from_pretrained(
                model.path, dtype=dtype, variant=model.variant, use_safetensors=True, local_files_only=True, **parts
            )
        if checker:
            _load_checker(pipe, model, dtype)
    except SdcliError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise OutOfMemory(
                f"{model.name} does not fit into memory", "try --dtype bf16, or a smaller model"
            ) from error
        reason = " ".join(str(error).split()).split(". ")[0][:300]
        if isinstance(error, NotImplementedError) and "meta tensor" in reason:
            reason = "weights are missing in it"
        raise BadInput(f"{model.name} can't be loaded: {reason}", "fetch it again, or name another model") from error
    for part in ("text_encoder", "unet", "vae"):
        _check_whole(model, part, [name for name, p in getattr(pipe, part).named_parameters() if p.is_meta])
    return pipe


def _load_vae(vae: Weights, dtype: Any) -> Any:
    from diffusers import AutoencoderKL

    if vae.single_file:
        return AutoencoderKL.from_single_file(str(vae.path), config=str(vae.config), dtype=dtype, local_files_only=True)
    return AutoencoderKL.from_pretrained(
        vae.path, dtype=dtype, variant=vae.variant, use_safetensors=True, local_files_only=True
    )


def _load_whole(kind: Any, model: Model, part: str, dtype: Any) -> Any:
    """Load a component of transformers, which fills weights that are missing with random ones and says nothing."""
    assert model.path is not None
    loaded, told = kind.from_pretrained(
        model.path / part, dtype=dtype, variant=model.variant, use_safetensors=True, local_files_only=True,
        output_loading_info=True,
    )  # fmt: skip
    _check_whole(model, part, sorted(told["missing_keys"]))
    return loaded


def _check_whole(model: Model, part: str, missing: Sequence[str]) -> None:
    if missing:
        raise BadInput(
            f"{model.name} can't be loaded: its {part} lacks weights ({len(missing)}; the first is {missing[0]})",
            "fetch it again, or name another model",
        )


def _load_checker(pipe: Any, model: Model, dtype: Any) -> None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    assert model.path is not None
    pipe.register_modules(
        safety_checker=_load_whole(StableDiffusionSafetyChecker, model, "safety_checker", dtype),
        feature_extractor=CLIPImageProcessor.from_pretrained(model.path / "feature_extractor", local_files_only=True),
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; CPU and Metal say so in a plain RuntimeError."""
    import torch

    # The last is oneDNN's word for it.
    words = ("out of memory", "can't allocate memory", "not enough memory", "could not create a primitive")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    )


def scheduler_of(request: GenerationRequest, model: Model) -> schedulers.Scheduler | None:
    """Return the entry of the scheduler that will run: the one asked for, or the model's own if the table has it."""
    if request.scheduler:
        return schedulers.find(request.scheduler)
    own = model.scheduler
    return schedulers.from_class(str(own.get("_class_name")), own) if own else None


def resolve(request: GenerationRequest, model: Model) -> GenerationRequest:
    """Return the request with all that the model and the scheduler decide filled in, names in their canonical form.

    Width and height stay None for a model that is not here yet.
    """
    entry = scheduler_of(request, model)
    width, height = model.size or (None, None)
    return msgspec.structs.replace(
        request,
        width=request.width or width,
        height=request.height or height,
        scheduler=entry.name if entry and request.scheduler else None,
        eta=entry.eta if entry and request.eta is None else request.eta,
    )


def identity(model: Model) -> ModelRecord:
    """Return what records say of a model that is here."""
    assert model.family is not None
    return ModelRecord(
        name=model.shown_name,
        family=model.family.name,
        repo=model.repo,
        commit=model.commit,
        files=models.hashes(model),
    )


class Pipeline:
    """A loaded model that draws.

    When memory runs out it goes down a ladder (packs of one, attention slicing, VAE tiling, offload), says so, and
    stays there; the records of what it draws from then on tell.
    """

    def __init__(self, pipe: Any, model: Model, record: ModelRecord, decision: Decision, say: Say = _quiet) -> None:
        self.pipe = pipe
        self.model = model
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
        self._own_scheduler = pipe.scheduler
        self._encoded: dict[tuple[str, int], Any] = {}
        self._encoded_bytes = 0
        pipe.set_progress_bar_config(disable=True)
        if self.slicing != "off":
            self._slice_attention(self.slicing)
        if self.tiling:
            pipe.vae.enable_tiling()
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
        that at one size a picture is the same, bit for bit on a CPU, whoever its neighbours are. A request without a seed
        gets one. Raises OutOfMemory after every fall-back, and NotFinite for a picture whose values were not finite, which
        takes its pack with it; the packs before have been yielded.
        """
        templates = templates or [None] * len(requests)
        tags = tags or [{}] * len(requests)
        resolved = [_seeded(resolve(r, self.model)) for r in requests]
        start = 0
        while start < len(resolved):
            end = start + 1
            limit = min(batch_size, self.pack_limit or batch_size)
            while end < len(resolved) and end - start < limit and shape(resolved[end]) == shape(resolved[start]):
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

        On an accelerator passes of the U-Net are tried, the largest first. A CPU's memory runs out only when another
        process is killed for it; so there it is reckoned: what all layers of one pass give out, against half of what is free.
        """
        size = 1 << max(0, at_most.bit_length() - 1)
        request = resolve(request, self.model)
        if self.decision.device == "cpu":
            import psutil

            room = psutil.virtual_memory().available // 2
            try:
                taken = self._pass(request, 1) if size > 1 else 0
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._forget(error)
                return 1
            while size > 1 and size * taken > room:
                size //= 2
            return size
        while size > 1:
            try:
                self._pass(request, size)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._forget(error)
                size //= 2
        return size

    def _pass(self, request: GenerationRequest, size: int) -> int:
        """Run the U-Net once, for a pack of that size; return the bytes that its layers gave out, all together."""
        import torch

        unet, factor = self.pipe.unet, self.pipe.vae_scale_factor
        assert request.width is not None and request.height is not None
        rows = size * (2 if request.guidance_scale > 1 else 1)
        given = 0

        def count(_: Any, __: Any, out: Any) -> None:
            nonlocal given
            given += out.nbytes if isinstance(out, torch.Tensor) else 0

        hooks = [m.register_forward_hook(count) for m in unet.modules() if not list(m.children())]
        try:
            with torch.no_grad():
                device, dtype = self.pipe._execution_device, unet.dtype
                words = self._encode("", request.clip_skip).expand(rows, -1, -1)
                side = (request.height // factor, request.width // factor)
                latents = torch.zeros((rows, unet.config.in_channels, *side), dtype=dtype, device=device)
                unet(latents, 1, encoder_hidden_states=words)
                _backend(self.decision.device).synchronize()
        finally:
            for hook in hooks:
                hook.remove()
        return given

    def id_of(self, request: GenerationRequest) -> str:
        """Return the id that a request with its seed has as a job on this model."""
        return job_id(resolve(request, self.model), self.model_record)

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
        assert first.width is not None and first.height is not None
        models.check_size(self.model, first.width, first.height)
        factor = self.pipe.vae_scale_factor
        filled = [*pack, *[pack[-1]] * (size - len(pack))]
        scheduler, scheduler_record = self._scheduler(filled)
        self.pipe.scheduler = scheduler
        dtype = self.pipe.unet.dtype
        generators = [torch.Generator("cpu").manual_seed(_seed(r)) for r in filled]
        shape = (1, self.pipe.unet.config.in_channels, first.height // factor, first.width // factor)
        # Drawn in fp32 on the CPU, each from its own generator: the same start on any device, in any pack.
        noise = torch.cat([torch.randn(shape, generator=g, dtype=torch.float32) for g in generators])
        guided = first.guidance_scale > 1 and self.pipe.unet.config.time_cond_proj_dim is None

        def heard(_: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
            if listener is not None:
                of = self.pipe.num_timesteps
                listener(Step(number=index + 1, of=of, timestep=float(timestep), latents=state["latents"]))
            return state

        with torch.no_grad(), warnings.catch_warnings():
            # torchsde tells of how far past a step's end rounding takes it.
            warnings.filterwarnings("ignore", module="torchsde")
            embeds = torch.cat([self._encode(r.prompt, r.clip_skip) for r in filled])
            negative = torch.cat([self._encode(r.negative_prompt, r.clip_skip) for r in filled]) if guided else None
            latents = self.pipe(
                prompt_embeds=embeds,
                negative_prompt_embeds=negative,
                latents=noise.to(dtype),
                generator=generators,
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                guidance_rescale=first.guidance_rescale,
                eta=first.eta or 0.0,
                height=first.height,
                width=first.width,
                output_type="latent",
                callback_on_step_end=heard if listener is not None else None,
            ).images
            _backend(self.decision.device).synchronize()
            drawn = time.monotonic()
            # One at a time: a picture's decoding then does not depend on its pack, and takes no more memory with it. What it
            # fell back to holds for it and those after it, and not for those before.
            images, fallbacks, plans = [], [], []
            for latent in latents[: len(pack)]:
                image, noted = self._decode(latent[None])
                images.append(image)
                fallbacks.append((*self.fallbacks, *noted))
                plans.append(self._plan(size))
            flags = self._flag(images)
            if self.offload != "none":
                # Decoding brought the autoencoder back after the pass had sent all away.
                self.pipe.maybe_free_model_hooks()
        decoded = time.monotonic()
        seconds = SecondsRecord(
            load=round(self.seconds_to_load, 3), draw=round(drawn - began, 3), decode=round(decoded - drawn, 3)
        )
        results = []
        for request, image, fallen, plan, flagged, template, own_tags in zip(
            pack, images, fallbacks, plans, flags, templates, tags, strict=True
        ):
            counted = tokens.count(request.prompt, self.pipe.tokenizer)
            record = Record(
                id=job_id(request, self.model_record), request=request, template=template, tags=own_tags,
                model=self.model_record, plan=plan, versions=versions(), tokens=counted, scheduler=scheduler_record,
                flagged=flagged, fallbacks=fallen, seconds=seconds, pixels=pixels_of(image),
            )  # fmt: skip
            results.append(
                GeneratedImage(image=image, record=record, warnings=self._warnings(counted, request, guided, flagged))
            )
        return results

    def _warnings(
        self, counted: TokenRecord, request: GenerationRequest, guided: bool, flagged: bool | None
    ) -> tuple[str, ...]:
        found = []
        limit = self.pipe.tokenizer.model_max_length - 2
        if counted.cut:
            found.append(f'the prompt is longer than {limit} tokens; this was cut off: "{counted.cut}"')
        negative = tokens.count(request.negative_prompt, self.pipe.tokenizer)
        for field in ("negative_prompt", "guidance_rescale"):
            if getattr(request, field) and not guided:
                found.append(f"{field} has no effect without guidance (a guidance scale over 1)")
        if negative.cut and guided:
            found.append(f'the negative prompt is longer than {limit} tokens; this was cut off: "{negative.cut}"')
        if flagged:
            found.append("the safety checker flags this picture")
        return tuple(found)

    def _scheduler(self, pack: Sequence[GenerationRequest]) -> tuple[Any, SchedulerRecord]:
        own = self._own_scheduler
        asked = pack[0].scheduler
        if asked is None:
            scheduler, entry = schedulers.renew(own), schedulers.from_class(type(own).__name__, own.config)
        else:
            entry = schedulers.find(asked)
            scheduler = schedulers.build(entry, own.config, [_seed(r) for r in pack])
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

    def _encode(self, text: str, clip_skip: int) -> Any:
        """Return a text's embedding (1, tokens, width).

        diffusers' own clip skip asks transformers' CLIP for a `text_model` that it no longer has
        (huggingface/diffusers#14124); with none skipped this is bit for bit what diffusers does.
        """
        if (text, clip_skip) not in self._encoded:
            pipe = self.pipe
            encoder = pipe.text_encoder
            models.check_clip_skip(self.model, clip_skip)
            ids = pipe.tokenizer(
                text,
                padding="max_length",
                max_length=pipe.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            mask = ids.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
            device = pipe._execution_device
            found = encoder(
                ids.input_ids.to(device),
                attention_mask=mask.to(device) if mask is not None else None,
                output_hidden_states=clip_skip > 0,
            )
            if clip_skip:
                norm = getattr(encoder, "text_model", encoder).final_layer_norm
                hidden = norm(found.hidden_states[-(clip_skip + 1)])
            else:
                hidden = found[0]
            self._encoded[text, clip_skip] = hidden.to(dtype=encoder.dtype, device=device)
            self._encoded_bytes += hidden.nbytes
            while self._encoded_bytes > ENCODED_BYTES and len(self._encoded) > 2:
                self._encoded_bytes -= self._encoded.pop(next(iter(self._encoded))).nbytes
        else:
            # The one that was used last goes last, so that a negative prompt which all rows share never does.
            self._encoded[text, clip_skip] = self._encoded.pop((text, clip_skip))
        return self._encoded[text, clip_skip]

    def _decode(self, latent: Any) -> tuple[Any, tuple[str, ...]]:
        """Return the picture (Pillow, RGB) of one latent (1, channels, height, width), and its own fall-backs.

        diffusers makes a black picture of values that are not finite, and says nothing.
        """
        import torch

        vae, notes = self.pipe.vae, list[str]()
        hint = "try --dtype fp32 or --dtype bf16, --attention-slicing off, or another --vae"
        if not torch.isfinite(latent).all():
            raise NotFinite("the noise predictor's values are not finite: there is no picture", hint)
        try:
            image = vae.decode(latent / vae.config.scaling_factor, return_dict=False)[0]
        except (RuntimeError, MemoryError) as error:
            if self.tiling or not out_of_memory(error):
                raise
            # The drawing is done and need not be done again: tiles are what helps here.
            self._forget(error)
            self._tile()
            image = vae.decode(latent / vae.config.scaling_factor, return_dict=False)[0]
        if not torch.isfinite(image).all() and vae.dtype != torch.float32:
            notes.append("vae-fp32")
            self.say("the autoencoder's values are not finite; decoding again in fp32")
            vae.to(dtype=torch.float32)
            try:
                image = vae.decode(latent.float() / vae.config.scaling_factor, return_dict=False)[0]
            finally:
                vae.to(dtype=latent.dtype)
        if not torch.isfinite(image).all():
            raise NotFinite("the autoencoder's values are not finite: there is no picture", hint)
        return self.pipe.image_processor.postprocess(image, output_type="pil", do_denormalize=[True])[0], tuple(notes)

    def _flag(self, images: Sequence[Any]) -> list[bool | None]:
        """Return what the safety checker says of each picture; the pictures stay as they are."""
        if self.pipe.safety_checker is None:
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
        self._forget(error)
        if pack_size > 1:
            self.pack_limit = max(1, pack_size // 2)
            self._note(f"batch-size-{self.pack_limit}", f"out of memory; drawing {self.pack_limit} at a time")
        elif self.slicing == "off":
            self._slice_attention("on")
            self._note("attention-slicing", "out of memory; slicing attention", "attention_slicing")
        elif self.slicing != "max":
            self._slice_attention("max")
            text = "out of memory; slicing attention as finely as it goes"
            self._note("attention-slicing-max", text, "attention_slicing")
        elif not self.tiling:
            self._tile()
        else:
            self._fall_back_to_offload(error)

    def _fall_back_to_offload(self, error: BaseException) -> None:
        """Offload more than now, or raise OutOfMemory."""
        while self.decision.device != "cpu" and self.offload != "sequential":
            self._forget(error)
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

    def _forget(self, error: BaseException) -> None:
        """Let go of what a failed pass held."""
        # The exception's traceback holds its tensors.
        error.__traceback__ = None
        gc.collect()
        empty = getattr(_backend(self.decision.device), "empty_cache", None)
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

    def _tile(self) -> None:
        self.tiling = True
        self.pipe.vae.enable_tiling()
        self._note("vae-tiling", "out of memory; decoding in tiles", "vae_tiling")

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


def versions() -> dict[str, str]:
    """Return the versions that decide a picture's bits."""
    import diffusers
    import torch
    import transformers

    return {
        "sdcli": __version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        # The instructions that PyTorch's kernels use, which decide bits too.
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "platform": f"{sys.platform}-{platform.machine()}",
    }


def shape(request: GenerationRequest) -> tuple[Any, ...]:
    """Return what requests must share to be drawn in one pass."""
    varies = {"prompt", "negative_prompt", "seed", "clip_skip"}
    return tuple(getattr(request, f) for f in request.__struct_fields__ if f not in varies)


def _seeded(request: GenerationRequest) -> GenerationRequest:
    return msgspec.structs.replace(request, seed=draw_seed()) if request.seed in (None, -1) else request


def _seed(request: GenerationRequest) -> int:
    assert request.seed is not None
    return request.seed


def _backend(device: str) -> Any:
    """Return PyTorch's module for a device: torch.cuda, torch.xpu, torch.mps or torch.cpu."""
    import torch

    return getattr(torch, device.partition(":")[0])
