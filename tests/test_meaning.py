"""What words do to the bundled model's pictures, by its judge: weights, negative prompts, long prompts, schedules, variations.

What this small model does not heed is measured too, and stands in the tables at the end of the tests' output.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcli import models
from tests.conftest import Sdcli
from training import draw, judge

COLOURS = list(draw.COLOURS)
PALETTE = np.array([draw.COLOURS[c] for c in COLOURS], float)
# All seeds are 0 to a count; none is chosen.
# Some minutes each.
slow = pytest.mark.full
Table = Callable[[str, dict[str, str]], None]
Row = dict[str, Any]
_folders = itertools.count()


def drawn(sdcli: Sdcli, rows: Sequence[Row], *options: str) -> list[Image.Image]:
    """Return the demo's pictures of rows, in their order."""
    out, steps = f"drawn-{next(_folders)}", {"steps": 10}
    passes = -(-len(rows) // 8)
    size = str(-(-len(rows) // passes))  # as few as fill the passes: what is left of the last is drawn for nothing
    Path("rows.jsonl").write_text("\n".join(json.dumps(steps | row) for row in rows))
    done = sdcli(
        "batch",
        "rows.jsonl",
        "-m",
        "demo",
        "--dtype",
        "fp32",
        "-o",
        f"{out}/",
        "--json",
        "--batch-size",
        size,
        *options,
    )
    assert done.code == 0, done.stderr
    found = {event["line"]: event["path"] for event in done.events if event["event"] == "image"}
    images = []
    for line in range(1, len(rows) + 1):
        with Image.open(found[line]) as image:
            images.append(image.convert("RGB"))
    return images


def share(image: Image.Image, colour: str) -> float:
    """Return the share of pixels to which no other colour of the palette is nearer."""
    pixels = np.asarray(image, float)
    nearest = ((pixels[:, :, None] - PALETTE) ** 2).sum(-1).argmin(-1)
    return float((nearest == COLOURS.index(colour)).mean())


def colour_of(image: Image.Image) -> str | None:
    """Return the colour of the largest thing."""
    things = judge.look(image).things
    return max(things, key=lambda t: t.area).colour if things else None


def shape_of(image: Image.Image) -> str | None:
    """Return the shape of the largest thing."""
    things = judge.look(image).things
    return max(things, key=lambda t: t.area).shape if things else None


def ground_of(image: Image.Image) -> str | None:
    return judge.look(image).background


# Weights

WEIGHTS = (0, 0.5, 1, 1.5, 2)
PAIRS = [("red", "blue"), ("green", "yellow"), ("blue", "orange"), ("purple", "black")]
TWO = "a {x} and a {other} square on a white background"
HEEDED = {
    "a ({colour} circle:w) and a {other} square on a white background": 0.05,
    "a ({colour} circle:w) and a {other} circle": 0.05,
    "a ({colour} circle:w) on a {other} background": 0.01,
    "a ({colour} circle:w)": 0.05,
    "a {other} circle on a ({colour} background:w)": 0.1,
}
UNHEEDED = ["a ({colour}:w) circle on a {other} background", "a ({colour}:w) circle"]


def shares(sdcli: Sdcli, forms: Sequence[str], pairs: int, seeds: int, *options: str) -> list[float]:
    """Return the mean share of the colour, over pairs of colours and seeds, for each form of words."""
    keys = [(form, pair, seed) for form in forms for pair in PAIRS[:pairs] for seed in range(seeds)]
    rows = [{"prompt": form.format(colour=c, other=o), "seed": seed} for form, (c, o), seed in keys]
    found = [share(image, c) for image, (_, (c, _), _) in zip(drawn(sdcli, rows, *options), keys, strict=True)]
    return [float(part.mean()) for part in np.split(np.array(found), len(forms))]


@pytest.mark.parametrize(
    ("form", "pairs", "seeds"),
    [(next(iter(HEEDED)), 2, 1), *(pytest.param(form, 4, 2, marks=slow) for form in (*HEEDED, *UNHEEDED))],
)
def test_a_weight_moves_the_share_of_its_colour(sdcli: Sdcli, table: Table, form: str, pairs: int, seeds: int) -> None:
    """Up with the weight, wherever the noun is weighed with its colour.

    The colour's word alone moves nothing: this model's text encoder has put the colour into the noun by then, and a weight
    multiplies what comes out of it.
    """
    found = shares(sdcli, [form.replace(":w)", f":{w})") for w in WEIGHTS], pairs, seeds)
    table("share of a colour by its weight", {
        "prompt": form, "pictures": str(pairs * seeds), **{f"w = {w}": f"{s:.3f}" for w, s in zip(WEIGHTS, found, strict=True)},
    })  # fmt: skip
    if form in UNHEEDED:
        assert max(found) - min(found) < 0.01
    else:
        assert rising(found) and found[-1] - found[0] > HEEDED[form], found


def rising(values: Sequence[float]) -> bool:
    """Return whether each is at least the one before, but for a thousandth of the picture: sixteen pixels of an edge."""
    return all(later >= earlier - 0.001 for earlier, later in itertools.pairwise(values))


BRACKETS = {
    "a1111": ["[[[{x}]]]", "[{x}]", "{x}", "({x})", "(({x}))", "((({x})))"],
    "compel": ["({x})--", "({x})-", "{x}", "({x})+", "({x})++", "({x})1.5"],
}
FEWER = {"a1111": ["[[[{x}]]]", "{x}", "((({x})))"], "compel": ["({x})--", "{x}", "({x})++"]}


@pytest.mark.parametrize("syntax", BRACKETS)
@pytest.mark.parametrize(("marks", "pairs", "seeds"), [(FEWER, 2, 1), pytest.param(BRACKETS, 4, 1, marks=slow)])
def test_brackets_and_signs_do_too(
    sdcli: Sdcli, table: Table, syntax: str, marks: dict[str, list[str]], pairs: int, seeds: int
) -> None:
    forms = [TWO.replace("{x}", mark.replace("{x}", "{colour} circle")) for mark in marks[syntax]]
    found = shares(sdcli, forms, pairs, seeds, "--prompt-syntax", syntax)
    for mark, value in zip(marks[syntax], found, strict=True):
        table(f"share of a colour by {syntax}'s marks", {
            "marks": mark.replace("{x}", "red circle"), "pictures": str(pairs * seeds), "share": f"{value:.4f}",
        })  # fmt: skip
    assert rising(found) and found[-1] > found[0] + 0.01, found


# Negative prompts

Look = Callable[[Image.Image], str | None]


def kept(
    sdcli: Sdcli, prompt: str, look: Look, names: Sequence[str], negative: str, control: str | None = None, *,
    count: int, guidance: float = 2.0, before: str = "",
) -> tuple[int, int, int]:  # fmt: skip
    """Return of how many pictures something can be told that the prompt leaves open, how many keep it when it is named in the
    negative prompt, and how many when another of its kind is named there (or by `control` instead).

    `before` is the negative prompt of the first pictures.
    """
    common = {"prompt": prompt, "guidance_scale": guidance}
    first = drawn(sdcli, [common | {"seed": s, "negative_prompt": before} for s in range(count)])
    shown = {seed: name for seed, image in enumerate(first) if (name := look(image)) is not None}

    def staying(negative_of: Callable[[str], str]) -> int:
        rows = [common | {"seed": s, "negative_prompt": negative_of(name)} for s, name in shown.items()]
        return sum(look(i) == name for i, name in zip(drawn(sdcli, rows), shown.values(), strict=True))

    def another(name: str) -> str:
        return (control or negative).format(x=names[(names.index(name) + 3) % len(names)])

    return len(shown), staying(lambda name: negative.format(x=name)), staying(another)


def tell(table: Table, prompt: str, negative: str, guidance: float, found: tuple[int, int, int]) -> None:
    there, own, other = found
    table("kept, though the negative prompt names it", {
        "prompt": prompt, "negative prompt": negative, "guidance": f"{guidance:g}", "of": str(there),
        "kept": str(own), "kept, with another named": str(other),
    })  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "count"),
    [("star", 4), *(pytest.param(s, 8, marks=slow) for s in ("circle", "star", "heart", "diamond"))],
)
def test_a_negative_prompt_removes_the_colour_that_it_names(sdcli: Sdcli, table: Table, shape: str, count: int) -> None:
    """Each picture has some colour; named with its noun, not one has it still."""
    prompt, negative = f"a {shape}", f"a {{x}} {shape}"
    there, own, other = found = kept(sdcli, prompt, colour_of, COLOURS, negative, count=count)
    tell(table, prompt, negative, 2.0, found)
    assert there >= 0.75 * count and own == 0 < other, found


@slow
@pytest.mark.parametrize(
    ("prompt", "look", "names", "negative", "guidance"),
    [
        ("a circle", colour_of, COLOURS, "{x}", 2.0),
        ("a red circle", ground_of, COLOURS, "a red circle on a {x} background", 2.0),
        ("a red circle", ground_of, COLOURS, "a red circle on a {x} background", 4.0),
        ("a red shape on a white background", shape_of, draw.SHAPES, "a red {x} on a white background", 2.0),
        ("a red shape on a white background", shape_of, draw.SHAPES, "a red {x} on a white background", 4.0),
    ],
)
def test_a_negative_prompt_takes_from_what_it_names(
    sdcli: Sdcli, table: Table, prompt: str, look: Look, names: Sequence[str], negative: str, guidance: float
) -> None:
    """Grounds and shapes go less surely than colours do, and more with more guidance; a bare colour does little."""
    there, own, other = found = kept(sdcli, prompt, look, names, negative, count=8, guidance=guidance)
    tell(table, prompt, negative, guidance, found)
    assert there >= 4 and (own < other or own == 0), found


@slow
def test_a_negative_prompt_works_as_much_as_it_weighs(sdcli: Sdcli, table: Table) -> None:
    """The share of the colour that each picture had goes down as the weight goes up."""
    first = drawn(sdcli, [{"prompt": "a star", "seed": s} for s in range(8)])
    shown = {seed: name for seed, image in enumerate(first) if (name := colour_of(image)) is not None}
    found = []
    for weight in WEIGHTS:
        rows = [{"prompt": "a star", "seed": s, "negative_prompt": f"a ({c} star:{weight})"} for s, c in shown.items()]
        found.append(float(np.mean([share(i, c) for i, c in zip(drawn(sdcli, rows), shown.values(), strict=True)])))
        table("share of a colour by its weight in the negative prompt", {
            "negative prompt": f"a (red star:{weight})", "pictures": str(len(rows)), "share": f"{found[-1]:.3f}",
        })  # fmt: skip
    assert rising(found[::-1]) and found[0] - found[-1] > 0.05, found


@slow
@pytest.mark.parametrize(("before", "after"), [(0, 110), (110, 0), (110, 110)], ids=["negative", "prompt", "both"])
def test_long_negative_prompts_remove_too(sdcli: Sdcli, table: Table, before: int, after: int) -> None:
    """Two chunks in the negative prompt, in the prompt, or in both; what is named comes last."""
    rng = random.Random(0)
    prompt = ", ".join(filter(None, (draw.fill(rng, before), "a star")))
    words = draw.fill(rng, after)
    negative = ", ".join(filter(None, (words, "a {x} star")))
    there, own, other = found = kept(sdcli, prompt, colour_of, COLOURS, negative, words or None, count=6, before=words)
    tell(table, f"{before} words, a star", f"{after} words, a {{x}} star", 2.0, found)
    assert there >= 3 and own == 0 < other, found


# Long prompts

ASKS = [("green", "star"), ("red", "circle"), ("blue", "heart"), ("yellow", "square"), ("purple", "triangle"),
        ("orange", "cross"), ("black", "diamond"), ("white", "crescent")]  # fmt: skip


@cache
def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(models.demo_folder() / "tokenizer")


def tokens(text: str) -> int:
    return len(tokenizer()(text, truncation=False, verbose=False)["input_ids"]) - 2


def last(sentence: str, count: int, rng: random.Random) -> str:
    """Return a prompt of so many tokens that ends with a sentence, after words that ask for nothing."""
    words = list[str]()
    while tokens(longer := ", ".join(filter(None, (" ".join(words), sentence)))) < count:
        words.append(rng.choice(draw.FILLER))
    assert tokens(longer) == count
    return longer


def judged(sdcli: Sdcli, table: Table, count: int, asks: int, seeds: int, *options: str) -> tuple[int, int]:
    """Return how many pictures of prompts of `count` tokens are right, and of how many."""
    rng = random.Random(count)
    asked = [draw.Ask(kind="one", things=(thing,)) for thing in ASKS[:asks] for _ in range(seeds)]
    rows = [{"prompt": last(judge.prompt(a), count, rng), "seed": i % seeds} for i, a in enumerate(asked)]
    images = drawn(sdcli, rows, *options)
    right = sum(judge.judge(a, image).right for a, image in zip(asked, images, strict=True))
    table("right, where the last words of many decide", {
        "tokens": f"{count:3}", "chunks": str(-(-count // 75)), "option": " ".join(options) or "--long-prompt chunk",
        "right": f"{right} of {len(rows)}",
    })  # fmt: skip
    return right, len(rows)


def test_the_last_words_of_200_tokens_decide(sdcli: Sdcli, table: Table) -> None:
    """In the third chunk; cut, they are not there."""
    right, of = judged(sdcli, table, 200, 4, 1)
    assert right >= 0.75 * of
    right, of = judged(sdcli, table, 200, 4, 1, "--long-prompt", "cut")
    assert right == 0


@slow
@pytest.mark.parametrize("count", [7, 50, 75, 125, 200, 225, 275])
def test_the_last_words_decide_in_any_chunk(sdcli: Sdcli, table: Table, count: int) -> None:
    right, of = judged(sdcli, table, count, 8, 1)
    assert right >= 0.75 * of
    if count > 75:
        right, of = judged(sdcli, table, count, 8, 1, "--long-prompt", "cut")
        assert right <= 0.1 * of


def test_both_sides_of_a_break_are_read(sdcli: Sdcli) -> None:
    prompt = "a red circle BREAK on a blue background"
    asked = draw.Ask(kind="one", things=(("red", "circle"),), background="blue")
    verdicts = [judge.judge(asked, i) for i in drawn(sdcli, [{"prompt": prompt, "seed": s} for s in range(2)])]
    assert all(v.right for v in verdicts), verdicts


# Words that come and go


def counted(sdcli: Sdcli, table: Table, prompt: str, count: int) -> dict[str | None, int]:
    """Return of how many pictures the thing has which colour."""
    found = [colour_of(image) for image in drawn(sdcli, [{"prompt": prompt, "seed": s} for s in range(count)])]
    counts = {colour: found.count(colour) for colour in dict.fromkeys(found)}
    said = ", ".join(f"{n} {colour or 'none or odd'}" for colour, n in counts.items())
    table("colours of words that come and go", {"prompt": prompt, "pictures": str(count), "colours": said})
    return counts


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=slow)])
def test_early_words_go_and_late_words_come_too_late(sdcli: Sdcli, table: Table, count: int) -> None:
    """After a fifth of the steps nearly all can still become another; one of eight has its colour by then."""
    early = counted(sdcli, table, "a [red:green:0.2] circle", count)
    late = counted(sdcli, table, "a [red:green:0.95] circle", count)
    assert early.get("green", 0) >= 0.75 * count and late.get("red", 0) >= 0.9 * count, (early, late)


