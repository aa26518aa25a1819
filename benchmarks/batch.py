"""A batch beside the plain loop: throughput, the time outside the networks, memory over many jobs, a million rows.

    python -m benchmarks.batch [--only PART] [--rounds N] [--threads N] [--quick] [--strict]

Needs nothing but an installed sdcli, and Linux. Both sides of the throughput draw the same prompts with the same seeds in
fp32 on the CPU, and their pixels are compared: those of packs of one must be equal, those of larger ones within 1/255.
`--strict` exits 1 when a budget is missed; pixels that differ always do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from benchmarks.sides import Command, Cost, Failed, once, table
from benchmarks.start import surroundings
from sdcli.models import demo_folder

SDCLI = str(Path(sysconfig.get_path("scripts")) / "sdcli")
MIB = 2**20
# DESIGN's budgets: the share of time outside the networks, and bytes a job, or a row.
OUTSIDE, BYTES = 0.02, 100
# Rows of which packs are formed: that many jobs are held at once.
WINDOW = 1024

# The shortest script that draws the pictures: the diffusers quick start, a loop, and a seed each. It tells its pace.
LOOP = """\
import json, sys, time
import torch
from diffusers import StableDiffusionPipeline

model, rows, steps, folder, told = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(model)
began, busy = time.perf_counter(), time.process_time()
for line, row in enumerate(map(json.loads, open(rows)), 1):
    seed = torch.Generator("cpu").manual_seed(row["seed"])
    image = pipe(row["prompt"], generator=seed, num_inference_steps=int(steps), guidance_scale=5.0).images[0]
    image.save(f"{folder}/{line}.png")
json.dump({"seconds": time.perf_counter() - began, "cpu": time.process_time() - busy}, open(told, "w"))
"""
# What the networks take when nothing else is done: no pass of the loop's is left out, and no picture is made.
ALONE = """\
import json, sys, time
import torch
from diffusers import StableDiffusionPipeline

model, rows, steps, told = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(model)
side = pipe.unet.config.sample_size
latents, words = torch.randn(2, 4, side, side), {}
began, busy = time.perf_counter(), time.process_time()
with torch.no_grad():
    for row in map(json.loads, open(rows)):
        ids = pipe.tokenizer(row["prompt"], padding="max_length", truncation=True, return_tensors="pt").input_ids
        words = pipe.text_encoder(ids)[0].expand(2, -1, -1)
        for _ in range(int(steps)):
            pipe.unet(latents, torch.tensor(500), encoder_hidden_states=words, return_dict=False)
        pipe.vae.decode(latents[:1], return_dict=False)
json.dump({"seconds": time.perf_counter() - began, "cpu": time.process_time() - busy}, open(told, "w"))
"""
# Runs sdcli as its console script does, and tells the seconds from the first picture's start to the end, and those that
# passed inside the networks: by the clock, of the CPU, and of the CPU in the thread that draws.
WATCHED = """\
import json, os, sys, time
from sdcli import pipeline
from sdcli.cli.main import main

clocks = {"seconds": time.perf_counter, "cpu": time.process_time, "drawing": time.thread_time}
load, inside, began = pipeline.load, {}, {}

def now():
    return {name: clock() for name, clock in clocks.items()}

def timed(call):
    def run(*given, **named):
        before = now()
        try:
            return call(*given, **named)
        finally:
            after = now()
            inside.update({name: inside.get(name, 0) + after[name] - before[name] for name in clocks})
    return run

def watched(*given, **named):
    drawing = load(*given, **named)
    generate, pipe = drawing.generate, drawing.pipe
    def first(*given, **named):
        drawing.generate = generate
        inside.clear()
        began.update(now())
        return generate(*given, **named)
    drawing.generate = first
    pipe.text_encoder.forward, pipe.unet.forward = timed(pipe.text_encoder.forward), timed(pipe.unet.forward)
    pipe.vae.decode = timed(pipe.vae.decode)
    return drawing

pipeline.load = watched
told, *argv = sys.argv[1:]
code = main(argv)
if code == 0:
    ended = now()
    took = {name: ended[name] - began[name] for name in clocks}
    json.dump(took | {f"{name} inside": inside[name] for name in clocks}, open(told, "w"))
sys.stdout.flush()
os._exit(code)
"""
# Runs sdcli and tells, every 20 pictures, the bytes that glibc has given out and not got back.
HELD = """\
import ctypes, gc, json, os, sys
from sdcli import pipeline
from sdcli.cli.main import main

