"""The contact sheet: every picture is there untouched, and every label can be read and stands alone."""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw, ImageFont

from sdcli.errors import BadInput, UsageError
from sdcli.jobs import sheet as room
from sdcli.jobs.grids import Axis, axis, cells
from sdcli.jobs.sheet import LINE, PAPER, SYSTEM_FONTS, Box, Drawn, Key, Layout, encode, layout, record, sheet

FAILED = "failed: out-of-memory"
PROMPT = "a cat in a garden, oil on canvas, by candle light"


def _axes(**texts: str) -> list[Axis]:
    return [axis(letter, text) for letter, text in texts.items()]


def _picture(size: tuple[int, int], seed: int) -> Image.Image:
    """A picture of noise: no part of it is like another."""
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


def _pictures(axes: Sequence[Axis], size: tuple[int, int]) -> dict[Key, Image.Image | Path | str]:
    found: dict[Key, Image.Image | Path | str] = {}
    for i, cell in enumerate(cells("a cat", axes)):
        said = cell.values.get("size")
        one = tuple(map(int, said.split("x"))) if said else size
        found[cell.x, cell.y, cell.z] = _picture((one[0], one[1]), i)
    return found


def _layout(axes: Sequence[Axis], pictures: Mapping[Key, Image.Image | Path | str], title: str) -> Layout:
    return layout(axes, {k: p if isinstance(p, str) else p.size for k, p in pictures.items()}, title=title)  # type: ignore[union-attr]


def _apart(a: Box, b: Box) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def _inside(a: Box, b: Box) -> bool:
    return b[0] <= a[0] < a[2] <= b[2] and b[1] <= a[1] < a[3] <= b[3]


def _check_boxes(plan: Layout) -> None:
    """Nothing leaves the sheet, nothing touches anything else; a reason stands in its frame."""
    # A picture has a line around it.
    pictures = [(left - 1, top - 1, right + 1, bottom + 1) for left, top, right, bottom in plan.pictures.values()]
    frames = list(plan.frames.values())
    outer = [label.box for label in plan.labels if label.kind != "cell"]
    inner = [label.box for label in plan.labels if label.kind == "cell"]
    assert all(_inside(box, (0, 0, *plan.size)) for box in (*pictures, *frames, *outer))
    boxes = sorted((*pictures, *frames, *outer), key=lambda box: box[1])
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            if other[1] >= one[3]:
                break
            assert _apart(one, other), (one, other)
    assert all(sum(_inside(box, frame) for frame in frames) == 1 for box in inner)
    assert len(set(inner)) == len(inner)


def _check_ink(drawn: Image.Image, plan: Layout) -> None:
    """Each label has ink, from dark to light, and outside of what has a place there is nothing but paper."""
    rest = drawn.copy()
    for label in plan.labels:
        low, high = drawn.crop(label.box).convert("L").getextrema()
        assert low < 90 and high > 220, label  # type: ignore[operator]
        rest.paste(PAPER, label.box)
    for left, top, right, bottom in plan.pictures.values():
        rest.paste(PAPER, (left - 1, top - 1, right + 1, bottom + 1))
    for frame in plan.frames.values():
        rest.paste(PAPER, frame)
    assert rest.getcolors() == [(rest.width * rest.height, PAPER)]


