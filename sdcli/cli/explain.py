"""`sdcli explain`: how a picture comes out of noise, as a page."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from sdcli import output, pictures, pipeline
from sdcli.cli import drawing
from sdcli.cli.drawing import Assign, From, Loading, Preset, Size
from sdcli.cli.main import app, screen
from sdcli.cli.shared import Json, Offline, Quiet, Verbose, prompt_of_stdin
from sdcli.cli.typed import options_from
from sdcli.device import DevicePlan
from sdcli.errors import CannotCreateOutput, UsageError
from sdcli.explain import charts, explaining, pages
from sdcli.jobs import again, jobs
from sdcli.jobs.jobs import Asked, Seeds
from sdcli.models import Model, ModelSpec
from sdcli.pipeline import observing
from sdcli.record import SCHEMA
from sdcli.request import FROM, GenerationRequest, JobOptions
from sdcli.settings import Merged

ENDINGS = (".html", ".htm")
ELSEWHERE = "give another folder to --assets"
EXAMPLES = """Explain how a picture comes out of noise, on a page with figures of your run.

For Stable Diffusion 1.x, 2.x and XL. Draws up to eight pictures. Needs the extra `show`.

Examples:

  sdcli explain "a red star and a blue circle" --model demo -o star.html

  sdcli explain "a lighthouse at dusk" --seed 7 --assets figures/

  sdcli explain "a star" -m demo --image photo.png --json | jq .path

  sdcli explain --from dusk.png
"""


@app.command(help=EXAMPLES)
@options_from(GenerationRequest, ModelSpec, DevicePlan, without=("hires", "upscale"))
def explain(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What to draw; - reads it from stdin.", show_default=False),
    ] = None,
    page: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="FILE.html, or FOLDER/.", show_default=False)
    ] = None,
    assets: Annotated[
        str | None, typer.Option("--assets", metavar="DIR", help="Its pictures (PNG) and numbers (JSON) as files too.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="PICTURE", help="What noise is put on, instead of the picture.", rich_help_panel=FROM),
    ] = None,
    size: Size = None,
    assign: Assign = None,
    preset: Preset = None,
    picture: From = None,
    as_json: Json = False,
    offline: Offline = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    *,
    typed: dict[str, Any],
) -> None:  # fmt: skip
    results = drawing.begin(as_json=as_json, print0=False, quiet=quiet, verbose=verbose, offline=offline)
    began = time.monotonic()
    if [prompt, picture].count("-") > 1:
        raise UsageError("stdin can be read once", "give - once")
    if prompt is None and picture is None:
        raise UsageError("there is no PROMPT", "say what to draw, or --from PICTURE")
    typed = drawing.spooled(typed, [prompt, picture])
    found = drawing.look(picture) if picture is not None else None
    text = prompt_of_stdin() if prompt == "-" else prompt and drawing.argument(prompt)
    of_picture = (again.model(one) for one in [found] if one is not None)
    given, model = drawing.resolve(typed | {"size": size}, preset or [], assign or [], of_picture)
    merged = drawing.merged(given, model, found)
    request = _request(text, merged, model)
    path = _page(page, request)
    before = _before(Path(assets)) if assets is not None else {}
    shown = pictures.open_picture(image) if image is not None else None
    pages.environment()
    charts.require()
    loaded = Loading(model, merged.build(ModelSpec), merged.build(DevicePlan))()
    if not model.is_here:
        # What its family wants is known only now.
        model = loaded.model
        merged = drawing.merged(given.knowing(model.defaults), model, found)
        request = msgspec.structs.replace(_request(text, merged, model), seed=request.seed)
    for line in again.missing(found, loaded.model_record.files) if found else []:
        screen.warn(line)
    request = pipeline.resolve(request, loaded.model)
    tell = _Telling()
    made = explaining.explain(loaded, request, image=shown, again=found, keep=assets is not None, tell=tell)
    for warning in made.generated.warnings:
        screen.warn(warning)
    if made.again is not None:
        screen.say(made.again)
    written = output.write(path, made.page, overwrite=page is not None and not output.is_folder(page))
    if assets is not None:
        output.remove(before)
        # Last what names the others.
        for name, data in made.files.items():
            asked = Path(assets) / name
            if output.write(asked, data, overwrite=name == explaining.NUMBERS, hint=ELSEWHERE) != asked:
                raise CannotCreateOutput(f"{asked} came there meanwhile", ELSEWHERE)
    screen.stop()
    if as_json:
        results.event(
            {
                "schema": SCHEMA, "event": "explain", "path": str(written), "assets": assets,
                "seconds": round(time.monotonic() - began, 3), "pixels": made.generated.record.pixels.sha256,
                "same": made.same,
            }
        )  # fmt: skip
    else:
        results.line(str(written))


class _Telling:
    """Moves the bar."""

    def __call__(self, done: int, of: int, what: str) -> None:
        from sdcli.pipeline import Step

        screen.step(Step(number=done, of=of, timestep=0.0, latents=None), what)


def _request(prompt: str | None, merged: Merged, model: Model) -> GenerationRequest:
    """Return the request of a prompt, or of a picture's, with its seed; whatever can be refused without torch is refused."""
    values = merged if prompt is None else merged.over(("argument", {"prompt": prompt}))
    asked = Asked(request=values.build(GenerationRequest), options=JobOptions(), styles=merged.templates)
    (job,) = jobs.of_asked(asked, Seeds(None, None), None, lambda r: r, 1)
    observing.check_observed(job.request, model)
    jobs.check(job.request, model, merged)
    pipeline.check_prompt(job.request, model)
    return job.request


def _page(asked: str | None, request: GenerationRequest) -> Path:
    """Return where the page goes, or refuse."""
    name = f"{output.safe(request.prompt, 40)}-{request.seed}.html"
    if asked is None:
        path = Path(name)
    elif output.is_folder(asked):
        path = Path(asked) / name
    elif asked.lower().endswith(ENDINGS):
        path = Path(asked)
    else:
        raise UsageError(f"{asked!r} is neither a folder nor a page (.html)", "add / for a folder, or .html")
    output.check_folder(path.parent)
    return path


def _before(folder: Path) -> dict[Path, int]:
    """Return the files that a run before left in a folder; CannotCreateOutput for one that has somebody's own in it."""
    output.check_folder(folder, ELSEWHERE)
    if output.is_empty(folder, ELSEWHERE):
        return {}
    numbers, told = folder / explaining.NUMBERS, None
    with suppress(OSError, ValueError, RecursionError):
        told = json.loads(numbers.read_bytes())
    if not isinstance(told, dict) or not {"schema", "record"} <= told.keys():
        raise CannotCreateOutput(f"{folder} is not empty", f"{ELSEWHERE}, or one of a run before")
    files = told.get("files")
    before = output.of_a_run_before(numbers, files if isinstance(files, list) else [], explaining.PICTURE)
    for path in folder.iterdir():
        if explaining.PICTURE.fullmatch(path.name) and path not in before:
            raise CannotCreateOutput(f"{path} is not as `sdcli explain` left it there", f"{ELSEWHERE}, or remove it")
    return before
