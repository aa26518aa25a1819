"""Which weights draw: what a name means, and what can be known of a model without loading it."""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from sdcli.errors import BadInput, InputMissing, ModelGated, ModelUnavailable, OutputFailed, UsageError, nearest
from sdcli.options import meta

WHICH = "Which weights"
DEFAULT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEMO = "demo"
AT_ONCE = f"`--model {DEMO}` works at once, with no download"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
# Seconds until a hub that does not answer is given up.
PATIENCE = 5.0
T = TypeVar("T")
Say = Callable[[str], None]


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
    safety_checker: Annotated[
        bool,
        meta("Load it, and say what it flags.", "--safety-checker", panel=WHICH),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models that one pipeline class of diffusers draws with: what they want, and what they can't use."""

    name: str
    dtype: str
    defaults: dict[str, Any]


FAMILIES = {
    "StableDiffusionPipeline": Family(
        name="stable-diffusion",
        dtype="fp16",
        defaults={"num_inference_steps": 25, "guidance_scale": 7.5},
    ),
}


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A row of the table of models that have a short name."""

    alias: str
    repo: str | None
    defaults: dict[str, Any] = field(default_factory=dict)


KNOWN = (
    KnownModel(alias=DEMO, repo=None, defaults={"guidance_scale": 2.0}),
    KnownModel(alias="sd15", repo=DEFAULT),
)
ALIASES = {k.alias: k for k in KNOWN}


@dataclass(frozen=True, kw_only=True)
class Weights:
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


@dataclass(frozen=True, kw_only=True)
class Model(Weights):
    """A named model. `size` is the width and height in pixels that it was trained for, None where its configuration is
    not here yet; `multiple` is what both are multiples of; `scheduler` is the configuration of its own scheduler,
    `encoder_layers` its text encoder's depth; `vae` is the autoencoder that takes the place of its own."""

    family: Family | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    multiple: int = 8
    scheduler: dict[str, Any] | None = None
    encoder_layers: int | None = None
    vae: Weights | None = None

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


def demo_folder() -> Path:
    """Return the folder of the bundled model."""
    return Path(__file__).parent / "demo"


def find(spec: ModelSpec) -> Model:
    """Return the model that a name means, looking at this machine only.

    Raises InputMissing for a path that is not there, BadInput for one that is no model, ModelUnavailable for a name
    that can't be a hub id, UsageError for a model without the safety checker that was asked for.
    """
    try:
        known = ALIASES.get(spec.model)
        if known is None or known.repo is None:
            named = Weights(name=DEMO, path=demo_folder()) if known else _locate(spec.model, "model", AT_ONCE)
        else:
            named = Weights(name=spec.model, repo=known.repo)
        vae = _find_vae(spec.vae) if spec.vae is not None else None
        model = _looked_at(Model(**vars(named), vae=vae), spec.safety_checker)
    except OSError as error:
        raise BadInput(
            f"{spec.model} can't be looked at: {error.strerror or error}", "check its permissions"
        ) from error
    if known is None and model.repo:
        known = next((k for k in KNOWN if k.repo == model.repo), None)
    return _with_defaults(replace(model, defaults=known.defaults if known else {}))


def _with_defaults(model: Model) -> Model:
    return replace(model, defaults=(model.family.defaults if model.family else {}) | model.defaults)


def _locate(name: str, what: str, hint: str) -> Weights:
    """Return what a name means: a file or folder that is there, or a hub id."""
    path = _path(name)
    if path is not None:
        if path.suffix.lower() in PICKLES:
            raise BadInput(
                f"{name} is a pickle, which can run code when it is read",
                "use a .safetensors file or a folder in diffusers' layout",
            )
        if not path.exists():
            raise InputMissing(f"there is no {what} at {name}", hint)
        return Weights(name=name, path=path)
    repo, _, revision = name.partition("@")
    if repo.count("/") != 1:
        raise ModelUnavailable(f"there is no {what} called {name}{nearest(name, ALIASES)}", hint)
    return Weights(name=name, repo=repo, revision=revision or None)


def _path(name: str) -> Path | None:
    """Return a name as a path, None where it is a hub id or an alias."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # the home of a user that there is not
        path = Path(name)
    looks = (
        name.startswith((".", "/", "~"))
        or path.suffix.lower() in (".safetensors", ".gguf", *PICKLES)
        or name.partition("@")[0].count("/") > 1
    )
    return path if looks or (name and (path.is_dir() or ("/" in name and path.exists()))) else None


_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_COMMIT = re.compile(r"[0-9a-f]{6,64}")


def hub_name(repo: str, commit: str | None) -> str | None:
    """Return the name of a hub's model at a commit, None for what is no such name or would be taken for a path here.

    For names out of pictures, which are not to lead to files.
    """
    name = f"{repo}@{commit}" if commit is not None else repo
    fits = _REPO.fullmatch(repo) and (commit is None or _COMMIT.fullmatch(commit)) and ".." not in repo
    return name if fits and _path(name) is None and _path(repo) is None else None


def _looked_at(model: Model, checker: bool) -> Model:
    """Fill in what this machine knows of a model."""
    if model.repo is not None:
        model = _of_cache(model, checker)
    elif model.single_file:
        model = _of_file(model, checker)
    else:
        model = _of_folder(model, checker)
    return _fitted(model)


# Folders in diffusers' layout


class _Unet(msgspec.Struct):
    """What is asked of unet/config.json; diffusers' own defaults."""

    in_channels: int = 4
    sample_size: int | tuple[int, int] | None = None
    cross_attention_dim: int | tuple[int, ...] | None = 1280


class _Vae(msgspec.Struct):
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


def _read(file: Path, type: type[T]) -> T:
    """Return a JSON file as `type`; Incomplete where it is not there, BadInput where it is not that."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=type)
    except FileNotFoundError:
        raise Incomplete(f"{file} is missing", "a model's folder has the layout that diffusers saves") from None
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}", "check its permissions") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is no configuration: {error}".replace("`", ""), "fetch the model again") from error


def _of_folder(model: Model, checker: bool) -> Model:
    """Fill in what a folder in diffusers' layout says; refuse one that can't be loaded."""
    folder = model.path
    assert folder is not None
    if not (folder / "model_index.json").exists():
        raise BadInput(
            f"{folder} is no model: it has no model_index.json",
            "name a folder in diffusers' layout or a .safetensors file",
        )
    index = _read(folder / "model_index.json", dict[str, Any])
    family = FAMILIES.get(str(index.get("_class_name")))
    if family is None:
        raise BadInput(
            f"{folder} is a {index.get('_class_name')}, which sdcli can't draw with",
            f"models of {', '.join(FAMILIES)} work",
        )
    _check_components(folder, index)
    has_checker = _library(index.get("safety_checker")) is not None
    if checker and not has_checker:
        raise _no_checker(model)
    if checker:
        _read(folder / "feature_extractor" / "preprocessor_config.json", dict[str, Any])
    facts = _facts(folder)
    variant = _check_weights(folder, _parts(model, checker))
    return replace(model, family=family, variant=variant, **facts)


def _no_checker(model: Model) -> UsageError:
    return UsageError(f"{model.name} has no safety checker", "leave --safety-checker out")


def _parts(model: Model, checker: bool) -> tuple[str, ...]:
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


def _facts(folder: Path) -> dict[str, Any]:
    """Return what the configurations in a folder say of pictures; Incomplete where one that loading needs is not there."""
    unet, vae = _read(folder / "unet" / "config.json", _Unet), _read(folder / "vae" / "config.json", _Vae)
    encoder = _read(folder / "text_encoder" / "config.json", _TextEncoder)
    scheduler = _read(folder / "scheduler" / "scheduler_config.json", dict[str, Any])
    tokenizer = folder / "tokenizer"
    if (tokenizer / "tokenizer.json").exists():
        _read(tokenizer / "tokenizer.json", dict[str, msgspec.Raw])
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


# Weight files and their names

_NAME = re.compile(
    r"(?:diffusion_pytorch_)?model(?:-\d{5}-of-(?P<old>\d{5}))?(?:\.(?P<variant>\w+))?(?:-\d{5}-of-(?P<of>\d{5}))?\.safetensors"
)


def _by_variant(names: Iterable[str]) -> dict[str | None, list[str]]:
    """Return the weight files among a component's, by their variant; those in pieces only with all their pieces."""
    found: dict[str | None, list[str]] = {}
    pieces: dict[str | None, int] = {}
    for name in sorted(names):
        if match := _NAME.fullmatch(name.rpartition("/")[2]):
            variant = match["variant"]
            found.setdefault(variant, []).append(name)
            pieces[variant] = int(match["old"] or match["of"] or 1)
    return {v: names for v, names in found.items() if len(names) == pieces[v]}


def _common_variant(components: Mapping[str, Iterable[str]], prefer: str | None, where: str) -> str | None:
    """Return the variant that all components have: the preferred one, the plain one, or else the first."""
    kinds = []
    for part, names in components.items():
        names = list(names)
        kinds.append(set(_by_variant(names)))
        if not kinds[-1]:
            place = f"{where}/{part}".rstrip("/")
            if any(n.endswith(PICKLES) for n in names):
                raise Incomplete(
                    f"{place} has its weights as pickles only, which can run code when they are read",
                    "use a model that has .safetensors files",
                )
            raise Incomplete(f"{place} has no .safetensors file with weights", "fetch the model again")
    common = set.intersection(*kinds)
    if not common:
        # diffusers would mix them, in silence.
        raise Incomplete(f"{where} has no precision that all its components have", "fetch the model again")
    return prefer if prefer in common else None if None in common else sorted(filter(None, common))[0]


def _files_in(folder: Path) -> list[str]:
    return [f.name for f in folder.iterdir()] if folder.is_dir() else []


def _check_weights(folder: Path, parts: Sequence[str]) -> str | None:
    """Return the variant to load of a folder's components (None: plain); refuse pickles and what is cut off."""
    names = {part: _files_in(folder / part) for part in parts}
    variant = _common_variant(names, None, str(folder))
    for part in parts:
        for name in _by_variant(names[part])[variant]:
            read_header(folder / part / name)
    return variant


def read_header(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file (format: huggingface.co/docs/safetensors); BadInput where it is cut."""
    hint = "fetch the file again"
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if start == b"version ":
                raise BadInput(f"{file} is a Git LFS pointer, not the weights", "run `git lfs pull`")
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > min(size, 100_000_000):
                raise BadInput(f"{file} is no safetensors file, or was cut off", hint)
            header = msgspec.json.decode(stream.read(length), type=dict[str, dict[str, Any]])
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        whole = 8 + length + int(end)
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}", hint) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadInput(f"{file} is no safetensors file", hint) from error
    if whole != size:
        raise BadInput(f"{file} is truncated: {whole:,} bytes are declared, {size:,} are there", hint)
    return header


# Single files

_UNET_KEY = "model.diffusion_model.input_blocks.0.0.weight"


def _of_file(model: Model, checker: bool) -> Model:
    """Fill in what a single-file checkpoint in the original layout says of itself, and where its configuration is."""
    file = model.path
    assert file is not None
    if file.suffix.lower() != ".safetensors":
        raise BadInput(f"{file} is no .safetensors file", "name a .safetensors file or a folder in diffusers' layout")
    shapes = _shapes(file)
    if _UNET_KEY not in shapes or any(k.startswith("conditioner.embedders.1.") for k in shapes):
        raise BadInput(
            f"{file} is no Stable Diffusion 1.x or 2.x checkpoint", "other families' single files are not read yet"
        )
    if _channels(shapes, _UNET_KEY) != 4:
        raise BadInput(
            f"{file} does not draw from text alone (an inpainting model?)", "use the model that it was made from"
        )
    if not any(k.startswith("cond_stage_model.") for k in shapes):
        raise BadInput(f"{file} has no text encoder", "use a checkpoint that is whole")
    if model.vae is None and not any(k.startswith("first_stage_model.") for k in shapes):
        raise BadInput(f"{file} has no autoencoder", "give one with --vae")
    if checker:
        raise _no_checker(model)
    config = _config_of_file(file, shapes)
    facts = _facts(config) if config else {}
    return replace(model, family=FAMILIES["StableDiffusionPipeline"], config=config, **facts)


def _shapes(file: Path) -> dict[str, list[int]]:
    return {name: entry.get("shape", []) for name, entry in read_header(file).items() if name != "__metadata__"}


def _channels(shapes: Mapping[str, Sequence[int]], key: str) -> int | None:
    """Return how many channels a layer's weight (out, in, ...) takes in."""
    shape = shapes.get(key, ())
    return shape[1] if len(shape) > 1 else None


def _config_of_file(file: Path, shapes: Mapping[str, Sequence[int]]) -> Path | None:
    """Return the folder with a checkpoint's configuration: one beside it, or the default model's; None: neither here."""
    key = next((k for k in shapes if k.startswith("model.diffusion_model.") and k.endswith("attn2.to_k.weight")), "")
    width = _channels(shapes, key)
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
    folder_in_cache = _cached(DEFAULT, None, "model_index.json")
    try:
        return folder_in_cache if folder_in_cache and _facts(folder_in_cache) else None
    except Incomplete:
        return None


def _text_width(configs: Path) -> int | None:
    dim = _read(configs / "unet" / "config.json", _Unet).cross_attention_dim
    return dim if isinstance(dim, int) else next(iter(dim or ()), None)


# Another autoencoder


def _find_vae(name: str) -> Weights:
    """Return the autoencoder that a name means; refuse one that can't be read."""
    vae = _locate(name, "autoencoder", "name a folder, a .safetensors file or a hub id")
    if vae.path is None:
        assert vae.repo is not None
        folder = _cached(vae.repo, vae.revision, "config.json")
        try:
            return _vae_of_folder(replace(vae, path=folder, commit=folder.name)) if folder else vae
        except Incomplete:
            return vae
    if not vae.single_file:
        return _vae_of_folder(vae)
    _vae_channels(vae)
    beside = (vae.path.with_suffix(""), vae.path.parent)
    config = next((f for f in beside if (f / "config.json").exists() and _is_vae(_read(f / "config.json", _Vae))), None)
    return replace(vae, config=config)


def _is_vae(config: _Vae) -> bool:
    return config.class_name == "AutoencoderKL"


def _vae_of_folder(vae: Weights) -> Weights:
    assert vae.path is not None
    config = _read(vae.path / "config.json", _Vae)
    if not _is_vae(config):
        raise BadInput(f"{vae.name} is no AutoencoderKL (it is {config.class_name})", "name the folder of one")
    return replace(vae, variant=_check_weights(vae.path, [""]))


def _vae_channels(vae: Weights) -> int | None:
    """Return how many channels the latents have that an autoencoder decodes; BadInput for a file that is none."""
    assert vae.path is not None
    if not vae.single_file:
        return _read(vae.path / "config.json", _Vae).latent_channels
    shapes = _shapes(vae.path)
    key = next((k for k in shapes if k.endswith("decoder.conv_in.weight")), None)
    if key is None:
        raise BadInput(f"{vae.name} is no autoencoder", "name a folder, a .safetensors file or a hub id")
    return _channels(shapes, key)


def _fitted(model: Model) -> Model:
    """Check that another autoencoder decodes what the model draws, as soon as both are known."""
    vae, configs = model.vae, model.configs
    path = vae.path if vae is not None else None
    if vae is None or path is None or configs is None:
        return model
    drawn, decoded = _read(configs / "unet" / "config.json", _Unet).in_channels, _vae_channels(vae)
    if drawn != decoded:
        raise BadInput(
            f"{vae.name} decodes latents of {decoded} channels, and {model.name} draws {drawn}",
            "use an autoencoder of its family",
        )
    if vae.single_file and vae.config is None:
        # Families share one shape of autoencoder.
        vae = replace(vae, config=configs / "vae")
    return replace(model, vae=vae, multiple=_read((vae.config or path) / "config.json", _Vae).multiple)


# The hub and its cache


def _cached(repo: str, revision: str | None, file: str) -> Path | None:
    """Return the folder of a repository in huggingface_hub's cache, if `file` is there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, file, revision=revision)
    except HFValidationError:
        raise ModelUnavailable(f"{repo} can't be the name of a repository on the hub", AT_ONCE) from None
    return Path(found).parent if isinstance(found, str) else None


def _of_cache(model: Model, checker: bool) -> Model:
    """Fill in what the hub's cache knows; a model that is there in whole needs no connection."""
    assert model.repo is not None
    folder = _cached(model.repo, model.revision, "model_index.json")
    if folder is None:
        return model
    try:
        return _of_snapshot(model, folder, checker)
    except Incomplete:
        # A download that was interrupted, or that another program made: `fetch` goes on with it.
        return model


def _of_snapshot(model: Model, folder: Path, checker: bool) -> Model:
    """Fill in what a folder in the hub's cache says; what is bad in it can be downloaded again."""
    try:
        return _of_folder(replace(model, path=folder, commit=folder.name), checker)
    except Incomplete:
        raise
    except BadInput as error:
        raise BadInput(error.message, f"`hf cache rm model/{model.repo}` lets it be downloaded again") from error


def fetch(model: Model, *, safety_checker: bool, say: Say) -> Model:
    """Return the model with its files here, downloading them where they are not.

    One precision is fetched, safetensors only. `say` is told name and size before anything is downloaded. The commit
    that the revision means is looked up once and pinned. Raises ModelUnavailable, ModelGated, BadInput.
    """
    if model.path is None:
        folder = _download(model, lambda names: wanted_files(names, model, safety_checker=safety_checker), say)
        model = _with_defaults(_of_snapshot(model, folder, safety_checker))
    elif model.configs is None:
        places = f"looked in {model.path.with_suffix('')}/, {model.path.parent}/ and the hub's cache"
        default = Weights(name=f"the configuration of {model.name} ({places})", repo=DEFAULT)
        _download(default, lambda names: _texts(names, ()), say)
        model = _of_file(model, safety_checker)
    if model.vae is not None and model.vae.path is None:
        vae = model.vae
        folder = _download(vae, lambda names: _wanted_vae(names, vae), say)
        model = replace(model, vae=_vae_of_folder(replace(vae, path=folder, commit=folder.name)))
    return _fitted(model)


def _download(wanted: Weights, choose: Callable[[Sequence[str]], list[str]], say: Say) -> Path:
    """Return the folder of a repository's snapshot with the files that `choose` picks from its list."""
    from huggingface_hub import HfApi, snapshot_download

    repo = wanted.repo
    assert repo is not None
    with _hub_errors(wanted):
        info = HfApi().model_info(repo, revision=wanted.revision, files_metadata=True, timeout=PATIENCE)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
    files = choose(list(sizes))
    missing = sum(sizes[f] for f in files if _cached(repo, info.sha, f) is None)
    say(f"downloading {repo} ({_bytes(missing)}) into the hub's cache")
    with _hub_errors(wanted):
        # By its name and not by the commit, so that the cache learns what the name means: the next run asks nobody.
        return Path(snapshot_download(repo, revision=wanted.revision, allow_patterns=files))


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@contextmanager
def _hub_errors(wanted: Weights) -> Iterator[None]:
    """Turn what huggingface_hub raises into what sdcli raises."""
    from huggingface_hub import errors

    # httpx's or httpx2's: whichever this huggingface_hub is built on.
    http_error = errors.HTTPError  # type: ignore[attr-defined]
    name, repo = wanted.name, wanted.repo
    kept = f"run it again: the files that are whole are kept; {AT_ONCE}"
    try:
        yield
    except errors.GatedRepoError as error:
        hint = f"ask for access at https://huggingface.co/{repo}, then run `hf auth login`; {AT_ONCE}"
        raise ModelGated(f"{name} is gated: its owner gives access person by person", hint) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        what = f"revision {wanted.revision} of {repo}" if isinstance(error, errors.RevisionNotFoundError) else repo
        hint = f"check the name; for a private one run `hf auth login`; {AT_ONCE}"
        raise ModelUnavailable(f"the hub has no {what}, or it is private", hint) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ModelGated(
                f"the hub does not permit {name} (HTTP {status})", f"run `hf auth login`; {AT_ONCE}"
            ) from error
        raise ModelUnavailable(
            f"{name} is not here, and the hub answered HTTP {status}", f"try later; {kept}"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        hint = f"unset HF_HUB_OFFLINE to download it; {AT_ONCE}"
        raise ModelUnavailable(f"{name} is not here in whole, and HF_HUB_OFFLINE is set", hint) from error
    except (
        http_error,
        ConnectionError,
        TimeoutError,
        errors.LocalEntryNotFoundError,
        errors.XetDownloadError,
    ) as error:
        raise ModelUnavailable(f"{name} is not here in whole, and the hub can't be reached", kept) from error
    except OSError as error:
        if error.errno is None:  # huggingface_hub's own: what came is not what was promised
            raise ModelUnavailable(f"{name} was not downloaded: {' '.join(str(error).split())[:200]}", kept) from error
        hint = f"free some disk, or set HF_HOME to a folder with room; {kept}"
        raise OutputFailed(f"{name} could not be stored: {error.strerror}", hint) from error
    except (ValueError, TypeError, KeyError) as error:
        hint = f"check HF_ENDPOINT and the proxy; {AT_ONCE}"
        raise ModelUnavailable(f"{name} is not here, and what answered is no hub", hint) from error


def wanted_files(names: Sequence[str], model: Model, *, safety_checker: bool) -> list[str]:
    """Return which of a repository's files will be loaded: configurations, and one precision of each component.

    Half precision (`*.fp16.safetensors`) is taken where every component has it: it is what a GPU runs.
    """
    if "model_index.json" not in names:
        raise BadInput(f"{model.repo} is no model in diffusers' layout: it has no model_index.json", AT_ONCE)
    if safety_checker and not any(n.startswith("safety_checker/") for n in names):
        raise _no_checker(model)
    parts = {p: [n for n in names if n.startswith(p + "/")] for p in _parts(model, safety_checker)}
    variant = _hub_variant(parts, str(model.repo))
    more = ("safety_checker", "feature_extractor") if safety_checker else ()
    return _texts(names, more) + [n for found in parts.values() for n in _by_variant(found)[variant]]


def _texts(names: Iterable[str], more: Sequence[str]) -> list[str]:
    """Return the configurations and vocabularies among a repository's files."""
    folders = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", *more)
    return [
        n for n in names if n == "model_index.json" or (n.endswith((".json", ".txt")) and n.split("/")[0] in folders)
    ]


def _wanted_vae(names: Sequence[str], vae: Weights) -> list[str]:
    roots = [n for n in names if "/" not in n]
    if "config.json" not in roots:
        raise BadInput(f"{vae.repo} is no autoencoder: it has no config.json", "name the hub id of one")
    return ["config.json", *_by_variant(roots)[_hub_variant({"": roots}, str(vae.repo))]]


def _hub_variant(parts: Mapping[str, Sequence[str]], repo: str) -> str | None:
    try:
        return _common_variant(parts, "fp16", repo)
    except Incomplete as error:
        raise BadInput(error.message, AT_ONCE) from None


# What was loaded, for the record


def loaded_files(model: Model) -> dict[str, Path]:
    """Return the weight files that decide pixels, by their path in the model's folder (`--vae/...`: another autoencoder's)."""
    assert model.path is not None
    if model.single_file:
        found = {model.path.name: model.path}
    else:
        found = {}
        for part in _parts(model, checker=False):
            names = _by_variant(_files_in(model.path / part))[model.variant]
            found |= {f"{part}/{name}": model.path / part / name for name in names}
    vae = model.vae
    if vae is not None and vae.path is not None:
        names = [""] if vae.single_file else _by_variant(_files_in(vae.path))[vae.variant]
        found |= {f"--vae/{name or vae.path.name}": vae.path / name for name in names}
    return found


def check_size(model: Model, width: int | None, height: int | None) -> None:
    """Refuse a width or height, in pixels, that the model can't draw; None is what it decides itself."""
    for side, pixels in (("width", width), ("height", height)):
        if pixels is not None and pixels % model.multiple:
            below = pixels // model.multiple * model.multiple
            nearest_are = f"the nearest are {below} and {below + model.multiple}"
            raise UsageError(
                f"{model.name} can't draw a {side} of {pixels}: it is no multiple of {model.multiple}",
                nearest_are if below else f"the smallest is {model.multiple}",
            )


def check_clip_skip(model: Model, clip_skip: int) -> None:
    """Refuse to leave out more layers than the model's text encoder has to spare."""
    layers = model.encoder_layers
    if layers is not None and clip_skip >= layers:
        raise UsageError(f"{model.name}'s text encoder has {layers} layers", f"--clip-skip is at most {layers - 1}")


def count_parameters(model: Model) -> int:
    """Return how many parameters loading a model brings, read off its files' headers."""
    shapes = [
        shape for file in loaded_files(model).values() for name, shape in _shapes(file).items() if _is_loaded(name)
    ]
    return sum(math.prod(shape) for shape in shapes)


def _is_loaded(name: str) -> bool:
    # Checkpoints in one file may bring their training's moving average along.
    return not name.startswith("model_ema.")


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file in hex; where it lies in the hub's cache, its blob's name is that already."""
    about = file.stat()
    return _sha256_of(file.absolute(), about.st_size, about.st_mtime_ns)


@cache
def _sha256_of(file: Path, size: int, changed: int) -> str:
    # The link itself, not where it ends: a blob may be a link on to a store where other hashes are the names.
    target = Path(os.readlink(file)) if file.is_symlink() else file
    if target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name):
        return target.name
    with file.open("rb") as stream:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(model: Model) -> dict[str, str]:
    """Return the names of the weight files that decide pixels, with their SHA-256."""
    return {name: sha256_of(file) for name, file in loaded_files(model).items()}
