"""InvokeAI: PNG `invokeai_metadata` since 3.0, before it `sd-metadata`, and `Dream` beside that or, at first, alone.

Source: invoke-ai/InvokeAI, invokeai/app/invocations/metadata.py (`CoreMetadataInvocation`),
invokeai/app/services/image_files/image_files_disk.py, invokeai/backend/stable_diffusion/schedulers/schedulers.py
(`SCHEDULER_MAP`: its schedulers are diffusers'), invokeai/backend/image_util/pngwriter.py; of 2.x ldm/invoke/args.py
(`dream_prompt_str`, `metadata_dumps`) and ldm/invoke/conditioning.py (a negative prompt stands in brackets in the prompt).
Its prompts are in compel's syntax (invokeai/app/invocations/compel.py; 2.3 is the first with that library).
The spacing of a sampler `k_...` of 2.x is not in the picture (it depended on the version and on a setting), so it stays
unmapped.
"""

from __future__ import annotations

import re
from typing import Any

from sdcli.metadata.readers import Said, Saying, Texts, json_object, scheduler

ORDER = 10

# What the modes of Stable Diffusion's families are called; the others draw by flow matching.
MODES = re.compile(r"(sdxl_)?(txt2img|img2img|inpaint|outpaint)")
NEGATIVE = re.compile(r"\[([^\]]*)\]")
CLOSING_QUOTE = re.compile(r'"(?=\s+--?[A-Za-z]|\s*$)')
FIRST_SWITCH = re.compile(r"(?<=\s)-[sSWHC] ?[0-9]")
# A switch of several letters has its values behind a blank, one of a single letter may have it at once.
SWITCH = re.compile(r"--?[A-Za-z]")
# What compel or A1111 reads otherwise than as words: brackets, weights, and what joins prompts.
SYNTAX = re.compile(r"""[()\[\]\\+]|(?<=[\w"'])-(?!\w)|\b(?:AND|BREAK)\b""")
COMPEL = re.compile(r"v?2\.3(?:\.|$)")
LONGEST = 2**20
LETTERS = {"s": "num_inference_steps", "S": "seed", "W": "width", "H": "height", "C": "guidance_scale"}


def read(texts: Texts) -> Said | None:
    if (values := json_object(texts.get("invokeai_metadata"), "invokeai_metadata")) is not None:
        return _current(values)
    if (values := json_object(texts.get("sd-metadata"), "sd-metadata")) is not None:
        return _legacy(values)
    return _dream(texts["Dream"]) if "Dream" in texts else None


def _current(values: dict[str, Any]) -> Said:
    saying = Saying("invokeai")
    for key, field in (
        ("positive_prompt", "prompt"), ("seed", "seed"), ("steps", "num_inference_steps"), ("cfg_scale", "guidance_scale"),
        ("cfg_rescale_multiplier", "guidance_rescale"), ("width", "width"), ("height", "height"), ("clip_skip", "clip_skip"),
    ):  # fmt: skip
        saying.take(field, values.pop(key, None), key)
    saying.take("negative_prompt", values.pop("negative_prompt", None) or None, "negative_prompt")
    name, mode = values.pop("scheduler", None), values.get("generation_mode")
    flow = isinstance(mode, str) and not MODES.fullmatch(mode)
    saying.take_scheduler(None if flow else scheduler(name, diffusers=True), {"scheduler": name})
    if not flow:
        _take_syntax(saying)
    loras = values.pop("loras", None)
    _take_loras(saying, loras) if isinstance(loras, list) else saying.name({"loras": loras})
    model = values.pop("model", None)
    if not isinstance(model, dict):
        saying.name({"model": model})
        model = {}
    saying.name(values)
    # Since 4.0 `name`, `base` and `type`, before that `model_name`, `base_model` and `model_type`.
    return saying.said(
        {"name": model.pop("name", model.pop("model_name", None)), "hash": model.pop("hash", None), **model}
    )


def _legacy(values: dict[str, Any]) -> Said:
    saying = Saying("invokeai")
    image = values.pop("image", None)
    if not isinstance(image, dict):
        saying.name({"image": image, **values})
        return saying.said()
    prompts = image.pop("prompt", None)
    match prompts:
        case str():
            _take_prompt(saying, prompts)
        case [{"prompt": str(prompt)}]:
            _take_prompt(saying, prompt)
        case _:  # Several, each with its weight: a blend, which sdcli has not.
            saying.name({"prompt": prompts})
    for key, field in (
        ("seed", "seed"), ("steps", "num_inference_steps"), ("cfg_scale", "guidance_scale"), ("width", "width"),
        ("height", "height"),
    ):  # fmt: skip
        saying.take(field, image.pop(key, None), key)
    _take_sampler(saying, image.pop("sampler", None))
    if COMPEL.match(str(values.get("app_version"))):
        _take_syntax(saying)
    model = {"name": values.pop("model_weights", None), "hash": values.pop("model_hash", None)}
    saying.name({**values, **image})
    return saying.said(model)


def _dream(text: str) -> Said | None:
    """The prompt, in quotes or up to the first switch, then the switches."""
    text = text.strip()
    end = (
        (CLOSING_QUOTE.search(text, 1) if text.startswith('"') else FIRST_SWITCH.search(text))
        if len(text) <= LONGEST
        else None
    )
    if end is None:
        return None
    saying = Saying("invokeai")
    _take_prompt(saying, text[: end.start()].removeprefix('"'))
    switches: list[list[str]] = []
    for word in text[end.start() :].removeprefix('"').split():
        if SWITCH.match(word):
            # `-s50` and `-Ak_lms` are what `-s 50` and `-A k_lms` are.
            single = word[:2] in ("-s", "-S", "-W", "-H", "-C", "-A") and len(word) > 2
            switches.append([word[1], word[2:]] if single else [word.lstrip("-")])
        elif switches:
            switches[-1].append(word)
    for name, *values in switches:
        value = " ".join(values)
        if name in LETTERS:
            saying.take(LETTERS[name], value, name)
        elif name == "A":
            _take_sampler(saying, value)
        else:
            saying.unmapped[name] = value or True
    return saying.said() if saying.request.keys() - {"prompt", "negative_prompt"} else None


def _take_prompt(saying: Saying, prompt: str) -> None:
    negative = " ".join(NEGATIVE.findall(prompt))
    if negative:
        prompt = re.sub(" +", " ", NEGATIVE.sub(" ", prompt))
    saying.take("prompt", prompt.strip(), "prompt")
    saying.take("negative_prompt", negative.strip() or None, "negative_prompt")


def _take_syntax(saying: Saying) -> None:
    """Say that the prompts are compel's, where that makes a difference."""
    if any(SYNTAX.search(saying.request.get(field, "")) for field in ("prompt", "negative_prompt")):
        saying.take("prompt_syntax", "compel", "prompt_syntax")


def _take_loras(saying: Saying, loras: list[Any]) -> None:
    """Since 4.0 a LoRA is `model` with `name`, before that `lora` with `model_name`; it has one weight for all parts."""
    found: list[tuple[object, object, object]] = []
    for one in loras:
        match one:
            case {"model": {"name": name}, "weight": weight} | {"lora": {"model_name": name}, "weight": weight}:
                found.append((name, weight, one))
            case _:
                found.append((None, None, one))
    saying.take_loras(found, "loras")


def _take_sampler(saying: Saying, sampler: object) -> None:
    saying.take_scheduler(scheduler(sampler) if sampler in ("ddim", "plms") else None, {"sampler": sampler})