class Mallinfo2(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc, load, found = ctypes.CDLL(None), pipeline.load, []
libc.mallinfo2.restype = Mallinfo2

def watched(*given, **named):
    drawing = load(*given, **named)
    generate, count = drawing.generate, 0
    def counting(requests, **named):
        nonlocal count
        if count % 20 == 0:
            gc.collect()
            info = libc.mallinfo2()
            found.append((count, info.uordblks + info.hblkhd))
        count += len(requests)
        return generate(requests, **named)
    drawing.generate = counting
    return drawing

pipeline.load = watched
told, *argv = sys.argv[1:]
code = main(argv)
json.dump(found, open(told, "w"))
os._exit(code)
"""
# Runs sdcli up to where it would draw: each job gets its seed and its id, and is forgotten.
IDS = """\
import os, sys
from sdcli.cli import drawing
from sdcli.cli.main import main

def go(how, ready, jobs, results, at_end):
    for job in jobs:
        ready.id_of(job.request)
    ready.close()

drawing.go = go
os._exit(main(sys.argv[1:]))
"""
# Stable Diffusion 1.5 in its real size with random weights, bf16, and the bundled model's tokenizer: time depends on no
# weight's value.
REAL = """\
import sys
import torch
from benchmarks.attention_slicing import SD15
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

demo, folder = sys.argv[1:]
torch.manual_seed(7)
torch.set_default_dtype(torch.bfloat16)
tokenizer = CLIPTokenizer.from_pretrained(demo, subfolder="tokenizer")
ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
words = CLIPTextConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768,
    vocab_size=49408, **ends,
)
sizes = (128, 256, 512, 512)
vae = AutoencoderKL(
    block_out_channels=sizes, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=2, sample_size=512,
)
scheduler = PNDMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
)
StableDiffusionPipeline(
    vae=vae, text_encoder=CLIPTextModel(words), tokenizer=tokenizer, unet=UNet2DConditionModel(**SD15),
    scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
).save_pretrained(folder)
"""

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")


def prompt(number: int) -> str:
    """Return a prompt; no two numbers have the same."""
    colour, ground, shape = COLOURS[number % 8], COLOURS[number // 8 % 8], SHAPES[number // 64 % 6]
    return f"a {colour} {shape} on a {ground} background, number {number}"


def rows_file(path: Path, count: int, *, one: bool = False) -> Path:
    """Write that many rows as JSON Lines, each with a seed; of `one` prompt, or each with its own."""
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"prompt": prompt(0 if one else number), "seed": number}) + "\n")
    return path


@dataclass(kw_only=True)
class Place:
    """A folder for what is measured, what all processes there have in their environment, and the machine's load."""

    folder: Path
    env: Mapping[str, str]
    loads: list[float] = field(default_factory=list)

    def script(self, name: str, text: str) -> str:
        path = self.folder / f"{name}.py"
        path.write_text(text)
        return str(path)

    def command(self, *argv: str, exit_code: int = 0, **env: str) -> Command:
        return Command(argv=argv, env={**self.env, **env}, exit_code=exit_code)

    def look(self) -> None:
        """Note how busy the machine is before the next process."""
        self.loads.append(os.getloadavg()[0])

    def load(self) -> str:
        """Return how busy it was since this was asked last."""
        found, self.loads = f"{min(self.loads):.1f} to {max(self.loads):.1f}", []
        return f"Load average before the processes: {found} (one of them is this benchmark's own)."


# Throughput


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One run of a side: what the whole process cost, and what it told itself."""

    cost: Cost
    told: Mapping[str, float]


Turns = Mapping[str, Sequence[Turn]]
LOOPED, NETWORKS = "plain loop", "the networks alone"
SIZES = ("1", "4", "16", "auto")


def sdcli_argv(rows: Path, folder: Path, steps: int, size: str, *more: str) -> list[str]:
    return [
        "batch", str(rows), "--model", "demo", "--device", "cpu", "--dtype", "fp32", "--guidance-scale", "5",
        "--steps", str(steps), "--batch-size", size, "-o", f"{folder}/{{line}}.png", *more,
    ]  # fmt: skip


def side(place: Place, name: str, rows: Path, steps: int) -> tuple[Command, Path, Path]:
    """Return a side's command, the folder of its pictures, and the file in which it tells what it measured."""
    pictures, told = place.folder / f"pictures of {name}", place.folder / f"{name}.json"
    model, asked = str(demo_folder()), (str(rows), str(steps))
    if name == LOOPED:
        argv = [place.script("loop", LOOP), model, *asked, str(pictures), str(told)]
    elif name == NETWORKS:
        argv = [place.script("alone", ALONE), model, *asked, str(told)]
    else:
        size = name.removeprefix(OURS)
        argv = [place.script("watched", WATCHED), str(told), *sdcli_argv(rows, pictures, steps, size)]
    return place.command(sys.executable, *argv), pictures, told