SHEETS: dict[str, tuple[dict[str, str], tuple[int, int], dict[int, str]]] = {
    "16 pixels": ({"x": "steps=10,20,30", "y": "scheduler=euler,dpm++2m-karras"}, (16, 16), {}),
    "16 pixels, one failed": ({"x": "seed=1..5+1", "y": "cfg=1,2", "z": "steps=4,8"}, (16, 16), {3: FAILED}),
    "128 pixels": ({"x": "steps=10,20", "y": "cfg=1,3", "z": "scheduler=euler,ddim,lms"}, (128, 128), {0: FAILED}),
    "wide": ({"x": "steps=10,20", "y": "cfg=1,3"}, (96, 40), {1: FAILED, 2: "failed"}),
    "512 pixels": ({"x": "steps=10", "y": "cfg=1,3"}, (512, 512), {1: FAILED}),
    "x alone": ({"x": "steps=1..8+1"}, (64, 64), {}),
    "y alone": ({"y": "steps=1..4+1"}, (64, 48), {}),
    "z alone": ({"z": "cfg=1..9/7"}, (64, 64), {}),
    "sizes by x": ({"x": "size=64x64,200x96,96x200", "y": "steps=1,2"}, (0, 0), {5: FAILED}),
    "sizes by z": ({"x": "steps=1,2", "z": "size=64x64,200x96,96x200"}, (0, 0), {}),
    "all failed": ({"x": "steps=1,2", "y": "cfg=1,2"}, (64, 64), dict.fromkeys(range(4), FAILED)),
    "long labels": ({"x": f'prompt:cat="{"a very old cat " * 20}",{"supercalifragilistic" * 4}',
                     "y": f'negative="{"blurry, dark, " * 30}",'}, (64, 64), {1: "failed: " + "x" * 300}),
    "other scripts": ({"x": "prompt:cat=café,猫,кот,قطة,🐱,กำ"}, (64, 64), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SHEETS)
def test_pictures_are_untouched_and_labels_stand_alone(name: str) -> None:
    texts, size, failed = SHEETS[name]
    axes = _axes(**texts)
    pictures = _pictures(axes, size)
    pictures |= {key: failed[i] for i, key in enumerate(pictures) if i in failed}
    plan, drawn = _layout(axes, pictures, PROMPT), sheet(axes, pictures, title=PROMPT)
    assert (drawn.mode, drawn.size) == ("RGB", plan.size)
    assert set(plan.pictures) | set(plan.frames) == set(pictures) and len(plan.frames) == len(failed)
    for key, box in plan.pictures.items():
        picture = pictures[key]
        assert isinstance(picture, Image.Image) and not ImageChops.difference(drawn.crop(box), picture).getbbox()
    _check_boxes(plan)
    _check_ink(drawn, plan)


def test_each_label_stands_at_what_it_says() -> None:
    axes = _axes(x="steps=10,20,30", y="cfg=1,2", z="seed=7,8")
    plan = _layout(axes, _pictures(axes, (80, 60)), "a cat")
    boxes = {
        (label.kind, label.text): [one.box for one in plan.labels if one.text == label.text] for label in plan.labels
    }
    assert {kind for kind, _ in boxes} == {"title", "x", "y", "z"}
    for (x, y, z), (left, top, right, bottom) in plan.pictures.items():
        above = boxes["x", axes[0].labels[x]][z]
        assert above[3] <= top and abs(above[0] + above[2] - left - right) <= 1
        beside = boxes["y", axes[1].labels[y]][z]
        assert beside[2] <= left and abs(beside[1] + beside[3] - top - bottom) <= 1
        (heading,) = boxes["z", axes[2].labels[z]]
        assert heading[3] <= above[1]
        later = [box[1] for (_, _, other), box in plan.pictures.items() if other > z and box[0] == left]
        assert all(heading[1] < low for low in later)
    assert boxes["title", "a cat"][0][1] < min(box[1] for found in boxes.values() for box in found[1:])


@pytest.mark.parametrize("side", [8, 16, 100, 512, 2048, 8192])
def test_labels_can_be_read_at_any_size_of_cell(side: int) -> None:
    axes = _axes(x="prompt:cat=Hg,Hjpq", y="steps=100", z="cfg=1")
    pictures = {(0, 0, 0): (side, side), (1, 0, 0): FAILED}
    plan = layout(axes, pictures, title="Hg")
    assert len(plan.labels) == 6
    for label in plan.labels:
        ink = room._mask(label).getbbox()
        assert ink is not None and label.font_size >= 14
        if label.text.startswith("H"):
            # From a capital's top to the foot of a g; and the larger the cells, the larger.
            assert ink[3] - ink[1] >= max(12, side / 40)
        if side >= 512:
            assert len(label.lines) == 1 or label.kind == "cell"


def test_a_column_is_widened_no_further_than_its_label_needs() -> None:
    axes = _axes(x="steps=10,20,30,40")
    plan = layout(axes, {(x, 0, 0): (16, 16) for x in range(4)}, title="")
    assert [label.lines for label in plan.labels] == [("steps", f"{n}") for n in (10, 20, 30, 40)]
    lefts = [box[0] for box in plan.pictures.values()]
    assert {b - a for a, b in itertools.pairwise(lefts)} == {lefts[1] - lefts[0]} and lefts[1] - lefts[0] <= 48
    wide = layout(axes, {(x, 0, 0): (160, 16) for x in range(4)}, title="")
    assert [label.lines for label in wide.labels] == [(f"steps {n}",) for n in (10, 20, 30, 40)]
    assert wide.pictures[1, 0, 0][0] - wide.pictures[0, 0, 0][2] <= 8


def test_a_heading_widens_its_block() -> None:
    (label,) = layout(_axes(z="preset=quality"), {(0, 0, 0): (16, 16)}, title="").labels
    assert label.lines == ("preset quality",)


def test_a_picture_as_light_as_the_paper_has_an_edge() -> None:
    axes, white = _axes(x="steps=1"), Image.new("RGB", (40, 30), PAPER)
    left, top, right, bottom = _layout(axes, {(0, 0, 0): white}, "").pictures[0, 0, 0]
    drawn = sheet(axes, {(0, 0, 0): white}, title="")
    around = [drawn.getpixel(p) for p in ((left - 1, top), (right, top), (left, top - 1), (left, bottom))]
    assert set(around) == {LINE} and drawn.getpixel((left - 2, top)) == PAPER


@pytest.mark.parametrize("text", ["jjj", "steps 10", "WAVE", "f/\\"])
def test_no_ink_is_lost_at_a_labels_edges(text: str) -> None:
    made = Axis(letter="x", field="prompt", name="prompt", values=(text,), labels=(text,))
    (label,) = layout([made], {(0, 0, 0): (900, 900)}, title="").labels
    large = Image.new("L", (1000, 200))
    face = ImageFont.load_default(label.font_size)
    ImageDraw.Draw(large).text((100, 100), text, fill=255, font=face, anchor="ls")
    ink = large.getbbox()
    assert ink is not None
    drawn = room._mask(label)
    assert large.crop(ink).tobytes() == drawn.crop(drawn.getbbox()).tobytes()


def test_a_long_label_is_broken_then_shortened() -> None:
    (label,) = layout(_axes(x=f'prompt:cat="{"a very old cat " * 20}"'), {(0, 0, 0): (64, 64)}, title="").labels
    assert len(label.lines) == 4 and label.lines[-1].endswith("…")
    assert "".join(label.lines).replace(" ", "")[:-1] in "averyoldcat" * 20
    (label,) = layout(_axes(y="scheduler=dpm++2m-karras"), {(0, 0, 0): (64, 64)}, title="").labels
    assert label.lines == ("scheduler", "dpm++2m-karras")
    (label,) = layout(_axes(x="scheduler=dpm++2m-karras"), {(0, 0, 0): (64, 64)}, title="").labels
    assert label.lines == ("scheduler", "dpm++2m-", "karras")


def test_labels_that_differ_where_they_are_cut_off_are_numbered() -> None:
    long = "a quiet harbour in the morning mist with fishing boats " * 3
    axes = _axes(x=f"prompt:cat={long} red,{long} blue", y="steps=1,2", z=f"negative={long * 4} red,{long * 4} blue")
    plan = _layout(axes, _pictures(axes, (64, 64)), "")
    starts = {kind: [one.lines[0][:3] for one in plan.labels if one.kind == kind] for kind in "xyz"}
    assert starts == {"x": ["1: ", "2: "] * 2, "y": ["ste"] * 4, "z": ["1: ", "2: "]}
    _check_boxes(plan)


@pytest.mark.parametrize(
    ("count", "size", "rows"),
    [(9, (200, 170), 3), (4, (200, 170), 2), (3, (700, 200), 3), (3, (200, 600), 1), (2, (300, 300), 1)],
)
def test_blocks_stand_so_that_the_sheet_is_nearest_to_a_square(count: int, size: tuple[int, int], rows: int) -> None:
    plan = layout(_axes(z=f"seed=1..{count}+1"), {(0, 0, z): size for z in range(count)}, title="")
    places = [plan.pictures[0, 0, z] for z in range(count)]
    assert len({box[1] for box in places}) == rows
    # Read as a page is.
    assert places == sorted(places, key=lambda box: (box[1], box[0]))


def test_a_cell_that_is_missing_says_so() -> None:
    axes = _axes(x="steps=1,2")
    plan = layout(axes, {(0, 0, 0): (64, 64)}, title="")
    assert list(plan.frames) == [(1, 0, 0)]
    assert [label.text for label in plan.labels if label.kind == "cell"] == ["not drawn"]


def test_pictures_can_be_files(tmp_path: Path) -> None:
    axes = _axes(x="steps=1,2", y="cfg=1,2")
    pictures = _pictures(axes, (40, 30))
    files: dict[Key, Image.Image | Path | str] = {}
    for key, picture in pictures.items():
        assert isinstance(picture, Image.Image)
        files[key] = tmp_path / f"{key}.png"
        picture.save(tmp_path / f"{key}.png")
    assert sheet(axes, files, title="a").tobytes() == sheet(axes, pictures, title="a").tobytes()
    for bad in (b"", b"no picture", (tmp_path / "(0, 0, 0).png").read_bytes()[:200]):
        (tmp_path / "(0, 0, 0).png").write_bytes(bad)
        with pytest.raises(BadInput, match=r"\(0, 0, 0\).png: can't be put on the sheet"):
            sheet(axes, files, title="a")
    (tmp_path / "(0, 0, 0).png").unlink()
    with pytest.raises(BadInput, match="No such file"):
        sheet(axes, files, title="a")


@pytest.mark.parametrize("size", [(16384, 16384), (16384, 8)])
def test_a_sheet_that_is_too_large_is_refused(size: tuple[int, int]) -> None:
    axes = _axes(x="steps=1..4+1")
    with pytest.raises(UsageError, match=r"the sheet would have \d\d,\d{3} x [\d,]+ pixels") as caught:
        layout(axes, {(x, 0, 0): size for x in range(4)}, title="")
    assert caught.value.hint == (
        "268,435,456 in all and 65,535 a side at most: give the axes fewer values, or smaller pictures"
    )


TEXTS = st.one_of(
    st.text(max_size=60),
    st.text("abcdefghij    -_,.", max_size=400),
    st.sampled_from(["steps 10", "W" * 80, "(empty)", "a b c d e f g h i j", "ﷺ﷽", "e\u0301" * 30, "i \u202e j\n\tk"]),
)
SIZES = st.tuples(st.integers(1, 200), st.integers(1, 200))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), x=st.integers(0, 4), y=st.integers(0, 4), z=st.integers(0, 5), title=TEXTS)
def test_nothing_ever_overlaps(data: st.DataObject, x: int, y: int, z: int, title: str) -> None:
    axes = [
        Axis(letter=letter, field="prompt", name="prompt", values=labels, labels=labels)
        for letter, count in (("x", x), ("y", y), ("z", z))
        if count and (labels := data.draw(st.tuples(*[TEXTS] * count)))
    ]
    keys = list(itertools.product(range(x or 1), range(y or 1), range(z or 1)))
    same = data.draw(st.none() | SIZES)
    found = {key: data.draw(st.one_of(TEXTS, st.just(same) if same else SIZES)) for key in keys}
    plan = layout(axes, found, title=title)
    _check_boxes(plan)
    assert {key: (right - left, bottom - top) for key, (left, top, right, bottom) in plan.pictures.items()} == {
        key: cell for key, cell in found.items() if not isinstance(cell, str)
    }
    for label in plan.labels:
        assert label.font_size >= 14 and (label.box[3] - label.box[1]) / len(label.lines) >= 14


