"""Folders of the user's: what is set, and what is kept to save time."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdcli.errors import CannotCreateOutput

# Seconds that another process is waited for which holds a folder.
PATIENCE = 10.0


def config_folder() -> Path:
    """Return the configuration folder: SDCLI_CONFIG, else the system's (XDG_CONFIG_HOME). It may not be there."""
    if named := os.environ.get("SDCLI_CONFIG"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_config_dir("sdcli", appauthor=False))


def cache_folder() -> Path:
    """Return the folder of what can be made again: the system's (XDG_CACHE_HOME). It may not be there."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("sdcli", appauthor=False))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder while a file in it is read, changed and replaced: other sdcli processes wait, and nothing is lost.

    The folder itself is locked: no file is left beside the others, and the lock ends with the process. Raises
    CannotCreateOutput where somebody else holds it for long. What can't be locked is not.
    """
    handle = None
    with suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    if handle is None:
        yield
        return
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    break  # Some network file systems lock no folders.
            if time.monotonic() > until:
                raise CannotCreateOutput(f"another program holds {folder}", "wait until it has ended")
            time.sleep(0.02)
        yield
    finally:
        os.close(handle)
