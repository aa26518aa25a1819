"""What happened: the record of a picture, and the picture with it."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from sdcli.request import GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMA = 1


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The weights that drew: `files` are paths in the model's folder and their SHA-256 in hex. What begins with `--` is none of
    its weights: `--vae/...` another autoencoder's, `--config` its configurations and vocabularies, where no commit stands for them.
    """

    name: str
    family: str
    repo: str | None = None
    commit: str | None = None
    files: dict[str, str] = {}
    adapters: tuple[dict[str, Any], ...] = ()


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how it was drawn; `reasons` says of each decision why it was taken."""

    device: str
    dtype: str
    attention_slicing: str
    vae_tiling: bool
    offload: str
    threads: int
    pack_size: int
    reasons: dict[str, str] = {}


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How the prompt was read: tokens used, chunks of 75 (those of the longer of prompt and negative prompt), the text that did
    not fit (empty: all did), and the syntax of its weights (null: sdcli of a time before it knew any)."""

    used: int
    chunks: int
    cut: str = ""
    syntax: str | None = None


class SecondsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: loading (of this process, shared by its pictures), drawing and decoding (of the pack)."""

    load: float
    draw: float
    decode: float


class SchedulerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler that ran: `name` as `sdcli schedulers` lists it (null: not in the list), its diffusers class, what
    A1111 calls it (`sampler` is the class where A1111 has no such algorithm, `schedule_type` null where it has no such
    spacing), and the settings in which it differs from the model's own configuration."""

    name: str | None
    class_name: str
    sampler: str
    schedule_type: str | None
    settings: dict[str, Any] = {}


class PixelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The picture itself: SHA-256 in hex over its row-major 8-bit bytes, size in pixels, mode as Pillow names it.

    `stored_sha256` is over the pixels that a lossy file holds, decoded again as RGB; null where none were lost.
    """

    sha256: str
    width: int
    height: int
    mode: str
    stored_sha256: str | None = None


class EncodingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How the pixels were put into the file: what it takes to encode a redraw in the same way.

    `quality` is what `--quality` says (or the format's own), `settings` are Pillow's for it, `versions` those of Pillow and of
    the library that encoded.
    """

    format: str
    quality: int
    settings: dict[str, str | int | bool]
    versions: dict[str, str]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, and only that: made by `pipeline`, written by `metadata`.

    `request.prompt` is what was drawn, `template` what it was expanded from. `id` is a hash of the resolved request and
    the model, the same in any run. `request.scheduler` is what was asked for (null: the model's own), `scheduler` what
    ran. `flagged` is the safety checker's word, null where none looked. `encoding` is null in PNG, which has no settings
    that matter.
    """

    schema: int = SCHEMA
    id: str
    request: GenerationRequest
    template: str | None = None
    tags: dict[str, str] = {}
    model: ModelRecord
    plan: PlanRecord
    versions: dict[str, str]
    tokens: TokenRecord
    scheduler: SchedulerRecord
    flagged: bool | None = None
    fallbacks: tuple[str, ...] = ()
    seconds: SecondsRecord
    pixels: PixelRecord
    encoding: EncodingRecord | None = None


class GeneratedImage(msgspec.Struct, frozen=True, kw_only=True):
    """A picture (Pillow, RGB), its record, and what a person should be told about it."""

    image: Image
    record: Record
    warnings: tuple[str, ...] = ()


def pixels_of(image: Image) -> PixelRecord:
    """Return what a record says of a picture's pixels."""
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    return PixelRecord(sha256=digest, width=image.width, height=image.height, mode=image.mode)


@cache
def _defaults() -> dict[str, Any]:
    fields = msgspec.structs.fields(GenerationRequest)
    return {f.name: msgspec.to_builtins(f.default) for f in fields if f.name != "prompt"}


def said_of(request: GenerationRequest) -> dict[str, Any]:
    """Return a request's fields that are not at their defaults, and the prompt: what hashes are made of."""
    defaults = _defaults()
    said = {k: v for k, v in msgspec.to_builtins(request).items() if k == "prompt" or v != defaults[k]}
    return {k: _by_content(v) if isinstance(v, (dict, list, tuple)) else v for k, v in said.items()}


def _by_content(value: Any) -> Any:
    """Return what is left of files where their names, and where they were found, do not count; what says nothing is left out."""
    if isinstance(value, (list, tuple)):
        return [_by_content(v) for v in value]
    if not isinstance(value, dict):
        return value
    left = ("name", "commit") if value.get("sha256") else ()
    return {k: _by_content(v) for k, v in value.items() if v is not None and k not in left}


def job_id(request: GenerationRequest, model: ModelRecord) -> str:
    """Return the id of a job: SHA-256 in hex over the resolved request and the model's identity.

    A request's fields at their defaults are left out, so that a field that sdcli learns later changes no id. The model
    counts by its commit, which has several precisions, and by its files' content; not by the name that it was asked for, nor
    by that of a single file. Adapters and pictures count by what the request says of their content, as records keep it.
    """
    said = said_of(request)
    files = {name if "/" in name or name.startswith("--") else "": sha256 for name, sha256 in model.files.items()}
    identity: dict[str, Any] = {"files": files}
    if model.commit is not None:
        identity |= {"repo": model.repo, "commit": model.commit}
    text = msgspec.json.encode({"request": said, "model": identity, "adapters": ()}, order="sorted")
    return hashlib.sha256(text).hexdigest()
