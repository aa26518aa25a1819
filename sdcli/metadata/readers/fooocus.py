"""Fooocus: JSON (scheme `fooocus`) or A1111's grammar (scheme `a1111`).

PNG `parameters` and `fooocus_scheme`; JPEG and WebP: EXIF `UserComment`, the scheme in `MakerNote`, `Software`.
Source: lllyasviel/Fooocus, modules/meta_parser.py (both schemes), modules/async_worker.py (which fields there are),
modules/private_logger.py (where they go), modules/flags.py. Fooocus itself runs `eval` on three of these values; here
they are matched as text. The prompt is the one that was typed (its own `Raw prompt`), since the styles that were
applied to it are encoded part by part; what came of them is named in `unmapped`. LoRAs of the prompt stand in its list of
them too.
"""

from __future__ import annotations

import re
from typing import Any

from sdcli.metadata.readers import Said, Saying, Texts, a1111, comfy_scheduler, json_object, scheduler

ORDER = 30
PAIR = re.compile(r"\(\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*\)")


def read(texts: Texts) -> Said | None:
    for keyword, scheme in (("parameters", "fooocus_scheme"), ("UserComment", "MakerNote")):
        text = texts.get(keyword)
        if text is None:
            continue
        named = texts.get(scheme) in ("fooocus", "a1111") or texts.get("Software", "").startswith("Fooocus")
        if not named and "Fooocus" not in text:
            continue
        values = json_object(text, keyword)
        if values is not None and (named or str(values.get("version", "")).startswith("Fooocus")):
            return _json(values)
        parsed = a1111.parse(text)
        if parsed is not None and (named or parsed[2].get("Version", "").startswith("Fooocus")):
            return _infotext(*parsed)
    return None


def _json(values: dict[str, Any]) -> Said:
    saying = Saying("fooocus")
    loras = values.pop("loras", None)
    listed = [_lora(one) for one in loras] if isinstance(loras, list) else []
    if isinstance(values.get("prompt"), str):
        values["prompt"], listed = _without_networks(saying, values["prompt"], listed)
    saying.take_loras(listed, "loras")
    saying.name({} if isinstance(loras, list) else {"loras": loras})
    for key, field in (
        ("prompt", "prompt"), ("steps", "num_inference_steps"), ("guidance_scale", "guidance_scale"), ("seed", "seed"),
    ):  # fmt: skip
        saying.take(field, values.pop(key, None), key)
    saying.take("negative_prompt", values.pop("negative_prompt", None) or None, "negative_prompt")
    resolution = values.pop("resolution", None)
    match = PAIR.fullmatch(resolution) if isinstance(resolution, str) else None
    saying.take_size("x".join(match.groups()) if match else resolution, "resolution")
    _clip_skip(saying, values.pop("clip_skip", None), "clip_skip")
    names = {"sampler": values.pop("sampler", None), "scheduler": values.pop("scheduler", None)}
    saying.take_scheduler(comfy_scheduler(names["sampler"], names["scheduler"]), names)
    model = {"name": values.pop("base_model", None), "hash": values.pop("base_model_hash", None)}
    saying.name(values)
    return saying.said(model)


def _infotext(prompt: str, negative: str, details: dict[str, str]) -> Said:
    raw, raw_negative = details.pop("Raw prompt", None), details.pop("Raw negative prompt", None)
    names = {"Sampler": details.pop("Sampler", None), "Scheduler": details.pop("Scheduler", None)}
    skip = details.pop("Clip skip", None)
    saying = Saying("fooocus")
    weights = details.pop("Lora weights", None)
    listed = [_weighed(one) for one in weights.split(", ")] if weights else []
    typed, listed = _without_networks(saying, prompt if raw is None else raw, listed)
    said = a1111.said("fooocus", typed, negative if raw_negative is None else raw_negative, details)
    saying.take_loras(listed, "Lora weights")
    if raw is not None and raw != prompt:
        saying.name({"full_prompt": prompt})
    if raw_negative is not None and raw_negative != negative:
        saying.name({"full_negative_prompt": negative})
    _clip_skip(saying, skip, "Clip skip")
    # A1111's name where A1111 has the sampler, to which Karras may be added; ComfyUI's where it has not.
    sampler, spacing = (names["Sampler"] or "").removesuffix(" Karras"), names["Scheduler"]
    known = scheduler(sampler, spacing) if spacing and sampler != "DDIM" else None
    saying.take_scheduler(known or comfy_scheduler(sampler.replace("DDIM", "ddim"), spacing), names)
    said.request.update(saying.request)
    said.unmapped.update(saying.unmapped)
    return said


Lora = tuple[object, object, object]


def _lora(one: object) -> Lora:
    """A file's name without its ending, the weight, and the hash."""
    match one:
        case [name, weight, *_]:
            return name, weight, one
    return None, None, one


def _weighed(text: str) -> Lora:
    name, _, weight = text.rpartition(": ")
    return name, weight, text


def _without_networks(saying: Saying, prompt: str, listed: list[Lora]) -> tuple[str, list[Lora]]:
    """Return a prompt without its LoRAs, and the list of LoRAs with those that it lacks."""
    rest, loras, networks = a1111.without_networks(prompt)
    saying.name({"networks": networks})
    names = {name for name, _, _ in listed if isinstance(name, str)}
    return rest, [*listed, *(lora for lora in loras if lora[0] not in names)]


def _clip_skip(saying: Saying, value: object, name: str) -> None:
    # It draws with SDXL alone, which reads the last layer but one; diffusers leaves layers out from there on.
    if value is not None:
        saying.take_clip_skip(value, name, none=2)
