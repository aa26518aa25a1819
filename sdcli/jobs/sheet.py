"""The contact sheet of a grid: its pictures side by side, pixel for pixel, with what tells them apart at the edges.

Labels are written in Pillow's own font, which has little more than ASCII. A label with other characters is written in
the first known font of the system that has them all; what none has is written as its code, as in <U+732B>.
"""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec.structs import asdict

from sdcli.errors import BadInput, UsageError
from sdcli.jobs.grids import FILES, Axis, named
from sdcli.metadata import ours, png, xmp
from sdcli.record import SCHEMA
from sdcli.settings import is_unicode

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

Key = tuple[int, int, int]  # x, y, z, from 0
Size = tuple[int, int]  # width, height in pixels
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two outside
Side = Literal["left", "center", "right"]

MOST_PIXELS = 2**28
# What JPEG can hold, and many viewers show.
LONGEST_SIDE = 65_535

PAPER, INK, LINE, EMPTY = (247, 247, 245), (28, 28, 28), (200, 200, 198), (236, 236, 233)

# Of the font, in pixels; Pillow's own is 10 pixels from a capital's top to its foot at 14.
SMALLEST_FONT = 14
# A 512-pixel cell has labels of 21 pixels: they stay readable when the whole sheet is shown smaller.
CELL_TO_FONT = 24

# How far a label may widen what it stands at (in widths of the font), and heighten it (in lines).
WIDEST_COLUMN, WIDEST_SIDE, WIDEST_TITLE = 8, 12, 24
MOST_LINES = 4

# Looked for by file name in the system's folders of fonts, where Pillow's own lacks a character.
SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf", "segoeui.ttf",
    "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "SourceHanSans.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf", "FreeSans.ttf", "unifont.otf", "unifont.ttf",
)  # fmt: skip


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """A text on the sheet: whose it is (`title`, an axis's letter, `cell`), what it says in full, and how it is written.

    `box` holds all its ink. `lines` are the text as it is broken, spelled and shortened; `font` is None for Pillow's own,
    `font_size` in pixels.
    """

    kind: str
    text: str
    lines: tuple[str, ...]
    box: Box
    align: Side
    font: str | None
    font_size: int


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Where all is on a sheet: pictures by their place in the grid, frames of those that are not there, and labels."""

    size: Size
    pictures: Mapping[Key, Box]
    frames: Mapping[Key, Box]
    labels: tuple[Label, ...]


class Drawn(msgspec.Struct, frozen=True, kw_only=True):
    """What the sheet's record says of a cell. `pixels` is the SHA-256 of its picture's, `path` best as seen from the
    sheet's folder; `error` is the slug of what failed. What does not apply is None."""

    x: int
    y: int
    z: int
    id: str | None
    path: str | None
    seed: int | None
    pixels: str | None
    error: str | None = None


