"""Folders of the user's: what is set, and what is kept to save time."""

from __future__ import annotations

import os
from pathlib import Path


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
