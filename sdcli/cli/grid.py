"""`sdcli grid`: one prompt over two or three axes, and a contact sheet of what came of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from sdcli import __version__, output, pipeline
from sdcli.cli import batching, drawing, seeing
from sdcli.cli.batching import FailFast, Fresh, MaxFailures, RetryFailed
from sdcli.cli.drawing import Assign, DryRun, Loading, Preset, Size
from sdcli.cli.main import app, screen
from sdcli.cli.results import Results
from sdcli.cli.seeing import Graphics, Preview, Show
from sdcli.cli.shared import Json, Offline, Print0, Quiet, Verbose
from sdcli.cli.typed import options_from
from sdcli.device import DevicePlan
from sdcli.errors import SdcliError, UsageError
from sdcli.jobs import batch as batches
from sdcli.jobs import events, grids, sheet
from sdcli.jobs.batch import Planner, Ready
from sdcli.jobs.grids import Axis, Cell
from sdcli.jobs.jobs import Asked, check, fitted, of_asked
from sdcli.metadata import xmp
from sdcli.models import ModelSpec
from sdcli.models.checking import without_idle
from sdcli.output import Destination, OutputPlan
from sdcli.record import pixels_of
from sdcli.request import GenerationRequest, JobOptions
from sdcli.settings import Merged

if TYPE_CHECKING:
    from PIL.Image import Image

EXAMPLES = """Draw a prompt with every combination of some values, and a labelled sheet of them.

Examples:

  sdcli grid "a cat in a garden" --x steps=10,20,30 --y scheduler=euler,dpm++2m-karras

  sdcli grid "a red circle" --x "prompt:red=red,green,blue" --y cfg=1..9/5 --model demo

  sdcli grid "a star" --x seed=1..4+1 --y steps=5..25+10 --z size=128x128,96x128 --model demo
