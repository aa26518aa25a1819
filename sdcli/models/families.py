"""Families of models: what those that one pipeline class of diffusers draws with want, and what they can't use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models that one pipeline class of diffusers draws with: what they want, and what they can't use."""

    name: str
    dtype: str
    defaults: dict[str, Any]


FAMILIES = {
    "StableDiffusionPipeline": Family(
        name="stable-diffusion",
        dtype="fp16",
        defaults={"num_inference_steps": 25, "guidance_scale": 7.5},
    ),
}
