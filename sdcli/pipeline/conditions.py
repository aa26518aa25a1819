"""What a pack is drawn from besides words: pictures, opened and brought to size, and what is left of them afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sdcli import models, pictures
from sdcli.errors import InputMissing
from sdcli.models import Family
from sdcli.models.adapters import in_force
from sdcli.request import File, GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Pictures of the drawn size. `sources` are what is started from, one for each of the pack (none: from noise), `strength`
    how far the drawing may go from them; `mask` (mode L) is white where they are repainted, None everywhere; `controls` are
    what ControlNets read, `references` (of any size) what IP-Adapters read."""

    sources: tuple[Image, ...] = ()
    strength: float = 1.0
    mask: Image | None = None
    controls: tuple[Image, ...] = ()
    references: tuple[Image, ...] = ()

    @property
    def start(self) -> str:
        """What is started from, as `models.Family.starts` calls it."""
        start = "mask" if self.mask is not None else "image" if self.sources else ""
        return "-".join(filter(None, ("control" if self.controls else "", start)))

    def arguments(self, request: GenerationRequest, factor: int) -> dict[str, Any]:
        """Return what pipelines of diffusers call these; `factor` is how many pixels a latent's side stands for."""
        given: dict[str, Any] = {}
        if self.sources:
            given = {"image": list(self.sources), "strength": self.strength}
        if self.mask is not None:
            given["mask_image"] = pictures.repainted(self.mask, factor)
        if self.controls:
            one = len(self.controls) == 1
            name = "control_image" if self.sources else "image"
            scales = [net.scale for net in in_force(request.controlnet)]
            given[name] = self.controls[0] if one else list(self.controls)
            given["controlnet_conditioning_scale"] = scales[0] if one else scales
        if self.references:
            given["ip_adapter_image"] = list(self.references)
        return given

    def steps(self, request: GenerationRequest, family: Family) -> int:
        """Return how many of a request's steps are drawn: from a picture, most families draw only the last of them."""
        steps = request.num_inference_steps
        return models.steps_of(steps, self.strength, family) if self.sources else steps

    def kept(self, drawn: Image, index: int) -> Image:
        """Return a drawn picture with what is outside the mask put back."""
        return drawn if self.mask is None else pictures.composited(drawn, self.sources[index], self.mask)

    def over(self, drawn: Sequence[Image], request: GenerationRequest, size: tuple[int, int]) -> Conditions:
        """Return what finished pictures are drawn over from, enlarged to `size`."""
        from PIL import Image

        assert request.hires is not None
        sources = tuple(image.resize(size, Image.Resampling.LANCZOS) for image in drawn)
        return replace(self, sources=sources, strength=request.hires.strength, controls=_controls(request, size))


def conditions(request: GenerationRequest, count: int) -> Conditions:
    """Open the pictures that a resolved request names, for a pack of `count`."""
    if not (request.init_image or request.controlnet or request.ip_adapter):
        return Conditions()
    assert request.width is not None and request.height is not None
    size = (request.width, request.height)
    source = mask = None
    if request.init_image:
        source, mask = pictures.start(
            _opened(request.init_image), _opened(request.mask) if request.mask else None, size,
            how=request.resize or "fill", invert=request.invert_mask, blur=request.mask_blur, outpaint=request.outpaint,
        )  # fmt: skip
    return Conditions(
        sources=() if source is None else (source,) * count,
        strength=1.0 if request.strength is None else request.strength,
        mask=mask,
        controls=_controls(request, size),
        references=tuple(pictures.on_white(_opened(adapter.image)) for adapter in in_force(request.ip_adapter)),
    )


def _controls(request: GenerationRequest, size: tuple[int, int]) -> tuple[Image, ...]:
    how, made = request.resize or "fill", request.control_preprocess or "none"
    nets = in_force(request.controlnet)
    fitted = (pictures.fitted(pictures.on_white(_opened(net.image)), size, how).image for net in nets)
    return tuple(pictures.control_image(image, made) for image in fitted)


def _opened(path: str | File | None) -> Image:
    """Open a picture that was found. Raises InputMissing for one out of a record that was not."""
    if isinstance(path, File):
        raise InputMissing(
            f"it was drawn from {path.name} (SHA-256 {path.sha256[:12]}...), which is not here",
            "put it beside the picture",
        )
    assert path is not None
    return pictures.open_picture(path)
