"""A picture's file, read within bounds: nothing is read before its size has been checked."""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any, BinaryIO

from sdcli.errors import BadInput

# Pictures carry kilobytes of text; the largest ComfyUI workflows, some megabytes.
MOST_TEXT = 16 * 2**20
# Of all texts together, as they are printed as JSON, where a character may take six, and copied on the way. ComfyUI's largest
# workflows have less.
MOST_CHARACTERS = 2**23
# Bytes of a file whose pixels are looked at: Pillow takes twice that for some.
MOST_FILE = 96 * 2**20
# Bytes of chunks that are no texts and whose sums are looked at: reading so much takes a second.
MOST_SUMMED = 2**28
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
        self._summed_left = MOST_SUMMED

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

    def sum_over(self, size: int, start: int) -> int | None:
        """Skip the next bytes and return their CRC-32, which goes on from `start`; None where MOST_SUMMED have been read."""
        if size > self.size - self.tell():
            raise BadInput("it ends too early")
        self._summed_left -= size
        if self._summed_left < 0:
            self.skip(size)
            return None
        while size:
            piece = self.read(min(size, 2**20))
            start = zlib.crc32(piece, start)
            size -= len(piece)
        return start

    def count_text(self, size: int) -> None:
        """Count text that is in memory already, such as one decompressed."""
        self._text_left -= size
        if self._text_left < 0:
            raise BadInput(f"it has more than {MOST_TEXT // 2**20} MiB of text")

    @property
    def text_left(self) -> int:
        return self._text_left
