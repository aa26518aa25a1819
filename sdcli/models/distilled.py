"""Models that were distilled to draw in few steps: how they are told, what they want, and what ruins their pictures.

Sources: the cards of stabilityai/sdxl-turbo and sd-turbo, ByteDance/SDXL-Lightning and Hyper-SD, latent-consistency/lcm-lora-sdv1-5
and lcm-sdxl, h1t/TCD-SDXL-LoRA, tianweiy/DMD2, wangfuyun/PCM_Weights and black-forest-labs/FLUX.1-schnell on huggingface.co;
diffusers' guides using-diffusers/sdxl_turbo and inference_with_lcm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from sdcli.models.families import Family
from sdcli.request import GenerationRequest

if TYPE_CHECKING:
    from sdcli.models.spec import Model

# Of sdcli's names of schedulers, how those end whose steps are trailing.
TRAILING = "-sgm-uniform"
# More steps than this help none of them; what was made for more says so in its name.
MOST_STEPS = 12


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A way of distilling: how people call it, the steps that its authors show, their scheduler as sdcli calls it, what else fits
    (`trailing`: whatever has trailing steps), and the guidance scale that it bears at most."""

    label: str
    steps: int
    scheduler: str | None
    fits: tuple[str, ...] = ()
    trailing: bool = False
    guidance: float = 2.0


# The last two are what those recommend who merge such models into their own.
_FITS = ("ddim", "ddpm", "lcm", "tcd", "dpm++sde", "dpm++sde-karras")
KINDS = {
    "turbo": Kind(label="Turbo", steps=4, scheduler="euler-a-sgm-uniform", fits=_FITS, trailing=True),
    "lcm": Kind(label="LCM", steps=4, scheduler="lcm", fits=("lcm", "tcd", "euler-a", "euler-a-sgm-uniform")),
    "lightning": Kind(label="Lightning", steps=4, scheduler="euler-sgm-uniform", fits=_FITS, trailing=True),
    "hyper": Kind(label="Hyper-SD", steps=8, scheduler="ddim", fits=_FITS, trailing=True),
    "tcd": Kind(label="TCD", steps=4, scheduler="tcd", fits=("lcm", "tcd", "ddim")),
    "pcm": Kind(label="PCM", steps=4, scheduler="ddim", fits=(*_FITS, "euler"), trailing=True),
    "dmd": Kind(label="DMD2", steps=4, scheduler="lcm", fits=("lcm", "tcd")),
    "schnell": Kind(label="schnell", steps=4, scheduler=None),
}
_WORDS = {name: name for name in KINDS} | {"hypersd": "hyper", "hypersdxl": "hyper"}
# Where a family's cards show other steps than Stable Diffusion's.
_STEPS = {("turbo", "ZImagePipeline"): 8, ("turbo", "FluxPipeline"): 8, ("lightning", "QwenImagePipeline"): 8}
# The authors' own bear no guidance; what others merge them into bears some.
_OFFICIAL = frozenset({
    "stabilityai/sd-turbo", "stabilityai/sdxl-turbo", "stabilityai/stable-diffusion-3.5-large-turbo",
    "bytedance/sdxl-lightning", "bytedance/hyper-sd", "tongyi-mai/z-image-turbo",
})  # fmt: skip
# Words that may say what a LoRA shows, a storm or a car, where no model and no number of steps stands beside them.
_PICTURED = frozenset({"turbo", "lightning", "hyper"})
_BASES = frozenset({"sd", "sdv", "sdxl", "xl", "flux", "qwen"})
# What may follow in a checkpoint's name and says nothing of what it draws.
_TAIL = frozenset({"v", "fp", "bf", "vae", "baked", "bakedvae", "pruned", "diffusers", "unet", "inpaint", "inpainting"})
_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SUFFIX = re.compile(r"\.(safetensors|gguf|sft|json)$")
_HUB = re.compile(r"[\w-][\w.-]*(/[\w.-]+){1,2}(@[\w.-]+)?")
# Where noise is taken away by any of sdcli's schedulers.
_BETAS = frozenset({"StableDiffusionPipeline", "StableDiffusionXLPipeline"})
_OWN = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}
_OWN_SIGMAS = re.compile(r"-(karras|exponential|beta|lu)$")


