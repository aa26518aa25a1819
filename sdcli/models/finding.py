"""What a name means: a model that ships with sdcli, an alias, a folder, a file or a hub id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdcli.errors import BadInput
from sdcli.models.files import of_file
from sdcli.models.folders import of_folder
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
        if known is None or known.repo is None:
            named = Weights(name=DEMO, path=demo_folder()) if known else locate(spec.model, "model", AT_ONCE)
        else:
            named = Weights(name=spec.model, repo=known.repo)
        vae = find_vae(spec.vae) if spec.vae is not None else None
        model = _looked_at(Model(**vars(named), vae=vae), spec.safety_checker)
    except OSError as error:
        raise BadInput(
            f"{spec.model} can't be looked at: {error.strerror or error}", "check its permissions"
        ) from error
    if known is None and model.repo:
        known = next((k for k in KNOWN if k.repo == model.repo), None)
    return with_defaults(replace(model, defaults=known.defaults if known else {}))


def _looked_at(model: Model, checker: bool) -> Model:
    """Fill in what this machine knows of a model."""
    if model.repo is not None:
        model = of_cache(model, checker)
    elif model.single_file:
        model = of_file(model, checker)
    else:
        model = of_folder(model, checker)
    return fitted(model)
