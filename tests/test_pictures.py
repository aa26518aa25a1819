"""Pictures to start from: every format is read as it is seen, and what is not repainted stays as it was."""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, ImageFilter

from sdcli import pictures
from sdcli.errors import BadInput, InputMissing, UsageError
from sdcli.pictures import controls, reading
from sdcli.request import Outpaint

RED, BLUE = (255, 0, 0), (0, 0, 255)
LOSSLESS = ["png", "tif", "bmp", "ppm", "qoi"]
LOSSY = ["jpg", "webp", "avif", "gif"]


def _noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    return Image.frombytes(mode, (width, height), random.Random(seed).randbytes(width * height * len(mode)))


def _flag(width: int = 60, height: int = 40) -> Image.Image:
    """Red, with blue in the corner at the upper left: no two of its eight positions are alike."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (0, 0, width // 3, height // 4))
    return image


def _values(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(image).astype(int)


def _same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


# Reading


@pytest.mark.parametrize("ending", LOSSLESS)
def test_a_lossless_picture_is_read_exactly(ending: str, tmp_path: Path) -> None:
    image = _noise(60, 40)
    image.save(tmp_path / f"a.{ending}")
    assert _same(pictures.open_picture(tmp_path / f"a.{ending}"), image)
    assert pictures.size_of(tmp_path / f"a.{ending}") == (60, 40)


@pytest.mark.parametrize("ending", LOSSY)
def test_a_lossy_picture_is_read_closely(ending: str, tmp_path: Path) -> None:
    _flag().save(tmp_path / f"a.{ending}")
    found = pictures.open_picture(tmp_path / f"a.{ending}")
    assert found.mode == "RGB" and pictures.size_of(tmp_path / f"a.{ending}") == found.size == (60, 40)
    assert abs(_values(found) - _values(_flag())).mean() < 6


@pytest.mark.parametrize("ending", [*LOSSLESS, *LOSSY])
def test_what_is_cut_off_is_refused(ending: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"a.{ending}", tmp_path / "cut"
    _noise(60, 40).save(whole)
    data = whole.read_bytes()
    for length in (0, 9, len(data) // 2, len(data) - len(data) // 8):
        cut.write_bytes(data[:length])
        with pytest.raises(BadInput) as refused:
            pictures.open_picture(cut)
        assert str(cut) in refused.value.message and refused.value.hint


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_stands_upright(ending: str, orientation: int, tmp_path: Path) -> None:
    turned = Image.Transpose
    # How a camera stores the picture so that its orientation puts it upright again (Exif 2.32, tag 274).
    back = {
        2: turned.FLIP_LEFT_RIGHT, 3: turned.ROTATE_180, 4: turned.FLIP_TOP_BOTTOM, 5: turned.TRANSPOSE,
        6: turned.ROTATE_90, 7: turned.TRANSVERSE, 8: turned.ROTATE_270,
    }.get(orientation)  # fmt: skip
    stored = _flag().transpose(back) if back is not None else _flag()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    stored.save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    found = pictures.open_picture(path)
    assert pictures.size_of(path) == found.size == (60, 40)
    assert abs(_values(found) - _values(_flag())).mean() < 6
    assert not found.getexif() and not found.info


def _chunks(data: bytes) -> list[bytes]:
    found, at = [], 8
    while at < len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        found.append(data[at : at + 12 + length])
        at += 12 + length
    return found


def test_exif_behind_a_pngs_pixels_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _flag().save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    chunks = sorted(_chunks(data), key=lambda c: [b"IHDR", b"IDAT", b"eXIf", b"IEND"].index(c[4:8]))
    (tmp_path / "late.png").write_bytes(data[:8] + b"".join(chunks))
    assert pictures.size_of(tmp_path / "late.png") == pictures.open_picture(tmp_path / "late.png").size == (40, 60)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0", b"Exif\0\0MM\0*\0\0\0\x08"]
)
def test_broken_exif_says_nothing(exif: bytes, tmp_path: Path) -> None:
    for ending in ("jpg", "png"):
        _flag().save(tmp_path / f"a.{ending}", exif=exif)
        assert pictures.open_picture(tmp_path / f"a.{ending}").size == (60, 40)
        assert pictures.size_of(tmp_path / f"a.{ending}") == (60, 40)


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64 * 16).round().astype(np.uint16).reshape(16, 64)
    expected = (values / 257).round().astype(int)
    for ending in ("png", "tif", "pgm"):
        Image.fromarray(values).save(tmp_path / f"a.{ending}")
        found = pictures.open_picture(tmp_path / f"a.{ending}")
        assert found.mode == "RGB"
        assert (_values(found) == expected[..., None]).all(), ending
    # A level of 8 bits is 257 of 16.
    Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)).save(tmp_path / "b.png")
    assert _values(pictures.open_picture(tmp_path / "b.png"))[..., 0].ravel().tolist() == list(range(256))


def test_floating_point_greys(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert _values(pictures.open_picture(tmp_path / "a.tif"))[..., 2].ravel().tolist() == list(range(256))
    for wrong in (np.float32("nan"), np.float32(2), np.float32(-1)):
        values[3, 3] = wrong
        Image.fromarray(values).save(tmp_path / "b.tif")
        with pytest.raises(BadInput, match="between 0 and 1"):
            pictures.open_picture(tmp_path / "b.tif")
    Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(tmp_path / "c.tif")
    with pytest.raises(BadInput, match="more than 16 bits"):
        pictures.open_picture(tmp_path / "c.tif")


def test_palettes_greys_and_inks(tmp_path: Path) -> None:
    flag = _flag()
    flag.quantize(4).save(tmp_path / "palette.png")
    flag.convert("1").save(tmp_path / "one.png")
    flag.convert("L").save(tmp_path / "grey.png")
    flag.convert("CMYK").save(tmp_path / "inks.tif")
    assert _same(pictures.open_picture(tmp_path / "palette.png"), flag)
    assert set(np.unique(_values(pictures.open_picture(tmp_path / "one.png")))) <= {0, 255}
    assert _same(pictures.open_picture(tmp_path / "grey.png"), flag.convert("L").convert("RGB"))
    assert _same(pictures.open_picture(tmp_path / "inks.tif"), flag)


def test_cielab_is_brought_to_srgb(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), (180, 90, 60))
    image.paste((60, 120, 150), (0, 0, 10, 10))
    srgb, cielab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(image, srgb, cielab, outputMode="LAB")
    assert lab is not None
    lab.save(tmp_path / "a.tif")
    assert abs(_values(pictures.open_picture(tmp_path / "a.tif")) - _values(image)).max() <= 4


def test_what_is_transparent_stays_so(tmp_path: Path) -> None:
    image = _noise(30, 20, "RGBA")
    image.save(tmp_path / "a.png")
    assert _same(pictures.open_picture(tmp_path / "a.png"), image)
    grey = _noise(30, 20, "LA")
    grey.save(tmp_path / "grey.png")
    assert _same(pictures.open_picture(tmp_path / "grey.png"), grey.convert("RGBA"))
    flag = _flag()
    flag.save(tmp_path / "key.png", transparency=RED)
    found = pictures.open_picture(tmp_path / "key.png")
    assert found.mode == "RGBA" and found.getpixel((0, 0)) == (*BLUE, 255) and found.getpixel((50, 30))[3] == 0  # type: ignore[index]
    palette = flag.quantize(4)
    palette.save(tmp_path / "palette.gif", transparency=palette.getpixel((50, 30)))
    found = pictures.open_picture(tmp_path / "palette.gif")
    assert found.mode == "RGBA" and found.getpixel((0, 0)) == (*BLUE, 255) and found.getpixel((50, 30))[3] == 0  # type: ignore[index]
    # What is opaque all over has nothing transparent.
    flag.convert("RGBA").save(tmp_path / "opaque.png")
    assert _same(pictures.open_picture(tmp_path / "opaque.png"), flag)


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [_flag(), Image.new("RGB", (60, 40), (0, 255, 0))]
    for ending, more in (("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("tif", {})):
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **more)
        assert _same(pictures.open_picture(tmp_path / f"a.{ending}"), _flag()), ending


def _display_p3() -> bytes:
    """A profile whose red, green and blue are other ones: sRGB's, with red and green exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * struct.unpack(">I", profile[128:132])[0], 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)


