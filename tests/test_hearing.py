"""What a listener hears: the parts of each step's latents, with every scheduler, and the same picture as without."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

import sdcli as library
from sdcli import schedulers
from sdcli.pipeline import Step, Together
from sdcli.pipeline import hearing as ears
from sdcli.pipeline.hearing import Hearing, hearing
from sdcli.request import Hires
from sdcli.schedulers import SCHEDULERS, Scheduler
from tests.families import saved

SD = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
}  # fmt: skip
KINDS = ("epsilon", "v_prediction", "sample")
# Those of diffusers that raise for a prediction of the clean latents.
NO_SAMPLE = {
    "EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler", "PNDMScheduler",
}  # fmt: skip
LONG = "a red circle, " * 30 + "a green star"
LOG_SIGMA = np.log((1 / np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2) - 1) ** 0.5)


class Listener:
    """Keeps what it hears."""

    def __init__(self, *hears: str) -> None:
        self.hears = frozenset(hears)
        self.steps: list[Step] = []

    def __call__(self, step: Step) -> None:
        self.steps.append(step)


def heard(
    scheduler: Any, clean: torch.Tensor, output: Callable[[torch.Tensor, float], torch.Tensor], steps: int
) -> Any:
    """Yield what is heard of each step of a run in which a network has its say, and what the scheduler gave back."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(clean.shape, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    takes = inspect.signature(scheduler.step).parameters
    more = {"generator": generator} if "generator" in takes else {}
    with hearing(scheduler, Listener("estimates")) as ear:
        assert inspect.signature(scheduler.step).parameters == takes
        for t in scheduler.timesteps:
            given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            out = scheduler.step(output(given, float(t)), t, x, **more)
            assert ear.last is not None and ear.last.before is x
            yield ear.last, out, t
            x = out.prev_sample
    assert "step" not in vars(scheduler)


@pytest.mark.parametrize("entry", SCHEDULERS, ids=lambda s: s.name)
def test_the_clean_latent_is_recovered(entry: Scheduler) -> None:
    """The network is the ideal one, which knows the clean latent, and the noise's share by the timestep alone."""
    clean = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    scheduler = schedulers.build(entry, SD, seeds=[1])
    for kind in KINDS:
        if kind == "sample" and entry.class_name in NO_SAMPLE:
            continue

        def output(x: torch.Tensor, t: float, kind: str = kind) -> torch.Tensor:
            a = 1 / (1 + np.exp(2 * np.interp(t, np.arange(1000), LOG_SIGMA)))
            noise = (x.double() - a**0.5 * clean) / (1 - a) ** 0.5
            parts = {"epsilon": noise, "v_prediction": a**0.5 * noise - (1 - a) ** 0.5 * clean, "sample": clean}
            return parts[kind].float()

        scheduler.register_to_config(prediction_type=kind)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchsde")
            for last, out, t in heard(scheduler, clean.float(), output, max(6, entry.min_steps)):
                size = (last.signal**2 + last.sigma**2) ** 0.5
                # Some round their timesteps: then the network is told a little more noise, or less, than there is.
                rounded = 0.02 if float(t) == round(float(t)) else 1e-4
                wrong = float((last.clean - clean).abs().max())
                assert wrong < rounded * max(1.0, last.sigma / last.signal), (kind, t, wrong)
                again = last.signal * last.clean + last.sigma * last.noise
                assert torch.allclose(again / size, last.before / size, atol=2e-5)
                if (own := getattr(out, "pred_original_sample", None)) is not None:
                    assert torch.allclose(own, last.clean, atol=1e-4 * size / last.signal)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_straight_lines(name: str) -> None:
    import diffusers

    clean = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = getattr(diffusers, name)(shift=3.0)

    def output(x: torch.Tensor, t: float) -> torch.Tensor:
        sigma = t / 1000
        return (x - clean) / sigma  # x = (1 - sigma) clean + sigma noise, and it says noise - clean

    sigmas = []
    for last, _, t in heard(scheduler, clean, output, 6):
        assert torch.allclose(last.clean, clean, atol=1e-4)
        assert last.sigma == pytest.approx(float(t) / 1000, abs=1e-5) and last.signal == pytest.approx(1 - last.sigma)
        sigmas.append(last.sigma)
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[0] == pytest.approx(1)


def test_what_is_not_known_is_none() -> None:
    euler = schedulers.build(schedulers.find("euler"), SD)
    euler.set_timesteps(3)
    assert ears.parts(euler, torch.zeros(1, 16, 64), euler.timesteps[0], torch.zeros(1, 16, 64)) is None

    class Another:
        config: dict[str, Any] = {}

    assert ears.parts(Another(), torch.zeros(1, 4, 4, 4), 1, torch.zeros(1, 4, 4, 4)) is None
    assert Hearing().step(number=1, of=2, timestep=3.0, latents=None).clean is None


def test_several_are_one() -> None:
    one, other = Listener(), Listener("estimates")
    both = Together([one, other, Listener("more")])
    both(Step(number=1, of=1, timestep=1.0, latents=None))
    assert both.hears == {"estimates", "more"} and len(one.steps) == len(other.steps) == 1


# On the bundled model


@pytest.fixture(scope="module")
def demo() -> Iterator[library.Pipeline]:
    yield library.load("demo", library.DevicePlan(dtype="fp32"))


def requests(scheduler: str | None, **more: Any) -> list[library.GenerationRequest]:
    return [
        library.GenerationRequest(
            prompt=prompt,
            seed=seed,
            num_inference_steps=4,
            guidance_scale=5,
            scheduler=scheduler,
            width=64,
            height=64,
            **more,
        )
        for prompt, seed in (("a red circle", 7), ("a blue star", 8))
    ]


