"""A record into a picture's file and out of it.

A module for each kind of file says how pixels get into it and where texts lie in it (`png`, `jpeg`, `webp`, `avif`; EXIF and
XMP, which several of them hold: `exif`, `xmp`), and one for each grammar what the texts say (`ours`, which is lossless, and
`infotext`, which is A1111's).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from sdcli.errors import BadInput, InputMissing, UsageError
from sdcli.metadata import avif, carried, coding, jpeg, ours, png, webp, xmp
from sdcli.metadata.bounds import Bounded
from sdcli.metadata.carried import Carried, How
from sdcli.metadata.carried import check_length as check_length
from sdcli.metadata.coding import Coded
from sdcli.metadata.ours import Identity
from sdcli.record import EncodingRecord, PixelRecord, Record

if TYPE_CHECKING:
    from PIL.Image import Image


class Lossy(msgspec.Struct, frozen=True, kw_only=True):
    """How a kind of file that can lose something is encoded.

    `quality` is its own, `settings` what Pillow can be told, `settings_for` what it is told for a quality, and `library`
    what encodes, as the record and as `PIL.features` call it.
    """

    quality: int
    settings: type[msgspec.Struct]
    settings_for: Callable[[int], msgspec.Struct]
    library: tuple[str, str]


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of picture file: how it begins, how its texts get out, and how a picture and its texts get in."""

    magic: re.Pattern[bytes]
    texts: Callable[[Bounded], dict[str, str]]
    write: Callable[[Image, Any, coding.Carry], Coded]
    lossy: Lossy | None = None


FORMATS = {
    "png": Format(magic=png.MAGIC, texts=png.texts, write=png.write),
    "jpg": Format(
        magic=jpeg.MAGIC,
        texts=jpeg.texts,
        write=jpeg.write,
        lossy=Lossy(
            quality=jpeg.QUALITY,
            settings=jpeg.Settings,
            settings_for=jpeg.settings_for,
            library=("libjpeg-turbo", "libjpeg_turbo"),
        ),
    ),
    "webp": Format(
        magic=webp.MAGIC,
        texts=webp.texts,
        write=webp.write,
        lossy=Lossy(
            quality=webp.QUALITY,
            settings=webp.Settings,
            settings_for=webp.settings_for,
            library=("libwebp", "webp"),
        ),
    ),
    "avif": Format(
        magic=avif.MAGIC,
        texts=avif.texts,
        write=avif.write,
        lossy=Lossy(
            quality=avif.QUALITY,
            settings=avif.Settings,
            settings_for=avif.settings_for,
            library=("libavif", "avif"),
        ),
    ),
}


def check_format(name: str, quality: int | None = None) -> Format:
    """Return the format of that name. Raises UsageError if it cannot be written here, or not with a quality."""
    if name not in FORMATS:
        raise UsageError(f"the format {name} cannot be written", f"what works: {', '.join(FORMATS)}")
    if quality is not None and FORMATS[name].lossy is None:
        raise UsageError(
            f"{name} has no quality: it loses nothing", "leave --quality out, or say --format jpg, webp or avif"
        )
    if name == "avif":
        # Pillow can be built without it. Asking takes 40 ms, so only who wants it is asked to wait.
        from PIL import features

        if not features.check("avif"):
            raise UsageError(
                "this Pillow cannot write AVIF", "install one that can (pip install -U pillow), or say --format webp"
            )
    return FORMATS[name]


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """A picture's file, the SHA-256 in hex of the pixels that it holds, and what a person should be told."""

    data: bytes
    pixels: str
    warnings: tuple[str, ...] = ()


