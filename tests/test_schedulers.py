"""The table of schedulers: its names, its refusals, and that each entry really draws.

The network is replaced by the ideal one: where the data are one point, or Gaussian, the noise in a latent is known in
closed form. What is run is diffusers' schedulers themselves, in the loop of StableDiffusionPipeline.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from sdcli import schedulers
from sdcli.errors import UsageError
from sdcli.schedulers import SCHEDULERS, Scheduler, find

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")

# The betas of Stable Diffusion 1.5, and its scheduler's configuration.
SD = {
    "_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "trained_betas": None, "prediction_type": "epsilon", "skip_prk_steps": True,
    "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading", "clip_sample": False,
}  # fmt: skip
BETAS = numpy.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHA_BAR = numpy.cumprod(1 - BETAS)
LOG_SIGMA = numpy.log(((1 - ALPHA_BAR) / ALPHA_BAR) ** 0.5)
SIGMA_MIN = float(numpy.exp(LOG_SIGMA[0]))

each = pytest.mark.parametrize("entry", SCHEDULERS, ids=lambda s: s.name)


def ideal(mean: float, std: float) -> Callable[[Any, Any], Any]:
    """Return the noise estimate for data of N(mean, std^2): that of the expected clean latent, given the noisy one."""

    def noise(x: Any, t: Any) -> Any:
        a = 1 / (1 + numpy.exp(2 * numpy.interp(float(t), numpy.arange(1000), LOG_SIGMA)))
        x = x.double()
        clean = (mean * (1 - a) + std**2 * a**0.5 * x) / (std**2 * a + 1 - a)
        return (x - a**0.5 * clean) / (1 - a) ** 0.5

    return noise


def built(entry: Scheduler, seeds: tuple[int, ...] = (0,)) -> Any:
    """Return an entry's scheduler for SD. It serves many runs, as it does in a pipeline."""
    return _built(entry.name, seeds)


@functools.cache
def _built(name: str, seeds: tuple[int, ...]) -> Any:
    return schedulers.build(find(name), SD, seeds=seeds)


def draw(
    entry: Scheduler, seeds: list[int], steps: int, network: Callable[[Any, Any], Any], *, eta: float | None = None,
    shape: tuple[int, ...] = (4, 4, 4), dtype: Any = torch.float32,
) -> Any:  # fmt: skip
    """Run the loop of StableDiffusionPipeline with a generator a picture; return the latents."""
    scheduler = built(entry, tuple(seeds)) if entry.seeded else built(entry)
    scheduler.set_timesteps(steps)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    x = torch.cat([torch.randn((1, *shape), generator=g) for g in generators]).to(dtype) * scheduler.init_noise_sigma
    accepted = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": generators} if "generator" in accepted else {}
    if "eta" in accepted:
        extra["eta"] = entry.eta if eta is None else eta
    for t in scheduler.timesteps:
        noise = network(scheduler.scale_model_input(x, t), t).to(dtype)
        x = scheduler.step(noise, t, x, **extra, return_dict=False)[0]
    return x


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # numpy's own deprecations inside diffusers' schedulers and torchsde's rounding are not ours to mend.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", module="torchsde")
        yield


# Names


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("EulerDiscreteScheduler", "euler"), ("euler_discrete", "euler"), ("K_EULER", "euler"), ("Euler a", "euler-a"),
        ("k_euler_ancestral", "euler-a"), ("sample_euler_ancestral", "euler-a"), ("DPM++ 2M Karras", "dpm++2m-karras"),
        ("k_dpmpp_2m", "dpm++2m"), ("k_dpmpp_2m_ka", "dpm++2m-karras"), ("dpmpp_2m_karras", "dpm++2m-karras"),
        ("dpmpp_2m_k", "dpm++2m-karras"), ("dpm++2m-karras", "dpm++2m-karras"), ("DPMSolverMultistep", "dpm++2m"),
        ("DPMSolverMultistepScheduler", "dpm++2m"), ("DPM++ 2M SDE Karras", "dpm++2m-sde-karras"),
        ("DPM++ 2M SDE Heun Exponential", "dpm++2m-sde-heun-exponential"), ("DPM++ SDE Karras", "dpm++sde-karras"),
        ("dpm2 a karras", "dpm2-a-karras"), ("k_dpm_2_a_ka", "dpm2-a-karras"), ("PLMS", "pndm"), ("DDIM", "ddim"),
        ("ddim_trailing", "ddim"), ("UniPC", "unipc"), ("Euler SGM Uniform", "euler-sgm-uniform"),
        ("euler simple", "euler-sgm-uniform"), ("Euler Beta", "euler-beta"), ("  eULER  ", "euler"), ("LCM", "lcm"),
        ("SASolverScheduler", "sa-solver"), ("dpm++2m-lu", "dpm++2m-lu"),
    ],
)  # fmt: skip
def test_find(spelling: str, name: str) -> None:
    assert find(spelling).name == name


