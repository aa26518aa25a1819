"""A record into a picture's file and out of it.

A module for each kind of file says where texts lie in it (`png`), and one for each grammar what they say (`ours`, which
is lossless, and `infotext`, which is A1111's).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sdcli.errors import BadInput, InputMissing, UsageError
from sdcli.metadata import ours, png
from sdcli.record import Record

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of picture file: how it begins, and how a record gets into it and its texts out."""

    magic: re.Pattern[bytes]
    encode: Callable[[Image, Record | None], bytes]
    texts: Callable[[Path], dict[str, str]]


FORMATS = {"png": Format(magic=png.MAGIC, encode=png.encode, texts=png.texts)}


def check_format(name: str) -> Format:
    """Return the format of that name. Raises UsageError if it cannot be written."""
    if name not in FORMATS:
        raise UsageError(f"the format {name} cannot be written", f"what works: {', '.join(FORMATS)}")
    return FORMATS[name]


def encode(image: Image, record: Record, format: str, metadata: Literal["full", "none"]) -> bytes:
    """Return the picture's file, with its record (`full`) or with nothing but pixels (`none`)."""
    return check_format(format).encode(image, record if metadata == "full" else None)


def read(path: Path) -> Record | None:
    """Return the record that sdcli wrote into a picture, None if it has none.

    Raises InputMissing, and BadInput for what is no picture or has a record that cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(32)
        format = next((f for f in FORMATS.values() if f.magic.match(head)), None)
        if format is None:
            raise BadInput(f"{path}: not a picture that sdcli can read", f"what works: {', '.join(FORMATS)}")
        texts = format.texts(path)
    except FileNotFoundError as error:
        raise InputMissing(f"{path} is not there") from error
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    try:
        return ours.decode(texts[ours.KEYWORD]) if ours.KEYWORD in texts else None
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", error.hint) from error
