"""Pictures as PNG, JPEG, WebP and AVIF: each holds the whole record, says which pixels it holds, and is read within bounds."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from sdcli import metadata
from sdcli.errors import BadInput, InputMissing, UsageError
from sdcli.metadata import carried, exif, inspecting, xmp
from sdcli.metadata.bounds import MOST_PARTS
from sdcli.metadata.coding import digest
from sdcli.metadata.infotext import infotext
from sdcli.metadata.jpeg import EXTENSION, XMP_PORTION
from sdcli.record import EncodingRecord, Record
from sdcli.request import GenerationRequest
from tests.conftest import Sdcli, pixels
from tests.test_metadata import CALM, PICTURE, UNICODE, chunks, record

FORMATS = list(metadata.FORMATS)
# Format and quality, and whether pixels are lost.
CODINGS = [
    ("png", None, False), ("jpg", None, True), ("jpg", 100, True), ("webp", None, True), ("webp", 99, True),
    ("webp", 100, False), ("avif", None, True), ("avif", 100, True),
]  # fmt: skip
# Colours with hard edges, which every lossy encoding changes.
COLOURS = Image.merge("RGB", [Image.linear_gradient("L").resize((40, 24)).rotate(a).point(p) for a, p in
                              ((0, lambda v: v), (90, lambda v: 255 - v), (180, lambda v: v // 64 * 80))])  # fmt: skip
DRAW = ["generate", "a red circle on a blue background", "-m", "demo", "--steps", "8", "-s", "7"]


def decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def texts(data: bytes) -> dict[str, str]:
    return metadata.texts_of(io.BytesIO(data))


def read_back(data: bytes, folder: Path) -> Record | None:
    path = folder / "x"
    path.write_bytes(data)
    return metadata.read(path)


# Pixels


@pytest.mark.parametrize(("format", "quality", "lossy"), CODINGS)
@pytest.mark.parametrize("how", ["full", "minimal", "none"])
def test_the_hash_is_of_the_pixels_in_the_file(
    tmp_path: Path, format: str, quality: int, lossy: bool, how: Any
) -> None:
    made = record(pixels=metadata.PixelRecord(sha256=digest(COLOURS), width=40, height=24, mode="RGB"))
    encoded = metadata.encoded(COLOURS, made, format, how, quality)
    held = decoded(encoded.data)
    assert encoded.pixels == digest(held) and not encoded.warnings
    assert (encoded.pixels != made.pixels.sha256) == lossy
    path = tmp_path / "x"
    path.write_bytes(encoded.data)
    identity = metadata.identity(path)
    if how == "none":
        assert identity is None and texts(encoded.data) == {}
        return
    assert identity is not None and identity.id == made.id and identity.pixels.sha256 == made.pixels.sha256
    assert identity.pixels.stored_sha256 == (encoded.pixels if lossy else None)
    kept = metadata.read(path)
    if how == "minimal":
        assert kept is None
        return
    assert kept is not None
    if format == "png":
        assert kept == made
        return
    # With the recorded settings a redraw becomes the same file again.
    assert kept.encoding is not None and kept.encoding.format == format
    assert kept.encoding.quality == (quality or {"jpg": 90, "webp": 90, "avif": 80}[format])
    assert kept.encoding.versions["pillow"] and len(kept.encoding.versions) == 2
    assert digest(metadata.as_stored(COLOURS, kept.encoding)) == encoded.pixels
    assert metadata.encoded(COLOURS, made, format, how, quality) == encoded


def test_webp_says_how_large_it_may_be() -> None:
    with pytest.raises(UsageError, match="16383 pixels"):
        metadata.encoded(Image.new("RGB", (16384, 8)), record(), "webp", "full")


def test_quality_and_colours() -> None:
    sizes = [len(metadata.encoded(COLOURS, record(), "jpg", "none", q).data) for q in (10, 50, 90)]
    assert sizes == sorted(set(sizes))
    with Image.open(io.BytesIO(metadata.encoded(COLOURS, record(), "jpg", "none").data)) as image:
        assert image.layer[1][1:3] == (1, 1)  # type: ignore[attr-defined]  # The colours' own resolution.


@pytest.mark.parametrize(
    ("format", "changes", "failure"),
    [
        ("bmp", {}, UsageError),
        ("jpg", {"quality": 101}, BadInput),
        ("jpg", {"quality": "90"}, BadInput),
        ("jpg", {"exif": "x"}, BadInput),
        ("jpg", {"subsampling": "keep"}, BadInput),
        ("webp", {"method": 7}, BadInput),
        ("avif", {"max_threads": 10**6}, BadInput),
        ("avif", {"codec": "rav1e"}, BadInput),
    ],
)
def test_an_encoding_out_of_a_picture_is_checked(
    format: str, changes: dict[str, Any], failure: type[Exception]
) -> None:
    good = {
        "jpg": {"quality": 90}, "webp": {"lossless": False, "quality": 90, "method": 4}, "avif": {"quality": 80}, "bmp": {},
    }  # fmt: skip
    encoding = EncodingRecord(format=format, quality=90, settings={**good[format], **changes}, versions={})
    with pytest.raises(failure):
        metadata.as_stored(PICTURE, encoding)


# Texts in and out


REQUESTS = st.builds(
    GenerationRequest, prompt=UNICODE, negative_prompt=UNICODE, seed=st.integers(0, 2**63 - 1),
    num_inference_steps=st.integers(1, 1000), guidance_scale=st.floats(0, 1000), scheduler=st.none() | UNICODE,
    width=st.none() | st.integers(8, 16384), clip_skip=st.integers(0, 64), eta=st.none() | st.floats(0, 1),
    guidance_rescale=st.floats(0, 1),
)  # fmt: skip
TAGS = st.dictionaries(UNICODE, UNICODE, max_size=2)


def comes_back(
    folder: Path, format: str, quality: int | None, request: GenerationRequest, tags: dict[str, str]
) -> None:
    """Check that a request comes back exactly out of a file, and that A1111's text does, whatever that has lost."""
    made = msgspec.structs.replace(record(tags=tags, template=request.prompt[::-1]), request=request)
    data = metadata.encoded(PICTURE, made, format, "full", quality).data
    kept = read_back(data, folder)
    assert kept is not None and kept.request == request
    pixels = msgspec.structs.replace(kept.pixels, stored_sha256=None)
    assert msgspec.structs.replace(kept, encoding=None, pixels=pixels) == made
    said = texts(data)
    # UTF-16 takes a byte order mark at the start for what it is called.
    text = infotext(made) if format == "png" else infotext(made).removeprefix("\ufeff")
    assert said["parameters" if format == "png" else "UserComment"] == text


