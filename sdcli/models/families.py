"""Families of models: what those that one pipeline class of diffusers draws with want, and what they can't use.

Numbers are the defaults of diffusers' pipelines and of the first models' cards. Sizes are in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

NO_CLIP_SKIP = "it does not read CLIP's earlier layers"
NO_NEGATIVE = "it has no second pass for what must not be seen"
BUILT_IN = "its guidance is built in; with --set true_cfg_scale=2 or so a second pass is made, which reads it"
NO_ETA = "its way from noise to picture has no such number"
NO_RESCALE = "its pipeline does not rescale guidance"
NO_SECOND_PASS = "that is for models with guidance built in; --guidance-scale is its own"


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """Models that one pipeline class of diffusers, `class_name`, draws with.

    `denoiser` and `autoencoder` are the components whose configuration says of sizes; `sample` is the latent's side where
    the configuration says none, `side` the picture's where the pipeline has one of its own. Width and height are multiples
    of the autoencoder's factor times `patch`, and of `multiple`. `guidance` is how it is guided: by a second pass (`cfg`), by
    an input of the network (`built-in`), or by a second pass that diffusers calls `true_cfg_scale` (`true-cfg`);
    above `unguided` there is guidance. `lacks` are fields that have no effect, with the reason. `own_scheduler` is why its
    scheduler can't be changed, None where it can. `readers` are its tokenizers, the one that reads most first, with how many
    tokens it reads (None: as its tokenizer says). `slices`: its attention can be sliced. `tiles`: its autoencoder can decode in
    tiles. `alone`: the prompts of one pass touch each other's pictures, so that packs are of one.
    With fewer than `min_steps` its pipeline fails. `starts` are diffusers' classes that draw with the same networks from a
    picture (`image`), over a part of one (`mask`), and with ControlNets (`control`, `control-image`, `control-mask`); `no_starts`
    is why there are no others, where diffusers has something of the kind. Of N steps at a strength S these draw N * S: rounded
    `down` or `up`, or `all` N of them, which then begin later (`part`). `unrescaled` are those that do not rescale guidance.
    `weighs`: words of its prompt can have weights, and prompts of any length are read.
    """

    class_name: str
    name: str
    dtype: Literal["fp16", "bf16"] = "bf16"
    defaults: Mapping[str, Any] = msgspec.field(default_factory=dict)
    denoiser: str = "transformer"
    autoencoder: str = "vae"
    sample: int = 128
    side: int | None = None
    patch: int = 1
    multiple: int = 8
    guidance: Literal["cfg", "built-in", "true-cfg"] = "cfg"
    unguided: float = 1.0
    lacks: Mapping[str, str] = msgspec.field(default_factory=dict)
    own_scheduler: str | None = None
    readers: tuple[tuple[str, int | None], ...] = (("tokenizer", None),)
    slices: bool = False
    tiles: bool = True
    alone: bool = False
    min_steps: int = 1
    starts: Mapping[str, str] = msgspec.field(default_factory=dict)
    unrescaled: tuple[str, ...] = ()
    no_starts: str | None = None
    part: Literal["down", "up", "all"] = "up"
    weighs: bool = False

    @property
    def variants(self) -> tuple[str, ...]:
        """The precisions that are fetched from the hub where all components have them, the first that is there."""
        return ("bf16", "fp16") if self.dtype == "bf16" else ("fp16",)


FLOW = "it was trained by flow matching, and draws with its own"
_NO_NOISE = {"clip_skip": NO_CLIP_SKIP, "eta": NO_ETA, "guidance_rescale": NO_RESCALE, "true_cfg_scale": NO_SECOND_PASS}


def _without(*fields: str) -> dict[str, str]:
    return {k: v for k, v in _NO_NOISE.items() if k in fields}


def _starts(stem: str, control: str = "") -> dict[str, str]:
    """Return the classes that diffusers names in its usual way (pipelines/auto_pipeline.py).

    ControlNets are those of U-Nets: each family of transformers has a kind of its own, which sdcli does not load.
    """
    found = {"image": f"{stem}Img2ImgPipeline", "mask": f"{stem}InpaintPipeline"}
    if control:
        found |= {"control": f"{control}Pipeline", "control-image": f"{control}Img2ImgPipeline"}
        found["control-mask"] = f"{control}InpaintPipeline"
    return found


def _steps(steps: int, guidance: float) -> dict[str, Any]:
    return {"num_inference_steps": steps, "guidance_scale": guidance}


_FAMILIES = (
    Family(
        class_name="StableDiffusionPipeline",
        name="stable-diffusion", dtype="fp16", defaults=_steps(25, 7.5), denoiser="unet", sample=64, slices=True,
        lacks=_without("true_cfg_scale"), starts=_starts("StableDiffusion", "StableDiffusionControlNet"), part="down",
        unrescaled=("image", "mask", "control", "control-image", "control-mask"), weighs=True,
    ),
    Family(
        class_name="StableDiffusionXLPipeline",
        name="stable-diffusion-xl", dtype="fp16", defaults=_steps(30, 5.0), denoiser="unet", slices=True,
        lacks=_without("true_cfg_scale"), readers=(("tokenizer", None), ("tokenizer_2", None)),
        starts=_starts("StableDiffusionXL", "StableDiffusionXLControlNet"), part="down",
        unrescaled=("control", "control-image"), weighs=True,
    ),
    Family(
        class_name="StableDiffusion3Pipeline",
        name="stable-diffusion-3", defaults=_steps(28, 7.0), patch=2, own_scheduler=FLOW,
        lacks=_without("eta", "guidance_rescale", "true_cfg_scale"),
        readers=(("tokenizer_3", 256), ("tokenizer", None)), starts=_starts("StableDiffusion3"),
    ),
    Family(
        class_name="LatentConsistencyModelPipeline",
        name="latent-consistency", dtype="fp16", defaults=_steps(4, 8.5), denoiser="unet", sample=64, slices=True,
        guidance="built-in", own_scheduler="it was distilled to be drawn with its own (LCM)",
        lacks={
            **_without("eta", "guidance_rescale", "true_cfg_scale"), "negative_prompt": NO_NEGATIVE,
            "clip_skip": "its pipeline of diffusers fails on it with transformers 5 (huggingface/diffusers#14124)",
        },
        starts={"image": "LatentConsistencyModelImg2ImgPipeline"}, part="all", weighs=True,
    ),
    Family(
        class_name="FluxPipeline",
        name="flux", defaults=_steps(28, 3.5), patch=2, guidance="built-in", own_scheduler=FLOW,
        lacks=_without("clip_skip", "eta", "guidance_rescale"), readers=(("tokenizer_2", 512), ("tokenizer", None)),
        starts=_starts("Flux"),
    ),
    Family(
        class_name="Flux2KleinPipeline",
        name="flux-2-klein", defaults=_steps(4, 1.0), patch=2, own_scheduler=FLOW,
        lacks={"negative_prompt": NO_NEGATIVE, **_NO_NOISE}, readers=(("tokenizer", 512),),
        starts={"mask": "Flux2KleinInpaintPipeline"},
        no_starts="a picture that its pipeline of diffusers is given is looked at, and no start",
    ),
    Family(
        class_name="ChromaPipeline",
        name="chroma", defaults=_steps(35, 5.0), patch=2, own_scheduler=FLOW, lacks=_NO_NOISE,
        readers=(("tokenizer", 512),), starts={"image": "ChromaImg2ImgPipeline"},
        no_starts="its pipeline of diffusers for that fails with its network",
    ),
    Family(
        class_name="PixArtAlphaPipeline",
        name="pixart-alpha", dtype="fp16", defaults=_steps(20, 4.5), patch=2,
        lacks=_without("clip_skip", "guidance_rescale", "true_cfg_scale"), readers=(("tokenizer", 120),), min_steps=2,
    ),
    Family(
        class_name="PixArtSigmaPipeline",
        name="pixart-sigma", dtype="fp16", defaults=_steps(20, 4.5), patch=2,
        lacks=_without("clip_skip", "guidance_rescale", "true_cfg_scale"), readers=(("tokenizer", 300),),
    ),
    Family(
        class_name="SanaPipeline",
        name="sana", defaults=_steps(20, 4.5), sample=32, multiple=32, own_scheduler=FLOW, lacks=_NO_NOISE,
        readers=(("tokenizer", 300),),
    ),
    Family(
        class_name="AuraFlowPipeline",
        name="auraflow", dtype="fp16", defaults=_steps(50, 3.5), side=1024, patch=2, own_scheduler=FLOW, lacks=_NO_NOISE,
        readers=(("tokenizer", 256),),
    ),
    Family(
        class_name="LuminaPipeline",
        name="lumina-next", defaults=_steps(30, 4.0), patch=2, own_scheduler=FLOW, lacks=_NO_NOISE,
        readers=(("tokenizer", 256),),
    ),
    Family(
        class_name="Lumina2Pipeline",
        name="lumina-2", defaults=_steps(30, 4.0), patch=2, own_scheduler=FLOW, lacks=_NO_NOISE,
        readers=(("tokenizer", 256),), alone=True,
    ),
    Family(
        class_name="HunyuanDiTPipeline",
        name="hunyuan-dit", dtype="fp16", defaults=_steps(50, 5.0), patch=2,
        lacks=_without("clip_skip", "true_cfg_scale"), readers=(("tokenizer_2", 256), ("tokenizer", 77)),
    ),
    Family(
        class_name="Kandinsky3Pipeline",
        name="kandinsky-3", dtype="fp16", defaults=_steps(25, 3.0), denoiser="unet", autoencoder="movq", side=1024,
        multiple=64, tiles=False,
        own_scheduler="its pipeline knows its own alone", lacks=_NO_NOISE, readers=(("tokenizer", 128),), alone=True,
        starts={"image": "Kandinsky3Img2ImgPipeline"}, part="down",
    ),
    Family(
        class_name="QwenImagePipeline",
        name="qwen-image", defaults=_steps(50, 4.0), patch=2, guidance="true-cfg", own_scheduler=FLOW, lacks=_NO_NOISE,
        starts=_starts("QwenImage"),
        readers=(("tokenizer", 512),), alone=True, min_steps=2,
    ),
    Family(
        class_name="ZImagePipeline",
        name="z-image", defaults=_steps(50, 5.0), side=1024, patch=2, unguided=0.0, own_scheduler=FLOW, lacks=_NO_NOISE,
        starts=_starts("ZImage"),
        readers=(("tokenizer", 512),),
    ),
    Family(
        class_name="CogView3PlusPipeline",
        name="cogview3-plus", defaults=_steps(50, 5.0), patch=2,
        lacks=_NO_NOISE, readers=(("tokenizer", 224),),
        own_scheduler="its pipeline knows its own alone",
    ),
    Family(
        class_name="CogView4Pipeline",
        name="cogview4", defaults=_steps(50, 5.0), patch=2, multiple=16, own_scheduler=FLOW, lacks=_NO_NOISE,
        readers=(("tokenizer", 1024),), alone=True,
    ),
    Family(
        class_name="OvisImagePipeline",
        name="ovis-image", defaults=_steps(50, 5.0), patch=2, own_scheduler=FLOW, lacks=_NO_NOISE,
        readers=(("tokenizer", 256),),
    ),
    Family(
        class_name="SanaSprintPipeline",
        name="sana-sprint", defaults=_steps(2, 4.5), sample=32, multiple=32, guidance="built-in",
        own_scheduler="it was distilled to be drawn with its own (SCM)",
        lacks={**_NO_NOISE, "negative_prompt": NO_NEGATIVE}, readers=(("tokenizer", 300),),
        starts={"image": "SanaSprintImg2ImgPipeline"},
    ),
    Family(
        class_name="Krea2Pipeline",
        name="krea-2", defaults=_steps(28, 4.5), side=1024, patch=2, unguided=0.0, own_scheduler=FLOW, lacks=_NO_NOISE,
        readers=(("tokenizer", 512),),
    ),
    Family(
        class_name="KandinskyV22CombinedPipeline",
        name="kandinsky-2.2", dtype="fp16", defaults=_steps(50, 4.0), denoiser="unet", autoencoder="movq", side=512,
        multiple=64, slices=True, tiles=False, own_scheduler="its pipeline knows its own alone",
        lacks={**_NO_NOISE, "negative_prompt": "its pipeline of diffusers fails on it"},
        readers=(("prior_tokenizer", None),), starts={"image": "KandinskyV22Img2ImgCombinedPipeline"}, part="down",
        no_starts="that takes a network with more inputs, made for it",
    ),
)  # fmt: skip
FAMILIES = {f.class_name: f for f in _FAMILIES}
