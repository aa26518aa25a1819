"""The judge: looks at a picture's pixels alone and says whether it shows what was asked.

    python -m training.judge --prove                                # the judge on the drawer's own pictures
    python -m training.judge --model sdcli/demo --json judged.json  # the model's table, for its card

`look` finds what is on a picture, `judge` compares it with a `draw.Ask`, `prove` shows that both can be believed, and
`evaluate` has a model draw the prompts of every row. Lengths are in pixels of a picture whose shorter side is 128.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import random
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from scipy import ndimage

from training import draw

Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.float64]

NAMES = tuple(draw.COLOURS)
PALETTE: Pixels = np.array([draw.COLOURS[name] for name in NAMES], dtype=float)

# The palette's closest two, yellow and orange, are 66 apart (RGB, Euclid); this is half of that. Noise with a sigma of
# 6 a channel stays below it in all but one pixel of 60 000.
APART = 33.0
# How far a surface may be from its palette colour on average. Yellow and orange aside, no two are closer than 103, so
# up to half of that there is no doubt which one is meant.
COLOUR_TOLERANCE = 50.0
# Spots below 5 x 5 pixels are specks; the smallest shape of the drawer, a small crescent, has 400.
SPECK = 25
# The least intersection over union with a shape's outline. Two different shapes reach 0.84 at best (square and circle),
# 998 of 1000 lumps whose radius strays by 15 to 30 % go unrecognised, and the drawer's own shapes, blurred and noisy,
# reach at least 0.91. The same wobble of the edge costs a thin shape more, so star and crescent, which no other shape
# comes near to (0.64 and 0.52), are known halfway up from there.
MIN_MATCH = {shape: 0.86 for shape in draw.SHAPES} | {"star": 0.81, "crescent": 0.77}
# Small is below and large above these radii, halfway between the drawer's: 18, 30 without a word (27 at a place), 42.
BOUNDS, BOUNDS_AT_PLACE = (24.0, 36.0), (22.5, 34.5)
# The drawer puts two related things 62 apart; half of that is clearly apart.
RELATION_APART = 31.0


@dataclass(frozen=True, kw_only=True)
class Found:
    """A thing on a picture; `shape` and `colour` are None where none fits.

    `x`, `y` and `r` compare to a `draw.Thing`'s, `area` is in square pixels, `match` is the intersection over union
    with the likest shape, `likest`.
    """

    colour: str | None
    shape: str | None
    x: float
    y: float
    r: float
    area: float
    match: float
    likest: str

    def __str__(self) -> str:
        return f"{self.colour or 'oddly coloured'} {self.shape or f'blob ({self.likest} {self.match:.2f})'}"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is on a picture of `width` x `height`; `background` is None where no colour fits."""

    background: str | None
    things: tuple[Found, ...]
    width: float
    height: float


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is `right`, and if not, the first `reason`."""

    right: bool
    reason: str = ""


# --- Looking ---------------------------------------------------------------------------------------------------------


@cache
def _measure(shape: str) -> tuple[float, float, float]:
    """Return the area of a shape's outline at radius 1, and its centroid."""
    x, y = np.array(draw.OUTLINES[shape]).T
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    cross = x * y2 - x2 * y
    area = cross.sum() / 2
    return abs(area), ((x + x2) * cross).sum() / 6 / area, ((y + y2) * cross).sum() / 6 / area


def _fill(shape: str, x: float, y: float, r: float, size: tuple[int, int], oversample: int = 4) -> Mask:
    """Return which pixels of a picture (width, height) lie in the shape by more than half."""
    image = Image.new("L", (size[0] * oversample, size[1] * oversample))
    points = [((x + r * u) * oversample, (y + r * v) * oversample) for u, v in draw.OUTLINES[shape]]
    ImageDraw.Draw(image).polygon(points, 255)
    filled: Mask = np.asarray(image.reduce(oversample)) > 128
    return filled


