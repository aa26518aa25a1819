"""The user's own names for models: `aliases.toml` in the configuration folder, a flat table of name = "target"."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdcli.errors import BadInput, CannotCreateOutput, ModelUnavailable, UsageError, nearest
from sdcli.models.known import ALIASES
from sdcli.places import alone_in, config_folder

FILE = "aliases.toml"
# Bytes.
LARGEST = 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


def file() -> Path:
    """Return where the aliases lie; the file may not be there."""
    return config_folder() / FILE


def read() -> dict[str, str]:
    """Return the user's aliases; BadInput (`FILE:LINE: reason`) for a file that is no such table."""
    return {name: str(target) for name, target in _checked(_text()).items()}


def target_of(name: str) -> str | None:
    """Return what the user's alias stands for, None where there is no such alias."""
    return read().get(name) if _NAME.fullmatch(name) and name not in ALIASES and file().exists() else None


def names() -> list[str]:
    """Return the user's aliases for a look or a guess: none where their file can't be read."""
    try:
        return list(read())
    except BadInput:
        return []


def add(name: str, target: str) -> str | None:
    """Let `name` stand for a hub id (with @REVISION or without), a folder or a file; return what it stood for before.

    Paths are kept whole, so that the name means the same everywhere. Raises UsageError, BadInput, CannotCreateOutput.
    """
    from sdcli.models.naming import as_path, is_hub_name

    _check_name(name)
    path = as_path(target)
    if path is not None:
        target = str(path.absolute())
    elif not is_hub_name(target):
        raise UsageError(f"{target} is no hub id, folder or file", "an alias stands for one of these")
    try:
        target.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the path that {name} is to stand for is not UTF-8", "TOML has room for Unicode only"
        ) from None

    def put(document: Any) -> None:
        document[name] = target

    with _alone(makes=True):
        text = _text()
        before = _checked(text).get(name)
        _write(text, put)
    return before


def remove(name: str) -> str:
    """Take an alias away and return what it stood for; ModelUnavailable where there is none of that name."""

    def drop(document: Any) -> None:
        del document[name]

    with _alone():
        text = _text()
        found = _checked(text)
        if name in ALIASES:
            raise UsageError(f"{name} is one of sdcli's own names", "only your own can be removed")
        if name not in found:
            raise ModelUnavailable(
                f"there is no alias {name}{nearest(name, found)}", "`sdcli models alias` lists yours"
            )
        _write(text, drop)
    return found[name]


@contextmanager
def _alone(*, makes: bool = False) -> Iterator[None]:
    """Keep other processes from the file while it is changed; `makes` its folder, which then may not be there yet."""
    # A file that is a link stays one: it is changed where it lies.
    folder = Path(os.path.realpath(file())).parent
    if makes:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_written(folder, error) from error
    with alone_in(folder):
        yield


def _not_written(path: Path, error: OSError) -> CannotCreateOutput:
    return CannotCreateOutput(
        f"{path} can't be written: {error.strerror}", "check the folder, or set SDCLI_CONFIG to another"
    )


def _check_name(name: str) -> None:
    from sdcli.models.naming import as_path

    if name in ALIASES:
        raise UsageError(f"{name} is one of sdcli's own names", "take another name")
    if not _NAME.fullmatch(name) or as_path(name) is not None:
        raise UsageError(
            f"{name!r} can't be an alias", "up to 64 letters, digits, '-', '_', '.' and '+', and no path that is there"
        )


def _text() -> str:
    try:
        # Whoever opens a FIFO waits for its writer.
        with open(os.open(file(), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise BadInput(f"{file()} is no regular file", "mend it")
            data = opened.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise BadInput(f"{file()} has more than {LARGEST // 2**20} MiB", "mend it")
        return data.decode()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file()} can't be read: {getattr(error, 'strerror', None) or error}", "mend it") from error


def _checked(text: str) -> Mapping[str, str]:
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise BadInput(
            f"{file()}:{line[1] if line else 1}: {error}", 'each line is: name = "hub id, folder or file"'
        ) from error
    for name, target in found.items():
        if not isinstance(target, str) or not target:
            raise BadInput(f"{file()}: {name} is no text", 'each line is: name = "hub id, folder or file"')
    return found


def _write(text: str, change: Any) -> None:
    """Write the file with a change, comments kept, in one step that no reader sees half of."""
    import tomlkit

    document = tomlkit.parse(text)
    change(document)
    # A file that is a link stays one.
    path = Path(os.path.realpath(file()))
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".aliases-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(tomlkit.dumps(document))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise _not_written(path, error) from error
