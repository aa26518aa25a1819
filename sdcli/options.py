"""How a field declares the option that fills it.

An option is declared once, as the annotation of the field that it fills: its type and bounds, its help, its flags and
the panel of `--help` that it stands in. Commands, presets, `--set` and the README read it from there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option: the record and field that it fills, and how it is typed."""

    record: type[msgspec.Struct]
    field: str
    type: Any
    default: Any
    help: str
    flags: tuple[str, ...]
    panel: str
    metavar: str | None
    read: Callable[[str], Any] | None

    @property
    def many(self) -> bool:
        """Whether it may be given several times, for a field that is a list."""
        kind = plain_type(self.type)
        return get_origin(kind) is tuple and get_args(kind)[1:] == (...,)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name under which a row, a preset or `--set` may give it: the field's, then its long flags'."""
        return tuple(dict.fromkeys([self.field, *(f[2:].replace("-", "_") for f in self.flags if f.startswith("--"))]))


def meta(
    help: str,
    *flags: str,
    panel: str = "",
    metavar: str | None = None,
    read: Callable[[str], Any] | None = None,
    **bounds: Any,
) -> msgspec.Meta:
    """Return what a field says of its option; `bounds` are msgspec's (`ge`, `le`, `pattern` ...).

    `read` makes of text what msgspec converts, for a field (or an element of one) that is a record; ValueError says what is wrong.
    """
    extra = {"flags": flags, "panel": panel, "metavar": metavar, "read": read}
    return msgspec.Meta(description=help, extra=extra, **bounds)


@cache
def options_of(record: type[msgspec.Struct]) -> tuple[Option, ...]:
    """Return a record's options in the order of its fields; fields without `meta` are none."""
    hints = get_type_hints(record, include_extras=True)
    found = []
    for field in msgspec.structs.fields(record):
        hint = hints[field.name]
        declared = next((m for m in _metas(hint) if m.extra and "flags" in m.extra), None)
        if declared is None or declared.extra is None:
            continue
        default = field.default if field.default is not msgspec.NODEFAULT else None
        found.append(
            Option(
                record=record, field=field.name, type=hint, default=default, help=declared.description or "",
                flags=declared.extra["flags"], panel=declared.extra["panel"], metavar=declared.extra["metavar"],
                read=declared.extra["read"],
            )
        )  # fmt: skip
    return tuple(found)


def plain_type(hint: Any) -> Any:
    """Return a field's type as argv knows it: without bounds and without None."""
    if get_origin(hint) is Annotated:
        return plain_type(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        parts = [plain_type(a) for a in get_args(hint) if a is not type(None)]
        # Several types (`int | str`) are text at the command line, and msgspec decides.
        return parts[0] if len(parts) == 1 else str
    return hint


def _metas(hint: Any) -> list[msgspec.Meta]:
    if get_origin(hint) is Annotated:
        return [a for a in get_args(hint)[1:] if isinstance(a, msgspec.Meta)]
    return []
