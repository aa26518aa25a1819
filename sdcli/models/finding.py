"""What a name means: a model that ships with sdcli, an alias, a folder, a file or a hub id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import asdict, replace

from sdcli.errors import BadInput, UsageError
from sdcli.models import aliases
from sdcli.models.families import FAMILIES
from sdcli.models.files import of_file
from sdcli.models.folders import of_folder, usual_multiple
from sdcli.models.hub import of_cache
from sdcli.models.known import ALIASES, AT_ONCE, DEMO, KNOWN
from sdcli.models.naming import locate
from sdcli.models.spec import Model, ModelSpec, Weights, with_defaults
from sdcli.models.vae import find_vae, fitted


def demo_folder() -> Path:
    """Return the folder of the bundled model."""
    return Path(__file__).parent.parent / "demo"


def find(spec: ModelSpec) -> Model:
    """Return the model that a name means, looking at this machine only.

    Raises InputMissing for a path that is not there, BadInput for one that is no model, ModelUnavailable for a name
    that can't be a hub id, UsageError for a model without the safety checker that was asked for.
    """
    try:
        known = ALIASES.get(spec.model)
        named = named_by(spec.model)
        vae = find_vae(spec.vae) if spec.vae is not None else None
        config = _find_config(spec.model_config, named) if spec.model_config is not None else None
        model = _looked_at(Model(**asdict(named), vae=vae, named_config=config), spec.safety_checker)
    except OSError as error:
        raise BadInput(
            f"{spec.model} can't be looked at: {error.strerror or error}", "check its permissions"
        ) from error
    if known is None and model.repo:
        known = next((k for k in KNOWN if k.repo == model.repo), None)
    if known is not None and model.family is None:
        # What its family can't use is refused before it is downloaded.
        family = FAMILIES[known.family]
        model = replace(model, family=family, size=known.size, multiple=usual_multiple(family))
    folder = Path(spec.adapter_dir) if spec.adapter_dir is not None else None
    return with_defaults(replace(model, defaults=known.defaults if known else {}, adapter_dir=folder))


def named_by(name: str) -> Weights:
    """Return what a name means, as far as the name says it. sdcli's own names come first, the user's next."""
    known = ALIASES.get(name)
    if known is not None:
        return Weights(name=name, repo=known.repo) if known.repo else Weights(name=DEMO, path=demo_folder())
    target = aliases.target_of(name)
    if target is None:
        return locate(name, "model", AT_ONCE, _aliases())
    hint = f"{name} is an alias of yours: `sdcli models alias --rm {name}` takes it away"
    return replace(locate(target, "model", hint), name=name)


def _find_config(name: str, model: Weights) -> Weights:
    """Return where a single file's configuration is to come from: a folder, or a repository on the hub."""
    if not model.single_file:
        raise UsageError(f"{model.name} is no single file, and has its own configuration", "leave --model-config out")
    known = ALIASES.get(name)
    config = Weights(name=name, repo=known.repo) if known and known.repo else locate(name, "configuration", AT_ONCE)
    if config.path is not None and not (config.path / "model_index.json").exists():
        raise BadInput(f"{name} has no model_index.json", "name a folder in diffusers' layout, or a hub id")
    return config


def _aliases() -> Iterator[str]:
    """Yield the names that a name may have been meant for; the user's are read where one is looked for."""
    yield from ALIASES
    yield from aliases.names()


def _looked_at(model: Model, checker: bool) -> Model:
    """Fill in what this machine knows of a model."""
    if model.repo is not None:
        model = of_cache(model, checker)
    elif model.single_file:
        model = of_file(model, checker)
    else:
        model = of_folder(model, checker)
    return fitted(model)
