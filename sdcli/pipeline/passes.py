"""One pass through a model's networks: how a pack of requests becomes pictures.

Stable Diffusion's is in parts, so that each can be seen and mended: the prompt's embeddings, the starting noise, the steps, the
decoding of one picture at a time. Any other family's is the call of its pipeline of diffusers, whole.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sdcli import models, schedulers
from sdcli.errors import NotFinite
from sdcli.pipeline.machine import backend, out_of_memory
from sdcli.pipeline.requests import seed_of
from sdcli.request import GenerationRequest

if TYPE_CHECKING:
    from sdcli.pipeline.drawing import Pipeline

# What embeddings of prompts that may come again are kept: some 280 texts of SD 1.5 in fp16.
ENCODED_BYTES = 32 * 2**20
NOT_FINITE = "try --dtype fp32 or --dtype bf16, --attention-slicing off, or another --vae"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a listener hears after each step: its number from 1, of how many, the timestep, and the latents
    (pack, channels, height / 8, width / 8; as the family packs them) as they are then."""

    number: int
    of: int
    timestep: float
    latents: Any


Listener = Callable[[Step], None]


class Way(Protocol):
    """How the models of a family are drawn with. All is called without gradients."""

    # Seconds of the last `denoise` that were the autoencoder's.
    decoding: float

    def guided(self, request: GenerationRequest) -> bool:
        """Whether a second pass, or the negative prompt, has an effect."""

    def denoise(self, pack: Sequence[GenerationRequest], listener: Listener | None) -> Any:
        """Return what `images` makes pictures of, one for each of the pack."""

    def images(self, denoised: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
        """Yield each picture (Pillow, RGB), and its own fall-backs. Raises NotFinite."""

    def trial(self, request: GenerationRequest, size: int) -> int:
        """Run the denoiser once, for a pack of that size; return the bytes that its layers gave out, all together."""


def way(pipe: Any, owner: Pipeline) -> Way:
    """Return how a pipeline of diffusers is drawn with."""
    assert owner.model.family is not None
    name = owner.model.family.class_name
    return StableDiffusion(pipe, owner) if name == "StableDiffusionPipeline" else Whole(pipe, owner)


def _generators(pack: Sequence[GenerationRequest]) -> list[Any]:
    """Return a generator of its own for each picture, on the CPU: the same start on any device, in any pack."""
    import torch

    return [torch.Generator("cpu").manual_seed(seed_of(r)) for r in pack]


class _Counting:
    """Counts the bytes that a network's layers give out, while it is entered."""

    def __init__(self, network: Any) -> None:
        self.network, self.given = network, 0

    def __enter__(self) -> _Counting:
        import torch

        def count(_: Any, __: Any, out: Any) -> None:
            self.given += out.nbytes if isinstance(out, torch.Tensor) else 0

        self.hooks = [m.register_forward_hook(count) for m in self.network.modules() if not list(m.children())]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x (arXiv 2112.10752), part by part."""

    def __init__(self, pipe: Any, owner: Pipeline) -> None:
        self.pipe, self.owner = pipe, owner
        self.decoding = 0.0
        self._encoded: dict[tuple[str, int], Any] = {}
        self._encoded_bytes = 0

    def guided(self, request: GenerationRequest) -> bool:
        return request.guidance_scale > 1 and self.pipe.unet.config.time_cond_proj_dim is None

    def denoise(self, pack: Sequence[GenerationRequest], listener: Listener | None) -> Any:
        """Return the latents (pack, channels, height / 8, width / 8) without noise."""
        import torch

        first, pipe = pack[0], self.pipe
        assert first.width is not None and first.height is not None
        factor = pipe.vae_scale_factor
        generators = _generators(pack)
        shape = (1, pipe.unet.config.in_channels, first.height // factor, first.width // factor)
        # Drawn in fp32, whatever the networks compute in.
        noise = torch.cat([torch.randn(shape, generator=g, dtype=torch.float32) for g in generators])

        def heard(_: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
            if listener is not None:
                of = pipe.num_timesteps
                listener(Step(number=index + 1, of=of, timestep=float(timestep), latents=state["latents"]))
            return state

        embeds = torch.cat([self._encode(r.prompt, r.clip_skip) for r in pack])
        negative = None
        if self.guided(first):
            negative = torch.cat([self._encode(r.negative_prompt, r.clip_skip) for r in pack])
        return pipe(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            latents=noise.to(pipe.unet.dtype),
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

    def images(self, denoised: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
        # One at a time: a picture's decoding then does not depend on its pack, and takes no more memory with it.
        for latent in denoised:
            yield self._decode(latent[None])

    def trial(self, request: GenerationRequest, size: int) -> int:
        import torch

        unet, factor = self.pipe.unet, self.pipe.vae_scale_factor
        assert request.width is not None and request.height is not None
        rows = size * (2 if request.guidance_scale > 1 else 1)
        with _Counting(unet) as counting:
            device, dtype = self.pipe._execution_device, unet.dtype
            words = self._encode("", request.clip_skip).expand(rows, -1, -1)
            side = (request.height // factor, request.width // factor)
            latents = torch.zeros((rows, unet.config.in_channels, *side), dtype=dtype, device=device)
            unet(latents, 1, encoder_hidden_states=words)
            backend(self.owner.decision.device).synchronize()
        return counting.given

    def _encode(self, text: str, clip_skip: int) -> Any:
        """Return a text's embedding (1, tokens, width).

        diffusers' own clip skip asks transformers' CLIP for a `text_model` that it no longer has
        (huggingface/diffusers#14124); with none skipped this is bit for bit what diffusers does.
        """
        if (text, clip_skip) not in self._encoded:
            pipe = self.pipe
            encoder = pipe.text_encoder
            models.check_clip_skip(self.owner.model, clip_skip)
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
        if not torch.isfinite(latent).all():
            raise NotFinite("the noise predictor's values are not finite: there is no picture", NOT_FINITE)
        try:
            image = vae.decode(latent / vae.config.scaling_factor, return_dict=False)[0]
        except (RuntimeError, MemoryError) as error:
            if self.owner.tiling or not out_of_memory(error):
                raise
            # The drawing is done and need not be done again: tiles are what helps here.
            self.owner.forget(error)
            self.owner.tile()
            image = vae.decode(latent / vae.config.scaling_factor, return_dict=False)[0]
        if not torch.isfinite(image).all() and vae.dtype != torch.float32:
            notes.append("vae-fp32")
            self.owner.say("the autoencoder's values are not finite; decoding again in fp32")
            vae.to(dtype=torch.float32)
            try:
                image = vae.decode(latent.float() / vae.config.scaling_factor, return_dict=False)[0]
            finally:
                vae.to(dtype=latent.dtype)
        if not torch.isfinite(image).all():
            raise NotFinite("the autoencoder's values are not finite: there is no picture", NOT_FINITE)
        return self.pipe.image_processor.postprocess(image, output_type="pil", do_denormalize=[True])[0], tuple(notes)


class Whole:
    """Any family: its pipeline of diffusers is called with what it takes, and gives pictures."""

    def __init__(self, pipe: Any, owner: Pipeline) -> None:
        self.pipe, self.owner = pipe, owner
        assert owner.model.family is not None
        self.family = owner.model.family
        self.takes = inspect.signature(pipe.__call__).parameters
        self.decoding = 0.0
        self._time_decoding(getattr(pipe, self.family.autoencoder))

    def _time_decoding(self, autoencoder: Any) -> None:
        decode = autoencoder.decode

        def timed(*args: Any, **kwargs: Any) -> Any:
            backend(self.owner.decision.device).synchronize()
            began = time.monotonic()
            try:
                return decode(*args, **kwargs)
            finally:
                backend(self.owner.decision.device).synchronize()
                self.decoding += time.monotonic() - began

        autoencoder.decode = timed

    def guided(self, request: GenerationRequest) -> bool:
        if self.family.guidance == "built-in":
            return request.true_cfg_scale > 1
        return request.guidance_scale > self.family.unguided and self.owner.model.guided

    def denoise(self, pack: Sequence[GenerationRequest], listener: Listener | None) -> Any:
        """Return the pictures (pack, height, width, 3) as numbers from 0 to 1."""
        self.decoding = 0.0
        with warnings.catch_warnings():
            # diffusers tells of names of its own that its own pipelines still use.
            warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
            return self.pipe(**self._arguments(pack), **self._hearing(listener)).images

    def _arguments(self, pack: Sequence[GenerationRequest]) -> dict[str, Any]:
        """Return what the pipeline is called with; what it does not take was refused, or is at its default."""
        first, guided = pack[0], self.guided(pack[0])
        given: dict[str, Any] = {
            "prompt": [r.prompt for r in pack],
            "num_inference_steps": first.num_inference_steps,
            "guidance_scale": first.guidance_scale,
            "true_cfg_scale": first.true_cfg_scale,
            "guidance_rescale": first.guidance_rescale,
            "clip_skip": first.clip_skip or None,
            "eta": first.eta or 0.0,
            "height": first.height,
            "width": first.width,
            "generator": _generators(pack),
            "output_type": "np",
            # The size and the words that were asked for, and no others that would be near.
            "use_resolution_binning": False,
            "clean_caption": False,
        }
        negative = [r.negative_prompt for r in pack]
        if self.family.guidance == "true-cfg":
            # Without a negative prompt these pipelines leave guidance out.
            given["true_cfg_scale"] = given.pop("guidance_scale")
            given["negative_prompt"] = [n or " " for n in negative] if guided else None
        elif guided and (any(negative) or self.family.guidance == "built-in"):
            # Some models want none to be told apart from an empty one.
            given["negative_prompt"] = negative
        given = {k: v for k, v in given.items() if k in self.takes and v is not None}
        if "intermediate_timesteps" in self.takes and first.num_inference_steps != 2:
            given["intermediate_timesteps"] = None  # its default is for two steps
        return given

    def _hearing(self, listener: Listener | None) -> dict[str, Any]:
        if listener is None:
            return {}
        told = 0

        def hear(timestep: Any, latents: Any) -> None:
            nonlocal told
            told += 1
            of = getattr(self.pipe, "num_timesteps", None) or len(self.pipe.scheduler.timesteps)
            listener(Step(number=told, of=of, timestep=float(timestep), latents=latents))

        def at_end(_: Any, __: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
            hear(timestep, state["latents"])
            return state

        if "callback_on_step_end" in self.takes:
            return {"callback_on_step_end": at_end}
        # The older way, PixArt's.
        return {"callback": lambda _, timestep, latents: hear(timestep, latents), "callback_steps": 1}

    def images(self, denoised: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
        import numpy as np
        from PIL import Image

        for picture in denoised:
            if not np.isfinite(picture).all():
                raise NotFinite("the networks' values are not finite: there is no picture", NOT_FINITE)
            # As diffusers' VaeImageProcessor.numpy_to_pil does.
            yield Image.fromarray((picture * 255).round().astype("uint8")), ()

    def trial(self, request: GenerationRequest, size: int) -> int:
        import msgspec

        few = msgspec.structs.replace(request, num_inference_steps=self.family.min_steps, seed=0)
        self.pipe.scheduler = schedulers.renew(self.owner.own_scheduler)
        with _Counting(getattr(self.pipe, self.family.denoiser)) as counting, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.denoise([few] * size, None)
            backend(self.owner.decision.device).synchronize()
        return counting.given
