"""The table of models that have a short name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DEFAULT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEMO = "demo"
AT_ONCE = f"`--model {DEMO}` works at once, with no download"


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A row of the table of models that have a short name."""

    alias: str
    repo: str | None
    defaults: dict[str, Any] = field(default_factory=dict)


KNOWN = (
    KnownModel(alias=DEMO, repo=None, defaults={"guidance_scale": 2.0}),
    KnownModel(alias="sd15", repo=DEFAULT),
)
ALIASES = {k.alias: k for k in KNOWN}
