"""Which weights: as asked for, and as far as they are known before they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from sdcli.errors import BadInput
from sdcli.models import distilled
from sdcli.models.families import Family
from sdcli.models.known import ALIASES, DEFAULT
from sdcli.options import meta
from sdcli.places import config_folder

WHICH = "Which weights"


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which weights, as asked for."""

    model: Annotated[
        str,
        meta(
            "demo, alias, hub id, folder or file; else SD 1.5.",
            "--model", "-m", panel=WHICH, metavar="MODEL",
        ),
    ] = DEFAULT  # fmt: skip
    vae: Annotated[
        str | None,
        meta("Another autoencoder: folder, file or hub id.", "--vae", panel=WHICH, metavar="VAE"),
    ] = None
    model_config: Annotated[
        str | None,
        meta(
            "A single file's configuration: folder or hub id.",
            "--model-config", panel=WHICH, metavar="MODEL",
        ),
    ] = None  # fmt: skip
    safety_checker: Annotated[
        bool,
        meta("Load it, and say what it flags.", "--safety-checker", panel=WHICH),
    ] = False
    adapter_dir: Annotated[str | None, meta("Folder of adapters: where their names are looked for.")] = None


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """Weights that a name means, as far as they are known before they are loaded.

    `path` is their folder or file here, None for what is on the hub only; `config` is the folder with a single file's
    configuration; `variant` is the middle of their files' names (`fp16`), None where it has none.
    """

    name: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    commit: str | None = None
    config: Path | None = None
    variant: str | None = None

    @property
    def single_file(self) -> bool:
        return self.path is not None and self.path.is_file()


class Model(Weights, frozen=True, kw_only=True):
    """A named model.

    `components` are its parts that are not null: library and class, by name. `size` is the width and height in pixels that it
    was trained for, None where its configuration is not here yet; `multiple` is what both are multiples of; `scheduler` is
    the configuration of its own scheduler, `encoder_layers` its text encoder's depth; `guided` is False for one that guidance
    has no effect on; `vae` is the autoencoder that takes the place of its own. Of a single file `alone` says that only the network
    that predicts noise is in it, and `named_config` where its configuration is to come from.
    """

    family: Family | None = None
    components: Mapping[str, tuple[str, str]] = msgspec.field(default_factory=dict)
    guided: bool = True
    alone: bool = False
    named_config: Weights | None = None
    defaults: dict[str, Any] = msgspec.field(default_factory=dict)
    size: tuple[int, int] | None = None
    multiple: int = 8
    scheduler: dict[str, Any] | None = None
    encoder_layers: int | None = None
    vae: Weights | None = None
    adapter_dir: Path | None = None

    @property
    def adapter_folders(self) -> tuple[Path, ...]:
        """Where adapters are looked for that are named without a folder: the one that is set, or the user's, and here."""
        return (self.adapter_dir or config_folder() / "adapters", Path())

    @property
    def shown_name(self) -> str:
        """The name that records keep: of what lies on this machine its own name, and not where it lies."""
        return self.name if self.repo is not None or self.name in ALIASES else Path(self.name).absolute().name

    @property
    def is_here(self) -> bool:
        """Whether all that it needs is on this machine."""
        return self.configs is not None and (self.vae is None or self.vae.path is not None)

    @property
    def configs(self) -> Path | None:
        """The folder in diffusers' layout that has its configuration."""
        return self.config if self.single_file else self.path


class Incomplete(BadInput):
    """Files of a model are not there. In the hub's cache that is a download to be gone on with."""


def with_defaults(model: Model) -> Model:
    family = dict(model.family.defaults) if model.family else {}
    if not model.guided:
        family["guidance_scale"] = 0.0
    return replace(model, defaults=family | distilled.defaults(model) | model.defaults)
