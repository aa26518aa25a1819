"""How fast sdcli starts: its short commands against `import typer`, a picture against plain diffusers.

    python -m benchmarks.start [--rounds N] [--strict]

Needs nothing but an installed sdcli: the model is the bundled one. Both sides of a picture compute in fp32 on the CPU
from the same noise, and their pixels are compared. `--strict` exits 1 when a budget is missed; pixels that differ
always do.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from PIL import Image

from benchmarks.sides import Command, Costs, Failed, alternate, median, ratio, table
from sdcli.models import demo_folder

PROMPT = "a red circle on a blue background"
# The shortest script that draws the picture: the diffusers quick start, and a seed.
PLAIN = """\
import sys
import torch
from diffusers import StableDiffusionPipeline

model, prompt, steps, path = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(model)
seed = torch.Generator("cpu").manual_seed(7)
pipe(prompt, generator=seed, num_inference_steps=int(steps), guidance_scale=5.0).images[0].save(path)
"""
# Runs sdcli as its console script does, up to where it would begin to import what draws.
UP_TO_TORCH = """\
import os, sys
class Stop:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("torch", "diffusers", "transformers"):
            os._exit(42)
sys.meta_path.insert(0, Stop)
from sdcli.cli.main import entry
entry()
"""
SCRIPTS = Path(sysconfig.get_path("scripts"))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row: what is measured, against which other, and the most that it may cost by the clock."""

    what: str
    against: str
    budget: float | None = None


def words(rounds: int, folder: Path) -> tuple[Costs, list[Comparison]]:
    """Measure what says something and draws nothing."""
    typer, sdcli = 'python -c "import typer"', str(SCRIPTS / "sdcli")
    stop = folder / "up_to_torch.py"
    stop.write_text(UP_TO_TORCH)
    commands = {
        typer: Command(argv=[sys.executable, "-c", "import typer"]),
        "sdcli --version": Command(argv=[sdcli, "--version"]),
        "sdcli generate, up to the torch import": Command(
            argv=[sys.executable, str(stop), "generate", PROMPT, "--model", "demo", "-o", "never.png"], exit_code=42
        ),
        "sdcli --help": Command(argv=[sdcli, "--help"]),
        "sdcli generate --help": Command(argv=[sdcli, "generate", "--help"]),
    }
    budgets = dict(zip(list(commands)[1:], (2.0, 2.0, 4.0, 4.0), strict=True))
    # They take a hundredth of a picture's time, and are that much closer to the clock's noise.
    costs = alternate(commands, rounds * 4, folder)
    return costs, [Comparison(what=name, against=typer, budget=budget) for name, budget in budgets.items()]


def pictures(
    steps: int, rounds: int, folder: Path, budget: float | None, *, others: bool
) -> tuple[Costs, list[Comparison], str]:
    """Measure one picture, each time from a cold process; the third value says whose pixels are the same.

    `others`: against diffusers' own command line too.
    """
    model, plain = str(demo_folder()), folder / "plain.py"
    plain.write_text(PLAIN)
    count = f"{steps} step{'s' * (steps > 1)}"
    script, ours, theirs = f"plain script, {count}", f"sdcli generate, {count}", f"diffusers-cli run, {count}"
    files = {script: "plain.png", ours: "sdcli.png", theirs: "diffusers-cli.png"}
    commands = {
        script: Command(argv=[sys.executable, str(plain), model, PROMPT, str(steps), files[script]]),
        ours: Command(
            argv=[
                str(SCRIPTS / "sdcli"), "generate", PROMPT, "--model", "demo", "--dtype", "fp32", "--device", "cpu",
                "--seed", "7", "--guidance-scale", "5", "--steps", str(steps), "-o", files[ours], "--overwrite",
            ]
        ),
    }  # fmt: skip
    if others and has_run_command():
        call = f'{{"prompt": "{PROMPT}", "num_inference_steps": {steps}, "guidance_scale": 5.0}}'
        commands[theirs] = Command(
            argv=[
                str(SCRIPTS / "diffusers-cli"), "run", "--model", model, "--device-map", "cpu", "--dtype", "fp32",
                "--seed", "7", "--pipeline-kwargs", call, "--output", files[theirs],
            ]
        )  # fmt: skip
    costs = alternate(commands, rounds, folder)
    drawn = {}
    for name in commands:
        with Image.open(folder / files[name]) as image:
            drawn[name] = (image.mode, image.size, image.tobytes())
    if different := [name for name in drawn if drawn[name] != drawn[script]]:
        raise Failed(f"not the same pixels as {script}: {', '.join(different)}")
    rows = [Comparison(what=ours, against=script, budget=budget)]
    rows += [Comparison(what=ours, against=theirs)] if theirs in commands else []
    return costs, rows, f"Equal pixels: {', '.join(drawn)}"


