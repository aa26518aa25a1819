"""The files that a request names: found, refused where they are not what they are taken for, and kept by name and content."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from sdcli import models, pictures
from sdcli.errors import BadInput, InputMissing
from sdcli.models import Model, adapters
from sdcli.models.adapters import Kind
from sdcli.models.hub import Say
from sdcli.pipeline import upscaling
from sdcli.pipeline.requests import KINDS, PICTURES, resolve
from sdcli.request import Adapter, File, GenerationRequest

# What a picture is called that came through a pipe, and what its like is looked for among.
STDIN = "stdin"
ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".tif", ".tiff", ".bmp"}
MOST_LOOKED_AT = 1000


def pinned(request: GenerationRequest, model: Model, say: Say | None = None) -> GenerationRequest:
    """Return a request as records keep it, and as ids are made of it: files by their names, without folders, and SHA-256.

    With `say`, which is told of it, what is on the hub only is fetched.

    Raises InputMissing, BadInput and ModelUnavailable for files that are not there or not what they are taken for.
    """
    changed: dict[str, Any] = {
        name: pinned_picture(value) for name in PICTURES if isinstance(value := getattr(request, name), str)
    }
    for kind in KINDS:
        if found := getattr(request, kind):
            changed[kind] = tuple(_pinned_adapter(kind, one, model, say) for one in found)
    if request.upscale is not None and request.upscale.sha256 is None:
        if say is not None:
            upscaling.fetch(request.upscale, say)
        changed["upscale"] = upscaling.pinned(request.upscale)
    return msgspec.structs.replace(request, **changed) if changed else request


def pinned_picture(path: str) -> File:
    return File(name=Path(path).name, sha256=pictures.sha256_of(path))


def _pinned_adapter(kind: Kind, adapter: Adapter, model: Model, say: Say | None) -> Adapter:
    found = adapters.find(kind, adapter, model.adapter_folders)
    adapter = adapters.pin(adapters.fetch(found, say) if say is not None else found)
    if isinstance(adapter.image, str):
        adapter = msgspec.structs.replace(adapter, image=pinned_picture(adapter.image))
    return adapter


def located(request: GenerationRequest, folders: Sequence[Path]) -> GenerationRequest:
    """Return a request out of a record with the paths of the files that it names, where files with those names and that content
    lie in one of the folders. Others stay as they are, and are refused by `check`."""

    def place(value: str | File | None) -> str | File | None:
        if not isinstance(value, File):
            return value
        found = pictures.find(value.name, value.sha256, folders) or _unnamed(value, folders)
        return str(found) if found is not None else value

    changed: dict[str, Any] = {name: place(getattr(request, name)) for name in PICTURES}
    for kind in KINDS:
        moved = (msgspec.structs.replace(a, image=place(a.image)) for a in getattr(request, kind))
        changed[kind] = tuple(_placed(adapter, folders) for adapter in moved)
    if request.upscale is not None:
        changed["upscale"] = upscaling.located(request.upscale, folders)
    changed = {name: value for name, value in changed.items() if value != getattr(request, name)}
    return msgspec.structs.replace(request, **changed) if changed else request


def _unnamed(value: File, folders: Sequence[Path]) -> Path | None:
    """Return a picture with the content of one that came through a pipe, whatever it is called."""
    if value.name != STDIN:
        return None
    for folder in folders:
        with suppress(OSError):
            names = sorted(f.name for f in folder.iterdir() if f.suffix.lower() in ENDINGS)
            for name in names[:MOST_LOOKED_AT]:
                if found := pictures.find(name, value.sha256, [folder]):
                    return found
    return None


def check_recorded(request: GenerationRequest) -> None:
    """Refuse a record that names a file by a path: sdcli writes names and hashes, and a path in a picture is nobody's to open."""
    named = [a for kind in KINDS for a in getattr(request, kind)]
    said = [getattr(request, name) for name in PICTURES] + [adapter.image for adapter in named]
    up = request.upscale
    unpinned = up is not None and up.name != upscaling.LANCZOS and up.sha256 is None
    if unpinned or any(isinstance(one, str) for one in said) or any(adapter.sha256 is None for adapter in named):
        raise BadInput(
            "the record names a file by a path, as sdcli writes none", "it was edited: give the files as options"
        )


def _placed(adapter: Adapter, folders: Sequence[Path]) -> Adapter:
    """Return an adapter out of a record by its path, where one of that name and content lies in one of the folders."""
    if adapter.sha256 is None or any(c in adapter.name for c in "/\\\0") or adapter.name in ("", ".", ".."):
        return adapter
    for path in (folder / adapter.name for folder in folders):
        try:
            if path.is_file() and models.sha256_of(path) == adapter.sha256:
                return msgspec.structs.replace(adapter, name=str(path.absolute()), sha256=None)
        except (OSError, ValueError):  # No system takes such a name, or nobody may look.
            continue
    return adapter


def check(request: GenerationRequest, model: Model) -> None:
    """Refuse files of a request that are not there, can't be read, or are made for other models; torch is not imported."""
    for name in PICTURES:
        _check_picture(getattr(request, name), f"--{name.replace('_', '-')}")
    for kind in KINDS:
        for one in getattr(request, kind):
            _check_picture(one.image, f"--{kind.replace('_', '-')}")
            adapters.check(kind, adapters.find(kind, one, model.adapter_folders), model)
    drawn = resolve(request, model)
    models.check_size(model, drawn.width, drawn.height)
    if request.controlnet:
        pictures.check_control(request.control_preprocess or "none")
    if isinstance(request.mask, str):
        pictures.check_mask(pictures.mask_of(pictures.open_picture(request.mask), request.invert_mask))
    if request.upscale is not None:
        size = (drawn.width, drawn.height) if drawn.width and drawn.height else None
        if size is not None and drawn.hires is not None:
            size = models.enlarged(drawn, model)
        upscaling.check(request.upscale, size)


def _check_picture(value: str | File | None, flag: str) -> None:
    if isinstance(value, File):
        raise InputMissing(
            f"it was drawn from {value.name} (SHA-256 {value.sha256[:12]}...), which is not here",
            f"give it with {flag}",
        )
    if value is not None:
        pictures.size_of(value)
