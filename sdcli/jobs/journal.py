"""The journal of a folder: a line for each job that was finished or has failed, so that the same command goes on."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import sqlite3
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

from sdcli import metadata, output
from sdcli.errors import BadInput, CannotCreateOutput, OutputFailed
from sdcli.record import SCHEMA

NAME = "sdcli-batch.jsonl"
# Seconds by which the clocks of file systems may be coarse.
CLOCK = 2.0
# How a line that is damaged can't be read.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Line(msgspec.Struct):
    """What is looked for in a line; the rest is read when it is wanted."""

    schema: int
    event: str
    id: str | None = None
    path: str | None = None
    pixels: str | None = None
    seed: int | None = None
    seconds: float | None = None
    batch_size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    time: str | None = None

    @property
    def begins(self) -> bool:
        """Whether it is what a journal begins with."""
        return self.event == "run" and self.seed is not None and self.batch_size is not None

    @property
    def ends_a_job(self) -> bool:
        known = self.id is not None and is_digest(self.id)
        return known and (self.event == "error" or (self.event == "image" and None not in (self.path, self.pixels)))


class Index:
    """What a long run must remember of each job, in a temporary database on disk: memory does not grow with the rows."""

    def __init__(self) -> None:
        # An empty name: SQLite's own temporary file, which goes with the process, however it ends.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._run("PRAGMA journal_mode=OFF")
        for table in (
            "lines (id BLOB, start INTEGER, size INTEGER, PRIMARY KEY (id, start))",
            "seen (id BLOB PRIMARY KEY, n INTEGER)",
            "outputs (id BLOB PRIMARY KEY, n INTEGER)",
            "pictures (id BLOB PRIMARY KEY, path TEXT)",
            "told (id BLOB PRIMARY KEY)",
        ):
            self._run(f"CREATE TABLE {table} WITHOUT ROWID")
        self._run("BEGIN")

    def _run(self, sql: str, *values: object) -> Any:
        """Run a statement; return the first row of its result, None if there is none. Raises OutputFailed."""
        try:
            return self._db.execute(sql, values).fetchone()
        except sqlite3.Error as error:
            raise OutputFailed(
                f"the temporary file of the run's index was not written: {error}", "free some space, or set TMPDIR"
            ) from error

    def count(self, digest: bytes, table: str = "seen") -> int:
        """Return how often this digest was counted before."""
        sql = f"INSERT INTO {table} VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET n = n + 1 RETURNING n"
        return int(self._run(sql, digest)[0]) - 1

    def put_line(self, id: str, start: int, size: int) -> None:
        self._run("INSERT OR REPLACE INTO lines VALUES (?, ?, ?)", bytes.fromhex(id), start, size)

    def line(self, id: str, before: int) -> tuple[int, int] | None:
        """Return where a job's last line before that place starts, and its length in bytes."""
        sql = "SELECT start, size FROM lines WHERE id = ? AND start < ? ORDER BY start DESC LIMIT 1"
        row = self._run(sql, bytes.fromhex(id), before)
        return (int(row[0]), int(row[1])) if row else None

    def put_picture(self, id: str, path: str) -> None:
        self._run("INSERT OR REPLACE INTO pictures VALUES (?, ?)", bytes.fromhex(id), os.fsencode(path))

    def picture(self, id: str) -> str | None:
        """Return the path of a picture that was found with this id in it."""
        row = self._run("SELECT path FROM pictures WHERE id = ?", bytes.fromhex(id))
        return os.fsdecode(row[0]) if row else None

    def put_told(self, path: str) -> None:
        self._run("INSERT OR IGNORE INTO told VALUES (?)", _digest(path))

    def is_told(self, path: str) -> bool:
        """Whether a line names this path."""
        return self._run("SELECT 1 FROM told WHERE id = ?", _digest(path)) is not None

    def close(self) -> None:
        self._db.close()


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a journal, and whether this run wrote it."""

    line: dict[str, Any]
    of_this_run: bool


class Journal:
    """A folder's journal, locked for one run.

    Its first line is `{"schema", "event": "run", "seed", "batch_size", "time"}`; a later one of that kind says with which
    pack size a run went on. The others are the `image` and `error` events with `time`, and `path` relative to the folder.
    A line is there only after its picture. `seed` and `batch_size` are those of an earlier run, None before `begin`.
    """

    def __init__(self, folder: Path, index: Index, *, fresh: bool = False) -> None:
        """Open and lock the journal; `fresh` sets the one that is there aside, under the next free name.

        Raises CannotCreateOutput where another run is writing there, and BadInput for what is no journal.
        """
        self.folder = folder
        self.path = folder / NAME
        self.fresh = fresh
        self.seed: int | None = None
        self.batch_size: int | None = None
        self.lines = 0
        self._index = index
        # Lines come from the thread that writes pictures and from the one that draws.
        self._append = threading.Lock()
        try:
            output.make_folder(folder)
            self._file = self._open()
            if fresh and os.fstat(self._file).st_size:
                output.set_aside(self.path)
                os.close(self._file)
                self._file = self._open()
        except OSError as error:
            raise CannotCreateOutput(
                f"{self.path} cannot be created: {error.strerror}", "choose another output with -o"
            ) from error
        # When the last job was done that has a line: a picture that has none was made later. None: there is no such line.
        self.last_done: float | None = None
        try:
            self._read()
        except OSError as error:
            self.close()
            raise OutputFailed(
                f"{self.path} cannot be read: {error.strerror}", "choose another output with -o"
            ) from error
        except BaseException:
            self.close()
            raise
        if fresh:
            self.last_done = math.inf  # What lies there is left as it is.
        self._began = os.fstat(self._file).st_size

    def _open(self) -> int:
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise CannotCreateOutput(f"{self.path} is there and is no file", "choose another output with -o")
                self._lock(handle)
                # It may have been set aside between the opening and the lock.
                if os.path.samestat(os.fstat(handle), os.stat(self.path)):
                    return handle
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def _lock(self, handle: int) -> None:
        try:
            import fcntl
        except ImportError:
            raise CannotCreateOutput(
                "this system has no locks for a batch's journal", "draw with sdcli generate, or use Linux or macOS"
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise CannotCreateOutput(
                f"another run is writing into {self.folder}",
                "wait until it has ended, or choose another output with -o",
            ) from None

    def _read(self) -> None:
        """Index the lines; a last one without its end is what a kill left, and goes."""
        decoder, real = msgspec.json.Decoder(_Line), os.path.realpath(self.folder)
        changed, last = os.fstat(self._file).st_mtime, None
        start, first = 0, True
        with open(os.dup(self._file), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and (not first or _is_torn(line)):
                    os.ftruncate(self._file, start)
                    break
                try:
                    said = decoder.decode(line)
                except UNREADABLE:
                    said = _Line(schema=SCHEMA, event="")
                if said.schema > SCHEMA:
                    raise BadInput(
                        f"{self.path}:{number}: schema {said.schema}; this sdcli knows up to {SCHEMA}",
                        "use a newer sdcli, or --fresh",
                    )
                if first and not said.begins:
                    raise BadInput(
                        f"{self.path}:{number}: not the first line of a journal",
                        "--fresh sets it aside; or choose another output with -o",
                    )
                if said.begins:
                    self.seed = said.seed if first else self.seed
                    self.batch_size = said.batch_size
                elif said.ends_a_job:
                    assert said.id is not None
                    self._index.put_line(said.id, start, len(line))
                    if said.path is not None:
                        self._index.put_told(os.path.normpath(os.path.join(real, said.path)))
                    self.lines += 1
                    # A picture that was found tells nothing of when others were drawn.
                    last = said if said.event == "error" or said.seconds is not None else last
                first = False
                start += len(line)
        if last is not None:
            # Not the file's time alone: a run that was killed may have cut it or said its pack size, and found no picture yet.
            self.last_done = min(changed, _seconds(last.time))

    def begin(self, seed: int, batch_size: int) -> None:
        """Write durably what a run that goes on must know, before there is any picture; nothing where it is known."""
        if (self.seed, self.batch_size) == (seed, batch_size):
            return
        self._write({"schema": SCHEMA, "event": "run", "seed": seed, "batch_size": batch_size, "time": _now()})
        output.sync(self.folder)
        self.seed, self.batch_size = seed, batch_size

    def find(self, id: str, wanted: Callable[[dict[str, Any]], bool] = lambda line: True) -> Found | None:
        """Return the last line of a job that is `wanted`, its `path` as it is from here; None if there is none.

        A job has several lines if it was drawn for several places, or again.
        """
        start = 2**62
        while place := self._index.line(id, start):
            start, size = place
            try:
                line: dict[str, Any] = json.loads(os.pread(self._file, size, start))
            except (ValueError, RecursionError):  # A byte of it was damaged.
                continue
            path = line.get("path")
            if path is not None and path.startswith(".."):
                # `..` leads out of where the folder really is, not of the link to it.
                line["path"] = os.path.normpath(os.path.join(os.path.realpath(self.folder), path))
            elif path is not None:
                line["path"] = os.path.join(self.folder, path)
            if wanted(line):
                return Found(line=line, of_this_run=start >= self._began)
        return None

    def is_newer(self, time: float) -> bool:
        """Whether a file that was changed then (seconds) is newer than the last line that this run found."""
        return self.last_done is None or time >= self.last_done - CLOCK

    def write(self, event: dict[str, Any]) -> tuple[int, int]:
        """Append a job's event, durably; return where its line starts, and its length. For any thread.

        Raises OutputFailed; the journal is then as before.
        """
        path = event["path"]
        if path is not None:
            real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            path = os.path.relpath(real, os.path.realpath(self.folder))
        return self._write({**event, "path": path, "time": _now()})

    def note(self, event: dict[str, Any], place: tuple[int, int]) -> None:
        """Remember an event that `write` has appended. For the thread that asks `find`."""
        if event["id"]:
            self._index.put_line(event["id"], *place)

    def _write(self, line: dict[str, Any]) -> tuple[int, int]:
        data = json.dumps(line).encode() + b"\n"
        with self._append:
            about = os.fstat(self._file)
            if not about.st_nlink:
                raise OutputFailed(f"{self.path} was removed while it was written", "the same command begins anew")
            start = about.st_size
            try:
                left = memoryview(data)
                while left:  # A disk that fills up takes a part, and says so the next time.
                    left = left[os.write(self._file, left) :]
                os.fsync(self._file)
            except OSError as error:
                try:
                    os.ftruncate(self._file, start)
                except OSError:
                    pass  # The next run cuts it.
                raise OutputFailed(
                    f"{self.path} was not written: {error.strerror}", "free some space; the same command then goes on"
                ) from error
        return start, len(data)

    def close(self) -> None:
        """Let another run have the folder."""
        os.close(self._file)


def seed_of(folder: Path) -> int | None:
    """Return the run seed that a folder's journal says, without opening it for a run; None where there is none."""
    try:
        if not (folder / NAME).is_file():
            return None
        with open(folder / NAME, "rb") as file:
            return msgspec.json.decode(file.readline(2**16), type=_Line).seed
    except (OSError, *UNREADABLE):
        return None


