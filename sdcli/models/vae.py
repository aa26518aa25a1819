"""Another autoencoder in the place of a model's own."""

from __future__ import annotations

from msgspec.structs import replace

from sdcli.errors import BadInput
from sdcli.models.cache import cached
from sdcli.models.folders import VaeConfig, multiple_of
from sdcli.models.naming import locate
from sdcli.models.spec import Incomplete, Model, Weights
from sdcli.models.weights import channels_of, check_weights, read_json, shapes_of


def find_vae(name: str) -> Weights:
    """Return the autoencoder that a name means; refuse one that can't be read."""
    vae = locate(name, "autoencoder", "name a folder, a .safetensors file or a hub id")
    if vae.path is None:
        assert vae.repo is not None
        folder = cached(vae.repo, vae.revision, "config.json")
        try:
            return vae_of_folder(replace(vae, path=folder, commit=folder.name)) if folder else vae
        except Incomplete:
            return vae
    if not vae.single_file:
        return vae_of_folder(vae)
    _vae_channels(vae)
    beside = (vae.path.with_suffix(""), vae.path.parent)
    config = next(
        (f for f in beside if (f / "config.json").exists() and _is_vae(read_json(f / "config.json", VaeConfig))), None
    )
    return replace(vae, config=config)


def _is_vae(config: VaeConfig) -> bool:
    return config.class_name == "AutoencoderKL"


def vae_of_folder(vae: Weights) -> Weights:
    assert vae.path is not None
    config = read_json(vae.path / "config.json", VaeConfig)
    if not _is_vae(config):
        raise BadInput(f"{vae.name} is no AutoencoderKL (it is {config.class_name})", "name the folder of one")
    return replace(vae, variant=check_weights(vae.path, [""]))


def _vae_channels(vae: Weights) -> int | None:
    """Return how many channels the latents have that an autoencoder decodes; BadInput for a file that is none."""
    assert vae.path is not None
    if not vae.single_file:
        return read_json(vae.path / "config.json", VaeConfig).latent_channels
    shapes = shapes_of(vae.path)
    key = next((k for k in shapes if k.endswith("decoder.conv_in.weight")), None)
    if key is None:
        raise BadInput(f"{vae.name} is no autoencoder", "name a folder, a .safetensors file or a hub id")
    return channels_of(shapes, key)


def fitted(model: Model) -> Model:
    """Check that another autoencoder decodes what the model draws, as soon as both are known."""
    vae, configs = model.vae, model.configs
    path = vae.path if vae is not None else None
    if vae is None or path is None or configs is None:
        return model
    family, own = model.family, model.components.get("vae", ("", ""))[1]
    assert family is not None
    if own != "AutoencoderKL":
        raise BadInput(
            f"{model.name} ({family.name}) has no AutoencoderKL that another could stand for", "leave --vae out"
        )
    config = read_json(configs / "vae" / "config.json", VaeConfig)
    drawn, decoded = config.latent_channels, _vae_channels(vae)
    if drawn != decoded:
        raise BadInput(
            f"{vae.name} decodes latents of {decoded} channels, and {model.name} draws {drawn}",
            "use an autoencoder of its family",
        )
    if vae.single_file and vae.config is None:
        # Families share one shape of autoencoder.
        vae = replace(vae, config=configs / "vae")
    config = read_json((vae.config or path) / "config.json", VaeConfig)
    return replace(model, vae=vae, multiple=multiple_of(family, config))
