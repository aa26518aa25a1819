"""EXIF: texts into it and out of it, whichever container it lies in.

EXIF is a small TIFF: CIPA DC-008 (Exif 2.32), section 4.6, and TIFF 6.0, section 2. Only the tags that hold texts are looked at, in
the first directory and in the Exif directory that it points to, so no chain of directories is followed.
"""

from __future__ import annotations

import struct

from sdcli.errors import BadInput

PREFIX = b"Exif\0\0"
EXIF_IFD = 0x8769
USER_COMMENT = 0x9286
TAGS = {
    0x010E: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
    0x013B: "Artist",
    0x927C: "MakerNote",
    USER_COMMENT: "UserComment",
    0x9C9C: "XPComment",
}
# Bytes of a value, by the type's number; texts are found under all of 8 bits, whatever the tag asks for.
SIZES = {1: 1, 2: 1, 6: 1, 7: 1}


# Exif's types: each one's number.
ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 2, 3, 4, 5, 7


def write(comment: str, width: int, height: int) -> bytes:
    """Return EXIF (with its prefix) that holds a UserComment, and of the rest what Exif demands of every JPEG.

    Built here, since Pillow's `Exif` stores a UserComment as BYTE where the standard says UNDEFINED, which A1111's and
    piexif's readers refuse. UTF-16 is big-endian: A1111 reads no other.
    """
    text = b"UNICODE\0" + comment.encode("utf-16-be")
    short = struct.Struct(">H").pack
    resolution = struct.pack(">II", 72, 1)
    # Directories are sorted by tag: TIFF 6.0, section 2.
    first = [
        (0x011A, RATIONAL, 1, resolution),  # XResolution, and YResolution: 72 where nobody knows.
        (0x011B, RATIONAL, 1, resolution),
        (0x0128, SHORT, 1, short(2)),  # ResolutionUnit: inches.
        (0x0213, SHORT, 1, short(1)),  # YCbCrPositioning: centred.
    ]
    start = 8 + _size(len(first) + 1)
    first.append((EXIF_IFD, LONG, 1, struct.pack(">I", start)))
    inner = [
        (0x9000, UNDEFINED, 4, b"0232"),  # ExifVersion
        (0x9101, UNDEFINED, 4, b"\1\2\3\0"),  # ComponentsConfiguration: Y, Cb, Cr.
        (USER_COMMENT, UNDEFINED, len(text), text),
        (0xA000, UNDEFINED, 4, b"0100"),  # FlashpixVersion
        (0xA001, SHORT, 1, short(1)),  # ColorSpace: sRGB.
        (0xA002, LONG, 1, struct.pack(">I", width)),
        (0xA003, LONG, 1, struct.pack(">I", height)),
    ]
    values = start + _size(len(inner))
    head, data = b"MM\0*" + struct.pack(">I", 8), b""
    for directory in (first, inner):
        head += struct.pack(">H", len(directory))
        for tag, kind, count, value in directory:
            if len(value) > 4:  # It does not fit in, and lies behind the directories.
                head += struct.pack(">HHII", tag, kind, count, values + len(data))
                data += value + b"\0" * (len(value) % 2)
            else:
                head += struct.pack(">HHI", tag, kind, count) + value.ljust(4, b"\0")
        head += struct.pack(">I", 0)
    return PREFIX + head + data


def _size(entries: int) -> int:
    return 2 + 12 * entries + 4


def texts(data: bytes) -> dict[str, str]:
    """Return the texts of a TIFF by their tags' names; empty ones and those that are no text are left out.

    Raises BadInput where the TIFF is broken.
    """
    data = data.removeprefix(PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        raise BadInput("its EXIF is no TIFF")
    found: dict[str, str] = {}
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        first = _directory(data, order, start)
        inner = {}
        if EXIF_IFD in first and len(first[EXIF_IFD]) == 4:
            inner = _directory(data, order, *struct.unpack(order + "I", first[EXIF_IFD]))
    except struct.error:
        raise BadInput("its EXIF ends too early") from None
    # Values of one file do not overlap, so that together they are no longer than it; this also bounds the memory.
    if sum(map(len, (*first.values(), *inner.values()))) > len(data):
        raise BadInput("its EXIF has values that overlap")
    for tag, value in (first | inner).items():
        if tag in TAGS and (text := _text(tag, value)):
            found[TAGS[tag]] = text
    return found


def _directory(data: bytes, order: str, start: int) -> dict[int, bytes]:
    """Return the values of the tags that are wanted; of a tag that stands there twice, the first."""
    found: dict[int, bytes] = {}
    (count,) = struct.unpack_from(order + "H", data, start)
    for i in range(count):
        tag, kind, number, offset = struct.unpack_from(order + "HHII", data, start + 2 + 12 * i)
        if tag in found or (tag not in TAGS and tag != EXIF_IFD):
            continue
        at = start + 2 + 12 * i + 8
        if tag == EXIF_IFD:
            found[tag] = data[at : at + 4]
        elif kind in SIZES:
            size = number * SIZES[kind]
            at = at if size <= 4 else offset
            if at + size > len(data):
                raise BadInput(f"its EXIF ends before {TAGS[tag]} does")
            found[tag] = data[at : at + size]
    return found


def _text(tag: int, value: bytes) -> str:
    if tag == USER_COMMENT:
        return _user_comment(value)
    if TAGS[tag] == "XPComment":
        return value[: len(value) // 2 * 2].decode("utf-16-le", "replace").rstrip("\0")
    return _plain(value)


def _plain(value: bytes) -> str:
    """Return a text that ends with a NUL, or nothing if it is no text (a camera's MakerNote)."""
    try:
        return value.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return ""


def _user_comment(value: bytes) -> str:
    """Return a UserComment, whose first eight bytes say how it is encoded (Exif 2.32, table 9); JIS is left out."""
    code, rest = value[:8], value[8:]
    if code == b"UNICODE\0":
        return _utf16(rest)
    if code == b"JIS\0\0\0\0\0":
        return ""
    if code in (b"ASCII\0\0\0", b"\0" * 8):
        return _plain(rest)
    # Some writers leave the code out.
    return _plain(value)


def _utf16(data: bytes) -> str:
    """Return UTF-16 text, whose byte order nothing says: the one in which A1111's text makes sense, or else that in which the high
    bytes, which come from few alphabets, vary less than the low ones.
    """
    data = data[: len(data) // 2 * 2]
    big, little = data.decode("utf-16-be", "replace"), data.decode("utf-16-le", "replace")
    if "Steps: " in big or "Steps: " in little:
        text = big if "Steps: " in big else little
    elif data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = big if data[:1] == b"\xfe" else little
    else:
        text = big if len(set(data[::2])) <= len(set(data[1::2])) else little
    return text.removeprefix("\ufeff").rstrip("\0")
