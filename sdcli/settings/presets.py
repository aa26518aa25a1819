"""Presets: TOML files of values that belong together, shipped, the user's and the project's, and their styles."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from sdcli import device, output
from sdcli.device import DevicePlan
from sdcli.errors import InputMissing, SdcliError, UsageError, nearest
from sdcli.places import config_folder
from sdcli.settings import files
from sdcli.settings.files import BadFile, Document, Fault
from sdcli.settings.merge import PROMPT, Source, Style, is_unicode, merge, names

Place = Literal["project", "user", "shipped", "file"]
# Where presets with names are, the strongest first.
PLACES: tuple[Place, ...] = ("project", "user", "shipped")
# What a preset may be called: a letter of any script or a digit first; no comma, for rows split their lists there.
NAME = re.compile(r"\w[\w.+-]*")
# Files that one preset may be made of: far more than people keep in their heads.
MOST = 50
REFUSED = {"preset": 'extends = "NAME" names the presets that this one builds on'}
OWN = ("description", "extends", "prompt", "negative_prompt", "negative-prompt", "negative")


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """A preset's file, read: `place` is where it was found (`file`: a path was given), `path` what it is called to people.

    `values` are by field, converted; the prompt's and the negative prompt's are styles. `extends` are the names and
    paths that it builds on, weakest first.
    """

    name: str
    place: Place
    path: str
    description: str | None = None
    extends: tuple[str, ...] = ()
    values: dict[str, Any] = msgspec.field(default_factory=dict)
    document: Document


def presets_folder() -> Path:
    """Return where the shipped presets lie: inside an installed package, or in the repository."""
    package = Path(__file__).parent.parent
    inside = package / "presets"
    return inside if inside.is_dir() else package.parent / "presets"


def folder(place: Place) -> Path:
    """Return the folder in which a place's presets lie; it may not be there."""
    if place == "shipped":
        return presets_folder()
    return config_folder() / "presets" if place == "user" else Path("presets")


def folders() -> dict[Place, Path]:
    """Return the folders that presets are looked for in, the strongest first, each once."""
    # In sdcli's own repository, those of the project are those that are shipped.
    found = {os.path.realpath(folder(place)): place for place in PLACES}
    return {place: folder(place) for place in PLACES if place in found.values()}


def is_path(name: str) -> bool:
    """Whether a preset is named by its path."""
    return os.sep in name or "/" in name or name.endswith(".toml")


def known() -> dict[str, list[tuple[Place, Path]]]:
    """Return the presets that have names, in the order of these, each with its files, the strongest first."""
    found: dict[str, list[tuple[Place, Path]]] = {}
    for place, folder in folders().items():
        for file in _in(folder):
            if NAME.fullmatch(file.stem):
                found.setdefault(file.stem, []).append((place, file))
    return dict(sorted(found.items()))


def nameless() -> list[tuple[Place, Path]]:
    """Return the files in presets' folders whose names are none that a preset may have."""
    return [(place, f) for place, folder in folders().items() for f in _in(folder) if not NAME.fullmatch(f.stem)]


def _in(folder: Path) -> list[Path]:
    try:
        return sorted(folder / e.name for e in os.scandir(folder) if e.name.endswith(".toml") and e.name[0] != ".")
    except OSError:
        return []


def where(name: str) -> tuple[Place, Path]:
    """Return the place and the file of a preset, the strongest of its name. Raises UsageError where there is none, and
    InputMissing for a path where there is nothing."""
    if is_path(name):
        if not os.path.lexists(name):
            raise InputMissing(f"{name} is not there", "check the path; a name without / and .toml is looked up")
        return "file", Path(name)
    files_of = _files_of(name)
    if not files_of:
        raise UsageError(f"there is no preset {name}{nearest(name, known())}", "`sdcli presets list` lists them all")
    return files_of[0]


def _files_of(name: str) -> list[tuple[Place, Path]]:
    """Return the files of a name, the strongest first, without a look at all others."""
    if not NAME.fullmatch(name):
        return []
    candidates = ((place, folder / f"{name}.toml") for place, folder in folders().items())
    return [(place, file) for place, file in candidates if os.path.lexists(file)]


# One file


def read(name: str, place: Place, file: Path) -> Preset:
    """Read a preset's file. Raises BadInput, `FILE:LINE: reason`, for the first thing wrong in it."""
    found, faults = examine(name, place, file)
    if faults or found is None:
        raise BadFile(faults[0])
    return found


