"""What a picture says of its making, whether its pixels are still those that its record hashes, and its signature."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import msgspec

from sdcli.errors import BadInput, InputMissing
from sdcli.metadata import jpeg, ours, readers, signing, stealth, texts_of
from sdcli.metadata.bounds import MOST_CHARACTERS, MOST_FILE
from sdcli.metadata.signing import Signature
from sdcli.record import SCHEMA, PixelRecord, Record

if TYPE_CHECKING:
    from PIL.Image import Image

# Bytes of a picture that comes through a pipe; it is kept on disk.
MOST_STREAM = 2**28
# Of so many, decoding takes up to 300 MB: WebP's is there three times over, and a progressive JPEG's coefficients besides.
MOST_PIXELS = {"PNG": 2**25, "JPEG": 2**24, "AVIF": 2**24, "WEBP": 12 * 10**6}
# A progressive JPEG has ten; each has every pixel gone through again.
MOST_SCANS = 32

# What is said of a grid's sheet.
SHEET = "its cells' pictures have records of their own"

Pixels = Literal["match", "differ"]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a picture.

    `format` is who wrote it (None: nobody that is known), `request` what it says in the names of GenerationRequest and only
    that, `model` an object with `name` and `hash`, `unmapped` what sdcli has no field for, `raw` the texts themselves.
    `record` is sdcli's own, None where it has none. `pixels` says after a check whether they are those that sdcli drew;
    None where nothing says which those are, or none was asked for; `signature` likewise how it stands with its signature,
    None where it has none.
    """

    path: str
    format: str | None
    request: dict[str, Any]
    model: dict[str, Any] | None
    unmapped: dict[str, Any]
    raw: dict[str, str]
    record: Record | None = None
    checked: bool = False
    pixels: Pixels | None = None
    signature: Signature | None = None

    @property
    def is_sheet(self) -> bool:
        """Whether it is the sheet of a grid: its cells' pictures have records, and it was drawn from none."""
        return self.format == "sdcli" and self.record is None and self.unmapped.get("kind") == "grid"

    @property
    def good(self) -> bool:
        """Whether the picture says how it was made and, if it was checked, its pixels are those of its record and its
        signature, if it has one, holds, as far as that could be looked at; of a sheet there is only a signature to check."""
        if not self.checked:
            return self.format is not None
        state = self.signature.state if self.signature is not None else None
        held = state in ("valid", "unchecked")
        return held if self.is_sheet else self.pixels == "match" and (held or state is None)

    @property
    def is_unchecked(self) -> bool:
        """Whether it has a signature that could not be looked at, since what checks it is not installed."""
        return self.signature is not None and self.signature.state == "unchecked"

    def as_json(self) -> dict[str, Any]:
        """Return the object that `sdcli inspect --json` prints. Every field of a request is in it; null: not said."""
        return {
            "schema": SCHEMA,
            "path": self.path,
            "format": self.format,
            "request": {field: self.request.get(field) for field in readers.FIELDS},
            "model": self.model,
            "unmapped": self.unmapped,
            "raw": self.raw,
            "check": self._check_as_json() if self.checked else None,
        }

    def _check_as_json(self) -> dict[str, Any]:
        return {"pixels": self.pixels, "signature": self.signature.state if self.signature else None}


