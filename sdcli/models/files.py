"""Single-file checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sdcli.errors import BadInput
from sdcli.models.cache import cached
from sdcli.models.families import FAMILIES
from sdcli.models.folders import Denoiser, no_checker, of_index, with_facts
from sdcli.models.known import DEFAULT
from sdcli.models.spec import Incomplete, Model
from sdcli.models.weights import channels_of, read_json, shapes_of

_UNET_KEY = "model.diffusion_model.input_blocks.0.0.weight"


def of_file(model: Model, checker: bool) -> Model:
    """Fill in what a single-file checkpoint in the original layout says of itself, and where its configuration is."""
    file = model.path
    assert file is not None
    if file.suffix.lower() != ".safetensors":
        raise BadInput(f"{file} is no .safetensors file", "name a .safetensors file or a folder in diffusers' layout")
    shapes = shapes_of(file)
    if _UNET_KEY not in shapes or any(k.startswith("conditioner.embedders.1.") for k in shapes):
        raise BadInput(
            f"{file} is no Stable Diffusion 1.x or 2.x checkpoint", "other families' single files are not read yet"
        )
    if channels_of(shapes, _UNET_KEY) != 4:
        raise BadInput(
            f"{file} does not draw from text alone (an inpainting model?)", "use the model that it was made from"
        )
    if not any(k.startswith("cond_stage_model.") for k in shapes):
        raise BadInput(f"{file} has no text encoder", "use a checkpoint that is whole")
    if model.vae is None and not any(k.startswith("first_stage_model.") for k in shapes):
        raise BadInput(f"{file} has no autoencoder", "give one with --vae")
    if checker:
        raise no_checker(model)
    config = _config_of_file(file, shapes)
    model = replace(model, family=FAMILIES["StableDiffusionPipeline"], config=config)
    return with_facts(of_index(model, config, checker), config) if config else model


def _config_of_file(file: Path, shapes: Mapping[str, Sequence[int]]) -> Path | None:
    """Return the folder with a checkpoint's configuration: one beside it, or the default model's; None: neither here."""
    key = next((k for k in shapes if k.startswith("model.diffusion_model.") and k.endswith("attn2.to_k.weight")), "")
    width = channels_of(shapes, key)
    for folder in (file.with_suffix(""), file.parent):
        if (folder / "model_index.json").exists():
            if _text_width(folder) != width:
                raise BadInput(
                    f"the configuration in {folder} is another model's than {file}", "put the right one beside it"
                )
            return folder
    # The text encoders of Stable Diffusion 1.x are 768 wide, those of 2.x 1024.
    if width != 768:
        places = f"{file.with_suffix('')}/ and {file.parent}/"
        raise BadInput(
            f"{file} is no Stable Diffusion 1.x checkpoint, and its configuration is not beside it (looked in {places})",
            "put the model_index.json and the folders of a model in diffusers' layout there; weights are not needed",
        )
    folder_in_cache = cached(DEFAULT, None, "model_index.json")
    try:
        if folder_in_cache is not None:
            with_facts(of_index(Model(name=DEFAULT), folder_in_cache, checker=False), folder_in_cache)
        return folder_in_cache
    except Incomplete:
        return None


def _text_width(configs: Path) -> int | None:
    dim = read_json(configs / "unet" / "config.json", Denoiser).cross_attention_dim
    return dim if isinstance(dim, int) else next(iter(dim or ()), None)
