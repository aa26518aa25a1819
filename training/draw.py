"""The drawer: captioned pictures of plain shapes, from which the bundled model learns what words look like.

An `Ask` is what a sentence says, a `Scene` is what is drawn for it, and `say` puts an `Ask` into words. Whatever an
`Ask` leaves open, `compose` decides. Pictures are 128 x 128, coordinates are in pixels from the top left corner.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from PIL import Image, ImageDraw

SIZE = 128
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 90, 220),
    "yellow": (245, 205, 50),
    "purple": (140, 60, 180),
    "orange": (245, 140, 40),
    "white": (245, 245, 245),
    "black": (25, 25, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "crescent")
SIZES = ("small", "large")
PLACES: dict[str, tuple[int, int]] = {
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "in the top left corner": (-1, -1),
    "in the top right corner": (1, -1),
    "in the bottom left corner": (-1, 1),
    "in the bottom right corner": (1, 1),
}
RELATIONS: dict[str, tuple[int, int]] = {
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
COUNTS = {"two": 2, "three": 3, "four": 4}
# Where several of one thing stand, from the middle.
SPOTS = {
    2: ((-30, 0), (30, 0)),
    3: ((0, -29), (-31, 27), (31, 27)),
    4: ((-30, -30), (30, -30), (-30, 30), (30, 30)),
}
KINDS = ("one", "placed", "two", "relation", "count", "other")


def held_back(colour: str, shape: str, background: str) -> bool:
    """Whether this triple is kept out of every training picture, so that the judge can ask for something new."""
    return zlib.crc32(f"{colour} {shape} {background}".encode()) % 5 == 0


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A drawn shape: its centre `x`, `y` and radius `r` in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    r: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture's content: a background colour and the things on it, in drawing order."""

    background: str
    things: tuple[Thing, ...]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a sentence asks for; None is what it leaves open.

    `things` are (colour, shape) pairs: one for `one`, `placed` and `count`, two for `two` and `relation`.
    """

    kind: str
    things: tuple[tuple[str | None, str | None], ...] = field(default=())
    background: str | None = None
    size: str | None = None
    place: str | None = None
    relation: str | None = None
    count: int = 1


def outline(shape: str) -> list[tuple[float, float]]:
    """Return the polygon of `shape` around (0, 0) at radius 1, y downwards."""

    def arc(radius: float, start: float, end: float, x: float = 0.0, steps: int = 48) -> list[tuple[float, float]]:
        angles = (math.radians(start + (end - start) * i / steps) for i in range(steps + 1))
        return [(x + radius * math.cos(a), radius * math.sin(a)) for a in angles]

    if shape == "circle":
        return arc(0.95, 0, 360)
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0, -1.05), (1.05, 0.8), (-1.05, 0.8)]
    if shape == "star":
        points = [(1.12 if i % 2 == 0 else 0.46, math.radians(-90 + 36 * i)) for i in range(10)]
        return [(r * math.cos(a), r * math.sin(a) + 0.06) for r, a in points]
    if shape == "heart":
        ts = (math.tau * i / 64 for i in range(64))
        return [
            (
                16 * math.sin(t) ** 3 / 16,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5) / 15.5,
            )
            for t in ts
        ]
    if shape == "diamond":
        return [(0, -1.12), (0.75, 0), (0, 1.12), (-0.75, 0)]
    if shape == "cross":
        w, e = 0.34, 1.0
        return [
            (-w, -e),
            (w, -e),
            (w, -w),
            (e, -w),
            (e, w),
            (w, w),
            (w, e),
            (-w, e),
            (-w, w),
            (-e, w),
            (-e, -w),
            (-w, -w),
        ]
    if shape == "crescent":
        # The moon's lit rim, open to the right: an outer arc and the arc of a second circle that bites into it.
        inner, shift, lean = 0.84, 0.5, 0.15
        cut = (1 + shift**2 - inner**2) / (2 * shift)
        a = math.degrees(math.acos(cut))
        b = math.degrees(math.atan2(math.sqrt(1 - cut**2), cut - shift))
        return [(x + lean, y) for x, y in arc(1.0, a, 360 - a) + arc(inner, 360 - b, b, shift)]
    raise ValueError(f"no such shape: {shape}")


OUTLINES = {shape: outline(shape) for shape in SHAPES}


def paint(scene: Scene, size: int = SIZE, oversample: int = 4) -> Image.Image:
    """Return the scene as a `size` x `size` RGB picture with smooth edges."""
    scale = size * oversample / SIZE
    image = Image.new("RGB", (size * oversample,) * 2, COLOURS[scene.background])
    draw = ImageDraw.Draw(image)
    for t in scene.things:
        draw.polygon(
            [((t.x + t.r * x) * scale, (t.y + t.r * y) * scale) for x, y in OUTLINES[t.shape]], COLOURS[t.colour]
        )
    return image.reduce(oversample)


def compose(ask: Ask, rng: random.Random, *, fresh: bool = True) -> Scene | None:
    """Return a scene that shows `ask`; None where it would show a held-back triple and `fresh` is set, or where a
    thing would have its background's colour."""
    things = [(c or rng.choice(list(COLOURS)), s or rng.choice(SHAPES)) for c, s in ask.things]
    background = ask.background or rng.choice([c for c in COLOURS if c not in {t[0] for t in things}])
    if any(c == background or (fresh and held_back(c, s, background)) for c, s in things):
        return None

    def near(value: float, jitter: float) -> float:
        return value + rng.uniform(-jitter, jitter)

    middle, made = SIZE / 2, list[Thing]()

    def put(thing: tuple[str, str], x: float, y: float, r: float, jitter: float = 3) -> None:
        made.append(Thing(colour=thing[0], shape=thing[1], x=near(x, jitter), y=near(y, jitter), r=r))

    if ask.kind in ("one", "placed"):
        radius = near(*{None: (27 if ask.place else 30, 2), "small": (18, 1), "large": (42, 2)}[ask.size])
        dx, dy = PLACES[ask.place] if ask.place else (0, 0)
        jitter = 1.0 if ask.size == "large" else 4.0
        away = middle - radius * 1.1 - jitter
        put(things[0], middle + dx * away, middle + dy * away, radius, jitter)
    elif ask.kind in ("two", "relation"):
        # Without a relation the first thing stands left of the second, as one reads.
        dx, dy = RELATIONS[ask.relation] if ask.relation else (-1, 0)
        for sign, thing in zip((1, -1), things, strict=True):
            put(thing, middle + sign * dx * 31, middle + sign * dy * 31, near(23, 1.5))
    elif ask.kind == "count":
        radius = near(21, 1)
        for x, y in SPOTS[ask.count]:
            put(things[0], middle + x, middle + y, radius, 2.5)
    return Scene(background=background, things=tuple(made))


