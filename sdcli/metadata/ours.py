"""The whole record as JSON: nothing is lost.

In PNG it is a text of its own, with the keyword `sdcli`. In the other containers it is the property `sdcli:record` of the
XMP packet: the only place that each of them has, that may be as long as it wants (JPEG's EXIF ends at 64 KiB, its XMP goes
on in further segments), that readers show and programs keep when they convert a picture, and that nobody takes for a
caption. There every character is ASCII, so that no prompt meets XML's rules.
"""

from __future__ import annotations

import json
import re

import msgspec

from sdcli.errors import BadInput
from sdcli.record import SCHEMA, PixelRecord, Record
from sdcli.request import GenerationRequest

KEYWORD = "sdcli"


class _Version(msgspec.Struct):
    schema: int


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Which job drew a picture, and its pixels: all that `--metadata minimal` keeps of a record.

    The id hashes the whole request: nothing can be read from it, but a guess of all of it, the seed too, can be checked.
    """

    schema: int = SCHEMA
    id: str
    pixels: PixelRecord


class _Minimal(Identity, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An identity and nothing more."""


def encode(record: Record | Identity | GenerationRequest) -> str:
    """Return the record, or what is known of one, as one line of JSON.

    Raises BadInput for text that is not Unicode (lone surrogates, which argv can carry): JSON and PNG both hold UTF-8.
    """
    try:
        return msgspec.json.encode(record).decode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"the record's text is not valid Unicode: {error.object[error.start : error.end]!r}",
            "give the prompt and the other texts as UTF-8",
        ) from error


def in_ascii(text: str) -> str:
    """Return the same JSON in printable ASCII without `&`, `<` and `>`, which all stand inside its strings only."""
    text = re.sub("[^ -~]+", lambda match: json.dumps(match[0])[1:-1], text)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def length_in_ascii(text: str) -> int:
    """Return the length of what `in_ascii` returns, without making it: of a hostile text that would take seconds."""
    plain = len(text.encode("ascii", "ignore"))
    units = len(text.encode("utf-16-be")) // 2
    return units + 5 * (units - plain + sum(map(text.count, "&<>\x7f")))


def identity_of(record: Record) -> Identity:
    """Return what is left of a record that says nothing of what was asked."""
    return Identity(id=record.id, pixels=record.pixels)


def decode(text: str) -> Record | None:
    """Return the record that `encode` wrote, None for a mere identity.

    Raises BadInput for anything else and for a newer schema.
    """
    try:
        _check_schema(text)
        if _is_minimal(text):
            return None
        return msgspec.json.decode(text, type=Record)
    # UnicodeEncodeError: a lone surrogate in `text`; RecursionError: brackets, thousands deep.
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as error:
        raise BadInput(f"the record cannot be read: {error}") from error


def identity(text: str) -> Identity:
    """Return the identity in a record or in what is left of one. Raises BadInput as `decode` does."""
    try:
        _check_schema(text)
        return msgspec.json.decode(text, type=Identity)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as error:
        raise BadInput(f"the record cannot be read: {error}") from error


def _is_minimal(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=_Minimal)
    except msgspec.ValidationError:
        return False
    return True


def _check_schema(text: str) -> None:
    # Looked at first, so that a newer record is called newer and not malformed.
    schema = msgspec.json.decode(text, type=_Version).schema
    if schema > SCHEMA:
        raise BadInput(
            f"the record has schema {schema}; this sdcli knows up to {SCHEMA}", "read it with a newer version of sdcli"
        )
    if schema != SCHEMA:
        raise BadInput(f"the record has schema {schema}, which never was")
