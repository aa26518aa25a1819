"""Draw the README's pictures with the bundled model: python docs/pictures.py [NAME...]

Without names all are drawn: they are the functions in SHEETS. In `demo` prompt i has seed i, elsewhere row i, counted from 0; no
seed was chosen. `adapters` needs the extras `lora` and `control`; `explain` and `gallery` are pages in Debian's Chromium: they need
the extras `show` and `test`, and are left out where there is no browser, unless they are named.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageSequence

from sdcli import pictures
from sdcli.cli.main import main as sdcli

HERE = Path(__file__).parent
# The tests know how a page is opened.
sys.path.insert(0, str(HERE.parent))
from tests import browser  # noqa: E402

ADAPTERS = HERE.parent / "tests" / "adapters"
PROMPTS = (
    "a red circle on a blue background",
    "a yellow star on a black background",
    "a small green heart in the top left corner on a white background",
    "a large purple cross on an orange background",
    "a red circle and a blue square on a white background",
    "a white crescent on a purple background",
    "a green triangle above a yellow diamond on a black background",
    "three white stars on a red background",
    "four black hearts on a yellow background",
    "an orange square to the right of a blue circle on a white background",
)
GRID = ("--x", "prompt:red=red,green,blue", "--y", "cfg=1..3/3", "--z", "prompt:circle=circle,star")
SIDE, TEXT, COLUMNS = 160, 46, 5
CIRCLE = "a red circle on a blue background"
STAR = "a yellow star on a blue background"
HEART = "a red heart on a white background"
TWO = "a red star and a blue circle on a purple background"
MARGIN, GAP, LINE, TITLE = 10, 14, 15, 26
# Of the animation: WebP's, of 100; it is noise for the most part, and without loss five times as large.
QUALITY = 70


@dataclass(frozen=True)
class Cell:
    """A picture and what stands below it: drawn with `words` after `sdcli generate`, or a file that is there already.

    In `words`, {name} is the path of the file NAME.png.
    """

    caption: str
    words: Sequence[str] = ()
    file: str = ""


@dataclass(frozen=True)
class Row:
    """Pictures side by side, drawn with one seed; `height` is how high they are shown, 0 as they are."""

    title: str
    cells: Sequence[Cell]
    height: int = 0


def main(names: Sequence[str]) -> None:
    seen = Path(browser.PROGRAM).exists() and importlib.util.find_spec("playwright") is not None
    for name in names or SHEETS:
        if not names and name in PAGES and not seen:
            print(f"{name}: left out, there is no {browser.PROGRAM} or no Playwright", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = SHEETS[name](Path(folder))
            if isinstance(made, Path):
                shutil.copy(made, HERE / f"{name}{made.suffix}")
            else:
                # Few colours are in them, and files with a palette are smaller.
                made.quantize(256, dither=Image.Dither.NONE).save(HERE / f"{name}.png", optimize=True)


# What is drawn


def demo(folder: Path) -> Image.Image:
    font = ImageFont.load_default(size=12)
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, prompt in enumerate(PROMPTS):
        image = drawn([prompt], i, folder / f"{i}.png")
        x, y = i % COLUMNS * SIDE, i // COLUMNS * (SIDE + TEXT)
        sheet.paste(image, (x + (SIDE - image.width) // 2, y + 8))
        draw.multiline_text((x + 12, y + 142), wrapped(prompt, font, SIDE - 20), "black", font, spacing=2)
    return sheet


def grid(folder: Path) -> Path:
    """The sheet that sdcli makes, with its record."""
    said = run(
        "grid", "a red circle on a white background", *GRID, "--seed", "0", "--model", "demo", "-o", f"{folder}/"
    )
    return Path(said.splitlines()[-1])


def words(folder: Path) -> Image.Image:
    """Weights, words that change, and prompts of any length."""
    weighted = "a red circle and a (blue square:{})"
    changes = ("[red:blue:0.2] circle", "[red:blue:0.3] circle", "[red:blue:0.4] circle", "[heart|star]")
    changing = [f"a {what} on a white background" for what in changes]
    nothing = "a picture with nothing else in it, " * 12
    one, other = (f"{nothing}{thing} on a white background" for thing in ("a red circle", "a blue star"))
    short = "... (a hundred tokens), {} on a white background"
    return sheet(
        folder,
        [
            Row("Weights", [Cell(weighted.format(w), [weighted.format(w)]) for w in (0.5, 1, 1.5, 2, 3)]),
            Row("Words that change", [Cell(text, [text]) for text in changing]),
            Row("Prompts of any length", [
                Cell(short.format("a red circle"), [one]),
                Cell(short.format("a blue star"), [other]),
                Cell("the same with --long-prompt cut", [other, "--long-prompt", "cut"]),
            ]),
        ],
    )  # fmt: skip


def start(folder: Path) -> Image.Image:
    """Pictures as a start: how far from them, over a part, beyond the edges, in another size."""
    mask = Image.new("L", (128, 128), 0)
    ImageDraw.Draw(mask).rectangle((24, 24, 103, 103), fill=255)
    mask.save(folder / "mask.png")
    drawn([CIRCLE], 0, folder / "circle.png")
    drawn(
        ["a red circle to the left of a yellow star on a green background", "--size", "256x128"], 0, folder / "wide.png"
    )
    first, wide = Cell("circle.png", file="circle.png"), Cell("wide.png", file="wide.png")
    asked = [STAR, "-i", "{circle}", "--strength"]
    square, painted = "a green square on a blue background", ["-i", "{circle}", "--mask", "{mask}"]
    outpainted = [CIRCLE, "-i", "{circle}", "--outpaint"]
    fitted = [CIRCLE, "-i", "{wide}", "--size", "128x128", "--strength", "0", "--resize"]
    return sheet(
        folder,
        [
            Row(f"-i circle.png --strength ... ({STAR})", [
                first, *(Cell(f"--strength {s}", [*asked, s]) for s in ("0", "0.1", "0.2", "0.3", "0.6"))
            ]),
            Row("-i circle.png --mask mask.png", [
                first, Cell("mask.png", file="mask.png"),
                Cell(square, [square, *painted]),
                Cell("a red circle on a green background, --invert-mask",
                     ["a red circle on a green background", *painted, "--invert-mask"]),
            ]),
            Row("-i circle.png --outpaint ...", [
                first,
                Cell("--outpaint left=64,right=64", [*outpainted, "left=64,right=64"]),
                Cell("--outpaint right=64,bottom=64", [*outpainted, "right=64,bottom=64"]),
            ]),
            Row("-i wide.png --size 128x128 --strength 0 --resize ...", [
                wide, *(Cell(f"--resize {how}", [*fitted, how]) for how in ("fill", "fit", "stretch"))
            ]),
        ],
    )  # fmt: skip


def adapters(folder: Path) -> Image.Image:
    """LoRA, embedding, ControlNet and IP-Adapter, with the small ones that the tests use."""
    drawn(["a large yellow star on a black background"], 0, folder / "star.png")
    with Image.open(folder / "star.png") as star:
        pictures.control_image(star, "canny").save(folder / "edges.png")
    drawn(["a purple heart on an orange background"], 0, folder / "heart.png")
    lora, net = f"{ADAPTERS / 'green.safetensors'}:", f"{ADAPTERS / 'controlnet'}={{star}}:"
    ip = f"{ADAPTERS / 'ip_adapter/ip-adapter_demo.safetensors'}={{heart}}:"
    word, shape = "a <zorb> on a white background", "a red shape on a white background"
    return sheet(
        folder,
        [
            Row(f"--lora green.safetensors:... ({HEART})", [
                Cell(f":{w}", [HEART, "--lora", f"{lora}{w}"]) for w in ("0", "0.4", "0.6", "0.8", "1")
            ]),
            Row("--embedding learned.safetensors", [
                Cell(f"{word}, without", [word]),
                Cell(word, [word, "--embedding", str(ADAPTERS / "learned.safetensors")]),
            ]),
            Row(f"--controlnet controlnet=star.png:... --control-preprocess canny ({shape})", [
                Cell("star.png", file="star.png"), Cell("its edges", file="edges.png"),
                *(Cell(f":{w}", [shape, "--controlnet", f"{net}{w}", "--control-preprocess", "canny"])
                  for w in ("0", "0.5", "1")),
            ]),
            Row("--ip-adapter ip-adapter_demo.safetensors=heart.png:... (a star)", [
                Cell("heart.png", file="heart.png"),
                *(Cell(f":{w}", ["a star", "--ip-adapter", f"{ip}{w}"]) for w in ("0", "0.5", "1")),
            ]),
        ],
    )  # fmt: skip


def larger(folder: Path) -> Image.Image:
    """Drawn over and enlarged."""
    return sheet(
        folder,
        [
            Row("", [
                Cell("128 x 128, shown at twice its size", [CIRCLE]),
                Cell("--hires 2x", [CIRCLE, "--hires", "2x"]),
                Cell("--upscale lanczos:2", [CIRCLE, "--upscale", "lanczos:2"]),
            ], height=256),
        ],
    )  # fmt: skip


def variations(folder: Path) -> Image.Image:
    """Towards another seed, and more like a picture."""
    prompt = "a star"
    drawn([prompt], 0, folder / "star.png")
    return sheet(
        folder,
        [
            Row(f"--variation 1000:... ({prompt})", [
                Cell(f":{x}", [prompt, "--variation", f"1000:{x}"])
                for x in ("0", "0.2", "0.4", "0.6", "0.8", "1")
            ]),
            Row("--vary star.png --variation ...", [
                Cell("star.png", file="star.png"),
                *(Cell(f"{x}:0.3", ["--vary", "{star}", "--variation", f"{x}:0.3"]) for x in range(1, 6)),
            ]),
        ],
    )  # fmt: skip


def noise(folder: Path) -> Path:
    """From noise to picture, and what each step predicts; what sdcli makes, made smaller."""
    made, smaller = folder / "made.webp", folder / "noise.webp"
    drawn([TWO, "--animate", str(made), "--animate-clean", "--overwrite"], 3, folder / "two.png")
    frames, durations = [], []
    with Image.open(made) as animation:
        for frame in ImageSequence.Iterator(animation):
            frames.append(frame.convert("RGB"))
            durations.append(frame.info["duration"])
    frames[0].save(
        smaller, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=QUALITY, method=6
    )
    return smaller


def explain(folder: Path) -> Image.Image:
    """Two figures of a page: backward, with the slider in the midst, and attention."""
    page = folder / "page.html"
    run("explain", TWO, "--seed", "3", "--model", "demo", "--quiet", "-o", str(page))
    with browser.chromium() as program, browser.opened(program, page, width=980) as (seen, _):
        seen.locator("#step").fill("9")
        seen.locator("#step").blur()
        shots = [_shot(seen.locator(f"#{name}").screenshot()) for name in ("backward", "attention")]
    made = Image.new("RGB", (max(s.width for s in shots), sum(s.height for s in shots) + GAP), "white")
    y = 0
    for shot in shots:
        made.paste(shot, (0, y))
        y += shot.height + GAP
    return made


def gallery(folder: Path) -> Image.Image:
    """A page over ten prompts, each drawn in two ways; the two of one are to be compared."""
    place = folder / "pictures"
    for how in ([], ["--steps", "12", "--scheduler", "euler"]):
        run("generate", *PROMPTS, *how, "--seed", "0", "--model", "demo", "--quiet", "-o", f"{place}/")
    run("gallery", str(place), "--quiet")
    with browser.chromium() as program, browser.opened(program, place / "gallery.html", height=800) as (seen, _):
        seen.locator(".cell img").first.wait_for()
        for index in (2, 3):
            cell = seen.locator(".cell").nth(index)
            cell.hover()
            cell.locator("input[type=checkbox]").check()
        seen.mouse.move(0, 0)
        seen.wait_for_function("() => [...document.images].every(i => i.complete && i.naturalWidth)")
        return _shot(seen.screenshot())


SHEETS: dict[str, Callable[[Path], Image.Image | Path]] = {
    function.__name__: function
    for function in (demo, grid, words, start, adapters, larger, variations, noise, explain, gallery)
}
PAGES = ("explain", "gallery")


# How


def run(*words: str) -> str:
    """Run sdcli in this process, so that torch is imported once; return what it says on stdout."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(stdout):
        code = sdcli(list(words))
    assert code == 0, (code, words)
    stdout.seek(0)
    return stdout.read()


