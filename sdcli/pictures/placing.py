"""How a picture takes the size that is drawn, what of it is repainted, and how the two are put together again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sdcli.errors import UsageError
from sdcli.request import Outpaint

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
How = Literal["fit", "fill", "stretch"]
WHITE = (255, 255, 255)
# A picture's own size is drawn where its area is so many times the native one, or that part of it, at most.
NEAR = 4
# Times that one side is longer than the other, at most, where the size is not the picture's own.
LONGEST = 16
# Greys so near to black or white are taken for it in a mask: JPEG makes them.
NOISE = 8


class Fitted(NamedTuple):
    """A picture in another size, and what of it is filling and no picture: white in `filling` (L), None where nothing is."""

    image: Image
    filling: Image | None = None


class Start(NamedTuple):
    """A picture to start from (RGB), and what is repainted of it: white in `mask` (L, soft), None where all is drawn over."""

    image: Image
    mask: Image | None = None


def start(
    image: Image,
    mask: Image | None,
    size: Size,
    *,
    how: How = "fill",
    invert: bool = False,
    blur: float = 0.0,
    outpaint: Outpaint | None = None,
) -> Start:
    """Return a picture (RGB or RGBA) and its mask (any mode) as they are drawn from, in `size` (width, height).

    In this order: the mask takes the picture's size; pixels are added at the edges; both take the drawn size; the mask is
    softened. With a mask or added edges, what is transparent and what `fit` fills in is repainted too; without, transparent
    pixels are laid on white. Raises UsageError where nothing would be repainted.
    """
    if mask is None and outpaint is None:
        return Start(fitted(on_white(image), size, how).image)
    repaint = None
    if mask is not None:
        repaint = _mask_fitted(mask_of(mask, invert), image.size, how)
    image, holes = uncovered(image)
    repaint = _either(repaint, holes)
    if outpaint is not None:
        image, repaint = outpainted(image, repaint, outpaint.left, outpaint.top, outpaint.right, outpaint.bottom)
    placed = fitted(image, size, how)
    repaint = _mask_fitted(repaint, size, how) if repaint is not None else None
    repaint = _either(repaint, placed.filling)
    assert repaint is not None
    check_mask(repaint)
    return Start(placed.image, softened(repaint, blur))


# Sizes


def drawn_size(source: Size, native: Size, multiple: int) -> Size:
    """Return the width and height to draw for a picture, where none were asked for.

    Its own if both sides are multiples and its area is a quarter of the `native` one at least and four times it at most;
    else its aspect (16:1 at most) at the native area, each side rounded to a multiple.
    """
    width, height = source
    area = native[0] * native[1]
    if not (width % multiple or height % multiple) and area <= NEAR * width * height and width * height <= NEAR * area:
        return source
    aspect = min(max(width / height, 1 / LONGEST), LONGEST)
    sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
    return max(1, round(sides[0] / multiple)) * multiple, max(1, round(sides[1] / multiple)) * multiple


def fitted(image: Image, size: Size, how: How = "fill") -> Fitted:
    """Return a picture in another size: `fill` covers it and cuts off, evenly, what is too much; `fit` keeps the whole, in the
    middle of its own edge's colours; `stretch` gives up its aspect. In its own size it stays as it is. Lanczos (a = 3)."""
    from PIL.Image import Resampling

    return _fitted(image, size, how, Resampling.LANCZOS)


def _fitted(image: Image, size: Size, how: How, resample: Any) -> Fitted:
    from PIL import Image, ImageOps

    if image.size == size:
        return Fitted(image)
    if how == "stretch":
        return Fitted(image.resize(size, resample))
    if how == "fill":
        return Fitted(ImageOps.fit(image, size, resample))
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = (
        min(size[0], max(1, round(image.width * scale))),
        min(size[1], max(1, round(image.height * scale))),
    )
    whole = image.resize(inner, resample) if inner != image.size else image
    if inner == size:
        return Fitted(whole)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    filling = Image.new("L", size, 255)
    filling.paste(0, (left, top, left + inner[0], top + inner[1]))
    right, bottom = size[0] - inner[0] - left, size[1] - inner[1] - top
    return Fitted(_extended(whole, left, top, right, bottom), filling)


def outpainted(image: Image, mask: Image | None, left: int, top: int, right: int, bottom: int) -> tuple[Image, Image]:
    """Return a picture (RGB) with so many pixels more at its sides, in the colours of its edges, and its mask (L), in which
    they are white."""
    from PIL import Image

    canvas = _extended(image, left, top, right, bottom)
    repaint = Image.new("L", canvas.size, 255)
    repaint.paste(mask if mask is not None else 0, (left, top, left + image.width, top + image.height))
    return canvas, repaint


def _extended(image: Image, left: int, top: int, right: int, bottom: int) -> Image:
    """Return a picture with margins of its edge's colours, blurred: a network goes on with streaks where it finds some."""
    import numpy as np
    from PIL import Image, ImageFilter

    margins = [(top, bottom), (left, right)]
    pixels = np.asarray(image)
    padded = np.pad(pixels, [*margins, *[(0, 0)] * (pixels.ndim - 2)], mode="edge")
    canvas = Image.fromarray(padded).filter(ImageFilter.GaussianBlur(max(left, top, right, bottom) / 4))
    canvas.paste(image, (left, top))
    return canvas


# Transparent pixels


