"""`sdcli gallery`: a page over a folder of pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sdcli.cli.main import app, screen
from sdcli.cli.results import Results
from sdcli.cli.shared import Json, Quiet, Verbose
from sdcli.explain import gallery as pictures_page
from sdcli.jobs.runner import Tally
from sdcli.record import SCHEMA


@app.command(
    help="""Write a page over a folder of pictures, and of those in it: to look at, search, filter and compare them.

It opens in a browser as a file and loads nothing from anywhere. What failed in a batch is on it too. Run again, it makes
thumbnails of new pictures only. Needs the extra `show`.

Examples:

  sdcli gallery sdcli-batch/

  sdcli gallery pictures/ -o pages/ --json | jq -r .path
"""
)
def gallery(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder of pictures.")],
    page: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="FILE.html or FOLDER/; or gallery.html in DIR.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite/--no-overwrite", show_default=False, help="Overwrite what is no gallery, too."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    screen.verbosity, screen.as_json = -1 if quiet else verbose, as_json
    results = Results(as_json=as_json)
    began = time.monotonic()
    tally = Tally(total=None, drawing_since=began)

    def told(done: int, of: int, name: str) -> None:
        tally.done, tally.total = done, of
        screen.tally(tally, name)

    try:
        place = pictures_page.page_of(Path(folder), page, overwrite=overwrite)
        written = pictures_page.write(Path(folder), place, overwrite=overwrite, told=told)
    finally:
        screen.stop()
    counts = {"pictures": written.pictures, "failures": written.failures, "unreadable": written.unreadable}
    told_of = ((name.removesuffix("s") if count == 1 else name, count) for name, count in counts.items())
    screen.say(", ".join(f"{count:,} {name}" for name, count in told_of if count or name == "pictures"))
    if as_json:
        seconds = round(time.monotonic() - began, 3)
        event = {"schema": SCHEMA, "event": "gallery", "path": str(written.path), **counts, "seconds": seconds}
        results.event(event)
    else:
        results.line(str(written.path))
