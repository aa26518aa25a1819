"""Requests and models before anything is loaded: what a model decides, what records keep, and what can share a pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from sdcli import models, pictures, schedulers
from sdcli.errors import InputMissing
from sdcli.models import Model, adapters
from sdcli.models.adapters import Kind
from sdcli.models.hub import Say
from sdcli.pipeline import upscaling
from sdcli.prompts import syntax, tokens
from sdcli.record import ModelRecord
from sdcli.request import Adapter, File, GenerationRequest, draw_seed

KINDS: tuple[Kind, ...] = ("lora", "embedding", "controlnet", "ip_adapter")
PICTURES = ("init_image", "mask")


def scheduler_of(request: GenerationRequest, model: Model) -> schedulers.Scheduler | None:
    """Return the entry of the scheduler that will run: the one asked for, or the model's own if the table has it."""
    if request.scheduler:
        return schedulers.find(request.scheduler)
    own = model.scheduler
    return schedulers.from_class(str(own.get("_class_name")), own) if own else None


def resolve(request: GenerationRequest, model: Model) -> GenerationRequest:
    """Return the request with all that the model, the scheduler and the picture to start from decide filled in, names in
    their canonical form.

    Width and height stay None for a model that is not here yet.
    """
    entry = scheduler_of(request, model)
    width, height = _size(request, model)
    heeds_eta = model.family is None or "eta" not in model.family.lacks
    return msgspec.structs.replace(
        request,
        width=width,
        height=height,
        scheduler=entry.name if entry and request.scheduler else None,
        eta=entry.eta if entry and request.eta is None and heeds_eta else request.eta,
        strength=models.strength_of(request),
    )


def _size(request: GenerationRequest, model: Model) -> tuple[int | None, int | None]:
    """Return the picture's size: as asked for, as the picture to start from has it, or as the model was trained for."""
    native = model.size
    if isinstance(request.init_image, str) and (request.outpaint or (native and not (request.width or request.height))):
        source = pictures.size_of(request.init_image)
        if (more := request.outpaint) is not None:
            source = (source[0] + more.left + more.right, source[1] + more.top + more.bottom)
            return source if request.width is None and request.height is None else (request.width, request.height)
        if native is not None:
            return pictures.drawn_size(source, native, model.multiple)
    width, height = native or (None, None)
    return request.width or width, request.height or height


def identity(model: Model) -> ModelRecord:
    """Return what records say of a model that is here."""
    assert model.family is not None
    return ModelRecord(
        name=model.shown_name,
        family=model.family.name,
        repo=model.repo,
        commit=model.commit,
        files=models.hashes(model),
    )


# Files


def pinned(request: GenerationRequest, model: Model, say: Say | None = None) -> GenerationRequest:
    """Return a request as records keep it, and as ids are made of it: files by their names, without folders, and SHA-256.

    With `say`, which is told of it, adapters that are on the hub only are fetched.

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
    """Return a request out of a record with the pictures that it names, where files with those names and that content lie in
    one of the folders. Others stay as they are, and are refused by `check_files`."""

    def place(value: str | File | None) -> str | File | None:
        found = pictures.find(value.name, value.sha256, folders) if isinstance(value, File) else None
        return str(found) if found is not None else value

    changed: dict[str, Any] = {name: place(getattr(request, name)) for name in PICTURES}
    for kind in ("controlnet", "ip_adapter"):
        changed[kind] = tuple(msgspec.structs.replace(a, image=place(a.image)) for a in getattr(request, kind))
    if request.upscale is not None:
        changed["upscale"] = upscaling.located(request.upscale, folders)
    changed = {name: value for name, value in changed.items() if value != getattr(request, name)}
    return msgspec.structs.replace(request, **changed) if changed else request


def check_files(request: GenerationRequest, model: Model) -> None:
    """Refuse files of a request that are not there, can't be read, or are made for other models; torch is not imported."""
    for name in PICTURES:
        _check_picture(getattr(request, name), f"--{name.replace('_', '-')}")
    for kind in KINDS:
        for one in getattr(request, kind):
            _check_picture(one.image, f"--{kind.replace('_', '-')}")
            adapters.check(kind, adapters.find(kind, one, model.adapter_folders), model)
    if request.controlnet:
        pictures.check_control(request.control_preprocess or "none")
    if isinstance(request.mask, str):
        pictures.check_mask(pictures.mask_of(pictures.open_picture(request.mask), request.invert_mask))
    if request.upscale is not None:
        drawn = resolve(request, model)
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


# Prompts


def check_prompt(request: GenerationRequest, model: Model) -> None:
    """Refuse prompts that can't be read as asked for."""
    syntax.check(request, model, _added(request, model))


def chunks(request: GenerationRequest, model: Model) -> int:
    """Return how many chunks of tokens a request's prompts are encoded in; 1 for a model that is not here yet."""
    how = syntax.how(request, model.family)
    reader = tokens.Reader.of(model, _added(request, model)) if model.family and model.family.weighs else None
    if reader is None:
        return 1
    both, steps = (request.prompt, request.negative_prompt), request.num_inference_steps
    return max(tokens.chunk_count(text, reader, how.syntax, steps, how.long) for text in both)


def _added(request: GenerationRequest, model: Model) -> dict[str, int]:
    """Return the words of a request's embeddings and how many tokens each is, as far as their files are here."""
    found = (adapters.find("embedding", one, model.adapter_folders) for one in adapters.in_force(request.embedding))
    return dict(adapters.embedding_vectors(one) for one in found if one.path is not None)


# Packs and seeds


def shape(request: GenerationRequest, model: Model) -> tuple[Any, ...]:
    """Return what resolved requests must share to be drawn in one pass."""
    return (*likeness(request), chunks(request, model))


def likeness(request: GenerationRequest) -> tuple[Any, ...]:
    """Return what resolved requests must share besides their prompts' length.

    Pipelines other than Stable Diffusion's take one clip skip for all, and a negative prompt for each or for none.
    """
    varies = {"prompt", "negative_prompt", "seed", "variation"}
    same = tuple(getattr(request, f) for f in request.__struct_fields__ if f not in varies)
    return (*same, bool(request.negative_prompt))


def seeded(request: GenerationRequest) -> GenerationRequest:
    """Return a request that has a seed: its own, or a fresh one."""
    if request.seed in (None, -1):
        request = msgspec.structs.replace(request, seed=draw_seed())
    if request.variation is not None and request.variation.seed == -1:
        request = msgspec.structs.replace(
            request, variation=msgspec.structs.replace(request.variation, seed=draw_seed())
        )
    return request


def seed_of(request: GenerationRequest) -> int:
    """Return the seed of a request that has one."""
    assert request.seed is not None
    return request.seed
