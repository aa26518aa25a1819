"""Adapters: which file a name means, what records keep of it, and whether it fits a model."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from sdcli.errors import BadInput, InputMissing, ModelUnavailable, SdcliError, UsageError, nearest
from sdcli.models.cache import cached
from sdcli.models.hub import Say, download
from sdcli.models.known import AT_ONCE
from sdcli.models.spec import Incomplete, Model, Weights
from sdcli.models.weights import (
    PICKLES,
    by_variant,
    check_weights,
    common_variant,
    files_in,
    read_header,
    read_json,
    sha256_of,
    shapes_of,
)
from sdcli.request import Adapter

Kind = Literal["lora", "embedding", "controlnet", "ip_adapter"]
WHAT: Mapping[Kind, str] = {
    "lora": "LoRA",
    "embedding": "embedding",
    "controlnet": "ControlNet",
    "ip_adapter": "IP-Adapter",
}
SUFFIX = ".safetensors"
# What diffusers' own scripts call the file, in a repository that has several.
USUAL: Mapping[Kind, str] = {"lora": "pytorch_lora_weights.safetensors", "embedding": "learned_embeds.safetensors"}
ENCODER = "image_encoder"
_HUB = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:@(?P<revision>[\w.+-]+))?"
    r"(?:/(?P<file>(?:[\w .+()-]+/)*[^/\\\0]+\.safetensors))?"
)
LONGEST_TOKEN = 100


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a name means. `path` is its file of weights, or a ControlNet's folder in diffusers' layout; None for what is on
    the hub only. `file` is the file in its repository, `variant` the middle of a folder's weight files' names (`fp16`).
    """

    kind: Kind
    adapter: Adapter
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    commit: str | None = None
    variant: str | None = None

    @property
    def name(self) -> str:
        """The name that records keep: without a folder, or the hub's."""
        if self.repo is not None:
            return f"{self.repo}/{self.file}" if self.file else self.repo
        return self.path.absolute().name if self.path is not None else self.adapter.name

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files that are read: one, or the pieces of a ControlNet's set."""
        path = _here(self)
        if path.is_file():
            return (path,)
        return tuple(path / name for name in by_variant(files_in(path))[self.variant])


def _here(found: Found) -> Path:
    if found.path is None:
        raise ModelUnavailable(
            f"the {WHAT[found.kind]} {found.adapter.name} is not on this machine",
            "it is fetched from the hub when a picture is drawn with it",
        )
    return found.path


def in_force(adapters: Iterable[Adapter]) -> tuple[Adapter, ...]:
    """Return the adapters that do something: at scale 0 they are left out, and the pixels are those without."""
    return tuple(a for a in adapters if a.scale)


# Finding


def find(kind: Kind, adapter: Adapter, folders: Sequence[Path] = ()) -> Found:
    """Return what a name means, looking at this machine only: a path, a name in one of `folders`, or a hub id.

    An adapter with a hash comes from a record: its name is looked for in the folders and the hub's cache, is never a path, and
    must have that hash. Raises InputMissing, BadInput, UsageError and ModelUnavailable.
    """
    name, what = adapter.name, WHAT[kind]
    if not name.strip() or "\0" in name:
        raise UsageError(f"this can't be the name of a file: {name!r}", f"name a {SUFFIX} file or a hub id")
    if PurePosixPath(name).suffix.lower() in PICKLES:
        raise BadInput(f"{name} is a pickle, which can run code when it is read", f"use a {SUFFIX} file")
    try:
        if adapter.sha256 is not None:
            return _recorded(kind, adapter, folders)
        path = _as_path(kind, name)
        if path is not None:
            return _at(Found(kind=kind, adapter=adapter, path=path))
        named = _named(kind, name, folders)
    except OSError as error:
        raise BadInput(f"{name} can't be looked at: {error.strerror or error}", "check its permissions") from error
    if named:
        if len(named) > 1:
            raise UsageError(
                f"there are several called {name}: {', '.join(map(str, named))}", "name one by its whole path"
            )
        return _at(Found(kind=kind, adapter=adapter, path=named[0]))
    if (match := _HUB.fullmatch(name)) and ".." not in name:
        repo, revision, file = match["repo"], match["revision"], match["file"]
        return _of_cache(Found(kind=kind, adapter=adapter, repo=repo, revision=revision, file=file))
    places = " or ".join(str(f) if f.parts else "the current folder" for f in folders)
    raise ModelUnavailable(
        f"there is no {what} called {name}{nearest(_stem(name), _names(kind, folders))}",
        f"name a {SUFFIX} file, a hub id, or one that lies in {places}"
        if places
        else f"name a {SUFFIX} file or a hub id",
    )