def has_run_command() -> bool:
    """Whether the installed diffusers has `diffusers-cli run`."""
    from importlib.util import find_spec

    # Without importing diffusers, so that this process stays small beside those that it measures.
    spec = find_spec("diffusers")
    return spec is not None and spec.origin is not None and (Path(spec.origin).parent / "commands" / "run.py").exists()


def rows_of(costs: Costs, comparisons: Sequence[Comparison]) -> tuple[list[list[str]], bool]:
    """Return the table's rows, and whether each budget is kept."""
    rows, kept = [], True
    for c in comparisons:
        ours, theirs = costs[c.what], costs[c.against]
        wall = ratio(ours, theirs, "wall")
        ok = c.budget is None or wall <= c.budget
        kept = kept and ok
        rows.append([
            c.what, f"{median(ours, 'wall'):.3f}", f"{median(ours, 'cpu'):.3f}",
            c.against, f"{median(theirs, 'wall'):.3f}", f"{median(theirs, 'cpu'):.3f}",
            f"{wall:.2f}", f"{ratio(ours, theirs, 'cpu'):.2f}",
            "-" if c.budget is None else f"{c.budget:.2f}", "-" if c.budget is None else "yes" if ok else "NO",
        ])  # fmt: skip
    return rows, kept


HEAD = ("what", "wall s", "CPU s", "against", "wall s", "CPU s", "wall ratio", "CPU ratio", "budget", "ok")


def surroundings(env: Mapping[str, str] = os.environ) -> str:
    """Return what else the figures depend on."""
    found = [f"Python {sys.version.split()[0]}"]
    for name in ("torch", "diffusers", "transformers", "typer", "scipy", "peft", "torchvision"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join([*found, f"{os.cpu_count()} cores", *(f"{k}={env[k]}" for k in ("OMP_NUM_THREADS",) if k in env)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description="How fast sdcli starts.")
    parser.add_argument("--rounds", type=int, default=5, help="times that each picture is drawn (default 5)")
    parser.add_argument("--only", choices=("words", "pictures"), help="half of the table")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a budget is missed")
    asked = parser.parse_args()
    rows: list[list[str]] = []
    notes: list[str] = []
    kept = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if asked.only != "pictures":
                costs, comparisons = words(asked.rounds, folder)
                more, kept = rows_of(costs, comparisons)
                rows += more
            for steps, budget in ((1, 0.62), (25, None)) if asked.only != "words" else ():
                costs, comparisons, note = pictures(steps, asked.rounds, folder, budget, others=steps == 1)
                more, ok = rows_of(costs, comparisons)
                rows, kept, notes = rows + more, kept and ok, [*notes, note]
        except Failed as failure:
            print(failure, file=sys.stderr)
            return 1
    print(table(HEAD, rows))
    print(f"\nMedians of {asked.rounds} rounds (short commands: {asked.rounds * 4}). {surroundings()}.")
    for note in notes:
        print(note + ".")
    return 1 if asked.strict and not kept else 0


if __name__ == "__main__":
    sys.exit(main())
