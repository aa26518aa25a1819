"""What to draw."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Literal

import msgspec

from sdcli.options import meta

WHAT = "What to draw"
WORDS = "How the prompt is read"
FROM = "From a picture"
ADAPTERS = "Adapters"
AFTER = "Larger, finer, more like it"
# A bound that holds for a number and not for None stands inside the union.
Seed = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Pixels = Annotated[int, msgspec.Meta(ge=8, le=16384)]
Margin = Annotated[int, msgspec.Meta(ge=0, le=8192)]
Strength = Annotated[float, msgspec.Meta(ge=-100, le=100)]
SHA256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
MOST_ADAPTERS = 32


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file as records keep it: its name without a folder, and the SHA-256 of its content in hex."""

    name: str
    sha256: SHA256


class Adapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An adapter. As asked for, `name` is a path, a hub id (OWNER/NAME, OWNER/NAME/FILE) or a name in the folder of adapters.

    As records keep it, `name` has no folder, and `sha256` (of the weights, in hex) and `commit` (of a hub's repository) say
    which it was. `scale` is how strongly it works; `image` the picture that a ControlNet or an IP-Adapter reads; `token` the
    word that an embedding is called by in the prompt, None for the one that its file says.
    """

    name: str
    scale: Strength = 1.0
    image: str | File | None = None
    token: str | None = None
    sha256: SHA256 | None = None
    commit: str | None = None


class Variation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another start, and how far the starting noise goes towards it: 0 not at all, 1 all the way."""

    seed: Seed
    strength: Share


class Outpaint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pixels that are added at the edges of a picture."""

    left: Margin = 0
    top: Margin = 0
    right: Margin = 0
    bottom: Margin = 0


class Hires(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many times larger a picture is drawn over, and the `strength` of that."""

    factor: Annotated[float, msgspec.Meta(gt=1, le=8)]
    strength: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5


class Upscale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What enlarges the finished picture: `lanczos`, or a Swin2SR model: a folder, its weights' file or a hub id (records: its
    name and SHA-256).

    `factor` is how many times larger; None is the upscaler's own.
    """

    name: str
    factor: Annotated[float, msgspec.Meta(gt=1, le=16)] | None = None
    sha256: SHA256 | None = None


# How many times larger `lanczos` makes a picture where nothing is said.
LANCZOS_FACTOR = 2.0
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"


def _scaled(text: str) -> tuple[str, dict[str, float]]:
    """Split NAME[:SCALE]; a colon in front of anything but a number belongs to the name."""
    match = re.fullmatch(rf"(.+?):({_NUMBER})", text, re.DOTALL)
    return (match[1], {"scale": float(match[2])}) if match else (text, {})


def read_adapter(text: str) -> dict[str, Any]:
    """Read NAME[:SCALE]."""
    name, scale = _scaled(text)
    if not name:
        raise ValueError("it names no file")
    return {"name": name, **scale}


def read_embedding(text: str) -> dict[str, Any]:
    """Read NAME[=TOKEN]."""
    name, equals, token = text.rpartition("=")
    return {"name": name, "token": token} if equals and name and token else {"name": text}


def read_conditioned(text: str) -> dict[str, Any]:
    """Read NAME=IMAGE[:SCALE]."""
    name, equals, rest = text.partition("=")
    image, scale = _scaled(rest)
    if not (name and equals and image):
        raise ValueError("it is NAME=IMAGE[:SCALE]")
    return {"name": name, "image": image, **scale}


def read_variation(text: str) -> dict[str, Any]:
    """Read SEED:STRENGTH."""
    match = re.fullmatch(rf"(-1|\d+):({_NUMBER})", text.strip())
    if match is None:
        raise ValueError("it is SEED:STRENGTH, for example 7:0.2")
    return {"seed": int(match[1]), "strength": float(match[2])}


def read_outpaint(text: str) -> dict[str, Any]:
    """Read SIDE=PIXELS,..."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        match = re.fullmatch(r"(left|top|right|bottom)=(\d+)", part.strip())
        if match is None or match[1] in found:
            raise ValueError("it is SIDE=PIXELS, for example left=128,top=64")
        found[match[1]] = int(match[2])
    if not any(found.values()):
        raise ValueError("it adds nothing")
    return found


def read_hires(text: str) -> dict[str, Any]:
    """Read FACTORx[:STRENGTH]."""
    match = re.fullmatch(rf"({_NUMBER})x?(?::({_NUMBER}))?", text.strip())
    if match is None:
        raise ValueError("it is FACTORx[:STRENGTH], for example 2x:0.5")
    return {"factor": float(match[1])} | ({"strength": float(match[2])} if match[2] else {})


