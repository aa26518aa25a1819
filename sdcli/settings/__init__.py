"""Where values come from: every source is a dict, merged from weakest to strongest, each value with its origin."""

from sdcli.settings.config import VARIABLES, current, is_setting, sources
from sdcli.settings.merge import (
    DECIDED_LATER,
    RECORDS,
    Given,
    Merged,
    Source,
    Style,
    convert,
    is_unicode,
    merge,
    names,
    pair,
    styled,
)
from sdcli.settings.presets import preset, presets_folder

__all__ = [
    "DECIDED_LATER",
    "RECORDS",
    "VARIABLES",
    "Given",
    "Merged",
    "Source",
    "Style",
    "convert",
    "current",
    "is_unicode",
    "is_setting",
    "merge",
    "names",
    "pair",
    "preset",
    "presets_folder",
    "sources",
    "styled",
]