def pictures(
    folder: Path, depth: int | None = None, wanted: Callable[[float], bool] = lambda changed: True
) -> Iterator[Path]:
    """Yield the pictures in a folder and `depth` levels under it (None: all), in the order of their paths.

    Hidden files are none, links to folders are not followed, and what can't be read is left out. `wanted` is asked by the time
    of change (seconds).
    """
    levels = [iter(_entries(folder, depth != 0, wanted))]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif entry.is_dir(follow_symlinks=False):
            levels.append(iter(_entries(Path(entry.path), depth is None or len(levels) < depth, wanted)))
        else:
            yield Path(entry.path)


def _entries(folder: Path, deeper: bool, wanted: Callable[[float], bool]) -> list[os.DirEntry[str]]:
    """Return a folder's pictures that are wanted and, with `deeper`, the folders in it, by name."""

    def kept(entry: os.DirEntry[str]) -> bool:
        try:
            if entry.is_dir(follow_symlinks=False):
                return deeper
            a_pictures = os.path.splitext(entry.name)[1].lower() in output.ENDINGS and not entry.name.startswith(".")
            return a_pictures and entry.is_file() and wanted(entry.stat().st_mtime)
        except OSError:
            return False

    try:
        with os.scandir(folder) as entries:
            return sorted(filter(kept, entries), key=lambda entry: entry.name)
    except OSError:
        return []