def _stem(name: str) -> str:
    return name.removesuffix(SUFFIX)


def _as_path(kind: Kind, name: str) -> Path | None:
    """Return a name as a path that is there, None where it is a bare name or a hub id."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # the home of a user that there is not
        path = Path(name)
    said = name.startswith((".", "/", "~/"))
    bare = "/" not in name and path.suffix.lower() != SUFFIX and not said
    if bare:
        return path if kind == "controlnet" and _is_control(path) else None
    if path.exists():
        return path
    if said:
        raise InputMissing(f"there is no {WHAT[kind]} at {name}", f"name a {SUFFIX} file or a hub id")
    return None


def _named(kind: Kind, name: str, folders: Iterable[Path]) -> list[Path]:
    """Return the files of a name in the first folder that has any: one that lies in it, or else those in its folders."""
    if re.search(r"[/\\]", name) or name in (".", ".."):
        return []
    for folder in folders:
        for path in (folder / name, folder / (name + SUFFIX)):
            if (path.is_file() and path.name.endswith(SUFFIX)) or (kind == "controlnet" and _is_control(path)):
                return [path]
        if found := [f for f in _listed(kind, folder) if f.name in (name, name + SUFFIX)]:
            return found
    return []


def _is_control(path: Path) -> bool:
    return (path / "config.json").is_file()


def _listed(kind: Kind, folder: Path) -> Iterator[Path]:
    """Yield the files in a folder, and in its folders, that could be meant, and for a ControlNet those folders."""
    folders = [f for f in sorted(folder.glob("*/")) if kind == "controlnet" and _is_control(f)]
    yield from folders
    for pattern in ("*" + SUFFIX, "*/*" + SUFFIX):
        yield from (f for f in sorted(folder.glob(pattern)) if f.is_file() and f.parent not in folders)


def _names(kind: Kind, folders: Iterable[Path]) -> list[str]:
    return [_stem(f.name) for folder in folders for f in _listed(kind, folder)]


def _at(found: Found) -> Found:
    """Fill in what a path says; refuse what can't be read."""
    path = _here(found)
    if path.is_dir():
        if found.kind != "controlnet":
            raise BadInput(f"{path} is a folder", f"name the {SUFFIX} file in it")
        if not _is_control(path):
            raise BadInput(f"{path} is no ControlNet: it has no config.json", "name a folder in diffusers' layout")
        return replace(found, variant=check_weights(path, [""], ("fp16",) if found.repo else ()))
    if path.suffix.lower() != SUFFIX:
        raise BadInput(f"{path} is no {SUFFIX} file", f"name a {SUFFIX} file or a hub id")
    if not path.is_file():
        raise BadInput(f"{path} is no file", f"name a {SUFFIX} file or a hub id")
    read_header(path)
    return found


def _recorded(kind: Kind, adapter: Adapter, folders: Sequence[Path]) -> Found:
    """Return the adapter that a record names; its hash decides."""
    for path in _named(kind, re.split(r"[/\\]", adapter.name)[-1], folders):
        found = _at(Found(kind=kind, adapter=adapter, path=path))
        if sha256(found) == adapter.sha256:
            return found
    match = _HUB.fullmatch(adapter.name)
    if match and ".." not in adapter.name and match["revision"] is None:
        revision = adapter.commit
        if revision is None or re.fullmatch("[0-9a-f]{6,64}", revision):
            repo, file = match["repo"], match["file"]
            found = _of_cache(Found(kind=kind, adapter=adapter, repo=repo, revision=revision, file=file))
            if found.path is None or sha256(found) == adapter.sha256:
                return found
    raise _other(kind, adapter)


def _other(kind: Kind, adapter: Adapter) -> ModelUnavailable:
    return ModelUnavailable(
        f"it was drawn with the {WHAT[kind]} {adapter.name} (SHA-256 {str(adapter.sha256)[:12]}...), which is not here",
        f"give it with --{kind.replace('_', '-')}, or put it into the folder of adapters",
    )


