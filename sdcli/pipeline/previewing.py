"""Latents to look at: by a linear map that is as good as free, or by the model's own autoencoder.

A latent's channels at one place say little more than the colour there, so that a map of them alone to red, green and blue
gives a small picture. It is fitted to the model's own autoencoder: pictures of plain colours, patches and gradients are
encoded, and the least squares are taken.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli import output, places
from sdcli.errors import SdcliError, UsageError
from sdcli.pipeline.machine import out_of_memory

if TYPE_CHECKING:
    from sdcli.pipeline.drawing import Pipeline

# Those of diffusers whose latents are the pipelines' own, but for a factor and a shift.
AUTOENCODERS = {"AutoencoderKL", "AutoencoderDC", "AutoencoderTiny"}
# Pictures of each kind that the map is fitted to, and the side of their latents.
EXAMPLES = 8
SIDE = 8


def check(pipeline: Pipeline) -> None:
    """Raise UsageError for a model whose steps can't be shown."""
    if hasattr(pipeline.pipe, "_unpack_latents") or type(_autoencoder(pipeline)).__name__ not in AUTOENCODERS:
        raise UsageError(
            f"{pipeline.model.name} holds its latents in a way of its own: its steps can't be shown",
            "leave --animate and --save-steps out",
        )


class Linear:
    """A map of a latent's channels to colours: `weights` (channels + 1, 3), the last row for what is added."""

    def __init__(self, weights: Sequence[Sequence[float]]) -> None:
        self.weights = [[float(w) for w in row] for row in weights]
        self._tensor: Any = None

    def pictures(self, latents: Any) -> list[Any]:
        """Return small pictures (Pillow, RGB), a pixel for each place of latents (pack, channels, height, width)."""
        import torch
        from PIL import Image

        if self._tensor is None or self._tensor.device != latents.device:
            self._tensor = torch.tensor(self.weights, device=latents.device)
        colours = torch.einsum("pchw,cd->phwd", latents.float(), self._tensor[:-1]) + self._tensor[-1]
        found = (colours.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        return [Image.fromarray(one) for one in found]


def linear(pipeline: Pipeline) -> Linear:
    """Return the map that fits a model's autoencoder; it is kept on disk by the hash of that."""
    key = _key(pipeline)
    path = places.cache_folder() / "previews" / f"{key}.json" if key else None
    found = _kept(path, _channels(pipeline)) if path else None
    if found is None:
        found = _fitted(pipeline)
        if path:
            _keep(found, path)
    return found


def decode(pipeline: Pipeline, latents: Any) -> list[Any]:
    """Return the pictures (Pillow, RGB) that the model's autoencoder makes of latents (pack, channels, height / 8, width / 8).

    The pipeline stays as it is: no fall-back is taken for them, and no record tells of it. Where memory runs out, or the
    autoencoder is not at hand since parts are offloaded, they are those of the linear map, enlarged.
    """
    if pipeline.offload == "none":
        with suppress(_NoRoom):
            return [*_decoded(pipeline, latents)]
    side = getattr(pipeline.pipe, "vae_scale_factor", 8)
    return [p.resize((p.width * side, p.height * side)) for p in linear(pipeline).pictures(latents)]


class _NoRoom(Exception):
    """There is no memory to decode in."""


def _decoded(pipeline: Pipeline, latents: Any) -> Iterator[Any]:
    import torch

    vae, before = _autoencoder(pipeline), pipeline.way.decoding
    factor, shift = scaling(vae)
    try:
        with widened(vae, bool(vae.config.get("force_upcast", False))):
            for latent in latents.split(1):
                given = latent.to(vae.device, torch.float32) / factor.to(vae.device) + shift.to(vae.device)
                with torch.no_grad():
                    image = vae.decode(given.to(vae.dtype), return_dict=False)[0]
                yield pipeline.pipe.image_processor.postprocess(image.nan_to_num(), output_type="pil")[0]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        pipeline.forget(error)
        raise _NoRoom from None
    finally:
        pipeline.way.decoding = before  # That is of the pictures that are drawn.


def _autoencoder(pipeline: Pipeline) -> Any:
    return getattr(pipeline.pipe, pipeline.family.autoencoder)


def _channels(pipeline: Pipeline) -> int:
    return int(_autoencoder(pipeline).config.latent_channels)


@contextmanager
def widened(vae: Any, wanted: bool) -> Iterator[None]:
    """Have an autoencoder in fp16, which overflows in some, work in fp32; what is widened and narrowed again is the same."""
    import torch

    wide = wanted and vae.dtype == torch.float16
    if wide:
        vae.to(dtype=torch.float32)
    try:
        yield
    finally:
        if wide:
            vae.to(dtype=torch.float16)


def scaling(vae: Any) -> tuple[Any, Any]:
    """Return what the autoencoder's own latents are multiplied by once the other has been taken off, by channel
    (1, channels or 1, 1, 1)."""
    import torch

    def by_channel(values: Any) -> Any:
        return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)

    factor, shift = (
        by_channel(vae.config.get("scaling_factor") or 1.0),
        by_channel(vae.config.get("shift_factor") or 0.0),
    )
    if (mean := vae.config.get("latents_mean")) is not None and (std := vae.config.get("latents_std")) is not None:
        factor, shift = factor / by_channel(std), by_channel(mean)
    return factor, shift