def holds(path: Path, id: str | None, pixels: str | None) -> bool:
    """Say whether a picture is there, whole, drawn by the job `id` and with the pixels of that hash.

    With no `id` it need say none (`--metadata none`); with no `pixels` they must be those that the picture says itself.
    """
    from PIL import Image

    try:
        if id is not None:
            identity = metadata.identity(path)
            if identity is None or identity.id != id:
                return False
            own = identity.pixels.stored_sha256 or identity.pixels.sha256
            if pixels not in (None, own):
                return False
            pixels = own
        with warnings.catch_warnings():
            # Pillow warns of pictures that are large, and of broken EXIF.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                found = hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
    except Exception:  # Of a broken file, each decoder says so in a way of its own.
        return False
    return found == pixels


def is_digest(text: str) -> bool:
    """Say whether a text is a SHA-256 in hex."""
    try:
        return len(bytes.fromhex(text)) == 32
    except ValueError:
        return False


def _digest(path: str) -> bytes:
    return hashlib.sha256(os.fsencode(path)).digest()[:16]


def _is_torn(line: bytes) -> bool:
    """Say whether a file's only line may be the first half of a journal's first, or what a power cut makes of it."""
    begin = b'{"schema": '
    return line.startswith(begin) or begin.startswith(line) or not line.strip(b"\0")


def _seconds(time: str | None) -> float:
    try:
        return datetime.fromisoformat(time or "").timestamp()
    except ValueError:
        return math.inf


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
