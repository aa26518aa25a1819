"""Models in the single files that people share: a folder's weights under the names that their authors gave them."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests import models_on_disk as disk
from tests.models_on_disk import Tensors

if TYPE_CHECKING:
    import pytest

TEXT_2 = "text_encoder_2/model.safetensors"
TEXT_3 = "text_encoder_3/model.safetensors"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
IN_A_CHECKPOINT = "model.diffusion_model."
"""What stands before the keys of a UNet or a transformer in a file that may hold other parts as well."""
LENGTH = 77
"""CLIP's tokens."""


def sd2(folder: Path, to: Path) -> Path:
    """Write Stable Diffusion 2.x as one file, as Stability AI did."""
    text = _under("cond_stage_model.model.", _openclip(load_file(folder / disk.TEXT)))
    unused = {
        "alphas_cumprod": np.linspace(1, 0, 1000, dtype="float32"),
        "cond_stage_model.model.attn_mask": np.triu(np.full((LENGTH, LENGTH), -np.inf, "float32"), 1),
        "cond_stage_model.model.logit_scale": np.array(4.6, "float32"),
    }
    return _written(_unet_and_vae(folder) | text | unused, to)


def sdxl_model(to: Path) -> Path:
    """Save a tiny SDXL whose text encoders differ in width, by which diffusers tells them apart in one file."""
    import diffusers
    import torch

    from tests import families

    # The second one has the ten layers by which SDXL itself is known.
    pipeline = families.BUILDERS["StableDiffusionXLPipeline"]()
    torch.manual_seed(1)
    first, second = families.clip(width=16), families.clip(width=32, layers=10, projected=True, hidden_act="gelu")
    unet = diffusers.UNet2DConditionModel.from_config(
        pipeline.unet.config, cross_attention_dim=16 + 32, projection_class_embeddings_input_dim=6 * 8 + 32
    )
    parts = {"text_encoder": first, "text_encoder_2": second, "unet": unet}
    pipeline.register_modules(**{name: families.lively(part) for name, part in parts.items()})
    pipeline.save_pretrained(to)
    return to


def sdxl(folder: Path, to: Path) -> Path:
    """Write SDXL (see sdxl_model) as one file, as Stability AI did."""
    first = _clip(load_file(folder / disk.TEXT)) | {"text_model.embeddings.position_ids": np.arange(LENGTH)[None]}
    second = _openclip(load_file(folder / TEXT_2)) | {"logit_scale": np.array(4.6, "float32")}
    text = _under("conditioner.embedders.0.transformer.", first) | _under("conditioner.embedders.1.model.", second)
    return _written(_unet_and_vae(folder) | text | {"denoiser.sigmas": np.geomspace(0.03, 14, 1000)}, to)


def flux_transformer(folder: Path, to: Path, prefix: str = "") -> Path:
    """Write Flux's transformer alone, as Black Forest Labs did; with `prefix` IN_A_CHECKPOINT as ComfyUI does."""
    return _written(_under(prefix, _flux(load_file(folder / TRANSFORMER))), to)


def sd3_transformer(folder: Path, to: Path, prefix: str = IN_A_CHECKPOINT) -> Path:
    """Write Stable Diffusion 3's transformer alone, as Stability AI did."""
    return _written(_under(prefix, _sd3(load_file(folder / TRANSFORMER))), to)


def flux(folder: Path, to: Path) -> Path:
    """Write Flux with its text encoders and its autoencoder as one file, as ComfyUI does."""
    text = _clip_under("clip_l", folder / disk.TEXT)
    text |= _t5_under(folder / TEXT_2)
    transformer = _under(IN_A_CHECKPOINT, _flux(load_file(folder / TRANSFORMER)))
    return _written(transformer | text | _under("vae.", _vae(folder)), to)


def sd3_model(to: Path) -> Path:
    """Save a tiny Stable Diffusion 3 with CLIPs of two widths, the first one's projection being the identity."""
    import torch

    from tests import families

    pipeline = families.BUILDERS["StableDiffusion3Pipeline"]()
    torch.manual_seed(1)
    second = families.clip(width=8, projected=True, projection_dim=16, hidden_act="gelu")
    pipeline.register_modules(text_encoder_2=families.lively(second))
    torch.nn.init.eye_(pipeline.text_encoder.text_projection.weight)
    pipeline.save_pretrained(to)
    return to


def sd3(folder: Path, to: Path) -> Path:
    """Write Stable Diffusion 3 (see sd3_model) with its text encoders as one file, as Stability AI did."""
    text = _clip_under("clip_l", folder / disk.TEXT) | _clip_under("clip_g", folder / TEXT_2)
    text |= _t5_under(folder / TEXT_3)
    del text["text_encoders.clip_l.transformer.text_projection.weight"]
    transformer = _under(IN_A_CHECKPOINT, _sd3(load_file(folder / TRANSFORMER)))
    return _written(transformer | text | _under("first_stage_model.", _vae(folder)), to)