# The hub


def _of_cache(found: Found) -> Found:
    """Fill in what the hub's cache knows; what is there in whole needs no connection."""
    assert found.repo is not None
    usual = "config.json" if found.kind == "controlnet" and found.file is None else found.file or USUAL.get(found.kind)
    folder = cached(found.repo, found.revision, usual) if usual else None
    if folder is not None:
        for _ in PurePosixPath(str(usual)).parts[1:]:
            folder = folder.parent
    elif found.file is None and found.kind != "controlnet":
        folder = _snapshot(found.repo, found.revision)
    if folder is None:
        return found
    try:
        return _of_snapshot(found, folder)
    except (Incomplete, UsageError):
        # A download that was interrupted, or of another file: `fetch` goes on with it.
        return found


def _snapshot(repo: str, revision: str | None) -> Path | None:
    """Return what the hub's cache has of a repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _of_snapshot(found: Found, folder: Path) -> Found:
    names = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()]
    file = _file_of(found, names)
    found = replace(found, file=file, commit=folder.name, path=folder / file if file else folder)
    found = _at(found)
    if found.kind == "ip_adapter":
        check_weights(encoder_of(found), [""])
    return found


def _file_of(found: Found, names: Sequence[str]) -> str | None:
    """Return which of a repository's files has the weights; None for a ControlNet's folder."""
    repo = found.repo
    if found.file is not None:
        if found.file not in names:
            raise Incomplete(f"{repo} has no {found.file}{nearest(found.file, names)}", "name a file that it has")
        return found.file
    if found.kind == "controlnet":
        return None
    if USUAL.get(found.kind) in names:
        return USUAL[found.kind]
    files = [n for n in names if n.endswith(SUFFIX) and ENCODER not in n.split("/")]
    if len(files) > 1:
        shown = ", ".join(sorted(files)[:12])
        raise UsageError(f"{repo} has several files of weights: {shown}", f"name one: {repo}/{sorted(files)[0]}")
    if not files and any(n.endswith(PICKLES) for n in names):
        raise Incomplete(
            f"{repo} has its weights as pickles only, which can run code when they are read",
            f"use one with a {SUFFIX} file",
        )
    if not files:
        raise Incomplete(f"{repo} has no {SUFFIX} file", "name another")
    return files[0]


def ready(kind: Kind, adapter: Adapter, folders: Sequence[Path], say: Say) -> Found:
    """Return what a name means with its files here, downloading them where they are not."""
    return fetch(find(kind, adapter, folders), say)


def fetch(found: Found, say: Say) -> Found:
    """Return an adapter with its files here. `say` is told name and size before anything is downloaded.

    Raises ModelUnavailable, ModelGated, BadInput, and UsageError where a repository has several files.
    """
    if found.path is not None:
        return found
    wanted = Weights(name=found.adapter.name, repo=found.repo, revision=found.revision)
    try:
        folder = download(wanted, lambda names: _first_wanted(found, names), say)
        if found.kind == "ip_adapter":
            file = folder / str(_file_of(found, [f.relative_to(folder).as_posix() for f in folder.rglob("*")]))
            encoder = encoder_of(replace(found, path=file)).relative_to(folder).as_posix()
            pinned = replace(wanted, revision=folder.name)
            folder = download(pinned, lambda names: _wanted_folder(str(found.repo), encoder + "/", names), say)
        found = _of_snapshot(found, folder)
    except Incomplete as error:
        raise BadInput(error.message, error.hint) from error
    except SdcliError as error:
        if error.hint:  # another model is no adapter
            error.hint = error.hint.removesuffix(AT_ONCE).removesuffix("; ") or None
        raise
    if found.adapter.sha256 not in (None, sha256(found)):
        raise _other(found.kind, found.adapter)
    return found


def _first_wanted(found: Found, names: Sequence[str]) -> list[str]:
    file = _file_of(found, names)
    if file is None:
        return _wanted_folder(str(found.repo), "", names)
    if found.kind != "ip_adapter":
        return [file]
    # Its weights say which image encoder they were trained with.
    configs = [f"{folder.as_posix()}/config.json" for folder in _encoder_folders(PurePosixPath(file))]
    return [file, *(c for c in configs if c in names)]


def _wanted_folder(repo: str, folder: str, names: Sequence[str]) -> list[str]:
    """Return a configuration and one precision of its weights, in a folder of a repository."""
    inside = [n for n in names if n.startswith(folder) and "/" not in n.removeprefix(folder)]
    if f"{folder}config.json" not in inside:
        raise BadInput(f"{repo} is no ControlNet in diffusers' layout: it has no config.json", "name a file in it")
    variant = common_variant({folder.rstrip("/"): inside}, ("fp16",), repo)
    return [f"{folder}config.json", *by_variant(inside)[variant]]


# What records keep


def sha256(found: Found) -> str:
    """Return the SHA-256 of the weights in hex; of weights in pieces, over the lines `SHA-256  NAME` of all."""
    import hashlib

    files = found.weights
    if len(files) == 1:
        return sha256_of(files[0])
    lines = (f"{sha256_of(f)}  {f.name}\n" for f in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def pin(found: Found) -> Adapter:
    """Return an adapter that was found as records keep it; one out of a record stays as it is."""
    if found.adapter.sha256 is not None:
        return found.adapter
    token = embedding_vectors(found)[0] if found.kind == "embedding" else found.adapter.token
    return msgspec.structs.replace(
        found.adapter, name=found.name, sha256=sha256(found), commit=found.commit, token=token
    )


# Words in a prompt

_TAG = re.compile(r"(?<![ \t])[ \t]*+<(?P<kind>lora|lyco|hypernet):(?P<rest>[^<>]*)>")


def tags(prompt: str) -> tuple[str, tuple[Adapter, ...]]:
    """Return a prompt without its `<lora:NAME>` and `<lora:NAME:WEIGHT>`, and the LoRAs that they name, in their order.

    As AUTOMATIC1111's stable-diffusion-webui reads them (extensions-builtin/Lora); a second weight, for the U-Net, must equal
    the first, and other kinds are refused. The names are those of files in the folder of adapters, and never paths.
    """
    found: list[Adapter] = []

    def take(match: re.Match[str]) -> str:
        tag = match[0].strip()
        if match["kind"] != "lora":
            raise UsageError(f"sdcli does not know {tag}", "it reads <lora:NAME:WEIGHT>")
        name, *weights = match["rest"].split(":")
        found.append(Adapter(name=_tag_name(name.strip(), tag), scale=_tag_weight(weights, tag)))
        return ""

    return _TAG.sub(take, prompt).strip(" \t") if "<" in prompt else prompt, tuple(found)


def _tag_name(name: str, tag: str) -> str:
    while name.lower().endswith(SUFFIX):  # A bare name is looked for in the folders only.
        name = name[: -len(SUFFIX)]
    if not name or re.search(r"[/\\\0]", name) or name.startswith((".", "~")):
        raise UsageError(f"{tag} names no file in the folder of adapters", "a file elsewhere is given with --lora")
    return name


def _tag_weight(weights: Sequence[str], tag: str) -> float:
    wrong = UsageError(f"{tag} has no weight that can be read", "it is <lora:NAME:WEIGHT>, for example <lora:name:0.8>")
    read = []
    for text in weights:
        text = re.sub(r"^(te|unet)=", "", text.strip())
        try:
            read.append(float(text))
        except ValueError:
            raise wrong from None
    if not all(math.isfinite(w) and abs(w) <= 100 for w in read) or len(read) > 2:
        raise wrong
    if len(set(read)) > 1:
        raise UsageError(
            f"{tag} has one weight for the text encoder and another for the U-Net, which sdcli does not tell apart",
            "give one weight",
        )
    return read[0] if read else 1.0


# Embeddings

_CLIP = ("clip_l", "clip_g")
_A1111 = ("emb_params", "string_to_param", "string_to_param.*", "*")


def embedding_keys(found: Found) -> dict[str, str]:
    """Return the tensors of an embedding's file, by the text encoder that each is for."""
    shapes, name = shapes_of(_here(found)), found.name
    if set(shapes) & set(_CLIP):
        wanted = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    else:
        wanted = {"text_encoder": next((k for k in _A1111 if k in shapes), next(iter(shapes), ""))}
    vectors = {part: shapes.get(key, []) for part, key in wanted.items()}
    if set(wanted.values()) != set(shapes) or not all(_is_vectors(s) for s in vectors.values()):
        raise BadInput(f"{name} is no embedding (textual inversion)", "it has one tensor, or clip_l and clip_g (SDXL)")
    if len({_rows(s) for s in vectors.values()}) > 1:
        raise BadInput(f"{name} has not as many vectors for each text encoder", "fetch the file again")
    return wanted


