"""Models in single files: checkpoints in their authors' layout, and transformers alone (safetensors, GGUF).

A file says nothing of its tokenizer, its scheduler or its sizes: that is its configuration, a folder in diffusers' layout. It
is looked for where `--model-config` says, beside the file, and in the hub's cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from sdcli.errors import BadInput
from sdcli.models.cache import cached
from sdcli.models.families import FAMILIES
from sdcli.models.folders import Denoiser, folder_parts, no_checker, of_index, usual_multiple, with_facts
from sdcli.models.known import DEFAULT
from sdcli.models.spec import Incomplete, Model, Weights
from sdcli.models.weights import channels_of, check_weights, read_json, shapes_of

Shapes = Mapping[str, Sequence[int]]
SUFFIXES = (".safetensors", ".gguf")
HINT = "name a .safetensors or .gguf file, or a folder in diffusers' layout"
_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
_WORDS = re.compile(r"model\.diffusion_model\..*attn2\.to_k\.weight")
# What stands before a transformer's keys in a file that may hold other parts as well.
_PREFIX = "model.diffusion_model."


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of file: the family that it is of, the repositories that have its configuration, the first of them to be fetched.

    `alone`: only the network that predicts noise is taken from it, and all else from the configuration's folder.
    """

    what: str
    class_name: str
    repos: tuple[str, ...] = ()
    alone: bool = False


def _has(shapes: Shapes, start: str) -> bool:
    return any(k.startswith(start) for k in shapes)


def _in_transformer(shapes: Shapes, start: str) -> bool:
    return _has(shapes, start) or _has(shapes, _PREFIX + start)


def _width(shapes: Shapes) -> int | None:
    """Return how wide the words are that a U-Net attends to: 768 in Stable Diffusion 1.x, 1024 in 2.x, 2048 in SDXL."""
    return channels_of(shapes, next((k for k in shapes if _WORDS.fullmatch(k)), ""))


def _blocks(shapes: Shapes, name: str) -> int:
    """Return how many blocks of a name a transformer has."""
    found = (re.match(rf"(?:{re.escape(_PREFIX)})?{name}\.(\d+)\.", k) for k in shapes)
    return 1 + max((int(m[1]) for m in found if m), default=-1)


def layout_of(file: Path, shapes: Shapes) -> Layout:
    """Return what kind of file has tensors of these names and shapes. Raises BadInput."""
    if _CONVOLUTION in shapes:
        _check_unet(file, shapes)
        if _has(shapes, "conditioner.embedders.1."):
            return Layout(
                what="SDXL", class_name="StableDiffusionXLPipeline", repos=("stabilityai/stable-diffusion-xl-base-1.0",)
            )
        if _has(shapes, "conditioner."):
            raise BadInput(f"{file} does not draw from text alone (SDXL's refiner?)", "use the base model")
        if not _has(shapes, "cond_stage_model."):
            raise BadInput(f"{file} has no text encoder", "use a checkpoint that is whole")
        # Whether 2.x predicts noise or velocity is in no file, and so its configuration is not guessed.
        version, repos = {768: (" 1.x", (DEFAULT,)), 1024: (" 2.x", ())}.get(_width(shapes) or 0, ("", ()))
        return Layout(what=f"Stable Diffusion{version}", class_name="StableDiffusionPipeline", repos=repos)
    if _blocks(shapes, "double_blocks"):
        name = "dev" if _in_transformer(shapes, "guidance_in.") else "schnell"
        repo = f"black-forest-labs/FLUX.1-{name}"
        return Layout(what=f"Flux ({name})", class_name="FluxPipeline", repos=(repo,), alone=True)
    if blocks := _blocks(shapes, "joint_blocks"):
        medium = _in_transformer(shapes, "joint_blocks.0.x_block.attn2.")
        repo = "3.5-large" if blocks == 38 else "3.5-medium" if medium else "3-medium-diffusers"
        return Layout(
            what="Stable Diffusion 3", class_name="StableDiffusion3Pipeline",
            repos=(f"stabilityai/stable-diffusion-{repo}",), alone=True,
        )  # fmt: skip
    raise BadInput(
        f"{file} is no Stable Diffusion, SDXL, SD3 or Flux checkpoint", "use a folder in diffusers' layout, or a hub id"
    )


