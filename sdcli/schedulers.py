"""Every name that a scheduler goes by -> a diffusers class and its settings.

One table: `_FAMILIES` has a row for each algorithm, and each way of spacing its steps (Karras, exponential, beta,
SGM uniform) that its class really supports gives one more entry of `SCHEDULERS`. The mapping is that of diffusers'
documentation (api/schedulers/overview), with these exceptions:

* `DPM++ SDE` is DPMSolverSDEScheduler, the port of k-diffusion's `sample_dpmpp_sde`. The documentation names
  DPMSolverSinglestepScheduler, which is another solver and draws no noise unless told to.
* What the documentation calls "very similar" (DPM++ 2S a) is not passed off as the same: the name is refused.
* UniPC stays without an A1111 name, as in the documentation: A1111's is of order 3 with `bh1`, diffusers' of order 2
  with `bh2`.

A model's configuration mixes what the model was trained with (betas, kind of prediction) with how its own scheduler
was set up (spacing, solver). `build` takes the former only: `from_config` would carry over the latter, or drop it,
depending on whether it happened to be the default of the old class.

Spacing is each family's own choice:

* linspace for the k-diffusion ones: starts at the last step of training, which is where pure noise is; "leading", which
  SDXL's configuration would hand on, starts lower the fewer the steps (sigma 5.9 instead of 14.6 at 5 steps).
* trailing for DDIM and DDPM, for the same reason; linspace does not fit DDIM, which steps by 1000 // steps whatever
  the spacing. Measured on Gaussian data of mean 0.7 at 5 steps, DDIM's mean is off by 0.014 with trailing, 0.044 with
  leading and 0.102 with linspace.
* leading for PNDM: it is how Stable Diffusion sets it up and what A1111's PLMS does, so that asking for it by its name
  changes nothing; `pndm-sgm-uniform` is for few steps.
* LCM and TCD take theirs from the steps that the model was distilled with.

A model whose own configuration says "trailing" was made for it (turbo, zero terminal SNR), and keeps it.

Left out of the classes that fit: EDMEulerScheduler (another parametrisation: it never sees the model's betas); solvers
of order 3 by SDE (in diffusers 0.42.1 the last coefficient of that step tends to -1 instead of 0 as the step shrinks);
`dpmsolver` and `sde-dpmsolver` (deprecated in favour of `++`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
from msgspec.structs import replace

from sdcli.errors import UsageError, nearest

EXTRA_HINT = "pip install 'sdcli[schedulers]'"


class Scheduler(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the table.

    `a1111` and `schedule_type` are what A1111 calls the same algorithm and the same spacing, None where it has none;
    `k_diffusion` is A1111's alias after k-diffusion's function. `needs` are packages beyond diffusers', `takes` the
    settings of a call that have an effect, `eta` the value of that setting that the authors use. `noisy`: draws fresh
    noise in each step at that eta. `seeded`: its noise comes from seeds given to `build`, not from the call's
    generators. `calls` is how often the network runs in a step; with steps outside `min_steps` and `max_steps` the
    class fails or never takes the noise away.
    """

    name: str
    class_name: str
    settings: Mapping[str, object] = msgspec.field(default_factory=dict)
    a1111: str | None = None
    schedule_type: str | None = None
    k_diffusion: str | None = None
    names: tuple[str, ...]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    eta: float | None = None
    noisy: bool = False
    seeded: bool = False
    calls: int = 1
    min_steps: int = 1
    max_steps: int | None = None
    description: str
    paper: str


