"""Pictures for pages: heat over a picture, numbers as greys, and what goes into a page as it is."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

# The longer side of a picture in a page, in pixels: what a column of text is wide on screens of two pixels a point.
LARGEST = 1024
QUALITY = 82
# What is laid over a picture from no attention to the most, as RGB.
_HEAT = ((0, 0, 0), (120, 20, 40), (230, 90, 30), (255, 190, 60), (255, 250, 200))


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture in a page: its data: URI, its size in pixels, and what it shows in words."""

    src: str
    width: int
    height: int
    alt: str


class Album:
    """The pictures of a page; with `keep` also as files, PNG, by their names."""

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.files: dict[str, bytes] = {}

    def add(self, name: str, image: Image, alt: str, *, largest: int = LARGEST, exact: bool = False) -> Shown:
        """Return a picture as a page shows it: no larger than `largest`, and with small losses unless `exact`."""
        if self.keep:
            self.files[f"{name}.png"] = _encoded(image, "PNG")
        shown = image
        if max(image.size) > largest:
            shown = image.copy()
            shown.thumbnail((largest, largest))
        if exact:
            data, kind = _encoded(shown, "PNG"), "png"
        else:
            data, kind = _encoded(shown, "WEBP", quality=QUALITY, method=4), "webp"
        return Shown(src=uri(data, f"image/{kind}"), width=shown.width, height=shown.height, alt=alt)


def uri(data: bytes, kind: str) -> str:
    """Return data as a URI of its own."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format=format, **options)
    return out.getvalue()


def heat(image: Image, values: Any, most: float) -> Image:
    """Return a picture (RGB), dimmed, with numbers laid over it as heat: NumPy (height, width) of its size, 0 to `most`."""
    import numpy as np
    from PIL import Image as Pillow

    share = np.clip(values / most, 0, 1)[..., None] if most > 0 else np.zeros((*values.shape, 1))
    marks = np.linspace(0, 1, len(_HEAT))
    ramp = np.concatenate([np.interp(share, marks, [c[i] for c in _HEAT]) for i in range(3)], axis=2)
    below = np.asarray(image.convert("RGB"), dtype=float)
    return Pillow.fromarray(np.clip(0.5 * (1 - 0.6 * share) * below + 0.75 * ramp, 0, 255).astype("uint8"))


def greys(values: Any) -> Image:
    """Return numbers (height, width) as greys from the least to the most of them."""
    import numpy as np
    from PIL import Image as Pillow

    span = float(values.max() - values.min()) or 1.0
    return Pillow.fromarray(np.round((values - values.min()) / span * 255).astype("uint8"))


def enlarged(image: Image, to: int) -> Image:
    """Return a small picture with each of its pixels as a square, at least `to` pixels wide where it is not already."""
    from PIL import Image as Pillow

    times = max(1, to // image.width)
    return image.resize((image.width * times, image.height * times), Pillow.Resampling.NEAREST)


def difference(one: Image, other: Image, times: int) -> tuple[Image, float, int]:
    """Return how two pictures (RGB) of one size differ: the difference `times` as strong, their peak signal-to-noise ratio in
    dB (infinite for none), and the largest difference of a value of 255."""
    import math

    import numpy as np
    from PIL import Image as Pillow

    apart = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    mean = float((apart**2).mean())
    psnr = 10 * math.log10(255**2 / mean) if mean else math.inf
    shown = Pillow.fromarray(np.clip(np.abs(apart) * times, 0, 255).astype("uint8"))
    return shown, psnr, int(np.abs(apart).max())
