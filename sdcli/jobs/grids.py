"""A grid: axes to cells, each cell the values of one ordinary job.

An axis is written FIELD=VALUES. The values are CSV: a value with a comma stands in double quotes, a quote in it is
doubled, and blanks around a value are dropped. The field goes by any of its names; `size` and `preset` are fields here
too. Where the field is a number, a value may be a range: FROM..TO+STEP and FROM..TO-STEP hold both ends where the
steps meet the second, and FROM..TO/COUNT is COUNT values with even distances and both ends.

`prompt:TEXT=VALUES` replaces TEXT, wherever it stands in the prompt, by each value. TEXT ends at the first `=`, so it
holds none itself; a value may.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal, localcontext
from pathlib import PurePath
from typing import Any

import msgspec

from sdcli import schedulers, settings
from sdcli.errors import UsageError, nearest
from sdcli.options import plain_type
from sdcli.request import GenerationRequest

LETTERS = ("x", "y", "z")
MOST_VALUES = 1_000
MOST_CELLS = 10_000

EXAMPLE = "for example steps=10,20,30, cfg=1..9/5 or prompt:cat=cat,dog"
RANGES = "a range is 10..50+10, 50..10-10 or 10..50/5"
# Digits are limited, so that arithmetic on them is exact in `_DIGITS`.
# Fields whose values are files, or name some.
FILES = ("init_image", "mask")
ADAPTERS = ("lora", "embedding", "controlnet", "ip_adapter", "upscale")
_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,20})?|\.[0-9]{1,20}"
_RANGE = re.compile(rf"(?P<first>[+-]?(?:{_NUMBER}))\.\.(?P<last>[+-]?(?:{_NUMBER}))(?P<by>[-+/])(?P<step>{_NUMBER})")
_DIGITS = 60


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """One direction of a grid: `values` in order, at least one, and what stands for each at the sheet's edge.

    `field` is the request's field that it sets, `size` (values as 640x384), `preset`, or `prompt`, where `search` is the
    text that the values replace. `name` is the field as it was typed.
    """

    letter: str
    field: str
    name: str
    search: str | None = None
    values: tuple[Any, ...]
    labels: tuple[str, ...]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One cell: its place, from 0, and what the axes say of it.

    `values` are a row's for `settings.merge`, as are a prompt file's: `prompt` where an axis replaces in it, and
    `preset`, which lies under the row's other values.
    """

    x: int
    y: int
    z: int
    values: dict[str, Any]


def axis(letter: str, text: str) -> Axis:
    """Return the axis that a text such as `steps=10,20,30` says; `letter` is x, y or z. UsageError for what can't be."""
    assert letter in LETTERS
    origin = f"--{letter}"
    if not settings.is_unicode(text):
        raise UsageError(f"{origin} is not UTF-8", "check the terminal's or the script's encoding")
    head, equals, listed = text.partition("=")
    if not equals:
        raise UsageError(f"{origin} wants FIELD=VALUES, not {text!r}", EXAMPLE)
    name, colon, search = (part.strip() for part in head.partition(":"))
    field = _field(origin, name, colon, search)
    texts = [t for value in _split(origin, name, listed) for t in _expand(origin, name, field, value)]
    if len(texts) > MOST_VALUES:
        raise _too_many(origin, name, len(texts))
    values = tuple(_convert(origin, name, field, t) for t in texts)
    if field == "size":
        texts = list(values)
    shown = [(_folderless(t) if field in FILES or field in ADAPTERS else t) or "(empty)" for t in texts]
    labels = tuple(shown if field == "prompt" else (f"{name} {t}" for t in shown))
    return Axis(letter=letter, field=field, name=name, search=search or None, values=values, labels=labels)


def named(path: str) -> str:
    """Return a path's last part; of a hub's name, all."""
    return PurePath(path).name if os.path.isabs(path) or path.startswith((".", "~")) or os.path.exists(path) else path


def _folderless(text: str) -> str:
    """Return a value of a field that names files, without their folders."""
    return re.sub(r"[^=\[\]\",{} ]*/[^=\[\]\",{}:]*", lambda found: named(found[0]), text)