def encoded(image: Image, record: Record, format: str, how: How, quality: int | None = None) -> Encoded:
    """Return the picture's file, with its record (`full`), with the mark and no prompt (`minimal`), or with pixels only (`none`).

    `quality` is 1 to 100, None the format's own. Raises UsageError and BadInput as `check_format` and the record demand.
    """
    form = check_format(format, quality)
    settings = None
    if form.lossy:
        quality = form.lossy.quality if quality is None else quality
        settings = form.lossy.settings_for(quality)
        record = msgspec.structs.replace(record, encoding=_encoding(format, quality, settings, form.lossy.library))

    def carry(stored: str | None) -> Carried:
        pixels: PixelRecord = msgspec.structs.replace(record.pixels, stored_sha256=stored)
        return carried.carried(msgspec.structs.replace(record, pixels=pixels), how)

    coded = form.write(image, settings, carry)
    return Encoded(data=coded.data, pixels=coded.stored_sha256 or record.pixels.sha256, warnings=coded.warnings)


def _encoding(format: str, quality: int, settings: msgspec.Struct, library: tuple[str, str]) -> EncodingRecord:
    import PIL
    from PIL import features

    name, feature = library
    versions = {"pillow": PIL.__version__, name: features.version(feature) or "unknown"}
    return EncodingRecord(format=format, quality=quality, settings=msgspec.structs.asdict(settings), versions=versions)


def as_stored(image: Image, encoding: EncodingRecord) -> Image:
    """Return the picture that a file with this encoding would hold (RGB): what a redraw is compared with.

    Raises BadInput for an encoding that cannot be, and UsageError for one that cannot be made here.
    """
    form = check_format(encoding.format)
    if form.lossy is None:
        return image
    try:
        settings = msgspec.convert(encoding.settings, form.lossy.settings)
    except msgspec.ValidationError as error:
        raise BadInput(f"the record's encoding cannot be: {error}") from error
    return coding.decompress(form.write(image, settings, lambda stored: Carried()).data)


def texts(path: Path) -> dict[str, str]:
    """Return every text that a picture carries, by a plain key. No pixel is decoded.

    PNG's keywords as they are; EXIF's tags as `UserComment`, `ImageDescription`, `Make`, `Model`, `Software`, `Artist`,
    `MakerNote` and `XPComment`, where they are text; `XMP` and JPEG's `ExtendedXMP`, packets of XML; JPEG's `Comment`.
    sdcli's own record is under `sdcli` in each container. Of a key that is there twice, the first text counts.
    Raises InputMissing, and BadInput for what is no picture, is cut or broken, or has more than 16 MiB of text.
    """
    try:
        if path.exists() and not path.is_file():
            raise BadInput("not a file")  # A pipe would be waited for, and a device may never end.
        with path.open("rb") as file:
            return texts_of(file)
    except FileNotFoundError as error:
        raise InputMissing(f"{path} is not there", "check the path") from error
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", error.hint) from error


def texts_of(file: BinaryIO) -> dict[str, str]:
    """Return what `texts` does, out of an open file that can be sought in. Raises BadInput and OSError."""
    head = file.read(32)
    format = next((f for f in FORMATS.values() if f.magic.match(head)), None)
    if format is None:
        raise BadInput("not a picture that sdcli can read", f"what works: {', '.join(FORMATS)}")
    found = format.texts(Bounded(file))
    for packet in ("XMP", "ExtendedXMP"):
        if ours.KEYWORD not in found and (record := xmp.own_record(found.get(packet, ""))):
            found[ours.KEYWORD] = record
    return found


def read(path: Path) -> Record | None:
    """Return the record that sdcli wrote into a picture, None if it has none or `minimal` left none.

    Raises InputMissing, and BadInput for what is no picture or has a record that cannot be read.
    """
    found = texts(path)
    try:
        return ours.decode(found[ours.KEYWORD]) if ours.KEYWORD in found else None
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", error.hint) from error


def identity(path: Path) -> Identity | None:
    """Return which job drew a picture by sdcli and the hashes of its pixels, None if it does not say.

    Both `full` and `minimal` metadata say it. Raises as `read` does.
    """
    found = texts(path)
    try:
        return ours.identity(found[ours.KEYWORD]) if ours.KEYWORD in found else None
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}", error.hint) from error
