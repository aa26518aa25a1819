"""The merge of all sources: names, conversion, order, and the styles that change what is given."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from sdcli.device import DevicePlan
from sdcli.errors import UsageError, nearest
from sdcli.models import ModelSpec
from sdcli.options import Option, options_of, plain_type
from sdcli.output import OutputPlan
from sdcli.request import GenerationRequest, JobOptions

R = TypeVar("R", bound=msgspec.Struct)
# An origin, and the values that come from there.
Source: TypeAlias = tuple[str, Mapping[str, Any]]
RECORDS: tuple[type[msgspec.Struct], ...] = (GenerationRequest, JobOptions, ModelSpec, DevicePlan, OutputPlan)
DECIDED_LATER = "decided at run time"
# What a style's template holds the place of what was asked for with.
PROMPT = "{prompt}"
# Fields that name a picture.
PICTURES = ("init_image", "mask")
# Fields of several values, which are given as JSON where only text can be given.
JSON = {"tags": ("object", 'tags={"set": "a"}'), "sign": ("array", 'sign=["cert.pem", "key.pem"]')}


class Style(str):
    """A value that does not take the place of what is given, but changes it: for `prompt` a template with {prompt} in it,
    for `negative_prompt` text that is appended."""


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """The merged values, by field name, and of each the source that won; and the styles of `prompt` and
    `negative_prompt`, (origin, text) in the order in which they are put on."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    styles: Mapping[str, tuple[tuple[str, str], ...]] = msgspec.field(default_factory=dict)

    def build(self, record: type[R], **more: Any) -> R:
        """Return `record` out of the merged values that are its fields, and `more`.

        A request's negative prompt has its styles on; its prompt has not, for it may have to be expanded first.
        """
        known = record.__struct_fields__
        values = {k: v for k, v in self.values.items() if k in known}
        if "negative_prompt" in known and (styles := self.styles.get("negative_prompt")):
            given = values.get("negative_prompt", "")
            values["negative_prompt"] = ", ".join(filter(None, (given, *(text for _, text in styles))))
        return record(**values, **more)

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompt's styles, the innermost first."""
        return tuple(text for _, text in self.styles.get("prompt", ()))

    def origin(self, name: str, given: str | None = None) -> str | None:
        """Return where a field's value comes from, its styles named too; None where nothing was said of it.

        `given` is where a prompt stands that is in no source.
        """
        before = given or self.origins.get(name)
        styles = dict.fromkeys(origin for origin, _ in self.styles.get(name, ()))
        if styles and not given and not self.values.get(name):
            before = None  # Nothing was there that they could be appended to.
        return ", ".join([*([before] if before else []), *styles]) or None

    def without(self, *fields: str) -> Merged:
        """Return these values without some fields."""
        return replace(
            self, values={k: v for k, v in self.values.items() if k not in fields},
            origins={k: v for k, v in self.origins.items() if k not in fields},
        )  # fmt: skip

    def over(self, *sources: Source) -> Merged:
        """Return these values with stronger sources merged over them."""
        later = merge(*sources)
        styles = {k: (*self.styles.get(k, ()), *later.styles.get(k, ())) for k in {**self.styles, **later.styles}}
        return Merged(
            values={**self.values, **later.values}, origins={**self.origins, **later.origins}, styles=styles
        )  # fmt: skip


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What a command was given, weakest first: `under`, the model's defaults (the first), the settings and the environment,
    and `over`, presets and flags. A picture's record comes between them."""

    under: tuple[Source, ...]
    over: tuple[Source, ...]

    def knowing(self, defaults: Mapping[str, Any]) -> Given:
        """Return the same with the model's defaults, which are known only now."""
        (model, _), *others = self.under
        return replace(self, under=((model, defaults), *others))

    def merged(self, *between: Source, nothing: Iterable[str] = ()) -> Merged:
        """Return all of it merged. `nothing` are fields of which a picture's record says that none was given."""
        return merge(*self.under).without(*nothing).over(*between, *self.over)


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


