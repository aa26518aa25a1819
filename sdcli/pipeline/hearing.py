"""What a listener hears of each step: the latents, and what the network made of them.

A latent is a mixture, `before = signal * clean + sigma * noise`, and the network says one part of it, from which the others
follow (arXiv 2206.00364, table 1; 2202.00512, section 4). It was asked by the pass itself, and is not asked again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import msgspec

# What a listener's `hears` may name.
ESTIMATES = "estimates"

# How schedulers hold latents. By the share of each that is left: signal^2 + sigma^2 = 1, looked up by the timestep ...
BY_TIMESTEP = {
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler", "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
}  # fmt: skip
# ... or made of the step's sigma; with noise added, signal = 1; on straight lines, signal = 1 - sigma.
BY_SHARE = {
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler",
}  # fmt: skip
BY_SIGMA = {
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler",
}  # fmt: skip
BY_FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What a listener hears after each step: its number from 1, of how many, the timestep, and the latents
    (pack, channels, height / 8, width / 8; as the family packs them) as they are then.

    A listener whose `hears` has "estimates" hears besides: `before`, the latents that the step began with, `noise` and
    `clean`, the parts that they consist of by the network's guided word (all (pack, channels, height / 8, width / 8)), and the
    numbers for which before = signal * clean + sigma * noise. They are None where the family packs its latents, or its
    scheduler holds them in a way that is not known. A scheduler that asks the network twice is told of as two steps.
    """

    number: int
    of: int
    timestep: float
    latents: Any
    before: Any = None
    noise: Any = None
    clean: Any = None
    sigma: float | None = None
    signal: float | None = None

    @property
    def unit(self) -> Any:
        """The latents that it began with at the size that the autoencoder knows: some schedulers hold them larger."""
        assert self.signal is not None and self.sigma is not None
        return self.before / (self.signal**2 + self.sigma**2) ** 0.5


Listener = Callable[[Step], None]


class Together:
    """Several listeners as one."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self.listeners = tuple(listeners)
        self.hears = frozenset[str]().union(*(getattr(one, "hears", ()) for one in listeners))

    def __call__(self, step: Step) -> None:
        for listener in self.listeners:
            listener(step)


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a scheduler's `step`, taken apart: what `Step` has besides."""

    before: Any
    noise: Any
    clean: Any
    sigma: float
    signal: float


class Hearing:
    """Holds what the last step of a scheduler was told, until it is asked for."""

    def __init__(self) -> None:
        self.last: Heard | None = None

    def step(self, *, number: int, of: int, timestep: float, latents: Any) -> Step:
        """Return what a listener hears of the step that has just been made."""
        last, self.last = self.last, None
        more = {} if last is None else msgspec.structs.asdict(last)
        return Step(number=number, of=of, timestep=timestep, latents=latents, **more)


@contextmanager
def hearing(scheduler: Any, listener: Listener | None) -> Iterator[Hearing]:
    """Hear what a scheduler is told, while it is entered and if the listener hears estimates; else nothing is touched."""
    found = Hearing()
    if listener is None or ESTIMATES not in getattr(listener, "hears", ()):
        yield found
        return
    own, takes = scheduler.step, inspect.signature(scheduler.step)

    # Pipelines read the signature to see what may be passed.
    @wraps(own)
    def step(*args: Any, **kwargs: Any) -> Any:
        told = takes.bind(*args, **kwargs).arguments
        # Before the step is made, which counts it.
        found.last = parts(scheduler, told["model_output"], told["timestep"], told["sample"])
        return own(*args, **kwargs)

    before = vars(scheduler).get("step")
    scheduler.step = step
    try:
        yield found
    finally:
        if before is None:
            del scheduler.step
        else:
            scheduler.step = before


def parts(scheduler: Any, output: Any, timestep: Any, sample: Any) -> Heard | None:
    """Return what latents consist of by a network's output, None where that is not known.

    `sample` and `output` are what the scheduler's `step` is given at `timestep`, before it is: (pack, channels, height, width).
    """
    if getattr(sample, "ndim", 0) != 4:
        return None
    found = coefficients(scheduler, timestep)
    if found is None:
        return None
    signal, sigma = found
    x, given = sample.float(), output.float()
    if given.shape[1] == 2 * x.shape[1]:
        given = given[:, : x.shape[1]]  # The other half is the variance (arXiv 2102.09672).
    flows = type(scheduler).__name__ in BY_FLOW
    kind = scheduler.config.get("prediction_type", "flow_prediction" if flows else "epsilon")
    found = split(kind, x, given, signal, sigma)
    return None if found is None else Heard(before=sample, noise=found[0], clean=found[1], sigma=sigma, signal=signal)


def split(kind: str, x: Any, said: Any, signal: float, sigma: float) -> tuple[Any, Any] | None:
    """Return the noise and the clean latents that `x` consists of by what a network said, None where that does not follow."""
    size = (signal**2 + sigma**2) ** 0.5
    if kind == "epsilon" and signal:
        return said, (x - sigma * said) / signal
    if kind == "v_prediction":
        # It is of latents of unit size, whatever the scheduler holds.
        return (sigma * x / size + signal * said) / size, (signal * x / size - sigma * said) / size
    if kind in ("sample", "original_sample") and sigma:
        return (x - signal * said) / sigma, said
    if kind == "flow_prediction":
        return x + signal * said, x - sigma * said
    return None


def coefficients(scheduler: Any, timestep: Any) -> tuple[float, float] | None:
    """Return (signal, sigma) of the latents that a scheduler's next step begins with, None where that is not known."""
    import torch

    name = type(scheduler).__name__
    if name in BY_TIMESTEP:
        left = float(scheduler.alphas_cumprod[int(timestep)])
        return left**0.5, (1 - left) ** 0.5
    if name not in BY_SHARE | BY_SIGMA | BY_FLOW:
        return None
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    if name in BY_SIGMA:
        # Between two steps some have a sigma of their own; the network's input is scaled by the one that holds.
        scaled = float(scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), timestep))
        return 1.0, (1 / scaled**2 - 1) ** 0.5
    sigma = scheduler.sigmas[scheduler.step_index]
    if name in BY_SHARE:
        signal, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
        return float(signal), float(sigma)
    return 1 - float(sigma), float(sigma)
