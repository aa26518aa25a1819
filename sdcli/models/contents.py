"""What a model consists of, read off the headers of its weight files: no weights are read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import msgspec

from sdcli.models.loading import is_loaded, loaded_files
from sdcli.models.spec import Model
from sdcli.models.weights import read_header

# The format's names (huggingface.co/docs/safetensors) and ours.
PRECISIONS = {"F16": "fp16", "BF16": "bf16", "F32": "fp32", "F64": "fp64", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a model that is loaded: its class, how many parameters it has, their precision as stored, its files' bytes."""

    name: str
    class_name: str | None
    parameters: int
    precision: str | None
    size: int


def components(model: Model) -> list[Component]:
    """Return a model's components that have weights; one that is here in whole. Raises BadInput."""
    files: dict[str, list[str]] = {}
    found = loaded_files(model)
    for name in found:
        files.setdefault("vae" if name.startswith("--vae/") else name.partition("/")[0], []).append(name)
    parts = []
    for part, names in files.items():
        stored: Counter[str] = Counter()
        for name in names:
            for key, entry in read_header(found[name]).items():
                if key != "__metadata__" and is_loaded(key):
                    stored[str(entry.get("dtype"))] += math.prod(entry.get("shape", ()))
        whole = model.family.class_name if model.family and model.single_file else None
        parts.append(
            Component(
                name=part,
                class_name=model.components.get(part, (None, whole))[1],
                parameters=sum(stored.values()),
                precision=_precision(stored),
                size=sum(found[name].stat().st_size for name in names),
            )
        )
    return parts


def _precision(stored: Counter[str]) -> str | None:
    """Return the precision that most parameters are stored in."""
    if not stored:
        return None
    name = stored.most_common(1)[0][0]
    return PRECISIONS.get(name, name.lower())


def weight_bytes(parts: Iterable[Component], dtype: str) -> int:
    """Return the bytes of memory that the weights take at a precision (fp16, bf16 or fp32)."""
    return sum(p.parameters for p in parts) * (4 if dtype == "fp32" else 2)