@pytest.mark.parametrize("scheduler", [None, "euler-a", "heun", "dpm2-a", "dpm++sde", "lms", "unipc-karras", "ddim"])
def test_the_same_picture(demo: library.Pipeline, scheduler: str | None) -> None:
    calls: list[int] = []
    hook = demo.pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    listener = Listener("estimates")
    try:
        plain = [p.record.pixels.sha256 for p in demo.generate(requests(scheduler), batch_size=2)]
        alone = len(calls)
        told = [p.record.pixels.sha256 for p in demo.generate(requests(scheduler), batch_size=2, listener=listener)]
    finally:
        hook.remove()
    assert told == plain and len(calls) == 2 * alone
    assert [step.number for step in listener.steps] == [*range(1, listener.steps[0].of + 1)]
    for step in listener.steps:
        assert step.before.shape == step.noise.shape == step.clean.shape == step.latents.shape == (2, 4, 8, 8)
        assert torch.allclose(
            step.signal * step.clean + step.sigma * step.noise, step.before, atol=1e-4 * step.sigma + 1e-5
        )
    # The first is nearly noise alone, and the last predicts what is drawn.
    assert (
        torch.corrcoef(torch.stack([listener.steps[0].before.flatten(), listener.steps[0].noise.flatten()]))[0, 1] > 0.9
    )
    last = listener.steps[-1]
    assert torch.corrcoef(torch.stack([last.clean.flatten(), last.latents.flatten()]))[0, 1] > 0.95


def test_nothing_is_touched_for_others(demo: library.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr(ears, "parts", fail)
    steps: list[Step] = []
    seen: list[bool] = []

    def plain(step: Step) -> None:
        steps.append(step)
        seen.append("step" in vars(demo.pipe.scheduler))

    assert len([*demo.generate(requests(None), listener=plain)]) == 2
    assert steps and seen and not any(seen)
    assert {(s.before, s.noise, s.clean, s.sigma, s.signal) for s in steps} == {(None,) * 5}


@pytest.mark.parametrize(
    ("prompt", "more", "same", "used", "chunks"),
    [
        (f"a [star:{LONG}:8]", {"strength": 0.5}, "a star", 2, 1),
        ("a [blue red:red:0.15] star", {"strength": 0.5}, "a red star", 3, 1),
        (f"a [star:{LONG}:8]", {}, None, 2, 2), (f"a [star:{LONG}:4]", {"hires": Hires(factor=1.5, strength=0.5)}, None, 2, 2),
        (f"a [star:{LONG}:4]", {"strength": 0.3, "hires": Hires(factor=1.5, strength=0.5)}, None, 2, 2),
    ],
)  # fmt: skip
def test_the_record_tells_of_the_words_that_were_read(
    demo: library.Pipeline, tmp_path: Path, prompt: str, more: dict[str, Any], same: str | None, used: int, chunks: int
) -> None:
    """From a picture few steps are drawn, and words that would come after them are not read."""
    Image.new("RGB", (64, 64), "green").save(tmp_path / "start.png")
    if "strength" in more:
        more = {"init_image": str(tmp_path / "start.png"), **more}
    asked = library.GenerationRequest(prompt=prompt, seed=1, num_inference_steps=10, width=64, height=64, **more)
    (one,) = demo.generate([asked])
    assert (one.record.tokens.used, one.record.tokens.chunks) == (used, chunks)
    if same is not None:
        (other,) = demo.generate([msgspec.structs.replace(asked, prompt=same)])
        assert other.record.pixels.sha256 == one.record.pixels.sha256
        assert other.record.tokens == one.record.tokens


def test_packs_are_of_prompts_that_are_read_in_as_many_chunks(demo: library.Pipeline, tmp_path: Path) -> None:
    """Of what would come after the steps that are drawn, a picture does not depend, nor on its neighbours."""
    Image.new("RGB", (64, 64), "green").save(tmp_path / "start.png")
    both = [
        library.GenerationRequest(
            prompt=prompt, seed=1, num_inference_steps=10, width=64, height=64, init_image=str(tmp_path / "start.png"), strength=0.5
        )
        for prompt in (f"a [star:{LONG}:8]", LONG)
    ]  # fmt: skip
    alone = [picture.record.pixels.sha256 for one in both for picture in demo.generate([one], batch_size=2)]
    assert [picture.record.pixels.sha256 for picture in demo.generate(both, batch_size=2)][0] == alone[0]


def test_it_is_let_go_when_a_pass_fails(demo: library.Pipeline) -> None:
    class Stop(Exception):
        pass

    class Failing(Listener):
        def __call__(self, step: Step) -> None:
            raise Stop

    with pytest.raises(Stop):
        next(iter(demo.generate(requests(None), listener=Failing("estimates"))))
    assert "step" not in vars(demo.pipe.scheduler)


@pytest.mark.parametrize(
    ("name", "known"),
    [("StableDiffusionXLPipeline", True), ("StableDiffusion3Pipeline", True), ("FluxPipeline", False)],
)
def test_other_families(name: str, known: bool, tmp_path: Path) -> None:
    pipeline = library.load(str(saved(name, tmp_path / "model")), library.DevicePlan(dtype="fp32"))
    listener = Listener("estimates")
    request = library.GenerationRequest(prompt="a star", seed=1, num_inference_steps=2, width=32, height=32)
    (plain,) = pipeline.generate([request])
    (told,) = pipeline.generate([request], listener=listener)
    assert told.record.pixels.sha256 == plain.record.pixels.sha256 and len(listener.steps) == 2
    for step in listener.steps:
        assert (step.clean is not None) == known
        if known:
            assert step.signal is not None and step.sigma is not None
            again = step.signal * step.clean + step.sigma * step.noise
            assert torch.allclose(again, step.before.float(), atol=1e-4 * step.sigma + 1e-5)
