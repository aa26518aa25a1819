"""What each way of starting faster brings, tried on the plain diffusers script: one row a way.

    python -m benchmarks.tricks [--rounds N]

`start` measures sdcli as it is; this says why it is so, and what was left out because it brings nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.sides import Command, Failed, alternate, median, ratio, table
from benchmarks.start import PROMPT, surroundings
from sdcli.models import demo_folder

SCRIPT = """\
{first}
import sys
import torch
from {package} import StableDiffusionPipeline
{imported}
model, prompt = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(model)
{loaded}
seed = torch.Generator("cpu").manual_seed(7)
pipe(prompt, generator=seed, num_inference_steps=1, guidance_scale=5.0).images[0].save("picture.png")
{last}
"""


@dataclass(frozen=True, kw_only=True)
class Way:
    """What a way adds to the script: before all, after the imports, after the model is loaded, at the end."""

    first: str = ""
    imported: str = ""
    loaded: str = ""
    last: str = ""
    package: str = "diffusers"
    env: Mapping[str, str] = field(default_factory=dict)


OFF = "import gc\ngc.disable()\n"
FROZEN = "gc.freeze()\ngc.enable()"
LEAVE = "import os\nsys.stdout.flush()\nsys.stderr.flush()\nos._exit(0)"
READ = """
import pathlib, threading
def read(folder):
    for file in pathlib.Path(folder).rglob("*.safetensors"):
        file.read_bytes()
import sys
threading.Thread(target=read, args=sys.argv[1:2], daemon=True).start()
"""
# What diffusers imports besides that does not itself need torch.
BESIDE = """
import threading
beside = threading.Thread(target=__import__, args=("torch",))
beside.start()
import numpy, PIL.Image, requests, yaml, sympy, huggingface_hub, tokenizers
beside.join()
"""
A = Way(first=OFF, imported=FROZEN, last=LEAVE)
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
KEEP = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
WAYS = {
    "the plain script": Way(),
    "collector off during the imports": Way(first=OFF, imported="gc.enable()"),
    "collector off during the imports, then frozen": Way(first=OFF, imported=FROZEN),
    "collector off to the end": Way(first=OFF),
    "teardown skipped": Way(last=LEAVE),
    "A: off during the imports, frozen, teardown skipped": A,
    "A, the collector off until the model is loaded": replace(A, imported="", loaded=FROZEN),
    "A, the collector off to the end": replace(A, imported=""),
    "A, a thread reads the weights meanwhile": replace(A, first=OFF + READ),
    "A, torch in a thread, other imports meanwhile": replace(A, first=OFF + BESIDE),
    "A, the class from its own module": replace(A, package="diffusers.pipelines.stable_diffusion"),
    "A, warnings and bars off": replace(A, env=QUIET),
    "A, one thread (OMP_NUM_THREADS=1)": replace(A, env={"OMP_NUM_THREADS": "1"}),
    "A, glibc keeps what is freed": replace(A, env=KEEP),
    "A, as if scipy were not installed": replace(A, first=OFF + "import sys\nsys.modules['scipy'] = None\n"),
    "A, as if accelerate were not installed": replace(A, first=OFF + "import sys\nsys.modules['accelerate'] = None\n"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tricks", description="What starting faster takes.")
    parser.add_argument("--rounds", type=int, default=5, help="times that each way is run (default 5)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = {}
        for number, (what, way) in enumerate(WAYS.items()):
            script = folder / f"way{number}.py"
            script.write_text(SCRIPT.format(**asdict(way)))
            argv = [sys.executable, str(script), str(demo_folder()), PROMPT]
            commands[what] = Command(argv=argv, env=way.env)
        try:
            costs = alternate(commands, rounds, folder)
        except Failed as failure:
            print(failure, file=sys.stderr)
            return 1
    plain = costs["the plain script"]
    print(table(("way", "wall s", "CPU s", "wall ratio", "CPU ratio"), [
        (what, f"{median(own, 'wall'):.2f}", f"{median(own, 'cpu'):.2f}",
         f"{ratio(own, plain, 'wall'):.2f}", f"{ratio(own, plain, 'cpu'):.2f}")
        for what, own in costs.items()
    ]))  # fmt: skip
    print(f"\nMedians of {rounds} rounds, ratios to the plain script. {surroundings(os.environ)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
