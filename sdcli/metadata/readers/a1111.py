"""A1111's infotext, which Forge and SD.Next write too: PNG `parameters`, EXIF `UserComment` elsewhere.

Source: AUTOMATIC1111/stable-diffusion-webui, modules/infotext_utils.py (`parse_generation_parameters`, `unquote`) and
modules/processing.py (`create_infotext`); lllyasviel/stable-diffusion-webui-forge writes the same with fields of its own;
vladmandic/sdnext, modules/processing_info.py (`create_infotext`) and modules/sd_samplers_diffusers.py (its samplers are
diffusers', and `Sampler sigma` is their spacing). LoRAs stand in the prompt: extensions-builtin/Lora/extra_networks_lora.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sdcli.metadata.readers import Said, Saying, Texts, scheduler

ORDER = 90
# Beyond this it is no infotext; quoting an embedded workflow, it may be long.
LONGEST = 2**20

# `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)` in A1111, whose search takes quadratic time. This finds the same
# pairs in linear time: a key begins where its run of characters does, and nothing is tried twice.
PAIR = re.compile(r'(?<![\w \-/])[ \-/]*+(\w[\w \-/]++):\s*+("(?:[^\\"]++|\\.)++"(?=,|$)|[^,]*+)(?:,|$)')
NEGATIVE = "Negative prompt:"
# A network that is put on the model, with the blanks before it.
NETWORK = re.compile(r"(?<![ \t])[ \t]*+<(lora|lyco|hypernet):([^<>]*)>")
LANCZOS = "Lanczos"
SYNTAX = "Prompt syntax"

# SD.Next's name -> diffusers' solver as sdcli sets it up; its others are of another order or its own.
SD_NEXT = {
    "UniPC": "unipc", "DDIM": "ddim", "Euler": "euler", "Euler a": "euler a", "DPM++ 2M": "dpm++2m",
    "DPM++ 2M SDE": "dpm++2m-sde", "DPM SDE": "dpm++sde", "DEIS": "deis", "SA Solver": "sa-solver", "Heun": "heun",
    "LMSD": "lms", "KDPM2": "dpm2", "KDPM2 a": "dpm2-a", "DDPM": "ddpm", "LCM": "lcm",
}  # fmt: skip


def read(texts: Texts) -> Said | None:
    for keyword in ("parameters", "UserComment"):
        parsed = parse(texts.get(keyword, ""))
        if parsed is not None:
            return said("a1111", *parsed)
    return None


def parse(text: str) -> tuple[str, str, dict[str, str]] | None:
    """Return the prompt, the negative prompt and the details of an infotext, None where it is none."""
    if len(text) > LONGEST or "Steps" not in text:
        return None
    *lines, last = text.strip().split("\n")
    details = details_of(last)
    if "Steps" not in details:
        return None
    both: list[list[str]] = [[], []]
    which = 0
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            which, line = 1, line.removeprefix(NEGATIVE).strip()
        # As A1111 joins them: the first line that is not empty begins the text.
        if line or any(both[which]):
            both[which].append(line)
    return "\n".join(both[0]), "\n".join(both[1]), details


def details_of(line: str) -> dict[str, str]:
    """Return the pairs of the last line, which is one of details from three pairs on."""
    pairs = PAIR.findall(line)
    return {key: _unquote(value) for key, value in pairs} if len(pairs) >= 3 else {}


def _unquote(text: str) -> str:
    if len(text) < 2 or not text[0] == text[-1] == '"':
        return text
    try:
        return str(json.loads(text))
    except (ValueError, RecursionError):
        return text


def said(format: str, prompt: str, negative: str, details: Mapping[str, str]) -> Said:
    """Return what an infotext says, in sdcli's names."""
    saying = Saying(format)
    rest: dict[str, Any] = dict(details)
    prompt, loras, networks = without_networks(prompt)
    saying.take("prompt", prompt, "Prompt")
    if negative:
        saying.take("negative_prompt", negative, "Negative prompt")
    for key, field in (("Steps", "num_inference_steps"), ("CFG scale", "guidance_scale"), ("Seed", "seed")):
        saying.take(field, rest.pop(key, None), key)
    first, size = rest.pop("First pass size", None), rest.pop("Size", None)
    if first is None:
        saying.take_size(size, "Size")
    else:
        # Before 1.0, Size was that of the second pass; of a first pass of 0x0, A1111 works the size out.
        saying.take_size(first, "First pass size")
        saying.name({"Size": size})
    saying.take_clip_skip(rest.pop("Clip skip"), "Clip skip") if "Clip skip" in rest else None
    if details.get("App") == "SD.Next":
        saying.take("guidance_rescale", rest.pop("CFG rescale", None), "CFG rescale")
        _sd_next_sampler(saying, rest)
    else:
        sampler = {key: rest.pop(key, None) for key in ("Sampler", "Schedule type")}
        saying.take_scheduler(scheduler(sampler["Sampler"], sampler["Schedule type"]), sampler)
        if saying.request.get("scheduler") == "ddim":
            saying.take("eta", rest.pop("Eta DDIM", None), "Eta DDIM")
        _take_hires(saying, rest, details)
    variation = {key: rest.pop(key, None) for key in ("Variation seed", "Variation seed strength")}
    if any(variation.values()):
        seed, strength = variation.values()
        saying.take_parts("variation", {"seed": seed, "strength": strength}, variation)
    _take_upscale(saying, rest)
    if details.get(SYNTAX) == "compel" and details.get("Version", "").startswith("sdcli "):
        saying.take("prompt_syntax", rest.pop(SYNTAX), SYNTAX)
    model = {"name": rest.pop("Model", None), "hash": rest.pop("Model hash", None)}
    saying.take_loras(loras, "lora")
    saying.name({"networks": networks})
    saying.name(rest)
    return saying.said(model)


