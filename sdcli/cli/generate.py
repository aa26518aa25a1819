"""`sdcli generate`: prompts in, pictures out."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from sdcli import metadata, output, pipeline
from sdcli.cli import drawing, seeing
from sdcli.cli.drawing import Assign, DryRun, From, Loading, Preset, Size
from sdcli.cli.main import app, screen
from sdcli.cli.seeing import Animate, AnimateClean, Graphics, Preview, SaveSteps, Show
from sdcli.cli.shared import Json, Offline, Print0, Quiet, Verbose, prompt_of_stdin
from sdcli.cli.typed import options_from
from sdcli.device import DevicePlan
from sdcli.errors import BadInput, UsageError
from sdcli.jobs import again, jobs, plans, watching
from sdcli.jobs.jobs import Asked, Job, Seeds
from sdcli.jobs.runner import How, Runner, Tally
from sdcli.jobs.watching import Watch
from sdcli.metadata.inspecting import Found
from sdcli.models import Model, ModelSpec
from sdcli.output import OutputPlan
from sdcli.prompts.wildcards import looks_dynamic
from sdcli.request import GenerationRequest, JobOptions
from sdcli.settings import Merged

EXAMPLES = """Draw pictures from text.

Examples:

  sdcli generate "a red circle on a blue background" --model demo

  sdcli generate "a lighthouse at dusk" --seed 7 --steps 30 -o dusk.png

  sdcli generate "a star" --count 4 -o stars/ --json | jq .path

  sdcli generate --from dusk.png --steps 50