def test_colours_come_to_srgb(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = _noise(30, 20)
    for ending in ("png", "tif"):
        noise.save(tmp_path / f"same.{ending}", icc_profile=srgb)
        assert _same(pictures.open_picture(tmp_path / f"same.{ending}"), noise)
    _flag().save(tmp_path / "other.png", icc_profile=_display_p3())
    found = pictures.open_picture(tmp_path / "other.png")
    assert abs(_values(found)[30, 50] - (0, 255, 0)).max() <= 3, "what was called red is green"
    _flag().convert("RGBA").save(tmp_path / "b.png", icc_profile=_display_p3())
    assert _same(pictures.open_picture(tmp_path / "b.png"), found)
    for broken in (b"no profile", _display_p3()[:200]):
        noise.save(tmp_path / "broken.png", icc_profile=broken)
        assert _same(pictures.open_picture(tmp_path / "broken.png"), noise)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no picture at all")
    eps = tmp_path / "a.eps"
    _flag().save(eps)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "a.txt", eps, tmp_path, tmp_path / "pipe", "a\0b"):
        for reader in (pictures.open_picture, pictures.size_of):
            with pytest.raises(BadInput) as refused:
                reader(path)
            assert refused.value.hint
    for missing in (tmp_path / "none.png", tmp_path / "a.txt" / "b.png"):
        for reader in (pictures.open_picture, pictures.size_of, pictures.sha256_of):
            with pytest.raises(InputMissing, match="is not there"):
                reader(missing)


