"""AVIF: EXIF and XMP as items beside the picture's (ISO/IEC 23008-12, annex A; boxes: ISO/IEC 14496-12, section 8.11)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from sdcli.errors import BadInput
from sdcli.metadata import exif
from sdcli.metadata.bounds import Bounded
from sdcli.metadata.coding import Carry, Coded, filled

if TYPE_CHECKING:
    from PIL.Image import Image

# `avif`, or one of HEIF's own brands and `avif` among the first that the file is compatible with.
MAGIC = re.compile(rb"(?s).{4}ftyp(?:avi[fs]|(?:mif1|msf1).{4}(?:.{4}){0,3}?avi[fs])")

# Lists of items; each of them is a picture, a tile of one, or a text.
MOST_ITEMS = 10_000


# Nearer to the picture than JPEG's 90 (46.1 and 43.6 dB, as measured there) in 27 % of its bytes.
QUALITY = 80


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What Pillow is told.

    The colours keep their resolution, for 5 % of the bytes. Speed 6, Pillow's own, takes 0.2 s for 512 x 512 pixels; 7 and 8
    take less, but make flat colours worse and larger. The number of threads decides how a picture is tiled, and so its
    bytes: it is one, wherever that is.
    """

    quality: Annotated[int, msgspec.Meta(ge=0, le=100)]
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:4:4"
    speed: Annotated[int, msgspec.Meta(ge=0, le=10)] = 6
    max_threads: Literal[1] = 1


def settings_for(quality: int) -> Settings:
    return Settings(quality=quality)


def write(image: Image, settings: Settings, carry: Carry) -> Coded:
    return filled(image, "AVIF", settings, carry)


def texts(file: Bounded) -> dict[str, str]:
    """Return the texts: EXIF's and `XMP`. Raises BadInput."""
    found: dict[str, str] = {}
    outer = {kind: (start, end) for kind, start, end in reversed([*_boxes(file, 0, file.size)])}
    if not outer.keys() & {b"meta", b"moov"}:  # A picture, or a film.
        raise BadInput("it ends too early")
    if b"meta" in outer:
        start, end = outer[b"meta"]
        inner = {kind: (at, to) for kind, at, to in _boxes(file, start + 4, end)}
        if not inner.keys() >= {b"iinf", b"iloc"}:
            return found
        kinds = _items(file, *inner[b"iinf"])
        places = _places(file, *inner[b"iloc"], set(kinds), inner.get(b"idat", (0, 0))[0])
        blocks = []
        for item, kind in kinds.items():
            data = b"".join(_extent(file, *extent) for extent in places.get(item, ()))
            if kind == "XMP":
                found.setdefault("XMP", data.decode("utf-8", "replace"))
            elif len(data) > 4:
                # Where the TIFF begins behind this number (ISO/IEC 23008-12, A.2.1).
                blocks.append(data[4 + int.from_bytes(data[:4], "big") :])
        found = exif.texts(blocks[0]) | found if blocks else found
    return found


def _boxes(file: Bounded, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Walk the boxes between two offsets: each one's kind, and where its content begins and ends."""
    while start < end:
        file.part()
        file.seek(start)
        size, kind = file.unpack(">I4s")
        head = 8
        if size == 1:
            (size,) = file.unpack(">Q")
            head = 16
        elif size == 0:  # It goes to the end.
            size = end - start
        if size < head or start + size > end:
            raise BadInput("it ends too early")
        yield kind, start + head, start + size
        start += size


def _items(file: Bounded, start: int, end: int) -> dict[int, str]:
    """Return the items that are texts, out of the box `iinf`: each one's id, and whether it is `Exif` or `XMP`."""
    found = {}
    file.seek(start)
    version = file.read(4)[0]
    (count,) = file.unpack(">I" if version else ">H")
    if count > MOST_ITEMS:
        raise BadInput(f"it has more than {MOST_ITEMS} items")
    for kind, at, to in _boxes(file, file.tell(), end):
        file.seek(at)
        version = file.read(4)[0]
        if kind != b"infe" or version not in (2, 3):
            continue
        item, _, what = file.unpack(">IH4s" if version == 3 else ">HH4s")
        if what == b"Exif":
            found[item] = "Exif"
        elif what == b"mime" and to - file.tell() < 1000:
            _, mime, *_ = [*file.read(to - file.tell()).split(b"\0"), b"", b""]
            if mime == b"application/rdf+xml":
                found[item] = "XMP"
    return found


def _places(file: Bounded, start: int, end: int, wanted: set[int], idat: int) -> dict[int, list[tuple[int, int]]]:
    """Return where items lie, out of the box `iloc`: offsets and lengths in the file; `idat` is where that box's data begin."""
    found = {}
    file.seek(start)
    version = file.read(4)[0]
    if version > 2:
        raise BadInput("its items lie where no standard says")
    sizes, more = file.read(2)
    offset_size, length_size, base_size, index_size = sizes >> 4, sizes & 15, more >> 4, more & 15 if version else 0
    (count,) = file.unpack(">I" if version == 2 else ">H")
    if count > MOST_ITEMS:
        raise BadInput(f"it has more than {MOST_ITEMS} items")

    def number(size: int) -> int:
        return int.from_bytes(file.read(size), "big")

    for _ in range(count):
        file.part()
        item = number(4 if version == 2 else 2)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(base_size) + (idat if method == 1 else 0)
        extents = []
        for _ in range(number(2)):
            file.part()
            number(index_size)
            offset = number(offset_size)
            extents.append((base + offset, number(length_size)))
        if file.tell() > end:
            raise BadInput("it ends too early")
        if item in wanted and method in (0, 1):
            found[item] = extents
    return found


def _extent(file: Bounded, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.text(length or file.size - offset)
