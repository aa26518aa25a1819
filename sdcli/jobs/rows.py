"""Reads prompt files (text, CSV, TSV, JSON Lines, JSON) a row at a time, and says of a bad row what is wrong with it."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import re
import shlex
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from typing import IO, Any, BinaryIO, NamedTuple

import msgspec

from sdcli import settings
from sdcli.errors import BadInput, CannotCreateOutput, InputMissing, OutputFailed, UsageError, nearest
from sdcli.options import options_of, plain_type
from sdcli.request import GenerationRequest

FORMATS = ("text", "csv", "tsv", "jsonl", "json")
ENDINGS = {".txt": "text", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}
# What a row may set besides the request's own fields; all others belong to the whole run.
OF_A_ROW = ("count", "name", "tags", "output", "format")
# Bytes of a row's text, whatever the format: a row is held in memory, a file never is.
LIMIT = 2**20
DEPTH = 64

_BLOCK = 2**16
_TOO_LONG = "longer than 1 MiB"
_TOO_DEEP = f"nested deeper than {DEPTH}"
_NO_HEADER = "no header: the first line names the columns, prompt among them"
# Rows that nobody sees are not to be missed in silence.
_NO_MORE = " (nothing after it was read)"
_BOM = codecs.BOM_UTF8
# UTF-16's mark for little ends is the start of UTF-32's.
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
# Where a text line's prompt ends: at `--` and a letter of any script, at the start or after a blank.
_FLAGS_BEGIN = re.compile(r"(?:^|\s)--(?=[^\W\d_])")
_FLAG = re.compile(r"--?[^\W\d_]")
# What an object begins with; a dynamic prompt may begin with {red|blue}.
_OBJECT = re.compile(rb"\s*\{\s*[\"}]")
_JSON_BLANKS = " \t\n\r"
_JSON_SIGN = re.compile(f"[^{_JSON_BLANKS}]")
# A byte that is no UTF-8, as `surrogateescape` decodes it.
_STRAY_BYTE = re.compile("[\udc80-\udcff]")
# Every blank that str.split() knows: flags are split alike with quotes and without.
_BLANKS = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
# Fields whose outer blanks in a cell are their own.
_FREE_TEXT = ("prompt", "negative_prompt")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row: the file as it was named (`stdin` for -), the line where the row begins (from 1), and what it gives.

    `values` go by the names that the file uses; by field names where a text line's flags gave them. They are text, or
    what JSON gave; what is empty or null is left out. `prompt` is always there and text, `tags` is a dict of text to
    text, `preset` a list of text. Names are checked, values are not: that is `settings.merge`'s.
    """

    file: str
    line: int
    values: dict[str, Any]


class BadRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that can't be used, or the fault after which a file can't be read on: why, in one printable line."""

    file: str
    line: int
    reason: str


class _Fault(Exception):
    """What is wrong with a row, where that is not the line that it begins at, and whether reading ends there."""

    def __init__(self, reason: str, line: int | None = None, *, last: bool = False) -> None:
        super().__init__(reason + _NO_MORE * last)
        self.line = line
        self.last = last


def format_of(path: str, asked: str | None) -> str:
    """Return a file's format: the one asked for, else what its ending says, else text.

    Raises UsageError for one that is not in FORMATS.
    """
    if asked is None:
        return ENDINGS.get(os.path.splitext(path)[1].lower(), "text")
    if asked not in FORMATS:
        raise UsageError(f"there is no input format {asked}{nearest(asked, FORMATS)}", f"one of {', '.join(FORMATS)}")
    return asked


class Source:
    """A prompt file that can be read again and again from its start, in constant memory.

    `path` is a file, or - for stdin. What is no regular file (stdin, a FIFO) is copied to a temporary file without a
    name. Raises InputMissing where there is none, BadInput where it can't be read, CannotCreateOutput and OutputFailed
    where it can't be copied, UsageError for an unknown format.
    """

    def __init__(self, path: str, input_format: str | None = None) -> None:
        self.file = "stdin" if path == "-" else path
        self.format = format_of(path, input_format)
        self._path = path
        self._copy: IO[bytes] | None = None
        if path == "-":
            if sys.stdin is None or sys.stdin.closed:
                raise BadInput("stdin is closed", "pipe the prompts in, or name a file")
            self._copy = _copied(sys.stdin.buffer, self.file)
            return
        with self._opened() as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                self._copy = _copied(stream, self.file)

    def rows(self) -> Iterator[Row | BadRow]:
        """Yield the rows from the first, good and bad. Several readings may be under way, each at its own place."""
        with self._opened() as stream:
            try:
                yield from self._rows(stream)
            except OSError as error:
                raise _unreadable(self.file, error) from error

    def close(self) -> None:
        """Give the temporary file back, where there is one."""
        if self._copy is not None:
            self._copy.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, stream: io.BufferedReader) -> Iterator[Row | BadRow]:
        start = stream.peek(4)[:4]
        if other := _other_encoding(start):
            yield BadRow(file=self.file, line=1, reason=other)
            return
        if start.startswith(_BOM):
            stream.read(len(_BOM))
        if self.format in ("text", "jsonl"):
            yield from from_lines(lines_of(stream), self.file, self.format)
        elif self.format == "json":
            yield from _of_json(stream, self.file)
        else:
            yield from _of_table(stream, self.file, "\t" if self.format == "tsv" else ",")

    def _opened(self) -> io.BufferedReader:
        if self._copy is not None:
            return io.BufferedReader(_Again(self._copy), _BLOCK)
        try:
            return io.BufferedReader(open(self._path, "rb", buffering=0), _BLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise InputMissing(
                f"{self.file} is not there", "check the path; a prompt of one's own goes to sdcli generate"
            ) from None
        except IsADirectoryError:
            raise BadInput(f"{self.file} is a folder", "name the files in it") from None
        except (OSError, ValueError) as error:
            raise _unreadable(self.file, error) from error


class _Again(io.RawIOBase):
    """An open file from its start, with a place of its own in it; closing it leaves the file open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._at)
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _copied(stream: BinaryIO, file: str) -> IO[bytes]:
    try:
        copy = tempfile.TemporaryFile()
    except OSError as error:
        raise CannotCreateOutput(f"no temporary file for {file}: {error.strerror}", "set TMPDIR to a folder") from error
    try:
        for block in _blocks(stream, file):
            copy.write(block)
        copy.flush()
    except BaseException as error:
        with suppress(OSError):  # What is left to write is tried again, and fails again.
            copy.close()
        if isinstance(error, OSError):
            raise OutputFailed(
                f"{file} was not copied to a temporary file: {error.strerror}", "free some space, or set TMPDIR"
            ) from error
        raise
    return copy


def _blocks(stream: BinaryIO, file: str) -> Iterator[bytes]:
    try:
        while block := stream.read(_BLOCK):
            yield block
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: str, error: OSError | ValueError) -> BadInput:
    return BadInput(f"{file} can't be read: {getattr(error, 'strerror', None) or error}", "check the file")


# Reasons


def _bad(file: str, line: int, fault: _Fault) -> BadRow:
    return BadRow(file=file, line=fault.line or line, reason=_printable(_shown(str(fault), 400)))


