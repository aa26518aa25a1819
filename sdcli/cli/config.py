"""`sdcli config`: what is set outside of a command line, and by whom."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from sdcli.cli.main import app, screen
from sdcli.cli.results import Results
from sdcli.cli.screen import printable
from sdcli.cli.shared import Json
from sdcli.errors import SdcliError
from sdcli.options import options_of
from sdcli.settings import RECORDS, config, current, names
from sdcli.settings.config import Place, Written
from sdcli.settings.presets import PLACES, folder

commands = typer.Typer(
    help="""See and change what is set outside of a command line.

Weakest first: the model's defaults, user settings, project settings, SDCLI_* variables, a picture's record \
(--from), presets in their order, flags, a row of a batch.

Examples:

  sdcli config show

  sdcli config set model demo

  sdcli config set steps 30 --project

  SDCLI_STEPS=12 sdcli config get steps
"""
)
app.add_typer(commands, name="config")

Project = Annotated[
    bool,
    typer.Option(
        "--project/--no-project", show_default=False, help="In ./sdcli.toml, for this folder; else in the user's."
    ),
]
Key = Annotated[str, typer.Argument(metavar="KEY", help="A field, or a flag without its --: steps.")]


@commands.command(
    help="""Print each value that is set, and where.

Examples:

  sdcli config show

  sdcli config show --all --json | jq -r .key
"""
)
def show(
    every: Annotated[
        bool, typer.Option("--all/--no-all", show_default=False, help="Also those that nothing sets.")
    ] = False,
    as_json: Json = False,
) -> None:
    results = Results(as_json=as_json)
    merged = current()
    lines = []
    for option in (option for record in RECORDS for option in options_of(record)):
        origin = merged.origins.get(option.field, "default")
        if every or origin != "default":
            value = merged.values.get(option.field, option.default)
            lines.append((option.field, value, origin, option.default))
    if as_json:
        for key, value, origin, default in lines:
            results.event(_setting(key, value, origin, default))
        return
    shown = [(key, _text(value), origin) for key, value, origin, _ in lines]
    widths = [max((len(row[i]) for row in shown), default=0) for i in range(2)]
    for key, text, origin in shown:
        results.line(f"{key.ljust(widths[0])}  {printable(text).ljust(min(widths[1], 40))}  {printable(origin)}")
    if not shown:
        screen.say("nothing is set; `sdcli config show --all` prints the defaults")


@commands.command(
    help="""Print a value that is set, or the default; nothing where the model or the run decides.

Examples:

  sdcli config get model

  sdcli config get steps --json | jq .origin
"""
)
def get(key: Key, as_json: Json = False) -> None:
    results = Results(as_json=as_json)
    field, value, origin = config.value(key, current())
    if as_json:
        default = names()[field].default if field in names() else None  # size is none.
        results.event(_setting(field, value, origin, default))
    else:
        results.text("" if value is None else value if isinstance(value, str) else _text(value))
        screen.say(f"{field}: {origin}" if value is not None else f"{field}: the model or the run decides")


@commands.command(
    name="set",
    help="""Set a value, in the user's settings or the project's; comments stay.

Examples:

  sdcli config set model demo

  sdcli config set output pictures/ --project
""",
)
def set_(
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="As a flag takes it.")],
    project: Project = False,
) -> None:
    place: Place = "project" if project else "user"
    _told(place, key, config.store(place, key, value), "is set in", "is that already in")


@commands.command(
    help="""Take a value out of the user's settings or the project's.

Examples:

  sdcli config unset model

  sdcli config unset steps --project
"""
)
def unset(key: Key, project: Project = False) -> None:
    place: Place = "project" if project else "user"
    _told(place, key, config.remove(place, key), "is no longer set in", "is not set in")


@commands.command(
    help="""Print where settings and presets are looked for.

Examples:

  sdcli config where

  sdcli config where --json | jq -r 'select(.exists) | .path'
"""
)
def where(as_json: Json = False) -> None:
    results = Results(as_json=as_json)
    places: list[tuple[str, Path]] = [(config.ORIGINS[place], config.path(place)) for place in config.ORIGINS]
    places += [(f"{kind} presets", folder(kind)) for kind in reversed(PLACES)]
    for name, path in places:
        if as_json:
            facts = {"name": name, "path": str(path), "exists": path.exists()}
            results.event({"schema": 1, "event": "place", **facts})
        else:
            results.line(f"{name:<16}  {printable(str(path))}{'' if path.exists() else '  (not there)'}")


def _told(place: Place, key: str, written: Written, done: str, nothing: str) -> None:
    """Say what became of a change, what is wrong in the rest of the file, and which stronger source hides the change."""
    for fault in written.faults:
        screen.warn(str(fault))
    screen.say(f"{key} {done if written.changed else nothing} {written.path}")
    if written.absolute is not None:
        screen.say(f"it stands there as {written.absolute}, to mean the same in every folder")
    if written.faults:
        return
    with suppress(SdcliError):  # Somebody else's fault, which the next command that draws names.
        field, _, origin = config.value(key, current())
        if origin not in (config.ORIGINS[place], "default"):
            screen.say(f"{field} comes from elsewhere, though: {origin}")


def _setting(key: str, value: Any, origin: str, default: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "event": "setting",
        "key": key,
        "value": msgspec.to_builtins(value),
        "origin": origin,
        "default": default,
    }


def _text(value: Any) -> str:
    return "-" if value is None else json.dumps(msgspec.to_builtins(value))
