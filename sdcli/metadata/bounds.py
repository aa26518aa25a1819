"""A picture's file, read within bounds: nothing is read before its size has been checked."""

from __future__ import annotations

import os
import struct
from typing import Any, BinaryIO

from sdcli.errors import BadInput

# Pictures carry kilobytes of text; the largest ComfyUI workflows, some megabytes.
MOST_TEXT = 16 * 2**20
# Bytes of a file whose pixels are looked at: Pillow takes twice that for some.
MOST_FILE = 96 * 2**20
# Chunks, segments or boxes; a PNG of 800 MB in the usual 8 KiB chunks has as many.
MOST_PARTS = 100_000


class Bounded:
    """A seekable file whose reads are exact and whose texts are limited, all of them together, to MOST_TEXT bytes.

    Every method raises BadInput where the file ends too early or asks for too much.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._text_left = MOST_TEXT
        self._parts_left = MOST_PARTS

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> None:
        if not 0 <= offset <= self.size:
            raise BadInput("it ends too early")
        self._file.seek(offset)

    def skip(self, size: int) -> None:
        self.seek(self.tell() + size)

    def read(self, size: int) -> bytes:
        """Return the next few bytes: what a header says, no text."""
        data = self._file.read(size)
        if len(data) != size:
            raise BadInput("it ends too early")
        return data

    def unpack(self, format: str) -> tuple[Any, ...]:
        return struct.unpack(format, self.read(struct.calcsize(format)))

    def part(self) -> None:
        """Count a chunk, segment or box."""
        self._parts_left -= 1
        if self._parts_left < 0:
            raise BadInput(f"it has more than {MOST_PARTS} parts")

    def text(self, size: int) -> bytes:
        """Return the next bytes, which are text."""
        self.count_text(size)
        if size > self.size - self.tell():
            raise BadInput("it ends too early")
        return self.read(size)

    def count_text(self, size: int) -> None:
        """Count text that is in memory already, such as one decompressed."""
        self._text_left -= size
        if self._text_left < 0:
            raise BadInput(f"it has more than {MOST_TEXT // 2**20} MiB of text")

    @property
    def text_left(self) -> int:
        return self._text_left