def _shown(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _kind(value: Any) -> str:
    """Return what JSON calls a value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = ((str, "text"), (list, "an array"), (dict, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "a number")


def _nul(before: int) -> str:
    return f"a NUL character at byte {before + 1} of the line"


def _not_utf8(error: UnicodeDecodeError, before: int) -> str:
    return f"not UTF-8: {error.reason} at byte {before + 1} of the line"


def _other_encoding(start: bytes) -> str | None:
    for mark, name in _OTHER_MARKS:
        if start.startswith(mark):
            return f"{name}, not UTF-8: convert it, for example with iconv"
    return None


# Names


@cache
def _fields() -> dict[str, tuple[str, bool]]:
    """Return every name that a row may use, the field that it means, and whether that belongs to the whole run."""
    known = {name: (o.field, not of_a_row(o.record, o.field)) for name, o in settings.names().items()}
    return known | {name: (name, False) for name in ("prompt", "size", "preset")}


@cache
def _flags() -> dict[str, tuple[str, bool, bool | None]]:
    """Return every flag, the field that it fills, whether that belongs to the whole run, and a switch's value."""
    found: dict[str, tuple[str, bool, bool | None]] = {}
    for option in (o for record in settings.RECORDS for o in options_of(record)):
        run = not of_a_row(option.record, option.field)
        for flag in option.flags:
            switch = plain_type(option.type) is bool
            found[flag] = (option.field, run, True if switch else None)
            if switch and flag.startswith("--"):
                found[f"--no-{flag[2:]}"] = (option.field, run, False)
    for flag in ("--size", "--set", "--preset"):
        found[flag] = (flag[2:], False, None)
    found["-p"] = found["--preset"]
    return found


def of_a_row(record: type, field: str) -> bool:
    """Say whether a row may set a field; the others are of the whole run."""
    return record is GenerationRequest or field in OF_A_ROW


def _field(name: str) -> str:
    """Return the field that a name means; a _Fault where a row may not set it."""
    plain = name.replace("-", "_")
    field, run = _fields().get(plain, (None, False))
    if run:
        raise _Fault(f"{name} is set for the whole run, not for a row")
    if field is None:
        raise _Fault(f"there is no field {_shown(name)}{_meant(plain[:80])}")
    return field


@lru_cache(1024)
def _meant(name: str) -> str:
    """Say which field, or flag, may be meant; kept, since what one row gets wrong a million may."""
    if len(name.strip("-")) < 3:
        return ""
    known = {flag: run for flag, (_, run, _) in _flags().items() if flag.startswith("--")}
    if not name.startswith("-"):
        known = {field: run for field, (_, run) in _fields().items()}
    return nearest(name, (n for n, run in known.items() if not run), 1)


class _Values:
    """A row's values as they are gathered: each field once, by whatever name."""

    def __init__(self) -> None:
        self._given: dict[str, Any] = {}
        self._fields: set[str] = set()

    def add(self, field: str, key: str, value: Any, *, by: str | None = None) -> None:
        """Add a field's value under `key`; `by` is how it was written, where that is another name."""
        if field in self._fields:
            raise _Fault(f"{by or key} is given twice")
        self._fields.add(field)
        self._given[key] = value

    def whole(self) -> dict[str, Any]:
        """Return all of them, if they can be a row's."""
        if "prompt" not in self._fields:
            raise _Fault("no prompt")
        if "size" in self._fields:
            for side in ("width", "height"):
                if side in self._fields:
                    raise _Fault(f"{side} is given twice: by size too")
        return self._given


def _from_text(field: str, text: str) -> Any:
    """Return what a cell or `--set` gives: text, but for names of presets and JSON that holds tags."""
    if field == "preset":
        return [name.strip() for name in text.split(",")]
    return _tags(_Json().whole(text)) if field == "tags" else text


def _tags(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _Fault(f"tags is an object of text, not {_kind(value)}")
    for name, text in value.items():
        if not isinstance(text, str):
            raise _Fault(f"the tag {_shown(name)} is text, not {_kind(text)}")
    return value


# Text


def lines_of(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their ends as they come; of one that is too long, as much as shows it."""
    while line := stream.readline(LIMIT + 2):
        yield line
        if len(line) == LIMIT + 2 and not line.endswith(b"\n"):
            for _ in _rest(stream):
                pass


def _rest(stream: BinaryIO) -> Iterator[bytes]:
    """Read to the line's end."""
    while piece := stream.readline(_BLOCK):
        yield piece
        if piece.endswith(b"\n"):
            return


def from_lines(lines: Iterator[bytes], file: str, input_format: str | None) -> Iterator[Row | BadRow]:
    """Yield the rows of lines (such as `lines_of` gives) as they come, never asking for one beyond the row.

    `input_format` is text or jsonl; with None a line that begins like a JSON object is JSON, and any other text.
    A bad line is told, and the next one is read. Raises UsageError for another format.
    """
    if input_format not in ("text", "jsonl", None):
        raise UsageError(f"{input_format} can't be read a line at a time", "text and jsonl can")
    return _from_lines(lines, file, input_format)


def _from_lines(lines: Iterator[bytes], file: str, input_format: str | None) -> Iterator[Row | BadRow]:
    numbered = enumerate(lines, 1)
    always, perhaps = input_format == "jsonl", input_format is None
    parser = _Json()
    values: dict[str, Any] | None
    for number, line in numbered:
        try:
            if number == 1:
                line = line.removeprefix(_BOM)
                if other := _other_encoding(line):
                    raise _Fault(other)
            if always or (perhaps and _OBJECT.match(line)):
                text = _decoded(line)
                values = _of_object(parser.whole(text)) if text.strip() else None
            else:
                values = _of_text(line, number, numbered)
        except _Fault as fault:
            yield _bad(file, number, fault)
            continue
        if values is not None:
            yield Row(file=file, line=number, values=values)


def _content(line: bytes) -> bytes:
    """Return a line without its end."""
    if line.endswith(b"\n"):
        return line[:-2] if line.endswith(b"\r\n") else line[:-1]
    return line


def _decoded(line: bytes) -> str:
    """Return a line's text without its end; a carriage return in it is a blank. A _Fault for what is no text."""
    line = _content(line)
    if len(line) > LIMIT:
        raise _Fault(_TOO_LONG)
    if b"\0" in line:
        raise _Fault(_nul(line.index(0)))
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise _Fault(_not_utf8(error, error.start)) from None
    return text.replace("\r", " ") if "\r" in text else text


def _of_text(line: bytes, number: int, numbered: Iterator[tuple[int, bytes]]) -> dict[str, Any] | None:
    """Return a text row's values, None for a blank line or a comment."""
    text = (_joined(line, number, numbered) if b"\\" in line else _decoded(line)).strip()
    if not text or text[0] == "#":
        return None
    if "--" in text and (flags := _FLAGS_BEGIN.search(text)):
        return _with_flags(text[: flags.start()].rstrip(), text[flags.start() :])
    return {"prompt": text}


def _joined(line: bytes, number: int, numbered: Iterator[tuple[int, bytes]]) -> str:
    r"""Return a line and those that it goes on in: one that ends in `\` does, joined without it and the line's end.

    An even number of them ends the row and stays as it is, since a prompt is literal; of an odd number the last one
    joins. A comment ends with its line.
    """
    pieces: list[str] = []
    fault: _Fault | None = None
    first, size = number, 0
    while True:
        end = _content(line)
        goes_on = len(end) <= LIMIT and (len(end) - len(end.rstrip(b"\\"))) % 2 == 1
        try:
            piece = _decoded(line)
            size += len(end)
            if size > LIMIT:
                raise _Fault(_TOO_LONG, first)
            if not pieces and piece.lstrip().startswith("#"):
                return piece
            pieces.append(piece[:-1] if goes_on else piece)
        except _Fault as error:
            # The row is read to its end, so that what is left of it is not taken for a row.
            fault = fault or _Fault(str(error), error.line or number)
        if not goes_on:
            break
        try:
            number, line = next(numbered)
        except StopIteration:
            fault = fault or _Fault(r"the line goes on after its \, and there is none", number)
            break
    if fault is not None:
        raise fault
    return "".join(pieces)


def _with_flags(prompt: str, text: str) -> dict[str, Any]:
    if not prompt:
        raise _Fault("no prompt")
    values = _Values()
    values.add("prompt", "prompt", prompt)
    lists: dict[str, list[str]] = {}
    known, words, at = _flags(), _split(text), 0
    while at < len(words):
        word = words[at]
        at += 1
        # The first word is a long flag: `text` begins with one.
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name not in known and word[:2] in known:
            name, equals, value = word[:2], "=", word[2:]  # -s5
        if name not in known:
            raise _Fault(_stray(name, word))
        field, run, switch = known[name]
        if run:
            raise _Fault(f"{name} is set for the whole run, not for a row")
        if switch is not None:
            if equals:
                raise _Fault(f"{name} takes no value")
            values.add(field, field, switch, by=name)
            continue
        if not equals:
            if at == len(words) or words[at] in known or (words[at].startswith("--") and _FLAG.match(words[at])):
                raise _Fault(f"{name} has no value")
            value = words[at]
            at += 1
        if field == "preset" or (field in settings.names() and settings.names()[field].many):
            lists.setdefault(field, []).append(value)
        elif name == "--set":
            _assign(values, value)
        else:
            values.add(field, field, value, by=name)
    for field, several in lists.items():
        values.add(field, field, several)
    return values.whole()


def _assign(values: _Values, text: str) -> None:
    named, equals, value = text.partition("=")
    if not equals or not named.strip():
        raise _Fault(f"--set wants FIELD=VALUE, not {_shown(text)}")
    named = named.strip()
    field = _field(named)
    values.add(field, field, _from_text(field, value), by=named)


def _split(text: str) -> list[str]:
    if not ('"' in text or "'" in text or "\\" in text):
        return text.split()
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = _BLANKS, True, ""
    try:
        return list(lexer)
    except ValueError as error:
        raise _Fault("a quote is not closed" if "quot" in str(error) else r"the last \ has nothing after it") from None


def _stray(name: str, word: str) -> str:
    if not _FLAG.match(word):
        return f"no option takes {_shown(word)}; a value with blanks stands in quotes"
    field, run = _fields().get(name.lstrip("-").replace("-", "_"), (None, True))
    if field not in (None, "prompt") and not run:
        return f"there is no option {name}; write --set {field}=VALUE"
    return f"there is no option {_shown(name)}{_meant(name[:80])}"


# CSV and TSV


class _Column(NamedTuple):
    name: str
    field: str
    tag: str | None = None


class _Feed:
    """Gives lines to the csv module, and keeps what can't be asked of it: where a row began, and what is wrong there."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._size = 0
        self.line = 0
        self.first = 0
        self.ended = False
        self.fault: _Fault | None = None

    def begin(self) -> None:
        """Begin a row."""
        self.first, self._size, self.fault = self.line + 1, 0, None

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(LIMIT + 2)
        if not line:
            self.ended = True
            raise StopIteration
        self.line += 1
        self._size += len(line)
        if self._size > LIMIT:
            self._check_size(line)
        try:
            return _decoded(line) + "\n"
        except _Fault as fault:
            self.fault = self.fault or _Fault(str(fault), self.line)
            # The module goes on counting quotes, so that the next row is found.
            return _content(line).replace(b"\0", b"?").replace(b"\r", b" ").decode(errors="replace") + "\n"

    def _check_size(self, line: bytes) -> None:
        if len(_content(line)) > LIMIT:
            quotes = line.count(b'"')
            if not line.endswith(b"\n"):
                quotes += sum(piece.count(b'"') for piece in _rest(self._stream))
            # A quote that is open where the line ends hides where the next row begins.
            raise _Fault(_TOO_LONG, self.line, last=(quotes % 2 == 1) == (self.line == self.first))
        if self.line > self.first:
            raise _Fault(f"{_TOO_LONG}: is a quote not closed?", last=True)


def _of_table(stream: BinaryIO, file: str, delimiter: str) -> Iterator[Row | BadRow]:
    # The module has one limit for the whole process: it is never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), LIMIT))
    feed = _Feed(stream)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    columns: list[_Column] | None = None
    while True:
        feed.begin()
        try:
            cells = _cells(reader, feed)
            if cells is None:
                break
            # A blank line, or what a spreadsheet makes of one.
            if not cells or (columns is not None and not any(map(str.strip, cells))):
                continue
            if columns is None:
                columns = _header(cells, delimiter)
                continue
            values = _of_cells(columns, cells)
        except _Fault as fault:
            if columns is None and not fault.last:
                fault = _Fault(str(fault), fault.line, last=True)
            yield _bad(file, feed.first, fault)
            if fault.last:
                return
            continue
        yield Row(file=file, line=feed.first, values=values)
    if columns is None:
        yield _bad(file, 1, _Fault(_NO_HEADER))


def _cells(reader: Iterator[list[str]], feed: _Feed) -> list[str] | None:
    """Return the next row's cells, None at the end."""
    try:
        cells = next(reader, None)
    except csv.Error as error:
        if feed.ended:
            raise feed.fault or _Fault("a quote is not closed", last=True) from None
        raise feed.fault or _Fault(f"the quotes are wrong: {error}") from None
    if feed.fault is not None:
        raise feed.fault
    return cells


def _header(cells: list[str], delimiter: str) -> list[_Column]:
    names = [cell.strip() for cell in cells]
    if not any(names):
        raise _Fault("the header is empty")
    if len(names) == 1 and re.search(r"[,;|\t]", names[0]):
        wanted = "tabs" if delimiter == "\t" else "commas"
        raise _Fault(f"columns are separated by {wanted}, not as in {_shown(names[0])}")
    if not any(n.replace("-", "_") in _fields() or n.startswith("tags.") for n in names):
        if any(n.lower() in _fields() for n in names):
            raise _Fault("the header's names are written small, as in prompt,seed")
        raise _Fault(_NO_HEADER)
    columns: list[_Column] = []
    seen: set[tuple[str, str | None]] = set()
    for number, name in enumerate(names, 1):
        tag = name[len("tags.") :] if name.startswith("tags.") else None
        if not name or tag == "":
            raise _Fault(f"column {number} has no name")
        column = _Column(name, "tags" if tag else _field(name), tag)
        if (column.field, tag) in seen:
            raise _Fault(f"{_shown(name)} is given twice")
        seen.add((column.field, tag))
        columns.append(column)
    if ("prompt", None) not in seen:
        raise _Fault("no column is called prompt")
    return columns


def _of_cells(columns: list[_Column], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(columns):
        raise _Fault(f"{len(cells)} cell{'s' * (len(cells) != 1)}, and the header has {len(columns)}")
    values = _Values()
    tags: dict[str, str] = {}
    for (name, field, tag), cell in zip(columns, cells, strict=True):
        text = cell.strip()
        if not text:
            continue
        if field == "tags":
            for one, said in {tag: cell}.items() if tag else _from_text(field, text).items():
                if one in tags:
                    raise _Fault(f"the tag {_shown(one)} is given twice")
                tags[one] = said
        else:
            values.add(field, name, cell if field in _FREE_TEXT else _from_text(field, text))
    if tags:
        values.add("tags", "tags", tags)
    return values.whole()


# JSON


class _Json:
    """JSON as a row may have it. What the decoder would let pass is gathered, so that the text is read to its end."""

    def __init__(self) -> None:
        self._faults: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_float=self._float, parse_int=self._int, parse_constant=self._constant
        )

    def read(self, text: str, at: int) -> tuple[Any, int]:
        """Return the value that begins at `at`, and where it ends. Raises JSONDecodeError."""
        self._faults.clear()
        try:
            return self._decoder.raw_decode(text, at)
        except RecursionError:
            raise _Fault(_TOO_DEEP) from None

    def whole(self, text: str) -> Any:
        """Return the value that a text is; a _Fault where it is none."""
        try:
            value, end = self.read(text, len(text) - len(text.lstrip(_JSON_BLANKS)))
            if rest := text[end:].lstrip(_JSON_BLANKS):
                raise json.JSONDecodeError("Extra data", text, len(text) - len(rest))
        except json.JSONDecodeError as error:
            raise _Fault(_not_json(error, error.pos)) from None
        self.check(value, text)
        return value

    def check(self, value: Any, text: str) -> None:
        """Refuse what was wrong in the value that was read last; `text` is what it was read from."""
        for fault in self._faults:
            raise _Fault(fault)
        if text.count("{") + text.count("[") > DEPTH and _deeper(value, DEPTH):
            raise _Fault(_TOO_DEEP)
        if "\\u" in text:
            for one in _texts(value):
                if "\0" in one:
                    raise _Fault("a NUL character")
                if not settings.is_unicode(one):
                    raise _Fault("a lone surrogate, half of a character")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
            self._faults.append(f"{_shown(twice)} is given twice")
        return found

    def _float(self, text: str) -> float:
        number = float(text)
        if math.isinf(number):
            self._faults.append(f"the number {_shown(text)} is too large")
        return number

    def _int(self, text: str) -> int:
        # Python refuses to read very long ones, for the time that it takes.
        if len(text) > 100:
            self._faults.append(f"the number {_shown(text)} is too large")
            return 0
        return int(text)

    def _constant(self, text: str) -> None:
        self._faults.append(f"{text} is no JSON number")


def _deeper(value: Any, depth: int) -> bool:
    """Whether arrays and objects stand in one another more than `depth` times."""
    level = [value]
    for _ in range(depth + 1):
        level = [v for v in level if isinstance(v, dict | list)]
        if not level:
            return False
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return True


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value:
            yield from _texts(inner)
        if isinstance(value, dict):
            for inner in value.values():
                yield from _texts(inner)


def _not_json(error: json.JSONDecodeError, before: int) -> str:
    said = error.msg.removesuffix(" at").rstrip(": ")
    return f"not JSON: {said[:1].lower()}{said[1:]} at column {before + 1}"


def _of_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Fault(f"a row is an object, not {_kind(value)}")
    values = _Values()
    for name, said in value.items():
        field = _field(name)
        if said is not None:
            values.add(field, name, _shaped(field, name, said))
    return values.whole()


def _shaped(field: str, name: str, value: Any) -> Any:
    if field == "tags":
        return _tags(value)
    if field == "preset":
        names = _from_text(field, value) if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise _Fault(f"preset is text or an array of text, not {_kind(value)}")
        return names
    if field == "prompt" and not isinstance(value, str):
        raise _Fault(f"prompt is text, not {_kind(value)}")
    if isinstance(value, dict | list) and not (field in settings.names() and settings.names()[field].read):
        raise _Fault(f"{name} is a single value, not {_kind(value)}")
    return value


class _Window:
    """The part of a JSON file that is held: where reading is in it, and where it is in the file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        # Bytes that are no UTF-8 become lone surrogates: a bad row is told, and the next one is found.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._at = 0
        self._ended = False
        self._strays = False
        # How far lines were counted, and what of the first line came before the text.
        self._counted, self._line = 0, 1
        self._characters, self._bytes = 0, 0

    def sign(self) -> str:
        """Go to the next character that is no blank, and return it; nothing at the end."""
        while True:
            if found := _JSON_SIGN.search(self._text, self._at):
                self._at = found.start()
                return found[0]
            self._at = len(self._text)
            if self._ended:
                return ""
            self._more(_BLOCK)

    def skip(self) -> None:
        """Go on by a character."""
        self._at += 1

    def line(self, at: int | None = None) -> int:
        """Return the line where reading is, or that of a place after it."""
        at = self._at if at is None else at
        self._line += self._text.count("\n", self._counted, at)
        self._counted = at
        return self._line

    def value(self, parser: _Json) -> Any:
        """Return the value that begins here, and go to its end. A _Fault where there is none, or no good one."""
        size, before = _BLOCK, None
        while True:
            try:
                value, end = parser.read(self._text, self._at)
                # A number may go on where the text ends.
                if end < len(self._text) or self._ended:
                    break
            except json.JSONDecodeError as error:
                # What fails for being cut off fails elsewhere when there is more of it; a string fails at its start.
                same = (error.msg, error.pos - self._at)
                if self._ended or (same == before and not error.msg.startswith("Unterminated")):
                    raise self._fault(error) from None
                before = same
            except _Fault as fault:
                raise _Fault(str(fault), last=True) from None
            if len(self._text) - self._at > LIMIT:
                raise _Fault(_TOO_LONG, last=True)
            self._more(size)
            size *= 2
        start, self._at = self._at, end
        if end - start > LIMIT:
            raise _Fault(_TOO_LONG)
        text = self._text[start:end]
        if self._strays and (stray := _STRAY_BYTE.search(text)):
            raise self._stray(start + stray.start(), last=False)
        parser.check(value, text)
        return value

    def end(self, array: bool) -> None:
        """Check that an array is closed, and that nothing follows."""
        sign = self.sign()
        if array and sign != "]":
            if not sign:
                raise _Fault("not JSON: the array is not closed")
            raise self._fault(json.JSONDecodeError("Expecting ',' delimiter", self._text, self._at))
        if array:
            self.skip()
        if self.sign():
            raise _Fault(
                "more follows" if array else "more follows: is it JSON Lines (--input-format jsonl)?", last=True
            )

    def _more(self, size: int) -> None:
        """Let go of what was read, and hold more."""
        self.line()
        self._characters, self._bytes = self._before(self._at)
        block = self._stream.read(size)
        self._ended = not block
        text = self._decoder.decode(block, not block)
        self._strays = self._strays or not settings.is_unicode(text)
        self._text = self._text[self._at :] + text
        self._at = self._counted = 0

    def _before(self, at: int) -> tuple[int, int]:
        """Return how many characters, and bytes, of its line come before a place in the text."""
        start = self._text.rfind("\n", 0, at) + 1
        text = self._text[start:at]
        characters, size = len(text), len(text.encode("utf-8", "surrogateescape"))
        return (characters, size) if start else (self._characters + characters, self._bytes + size)

    def _fault(self, error: json.JSONDecodeError) -> _Fault:
        characters, size = self._before(error.pos)
        sign = self._text[error.pos : error.pos + 1]
        if _STRAY_BYTE.match(sign):
            return self._stray(error.pos, last=True)
        reason = _nul(size) if sign == "\0" else _not_json(error, characters)
        return _Fault(reason, self.line(error.pos), last=True)

    def _stray(self, at: int, *, last: bool) -> _Fault:
        try:
            self._text[at : at + 4].encode("utf-8", "surrogateescape").decode()
        except UnicodeDecodeError as error:
            return _Fault(_not_utf8(error, self._before(at)[1]), self.line(at), last=last)
        raise AssertionError("a lone surrogate is no UTF-8")


def _of_json(stream: BinaryIO, file: str) -> Iterator[Row | BadRow]:
    window, parser = _Window(stream), _Json()
    first = window.sign()
    if not first:
        yield _bad(file, 1, _Fault("not JSON: the file is empty"))
        return
    array = first == "["
    if array:
        window.skip()
    goes_on = not (array and window.sign() == "]")
    while goes_on:
        window.sign()
        line = window.line()
        try:
            values = _of_object(window.value(parser))
        except _Fault as fault:
            yield _bad(file, line, fault)
            if fault.last:
                return
        else:
            yield Row(file=file, line=line, values=values)
        goes_on = array and window.sign() == ","
        if goes_on:
            window.skip()
    try:
        window.end(array)
    except _Fault as fault:
        yield _bad(file, window.line(), fault)
