"""Tiny adapters with random weights, in the layouts that people's files have, for whatever pipeline of diffusers they are given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CLIP = ("q_proj", "k_proj", "v_proj", "out_proj")
PARTS = {
    "unet": ATTENTION,
    "text_encoder": (*CLIP, "fc1", "fc2"),
    "text_encoder_2": CLIP,
    "transformer": ("to_q", "to_k"),
}
# What kohya's trainer calls the parts, where there is one text encoder and where there are two.
KOHYA = (
    {"unet": "lora_unet", "text_encoder": "lora_te"},
    {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
)


def layers(
    pipe: Any, parts: Iterable[str] = ("unet",), targets: Iterable[str] | None = None
) -> dict[str, tuple[int, int]]:
    """Return the linear layers of a pipeline that a LoRA changes, by part and name: inputs and outputs."""
    found = {}
    for part in parts:
        for name, module in getattr(pipe, part).named_modules():
            ends = tuple(f".{t}" for t in targets or PARTS[part])
            if isinstance(module, torch.nn.Linear) and name.endswith(ends):
                found[f"{part}.{name}"] = (module.in_features, module.out_features)
    assert found
    return found


def lora(
    layers: Mapping[str, tuple[int, int]],
    *,
    layout: str = "peft",
    rank: int = 2,
    alphas: Iterable[float] | None = None,
    seed: int = 0,
    size: float = 0.3,
    per_block: int | None = None,
) -> dict[str, torch.Tensor]:
    """Return a LoRA of random numbers: `layout` is peft (what diffusers saves), diffusers (its older one) or kohya.

    `alphas` go round the layers; kohya's alone has them. With `per_block`, the U-Net's layers in a block, kohya's names of them
    are those of SDXL's authors.
    """
    generator = torch.Generator().manual_seed(seed)
    names = KOHYA[any(name.startswith("text_encoder_2.") for name in layers)]
    cycle = list(alphas) if alphas is not None else []
    state = {}
    for at, (name, (inputs, outputs)) in enumerate(layers.items()):
        down = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
        up = torch.randn(outputs, rank, generator=generator) * size
        part, _, rest = name.partition(".")
        if layout == "kohya":
            # Its CLIP is transformers' as it was, with a `text_model` around it.
            rest = f"text_model.{rest.removeprefix('text_model.')}" if part.startswith("text") else rest
            rest = _sgm(rest, per_block) if part == "unet" and per_block else rest
            base = f"{names[part]}_{rest.replace('.', '_')}"
            state |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}
            if cycle:
                state[f"{base}.alpha"] = torch.tensor(float(cycle[at % len(cycle)]))
        elif layout == "diffusers":
            own = "lora_linear_layer" if part.startswith("text") else "lora"
            state |= {f"{name}.{own}.down.weight": down, f"{name}.{own}.up.weight": up}
        else:
            state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return state


def _sgm(name: str, per_block: int) -> str:
    def numbered(match: re.Match[str]) -> str:
        block, layer = int(match[2]), int(match[3])
        at = block * (per_block + 1) + layer
        return f"input_blocks.{at + 1}.1." if match[1] == "down" else f"output_blocks.{at}.1."

    name = re.sub(r"^(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.", numbered, name)
    return name.replace("mid_block.attentions.0.", "middle_block.1.")


def saved(state: Mapping[str, torch.Tensor], to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, to)
    return to


def embedding(width: int, count: int = 1, key: str = "emb_params", seed: int = 0) -> dict[str, torch.Tensor]:
    """Return an embedding in A1111's layout, or with a word as its key in diffusers'."""
    return {key: torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.5}


def controlnet(pipe: Any, seed: int = 0) -> Any:
    """Return a ControlNet for a pipeline's U-Net, whose zero convolutions are not zero."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32, 96, 256))
    with torch.no_grad():
        for part in (net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
            for weight in part.parameters():
                weight.normal_(0, 0.2)
    return net.eval()


RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0", "controlnet_cond_embedding.conv_out": "input_hint_block.14",
    "controlnet_mid_block": "middle_block_out.0",
}  # fmt: skip


def as_authors_named(net: Any) -> dict[str, torch.Tensor]:
    """Return a ControlNet's weights under the names that its authors gave them (lllyasviel/ControlNet)."""
    per_block = net.config.layers_per_block + 1

    def resnet(rest: str) -> str:
        first, _, last = rest.partition(".")
        return f"{RESNET[first]}.{last}"

    def name(key: str) -> str:
        base, _, end = key.rpartition(".")
        if base in ENDS:
            return f"{ENDS[base]}.{end}"
        if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.+)", key):
            block, what, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
            at = 1 + block * per_block + (per_block - 1 if what == "downsamplers" else layer)
            inner = {"resnets": 0, "attentions": 1, "downsamplers": 0}[what]
            rest = (
                resnet(rest) if what == "resnets" else rest.replace("conv.", "op.") if what == "downsamplers" else rest
            )
            return f"input_blocks.{at}.{inner}.{rest}"
        if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", key):
            at = int(match[2]) * 2 + (match[1] == "attentions")
            return f"middle_block.{at}.{resnet(match[3]) if match[1] == 'resnets' else match[3]}"
        if match := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)\.(.+)", key):
            return f"input_hint_block.{2 * (int(match[1]) + 1)}.{match[2]}"
        match = re.match(r"controlnet_down_blocks\.(\d+)\.(.+)", key)
        assert match, key
        return f"zero_convs.{match[1]}.0.{match[2]}"

    return {f"control_model.{name(key)}": weight for key, weight in net.state_dict().items()}


def image_encoder(to: Path, width: int = 16, seed: int = 0) -> Path:
    """Save an image encoder that gives `width` numbers."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=width,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).eval().save_pretrained(to)
    return to


def ip_adapter(pipe: Any, to: Path, width: int = 16, seed: int = 0, size: float = 0.5) -> Path:
    """Save an IP-Adapter of random numbers in its authors' layout, for an image encoder that gives `width` numbers."""
    generator = torch.Generator().manual_seed(seed)
    words = pipe.unet.config.cross_attention_dim
    state = {
        "image_proj.proj.weight": torch.randn(4 * words, width, generator=generator) * width**-0.5,
        "image_proj.proj.bias": torch.zeros(4 * words),
        "image_proj.norm.weight": torch.ones(words),
        "image_proj.norm.bias": torch.zeros(words),
    }
    for at, name in enumerate(pipe.unet.attn_processors):
        if name.endswith("attn2.processor"):
            attention = pipe.unet.get_submodule(name.removesuffix(".processor"))
            for what in ("to_k_ip", "to_v_ip"):
                shape = attention.to_k.weight.shape
                state[f"ip_adapter.{at}.{what}.weight"] = torch.randn(shape, generator=generator) * size * words**-0.5
    return saved(state, to)
