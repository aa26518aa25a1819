"""What the commands that draw share: options of their own, the merge of what was given, and plans for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli import device, models, output, pipeline, settings
from sdcli.cli.main import finishing, leaving_at_once, screen
from sdcli.cli.results import Results
from sdcli.cli.screen import printable
from sdcli.device import DevicePlan
from sdcli.errors import CannotCreateOutput, ClosedPipe, Interrupted, SdcliError, SomeFailed, UsageError
from sdcli.jobs import batch as batches
from sdcli.jobs import events, plans
from sdcli.jobs.batch import Planner, Ready, Survey
from sdcli.jobs.jobs import Asked, Job, Refused, Seeds, fitted, of_asked
from sdcli.jobs.journal import Index, seed_of
from sdcli.jobs.runner import How, Runner, Tally
from sdcli.models import Model, ModelSpec, hub
from sdcli.output import OutputPlan
from sdcli.pipeline import Pipeline
from sdcli.prompts.wildcards import Expander
from sdcli.request import WHAT, JobOptions
from sdcli.settings import Given, Merged

Size = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="Width and height at once.", rich_help_panel=WHAT)
]
Assign = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Set any field, as in eta=0.5; repeatable.", rich_help_panel=WHAT
    ),
]
Preset = Annotated[
    list[str] | None,
    typer.Option("--preset", "-p", metavar="NAME", help="fast ...: see `sdcli presets`; repeatable, the later wins."),
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="PICTURE", help="Draw what a picture's record says, with options on top."),
]
Json = Annotated[bool, typer.Option("--json/--no-json", show_default=False, help="Print a JSON object a line.")]
Print0 = Annotated[bool, typer.Option("--print0/--no-print0", "-0", show_default=False, help="End each path with NUL.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run/--no-dry-run", show_default=False, help="Say what would be drawn; draw nothing.")
]
Offline = Annotated[bool, typer.Option("--offline/--no-offline", show_default=False, help="Make no connection.")]
Quiet = Annotated[bool, typer.Option("--quiet/--no-quiet", "-q", show_default=False, help="Say errors only.")]
Verbose = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, show_default=False, metavar="", help="Say reasons; twice: tracebacks."),
]


HOW_IT_RUNS = "How it runs"

RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed/--no-retry-failed", show_default=False, rich_help_panel=HOW_IT_RUNS,
        help="Try again what failed in an earlier run.",
    ),
]  # fmt: skip
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh/--no-fresh", show_default=False, rich_help_panel=HOW_IT_RUNS,
        help="Set the journal aside and draw all again, with new seeds.",
    ),
]  # fmt: skip
MaxFailures = Annotated[
    int | None,
    typer.Option("--max-failures", metavar="N", min=1, help="Stop after N failures.", rich_help_panel=HOW_IT_RUNS),
]
FailFast = Annotated[
    bool,
    typer.Option(
        "--fail-fast/--no-fail-fast", show_default=False, help="Stop at the first failure.", rich_help_panel=HOW_IT_RUNS
    ),
]


def begin(*, as_json: bool, print0: bool, quiet: bool, verbose: int, offline: bool = False) -> Results:
    """Set the screen as asked and return where results go; refuse what can't go together."""
    screen.verbosity = -1 if quiet else verbose
    screen.as_json = as_json
    if not screen.draws:
        # Read when huggingface_hub is imported, which looking a model up does.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    hub.offline(offline)
    if as_json and print0:
        raise UsageError("--json and --print0 both want stdout", "leave one of them out")
    if sys.stdout is None:
        raise CannotCreateOutput(
            "stdout is closed: there is nowhere to print results", "redirect it, as in > /dev/null"
        )
    return Results(as_json=as_json, print0=print0)


def resolve(
    typed: Mapping[str, Any], presets: Sequence[str], assigned: Sequence[str], of_pictures: Iterable[str | None] = ()
) -> tuple[Given, Model]:
    """Return what a command was given, and the model that it means: one that is named by a preset or a flag, else that
    `of_pictures` (looked at only then), else that of the environment or the settings."""
    pairs: dict[str, str] = {}
    for text in assigned:
        name, value = settings.pair(text)
        if name in pairs:
            raise UsageError(f"--set: {name} is given twice", "give it once")
        pairs[name] = value
    over = (*(source for name in presets for source in settings.preset(name)), ("flag", typed), ("--set", pairs))
    under = settings.sources()
    named = settings.merge(*over).values
    if "prompt" in named:
        raise UsageError("--set: the prompt can't be set here", "give it as PROMPT, or in a row")
    if "model" not in named and (models_of := {name for name in of_pictures if name is not None}):
        if len(models_of) > 1:
            raise UsageError(
                f"the pictures are by several models: {', '.join(sorted(models_of))}", "say one with --model"
            )
        under = (*under, ("picture", {"model": models_of.pop()}))
    given = settings.merge(*under, *over)
    model = _model(given)
    given, left = fitted(given, model)
    if left:
        screen.say(f"{model.name} can't use {', '.join(left)}: left out")
    plan, family = given.build(DevicePlan), model.family
    device.check(plan, slices=family is None or family.slices, tiles=family is None or family.tiles)
    return Given(under=((f"model {model.name}", model.defaults), *under), over=over), model


