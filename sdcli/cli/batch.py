"""`sdcli batch`: prompts out of files, pictures in a folder, and a journal beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from sdcli import output
from sdcli.cli import batching, drawing, seeing
from sdcli.cli.batching import HOW_IT_RUNS, FailFast, Fresh, MaxFailures, RetryFailed
from sdcli.cli.drawing import Assign, DryRun, Loading, Preset, Size
from sdcli.cli.main import app, finishing, screen
from sdcli.cli.seeing import Graphics, Preview, Show
from sdcli.cli.shared import Json, Offline, Print0, Quiet, Verbose
from sdcli.cli.typed import options_from
from sdcli.device import DevicePlan
from sdcli.errors import BadInput, InputMissing, SomeFailed, UsageError
from sdcli.jobs import again, rows
from sdcli.jobs import batch as batches
from sdcli.jobs.batch import Planner, Survey
from sdcli.jobs.jobs import Asked, Refused, check, fitted
from sdcli.jobs.runner import Tally
from sdcli.models import ModelSpec
from sdcli.models.checking import without_idle
from sdcli.output import OutputPlan
from sdcli.request import GenerationRequest, JobOptions
from sdcli.settings import Merged

EXAMPLES = """Draw a file of prompts; the same command again goes on where it stopped.

Examples:

  sdcli batch prompts.txt --model demo -o pictures/

  sdcli batch prompts.csv --steps 30 --json | jq -r .path

  sdcli batch --from pictures/ --scheduler euler -o again/

  printf '%s\\n' "a red circle" "a blue star" | sdcli batch - --stream --model demo
