"""Requests and models before anything is loaded: what a model decides, what records keep, and what can share a pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sdcli import models, schedulers
from sdcli.models import Family, Model
from sdcli.models.hub import Say
from sdcli.prompts import syntax
from sdcli.record import ModelRecord
from sdcli.request import GenerationRequest, draw_seed

if TYPE_CHECKING:
    from sdcli.models.adapters import Kind

# The largest pack that `auto` takes: larger ones gain little (benchmarks/README.md), and more is lost with a kill.
LARGEST_PACK = 16
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
        from sdcli import pictures

        source = pictures.size_of(request.init_image)
        if (more := request.outpaint) is not None:
            source = (source[0] + more.left + more.right, source[1] + more.top + more.bottom)
            return request.width or source[0], request.height or source[1]
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


def names_files(request: GenerationRequest) -> bool:
    """Whether a request names files: pictures, adapters or an upscaler."""
    return any(getattr(request, field) for field in (*PICTURES, *KINDS, "upscale"))


def pinned(request: GenerationRequest, model: Model, say: Say | None = None) -> GenerationRequest:
    """Return a request as records keep it, and as ids are made of it: files by their names, without folders, and SHA-256.

    With `say`, which is told of it, what is on the hub only is fetched. Raises InputMissing, BadInput and ModelUnavailable for
    files that are not there or not what they are taken for.
    """
    if not names_files(request):
        return request
    from sdcli.pipeline import files

    return files.pinned(request, model, say)


def located(request: GenerationRequest, folders: Sequence[Path]) -> GenerationRequest:
    """Return a request out of a record with the paths of the files that it names, where files with those names and that content
    lie in one of the folders. Others stay as they are, and are refused by `check_files`."""
    if not names_files(request):
        return request
    from sdcli.pipeline import files

    return files.located(request, folders)


def check_recorded(request: GenerationRequest) -> None:
    """Refuse a request out of a record that names a file by a path. BadInput."""
    if names_files(request):
        from sdcli.pipeline import files

        files.check_recorded(request)


def check_files(request: GenerationRequest, model: Model) -> None:
    """Refuse files of a request that are not there, can't be read, or are made for other models; torch is not imported."""
    if names_files(request):
        from sdcli.pipeline import files

        files.check(request, model)


def final_size(request: GenerationRequest, model: Model) -> tuple[int, int]:
    """Return the width and height in pixels of the picture that a resolved request, whose size is known, ends as."""
    size = models.enlarged(request, model) if request.hires is not None else (request.width or 0, request.height or 0)
    if request.upscale is None:
        return size
    from sdcli.pipeline import upscaling

    factor = upscaling.factor_of(request.upscale) if upscaling.is_here(request.upscale) else 1
    return round(size[0] * factor), round(size[1] * factor)


# Prompts


def check_prompt(request: GenerationRequest, model: Model) -> None:
    """Refuse prompts that can't be read as asked for."""
    syntax.check(request, model, _added(request, model), drawn(request, model.family) if model.family else ())


def drawn(request: GenerationRequest, family: Family) -> tuple[int, ...]:
    """Return how many steps each pass of a request draws; all of them where nothing may change and none is drawn."""
    steps = request.num_inference_steps
    first = models.strength_of(request) if request.init_image else 1.0
    strengths = (first, request.hires.strength if request.hires else None)
    return tuple(models.steps_of(steps, strength, family) for strength in strengths if strength) or (steps,)


def chunks(request: GenerationRequest, model: Model) -> tuple[int, ...]:
    """Return how many chunks of tokens a request's prompts are encoded in, in each pass; 1 for a model that is not here yet."""
    from sdcli.prompts import tokens

    how = syntax.how(request, model.family)
    reader = tokens.Reader.of(model, _added(request, model)) if model.family and model.family.weighs else None
    if reader is None or model.family is None:
        return (1,)
    both = request.prompt, request.negative_prompt
    return tuple(
        max(tokens.chunk_count(text, reader, how.syntax, steps, how.long) for text in both)
        for steps in drawn(request, model.family)
    )


def _added(request: GenerationRequest, model: Model) -> dict[str, int]:
    """Return the words of a request's embeddings and how many tokens each is, as far as their files are here."""
    if not request.embedding:
        return {}
    from sdcli.models import adapters

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
    return (*same, bool(request.negative_prompt), request.variation is not None)


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
