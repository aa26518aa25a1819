"""Picture files that somebody gives to start from: read within bounds, upright, as RGB or RGBA."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sdcli.errors import BadInput, InputMissing

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's names. Not all that it can open: EPS runs another program, and some formats have no mark to be known by.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "QOI")
# Bytes of a file: some of Pillow's decoders take it into memory whole.
MOST_FILE = 2**28
# As RGB, 200 MB; what the largest cameras but a few give.
MOST_PIXELS = 2**26
# A progressive JPEG has ten; each has every pixel gone through again.
MOST_SCANS = 100
# Of a PNG; one of 800 MB has as many, in the usual pieces of 8 KiB.
MOST_CHUNKS = 100_000
ORIENTATION = 0x0112
# Levels by which colours may differ from sRGB's before a profile is heeded: rounding makes so much.
SAME_COLOUR = 2
# The paths of what came through a pipe: nobody knows them.
_PIPED: set[str] = set()
HINT = "give a PNG, JPEG, WebP, AVIF, GIF, TIFF or BMP"


def open_picture(path: str | os.PathLike[str]) -> Image:
    """Return the picture of a file, upright, as RGB, or as RGBA where some of it is transparent.

    Of several frames the first. 16 bits and floating point numbers (0 to 1) become 8 bits. Colours are brought to sRGB where
    the file has a profile (ICC) of another space; PNG's gAMA and cHRM are not heeded. Raises InputMissing, and BadInput for what
    is no picture, is cut off or is larger than MOST_FILE bytes or MOST_PIXELS pixels.
    """
    with _opened(path) as image:
        orientation = _orientation(image)
        if image.info.get("progressive"):
            _check_scans(image)
        image.load()
        found = _turned(_converted(image), orientation)
        found.info = {}
        return found


def size_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return a picture's upright width and height; no pixel is decoded, and what was read is kept as long as the file stays
    as it is. Raises what `open_picture` raises, as far as the header shows it."""
    return _size_of(os.fspath(path), *_about(path))


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content in hex; it is kept as long as the file stays as it is."""
    return _sha256_of(os.fspath(path), *_about(path))


def find(name: str, sha256: str, folders: Iterable[Path]) -> Path | None:
    """Return the file of a name in one of the folders that has a content, None where there is none.

    For names out of records: one that could lead out of a folder is not looked for.
    """
    if not name or name in (".", "..") or any(c in name for c in "/\\\0") or Path(name).is_absolute():
        return None
    for folder in folders:
        path = folder / name
        try:
            about = path.stat()
            if stat.S_ISREG(about.st_mode) and about.st_size <= MOST_FILE and sha256_of(path) == sha256:
                return path
        except (OSError, ValueError, BadInput, InputMissing):  # ValueError: no system takes such a name.
            continue
    return None


def spooled(stream: BinaryIO, folder: Path) -> Path:
    """Write a picture that comes through a pipe to `folder`/stdin and return that; BadInput where it is larger than MOST_FILE."""
    path, size = folder / "stdin", 0
    _PIPED.add(str(path))
    with path.open("wb") as file:
        while size <= MOST_FILE and (piece := stream.read(2**20)):
            size += file.write(piece)
    if size > MOST_FILE:
        raise BadInput(f"the picture on stdin has more than {MOST_FILE >> 20} MiB", "give a smaller one")
    return path


# Files


def _name(path: str | os.PathLike[str]) -> str:
    """Return what people know a file by."""
    return "stdin" if os.fspath(path) in _PIPED else os.fspath(path)


def _about(path: str | os.PathLike[str]) -> tuple[int, int, int, int]:
    """Return what tells whether a file has changed; refuse what is no file."""
    try:
        about = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputMissing(f"{_name(path)} is not there", "check the path") from error
    except OSError as error:
        raise BadInput(f"{_name(path)}: {error.strerror}", "check the path and its permissions") from error
    except ValueError as error:
        raise BadInput(f"{os.fspath(path)!r} can't be a path", "check the path") from error
    if not stat.S_ISREG(about.st_mode):
        raise BadInput(f"{_name(path)}: not a file", "give a picture's file")
    return about.st_size, about.st_mtime_ns, about.st_dev, about.st_ino


@lru_cache(maxsize=4096)
def _size_of(path: str, *about: int) -> tuple[int, int]:
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


@lru_cache(maxsize=4096)
def _sha256_of(path: str, *about: int) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{_name(path)}: {error.strerror}", "check its permissions") from error


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image]:
    """Open a picture within bounds; whatever Pillow raises while it is open is BadInput."""
    from PIL import Image, UnidentifiedImageError

    name = _name(path)
    size = _about(path)[0]
    if size > MOST_FILE:
        raise BadInput(f"{name}: it is larger than {MOST_FILE >> 20} MiB", "give a smaller picture")
    try:
        with warnings.catch_warnings():
            # What is wrong with a file is told by what comes out of it.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise BadInput(
                        f"{name}: it has {image.width * image.height / 1e6:.0f} megapixels",
                        f"give one of {MOST_PIXELS / 1e6:.0f} at most",
                    )
                yield image
    except (BadInput, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadInput(f"{name} is no picture", HINT) from error
    except Image.DecompressionBombError as error:
        raise BadInput(f"{name}: it has too many pixels", f"give one of {MOST_PIXELS / 1e6:.0f} at most") from error
    except Exception as error:  # Decoders raise what they like.
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{name} can't be decoded: {reason}", "save it again, or give another") from error


def _check_scans(image: Any) -> None:
    """Refuse a JPEG of absurdly many scans. Their mark can't stand among the data of one."""
    file, before, count = image.fp, image.fp.tell(), 0
    file.seek(0)
    last = b""
    while piece := file.read(2**20):
        count += (last + piece).count(b"\xff\xda")
        last = piece[-1:]
    file.seek(before)
    if count > MOST_SCANS:
        raise BadInput(f"{_name(image.filename)}: it has more than {MOST_SCANS} scans", "save it again")