def _is_vectors(shape: Sequence[int]) -> bool:
    return len(shape) in (1, 2) and 0 < _rows(shape) <= 1000 and shape[-1] > 0


def _rows(shape: Sequence[int]) -> int:
    return shape[0] if len(shape) == 2 else 1


def embedding_vectors(found: Found) -> tuple[str, int]:
    """Return the word that an embedding is called by in a prompt, and how many tokens it stands for.

    The word is the one that was asked for, else the one that a file of diffusers' format says, else the file's name; in small
    letters, as CLIP reads all text (with others diffusers would not find the second vector).
    """
    key = embedding_keys(found)["text_encoder"]
    path = _here(found)
    token = found.adapter.token
    if token is None:
        token = path.stem if key in (*_CLIP, *_A1111) else key
    token = unicodedata.normalize("NFC", token).lower()
    if not token or not token.isprintable() or len(token) > LONGEST_TOKEN or token != " ".join(token.split()):
        raise BadInput(f"{found.name} has no word that a prompt could call it by", "give one: --embedding FILE=WORD")
    return token, _rows(shapes_of(path)[key])


# Whether it fits

# diffusers' loaders. Flux and Chroma load embeddings too, into the encoder that they read no words with; theirs and SD3's
# IP-Adapters are loaded in ways of their own.
_WORDS = frozenset({"StableDiffusionPipeline", "StableDiffusionXLPipeline", "LatentConsistencyModelPipeline"})
_CONTROLLED = frozenset({"StableDiffusionPipeline", "StableDiffusionXLPipeline"})
_NO_LORA = frozenset(
    {
        "PixArtAlphaPipeline", "PixArtSigmaPipeline", "LuminaPipeline", "HunyuanDiTPipeline", "CogView3PlusPipeline",
        "OvisImagePipeline", "KandinskyV22CombinedPipeline",
    }
)  # fmt: skip