def on_white(image: Image) -> Image:
    """Return a picture as RGB, laid on white where it is transparent."""
    from PIL import Image

    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image).convert("RGB")


def uncovered(image: Image) -> tuple[Image, Image | None]:
    """Return a picture's colours (RGB) and what is transparent of it: white in a mask (L), None where nothing is.

    Where it is fully transparent it gets the colours of what is near; else its own, whatever the alpha.
    """
    from PIL import Image, ImageChops

    if image.mode != "RGBA":
        return image.convert("RGB"), None
    alpha = image.getchannel("A")
    near, step = image, 2
    while near.getchannel("A").getextrema()[0] != 255 and step < 2 * max(image.size):
        # Twice as coarse each time. Pillow weighs by alpha when it resizes RGBA.
        few = image.resize((-(-image.width // step), -(-image.height // step)), Image.Resampling.BOX)
        few.putalpha(few.getchannel("A").point(_all_or_nothing))
        near = Image.alpha_composite(few.resize(image.size, Image.Resampling.BILINEAR), near)
        step *= 2
    colours = Image.composite(image.convert("RGB"), on_white(near), alpha.point(_all_or_nothing))
    return colours, ImageChops.invert(alpha) if alpha.getextrema()[0] != 255 else None


def _all_or_nothing(value: int) -> int:
    return 255 if value else 0


# Masks


def mask_of(image: Image, invert: bool = False) -> Image:
    """Return what a picture (L, RGB or RGBA) says is repainted, as L: white all, black nothing.

    Where some of it is transparent: its luminance times its alpha; of one drawn in a single colour, its alpha. Greys within 8
    of black or white are taken for it.
    """
    from PIL import ImageChops

    mask = image.convert("L")
    if image.mode == "RGBA":
        alpha = image.getchannel("A")
        low, high = (int(v) for v in alpha.getextrema())  # type: ignore[arg-type]
        mask = alpha if low != high and _is_one_colour(image, alpha) else ImageChops.multiply(mask, alpha)
    mask = mask.point(lambda v: 0 if v < NOISE else 255 if v > 255 - NOISE else v)
    return ImageChops.invert(mask) if invert else mask


def _is_one_colour(image: Image, alpha: Image) -> bool:
    """Whether all that can be seen of a picture has one colour."""
    import numpy as np

    seen = np.asarray(image.convert("RGB"))[np.asarray(alpha) > 0]
    return bool((seen == seen[0]).all())


def check_mask(mask: Image) -> None:
    """Refuse a mask of which nothing is repainted."""
    if mask.getextrema()[1] == 0:
        raise UsageError("the mask is black all over: nothing would be repainted", "white is; try --invert-mask")


def softened(mask: Image, blur: float) -> Image:
    """Return a mask (L) whose edge falls to black over `blur` pixels, outwards: what was white stays white."""
    from PIL import Image, ImageChops, ImageFilter

    if blur <= 0:
        return mask
    import numpy as np

    # Wider by half of it, and blurred by the other half, the edge begins to fall where it was.
    half = math.ceil(blur / 2)
    wider = _widened(_widened(np.asarray(mask), half).T, half).T
    blurred = Image.fromarray(np.ascontiguousarray(wider)).filter(ImageFilter.BoxBlur(blur / 2))
    return ImageChops.lighter(mask, blurred)


def _widened(values: Any, by: int) -> Any:
    """Return the greatest of each value (rows, columns) and those of `by` rows above and below."""
    import numpy as np

    found, reach, whole = np.pad(values, [(by, by), (0, 0)]), 1, 2 * by + 1
    while reach < whole:
        # Each place holds the greatest of as many as `reach` from it on.
        step = min(reach, whole - reach)
        found, reach = np.maximum(found[:-step], found[step:]), reach + step
    return found


def repainted(mask: Image, cell: int = 8) -> Image:
    """Return which pixels the network is told to repaint: white (L) in each cell, of `cell` x `cell` pixels, of which the soft
    mask leaves some; all else black.

    diffusers takes 128 and more for white, and of each cell the pixel in its corner: what is smaller would be missed, and what
    is soft would be cut.
    """
    import numpy as np
    from PIL import Image

    values = np.asarray(mask) > 0
    height, width = values.shape
    padded = np.pad(values, [(0, -height % cell), (0, -width % cell)])
    cells = padded.reshape(padded.shape[0] // cell, cell, padded.shape[1] // cell, cell).any(axis=(1, 3))
    whole = cells.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    return Image.fromarray(np.where(whole, 255, 0).astype("uint8"))


def composited(drawn: Image, source: Image, mask: Image) -> Image:
    """Return what was drawn inside the mask, and outside of it (black) the source's pixels, bit for bit; in between, both in the
    mask's proportion. All have one size; the pictures are RGB, the mask L."""
    from PIL import Image

    assert drawn.size == source.size == mask.size
    return Image.composite(drawn, source, mask)


def _mask_fitted(mask: Image, size: Size, how: How) -> Image:
    """Return a mask in another size; nothing is repainted where it has nothing. Lanczos would leave traces beside its edges."""
    from PIL.Image import Resampling

    placed = _fitted(mask, size, how, Resampling.BILINEAR)
    if placed.filling is not None:
        placed.image.paste(0, (0, 0, *size), placed.filling)
    return placed.image


def _either(one: Image | None, other: Image | None) -> Image | None:
    from PIL import ImageChops

    if one is None or other is None:
        return one if other is None else other
    return ImageChops.lighter(one, other)