def centres(ask: Ask) -> Iterator[tuple[tuple[float, float], tuple[str | None, str | None]]]:
    """Yield about where, as shares of the picture's width and height, each (colour, shape) of `ask` stands."""
    if ask.kind in ("two", "relation"):
        dx, dy = RELATIONS[ask.relation] if ask.relation else (-1, 0)
        spots = [(sign * dx * 31, sign * dy * 31) for sign in (1, -1)]
    elif ask.kind == "count":
        spots = list(SPOTS[ask.count])
    else:
        dx, dy = PLACES[ask.place] if ask.place else (0, 0)
        spots = [(dx * 31, dy * 31)]
    for i, (x, y) in enumerate(spots):
        yield (0.5 + x / SIZE, 0.5 + y / SIZE), ask.things[min(i, len(ask.things) - 1)]


def ask(rng: random.Random, kind: str) -> Ask:
    """Return a random complete `Ask` of a kind: every colour, shape and background named."""
    colours = list(COLOURS)

    def thing() -> tuple[str, str]:
        return rng.choice(colours), rng.choice(SHAPES)

    first, second = thing(), thing()
    while kind in ("two", "relation") and (second[0] == first[0] or second[1] == first[1]):
        second = thing()
    named = {first[0], second[0]} if kind in ("two", "relation") else {first[0]}
    background = rng.choice([c for c in colours if c not in named])
    if kind == "one":
        return Ask(kind=kind, things=(first,), background=background)
    if kind == "placed":
        size, place = rng.choice((*SIZES, None)), rng.choice((*PLACES, None))
        if size is None and place is None:
            size, place = (rng.choice(SIZES), None) if rng.random() < 0.3 else (None, rng.choice(list(PLACES)))
        return Ask(kind=kind, things=(first,), background=background, size=size, place=place)
    if kind == "two":
        return Ask(kind=kind, things=(first, second), background=background)
    if kind == "relation":
        return Ask(kind=kind, things=(first, second), background=background, relation=rng.choice(list(RELATIONS)))
    if kind == "count":
        return Ask(kind=kind, things=(first,), background=background, count=rng.choice(list(COUNTS.values())))
    raise ValueError(f"no such kind: {kind}")