@each
def test_every_listed_name_finds_its_entry(entry: Scheduler) -> None:
    assert entry.names[0] == entry.name
    for name in entry.names:
        assert find(name) is entry
        assert find(name.upper().replace("-", "_").replace(" ", "-")) is entry


def test_names_are_unambiguous() -> None:
    # `spellings` raises for a spelling of two entries.
    assert set(map(id, schedulers.spellings().values())) == set(map(id, SCHEDULERS))
    assert len({s.name for s in SCHEDULERS}) == len(SCHEDULERS)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("oiler", "euler"), ("dpmm++ 2m karass", "dpm++2m-karras"), ("EulerDiscretScheduler", "EulerDiscreteScheduler")],
)
def test_unknown_name_gets_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        find(typed)
    assert f"unknown scheduler '{typed}'; did you mean" in caught.value.message
    assert meant in caught.value.message


@pytest.mark.parametrize("typed", ["", "zzzzzz", "karras", "++"])
def test_unknown_name_without_a_near_one(typed: str) -> None:
    with pytest.raises(UsageError, match="unknown scheduler"):
        find(typed)


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("Euler a Karras", "euler-a has no karras variant: .* ignore use_karras_sigmas"),
        ("ddim beta", "ddim has no beta variant"),
        ("dpm++2s trailing", "dpm\\+\\+2s has no sgm-uniform variant: .* ignore timestep_spacing"),
        ("sa-solver beta", "leaves strong noise"),
        ("DPM++ 2M SDE Heun Beta", "leaves strong noise"),
        ("DPM++ 2M Polyexponential", "no Polyexponential schedule"),
        ("DPM++ 2S a", "no DPM\\+\\+ 2S a"),
        ("k_dpmpp_2s_ancestral", "no DPM\\+\\+ 2S a"),
        ("DPM++ 2S a Karras", "no DPM\\+\\+ 2S a"),
        ("DPM++ 3M SDE Exponential", "no DPM\\+\\+ 3M SDE"),
        ("DPM adaptive", "no DPM fast"),
        ("EDMEulerScheduler", "EDM's parametrisation"),
        ("FlowMatchEulerDiscreteScheduler", "flow matching"),
    ],
)
def test_known_but_impossible_is_refused_with_its_reason(typed: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        find(typed)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("sampler", "schedule_type", "name"),
    [
        ("DPM++ 2M Karras", None, "dpm++2m-karras"), ("DPM++ 2M", "Karras", "dpm++2m-karras"),
        ("DPM++ 2M", "Automatic", "dpm++2m-karras"), ("DPM++ 2M SDE", "Automatic", "dpm++2m-sde-exponential"),
        ("DPM++ 2M", None, "dpm++2m"), ("Euler", "Automatic", "euler"), ("Euler", "Uniform", "euler"),
        ("Euler a", "Automatic", "euler-a"), ("DDIM", "Karras", "ddim"), ("PLMS", "Automatic", "pndm"),
        ("LCM", "Automatic", "lcm"), ("Euler", "SGM Uniform", "euler-sgm-uniform"),
    ],
)  # fmt: skip
def test_from_a1111(sampler: str, schedule_type: str | None, name: str) -> None:
    assert schedulers.from_a1111(sampler, schedule_type).name == name


@each
def test_a1111_names_come_back(entry: Scheduler) -> None:
    if entry.a1111 is None or entry.schedule_type is None:
        return
    back = schedulers.from_a1111(entry.a1111, entry.schedule_type)
    assert (back.a1111, back.schedule_type, back.class_name) == (entry.a1111, entry.schedule_type, entry.class_name)