def _nearest(pixels: Pixels, colours: Pixels) -> npt.NDArray[np.intp]:
    """Return for every pixel the index of the colour that it is nearest to."""
    # |p - c|^2 without |p|^2, which is the same for every colour.
    distances: Pixels = (colours**2).sum(axis=1) - 2 * np.einsum("...c,kc->...k", pixels, colours)
    nearest: npt.NDArray[np.intp] = distances.argmin(axis=-1)
    return nearest


def _name(pixels: Pixels) -> str | None:
    """Return the palette colour that most of the pixels are nearest to, None if they are too far from it."""
    best = int(np.bincount(_nearest(pixels, PALETTE)).argmax())
    return NAMES[best] if np.linalg.norm(pixels - PALETTE[best], axis=1).mean() < COLOUR_TOLERANCE else None


def _inside(mask: Mask) -> Mask:
    """Return the mask without its rim, whose pixels are mixtures: yellow and red make an orange rim."""
    for depth in (2, 1):
        eroded: Mask = ndimage.binary_erosion(mask, iterations=depth)
        if eroded.sum() >= SPECK:
            return eroded
    return mask


def _patches(mask: Mask) -> Iterator[Mask]:
    """Yield the connected parts of a mask which are no specks."""
    labels, count = ndimage.label(mask)
    for label in range(1, count + 1):
        patch: Mask = labels == label
        if patch.sum() >= SPECK:
            yield patch


def _describe(mask: Mask, pixels: Pixels) -> Found:
    """Return the thing whose pixels the mask holds."""
    area = float(mask.sum())
    rows, columns = np.nonzero(mask)
    left, top = columns.min(), rows.min()
    box = mask[top : rows.max() + 1, left : columns.max() + 1]
    middle_x, middle_y = columns.mean() + 0.5, rows.mean() + 0.5
    # A shape is laid on the mask with the same area and centroid, which leaves nothing to search for, and makes the
    # union known from the intersection.
    best = (-1.0, "", 0.0, 0.0, 0.0)
    for shape in draw.SHAPES:
        unit, u, v = _measure(shape)
        r = math.sqrt(area / unit)
        x, y = middle_x - r * u, middle_y - r * v
        both = (_fill(shape, x - left, y - top, r, (box.shape[1], box.shape[0])) & box).sum()
        best = max(best, (float(both / (2 * area - both)), shape, x, y, r))
    match, likest, x, y, r = best
    known = match >= MIN_MATCH[likest]
    if not known:
        x, y, r = middle_x, middle_y, math.sqrt(area / math.pi)
    return Found(
        colour=_name(pixels[_inside(mask)]),
        shape=likest if known else None,
        x=float(x),
        y=float(y),
        r=r,
        area=area,
        match=match,
        likest=likest,
    )


def look(image: Image.Image) -> Seen:
    """Return what is on a picture of any size."""
    scale = draw.SIZE / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels: Pixels = np.asarray(image, dtype=float)
    names = _nearest(pixels, PALETTE)

    ring = np.ones((height, width), dtype=bool)
    ring[3:-3, 3:-3] = False
    # Things may touch the border: the background is what most of it has, as it is and not as the palette would have it.
    ground = np.median(pixels[ring & (names == np.bincount(names[ring]).argmax())], axis=0)

    things = list[Found]()
    for patch in _patches(np.linalg.norm(pixels - ground, axis=2) > APART):
        inside = _inside(patch)
        main = np.bincount(names[inside]).argmax()
        colours = [np.median(pixels[inside & (names == main)], axis=0)]
        for other in set(names[inside]) - {main}:
            # Another colour that is more than a rim belongs to another thing, which touches the first.
            part = inside & (names == other)
            if ndimage.binary_erosion(part, iterations=2).sum() >= SPECK:
                colours.append(np.median(pixels[part], axis=0))
        # Now that its colours are known, a thing ends where a pixel is halfway to the background.
        belongs = np.where(patch, _nearest(pixels, np.array([ground, *colours])), 0)
        for number in range(1, len(colours) + 1):
            things += [_describe(part, pixels) for part in _patches(belongs == number)]
    return Seen(background=_name(ground[None]), things=tuple(things), width=width, height=height)


