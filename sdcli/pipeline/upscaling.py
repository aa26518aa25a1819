"""Enlarging a finished picture: by Lanczos, or by Swin2SR's networks (arXiv 2209.11345), which transformers runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

from sdcli.errors import BadInput, InputMissing, ModelUnavailable, NotFinite, OutOfMemory, UsageError
from sdcli.models import hub, hub_name, read_header, sha256_of
from sdcli.models.cache import cached
from sdcli.models.hub import Say
from sdcli.models.naming import locate
from sdcli.models.weights import PICKLES, files_in, read_json
from sdcli.pipeline.machine import import_libraries, out_of_memory
from sdcli.request import LANCZOS_FACTOR, Upscale

if TYPE_CHECKING:
    from PIL.Image import Image

LANCZOS = "lanczos"
# The files of a Swin2SR model.
PARTS = ("config.json", "model.safetensors")
# Pixels of a tile's side before it is enlarged, and those that neighbours share, over which one becomes the other.
TILE = 192
OVERLAP = 32
# Of an enlarged picture: 800 MB as RGB.
MOST_PIXELS = 2**28
HINT = "give a Swin2SR model: a folder with config.json and .safetensors weights, such weights beside it, or a hub id"


class _Config(msgspec.Struct):
    """What is read of an upscaler's config.json before torch is imported."""

    model_type: str
    upscale: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    num_channels: int = 3
    num_channels_out: int | None = None


class _Files(NamedTuple):
    """An upscaler's weights and its configuration."""

    weights: Path
    config: Path


def check(upscale: Upscale, size: tuple[int, int] | None = None) -> None:
    """Refuse, before torch is imported, an upscaler that is not here or can't be read, and a factor that makes a picture of
    `size` (width, height) larger than MOST_PIXELS. Raises InputMissing, ModelUnavailable, BadInput and UsageError."""
    if not is_here(upscale):
        return  # What it is, is known when it has been fetched.
    own = LANCZOS_FACTOR if upscale.name == LANCZOS else float(_config(_files(upscale)).upscale)
    if size is not None:
        wide, high = _enlarged(size, upscale.factor or own)
        if wide * high > MOST_PIXELS:
            raise UsageError(
                f"enlarged, the picture would have {wide}x{high} pixels",
                f"stay under {MOST_PIXELS / 1e6:.0f} megapixels",
            )


def factor_of(upscale: Upscale) -> float:
    """Return how many times larger a picture gets; torch is not imported. Raises what `check` raises."""
    if upscale.factor is not None:
        return upscale.factor
    return LANCZOS_FACTOR if upscale.name == LANCZOS else float(_config(_files(upscale)).upscale)


def pinned(upscale: Upscale) -> Upscale:
    """Return an upscaler as records keep it: by name, without the folder that it lies in, and the SHA-256 of its weights."""
    if upscale.name == LANCZOS or upscale.sha256 is not None:
        return upscale
    found = locate(upscale.name, "upscaler", HINT, [LANCZOS])
    name = found.repo or (found.path.absolute().name if found.path is not None else upscale.name)
    files = _files(upscale)
    _config(files)
    return msgspec.structs.replace(upscale, name=name, sha256=sha256_of(files.weights))


def is_here(upscale: Upscale) -> bool:
    """Whether an upscaler is on this machine; False for a hub id that has to be fetched."""
    if upscale.name == LANCZOS or upscale.sha256 is not None:
        return True
    found = locate(upscale.name, "upscaler", HINT, [LANCZOS])
    return found.path is not None or all(cached(str(found.repo), found.revision, name) for name in PARTS)


def fetch(upscale: Upscale, say: Say) -> None:
    """Download an upscaler that is on the hub only. `say` is told before. Raises what `models.fetch` raises."""
    if is_here(upscale):
        return

    def wanted(names: Sequence[str]) -> list[str]:
        if missing := [name for name in PARTS if name not in names]:
            raise BadInput(f"{upscale.name} has no {missing[0]}", HINT)
        return list(PARTS)

    hub.download(locate(upscale.name, "upscaler", HINT, [LANCZOS]), wanted, say)


def located(upscale: Upscale, folders: Sequence[Path]) -> Upscale:
    """Return an upscaler out of a record by its path, where one of that name and SHA-256 lies in one of the folders or, for a
    hub id, in the hub's cache. Else it stays as it is, and `check` refuses it."""
    if upscale.sha256 is None:
        return upscale
    places = []
    if upscale.name not in ("", ".", "..") and not any(c in upscale.name for c in "/\\\0"):
        places = [folder / upscale.name for folder in folders]
    elif hub_name(upscale.name, None) and (folder := cached(upscale.name, None, "config.json")):
        places = [folder]
    for place in places:
        try:
            if place.exists() and sha256_of(_of_path(place).weights) == upscale.sha256:
                return msgspec.structs.replace(upscale, name=str(place), sha256=None)
        except (OSError, ValueError, BadInput):
            continue
    return upscale


def enlarge(image: Image, upscale: Upscale, device: str = "cpu") -> Image:
    """Return a picture (RGB), `factor` times as wide and high, each rounded. A network enlarges by its own factor, in fp32 and
    in tiles, and Lanczos does the rest.

    Raises what `check` raises, NotFinite where the network's values are not, and OutOfMemory.
    """
    from PIL.Image import Resampling

    check(upscale, image.size)
    size = _enlarged(image.size, factor_of(upscale))
    if upscale.name != LANCZOS:
        files = _files(upscale)
        about = tuple((f.stat().st_size, f.stat().st_mtime_ns) for f in files)
        try:
            image = _by_network(image, _loaded(files, about, device), device)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise OutOfMemory(f"out of memory: {upscale.name} can't enlarge the picture", "use lanczos") from None
    return image if image.size == size else image.resize(size, Resampling.LANCZOS)