def takes(kind: Kind, class_name: str) -> bool:
    """Whether the pipeline of a family, by its class's name, takes adapters of a kind."""
    if kind == "lora":
        return class_name not in _NO_LORA
    return class_name in (_CONTROLLED if kind == "controlnet" else _WORDS)


def check_kind(kind: Kind, model: Model) -> None:
    """Refuse a kind of adapter that the model's family can't take. UsageError."""
    family = model.family
    if family is not None and not takes(kind, family.class_name):
        error = UsageError(
            f"{model.name} ({family.name}) can't use {_A[kind]}: its pipeline does not load any",
            f"leave --{kind.replace('_', '-')} out",
        )
        error.field = kind
        raise error
    if kind == "lora" and find_spec("peft") is None:
        raise UsageError("a LoRA needs the package peft, which is not installed", "pip install 'sdcli[lora]'")


def check(kind: Kind, found: Found, model: Model) -> None:
    """Refuse an adapter that was made for another model, by its file's header, as far as the model's configuration is here.

    Raises UsageError for a family that takes none of its kind, BadInput for a file that does not fit.
    """
    check_kind(kind, model)
    if found.path is None or model.family is None or model.configs is None:
        return
    fits = {"lora": _check_lora, "embedding": _check_embedding, "controlnet": _check_control, "ip_adapter": _check_ip}
    fits[kind](found, model)


def _config(model: Model, part: str) -> dict[str, Any]:
    assert model.configs is not None
    file = model.configs / part / "config.json"
    return read_json(file, dict[str, Any]) if file.exists() else {}


def _width(model: Model) -> int | None:
    """Return how wide the words are that the model's U-Net attends to."""
    assert model.family is not None
    found = _config(model, model.family.denoiser).get("cross_attention_dim")
    found = next(iter(found), None) if isinstance(found, list) else found
    return found if isinstance(found, int) else None


def _hidden(model: Model, part: str) -> int | None:
    """Return how wide a text encoder's embeddings are, None where the model has no such part."""
    if part not in model.components:
        return None
    config = _config(model, part)
    found = config.get("hidden_size", config.get("d_model"))
    return found if isinstance(found, int) else None


def _of_width(width: int) -> str:
    known = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL's refiner", 2048: "SDXL"}
    return f"for {known[width]}" if width in known else "for another model"