def cells(prompt: str, axes: Sequence[Axis]) -> Iterator[Cell]:
    """Return the cells of all combinations: z outermost, then y, then x; an axis that is not there has the index 0.

    Axes that replace in the prompt do so at once: none searches what another one put there, and where two of their
    texts overlap, the one that begins first or is longer is replaced. Raises UsageError, before the first cell, for
    axes that don't fit together, a text that is not in the prompt, and too many cells.
    """
    if not axes:
        raise UsageError("a grid needs an axis", EXAMPLE)
    by_letter: dict[str, Axis] = {}
    by_field: dict[tuple[str, str | None], Axis] = {}
    for one in axes:
        if one.letter in by_letter:
            raise UsageError(f"--{one.letter} is given twice", "the axes are --x, --y and --z")
        by_letter[one.letter] = one
        for field in ("width", "height") if one.field == "size" else (one.field,):
            other = by_field.setdefault((field, one.search), one)
            if other is not one:
                what = f"replace {one.search!r}" if one.search else f"set {field}"
                raise UsageError(f"--{other.letter} and --{one.letter} both {what}", "leave one of them out")
    total = math.prod(len(one.values) for one in axes)
    if total > MOST_CELLS:
        raise UsageError(f"the grid has {total:,} cells", f"{MOST_CELLS:,} at most: give the axes fewer values")
    pattern = _pattern(prompt, axes)
    return _walk(prompt, pattern, [by_letter.get(letter) for letter in LETTERS])


def _walk(prompt: str, pattern: re.Pattern[str] | None, axes: Sequence[Axis | None]) -> Iterator[Cell]:
    columns, rows, blocks = (range(len(one.values) if one else 1) for one in axes)
    for z in blocks:
        for y in rows:
            for x in columns:
                chosen = [(one, one.values[i]) for one, i in zip(axes, (x, y, z), strict=True) if one]
                values = {one.field: value for one, value in chosen if one.search is None}
                if pattern:
                    values["prompt"] = _replace(prompt, pattern, {one.search: value for one, value in chosen})
                yield Cell(x=x, y=y, z=z, values=values)


def _replace(prompt: str, pattern: re.Pattern[str], by: Mapping[str | None, str]) -> str:
    return pattern.sub(lambda match: by[match[0]], prompt)


def _pattern(prompt: str, axes: Sequence[Axis]) -> re.Pattern[str] | None:
    """Return the pattern of all that is replaced in the prompt, the longest first; None where nothing is."""
    searches = sorted((one.search for one in axes if one.search), key=len, reverse=True)
    if not searches:
        return None
    pattern = re.compile("|".join(map(re.escape, searches)))
    found = {match[0] for match in pattern.finditer(prompt)}
    for one in axes:
        if one.search and one.search not in prompt:
            raise UsageError(
                f"--{one.letter}: {one.search!r} is not in the prompt",
                "name a text that stands in it, letter by letter",
            )
        if one.search and one.search not in found:
            raise UsageError(
                f"--{one.letter}: {one.search!r} is in the prompt only where another axis replaces more",
                "name texts that do not overlap",
            )
    return pattern


# Reading an axis


def _field(origin: str, name: str, colon: str, search: str) -> str:
    """Return the field that an axis sets."""
    varied = {f.name for f in msgspec.structs.fields(GenerationRequest)} - {"prompt"}
    hint = f"what can vary: prompt:TEXT, {', '.join(sorted({'size', 'preset', *varied}))}"
    if name == "prompt":
        if not search:
            raise UsageError(f"{origin}: prompt wants the text that is replaced", "for example prompt:cat=cat,dog")
        return name
    key = name.replace("-", "_")
    option = settings.names().get(key)
    field = option.field if option else key
    if option is None and key not in ("size", "preset"):
        allowed = [n for n, o in settings.names().items() if o.field in varied]
        near = nearest(name, [*allowed, "prompt", "size", "preset"])
        raise UsageError(f"{origin}: there is no field {name or repr(name)}{near}", hint)
    if option and field not in varied:
        raise UsageError(f"{origin}: {name} is the same for the whole grid", hint)
    if colon:
        raise UsageError(f"{origin}: a text is replaced in the prompt only, not in {name}", f"write {name}=VALUES")
    return field