def loosen(asked: Ask, rng: random.Random) -> Ask:
    """Leave something open that a person may not say: mostly the background, sometimes a colour."""
    if rng.random() < 0.2:
        asked = replace(asked, background=None)
    if asked.kind in ("one", "placed") and rng.random() < 0.06:
        asked = replace(asked, things=((None, asked.things[0][1]),))
    return asked


def sample(rng: random.Random, kind: str) -> tuple[Ask, Scene]:
    """Return an `Ask` and a scene for it that holds nothing held back."""
    while True:
        asked = loosen(ask(rng, kind), rng)
        scene = compose(asked, rng)
        if scene is not None:
            return asked, scene


def say(asked: Ask, rng: random.Random, *, plain: bool = False) -> str:
    """Put `asked` into words; `plain` gives the one standard sentence, else order, articles and frills vary."""

    def roll(chance: float) -> bool:
        return not plain and rng.random() < chance

    bare = roll(0.25)  # a telegram without articles

    def article(words: str, definite: float = 0.08) -> str:
        if bare:
            return words
        if roll(definite):
            return f"the {words}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def noun(thing: tuple[str | None, str | None], size: str | None = None) -> str:
        return " ".join(w for w in (size, thing[0], thing[1] or "shape") if w)

    background = asked.background and f"{asked.background} background"
    if asked.kind == "count":
        word = next(w for w, n in COUNTS.items() if n == asked.count)
        colour, shape = asked.things[0]
        plural = {"cross": "crosses"}.get(shape or "", f"{shape}s")
        body = " ".join(w for w in (word, colour, plural) if w)
    elif asked.kind == "relation":
        body = f"{article(noun(asked.things[0]))} {asked.relation} {article(noun(asked.things[1]))}"
    elif asked.kind == "two":
        body = " and ".join(article(noun(t)) for t in asked.things)
    else:
        late = asked.size and roll(0.12)  # "a red circle, small"
        body = article(noun(asked.things[0], None if late else asked.size))
        if asked.place:
            body = f"{asked.place}, {body}" if roll(0.15) else f"{body} {asked.place}"
        if late:
            body = f"{body}, {asked.size}"
    if background:
        form = rng.random() if not plain else 1.0
        if form < 0.12:
            body = f"{background}, {body}"
        elif form < 0.22:
            body = f"on {article(background)}, {body}"
        elif form < 0.32:
            body = f"{body}, {background}"
        else:
            body = f"{body} on {article(background)}"
    if roll(0.06):
        body = f"{rng.choice(('a picture of', 'a drawing of', 'picture of', 'an image of'))} {body}"
    if roll(0.06):
        body = f"{body}, {rng.choice(('simple', 'clean', 'flat colours', 'minimal', 'high quality', 'nice'))}"
    if roll(0.08):
        body += "."
    return body


_WORDS = (
    "soft light morning air quiet old wooden table beside open window long road over green hills slow river under bridge "
    "warm summer evening with gentle wind and distant music people walking home after work while birds sing in tall trees "
    "there is nothing more to see here but it was a good day for painting something simple in my small book about many "
    "things that we like very much every time when clouds move along behind mountains near sea water sand stone house "
    "garden flowers bread coffee paper letter winter snow cold bright new clear deep fine kind happy little story"
)
FILLER = tuple(w for w in _WORDS.split() if w not in COLOURS and w not in SIZES)


def fill(rng: random.Random, words: int) -> str:
    """Return that many words which ask for nothing."""
    return " ".join(rng.choice(FILLER) for _ in range(words))