def _misfit(found: Found, model: Model, made_for: str, why: str) -> BadInput:
    return BadInput(
        f"{found.name} is {_A[found.kind]} {made_for}, and does not fit {model.name}: {why}",
        "use one that was made for this model, or the model that it was made for",
    )


_A = {kind: f"{'an' if what[0] in 'eI' else 'a'} {what}" for kind, what in WHAT.items()}
_DOWN = re.compile(r"(?:lora_down|lora_A|lora\.down|lora_linear_layer\.down)(?:\.default)?\.weight$")
_LYCORIS = re.compile(r"\.(?:hada_w|lokr_w|oft_|boft_|glora|lora_mid|a1\.weight|b1\.weight|on_input|diff(?:_b)?$)")
_UNET = re.compile(r"^(?:unet\.|lora_unet_)(?:down|mid|up|input|middle|output|conv|time|label|add|out)")
_TRANSFORMER = re.compile(
    r"^transformer\.|^diffusion_model\.|double_blocks|single_blocks|joint_blocks|single_transformer_blocks"
)
_TEXTS = (("text_encoder", r"^(?:text_encoder\.|lora_te1?_)"), ("text_encoder_2", r"^(?:text_encoder_2\.|lora_te2_)"))


def lora_layers(keys: Iterable[str]) -> list[str]:
    """Return the layers that a LoRA changes: among the keys of its file, those of their first halves."""
    return [k for k in keys if _DOWN.search(k)]


def _check_lora(found: Found, model: Model) -> None:
    shapes = shapes_of(_here(found))
    if odd := next((k for k in shapes if _LYCORIS.search(k)), None):
        raise BadInput(
            f"{found.name} is a LyCORIS of a kind that diffusers can't read ({odd})", "use a plain LoRA or LoCon"
        )
    layers = {k: shapes[k] for k in lora_layers(shapes)}
    if not layers:
        raise BadInput(f"{found.name} is no LoRA: no key of it fits", "name a LoRA's file")
    assert model.family is not None
    by_transformer = any(_TRANSFORMER.search(k) for k in layers)
    if model.family.denoiser == "unet" and by_transformer:
        raise _misfit(found, model, "for a transformer (Flux, SD3 ...)", f"{model.family.name} has a U-Net")
    if model.family.denoiser != "unet":
        if any(_UNET.search(k) for k in layers) and not by_transformer:
            raise _misfit(found, model, "for a U-Net", f"{model.family.name} has a transformer")
        return
    known = [k for k in layers if _UNET.search(k) or any(re.search(p, k) for _, p in _TEXTS)]
    if not known:
        first = next(iter(layers))
        raise BadInput(f"no key of {found.name} fits {model.name}; the first is {first}", "name another LoRA")
    width = _width(model)
    for key, shape in layers.items():
        made = shape[1] if len(shape) > 1 else None
        if re.search(r"attn2[._](?:processor[._])?to_[kv][._]", key) and made and width and made != width:
            why = f"its words are {made} wide, and not {width}"
            raise _misfit(found, model, _of_width(made), why)
        for part, pattern in _TEXTS:
            if not re.search(pattern, key):
                continue
            hidden = _hidden(model, part)
            if hidden is None:
                raise _misfit(found, model, "for SDXL", f"{model.name} has one text encoder")
            if re.search(r"(?:q_proj|k_proj|v_proj|to_[qkv])[._]", key) and made and made != hidden:
                why = f"its text encoder is {made} wide, and not {hidden}"
                raise _misfit(found, model, "for another model", why)


def _check_embedding(found: Found, model: Model) -> None:
    shapes, keys = shapes_of(_here(found)), embedding_keys(found)
    embedding_vectors(found)
    encoders = [p for p in ("text_encoder", "text_encoder_2") if p in model.components]
    if set(keys) != set(encoders):
        made = "for two text encoders (SDXL)" if len(keys) > 1 else "for one text encoder"
        raise _misfit(found, model, made, f"{model.name} has {'two' if len(encoders) > 1 else 'one'}")
    for part, key in keys.items():
        made_for, hidden = shapes[key][-1], _hidden(model, part)
        if hidden is not None and made_for != hidden:
            why = f"its vectors are {made_for} wide, and not {hidden}"
            raise _misfit(found, model, _of_width(made_for) if len(keys) == 1 else "for another model", why)