# What is listed


def test_names_are_resolved_without_the_libraries() -> None:
    code = (
        "import sys, sdcli.schedulers as s; s.find('DPM++ SDE'); s.entries_json();"
        "print([m for m in ('torch', 'diffusers', 'numpy', 'scipy', 'torchsde') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_compatible_class_is_listed() -> None:
    import diffusers

    fits = {e.name for e in diffusers.schedulers.KarrasDiffusionSchedulers} - {"EDMEulerScheduler"}
    assert {s.class_name for s in SCHEDULERS} == fits | {"LCMScheduler", "TCDScheduler", "SASolverScheduler"}


def test_json() -> None:
    rows = json.loads(json.dumps(schedulers.entries_json()))
    assert len(rows) == len(SCHEDULERS)
    row = next(r for r in rows if r["name"] == "dpm++2m-sde-karras")
    assert row["class"] == "DPMSolverMultistepScheduler"
    assert row["settings"]["algorithm_type"] == "sde-dpmsolver++" and row["settings"]["use_karras_sigmas"] is True
    assert (row["a1111"], row["schedule_type"], row["k_diffusion"]) == ("DPM++ 2M SDE", "Karras", "k_dpmpp_2m_sde_ka")
    assert all(r.keys() == row.keys() for r in rows)
    assert {"names", "needs", "available", "description"} <= row.keys()


def test_needs() -> None:
    needs = {s.name: s.needs for s in SCHEDULERS}
    assert needs["lms"] == ("scipy",) and needs["dpm++sde"] == ("torchsde",) and needs["euler"] == ()
    assert needs["dpm++sde-beta"] == ("torchsde", "scipy") and needs["euler-beta"] == ("scipy",)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    entry = find("LMS Karras")
    assert not schedulers.available(entry)
    with pytest.raises(UsageError, match="lms-karras needs scipy") as caught:
        schedulers.require(entry)
    assert caught.value.hint == "pip install 'sdcli[schedulers]'"
    schedulers.require(find("euler"))
    with pytest.raises(UsageError, match="needs scipy"):
        schedulers.build(entry, SD)


# Checks


@each
def test_what_an_entry_takes_is_what_its_class_takes(entry: Scheduler) -> None:
    accepted = inspect.signature(built(entry).step).parameters
    assert ("eta" in entry.takes) == ("eta" in accepted) == (entry.eta is not None)
    assert not (entry.noisy and not entry.seeded and "generator" not in accepted)


def test_eta_is_refused_where_it_would_be_ignored() -> None:
    with pytest.raises(UsageError, match="eta has no effect with scheduler euler") as caught:
        schedulers.check(find("euler"), eta=0.5)
    assert caught.value.hint == "eta is for ddim, tcd"
    schedulers.check(find("euler"), eta=0.0)
    schedulers.check(find("euler"), steps=1000)
    schedulers.check(find("ddim"), eta=1.0)


def test_too_few_steps() -> None:
    few = [s for s in SCHEDULERS if s.min_steps > 1]
    assert {s.name for s in few} >= {"pndm", "deis-karras", "sa-solver-exponential"}
    for entry in few:
        with pytest.raises(UsageError, match="needs at least 2 steps"):
            schedulers.check(entry, steps=1)
        # The reason: the noise is still there.
        assert (draw(entry, [0], 1, ideal(0.7, 0)) - 0.7).abs().max() > 1


def test_steps_beyond_the_class() -> None:
    for entry in SCHEDULERS:
        if entry.max_steps is None:
            continue
        with pytest.raises(UsageError, match=f"at most {entry.max_steps} steps"):
            schedulers.check(entry, steps=entry.max_steps + 1)
        schedulers.check(entry, steps=entry.max_steps)
        schedulers.build(entry, SD).set_timesteps(entry.max_steps)
        with pytest.raises(ValueError):
            schedulers.build(entry, SD).set_timesteps(entry.max_steps + 1)


# Drawing


@each
@pytest.mark.parametrize("steps", [25, 10])
def test_lands_on_the_picture(entry: Scheduler, steps: int) -> None:
    """Where the data are one point, every solver must end there. Some classes end at the lowest sigma of training
    instead of at 0: what is then left is noise of at most that size.
    """
    x = draw(entry, [0, 1], steps, ideal(0.7, 0))
    assert torch.isfinite(x).all()
    assert (x - 0.7).abs().max() < 5 * SIGMA_MIN
    assert (x - 0.7).mean().abs() < 0.01


@each
@pytest.mark.slow
def test_draws_the_distribution(entry: Scheduler) -> None:
    """At 25 steps the mean and the spread of Gaussian data come out. The solvers of ODEs start without the trace of
    the mean that the noisiest step of training still has (0.068 of it), and end 0.02 below.
    """
    x = draw(entry, [0, 1], 25, ideal(0.7, 0.5), shape=(4, 32, 32)).double()
    assert abs(float(x.mean()) - 0.7) < 0.04
    # LCM is for distilled models: it goes to the expected picture and adds noise again, which narrows any others'.
    assert (0.6 if entry.name == "lcm" else 0.7) < float(x.std()) / 0.5 < 1.3


@each
def test_any_number_of_steps(entry: Scheduler) -> None:
    for steps in (*range(entry.min_steps, 5), 7, 33):
        x = draw(entry, [0], steps, ideal(0.7, 0), shape=(1, 2, 2))
        assert torch.isfinite(x).all() and (x - 0.7).abs().max() < 5 * SIGMA_MIN, steps


def test_steps_that_round_to_one_timestep() -> None:
    """diffusers would begin at the second of two equal timesteps and run past the end."""
    for name, steps in (("dpm++2m-beta", 100), ("unipc-beta", 60), ("deis-beta", 33), ("dpm++2s-beta", 61)):
        scheduler = copy.deepcopy(built(find(name)))
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[0] == scheduler.timesteps[1] and scheduler.begin_index == 0
        assert "num_inference_steps" in inspect.signature(scheduler.set_timesteps).parameters
        assert (draw(find(name), [0], steps, ideal(0.7, 0), shape=(1, 2, 2)) - 0.7).abs().max() < 5 * SIGMA_MIN


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm-sgm-uniform", "euler-sgm-uniform", "heun-sgm-uniform"])
@pytest.mark.parametrize("steps", [61, 122])
def test_steps_that_trail_below_zero(name: str, steps: int) -> None:
    """diffusers adds a timestep of -1, which DDIM, DDPM and PNDM read as the noisiest."""
    x = draw(find(name), [0], steps, ideal(0.7, 0.5), shape=(4, 16, 16))
    assert abs(float(x.mean()) - 0.7) < 0.05 and 0.85 < float(x.std()) / 0.5 < 1.15
    timesteps = built(find(name)).timesteps
    if not name.startswith(("euler", "heun")):
        assert timesteps.min() >= 0 and len(timesteps) == steps + name.startswith("pndm")


@each
def test_neighbours_change_nothing(entry: Scheduler) -> None:
    """A picture of a batch is the picture alone: noise comes from its own generator, or its own seed."""
    both = draw(entry, [3, 8], 7, ideal(0.7, 0.5))
    for i, seed in enumerate((3, 8)):
        assert torch.equal(draw(entry, [seed], 7, ideal(0.7, 0.5))[0], both[i])


@each
def test_noisy_tells_the_truth(entry: Scheduler) -> None:
    """`noisy` is whether noise is drawn after the start."""
    drawn = []

    class Counting(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in ("randn", "randn_like", "normal"):
                drawn.append(func)
            return func(*args, **(kwargs or {}))

    start = torch.zeros(1, 1, 2, 2)
    scheduler = built(entry)
    scheduler.set_timesteps(3)
    extra: dict[str, Any] = {"eta": entry.eta} if entry.takes else {}
    x = start
    with Counting():
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t), t, x, **extra, return_dict=False)[0]
    assert bool(drawn) == entry.noisy