# The linear map


def _fitted(pipeline: Pipeline) -> Linear:
    """Encode pictures and take the least squares; some hundredths of a second for an autoencoder as Stable Diffusion's."""
    import torch
    from torch.nn import functional

    vae = _autoencoder(pipeline)
    side, (factor, shift) = SIDE * getattr(pipeline.pipe, "vae_scale_factor", 8), scaling(vae)
    pictures = _examples(side)
    try:
        with widened(vae, pipeline.offload == "none"), torch.no_grad():
            given = (pictures * 2 - 1).to(pipeline.pipe._execution_device, vae.dtype)
            out = vae.encode(given)
        own = (out.latent_dist.mean if "latent_dist" in out else out[0]).float().cpu()
    finally:
        if pipeline.offload != "none":
            # Encoding brought the autoencoder onto the device, where the networks want its room.
            pipeline.pipe.maybe_free_model_hooks()
    latents = (own - shift) * factor
    colours = functional.adaptive_avg_pool2d(pictures, latents.shape[-2:])
    if not torch.isfinite(latents).all():
        raise RuntimeError("the autoencoder's values are not finite: nothing can be fitted to it")
    known = latents.permute(0, 2, 3, 1).flatten(0, 2).double()
    known = torch.cat([known, torch.ones(len(known), 1, dtype=torch.double)], 1)
    wanted = colours.permute(0, 2, 3, 1).flatten(0, 2).double()
    return Linear(torch.linalg.lstsq(known, wanted).solution.tolist())


def _examples(side: int) -> Any:
    """Return pictures (pictures, 3, side, side) from 0 to 1: plain, in patches, and gradients; the same each time."""
    import torch
    from torch.nn import functional

    generator = torch.Generator("cpu").manual_seed(0)

    def colours(cells: int) -> Any:
        return torch.rand((EXAMPLES, 3, cells, cells), generator=generator)

    smooth = functional.interpolate(colours(4), size=(side, side), mode="bilinear")
    return torch.cat([smooth, *(functional.interpolate(colours(cells), size=(side, side)) for cells in (4, 1))])


def _key(pipeline: Pipeline) -> str | None:
    """Return a name for the autoencoder's weights, None where they are not known."""
    files = pipeline.model_record.files
    own = {k: v for k, v in files.items() if k.startswith("--vae")} or {
        k: v for k, v in files.items() if k.startswith(f"{pipeline.family.autoencoder}/")
    }
    weights = own or {k: v for k, v in files.items() if not k.startswith("--")}
    said = json.dumps([EXAMPLES, SIDE, sorted(weights.items())])
    return hashlib.sha256(said.encode()).hexdigest()[:32] if weights else None


def _kept(path: Path, channels: int) -> Linear | None:
    """Return the map that a file holds; None for one that is not there, or not whole."""
    with suppress(OSError, ValueError, TypeError):
        found = Linear(json.loads(path.read_text("utf-8")))
        if [len(row) for row in found.weights] == [3] * (channels + 1) and all(
            math.isfinite(w) for row in found.weights for w in row
        ):
            return found
    return None


def _keep(found: Linear, path: Path) -> None:
    # It saves a moment, no more: where it can't be kept, it is fitted again.
    with suppress(SdcliError):
        output.write(path, json.dumps(found.weights).encode(), overwrite=True)