def _check_unet(file: Path, shapes: Shapes) -> None:
    if channels_of(shapes, _CONVOLUTION) != 4:
        raise BadInput(
            f"{file} does not draw from text alone (an inpainting model?)", "use the model that it was made from"
        )


def of_file(model: Model, checker: bool) -> Model:
    """Fill in what a single file says of itself, and where its configuration is."""
    file = model.path
    assert file is not None
    if file.suffix.lower() not in SUFFIXES:
        raise BadInput(f"{file} is no .safetensors or .gguf file", HINT)
    shapes = shapes_of(file)
    layout = layout_of(file, shapes)
    if not layout.alone and model.vae is None and not _has(shapes, "first_stage_model."):
        raise BadInput(f"{file} has no autoencoder", "give one with --vae")
    if file.suffix.lower() == ".gguf" and not layout.alone:
        raise BadInput(f"{file} is no transformer, and diffusers reads no other GGUF", HINT)
    if checker:
        raise no_checker(model)
    model = replace(model, alone=layout.alone)
    named = model.named_config
    if named is not None and named.path is not None:
        return _configured(model, layout, shapes, named.path)
    folders = (file.with_suffix(""), file.parent) if named is None else ()
    for folder in folders:
        if (folder / "model_index.json").exists():
            return _configured(model, layout, shapes, folder)
    wanted = [named] if named is not None else [Weights(name=repo, repo=repo) for repo in layout.repos]
    for one in wanted:
        assert one.repo is not None
        found = cached(one.repo, one.revision, "model_index.json")
        if found is not None:
            try:
                return _configured(model, layout, shapes, found)
            except Incomplete:
                continue
    if not wanted:
        raise BadInput(
            f"{file} ({layout.what}) has no configuration beside it (looked in {file.with_suffix('')}/ and {file.parent}/)",
            "put the model_index.json and the folders of a model in diffusers' layout there (weights are not needed), or "
            "name a folder or a hub id with --model-config",
        )
    places = (
        f"looked in {file.with_suffix('')}/, {file.parent}/ and the hub's cache" if named is None else "--model-config"
    )
    source = replace(wanted[0], name=f"the configuration of {model.name} ({places})")
    family = FAMILIES[layout.class_name]
    return replace(model, named_config=source, family=family, multiple=usual_multiple(family))


def _configured(model: Model, layout: Layout, shapes: Shapes, folder: Path) -> Model:
    """Return a file's model with the configuration in a folder; refuse another model's. Raises Incomplete."""
    found = with_facts(of_index(model, folder, checker=False), folder)
    assert found.family is not None
    if found.family.class_name != layout.class_name or not _FITS[layout.class_name](shapes, folder):
        raise BadInput(
            f"the configuration in {folder} is another model's than {model.path} ({layout.what})",
            "put the right one beside it",
        )
    if layout.alone:
        # The network that the file has need not lie there again.
        try:
            found = replace(found, variant=check_weights(folder, folder_parts(found)))
        except Incomplete as error:
            raise Incomplete(
                f"{model.path} holds a transformer alone, and {error.message}",
                "its text encoders and autoencoder come from a whole model in diffusers' layout: --model-config DIR or a hub id",
            ) from None
    return replace(found, config=folder)


def _unet_fits(shapes: Shapes, folder: Path) -> bool:
    dim = read_json(folder / "unet" / "config.json", Denoiser).cross_attention_dim
    return _width(shapes) == (dim if isinstance(dim, int) else next(iter(dim or ()), None))


def _flux_fits(shapes: Shapes, folder: Path) -> bool:
    config = read_json(folder / "transformer" / "config.json", Denoiser)
    guided = _in_transformer(shapes, "guidance_in.")
    return config.guidance_embeds == guided and config.num_layers in (None, _blocks(shapes, "double_blocks"))


def _sd3_fits(shapes: Shapes, folder: Path) -> bool:
    config = read_json(folder / "transformer" / "config.json", Denoiser)
    return config.num_layers in (None, _blocks(shapes, "joint_blocks"))


_FITS: dict[str, Callable[[Shapes, Path], bool]] = {
    "StableDiffusionPipeline": _unet_fits,
    "StableDiffusionXLPipeline": _unet_fits,
    "FluxPipeline": _flux_fits,
    "StableDiffusion3Pipeline": _sd3_fits,
}
