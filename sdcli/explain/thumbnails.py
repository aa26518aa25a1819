"""Small pictures for pages, kept from one run to the next."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from sdcli import output
from sdcli.errors import CannotCreateOutput, OutputFailed, SdcliError
from sdcli.metadata import inspecting

if TYPE_CHECKING:
    from PIL.Image import Image

# Pixels of the longer side: sharp where a screen has two for each of CSS's.
SIDE = 320
QUALITY = 72
# No picture's ending, so that whatever looks for pictures in a folder passes thumbnails by.
SUFFIX = ".thumb"
_OURS = re.compile(rf"[0-9a-f]{{32}}{re.escape(SUFFIX)}")


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A thumbnail's name in its folder (None: there is none), and the picture's own size in pixels (None: nobody knows)."""

    name: str | None
    size: tuple[int, int] | None


class Thumbnails:
    """A folder of thumbnails (WebP). Pillow leaves Python's lock while it works, so threads make them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(_cores())
        self._wanted: set[str] = set()
        self._there = {entry.name for entry in self._entries()}

    def ask(self, path: Path, key: str) -> Future[Thumbnail]:
        """Have a picture's thumbnail made, if there is none of its state: `key` is its name, and its size and time count.

        The result raises CannotCreateOutput and OutputFailed.
        """
        about = path.stat()
        state = f"{SIDE}\0{key}\0{about.st_size}\0{about.st_mtime_ns}"
        name = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:32] + SUFFIX
        self._wanted.add(name)
        return self._pool.submit(self._make, path, name)

    def sweep(self) -> None:
        """Remove thumbnails of this folder that nobody has asked for."""
        for name in self._there - self._wanted:
            with suppress(OSError):
                (self.folder / name).unlink()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work; what is not begun is left when it ends early. Raises CannotCreateOutput where there can be no such folder."""
        try:
            output.make_folder(self.folder)
        except OSError as error:
            raise _failure(self.folder, error) from error
        with warnings.catch_warnings():
            # Pillow warns of large pictures and of broken EXIF. Not in the threads: this is the whole process's.
            warnings.simplefilter("ignore")
            try:
                yield
            finally:
                self._pool.shutdown(cancel_futures=True)

    def _entries(self) -> Iterable[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder) as entries:
                return [e for e in entries if _OURS.fullmatch(e.name) and e.stat().st_size]
        except OSError:
            return []

    def _make(self, path: Path, name: str) -> Thumbnail:
        from PIL import Image, ImageOps

        size: tuple[int, int] | None = None
        try:
            with path.open("rb") as file:
                inspecting.check_size(file)
                file.seek(0)
                with Image.open(file, formats=("PNG", "JPEG", "WEBP", "AVIF")) as image:
                    size = image.size
                    if name in self._there:
                        return Thumbnail(name=name, size=size)
                    if image.width * image.height > inspecting.MOST_PIXELS.get(str(image.format), 2**24):
                        return Thumbnail(name=None, size=size)
                    # JPEG can be decoded smaller; of others nothing is asked.
                    image.draft("RGB", (SIDE, SIDE))
                    has_alpha = "A" in image.getbands() or "transparency" in image.info
                    small = image.convert("RGBA" if has_alpha else "RGB")
                    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
                    # As browsers turn the picture itself.
                    small = ImageOps.exif_transpose(small)
        except Exception:  # Decoders raise what they like.
            return Thumbnail(name=None, size=size)
        self._write(small, name)
        return Thumbnail(name=name, size=size)

    def _write(self, small: Image, name: str) -> None:
        """Write a thumbnail under its name at once; without waiting for the disk, since it can be made again."""
        data = BytesIO()
        small.save(data, "WEBP", quality=QUALITY, method=2)
        temporary = self.folder / f".sdcli-{secrets.token_hex(8)}.part"
        try:
            try:
                temporary.write_bytes(data.getvalue())
                temporary.replace(self.folder / name)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise _failure(self.folder / name, error) from error


def _failure(path: Path, error: OSError) -> SdcliError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return OutputFailed(f"{path} was not written: {reason}", "free some space, or choose another page with -o")
    return CannotCreateOutput(f"{path} cannot be created: {reason}", "choose another page with -o")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
