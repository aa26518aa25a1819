"""How quick a gallery of many small pictures is: to write, and in a browser. Chromium is Debian's, driven by Playwright."""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from benchmarks.sides import Command, Failed, once, table
from sdcli import metadata
from sdcli.models import find
from sdcli.models.spec import ModelSpec
from sdcli.pipeline import identity
from sdcli.record import PlanRecord, Record, SchedulerRecord, SecondsRecord, TokenRecord, job_id, pixels_of
from sdcli.request import GenerationRequest
from tests.browser import PROGRAM, chromium, opened

if TYPE_CHECKING:
    from playwright.sync_api import Page

SIDE = 64
SHAPES = ("circle", "square", "triangle", "star", "ring", "heart", "cross")
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")
SCHEDULERS = (("ddim", "DDIMScheduler", "DDIM"), ("euler", "EulerDiscreteScheduler", "Euler"))
SCRIPTS = Path(sysconfig.get_path("scripts"))
# Milliseconds from what is done to what is drawn after it, by the page's own clock.
UNTIL_DRAWN = """async () => {{
    const began = performance.now();
    {act};
    while (!({done})) await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);
    return performance.now() - began;
}}"""


def records() -> Iterator[GenerationRequest]:
    """Yield requests without end, each another."""
    asked = list(product(SHAPES, COLOURS, COLOURS))
    number = 0
    while True:
        shape, colour, back = asked[number % len(asked)]
        scheduler = SCHEDULERS[number % 2][0]
        yield GenerationRequest(
            prompt=f"a {colour} {shape} on a {back} background, picture {number}",
            negative_prompt="text, blurry" if number % 3 == 0 else "",
            seed=number * 7919, num_inference_steps=10 + number % 30, guidance_scale=1.0 + number % 8, scheduler=scheduler,
            width=SIDE, height=SIDE,
        )  # fmt: skip
        number += 1


def fill(folder: Path, count: int) -> None:
    """Write pictures of two colours, with records as sdcli's own have them."""
    model = identity(find(ModelSpec(model="demo")))
    plan = PlanRecord(
        device="cpu", dtype="float32", attention_slicing="off", vae_tiling=False, offload="none", threads=2, pack_size=1
    )
    versions = {"sdcli": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1", "transformers": "5.23.0"}
    for number, request in zip(range(count), records(), strict=False):
        image = Image.new("RGB", (SIDE, SIDE), (number % 256, number // 256 % 256, 90))
        image.paste((255 - number % 256, 200, number % 97), (SIDE // 4, SIDE // 4, SIDE * 3 // 4, SIDE * 3 // 4))
        name, kind, sampler = SCHEDULERS[number % 2]
        record = Record(
            id=job_id(request, model), request=request, model=model, plan=plan, versions=versions,
            tokens=TokenRecord(used=12, chunks=1, syntax="a1111"),
            scheduler=SchedulerRecord(name=name, class_name=kind, sampler=sampler, schedule_type=None),
            seconds=SecondsRecord(load=1.2, draw=0.4 + number % 100 / 1000, decode=0.05), pixels=pixels_of(image),
        )  # fmt: skip
        place = folder / f"{number // 1000:02}"
        place.mkdir(exist_ok=True)
        (place / f"{number:05}.png").write_bytes(metadata.encoded(image, record, "png", "full").data)


def written(folder: Path) -> tuple[float, float, int]:
    """Write the gallery; return the seconds by the clock and of the CPU, and the most memory (bytes) of any process so far."""
    import resource

    cost = once("sdcli gallery", Command(argv=[str(SCRIPTS / "sdcli"), "gallery", str(folder), "-q"]), folder)
    return cost.wall, cost.cpu, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def in_browser(page_file: Path, count: int) -> list[tuple[str, str]]:
    """Return what was measured in a browser, a row each."""
    rows = []
    with chromium() as browser:
        # Once for Chromium's own start.
        with opened(browser, page_file) as (page, _):
            page.wait_for_selector(".cell img")
        began = time.perf_counter()
        with opened(browser, page_file) as (page, _):
            page.wait_for_selector(".cell")
            rows.append(("opened, until the first row is there", f"{time.perf_counter() - began:.2f} s"))
            page.wait_for_function(
                "() => [...document.querySelectorAll('.cell img')].every(i => i.complete && i.naturalWidth)"
            )
            rows.append(("... and its thumbnails are", f"{time.perf_counter() - began:.2f} s"))
            rows += _used(page, count)
    return rows


def _used(page: Page, count: int) -> Iterator[tuple[str, str]]:
    search = "const s = document.getElementById('search'); s.value = {!r}; s.dispatchEvent(new Event('input'))"
    counted = "document.getElementById('count').textContent.startsWith('{}')"
    last = f"a {COLOURS[0]} {SHAPES[0]}"
    matching = sum(f"a {COLOURS[0]} {SHAPES[0]} " in r.prompt for _, r in zip(range(count), records(), strict=False))
    acts = [
        ("a search, its result drawn", search.format(f'"{last}"'), counted.format(f"{matching:,} of")),
        ("all of them again", search.format(""), counted.format(f"{count:,} pictures")),
        ("a search for one picture", search.format(f'"picture {count - 1}"'), counted.format("1 of")),
        ("all of them again, sorted by the prompt",
         "document.getElementById('search').value = ''; const s = document.getElementById('sort'); s.value = 'prompt'; "
         "s.dispatchEvent(new Event('change'))", counted.format(f"{count:,} pictures")),
        ("a filter by a value", "document.querySelector('#facets input[type=checkbox]').click()",
         counted.format(f"{(count + 1) // 2:,} of")),
        ("from the first row to the last", "window.scrollTo(0, document.body.scrollHeight)",
         f"document.querySelector('.cell[aria-posinset=\"{(count + 1) // 2}\"]')"),
    ]  # fmt: skip
    for name, act, done in acts:
        yield name, f"{page.evaluate(UNTIL_DRAWN.format(act=act, done=done)):.0f} ms"
    yield "pictures in the page at once", str(page.locator(".cell").count())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description="How quick a large gallery is.")
    parser.add_argument("--pictures", type=int, default=10_000, help="how many (default 10,000)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder, asked.pictures)
        page, small = folder / "gallery.html", folder / "gallery-files"
        try:
            wall, cpu, memory = written(folder)
            again, cpu_again, _ = written(folder)
        except Failed as failure:
            print(failure, file=sys.stderr)
            return 1
        size = sum(f.stat().st_size for f in small.iterdir())
        rows = [
            (f"{asked.pictures:,} pictures of {SIDE}x{SIDE}: written", f"{wall:.1f} s ({cpu:.1f} s of CPU)"),
            ("written again, thumbnails kept", f"{again:.1f} s ({cpu_again:.1f} s of CPU)"),
            ("most memory", f"{memory / 2**20:.0f} MiB"),
            ("the page", f"{page.stat().st_size / 1e6:.1f} MB"),
            ("its thumbnails", f"{size / 1e6:.1f} MB"),
            *in_browser(page, asked.pictures),
        ]
    print(table(("what", "measured"), rows))
    version = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout.split("built")[
        0
    ]
    print(
        f"\nPython {sys.version.split()[0]}, {version.strip()}, a window of 1280x900; the times in the page by its own clock."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
