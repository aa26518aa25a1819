"""`sdcli doctor`: what stops or slows a run on this machine, and what to do about it."""

from __future__ import annotations

import os
from collections import Counter
from typing import Annotated

import msgspec
import typer

from sdcli.cli.main import app, leaving_at_once, screen
from sdcli.cli.results import Results
from sdcli.cli.screen import printable
from sdcli.cli.shared import Json, Quiet, Verbose
from sdcli.jobs import doctor as examination
from sdcli.jobs.doctor import Finding

# As wide as the widest of the names that findings have.
NAME = 17


@app.command(
    help="""Examine this machine: versions, settings, disk, hub, devices, and how long two steps take.

Each problem comes with its remedy. Ends with 1 if there is one; a warning is none. Downloads nothing.

Examples:

  sdcli doctor

  sdcli doctor --offline --json | jq 'select(.status != "ok")'
"""
)
def doctor(
    offline: Annotated[
        bool, typer.Option("--offline/--no-offline", show_default=False, help="Don't ask whether the hub is there.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    screen.verbosity, screen.as_json = -1 if quiet else verbose, as_json
    # Read when huggingface_hub is imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    results = Results(as_json=as_json)
    screen.say("examining; a drawing of two steps comes last ...")
    counts: Counter[str] = Counter()
    # There is nothing to lose at any time.
    with leaving_at_once():
        for finding in examination.examine(offline=offline):
            counts[finding.status] += 1
            # A program picks out what it wants by itself.
            if as_json or not quiet or finding.status != "ok":
                _tell(finding, results)
    problems, warnings = counts["problem"], counts["warning"]
    screen.say(f"{problems or 'no'} problem{'s'[: problems != 1]}, {warnings or 'no'} warning{'s'[: warnings != 1]}")
    return int(problems > 0)


def _tell(finding: Finding, results: Results) -> None:
    if results.as_json:
        results.event({"schema": 1, "event": "check", **msgspec.structs.asdict(finding)})
        return
    said = finding.message if finding.message is not None else finding.value
    results.line(_row(finding.status, finding.name, str(said)))
    if finding.hint:
        results.line(_row("", "", f"hint: {finding.hint}"))


def _row(mark: str, name: str, text: str) -> str:
    return f"{mark:<7}  {name:<{NAME}}  {printable(text.replace(chr(10), ' '))}".rstrip()
