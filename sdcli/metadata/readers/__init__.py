"""What a picture's texts say of its making, whoever wrote them: one file a format, found by looking into this folder.

A reader is a module with `ORDER` (a lower one is asked first) and `read(texts)`. It returns None where the texts are not of
its format. What it takes from them are values of known fields, converted and checked; all else is named in `unmapped`.
Nothing in a text is run, opened or looked up.
"""

from __future__ import annotations

import json
import math
import pkgutil
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast, get_type_hints

import msgspec

from sdcli import schedulers
from sdcli.errors import BadInput, UsageError
from sdcli.metadata import xmp
from sdcli.record import Record
from sdcli.request import MOST_ADAPTERS, GenerationRequest

Texts = Mapping[str, str]

FIELDS = GenerationRequest.__struct_fields__
# Commas and brackets, of which each value needs one: what bounds the time and the memory that JSON takes. The largest of
# ComfyUI's graphs have some thousands.
MOST_VALUES = 300_000
MOST_DEPTH = 200
# Looking through a hostile packet of this length takes 25 ms, and a dozen properties may be looked for.
MOST_XMP = 2**18
# A longer text is no sampler's name.
LONGEST_NAME = 100
LONGEST_FILE = 200
SUFFIX = ".safetensors"
# Files of these can run code when they are read, and are never drawn with.
PICKLES = (".pt", ".pth", ".ckpt", ".bin")


class Unreadable(BadInput):
    """A text that is of a format and yet can't be read; another format may still be in the picture."""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a picture says: `request` in the names of GenerationRequest, and only what it says; `model` with `name`, `hash`
    and more, or None; `unmapped`, all that no field of sdcli's holds. `record` is sdcli's own."""

    format: str
    request: dict[str, Any]
    model: dict[str, Any] | None = None
    unmapped: dict[str, Any] = msgspec.field(default_factory=dict)
    record: Record | None = None


class Reader(Protocol):
    """A module of this folder."""

    ORDER: int

    def read(self, texts: Texts) -> Said | None:
        """Return what the texts say, None where they are not of this format. Raises Unreadable."""


@cache
def readers() -> tuple[Reader, ...]:
    """Return the readers, the first to be asked first: the formats that say most surely whose they are."""
    found = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return tuple(cast(Reader, m) for m in sorted(found, key=lambda m: (m.ORDER, m.__name__)))


def read(texts: Texts) -> Said | None:
    """Return what a picture's texts say of its making, None where no reader knows them.

    The first reader that finds a request is believed. Raises BadInput where a text can't be read and no other can.
    """
    vague: Said | None = None
    failed: Unreadable | None = None
    for reader in readers():
        try:
            said = reader.read(texts)
        except Unreadable as error:
            failed = failed or error
            continue
        if said is not None and (said.request or said.record):
            return said
        vague = vague or said
    if vague is None and failed is not None:
        raise failed
    return vague


class Saying:
    """Collects what a picture says. A value that its field can't hold is named in `unmapped` instead."""

    def __init__(self, format: str) -> None:
        self.format = format
        self.request: dict[str, Any] = {}
        self.unmapped: dict[str, Any] = {}

    def take(self, field: str, value: object, name: str) -> None:
        """Take the value that the picture calls `name` for a field of the request."""
        if value is None:
            return
        try:
            self.request[field] = typed(field, value)
        except ValueError:
            self.unmapped[name] = value

    def take_parts(self, field: str, value: Mapping[str, object], said: Mapping[str, object]) -> None:
        """Take a field that is made of several things which the picture says; name those where the field can't hold them."""
        try:
            self.request[field] = typed(field, value)
        except ValueError:
            self.name(said)

    def take_loras(self, said: Iterable[tuple[object, object, object]], name: str) -> None:
        """Take LoRAs: of each its name, its scale (None: it is not one number for all parts) and how the picture says it.

        One whose name is no bare name of a file, or that the picture names twice, is named instead under `name`.
        """
        listed = [(_file_name(lora), scale, how) for lora, scale, how in said]
        counted = Counter(lora for lora, _, _ in listed)
        taken: list[Any] = []
        others = []
        for lora, scale, how in listed:
            try:
                if lora is None or counted[lora] > 1 or len(taken) == MOST_ADAPTERS:
                    raise ValueError(how)
                taken += typed("lora", [{"name": lora, "scale": scale}])
            except ValueError:
                others.append(how)
        if taken:
            self.request["lora"] = taken
        self.name({name: others})

    def take_size(self, value: object, name: str) -> None:
        """Take a size as in `512x768`."""
        match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", value) if isinstance(value, str) else None
        try:
            if match is None:
                raise ValueError(value)
            self.request |= {"width": typed("width", match[1]), "height": typed("height", match[2])}
        except ValueError:
            self.name({name: value})

    def take_clip_skip(self, value: object, name: str, *, none: int = 1) -> None:
        """Take a number of CLIP's layers, counted so that `none` means that none is left out."""
        try:
            count = msgspec.convert(value, int, strict=False) - none
        except msgspec.ValidationError:
            self.name({name: value})
        else:
            if 0 <= count <= 64:
                self.request["clip_skip"] = count
            else:
                self.unmapped[name] = value

    def take_scheduler(self, found: str | None, said: Mapping[str, object]) -> None:
        """Take a scheduler's canonical name; where there is none, name what the picture said."""
        if found is not None:
            self.request["scheduler"] = found
        else:
            self.name(said)

    def name(self, values: Mapping[str, object]) -> None:
        """Name what has no field; what is empty says nothing."""
        self.unmapped |= {k: v for k, v in values.items() if v is not None and v != "" and v != [] and v != {}}

    def said(self, model: dict[str, Any] | None = None) -> Said:
        model = dict(model or {})
        for key in ("name", "hash"):
            if not isinstance(model.get(key), str | None):
                self.name({f"model {key}": model.pop(key)})
                model = {key: None, **model}
        if not any(model.values()):
            return Said(format=self.format, request=self.request, unmapped=self.unmapped)
        return Said(format=self.format, request=self.request, model=model, unmapped=self.unmapped)


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(GenerationRequest, include_extras=True)


