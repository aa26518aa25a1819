"""Adapters that were trained for the bundled model, by what they do to its pictures (more in `tests/adapters/README.md`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Sdcli
from training import adapters, draw, judge

HERE = Path(__file__).parent / "adapters"
GREEN, LEARNED, CONTROLNET = HERE / adapters.LORA, HERE / adapters.EMBEDDING, HERE / adapters.CONTROLNET
IP_ADAPTER = HERE / adapters.IP_ADAPTER / adapters.IP_WEIGHTS
Condition = Callable[[draw.Scene], Image.Image]
# How many prompts or pictures; none is chosen, and their seeds are 0, or 0 to the count.
COUNTS = [3, pytest.param(12, marks=pytest.mark.slow)]


def drawn(sdcli: Sdcli, prompts: Sequence[str], *options: str) -> list[Image.Image]:
    """Return the demo's pictures of the prompts, in their order."""
    done = sdcli("generate", *prompts, "-m", "demo", "-s", "0", "--steps", "12", "-o", "drawn/", *options)
    assert done.code == 0, done.stderr
    images = []
    for path in done.lines:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    return images


def same(image: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(other))


def nearly_all(right: Sequence[bool]) -> bool:
    """Return whether at least nine of ten are right: of a few, all."""
    return sum(right) >= 0.9 * len(right)


def asks(count: int, seed: int, kinds: Sequence[str], without: str) -> list[draw.Ask]:
    """Return asks in which a colour does not occur."""
    rng, made = random.Random(seed), list[draw.Ask]()
    while len(made) < count:
        asked = draw.ask(rng, rng.choice(kinds))
        if without not in {asked.background, *(colour for colour, _ in asked.things)}:
            made.append(asked)
    return made


@pytest.mark.parametrize("count", COUNTS)
def test_a_lora_turns_things_green(sdcli: Sdcli, count: int) -> None:
    """Whatever colour the prompt names, things are green; their shapes, places and ground stay as asked."""
    asked = asks(count, 0, ("one", "two", "count"), adapters.GREEN)
    prompts = [judge.prompt(a) for a in asked]
    without = drawn(sdcli, prompts)
    assert nearly_all([judge.judge(a, image).right for a, image in zip(asked, without, strict=True)])
    assert max(map(adapters.green_share, without)) < 0.02
    green = [replace(a, things=tuple((adapters.GREEN, shape) for _, shape in a.things)) for a in asked]
    verdicts = [judge.judge(a, i) for a, i in zip(green, drawn(sdcli, prompts, "--lora", str(GREEN)), strict=True)]
    assert nearly_all([v.right for v in verdicts]), verdicts
    assert same(drawn(sdcli, prompts[:1], "--lora", f"{GREEN}:0")[0], without[0])


@pytest.mark.parametrize("count", COUNTS)
def test_a_learned_word_brings_what_it_means(sdcli: Sdcli, count: int) -> None:
    colour, shape = adapters.MEANING
    asked = [replace(a, things=(adapters.MEANING,)) for a in asks(count, 1, ("one", "placed"), colour)]
    prompts = [judge.prompt(a).replace(f"{colour} {shape}", adapters.TOKEN) for a in asked]
    known = [judge.judge(a, image).right for a, image in zip(asked, drawn(sdcli, prompts), strict=True)]
    assert sum(known) <= 0.2 * count, "without it, the word says nothing"
    verdicts = [
        judge.judge(a, image)
        for a, image in zip(asked, drawn(sdcli, prompts, "--embedding", str(LEARNED)), strict=True)
    ]
    assert nearly_all([v.right for v in verdicts]), verdicts


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "condition",
    [adapters.silhouette, pytest.param(adapters.edges, marks=pytest.mark.slow)],
    ids=["silhouette", "outline"],
)
def test_a_controlnet_puts_the_shape_where_its_picture_has_it(sdcli: Sdcli, count: int, condition: Condition) -> None:
    asked, scene = adapters.anywhere(random.Random(2))
    condition(scene).save("condition.png")
    prompt, more = judge.prompt(asked), ("--count", str(count))
    mask = adapters.silhouette(scene)
    without = drawn(sdcli, [prompt], *more)
    controlled = drawn(sdcli, [prompt], *more, "--controlnet", f"{CONTROLNET}=condition.png")
    overlaps = [adapters.overlap(image, mask) for image in controlled]
    assert min(overlaps) > 0.7 > 0.5 > max(adapters.overlap(image, mask) for image in without), overlaps
    assert nearly_all([adapters.coloured(image) == (asked.things[0][0], asked.background) for image in controlled])
    assert same(drawn(sdcli, [prompt], "--controlnet", f"{CONTROLNET}=condition.png:0")[0], without[0])


@pytest.mark.parametrize("count", COUNTS)
def test_an_ip_adapter_takes_the_colours_of_its_picture(sdcli: Sdcli, count: int) -> None:
    _, scene = adapters.anywhere(random.Random(3))
    draw.paint(scene).save("like.png")
    colour = scene.things[0].colour
    prompts = [f"a {shape}" for shape in draw.SHAPES[: count // 3]]
    more = ("--count", "3")
    without = drawn(sdcli, prompts, *more)
    assert sum(adapters.coloured(image)[0] == colour for image in without) <= 0.5 * len(without)
    like = drawn(sdcli, prompts, *more, "--ip-adapter", f"{IP_ADAPTER}=like.png")
    assert nearly_all([adapters.coloured(image)[0] == colour for image in like]), [*map(adapters.coloured, like)]
    # Its background comes along more often than not; the prompt keeps its say over the shape.
    named = [shape for shape in draw.SHAPES[: count // 3] for _ in range(3)]
    assert nearly_all([adapters.shows(image, shape) for image, shape in zip(like, named, strict=True)])
    assert same(drawn(sdcli, prompts[:1], "--ip-adapter", f"{IP_ADAPTER}=like.png:0")[0], without[0])
