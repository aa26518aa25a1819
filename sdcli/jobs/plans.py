"""What would be drawn: a `plan` for each job, with every value's origin, without torch."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from sdcli import output, pipeline, settings
from sdcli.device import DevicePlan
from sdcli.errors import ModelUnavailable
from sdcli.jobs.jobs import Job
from sdcli.models import Model, ModelSpec
from sdcli.record import SCHEMA, ModelRecord, job_id
from sdcli.request import GenerationRequest
from sdcli.settings import DECIDED_LATER, Merged


def plan(
    job: Job,
    merged: Merged,
    *,
    model: Model,
    identity: ModelRecord | None,
    spec: ModelSpec,
    plan: DevicePlan,
    where: output.Destination,
    prompt_origin: str,
    seeded: bool,
) -> dict[str, Any]:
    """Return the `plan` event of a job. What only a probe or the hub can tell is null; `seeded`: its seed is known now."""
    asked_plan = msgspec.to_builtins(plan)
    shown_plan = {k: None if v == "auto" else v for k, v in asked_plan.items()}
    request = pipeline.resolve(job.request, model)
    complete = seeded and request.width is not None and request.height is not None
    try:
        kept = pipeline.pinned(request, model)
    except ModelUnavailable:  # An adapter that is on the hub only.
        kept, complete = request, False
    to = merged.values.get("variation")
    drawn_later = to is not None and to.seed == -1
    id = job_id(kept, identity) if complete and identity and not drawn_later else None
    shown = msgspec.to_builtins(kept)
    origins = {
        f: merged.origin(f) or "default"
        for f in (*shown, *asked_plan, "model", "vae", "model_config", "safety_checker")
    }
    origins["prompt"] = merged.origin("prompt", prompt_origin) or prompt_origin
    if request.eta != job.request.eta:
        origins["eta"] = f"scheduler {request.scheduler or model.name}"
    if request.scheduler is None:
        origins["scheduler"] = f"model {model.name}"
    if not seeded:
        shown["seed"] = None
        template = settings.styled(job.template, merged.templates) if job.template is not None else request.prompt
        if template != request.prompt and merged.values.get("expand") != "all":
            # The seed decides what a template becomes.
            shown["prompt"], origins["prompt"] = template, DECIDED_LATER
    for side in ("width", "height"):
        if side not in merged.origins:
            origins[side] = f"model {model.name}"
    if model.family is None:
        # What its family wants is not known.
        wanted = [f for f in ("num_inference_steps", "guidance_scale") if f not in merged.origins]
        shown |= dict.fromkeys(wanted)
    later = [f for f in ("seed", "width", "height", "num_inference_steps", "guidance_scale") if shown[f] is None]
    later += [k for k, v in shown_plan.items() if v is None]
    origins |= dict.fromkeys(later, DECIDED_LATER)
    if drawn_later:
        shown["variation"]["seed"] = None
        origins["variation"] = f"{origins['variation']}; its seed is {DECIDED_LATER}"
    facts: dict[str, Any] = {
        "name": model.shown_name, "family": model.family.name if model.family else None, "repo": model.repo,
        "commit": model.commit, "files": identity.files if identity else None, "adapters": [], "vae": spec.vae,
        "model_config": spec.model_config, "safety_checker": spec.safety_checker,
    }  # fmt: skip
    return {
        "schema": SCHEMA, "event": "plan", "id": id, "path": _path(job.destination or where, job, request, id, model, seeded),
        "line": job.line, "request": shown, "model": facts, "plan": shown_plan, "origins": origins,
    }  # fmt: skip


def _path(
    where: output.Destination, job: Job, request: GenerationRequest, id: str | None, model: Model, seeded: bool
) -> str | None:
    """Return the path that a picture would get, None where it depends on what is decided later."""
    if where.kind != "template":
        return where.text
    unknown = {"date", "time"} | ({"seed"} if not seeded else set()) | ({"id"} if id is None else set())
    unknown |= {s for s in ("width", "height", "scheduler") if getattr(request, s) is None}
    if output.fields_of(where.text) & unknown:
        return None
    naming = output.Naming(
        when=datetime.now(), prompt=request.prompt, seed=request.seed, id=id or "", model=output.short(model.shown_name),
        scheduler=request.scheduler, steps=request.num_inference_steps, width=request.width, height=request.height,
        index=job.index, line=job.line, name=job.name,
    )  # fmt: skip
    return output.expand(where.text, naming, where.format)