def layout(axes: Sequence[Axis], cells: Mapping[Key, Size | str], *, title: str) -> Layout:
    """Return where all is on the sheet of cells that have these sizes, or a text that says why they have no picture.

    Columns are as wide, and rows as high, as the largest that stands in them; blocks of z stand in rows so that the
    sheet is nearest to a square. Labels that would look the same, cut off before they differ, are numbered. Raises
    UsageError for a sheet that is too large.
    """
    by_letter = {axis.letter: axis for axis in axes}
    labels = {letter: by_letter[letter].labels if letter in by_letter else ("",) for letter in ("x", "y", "z")}
    sizes = [size for size in cells.values() if not isinstance(size, str)]
    font_size = max(SMALLEST_FONT, median_low(min(size) for size in sizes) // CELL_TO_FONT if sizes else 0)
    style = _Style(font_size)

    def made() -> list[_Block]:
        return [
            _Block(style, labels["x"], labels["y"], heading, z, cells, sizes) for z, heading in enumerate(labels["z"])
        ]

    blocks = made()
    if alike := _alike(blocks):
        labels |= {letter: tuple(f"{i}: {text}" for i, text in enumerate(labels[letter], 1)) for letter in alike}
        blocks = made()
    columns = _columns([block.size for block in blocks], style.apart)
    widths = [max(block.size[0] for block in blocks[i::columns]) for i in range(columns)]
    starts = range(0, len(blocks), columns)
    heights = [max(block.size[1] for block in blocks[i : i + columns]) for i in starts]

    placed = _Placed(style)
    top = left = style.margin
    width = sum(widths) + style.apart * (columns - 1)
    if title.strip():
        text = _Text(title, style.title)
        width = max(width, min(text.natural, WIDEST_TITLE * style.title))
        lines = text.wrapped(width, MOST_LINES)
        placed.label("title", text, lines, (left, top, left + width, top + text.high(lines)), "left")
        top += text.high(lines) + style.margin
    for row, start in enumerate(starts):
        across = left
        for column, block in enumerate(blocks[start : start + columns]):
            block.place(placed, across, top)
            across += widths[column] + style.apart
        top += heights[row] + style.apart
    size = (width + 2 * style.margin, top - style.apart + style.margin)
    if size[0] * size[1] > MOST_PIXELS or max(size) > LONGEST_SIDE:
        raise UsageError(
            f"the sheet would have {size[0]:,} x {size[1]:,} pixels",
            f"{MOST_PIXELS:,} in all and {LONGEST_SIDE:,} a side at most: give the axes fewer values, or smaller pictures",
        )
    return Layout(size=size, pictures=placed.pictures, frames=placed.frames, labels=tuple(placed.labels))


def sheet(axes: Sequence[Axis], pictures: Mapping[Key, Image | Path | str], *, title: str) -> Image:
    """Return the contact sheet (RGB): column labels above, row labels at the left, a block for each value of z.

    A cell is a picture, or the path of one, which is open only while it is looked at; a text says why there is no
    picture, and so does a key that is missing. Raises UsageError for a sheet that is too large, and BadInput for a path
    that is no picture.
    """
    from PIL import Image, ImageDraw

    sizes: dict[Key, Size | str] = {}
    for key, picture in pictures.items():
        if isinstance(picture, str):
            sizes[key] = picture
        else:
            with _opened(picture) as image:
                sizes[key] = image.size
    plan = layout(axes, sizes, title=title)
    canvas = Image.new("RGB", plan.size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for left, top, right, bottom in plan.frames.values():
        draw.rectangle((left, top, right - 1, bottom - 1), fill=EMPTY, outline=LINE)
    for key, (left, top, right, bottom) in plan.pictures.items():
        # Outside of the picture, so that one as light as the paper has an edge.
        draw.rectangle((left - 1, top - 1, right, bottom), outline=LINE)
        source = pictures[key]
        assert not isinstance(source, str)
        with _opened(source) as image:
            canvas.paste(image.convert("RGB"), (left, top))
    for label in plan.labels:
        canvas.paste(INK, label.box, _mask(label))
    return canvas


def record(prompt: str, axes: Sequence[Axis], cells: Sequence[Drawn], versions: Mapping[str, str]) -> dict[str, Any]:
    """Return the sheet's own record, as JSON has it: the axes in full, and of each cell where its picture is.

    Files are in it by their names, without folders.
    """
    return {
        "schema": SCHEMA,
        "kind": "grid",
        "prompt": prompt,
        "axes": [{**asdict(axis), "values": _plain(axis.field, axis.values)} for axis in axes],
        "cells": [asdict(cell) for cell in cells],
        "versions": dict(versions),
    }


def _plain(field: str, values: Sequence[Any]) -> list[Any]:
    """Return an axis's values as JSON has them."""
    plain: list[Any] = msgspec.to_builtins(list(values))
    if field in FILES:
        return [named(value) for value in plain]
    for value in plain:
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, dict):
                one.update({key: named(one[key]) for key in ("name", "image") if isinstance(one.get(key), str)})
    return plain


def encode(image: Image, record: Mapping[str, Any] | None, mark: Mapping[str, str] | None = None) -> bytes:
    """Return the sheet as PNG, with its record under the keyword that a picture's has; None: without.

    `mark` says in XMP that it was made by a model.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if record is not None:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        if not is_unicode(text):
            # A path that is no UTF-8: JSON can say it, PNG can't.
            text = json.dumps(record, allow_nan=False)
        if text.isascii():
            info.add_text(ours.KEYWORD, text)
        else:
            info.add_itxt(ours.KEYWORD, text)
    if mark is not None:
        info.add_itxt(xmp.PNG_KEYWORD, xmp.packet(dict(mark)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=png.COMPRESS_LEVEL)
    return buffer.getvalue()


@contextmanager
def _opened(picture: Image | Path) -> Iterator[Image]:
    if not isinstance(picture, Path):
        yield picture
        return
    from PIL import Image

    try:
        with Image.open(picture) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"{picture}: can't be put on the sheet: {error}") from error


# Where things are


class _Style:
    """Distances and sizes of fonts, in pixels."""

    def __init__(self, font_size: int) -> None:
        self.font = font_size
        self.heading = font_size * 9 // 8
        self.title = font_size * 5 // 4
        self.margin = font_size
        self.gap = max(6, font_size // 3)  # between cells, and between a label and what it stands at
        self.apart = font_size * 2  # between blocks


class _Placed:
    """What has its place on the sheet already."""

    def __init__(self, style: _Style) -> None:
        self.style = style
        self.pictures: dict[Key, Box] = {}
        self.frames: dict[Key, Box] = {}
        self.labels: list[Label] = []

    def label(self, kind: str, text: _Text, lines: tuple[str, ...], room: Box, align: Side, foot: bool = False) -> None:
        """Place a label in its room: in the middle of its height, or at its foot."""
        if not lines:
            return
        left, top, right, bottom = room
        # A single sign can be wider than its room: it is cut off there.
        wide, high = min(right - left, max(text.wide(line) for line in lines)), text.high(lines)
        left += {"left": 0, "center": (right - left - wide) // 2, "right": right - left - wide}[align]
        top = bottom - high if foot else top + (bottom - top - high) // 2
        self.labels.append(
            Label(
                kind=kind, text=text.said, lines=lines, box=(left, top, left + wide, top + high), align=align,
                font=text.font, font_size=text.size,
            )
        )  # fmt: skip


class _Block:
    """The cells of one z: its heading, the labels of its columns and rows, and the cells."""

    def __init__(
        self, style: _Style, columns: Sequence[str], rows: Sequence[str], heading: str, z: int,
        cells: Mapping[Key, Size | str], all_sizes: Sequence[Size],
    ) -> None:  # fmt: skip
        self.style, self.z = style, z
        self.heading = _Text(heading, style.heading)
        self.above = [_Text(label, style.font) for label in columns]
        self.beside = [_Text(label, style.font) for label in rows]
        self.reasons: dict[Key, _Text] = {}
        self.sizes: dict[Key, Size] = {}
        for y in range(len(rows)):
            for x in range(len(columns)):
                cell = cells.get((x, y, z), "not drawn")
                if isinstance(cell, str):
                    self.reasons[x, y, z] = _Text(cell, style.font)
                else:
                    self.sizes[x, y, z] = cell
        # Where a column or row has no picture at all, it is as large as the others.
        seen = self.sizes.values() or all_sizes or [(128, 128)]
        common = max(w for w, _ in seen), max(h for _, h in seen)
        self.widths = self._widths(common[0])
        self.above_lines = [t.wrapped(w, MOST_LINES) for t, w in zip(self.above, self.widths, strict=True)]
        self.above_high = max(t.high(lines) for t, lines in zip(self.above, self.above_lines, strict=True))
        self.heights = self._heights(common[1])
        self.beside_lines = [
            t.wrapped(WIDEST_SIDE * style.font, max(MOST_LINES, high // t.line))
            for t, high in zip(self.beside, self.heights, strict=True)
        ]
        self.side = max(
            (t.wide(line) for t, lines in zip(self.beside, self.beside_lines, strict=True) for line in lines), default=0
        )
        self.heights = [
            max(high, t.high(lines))
            for t, high, lines in zip(self.beside, self.heights, self.beside_lines, strict=True)
        ]
        # Where the first cell is, seen from the block's corner.
        across = self.side + style.gap if self.side else 0
        down = self.above_high + style.gap if self.above_high else 0
        width = across + sum(self.widths) + style.gap * (len(columns) - 1)
        if self.heading.natural:
            width = max(width, min(self.heading.natural, WIDEST_SIDE * style.heading))
        self.heading_lines = self.heading.wrapped(width, MOST_LINES)
        self.heading_high = self.heading.high(self.heading_lines)
        down += self.heading_high + style.gap if self.heading_high else 0
        self.first = across, down
        self.size = width, down + sum(self.heights) + style.gap * (len(rows) - 1)

    def _widths(self, common: int) -> list[int]:
        """Return the columns' widths: of each its widest picture's, or what its labels need to end lines at words."""
        widths = [0] * len(self.above)
        for (x, _, _), (width, _) in self.sizes.items():
            widths[x] = max(widths[x], width)
        widths = [width or common for width in widths]
        least, most = 2 * self.style.font, WIDEST_COLUMN * self.style.font
        texts = [(x, text, 0) for x, text in enumerate(self.above)]
        texts += [(x, text, 2 * self.style.gap) for (x, _, _), text in self.reasons.items()]
        for x, text, around in texts:
            if text.natural:
                widths[x] = max(widths[x], min(max(text.longest, least), most) + around)
        return widths

    def _heights(self, common: int) -> list[int]:
        """Return the rows' heights: of each its highest picture's, or what the texts in its empty cells need."""
        heights = [0] * len(self.beside)
        for (_, y, _), (_, height) in self.sizes.items():
            heights[y] = max(heights[y], height)
        heights = [height or common for height in heights]
        for (x, y, _), text in self.reasons.items():
            lines = text.wrapped(self.widths[x] - 2 * self.style.gap, MOST_LINES)
            heights[y] = max(heights[y], text.high(lines) + 2 * self.style.gap)
        return heights

    def place(self, placed: _Placed, left: int, top: int) -> None:
        """Place the block with its corner at `left`, `top`."""
        gap = self.style.gap
        placed.label(
            "z", self.heading, self.heading_lines, (left, top, left + self.size[0], top + self.heading_high), "left"
        )
        x0, y0 = left + self.first[0], top + self.first[1]
        across = x0
        for text, lines, width in zip(self.above, self.above_lines, self.widths, strict=True):
            room = (across, y0 - gap - self.above_high, across + width, y0 - gap)
            placed.label("x", text, lines, room, "center", foot=True)
            across += width + gap
        down = y0
        for y, (text, lines, height) in enumerate(zip(self.beside, self.beside_lines, self.heights, strict=True)):
            placed.label("y", text, lines, (left, down, left + self.side, down + height), "right")
            across = x0
            for x, width in enumerate(self.widths):
                self._cell(placed, (x, y, self.z), (across, down, across + width, down + height))
                across += width + gap
            down += height + gap

    def _cell(self, placed: _Placed, key: Key, slot: Box) -> None:
        left, top, right, bottom = slot
        if key in self.sizes:
            width, height = self.sizes[key]
            left, top = left + (right - left - width) // 2, top + (bottom - top - height) // 2
            placed.pictures[key] = (left, top, left + width, top + height)
            return
        placed.frames[key] = slot
        gap, text = self.style.gap, self.reasons[key]
        room = (left + gap, top + gap, right - gap, bottom - gap)
        lines = text.wrapped(room[2] - room[0], (room[3] - room[1]) // text.line)
        placed.label("cell", text, lines, room, "center")


def _alike(blocks: Sequence[_Block]) -> set[str]:
    """Return the axes of which some labels look the same, since they were cut off before they differ."""
    drawn = [("z", [b.heading.said for b in blocks], [b.heading_lines for b in blocks])]
    for block in blocks:
        drawn.append(("x", [text.said for text in block.above], block.above_lines))
        drawn.append(("y", [text.said for text in block.beside], block.beside_lines))
    return {letter for letter, texts, lines in drawn if len(set(lines)) < len(set(texts))}


def _columns(sizes: Sequence[Size], apart: int) -> int:
    """Return in how many columns of blocks the sheet is nearest to a square."""

    def unlike(columns: int) -> float:
        width = sum(max(w for w, _ in sizes[i::columns]) + apart for i in range(columns))
        starts = range(0, len(sizes), columns)
        height = sum(max(h for _, h in sizes[i : i + columns]) + apart for i in starts)
        return abs(math.log(width / height))

    # Of two that are alike, the wider: screens are.
    return min(range(len(sizes), 0, -1), key=unlike)


# Texts


class _Text:
    """A text in the font that it will be written in. Widths and heights are in pixels; an empty text has none."""

    def __init__(self, text: str, size: int) -> None:
        self.said, self.size = text, size
        self.font, self.shown = _spelled(text, SYSTEM_FONTS)
        ascent, descent = _face(self.font, size).getmetrics()
        self.line = ascent + descent
        self.natural = self.wide(self.shown)
        self.longest = max((self.wide(part.rstrip()) for part in _parts(self.shown)), default=0)

    def wide(self, line: str) -> int:
        return _extent(self.font, self.size, line)[1] if line else 0

    def high(self, lines: Sequence[str]) -> int:
        return self.line * len(lines)

    def wrapped(self, width: int, most: int) -> tuple[str, ...]:
        """Return the text in lines of that width, words broken where they must be; an ellipsis ends what is too long."""
        return _wrapped(self.font, self.size, self.shown, width, most)


@lru_cache(maxsize=4096)
def _wrapped(font: str | None, size: int, text: str, width: int, most: int) -> tuple[str, ...]:
    def fits(line: str) -> bool:
        return _extent(font, size, line.rstrip())[1] <= width

    lines = [""]

    def fill(text: str, *into: Callable[[str], list[str]]) -> None:
        """Add a text to the last line or the next; what fits in none goes there in smaller pieces."""
        if fits(lines[-1] + text):
            lines[-1] += text
        elif fits(text) or not into:
            lines.append(text)
        else:
            for piece in into[0](text):
                fill(piece, *into[1:])

    fill(text, _words, _parts, _signs)
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) > most:
        signs = _signs(lines[most - 1])
        while signs and not fits("".join(signs).rstrip() + "…"):
            signs.pop()
        lines = [*lines[: most - 1], "".join(signs).rstrip() + "…"]
    return tuple(lines)


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


def _parts(word: str) -> list[str]:
    """Return a word in the parts after which a long name may be broken (`dpm++2m-` `karras`); a code is one."""
    return re.findall(r"(?:<U\+[0-9A-F]+>|[^\s\-_/,;:<]+[\-_/,;:]*|.)\s*", word)


def _signs(text: str) -> list[str]:
    """Return a text in its signs: a letter with the marks on it is one."""
    signs: list[str] = []
    for char in text:
        if signs and (unicodedata.category(char).startswith("M") or "\u200d" in (char, signs[-1][-1])):
            signs[-1] += char
        else:
            signs.append(char)
    return signs


@cache
def _face(font: str | None, size: int) -> FreeTypeFont:
    """Return a font; OSError if the system has none of that name."""
    from PIL import ImageFont

    if font is not None:
        return ImageFont.truetype(font, size)
    face = ImageFont.load_default(size)
    assert isinstance(face, ImageFont.FreeTypeFont)
    return face


@lru_cache(maxsize=65536)
def _extent(font: str | None, size: int, line: str) -> tuple[int, int]:
    """Return where a line's ink begins, 0 or left of it, and how wide it is from there."""
    face = _face(font, size)
    left, _, right, _ = face.getbbox(line, anchor="ls")
    begin = min(0, math.floor(left))
    return begin, math.ceil(max(right, face.getlength(line))) - begin


@cache
def _has(font: str | None, char: str) -> bool:
    """Whether a font has a character: it is not drawn as the font draws what no font has."""
    face = _face(font, SMALLEST_FONT)
    return char == " " or bytes(face.getmask(char)) != bytes(face.getmask("\U0010ffff"))


@cache
def _there(font: str) -> bool:
    try:
        _face(font, SMALLEST_FONT)
    except OSError:
        return False
    return True


@lru_cache(maxsize=4096)
def _spelled(text: str, fonts: Sequence[str]) -> tuple[str | None, str]:
    """Return the font that has the most of a text's characters, and the text with codes for those that it lacks."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    chars = {c for c in text if not _is_invisible(c)}
    font, lacks = None, {c for c in chars if not _has(None, c)}
    for other in fonts if lacks else ():
        if not _there(other):
            continue
        missing = {c for c in chars if not _has(other, c)}
        if len(missing) < len(lacks):
            font, lacks = other, missing
        if not lacks:
            break
    return font, "".join(f"<U+{ord(c):04X}>" if c in lacks or _is_invisible(c) else c for c in text)


def _is_invisible(char: str) -> bool:
    """Whether a character would not be seen, or would turn the others round. Joiners spell words in some scripts."""
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn") and char not in "\u200c\u200d"


def _mask(label: Label) -> Image:
    """Return a label's ink, as large as its box: nothing is drawn outside of it."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = label.box
    mask = Image.new("L", (right - left, bottom - top))
    draw = ImageDraw.Draw(mask)
    face = _face(label.font, label.font_size)
    ascent, descent = face.getmetrics()
    for i, line in enumerate(label.lines):
        begin, wide = _extent(label.font, label.font_size, line)
        spare = max(0, mask.width - wide)
        across = {"left": 0, "center": spare // 2, "right": spare}[label.align]
        draw.text((across - begin, i * (ascent + descent) + ascent), line, fill=255, font=face, anchor="ls")
    return mask
