"""A text hidden in the lowest bits of a picture's alpha channel, which outlives programs that drop texts.

Source: NovelAI/novelai-image-metadata, nai_meta.py (`stealth_pngcomp`: NovelAI's texts as JSON, gzipped), and
lllyasviel/stable-diffusion-webui-forge, modules/stealth_infotext.py (`stealth_pngcomp` and `stealth_pnginfo`: A1111's
infotext, gzipped or not). The bits run down the columns; sixteen bytes of a name, four with the number of bits (big-endian).
Forge can hide it in the colours as well (`stealth_rgbinfo`), which would have every picture decoded; that is not looked for.
"""

from __future__ import annotations

import os
import warnings
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from sdcli.metadata.bounds import MOST_FILE
from sdcli.metadata.readers import Unreadable, json_object

if TYPE_CHECKING:
    from PIL.Image import Image

COMPRESSED, PLAIN = b"stealth_pngcomp", b"stealth_pnginfo"
# NovelAI draws up to 3 megapixels; decoding this many takes 150 MB as WebP.
MOST_PIXELS = 2**23
MOST_TEXT = 2**22


def texts(file: BinaryIO) -> dict[str, str]:
    """Return the texts hidden in a picture, by the keywords that they would have in PNG; empty where there are none."""
    text = _text(file)
    if text is None:
        return {}
    try:
        values = json_object(text, "in the alpha channel")
    except Unreadable:
        return {}
    return {"parameters": text} if values is None else {k: v for k, v in values.items() if isinstance(v, str)}


def _text(file: BinaryIO) -> str | None:
    from PIL import Image

    if file.seek(0, os.SEEK_END) > MOST_FILE:
        return None  # Pillow reads WebP and AVIF whole before it looks at their size.
    file.seek(0)
    # Whatever a decoder stumbles over: what is broken in the pixels says nothing.
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file, formats=("PNG", "WEBP", "AVIF")) as image:
            if image.mode == "RGBA" and image.width * image.height <= MOST_PIXELS:
                return _read(image.getchannel("A"))
    return None


def _read(alpha: Image) -> str | None:
    head = _bytes(alpha, len(PLAIN) + 4)
    name, bits = head[: len(PLAIN)], int.from_bytes(head[len(PLAIN) :], "big")
    if name not in (COMPRESSED, PLAIN) or bits > alpha.width * alpha.height:
        return None
    data = _bytes(alpha, len(head) + bits // 8)[len(head) :]
    if name == COMPRESSED:
        inflate = zlib.decompressobj(wbits=31)
        data = inflate.decompress(data, MOST_TEXT)
        if not inflate.eof:
            return None
    return data.decode("utf-8")


def _bytes(alpha: Image, count: int) -> bytes:
    """Return the bytes that the first pixels' lowest bits make, from the top of the left column downwards."""
    from PIL import Image

    columns = min(-(-count * 8 // alpha.height), alpha.width)
    values = alpha.crop((0, 0, columns, alpha.height)).transpose(Image.Transpose.TRANSPOSE).tobytes()[: count * 8]
    digits = values.translate(bytes(b"01"[i & 1] for i in range(256)))
    return int(digits or b"0", 2).to_bytes(-(-len(digits) // 8), "big")
