"""Names of models: which are paths, which are the hub's, and which are neither."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from pathlib import Path

from sdcli.errors import BadInput, InputMissing, ModelUnavailable, nearest
from sdcli.models.known import ALIASES
from sdcli.models.spec import Weights
from sdcli.models.weights import PICKLES


def locate(name: str, what: str, hint: str, aliases: Iterable[str] = ALIASES) -> Weights:
    """Return what a name means: a file or folder that is there, or a hub id; the nearest of `aliases` are named."""
    path = as_path(name)
    if path is not None:
        if path.suffix.lower() in PICKLES:
            raise BadInput(
                f"{name} is a pickle, which can run code when it is read",
                "use a .safetensors file or a folder in diffusers' layout",
            )
        if not _is_there(path):
            raise InputMissing(f"there is no {what} at {name}", hint)
        return Weights(name=name, path=path)
    repo, _, revision = name.partition("@")
    if repo.count("/") != 1:
        raise ModelUnavailable(f"there is no {what} called {name}{nearest(name, aliases)}", hint)
    return Weights(name=name, repo=repo, revision=revision or None)


def as_path(name: str) -> Path | None:
    """Return a name as a path, None where it is a hub id or an alias."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # the home of a user that there is not
        path = Path(name)
    looks = (
        name.startswith((".", "/", "~"))
        or path.suffix.lower() in (".safetensors", ".gguf", *PICKLES)
        or name.partition("@")[0].count("/") > 1
    )
    if looks:
        return path
    return path if name and _is_there(path, too_long=False) and ("/" in name or path.is_dir()) else None


def _is_there(path: Path, too_long: bool | None = None) -> bool:
    """Whether a path is there; `too_long` is the answer for what no system takes, which is an error where it is None."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG and too_long is not None:
            return too_long
        raise BadInput(f"{path} can't be looked at: {error.strerror}", "check the path and its permissions") from error


_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_COMMIT = re.compile(r"[0-9a-f]{6,64}")


def is_hub_name(name: str) -> bool:
    """Return whether a text has the form of a hub id, with @REVISION or without."""
    repo, at, revision = name.partition("@")
    return bool(_REPO.fullmatch(repo)) and (not at or bool(re.fullmatch(r"[\w./+-]+", revision)))


def hub_name(repo: str, commit: str | None) -> str | None:
    """Return the name of a hub's model at a commit, None for what is no such name or would be taken for a path here.

    For names out of pictures, which are not to lead to files.
    """
    name = f"{repo}@{commit}" if commit is not None else repo
    fits = _REPO.fullmatch(repo) and (commit is None or _COMMIT.fullmatch(commit)) and ".." not in repo
    return name if fits and as_path(name) is None and as_path(repo) is None else None