@pytest.mark.parametrize(
    ("format", "quality"), [("png", None), ("jpg", None), ("webp", None), ("webp", 100), ("avif", None)]
)
@settings(CALM, max_examples=40)
@given(request=REQUESTS, tags=TAGS)
def test_any_request_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, format: str, quality: int | None, request: GenerationRequest,
    tags: dict[str, str],
) -> None:  # fmt: skip
    comes_back(tmp_path_factory.getbasetemp(), format, quality, request, tags)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("format", "quality"), [("png", None), ("jpg", None), ("webp", None), ("webp", 100), ("avif", None)]
)
@settings(CALM, max_examples=10_000)
@given(request=REQUESTS, tags=TAGS)
def test_any_of_ten_thousand_requests_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, format: str, quality: int | None, request: GenerationRequest,
    tags: dict[str, str],
) -> None:  # fmt: skip
    comes_back(tmp_path_factory.getbasetemp(), format, quality, request, tags)


HARD = (
    "", " ", "\n", "\r", "\r\n", "\0", "\ufeff", "\ufffe", "a\ufeffb", "✨\U0001f469\u200d\U0001f467", "&<>\"'`]]>",
    "</sdcli:record>", "{}", "\\", "\\u0026", "a\nNegative prompt: b\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 1x1",
    "一" * 300, "\u00df\ud7ff\ue000\U0010ffff", "\x1b[31m\x7f\x85", '<?xpacket end="w"?>', '"stored_sha256":null',
)  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_hard_prompts_come_back_exactly(tmp_path: Path, format: str) -> None:
    for prompt in HARD:
        comes_back(
            tmp_path, format, None, GenerationRequest(prompt=prompt, negative_prompt=prompt, seed=1), {prompt: prompt}
        )


