"""Weight files: their names and variants, their headers, their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from sdcli.errors import BadInput, UsageError
from sdcli.models.spec import Incomplete

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
T = TypeVar("T")


def read_json(file: Path, type: type[T]) -> T:
    """Return a JSON file as `type`; Incomplete where it is not there, BadInput where it is not that."""
    try:
        content = file.read_bytes()
        if b"Infinity" in content or b"NaN" in content:
            # No JSON, but Python writes it: schedulers' configurations have lambda_min_clipped at -Infinity.
            return msgspec.convert(json.loads(content), type)
        return msgspec.json.decode(content, type=type)
    except FileNotFoundError:
        raise Incomplete(f"{file} is missing", "a model's folder has the layout that diffusers saves") from None
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}", "check its permissions") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise BadInput(f"{file} is no configuration: {error}".replace("`", ""), "fetch the model again") from error


_NAME = re.compile(
    r"(?:diffusion_pytorch_)?model(?:-\d{5}-of-(?P<old>\d{5}))?(?:\.(?P<variant>\w+))?(?:-\d{5}-of-(?P<of>\d{5}))?\.safetensors"
)


def by_variant(names: Iterable[str]) -> dict[str | None, list[str]]:
    """Return the weight files among a component's, by their variant: the whole file, or else all pieces of one set."""
    found: dict[tuple[str | None, int], list[str]] = {}
    for name in sorted(names):
        if match := _NAME.fullmatch(name.rpartition("/")[2]):
            # 0 stands for the whole: a set may have one piece.
            found.setdefault((match["variant"], int(match["old"] or match["of"] or 0)), []).append(name)
    whole: dict[str | None, list[str]] = {}
    for (variant, pieces), names in sorted(found.items(), key=lambda item: item[0][1]):
        if len(names) == (pieces or 1):
            whole.setdefault(variant, names)
    return whole


def common_variant(components: Mapping[str, Iterable[str]], prefer: Sequence[str], where: str) -> str | None:
    """Return the variant that all components have: the first that is preferred, the plain one, or else any."""
    kinds = []
    for part, names in components.items():
        names = list(names)
        kinds.append(set(by_variant(names)))
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
    for variant in (*prefer, None):
        if variant in common:
            return variant
    return sorted(filter(None, common))[0]


def files_in(folder: Path) -> list[str]:
    return [f.name for f in folder.iterdir()] if folder.is_dir() else []


def check_weights(folder: Path, parts: Sequence[str], prefer: Sequence[str] = ()) -> str | None:
    """Return the variant to load of a folder's components (None: plain); refuse pickles and what is cut off."""
    names = {part: files_in(folder / part) for part in parts}
    variant = common_variant(names, prefer, str(folder))
    for part in parts:
        for name in by_variant(names[part])[variant]:
            read_header(folder / part / name)
    return variant


def read_header(file: Path) -> dict[str, Any]:
    """Return what a weight file's header says of its tensors: `dtype` and `shape` by name; BadInput where it is cut.

    Formats: huggingface.co/docs/safetensors, and GGUF (github.com/ggml-org/ggml, docs/gguf.md).
    """
    return _gguf_header(file) if file.suffix.lower() == ".gguf" else _safetensors_header(file)


def _gguf_header(file: Path) -> dict[str, Any]:
    if find_spec("gguf") is None:
        raise UsageError(f"{file} is GGUF, and the package gguf is not installed", "pip install 'sdcli[gguf]'")
    from gguf import GGUFReader

    # What its reader raises for a file that is none, or was cut off, has no common base.
    try:
        tensors = GGUFReader(file).tensors
        # GGUF counts dimensions from the innermost.
        return {t.name: {"dtype": t.tensor_type.name, "shape": [int(n) for n in reversed(t.shape)]} for t in tensors}
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{file} is no GGUF file, or was cut off: {reason}", "fetch the file again") from error


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Tensor(msgspec.Struct):
    """What a safetensors header says of a tensor."""

    dtype: str
    shape: list[_Count]
    data_offsets: tuple[_Count, _Count]


def _safetensors_header(file: Path) -> dict[str, Any]:
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
        tensors = msgspec.convert({k: v for k, v in header.items() if k != "__metadata__"}, dict[str, _Tensor])
        whole = 8 + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}", hint) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadInput(f"{file} is no safetensors file", hint) from error
    if whole != size:
        raise BadInput(f"{file} is truncated: {whole:,} bytes are declared, {size:,} are there", hint)
    return header


def shapes_of(file: Path) -> dict[str, list[int]]:
    return {name: entry.get("shape", []) for name, entry in read_header(file).items() if name != "__metadata__"}


def channels_of(shapes: Mapping[str, Sequence[int]], key: str) -> int | None:
    """Return how many channels a layer's weight (out, in, ...) takes in."""
    shape = shapes.get(key, ())
    return shape[1] if len(shape) > 1 else None


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file in hex, without reading it where that is known already.

    Where it lies in the hub's cache, its blob's name is that; of other files it is remembered (see `remembered`).
    """
    about = file.stat()
    return _sha256_of(file.absolute(), about.st_size, about.st_mtime_ns, about.st_ino)


@cache
def _sha256_of(file: Path, size: int, changed: int, inode: int) -> str:
    if named := named_sha256(file):
        return named
    from sdcli.models import remembered

    about = file.stat()
    found = remembered.recall(file, about)
    if found is None:
        found = digest(file)
        remembered.remember(file, about, found)
    return found


def named_sha256(file: Path) -> str | None:
    """Return the SHA-256 that the hub's cache has named a file with, None for one that does not lie there."""
    # The link itself, not where it ends: a blob may be a link on to a store where other hashes are the names.
    target = Path(os.readlink(file)) if file.is_symlink() else file
    named = target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name)
    return target.name if named and _in_hubs_cache(file) else None


def _in_hubs_cache(file: Path) -> bool:
    from huggingface_hub import constants

    cache, place = Path(constants.HF_HUB_CACHE).absolute(), file.absolute()
    # A repository in the cache may be a link to another disk; with .. in it, a name says nothing of its place.
    if ".." not in place.parts and cache in place.parents:
        return True
    return cache.resolve() in (place.parent.resolve() / place.name).parents


def digest(file: Path) -> str:
    """Return the SHA-256 of a file in hex; it is read from end to end."""
    with file.open("rb") as stream:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return hashlib.file_digest(stream, "sha256").hexdigest()
