"""Distilled models are told by what they say of themselves, get the settings of their cards, and say what ruins them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sdcli import schedulers
from sdcli.models import FAMILIES, ModelSpec, distilled, find, known
from sdcli.models.distilled import KINDS, defaults, of, of_lora, ruins
from sdcli.models.spec import Model
from sdcli.request import Adapter, GenerationRequest
from tests import models_on_disk as disk

LEADING = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "beta_schedule": "scaled_linear"}
TRAILING = {**LEADING, "timestep_spacing": "trailing"}
LCM = {"_class_name": "LCMScheduler", "beta_schedule": "scaled_linear"}


def model(name: str, family: str = "StableDiffusionXLPipeline", **more: Any) -> Model:
    """A model on the hub where its name has an owner, else of a file."""
    made = Model(name=name, family=FAMILIES[family], scheduler=more.pop("scheduler", LEADING), **more)
    return replace(made, repo=name) if "/" in name else replace(made, path=Path("models", name))


def asked(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "a cat", "num_inference_steps": 4, "guidance_scale": 0.0, **fields})


# Telling


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [
        ("stabilityai/sd-turbo", "turbo", None), ("stabilityai/sdxl-turbo", "turbo", None),
        ("sd_xl_turbo_1.0_fp16.safetensors", "turbo", None), ("dreamshaperXL_v21TurboDPMSDE.safetensors", "turbo", None),
        ("TurboVisionXL.safetensors", "turbo", None), ("Lykon/dreamshaper-xl-v2-turbo", "turbo", None),
        ("stabilityai/stable-diffusion-3.5-large-turbo", "turbo", None), ("Tongyi-MAI/Z-Image-Turbo", "turbo", None),
        ("SimianLuo/LCM_Dreamshaper_v7", "lcm", None), ("PixArt-alpha/PixArt-LCM-XL-2-1024-MS", "lcm", None),
        ("ByteDance/SDXL-Lightning", "lightning", None), ("sdxl_lightning_4step.safetensors", "lightning", 4),
        ("sdxl_lightning_2step_unet.safetensors", "lightning", 2), ("rupeshs/SDXL-Lightning-2steps", "lightning", 2),
        ("realvisxlV40_v40LightningBakedvae.safetensors", "lightning", None),
        ("ByteDance/Hyper-SD", "hyper", None), ("Hyper-SDXL-1step-Unet.safetensors", "hyper", 1),
        ("Juggernaut_X_Hyper.safetensors", "hyper", None), ("RealVisXL_V4.0_Hyper_fp16.safetensors", "hyper", None),
        ("black-forest-labs/FLUX.1-schnell", "schnell", None), ("flux1-schnell.safetensors", "schnell", None),
        # Parts of words, what it shows, and who owns it.
        ("hyper-realistic-v3.safetensors", None, None), ("turbocharged.safetensors", None, None),
        ("Lightning-AI/photos", None, None), ("stabilityai/stable-diffusion-xl-base-1.0", None, None),
        ("film_lcmt.safetensors", None, None), ("enlightening.safetensors", None, None), ("steps-25", None, None),
    ],
)  # fmt: skip
def test_a_name_tells(name: str, kind: str | None, steps: int | None) -> None:
    found = of(model(name))
    assert (found.kind if found else None, found.steps if found else None) == (kind, steps)


@pytest.mark.parametrize(
    ("name", "kind", "steps", "keeps"),
    [
        ("latent-consistency/lcm-lora-sdv1-5", "lcm", None, False), ("lcm-lora-sdv1-5", "lcm", None, False),
        ("LCM_LoRA_Weights_SD15.safetensors", "lcm", None, False),
        ("sdxl_lightning_4step_lora", "lightning", 4, False),
        ("ByteDance/SDXL-Lightning/sdxl_lightning_8step_lora.safetensors", "lightning", 8, False),
        ("Hyper-SD15-8steps-lora", "hyper", 8, False), ("Hyper-SDXL-8steps-CFG-lora.safetensors", "hyper", 8, True),
        ("ByteDance/Hyper-SD/Hyper-SDXL-1step-lora.safetensors", "hyper", 1, False),
        ("h1t/TCD-SDXL-LoRA", "tcd", None, False), ("tianweiy/DMD2/dmd2_sdxl_4step_lora.safetensors", "dmd", 4, False),
        ("pcm_sdxl_normalcfg_8step_converted", "pcm", 8, True), ("sd_xl_turbo_lora_v1.safetensors", "turbo", None, False),
        ("loras/lcm-lora-sdxl.safetensors", "lcm", None, False), ("/a/turbo/b/lcm.safetensors", "lcm", None, False),
        ("porsche-911-turbo", None, None, False), ("lightning-bolts.safetensors", None, None, False),
        ("hyper-detailer", None, None, False), ("/a/lcm/ink.safetensors", None, None, False), ("lcm/ink", None, None, False),
        ("ink.safetensors", None, None, False), ("", None, None, False),
    ],
)  # fmt: skip
def test_a_lora_s_name_tells(name: str, kind: str | None, steps: int | None, keeps: bool) -> None:
    found = of_lora(name)
    assert (found.kind, found.steps, found.keeps) == (kind, steps, keeps) if found else (kind, steps) == (None, None)


def test_configurations_tell(tmp_path: Path) -> None:
    assert of(model("a.safetensors", scheduler=LCM)) == distilled.Distilled(kind="lcm")
    assert of(model("a.safetensors", scheduler={"_class_name": "TCDScheduler"})) == distilled.Distilled(kind="tcd")
    # Models of zero terminal SNR want trailing steps, and are not distilled.
    assert of(model("a.safetensors", scheduler=TRAILING)) is None
    assert of(model("a.safetensors", "FluxPipeline", guided=False)) == distilled.Distilled(kind="schnell")
    assert of(model("a.safetensors", "FluxPipeline")) is None
    folder = disk.demo(tmp_path / "a")
    assert of(find(ModelSpec(model=str(folder)))) is None
    embedded = disk.demo(tmp_path / "b")
    disk.edit_json(embedded / "unet" / "config.json", time_cond_proj_dim=256)
    found = of(find(ModelSpec(model=str(embedded))))
    assert found == distilled.Distilled(kind="lcm", embedded=True)
    (tmp_path / "c").mkdir()
    assert not distilled._is_embedded(tmp_path / "c" / "config.json")


# What they want


@pytest.mark.parametrize(
    ("name", "family", "scheduler", "wants"),
    [
        # The cards'; a scheduler where the model's own does not fit.
        ("sdxl_lightning_4step.safetensors", "StableDiffusionXLPipeline", LEADING, (4, 0.0, "euler-sgm-uniform")),
        ("sdxl_lightning_8step.safetensors", "StableDiffusionXLPipeline", TRAILING, (8, 0.0, None)),
        ("org/sdxl-lightning", "StableDiffusionXLPipeline", None, (4, 0.0, None)),
        ("sd_xl_turbo_1.0.safetensors", "StableDiffusionXLPipeline", LEADING, (4, 0.0, "euler-a-sgm-uniform")),
        ("dreamshaper-lcm.safetensors", "StableDiffusionPipeline", {"_class_name": "PNDMScheduler"}, (4, 1.0, "lcm")),
        ("a.safetensors", "StableDiffusionPipeline", LCM, (4, 1.0, None)),
        ("Hyper-SD15-8steps.safetensors", "StableDiffusionPipeline", LEADING, (8, 0.0, "ddim")),
        ("Hyper-SDXL-1step-Unet.safetensors", "StableDiffusionXLPipeline", LEADING, (1, 0.0, "tcd")),
        ("org/Hyper-SDXL-8steps-CFG", "StableDiffusionXLPipeline", LEADING, (8, 5.0, "ddim")),
        # Other families keep their scheduler, and a guidance that is built in.
        ("org/sd35-turbo", "StableDiffusion3Pipeline", {"shift": 3.0}, (4, 0.0, None)),
        ("org/z-image-turbo-x", "ZImagePipeline", {"shift": 3.0}, (8, 0.0, None)),
        ("org/qwen-image-lightning-4steps", "QwenImagePipeline", {}, (4, 1.0, None)),
        ("org/flux-schnell-x", "FluxPipeline", {}, (4, None, None)),
        ("org/flux-turbo", "FluxPipeline", {}, (8, None, None)),
        # Families of nothing else, and what is not distilled, say it themselves.
        ("org/lcm-x", "LatentConsistencyModelPipeline", LCM, None),
        ("org/x", "StableDiffusionXLPipeline", TRAILING, None),
    ],
)  # fmt: skip
def test_what_they_want(
    name: str, family: str, scheduler: dict[str, Any] | None, wants: tuple[Any, ...] | None
) -> None:
    fields = zip(("num_inference_steps", "guidance_scale", "scheduler"), wants or (), strict=bool(wants))
    assert defaults(model(name, family, scheduler=scheduler)) == {k: v for k, v in fields if v is not None}


def test_an_embedded_guidance_is_wanted(tmp_path: Path) -> None:
    folder = disk.demo(tmp_path / "a")
    disk.edit_json(folder / "unet" / "config.json", time_cond_proj_dim=256)
    wants = defaults(find(ModelSpec(model=str(folder))))
    assert wants == {"num_inference_steps": 4, "guidance_scale": 8.0, "scheduler": "lcm"}


def test_a_copy_of_the_demo_model_wants_what_its_name_says(tmp_path: Path) -> None:
    folder = disk.demo(tmp_path / "demo-lightning-2step")
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["timestep_spacing"] != "trailing"
    found = find(ModelSpec(model=str(folder)))
    assert defaults(found) == {"num_inference_steps": 2, "guidance_scale": 0.0, "scheduler": "euler-sgm-uniform"}
    assert defaults(find(ModelSpec(model="demo"))) == {}


def test_models_that_are_not_here_yet_want_nothing() -> None:
    assert defaults(Model(name="x/sdxl-lightning", repo="x/sdxl-lightning")) == {}


def test_the_tables_agree() -> None:
    for kind in KINDS.values():
        if kind.scheduler is not None:
            assert schedulers.find(kind.scheduler).name == kind.scheduler
        assert all(schedulers.find(name).name == name for name in kind.fits)
    names = {s.name for s in schedulers.SCHEDULERS}
    trailing = {n for n in names if schedulers.find(n).settings.get("timestep_spacing") == "trailing"}
    assert {n for n in names if n.endswith(distilled.TRAILING)} == trailing - {"ddim", "ddpm"}
    assert all(
        bool(distilled._OWN_SIGMAS.search(n)) == any(k.startswith("use_") for k in schedulers.find(n).settings)
        for n in names
    )
    # Of the known models, those of few steps are told, and no other; and what the table says of them does not ruin them.
    for row in known.KNOWN:
        told = Model(name=row.alias, repo=row.repo, family=FAMILIES[row.family], defaults=row.defaults)
        assert (of(told) is not None) == (row.wants("num_inference_steps") <= 8), row.alias
        fields = {f: row.wants(f) for f in ("num_inference_steps", "guidance_scale")}
        assert ruins(asked(**fields), told) == (), row.alias


# What ruins them


@pytest.mark.parametrize(
    ("name", "fields", "reasons"),
    [
        ("stabilityai/sdxl-turbo", {}, []),
        ("stabilityai/sdxl-turbo", {"guidance_scale": 1.0, "num_inference_steps": 12}, []),
        ("stabilityai/sdxl-turbo", {"guidance_scale": 1.5}, ["guidance scale of 1 at most: 1.5"]),
        ("org/dreamshaper-turbo", {"guidance_scale": 2.0, "scheduler": "dpm++sde-karras", "num_inference_steps": 8}, []),
        ("org/dreamshaper-turbo", {"guidance_scale": 7.5}, ["guidance scale of 2 at most: 7.5"]),
        ("stabilityai/sdxl-turbo", {"num_inference_steps": 25}, ["25 steps"]),
        ("stabilityai/sdxl-turbo", {"num_inference_steps": 25, "init_image": "x.png", "strength": 0.4}, []),
        ("stabilityai/sdxl-turbo", {"num_inference_steps": 40, "init_image": "x.png", "strength": 0.5}, ["20 steps"]),
        ("a_hyper_16steps.safetensors", {"num_inference_steps": 24}, []),
        ("sdxl_lightning_4step.safetensors", {"scheduler": "dpm++2m-karras"}, ["scheduler dpm++2m-karras is not for"]),
        ("sdxl_lightning_4step.safetensors", {"scheduler": "heun-sgm-uniform"}, []),
        ("sdxl_lightning_4step.safetensors", {"scheduler": "euler"}, ["scheduler euler is not for"]),
        ("an-lcm.safetensors", {"scheduler": "euler", "guidance_scale": 2.0}, ["scheduler euler is not for"]),
        ("an-lcm.safetensors", {"scheduler": "lcm", "guidance_scale": 2.5}, ["guidance scale of 2 at most: 2.5"]),
        (
            "an-lcm.safetensors", {"scheduler": "pndm", "guidance_scale": 7.5, "num_inference_steps": 30},
            ["30 steps", "at most: 7.5", "scheduler pndm"],
        ),
        ("an-ordinary.safetensors", {"scheduler": "pndm", "guidance_scale": 7.5, "num_inference_steps": 30}, []),
        ("an-ordinary.safetensors", {"num_inference_steps": 2}, []),
    ],
)  # fmt: skip
def test_what_ruins_a_model(name: str, fields: dict[str, Any], reasons: list[str]) -> None:
    told = ruins(asked(**fields), model(name))
    assert len(told) == len(reasons) and all(r in t for r, t in zip(reasons, told, strict=True)), told
    assert all(t.startswith(f"{model(name).shown_name} is a") for t in told)


def test_a_model_s_own_trailing_steps_are_handed_on() -> None:
    turbo = model("stabilityai/sdxl-turbo", scheduler=TRAILING)
    assert ruins(asked(scheduler="euler"), turbo) == ()
    assert len(ruins(asked(scheduler="euler-karras"), turbo)) == 1


@pytest.mark.parametrize(
    ("lora", "fields", "reasons"),
    [
        ("lcm-lora-sdv1-5", {"scheduler": "lcm", "guidance_scale": 1.5}, []),
        ("lcm-lora-sdv1-5", {"scheduler": "lcm", "guidance_scale": 7.5, "num_inference_steps": 25}, ["25 steps", "2 at most"]),
        ("lcm-lora-sdv1-5", {}, ["the model's own scheduler is not for: --scheduler lcm is"]),
        ("lcm-lora-sdv1-5:0", {"guidance_scale": 7.5}, []),
        ("ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors", {"scheduler": "euler-sgm-uniform"}, []),
        ("Hyper-SDXL-8steps-CFG-lora", {"scheduler": "ddim", "guidance_scale": 7.0, "num_inference_steps": 8}, []),
        ("Hyper-SDXL-8steps-lora", {"scheduler": "ddim", "guidance_scale": 7.0, "num_inference_steps": 8}, ["2 at most: 7"]),
        ("ink", {"guidance_scale": 7.5, "num_inference_steps": 25}, []),
    ],
)  # fmt: skip
def test_what_ruins_a_lora(lora: str, fields: dict[str, Any], reasons: list[str]) -> None:
    name, _, scale = lora.partition(":")
    request = asked(lora=(Adapter(name="other"), Adapter(name=name, scale=float(scale or 1))), **fields)
    told = ruins(request, model("an-ordinary.safetensors"))
    assert len(told) == len(reasons) and all(r in t for r, t in zip(reasons, told, strict=True)), told
    stem = Path(name).name.removesuffix(".safetensors")
    assert all(t.startswith(f"{stem} is a ") and " LoRA" in t for t in told)


def test_guidance_that_is_built_in_ruins_nothing() -> None:
    request = asked(guidance_scale=8.0)
    assert ruins(request, model("SimianLuo/LCM_Dreamshaper_v7", "LatentConsistencyModelPipeline", scheduler=LCM)) == ()
    assert (
        ruins(
            asked(guidance_scale=3.5, lora=(Adapter(name="Hyper-FLUX.1-dev-8steps-lora"),)), model("x", "FluxPipeline")
        )
        == ()
    )
    # What guidance has no effect on is refused elsewhere.
    assert ruins(request, model("org/flux-schnell", "FluxPipeline", guided=False)) == ()