def _split(origin: str, name: str, listed: str) -> list[str]:
    """Return the values between commas, blanks around them dropped."""
    try:
        rows = list(csv.reader([listed], skipinitialspace=True, strict=True))
    except csv.Error as error:
        reason = str(error)
        for python, ours in (
            ("unexpected end", "a double quote is not closed"),
            ("',' expected", "after a closing double quote there must be a comma"),
            ("new-line", "a line break stands outside double quotes"),
        ):
            reason = ours if reason.startswith(python) else reason
        raise UsageError(
            f"{origin}: the values of {name} can't be read: {reason}", 'as in "blurry, dark",ugly; "" is one quote'
        ) from None
    values = [value.strip() for row in rows for value in row]
    if not listed.strip():
        raise UsageError(f"{origin}: {name} has no values", EXAMPLE)
    return values


def _expand(origin: str, name: str, field: str, text: str) -> Sequence[str]:
    """Return the values that a value stands for: itself, or those of a range."""
    option = settings.names().get(field)
    kind = plain_type(option.type) if option else str
    if kind not in (int, float) or ".." not in text:
        return (text,)
    match = _RANGE.fullmatch(text)
    if match is None:
        raise UsageError(f"{origin}: {name} has no range {text!r}", RANGES)
    with localcontext(prec=_DIGITS):
        first, last = Decimal(match["first"]), Decimal(match["last"])
        if match["by"] == "/":
            numbers = _spread(origin, name, match, first, last, whole=kind is int)
        else:
            step = Decimal(match["by"] + match["step"])
            if not step or (last - first) * step < 0:
                turned = f"{match['first']}..{match['last']}{'-' if last < first else '+'}"
                hint = f"as in {turned}{match['step']}" if step else "the step must be more than 0"
                raise UsageError(f"{origin}: the range {text} never ends", hint)
            count = int((last - first) / step) + 1
            if count > MOST_VALUES:
                raise _too_many(origin, name, count)
            numbers = [first + i * step for i in range(count)]
        return [format(number.normalize() + 0, "f") for number in numbers]


def _spread(
    origin: str, name: str, match: re.Match[str], first: Decimal, last: Decimal, *, whole: bool
) -> list[Decimal]:
    """Return values with even distances, those between the ends rounded: to a whole number, or to less than a thousandth
    of a distance, which no picture shows and a label has room for."""
    if not match["step"].isdigit() or int(match["step"]) < 2:
        raise UsageError(f"{origin}: the range {match[0]} wants a count of 2 or more after /", RANGES)
    count = int(match["step"])
    if count > MOST_VALUES:
        raise _too_many(origin, name, count)
    if first == last:
        raise UsageError(f"{origin}: the range {match[0]} has two ends that are one", f"write {name}={match['first']}")
    if whole and first % 1 == last % 1 == 0 and abs(last - first) < count - 1:
        there = int(abs(last - first)) + 1
        hint = f"there are {there}, as in {match['first']}..{match['last']}/{there}"
        raise UsageError(f"{origin}: the range {match[0]} has fewer than {count} whole numbers", hint)
    digit = Decimal(1) if whole else Decimal(1).scaleb(((last - first) / (count - 1)).adjusted() - 3)
    between = [first + (last - first) * i / (count - 1) for i in range(1, count - 1)]
    return [first, *(number.quantize(digit, "ROUND_HALF_UP") for number in between), last]


def _too_many(origin: str, name: str, count: int) -> UsageError:
    return UsageError(f"{origin}: {name} has {count:,} values", f"an axis has {MOST_VALUES:,} at most")


def _convert(origin: str, name: str, field: str, text: str) -> Any:
    """Return a value as its field wants it."""
    if field == "prompt":
        return text
    if field == "size":
        sides = settings.merge((origin, {"size": text})).values
        return f"{sides['width']}x{sides['height']}"
    if field == "preset":
        with _said_by(origin):
            held = settings.merge(*settings.preset(text)).values
        same = sorted(set(held) - {f.name for f in msgspec.structs.fields(GenerationRequest)})
        if same:
            hint = f"give it to the whole grid, as in --preset {text}"
            raise UsageError(f"{origin}: preset {text} sets {', '.join(same)}, which can't vary in a grid", hint)
        return text
    value = settings.convert(name.replace("-", "_"), text, origin)
    if value is None:
        # A merge takes None for "not given": the cell would get whatever else is said, under a label that is wrong.
        raise UsageError(f"{origin}: {name} can't be {text!r} in a grid", "give it a value in each cell")
    if field == "scheduler":
        with _said_by(origin):
            schedulers.find(value)
    return value


@contextmanager
def _said_by(origin: str) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{origin}: {error.message}", error.hint) from None
