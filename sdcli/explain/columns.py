"""Fields of many pictures, each kept once a value: what a page of ten thousand records is small by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Longer texts are cut, and so many fields are told apart; what a hostile folder has more of goes into one field.
LONGEST = 10_000
MOST_COLUMNS = 400
REST = "other"
# What a number of JavaScript's can hold exactly; larger ones (seeds have 63 bits) stay texts.
SAFE = 2**53 - 1
# In this order on the page, and those that are not named between them.
FIRST = (
    "prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "scheduler", "model", "lora", "lora.scale",
    "size", "width", "height",
)  # fmt: skip
LAST = (
    "model.files", "pixels.sha256", "id", "file.name", "file.folder", "file.format", "file.bytes", "file.changed", REST,
)  # fmt: skip

# What tells how a picture came out, by the first part of the name; the others tell what was asked.
MADE = (
    "made by", "tokens", "plan", "flagged", "fallbacks", "seconds", "versions", "encoding", "pixels", "id", "file", REST,
)  # fmt: skip

Value = str | int | float


class Columns:
    """A table whose cells hold no value, one, or several, and most values are in many rows."""

    def __init__(self) -> None:
        self._rows = 0
        self._columns: dict[str, _Column] = {}

    def add(self, fields: Iterable[tuple[str, Any]]) -> None:
        """Add a row. None, empty texts and empty lists are no values; of a field that comes twice, the first counts."""
        row = self._rows
        self._rows += 1
        for name, value in fields:
            self.put(row, name, value)

    def put(self, row: int, name: str, value: Any) -> None:
        """Put one more value into a row."""
        values = [v for one in (value if isinstance(value, list) else [value]) if (v := _value(one)) is not None]
        if not values:
            return
        column = self._columns.get(name)
        # Names with a dot may be anybody's, such as those of tags; the others are few.
        if column is None and ("." not in name or name in LAST or len(self._columns) < MOST_COLUMNS):
            column = self._columns[name] = _Column()
        if column is None:
            rest = self._columns.setdefault(REST, _Column())
            rest.extend(row, [f"{name}: {v}"[:LONGEST] for v in values])
        elif row not in column.rows:
            column.several |= isinstance(value, list)
            column.extend(row, values)
        elif name == REST:
            column.extend(row, values)

    def as_json(self) -> list[dict[str, Any]]:
        """Return the columns, each with its values and where they stand; `made`: it tells how the picture came out.

        `per` is "folder" where all rows have the same, "picture" where `values` has one for each row (null: none); else
        `at` has for each row the place of its value in `values`, -1 for none, or a list of places.
        """
        names = sorted(self._columns, key=_rank)
        return [{"name": name, "made": _made(name), **self._columns[name].as_json(self._rows)} for name in names]


def _made(name: str) -> bool:
    return name in LAST or name.partition(".")[0] in MADE or name.startswith("scheduler.")


def _rank(name: str) -> tuple[bool, int]:
    if name in FIRST:
        return False, FIRST.index(name) - len(FIRST)
    return _made(name), LAST.index(name) + 1 if name in LAST else 0


class _Column:
    def __init__(self) -> None:
        self.values: dict[Value, int] = {}
        self.rows: dict[int, list[int]] = {}
        self.several = False

    def extend(self, row: int, values: Iterable[Value]) -> None:
        places = self.rows.setdefault(row, [])
        for value in values:
            place = self.values.setdefault(value, len(self.values))
            if place not in places:
                places.append(place)
        self.several |= len(places) > 1

    def as_json(self, rows: int) -> dict[str, Any]:
        numbers = [v for v in self.values if not isinstance(v, str)]
        is_number = len(numbers) == len(self.values) and not self.several
        values = [v if isinstance(v, str) or abs(v) <= SAFE else str(v) for v in self.values]
        made: dict[str, Any] = {"kind": "number" if is_number else "text", "values": values}
        made["distinct"] = len(values) + (len(self.rows) < rows)
        if is_number:
            made |= {"min": min(numbers), "max": max(numbers)}
        if not self.several and len(values) == 1 and len(self.rows) == rows:
            return made | {"per": "folder"}
        if not self.several and len(values) > rows // 2:
            each = [values[at[0]] if (at := self.rows.get(row)) else None for row in range(rows)]
            return made | {"per": "picture", "values": each}
        if self.several:
            return made | {"at": [self.rows.get(row, []) for row in range(rows)]}
        return made | {"at": [at[0] if (at := self.rows.get(row)) else -1 for row in range(rows)]}


def _value(value: Any) -> Value | None:
    """Return a value as the page has it; what it can't hold as a number is text."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if abs(value) <= SAFE else str(value)
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … (of {len(text):,} characters)"
