"""What looking on costs: a run's steps with nobody listening, with previews, and with steps that are kept.

    python -m benchmarks.listening [--rounds N] [--size PIXELS] [--steps N] [--device NAME]

One process and one model; the sides are drawn in turn, forth and back, so that what slows the machine slows all. What is
put on a terminal goes to a file that nobody reads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sdcli
from benchmarks.sides import table
from sdcli.cli import seeing
from sdcli.cli.terminal import Terminal
from sdcli.jobs import watching
from sdcli.jobs.jobs import Job
from sdcli.jobs.watching import Watch
from sdcli.pipeline import Together, hearing, previewing
from sdcli.request import GenerationRequest

PROMPT = "a red circle on a blue background"
# The budget: the share of a step that a preview may take.
MOST = 0.03


class Hears:
    """Hears estimates, and does nothing with them."""

    hears = frozenset({"estimates"})

    def __call__(self, step: Any) -> None:
        pass

    def pack(self, pipeline: Any, jobs: Sequence[Job]) -> Hears:
        return self

    def drawn(self, job: Job, image: Any) -> None:
        pass

    def finish(self) -> None:
        pass


@dataclass
class Cost:
    """Seconds of each round: of the steps, by the clock, and of what is done once the picture is there; and the share of
    the CPU time up to the last step's end that went into looking on."""

    steps: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)


class Stopwatch:
    """Sums up this thread's CPU seconds in what it is put around: a busy machine slows them less than the clock."""

    def __init__(self) -> None:
        self.seconds = self.ended = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args)
            finally:
                self.ended = time.thread_time()
                self.seconds += self.ended - began

        return called


def once(pipeline: Any, request: GenerationRequest, watch: Watch | None, cost: Cost | None) -> str:
    """Draw once, and return the pixels' hash. Decoding the picture is left out: it is the same for all."""
    job = Job(request=request, index=1)
    listener = None
    stopwatch = Stopwatch()
    if watch is not None:
        # The runner has a listener of its own, for the bar.
        listener = Together([lambda step: None, watch.pack(pipeline, [job])])
        listener.listeners = tuple(stopwatch.timed(one) for one in listener.listeners)
    parts, hearing.parts = hearing.parts, stopwatch.timed(hearing.parts)
    cpu = time.thread_time()
    (image,) = pipeline.generate([request], listener=listener)
    cpu, began = stopwatch.ended - cpu, time.perf_counter()
    hearing.parts = parts
    if watch is not None:
        watch.drawn(job, image)
        watch.finish()
    if cost is not None:
        cost.steps.append(image.record.seconds.draw)
        cost.share.append(stopwatch.seconds / cpu if watch is not None else 0.0)
        cost.after.append(time.perf_counter() - began)
    return str(image.record.pixels.sha256)


def terminal(way: Any) -> Terminal:
    return Terminal(open(os.devnull, "w"), way)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listening", description="What looking on costs.")
    parser.add_argument("--rounds", type=int, default=5, help="times that each side is drawn (default 5)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default 128)")
    parser.add_argument("--steps", type=int, default=50, help="steps (default 50)")
    parser.add_argument("--device", default="auto", help="cpu, cuda ... (default auto)")
    asked = parser.parse_args()
    pipeline = sdcli.load("demo", sdcli.DevicePlan(device=asked.device, dtype="fp32"))
    request = GenerationRequest(
        prompt=PROMPT, seed=7, num_inference_steps=asked.steps, width=asked.size, height=asked.size
    )
    began = time.perf_counter()
    previewing._fitted(pipeline)
    first = time.perf_counter() - began
    began = time.perf_counter()
    previewing._fitted(pipeline)
    fitting = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def keeping(animate: str | None, steps: str | None) -> Watch:
            where = watching.output.resolve(
                watching.output.OutputPlan(output=f"{name}/", overwrite=True), pictures=1, json=False, print0=False,
                stdout_is_tty=False,
            )  # fmt: skip
            kept = watching.kept(
                animate,
                steps,
                where,
                clean=False,
                pictures=1,
                overwrite=True,
                say=lambda text: None,
                tell=lambda event: None,
            )
            assert kept is not None
            return kept

        sides: dict[str, Callable[[], Watch | None]] = {
            "nobody listens": lambda: None,
            "estimates heard": Hears,
            **{
                f"--preview, {way}": (lambda way=way: seeing.Previewing(terminal(way), 1))  # type: ignore[misc]
                for way in ("blocks", "kitty", "iterm2", "sixel")
            },
            "--animate x.gif": lambda: keeping(str(folder / "x.gif"), None),
            "--animate x.webp": lambda: keeping(str(folder / "x.webp"), None),
            "--save-steps": lambda: keeping(None, str(folder / "steps")),
        }
        costs = {what: Cost() for what in sides}
        pixels = {once(pipeline, request, make(), None) for make in sides.values()}
        for turn in range(asked.rounds):
            for what in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                pixels.add(once(pipeline, request, sides[what](), costs[what]))
    if len(pixels) != 1:
        print(f"the pictures differ: {pixels}", file=sys.stderr)
        return 1
    plain = costs["nobody listens"]

    def ratio(cost: Cost) -> float:
        return statistics.median(a / b for a, b in zip(cost.steps, plain.steps, strict=True))

    rows = [
        (
            what, f"{1000 * statistics.median(cost.steps) / asked.steps:.2f}", f"{ratio(cost):.3f}",
            f"{100 * statistics.median(cost.share):.2f} %", f"{statistics.median(cost.after):.2f}",
        )
        for what, cost in costs.items()
    ]  # fmt: skip
    print(table(("what", "ms a step", "wall ratio", "share of CPU", "s after it"), rows))
    print(
        f"\n{asked.size}x{asked.size} px, {asked.steps} steps, {pipeline.decision.device}, medians of {asked.rounds} rounds, "
        f"all pictures the same bit for bit. Fitting the map took {first:.2f} s the first time in a process, and {fitting:.2f} s; "
        f"previews may take {MOST:.0%} of a step. Load average: {os.getloadavg()[0]:.1f}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
