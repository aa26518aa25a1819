"""`sdcli generate`: prompts in, pictures out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer

from sdcli import device, models, output, pipeline, schedulers, settings
from sdcli.cli.main import app, leaving_at_once, screen
from sdcli.cli.results import Results
from sdcli.cli.typed import options_from
from sdcli.device import DevicePlan
from sdcli.errors import BadInput, CannotCreateOutput, InputMissing, UsageError
from sdcli.jobs import jobs, runner
from sdcli.models import Model, ModelSpec
from sdcli.output import OutputPlan
from sdcli.record import SCHEMA, job_id
from sdcli.request import WHAT, GenerationRequest, JobOptions
from sdcli.settings import DECIDED_LATER, Merged

EXAMPLES = """Draw pictures from text.

Examples:

  sdcli generate "a red circle on a blue background" --model demo

  sdcli generate "a lighthouse at dusk" --seed 7 --steps 30 -o dusk.png

  sdcli generate "a star" --count 4 -o stars/ --json | jq .path
"""


@app.command(help=EXAMPLES)
@options_from(GenerationRequest, JobOptions, ModelSpec, DevicePlan, OutputPlan)
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw; - reads it from stdin.")],
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Width and height at once.", rich_help_panel=WHAT)
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Set any field, as in eta=0.5; repeatable.", rich_help_panel=WHAT
        ),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option("--preset", "-p", metavar="NAME", help="fast, quality or lowvram; repeatable, the later wins."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json/--no-json", show_default=False, help="Print a JSON object a line.")
    ] = False,
    print0: Annotated[
        bool, typer.Option("--print0/--no-print0", "-0", show_default=False, help="End each path with NUL.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--no-dry-run", show_default=False, help="Say what would be drawn; draw nothing.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet/--no-quiet", "-q", show_default=False, help="Say errors only.")
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, show_default=False, metavar="", help="Say reasons; twice: tracebacks."
        ),
    ] = 0,
    *,
    typed: dict[str, Any],
) -> None:
    screen.verbosity = -1 if quiet else verbose
    if not screen.draws:
        # Read when huggingface_hub is imported, which looking a model up does.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    results = Results(as_json=as_json, print0=print0)
    if as_json and print0:
        raise UsageError("--json and --print0 both want stdout", "leave one of them out")
    if prompts.count("-") > 1:
        raise UsageError("stdin can be read once", "give - once")
    if sys.stdout is None:
        raise CannotCreateOutput(
            "stdout is closed: there is nowhere to print results", "redirect it, as in > /dev/null"
        )
    read = _stdin() if "-" in prompts else None
    texts = [read if p == "-" and read is not None else _argument(p) for p in prompts]
    merged, model = resolve(typed | {"size": size}, preset or [], assign or [])
    if "prompt" in merged.values:
        raise UsageError(f"{merged.origins['prompt']}: the prompt is an argument here", "give it as PROMPT")
    request = merged.build(GenerationRequest, prompt="")
    options, spec = merged.build(JobOptions), merged.build(ModelSpec)
    plan, files = merged.build(DevicePlan), merged.build(OutputPlan)
    check(request, model, plan)
    made = list(jobs.of_prompts(texts, request, count=options.count, name=options.name, tags=options.tags))
    where = output.resolve(
        files, pictures=len(made), json=as_json, print0=print0, stdout_is_tty=sys.stdout.isatty() and not dry_run
    )
    if dry_run:
        _dry_run(made, merged, model, spec, plan, where, read, results)
        return
    results.to_stdout = where.kind == "stdout"
    screen.say(f"loading {model.name} ...")

    with leaving_at_once():
        loaded = pipeline.load(spec, plan, say=screen.say)
    for field, reason in loaded.decision.reasons.items():
        screen.say(f"{field}: {getattr(loaded.decision, field)} ({reason})", level=1)
    runner.run(
        made,
        loaded,
        destination=where,
        how=files.metadata,
        batch_size=options.batch_size,
        tell=results.event,
        watcher=screen,
    )


def resolve(typed: Mapping[str, Any], presets: Sequence[str], assigned: Sequence[str]) -> tuple[Merged, Model]:
    """Merge what a command was given, weakest first, and find the model that it means."""
    pairs: dict[str, str] = {}
    for text in assigned:
        name, value = settings.pair(text)
        if name in pairs:
            raise UsageError(f"--set: {name} is given twice", "give it once")
        pairs[name] = value
    sources = [(f"preset {name}", settings.preset(name)) for name in presets]
    flags = [("flag", typed), ("--set", pairs)]
    spec = settings.merge(*sources, *flags).build(ModelSpec)
    model = models.find(spec)
    return settings.merge((f"model {model.name}", model.defaults), *sources, *flags), model


def check(request: GenerationRequest, model: Model, plan: DevicePlan) -> None:
    """Refuse what can be refused without torch."""
    device.check(plan)
    entry = pipeline.scheduler_of(request, model)
    if entry is not None and request.scheduler:
        schedulers.require(entry)
    if entry is not None:
        schedulers.check(entry, eta=request.eta, steps=request.num_inference_steps)
    models.check_size(model, request.width, request.height)
    models.check_clip_skip(model, request.clip_skip)


def _argument(prompt: str) -> str:
    if not settings.is_unicode(prompt):
        raise UsageError("the prompt is not UTF-8", "check the terminal's or the script's encoding")
    return prompt


def _stdin() -> str:
    if sys.stdin is None:
        raise InputMissing("stdin is closed", "give the prompt as an argument")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"stdin is not UTF-8: {error.reason} at byte {error.start}", "convert it, for example with iconv"
        ) from None
    except OSError as error:
        raise BadInput(f"stdin can't be read: {error.strerror}", "give the prompt as an argument") from None
    return text.removesuffix("\n").removesuffix("\r")


def _dry_run(
    made: Sequence[jobs.Job],
    merged: Merged,
    model: Model,
    spec: ModelSpec,
    plan: DevicePlan,
    where: output.Destination,
    read: str | None,
    results: Results,
) -> None:
    """Say what would be drawn, a `plan` a picture. What only a probe or the hub can tell is null."""
    seeded = merged.values.get("seed") not in (None, -1)
    identity = pipeline.identity(model) if model.is_here else None
    asked_plan = msgspec.to_builtins(plan)
    shown_plan = {k: None if v == "auto" else v for k, v in asked_plan.items()}
    for job in made:
        request = pipeline.resolve(job.request, model)
        complete = seeded and request.width is not None and request.height is not None and identity is not None
        id = job_id(request, identity) if complete and identity else None
        shown = msgspec.to_builtins(request)
        origins = {f: merged.origins.get(f, "default") for f in (*shown, *asked_plan, "model", "vae", "safety_checker")}
        origins["prompt"] = "stdin" if read and job.request.prompt == read else "argument"
        if request.eta != job.request.eta:
            origins["eta"] = f"scheduler {request.scheduler or model.name}"
        if request.scheduler is None:
            origins["scheduler"] = f"model {model.name}"
        if not seeded:
            shown["seed"] = None
        for side in ("width", "height"):
            if side not in merged.origins:
                origins[side] = f"model {model.name}"
        later = [f for f in ("seed", "width", "height") if shown[f] is None] + [
            k for k, v in shown_plan.items() if v is None
        ]
        origins |= dict.fromkeys(later, DECIDED_LATER)
        path = _planned_path(where, job, request, id, model, seeded)
        facts: dict[str, Any] = {
            "name": model.shown_name, "family": model.family.name if model.family else None, "repo": model.repo,
            "commit": model.commit, "files": identity.files if identity else None, "adapters": [], "vae": spec.vae,
            "safety_checker": spec.safety_checker,
        }  # fmt: skip
        event = {
            "schema": SCHEMA, "event": "plan", "id": id, "path": path, "line": job.line, "request": shown, "model": facts,
            "plan": shown_plan, "origins": origins,
        }  # fmt: skip
        if results.as_json:
            results.event(event)
            continue
        results.line(path or "(named at run time)")
        if results.print0:
            continue
        for field, value in {**shown, "model": model.name, **shown_plan}.items():
            text = "-" if value is None else json.dumps(value, ensure_ascii=True)
            results.line(f"  {field:<20} {text:<36} {origins[field]}")


def _planned_path(
    where: output.Destination, job: jobs.Job, request: GenerationRequest, id: str | None, model: Model, seeded: bool
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