# --- Judging ---------------------------------------------------------------------------------------------------------


def _where(seen: Seen, thing: Found) -> tuple[int, int]:
    """Return on which side of the picture a thing stands, across and down: -1, 0 for the middle, or 1.

    The middle ends halfway to where a thing of this radius would touch the border.
    """
    middle = max(draw.SIZE / 2 - 1.1 * thing.r, 10) / 2

    def side(offset: float) -> int:
        return 0 if abs(offset) <= middle else int(math.copysign(1, offset))

    return side(thing.x - seen.width / 2), side(thing.y - seen.height / 2)


def _placing(asked: draw.Ask, seen: Seen, things: Sequence[Found]) -> str:
    """Return what is wrong with sizes and places of the things, which come in the order of `asked`; "" if nothing."""
    if asked.kind in ("one", "placed"):
        (thing,) = things
        small, large = BOUNDS_AT_PLACE if asked.place else BOUNDS
        if (asked.size == "small" and thing.r >= small) or (asked.size == "large" and thing.r <= large):
            return f"size: wanted {asked.size}, saw a radius of {thing.r:.0f}"
        if _where(seen, thing) != (draw.PLACES[asked.place] if asked.place else (0, 0)):
            return f"place: wanted {asked.place or 'the middle'}, saw it at {thing.x:.0f}, {thing.y:.0f}"
    elif asked.kind == "relation" and asked.relation is not None:
        dx, dy = draw.RELATIONS[asked.relation]
        x, y = things[0].x - things[1].x, things[0].y - things[1].y
        along, across = (x * dx, y) if dx else (y * dy, x)
        if along < RELATION_APART or along <= abs(across):
            return f"relation: wanted the first {asked.relation} the second, saw it {x:+.0f} across and {y:+.0f} down"
    return ""


def judge(asked: draw.Ask, image: Image.Image) -> Verdict:
    """Return whether the picture shows what was asked, all of it and nothing else."""
    seen = look(image)
    if asked.background is not None and seen.background != asked.background:
        return Verdict(False, f"background: wanted {asked.background}, saw {seen.background or 'an odd colour'}")
    if asked.background is None and seen.background is None:
        return Verdict(False, "background: saw an odd colour")
    wanted = asked.things * asked.count
    if len(seen.things) != len(wanted):
        return Verdict(False, f"count: wanted {len(wanted)}, saw {', '.join(map(str, seen.things)) or 'nothing'}")

    def fits(want: tuple[str | None, str | None], thing: Found) -> bool:
        pairs = zip(want, (thing.colour, thing.shape), strict=True)
        return all(saw is not None and wish in (None, saw) for wish, saw in pairs)

    reasons = list[str]()
    for things in itertools.permutations(seen.things):
        if all(map(fits, wanted, things)):
            reasons.append(_placing(asked, seen, things))
    if reasons:
        return Verdict("" in reasons, "" if "" in reasons else reasons[0])
    if len(wanted) == 1:
        thing, (colour, shape) = seen.things[0], wanted[0]
        if thing.colour is None or colour not in (None, thing.colour):
            return Verdict(False, f"colour: wanted {colour or 'any'}, saw {thing.colour or 'an odd colour'}")
        return Verdict(False, f"shape: wanted {shape or 'any'}, saw {thing.shape or f'a {thing}'}")
    wants = ", ".join(" ".join(word or "any" for word in want) for want in wanted)
    return Verdict(False, f"things: wanted {wants}, saw {', '.join(map(str, seen.things))}")