"""


@app.command(help=EXAMPLES)
@options_from(GenerationRequest, JobOptions, ModelSpec, DevicePlan, OutputPlan)
def batch(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE...", help="Prompts: .txt, .csv, .tsv, .jsonl or .json; - reads stdin.", show_default=False
        ),
    ] = None,
    size: Size = None,
    assign: Assign = None,
    input_format: Annotated[
        str | None,
        typer.Option(
            "--input-format", metavar="NAME", help="text, csv, tsv, jsonl or json; else the ending says.",
            rich_help_panel=HOW_IT_RUNS,
        ),
    ] = None,
    skip_bad_rows: Annotated[
        bool,
        typer.Option(
            "--skip-bad-rows/--no-skip-bad-rows", show_default=False, rich_help_panel=HOW_IT_RUNS,
            help="Draw the good rows of a file that has bad ones.",
        ),
    ] = False,
    retry_failed: RetryFailed = False,
    fresh: Fresh = False,
    max_failures: MaxFailures = None,
    fail_fast: FailFast = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream/--no-stream", show_default=False, rich_help_panel=HOW_IT_RUNS,
            help="Answer each line of stdin with JSON as it comes.",
        ),
    ] = False,
    preview: Preview = False,
    show: Show = False,
    graphics: Graphics = None,
    preset: Preset = None,
    pictures: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="DIR", help="Draw what pictures' records say, with options on top; repeatable."),
    ] = None,
    as_json: Json = False,
    print0: Print0 = False,
    dry_run: DryRun = False,
    offline: Offline = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    *,
    typed: dict[str, Any],
) -> None:  # fmt: skip
    results = drawing.begin(as_json=as_json or stream, print0=print0, quiet=quiet, verbose=verbose, offline=offline)
    way = seeing.protocol(graphics, preview=preview, show=show)
    files = files or []
    if files.count("-") > 1:
        raise UsageError("stdin can be read once", "give - once")
    if not files and not pictures:
        raise UsageError("there is no FILE", "name a file of prompts, - for stdin (as --stream wants), or --from DIR")
    again_from = again.pictures(pictures or [])
    if input_format is not None:
        rows.format_of("-", input_format)
    given, model = drawing.resolve(
        drawing.spooled(typed, files) | {"size": size}, preset or [], assign or [], again.models_of(again_from)
    )  # fmt: skip
    merged, _ = fitted(given.merged(), model)
    options, spec, plan = merged.build(JobOptions), merged.build(ModelSpec), merged.build(DevicePlan)
    out = merged.build(OutputPlan)
    check(without_idle(merged.build(GenerationRequest, prompt="")), model, merged)  # Rows may give what is missing.
    planner = Planner(given=given, model=model, expander=drawing.expander(options))
    load = Loading(model, spec, plan)
    failures = 1 if fail_fast else max_failures
    terminal = seeing.terminal(way, wanted=(preview or show) and not dry_run)
    shown = seeing.between(terminal) if show else None
    forming = terminal if preview else None
    if stream:
        if files != ["-"] or dry_run or again_from:
            raise UsageError(
                "--stream answers stdin as it comes" + (", and draws" if dry_run else ""),
                "leave --dry-run out" if dry_run else "give - as the only FILE, and no --from",
            )
        if input_format not in (None, "text", "jsonl"):
            raise UsageError(
                f"--stream reads text or jsonl, a job a line, not {input_format}", "leave --input-format out"
            )
        if sys.stdin is None:
            raise InputMissing("stdin is closed", "pipe jobs in, a line each")
        where = batching.destination(out, results, pictures=2)
        folder = output.folder_of(where) if out.output is not None and output.is_folder(out.output) else None
        with finishing() as interrupted:
            ready = batches.prepare(
                model=model, load=load, folder=folder, asked_size=options.batch_size or 1, found=Survey(coming=True), fresh=fresh,
                say=screen.say,
            )  # fmt: skip
            planner.learn(load().model)
            coming = batches.arriving(sys.stdin.buffer, planner, input_format, interrupted)
            how = batching.how(
                ready, load, where, out, results, Tally(total=None), answers=True, in_order=True,
                retry_failed=retry_failed, max_failures=failures, interrupted=interrupted, preview=forming, show=shown,
            )  # fmt: skip
            batching.go(how, ready, batches.jobs(coming, ready, planner.expander), results)
        return
    if "-" in files and sys.stdin is not None and sys.stdin.isatty():
        screen.say("reading prompts from the terminal, a line each; Ctrl-D ends them")
    with ExitStack() as opened:
        sources = [opened.enter_context(rows.Source(file, input_format)) for file in files]

        def each() -> Iterator[tuple[Asked, Merged] | Refused]:
            yield from planner.of_pictures(again_from)
            yield from planner.of_rows(row for source in sources for row in source.rows())

        def read() -> Iterator[Asked | Refused]:
            return (one if isinstance(one, Refused) else one[0] for one in each())

        found = batches.survey(read(), planner)
        _refuse(found, skip=skip_bad_rows)
        where = batching.destination(out, results, pictures=found.total)
        if dry_run:
            good = (one for one in each() if not isinstance(one, Refused))
            each_asked = ((asked, asked.origin, own) for asked, own in good)
            batching.dry_run(each_asked, planner, where, spec, plan, results, fresh=fresh)
            _tell(found)
            if found.bad:
                raise SomeFailed(f"{found.bad} bad rows would not be drawn", "the lines above say why")
            return
        batching.run(
            read, found, planner, where, out, results, load, options=options, fresh=fresh, retry_failed=retry_failed,
            max_failures=failures, preview=forming, show=shown,
        )  # fmt: skip


def _refuse(found: Survey, *, skip: bool) -> None:
    """Say what is wrong with the rows, the first hundred, and refuse them all unless bad ones are to be left out."""
    if not found.bad or skip:
        return
    first = found.refusals[0]
    # A file whose header can't be read has no rest.
    rest = "; or --skip-bad-rows draws the rest" if found.total else ""
    if found.bad == 1:
        only = BadInput(first.message, f"{first.hint or 'mend the row'}{rest}")
        only.line = found.first_line
        raise only
    _tell(found)
    raise BadInput(f"{found.bad} bad rows, the first: {first.message}", f"mend them{rest}")


def _tell(found: Survey) -> None:
    """Say what is wrong with the first hundred bad rows, and how many more there are."""
    for refusal in found.refusals:
        screen.say(refusal.message, level=-1)
    more = found.bad - len(found.refusals)
    if more:
        screen.say(f"and {more} more", level=-1)
