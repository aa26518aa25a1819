"""What the commands that draw share: options of their own, the merge of what was given, and plans for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdcli import device, models, pipeline, settings
from sdcli.cli.main import closing, leaving_at_once, screen
from sdcli.cli.results import Results
from sdcli.cli.screen import printable
from sdcli.device import DevicePlan
from sdcli.errors import BadInput, CannotCreateOutput, InputMissing, SdcliError, UsageError
from sdcli.jobs import again
from sdcli.jobs.jobs import fitted
from sdcli.metadata.inspecting import Found
from sdcli.models import Model, ModelSpec, hub
from sdcli.prompts.wildcards import Expander
from sdcli.request import WHAT, JobOptions
from sdcli.settings import Given, Merged

if TYPE_CHECKING:
    from sdcli.pipeline import Pipeline

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
DryRun = Annotated[
    bool, typer.Option("--dry-run/--no-dry-run", show_default=False, help="Say what would be drawn; draw nothing.")
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
    return Results(as_json=as_json, print0=print0, screen=screen)


def spooled(typed: Mapping[str, Any], others: Iterable[str | None] = ()) -> dict[str, Any]:
    """Return what was typed, with the picture that comes on stdin, `--init-image -`, as a file that goes when the command has
    ended; `others` are what else may be `-`."""
    if typed.get("init_image") != "-":
        return dict(typed)
    if "-" in others:
        raise UsageError("stdin can be read once", "give - once")
    if sys.stdin is None:
        raise InputMissing("stdin is closed", "give the picture's path to --init-image")
    from tempfile import TemporaryDirectory

    from sdcli import pictures

    folder = closing.enter_context(TemporaryDirectory(prefix="sdcli-"))
    return {**typed, "init_image": str(pictures.spooled(sys.stdin.buffer, Path(folder)))}


def look(picture: str) -> Found:
    """Return what a picture (- is stdin) says that is to be drawn again. Raises InputMissing and BadInput."""
    if picture == "-" and sys.stdin is None:
        raise InputMissing("stdin is closed", "give the picture's path to --from")
    found = again.look(picture, sys.stdin.buffer if picture == "-" else None)
    if found is None:
        raise BadInput(f"{picture} is the sheet of a grid", "give one of its cells' pictures to --from")
    return found


def merged(given: Given, model: Model, picture: Found | None) -> Merged:
    """Return what a command was given with what a picture says between, as a model wants it."""
    if picture is None:
        return fitted(given.merged(), model)[0]
    return fitted(given.merged((picture.path, again.values(picture)), nothing=again.nothing(picture)), model)[0]


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
