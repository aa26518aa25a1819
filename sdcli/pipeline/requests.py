"""Requests and models before anything is loaded: what a model decides, and what can share a pass."""

from __future__ import annotations

from typing import Any

import msgspec

from sdcli import models, schedulers
from sdcli.models import Model
from sdcli.record import ModelRecord
from sdcli.request import GenerationRequest, draw_seed


def scheduler_of(request: GenerationRequest, model: Model) -> schedulers.Scheduler | None:
    """Return the entry of the scheduler that will run: the one asked for, or the model's own if the table has it."""
    if request.scheduler:
        return schedulers.find(request.scheduler)
    own = model.scheduler
    return schedulers.from_class(str(own.get("_class_name")), own) if own else None


def resolve(request: GenerationRequest, model: Model) -> GenerationRequest:
    """Return the request with all that the model and the scheduler decide filled in, names in their canonical form.

    Width and height stay None for a model that is not here yet.
    """
    entry = scheduler_of(request, model)
    width, height = model.size or (None, None)
    heeds_eta = model.family is None or "eta" not in model.family.lacks
    return msgspec.structs.replace(
        request,
        width=request.width or width,
        height=request.height or height,
        scheduler=entry.name if entry and request.scheduler else None,
        eta=entry.eta if entry and request.eta is None and heeds_eta else request.eta,
    )


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


def shape(request: GenerationRequest) -> tuple[Any, ...]:
    """Return what requests must share to be drawn in one pass.

    Pipelines other than Stable Diffusion's take one clip skip for all, and a negative prompt for each or for none.
    """
    varies = {"prompt", "negative_prompt", "seed"}
    same = tuple(getattr(request, f) for f in request.__struct_fields__ if f not in varies)
    return (*same, bool(request.negative_prompt))


def seeded(request: GenerationRequest) -> GenerationRequest:
    """Return a request that has a seed: its own, or a fresh one."""
    return msgspec.structs.replace(request, seed=draw_seed()) if request.seed in (None, -1) else request


def seed_of(request: GenerationRequest) -> int:
    """Return the seed of a request that has one."""
    assert request.seed is not None
    return request.seed