@pytest.mark.parametrize("format", FORMATS)
def test_long_prompts_come_back_exactly(tmp_path: Path, format: str) -> None:
    """A segment of a JPEG ends at 64 KiB: XMP goes on in others, and EXIF can't."""
    for length in (31_000, 33_000, 200_000):
        made = record("ä星✨" * (length // 3))
        encoded = metadata.encoded(PICTURE, made, format, "full")
        kept = read_back(encoded.data, tmp_path)
        assert kept is not None and kept.request == made.request
        assert decoded(encoded.data).size == PICTURE.size
        too_long = format == "jpg" and length > 31_000
        assert ("UserComment" in texts(encoded.data)) == (format != "png" and not too_long)
        assert [("A1111" in w, "too long" in w) for w in encoded.warnings] == [(True, True)] * too_long
        assert ("ExtendedXMP" in texts(encoded.data)) == (format == "jpg")
    with pytest.raises(BadInput, match="too long"):
        metadata.encoded(PICTURE, record("x" * 3_000_000), format, "full")
    assert metadata.encoded(PICTURE, record("x" * 3_000_000), format, "minimal").data


def longest(sign: str) -> tuple[int, int]:
    """Return a length of a prompt of a sign that is written, and one a little longer that is not."""
    short, long = 1, 3_000_000
    while long - short > 100:
        middle = (short + long) // 2
        try:
            carried.carried(record(sign * middle), "full")
            short = middle
        except BadInput:
            long = middle
    return short, long


@pytest.mark.parametrize("sign", ["x", "星", "😀", '"', "&\x7f", "\n"], ids=ascii)
def test_what_is_written_can_be_read(tmp_path: Path, sign: str) -> None:
    """However long: where a prompt is accepted each container is read again, and a little more is refused."""
    most, too_much = longest(sign)
    assert most > 100_000
    # How it was encoded stands in the record as well.
    made = record(sign * (most - 500))
    for format in FORMATS:
        path = tmp_path / f"x.{format}"
        path.write_bytes(metadata.encoded(PICTURE, made, format, "full").data)
        found = inspecting.inspect(path)
        assert found.record is not None and found.record.request == made.request, format
        with pytest.raises(BadInput, match="too long") as caught:
            metadata.encoded(PICTURE, record(sign * too_much), format, "full")
        assert caught.value.hint and "--metadata minimal" in caught.value.hint


def test_too_long_a_prompt_is_refused_before_anything_is_drawn(process: Sdcli, tmp_path: Path) -> None:
    text = ("星" * 1_200_000).encode()
    for ending in ("webp", "jpg"):
        done = process("generate", "-", "-m", "demo", "-o", f"x.{ending}", "--json", stdin=text)
        assert done.code == 65 and "too long" in done.stderr and "loading" not in done.stderr, done.stderr[-500:]
        (event,) = done.events
        assert (event["event"], event["exit"]) == ("error", 65) and len(event["message"]) < 200
    assert not list(tmp_path.iterdir())


def test_extended_xmp_is_read_in_any_order_and_whole_or_not_at_all() -> None:
    made = record("星" * 50_000)
    data = metadata.encoded(PICTURE, made, "jpg", "full").data
    head = b"\xff\xe1" + (2 + len(EXTENSION) + 40 + XMP_PORTION).to_bytes(2, "big") + EXTENSION
    first, *portions = data.split(head)
    assert len(portions) > 3

    def joined(parts: list[bytes]) -> bytes:
        return first + b"".join(head + part for part in parts)

    last = portions.pop()  # With a shorter portion, and the pixels.
    assert texts(joined([*portions, last])) == texts(data)
    assert texts(joined([*reversed(portions), last]))["sdcli"] == texts(data)["sdcli"]
    for damaged in ([*portions[1:], last], [*portions, portions[0], last]):
        assert not {"ExtendedXMP", "sdcli"} & set(texts(joined(damaged)))
    renamed = data.replace(EXTENSION + data.partition(EXTENSION)[2][:32], EXTENSION + b"0" * 32)
    assert "ExtendedXMP" not in texts(renamed)


@pytest.mark.parametrize("format", FORMATS)
def test_minimal_says_nothing_of_the_prompt(format: str) -> None:
    made = record("a secret", negative_prompt="secret", template="secret", tags={"secret": "secret"})
    data = metadata.encoded(PICTURE, made, format, "minimal").data
    said = texts(data)
    assert set(said) == {"XMP", "sdcli"} and xmp.MADE_BY_AI in said["XMP"]
    assert set(json.loads(said["sdcli"])) == {"schema", "id", "pixels"}
    assert b"secret" not in data and "secret".encode("utf-16-be") not in data


@pytest.mark.parametrize("format", FORMATS)
def test_lone_surrogates_are_refused(format: str) -> None:
    with pytest.raises(BadInput, match="Unicode"):
        metadata.encoded(PICTURE, record("a\udc80b"), format, "full")


# Other programs' texts


def tiff(order: str, *entries: tuple[int, int, bytes]) -> bytes:
    """Return a TIFF with these values (tag, type, bytes) in its first directory."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8) + struct.pack(order + "H", len(entries))
    at, data = 8 + 2 + 12 * len(entries) + 4, b""
    for tag, kind, value in entries:
        count = len(value) // {3: 2, 4: 4}.get(kind, 1)
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", at + len(data))
        head += struct.pack(order + "HHI", tag, kind, count) + place
        data += value if len(value) > 4 else b""
    return head + b"\0" * 4 + data


A1111 = "ein Stern ✨\nSteps: 20, Sampler: Euler"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"UNICODE\0" + A1111.encode("utf-16-be"), A1111),
        (b"UNICODE\0" + A1111.encode("utf-16-le"), A1111),
        (b"UNICODE\0" + A1111.encode("utf-16"), A1111),
        (b"UNICODE\0" + "\ufeff{}".encode("utf-16-be"), "{}"),
        (b"UNICODE\0" + '{"c":"ein Stern"}'.encode("utf-16-le"), '{"c":"ein Stern"}'),
        (b"UNICODE\0" + ("一丁七" * 9 + "ein Stern").encode("utf-16-be"), "一丁七" * 9 + "ein Stern"),
        (b"UNICODE\0" + b"\0a\xd8", "a"),
        (b"ASCII\0\0\0" + "{\"p\": \"ü\"}\0".encode(), '{"p": "ü"}'),
        (b"\0" * 8 + "ü".encode(), "ü"),
        (b"no code at all", "no code at all"),
        (b"x", "x"),
        (b"JIS\0\0\0\0\0" + b"\x46\x7c", None),
        (b"ASCII\0\0\0\xff", None),
        (b"ASCII\0\0\0   ", "   "),
        (b"", None),
    ],
)  # fmt: skip
def test_user_comments(value: bytes, text: str | None) -> None:
    for kind in (1, 2, 7):  # Pillow writes BYTE, Fooocus ASCII, the standard UNDEFINED.
        for order in "<>":
            assert exif.texts(tiff(order, (0x9286, kind, value))).get("UserComment") == text


def test_texts_of_exif(tmp_path: Path) -> None:
    said = {"ImageDescription": "a", "Make": 'prompt:{"1":{}}', "Model": "workflow:{}", "Software": "x y", "Artist": "ü",
            "MakerNote": "fooocus", "XPComment": "星"}  # fmt: skip
    tags = {name: tag for tag, name in exif.TAGS.items()}
    entries = [
        (tags[n], 2, (t.encode("utf-16-le") if n == "XPComment" else t.encode()) + b"\0\0") for n, t in said.items()
    ]
    block = tiff("<", *((tag, 1 if tag == tags["XPComment"] else kind, value) for tag, kind, value in entries))
    for format in ("PNG", "JPEG", "WEBP", "AVIF"):
        buffer = io.BytesIO()
        PICTURE.save(buffer, format, exif=b"Exif\0\0" + block, **({"comment": "hello"} if format == "JPEG" else {}))
        assert texts(buffer.getvalue()) == said | ({"Comment": "hello"} if format == "JPEG" else {})
    assert exif.texts(tiff("<", (tags["MakerNote"], 7, b"\xff\xfe\x00binary"))) == {}


def test_a_value_in_the_exif_directory_is_found_and_wins() -> None:
    inner = struct.pack("<HHHII", 1, 0x9286, 7, 4, 0x64636261) + b"\0" * 4
    outer = tiff("<", (0x9286, 7, b"xyz"), (0x8769, 4, struct.pack("<I", 38)))
    assert len(outer) == 38
    assert exif.texts(outer + inner) == {"UserComment": "abcd"}


def png_with(*parts: tuple[bytes, bytes], after: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    (head, header), *rest = chunks(buffer.getvalue())
    all_parts = [(head.encode(), header), *parts, *((k.encode(), c) for k, c in rest[:-1]), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in all_parts
    )


def test_texts_of_png_wherever_they_stand() -> None:
    data = png_with(
        (b"tEXt", b"a\0latin \xfc"), (b"tEXt", "b\0utf ü".encode()), (b"zTXt", b"c\0\0" + zlib.compress(b"packed")),
        (b"iTXt", "d\0\0\0de\0übersetzt\0星".encode()), (b"iTXt", b"e\0\1\0\0\0" + zlib.compress("✨".encode())),
        (b"tEXt", b"a\0again"), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"), (b"tEXt", b"no separator"),
        after=((b"tEXt", b"late\0yes"),),
    )  # fmt: skip
    assert texts(data) == {
        "a": "latin ü", "b": "utf ü", "c": "packed", "d": "星", "e": "✨", "XMP": "<x/>", "no separator": "", "late": "yes",
    }  # fmt: skip


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def test_heif_brands_and_data_in_the_meta_box() -> None:
    data = metadata.encoded(PICTURE, record("x"), "avif", "full").data
    assert texts(data.replace(b"ftypavif", b"ftypmif1", 1)) == texts(data)
    assert texts(data.replace(b"ftypavif", b"ftypavis", 1)) == texts(data)
    with pytest.raises(BadInput, match="not a picture"):
        texts(data.replace(b"ftypavif", b"ftypmp42", 1))

    # An item of version 3, placed by a version 2 that counts from `idat`, in boxes of 64 bits and to the end.
    item = box(b"infe", b"\3\0\0\0" + struct.pack(">IH4s", 9, 0, b"mime") + b"name\0application/rdf+xml\0")
    place = b"\2\0\0\0\x44\x40" + struct.pack(">IIHHIHII", 1, 9, 1, 0, 0, 1, 1, 4)
    boxes = box(b"iinf", b"\1\0\0\0" + struct.pack(">I", 1) + item) + box(b"iloc", place) + box(b"idat", b"!<x/>!")
    meta = struct.pack(">I4sQ", 1, b"meta", 16 + 4 + len(boxes)) + b"\0" * 4 + boxes
    assert texts(box(b"ftyp", b"avif\0\0\0\0avifmif1") + meta + struct.pack(">I4s", 0, b"mdat")) == {"XMP": "<x/>"}


# Hostile files


@settings(CALM, max_examples=150)
@given(format=st.sampled_from(FORMATS), data=st.data())
def test_a_damaged_picture_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, format: str, data: st.DataObject
) -> None:
    whole = bytearray(WHOLE[format])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        if data.draw(st.integers(0, 3)) == 0:
            del whole[max(at, 1) :]
        else:
            whole[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(whole)
    for reader in (metadata.read, metadata.identity):
        try:
            reader(path)
        except BadInput as error:
            assert "damaged" in error.message


WHOLE = {format: metadata.encoded(PICTURE, record("ü"), format, "full").data for format in FORMATS}


@pytest.mark.parametrize("format", FORMATS)
def test_a_cut_picture_is_refused(format: str) -> None:
    data = WHOLE[format]
    for size in (len(data) - 1, len(data) - 20, len(data) // 2, 40, 33, 5, 0):
        with pytest.raises(BadInput):
            texts(data[:size])


def test_wrong_sums_and_types_are_refused() -> None:
    data = bytearray(png_with((b"tEXt", b"a\0b")))
    at = data.index(b"tEXt") + 7
    data[at] ^= 1
    for bad in (bytes(data), b"\x89PNG\r\n\x1a\n" + png_with()[33:], png_with((b"zTXt", b"a\0\0no zlib"))):
        with pytest.raises(BadInput):
            texts(bad)
    for bad in (b"", b"II*\0", b"XX*\0\0\0\0\x08", tiff("<", (0x9286, 7, b"x" * 99))[:-1], b"II*\0\xff\xff\xff\xff"):
        with pytest.raises(BadInput, match="EXIF"):
            exif.texts(bad)


def test_loops_and_overlaps_in_exif_end() -> None:
    # A directory that points to itself is read twice and no more.
    loop = tiff("<", (0x8769, 4, struct.pack("<I", 8)), (0x9286, 7, b"abc"))
    assert exif.texts(loop) == {"UserComment": "abc"}
    value = struct.pack("<II", 2000, 0)
    overlap = b"II*\0\x08\0\0\0" + struct.pack("<H", 2)
    overlap += struct.pack("<HH", 0x010E, 2) + value + struct.pack("<HH", 0x010F, 2) + value
    with pytest.raises(BadInput, match="overlap"):
        exif.texts(overlap.ljust(3000, b"x"))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(BadInput, match="not a file"):
            metadata.texts(path)
    with pytest.raises(InputMissing):
        metadata.texts(tmp_path / "none")


def hostile() -> dict[str, bytes]:
    """Return files that want much to be read; zeros at an end are left for the file system to make up."""
    ihdr = png_with()[:33]
    jpeg, webp, avif = WHOLE["jpg"], WHOLE["webp"], WHOLE["avif"]
    bomb = zlib.compress(b"\0" * 100_000_000, 1)
    many = b"\xff\xfe\0\2" * (MOST_PARTS * 4)
    items = (
        struct.pack(">II", 1 << 24, 2**32 - 1) + box(b"infe", struct.pack(">IHH4s", 2 << 24, 1, 0, b"Exif")) * 50_000
    )
    return {
        "a gigabyte of text.png": ihdr + struct.pack(">I4s", 2**30, b"tEXt"),
        "a gigabyte of EXIF.webp": webp[:12] + struct.pack("<4sI", b"EXIF", 2**30),
        "a bomb in zTXt.png": png_with((b"zTXt", b"a\0\0" + bomb)),
        "a bomb in iTXt.png": png_with((b"iTXt", b"a\0\1\0\0\0" + bomb)),
        "many texts.png": png_with(*((b"tEXt", b"%d\0x" % i) for i in range(90_000))),
        "many chunks.png": ihdr + b"".join([struct.pack(">I4sI", 0, b"aaaa", zlib.crc32(b"aaaa"))] * (MOST_PARTS + 9)),
        "as much text as may be.png": png_with((b"iTXt", b"a\0\0\0\0\0" + b"x" * (16 * 2**20 - 40) + "✨".encode())),
        "too much text.png": png_with(*[(b"tEXt", b"a\0" + b"x" * (9 * 2**20))] * 2),
        "many segments.jpg": jpeg[:20] + many,
        "fill bytes.jpg": jpeg[:20] + b"\xff" * 5_000_000,
        "many comments.jpg": jpeg[:20] + (b"\xff\xfe\xff\xff" + b"x" * 65_533) * 400,
        "many names.jpg": jpeg[:20]
        + b"".join(b"\xff\xe1\0\x4b" + EXTENSION + b"%032X" % i + b"\0" * 8 for i in range(90_000))
        + jpeg[20:],
        "large EXIF.png": png_with(
            *[(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\x69\x87\4\0\1\0\0\0\x08\0\0\0" * 65_536)] * 20
        ),
        "many chunks.webp": webp[:4] + struct.pack("<I", 2**24) + b"WEBP" + b"aaaa\0\0\0\0" * (2**21),
        "many boxes.avif": avif[:32] + struct.pack(">I4s", 8, b"free") * (MOST_PARTS * 3),
        "many items.avif": avif[:32] + box(b"meta", b"\0" * 4 + box(b"iloc", b"") + box(b"iinf", items)),
        "deep JSON.png": png_with((b"tEXt", b"sdcli\0" + b"[" * 10**6)),
        "deep XMP.png": png_with((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<sdcli:record>" * 10**6)),
        "no end.jpg": jpeg[:-2],
        "packed.png": gzip.compress(WHOLE["png"]),
    }


NO_RECORD = ("as much text as may be.png", "many texts.png", "deep XMP.png", "large EXIF.png")
# VmHWM: the most memory since the program began; getrusage counts that of the process that started it, too.
READ_ALL = """
import json, time
from pathlib import Path
from sdcli import metadata
from sdcli.errors import BadInput
said = {}
for path in sorted(Path(".").iterdir()):
    start = time.perf_counter()
    try:
        answer = "a record" if metadata.read(path) else "none"
    except BadInput as error:
        answer = error.message.partition(": ")[2]
    seconds = time.perf_counter() - start
    memory = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    said[path.name] = answer, seconds, memory
print(json.dumps(said))
"""


def test_hostile_files_cost_little(tmp_path: Path) -> None:
    """Each of them gets its answer in under 2 seconds and 300 MB."""
    files = hostile()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        if "gigabyte" in name:
            with open(tmp_path / name, "r+b") as file:
                file.truncate(2**31)  # A hole, which takes no room.
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    said = json.loads(done.stdout)
    assert set(said) == set(files)
    for name, (answer, seconds, memory) in said.items():
        assert seconds < 2 and memory < 300, (name, answer, seconds, memory)
        assert (answer == "none") == (name in NO_RECORD), (
            name,
            answer,
        )


# Through the front door


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_is_drawn_and_says_how(sdcli: Sdcli, format: str) -> None:
    name = f"x.{'JPEG' if format == 'jpg' else format}"
    done = sdcli(*DRAW, "-o", name, "--json")
    assert done.code == 0, done.stderr
    (event,) = done.events
    assert event["path"] == name and event["format"] == format
    kept = metadata.read(Path(name))
    assert kept is not None and kept.request.prompt == DRAW[1] and kept.id == event["id"]
    seen = pixels(name)
    assert seen.shape == (128, 128, 3)
    # Red in the middle, blue at the border, in whatever the file is.
    middle, border = seen[64, 64], seen[3, 3]
    assert middle[0] > 150 > middle[2] and border[2] > 150 > border[0]
    with Image.open(name) as image:
        assert digest(image.convert("RGB")) == (kept.pixels.stored_sha256 or kept.pixels.sha256)
    assert (kept.pixels.stored_sha256 is None) == (format == "png")


def test_format_and_quality(sdcli: Sdcli) -> None:
    command = [*DRAW[:4], "--steps", "1", "-s", "1"]
    assert sdcli(*command, "--format", "webp").lines == ["a-red-circle-on-a-blue-background-1.webp"]
    assert sdcli(*command, "--format", "webp", "--quality", "100", "-o", "{seed}.{format}").lines == ["1.webp"]
    kept = metadata.read(Path("1.webp"))
    assert kept is not None and kept.encoding is not None
    assert kept.encoding.quality == 100 and kept.pixels.stored_sha256 is None
    assert digest(decoded(Path("1.webp").read_bytes())) == kept.pixels.sha256
    assert sdcli(*command, "--set", "quality=30", "-o", "x.jpg").code == 0
    kept = metadata.read(Path("x.jpg"))
    assert kept is not None and kept.encoding is not None and kept.encoding.settings["quality"] == 30


def test_metadata_minimal(sdcli: Sdcli) -> None:
    done = sdcli(
        "generate", "a secret star", "-m", "demo", "--steps", "1", "--metadata", "minimal", "-o", "x.jpg", "--json"
    )
    assert done.code == 0, done.stderr
    identity = metadata.identity(Path("x.jpg"))
    assert identity is not None and identity.id == done.events[0]["id"]
    assert identity.pixels.stored_sha256 == digest(decoded(Path("x.jpg").read_bytes()))
    assert b"secret" not in Path("x.jpg").read_bytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--quality", "90"], "png has no quality"),
        (["--quality", "90", "-o", "x.png"], "png has no quality"),
        (["--format", "jpg", "--quality", "0"], "quality"),
        (["--format", "jpg", "--quality", "101"], "quality"),
        (["--format", "gif"], "png, jpg, webp, avif"),
        (["--format", "avif", "-o", "x.webp"], "--format says avif"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(sdcli: Sdcli, options: list[str], reason: str) -> None:
    done = sdcli(*DRAW, *options)
    assert done.code == 2 and reason in done.stderr and "loading" not in done.stderr
    assert not list(Path().iterdir())


def test_avif_that_this_pillow_cannot_write_is_refused_with_a_hint(
    sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "check", lambda feature: feature != "avif")
    done = sdcli(*DRAW, "-o", "x.avif")
    assert done.code == 2 and "cannot write AVIF" in done.stderr and "--format webp" in done.stderr
    assert not list(Path().iterdir())
