"""What this machine's PyTorch computes attention with, and what memory its devices have."""

from __future__ import annotations

import warnings
from typing import Any

from sdcli.pipeline.loading import DTYPES
from sdcli.pipeline.machine import import_libraries

# A head of SD 1.5's U-Net on 64 x 64 latents, cut down to what takes no time.
_SHAPE = (1, 8, 256, 40)


def kernels(device: str, dtype: str) -> tuple[str, ...]:
    """Return the kernels of `scaled_dot_product_attention` that run on a device in a dtype (fp16, bf16 or fp32).

    Each is run once, by itself (docs.pytorch.org/docs/stable/generated/torch.nn.attention.sdpa_kernel.html); PyTorch takes
    one of them for each call, the full matrix (`math`) where none of the others can. In this order: flash, cudnn, efficient, math.
    """
    if device.startswith("mps"):
        return ("math",)  # Metal has one of its own for all, which the choice below does not reach.
    import_libraries()
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    set_on: Any = torch.backends.cuda
    names = {
        "flash": (SDPBackend.FLASH_ATTENTION, set_on.flash_sdp_enabled()),
        "cudnn": (SDPBackend.CUDNN_ATTENTION, set_on.cudnn_sdp_enabled()),
        "efficient": (SDPBackend.EFFICIENT_ATTENTION, set_on.mem_efficient_sdp_enabled()),
        "math": (SDPBackend.MATH, set_on.math_sdp_enabled()),
    }
    found = []
    value = torch.zeros(_SHAPE, device=device, dtype=getattr(torch, DTYPES[dtype]))
    for name, (kernel, enabled) in names.items():
        if not enabled:
            continue
        # A kernel that can't says why in warnings, and raises.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with torch.no_grad(), sdpa_kernel(kernel):
                    scaled_dot_product_attention(value, value, value)
            except RuntimeError:
                continue
        found.append(name)
    return tuple(found)


def memory(device: str) -> tuple[int | None, int | None]:
    """Return an accelerator's memory in bytes, free and in all; None for what it does not tell."""
    import torch

    kind = getattr(torch, device.partition(":")[0])
    if not hasattr(kind, "mem_get_info"):
        return None, None
    free, total = kind.mem_get_info(device)
    return int(free), int(total)


def built_for() -> tuple[str, ...]:
    """Return the kinds of accelerators that this PyTorch was built for: cuda, rocm, xpu, mps."""
    import torch

    built = {
        "cuda": torch.version.cuda is not None,
        "rocm": torch.version.hip is not None,
        "xpu": getattr(torch.version, "xpu", None) is not None,
        "mps": torch.backends.mps.is_built(),
    }
    return tuple(name for name, there in built.items() if there)