def inspect(path: Path, check: bool = False) -> Found:
    """Return what a picture's file says. No pixel is decoded unless it is checked or has an alpha channel and no text.

    Raises InputMissing, and BadInput for what is no sound picture or has a record that can't be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"{path}: not a file", "give - and redirect it to stdin" if not path.is_dir() else None)
        with path.open("rb") as file:
            return inspect_open(file, str(path), check)
    except FileNotFoundError as error:
        raise InputMissing(f"{path} is not there", "check the path") from error
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error


def inspect_stream(stream: BinaryIO, name: str, check: bool = False) -> Found:
    """Return what a picture says that comes through a pipe. Raises BadInput, which calls it `name`."""
    with tempfile.SpooledTemporaryFile(max_size=2**24) as file:
        try:
            size = 0
            while size <= MOST_STREAM and (piece := stream.read(2**20)):
                size += file.write(piece)
            if size > MOST_STREAM:
                raise BadInput(f"{name}: more than {MOST_STREAM >> 20} MiB", "give the picture as a file")
            file.seek(0)
            return inspect_open(cast(BinaryIO, file), name, check)
        except OSError as error:
            raise BadInput(f"{name}: {error.strerror}") from error


def inspect_open(file: BinaryIO, name: str, check: bool = False) -> Found:
    """Return what a picture says that is open and can be sought in. Raises BadInput, which calls it `name`, and OSError."""
    try:
        raw = texts_of(file)
        if sum(map(len, raw.values())) > MOST_CHARACTERS:
            raise BadInput(f"it has more than {MOST_CHARACTERS // 2**20} MiB of text")
        said = readers.read(raw)
        if said is None and (hidden := stealth.texts(file)):
            raw = {**hidden, **raw}
            said = readers.read(raw)
        pixels = _check(file, raw) if check else None
        signature = signing.check(file) if check else None
    except BadInput as error:
        raise BadInput(f"{name}: {error.message}", error.hint) from error
    if said is None:
        return Found(
            path=name, format=None, request={}, model=None, unmapped={}, raw=raw, checked=check, pixels=pixels,
            signature=signature,
        )  # fmt: skip
    return Found(
        path=name, format=said.format, request=said.request, model=said.model, unmapped=said.unmapped, raw=raw,
        record=said.record, checked=check, pixels=pixels, signature=signature,
    )  # fmt: skip


def _check(file: BinaryIO, raw: dict[str, str]) -> Pixels | None:
    """Compare the picture's pixels with what sdcli's record, or what `--metadata minimal` left of it, says of them."""
    try:
        expected = ours.identity(raw[ours.KEYWORD]).pixels
    except (KeyError, BadInput):  # A grid's sheet says nothing of its own.
        return None
    from PIL import Image

    check_size(file)
    file.seek(0)
    _check_scans(file)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=("PNG", "JPEG", "WEBP", "AVIF")) as image:
                return "match" if _same(image, expected) else "differ"
    except BadInput:
        raise
    except Exception as error:  # Decoders raise what they like.
        raise BadInput(f"its pixels can't be decoded: {error}") from error


def check_size(file: BinaryIO) -> None:
    """Refuse a file that is too large to decode: Pillow reads WebP and AVIF whole before it looks at their size."""
    if file.seek(0, os.SEEK_END) > MOST_FILE:
        raise BadInput("it is too large to check", f"up to {MOST_FILE >> 20} MiB are")


def _check_scans(file: BinaryIO) -> None:
    """Refuse a JPEG of absurdly many scans."""
    if jpeg.MAGIC.match(file.read(3)) and jpeg.count(file, 0xDA, MOST_SCANS) > MOST_SCANS:
        raise BadInput(f"it has more than {MOST_SCANS} scans")


def _same(image: Image, expected: PixelRecord) -> bool:
    if image.size != (expected.width, expected.height):
        return False
    most = MOST_PIXELS[str(image.format)]
    if image.width * image.height > most:
        raise BadInput(
            f"it has {image.width * image.height / 1e6:.0f} megapixels, too many to check",
            f"up to {most / 1e6:.0f} are checked",
        )
    if image.mode != ("RGB" if expected.stored_sha256 else expected.mode):
        return False
    # In strips: a copy of the whole picture would take as much memory again.
    digest = hashlib.sha256()
    for top in range(0, image.height, 256):
        digest.update(image.crop((0, top, image.width, min(top + 256, image.height))).tobytes())
    return digest.hexdigest() == (expected.stored_sha256 or expected.sha256)