def merge(*sources: Source) -> Merged:
    """Merge sources, (origin, values) from weakest to strongest; None is "not given".

    Names are a field's own or its long flags', with `-` or `_`; text is converted to the field's type. `size` stands
    for width and height. A Style does not replace: it is kept beside the values. Raises UsageError for an unknown name, a
    value that does not fit, or one said twice.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    styles: dict[str, tuple[tuple[str, str], ...]] = {}
    for origin, source in sources:
        said: dict[str, Any] = {}
        for name, value in source.items():
            if value is None:
                continue
            for key, one in _expand(name.replace("-", "_"), value, origin):
                if key in said:
                    raise UsageError(f"{origin}: {key} is given twice", "give it once")
                said[key] = one
        for key in [key for key, value in said.items() if isinstance(value, Style)]:
            styles[key] = (*styles.get(key, ()), (origin, str(said.pop(key))))
        values |= said
        origins |= dict.fromkeys(said, origin)
    return Merged(values=values, origins=origins, styles=styles)


def styled(prompt: str, templates: Iterable[str]) -> str:
    """Return a prompt with styles put on, one around the other; a style's text stays as it is written."""
    for template in templates:
        before, _, after = template.partition(PROMPT)
        prompt = before + prompt + after
    return prompt


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
    return [(option.field, value if isinstance(value, Style) else convert(name, value, origin))]


def convert(name: str, value: Any, origin: str) -> Any:
    """Return `value` as the field that `name` fills wants it; UsageError where it does not fit."""
    option = names()[name]
    called = _called(option, name, origin)
    # A path is bytes to the system, and may be no UTF-8.
    path = option.field in (
        "output",
        "model",
        "model_config",
        "vae",
        "wildcards",
        "sign",
        "init_image",
        "mask",
        "adapter_dir",
    )
    if isinstance(value, str) and not path and not is_unicode(value):
        raise UsageError(f"{called} is not UTF-8", "check the terminal's or the script's encoding")
    if isinstance(value, str) and option.field in JSON:
        try:
            value = json.loads(value)
            json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape" if path else "strict")
        except (ValueError, RecursionError):
            kind, example = JSON[option.field]
            raise UsageError(f"{called} is a JSON {kind}, not {value!r}", f"for example {example}") from None
    given = value
    if value in ("", [""]) and (option.read is not None or option.field in PICTURES):
        # Nothing: what a preset, the settings or a picture's record say of it is taken away.
        return () if option.many else None
    if option.read is not None:
        value = _read(option, option.read, value, called)
    try:
        return msgspec.convert(value, option.type, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        choices = getattr(_literal(option.type), "__args__", ())
        hint = f"one of {', '.join(map(str, choices))}" if choices else f"{called.rpartition(': ')[2]}: {option.help}"
        reason = str(error).replace("`", "").replace("Expected", "expected").replace(" | null", "")
        if choices:
            reason = f"expected one of {', '.join(map(str, choices))}"
        elif plain_type(option.type) is bool:
            reason = "expected true or false"
        elif re.search(r"regex|enum| \| ", reason):  # How the type is written, which the help says in words.
            reason = option.help.rstrip(".")
        close = nearest(str(given), map(str, choices))
        # Of several only the one that was typed is of interest.
        shown = given[0] if isinstance(given, list) and len(given) == 1 else given
        if option.read is not None:
            reason = re.sub(r" - at \$(?:\[(?:\.\.\.|\d+)\])?\.?(\w*)", lambda m: f" ({m[1]})" if m[1] else "", reason)
        raise UsageError(f"{called} can't be {shown!r}: {reason}{close}", hint) from None


def _called(option: Option, name: str, origin: str) -> str:
    """Return what a field is called to whoever gave it there."""
    flag = next((flag for flag in option.flags if flag.startswith("--")), None)
    return flag if origin == "flag" and flag is not None else f"{origin}: {name}"


def _read(option: Option, read: Callable[[str], Any], value: Any, called: str) -> Any:
    """Return what text, or a list with text in it, means to a field that is a record or a list of them; JSON is taken too.
    `called` is what the field is called to whoever gave it."""
    try:
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            value = json.loads(value)
        if not option.many:
            return read(value) if isinstance(value, str) else value
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        return [read(one) if isinstance(one, str) else one for one in values]
    except (ValueError, RecursionError) as error:
        reason = error if type(error) is ValueError else "it is no JSON"
        raise UsageError(
            f"{called} can't be {value!r}: {reason}", f"{called.rpartition(': ')[2]}: {option.help}"
        ) from None


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


def pair(text: str) -> tuple[str, str]:
    """Split FIELD=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"--set wants FIELD=VALUE, not {text!r}", "for example --set eta=0.5")
    return name.strip().replace("-", "_"), value
