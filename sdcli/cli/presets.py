"""`sdcli presets`: values that belong together under one name, and the making of such."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli import settings
from sdcli.cli import completing
from sdcli.cli.main import app, screen
from sdcli.cli.results import Results
from sdcli.cli.screen import printable
from sdcli.cli.shared import Json
from sdcli.errors import BadInput, UsageError
from sdcli.request import GenerationRequest
from sdcli.settings import presets as files
from sdcli.settings.files import Fault
from sdcli.settings.merge import PROMPT, Merged, Style, merge, styled

commands = typer.Typer(
    help="""See, check and make presets: values that belong together, under one name.

A preset is a TOML file of fields, of what it extends, and of styles. sdcli brings some; the user's lie in the \
configuration folder, a project's in ./presets; of one name, the last of these is taken.

Examples:

  sdcli presets list

  sdcli generate "a lighthouse" --preset fast --preset watercolor

  sdcli presets new mine --from dusk.png --extends oil

  sdcli presets check
"""
)
app.add_typer(commands, name="presets")

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A preset's name, or the path of its file.", autocompletion=completing.presets),
]
# What a model decides, if nobody does: a picture's own is kept even where it is what most models do.
OF_A_MODEL = ("num_inference_steps", "guidance_scale")


@commands.command(
    name="list",
    help="""List the presets: name, where from, description.

Examples:

  sdcli presets list

  sdcli presets list --json | jq -r .name
""",
)
def list_(as_json: Json = False) -> None:
    results = Results(as_json=as_json)
    rows: list[tuple[str, str, str]] = []
    for name, places in files.known().items():
        place, path = places[0]
        found, faults = files.examine(name, place, path)
        for fault in faults:
            screen.warn(str(fault))
        description, hidden = found.description if found else None, [p for p, _ in places[1:]]
        if as_json:
            facts = {"name": name, "place": place, "path": str(path), "description": description}
            extends = list(found.extends) if found else None
            results.event({"schema": 1, "event": "preset", **facts, "extends": extends, "hides": hidden})
        hides = f" (not {', '.join(hidden)})" if hidden else ""
        rows.append((name, f"{place}{hides}", printable((description or "").replace("\n", " "))))
    if not as_json:
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        for row in rows:
            results.line(f"{row[0].ljust(widths[0])}  {row[1].ljust(widths[1])}  {row[2]}".rstrip())


@commands.command(
    help="""Print what a preset sets, with all that it extends, and where each value comes from.

Examples:

  sdcli presets show fast

  sdcli presets show ./mine.toml --json | jq .values
"""
)
def show(name: Name, as_json: Json = False) -> None:
    results = Results(as_json=as_json)
    chain = files.look(name)
    preset, merged = chain[-1], merge(*files.sources(chain))
    values = _values(merged)
    origins = {field: merged.origin(field) for field in values}
    if as_json:
        results.event(
            {
                "schema": 1, "event": "preset", "name": preset.name, "place": preset.place, "path": preset.path,
                "description": preset.description, "extends": list(preset.extends), "values": values,
                "origins": origins,
            }
        )  # fmt: skip
        return
    results.line(printable(f"{preset.name}: {preset.place}, {preset.path}"))
    if preset.description:
        results.line(printable(preset.description))
    for field, value in values.items():
        results.line(f"  {field:<20} {printable(json.dumps(value)):<36} {printable(origins[field] or '')}")


@commands.command(
    help="""Print the path of a preset's file.

Examples:

  sdcli presets path fast

  $EDITOR "$(sdcli presets path mine)"
"""
)
def path(name: Name, as_json: Json = False) -> None:
    place, file = files.where(name)
    results = Results(as_json=as_json)
    if as_json:
        results.event({"schema": 1, "event": "path", "name": name, "place": place, "path": str(file)})
    else:
        results.text(str(file))


@commands.command(
    help="""Make a preset: of a picture's record, of fields, or on top of others.

Examples:

  sdcli presets new mine --from dusk.png

  sdcli presets new soft --extends watercolor --set "prompt={prompt}, pale colours" --set steps=30 --project
"""
)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is to be called.")],
    picture: Annotated[
        str | None,
        typer.Option("--from", metavar="PICTURE", help="Take the fields of a picture's record; - reads stdin."),
    ] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a field; repeatable.")
    ] = None,
    extends: Annotated[
        list[str] | None, typer.Option("--extends", metavar="PRESET", help="Build on a preset; repeatable.")
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="One line, for `sdcli presets list`.")
    ] = None,
    with_seed: Annotated[
        bool, typer.Option("--with-seed/--no-with-seed", show_default=False, help="The picture's seed too.")
    ] = False,
    project: Annotated[
        bool, typer.Option("--project/--no-project", show_default=False, help="In ./presets; else among the user's.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--no-overwrite", show_default=False, help="Replace one that is there.")
    ] = False,
    as_json: Json = False,
) -> None:
    results = Results(as_json=as_json)
    file = files.new_file(name, project=project)
    values: dict[str, Any] = {}
    notes = [f"A preset for sdcli: sdcli generate PROMPT --preset {name}"]
    if picture is not None:
        values, more = _of_picture(picture, with_seed=with_seed)
        notes += more
    elif with_seed:
        raise UsageError("--with-seed is for --from PICTURE", "give the seed with --set seed=N")
    for field, value in _assigned(assign or []).items():
        values.pop(field, None)
        values[field] = value
    if description is None:
        description = f"As in {Path(picture).name}." if picture not in (None, "-") else "A preset of one's own."
    text = files.composed(
        values, description=" ".join(printable(description).split()), extends=extends or [],
        notes=[" ".join(printable(note).split()) for note in notes],
    )  # fmt: skip
    files.write(file, text, "project" if project else "user", overwrite=overwrite)
    screen.say(f"{name} is made; `sdcli presets show {name}` prints what it sets")
    _told_of_others(name, file)
    if as_json:
        results.event(
            {"schema": 1, "event": "path", "name": name, "place": "project" if project else "user", "path": str(file)}
        )
    else:
        results.line(str(file))


def _told_of_others(name: str, file: Path) -> None:
    """Say which presets of the same name a new one hides, and which hides it."""
    places = files.known().get(name, [])
    at = next((i for i, (_, path) in enumerate(places) if path.resolve() == file.resolve()), len(places))
    if at:
        screen.say(f"the {places[0][0]} preset {name} hides it here")
    if hidden := [place for place, _ in places[at + 1 :]]:
        screen.say(f"it hides the {' and the '.join(hidden)} preset {name}")


@commands.command(
    help="""Say all that is wrong with presets, FILE:LINE: reason; ends with 65 if anything is.

