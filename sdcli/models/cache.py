"""huggingface_hub's cache: what of the hub is on this machine."""

from __future__ import annotations

from pathlib import Path

from sdcli.errors import ModelUnavailable
from sdcli.models.known import AT_ONCE


def cached(repo: str, revision: str | None, file: str) -> Path | None:
    """Return the folder of a repository in huggingface_hub's cache, if `file` is there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, file, revision=revision)
    except HFValidationError:
        raise ModelUnavailable(f"{repo} can't be the name of a repository on the hub", AT_ONCE) from None
    return Path(found).parent if isinstance(found, str) else None
