"""NovelAI: PNG `Software`, `Description`, `Source` and `Comment`, the last JSON; the same texts hidden in the alpha channel.

Source: NovelAI/novelai-image-metadata, nai_meta.py and nai_meta_writer.py (where the texts are; sdcli finds those in the
alpha channel in `stealth`); which keys the JSON has is from pictures and from d3x-at/sd-parsers, since NovelAI publishes no
list of them. What its spacing `native` is could not be confirmed and stays unmapped, as does a sampler with SMEA.
"""

from __future__ import annotations

import re
from typing import Any

from sdcli.metadata.readers import Said, Saying, Texts, json_object, scheduler

ORDER = 40


def read(texts: Texts) -> Said | None:
    comment = texts.get("Comment", "")
    if texts.get("Software") != "NovelAI" and not ('"uc"' in comment and '"sampler"' in comment):
        return None
    values = json_object(comment, "Comment")
    if values is not None and isinstance(values.get("Comment"), str):
        # Some put all texts into one, as the alpha channel has them.
        texts = {**texts, **{k: v for k, v in values.items() if isinstance(v, str)}}
        values = json_object(texts["Comment"], "Comment")
    saying = Saying("novelai")
    values = dict(values or {})
    # Long prompts of its first model are in `Description` alone.
    saying.take("prompt", values.pop("prompt", None) or texts.get("Description"), "prompt")
    saying.take("negative_prompt", values.pop("uc", None) or None, "uc")
    for key, field in (
        ("seed", "seed"), ("steps", "num_inference_steps"), ("scale", "guidance_scale"), ("cfg_rescale", "guidance_rescale"),
        ("width", "width"), ("height", "height"),
    ):  # fmt: skip
        saying.take(field, values.pop(key, None), key)
    _take_sampler(saying, values)
    for key, taken in (("v4_prompt", "prompt"), ("v4_negative_prompt", "negative_prompt")):
        if _caption(values.get(key)) == saying.request.get(taken, ""):
            values.pop(key, None)
    saying.name(values)
    return saying.said(_model(texts.get("Source")))


def _take_sampler(saying: Saying, values: dict[str, Any]) -> None:
    names = {"sampler": values.pop("sampler", None), "noise_schedule": values.pop("noise_schedule", None)}
    spacing = names["noise_schedule"]
    plain = not values.get("sm") and not values.get("sm_dyn") and spacing in (None, "karras", "exponential")
    saying.take_scheduler(scheduler(names["sampler"], spacing) if plain else None, names)


def _caption(value: object) -> str | None:
    """Return the text of a prompt of version 4, None where it has characters of its own besides."""
    match value:
        case {"caption": {"base_caption": str(text), "char_captions": []}}:
            return text
    return None


def _model(source: str | None) -> dict[str, Any] | None:
    """`Stable Diffusion XL 7BCCAA2C`: a name and eight digits of a hash."""
    if source is None:
        return None
    match = re.fullmatch(r"(.*\S)\s+([0-9A-F]{8})", source, re.DOTALL)
    return {"name": match[1], "hash": match[2]} if match else {"name": source, "hash": None}
