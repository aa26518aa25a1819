"""Folders in diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from sdcli.errors import BadInput, UsageError
from sdcli.models.families import FAMILIES
from sdcli.models.spec import Incomplete, Model
from sdcli.models.weights import check_weights, read_json


class UnetConfig(msgspec.Struct):
    """What is asked of unet/config.json; diffusers' own defaults."""

    in_channels: int = 4
    sample_size: int | tuple[int, int] | None = None
    cross_attention_dim: int | tuple[int, ...] | None = 1280


class VaeConfig(msgspec.Struct):
    """What is asked of vae/config.json."""

    class_name: str | None = msgspec.field(default=None, name="_class_name")
    block_out_channels: Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=8)] = (64,)
    latent_channels: int = 4

    @property
    def factor(self) -> int:
        return 1 << (len(self.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        return max(8, self.factor)  # diffusers wants multiples of 8 of any autoencoder


class _TextEncoder(msgspec.Struct):
    """What is asked of text_encoder/config.json; transformers' own default."""

    num_hidden_layers: int = 12


def of_folder(model: Model, checker: bool) -> Model:
    """Fill in what a folder in diffusers' layout says; refuse one that can't be loaded."""
    folder = model.path
    assert folder is not None
    if not (folder / "model_index.json").exists():
        raise BadInput(
            f"{folder} is no model: it has no model_index.json",
            "name a folder in diffusers' layout or a .safetensors file",
        )
    index = read_json(folder / "model_index.json", dict[str, Any])
    family = FAMILIES.get(str(index.get("_class_name")))
    if family is None:
        raise BadInput(
            f"{folder} is a {index.get('_class_name')}, which sdcli can't draw with",
            f"models of {', '.join(FAMILIES)} work",
        )
    _check_components(folder, index)
    has_checker = _library(index.get("safety_checker")) is not None
    if checker and not has_checker:
        raise no_checker(model)
    if checker:
        read_json(folder / "feature_extractor" / "preprocessor_config.json", dict[str, Any])
    facts = facts_of(folder)
    variant = check_weights(folder, parts_of(model, checker))
    return replace(model, family=family, variant=variant, **facts)


def no_checker(model: Model) -> UsageError:
    return UsageError(f"{model.name} has no safety checker", "leave --safety-checker out")


def parts_of(model: Model, checker: bool) -> tuple[str, ...]:
    """Return the components whose weights are loaded."""
    return ("text_encoder", "unet", *(["vae"] if model.vae is None else []), *(["safety_checker"] if checker else []))


def _library(component: Any) -> str | None:
    return str(component[0]) if isinstance(component, list) and component and component[0] is not None else None


def _check_components(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse a component that is not one of the libraries' own: its code would come from the model's folder."""
    for name, component in index.items():
        library = _library(component) if not name.startswith("_") else None
        if library not in (None, "diffusers", "transformers", "stable_diffusion"):
            raise BadInput(
                f"{folder} brings code of its own for its {name} ({library}), which is never run", "use another model"
            )


def facts_of(folder: Path) -> dict[str, Any]:
    """Return what the configurations in a folder say of pictures; Incomplete where one that loading needs is not there."""
    unet, vae = (
        read_json(folder / "unet" / "config.json", UnetConfig),
        read_json(folder / "vae" / "config.json", VaeConfig),
    )
    encoder = read_json(folder / "text_encoder" / "config.json", _TextEncoder)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", dict[str, Any])
    tokenizer = folder / "tokenizer"
    if (tokenizer / "tokenizer.json").exists():
        read_json(tokenizer / "tokenizer.json", dict[str, msgspec.Raw])
    elif not all((tokenizer / f).exists() for f in ("vocab.json", "merges.txt")):
        raise Incomplete(f"{folder} has no tokenizer", "a model's folder has the layout that diffusers saves")
    sample = unet.sample_size or 64
    height, width = sample if isinstance(sample, tuple) else (sample, sample)
    return {
        "size": (width * vae.factor, height * vae.factor),
        "multiple": vae.multiple,
        "scheduler": scheduler,
        "encoder_layers": encoder.num_hidden_layers,
    }