class Distilled(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a distilled model or LoRA: its kind (a key of KINDS), and the steps that its name says.

    `embedded`: guidance is an input of its network (arXiv 2310.04378, section 4.1) and no second pass. `keeps`: it was distilled
    so that it bears guidance. `official`: it is its authors' own.
    """

    kind: str
    steps: int | None = None
    embedded: bool = False
    keeps: bool = False
    official: bool = False

    @property
    def most_steps(self) -> int:
        return max(MOST_STEPS, 3 * (self.steps or 0) // 2)

    @property
    def most_guidance(self) -> float:
        return 1.0 if self.official else KINDS[self.kind].guidance


# Telling


def of(model: Model) -> Distilled | None:
    """Return how a model was distilled, None for one that was not, or says it nowhere.

    Its name says it (the repository's, else that of the file or folder), the configuration of its network, or that of its
    scheduler. Trailing steps say nothing: models of zero terminal SNR want them too.
    """
    said = model.repo or (str(model.path) if model.path is not None else "")
    found = _of_name(PurePath(said).name, lora=False)
    class_name = model.family.class_name if model.family is not None else ""
    if class_name in _BETAS and model.configs is not None and _is_embedded(model.configs / "unet" / "config.json"):
        return Distilled(kind="lcm", steps=found.steps if found else None, embedded=True)
    if found is not None:
        return replace(found, official=model.repo is not None and model.repo.lower() in _OFFICIAL)
    if (own := _own_class(model.scheduler)) in _OWN:
        return Distilled(kind=_OWN[own])
    return Distilled(kind="schnell") if class_name == "FluxPipeline" and not model.guided else None


def of_lora(name: str) -> Distilled | None:
    """Return what a LoRA was distilled from others for, by its name: of a file, or of a repository on the hub and a file in it."""
    parts = PurePath(name).parts
    # Who owns a repository says nothing of what is in it.
    return _of_name("/".join(parts[1:] if _HUB.fullmatch(name) else parts[-1:]), lora=True)


def _of_name(name: str, *, lora: bool) -> Distilled | None:
    tokens = [t.lower() for t in _TOKEN.findall(_SUFFIX.sub("", name))]
    at = next((i for i, t in enumerate(tokens) if t in _WORDS), None)
    if at is None:
        return None
    kind, steps = _WORDS[tokens[at]], _steps_of(tokens)
    beside = {t for t in tokens[max(at - 1, 0) : at + 2] if t in _BASES}
    last = all(t in _TAIL or t.isdecimal() for t in tokens[at + 1 :])
    certain = bool(beside or steps or tokens[at] != kind)
    if kind in _PICTURED and not certain and (lora or (kind == "hyper" and not last)):
        return None
    return Distilled(kind=kind, steps=steps, keeps=kind in ("hyper", "pcm") and bool({"cfg", "normalcfg"} & {*tokens}))


def _steps_of(tokens: Sequence[str]) -> int | None:
    """Return the number in front of `step` or `steps`."""
    for number, word in zip(tokens, tokens[1:], strict=False):
        if word in ("step", "steps") and number.isdecimal() and len(number) < 3 and int(number) > 0:
            return int(number)
    return None


class _Network(msgspec.Struct):
    """What is asked of the configuration of a U-Net."""

    time_cond_proj_dim: int | None = None


@lru_cache(maxsize=64)
def _is_embedded(config: Path) -> bool:
    """Whether a U-Net reads the guidance scale. What can't be read is refused where it is loaded."""
    try:
        return msgspec.json.decode(config.read_bytes(), type=_Network).time_cond_proj_dim is not None
    except (OSError, msgspec.DecodeError, ValueError):
        return False


def _own_class(scheduler: Mapping[str, Any] | None) -> str:
    return str((scheduler or {}).get("_class_name", ""))


# What they want


def defaults(model: Model) -> dict[str, Any]:
    """Return what a distilled model wants besides what its family does: fields of a request, for `Model.defaults`.

    They stand over the family's and below those of the table of known models. A scheduler is among them only where the model's
    own is here and does not fit, as in a checkpoint of one file.
    """
    found, family = of(model), model.family
    if found is None or family is None:
        return {}
    kind = KINDS[found.kind]
    if family.defaults.get("num_inference_steps", MOST_STEPS) <= kind.steps:
        return {}  # A family of nothing else says it itself.
    wants: dict[str, Any] = {
        "num_inference_steps": found.steps or _STEPS.get((found.kind, family.class_name), kind.steps),
    }
    if found.embedded:
        wants["guidance_scale"] = 8.0
    elif family.guidance == "true-cfg":
        wants["guidance_scale"] = 1.0
    elif family.guidance == "cfg":
        wants["guidance_scale"] = 5.0 if found.keeps else 1.0 if found.kind == "lcm" else 0.0
    if _heeds(family) and model.scheduler is not None and not _own_fits(kind, model.scheduler):
        # The one LoRA of Hyper-SD for a single step wants TCD.
        wants["scheduler"] = "tcd" if found.kind == "hyper" and found.steps == 1 else kind.scheduler
    return wants


def _heeds(family: Family) -> bool:
    return family.class_name in _BETAS and family.own_scheduler is None


def _own_fits(kind: Kind, config: Mapping[str, Any]) -> bool:
    own = _own_class(config)
    return _OWN.get(own) in kind.fits or (kind.trailing and config.get("timestep_spacing") == "trailing")


def _fits(kind: Kind, name: str, own: Mapping[str, Any] | None) -> bool:
    """Whether a scheduler fits, by sdcli's name; a model's own trailing steps are handed on to those that can have them."""
    if name in kind.fits or name == kind.scheduler:
        return True
    trailing = (own or {}).get("timestep_spacing") == "trailing" and not _OWN_SIGMAS.search(name)
    return kind.trailing and (name.endswith(TRAILING) or trailing)


# What ruins them


def ruins(request: GenerationRequest, model: Model) -> tuple[str, ...]:
    """Return what ruins a distilled model's pictures, or those with a distilled LoRA, a sentence each. Nothing is refused.

    The request is resolved: its scheduler has sdcli's name, None for the model's own.
    """
    found, family = of(model), model.family
    if family is None:
        return ()
    if found is not None:
        return tuple(_told(request, model, family, model.shown_name, found))
    told: list[str] = []
    for one in request.lora:
        if one.scale and (found := of_lora(one.name)) is not None:
            name = _SUFFIX.sub("", PurePath(one.name).name)
            told += _told(request, model, family, name, found, lora=True)
    return tuple(told)


def _told(
    request: GenerationRequest, model: Model, family: Family, name: str, found: Distilled, *, lora: bool = False
) -> Iterator[str]:
    kind = KINDS[found.kind]
    a = f"{name} is a {kind.label} {'LoRA' if lora else 'model'}"
    share = request.strength if request.init_image is not None and request.strength is not None else 1.0
    steps = int(request.num_inference_steps * share)
    if steps > found.most_steps:
        few = found.steps or _STEPS.get((found.kind, family.class_name), kind.steps)
        yield f"{a}, made for {few} steps or so: {steps} steps spoil its pictures"
    bears = found.embedded or found.keeps or family.guidance == "built-in" or not model.guided
    if not bears and request.guidance_scale > found.most_guidance:
        yield (
            f"{a}, which bears a guidance scale of {found.most_guidance:g} at most:"
            f" {request.guidance_scale:g} burns its pictures"
        )
    if not _heeds(family) or kind.scheduler is None:
        return
    if request.scheduler is not None and not _fits(kind, request.scheduler, model.scheduler):
        yield f"{a}, which scheduler {request.scheduler} is not for: {kind.scheduler} is"
    if lora and request.scheduler is None and model.scheduler is not None and not _own_fits(kind, model.scheduler):
        yield f"{a}, which the model's own scheduler is not for: --scheduler {kind.scheduler} is"
