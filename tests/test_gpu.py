"""On a GPU. Marker `gpu`: run them with `python -m pytest -m gpu` where there is one."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.conftest import Sdcli, pixels, record_of
from training import draw, judge

pytestmark = pytest.mark.gpu
PROMPT = "a red circle on a blue background"
ASKED = draw.Ask(kind="one", things=(("red", "circle"),), background="blue")


def test_the_gpu_is_found_and_draws_in_fp16(sdcli: Sdcli) -> None:
    done = sdcli("generate", PROMPT, "-m", "demo", "-s", "7", "-o", "gpu.png")
    assert done.code == 0, done.stderr
    plan = record_of("gpu.png")["plan"]
    assert plan["device"] != "cpu" and plan["dtype"] == "fp16"
    with Image.open("gpu.png") as image:
        assert judge.judge(ASKED, image).right


def test_the_same_start_as_on_the_cpu(sdcli: Sdcli) -> None:
    for device in ("cpu", "auto"):
        sdcli("generate", PROMPT, "-m", "demo", "-s", "7", "--dtype", "fp32", "--device", device, "-o", f"{device}.png")
    assert abs(pixels("cpu.png") - pixels("auto.png")).mean() < 2


@pytest.mark.parametrize(
    "options", [["--offload", "model"], ["--offload", "sequential"], ["--attention-slicing", "max"]], ids=str
)
def test_saving_memory_draws_the_same(sdcli: Sdcli, options: list[str]) -> None:
    command = ["generate", PROMPT, "-m", "demo", "-s", "7", "--dtype", "fp32"]
    sdcli(*command, "-o", "plain.png")
    done = sdcli(*command, *options, "-o", "saving.png")
    assert done.code == 0, done.stderr
    assert abs(pixels("plain.png") - pixels("saving.png")).max() <= 2


def test_out_of_memory_on_the_gpu_ends_with_75(sdcli: Sdcli) -> None:
    done = sdcli("generate", PROMPT, "-m", "demo", "-s", "7", "--steps", "1", "--size", "16384x16384")
    assert done.code == 75 and "offloading (model)" in done.stderr
