"""Hashes of weight files, so that no file is read twice for one: a small table on disk.

It is SQLite's, which several processes may use at once. What can't be read or written is done without.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from sdcli.places import cache_folder

FILE = "hashes.sqlite"
# So many files are remembered: those that were asked for last.
MOST = 10_000
# A file that was written less than so many nanoseconds ago may be written again within its file system's tick.
_TICK = 2_000_000_000
# That a file was asked for is written down once a day.
_DAY = 86_400
# Seconds that another process is waited for.
_PATIENCE = 2.0
T = TypeVar("T")


def recall(file: Path, about: os.stat_result) -> str | None:
    """Return the SHA-256 of a file that has not changed since it was remembered; `about` is what it is now."""

    def look(table: sqlite3.Connection) -> str | None:
        key = _key(file, about)
        row = table.execute(
            "SELECT sha256, used FROM files WHERE path = ? AND size = ? AND changed = ? AND inode = ?", key
        ).fetchone()
        if row is None:
            return None
        if time.time() - row[1] > _DAY:
            table.execute("UPDATE files SET used = ? WHERE path = ?", (time.time(), key[0]))
        return str(row[0])

    return _with_table(look) if _file().exists() else None


def remember(file: Path, about: os.stat_result, sha256: str) -> None:
    """Keep the SHA-256 of a file; `about` is what it was before it was read. What changed while it was read is not kept."""
    try:
        after = file.stat()
    except OSError:
        return
    if _key(file, after) != _key(file, about) or time.time_ns() - about.st_mtime_ns < _TICK:
        return

    def keep(table: sqlite3.Connection) -> None:
        table.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", (*_key(file, about), sha256, time.time())
        )
        table.execute(
            "DELETE FROM files WHERE path NOT IN (SELECT path FROM files ORDER BY used DESC LIMIT ?)", (MOST,)
        )

    _with_table(keep)


def _file() -> Path:
    return cache_folder() / FILE


def _key(file: Path, about: os.stat_result) -> tuple[bytes, int, int, int]:
    # The path in bytes: names need not be Unicode. An inode may be larger than SQLite's integers.
    inode = about.st_ino - 2**64 if about.st_ino >= 2**63 else about.st_ino
    return os.fsencode(file), about.st_size, about.st_mtime_ns, inode


def _with_table(use: Callable[[sqlite3.Connection], T]) -> T | None:
    """Use the table; one that is broken is thrown away and made anew."""
    for _ in range(2):
        with suppress(OSError, sqlite3.OperationalError):
            try:
                return _once(use)
            except sqlite3.OperationalError:
                raise  # in use for too long, on a full disk, or not to be written
            except sqlite3.DatabaseError:
                _file().unlink(missing_ok=True)
                continue
        return None
    return None


def _once(use: Callable[[sqlite3.Connection], T]) -> T:
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=_PATIENCE)) as table, table:
        table.execute(
            "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, inode INTEGER,"
            " sha256 TEXT, used REAL)"
        )
        return use(table)
