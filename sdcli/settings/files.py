"""TOML files that set fields: read, checked, and each fault with its line."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from sdcli import schedulers
from sdcli.errors import BadInput, SdcliError, nearest
from sdcli.settings.merge import merge, names

# Bytes; who sets every field there is comes to a few thousand.
LARGEST = 2**20
# A value that is shown whole may be the whole file.
LONGEST = 400


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with a file, and where: the line from 1, None where it is not known."""

    file: str
    line: int | None
    reason: str
    hint: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.reason}"


class BadFile(BadInput):
    """A file that is not as it must be: what is wrong first."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault), fault.hint)
        self.fault = fault


@dataclass(frozen=True)
class Document:
    """A TOML file's top level: `file` is what it is called to people."""

    file: str
    text: str
    values: Mapping[str, Any]

    @cached_property
    def _lines(self) -> list[str]:
        return [line + "\n" for line in self.text.split("\n")]  # TOML knows no other ends, as str.splitlines does.

    def line(self, key: str) -> int | None:
        """Return the line on which a key stands."""
        import tomllib

        spelled = re.compile(rf"\s*\[*\s*(?:\"{re.escape(key)}\"|'{re.escape(key)}'|{re.escape(key)})\s*[\].=]")
        for number, line in enumerate(self._lines):
            if not spelled.match(line):
                continue
            try:
                tomllib.loads("".join(self._lines[:number]))
            except ValueError:
                continue  # It stands inside a text of several lines.
            return number + 1
        return None

    def fault(self, key: str, reason: str, hint: str) -> Fault:
        """Return a fault of a key."""
        reason = reason if len(reason) <= LONGEST else reason[: LONGEST - 1] + "…"
        return Fault(file=self.file, line=self.line(key), reason=reason, hint=hint)


def read(path: Path, file: str) -> Document:
    """Read a TOML file. Raises FileNotFoundError or NotADirectoryError, and BadFile for what can't be read, is no UTF-8 or
    no TOML."""
    data = _bytes(path, file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise BadFile(
            Fault(file=file, line=row, reason="it is not UTF-8", hint="save it as UTF-8, or convert it with iconv")
        ) from None
    if not text.strip():
        return Document(file, text, {})
    import tomllib

    try:
        return Document(file, text, tomllib.loads(text))
    except RecursionError:
        raise BadFile(Fault(file=file, line=None, reason="it is nested too deep", hint="mend the file")) from None
    except ValueError as error:
        reason, line = _placed(str(error), text)
        hint = "mend that line: FIELD = VALUE, with text in quotes"
        fault = Fault(file=file, line=line, reason=f"it is not TOML: {reason[:LONGEST]}", hint=hint)
        raise BadFile(fault) from None


def _placed(reason: str, text: str) -> tuple[str, int | None]:
    """Return what the parser says without its place, and that place's line."""
    if known := re.search(r" \(at line (\d+), column \d+\)$", reason):
        return reason[: known.start()], int(known[1])
    if reason.endswith(ending := " (at end of document)"):
        return f"{reason.removesuffix(ending)} before the end", text.count("\n") + 1
    return reason, None


def _bytes(path: Path, file: str) -> bytes:
    try:
        # Whoever opens a FIFO waits for its writer.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise BadFile(Fault(file=file, line=None, reason="it is no regular file", hint="give a TOML file"))
            data = opened.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except IsADirectoryError:
        raise BadFile(Fault(file=file, line=None, reason="it is a folder", hint="give a TOML file")) from None
    except OSError as error:
        raise BadFile(
            Fault(file=file, line=None, reason=f"it can't be read: {error.strerror}", hint="see who may read it")
        ) from None
    except ValueError:  # A name with a NUL in it.
        raise FileNotFoundError(file) from None
    if len(data) > LARGEST:
        raise BadFile(
            Fault(file=file, line=None, reason=f"it has more than {LARGEST // 2**20} MiB", hint="give a TOML file")
        )
    return data


def fields(
    document: Document, *, without: Iterable[str] = (), refused: Mapping[str, str]
) -> tuple[dict[str, Any], list[Fault]]:
    """Return the values of a document's fields, converted, and what is wrong with the others.

    `without` are keys that somebody else reads, `refused` those that are no fields here, and what to do instead.
    """
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, value in document.values.items():
        if key in without:
            continue
        name = key.replace("-", "_")
        if name in refused:
            faults.append(document.fault(key, f"{key} is not set here", refused[name]))
            continue
        if name != "size" and name not in names():
            near = nearest(name, [*names(), *without, "size"])
            hint = f"fields are {', '.join(sorted({o.field for o in names().values()}))}"
            faults.append(document.fault(key, f"there is no field {key}{near}", hint))
            continue
        try:
            found = checked(name, value, document.file)
        except SdcliError as error:
            hint = error.hint or "mend the line"
            faults.append(document.fault(key, error.message.removeprefix(f"{document.file}: "), hint))
            continue
        if twice := sorted(found.keys() & values.keys()):
            faults.append(document.fault(key, f"{twice[0]} is given twice", "give it once"))
            continue
        values |= found
    return values, faults


def checked(name: str, value: Any, origin: str) -> dict[str, Any]:
    """Return what a name and its value set, by field. Raises UsageError for what does not fit, and for a scheduler that
    is not known."""
    found = dict(merge((origin, {name: value})).values)
    if (scheduler := found.get("scheduler")) is not None:
        schedulers.find(scheduler)
    return found


def toml_of(value: Any) -> Any:
    """Return a field's value as tomlkit writes it: on one line."""
    import tomlkit

    if isinstance(value, msgspec.Struct):
        given = msgspec.to_builtins(value)
        value = {key: one for key, one in given.items() if one is not None}
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        table.update({key: toml_of(one) for key, one in value.items()})
        return table
    if isinstance(value, (tuple, list)):
        array = tomlkit.array()
        array.extend([toml_of(one) for one in value])
        return array
    return value
