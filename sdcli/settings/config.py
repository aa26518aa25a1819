"""What is set outside of a command line: the user's and the project's `sdcli.toml`, and the variables `SDCLI_*`."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from sdcli import output
from sdcli.errors import BadInput, SdcliError, UsageError, nearest
from sdcli.models import ALIASES, aliases
from sdcli.places import alone_in, config_folder
from sdcli.settings import files
from sdcli.settings.files import BadFile, Document, Fault
from sdcli.settings.merge import Merged, Source, is_unicode, merge, names

FILE = "sdcli.toml"
PREFIX = "SDCLI_"
# Variables that set no field: the configuration folder.
VARIABLES = ("SDCLI_CONFIG",)
# What is no field of a settings file or a variable, and what to do instead.
REFUSED = {
    "prompt": "the prompt is given to a command, or in a row; a preset can put a style on it",
    "preset": "a preset is given with --preset, or extended by another preset",
}
# What a project's file may not say: a folder is somebody else's often, and runs are to do no harm outside of it.
OWN = ("overwrite", "sign")
OWN_HINT = "set it in your own settings, or give the flag"
# Fields that name files or folders.
PATHS = ("model", "vae", "model_config", "wildcards", "output", "init_image", "mask", "adapter_dir")
Place = Literal["user", "project"]
ORIGINS: dict[Place, str] = {"user": "user settings", "project": "project settings"}


def is_setting(origin: str | None) -> bool:
    """Whether an origin is a settings file or a variable: what holds for many commands, and was typed for none."""
    return origin is not None and (origin in ORIGINS.values() or origin.startswith(PREFIX))


def path(place: Place) -> Path:
    """Return where the settings of a place lie: the configuration folder, or the current one."""
    return config_folder() / FILE if place == "user" else Path(FILE)


def document(place: Place) -> Document | None:
    """Return a place's file, None where there is none. Raises BadInput for what is no TOML."""
    file = path(place)
    try:
        return files.read(file, str(file))
    except (FileNotFoundError, NotADirectoryError):
        return None


def read(place: Place) -> dict[str, Any]:
    """Return what a place's file sets, by field. Raises BadInput, `FILE:LINE: reason`, for the first thing wrong in it."""
    found = document(place)
    if found is None:
        return {}
    values, faults = _fields(place, found)
    if faults:
        raise BadFile(faults[0])
    return values


def _fields(place: Place, found: Document) -> tuple[dict[str, Any], list[Fault]]:
    """Return what a place's file sets, by field, and what is wrong in it."""
    values, faults = files.fields(found, refused=REFUSED)
    if place == "project":
        said = {key: _refused_here(key, value) for key, value in found.values.items()}
        faults += [found.fault(key, reason, OWN_HINT) for key, reason in said.items() if reason is not None]
        faults.sort(key=lambda fault: fault.line or 0)
    return values, faults


def _refused_here(key: str, value: Any) -> str | None:
    """Return why a project's file may not say this, None where it may."""
    if _field(key) in OWN:
        return f"{key} is not set by a folder"
    if _field(key) == "output" and (os.path.isabs(str(value)) or ".." in Path(str(value)).parts):
        return f"{key} leads out of the folder"
    return None


def environment() -> tuple[Source, ...]:
    """Return what the variables SDCLI_* set, a source each; an empty one sets nothing.

    Raises UsageError, with the variable's name, for one that sets no field or a value that does not fit.
    """
    found: list[Source] = []
    said: dict[str, str] = {}
    for variable in sorted(v for v in os.environ if v.startswith(PREFIX) and v not in VARIABLES):
        text = os.environ[variable]
        if not text:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in REFUSED:
            raise UsageError(f"{variable} is not looked for", REFUSED[name])
        if name != "size" and name not in names():
            known = [*VARIABLES, *(PREFIX + n.upper() for n in [*names(), "size"])]
            raise UsageError(
                f"{variable} sets nothing{nearest(variable, known)}", f"unset {variable}, or mend its name"
            )
        try:
            values = files.checked(name, text, variable)
        except SdcliError as error:
            message = f"{variable}: {error.message.removeprefix(f'{variable}: ')}"
            raise UsageError(message, error.hint or f"unset {variable}, or mend it") from None
        for field in values:
            if field in said:
                raise UsageError(f"{said[field]} and {variable} both set {field}", "unset one of them")
        said |= dict.fromkeys(values, variable)
        found.append((variable, values))
    return tuple(found)


def sources() -> tuple[Source, ...]:
    """Return all that is set outside of a command line, weakest first: user settings, project settings, variables."""
    places = ((ORIGINS[place], read(place)) for place in ORIGINS)
    return (*((origin, values) for origin, values in places if values), *environment())


def current() -> Merged:
    """Return all that is set outside of a command line, merged."""
    return merge(*sources())


# Writing


class Written(msgspec.Struct, frozen=True):
    """What a change of a file came to: where it is, whether anything changed, what is wrong with the rest of it, and the
    absolute path that a relative one was written as."""

    path: Path
    changed: bool
    faults: tuple[Fault, ...]
    absolute: str | None = None