OURS = "sdcli batch, packs of "


def run_side(place: Place, name: str, rows: Path, steps: int) -> Turn:
    command, pictures, told = side(place, name, rows, steps)
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir()
    place.look()
    cost = once(name, command, place.folder)
    return Turn(cost=cost, told=json.loads(told.read_text()))


def take_turns(place: Place, names: Sequence[str], rows: Path, steps: int, rounds: int) -> Turns:
    """Run all sides in turn, `rounds` times, forth and back."""
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[:: 1 if number % 2 == 0 else -1]:
            turns[name].append(run_side(place, name, rows, steps))
    return turns


def difference(one: Path, other: Path) -> int:
    """Return by how much two pictures differ in the channel where they differ most; 256: in size or mode."""
    with Image.open(one) as a, Image.open(other) as b:
        if (a.mode, a.size) != (b.mode, b.size):
            return 256
        return int(max(high for _, high in ImageChops.difference(a, b).getextrema()))


def check_pixels(place: Place, names: Sequence[str], count: int) -> str:
    """Compare each side's pictures with the loop's; raises Failed where they are not what they must be."""
    looped, said = place.folder / f"pictures of {LOOPED}", []
    for name in names:
        own = place.folder / f"pictures of {name}"
        found = [difference(looped / f"{line}.png", own / f"{line}.png") for line in range(1, count + 1)]
        if max(found) > (0 if name == OURS + "1" else 1):
            raise Failed(f"{name}: {sum(d > 0 for d in found)} of {count} pictures differ, by up to {max(found)}/255")
        said.append(f"{name.removeprefix(OURS)}: {sum(d > 0 for d in found)} by at most {max(found)}/255")
    return f"Of {count} pictures these differ from the plain loop's, by pack size: {'; '.join(said)}."


def middle(turns: Sequence[Turn], of: Callable[[Turn], float]) -> float:
    return statistics.median(map(of, turns))


def over(turns: Sequence[Turn], others: Sequence[Turn], of: Callable[[Turn], float]) -> float:
    """Return the median over the rounds of one side's value over the other's in the same round."""
    return statistics.median(of(a) / of(b) for a, b in zip(turns, others, strict=True))


def wall(turn: Turn) -> float:
    return turn.cost.wall


def cpu(turn: Turn) -> float:
    return turn.cost.cpu


def throughput_rows(turns: Turns, steps: int, count: int) -> list[list[str]]:
    loop, rows = turns[LOOPED], []

    def pace(turn: Turn) -> float:
        return count / turn.told["seconds"]

    def work(turn: Turn) -> float:
        return 1000 * turn.told["cpu"] / count

    for name, own in turns.items():
        whole = ["-"] * 4
        if name != NETWORKS:
            whole = [f"{middle(own, wall):.1f}", f"{middle(own, cpu):.1f}",
                     f"{over(own, loop, wall):.2f}", f"{over(own, loop, cpu):.2f}"]  # fmt: skip
        rows.append([
            name, str(steps), f"{middle(own, pace):.2f}", f"{over(own, loop, pace):.2f}",
            f"{middle(own, work):.0f}", f"{over(own, loop, work):.2f}", *whole,
        ])  # fmt: skip
    return rows


THROUGHPUT = (
    "what", "steps", "pictures/s", "to the loop", "CPU ms each", "to the loop",
    "process, wall s", "CPU s", "wall, to the loop", "CPU, to the loop",
)  # fmt: skip


# The time outside the networks


def outside(turn: Turn, clock: str) -> float:
    """Return the seconds that passed outside the networks: by the clock, or of the drawing thread's CPU."""
    return turn.told[clock] - turn.told[f"{clock} inside"]