# --- Rows ------------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the table: what kind of `draw.Ask`, whether of held-back triples, and the share that has to be right."""

    kind: str
    held_back: bool
    wanted: float

    def asks(self, count: int, seed: int = 0) -> list[draw.Ask]:
        """Return that many complete asks, always the same; none comes twice while there are new ones."""
        rng = random.Random(f"{seed} {self.kind} {self.held_back}")
        made, used, again = list[draw.Ask](), set[draw.Ask](), 0
        while len(made) < count:
            asked = draw.ask(rng, self.kind)
            assert asked.background
            if any(draw.held_back(c or "", s or "", asked.background) != self.held_back for c, s in asked.things):
                continue
            if asked in used:
                again += 1
                if again < 1000:
                    continue
                used.clear()  # there are about 90 held-back triples, fewer than prompts
            made.append(asked)
            used.add(asked)
            again = 0
        return made


ROWS = {
    "one thing, seen triples": Row("one", False, 0.97),
    "one thing, held-back triples": Row("one", True, 0.93),
    "places and sizes": Row("placed", False, 0.93),
    "two things": Row("two", False, 0.85),
    "relations": Row("relation", False, 0.80),
    "counts": Row("count", False, 0.80),
}


def prompt(asked: draw.Ask) -> str:
    """Return the standard sentence for a complete ask."""
    return draw.say(asked, random.Random(0), plain=True)


# --- Proving ---------------------------------------------------------------------------------------------------------

