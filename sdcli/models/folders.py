"""Folders in diffusers' layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from sdcli.errors import BadInput, UsageError, nearest
from sdcli.models.families import FAMILIES, Family
from sdcli.models.spec import Incomplete, Model
from sdcli.models.weights import check_weights, read_json

# Components that drawing from text does without.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")
_NO_WEIGHTS = re.compile(r"Tokenizer|Processor|FeatureExtractor|Scheduler$")
_TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("tokenizer.model",),
    ("vocab.txt",),
)


class Denoiser(msgspec.Struct):
    """What is asked of the configuration of the network that predicts noise; diffusers' own defaults."""

    in_channels: int = 4
    sample_size: int | tuple[int, int] | None = None
    cross_attention_dim: int | tuple[int, ...] | None = 1280
    guidance_embeds: bool = True
    num_layers: int | None = None


class VaeConfig(msgspec.Struct):
    """What is asked of an autoencoder's configuration. Each class says in its own words how often it halves the sides."""

    class_name: str | None = msgspec.field(default=None, name="_class_name")
    block_out_channels: Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=8)] = (64,)
    encoder_block_out_channels: Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=8)] | None = None
    temperal_downsample: Annotated[tuple[bool, ...], msgspec.Meta(max_length=8)] | None = None
    latent_channels: int = 4

    @property
    def factor(self) -> int:
        if self.temperal_downsample is not None:
            return int(2 ** len(self.temperal_downsample))
        return 1 << (len(self.encoder_block_out_channels or self.block_out_channels) - 1)


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
    model = of_index(model, folder, checker)
    if checker:
        read_json(folder / "feature_extractor" / "preprocessor_config.json", dict[str, Any])
    model = with_facts(model, folder)
    assert model.family is not None
    # What another program has put into the hub's cache besides is not taken instead.
    prefer = model.family.variants if model.repo is not None else ()
    return replace(model, variant=check_weights(folder, parts_of(model, checker), prefer))


def of_index(model: Model, folder: Path, checker: bool) -> Model:
    """Fill in what model_index.json says: the family and the components; refuse what sdcli can't draw with."""
    index = read_json(folder / "model_index.json", dict[str, Any])
    class_name = str(index.get("_class_name"))
    family = FAMILIES.get(class_name)
    if family is None:
        raise BadInput(
            f"{folder} is a {class_name}, which sdcli can't draw with{nearest(class_name, FAMILIES)}",
            f"models of {', '.join(FAMILIES)} work",
        )
    found = {
        name: (str(part[0]), str(part[1]))
        for name, part in index.items()
        if not name.startswith("_") and isinstance(part, list) and len(part) == 2 and part[0] is not None
    }
    _check_components(folder, found)
    if checker and ("safety_checker" not in found or class_name != "StableDiffusionPipeline"):
        raise no_checker(model)
    # FLUX.1-schnell and FLUX.2-klein say in different places that guidance was distilled away.
    guided = index.get("is_distilled") is not True
    return replace(model, family=family, components=found, guided=guided)


def no_checker(model: Model) -> UsageError:
    return UsageError(f"{model.name} has no safety checker that sdcli could ask", "leave --safety-checker out")


def parts_of(model: Model, checker: bool) -> tuple[str, ...]:
    """Return the components whose weights are loaded."""
    left_out = {n for n in LEFT_OUT if not (checker and n == "safety_checker")}
    if model.vae is not None:
        left_out.add("vae")
    return tuple(n for n, (_, kind) in model.components.items() if n not in left_out and not _NO_WEIGHTS.search(kind))


def folder_parts(model: Model) -> tuple[str, ...]:
    """Return the components whose weights come from a folder in diffusers' layout."""
    if model.single_file and not model.alone:
        return ()
    assert model.family is not None
    return tuple(p for p in parts_of(model, checker=False) if not (model.alone and p == model.family.denoiser))


def texts_of(model: Model, checker: bool) -> tuple[str, ...]:
    """Return the components whose configurations and vocabularies are loaded."""
    left_out = set(LEFT_OUT) - ({"safety_checker", "feature_extractor"} if checker else set())
    return tuple(n for n in model.components if n not in left_out)


def _check_components(folder: Path, components: Mapping[str, tuple[str, str]]) -> None:
    """Refuse a component that is not one of the libraries' own: its code would come from the model's folder."""
    for name, (library, kind) in components.items():
        # Auto classes are found out from files of the model, which may name code beside them.
        if kind.startswith("Auto") and not kind.startswith("Autoencoder"):
            raise BadInput(
                f"{folder} does not say which class its {name} is of ({kind}), and could bring code of its own, which is never run",
                "use another model",
            )
        if library not in ("diffusers", "transformers") and library not in _pipelines():
            raise BadInput(
                f"{folder} brings code of its own for its {name} ({library}), which is never run", "use another model"
            )


@cache
def _pipelines() -> frozenset[str]:
    """Return the names of diffusers' folders of pipelines, some of which have components of their own."""
    spec = find_spec("diffusers")
    places = (spec.submodule_search_locations if spec is not None else None) or []
    return frozenset(d.name for place in places for d in (Path(place) / "pipelines").iterdir() if d.is_dir())


def with_facts(model: Model, folder: Path) -> Model:
    """Fill in what the configurations in a folder say of pictures; Incomplete where one that loading needs is not there."""
    family = model.family
    assert family is not None
    for name, (_, kind) in model.components.items():
        if name in texts_of(model, checker=False) and "Tokenizer" in kind:
            _check_tokenizer(folder, name)
    denoiser = read_json(folder / family.denoiser / "config.json", Denoiser)
    vae = read_json(folder / family.autoencoder / "config.json", VaeConfig)
    layers = None
    if "clip_skip" not in family.lacks:
        layers = read_json(folder / "text_encoder" / "config.json", _TextEncoder).num_hidden_layers
    sample = denoiser.sample_size or family.sample
    height, width = sample if isinstance(sample, tuple) else (sample, sample)
    guided = model.guided and (denoiser.guidance_embeds or family.guidance != "built-in")
    return replace(
        model,
        size=(family.side, family.side) if family.side else (width * vae.factor, height * vae.factor),
        multiple=multiple_of(family, vae),
        scheduler=read_json(folder / "scheduler" / "scheduler_config.json", dict[str, Any]),
        encoder_layers=layers,
        guided=guided,
    )


def multiple_of(family: Family, vae: VaeConfig) -> int:
    """Return what a picture's sides are multiples of; diffusers wants multiples of 8 of any autoencoder."""
    return max(family.multiple, vae.factor * family.patch)


def usual_multiple(family: Family) -> int:
    """Return what the sides are multiples of with an autoencoder that halves them three times, as nearly all do."""
    return max(family.multiple, 8 * family.patch)


def _check_tokenizer(folder: Path, name: str) -> None:
    tokenizer = folder / name
    if (tokenizer / "tokenizer.json").exists():
        read_json(tokenizer / "tokenizer.json", dict[str, msgspec.Raw])
    elif not any(all((tokenizer / file).exists() for file in files) for files in _TOKENIZERS):
        raise Incomplete(f"{folder} has no {name}", "a model's folder has the layout that diffusers saves")