def outside_row(what: str, steps: int, count: int, turns: Sequence[Turn]) -> tuple[list[str], bool]:
    """Return a row of the table, and whether the budget is kept."""
    cells: list[str] = []
    shares: list[float] = []
    for clock in ("seconds", "drawing"):
        own = [outside(turn, clock) for turn in turns]
        shares.append(statistics.median(o / turn.told[clock] for o, turn in zip(own, turns, strict=True)))
        cells += [f"{1000 * statistics.median(own) / count:.1f}", f"{100 * shares[-1]:.2f} %"]
    inside = 1000 * middle(turns, lambda turn: turn.told["seconds inside"]) / count
    kept = shares[0] < OUTSIDE
    return [what, str(steps), f"{inside:.0f}", *cells, f"{100 * OUTSIDE:.0f} %", "yes" if kept else "NO"], kept


SHARES = ("what", "steps", "networks, ms", "outside, ms", "share", "CPU, ms", "CPU share", "budget", "ok")


def drawn(place: Place, rounds: int, count: int) -> tuple[str, bool]:
    """Measure the bundled model's throughput and its time outside the networks."""
    rows, kept = rows_file(place.folder / "rows.jsonl", count), True
    first = rows_file(place.folder / "first.jsonl", 1)
    paces: list[list[str]] = []
    shares: list[list[str]] = []
    notes: list[str] = []
    ours = [OURS + size for size in SIZES]
    for name in (LOOPED, NETWORKS, OURS + "1"):
        run_side(place, name, first, 1)  # Files into the cache, bytecode written.
    for steps, names in ((25, [LOOPED, *ours, NETWORKS]), (8, [LOOPED, ours[0], ours[2]])):
        turns = take_turns(place, names, rows, steps, rounds)
        measured = [name for name in names if name.startswith(OURS)]
        notes.append(f"{steps} steps: {check_pixels(place, measured, count)}")
        paces += throughput_rows(turns, steps, count)
        for name in measured:
            row, ok = outside_row(f"demo, {name}", steps, count, turns[name])
            shares.append(row)
            kept = kept and (ok or steps != 25)
    chosen = json.loads((place.folder / f"pictures of {OURS}auto" / "sdcli-batch.jsonl").open().readline())
    notes.append(f"`auto` took packs of {chosen['batch_size']}.")
    text = [
        table(THROUGHPUT, paces),
        f"\n{count} pictures a run, medians of {rounds} rounds. {place.load()}",
        *notes,
        "",
        table(SHARES, shares),
    ]
    return "\n".join(text), kept


def real(place: Place, count: int, size: int, steps: int) -> tuple[str, bool]:
    """Measure the time outside the networks with Stable Diffusion 1.5's real architecture, random weights, in bf16."""
    model, rows = place.folder / "sd15", rows_file(place.folder / "rows.jsonl", count)
    root = str(Path(__file__).parent.parent)
    build = place.command(sys.executable, place.script("real", REAL), str(demo_folder()), str(model), PYTHONPATH=root)
    place.look()
    once("the model", build, place.folder)
    found, kept = [], True
    for pack in (1, count):
        told, pictures = place.folder / "real.json", place.folder / f"real {pack}"
        argv = [
            "batch", str(rows), "--model", str(model), "--device", "cpu", "--dtype", "bf16", "--size", f"{size}x{size}",
            "--steps", str(steps), "--batch-size", str(pack), "-o", f"{pictures}/",
        ]  # fmt: skip
        place.look()
        watched = place.command(sys.executable, place.script("watched", WATCHED), str(told), *argv)
        cost = once(f"packs of {pack}", watched, place.folder)
        turn = Turn(cost=cost, told=json.loads(told.read_text()))
        row, ok = outside_row(f"SD 1.5's size, {size} px, {OURS}{pack}", steps, count, [turn])
        found.append(row)
        kept = kept and ok
    note = f"{count} pictures a run, one run each, bf16, random weights. {place.load()}"
    return f"{table(SHARES, found)}\n\n{note}", kept


# Memory


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A run's resident memory in bytes: its peak, and how it stood at the hundredth picture, the middle one and the last;
    how much a job adds in the second half, with the standard error."""

    peak: int
    stood: tuple[int, int, int]
    slope: tuple[float, float]


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the slope of the line through points, and its standard error (least squares)."""
    xs, ys = zip(*points, strict=True)
    line = statistics.linear_regression(xs, ys)
    squares = sum((y - line.intercept - line.slope * x) ** 2 for x, y in points)
    middle = statistics.fmean(xs)
    return line.slope, math.sqrt(squares / (len(points) - 2) / sum((x - middle) ** 2 for x in xs))