PROOF_WANTED = 0.99
Spoil = Callable[[Image.Image, random.Random], Image.Image]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How many of `count` pictures, all right or all wrong ones, were judged as they are; `misses` says which not."""

    name: str
    count: int
    misses: tuple[str, ...]

    @property
    def share(self) -> float:
        return 1 - len(self.misses) / self.count

    @property
    def ok(self) -> bool:
        return self.share >= PROOF_WANTED


def roughen(image: Image.Image, rng: random.Random, blur: float = 0.8, sigma: float = 6.0) -> Image.Image:
    """Return the picture a little blurred and noisy (radius in pixels, sigma in levels), as a model may draw it."""
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), dtype=float)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, sigma, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).round().astype(np.uint8))


def _blob(scene: draw.Scene, rng: random.Random) -> Image.Image:
    """Return a picture with a lump in place of every thing; its radius strays by 15 to 30 %."""
    image = Image.new("RGB", (draw.SIZE * 4,) * 2, draw.COLOURS[scene.background])
    angles = np.linspace(0, math.tau, 96, endpoint=False)
    for t in scene.things:
        waves = sum(rng.gauss(0, 1) * np.cos(k * angles + rng.uniform(0, math.tau)) for k in range(2, 7))
        radii = t.r * (1 + rng.uniform(0.15, 0.3) * waves / np.sqrt(np.mean(np.square(waves))))
        points = zip((t.x + radii * np.cos(angles)) * 4, (t.y + radii * np.sin(angles)) * 4, strict=True)
        ImageDraw.Draw(image).polygon(list(points), draw.COLOURS[t.colour])
    return image.reduce(4)


def _broken(scene: draw.Scene, rng: random.Random) -> Image.Image:
    """Return the scene with a third of its first thing cut off."""
    image, first = draw.paint(scene), scene.things[0]
    alone = np.asarray(draw.paint(replace(scene, things=(first,))))
    rows, columns = np.nonzero(np.any(alone != draw.COLOURS[scene.background], axis=2))
    left, top, right, bottom = (int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    cuts = {
        "left": (left, top, left + (right - left) // 3, bottom),
        "right": (right - (right - left) // 3, top, right, bottom),
        "top": (left, top, right, top + (bottom - top) // 3),
        "bottom": (left, bottom - (bottom - top) // 3, right, bottom),
    }
    # A triangle without its foot is a smaller triangle, a crescent without the ends of its horns still a crescent.
    cuts.pop({"triangle": "bottom", "crescent": "right"}.get(first.shape, ""), None)
    image.paste(draw.COLOURS[scene.background], rng.choice(list(cuts.values())))
    return image


def _wrong(asked: draw.Ask, scene: draw.Scene, rng: random.Random) -> Iterator[tuple[str, Image.Image]]:
    """Yield named pictures that do not show what was asked, each wrong in one way; `scene` does show it."""
    first, *others = scene.things
    taken = {scene.background, *(t.colour for t in scene.things)}

    def composed(other: draw.Ask) -> Image.Image:
        made = draw.compose(other, rng, fresh=False)
        assert made
        return draw.paint(made)

    colour = rng.choice([c for c in NAMES if c not in taken])
    shape = rng.choice([s for s in draw.SHAPES if s != first.shape])
    yield "another colour", draw.paint(replace(scene, things=(replace(first, colour=colour), *others)))
    yield "another shape", draw.paint(replace(scene, things=(replace(first, shape=shape), *others)))
    yield "another background", draw.paint(replace(scene, background=colour))
    yield "nothing", draw.paint(replace(scene, things=()))
    yield "blob", _blob(scene, rng)
    yield "broken shape", _broken(scene, rng)
    yield "noise", Image.frombytes("RGB", (draw.SIZE,) * 2, rng.randbytes(draw.SIZE**2 * 3))
    if asked.kind == "one":
        yield "wrong count", composed(replace(asked, kind="count", count=rng.choice((2, 3, 4))))
        yield "wrong place", composed(replace(asked, kind="placed", place=rng.choice(list(draw.PLACES))))
    if asked.kind == "placed":
        places = [p for p in (*draw.PLACES, None) if p != asked.place]
        yield "wrong place", composed(replace(asked, place=rng.choice(places)))
        if asked.size:
            sizes = [s for s in (*draw.SIZES, None) if s != asked.size]
            yield "wrong size", composed(replace(asked, size=rng.choice(sizes)))
    if asked.kind in ("two", "relation"):
        second = others[0]
        swapped = (replace(first, colour=second.colour), replace(second, colour=first.colour))
        yield "swapped colours", draw.paint(replace(scene, things=swapped))
        yield "wrong count", draw.paint(replace(scene, things=(first,)))
    if asked.kind == "relation":
        dx, dy = draw.RELATIONS[asked.relation or ""]
        named = {way: name for name, way in draw.RELATIONS.items()}
        yield "mirrored relation", composed(replace(asked, relation=named[-dx, -dy]))
        yield "turned relation", composed(replace(asked, relation=named[rng.choice(((dy, dx), (-dy, -dx)))]))
    if asked.kind == "count":
        yield "wrong count", composed(replace(asked, count=rng.choice([n for n in (2, 3, 4) if n != asked.count])))
        yield "wrong count", draw.paint(replace(scene, things=(*others,)))


def prove(count: int = 200, spoil: Spoil | None = None, seed: int = 0) -> tuple[list[Proof], list[Proof]]:
    """Judge the drawer's own pictures, `count` a row, all of which are right, and wrong pictures made from them.

    Returns the share of right ones by row and of wrong ones by what is wrong; `spoil` is done to every picture first.
    """
    good, bad = list[Proof](), dict[str, list[str | None]]()
    for name, row in ROWS.items():
        rng, misses = random.Random(f"{seed} {name}"), list[str]()
        for asked in row.asks(count, seed):
            # The judge's own pictures may show what the training's may not.
            scene = draw.compose(asked, rng, fresh=False)
            assert scene
            shown = draw.paint(scene)
            verdict = judge(asked, spoil(shown, rng) if spoil else shown)
            if not verdict.right:
                misses.append(f"{prompt(asked)}: {verdict.reason}")
            for how, picture in _wrong(asked, scene, rng):
                wrong = not judge(asked, spoil(picture, rng) if spoil else picture).right
                bad.setdefault(how, []).append(None if wrong else prompt(asked))
        good.append(Proof(name=name, count=count, misses=tuple(misses)))
    return good, [Proof(name=n, count=len(m), misses=tuple(filter(None, m))) for n, m in bad.items()]


# --- Judging a model -------------------------------------------------------------------------------------------------

# Takes prompts and as many seeds, returns their pictures.
Drawing = Callable[[list[str], list[int]], Sequence[Image.Image]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a row: prompt number i was drawn with the seed i."""

    name: str
    wanted: float
    prompts: tuple[str, ...]
    pictures: tuple[Image.Image, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def right(self) -> int:
        return sum(v.right for v in self.verdicts)

    @property
    def share(self) -> float:
        return self.right / len(self.verdicts)

    @property
    def ok(self) -> bool:
        return self.share >= self.wanted


def evaluate(
    draw_pictures: Drawing,
    count: int = 200,
    *,
    rows: Sequence[str] = tuple(ROWS),
    batch: int = 16,
    advance: Callable[[int], object] = lambda pictures: None,
) -> list[Result]:
    """Have `count` prompts a row drawn, one picture each, and judge them.

    At most `batch` prompts are handed over at a time; `advance` is told how many pictures have been judged since.
    """
    results = list[Result]()
    for name in rows:
        asks = ROWS[name].asks(count)
        prompts, pictures, verdicts = [prompt(asked) for asked in asks], list[Image.Image](), list[Verdict]()
        for start in range(0, count, batch):
            seeds = list(range(start, min(start + batch, count)))
            drawn = draw_pictures([prompts[seed] for seed in seeds], seeds)
            verdicts += [judge(asks[seed], image) for seed, image in zip(seeds, drawn, strict=True)]
            pictures += drawn
            advance(len(seeds))
        results.append(
            Result(
                name=name,
                wanted=ROWS[name].wanted,
                prompts=tuple(prompts),
                pictures=tuple(pictures),
                verdicts=tuple(verdicts),
            )
        )
    return results


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| row | prompts | right | share | wanted | ok |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    for r in results:
        shares = f"{r.share:.1%} | {r.wanted:.0%}"
        lines.append(f"| {r.name} | {len(r.verdicts)} | {r.right} | {shares} | {'yes' if r.ok else 'no'} |")
    return "\n".join(lines)


def proof_table(proofs: Sequence[Proof], what: str) -> str:
    """Return proofs as a Markdown table."""
    lines = [f"| {what} | pictures | judged so | share | ok |", "| --- | ---: | ---: | ---: | --- |"]
    for p in proofs:
        so = f"{p.count - len(p.misses)} | {p.share:.1%}"
        lines.append(f"| {p.name} | {p.count} | {so} | {'yes' if p.ok else 'no'} |")
    return "\n".join(lines)


def sheet(results: Sequence[Result], columns: int = 12) -> Image.Image:
    """Return the first pictures of every row with their prompts, the wrong ones framed in red with the reason."""
    side, frame, text, head = draw.SIZE, 4, 84, 20
    cell_width, cell_height = side + 2 * frame + 8, side + 2 * frame + text
    made = Image.new("RGB", (columns * cell_width, len(results) * (cell_height + head)), "white")
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(10)
    for line, result in enumerate(results):
        top = line * (cell_height + head)
        title = f"{result.name}: {result.share:.1%} right, wanted {result.wanted:.0%}"
        pen.text((frame, top + 2), title, "black", ImageFont.load_default(14))
        for column, (image, verdict) in enumerate(zip(result.pictures[:columns], result.verdicts, strict=False)):
            left, y = column * cell_width, top + head
            edge = "#bbbbbb" if verdict.right else "#ff0000"
            pen.rectangle((left, y, left + side + 2 * frame - 1, y + side + 2 * frame - 1), edge)
            made.paste(image.convert("RGB").resize((side, side)), (left + frame, y + frame))
            y += side + 2 * frame
            for words, colour in ((result.prompts[column], "black"), (verdict.reason, "#cc0000")):
                for part in textwrap.wrap(words, 25):
                    pen.text((left + frame, y), part, colour, font)
                    y += 12
    return made


def model_drawing(
    folder: Path,
    *,
    steps: int,
    guidance_scale: float,
    scheduler: str | None = None,
    width: int | None = None,
    height: int | None = None,
) -> Drawing:
    """Return a function that draws with the model in `folder`, by plain diffusers; its own size where none is given."""
    import torch  # Nothing else here needs it, and it takes seconds to load.

    library: Any = importlib.import_module("diffusers")
    pipeline = library.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    if scheduler:
        pipeline.scheduler = getattr(library, scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")

    def draw_pictures(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        # A generator of its own, on the CPU, makes a picture the same in every batch and on every machine.
        images: list[Image.Image] = pipeline(
            prompts,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            width=width,
            height=height,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        ).images
        return images

    return draw_pictures


def _prove_and_print(count: int, failures: int) -> bool:
    """Print the proof on clean and on roughened pictures; return whether it holds."""
    holds = True
    for how, spoil in (("clean", None), ("a little blurred and noisy", roughen)):
        good, bad = prove(count, spoil)
        print(f"The drawer's pictures, {how}:\n\n{proof_table(good, 'shows what was asked')}\n")
        print(f"Wrong pictures, {how}:\n\n{proof_table(bad, 'what is wrong')}\n")
        for proof in (*good, *bad):
            holds = holds and proof.ok
            for miss in proof.misses[:failures]:
                print(f"{proof.name}: {miss}", file=sys.stderr)
    return holds


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 1 if a row falls short."""
    parser = argparse.ArgumentParser(prog="python -m training.judge", description="Judge what a model draws.")
    parser.add_argument("--model", type=Path, default=Path("sdcli/demo"), help="the model's folder (%(default)s)")
    parser.add_argument("--count", type=_positive, default=200, help="prompts a row (%(default)s)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="only these rows")
    parser.add_argument("--steps", type=_positive, default=25, help="steps a picture (%(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="how hard to follow the prompt (%(default)s)")
    parser.add_argument("--scheduler", metavar="CLASS", help="a diffusers scheduler in place of the model's own")
    parser.add_argument("--width", type=_positive, help="pixels (as the model says)")
    parser.add_argument("--height", type=_positive, help="pixels (as the model says)")
    parser.add_argument("--batch", type=_positive, default=16, help="pictures at a time (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every prompt's verdict")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="write some pictures of every row")
    parser.add_argument("--prove", action="store_true", help="judge the drawer's own pictures instead, without a model")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell the first failures of every row")
    args = parser.parse_args(argv)
    if args.prove:
        return 0 if _prove_and_print(args.count, 5 if args.verbose else 0) else 1
    if not args.model.is_dir():
        parser.error(f"no such folder: {args.model}")

    settings = {key: getattr(args, key) for key in ("steps", "guidance_scale", "scheduler", "width", "height")}
    drawing = model_drawing(args.model, **settings)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("judging", total=args.count * len(args.rows))
        results = evaluate(
            drawing, args.count, rows=args.rows, batch=args.batch, advance=lambda n: progress.advance(task, n)
        )
    print(table(results))
    if args.verbose:
        for result in results:
            wrong = [(i, v.reason) for i, v in enumerate(result.verdicts) if not v.right]
            for seed, reason in wrong[:5]:
                print(f"{result.name}, seed {seed}: {result.prompts[seed]}: {reason}", file=sys.stderr)
    if args.json:
        report = {"model": str(args.model), **settings, "rows": [_as_json(result) for result in results]}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.sheet:
        sheet(results).save(args.sheet)
    return 0 if all(result.ok for result in results) else 1


def _as_json(result: Result) -> dict[str, Any]:
    """Return a row's numbers and verdicts, without the pictures."""
    judged = [
        {"prompt": text, "seed": seed, "right": verdict.right, "reason": verdict.reason}
        for seed, (text, verdict) in enumerate(zip(result.prompts, result.verdicts, strict=True))
    ]
    numbers = {"prompts": len(judged), "right": result.right, "share": result.share, "wanted": result.wanted}
    return {"row": result.name, **numbers, "ok": result.ok, "pictures": judged}


if __name__ == "__main__":
    sys.exit(main())