def _model(given: Merged) -> Model:
    try:
        return models.find(given.build(ModelSpec))
    except SdcliError as error:
        origin = given.origins.get("model", "flag")
        if origin != "flag":  # Nobody typed that name just now.
            error.hint = "; ".join(filter(None, [error.hint, f"the model is named by: {origin}"]))
        raise


def expander(options: JobOptions) -> Expander | None:
    """Return what expands prompts, None where that is not asked for. `--wildcards` alone means at random."""
    if options.limit is not None and options.expand != "all":
        raise UsageError("--limit is for --expand all", "add --expand all, or leave --limit out")
    if options.expand is None and options.wildcards is None:
        return None
    return Expander(Path(options.wildcards) if options.wildcards is not None else None)


def hint_dynamic(prompt: str) -> None:
    """Say, once, that a prompt looks as if it was to be expanded."""
    screen.say(f"{prompt[:60]!r} looks like a dynamic prompt; it is drawn as it is written (--expand random, or all)")


def argument(prompt: str) -> str:
    """Return a prompt that was typed; UsageError for one that is no Unicode."""
    if not settings.is_unicode(prompt):
        raise UsageError("the prompt is not UTF-8", "check the terminal's or the script's encoding")
    return prompt


class Loading:
    """The pipeline of a run, loaded when it is asked for first."""

    def __init__(self, model: Model, spec: ModelSpec, plan: DevicePlan) -> None:
        self._model, self._spec, self._plan = model, spec, plan
        self._pipeline: Pipeline | None = None

    def __call__(self) -> Pipeline:
        if self._pipeline is None:
            screen.say(f"loading {self._model.name} ...")
            with leaving_at_once():
                self._pipeline = pipeline.load(self._spec, self._plan, say=screen.say)
            decision = self._pipeline.decision
            for field, reason in decision.reasons.items():
                screen.say(f"{field}: {getattr(decision, field)} ({reason})", level=1)
        return self._pipeline


def show_plan(event: dict[str, Any], results: Results) -> None:
    """Print a `plan`: an object, or for people a path and a line a value with its origin."""
    if results.as_json:
        results.event(event)
        return
    results.line(event["path"] or "(named at run time)")
    if results.print0:
        return
    for field, value in {**event["request"], "model": event["model"]["name"], **event["plan"]}.items():
        text = "-" if value is None else json.dumps(value, ensure_ascii=True)
        results.line(f"  {field:<20} {text:<36} {printable(event['origins'][field])}")


def dry_run(
    each: Iterable[tuple[Asked, str, Merged]],
    planner: Planner,
    where: output.Destination,
    spec: ModelSpec,
    plan: DevicePlan,
    results: Results,
    *,
    fresh: bool,
) -> None:
    """Say what would be drawn, a `plan` a picture, with the seeds that the journal there gives.

    Of each that is asked for come the prompt's origin and the values with theirs.
    """
    model, index = planner.model, Index()
    run_seed = None if fresh else seed_of(output.folder_of(where)[0])
    seeds = Seeds(run_seed, index)
    identity = pipeline.identity(model) if model.is_here else None
    number = 1
    for asked, prompt_origin, merged in each:
        own = asked.request.seed not in (None, -1)
        for job in of_asked(asked, seeds, planner.expander, lambda r: pipeline.resolve(r, model), number):
            event = plans.plan(
                job, fitted(merged, model)[0], model=model, identity=identity, spec=spec, plan=plan, where=where,
                prompt_origin=prompt_origin, seeded=own or run_seed is not None,
            )  # fmt: skip
            if run_seed is not None and not own:
                event["origins"]["seed"] = "journal"
            show_plan(event, results)
            number = job.index + 1
    index.close()