def typed(field: str, value: object) -> Any:
    """Return a value as a field of GenerationRequest has it, out of JSON or text. Raises ValueError for what it can't be."""
    if isinstance(value, str) and value == "null":
        # msgspec would make None of it.
        if field in ("prompt", "negative_prompt"):
            return value
        raise ValueError(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(value)
    if isinstance(value, Mapping) and "null" in value.values():
        raise ValueError(value)
    made = _plain(msgspec.convert(value, _hints()[field], strict=False))
    if made is None:
        raise ValueError(value)
    if (field == "seed" and made < 0) or (field == "variation" and made["seed"] < 0):
        raise ValueError(value)
    return made


def _plain(made: Any) -> Any:
    """Return a value as JSON has it, records without what they leave to others. Raises ValueError for what JSON can't hold."""
    if isinstance(made, msgspec.Struct):
        values = {f: getattr(made, f) for f in made.__struct_fields__}
        return {f: _plain(v) for f, v in values.items() if v is not None}
    if isinstance(made, tuple):
        return [_plain(v) for v in made]
    if isinstance(made, float) and not math.isfinite(made):
        raise ValueError(made)
    if isinstance(made, str):
        made.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair out of JSON.
    return made


def _file_name(name: object) -> str | None:
    """Return the name of a LoRA as it is looked for in the folder of adapters, None for what is a path, an id or no name."""
    if not isinstance(name, str):
        return None
    name = name.strip()
    while name.lower().endswith(SUFFIX):
        name = name[: -len(SUFFIX)]
    # What could be a path, and what a tag could not hold.
    if name.lower().endswith(PICKLES):
        return None
    bare = len(name) <= LONGEST_FILE and re.fullmatch(r"[^./\\~:<>\0\r\n][^/\\:<>\0\r\n]*", name)
    return name if bare else None


def scheduler(sampler: object, spacing: object = None, *, diffusers: bool = False) -> str | None:
    """Return the canonical name of the scheduler that A1111, k-diffusion or diffusers call so, None where there is none.

    Without `diffusers` only what A1111 has as well is the same: names such as UniPC and DEIS mean solvers of another
    order elsewhere.
    """
    if not isinstance(sampler, str) or not isinstance(spacing, str | None) or len(sampler) > LONGEST_NAME:
        return None
    if spacing is not None and len(spacing) > LONGEST_NAME:
        return None
    try:
        entry = schedulers.from_a1111(sampler, spacing)
    except UsageError:
        return None
    return entry.name if diffusers or entry.a1111 else None


def comfy_scheduler(sampler: object, spacing: object) -> str | None:
    """Return the scheduler that ComfyUI's names of a sampler and of a spacing mean (comfy/samplers.py), None for none.

    Its `ddim` is Euler's method (`sampler_object`), and DDIM's with the spacing `ddim_uniform`. `_gpu` says where the noise
    is made, and `sample_`, of its first versions, nothing.
    """
    if not isinstance(sampler, str) or not isinstance(spacing, str):
        return None
    name = sampler.removeprefix("sample_").removesuffix("_gpu")
    if name == "ddim":
        return "ddim" if spacing == "ddim_uniform" else scheduler("euler", spacing)
    return scheduler(name, spacing)


def json_object(text: str | None, keyword: str) -> dict[str, Any] | None:
    """Return the JSON object in a text, None where it does not begin as one. What is not finite is text in it.

    Raises Unreadable where it begins as one and is none, or is more than a picture needs.
    """
    if text is None:
        return None
    text = text.strip(" \t\r\n\0")
    if not text.startswith("{"):
        return None
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise Unreadable(f"its text {keyword} has more than {MOST_VALUES} values")
    try:
        # ComfyUI writes NaN, for a node that is to be run each time.
        value = json.loads(text, parse_constant=str, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"its text {keyword} begins as JSON and is none") from error
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [v for c in level for v in (c.values() if isinstance(c, dict) else c) if isinstance(v, dict | list)]
        if not level:
            return cast("dict[str, Any]", value)
    raise Unreadable(f"its text {keyword} is nested more than {MOST_DEPTH} deep")


def _finite(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def xmp_text(texts: Texts, namespace: str, name: str) -> str | None:
    """Return a property's text out of the picture's XMP, None if it is not there or the packet can't be read.

    Cameras and editors write XMP of any kind: what is wrong with it says nothing about the picture.
    """
    for keyword in ("XMP", "ExtendedXMP"):
        packet = texts.get(keyword, "")
        if namespace in packet and len(packet) <= MOST_XMP:
            with suppress(BadInput):
                if (text := xmp.find(packet, namespace, name)) is not None:
                    return text
    return None
