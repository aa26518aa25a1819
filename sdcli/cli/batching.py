"""What batch and grid share: their options, plans, and the run with its journal and its last words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdcli import output, pipeline
from sdcli.cli.drawing import Loading, hint_dynamic, show_plan
from sdcli.cli.main import finishing, screen
from sdcli.cli.results import Results
from sdcli.cli.seeing import Previewing
from sdcli.cli.terminal import Terminal
from sdcli.device import DevicePlan
from sdcli.errors import ClosedPipe, Interrupted, ModelUnavailable, SdcliError, SomeFailed, UsageError
from sdcli.jobs import batch as batches
from sdcli.jobs import events, plans
from sdcli.jobs.batch import Planner, Ready, Survey
from sdcli.jobs.jobs import Asked, Job, Refused, Seeds, fitted, of_asked
from sdcli.jobs.journal import Index, seed_of
from sdcli.jobs.runner import How, Runner, Tally
from sdcli.models import ModelSpec
from sdcli.output import OutputPlan
from sdcli.request import GenerationRequest, JobOptions
from sdcli.settings import Merged

if TYPE_CHECKING:
    from sdcli.pipeline import Pipeline

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

    def pin(request: GenerationRequest) -> GenerationRequest:
        resolved = pipeline.resolve(request, model)
        try:
            return pipeline.pinned(resolved, model)
        except ModelUnavailable:  # An adapter that is on the hub only.
            return resolved

    for asked, prompt_origin, merged in each:
        own = asked.request.seed not in (None, -1)
        for job in of_asked(asked, seeds, planner.expander, pin, number):
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
    preview: Terminal | None = None,
    show: Callable[[Any], None] | None = None,
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
            max_failures=max_failures, interrupted=interrupted, pictures=found.total, preview=preview, show=show,
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
    pictures: int | None = None,
    preview: Terminal | None = None,
    show: Callable[[Any], None] | None = None,
) -> How:
    """Return how a batch runs. `preview` shows each pack of so many `pictures`, None where nobody knows, as it forms."""
    return How(
        load=load, id_of=ready.id_of, destination=where, files=files, batch_size=ready.batch_size, tell=results.event,
        watcher=screen, tally=tally, in_order=in_order, each=False, answers=answers, journal=ready.journal,
        left_behind=ready.left_behind, nameless=ready.nameless, shape=ready.shape,
        retry_failed=retry_failed, max_failures=max_failures,
        interrupted=interrupted, show=show,
        watches=[Previewing(preview, pictures)] if preview is not None else [],
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
    at_its_end = at_end is None
    screen.at_leaving = lambda error: _leave(error, how, results, at_its_end=at_its_end)
    try:
        ended: SdcliError | None = None
        try:
            Runner(how).run(jobs)
        except SomeFailed as error:
            ended = error
        if at_end is not None:
            at_end(ready)
            at_its_end = True
        if ended is not None:
            raise ended
    except ClosedPipe:
        raise
    except SdcliError as error:
        if not (tally.done or tally.failed or tally.skipped or isinstance(error, Interrupted)):
            raise  # Nothing has begun: the one error line is all that there is.
        if not error.told and not isinstance(error, Interrupted):
            results.event(events.error(error))
        _leave(error, how, results, at_its_end=at_its_end)
        raise
    else:
        _summary(how, results)
    finally:
        screen.at_leaving = None
        ready.close()


def _leave(error: SdcliError, how: How, results: Results, *, at_its_end: bool) -> None:
    """Say how far a run came that ends before its end, and how to go on; `at_its_end`: nothing but its pictures is made."""
    error.told = True
    if how.tally.left or (not at_its_end and isinstance(error, Interrupted)):
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