# Fonts


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SYSTEM_FONTS", ("no such font.ttf",))


def _lines(label: str) -> tuple[str | None, tuple[str, ...]]:
    made = Axis(letter="x", field="prompt", name="prompt", values=(label,), labels=(label,))
    (one,) = layout([made], {(0, 0, 0): (400, 64)}, title="").labels
    return one.font, one.lines


def test_what_no_font_has_is_written_as_its_code(no_system_fonts: None) -> None:
    assert _lines("café") == (None, ("caf<U+00E9>",))
    assert _lines("cafe\u0301") == (None, ("caf<U+00E9>",))
    assert _lines("猫 and 🐱") == (None, ("<U+732B> and <U+1F431>",))
    assert _lines("plain: ~!@#$%^&*()[]{}'\"|\\?…") == (None, ("plain: ~!@#$%^&*()[]{}'\"|\\?…",))


@pytest.mark.parametrize("char", ["\u202e", "\u200b", "\x00", "\x1b", "\ue000", "\udcff"])
def test_what_cannot_be_seen_is_written_as_its_code(char: str) -> None:
    assert _lines(f"a{char}b")[1] == (f"a<U+{ord(char):04X}>b",)


def test_line_breaks_and_blanks_are_one_blank() -> None:
    assert _lines(" a\n\tb  c ") == (None, ("a b c",))


