"""The judge can be believed: right pictures are right and wrong ones are wrong, at any size, clean or rough."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from training import draw, judge

CIRCLE = draw.Ask(kind="one", things=(("red", "circle"),), background="white")
MIDDLE = draw.Thing(colour="red", shape="circle", x=64, y=64, r=30)


def picture(*things: draw.Thing, background: str = "white", size: int = draw.SIZE) -> Image.Image:
    return draw.paint(draw.Scene(background=background, things=things), size)


@pytest.mark.parametrize("spoil", [None, judge.roughen], ids=["clean", "rough"])
def test_proof(spoil: judge.Spoil | None) -> None:
    good, bad = judge.prove(6, spoil)
    assert [p.name for p in good] == list(judge.ROWS)
    for proof in (*good, *bad):
        assert proof.ok, (proof.name, proof.share, proof.misses)
    told = {"another colour", "another shape", "swapped colours", "wrong place", "wrong count", "mirrored relation"}
    assert told | {"nothing", "blob", "noise"} <= {p.name for p in bad}


@pytest.mark.parametrize("size", [64, 128, 256, 300])
@pytest.mark.parametrize("shape", draw.SHAPES)
def test_measures_do_not_depend_on_the_size_of_the_picture(shape: str, size: int) -> None:
    seen = judge.look(picture(replace(MIDDLE, shape=shape, x=50, y=70), size=size))
    (thing,) = seen.things
    assert (seen.background, seen.width, seen.height) == ("white", 128, 128)
    assert (thing.colour, thing.shape) == ("red", shape)
    assert (thing.x, thing.y, thing.r) == pytest.approx((50, 70, 30), abs=0.7)


def test_a_picture_need_not_be_square() -> None:
    wide = Image.new("RGB", (512, 256), draw.COLOURS["white"])
    wide.paste(picture(MIDDLE, size=256), (128, 0))
    assert judge.judge(CIRCLE, wide).right
    wide.paste(draw.COLOURS["white"], (0, 0, 512, 256))
    wide.paste(picture(MIDDLE, size=256), (256, 0))
    assert judge.judge(CIRCLE, wide).reason.startswith("place: wanted the middle")


@pytest.mark.parametrize("background", draw.COLOURS)
@pytest.mark.parametrize("colour", draw.COLOURS)
def test_every_pair_of_colours(colour: str, background: str) -> None:
    if colour != background:
        asked = draw.Ask(kind="one", things=((colour, "star"),), background=background)
        image = picture(replace(MIDDLE, colour=colour, shape="star"), background=background)
        assert judge.judge(asked, judge.roughen(image, random.Random(0), blur=1.2)) == judge.Verdict(True)


def test_touching_things_of_two_colours_are_two() -> None:
    left = draw.Thing(colour="red", shape="square", x=40, y=64, r=28)
    right = draw.Thing(colour="yellow", shape="circle", x=86, y=64, r=25)
    asked = draw.Ask(kind="two", things=(("yellow", "circle"), ("red", "square")), background="blue")
    assert judge.judge(asked, picture(left, right, background="blue")).right


def test_specks_do_not_count_but_spots_do() -> None:
    image = picture(MIDDLE)
    image.paste((0, 0, 0), (10, 10, 14, 14))
    assert judge.judge(CIRCLE, image).right
    image.paste((0, 0, 0), (10, 10, 18, 18))
    assert judge.judge(CIRCLE, image).reason.startswith("count: wanted 1, saw black square, red circle")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (picture(replace(MIDDLE, colour="blue")), "colour: wanted red, saw blue"),
        (picture(replace(MIDDLE, shape="square")), "shape: wanted circle, saw square"),
        (picture(MIDDLE, background="black"), "background: wanted white, saw black"),
        (picture(), "count: wanted 1, saw nothing"),
        (picture(replace(MIDDLE, x=36)), "place: wanted the middle, saw it at 36, 64"),
        (Image.new("RGB", (128, 128), (128, 128, 128)), "background: wanted white, saw an odd colour"),
    ],
)
def test_reasons(image: Image.Image, reason: str) -> None:
    assert judge.judge(CIRCLE, image) == judge.Verdict(False, reason)


def test_what_is_left_open_may_be_anything() -> None:
    asked = draw.Ask(kind="one", things=((None, "circle"),))
    assert judge.judge(asked, picture(MIDDLE)).right
    assert judge.judge(asked, picture(replace(MIDDLE, colour="green"), background="black")).right
    assert not judge.judge(asked, picture(replace(MIDDLE, shape="heart"))).right


def test_rows_are_fixed_and_keep_held_back_triples_apart() -> None:
    for name, row in judge.ROWS.items():
        asks = row.asks(120)
        assert asks == row.asks(120) and asks[:30] == row.asks(30)
        for asked in asks:
            held = {draw.held_back(c or "", s or "", asked.background or "") for c, s in asked.things}
            assert held == {name == "one thing, held-back triples"}
            assert all((*asked.things[0], asked.background))
    assert len(set(judge.ROWS["counts"].asks(200))) == 200
    assert judge.prompt(CIRCLE) == "a red circle on a white background"


def draws_right(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
    """Stand for a model that has learnt everything."""
    asks = {judge.prompt(asked): asked for row in judge.ROWS.values() for asked in row.asks(10)}
    scenes = [draw.compose(asks[p], random.Random(seed), fresh=False) for p, seed in zip(prompts, seeds, strict=True)]
    return [draw.paint(scene) for scene in scenes if scene]


def test_evaluate_hands_over_fixed_seeds_in_batches() -> None:
    calls = list[list[int]]()

    def drawing(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        calls.append(seeds)
        return draws_right(prompts, seeds)

    advanced = list[int]()
    results = judge.evaluate(drawing, 10, rows=["relations", "counts"], batch=4, advance=advanced.append)
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2
    assert advanced == [4, 4, 2] * 2
    assert [(r.name, r.right, r.ok) for r in results] == [("relations", 10, True), ("counts", 10, True)]
    assert judge.table(results).splitlines()[2] == "| relations | 10 | 10 | 100.0% | 80% | yes |"
    assert judge.sheet(results).width > 0


@pytest.mark.parametrize("learnt", [True, False])
def test_command(
    learnt: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draws_nothing(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        return [picture() for _ in prompts]

    monkeypatch.setattr(judge, "model_drawing", lambda folder, **settings: draws_right if learnt else draws_nothing)
    report, sheet = tmp_path / "judged.json", tmp_path / "sheet.png"
    argv = ["-v", "--model", str(tmp_path), "--count", "5", "--rows", "two things"]
    assert judge.main([*argv, "--json", str(report), "--sheet", str(sheet)]) == (0 if learnt else 1)
    out, err = capsys.readouterr()
    assert f"| two things | 5 | {'5 | 100.0%' if learnt else '0 | 0.0%'} | 85% |" in out
    assert ("two things, seed 0: " in err) is not learnt
    (row,) = json.loads(report.read_text())["rows"]
    assert [p["seed"] for p in row["pictures"]] == [0, 1, 2, 3, 4]
    with Image.open(sheet) as image:
        assert image.width > 0


def test_command_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        judge.main(["--model", str(tmp_path / "none")])
    assert "no such folder" in capsys.readouterr().err
