"""The machine: what PyTorch finds here, and the import of the libraries that take long."""

from __future__ import annotations

import gc
import os
import platform
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from sdcli import __version__
from sdcli.device import Accelerator, Probe

# Set before transformers is imported: it tells of packages that are not missed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

# Bytes: what PyTorch's allocation on a CPU is aligned to.
ALIGNMENT = 64


def quiet(_: str) -> None:
    """Say nothing."""


@cache
def import_libraries() -> None:
    """Import torch, diffusers and transformers, without the garbage collector looking at each new object.

    The imports make some millions of objects that live as long as the process: looking for garbage among them, again
    and again, is a quarter of a plain script's start (benchmarks/README.md). Freezing sets them aside for good. Once:
    a model that is loaded by then would be set aside with them. The collector is then on again, for a long batch.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion
            import torch  # noqa: F401
            import transformers
        # Their bars for loading would stand among results that a person reads; sdcli says itself what it does.
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def probe(device: str = "auto") -> Probe:
    """Look at the machine: which accelerators PyTorch sees, and whether the CPU computes in bf16."""
    return Probe(accelerators=accelerators(device), cpu_bf16=cpu_has_bf16())


def accelerators(device: str) -> tuple[Accelerator, ...]:
    """Return the accelerators that PyTorch sees, in the order of preference.

    Free memory is asked of the device in question only: asking takes hundreds of megabytes on each GPU that is asked.
    """
    import torch

    def free(name: str) -> int | None:
        wanted = {"auto": 0}.get(device, device if ":" in device else f"{device}:0")
        if wanted not in (name, 0) or (wanted == 0 and not name.endswith(":0")):
            return None
        return int(getattr(torch, name.partition(":")[0]).mem_get_info(name)[0])

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found.append(
            Accelerator(
                device=f"cuda:{index}",
                name=torch.cuda.get_device_name(index),
                memory_free=free(f"cuda:{index}"),
                # From Ampere on; older cards emulate it, slowly.
                bf16=torch.cuda.get_device_capability(index) >= (8, 0),
                efficient_attention=torch.version.hip is not None or torch.cuda.get_device_capability(index) >= (5, 0),
            )
        )
    xpu = getattr(torch, "xpu", None)
    for index in range(xpu.device_count() if xpu and xpu.is_available() else 0):
        found.append(
            Accelerator(
                device=f"xpu:{index}",
                name=torch.xpu.get_device_name(index),
                memory_free=free(f"xpu:{index}"),
                bf16=True,
            )
        )
    if torch.backends.mps.is_available():
        # Metal's attention computes its full matrix.
        found.append(Accelerator(device="mps:0", name="Apple GPU", efficient_attention=False))
    return tuple(found)


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16: AVX512-BF16, AMX or Arm's BF16."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        # Apple's chips have them from the M2 on, but PyTorch's CPU kernels there are no faster with them.
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; CPU and Metal say so in a plain RuntimeError."""
    import torch

    # The last is oneDNN's word for it.
    words = ("out of memory", "can't allocate memory", "not enough memory", "could not create a primitive")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    )


def versions() -> dict[str, str]:
    """Return the versions that decide a picture's bits."""
    import diffusers
    import torch
    import transformers

    return {
        "sdcli": __version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        # The instructions that PyTorch's kernels use, which decide bits too.
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "platform": f"{sys.platform}-{platform.machine()}",
    }


def backend(device: str) -> Any:
    """Return PyTorch's module for a device: torch.cuda, torch.xpu, torch.mps or torch.cpu."""
    import torch

    return getattr(torch, device.partition(":")[0])


def align(component: Any) -> None:
    """Move weights to where PyTorch's own allocation would have put them.

    Out of a file that is mapped into memory they lie at any address, and the CPU's kernels take other ways then: the same
    weights would draw other bits out of a folder than out of a single file.
    """
    import torch

    for tensor in (*component.parameters(), *component.buffers()):
        if type(tensor.data) is torch.Tensor and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