def _enlarged(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return round(size[0] * factor), round(size[1] * factor)


# Files


def _files(upscale: Upscale) -> _Files:
    if upscale.sha256 is not None:
        raise InputMissing(
            f"it was enlarged by {upscale.name} (SHA-256 {upscale.sha256[:12]}...), which is not here",
            "give it with --upscale",
        )
    found = locate(upscale.name, "upscaler", HINT, [LANCZOS])
    path = found.path
    if path is None:
        assert found.repo is not None
        path = cached(found.repo, found.revision, "config.json")
        if path is None or cached(found.repo, found.revision, "model.safetensors") is None:
            raise ModelUnavailable(
                f"the upscaler {upscale.name} is not on this machine", "it is fetched when a picture is enlarged by it"
            )
    return _of_path(path)


def _of_path(path: Path) -> _Files:
    if path.is_file():
        return _Files(path, path.parent / "config.json")
    names = files_in(path)
    if "model.safetensors" in names:
        return _Files(path / "model.safetensors", path / "config.json")
    if any(n.endswith(PICKLES) for n in names):
        raise BadInput(
            f"{path} has its weights as pickles only, which can run code when they are read",
            "use a model that has .safetensors files",
        )
    raise BadInput(f"{path} has no model.safetensors", HINT)


def _config(files: _Files) -> _Config:
    """Return an upscaler's configuration; refuse what is no Swin2SR, and weights that are cut off."""
    header = read_header(files.weights)
    if not files.config.is_file():
        raise BadInput(f"{files.weights} has no config.json beside it", HINT)
    config = read_json(files.config, _Config)
    if config.model_type != "swin2sr" or not any(name.startswith("swin2sr.") for name in header):
        raise BadInput(f"{files.weights} is no Swin2SR model", HINT)
    if config.num_channels != 3 or config.num_channels_out not in (None, 3):
        raise BadInput(f"{files.weights} does not take and give three channels", "use an upscaler for RGB pictures")
    return config


# The network


@lru_cache(maxsize=1)
def _loaded(files: _Files, about: tuple[tuple[int, int], ...], device: str) -> Any:
    """Return an upscaler's network, in fp32; the last one is kept, for the next picture."""
    import_libraries()
    import torch
    from safetensors.torch import load_file
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    try:
        model = Swin2SRForImageSuperResolution(Swin2SRConfig.from_json_file(files.config))
        missing = model.load_state_dict(load_file(files.weights), strict=False).missing_keys
    except (
        Exception
    ) as error:  # The configuration's fields and the weights' shapes: what they raise has no common base.
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{files.weights} does not fit its config.json: {reason}", "fetch the model again") from error
    if missing:
        raise BadInput(f"{files.weights} lacks {missing[0]}, which its config.json asks for", "fetch the model again")
    return model.to(device=device, dtype=torch.float32).eval()


def _by_network(image: Image, model: Any, device: str) -> Image:
    """Return a picture enlarged by a network's own factor: tiles are joined to rows, and rows to the picture."""
    from PIL import Image
    from PIL.Image import Transpose

    factor = int(model.config.upscale)
    large = Image.new("RGB", (image.width * factor, image.height * factor))
    for top, above in _steps(image.height):
        bottom = min(top + TILE, image.height)
        row = Image.new("RGB", (large.width, (bottom - top) * factor))
        for left, beside in _steps(image.width):
            tile = _tile(image.crop((left, top, min(left + TILE, image.width), bottom)), model, device)
            row.paste(tile, (left * factor, 0), _ramp(tile.width, beside * factor).resize(tile.size))
        large.paste(
            row, (0, top * factor), _ramp(row.height, above * factor).transpose(Transpose.ROTATE_270).resize(row.size)
        )
    return large


def _tile(image: Image, model: Any, device: str) -> Image:
    """Return a piece of a picture as the network enlarges it. Raises NotFinite."""
    import numpy as np
    import torch
    from PIL import Image

    factor, window = int(model.config.upscale), int(model.config.window_size)
    # transformers leaves it to whoever calls to fill its windows up.
    margins = [(0, -image.height % window), (0, -image.width % window), (0, 0)]
    pixels = np.pad(np.asarray(image), margins, mode="symmetric")
    with torch.no_grad():
        drawn = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device).float() / 255).reconstruction[0]
    if not torch.isfinite(drawn).all():
        raise NotFinite("the upscaler's values are not finite: there is no picture", "use another, or lanczos")
    values = (drawn.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0)
    return Image.fromarray(values[: image.height * factor, : image.width * factor].contiguous().numpy())


def _steps(length: int) -> Iterator[tuple[int, int]]:
    """Yield where tiles begin along a side, and how many pixels each shares with the one before."""
    yield 0, 0
    start, end = 0, TILE
    while end < length:
        # The last is moved back to be as large as the others.
        start = min(end - OVERLAP, length - TILE)
        yield start, end - start
        end = start + TILE


def _ramp(length: int, shared: int) -> Image:
    """Return a line (L) of so many pixels that goes from black to white over those that are shared."""
    from PIL import Image

    return Image.frombytes(
        "L", (length, 1), bytes(min(255, 255 * (2 * x + 1) // (2 * shared or 1)) for x in range(length))
    )