def _orientation(image: Any) -> int:
    """Return the orientation that the pixels are still to take, 1 to 8 as EXIF counts; 1 where nothing sound says another."""
    if image.format == "TIFF":  # Pillow turns it itself.
        return 1
    if image.format == "PNG" and "exif" not in image.info and not _has_late_exif(image):
        # Pillow would decode it all to see whether EXIF comes last.
        raw = {k: image.info[k] for k in ("Raw profile type exif", "XML:com.adobe.xmp", "xmp") if k in image.info}
        if not raw:
            return 1
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # A broken EXIF block says nothing.
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _has_late_exif(image: Any) -> bool:
    """Whether a PNG's EXIF stands behind its pixels (PNG, third edition, 11.3.4.5)."""
    file = image.fp
    before = file.tell()
    file.seek(8)
    try:
        for _ in range(MOST_CHUNKS):
            head = file.read(8)
            if len(head) < 8 or head[4:] in (b"IEND", b"eXIf"):
                return bool(head[4:] == b"eXIf")
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(before)


# Pixels


def _turned(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    how = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }.get(orientation)  # fmt: skip
    return image.transpose(how) if how is not None else image


def _converted(image: Image) -> Image:
    """Return a picture as RGB, or as RGBA where some of it is transparent."""
    numbers = image.mode in ("I", "F") or image.mode.startswith("I;16")
    alpha = None if numbers or not image.has_transparency_data else image.convert("RGBA").getchannel("A")
    if numbers:
        image = _eight_bits(image)
    elif image.mode in ("1", "LA", "La"):
        image = image.convert("RGBA").convert("L") if image.mode == "La" else image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):
        # In two steps: premultiplied colours have no way to RGB.
        image = image.convert("RGBA").convert("RGB") if image.mode == "RGBa" else image.convert("RGB")
    found = _in_srgb(image)
    if alpha is not None and alpha.getextrema()[0] < 255:  # type: ignore[operator]
        found.putalpha(alpha)
    return found


def _eight_bits(image: Image) -> Image:
    """Return a picture of 16-bit or floating point greys in 8 bits."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("its numbers are not between 0 and 1")
        return Image.fromarray((values * 255).round().astype("uint8"))
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its greys have more than 16 bits")
    # 65535 is 255 times 257.
    return Image.fromarray(((values.astype("uint32") + 128) // 257).astype("uint8"))


def _in_srgb(image: Image) -> Image:
    """Return a picture (L, RGB, CMYK, LAB) as RGB in sRGB. A profile that can't be read is left out, as viewers do."""
    from PIL import ImageCms

    raw = image.info.get("icc_profile")
    try:
        if image.mode == "LAB":
            profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif raw:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(raw))
        else:
            return image.convert("RGB")
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(profile, srgb, image.mode, "RGB")
        if image.mode in ("L", "RGB"):
            sample = _sample(image.mode)
            shown = ImageCms.applyTransform(sample, transform)
            assert shown is not None
            if _furthest(sample.convert("RGB"), shown) <= SAME_COLOUR:
                return image.convert("RGB")
        found = ImageCms.applyTransform(image, transform)
        assert found is not None
        return found
    except (ImageCms.PyCMSError, OSError, ImportError, TypeError) as error:
        if image.mode == "LAB":
            raise ValueError("its colours are in CIELAB, which can't be brought to sRGB here") from error
        return image.convert("RGB")


def _sample(mode: str) -> Image:
    """Return a picture of greys, or of colours all over the cube."""
    from PIL import Image

    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    steps = range(0, 256, 51)
    colours = bytes(v for r in steps for g in steps for b in steps for v in (r, g, b))
    return Image.frombytes("RGB", (len(colours) // 3, 1), colours)


def _furthest(one: Image, other: Image) -> int:
    from PIL import ImageChops

    extrema: Any = ImageChops.difference(one, other).getextrema()
    return int(max(high for _, high in extrema))
