"""Where values come from: every source is a dict, merged from weakest to strongest, each value with its origin."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sdcli.device import DevicePlan
from sdcli.errors import BadInput, UsageError, nearest
from sdcli.models import ModelSpec
from sdcli.options import Option, options_of
from sdcli.output import OutputPlan
from sdcli.request import GenerationRequest, JobOptions

R = TypeVar("R", bound=msgspec.Struct)
RECORDS: tuple[type[msgspec.Struct], ...] = (GenerationRequest, JobOptions, ModelSpec, DevicePlan, OutputPlan)
DECIDED_LATER = "decided at run time"
# Fields of several values, which are given as JSON where only text can be given.
JSON = {"tags": ("object", 'tags={"set": "a"}'), "sign": ("array", 'sign=["cert.pem", "key.pem"]')}


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The merged values, by field name, and of each the source that won."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]

    def build(self, record: type[R], **more: Any) -> R:
        """Return `record` out of the merged values that are its fields, and `more`."""
        known = record.__struct_fields__
        return record(**{k: v for k, v in self.values.items() if k in known}, **more)

    def over(self, *sources: tuple[str, Mapping[str, Any]]) -> Merged:
        """Return these values with stronger sources merged over them."""
        later = merge(*sources)
        return Merged(values={**self.values, **later.values}, origins={**self.origins, **later.origins})


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a command was given, weakest first: `under`, the model's defaults, and `over`, presets and flags. A picture's
    record comes between them."""

    under: tuple[tuple[str, Mapping[str, Any]], ...]
    over: tuple[tuple[str, Mapping[str, Any]], ...]

    def merged(self, *between: tuple[str, Mapping[str, Any]]) -> Merged:
        """Return all of it merged."""
        return merge(*self.under, *between, *self.over)


@cache
def names() -> dict[str, Option]:
    """Return every name under which a value can be given, and the option that it fills."""
    found: dict[str, Option] = {}
    for record in RECORDS:
        for option in options_of(record):
            for name in option.names:
                assert name not in found, f"two options are called {name}"
                found[name] = option
    return found


def merge(*sources: tuple[str, Mapping[str, Any]]) -> Merged:
    """Merge sources, (origin, values) from weakest to strongest; None is "not given".

    Names are a field's own or its long flags', with `-` or `_`; text is converted to the field's type. `size` stands
    for width and height. Raises UsageError for an unknown name, a value that does not fit, or one said twice.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, source in sources:
        said: dict[str, Any] = {}
        for name, value in source.items():
            if value is None:
                continue
            for field, one in _expand(name.replace("-", "_"), value, origin):
                if field in said:
                    raise UsageError(f"{origin}: {field} is given twice", "give it once")
                said[field] = one
        values |= said
        origins |= dict.fromkeys(said, origin)
    return Merged(values=values, origins=origins)


def _expand(name: str, value: Any, origin: str) -> Iterable[tuple[str, Any]]:
    if name == "size":
        match = re.fullmatch(r"(\d+)[x×](\d+)", str(value).strip().lower())
        if match is None:
            raise UsageError(f"{origin}: size is WIDTHxHEIGHT, not {value!r}", "for example 640x384")
        return [("width", convert("width", match[1], origin)), ("height", convert("height", match[2], origin))]
    if name == "prompt":
        return [(name, value)]
    option = names().get(name)
    if option is None:
        hint = f"fields are {', '.join(sorted({o.field for o in names().values()}))}"
        raise UsageError(f"{origin}: there is no field {name}{nearest(name, names())}", hint)
    return [(option.field, convert(name, value, origin))]


def convert(name: str, value: Any, origin: str) -> Any:
    """Return `value` as the field that `name` fills wants it; UsageError where it does not fit."""
    option = names()[name]
    # A path is bytes to the system, and may be no UTF-8.
    path = option.field in ("output", "model", "vae", "wildcards")
    if isinstance(value, str) and not path and not is_unicode(value):
        raise UsageError(f"{origin}: {name} is not UTF-8", "check the terminal's or the script's encoding")
    if isinstance(value, str) and option.field in JSON:
        try:
            value = json.loads(value)
            json.dumps(value, ensure_ascii=False).encode()
        except ValueError:
            kind, example = JSON[option.field]
            raise UsageError(f"{origin}: {name} is a JSON {kind}, not {value!r}", f"for example {example}") from None
    try:
        return msgspec.convert(value, option.type, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        choices = getattr(_literal(option.type), "__args__", ())
        hint = f"one of {', '.join(map(str, choices))}" if choices else f"{name}: {option.help}"
        reason = str(error).replace("`", "").replace("Expected", "expected").replace(" | null", "")
        reason = f"expected one of {', '.join(map(str, choices))}" if choices else reason
        close = nearest(str(value), map(str, choices))
        raise UsageError(f"{origin}: {name} can't be {value!r}: {reason}{close}", hint) from None


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; what argv and files carry otherwise comes as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _literal(hint: Any) -> Any:
    from types import NoneType, UnionType
    from typing import Annotated, Literal, Union, get_args, get_origin

    if get_origin(hint) is Annotated:
        return _literal(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType) and len(others := [a for a in get_args(hint) if a is not NoneType]) == 1:
        return _literal(others[0])
    return hint if get_origin(hint) is Literal else None


def presets_folder() -> Path:
    """Return where the shipped presets lie: inside an installed package, or in the repository."""
    inside = Path(__file__).parent / "presets"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "presets"


def preset(name: str) -> dict[str, Any]:
    """Return the values of a shipped preset; UsageError where there is none of that name."""
    shipped = {f.stem: f for f in sorted(presets_folder().glob("*.toml"))}
    file = shipped.get(name)
    if file is None:
        raise UsageError(f"there is no preset {name}{nearest(name, shipped)}", f"presets are {', '.join(shipped)}")
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise BadInput(f"{file}: {error}", "mend the file") from None
    values.pop("description", None)
    return values


def pair(text: str) -> tuple[str, str]:
    """Split FIELD=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"--set wants FIELD=VALUE, not {text!r}", "for example --set eta=0.5")
    return name.strip().replace("-", "_"), value