def examine(name: str, place: Place, file: Path) -> tuple[Preset | None, list[Fault]]:
    """Read a preset's file, and return all that is wrong in it, by its lines; no preset where it can't be read."""
    shown = str(file)
    if place != "file" and not NAME.fullmatch(name):
        hint = "letters, digits, and after the first . + - _"
        return None, [Fault(file=shown, line=None, reason="its name is none that a preset can have", hint=hint)]
    try:
        document = files.read(file, shown)
    except BadFile as bad:
        return None, [bad.fault]
    except OSError:
        return None, [Fault(file=shown, line=None, reason="it is not there", hint="check where it leads")]
    return inspect(name, place, document)


def inspect(name: str, place: Place, document: Document) -> tuple[Preset, list[Fault]]:
    """Return the preset that a document says, and all that is wrong in it."""
    shown = document.file
    values, faults = files.fields(document, without=OWN, refused=REFUSED)
    description, extends = document.values.get("description"), document.values.get("extends", [])
    if not isinstance(description, str | None):
        faults.append(document.fault("description", "description is text", 'as in description = "Oil on canvas."'))
        description = None
    bases = [extends] if isinstance(extends, str) else extends
    if not isinstance(bases, list) or not all(isinstance(b, str) and b for b in bases):
        hint = 'as in extends = "fast", or extends = ["fast", "oil"]'
        faults.append(document.fault("extends", "extends is the name of a preset, or a list of names", hint))
        bases = []
    styles, more = _styles(document)
    if not faults and not more:
        try:
            device.check(merge((shown, values)).build(DevicePlan))
        except SdcliError as error:
            more.append(Fault(file=shown, line=document.line("dtype"), reason=error.message, hint=error.hint or ""))
    faults = sorted([*faults, *more], key=lambda f: f.line or 0)
    return Preset(
        name=name, place=place, path=shown, description=description, extends=tuple(bases), values=values | styles,
        document=document,
    ), faults  # fmt: skip


def _styles(document: Document) -> tuple[dict[str, Style], list[Fault]]:
    styles: dict[str, Style] = {}
    faults: list[Fault] = []
    for key, text in document.values.items():
        if key not in OWN or key in ("description", "extends"):
            continue
        name = "prompt" if key == "prompt" else "negative_prompt"
        example = 'as in prompt = "{prompt}, oil on canvas"' if name == "prompt" else f'as in {key} = "blurry, dark"'
        if not isinstance(text, str):
            faults.append(document.fault(key, f"{key} is text", example))
        elif name in styles:
            faults.append(document.fault(key, f"{name} is given twice", "give it once"))
        elif name == "prompt" and text.count(PROMPT) != 1:
            times = "is not in it" if PROMPT not in text else "is in it more than once"
            faults.append(document.fault(key, f"prompt is a template, and {PROMPT} {times}", example))
        else:
            styles[name] = Style(text)
    return styles, faults


# A file and what it extends


def chain(preset: Preset) -> tuple[Preset, ...]:
    """Return a preset and all that it extends, the weakest first, each once. Raises BadInput where one of them is bad or
    is not there, and for those that extend each other in a circle."""
    order: dict[str, Preset] = {}
    _walk(preset, (), order)
    return tuple(order.values())


def _walk(preset: Preset, trail: tuple[Preset, ...], order: dict[str, Preset]) -> None:
    key = os.path.realpath(preset.path)
    for base in preset.extends:
        if len(order) + len(trail) >= MOST:
            raise _fault(preset, f"more than {MOST} presets extend each other", "make fewer of them")
        found = _base(preset, base)
        here = [*trail, preset]
        if circle := [i for i, p in enumerate(here) if os.path.realpath(p.path) == os.path.realpath(found.path)]:
            ring = " > ".join(p.name for p in [*here[circle[0] :], found])
            raise _fault(preset, f"presets extend each other in a circle: {ring}", "take one of them out of extends")
        if os.path.realpath(found.path) not in order:
            _walk(found, (*trail, preset), order)
    order.setdefault(key, preset)


def _base(preset: Preset, name: str) -> Preset:
    """Return what a preset extends: a path is taken from its own folder, its own name means the one of a weaker place."""
    if is_path(name):
        file = Path(preset.path).parent / name
        if not os.path.lexists(file):
            raise _fault(preset, f"extends: {name} is not there", "a path is taken from the folder of the preset")
        return read(name, "file", file)
    found = _files_of(name)
    own = [i for i, (_, file) in enumerate(found) if os.path.realpath(file) == os.path.realpath(preset.path)]
    if own:
        found = found[own[0] + 1 :]
        if not found:
            raise _fault(preset, f"extends: there is no other preset {name}", "a preset does not extend itself")
    if not found:
        raise _fault(
            preset, f"extends: there is no preset {name}{nearest(name, known())}", "`sdcli presets list` lists them all"
        )
    return read(name, *found[0])


