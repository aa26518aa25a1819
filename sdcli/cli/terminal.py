"""A terminal as a place for pictures: how it takes them, and what is drawn over."""

from __future__ import annotations

import base64
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TextIO

from sdcli.cli.screen import is_dumb
from sdcli.errors import UsageError

Protocol = Literal["kitty", "iterm2", "sixel", "blocks"]
# Columns that a picture has in a terminal, and one that is being drawn.
COLUMNS, PREVIEW_COLUMNS = 60, 40
# Rows that a picture leaves, so that what was said of it stays in sight: its summary and path above, a shell's prompt below.
ROOM = 5
# What a terminal is taken for that does not say its columns and rows.
UNKNOWN = (80, 24)
# The columns that a terminal's echo of Ctrl-C takes, with one to spare.
ECHO = 3
# The columns and rows that kitty can count, which are enough for all.
MOST_CELLS = 297
# Pixels of a cell, across and down, as a VT340 had them.
CELL = (10, 20)
# Colours of a preview where each one costs.
PREVIEW_COLOURS = 64
INSTALL = "pip install 'sdcli[show]'"


class Terminal:
    """A terminal that takes pictures: by kitty's, iTerm2's or DEC's protocol (sixel), else as coloured half blocks.

    Which, textual-image finds out by asking the terminal, for two seconds at most, and only one that is not dumb, in whose
    foreground this process is, at whose keyboard nothing has been typed ahead. iTerm2 says itself that it is one. What is put
    there is written to the stream, in silence where that fails, or by `write`. Raises UsageError where textual-image is not
    installed.
    """

    def __init__(
        self, stream: TextIO, way: Protocol | None = None, *, write: Callable[[str], None] | None = None
    ) -> None:
        self._stream = stream
        self._write = write or self._write_quietly
        self._library = _library()
        self._true_colours = _true_colours()
        with _standing_in(stream, asks=not is_dumb()):
            self.way: Protocol = way or self._detected()
            # The others are told of cells, whose size is theirs to know.
            self._cell = self._library.cell() if self.way in ("sixel", "kitty") else CELL
        self._image: Any = None
        # Columns and rows of what `over` put there, and the columns of its line.
        self._shown: tuple[int, int, int] | None = None
        self._left = False

    @property
    def is_clear(self) -> bool:
        """Whether nothing stands there that `over` put."""
        return self._shown is None

    def put(self, image: Any, *, columns: int | None = None) -> None:
        """Put a picture (Pillow) there, with the cursor on the line under it.

        It is as high as the screen at most, or as `columns` across want it; a terminal that says its width is not overstepped.
        """
        self.clear()
        size = self._size()
        width, height = size or UNKNOWN
        rows = MOST_CELLS if columns else height - ROOM
        if not columns or size:
            columns = min(columns or COLUMNS, width)
        across, down = self._cells(image, columns, rows)
        self._write(self._text(image, across, down))
        self._image = None  # It stays.

    def over(self, image: Any, line: str) -> None:
        """Put a picture and a line under it where the last ones were."""
        if self._left:
            return
        from rich.cells import cell_len, set_cell_size

        width, height = self._size() or UNKNOWN
        across, down = self._cells(image, min(PREVIEW_COLUMNS, width), height - ROOM)
        most = max(0, width - ECHO)
        line = set_cell_size(line, most) if cell_len(line) > most else line
        if self.way in self._library.images:
            # It is enlarged without in-betweens then, and written in less than half the time.
            image = image.quantize(PREVIEW_COLOURS)
        before, self._image = self._image, None
        text = self._text(image, across, down)
        same = self._shown is not None and self._shown[:2] == (across, down) and self._rows() == down
        up = f"\r\x1b[{down}A" if same else self._erased()
        self._shown = None  # A signal in the midst of it can't count what is there.
        if self._left:
            return
        self._write(f"{up}{text}\r\x1b[2K{line}")
        self._shown = (across, down, cell_len(line))
        self._free(before)

    def clear(self) -> None:
        """Take what `over` put there away."""
        if self._shown is not None and not self._left:
            erased, self._shown = self._erased(), None
            self._write(erased)
            before, self._image = self._image, None
            self._free(before)

    def leave(self) -> str:
        """Put nothing there from now on; return what takes away what `over` put there. For signal handlers."""
        erased, self._left = self._erased(), True
        return erased

    def _erased(self) -> str:
        # Row by row: of a screen that is erased whole some terminals keep what was on it.
        return "\r" + "\x1b[2K\x1b[A" * self._rows() + "\x1b[J" if self._shown is not None else ""

    def _rows(self) -> int:
        """Return how many rows the cursor is under the first one of what `over` put there.

        Most terminals wrap what is wider than they have become; what they have scrolled away is out of reach.
        """
        if self._shown is None:
            return 0
        width, height = self._size() or UNKNOWN
        across, down, line = self._shown
        # kitty's pictures are held by characters.
        rows = down * (-(-across // width) if self.way in ("blocks", "kitty") else 1) + line // width
        return min(rows, height - 1)

    def _detected(self) -> Protocol:
        # The latter is handed on through ssh.
        if os.environ.get("TERM_PROGRAM") == "iTerm.app" or os.environ.get("LC_TERMINAL") == "iTerm2":
            return "iterm2"
        # In the order of the library: those that have both draw sixels better.
        try:
            return "sixel" if self._library.sixel() else "kitty" if self._library.kitty() else "blocks"
        except Exception:  # Whatever a terminal answers: blocks can be drawn.
            return "blocks"

    def _size(self) -> tuple[int, int] | None:
        """Return columns and rows, as they are now; None of what is no terminal, or does not say."""
        with suppress(OSError, ValueError):
            width, height = os.get_terminal_size(self._stream.fileno())
            if width and height:
                return width, height
        return None

    def _cells(self, image: Any, columns: int, rows: int) -> tuple[int, int]:
        """Return how many columns and rows a picture takes at most so many of, in its own shape."""
        wide, high = self._cell
        rows = min(max(1, rows), MOST_CELLS)
        down = max(1, round(columns * wide * image.height / image.width / high))
        if down > rows:
            return max(1, min(columns, round(rows * high * image.width / image.height / wide))), rows
        return columns, down

    def _text(self, image: Any, columns: int, rows: int) -> str:
        """Return what puts a picture into so many columns and rows, and the cursor under it."""
        if self.way == "iterm2":
            # iterm2.com/documentation-images.html; textual-image does not have it.
            file = io.BytesIO()
            image.save(file, "PNG")
            data = base64.b64encode(file.getvalue()).decode()
            return (
                f"\x1b]1337;File=inline=1;size={file.tell()};width={columns};height={rows};preserveAspectRatio=1:{data}"
                "\x07\n"
            )
        if self.way == "blocks":
            return _blocks(image, columns, rows, true_colours=self._true_colours)
        from rich.console import Console

        written = _Written()
        made = self._library.images[self.way](image, columns, rows)
        with _standing_in(written, asks=False):
            Console(file=written, force_terminal=True, width=columns, height=rows).print(made, end="")
        self._image = made
        return written.getvalue()

    def _free(self, image: Any) -> None:
        """Let the terminal forget a picture that it keeps."""
        if image is not None and self.way == "kitty":
            written = _Written()
            with _standing_in(written, asks=False):
                image.cleanup()
            self._write(written.getvalue())

    def _write_quietly(self, text: str) -> None:
        # Without a terminal there is nobody to be shown it.
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def _true_colours() -> bool:
    """Say whether there are more than 256 colours, by Rich's rules. NO_COLOR is for text: coloured blocks are the picture."""
    from rich.console import Console

    return Console(file=_Written(), force_terminal=True).color_system == "truecolor"


def _blocks(image: Any, columns: int, rows: int, *, true_colours: bool) -> str:
    """Return a picture as half blocks, two pixels in a cell: the upper one's colour before, the lower one's behind.

    textual-image has them too; they take it twenty times as long, which steps have not.
    """
    from PIL import Image

    small = image.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BOX)
    if true_colours:
        data = small.tobytes()
        names = [f"2;{data[at]};{data[at + 1]};{data[at + 2]}" for at in range(0, len(data), 3)]
    else:
        palette = Image.new("P", (1, 1))
        palette.putpalette(_xterm_colours())
        names = [f"5;{16 + index}" for index in small.quantize(palette=palette, dither=Image.Dither.NONE).tobytes()]
    lines = []
    for row in range(0, 2 * rows, 2):
        upper, lower = (names[at * columns : (at + 1) * columns] for at in (row, row + 1))
        lines.append("".join(f"\x1b[38;{a};48;{b}m▀" for a, b in zip(upper, lower, strict=True)) + "\x1b[0m\n")
    return "".join(lines)


def _xterm_colours() -> list[int]:
    """Return the red, green and blue of xterm's colours 16 to 255: a cube, and greys."""
    levels = (0, 95, 135, 175, 215, 255)
    cube = [level for r in levels for g in levels for b in levels for level in (r, g, b)]
    return [*cube, *(level for grey in range(8, 248, 10) for level in (grey, grey, grey))]


# textual-image


class _Library:
    """What is used of textual-image."""

    def __init__(self) -> None:
        # It tells of questions that terminals do not answer.
        logging.getLogger("textual_image").setLevel(logging.CRITICAL)
        # Imported while stdout is a terminal, it asks that one.
        with _standing_in(None, asks=False):
            from textual_image import _terminal
            from textual_image.renderable import SixelImage, TGPImage, sixel, tgp

        self.images: dict[str, Any] = {"sixel": SixelImage, "kitty": TGPImage}
        self.sixel, self.kitty = sixel.query_terminal_support, tgp.query_terminal_support
        self._cell_size = _terminal.get_cell_size

    def cell(self) -> tuple[int, int]:
        """Return a cell's pixels across and down, as the terminal says or as a VT340 had them."""
        try:
            wide, high = self._cell_size()
        except Exception:  # Whatever a terminal answers.
            return CELL
        return (wide, high) if wide > 0 and high > 0 else CELL


def _library() -> _Library:
    try:
        return _Library()
    except ImportError:
        raise UsageError("pictures in a terminal need textual-image, which is not installed", INSTALL) from None


class _Written(io.StringIO):
    """What the library would write to a terminal."""

    def isatty(self) -> bool:
        return True


@contextmanager
def _standing_in(stream: TextIO | None, *, asks: bool) -> Iterator[None]:
    """Let the library, which knows the first stdout and stdin only, write to a stream, and ask its terminal alone.

    stdout belongs to results, and stdin to prompts.
    """
    out, keys = sys.__stdout__, sys.__stdin__
    with _keyboard(stream if asks else None) as keyboard:
        sys.__stdout__, sys.__stdin__ = stream, keyboard  # type: ignore[misc, assignment]
        try:
            yield
        finally:
            sys.__stdout__, sys.__stdin__ = out, keys  # type: ignore[misc]


@contextmanager
def _keyboard(stream: TextIO | None) -> Iterator[TextIO | None]:
    """Give what a stream's terminal answers through; None where answers can't be told from what somebody types."""
    try:
        import fcntl  # noqa: F401
        import select
        import termios
        import tty
    except ImportError:
        yield None
        return
    opened = None
    try:
        if stream is None:
            raise OSError
        handle = stream.fileno()
        # In the background, reading a terminal stops a process.
        if os.tcgetpgrp(handle) != os.getpgrp():
            raise OSError
        opened = os.open(os.ttyname(handle), os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        before = termios.tcgetattr(opened)
    except (OSError, ValueError, termios.error):
        if opened is not None:
            os.close(opened)
        yield None
        return
    with os.fdopen(opened, encoding="utf-8") as keyboard:
        try:
            tty.setcbreak(opened, termios.TCSANOW)
            typed_ahead = bool(select.select([opened], [], [], 0)[0])
            yield None if typed_ahead else keyboard
        finally:
            termios.tcsetattr(opened, termios.TCSANOW, before)
