"""Where a model runs and how: the decision, as a pure function of what a probe saw."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from sdcli.errors import UsageError
from sdcli.options import meta

WHERE = "Where it is drawn"
GIB = 2**30
# Below this much memory free after the weights, attention is sliced: what a 512 x 512 picture's attention may take.
SLICE_BELOW = 4 * GIB


class DevicePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how to draw, as asked for; `decide` turns each `auto` into a decision."""

    device: Annotated[
        str,
        meta(
            "auto, cpu, cuda, cuda:N, mps or xpu.", "--device", panel=WHERE, metavar="DEVICE",
            pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$",
        ),
    ] = "auto"  # fmt: skip
    dtype: Annotated[
        Literal["auto", "fp16", "bf16", "fp32"],
        meta("Precision: auto, fp16, bf16 or fp32.", "--dtype", panel=WHERE, metavar="DTYPE"),
    ] = "auto"
    attention_slicing: Annotated[
        str,
        meta(
            "auto, on, off, max or heads at once: less memory.",
            "--attention-slicing", panel=WHERE, metavar="SLICES", pattern=r"^(auto|on|off|max|[1-9]\d{0,3})$",
        ),
    ] = "auto"  # fmt: skip
    vae_tiling: Annotated[bool, meta("Decode in tiles: less memory.", "--vae-tiling", panel=WHERE)] = False
    offload: Annotated[
        Literal["none", "model", "sequential"],
        meta(
            "none, model or sequential: less GPU memory, slower.",
            "--offload", panel=WHERE, metavar="HOW",
        ),
    ] = "none"  # fmt: skip
    threads: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1024)] | None,
        meta("CPU threads.", "--threads", panel=WHERE),
    ] = None


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """A device that PyTorch reports: memory in bytes, and whether attention runs there without its full matrix."""

    device: str
    name: str = ""
    memory_free: int | None = None
    bf16: bool = False
    efficient_attention: bool = True


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the machine found; accelerators in the order of preference."""

    accelerators: tuple[Accelerator, ...] = ()
    cpu_bf16: bool = False


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A plan without `auto`: `attention_slicing` is off, on, max or a number; `reasons` says why, field by field."""

    device: str
    dtype: Literal["fp16", "bf16", "fp32"]
    attention_slicing: str
    vae_tiling: bool
    offload: Literal["none", "model", "sequential"]
    threads: int | None
    reasons: dict[str, str]


def decide(
    plan: DevicePlan,
    probe: Probe,
    *,
    family_dtype: str = "fp16",
    parameters: int = 0,
    slices: bool = True,
    tiles: bool = True,
) -> Decision:
    """Return what `plan` means on the probed machine, for a model of that many parameters.

    `slices` and `tiles`: attention can be sliced, and the autoencoder can decode in tiles. Raises UsageError for a device
    that is not there, and for a combination that can't work.
    """
    _check_family(plan, slices, tiles)
    reasons: dict[str, str] = {}
    there = {a.device: a for a in probe.accelerators}
    if plan.device == "auto":
        device = probe.accelerators[0].device if probe.accelerators else "cpu"
        reasons["device"] = f"{there[device].name or device} was found" if probe.accelerators else "no GPU was found"
    else:
        device = (
            plan.device if plan.device in there or plan.device == "cpu" or ":" in plan.device else f"{plan.device}:0"
        )
        reasons["device"] = "asked for"
    gpu = there.get(device)
    if gpu is None and device != "cpu":
        raise UsageError(
            f"there is no device {plan.device}: PyTorch sees {', '.join([*there, 'cpu'])}",
            "leave --device out, or name one of these",
        )
    if plan.dtype != "auto":
        dtype = plan.dtype
        reasons["dtype"] = "asked for"
        if dtype == "fp16" and gpu is None:
            raise fp16_on_cpu()
    elif gpu is not None:
        wants_bf16 = family_dtype == "bf16" and gpu.bf16
        dtype = "bf16" if wants_bf16 else "fp16"
        reasons["dtype"] = "this family wants bf16" if wants_bf16 else "half precision, on a GPU"
    else:
        dtype = "bf16" if probe.cpu_bf16 else "fp32"
        reasons["dtype"] = f"this CPU has {'' if probe.cpu_bf16 else 'no '}instructions for bf16"
    if plan.offload != "none" and gpu is None:
        raise UsageError("there is nothing to offload from: the device is the CPU", "leave --offload out")
    reasons["offload"] = "asked for" if plan.offload != "none" else "not asked for"

    # What is offloaded does not lie there while attention is computed, or hardly.
    weight_bytes = parameters * (4 if dtype == "fp32" else 2) if plan.offload == "none" else 0
    slicing = plan.attention_slicing
    if slicing != "auto":
        reasons["attention_slicing"] = "asked for"
    elif not slices:
        slicing, reasons["attention_slicing"] = "off", "this family's attention can't be sliced"
    elif gpu is None:
        slicing, reasons["attention_slicing"] = "off", "on a CPU it saves nothing that matters"
    elif not gpu.efficient_attention:
        slicing, reasons["attention_slicing"] = "on", "this device has no memory-efficient attention kernel"
    elif gpu.memory_free is not None and gpu.memory_free - weight_bytes < SLICE_BELOW:
        free = (gpu.memory_free - weight_bytes) / GIB
        slicing, reasons["attention_slicing"] = "on", f"{free:.1f} GiB are free after the weights, under 4"
    else:
        slicing, reasons["attention_slicing"] = "off", "PyTorch's scaled-dot-product attention does better"
    reasons["vae_tiling"] = "asked for" if plan.vae_tiling else "not asked for"
    return Decision(
        device=device, dtype=dtype, attention_slicing=slicing, vae_tiling=plan.vae_tiling, offload=plan.offload,
        threads=plan.threads, reasons=reasons,
    )  # fmt: skip


def fp16_on_cpu() -> UsageError:
    """Return the refusal of fp16 on a CPU."""
    return UsageError(
        "fp16 on a CPU is refused: PyTorch has no fast fp16 convolution there (156 times slower than fp32, measured)",
        "leave --dtype out, or use bf16 or fp32",
    )


def check(plan: DevicePlan, *, slices: bool = True, tiles: bool = True) -> None:
    """Refuse what can be refused before the machine is probed."""
    _check_family(plan, slices, tiles)
    if plan.device == "cpu":
        decide(plan, Probe())


def _check_family(plan: DevicePlan, slices: bool, tiles: bool) -> None:
    if not slices and plan.attention_slicing not in ("auto", "off"):
        raise UsageError("this family's attention can't be sliced", "leave --attention-slicing out")
    if not tiles and plan.vae_tiling:
        raise UsageError("this family's autoencoder can't decode in tiles", "leave --vae-tiling out")
