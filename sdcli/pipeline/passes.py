"""One pass through a model's networks: how a pack of requests becomes pictures.

Stable Diffusion's is in parts, so that each can be seen and mended: the prompt's embeddings, the starting noise, the steps, the
decoding of one picture at a time. Any other family's is the call of its pipeline of diffusers, whole.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sdcli import schedulers
from sdcli.errors import NotFinite
from sdcli.models import Family
from sdcli.pipeline.conditions import Conditions
from sdcli.pipeline.hearing import Hearing, Listener, hearing
from sdcli.pipeline.machine import backend, out_of_memory
from sdcli.pipeline.requests import seed_of
from sdcli.pipeline.wording import Words
from sdcli.request import GenerationRequest

if TYPE_CHECKING:
    from sdcli.pipeline.drawing import Pipeline

NOT_FINITE = "try --dtype fp32 or --dtype bf16, --attention-slicing off, or another --vae"


class Way(Protocol):
    """How the models of a family are drawn with. All is called without gradients."""

    # Seconds of the last `denoise` that were the autoencoder's.
    decoding: float

    def guided(self, request: GenerationRequest) -> bool:
        """Whether a second pass, or the negative prompt, has an effect."""

    def denoise(self, pack: Sequence[GenerationRequest], given: Conditions, listener: Listener | None) -> Any:
        """Return what `images` makes pictures of, one for each of the pack."""

    def images(self, denoised: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
        """Yield each picture (Pillow, RGB), and its own fall-backs. Raises NotFinite."""

    def trial(self, request: GenerationRequest, size: int) -> int:
        """Run the denoiser once, for a pack of that size; return the bytes that its layers gave out, all together."""


def way(pipe: Any, owner: Pipeline) -> Way:
    """Return how a pipeline of diffusers is drawn with."""
    name = owner.family.class_name
    return StableDiffusion(pipe, owner) if name == "StableDiffusionPipeline" else Whole(pipe, owner)


def _started(pipe: Any, given: Conditions, family: Family, controlnets: Sequence[Any]) -> Any:
    """Return diffusers' pipeline that draws from what is given, of the same networks.

    It is made of them, and not by `from_pipe`, which casts them to fp32.
    """
    if not given.start:
        return pipe
    import diffusers

    kind = getattr(diffusers, family.starts[given.start])
    takes = inspect.signature(kind.__init__).parameters
    parts = {name: part for name, part in pipe.components.items() if name in takes}
    if controlnets:
        parts["controlnet"] = controlnets[0] if len(controlnets) == 1 else list(controlnets)
    for name in ("requires_safety_checker", "requires_aesthetics_score", "add_watermarker"):
        if name in takes:
            parts[name] = False
    started = kind(**parts)
    started.set_progress_bar_config(disable=True)
    return started


def slerp(share: float, start: Any, end: Any) -> Any:
    """Return the noise that lies `share` of the way from one to another on the sphere that both lie on, nearly.

    Shoemake, Animating rotation with quaternion curves (1985); noise on the straight line between would be too weak.
    """
    import torch

    if share in (0, 1):
        return end if share else start
    a, b = start.flatten().double(), end.flatten().double()
    angle = torch.arccos((torch.dot(a, b) / (a.norm() * b.norm())).clamp(-1, 1))
    if angle.sin() < 1e-6:
        return torch.lerp(start, end, share)
    weights = torch.sin((1 - share) * angle) / angle.sin(), torch.sin(share * angle) / angle.sin()
    return (weights[0] * start + weights[1] * end).to(start.dtype)


def _noise(request: GenerationRequest, generator: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return a picture's starting noise: that of its seed, or on the way to another's."""
    import torch

    noise = torch.randn(shape, generator=generator, dtype=dtype)
    if (to := request.variation) is None:
        return noise
    other = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(to.seed), dtype=dtype)
    return slerp(to.strength, noise, other)


def _generators(pack: Sequence[GenerationRequest]) -> list[Any]:
    """Return a generator of its own for each picture, on the CPU: the same start on any device, in any pack."""
    import torch

    return [torch.Generator("cpu").manual_seed(seed_of(r)) for r in pack]


