"""The whole record as JSON, under the keyword `sdcli`: nothing is lost."""

from __future__ import annotations

import msgspec

from sdcli.errors import BadInput
from sdcli.record import SCHEMA, Record

KEYWORD = "sdcli"


class _Version(msgspec.Struct):
    schema: int


def encode(record: Record) -> str:
    """Return the record as one line of JSON.

    Raises BadInput for text that is not Unicode (lone surrogates, which argv can carry): JSON and PNG both hold UTF-8.
    """
    try:
        return msgspec.json.encode(record).decode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"the record's text is not valid Unicode: {error.object[error.start : error.end]!r}",
            "give the prompt and the other texts as UTF-8",
        ) from error


def decode(text: str) -> Record:
    """Return the record that `encode` wrote. Raises BadInput for anything else and for a newer schema."""
    try:
        # The schema is looked at first, so that a newer record is called newer and not malformed.
        schema = msgspec.json.decode(text, type=_Version).schema
        if schema == SCHEMA:
            return msgspec.json.decode(text, type=Record)
    # UnicodeEncodeError: a lone surrogate in `text`; RecursionError: brackets, thousands deep.
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as error:
        raise BadInput(f"the record cannot be read: {error}") from error
    if schema > SCHEMA:
        raise BadInput(
            f"the record has schema {schema}; this sdcli knows up to {SCHEMA}", "read it with a newer version of sdcli"
        )
    raise BadInput(f"the record has schema {schema}, which never was")
