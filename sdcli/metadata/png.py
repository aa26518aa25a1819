"""PNG: texts in chunks of their own, before the pixels (PNG, third edition, section 11.3)."""

from __future__ import annotations

import io
import re
import zlib
from typing import TYPE_CHECKING

from sdcli.errors import BadInput
from sdcli.metadata import exif, infotext, ours, xmp
from sdcli.metadata.bounds import Bounded
from sdcli.metadata.coding import Carry, Coded

if TYPE_CHECKING:
    from PIL.Image import Image

MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n")

# zlib's level 4 makes files as small as Pillow's usual 6 (512 px, with a decoder's slight noise: 362 and 365 KB; flat:
# 2.8 and 2.8 KB) in half the time or less; 1 halves the time again and is a fifth larger, and 9 gains nothing.
COMPRESS_LEVEL = 4


def write(image: Image, settings: None, carry: Carry) -> Coded:
    """Return the file: the same bytes for the same picture and record."""
    from PIL.PngImagePlugin import PngInfo

    said = carry(None)
    info = PngInfo()
    for keyword, text in ((infotext.KEYWORD, said.infotext), (ours.KEYWORD, said.record)):
        # Uncompressed, since readers refuse long compressed text; tEXt, which the most readers know, only for ASCII, since
        # many take its Latin-1 for UTF-8.
        if text.isascii() and text:
            info.add_text(keyword, text)
        elif text:
            info.add_itxt(keyword, text)
    if said.mark:
        info.add_itxt(xmp.PNG_KEYWORD, xmp.packet(said.mark))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=COMPRESS_LEVEL)
    return Coded(data=buffer.getvalue())


def texts(file: Bounded) -> dict[str, str]:
    """Return the texts by keyword, wherever they stand, and those of EXIF; the XMP packet is called `XMP`.

    Raises BadInput where the file is cut or a chunk is not sound. Of the pixels' chunks only the sums are looked at, and those
    of the first 256 MiB.
    """
    found: dict[str, str] = {}
    block: bytes | None = None
    file.skip(8)
    first = True
    while True:
        file.part()
        length, kind = file.unpack(">I4s")
        if first and (kind, length) != (b"IHDR", 13):
            raise BadInput("it has no IHDR where one must be")
        if first or kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
            data = file.text(length)
            _check_sum(file, kind, zlib.crc32(kind + data))
            if kind == b"eXIf":
                block = block or data
            elif not first:
                keyword, text = _text(kind, data, file)
                found.setdefault("XMP" if keyword == xmp.PNG_KEYWORD else keyword, text)
        else:
            _check_sum(file, kind, file.sum_over(length, zlib.crc32(kind)))
        if kind == b"IEND":
            return (exif.texts(block) if block else {}) | found
        first = False


def _check_sum(file: Bounded, kind: bytes, found: int | None) -> None:
    """Compare the sum behind a chunk with what was found; None: it was not looked at."""
    (said,) = file.unpack(">I")
    if found not in (None, said):
        raise BadInput(f"the chunk {kind.decode('ascii', 'backslashreplace')} has a wrong sum")


def _text(kind: bytes, data: bytes, file: Bounded) -> tuple[str, str]:
    """Return a text chunk's keyword and text (PNG, third edition, section 11.3.3)."""
    keyword, _, rest = data.partition(b"\0")
    if kind == b"tEXt":
        return keyword.decode("latin-1"), _latin(rest)
    if kind == b"zTXt":
        return keyword.decode("latin-1"), _latin(_inflate(rest[1:], file))
    compressed = rest[:1] == b"\1"
    _, _, rest = rest[2:].partition(b"\0")
    _, _, rest = rest.partition(b"\0")
    text = _inflate(rest, file) if compressed else rest
    return keyword.decode("latin-1"), text.decode("utf-8", "replace")


def _latin(data: bytes) -> str:
    """Return a text that should be Latin-1: many programs write UTF-8, which Latin-1 hardly ever is by chance."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _inflate(data: bytes, file: Bounded) -> bytes:
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(data, file.text_left + 1)
    except zlib.error as error:
        raise BadInput(f"a compressed text is not sound: {error}") from error
    file.count_text(len(text))
    return text