@slow
def test_words_that_take_turns_mix(sdcli: Sdcli, table: Table) -> None:
    """Some pictures take the one, some the other, and some what lies between."""
    found = counted(sdcli, table, "a [red|green] circle", 8)
    assert {"red", "green"} <= set(found), found
    counted(sdcli, table, "a [red:green:0.5] circle", 8)


def test_a_ground_that_comes_after_two_steps(sdcli: Sdcli) -> None:
    rows = [{"prompt": "a red circle [on a blue background:0.2]", "seed": s} for s in range(2)]
    asked = draw.Ask(kind="one", things=(("red", "circle"),), background="blue")
    verdicts = [judge.judge(asked, image) for image in drawn(sdcli, rows)]
    assert all(v.right for v in verdicts), verdicts


# Variations


def alike(sdcli: Sdcli, table: Table, prompt: str, strengths: Sequence[float], count: int) -> list[tuple[int, int]]:
    """Return for each strength how many variations have their picture's shape and colour, and how many its ground too."""

    def seen(rows: Sequence[Row]) -> Iterator[tuple[str | None, ...]]:
        for image in drawn(sdcli, rows):
            yield shape_of(image), colour_of(image), ground_of(image)

    rows = [{"prompt": prompt, "seed": s} for s in range(count)]
    base, found = list(seen(rows)), []
    for strength in strengths:
        varied = seen([row | {"variation": f"{100 + s}:{strength}"} for s, row in enumerate(rows)])
        pairs = list(zip(base, varied, strict=True))
        thing = sum(one[:2] == other[:2] for one, other in pairs)
        found.append((thing, sum(one == other for one, other in pairs)))
        table("variations that keep what their picture has", {
            "prompt": prompt, "strength": f"{strength}", "of": str(count), "shape and colour": str(thing),
            "and ground": str(found[-1][1]),
        })  # fmt: skip
    return found