"""
AXES = "Axes"


ACROSS = "Across: FIELD=VALUES, prompt:TEXT=VALUES; ranges 10..50+10 or 1..9/5."
AxisX = Annotated[str | None, typer.Option("--x", metavar="AXIS", help=ACROSS, rich_help_panel=AXES)]
AxisY = Annotated[str | None, typer.Option("--y", metavar="AXIS", help="Down.", rich_help_panel=AXES)]
AxisZ = Annotated[str | None, typer.Option("--z", metavar="AXIS", help="Block by block.", rich_help_panel=AXES)]


@app.command(help=EXAMPLES)
@options_from(GenerationRequest, JobOptions, ModelSpec, DevicePlan, OutputPlan)
def grid(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")],
    x: AxisX = None,
    y: AxisY = None,
    z: AxisZ = None,
    size: Size = None,
    assign: Assign = None,
    retry_failed: RetryFailed = False,
    fresh: Fresh = False,
    max_failures: MaxFailures = None,
    fail_fast: FailFast = False,
    preview: Preview = False,
    show: Show = False,
    graphics: Graphics = None,
    preset: Preset = None,
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
    axes = [grids.axis(letter, text) for letter, text in (("x", x), ("y", y), ("z", z)) if text is not None]
    cells = list(grids.cells(drawing.argument(prompt), axes))
    given, model = drawing.resolve(drawing.spooled(typed) | {"size": size}, preset or [], assign or [])
    merged, _ = fitted(given.merged(), model)
    options, spec, plan = merged.build(JobOptions), merged.build(ModelSpec), merged.build(DevicePlan)
    if options.count != 1 or options.expand == "all":
        field = "count" if options.count != 1 else "expand"
        origin = merged.origins[field] if merged.origins[field] != "flag" else f"--{field}"
        raise UsageError(
            f"a cell of a grid is one picture, and {origin} says {getattr(options, field)}",
            "leave --count and --expand all out; an axis can be seeds",
        )
    request = merged.build(GenerationRequest, prompt=prompt)
    check(without_idle(request), model, merged)
    planner = Planner(given=given, model=model, expander=drawing.expander(options))
    out = merged.build(OutputPlan)
    where = batching.destination(out, results, pictures=len(cells))
    if out.metadata != "full":
        screen.say("the sheet shows the prompt and the axes' values all the same")
    asked = [_asked(cell, axes, planner, request) for cell in cells]
    if dry_run:
        batching.dry_run(((one, own.origins["prompt"], own) for one, own in asked), planner, where, spec, plan, results,
            fresh=fresh,
        )  # fmt: skip
        return

    terminal = seeing.terminal(way, wanted=preview or show)
    shown = seeing.between(terminal) if show else None
    resolved = [pipeline.resolve(one.request, model) for one, _ in asked]
    if all(r.width and r.height for r in resolved):
        sizes = {(c.x, c.y, c.z): pipeline.final_size(r, model) for c, r in zip(cells, resolved, strict=True)}
        sheet.layout(axes, sizes, title=prompt)  # A sheet that is too large is refused before its cells are drawn.

    def read() -> list[Asked]:
        return [_asked(cell, axes, planner, request)[0] for cell in cells]

    def at_end(ready: Ready) -> None:
        made = _sheet(prompt, axes, list(zip(cells, read(), strict=True)), planner, ready, where, out, results)
        if shown is not None:
            shown(made)

    batching.run(
        read, batches.survey(read(), planner), planner, where, out, results, Loading(model, spec, plan), options=options,
        fresh=fresh, retry_failed=retry_failed, max_failures=1 if fail_fast else max_failures, at_end=at_end,
        preview=terminal if preview else None,
    )  # fmt: skip


def _asked(cell: Cell, axes: Sequence[Axis], planner: Planner, request: GenerationRequest) -> tuple[Asked, Merged]:
    """Return what a cell asks for, and its values with their origins. All cells have one seed, if none is theirs."""
    values = {"prompt": request.prompt} | cell.values
    presets = [values.pop("preset")] if "preset" in values else []
    origins = {axis.field: f"--{axis.letter}" for axis in axes}
    merged = planner.over(
        presets, *((origins.get(field, "argument"), {field: value}) for field, value in values.items())
    )
    try:
        asked = planner.asked(merged, "")
    except SdcliError as error:
        labels = ", ".join(axis.labels[getattr(cell, axis.letter)] for axis in axes)
        raise UsageError(f"the cell {labels} can't be drawn: {error.message}", error.hint) from error
    return msgspec.structs.replace(asked, shares=request), merged


def _sheet(
    prompt: str,
    axes: Sequence[Axis],
    cells: Sequence[tuple[Cell, Asked]],
    planner: Planner,
    ready: Ready,
    where: Destination,
    files: OutputPlan,
    results: Results,
) -> Image:
    """Make the contact sheet out of the cells' pictures, tell of it and return it."""
    folder = output.folder_of(where)[0]
    pictures: dict[tuple[int, int, int], Path | str] = {}
    drawn: list[sheet.Drawn] = []
    for number, (cell, asked) in enumerate(cells, 1):
        (job,) = of_asked(asked, ready.seeds, planner.expander, ready.pin, number)
        id, key = ready.id_of(job.request), (cell.x, cell.y, cell.z)
        found = ready.journal.find(id) if ready.journal is not None else None
        if found is None:  # the run was stopped before it came to this one
            pictures[key] = "not drawn"
            drawn.append(
                sheet.Drawn(x=cell.x, y=cell.y, z=cell.z, id=id, path=None, seed=job.request.seed, pixels=None)
            )
            continue
        line = found.line
        failed = line["event"] == "error"
        pictures[key] = f"failed: {line['code']}" if failed else Path(line["path"])
        drawn.append(
            sheet.Drawn(
                x=cell.x,
                y=cell.y,
                z=cell.z,
                id=id,
                path=None if failed else os.path.relpath(line["path"], folder),
                seed=job.request.seed,
                pixels=None if failed else line["pixels"],
                error=line["code"] if failed else None,
            )  # fmt: skip
        )
    image = sheet.sheet(axes, pictures, title=prompt)
    record = sheet.record(prompt, axes, drawn, {"sdcli": __version__})
    mark = xmp.mark(ready.identity, __version__) if files.metadata != "none" else None
    # With no prompt in it, it still says what it is; `none` says nothing.
    said = {"full": record, "minimal": {"schema": record["schema"], "kind": record["kind"]}, "none": None}
    data = sheet.encode(image, said[files.metadata], mark)
    if where.signer is not None:
        data = where.signer.signed(data, "png")
    # Named by what it is of: the same grid again writes the same sheet, and fills in what had failed.
    id = hashlib.sha256(json.dumps([prompt, record["axes"], [d.id for d in drawn]]).encode()).hexdigest()
    name = f"{output.safe(prompt, 40)}-{id[:8]}" if files.metadata == "full" else id[:8]
    path = folder / f"grid-{name}.png"
    output.write(path, data, overwrite=True)
    results.event(events.sheet(id, str(path), image.width, image.height, pixels_of(image).sha256))
    return image