class _Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A way of spacing the steps. `suffixes` are its spellings after a name; the first is the canonical one."""

    suffixes: tuple[str, ...]
    label: str
    a1111: str | None
    k_diffusion: str | None
    settings: Mapping[str, object]
    needs: tuple[str, ...] = ()


_LINSPACE: Mapping[str, object] = {"timestep_spacing": "linspace"}

_KINDS = {
    "karras": _Kind(
        suffixes=("karras", "ka", "k"), label="Karras sigmas", a1111="Karras", k_diffusion="_ka",
        settings={"use_karras_sigmas": True},
    ),
    "exponential": _Kind(
        suffixes=("exponential", "exp"), label="exponential sigmas", a1111="Exponential", k_diffusion="_exp",
        settings={"use_exponential_sigmas": True},
    ),
    "beta": _Kind(
        suffixes=("beta",), label="beta sigmas", a1111="Beta", k_diffusion=None,
        settings={"use_beta_sigmas": True}, needs=("scipy",),
    ),
    "lu": _Kind(
        suffixes=("lu", "lulambdas"), label="even steps of log-SNR", a1111=None, k_diffusion=None,
        settings={"use_lu_lambdas": True},
    ),
    "sgm-uniform": _Kind(
        suffixes=("sgm-uniform", "trailing", "simple"), label="trailing steps", a1111="SGM Uniform", k_diffusion=None,
        settings={"timestep_spacing": "trailing"},
    ),
}  # fmt: skip

_PLAIN = ("", "uniform", "normal")

_SIGMAS = ("karras", "exponential", "beta")
_ALL = (*_SIGMAS, "sgm-uniform")


class _Family(msgspec.Struct, frozen=True, kw_only=True):
    """One algorithm: the plain entry, and what its variants share. `functions` are k-diffusion's, without `sample_`;
    `main`: the class's own name means this one; `automatic`: what A1111's schedule type "Automatic" means for it, and
    `own_spacing`: A1111's sampler heeds no schedule type. `plain` are the suffixes that mean no variant. `min_steps` is
    by variant, None for the plain one.
    """

    name: str
    class_name: str
    settings: Mapping[str, object] = msgspec.field(default_factory=dict)
    variants: tuple[str, ...] = ()
    a1111: str | None = None
    schedule_type: str | None = "Uniform"
    automatic: str | None = None
    functions: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    plain: tuple[str, ...] = _PLAIN
    own_spacing: bool = False
    main: bool = True
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    eta: float | None = None
    noisy: bool = False
    seeded: bool = False
    calls: int = 1
    min_steps: Mapping[str | None, int] = msgspec.field(default_factory=dict)
    max_steps: int | None = None
    refuses: Mapping[str, str] = msgspec.field(default_factory=dict)
    description: str
    paper: str

    @property
    def stems(self) -> tuple[str, ...]:
        """Every spelling of the family, without a suffix for the spacing."""
        classes = (self.class_name, self.class_name.removesuffix("Scheduler")) if self.main else ()
        functions = [s for f in self.functions for s in (f"k_{f}", f"sample_{f}", f)]
        return (self.name, *filter(None, [self.a1111]), *classes, *functions, *self.aliases)


_KARRAS_2022 = "arXiv:2206.00364"
_K_DIFFUSION = "github.com/crowsonkb/k-diffusion"
_DPMPP = "arXiv:2211.01095"
_MULTISTEP: Mapping[str, object] = {"solver_order": 2, "solver_type": "midpoint", **_LINSPACE}
# Otherwise the class switches it on by itself and says so in a warning, for a solver that ends at sigma 0.
_SINGLESTEP: Mapping[str, object] = {"solver_order": 2, "lower_order_final": True}
# These classes write the lowest sigma twice: their last step stands still, and a single step does nothing at all.
_REPEATED: Mapping[str | None, int] = {"karras": 2, "exponential": 2, "beta": 2}
# diffusers' linspace for these leaves out the last of steps + 1 points, which is what A1111 calls SGM Uniform.
_SGM = "SGM Uniform"

_FAMILIES = (
    _Family(
        name="euler", class_name="EulerDiscreteScheduler", settings=_LINSPACE, variants=_ALL, a1111="Euler",
        functions=("euler",), description="Euler's method; plain, and good from 20 steps on", paper=_KARRAS_2022,
    ),
    _Family(
        name="euler-a", class_name="EulerAncestralDiscreteScheduler", settings=_LINSPACE, variants=("sgm-uniform",),
        a1111="Euler a", functions=("euler_ancestral", "euler_a"), noisy=True,
        description="Euler's method with fresh noise in each step; never settles", paper=_K_DIFFUSION,
    ),
    _Family(
        name="heun", class_name="HeunDiscreteScheduler", settings=_LINSPACE, variants=_ALL, a1111="Heun",
        functions=("heun",), calls=2, description="Heun's method, second order", paper=_KARRAS_2022,
    ),
    _Family(
        name="lms", class_name="LMSDiscreteScheduler", settings=_LINSPACE, variants=_ALL, a1111="LMS",
        functions=("lms",), needs=("scipy",), description="linear multistep, fourth order", paper=_K_DIFFUSION,
    ),
    # Of whatever type, A1111 drops the last sigma but one for DPM2 and DPM2 a; diffusers and k-diffusion do not.
    _Family(
        name="dpm2", class_name="KDPM2DiscreteScheduler", settings=_LINSPACE, variants=_ALL, a1111="DPM2",
        automatic="karras", functions=("dpm_2",), calls=2,
        description="DPM-Solver-2 as in k-diffusion", paper="arXiv:2206.00927",
    ),
    _Family(
        name="dpm2-a", class_name="KDPM2AncestralDiscreteScheduler", settings=_LINSPACE, variants=_ALL,
        a1111="DPM2 a", automatic="karras", functions=("dpm_2_ancestral", "dpm_2_a"), noisy=True,
        calls=2, description="DPM-Solver-2 with fresh noise in each step", paper="arXiv:2206.00927",
    ),
    _Family(
        name="dpm++2m", class_name="DPMSolverMultistepScheduler",
        settings={"algorithm_type": "dpmsolver++", **_MULTISTEP}, variants=(*_ALL, "lu"), a1111="DPM++ 2M",
        schedule_type=_SGM, automatic="karras", functions=("dpmpp_2m",), aliases=("DPM-Solver++",),
        description="DPM-Solver++, multistep, second order", paper=_DPMPP,
    ),
    _Family(
        name="dpm++2m-sde", class_name="DPMSolverMultistepScheduler",
        settings={"algorithm_type": "sde-dpmsolver++", **_MULTISTEP}, variants=_ALL, a1111="DPM++ 2M SDE",
        schedule_type=_SGM, automatic="exponential", functions=("dpmpp_2m_sde",), main=False, noisy=True,
        description="DPM-Solver++, multistep, with fresh noise in each step", paper=_DPMPP,
    ),
    _Family(
        name="dpm++2m-sde-heun", class_name="DPMSolverMultistepScheduler",
        settings={"algorithm_type": "sde-dpmsolver++", **_MULTISTEP, "solver_type": "heun"},
        variants=("karras", "exponential", "sgm-uniform"), a1111="DPM++ 2M SDE Heun", schedule_type=_SGM,
        automatic="exponential", functions=("dpmpp_2m_sde_heun",), main=False, noisy=True,
        # Measured on Gaussian data at 25 steps: 1.6 times the spread that the picture should have.
        refuses={"beta": "Heun's correction leaves strong noise in the picture with beta sigmas"},
        description="dpm++2m-sde with Heun's correction", paper=_DPMPP,
    ),
    _Family(
        name="dpm++2s", class_name="DPMSolverSinglestepScheduler",
        settings={"algorithm_type": "dpmsolver++", **_SINGLESTEP}, variants=_SIGMAS, schedule_type=None,
        aliases=("dpmpp_2s",), description="DPM-Solver++, singlestep, second order", paper=_DPMPP,
    ),
    _Family(
        name="dpm++2s-sde", class_name="DPMSolverSinglestepScheduler",
        settings={"algorithm_type": "sde-dpmsolver++", **_SINGLESTEP}, variants=_SIGMAS, schedule_type=None,
        aliases=("dpmpp_2s_sde",), main=False, noisy=True,
        description="DPM-Solver++, singlestep, with fresh noise in each step", paper=_DPMPP,
    ),
    _Family(
        name="dpm++sde", class_name="DPMSolverSDEScheduler", settings=_LINSPACE, variants=_ALL, a1111="DPM++ SDE",
        automatic="karras", functions=("dpmpp_sde",), needs=("torchsde",), noisy=True, seeded=True, calls=2,
        description="DPM-Solver++ along a Brownian path", paper=_DPMPP,
    ),
    _Family(
        name="deis", class_name="DEISMultistepScheduler", settings=_LINSPACE, variants=_ALL,
        schedule_type=None, min_steps=_REPEATED,
        description="exponential integrator, multistep, second order", paper="arXiv:2204.13902",
    ),
    _Family(
        name="unipc", class_name="UniPCMultistepScheduler", settings=_LINSPACE, variants=_ALL, schedule_type=None,
        aliases=("uni_pc",), description="predictor-corrector, second order; good at few steps",
        paper="arXiv:2302.04867",
    ),
    _Family(
        name="sa-solver", class_name="SASolverScheduler", settings=_LINSPACE,
        variants=("karras", "exponential", "sgm-uniform"), schedule_type=None, min_steps=_REPEATED, noisy=True,
        # Measured on Gaussian data at 25 steps: 1.8 times the spread that the picture should have, at 10 steps 14.
        refuses={"beta": "SASolverScheduler leaves strong noise in the picture with beta sigmas"},
        description="stochastic Adams method", paper="arXiv:2309.05019",
    ),
    # clip_sample is for pixels in [-1, 1]; latents are not. With trailing steps the last one ends at the clean picture.
    _Family(
        name="ddim", class_name="DDIMScheduler",
        settings={"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True},
        a1111="DDIM", schedule_type=None, own_spacing=True, plain=("", *_KINDS["sgm-uniform"].suffixes),
        takes=("eta",), eta=0.0,
        description="the first fast one; eta 0 draws no noise, 1 as much as DDPM", paper="arXiv:2010.02502",
    ),
    _Family(
        name="ddpm", class_name="DDPMScheduler", settings={"timestep_spacing": "trailing", "clip_sample": False},
        schedule_type=None, plain=("", *_KINDS["sgm-uniform"].suffixes), noisy=True,
        description="the training process run backwards; needs many steps", paper="arXiv:2006.11239",
    ),
    # As Stable Diffusion's own configuration has it. The Runge-Kutta steps would cost 9 more calls of the network.
    _Family(
        name="pndm", class_name="PNDMScheduler",
        settings={
            "timestep_spacing": "leading", "steps_offset": 1, "skip_prk_steps": True, "set_alpha_to_one": False,
        },
        variants=("sgm-uniform",), a1111="PLMS", schedule_type=None, own_spacing=True, plain=("", "leading"),
        # A single leading step is the last one, at the end of the noise.
        min_steps={None: 2}, description="pseudo linear multistep, Stable Diffusion's own", paper="arXiv:2202.09778",
    ),
    _Family(
        name="lcm", class_name="LCMScheduler", settings={"clip_sample": False}, a1111="LCM", schedule_type=None,
        aliases=("k_lcm",), plain=("",), noisy=True, max_steps=50,
        description="for models distilled to latent consistency, 2 to 8 steps", paper="arXiv:2310.04378",
    ),
    _Family(
        name="tcd", class_name="TCDScheduler", settings={"clip_sample": False}, schedule_type=None, plain=("",),
        takes=("eta",), eta=0.3, noisy=True, max_steps=50,
        description="for models distilled to trajectory consistency; eta is the paper's gamma",
        paper="arXiv:2402.19159",
    ),
)  # fmt: skip

# What is known by name elsewhere and is not here, and why.
_ABSENT = (
    (("DPM++ 2S a", "dpmpp_2s_ancestral"), "diffusers has no DPM++ 2S a", "dpm++2s is the same without fresh noise"),
    (
        ("DPM++ 3M SDE", "dpmpp_3m_sde"),
        "diffusers has no DPM++ 3M SDE that is right (a coefficient of its third-order SDE step is)",
        "the nearest is dpm++2m-sde",
    ),
    (("DPM fast", "DPM adaptive", "dpm_ad"), "diffusers has no DPM fast or DPM adaptive", "the nearest is dpm++2m"),
    (("Restart",), "diffusers has no Restart", "the nearest is heun"),
    (("DDIM CFG++",), "diffusers has no DDIM CFG++", "the nearest is ddim"),
    (
        ("EDMEulerScheduler", "EDMEuler", "EDMDPMSolverMultistepScheduler", "EDMDPMSolverMultistep"),
        "EDM's schedulers are for models of EDM's parametrisation, not Stable Diffusion's",
        "the nearest are euler-karras and dpm++2m-karras",
    ),
    (
        ("FlowMatchEulerDiscreteScheduler", "FlowMatchEulerDiscrete", "FlowMatchHeunDiscreteScheduler"),
        "flow matching is for models that were trained with it, not Stable Diffusion's",
        "the nearest are euler and heun",
    ),
)  # fmt: skip
_ABSENT_KINDS = {
    "polyexponential": "Polyexponential", "alignyoursteps": "Align Your Steps", "ays": "Align Your Steps",
    "kloptimal": "KL Optimal", "karrasexponential": "Karras Exponential",
}  # fmt: skip


def _entries(family: _Family) -> Iterator[tuple[str | None, Scheduler]]:
    """Yield the plain entry of a family, then one for each way of spacing that its class supports."""
    shared: dict[str, Any] = {
        "class_name": family.class_name, "a1111": family.a1111, "takes": family.takes, "eta": family.eta,
        "noisy": family.noisy, "seeded": family.seeded, "calls": family.calls, "max_steps": family.max_steps,
        "paper": family.paper,
    }  # fmt: skip
    k_name = f"k_{family.functions[-1]}" if family.functions else None
    listed = (family.name, family.class_name if family.main else None, family.a1111, k_name, *family.aliases)
    yield None, Scheduler(
        name=family.name, settings=family.settings, schedule_type=family.schedule_type, k_diffusion=k_name,
        names=tuple(dict.fromkeys(n for n in listed if n)), needs=family.needs, description=family.description,
        min_steps=family.min_steps.get(None, 1), **shared,
    )  # fmt: skip
    for key in family.variants:
        kind = _KINDS[key]
        name = f"{family.name}-{key}"
        schedule_type = kind.a1111 if family.a1111 and not family.own_spacing else None
        label = f"{family.a1111} {schedule_type}" if schedule_type else None
        k_variant = f"{k_name}{kind.k_diffusion}" if k_name and kind.k_diffusion else None
        yield key, Scheduler(
            name=name, settings={**family.settings, **kind.settings}, schedule_type=schedule_type,
            k_diffusion=k_variant, names=tuple(n for n in (name, label, k_variant) if n),
            needs=tuple(dict.fromkeys((*family.needs, *kind.needs))),
            description=f"{family.description}; {kind.label}", min_steps=family.min_steps.get(key, 1), **shared,
        )  # fmt: skip


_TABLE = tuple((family, kind, entry) for family in _FAMILIES for kind, entry in _entries(family))

SCHEDULERS: tuple[Scheduler, ...] = tuple(entry for _, _, entry in _TABLE)


def _fold(name: str) -> str:
    """Return what spellings of one name have in common: `DPM++ 2M Karras` and `dpmpp_2m_karras` are one."""
    return "".join(c for c in name.casefold().replace("+", "p") if c.isalnum())


@cache
def spellings() -> Mapping[str, Scheduler]:
    """Return every spelling, folded, and its entry. Two entries with one spelling are an error in the table."""
    found: dict[str, Scheduler] = {}
    for family, kind, entry in _TABLE:
        suffixes = _KINDS[kind].suffixes if kind else family.plain
        texts = [f"{stem} {suffix}" for stem in family.stems for suffix in suffixes]
        for text in (*texts, *entry.names):
            if found.setdefault(_fold(text), entry) is not entry:
                raise AssertionError(f"{text!r} is both {found[_fold(text)].name} and {entry.name}")
    return found


def find(name: str) -> Scheduler:
    """Return the entry of a name in any spelling, whether or not its packages are there.

    Raises UsageError: for an unknown name with the nearest known ones, for a known scheduler without that spacing with
    the spacings that it has.
    """
    folded = _fold(name)
    if entry := spellings().get(folded):
        return entry
    _refuse_absent(folded)
    _refuse_variant(folded)
    # Not every spelling: three of one scheduler would leave no room for another.
    known = [*(s.name for s in SCHEDULERS), *(f.class_name for f in _FAMILIES)]
    raise UsageError(f"unknown scheduler {name!r}{nearest(name, known)}", "`sdcli schedulers` lists them all")


def _refuse_absent(folded: str) -> None:
    suffixes = ["", *(_fold(s) for k in _KINDS.values() for s in k.suffixes), *_PLAIN]
    for names, reason, hint in _ABSENT:
        stems = [p + _fold(n) for n in names for p in ("", "k", "sample")]
        if folded in {stem + suffix for stem in stems for suffix in suffixes}:
            raise UsageError(reason, hint)


def _refuse_variant(folded: str) -> None:
    for family in _FAMILIES:
        for stem in map(_fold, family.stems):
            if not folded.startswith(stem):
                continue
            rest = folded[len(stem) :]
            has = ", ".join(e.name for f, _, e in _TABLE if f is family)
            if rest in _ABSENT_KINDS:
                raise UsageError(f"diffusers has no {_ABSENT_KINDS[rest]} schedule", f"there is {has}")
            for key, kind in _KINDS.items():
                if rest in map(_fold, kind.suffixes):
                    ignored = f"{family.class_name} would ignore {', '.join(kind.settings)}"
                    reason = family.refuses.get(key, ignored)
                    raise UsageError(f"{family.name} has no {kind.suffixes[0]} variant: {reason}", f"there is {has}")


def from_a1111(sampler: str, schedule_type: str | None = None) -> Scheduler:
    """Return the entry that A1111's "Sampler" and "Schedule type" mean.

    Without a schedule type (A1111 before 1.9) the sampler's name says all; "Automatic" is each sampler's own.
    """
    entry = find(sampler)
    family, kind = next((f, k) for f, k, e in _TABLE if e is entry)
    if schedule_type is None or kind or family.own_spacing or not family.variants:
        return entry
    if _fold(schedule_type) == "automatic":
        return find(f"{family.name} {family.automatic or ''}")
    return find(f"{family.name} {schedule_type}")


def missing(scheduler: Scheduler) -> tuple[str, ...]:
    """Return the packages that a scheduler needs and that are not installed."""
    from importlib.util import find_spec

    return tuple(p for p in scheduler.needs if find_spec(p) is None)


def available(scheduler: Scheduler) -> bool:
    """Whether all packages that a scheduler needs are installed."""
    return not missing(scheduler)


def require(scheduler: Scheduler) -> None:
    """Raise UsageError when a package that a scheduler needs is not installed."""
    if lacking := missing(scheduler):
        raise UsageError(f"scheduler {scheduler.name} needs {' and '.join(lacking)}", EXTRA_HINT)


def check(scheduler: Scheduler, *, eta: float | None = None, steps: int | None = None) -> None:
    """Raise UsageError for settings of a call that the scheduler would ignore or cannot do."""
    if eta and "eta" not in scheduler.takes:
        takers = ", ".join(s.name for s in SCHEDULERS if "eta" in s.takes)
        raise UsageError(f"eta has no effect with scheduler {scheduler.name}", f"eta is for {takers}")
    if steps is None:
        return
    if steps < scheduler.min_steps:
        raise UsageError(f"scheduler {scheduler.name} needs at least {scheduler.min_steps} steps", "raise --steps")
    if scheduler.max_steps is not None and steps > scheduler.max_steps:
        raise UsageError(
            f"scheduler {scheduler.name} takes at most {scheduler.max_steps} steps, not {steps}",
            "it is for distilled models, which need 2 to 8",
        )


# What a configuration says of the model itself: its training, and the distillation's grid for LCM and TCD.
_OF_THE_MODEL = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr", "original_inference_steps", "timestep_scaling",
)  # fmt: skip


def build(scheduler: Scheduler, config: Mapping[str, Any], seeds: Sequence[int] | None = None) -> Any:
    """Return the diffusers scheduler of an entry for a model whose own scheduler has the configuration `config`.

    `seeds` has one for each picture of the pack; only a `seeded` scheduler uses it, and must have it, since its noise
    would else be different each time. Raises UsageError for a missing package, and for a model that the scheduler
    cannot draw with.
    """
    import inspect

    require(scheduler)
    if "beta_schedule" not in config or config.get("use_flow_sigmas"):
        raise UsageError(
            f"scheduler {scheduler.name} is for models trained on a noise schedule of betas, which this one is not",
            "leave the scheduler out: the model has its own",
        )
    import diffusers

    cls = getattr(diffusers, scheduler.class_name)
    known = inspect.signature(cls.__init__).parameters
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        raise UsageError(
            f"scheduler {scheduler.name} cannot draw with a model of zero terminal SNR", "ddim, euler and dpm++2m can"
        )
    settings: dict[str, Any] = {k: config[k] for k in _OF_THE_MODEL if k in config and k in known}
    settings |= scheduler.settings
    own_sigmas = any(k.startswith("use_") for k in scheduler.settings)
    if config.get("timestep_spacing") == "trailing" and "timestep_spacing" in settings and not own_sigmas:
        settings["timestep_spacing"] = "trailing"
    if scheduler.seeded:
        if seeds is None:
            raise ValueError(f"{scheduler.name} needs the pictures' seeds")
        settings["noise_sampler_seed"] = list(seeds)
    if "steps_offset" in known and "steps_offset" not in settings:
        # Only "leading" reads it. Stable Diffusion's pipelines insist on 1, and change and complain about any other.
        settings["steps_offset"] = 1
    return _mended(cls(**settings))


def renew(own: Any) -> Any:
    """Return a fresh copy of a model's own scheduler: they keep state from one picture to the next."""
    return _mended(type(own).from_config(own.config))