def _png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and has no pixels."""
    out = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))):
        out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return out


def test_bombs_are_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for width, height in ((9000, 9000), (60_000, 60_000), (2**31 - 1, 2)):
        (tmp_path / "bomb.png").write_bytes(_png(width, height))
        for reader in (pictures.open_picture, pictures.size_of):
            with pytest.raises(BadInput, match="pixels"):
                reader(tmp_path / "bomb.png")
    monkeypatch.setattr(reading, "MOST_FILE", 10_000)
    _noise(100, 100).save(tmp_path / "large.png")
    with pytest.raises(BadInput, match="larger than"):
        pictures.size_of(tmp_path / "large.png")


def test_a_jpeg_of_many_scans_is_refused(tmp_path: Path) -> None:
    _noise(16, 16).save(tmp_path / "a.jpg", progressive=True)
    assert pictures.open_picture(tmp_path / "a.jpg").size == (16, 16)
    data = (tmp_path / "a.jpg").read_bytes()
    last = data.rindex(b"\xff\xda")
    (tmp_path / "b.jpg").write_bytes(data[:last] + data[last:-2] * 200 + data[-2:])
    with pytest.raises(BadInput, match="scans"):
        pictures.open_picture(tmp_path / "b.jpg")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_broken_files_end_in_words(data: st.DataObject) -> None:
    """Whatever bytes are changed, a picture is read or refused."""
    import tempfile

    ending = data.draw(st.sampled_from(["png", "jpg", "webp", "gif", "tif", "bmp", "avif"]))
    kept = io.BytesIO()
    exif = (
        {}
        if ending in ("gif", "bmp")
        else {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}
    )
    _flag(24, 16).save(kept, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending), **exif)
    content = bytearray(kept.getvalue())
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)):
        content[at] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            found = pictures.open_picture(path)
        except BadInput as refused:
            assert refused.hint
        else:
            assert found.mode in ("RGB", "RGBA") and found.size == pictures.size_of(path)


def test_sizes_and_hashes_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for size in ((20, 10), (10, 20)):
        Image.new("RGB", size).save(path)
        os.utime(path, ns=(size[0], size[0]))
        assert pictures.size_of(path) == pictures.size_of(str(path)) == size
        assert pictures.sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_name_out_of_a_record_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    inside, other = tmp_path / "in", tmp_path / "other"
    for folder in (inside, other):
        folder.mkdir()
    for path in (inside / "a.png", tmp_path / "secret.png"):
        _flag().save(path)
    sha256 = pictures.sha256_of(inside / "a.png")
    assert pictures.find("a.png", sha256, [other, inside]) == inside / "a.png"
    assert pictures.find("a.png", "0" * 64, [inside]) is None
    os.mkfifo(inside / "pipe")
    names = [
        "../secret.png",
        str(tmp_path / "secret.png"),
        "..",
        ".",
        "",
        "a.png\0",
        "..\\secret.png",
        "x" * 5000,
        "pipe",
    ]
    for name in [*names, "in/a.png", "none.png", "\udcff"]:
        assert pictures.find(name, sha256, [inside, tmp_path]) is None, name


def test_a_picture_through_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = io.BytesIO()
    _flag().save(kept, "PNG")
    kept.seek(0)
    assert _same(pictures.open_picture(pictures.spooled(kept, tmp_path)), _flag())
    monkeypatch.setattr(reading, "MOST_FILE", 100)
    with pytest.raises(BadInput, match="MiB"):
        pictures.spooled(io.BytesIO(bytes(2**20 * 2)), tmp_path)


# Sizes

_SIDES = st.integers(1, 3000)


@given(
    st.tuples(_SIDES, _SIDES),
    st.sampled_from([(128, 128), (512, 512), (1024, 1024), (768, 512)]),
    st.sampled_from([8, 16, 64]),
)
def test_the_drawn_size_fits_the_model(source: tuple[int, int], native: tuple[int, int], multiple: int) -> None:
    width, height = pictures.drawn_size(source, native, multiple)
    area = native[0] * native[1]
    assert width % multiple == height % multiple == 0 and width and height
    own = source[0] * source[1]
    if source[0] % multiple == source[1] % multiple == 0 and area <= 4 * own and own <= 4 * area:
        assert (width, height) == source
    else:
        aspect = min(max(source[0] / source[1], 1 / 16), 16)
        # Half a multiple at each side, at most.
        assert (
            abs(width - (area * aspect) ** 0.5) <= multiple / 2 and abs(height - (area / aspect) ** 0.5) <= multiple / 2
        )


@pytest.mark.parametrize(
    "source, drawn",
    [
        ((512, 512), (512, 512)), ((640, 480), (640, 480)), ((256, 256), (256, 256)), ((1024, 1024), (1024, 1024)),
        ((4000, 3000), (592, 440)), ((641, 480), (592, 440)), ((100, 100), (512, 512)), ((10_000, 1), (2048, 128)),
    ],
)  # fmt: skip
def test_sizes_by_example(source: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert pictures.drawn_size(source, (512, 512), 8) == drawn


@pytest.mark.parametrize("how", ["fit", "fill", "stretch"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_its_own_size_changes_nothing(how: pictures.placing.How, mode: str) -> None:
    image = _noise(40, 24, mode)
    assert _same(pictures.fitted(image, (40, 24), how).image, image)


@settings(deadline=None)
@given(*[st.integers(1, 90)] * 4, st.sampled_from(["fit", "fill", "stretch"]), st.sampled_from(["RGB", "RGBA", "L"]))
def test_any_size_is_taken(w: int, h: int, width: int, height: int, how: pictures.placing.How, mode: str) -> None:
    placed = pictures.fitted(_noise(w, h, mode), (width, height), how)
    assert placed.image.size == (width, height) and placed.image.mode == mode
    if placed.filling is not None:
        assert how == "fit" and placed.filling.size == (width, height)
        box = placed.filling.point(lambda v: 255 - v).getbbox()
        # The picture touches two opposite sides.
        assert box is not None and ((box[0], box[2]) == (0, width) or (box[1], box[3]) == (0, height))


def test_fill_cuts_and_fit_keeps_all() -> None:
    image = Image.new("RGB", (200, 100), RED)
    image.paste(BLUE, (0, 0, 20, 100))
    image.paste(BLUE, (180, 0, 200, 100))
    fill = _values(pictures.fitted(image, (50, 50), "fill").image)
    assert (fill == RED).all(), "the blue ends are cut off, evenly"
    stretched = _values(pictures.fitted(image, (50, 50), "stretch").image)
    ends = np.concatenate([stretched[:, :4], stretched[:, -4:]])
    # Lanczos rings a little.
    assert abs(ends - BLUE).max() < 30 and abs(stretched[:, 8:-8] - RED).max() < 5
    whole, filling = pictures.fitted(image, (50, 50), "fit")
    assert filling is not None and filling.point(lambda v: 255 - v).getbbox() == (0, 12, 50, 37)
    shown = _values(whole)
    assert abs(shown[14:35, :4] - BLUE).max() < 30 and abs(shown[14:35, 8:-8] - RED).max() < 5
    # The filling has the colours of the edge that it goes on from, and no black.
    assert abs(shown[[0, -1], 20:30] - RED).max() < 5 and shown[0, 0, 2] > 150


def test_pixels_that_are_added_go_on_from_the_edge() -> None:
    image = _noise(40, 24)
    canvas, mask = pictures.outpainted(image, None, 8, 0, 16, 4)
    assert canvas.size == mask.size == (64, 28)
    assert _same(canvas.crop((8, 0, 48, 24)), image)
    assert mask.point(lambda v: 255 - v).getbbox() == (8, 0, 48, 24) and set(np.unique(_values(mask))) == {0, 255}
    plain, _ = pictures.outpainted(Image.new("RGB", (8, 8), RED), None, 20, 20, 20, 20)
    assert (_values(plain) == RED).all()
    own = Image.new("L", (40, 24))
    own.paste(255, (0, 0, 5, 5))
    _, mask = pictures.outpainted(image, own, 8, 0, 16, 4)
    assert mask.crop((8, 0, 48, 24)).getbbox() == (0, 0, 5, 5)


# Transparent pixels


def test_transparent_pixels_lie_on_white() -> None:
    image = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    assert [pictures.on_white(image).getpixel((x, 0)) for x in range(4)] == [
        (10, 20, 30), (127, 127, 127), (255, 255, 255), (255, 255, 255),
    ]  # fmt: skip


def test_a_hole_gets_the_colours_around_it() -> None:
    image = Image.new("RGBA", (64, 64), (*RED, 255))
    image.paste((0, 255, 0, 0), (20, 20, 44, 44))
    image.putpixel((0, 0), (1, 2, 3, 100))
    colours, holes = pictures.uncovered(image)
    assert holes is not None and holes.getpixel((0, 0)) == 155 and holes.getpixel((30, 30)) == 255
    assert colours.getpixel((0, 0)) == (1, 2, 3), "what can be seen a little keeps its colour"
    assert abs(_values(colours)[21:43, 21:43] - RED).max() <= 3, "and nothing of what stood under the hole is seen"
    assert pictures.uncovered(_flag())[1] is None
    empty, holes = pictures.uncovered(Image.new("RGBA", (9, 5), (0, 0, 0, 0)))
    assert holes is not None and holes.getextrema() == (255, 255) and (_values(empty) == 255).all()


# Masks


def test_white_is_repainted() -> None:
    mask = Image.new("RGB", (20, 10))
    mask.paste((255, 255, 255), (0, 0, 10, 10))
    assert pictures.mask_of(mask).getbbox() == (0, 0, 10, 10)
    assert pictures.mask_of(mask, invert=True).getbbox() == (10, 0, 20, 10)
    grey = Image.new("L", (5, 1))
    for x, v in enumerate((0, 7, 128, 248, 255)):
        grey.putpixel((x, 0), v)
    assert _values(pictures.mask_of(grey)).ravel().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 30)])
def test_a_mask_in_one_colour_is_its_alpha(colour: tuple[int, int, int]) -> None:
    mask = Image.new("RGBA", (20, 10), (9, 9, 9, 0))
    mask.paste((*colour, 255), (0, 0, 5, 5))
    mask.paste((*colour, 128), (5, 0, 10, 5))
    found = pictures.mask_of(mask)
    assert found.getpixel((2, 2)) == 255 and found.getpixel((7, 2)) == 128 and found.getpixel((15, 8)) == 0


def test_a_mask_with_colours_and_alpha_is_both() -> None:
    mask = Image.new("RGBA", (3, 1), (255, 255, 255, 255))
    mask.putpixel((1, 0), (255, 255, 255, 0))
    mask.putpixel((2, 0), (0, 0, 0, 255))
    assert _values(pictures.mask_of(mask)).ravel().tolist() == [255, 0, 0]
    assert pictures.mask_of(Image.new("RGBA", (3, 1), (255, 255, 255, 255))).getextrema() == (255, 255)


def test_a_jpegs_traces_are_no_mask(tmp_path: Path) -> None:
    mask = Image.new("L", (256, 256))
    ImageDraw.Draw(mask).ellipse((64, 64, 160, 160), fill=255)
    mask.save(tmp_path / "a.jpg", quality=75)
    found = _values(pictures.mask_of(pictures.open_picture(tmp_path / "a.jpg")))
    near = _values(mask.filter(ImageFilter.MaxFilter(17))) > 0
    assert (found[~near] == 0).all() and (found[near] > 0).any()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.floats(0, 40))
def test_a_softened_mask_never_shrinks(seed: int, blur: float) -> None:
    mask = _noise(30, 20, "L", seed).point(lambda v: 255 if v > 250 else 0)
    soft = _values(pictures.softened(mask, blur))
    assert (soft >= _values(mask)).all()


@pytest.mark.parametrize("blur", [1, 4, 16, 33.5])
def test_the_edge_falls_outwards_over_the_blur(blur: float) -> None:
    mask = Image.new("L", (200, 9))
    mask.paste(255, (0, 0, 100, 9))
    row = _values(pictures.softened(mask, blur))[4]
    assert (row[:100] == 255).all() and (np.diff(row) <= 0).all()
    reach = int((row > 0).sum()) - 100
    assert abs(reach - blur) <= 2
    if blur > 4:
        # In the middle of it, half.
        assert abs(row[100 + round(blur / 2)] - 127.5) < 255 / blur * 1.5


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 39),
    st.integers(0, 39),
    st.integers(1, 255),
    st.sampled_from([1, 8]),
)
def test_the_network_repaints_whole_cells(w: int, h: int, x: int, y: int, value: int, cell: int) -> None:
    mask = Image.new("L", (w, h))
    x, y = x % w, y % h
    mask.putpixel((x, y), value)
    left, top = x // cell * cell, y // cell * cell
    found = pictures.repainted(mask, cell)
    assert found.getbbox() == (left, top, min(w, left + cell), min(h, top + cell)) and set(
        np.unique(_values(found))
    ) <= {0, 255}


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_outside_the_mask_every_bit_is_the_sources(seed: int) -> None:
    drawn, source = _noise(24, 16, seed=seed), _noise(24, 16, seed=seed + 1)
    mask = _noise(24, 16, "L", seed + 2).point(lambda v: 0 if v < 100 else 255 if v > 180 else v)
    found, weights = _values(pictures.composited(drawn, source, mask)), _values(mask)
    assert (found[weights == 0] == _values(source)[weights == 0]).all()
    assert (found[weights == 255] == _values(drawn)[weights == 255]).all()
    share = weights[..., None] / 255
    assert abs(found - (share * _values(drawn) + (1 - share) * _values(source))).max() <= 1


# All of it


def test_a_start_without_a_mask() -> None:
    image = Image.new("RGBA", (100, 50), (0, 0, 0, 0))
    found = pictures.start(image, None, (40, 40), how="fit")
    assert found.mask is None and found.image.size == (40, 40) and (_values(found.image) == 255).all()
    assert _same(pictures.start(_noise(40, 40), None, (40, 40)).image, _noise(40, 40))


def test_a_start_with_a_mask_of_another_size() -> None:
    source = _noise(64, 64)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 16))
    found = pictures.start(source, mask, (64, 64))
    assert _same(found.image, source) and found.mask is not None
    soft = _values(found.mask)
    assert (soft[:31, :31] == 255).all() and (soft[34:] == 0).all() and (soft[:, 34:] == 0).all()
    # What a mask of another aspect does not cover is kept.
    found = pictures.start(source, Image.new("L", (64, 32), 255), (64, 64), how="fit")
    assert found.mask is not None and found.mask.getbbox() == (0, 16, 64, 48)


def test_with_a_mask_what_fit_fills_in_is_repainted() -> None:
    mask = Image.new("L", (64, 32))
    mask.paste(255, (0, 0, 8, 8))
    found = pictures.start(_noise(64, 32), mask, (64, 64), how="fit")
    assert found.mask is not None
    soft = _values(found.mask)
    assert (soft[:16] == 255).all() and (soft[48:] == 255).all() and (soft[16:24, :8] == 255).all()
    assert (soft[24:48] == 0).all() and (soft[16:24, 8:] == 0).all()


def test_outpainting_keeps_the_source(tmp_path: Path) -> None:
    source = _noise(64, 48)
    found = pictures.start(source, None, (96, 64), outpaint=Outpaint(left=32, top=16), blur=8)
    assert found.mask is not None
    soft = _values(found.mask)
    assert _same(found.image.crop((32, 16, 96, 64)), source)
    assert (soft[:16] == 255).all() and (soft[:, :32] == 255).all()
    assert (soft[26:, 42:] == 0).all() and 0 < soft[40, 35] < 255, "the seam is soft, into the picture"


def test_what_is_transparent_is_repainted_with_a_mask() -> None:
    image = Image.new("RGBA", (32, 32), (*RED, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 32))
    mask = Image.new("L", (32, 32))
    mask.paste(255, (24, 0, 32, 32))
    found = pictures.start(image, mask, (32, 32))
    assert found.mask is not None and [found.mask.getpixel((x, 9)) for x in (4, 16, 28)] == [255, 0, 255]
    assert (_values(found.image) == RED).all()
    # So a mask that is black all over is none where something is transparent.
    found = pictures.start(image, Image.new("L", (32, 32)), (32, 32))
    assert found.mask is not None and found.mask.getbbox() == (0, 0, 8, 32)


def test_a_mask_of_which_nothing_is_repainted_is_refused() -> None:
    for mask, invert in ((Image.new("L", (9, 9)), False), (Image.new("RGB", (9, 9), (255, 255, 255)), True)):
        with pytest.raises(UsageError, match="black all over") as refused:
            pictures.start(_noise(32, 32), mask, (32, 32), invert=invert)
        assert refused.value.hint
    with pytest.raises(UsageError, match="nothing"):
        pictures.start(_noise(32, 32), None, (32, 32), outpaint=Outpaint())


# Controls


def _square() -> Image.Image:
    image = Image.new("RGB", (96, 96), (20, 20, 20))
    image.paste((230, 230, 230), (32, 32, 64, 64))
    return image


def test_canny_finds_the_edges() -> None:
    edges = pictures.control_image(_square(), "canny")
    assert edges.mode == "RGB" and edges.size == (96, 96)
    values = _values(edges)[..., 0]
    assert set(np.unique(values)) == {0, 255}
    rows, columns = np.nonzero(values)
    # A line around the square, and nothing in it.
    furthest = np.maximum(abs(rows - 47.5), abs(columns - 47.5))
    assert 100 < len(rows) < 140 and furthest.min() >= 15 and furthest.max() <= 17


def test_the_other_controls() -> None:
    square = _square()
    assert _same(pictures.control_image(square, "none"), square)
    assert (_values(pictures.control_image(square, "invert")) == 255 - _values(square)).all()
    flag = pictures.control_image(_flag(), "gray")
    assert _same(flag, _flag().convert("L").convert("RGB"))
    blurred = _values(pictures.control_image(square, "blur"))[48, :, 0]
    assert (np.diff(blurred[:48]) >= 0).all() and 20 < blurred[32] < 200 and len(set(blurred)) > 8
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert pictures.control_image(clear, "none").getpixel((0, 0)) == (255, 255, 255)


def test_canny_without_opencv_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(controls, "find_spec", lambda name: None)
    for how in ("none", "blur", "gray", "invert"):
        pictures.check_control(how)  # type: ignore[arg-type]
    for call in (lambda: pictures.check_control("canny"), lambda: pictures.control_image(_square(), "canny")):
        with pytest.raises(UsageError) as refused:
            call()
        assert refused.value.hint == "pip install 'sdcli[control]'"
