"""What attention slicing costs and saves on a GPU: time and peak memory of a step, off and on.

    python -m benchmarks.attention_slicing

The network is Stable Diffusion 1.5's UNet in its real size and fp16, with random weights: neither time nor memory
depends on their values, and nothing is downloaded. A step is one call with guidance, so two latents at once.
Without a GPU nothing is measured, and the exit code is 69.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.sides import table

# stable-diffusion-v1-5/stable-diffusion-v1-5, unet/config.json; what is not named is diffusers' default: 859.5 million.
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
# `set_attention_slice`'s words for --attention-slicing off, on and max.
MODES = {"off": None, "on": "auto", "max": "max"}
MIB = 2**20


def measure(unet: Any, pixels: int, steps: int) -> tuple[float, float] | None:
    """Return the median seconds of a step and its peak memory in MiB, weights included; None where it does not fit."""
    device, dtype = unet.device, unet.dtype
    generator = torch.Generator("cpu").manual_seed(7)
    latents = torch.randn((2, 4, pixels // 8, pixels // 8), generator=generator).to(device, dtype)
    words = torch.randn((2, 77, unet.config.cross_attention_dim), generator=generator).to(device, dtype)
    timestep = torch.tensor(500, device=device)
    taken = []
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with torch.no_grad():
            # The first ones choose kernels and fill the allocator.
            for number in range(3 + steps):
                torch.cuda.synchronize(device)
                began = time.perf_counter()
                unet(latents, timestep, encoder_hidden_states=words)
                torch.cuda.synchronize(device)
                if number >= 3:
                    taken.append(time.perf_counter() - began)
    except torch.OutOfMemoryError:
        return None
    return statistics.median(taken), torch.cuda.max_memory_allocated(device) / MIB


def rows(unet: Any, sizes: Sequence[int], steps: int) -> list[list[str]]:
    """Return the table's rows: each size with each mode, and the ratios to `off`."""
    found = []
    for pixels in sizes:
        base = None
        for mode, slices in MODES.items():
            unet.set_attention_slice(slices)
            result = measure(unet, pixels, steps)
            base = result if mode == "off" else base
            if result is None:
                found.append([f"{pixels} px, {mode}", "out of memory", "-", "-", "-"])
                continue
            seconds, memory = result
            ratios = ["-", "-"] if base is None else [f"{seconds / base[0]:.2f}", f"{memory / base[1]:.2f}"]
            found.append([f"{pixels} px, {mode}", f"{1000 * seconds:.1f}", f"{memory:.0f}", *ratios])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_slicing", description="Slicing on a GPU.")
    parser.add_argument("--steps", type=int, default=20, help="steps that are measured for each row (default 20)")
    steps = parser.parse_args().steps
    if not torch.cuda.is_available():
        print("no GPU was found: nothing is measured", file=sys.stderr)
        return 69
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**SD15).to("cuda", torch.float16).eval()
    weights = torch.cuda.memory_allocated() / MIB
    head = ("size, slicing", "ms a step", "peak MiB", "time, to off", "memory, to off")
    print(table(head, rows(unet, (512, 1024), steps)))
    print(
        f"\nMedians of {steps} steps; {weights:.0f} MiB of each peak are the weights. "
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, fp16, off is scaled_dot_product_attention."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