def test_eta_draws_noise() -> None:
    for name in ("ddim", "tcd"):
        still = draw(find(name), [0], 10, ideal(0.7, 0.5), eta=0.0)
        assert not torch.allclose(still, draw(find(name), [0], 10, ideal(0.7, 0.5), eta=0.8), atol=0.01)


@each
def test_half_precision(entry: Scheduler) -> None:
    x = draw(entry, [0], 25, ideal(0.7, 0), dtype=torch.bfloat16)
    assert x.dtype == torch.bfloat16
    assert (x.float() - 0.7).abs().max() < 0.15


@each
def test_calls(entry: Scheduler) -> None:
    scheduler = built(entry)
    scheduler.set_timesteps(20)
    # The last step of a second-order one is Euler's; PNDM takes one more to start.
    assert abs(len(scheduler.timesteps) - 20 * entry.calls) <= 1


# Building


@each
def test_the_model_keeps_its_noise_schedule(entry: Scheduler) -> None:
    config = {**SD, "beta_start": 0.002, "beta_end": 0.01, "beta_schedule": "linear", "prediction_type": "v_prediction"}
    scheduler = schedulers.build(entry, config, seeds=[0])
    assert scheduler.config.prediction_type == "v_prediction"
    assert torch.allclose(scheduler.betas.float(), torch.linspace(0.002, 0.01, 1000))