def ended(command: Command, child: subprocess.Popen[Any], stderr: Path) -> tuple[float, int]:
    """Wait for a child; return its CPU seconds and its peak in bytes. Raises Failed where it did not do its work."""
    peak = 0
    while True:
        # Not `ru_maxrss`, which begins with the memory of who started it.
        peak = max(peak, status_of(child.pid).get("VmHWM", 0))
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.01)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != command.exit_code:
        what = " ".join(command.argv[:3])
        raise Failed(f"{what}: exit code {child.returncode}\n{stderr.read_text().strip()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, peak


def started(place: Place, command: Command, stdout: int) -> tuple[subprocess.Popen[Any], Path]:
    stderr = place.folder / "stderr"
    place.look()
    with stderr.open("w") as errors:
        env = {**os.environ, **command.env}
        child = subprocess.Popen(command.argv, cwd=place.folder, env=env, stdout=stdout, stderr=errors)
    return child, stderr


def status_of(pid: int) -> dict[str, int]:
    """Return what the kernel says of a process's memory, in bytes (proc(5)): `VmRSS` now, `VmHWM` at its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        name: 1024 * int(text.split()[0]) for name, _, text in (line.partition(":") for line in lines) if "kB" in text
    }


def grown(place: Place, rows: Path, *more: str) -> Grown:
    """Draw rows at one step, and watch the process's resident memory as its pictures come."""
    pictures = place.folder / "pictures"
    shutil.rmtree(pictures, ignore_errors=True)
    command = place.command(SDCLI, *sdcli_argv(rows, pictures, 1, "1", *more))
    child, stderr = started(place, command, subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        found = [(number, status_of(child.pid)) for number, _ in enumerate(child.stdout, 1)]
    ended(command, child, stderr)
    # What comes last may be read when the process is no more.
    points = [(number, said["VmRSS"]) for number, said in found if said]
    stood = points[min(99, len(points) - 1)][1], points[len(points) // 2][1], points[-1][1]
    return Grown(
        peak=max(said.get("VmHWM", 0) for _, said in found), stood=stood, slope=slope(points[len(points) // 2 :])
    )


def held(place: Place, rows: Path, count: int, *more: str) -> tuple[float, float]:
    """Draw rows at one step; return by how many bytes in use a job adds to the process, and the standard error.

    Counted while the window of jobs that wait is full, from where all that is made once is made.
    """
    pictures, told = place.folder / "pictures", place.folder / "held.json"
    shutil.rmtree(pictures, ignore_errors=True)
    argv = [place.script("held", HELD), str(told), *sdcli_argv(rows, pictures, 1, "1", *more)]
    # Python's own allocator would hide what it holds from glibc.
    command = place.command(sys.executable, *argv, PYTHONMALLOC="malloc")
    child, stderr = started(place, command, subprocess.DEVNULL)
    ended(command, child, stderr)
    points = json.loads(told.read_text())
    until = count - WINDOW if count > WINDOW + 200 else count
    return slope([(n, b) for n, b in points if until // 2 <= n <= until])


GROWTH = ("jobs", "prompts", "peak MiB", "at job 100", "the middle", "the last", "bytes a job", "±", "budget", "ok")


def memory(place: Place, few: int, many: int) -> tuple[str, bool]:
    """Measure host memory over few and many jobs at one step, 64 px."""
    small, found, kept = ("--size", "64x64"), list[list[str]](), True

    def judge(rate: float, error: float) -> list[str]:
        nonlocal kept
        ok = rate - 2 * error <= BYTES
        kept = kept and ok
        return [f"{rate:.0f}", f"{error:.0f}", str(BYTES), "yes" if ok else "NO"]

    for one in (False, True):
        prompts = "one" if one else "all different"
        for count in (few, many):
            seen = grown(place, rows_file(place.folder / "rows.jsonl", count, one=one), *small)
            sizes = [f"{size / MIB:.1f}" for size in (seen.peak, *seen.stood)]
            found.append([f"{count:,}", prompts, *sizes, *(judge(*seen.slope) if count == many else ["-"] * 4)])
    rate = held(place, rows_file(place.folder / "rows.jsonl", many, one=True), many, *small)
    found.append([f"{many:,}, bytes in use", "one", *["-"] * 4, *judge(*rate)])
    note = "Packs of 1, 1 step, 64x64 px, fp32. ± is the slope's standard error: two of them are allowed for."
    return f"{table(GROWTH, found)}\n\n{note} {place.load()}", kept


# A million rows


def csv_row(number: int) -> str:
    return f'"{prompt(number)}",{number},20'


def json_row(number: int) -> str:
    return json.dumps({"prompt": prompt(number), "seed": number, "steps": 20})


# Of each: its ending, its first line, what makes a row, and a row that is refused.
FILES: dict[str, tuple[str, str, Callable[[int], str], str]] = {
    "text": ("txt", "", prompt, "x --steps"),
    "CSV": ("csv", "prompt,seed,steps\n", csv_row, "x,1,x"),
    "JSON Lines": ("jsonl", "", json_row, "{"),
}
PARSED = ("what", "rows", "file MiB", "CPU s", "us a row", "peak MiB", "at 1,000 rows", "bytes a row", "budget", "ok")


def parsed(place: Place, count: int) -> tuple[str, bool]:
    """Measure what reading a file of many rows takes, without drawing."""
    found, kept = list[list[str]](), True
    base = ["--model", "demo", "--batch-size", "1", "-o", f"{place.folder}/out/"]
    ids = place.script("ids", IDS)

    def measure(what: str, kind: str, argv: Sequence[str], exit_code: int) -> None:
        nonlocal kept
        costs = []
        for rows in (1000, count):
            path = write_rows(place.folder, kind, rows, bad=exit_code == 65)
            shutil.rmtree(place.folder / "out", ignore_errors=True)
            command = place.command(*argv, "batch", str(path), *base, *dry[what], exit_code=exit_code)
            child, stderr = started(place, command, subprocess.DEVNULL)
            costs.append(ended(command, child, stderr))
        (_, small), (seconds, peak) = costs
        rate = (peak - small) / (count - 1000)
        kept = kept and rate <= BYTES
        found.append([
            f"{what}, {kind}", f"{count:,}", f"{path.stat().st_size / MIB:.0f}", f"{seconds:.1f}",
            f"{1e6 * seconds / count:.0f}", f"{peak / MIB:.1f}", f"{small / MIB:.1f}", f"{rate:.1f}", str(BYTES),
            "yes" if rate <= BYTES else "NO",
        ])  # fmt: skip

    dry = {"survey": [], "survey, then seeds and ids": [], "--dry-run --json": ["--dry-run", "--json"]}
    for kind in FILES:
        # The last row is bad: all are read once, and refused.
        measure("survey", kind, [SDCLI], 65)
    measure("survey, then seeds and ids", "text", [sys.executable, ids], 0)
    measure("--dry-run --json", "text", [SDCLI], 0)
    return f"{table(PARSED, found)}\n\nOne run each. {place.load()}", kept


def write_rows(folder: Path, kind: str, count: int, *, bad: bool) -> Path:
    """Write a prompt file of that many rows, with a bad one after them if that is wanted."""
    ending, head, row, refused = FILES[kind]
    path = folder / f"rows.{ending}"
    with path.open("w") as file:
        file.write(head)
        file.writelines(row(number) + "\n" for number in range(count))
        file.write(refused + "\n" if bad else "")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description="A batch beside the plain loop.")
    parts = ("throughput", "real", "memory", "parse")
    parser.add_argument("--only", choices=parts, action="append", help="this part of it; repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side of the throughput runs (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides (default 1)")
    parser.add_argument("--quick", action="store_true", help="small counts and no large model, to see that it runs")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a budget is missed")
    asked = parser.parse_args()
    quick = asked.quick
    measures: dict[str, Callable[[Place], tuple[str, bool]]] = {
        "throughput": lambda place: drawn(place, 1 if quick else asked.rounds, 16 if quick else 32),
        "real": lambda place: real(place, 4, 256, 2),
        "memory": lambda place: memory(place, 100, 300 if quick else 2000),
        "parse": lambda place: parsed(place, 20_000 if quick else 1_000_000),
    }
    wanted = asked.only or [part for part in parts if not (quick and part == "real")]
    env = {"OMP_NUM_THREADS": str(asked.threads), "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    kept = True
    for part in parts:
        if part not in wanted:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            try:
                text, ok = measures[part](Place(folder=Path(name), env=env))
            except Failed as failure:
                print(failure, file=sys.stderr)
                return 1
        kept = kept and ok
        print(f"{text}\nTook {time.monotonic() - began:.0f} s.\n", flush=True)
    print(f"{surroundings(env)}.")
    return 1 if asked.strict and not kept else 0


if __name__ == "__main__":
    sys.exit(main())