@pytest.mark.outside
def test_a_font_of_the_system_has_what_pillows_lacks() -> None:
    """Debian's DejaVu, the first in the list."""
    assert _lines("café кот قطة") == (SYSTEM_FONTS[0], ("café кот قطة",))
    assert _lines("cafe") == (None, ("cafe",))
    font, lines = _lines("кот \U00013000")
    assert font == SYSTEM_FONTS[0] and lines == ("кот <U+13000>",)
    # Letters that are joined are one sign, which can be wider than its room.
    axes = [Axis(letter="x", field="prompt", name="prompt", values=("a",), labels=("W\u200d" * 80,))]
    plan, drawn = (
        layout(axes, {(0, 0, 0): (16, 16)}, title=""),
        sheet(axes, {(0, 0, 0): _picture((16, 16), 1)}, title=""),
    )
    assert plan.size[0] < 200
    _check_boxes(plan)
    _check_ink(drawn, plan)


# The record


def test_the_record_is_read_back() -> None:
    axes = _axes(x="cfg=1.5,3", y="prompt:cat=cat,dog")
    drawn = [
        Drawn(x=c.x, y=c.y, z=c.z, id="ab" * 32, path=f"cells/{i}.png", seed=7, pixels="cd" * 32)
        for i, c in enumerate(cells("a cat", axes))
    ]
    drawn[3] = Drawn(x=1, y=1, z=0, id="ab" * 32, path=None, seed=7, pixels=None, error="out-of-memory")
    picture = _picture((50, 40), 1)
    with Image.open(io.BytesIO(encode(picture, record("a cat", axes, drawn, {"sdcli": "1.0"})))) as read:
        assert read.tobytes() == picture.tobytes()
        said = json.loads(read.info["sdcli"])
    assert list(said) == ["schema", "kind", "prompt", "axes", "cells", "versions"]
    assert (said["schema"], said["kind"], said["prompt"], said["versions"]) == (1, "grid", "a cat", {"sdcli": "1.0"})
    assert said["axes"] == [
        {"letter": "x", "field": "guidance_scale", "name": "cfg", "search": None, "values": [1.5, 3.0],
         "labels": ["cfg 1.5", "cfg 3"]},
        {"letter": "y", "field": "prompt", "name": "prompt", "search": "cat", "values": ["cat", "dog"],
         "labels": ["cat", "dog"]},
    ]  # fmt: skip
    assert said["cells"][0] == {
        "x": 0, "y": 0, "z": 0, "id": "ab" * 32, "path": "cells/0.png", "seed": 7, "pixels": "cd" * 32, "error": None
    }  # fmt: skip
    assert said["cells"][3]["error"] == "out-of-memory" and said["cells"][3]["path"] is None