@each
def test_what_the_model_own_scheduler_was_set_to_does_not_matter(entry: Scheduler) -> None:
    """Not its class, solver, sigmas or spacing: the same name is the same scheduler for each model."""
    import diffusers

    own = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", algorithm_type="sde-dpmsolver++",
        use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1, final_sigmas_type="sigma_min",
        euler_at_final=True, solver_order=3,
    ).config  # fmt: skip
    a, b = built(entry), schedulers.build(entry, own, seeds=[0])
    for s in (a, b):
        s.set_timesteps(25)
    hidden = "_use_default_values"
    assert {k: v for k, v in a.config.items() if k != hidden} == {k: v for k, v in b.config.items() if k != hidden}
    assert torch.equal(a.timesteps, b.timesteps)


def test_starts_where_pure_noise_is() -> None:
    for entry in SCHEDULERS:
        if entry.name == "pndm":
            continue
        for steps in (4, 10, 25):
            scheduler = built(entry)
            scheduler.set_timesteps(steps)
            assert float(scheduler.timesteps[0]) >= 998, (entry.name, steps)


def test_pndm_is_the_model_own() -> None:
    import diffusers

    own = diffusers.PNDMScheduler.from_config(SD)
    built = schedulers.build(find("pndm"), SD)
    own.set_timesteps(25)
    built.set_timesteps(25)
    assert torch.equal(own.timesteps, built.timesteps) and own.final_alpha_cumprod == built.final_alpha_cumprod


def test_a_model_made_for_trailing_keeps_it() -> None:
    turbo = {**SD, "timestep_spacing": "trailing"}
    for name in ("euler", "euler-a", "dpm++2m", "pndm", "unipc"):
        assert schedulers.build(find(name), turbo).config.timestep_spacing == "trailing"
    # Karras sigmas go down to the lowest, which trailing steps would cut off.
    assert schedulers.build(find("euler-karras"), turbo).config.timestep_spacing == "linspace"


def test_zero_terminal_snr() -> None:
    config = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    for name in ("ddim", "euler", "dpm++2m", "unipc"):
        assert schedulers.build(find(name), config).config.rescale_betas_zero_snr is True
    with pytest.raises(UsageError, match="zero terminal SNR"):
        schedulers.build(find("heun"), config)


def test_models_without_betas_are_refused() -> None:
    for config in ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, {**SD, "use_flow_sigmas": True}):
        with pytest.raises(UsageError, match="betas"):
            schedulers.build(find("euler"), config)


def test_distillation_grid_is_the_model_own() -> None:
    assert schedulers.build(find("lcm"), {**SD, "original_inference_steps": 100}).config.original_inference_steps == 100


def test_seeded() -> None:
    assert {s.class_name for s in SCHEDULERS if s.seeded} == {"DPMSolverSDEScheduler"}
    with pytest.raises(ValueError, match="seeds"):
        schedulers.build(find("dpm++sde"), SD)


@each
def test_pipelines_have_nothing_to_mend(entry: Scheduler) -> None:
    """StableDiffusionPipeline changes, with a warning, a scheduler that clips or has another offset than 1."""
    config = built(entry).config
    assert getattr(config, "clip_sample", False) is False
    assert getattr(config, "steps_offset", 1) == 1