@slow
@pytest.mark.parametrize("prompt", ["a red star", "a star"])
def test_the_larger_a_variation_the_less_it_keeps(sdcli: Sdcli, table: Table, prompt: str) -> None:
    """What the words say stays in any; what the noise decides stays in small ones: a ground mostly, a colour in half of them."""
    found = alike(sdcli, table, prompt, [0.1, 0.2, 0.4, 1.0], 8)
    kept = [n for _, n in found]
    assert kept[0] >= kept[1] >= kept[2] >= kept[3] and kept[0] - kept[3] >= 4, found
    assert prompt != "a red star" or kept[0] >= 7 <= found[1][0], found


@pytest.mark.parametrize("sources", [1, pytest.param(6, marks=slow)])
def test_more_like_a_picture_is_like_it(sdcli: Sdcli, table: Table, sources: int) -> None:
    """Three variations of each picture, a tenth of the way to noise of their own."""
    pairs = []
    for seed in range(sources):
        command = ("generate", "a red star", "-m", "demo", "-s", str(seed), "--steps", "10", "-o", f"{seed}.png")
        assert sdcli(*command).code == 0
        more = ("--variation", f"{50 + 3 * seed}:0.1", "--count", "3", "-m", "demo", "-o", f"like-{seed}/")
        done = sdcli("generate", "--vary", f"{seed}.png", *more)
        assert done.code == 0, done.stderr
        seen = []
        for path in (f"{seed}.png", *done.lines):
            with Image.open(path) as image:
                picture = image.convert("RGB")
            seen.append((picture.tobytes(), shape_of(picture), colour_of(picture), ground_of(picture)))
        assert len({look[0] for look in seen}) == 4
        pairs += [look[1:] == seen[0][1:] for look in seen[1:]]
    table("--vary, by a tenth", {"pictures": str(len(pairs)), "same shape, colour and ground": str(sum(pairs))})
    assert sum(pairs) >= 0.8 * len(pairs)