@pytest.mark.parametrize(("path", "chunk"), [("a.png", b"tEXt"), ("猫.png", b"iTXt"), ("\udcff猫.png", b"tEXt")])
def test_the_record_holds_any_path(path: str, chunk: bytes) -> None:
    drawn = [Drawn(x=0, y=0, z=0, id="0", path=path, seed=1, pixels="1")]
    data = encode(_picture((4, 4), 1), record("a", _axes(x="steps=1"), drawn, {}))
    assert chunk + b"sdcli\0" in data and data.index(b"sdcli\0") < data.index(b"IDAT")
    with Image.open(io.BytesIO(data)) as read:
        assert json.loads(read.info["sdcli"])["cells"][0]["path"] == path


def test_without_a_record_there_are_pixels_only() -> None:
    with Image.open(io.BytesIO(encode(_picture((4, 4), 1), None))) as read:
        assert read.info == {}


def test_a_record_of_the_largest_grid_is_read_back() -> None:
    drawn = [
        Drawn(x=x, y=y, z=0, id="ab" * 32, path=f"sdcli-grid/{'猫' * 40}-{x}-{y}.png", seed=x, pixels="cd" * 32)
        for x in range(1000)
        for y in range(10)
    ]
    axes = _axes(x="seed=1..1000+1", y="steps=1..10+1")
    data = encode(_picture((4, 4), 1), record("猫", axes, drawn, {}))
    with Image.open(io.BytesIO(data)) as read:
        assert len(json.loads(read.info["sdcli"])["cells"]) == 10_000