def _taken(pipe: Any, **given: Any) -> dict[str, Any]:
    """Return those of the arguments that a pipeline takes: diffusers' pipelines for the same networks differ in them."""
    takes = inspect.signature(pipe.__call__).parameters
    return {name: value for name, value in given.items() if name in takes}


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
        assert owner.encoder is not None
        self.encoder = owner.encoder
        self.decoding = 0.0

    def guided(self, request: GenerationRequest) -> bool:
        return request.guidance_scale > 1 and self.pipe.unet.config.time_cond_proj_dim is None

    def denoise(self, pack: Sequence[GenerationRequest], given: Conditions, listener: Listener | None) -> Any:
        """Return the latents (pack, channels, height / 8, width / 8) without noise."""
        import torch

        first = pack[0]
        nets = self.owner.adapters.controlnets(first) if given.controls else []
        pipe = _started(self.pipe, given, self.owner.family, nets)
        assert first.width is not None and first.height is not None
        generators = _generators(pack)
        if given.sources:
            start = {}  # The pipelines that start from a picture put noise on it themselves.
        else:
            factor = pipe.vae_scale_factor
            shape = (1, pipe.unet.config.in_channels, first.height // factor, first.width // factor)
            # Drawn in fp32, whatever the networks compute in.
            noise = [_noise(r, g, shape, torch.float32) for r, g in zip(pack, generators, strict=True)]
            start = {"latents": torch.cat(noise).to(pipe.unet.dtype)}

        def heard(_: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
            if listener is not None:
                of = pipe.num_timesteps
                listener(ear.step(number=index + 1, of=of, timestep=float(timestep), latents=state["latents"]))
            return state | words.after(index, pipe.num_timesteps)

        words = Words(self.encoder, pack, guided=self.guided(first), steps=given.steps(first, self.owner.family))
        with hearing(pipe.scheduler, listener) as ear:
            return pipe(
                generator=generators,
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                eta=first.eta or 0.0,
                output_type="latent",
                callback_on_step_end=heard if listener is not None or words.change else None,
                callback_on_step_end_tensor_inputs=["latents", *words.told],
                **words.arguments(),
                **start,
                **given.arguments(first, pipe.vae_scale_factor),
                **_taken(pipe, height=first.height, width=first.width, guidance_rescale=first.guidance_rescale),
            ).images

    def images(self, denoised: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
        # One at a time: a picture's decoding then does not depend on its pack, and takes no more memory with it.
        # As slices: a latent's strides decide which kernel takes it, and with it the last bit.
        for at in range(len(denoised)):
            yield self._decode(denoised[at : at + 1])

    def trial(self, request: GenerationRequest, size: int) -> int:
        import msgspec
        import torch

        unet, factor = self.pipe.unet, self.pipe.vae_scale_factor
        assert request.width is not None and request.height is not None
        rows = size * (2 if request.guidance_scale > 1 else 1)
        with _Counting(unet) as counting:
            device, dtype = self.pipe._execution_device, unet.dtype
            empty = msgspec.structs.replace(request, prompt="")
            words = Words(self.encoder, [empty], guided=False, steps=1).prompts[0].at(1)[0].expand(rows, -1, -1)
            side = (request.height // factor, request.width // factor)
            latents = torch.zeros((rows, unet.config.in_channels, *side), dtype=dtype, device=device)
            unet(latents, 1, encoder_hidden_states=words)
            backend(self.owner.decision.device).synchronize()
        return counting.given

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
        self.family = owner.family
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
        network = getattr(self.pipe, self.family.denoiser, None)
        if getattr(getattr(network, "config", None), "time_cond_proj_dim", None) is not None:
            return False  # Guidance is an input of it.
        return request.guidance_scale > self.family.unguided and self.owner.model.guided

    def denoise(self, pack: Sequence[GenerationRequest], given: Conditions, listener: Listener | None) -> Any:
        """Return the pictures (pack, height, width, 3) as numbers from 0 to 1."""
        self.decoding = 0.0
        with warnings.catch_warnings():
            # diffusers tells of names of its own that its own pipelines still use.
            warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
            nets = self.owner.adapters.controlnets(pack[0]) if given.controls else []
            pipe = _started(self.pipe, given, self.family, nets)
            arguments = self._arguments(pipe, pack) | given.arguments(pack[0], getattr(pipe, "vae_scale_factor", 8))
            words = None
            if self.owner.encoder is not None:
                steps = given.steps(pack[0], self.family)
                words = Words(self.owner.encoder, pack, guided=self.guided(pack[0]), steps=steps)
                for name in ("prompt", "negative_prompt", "clip_skip"):
                    arguments.pop(name, None)
                arguments |= words.arguments()
            with hearing(pipe.scheduler, listener) as ear:
                return pipe(**arguments, **self._hearing(pipe, listener, words, ear)).images

    def _arguments(self, pipe: Any, pack: Sequence[GenerationRequest]) -> dict[str, Any]:
        """Return what the pipeline is called with; what it does not take was refused, or is at its default."""
        import torch

        first, guided = pack[0], self.guided(pack[0])
        assert first.width is not None and first.height is not None
        generators = _generators(pack)
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
            "generator": generators,
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
        if first.variation is not None:
            network, factor = getattr(pipe, self.family.denoiser), pipe.vae_scale_factor
            shape = (1, network.config.in_channels, first.height // factor, first.width // factor)
            noise = [_noise(r, g, shape, network.dtype) for r, g in zip(pack, generators, strict=True)]
            given["latents"] = torch.cat(noise)
        given = _taken(pipe, **{k: v for k, v in given.items() if v is not None})
        if first.num_inference_steps != 2:
            given |= _taken(pipe, intermediate_timesteps=None)  # its default is for two steps
        return given

    def _hearing(self, pipe: Any, listener: Listener | None, words: Words | None, ear: Hearing) -> dict[str, Any]:
        told_too = words.told if words is not None else []
        if listener is None and not told_too:
            return {}
        told = 0

        def hear(timestep: Any, latents: Any, at: Any = pipe) -> None:
            nonlocal told
            told += 1
            of = getattr(at, "num_timesteps", None) or len(at.scheduler.timesteps)
            if listener is not None:
                listener(ear.step(number=told, of=of, timestep=float(timestep), latents=latents))

        def at_end(at: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
            # A pipeline of two hands over the one that steps, which knows how often.
            hear(timestep, state["latents"], at)
            return state | (words.after(index, pipe.num_timesteps) if words is not None else {})

        if found := _taken(pipe, callback_on_step_end=at_end):
            return found | _taken(pipe, callback_on_step_end_tensor_inputs=["latents", *told_too])
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
            self.denoise([few] * size, Conditions(), None)
            backend(self.owner.decision.device).synchronize()
        return counting.given
