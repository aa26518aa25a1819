"""What to draw."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

import msgspec

from sdcli.options import meta

WHAT = "What to draw"
# A bound that holds for a number and not for None stands inside the union.
Seed = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Pixels = Annotated[int, msgspec.Meta(ge=8, le=16384)]


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One picture to draw, complete: with the seed filled in, it says all that decides the pixels besides the model
    and the place. Fields have the names of diffusers' pipeline arguments; None is what the model decides.
    """

    prompt: str
    negative_prompt: Annotated[
        str, meta("What must not be seen.", "--negative-prompt", "--negative", panel=WHAT, metavar="TEXT")
    ] = ""
    seed: Annotated[
        Seed | None,
        meta(
            "Start of the random numbers; -1: draw one.",
            "--seed", "-s", panel=WHAT,
        ),
    ] = None  # fmt: skip
    num_inference_steps: Annotated[int, meta("Steps from noise to picture.", "--steps", panel=WHAT, ge=1, le=1000)] = 25
    guidance_scale: Annotated[
        float,
        meta(
            "How closely the prompt is followed; 1: unguided.", "--guidance-scale", "--cfg", panel=WHAT, ge=0, le=1000
        ),
    ] = 7.5
    scheduler: Annotated[
        str | None,
        meta(
            "How noise is taken away: see `sdcli schedulers`.",
            "--scheduler", "--sampler", panel=WHAT, metavar="NAME",
        ),
    ] = None  # fmt: skip
    width: Annotated[Pixels | None, meta("Pixels across.", "--width", "-W", panel=WHAT)] = None
    height: Annotated[Pixels | None, meta("Pixels down.", "--height", "-H", panel=WHAT)] = None
    clip_skip: Annotated[
        int,
        meta(
            "Last layers of CLIP left out (A1111's less 1).",
            "--clip-skip", panel=WHAT, ge=0, le=64,
        ),
    ] = 0  # fmt: skip
    true_cfg_scale: Annotated[
        float, meta("Guidance by a second pass, for models with guidance built in (Flux); 1: none.", ge=1, le=1000)
    ] = 1.0
    eta: Annotated[
        Share | None,
        meta("The share of noise added again in each step, where the scheduler can; none is its authors'."),
    ] = None
    guidance_rescale: Annotated[
        float, meta("How far guidance's over-exposure is taken back (arXiv 2305.08891, section 3.4).", ge=0, le=1)
    ] = 0.0


def draw_seed() -> int:
    """Return a fresh 32-bit seed."""
    return secrets.randbits(32)


PackSize = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=10**9)]


class JobOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many pictures, how many at once, what they are called by, and whether prompts are expanded first."""

    count: Annotated[int, meta("Pictures for each prompt.", "--count", "-c", panel=WHAT, ge=1, le=100_000)] = 1
    batch_size: Annotated[
        PackSize | Literal["auto"] | None,
        meta("Pictures drawn in one pass: N or auto.", "--batch-size", panel=WHAT, metavar="N"),
    ] = None
    name: Annotated[str | None, meta("A name, for {name} in the output.")] = None
    tags: Annotated[dict[str, str] | None, meta("Words of one's own that travel in the record, as JSON.")] = None
    expand: Annotated[
        Literal["random", "all"] | None,
        meta("Expand {a|b} and __wildcards__: random or all.", "--expand", panel=WHAT, metavar="HOW"),
    ] = None
    wildcards: Annotated[
        str | None, meta("Folder of wildcard files, for __name__.", "--wildcards", panel=WHAT, metavar="DIR")
    ] = None
    limit: Annotated[Limit | None, meta("At most so many of a prompt, with --expand all.", "--limit", panel=WHAT)] = (
        None
    )
