"""Pixels into the bytes of a file and out again, by Pillow."""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from sdcli.metadata import exif, ours, xmp
from sdcli.metadata.carried import Carried

if TYPE_CHECKING:
    from PIL.Image import Image

# From the hash of the pixels that the file will hold to what it says.
Carry = Callable[[str | None], Carried]


class Coded(msgspec.Struct, frozen=True, kw_only=True):
    """A picture's file; the hash of the pixels that it holds, where some were lost; and what a person should be told."""

    data: bytes
    stored_sha256: str | None = None
    warnings: tuple[str, ...] = ()


def compress(image: Image, kind: str, settings: msgspec.Struct, **texts: Any) -> bytes:
    """Return a picture as a file of the kind that Pillow calls so."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **msgspec.structs.asdict(settings), **texts)
    return buffer.getvalue()


def decompress(data: bytes) -> Image:
    """Return the picture in a file that was just made, as RGB."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def digest(image: Image) -> str:
    """Return the SHA-256 of a picture's row-major bytes, in hex."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def filled(image: Image, kind: str, settings: msgspec.Struct, carry: Carry) -> Coded:
    """Return the file of a lossy kind whose texts Pillow writes together with the pixels.

    The hash of what it holds stands in its texts, and is known only after: a stand-in of the same length keeps its place.
    """
    stand_in = secrets.token_hex(32)
    data = compress(image, kind, settings, **embedded(image, carry(stand_in)))
    stored = digest(decompress(data))
    return Coded(data=data.replace(stand_in.encode(), stored.encode()), stored_sha256=stored)


def embedded(image: Image, said: Carried) -> dict[str, bytes]:
    """Return what Pillow is given to embed: EXIF with A1111's text, and the XMP packet with all else."""
    given = {}
    if said.infotext:
        given["exif"] = exif.write(said.infotext, image.width, image.height)
    if said.mark:
        given["xmp"] = xmp.packet(said.mark, ours.in_ascii(said.record)).encode()
    return given
