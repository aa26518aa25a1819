"""A1111's infotext, which Forge and SD.Next write too: PNG `parameters`, EXIF `UserComment` elsewhere.

Source: AUTOMATIC1111/stable-diffusion-webui, modules/infotext_utils.py (`parse_generation_parameters`, `unquote`) and
modules/processing.py (`create_infotext`); lllyasviel/stable-diffusion-webui-forge writes the same with fields of its own;
vladmandic/sdnext, modules/processing_info.py (`create_infotext`) and modules/sd_samplers_diffusers.py (its samplers are
diffusers', and `Sampler sigma` is their spacing).
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
LORA = re.compile(r"<lora:([^:<>]{1,200})(?::([^<>]{0,50}))?>")

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
    model = {"name": rest.pop("Model", None), "hash": rest.pop("Model hash", None)}
    saying.name({"lora": [{"name": name, "weight": weight or None} for name, weight in LORA.findall(prompt)]})
    saying.name(rest)
    return saying.said(model)


def _sd_next_sampler(saying: Saying, rest: dict[str, Any]) -> None:
    """Only a sampler whose other settings are at their defaults is diffusers' as sdcli knows it."""
    settings = {key: rest.pop(key) for key in list(rest) if key == "Sampler" or key.startswith("Sampler ")}
    name = SD_NEXT.get(settings.get("Sampler", ""))
    spacing = settings.get("Sampler sigma")
    spacing = {"default": None, "lambdas": "lu"}.get(spacing, spacing) if spacing else None
    plain = set(settings) <= {"Sampler", "Sampler sigma"}
    found = scheduler(f"{name} {spacing or ''}".strip(), diffusers=True) if name and plain else None
    saying.take_scheduler(found, settings)