"""
# What --vary goes towards, where nothing else is said: another seed each time, so far that it is another picture of the same.
VARIED = {"seed": -1, "strength": 0.2}


@app.command(help=EXAMPLES)
@options_from(GenerationRequest, JobOptions, ModelSpec, DevicePlan, OutputPlan)
def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT...", help="What to draw; - reads it from stdin.", show_default=False),
    ] = None,
    size: Size = None,
    assign: Assign = None,
    preset: Preset = None,
    picture: From = None,
    vary: Annotated[
        str | None,
        typer.Option("--vary", metavar="PICTURE", help="More like this: --from it, each a variation."),
    ] = None,
    preview: Preview = False,
    show: Show = False,
    graphics: Graphics = None,
    animate: Animate = None,
    animate_clean: AnimateClean = False,
    save_steps: SaveSteps = None,
    as_json: Json = False,
    print0: Print0 = False,
    dry_run: DryRun = False,
    offline: Offline = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    *,
    typed: dict[str, Any],
) -> None:
    results = drawing.begin(as_json=as_json, print0=print0, quiet=quiet, verbose=verbose, offline=offline)
    way = seeing.protocol(graphics, preview=preview, show=show)
    asked = prompts or []
    if vary is not None:
        if picture is not None:
            raise UsageError("--vary is --from with variations", "leave --from out")
        picture = vary
    if [*asked, picture].count("-") > 1:
        raise UsageError("stdin can be read once", "give - once")
    if not asked and picture is None:
        raise UsageError("there is no PROMPT", "say what to draw, or --from PICTURE")
    typed = drawing.spooled(typed, [*asked, picture])
    found = drawing.look(picture) if picture is not None else None
    if vary is not None and found is not None:
        _check_varied(found)
        typed = {"variation": VARIED} | typed
    read = prompt_of_stdin() if "-" in asked else None
    texts = [read if p == "-" and read is not None else drawing.argument(p) for p in asked]
    of_picture = (again.model(one) for one in [found] if one is not None)
    given, model = drawing.resolve(typed | {"size": size}, preset or [], assign or [], of_picture)
    merged = drawing.merged(given, model, found)
    options, spec = merged.build(JobOptions), merged.build(ModelSpec)
    plan, files = merged.build(DevicePlan), merged.build(OutputPlan)
    made = _jobs(texts, merged, options, model, again.template(found) if found else None)
    for job in made:
        metadata.check_length(job.request, files.metadata)
    where = output.resolve(
        files, pictures=len(made), json=as_json, print0=print0, stdout_is_tty=sys.stdout.isatty() and not dry_run
    )
    if (
        where.overwrite
        and where.kind == "template"
        and len(texts) > 1
        and not output.fields_of(where.text) & {"id", "index"}
    ):
        raise UsageError(
            "with --overwrite one prompt's picture may overwrite another's", "add {id} or {index} to the template"
        )
    if animate_clean and animate is None:
        raise UsageError("--animate-clean is for --animate", "add --animate FILE.gif, or leave it out")
    kept = watching.kept(
        animate, save_steps, where, clean=animate_clean, pictures=len(made), overwrite=files.overwrite, say=screen.say,
        tell=results.event,
    )  # fmt: skip
    if dry_run:
        seeded = merged.values.get("seed") not in (None, -1)
        identity = pipeline.identity(model) if model.is_here else None
        for job in made:
            origin = "stdin" if read and read in (job.request.prompt, job.template) else "argument"
            origin = origin if texts else merged.origins["prompt"]
            event = plans.plan(
                job, merged, model=model, identity=identity, spec=spec, plan=plan, where=where, prompt_origin=origin,
                seeded=seeded,
            )  # fmt: skip
            drawing.show_plan(event, results)
        return
    results.to_stdout = where.kind == "stdout"
    terminal = seeing.terminal(way, wanted=preview or show)
    loaded = Loading(model, spec, plan)()
    watches: list[Watch] = []
    if kept is not None:
        kept.check(loaded)
        watches.append(kept)
    if preview and terminal is not None:
        watches.append(seeing.Previewing(terminal, len(made)))
    if not model.is_here:
        # What its family wants is known only now.
        model = loaded.model
        merged = drawing.merged(given.knowing(model.defaults), model, found)
        made = _jobs(texts, merged, options, model, again.template(found) if found else None)
    for line in again.missing(found, loaded.model_record.files) if found else []:
        screen.warn(line)
    size_asked = options.batch_size or 1
    most = jobs.pack_size([0] * len(made), pipeline.LARGEST_PACK)
    batch_size = loaded.largest_pack(made[0].request, most) if size_asked == "auto" else min(size_asked, len(made))
    how = How(
        load=lambda: loaded,
        id_of=loaded.id_of,
        shape=lambda request: pipeline.shape(pipeline.resolve(request, loaded.model), loaded.model),
        destination=where,
        files=files,
        batch_size=batch_size,
        tell=results.event,
        watcher=screen,
        tally=Tally(total=len(made)),
        watches=watches,
        show=seeing.between(terminal) if show else None,
    )
    Runner(how).run(made)


def _jobs(texts: list[str], merged: Merged, options: JobOptions, model: Model, template: str | None) -> list[Job]:
    """Return the jobs of the prompts, or of a picture's; whatever can be refused without torch is refused."""
    expander = drawing.expander(options)
    if expander is None and (dynamic := next(filter(looks_dynamic, texts), None)):
        drawing.hint_dynamic(dynamic)
    # A picture's prompt has been expanded, if it was to be.
    if texts:
        asked = [
            Asked(
                request=merged.over(("argument", {"prompt": text})).build(GenerationRequest), options=options,
                styles=merged.templates,
            )
            for text in texts
        ]  # fmt: skip
    else:
        request = merged.build(GenerationRequest)
        asked = [Asked(request=request, options=options, was_expanded=True, template=template, styles=merged.templates)]
    made: list[Job] = []
    for one in asked:
        expands = expander is not None and not one.was_expanded
        jobs.check(one.request if expands else jobs.lift(one.styled), model, merged)
        if expander is not None and not one.was_expanded:
            expander.check(one.request.prompt)
            jobs.count(one, expander)
        own = [*jobs.of_asked(one, Seeds(None, None), expander, lambda r: r, len(made) + 1)]
        # What is not expanded is the same in all of them, and its files were looked at above.
        for job in own if expands else own[:1]:
            pipeline.check_prompt(job.request, model)
            if expands:
                pipeline.check_files(job.request, model)
        made += own
    return made


def _check_varied(found: Found) -> None:
    """Refuse a picture without a start to vary, and say what is varied of one that is a variation itself."""
    if found.request.get("seed") in (None, -1):
        raise BadInput(f"{found.path} does not say its seed", "only the start of a picture that does can be varied")
    if found.request.get("variation"):
        screen.warn(f"{found.path} is a variation itself: what is varied is the picture that it came from")
