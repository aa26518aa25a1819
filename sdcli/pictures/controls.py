"""What is made of a picture before a ControlNet reads it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from sdcli.errors import UsageError
from sdcli.pictures.placing import on_white

if TYPE_CHECKING:
    from PIL.Image import Image

Control = Literal["none", "canny", "blur", "gray", "invert"]
# Gradients between which an edge is one if it goes on from a stronger: what diffusers' documentation uses.
CANNY = (100, 200)
# Standard deviation of the blur, as a part of the shorter side: 9 pixels of 512.
BLUR = 9 / 512


def check_control(how: Control) -> None:
    """Refuse, before anything is loaded, what needs a package that is not installed."""
    if how == "canny" and find_spec("cv2") is None:
        raise UsageError(
            "--control-preprocess canny needs OpenCV, which is not installed", "pip install 'sdcli[control]'"
        )


def control_image(image: Image, how: Control) -> Image:
    """Return what is made of a picture (RGB or RGBA, in the size that is drawn), as RGB.

    `none`: the picture; `canny`: its edges, white on black (Canny 1986, by OpenCV); `blur`: a soft one (Gaussian);
    `gray`: its luminance; `invert`: its negative, for drawings in black on white.
    """
    from PIL import Image, ImageChops, ImageFilter

    check_control(how)
    image = on_white(image)
    if how == "canny":
        import cv2
        import numpy as np

        # Of the colours, and not of the luminance: red on a blue as bright has edges too.
        edges = cv2.Canny(np.asarray(image), *CANNY)
        return Image.fromarray(edges).convert("RGB")
    if how == "blur":
        return image.filter(ImageFilter.GaussianBlur(BLUR * min(image.size)))
    if how == "gray":
        return image.convert("L").convert("RGB")
    return ImageChops.invert(image) if how == "invert" else image
