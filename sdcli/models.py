"""Which weights draw: what a name means, and what can be known of a model without loading it."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import msgspec

from sdcli.errors import BadInput, InputMissing, ModelGated, ModelUnavailable, OutputFailed, UsageError, nearest
from sdcli.options import meta

WHICH = "Which weights"
DEFAULT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEMO = "demo"
AT_ONCE = f"`--model {DEMO}` works at once, with no download"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which weights, as asked for."""

    model: Annotated[
        str,
        meta(
            "An alias, a hub id (ORG/NAME[@REVISION]), a folder, a .safetensors file, or `demo`, which is built in.",
            "--model", "-m", panel=WHICH, metavar="MODEL",
        ),
    ] = DEFAULT  # fmt: skip
    vae: Annotated[
        str | None,
        meta("Another autoencoder: a folder, a .safetensors file or a hub id.", "--vae", panel=WHICH, metavar="VAE"),
    ] = None
    safety_checker: Annotated[
        bool,
        meta("Load the model's safety checker and say what it flags.", "--safety-checker", panel=WHICH),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models that one pipeline class of diffusers draws with: what they want, and what they can't use."""

    name: str
    pipeline: str
    dtype: str
    defaults: dict[str, Any]


FAMILIES = {
    "StableDiffusionPipeline": Family(
        name="stable-diffusion",
        pipeline="StableDiffusionPipeline",
        dtype="fp16",
        defaults={"num_inference_steps": 25, "guidance_scale": 7.5},
    ),
}


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A row of the table of models that have a short name."""

    alias: str
    repo: str | None
    licence: str
    defaults: dict[str, Any] = field(default_factory=dict)


KNOWN = (
    KnownModel(alias=DEMO, repo=None, licence="CC0-1.0", defaults={"guidance_scale": 5.0}),
    KnownModel(alias="sd15", repo=DEFAULT, licence="CreativeML OpenRAIL-M"),
)
ALIASES = {k.alias: k for k in KNOWN}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A named model, as far as it is known before it is loaded.

    `path` is its folder or file here, None for one that is on the hub only. `size` is the width and height in pixels
    that it was trained for, None where its configuration is not here yet.
    """

    name: str
    family: Family | None = None
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    commit: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    multiple: int = 8
    has_safety_checker: bool | None = None
    variant: str | None = None

    @property
    def single_file(self) -> bool:
        return self.path is not None and self.path.is_file()

    @property
    def alias(self) -> str:
        """A short name, for {model} in an output's name."""
        return Path(self.name).stem if self.single_file else Path(self.name.rstrip("/")).name


def demo_folder() -> Path:
    """Return the folder of the bundled model."""
    return Path(__file__).parent / "demo"


def find(spec: ModelSpec) -> Model:
    """Return the model that a name means, looking at this machine only.

    Raises InputMissing for a path that is not there, BadInput for one that is no model, ModelUnavailable for a name
    that can't be a hub id.
    """
    name = spec.model
    known = ALIASES.get(name)
    if name == DEMO:
        model = _of_folder(Model(name=DEMO, path=demo_folder()))
    elif known is None and _is_path(name):
        path = Path(name).expanduser()
        if path.suffix in PICKLES:
            raise BadInput(
                f"{name} is a pickle checkpoint, which can run code when it is read",
                "use a .safetensors file or a folder in diffusers' layout",
            )
        if not path.exists():
            raise InputMissing(f"there is no model at {name}", AT_ONCE)
        model = _of_folder(Model(name=name, path=path)) if path.is_dir() else _of_file(Model(name=name, path=path))
    else:
        repo, _, revision = (known.repo if known and known.repo else name).partition("@")
        if repo.count("/") != 1 or not all(repo.split("/")):
            raise ModelUnavailable(f"there is no model called {name}{nearest(name, ALIASES)}", AT_ONCE)
        model = _of_cache(Model(name=name, repo=repo, revision=revision or None))
    if spec.safety_checker and model.has_safety_checker is False:
        raise UsageError(f"{name} has no safety checker", "leave --safety-checker out")
    if known is None and model.repo:
        known = next((k for k in KNOWN if k.repo == model.repo), None)
    return replace(model, defaults=(model.family.defaults if model.family else {}) | (known.defaults if known else {}))


def check_vae(name: str) -> None:
    """Refuse an autoencoder that is not there or can't be read; what is a hub id is left to the hub."""
    path = Path(name).expanduser()
    if path.suffix in PICKLES:
        raise BadInput(f"{name} is a pickle, which can run code when it is read", "use a .safetensors file")
    if not path.exists():
        if _is_path(name) or name.count("/") != 1:
            raise InputMissing(f"there is no autoencoder at {name}", "name a folder, a .safetensors file or a hub id")
    elif path.is_dir():
        _read_json(path / "config.json")
        _check_weights(path)
    else:
        read_header(path)


def _is_path(name: str) -> bool:
    path = Path(name).expanduser()
    return (
        name.startswith((".", "/", "~"))
        or path.suffix in (".safetensors", ".gguf", *PICKLES)
        or name.count("/") > 1
        or (path.exists() and "/" in name)
        or path.is_dir()
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{file} is missing", "a model's folder has the layout that diffusers saves") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} can't be read: {error}", "fetch the model again") from None
    if not isinstance(value, dict):
        raise BadInput(f"{file} is not a JSON object", "fetch the model again")
    return value


def _of_folder(model: Model) -> Model:
    """Fill in what a folder in diffusers' layout says; refuse one that can't be loaded."""
    folder = model.path
    assert folder is not None
    if not (folder / "model_index.json").exists():
        raise BadInput(
            f"{folder} is no model: it has no model_index.json", "name a folder in diffusers' layout or a .safetensors file"
        )
    index = _read_json(folder / "model_index.json")
    family = FAMILIES.get(str(index.get("_class_name")))
    if family is None:
        raise BadInput(
            f"{folder} is a {index.get('_class_name')}, which sdcli can't draw with",
            f"models of {', '.join(FAMILIES)} work",
        )
    unet, vae = _read_json(folder / "unet" / "config.json"), _read_json(folder / "vae" / "config.json")
    variants = {_check_weights(folder / part) for part in ("unet", "vae", "text_encoder")}
    factor = 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)
    sample = unet.get("sample_size", 64)
    height, width = sample if isinstance(sample, list) else (sample, sample)
    return replace(
        model,
        family=family,
        size=(width * factor, height * factor),
        multiple=factor,
        has_safety_checker=bool((index.get("safety_checker") or [None])[0]),
        # Half-precision files are taken only where every part has them: mixing precisions in silence is diffusers' way.
        variant=variants.pop() if len(variants) == 1 else None,
    )


def _check_weights(part: Path) -> str | None:
    """Refuse a component whose weights are missing, pickled or truncated; return the variant to load (None: plain)."""
    files = sorted(part.glob("*.safetensors"))
    if not files:
        if any(f.suffix in PICKLES for f in part.glob("*")):
            raise BadInput(
                f"{part} has its weights as pickles only, which can run code when they are read",
                "use a model that has .safetensors files",
            )
        raise BadInput(f"{part} has no .safetensors file", "fetch the model again")
    for file in files:
        read_header(file)
    plain = [f for f in files if len(f.name.split(".")) == 2]
    return None if plain else files[0].name.split(".")[1]


def read_header(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file (format: huggingface.co/docs/safetensors); BadInput where it is cut."""
    hint = "fetch the file again"
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if start.startswith(b"version "):
                raise BadInput(f"{file} is a Git LFS pointer, not the weights", "run `git lfs pull`")
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > min(size, 100_000_000):
                raise BadInput(f"{file} is no safetensors file, or was cut off", hint)
            header = json.loads(stream.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}", hint) from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise BadInput(f"{file} is no safetensors file", hint) from None
    if 8 + length + end != size:
        raise BadInput(f"{file} is truncated: {8 + length + end:,} bytes are declared, {size:,} are there", hint)
    return dict(header)


def _of_file(model: Model) -> Model:
    """Fill in what a single-file checkpoint says of itself."""
    assert model.path is not None
    if model.path.suffix != ".safetensors":
        raise BadInput(f"{model.path} is no .safetensors file", "name a .safetensors file or a folder in diffusers' layout")
    keys = read_header(model.path)
    if not {"model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"} <= keys.keys() or any(
        k.startswith("conditioner.embedders.1.") for k in keys
    ):
        raise BadInput(
            f"{model.path} is no Stable Diffusion 1.x or 2.x checkpoint", "other families' single files are not read yet"
        )
    config = config_of_file(model.path)
    known = _of_folder_config(config) if config else {}
    return replace(model, family=FAMILIES["StableDiffusionPipeline"], has_safety_checker=False, **known)


def config_of_file(file: Path) -> Path | None:
    """Return the folder that has the configuration of a single-file checkpoint: beside it, or the default model's."""
    for folder in (file.with_suffix(""), file.parent):
        if (folder / "model_index.json").exists():
            return folder
    return _cached(DEFAULT, None)


def _of_folder_config(folder: Path) -> dict[str, Any]:
    unet, vae = _read_json(folder / "unet" / "config.json"), _read_json(folder / "vae" / "config.json")
    factor = 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)
    side = unet.get("sample_size", 64) * factor
    return {"size": (side, side), "multiple": factor}


def _cached(repo: str, revision: str | None) -> Path | None:
    """Return the folder of a hub model in huggingface_hub's cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "model_index.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _of_cache(model: Model) -> Model:
    """Fill in what the hub's cache knows; a model that is there in whole needs no connection."""
    assert model.repo is not None
    folder = _cached(model.repo, model.revision)
    if folder is None:
        return model
    try:
        return _of_folder(replace(model, path=folder, commit=folder.name))
    except BadInput as error:
        if "truncated" in error.message or "pickle" in error.message or "can't draw" in error.message:
            raise
        return model  # a download that was interrupted: `fetch` goes on with it


def fetch(model: Model, *, safety_checker: bool, say: Callable[[str], None]) -> Model:
    """Return the model with its files here, downloading them where they are not.

    One precision is fetched, safetensors only. `say` is told name and size before anything is downloaded. The commit
    that the revision means is looked up once and pinned. Raises ModelUnavailable, ModelGated, BadInput.
    """
    if model.path is not None and (not safety_checker or model.repo is None or _has_checker_files(model.path)):
        return model
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    assert model.repo is not None
    try:
        info = HfApi().model_info(model.repo, revision=model.revision, files_metadata=True)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
        files = wanted_files(sizes, safety_checker=safety_checker, repo=model.repo)
        say(f"downloading {model.repo} ({sum(sizes[f] for f in files) / 1e9:.2f} GB) into the hub's cache")
        folder = snapshot_download(model.repo, revision=info.sha, allow_patterns=files)
    except GatedRepoError:
        raise ModelGated(
            f"{model.repo} is gated: its owner gives access person by person",
            f"ask for access at https://huggingface.co/{model.repo}, then run `hf auth login`; {AT_ONCE}",
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"revision {model.revision} of {model.repo}" if isinstance(error, RevisionNotFoundError) else model.repo
        raise ModelUnavailable(
            f"the hub has no {what}, or it is private", f"check the name; for a private one run `hf auth login`; {AT_ONCE}"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelUnavailable(f"{model.repo} is not here, and sdcli is offline", AT_ONCE) from None
    except HfHubHTTPError as error:
        raise ModelUnavailable(f"the hub refused {model.repo}: {str(error).splitlines()[0]}", f"try later; {AT_ONCE}") from None
    except (HTTPError, ConnectionError):
        raise ModelUnavailable(f"{model.repo} is not here, and the hub can't be reached", AT_ONCE) from None
    except OSError as error:
        raise OutputFailed(f"{model.repo} could not be stored: {error}", "free some disk; the download goes on where it was") from None
    fetched = _of_folder(replace(model, path=Path(folder), commit=info.sha))
    return replace(fetched, defaults=(fetched.family.defaults if fetched.family else {}) | model.defaults)


def _has_checker_files(folder: Path) -> bool:
    return not (folder / "model_index.json").exists() or any((folder / "safety_checker").glob("*.safetensors"))


def wanted_files(sizes: Iterable[str], *, safety_checker: bool, repo: str) -> list[str]:
    """Return which of a repository's files will be loaded: configurations, and one precision of each component.

    Half precision (`*.fp16.safetensors`) is taken where every component has it: it is what a GPU runs.
    """
    names = list(sizes)
    if "model_index.json" not in names:
        raise BadInput(f"{repo} is no model in diffusers' layout: it has no model_index.json", AT_ONCE)
    parts = ["unet", "vae", "text_encoder", *(["safety_checker"] if safety_checker else [])]
    weights = {p: [n for n in names if n.startswith(p + "/") and n.endswith(".safetensors")] for p in parts}
    for part, found in weights.items():
        if not found:
            raise BadInput(f"{repo} has no safetensors in {part}/ (pickles are never read)", AT_ONCE)
    halves = {p: [n for n in found if n.split(".")[-2] == "fp16"] for p, found in weights.items()}
    use_half = all(halves.values())
    chosen = halves if use_half else {p: [n for n in found if n.count(".") == 1] or found for p, found in weights.items()}
    text = (".json", ".txt", ".model")
    folders = (*parts, "tokenizer", "scheduler", *(["feature_extractor"] if safety_checker else []))
    plain = [n for n in names if n.endswith(text) and (n == "model_index.json" or n.split("/")[0] in folders)]
    return plain + [n for found in chosen.values() for n in found]


def loaded_files(model: Model) -> list[Path]:
    """Return the weight files that loading a model reads."""
    assert model.path is not None
    if model.single_file:
        return [model.path]
    mark = f".{model.variant}." if model.variant else None
    files = [f for part in ("text_encoder", "unet", "vae") for f in sorted((model.path / part).glob("*.safetensors"))]
    return [f for f in files if (mark in f.name if mark else len(f.name.split(".")) == 2)]


@cache
def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file in hex; where it lies in the hub's cache, its blob's name is that already."""
    blob = file.resolve().name
    if file.is_symlink() and len(blob) == 64 and not set(blob) - set("0123456789abcdef"):
        return blob
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL) if hasattr(os, "posix_fadvise") else None
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(model: Model) -> dict[str, str]:
    """Return the weight files of a model, by their path in its folder, with their SHA-256."""
    assert model.path is not None
    root = model.path.parent if model.single_file else model.path
    return {f.relative_to(root).as_posix(): sha256_of(f) for f in loaded_files(model)}