@each
def test_from_class_knows_what_was_built(entry: Scheduler) -> None:
    config = built(entry).config
    assert schedulers.from_class(entry.class_name, config) is entry


def test_from_class_of_models() -> None:
    found = schedulers.from_class("PNDMScheduler", SD)
    assert found is find("pndm")
    # SDXL's own: Euler's method, with a spacing that A1111 has no name for.
    sdxl = {**SD, "timestep_spacing": "leading", "use_karras_sigmas": False}
    found = schedulers.from_class("EulerDiscreteScheduler", sdxl)
    assert found is not None and (found.name, found.a1111, found.schedule_type) == ("euler", "Euler", None)
    assert schedulers.from_class("FlowMatchEulerDiscreteScheduler", {}) is None
    third = {**find("dpm++2m").settings, "solver_order": 3}
    assert schedulers.from_class("DPMSolverMultistepScheduler", third) is None
    assert schedulers.from_class("SASolverScheduler", {**SD, "use_beta_sigmas": True}) is None


# The algorithms that A1111's names stand for, from their papers, on the sigmas that diffusers chose.


def heun(d: Callable[[Any, float], Any], x: Any, s: list[float], i: int, _: list[Any]) -> Any:
    slope = (x - d(x, s[i])) / s[i]
    if s[i + 1] == 0:
        return x + slope * (s[i + 1] - s[i])
    there = x + slope * (s[i + 1] - s[i])
    return x + (slope + (there - d(there, s[i + 1])) / s[i + 1]) / 2 * (s[i + 1] - s[i])


def euler(d: Callable[[Any, float], Any], x: Any, s: list[float], i: int, _: list[Any]) -> Any:
    return x + (x - d(x, s[i])) / s[i] * (s[i + 1] - s[i])


def dpm2(d: Callable[[Any, float], Any], x: Any, s: list[float], i: int, _: list[Any]) -> Any:
    if s[i + 1] == 0:
        return euler(d, x, s, i, _)
    mid = (s[i] * s[i + 1]) ** 0.5
    there = x + (x - d(x, s[i])) / s[i] * (mid - s[i])
    return x + (there - d(there, mid)) / mid * (s[i + 1] - s[i])


def dpmpp_2m(d: Callable[[Any, float], Any], x: Any, s: list[float], i: int, past: list[Any]) -> Any:
    clean = d(x, s[i])
    past.append(clean)
    if s[i + 1] == 0:
        return clean
    h = numpy.log(s[i] / s[i + 1])
    if len(past) > 1:
        r = numpy.log(s[i - 1] / s[i]) / h
        clean = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * past[-2]
    return s[i + 1] / s[i] * x - numpy.expm1(-h) * clean


@pytest.mark.parametrize(
    ("name", "step"), [("euler", euler), ("heun", heun), ("dpm2", dpm2), ("dpm++2m", dpmpp_2m)]
)  # fmt: skip
@pytest.mark.parametrize("spacing", ["", "-karras", "-exponential", "-sgm-uniform"])
def test_the_algorithm_is_what_its_name_says(name: str, step: Callable[..., Any], spacing: str) -> None:
    entry = find(name + spacing)
    network = ideal(0.7, 0.5)
    got = draw(entry, [5], 12, network)

    scheduler = schedulers.build(entry, SD)
    scheduler.set_timesteps(12)
    sigmas = list(dict.fromkeys(float(s) for s in scheduler.sigmas))

    def clean(x: Any, sigma: float) -> Any:
        scaled = x / (1 + sigma**2) ** 0.5
        return x - sigma * network(scaled, numpy.interp(numpy.log(sigma), LOG_SIGMA, numpy.arange(1000)))

    x = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(5)).double()
    # DPM-Solver++ keeps x / sqrt(1 + sigma^2), and starts from unit noise; the others start from noise of size sigma.
    x = x * ((1 + sigmas[0] ** 2) ** 0.5 if name == "dpm++2m" else sigmas[0])
    past: list[Any] = []
    for i in range(len(sigmas) - 1):
        x = step(clean, x, sigmas, i, past)
    # The network sees whole timesteps in dpm++2m, the nearest to the sigmas.
    assert torch.allclose(got.double(), x, atol=0.02 if name == "dpm++2m" else 1e-3)
