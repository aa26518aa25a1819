"""`sdcli verify`: pictures drawn again from their own records, and whether they come out the same."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from sdcli.cli import drawing
from sdcli.cli.main import app, leaving_at_once, screen
from sdcli.cli.results import Results
from sdcli.cli.screen import printable
from sdcli.cli.shared import Json, Offline, Quiet, Verbose
from sdcli.device import DevicePlan
from sdcli.errors import SdcliError
from sdcli.jobs import events, verifying
from sdcli.jobs.runner import Tally
from sdcli.jobs.verifying import Verdict, Verifier
from sdcli.models import ModelSpec

if TYPE_CHECKING:
    from sdcli.pipeline import Pipeline

WORDS = {"identical": "identical", "equal": "equal to the eye", "different": "different", "failed": "failed"}


@app.command(
    help="""Draw pictures again from their own records, and say whether they come out the same.

Each is identical, equal to the eye, or different, with what was other then than now. Ends with 1 if one is different. No path
is taken from a picture, and nothing is downloaded for one: --model says where a model lies, or that it may be.

Examples:

  sdcli verify dusk.png

  sdcli verify pictures/ --json | jq -r 'select(.verdict == "different") | .path'

  sdcli verify dusk.png --model models/mine.safetensors
"""
)
def verify(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="Files, or folders of them.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Draw with this one: a path, or as elsewhere.", show_default=False),
    ] = None,
    vae: Annotated[
        str | None, typer.Option("--vae", metavar="VAE", help="The autoencoder, if it was not the model's own.", show_default=False)
    ] = None,
    model_config: Annotated[
        str | None,
        typer.Option(
            "--model-config", metavar="MODEL", help="A single file's configuration: folder or hub id.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    offline: Offline = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:  # fmt: skip
    results = drawing.begin(as_json=as_json, print0=False, quiet=quiet, verbose=verbose, offline=offline)
    report = Report(results)
    verifier = Verifier(
        load=report.load, tell=report.tell, say=screen.say, model=model, vae=vae, model_config=model_config
    )
    # Those that are not drawn have been told of by then.
    report.tally = Tally(total=verifier.survey(pictures))
    if report.tally.total == 1:
        verifier.listener = partial(screen.step, label="drawing again")
    try:
        verifier.draw()
    finally:
        screen.stop()
    return report.end()


class Report:
    """Tells of each picture, and what they come to."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.counts: Counter[str] = Counter()
        self.tally = Tally(total=None)
        self.code = 0

    def load(self, spec: ModelSpec, plan: DevicePlan) -> Pipeline:
        """Load a model, and say so."""
        screen.stop()
        screen.say(f"loading {spec.model} ...")
        with leaving_at_once():
            pipe = verifying.load(spec, plan, say=screen.say)
        self.tally.drawing_since = self.tally.drawing_since or time.monotonic()
        return pipe

    def tell(self, path: str, outcome: Verdict | SdcliError) -> None:
        """Print a picture's verdict, or why there is none."""
        screen.stop()
        if isinstance(outcome, SdcliError):
            self.counts["failed"] += 1
            self.tally.failed += 1
            self.code = outcome.exit_code
            screen.error(outcome)
            self.results.event({**events.error(outcome), "path": path})
        else:
            self.counts[outcome.verdict] += 1
            self.tally.done += 1
            self.code = int(outcome.verdict == "different")
            self._verdict(path, outcome)
        if self.tally.total != 1:
            screen.tally(self.tally, path)

    def _verdict(self, path: str, verdict: Verdict) -> None:
        if self.results.as_json:
            self.results.event(verdict.as_event(path))
            return
        self.results.line(f"{_line(path)}: {_said(verdict)}")
        for cause in verdict.causes:
            self.results.line(f"  {_line(cause)}")

    def end(self) -> int:
        """Say how it went, and return the exit code: one picture's own; of several, 1 if one is not as it should be."""
        if self.counts.total() == 1:
            return self.code
        screen.say(", ".join(f"{self.counts[kind]} {word}" for kind, word in WORDS.items() if self.counts[kind]))
        return int(self.counts["different"] + self.counts["failed"] > 0)


def _said(verdict: Verdict) -> str:
    word = WORDS[verdict.verdict]
    if verdict.verdict == "identical" or verdict.max_difference is None:
        return word
    psnr = f"PSNR {verdict.psnr:.1f} dB, " if verdict.psnr is not None else ""
    return f"{word} ({psnr}largest difference {verdict.max_difference})"


def _line(text: str) -> str:
    return printable(text).replace("\n", "\\n")