def _mended(scheduler: Any) -> Any:
    """Mend two faults of diffusers 0.42.1 in where a run begins and ends, and return the scheduler.

    Where rounding makes the first two timesteps equal (beta sigmas, from 32 steps on), the first is looked up, the
    second found, and the run goes past the end of the table. Telling the index avoids the search; pipelines that begin
    later (picture to picture) tell theirs after this.

    Trailing steps are counted down in floating point, and some numbers of steps (61, 103, 121, 122 ...) get one too
    many, -1. DDIM, DDPM and PNDM take it as an index, and so the noisiest for the cleanest; for the others it is one
    more step at hardly any noise.
    """
    from functools import wraps
    from types import MethodType

    # Pipelines read the signature to see what may be passed.
    @wraps(type(scheduler).set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        type(self).set_timesteps(self, *args, **kwargs)
        if hasattr(self, "set_begin_index"):
            self.set_begin_index(0)
        elif self.timesteps[-1] < 0:
            self.timesteps = self.timesteps[:-1]

    # A bound method, and no closure over the scheduler, so that a copy of it sets its own.
    scheduler.set_timesteps = MethodType(set_timesteps, scheduler)
    return scheduler


def from_class(class_name: str, config: Mapping[str, Any]) -> Scheduler | None:
    """Return the entry that describes a model's own scheduler, None where none does.

    Where only the spacing differs from the entry's, the entry comes without a `schedule_type`.
    """
    entries = [s for s in SCHEDULERS if s.class_name == class_name]
    # What tells the entries of a class apart: the solver and the sigmas. A flag that is not there is off.
    keys = {k for s in entries for k in s.settings if k.startswith(("algorithm_", "solver_"))}
    keys |= {k for kind in _KINDS.values() for k in kind.settings if k.startswith("use_")}
    alike = [s for s in entries if all((config.get(k) or False) == s.settings.get(k, False) for k in keys)]
    spacing = config.get("timestep_spacing")
    for s in alike:
        if spacing is None or s.settings.get("timestep_spacing", spacing) == spacing:
            return s
    return replace(alike[0], schedule_type=None) if alike else None


def entries_json() -> list[dict[str, Any]]:
    """Return the table as `sdcli schedulers --json` prints it, an object an entry."""
    return [
        {
            "name": s.name, "class": s.class_name, "settings": dict(s.settings), "a1111": s.a1111,
            "schedule_type": s.schedule_type, "k_diffusion": s.k_diffusion, "names": list(s.names),
            "needs": list(s.needs), "available": available(s), "takes": list(s.takes), "eta": s.eta, "noisy": s.noisy,
            "calls": s.calls, "min_steps": s.min_steps, "max_steps": s.max_steps, "description": s.description,
            "paper": s.paper,
        }
        for s in SCHEDULERS
    ]  # fmt: skip