def without_networks(prompt: str) -> tuple[str, list[tuple[str, float | None, dict[str, Any]]], list[str]]:
    """Return a prompt without what it says of networks, its LoRAs as `Saying.take_loras` takes them, and the other networks."""
    loras: list[tuple[str, float | None, dict[str, Any]]] = []
    others: list[str] = []

    def take(match: re.Match[str]) -> str:
        if match[1] == "lora":
            name, *weights = match[2].split(":")
            loras.append((name, _weight(weights), {"name": name, "weight": ":".join(weights) or None}))
        else:
            others.append(match[0].strip())
        return ""

    if "<" in prompt:
        prompt = NETWORK.sub(take, prompt)
    # What stood before a network at a line's end, A1111's reader strips.
    return prompt.strip() if loras or others else prompt, loras, others


def _weight(said: list[str]) -> float | None:
    """Return what a LoRA's tag says of its weight, None where text encoder and U-Net have one each, or it says more."""
    named = dict(part.split("=", 1) for part in said if "=" in part)
    plain = [part for part in said if "=" not in part]
    if len(plain) > 2 or not named.keys() <= {"te", "unet"}:
        return None
    try:
        encoder = float(named.get("te", plain[0] if plain else 1))
        unet = float(named.get("unet", plain[1] if len(plain) > 1 else encoder))
    except ValueError:
        return None
    return encoder if encoder == unet else None


def _take_hires(saying: Saying, rest: dict[str, Any], details: Mapping[str, str]) -> None:
    """Take a second pass, enlarged by Lanczos, which is sdcli's way too.

    Where `Hires steps` says none, A1111 takes all its steps over what strength leaves; sdcli takes that share of its steps. Where
    it is another number of steps, that is named.
    """
    names = ("Hires upscale", "Hires upscaler", "Denoising strength")
    if details.get("Hires upscaler") != LANCZOS or any(name not in rest for name in names):
        return
    said = {name: rest.pop(name) for name in names}
    taken = {"factor": said["Hires upscale"], "strength": said["Denoising strength"]}
    saying.take_parts("hires", taken, said)
    steps = saying.request.get("num_inference_steps")
    if "hires" in saying.request and steps is not None:
        its = rest.pop("Hires steps", None) or str(steps)
        if its != str(int(steps * saying.request["hires"]["strength"])):
            saying.name({"Hires steps": its})


def _take_upscale(saying: Saying, rest: dict[str, Any]) -> None:
    """Take what enlarged the finished picture, where that was Lanczos alone."""
    names = {key for key in rest if key.startswith("Postprocess ")}
    by, upscaler = "Postprocess upscale by", "Postprocess upscaler"
    if names == {by, upscaler} and rest[upscaler] == LANCZOS:
        said = {name: rest.pop(name) for name in sorted(names)}
        saying.take_parts("upscale", {"name": "lanczos", "factor": said[by]}, said)


def _sd_next_sampler(saying: Saying, rest: dict[str, Any]) -> None:
    """Only a sampler whose other settings are at their defaults is diffusers' as sdcli knows it."""
    settings = {key: rest.pop(key) for key in list(rest) if key == "Sampler" or key.startswith("Sampler ")}
    name = SD_NEXT.get(settings.get("Sampler", ""))
    spacing = settings.get("Sampler sigma")
    spacing = {"default": None, "lambdas": "lu"}.get(spacing, spacing) if spacing else None
    plain = set(settings) <= {"Sampler", "Sampler sigma"}
    found = scheduler(f"{name} {spacing or ''}".strip(), diffusers=True) if name and plain else None
    saying.take_scheduler(found, settings)