def destination(files: OutputPlan, results: Results, *, pictures: int) -> output.Destination:
    """Return where a batch's pictures go."""
    if files.output == "-":
        raise UsageError(
            "a batch does not write to stdout: it keeps a journal beside its pictures", "give a folder to -o"
        )
    where = output.resolve(
        files,
        pictures=pictures,
        json=results.as_json,
        print0=results.print0,
        stdout_is_tty=False,
        default=batches.DEFAULT,
    )
    if where.overwrite and where.kind == "template" and "id" not in output.fields_of(where.text):
        # Another row may have that seed, and that place in the file when it is edited.
        raise UsageError("with --overwrite one job may overwrite another's picture", "add {id} to the template")
    return where


def run(
    read: Callable[[], Iterable[Asked | Refused]],
    found: Survey,
    planner: Planner,
    where: output.Destination,
    files: OutputPlan,
    results: Results,
    load: Loading,
    *,
    options: JobOptions,
    fresh: bool,
    retry_failed: bool,
    max_failures: int | None,
    at_end: Callable[[Ready], None] | None = None,
) -> None:
    """Draw what `read` gives, with a journal beside the pictures; `at_end` is called where the run comes to its end."""
    if found.dynamic is not None:
        hint_dynamic(found.dynamic)
    for note in found.notes:
        screen.warn(note)
    folder = output.folder_of(where)
    if not planner.model.is_here:
        planner.learn(load().model)
    with finishing() as interrupted:
        ready = batches.prepare(
            model=planner.model, load=load, folder=folder, asked_size=options.batch_size, found=found, fresh=fresh,
            say=screen.say,
        )  # fmt: skip
        pictures = f"{found.total} picture{'s' * (found.total != 1)}"
        screen.say(f"{pictures}, {ready.batch_size} at a time, into {folder[0]}/")
        how_ = how(
            ready, load, where, files, results, Tally(total=found.total + found.bad), retry_failed=retry_failed,
            max_failures=max_failures, interrupted=interrupted,
        )  # fmt: skip
        go(how_, ready, batches.jobs(read(), ready, planner.expander), results, at_end)


def how(
    ready: Ready,
    load: Callable[[], Pipeline],
    where: output.Destination,
    files: OutputPlan,
    results: Results,
    tally: Tally,
    *,
    retry_failed: bool,
    max_failures: int | None,
    interrupted: Callable[[], int | None],
    answers: bool = False,
    in_order: bool = False,
) -> How:
    """Return how a batch runs."""
    return How(
        load=load, id_of=ready.id_of, destination=where, files=files, batch_size=ready.batch_size, tell=results.event,
        watcher=screen, tally=tally, in_order=in_order, each=False, answers=answers, journal=ready.journal,
        left_behind=ready.left_behind, nameless=ready.nameless, resolve=ready.resolve,
        retry_failed=retry_failed, max_failures=max_failures,
        interrupted=interrupted,
    )  # fmt: skip


def go(
    how: How,
    ready: Ready,
    jobs: Iterable[Job | Refused | None],
    results: Results,
    at_end: Callable[[Ready], None] | None = None,
) -> None:
    """Run a batch, and say at its end how it went: to people, and to machines as the last line."""
    tally = how.tally
    screen.at_leaving = lambda error: _leave(error, how, results)
    try:
        ended: SdcliError | None = None
        try:
            Runner(how).run(jobs)
        except SomeFailed as error:
            ended = error
        if at_end is not None:
            at_end(ready)
        if ended is not None:
            raise ended
    except ClosedPipe:
        raise
    except SdcliError as error:
        if not (tally.done or tally.failed or tally.skipped or isinstance(error, Interrupted)):
            raise  # Nothing has begun: the one error line is all that there is.
        if not error.told and not isinstance(error, Interrupted):
            results.event(events.error(error))
        _leave(error, how, results)
        raise
    else:
        _summary(how, results)
    finally:
        screen.at_leaving = None
        ready.close()


def _leave(error: SdcliError, how: How, results: Results) -> None:
    """Say how far a run came that ends before its end, and how to go on."""
    error.told = True
    if how.tally.left:
        error.hint = "; ".join(filter(None, [error.hint, "the same command goes on where this one stopped"]))
    _summary(how, results)


def _summary(how: How, results: Results) -> None:
    tally = how.tally
    minutes = tally.seconds / 60
    pace = f", {tally.done / minutes:.1f} pictures a minute" if tally.done and minutes else ""
    left = f", {tally.left} left" if tally.left else ""
    screen.say(f"{tally.done} drawn, {tally.failed} failed, {tally.skipped} skipped{left}{pace}")
    if results.as_json and not how.answers:
        results.event(
            events.summary(
                done=tally.done, failed=tally.failed, skipped=tally.skipped, left=tally.left, seconds=tally.seconds
            )
        )