def read_upscale(text: str) -> dict[str, Any]:
    """Read NAME[:FACTOR], or FACTORx for `lanczos`."""
    if match := re.fullmatch(rf"({_NUMBER})x?", text.strip()):
        return {"name": "lanczos", "factor": float(match[1])}
    match = re.fullmatch(rf"(.+?):({_NUMBER})x?", text, re.DOTALL)
    return {"name": match[1], "factor": float(match[2])} if match else {"name": text}


Adapters = Annotated[tuple[Adapter, ...], msgspec.Meta(max_length=MOST_ADAPTERS)]


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
    prompt_syntax: Annotated[
        Literal["a1111", "compel", "plain"] | None,
        meta("a1111, as in (word:1.3); compel, as in word++; plain.", "--prompt-syntax", panel=WORDS, metavar="NAME"),
    ] = None
    long_prompt: Annotated[
        Literal["chunk", "cut", "error"] | None,
        meta("Over 75 tokens: chunk (read all), cut or error.", "--long-prompt", panel=WORDS, metavar="HOW"),
    ] = None
    init_image: Annotated[
        str | File | None,
        meta("Picture to start from; - reads stdin.", "--init-image", "-i", panel=FROM, metavar="PICTURE"),
    ] = None
    strength: Annotated[
        Share | None, meta("How far to go from it, 0 to 1; else 0.8, with a mask 1.", "--strength", panel=FROM)
    ] = None
    mask: Annotated[
        str | File | None,
        meta("What is repainted of it: where this one is white.", "--mask", panel=FROM, metavar="PICTURE"),
    ] = None
    invert_mask: Annotated[bool, meta("Repaint what is black instead.", "--invert-mask", panel=FROM)] = False
    mask_blur: Annotated[float, meta("Pixels over which the mask's edge is softened, outwards.", ge=0, le=512)] = 0.0
    outpaint: Annotated[
        Outpaint | None,
        meta(
            "Pixels to add and paint: left=128,top=64 ...",
            "--outpaint",
            panel=FROM,
            metavar="SIDES",
            read=read_outpaint,
        ),
    ] = None
    resize: Annotated[
        Literal["fit", "fill", "stretch"] | None,
        meta("How it takes another size: fill, fit or stretch.", "--resize", panel=FROM, metavar="HOW"),
    ] = None
    lora: Annotated[
        Adapters,
        meta(
            "LoRA, at weight X: file, name or hub id; repeatable.",
            "--lora",
            panel=ADAPTERS,
            metavar="LORA[:X]",
            read=read_adapter,
        ),
    ] = ()
    embedding: Annotated[
        Adapters,
        meta(
            "A word that was learned: file, name or hub id.",
            "--embedding",
            panel=ADAPTERS,
            metavar="FILE[=WORD]",
            read=read_embedding,
        ),
    ] = ()
    controlnet: Annotated[
        Adapters,
        meta(
            "ControlNet, the picture that it reads, its weight.",
            "--controlnet",
            panel=ADAPTERS,
            metavar="ID=IMAGE[:X]",
            read=read_conditioned,
        ),
    ] = ()
    control_preprocess: Annotated[
        Literal["none", "canny", "blur", "gray", "invert"] | None,
        meta("Made of that picture first: canny, blur ...", "--control-preprocess", panel=ADAPTERS, metavar="NAME"),
    ] = None
    ip_adapter: Annotated[
        Adapters,
        meta(
            "IP-Adapter, the picture that it reads, its weight.",
            "--ip-adapter",
            panel=ADAPTERS,
            metavar="ID=IMAGE[:X]",
            read=read_conditioned,
        ),
    ] = ()
    variation: Annotated[
        Variation | None,
        meta(
            "Turn the start towards another seed's: 0 to 1.",
            "--variation",
            panel=AFTER,
            metavar="SEED:X",
            read=read_variation,
        ),
    ] = None
    hires: Annotated[
        Hires | None,
        meta(
            "Draw, enlarge, draw over at a strength: 2x:0.5.", "--hires", panel=AFTER, metavar="Nx[:X]", read=read_hires
        ),
    ] = None
    upscale: Annotated[
        Upscale | None,
        meta(
            "Enlarge the result: lanczos:2, or a Swin2SR model.",
            "--upscale",
            panel=AFTER,
            metavar="NAME[:N]",
            read=read_upscale,
        ),
    ] = None


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
