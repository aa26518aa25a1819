"""Models to test with: the bundled one, changed on disk."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

DEMO = Path(__file__).parent.parent / "sdcli" / "demo"
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
Tensors = dict[str, np.ndarray[Any, Any]]


def demo(to: Path) -> Path:
    """Copy the bundled model."""
    return Path(shutil.copytree(DEMO, to))


def edit_json(file: Path, **values: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    found = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def edit_tensors(file: Path, change: Callable[[Tensors], Tensors], to: Path | None = None) -> Path:
    """Write a weight file anew with its tensors changed; under another name where `to` is given, and then only there."""
    tensors = change(load_file(file))
    if to is not None:
        file.unlink()
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, to or file, {"format": "pt"})
    return to or file


def cast(dtype: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in tensors.items()}


def filled(key: str, value: float) -> Callable[[Tensors], Tensors]:
    """Fill the one tensor whose name ends in `key`."""

    def change(tensors: Tensors) -> Tensors:
        (name,) = [k for k in tensors if k.endswith(key)]
        return tensors | {name: np.full_like(tensors[name], value)}

    return change


def without(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if key not in k}


def as_variant(folder: Path, variant: str = "fp16") -> Path:
    """Turn a folder's weights into half-precision ones under a variant's names."""
    for name in (UNET, VAE, TEXT):
        file = folder / name
        edit_tensors(file, cast("float16"), to=file.with_suffix(f".{variant}.safetensors"))
    return folder


def cut(file: Path, by: int = 1000) -> None:
    """Take bytes off a file's end."""
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - by)


# The original (latent-diffusion) layout of a whole checkpoint in one file


def checkpoint(folder: Path, to: Path) -> Path:
    """Write a folder's weights as one file in the original layout, as A1111's users share them."""
    layers = json.loads((folder / "unet/config.json").read_text())["layers_per_block"]
    unet, vae, text = (load_file(folder / name) for name in (UNET, VAE, TEXT))
    attended = {int(k.split(".")[1]) for k in unet if k.startswith("up_blocks") and ".attentions." in k}
    blocks = 1 + max(int(k.split(".")[2]) for k in vae if k.startswith("decoder.up_blocks"))
    whole = {"model.diffusion_model." + _unet_key(k, layers, attended): v for k, v in unet.items()}
    whole |= {"first_stage_model." + _vae_key(k, blocks): _as_conv(k, v) for k, v in vae.items()}
    whole |= {"cond_stage_model.transformer.text_model." + k.removeprefix("text_model."): v for k, v in text.items()}
    save_file({k: np.ascontiguousarray(v) for k, v in whole.items()}, to)
    return to


_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _unet_key(key: str, layers: int, attended: set[int]) -> str:
    """Return a key of diffusers' UNet as latent-diffusion's."""
    start, _, end = key.rpartition(".")
    if start in _UNET_ENDS:
        return f"{_UNET_ENDS[start]}.{end}"
    where, block, kind, index, rest = re.fullmatch(  # type: ignore[union-attr]
        r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)", key
    ).groups()
    if kind == "resnets":
        name, _, tail = rest.partition(".")
        rest = f"{_RESNET[name]}.{tail}"
    if where == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{rest}"
    place = {"resnets": 0, "attentions": 1}.get(kind)
    if where == "down_blocks":
        number = 1 + int(block) * (layers + 1) + (layers if place is None else int(index))
        return f"input_blocks.{number}.{place or 0}.{rest.replace('conv.', 'op.') if place is None else rest}"
    number = int(block) * (layers + 1) + (layers if place is None else int(index))
    return f"output_blocks.{number}.{(2 if int(block) in attended else 1) if place is None else place}.{rest}"


def _vae_key(key: str, blocks: int) -> str:
    """Return a key of diffusers' autoencoder as latent-diffusion's."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        key = key.replace("to_out.0", "proj_out").replace("to_q", "q").replace("to_k", "k").replace("to_v", "v")
    return key


def _as_conv(key: str, tensor: Any) -> Any:
    """The original autoencoder's attention is made of convolutions of one pixel."""
    return tensor[:, :, None, None] if "attentions" in key and tensor.ndim == 2 else tensor


def configuration(folder: Path, to: Path) -> Path:
    """Copy what a model's folder has besides the weights."""
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True))


# The safety checker


def with_checker(folder: Path, *, flags: bool) -> Path:
    """Give a model's folder a tiny safety checker that flags every picture, or none."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = small | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config=small, projection_dim=8))
    for limits in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        # Above a cosine's range, or below it.
        limits.data.fill_(-2.0 if flags else 2.0)
    checker.save_pretrained(folder / "safety_checker")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "feature_extractor"
    )
    edit_json(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        # As models of 2022 say it: transformers 5 has no such class.
        feature_extractor=["transformers", "CLIPFeatureExtractor"],
    )
    return folder


# Models that are looked at and never loaded


def hollow(to: Path) -> Path:
    """Write a model's folder with weight files that hold nothing."""
    configuration(DEMO, to)
    for name in (UNET, VAE, TEXT):
        save_file({}, to / name)
    return to


def hollow_checkpoint(
    to: Path, *, channels: int = 4, width: int = 128, leave_out: str = "none", more: str = "none"
) -> Path:
    """Write the few tensors by which a checkpoint in the original layout is known."""
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (1, channels, 1, 1),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1, width),
        "first_stage_model.decoder.conv_in.weight": (1, 4, 1, 1),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": (1,),
        more: (1,),
    }
    save_file({k: np.zeros(shape, "float32") for k, shape in shapes.items() if not k.startswith(leave_out)}, to)
    return to