def drawn(words: Sequence[str], seed: int, path: Path) -> Image.Image:
    # What is varied has a seed of its own.
    seeded = () if "--vary" in words else ("--seed", str(seed))
    run("generate", *words, *seeded, "--model", "demo", "--quiet", "-o", str(path))
    with Image.open(path) as image:
        return image.convert("RGB")


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Break a text into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def sheet(folder: Path, rows: Sequence[Row]) -> Image.Image:
    """Draw rows of pictures, one below the other."""
    font = ImageFont.load_default(size=12)
    shown = [[_shown(cell, row, folder, seed, j) for j, cell in enumerate(row.cells)] for seed, row in enumerate(rows)]
    captions = [
        [wrapped(cell.caption, font, image.width) for cell, image in zip(row.cells, images, strict=True)]
        for row, images in zip(rows, shown, strict=True)
    ]
    heights = [
        TITLE * bool(row.title) + max(i.height for i in images) + LINE * max(c.count("\n") + 1 for c in texts) + GAP
        for row, images, texts in zip(rows, shown, captions, strict=True)
    ]
    widths = [sum(i.width for i in images) + GAP * (len(images) - 1) for images in shown]
    titles = [int(font.getlength(row.title)) for row in rows]
    made = Image.new("RGB", (max(*widths, *titles) + 2 * MARGIN, sum(heights) + 2 * MARGIN), "white")
    draw, y = ImageDraw.Draw(made), MARGIN
    for row, images, texts, height in zip(rows, shown, captions, heights, strict=True):
        draw.text((MARGIN, y), row.title, "black", font)
        x, top = MARGIN, y + TITLE * bool(row.title)
        for image, text in zip(images, texts, strict=True):
            made.paste(image, (x, top))
            # A white background has no edge of its own.
            draw.rectangle((x - 1, top - 1, x + image.width, top + image.height), outline="lightgrey")
            draw.multiline_text((x, top + image.height + 3), text, "dimgrey", font, spacing=2)
            x += image.width + GAP
        y += height
    return made


def _shown(cell: Cell, row: Row, folder: Path, seed: int, index: int) -> Image.Image:
    path = folder / (cell.file or f"{seed}-{index}.png")
    if cell.words:
        kept = {file.stem: str(file) for file in folder.glob("[a-z]*.png")}
        drawn([_filled(word, kept) for word in cell.words], seed, path)
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if row.height and image.height != row.height:
        image = image.resize((image.width * row.height // image.height, row.height), Image.Resampling.NEAREST)
    return image


def _shot(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as opened:
        return opened.convert("RGB")


def _filled(word: str, kept: dict[str, str]) -> str:
    for name, path in kept.items():
        word = word.replace(f"{{{name}}}", path)
    return word


if __name__ == "__main__":
    main(sys.argv[1:])