def _fault(preset: Preset, reason: str, hint: str) -> BadFile:
    return BadFile(preset.document.fault("extends", reason, hint))


def look(name: str) -> tuple[Preset, ...]:
    """Return a preset, found by its name or path, and all that it extends, the weakest first; see `where` and `chain`."""
    return chain(read(name, *where(name)))


def preset(name: str) -> tuple[Source, ...]:
    """Return what a preset sets, as sources for a merge, the weakest first: itself, and each that it extends."""
    return sources(look(name))


def sources(presets: Sequence[Preset]) -> tuple[Source, ...]:
    """Return what a preset, the last of these, and those that it extends set, each with the file that says it."""
    last = presets[-1]
    found: list[Source] = []
    for one in presets:
        via = f"{one.place} {one.name}" if one.name == last.name else one.name
        found.append((f"preset {last.name}" + (f" (extends {via})" if one is not last else ""), one.values))
    return tuple(found)


def faults(name: str, place: Place, file: Path) -> Iterator[Fault]:
    """Yield all that is wrong with a preset: in its file, and with what it extends."""
    found, own = examine(name, place, file)
    yield from own
    if found is None:
        return
    try:
        for one in chain(found)[:-1]:
            yield from examine(one.name, one.place, Path(one.path))[1]
    except BadFile as bad:
        yield bad.fault


# Writing


def new_file(name: str, *, project: bool) -> Path:
    """Return where a new preset of that name lies. Raises UsageError for what can't be a name."""
    if not NAME.fullmatch(name) or name.endswith(".toml"):
        raise UsageError(
            f"a preset can't be called {name!r}", "letters, digits, and after the first . + - _; without .toml"
        )
    return folder("project" if project else "user") / f"{name}.toml"


def composed(
    values: Mapping[str, Any], *, description: str, extends: Sequence[str] = (), notes: Sequence[str] = ()
) -> str:
    """Return the text of a preset that explains itself: `notes` are comments at its head, a line each.

    Raises UsageError for what is no UTF-8, as a path may be.
    """
    import tomlkit

    values = {key: _in_toml(value) for key, value in values.items()}
    for key, value in {**values, "extends": list(extends)}.items():
        if not all(map(is_unicode, _texts(value))):
            raise UsageError(f"{key} is not UTF-8", "TOML has room for Unicode only")
    toml = tomlkit.document()
    for note in notes:
        toml.add(tomlkit.comment(note))
    toml.add("description", tomlkit.string(description))
    if extends:
        toml.add(tomlkit.comment("What this builds on; the values below are stronger."))
        toml.add("extends", files.toml_of(extends[0] if len(extends) == 1 else list(extends)))
    if "prompt" not in values:
        toml.add(tomlkit.comment('A style would be: prompt = "{prompt}, oil on canvas"'))
    for key, value in values.items():
        about = "The style that is put on prompts." if key == "prompt" else names()[key].help
        toml.add(tomlkit.comment(about))
        toml.add(key, files.toml_of(str(value) if isinstance(value, Style) else value))
    return tomlkit.dumps(toml)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _in_toml(value: Any) -> Any:
    """Return a value as TOML has it: a record as a table, without what is null, and a tuple as an array."""
    if isinstance(value, msgspec.Struct):
        return {k: _in_toml(v) for k, v in msgspec.to_builtins(value).items() if v is not None}
    if isinstance(value, dict):
        return {k: _in_toml(v) for k, v in value.items() if v is not None}
    return [_in_toml(v) for v in value] if isinstance(value, (tuple, list)) else value


def write(file: Path, text: str, place: Place, *, overwrite: bool) -> None:
    """Write a preset's file. Raises UsageError where it is there already, or where it would not be sound with what it
    extends: nothing is written then."""
    if os.path.lexists(file) and not overwrite:
        raise UsageError(f"{file} is there already", "add --overwrite, or call it something else")
    import tomllib

    document = Document(str(file), text, tomllib.loads(text))
    found, wrong = inspect(file.stem, place, document)
    try:
        if wrong:
            raise BadFile(wrong[0])
        chain(found)
    except BadFile as bad:
        own = bad.fault.file == str(file)
        raise UsageError(bad.fault.reason if own else bad.message, bad.fault.hint) from None
    output.write(Path(os.path.realpath(file)), text.encode(), overwrite=overwrite)