def store(place: Place, name: str, text: str) -> Written:
    """Set a field in a place's file, which is made if it is not there; comments stay. `text` is converted and checked
    first, and the file is replaced in one step. The user's file is read in every folder: a relative path becomes absolute
    there. Raises UsageError, and BadInput where the file is no TOML."""
    name = _name(name)
    absolute = _absolute(name, text) if place == "user" else None
    text = absolute or text
    if not is_unicode(text):
        raise UsageError(f"{name} is not UTF-8", "TOML has room for Unicode only")
    values = files.checked(name, text, "config set")
    if place == "project" and (reason := _refused_here(name, text)) is not None:
        raise UsageError(reason, OWN_HINT)
    if none := [field for field, value in values.items() if value is None]:
        raise UsageError(f"{none[0]} can't be set to nothing", f"`sdcli config unset {none[0]}` takes it out")

    def change(toml: Any) -> None:
        _split_size(toml, values)
        for field, value in values.items():
            there = [key for key in toml if _field(key) == field]
            plain = files.toml_of(value)
            for key in there[:1] or [field]:
                toml[key] = plain
            for key in there[1:]:
                del toml[key]

    return replace(_edit(place, change), absolute=absolute)


def _absolute(name: str, text: str) -> str | None:
    """Return a relative path as an absolute one; None for what is no path, or is one already."""
    field = _field(name)
    if field not in PATHS or not text or text == "-" or os.path.isabs(text):
        return None
    named = field in ("model", "vae", "model_config") and (text in ALIASES or text in aliases.names())
    if named or not (text.startswith(("./", "../")) or os.path.exists(text)):
        return None
    # Braces are fields in an output's template.
    here = os.getcwd().replace("{", "{{").replace("}", "}}") if field == "output" else os.getcwd()
    return os.path.normpath(os.path.join(here, text)) + "/" * text.endswith("/")


def remove(place: Place, name: str) -> Written:
    """Take a field out of a place's file, under whichever of its names it stands there; a key that is none too."""
    plain = name.replace("-", "_")
    wanted = {"width", "height"} if plain == "size" else {_field(plain)}

    def change(toml: Any) -> None:
        if plain != "size":
            _split_size(toml, wanted)
        for key in [key for key in toml if _field(key) in {*wanted, plain}]:
            del toml[key]

    written = _edit(place, change, makes=False)
    if not written.changed:
        _name(name)  # A name that is none, and is not there either, is a slip.
    return written


def _edit(place: Place, change: Callable[[Any], None], *, makes: bool = True) -> Written:
    # A link to where somebody keeps such files stays one.
    file = Path(os.path.realpath(path(place)))
    if makes:
        with suppress(OSError):  # Said where it is written.
            output.make_folder(file.parent)
    with alone_in(file.parent):
        return _edit_alone(place, file, change, makes)


def _edit_alone(place: Place, file: Path, change: Callable[[Any], None], makes: bool) -> Written:
    import tomlkit

    found = document(place)
    if found is None and not makes:
        return Written(path(place), False, ())
    try:
        toml = tomlkit.parse(found.text if found is not None else "")
    except ValueError as error:  # It is stricter than the standard library in a case or two.
        raise BadInput(f"{path(place)}: {error}", "mend the file") from None
    change(toml)
    text = tomlkit.dumps(toml)
    if found is not None and text == found.text:
        return Written(path(place), False, ())
    import tomllib

    after = Document(str(path(place)), text, tomllib.loads(text))
    _, faults = _fields(place, after)
    output.write(file, text.encode(), overwrite=True)
    return Written(path(place), True, tuple(faults))


def _split_size(toml: Any, fields: Any) -> None:
    """Turn `size` into width and height where one of these is changed."""
    if "size" not in toml or not {"width", "height"} & set(fields):
        return
    try:
        sides = files.checked("size", str(toml["size"]), "size")
    except SdcliError:
        sides = {}
    del toml["size"]
    for field, value in sides.items():
        toml[field] = value


def _field(key: str) -> str:
    """Return the field that a key means; the key itself where it means none."""
    plain = str(key).replace("-", "_")
    return names()[plain].field if plain in names() else plain


def _name(name: str) -> str:
    """Return a field's name as it was given, with `_`; UsageError where there is none of that name."""
    plain = name.replace("-", "_")
    if plain in REFUSED:
        raise UsageError(f"{name} is not set here", REFUSED[plain])
    if plain != "size" and plain not in names():
        hint = f"fields are {', '.join(sorted({o.field for o in names().values()}))}"
        raise UsageError(f"there is no field {name}{nearest(plain, [*names(), 'size'])}", hint)
    return plain


def value(name: str, merged: Merged) -> tuple[str, Any, str]:
    """Return a name's field, the value that is set, and its origin: the field's own default where nothing sets it.

    `size` is WIDTHxHEIGHT; UsageError where they are not both set.
    """
    plain = _name(name)
    if plain == "size":
        sides = {field: merged.values[field] for field in ("width", "height") if field in merged.values}
        if len(sides) < 2:
            said = f"only {next(iter(sides))} is" if sides else "the model decides"
            raise UsageError(f"size is not set: {said}", "as in `sdcli config set size 512x512`, for width and height")
        origins = dict.fromkeys(merged.origins[field] for field in sides)
        return plain, "x".join(map(str, sides.values())), ", ".join(origins)
    option = names()[plain]
    if option.field in merged.values:
        return option.field, merged.values[option.field], merged.origins[option.field]
    return option.field, option.default, "default"