def gguf(folder: Path, to: Path, quantized: str = "Q8_0") -> Path:
    """Write the transformer of Flux or Stable Diffusion 3 as GGUF, as ComfyUI-GGUF does.

    Matrices whose rows are whole blocks are `quantized`, which is the name of one of GGUF's types or F16; other
    weights of two and more dimensions are F16, vectors F32.
    """
    from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import quantize

    kind = json.loads((folder / "transformer/config.json").read_text())["_class_name"]
    architecture, named = {"FluxTransformer2DModel": ("flux", _flux), "SD3Transformer2DModel": ("sd3", _sd3)}[kind]
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[quantized]]
    writer = GGUFWriter(to, architecture)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{quantized}"])
    for key, tensor in named(load_file(folder / TRANSFORMER)).items():
        if tensor.ndim == 1:
            held = GGMLQuantizationType.F32
        elif tensor.ndim == 2 and tensor.shape[1] % block == 0:
            held = GGMLQuantizationType[quantized]
        else:
            held = GGMLQuantizationType.F16
        writer.add_tensor(key, quantize(np.ascontiguousarray(tensor, "float32"), held), raw_dtype=held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def read_narrow_flux(monkeypatch: pytest.MonkeyPatch, width: int = 32) -> None:
    """Let diffusers read a tiny Flux transformer out of one file: its reader takes every one to be 3072 wide."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    how = SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    code = how["checkpoint_mapping_fn"].__code__
    assert code.co_consts.count(3072) == 1
    narrow = code.replace(co_consts=tuple(width if value == 3072 else value for value in code.co_consts))
    monkeypatch.setitem(
        how, "checkpoint_mapping_fn", types.FunctionType(narrow, how["checkpoint_mapping_fn"].__globals__)
    )


def _written(tensors: Tensors, to: Path) -> Path:
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, to)
    return to


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + k: v for k, v in tensors.items()}


def _renamed(key: str, names: dict[str, str]) -> str:
    for pattern, name in names.items():
        key = re.sub(pattern, name, key)
    return key


def _fused(tensors: Tensors, parts: tuple[str, ...], whole: str) -> Tensors:
    """Join linear layers that stand side by side into one."""
    joined = dict(tensors)
    for key in tensors:
        layer, _, end = key.rpartition(".")
        start = layer.removesuffix(parts[0])
        keys = [f"{start}{part}.{end}" for part in parts]
        if keys[0] == key and joined.keys() >= set(keys):
            joined[f"{start}{whole}.{end}"] = np.concatenate([joined.pop(k) for k in keys])
    return joined


def _swapped(tensor: Any) -> Any:
    """The authors' last modulations give a shift and a scale, diffusers' a scale and a shift."""
    return np.concatenate(np.split(tensor, 2)[::-1])


# Stable Diffusion 2.x and SDXL


def _unet_and_vae(folder: Path) -> Tensors:
    layers = json.loads((folder / "unet/config.json").read_text())["layers_per_block"]
    unet = load_file(folder / disk.UNET)
    attended = {int(k.split(".")[1]) for k in unet if k.startswith("up_blocks") and ".attentions." in k}
    named = {
        _renamed(k, _ADDED) if k.startswith("add_embedding") else disk._unet_key(k, layers, attended): v
        for k, v in unet.items()
    }
    return _under(IN_A_CHECKPOINT, named) | _under("first_stage_model.", _vae(folder))


def _vae(folder: Path) -> Tensors:
    vae = load_file(folder / disk.VAE)
    blocks = 1 + max(int(k.split(".")[2]) for k in vae if k.startswith("decoder.up_blocks"))
    return {disk._vae_key(k, blocks): disk._as_conv(k, v) for k, v in vae.items()}


_ADDED = {r"add_embedding\.linear_1": "label_emb.0.0", r"add_embedding\.linear_2": "label_emb.0.2"}


def _clip(text: Tensors) -> Tensors:
    """Return a CLIP text model under the names that it had before transformers 5.6."""
    return {k if k.startswith("text_") else f"text_model.{k}": v for k, v in text.items()}


def _clip_under(name: str, file: Path) -> Tensors:
    return _under(f"text_encoders.{name}.transformer.", _clip(load_file(file)))


def _t5_under(file: Path) -> Tensors:
    """Return T5 with its embedding twice, as it is shared; from one alone diffusers makes an encoder without one."""
    tensors = load_file(file)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    return _under("text_encoders.t5xxl.transformer.", tensors)


def _openclip(text: Tensors) -> Tensors:
    """Return a CLIP text model of transformers as OpenCLIP's."""
    for end in ("weight", "bias"):
        keys = [k for k in text if k.endswith(f"self_attn.q_proj.{end}")]
        for key in keys:
            three = [text.pop(key.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
            text[key.replace(f"q_proj.{end}", f"in_proj_{end}")] = np.concatenate(three)
    named = {_renamed(k, _OPENCLIP): v for k, v in text.items()}
    return {k: v.T if k == "text_projection" else v for k, v in named.items()}


_OPENCLIP = {
    r"^text_model\.": "",
    r"^embeddings\.token_embedding": "token_embedding",
    r"^embeddings\.position_embedding\.weight": "positional_embedding",
    r"^final_layer_norm": "ln_final",
    r"^text_projection\.weight": "text_projection",
    r"^encoder\.layers": "transformer.resblocks",
    r"\.layer_norm(\d)": r".ln_\1",
    r"\.mlp\.fc1": ".mlp.c_fc",
    r"\.mlp\.fc2": ".mlp.c_proj",
    r"\.self_attn": ".attn",
}


# Flux


def _flux(transformer: Tensors) -> Tensors:
    """Return Flux's transformer of diffusers as Black Forest Labs'."""
    three = ("attn.to_q", "attn.to_k", "attn.to_v")
    tensors = _fused(transformer, (*three, "proj_mlp"), "linear1")
    tensors = _fused(tensors, three, "img_attn.qkv")
    tensors = _fused(tensors, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv")
    return {_renamed(k, _FLUX): _swapped(v) if k.startswith("norm_out") else v for k, v in tensors.items()}


_FLUX = {
    r"^time_text_embed\.timestep_embedder": "time_in",
    r"^time_text_embed\.guidance_embedder": "guidance_in",
    r"^time_text_embed\.text_embedder": "vector_in",
    r"_in\.linear_1": "_in.in_layer",
    r"_in\.linear_2": "_in.out_layer",
    r"^x_embedder": "img_in",
    r"^context_embedder": "txt_in",
    r"^norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"^proj_out": "final_layer.linear",
    r"^(single_)transformer_blocks(\.\d+)\.norm\.linear": r"\1blocks\2.modulation.lin",
    r"^(single_)transformer_blocks(\.\d+)\.attn\.norm_": r"\1blocks\2.norm_",
    r"^(single_)transformer_blocks(\.\d+)\.proj_out": r"\1blocks\2.linear2",
    r"^(single_)transformer_blocks": r"\1blocks",
    r"^transformer_blocks": "double_blocks",
    r"\.norm1\.linear": ".img_mod.lin",
    r"\.norm1_context\.linear": ".txt_mod.lin",
    r"\.attn\.norm_added": ".txt_attn.norm",
    r"\.attn\.norm": ".img_attn.norm",
    r"\.norm_q\.weight": ".norm.query_norm.scale",
    r"\.norm_k\.weight": ".norm.key_norm.scale",
    r"\.attn\.to_out\.0": ".img_attn.proj",
    r"\.attn\.to_add_out": ".txt_attn.proj",
    r"\.ff\.net\.(\d)(\.proj)?": r".img_mlp.\1",
    r"\.ff_context\.net\.(\d)(\.proj)?": r".txt_mlp.\1",
}


# Stable Diffusion 3


def _sd3(transformer: Tensors) -> Tensors:
    """Return Stable Diffusion 3's transformer of diffusers as Stability AI's."""
    tensors = transformer
    for attention in ("attn", "attn2"):
        three = (f"{attention}.to_q", f"{attention}.to_k", f"{attention}.to_v")
        tensors = _fused(tensors, three, f"x_block.{attention}.qkv")
    tensors = _fused(tensors, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "context_block.attn.qkv")
    last = max(int(k.split(".")[1]) for k in tensors if k.startswith("transformer_blocks"))
    swapped = ("norm_out", f"transformer_blocks.{last}.norm1_context")
    return {_renamed(k, _SD3): _swapped(v) if k.startswith(swapped) else v for k, v in tensors.items()}


_SD3 = {
    r"^pos_embed\.pos_embed": "pos_embed",
    r"^pos_embed\.proj": "x_embedder.proj",
    r"^time_text_embed\.timestep_embedder": "t_embedder",
    r"^time_text_embed\.text_embedder": "y_embedder",
    r"_embedder\.linear_1": "_embedder.mlp.0",
    r"_embedder\.linear_2": "_embedder.mlp.2",
    r"^norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"^proj_out": "final_layer.linear",
    r"^transformer_blocks": "joint_blocks",
    r"\.norm1\.linear": ".x_block.adaLN_modulation.1",
    r"\.norm1_context\.linear": ".context_block.adaLN_modulation.1",
    r"\.attn\.norm_added_(q|k)": r".context_block.attn.ln_\1",
    r"\.(attn2?)\.norm_(q|k)": r".x_block.\1.ln_\2",
    r"\.(attn2?)\.to_out\.0": r".x_block.\1.proj",
    r"\.attn\.to_add_out": ".context_block.attn.proj",
    r"\.ff\.net\.0\.proj": ".x_block.mlp.fc1",
    r"\.ff\.net\.2": ".x_block.mlp.fc2",
    r"\.ff_context\.net\.0\.proj": ".context_block.mlp.fc1",
    r"\.ff_context\.net\.2": ".context_block.mlp.fc2",
}