def _check_control(found: Found, model: Model) -> None:
    path, width = _here(found), _width(model)
    assert model.family is not None
    if path.is_file():
        shapes = shapes_of(path)
        if "lora_controlnet" in shapes:
            raise BadInput(f"{found.name} is a Control-LoRA, which sdcli can't use", "use a whole ControlNet")
        if not any(re.search(r"controlnet_cond_embedding|input_hint_block", k) for k in shapes):
            raise BadInput(f"{found.name} is no ControlNet: no key of it fits", "name a ControlNet's file or folder")
        made = next((s[1] for k, s in shapes.items() if k.endswith("attn2.to_k.weight") and len(s) > 1), None)
        if made is not None and width is not None and made != width:
            raise _misfit(found, model, _of_width(made), f"its words are {made} wide, and not {width}")
        return
    config = read_json(path / "config.json", dict[str, Any])
    if config.get("_class_name") != "ControlNetModel":
        raise BadInput(f"{found.name} is no ControlNetModel (it is {config.get('_class_name')})", "name another")
    own = _config(model, model.family.denoiser)
    for field in ("cross_attention_dim", "block_out_channels", "in_channels", "addition_embed_type"):
        made, wanted = config.get(field), own.get(field)
        if made != wanted and (field in config and field in own):
            known = _of_width(made) if field == "cross_attention_dim" and isinstance(made, int) else "for another model"
            raise _misfit(found, model, known, f"its {field} is {made}, and not {wanted}")


# The first layer of an image projection, by the kinds that diffusers knows, and whether it reads the encoder's last layer.
_PROJECTIONS = (
    ("image_proj.proj.weight", True),
    ("image_proj.proj_in.weight", False),
    ("image_proj.proj.0.weight", False),
)


def _check_ip(found: Found, model: Model) -> None:
    shapes, width = shapes_of(_here(found)), _width(model)
    keys = [k for k in shapes if re.fullmatch(r"ip_adapter\.\d+\.to_k_ip\.weight", k)]
    faces = "image_proj.norm.weight" in shapes and "image_proj.proj_in.weight" not in shapes
    if any("_lora." in k or "perceiver_resampler" in k for k in shapes) or (
        faces and "image_proj.proj.3.weight" not in shapes and "image_proj.proj.0.weight" in shapes
    ):
        raise BadInput(f"{found.name} is a FaceID IP-Adapter, which reads faces that sdcli can't find", "use another")
    if not keys or not any(k in shapes for k, _ in _PROJECTIONS):
        raise BadInput(f"{found.name} is no IP-Adapter: no key of it fits", "name an IP-Adapter's file")
    made = shapes[keys[0]][-1]
    if width is not None and made != width:
        raise _misfit(found, model, _of_width(made), f"its words are {made} wide, and not {width}")
    encoder_of(found)


def _encoder_folders(file: PurePosixPath) -> tuple[PurePosixPath, ...]:
    """Return where an IP-Adapter's image encoder may lie; SDXL's share Stable Diffusion's in h94/IP-Adapter."""
    above = file.parent.parent
    places = (file.parent / ENCODER, above / ENCODER, above / "models" / ENCODER)
    return tuple(dict.fromkeys(p for p in places if ".." not in p.parts))


def encoder_of(found: Found) -> Path:
    """Return the folder of the image encoder that an IP-Adapter was trained with; BadInput where it is not there."""
    path = _here(found)
    shapes = shapes_of(path)
    first, last = next(((k, last) for k, last in _PROJECTIONS if k in shapes), ("", True))
    wanted = shapes.get(first, [0])[-1]
    others = []
    for folder in (Path(p) for p in _encoder_folders(PurePosixPath(path.absolute().as_posix()))):
        if not (folder / "config.json").is_file():
            continue
        config = read_json(folder / "config.json", dict[str, Any])
        gives = config.get("projection_dim", 512) if last else config.get("hidden_size", 768)
        if gives == wanted:
            return folder
        others.append(f"that in {folder} gives {gives} numbers, and it reads {wanted}")
    raise Incomplete(
        f"{found.name} has no image encoder beside it" + "".join(f"; {o}" for o in others),
        f"put the folder {ENCODER} of its repository beside the file, or name it as the hub does: OWNER/NAME/FOLDER/FILE",
    )