Examples:

  sdcli presets check

  sdcli presets check mine ./presets/oil.toml
"""
)
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...", help="Names or paths; else all.", show_default=False, autocompletion=completing.presets
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    results = Results(as_json=as_json)
    told: dict[Fault, None] = {}
    bad = 0
    if names:
        wanted = [(_stem(name), *files.where(name)) for name in names]
    else:
        wanted = [(name, *one) for name, places in files.known().items() for one in places]
        wanted += [(path.stem, place, path) for place, path in files.nameless()]
    for name, place, file in wanted:
        found = dict.fromkeys(files.faults(name, place, file))
        bad += bool(found)
        for fault in found:
            if fault not in told:
                _tell(fault, results)
        if found and not any(fault.file == str(file) for fault in found):
            _tell(_of_a_base(name, place, file, found), results)
        told |= found
    if bad:
        error = BadInput(f"{bad} of {len(wanted)} presets are not sound", "mend the lines above")
        raise error
    screen.say(f"{len(wanted)} presets are sound")


def _of_a_base(name: str, place: files.Place, file: Path, faults: Iterable[Fault]) -> Fault:
    """Return what is wrong with a preset whose own file is sound: which of those that it builds on are not."""
    bases = ", ".join(dict.fromkeys(fault.file for fault in faults))
    preset, _ = files.examine(name, place, file)
    line = preset.document.line("extends") if preset is not None else None
    return Fault(file=str(file), line=line, reason=f"it extends what is not sound: {bases}", hint="mend that first")


def _tell(fault: Fault, results: Results) -> None:
    if results.as_json:
        results.event(
            {
                "schema": 1, "event": "fault", "path": fault.file, "line": fault.line, "message": fault.reason,
                "hint": fault.hint,
            }
        )  # fmt: skip
    else:
        results.line(printable(str(fault)).replace("\n", " "))


def _stem(name: str) -> str:
    return Path(name).name.removesuffix(".toml")


def _values(merged: Merged) -> dict[str, Any]:
    """Return what a preset sets, its styles as they work together."""
    values = dict(merged.values)
    if merged.templates:
        values = {"prompt": styled(PROMPT, merged.templates), **values}
    if "negative_prompt" in merged.styles:
        values["negative_prompt"] = ", ".join(text for _, text in merged.styles["negative_prompt"] if text)
    return values


def _assigned(assigned: list[str]) -> dict[str, Any]:
    """Return what --set gives, by field: the prompt's and the negative prompt's are styles."""
    found: dict[str, Any] = {}
    for text in assigned:
        name, value = settings.pair(text)
        if name in files.REFUSED or name in ("description", "extends"):
            hint = files.REFUSED.get(name, f"give it as --{name}")
            raise UsageError(f"--set: {name} is no field", hint)
        said = {name: Style(value)} if name in files.OWN else dict(merge(("--set", {name: value})).values)
        for field, one in said.items():
            field = settings.names()[field].field if field != "prompt" else field
            if field in found:
                raise UsageError(f"--set: {field} is given twice", "give it once")
            found[field] = one
    return found


def _of_picture(picture: str, *, with_seed: bool) -> tuple[dict[str, Any], list[str]]:
    """Return a picture's fields that are no defaults, without its prompt, and what to say about it in comments."""
    from sdcli.cli import drawing

    found = drawing.look(picture)
    defaults = {f: settings.names()[f].default for f in GenerationRequest.__struct_fields__ if f != "prompt"}
    said = {field: value for field, value in found.request.items() if field in defaults and value is not None}
    if not with_seed:
        said.pop("seed", None)
    # What it holds may be no value for sdcli: it is merged as a batch's would be.
    merged = merge((found.path, said)).values
    values = {f: merged[f] for f in defaults if f in merged and (f in OF_A_MODEL or merged[f] != defaults[f])}
    if "negative_prompt" in values:
        values["negative_prompt"] = Style(values["negative_prompt"])
    notes = [f"Made from {found.path}."]
    name = found.record.model.name if found.record is not None else (found.model or {}).get("name")
    if name:
        notes.append(f"It was drawn by the model {name}.")
    return values, notes
