"""Where a model runs: the decision, without the machines that it is about."""

from __future__ import annotations

import pytest

from sdcli.device import GIB, Accelerator, DevicePlan, Probe, decide
from sdcli.errors import UsageError

BIG = Accelerator(device="cuda:0", name="Big", memory_free=24 * GIB, bf16=True)
SMALL = Accelerator(device="cuda:1", name="Small", memory_free=5 * GIB)
METAL = Accelerator(device="mps:0", name="Apple GPU", efficient_attention=False)
PARAMETERS = GIB  # 2 GiB in half precision


@pytest.mark.parametrize(
    ("plan", "probe", "device", "dtype", "slicing"),
    [
        (DevicePlan(), Probe(), "cpu", "fp32", "off"),
        (DevicePlan(), Probe(cpu_bf16=True), "cpu", "bf16", "off"),
        (DevicePlan(), Probe(accelerators=(BIG, SMALL)), "cuda:0", "fp16", "off"),
        (DevicePlan(device="cuda"), Probe(accelerators=(BIG, SMALL)), "cuda:0", "fp16", "off"),
        (DevicePlan(device="cuda:1"), Probe(accelerators=(BIG, SMALL)), "cuda:1", "fp16", "on"),
        (DevicePlan(device="cpu"), Probe(accelerators=(BIG,)), "cpu", "fp32", "off"),
        (DevicePlan(), Probe(accelerators=(METAL,)), "mps:0", "fp16", "on"),
        (DevicePlan(attention_slicing="off"), Probe(accelerators=(METAL,)), "mps:0", "fp16", "off"),
        (DevicePlan(attention_slicing="4", dtype="bf16"), Probe(accelerators=(BIG,)), "cuda:0", "bf16", "4"),
    ],
)
def test_decisions(plan: DevicePlan, probe: Probe, device: str, dtype: str, slicing: str) -> None:
    made = decide(plan, probe, parameters=PARAMETERS)
    assert (made.device, made.dtype, made.attention_slicing) == (device, dtype, slicing)
    assert set(made.reasons) == {"device", "dtype", "attention_slicing", "vae_tiling", "offload"}
    assert all(made.reasons.values())


def test_the_threshold_is_what_is_free_after_the_weights() -> None:
    exact = Accelerator(device="cuda:0", memory_free=6 * GIB)
    assert decide(DevicePlan(), Probe(accelerators=(exact,)), parameters=GIB).attention_slicing == "off"
    assert decide(DevicePlan(), Probe(accelerators=(exact,)), parameters=GIB + 1).attention_slicing == "on"
    assert decide(DevicePlan(dtype="fp32"), Probe(accelerators=(exact,)), parameters=GIB).attention_slicing == "on"
    offloaded = decide(DevicePlan(offload="model"), Probe(accelerators=(exact,)), parameters=9 * GIB)
    assert offloaded.attention_slicing == "off"


def test_a_family_that_wants_bf16() -> None:
    assert decide(DevicePlan(), Probe(accelerators=(BIG,)), family_dtype="bf16").dtype == "bf16"
    assert decide(DevicePlan(), Probe(accelerators=(SMALL,)), family_dtype="bf16").dtype == "fp16"


@pytest.mark.parametrize(
    ("plan", "probe"),
    [
        (DevicePlan(device="cuda"), Probe()),
        (DevicePlan(device="cuda:2"), Probe(accelerators=(BIG,))),
        (DevicePlan(device="mps"), Probe(accelerators=(BIG,))),
        (DevicePlan(dtype="fp16"), Probe()),
        (DevicePlan(dtype="fp16", device="cpu"), Probe(accelerators=(BIG,))),
        (DevicePlan(offload="model"), Probe()),
    ],
)
def test_what_can_not_be_is_refused(plan: DevicePlan, probe: Probe) -> None:
    with pytest.raises(UsageError) as caught:
        decide(plan, probe)
    assert caught.value.hint
