"""stable-diffusion.cpp: A1111's grammar with `SDCPP: {json}` at its end (since 2026); before that without.

PNG `parameters` (UTF-8 in tEXt), JPEG's comment `parameters\\0TEXT`, WebP's XMP `sdcpp:parameters`.
Source: leejet/stable-diffusion.cpp, examples/common/common.cpp (`get_image_params`, `build_sdcpp_image_metadata_json`),
examples/common/media_io.cpp (`build_webp_xmp_packet`), thirdparty/stb_image_write.h; the names of samplers and of
spacings are those of src/stable-diffusion.cpp.
"""

from __future__ import annotations

from typing import Any

from sdcli.metadata.readers import Said, Saying, Texts, a1111, json_object, scheduler, xmp_text

ORDER = 20
NAMESPACE = "https://github.com/leejet/stable-diffusion.cpp/ns/1.0/"
VERSION = "Version: stable-diffusion.cpp"
TAIL = f"{VERSION}, SDCPP: "


def read(texts: Texts) -> Said | None:
    text = texts.get("parameters") or texts.get("Comment", "").removeprefix("parameters\0")
    if VERSION not in text:
        text = xmp_text(texts, NAMESPACE, "parameters") or ""
    last = text.rstrip("\0 \n").rpartition("\n")[2]
    if VERSION not in last:
        return None
    before, tail, after = last.partition(TAIL)
    if tail and (said := _json(after)):
        return said
    parsed = a1111.parse(text)
    if parsed is None:
        return None
    prompt, negative, details = parsed
    # Its sampler and spacing are one word each, in one field.
    sampler, _, spacing = details.pop("Sampler", "").partition(" ")
    said = a1111.said("sdcpp", prompt, negative, details)
    saying = Saying("sdcpp")
    saying.take_scheduler(_scheduler(sampler, spacing), {"Sampler": f"{sampler} {spacing}".strip()})
    said.request.update(saying.request)
    said.unmapped.update(saying.unmapped)
    return said


def _json(text: str) -> Said | None:
    said = json_object(text, "SDCPP")
    if said is None or said.get("schema") != "sdcpp.image.params/v1":
        return None
    saying = Saying("sdcpp")
    prompt, sampling, models = (_part(said, key) for key in ("prompt", "sampling", "models"))
    guidance = _part(sampling, "guidance")
    saying.take("prompt", prompt.pop("positive", None), "prompt")
    saying.take("negative_prompt", prompt.pop("negative", None) or None, "negative prompt")
    for key in ("seed", "width", "height"):
        saying.take(key, said.pop(key, None), key)
    saying.take("num_inference_steps", sampling.pop("steps", None), "steps")
    saying.take("guidance_scale", guidance.pop("txt_cfg", None), "txt_cfg")
    names = {"method": sampling.pop("method", None), "scheduler": sampling.pop("scheduler", None)}
    # Its own sigmas are no spacing that has a name.
    custom = bool(sampling.get("custom_sigmas"))
    saying.take_scheduler(None if custom else _scheduler(names["method"], names["scheduler"]), names)
    if saying.request.get("scheduler") == "ddim":
        saying.take("eta", sampling.pop("eta", None), "eta")
    clip_skip = said.pop("clip_skip", None)
    if clip_skip != -1:  # -1: the model's own.
        saying.take_clip_skip(clip_skip, "clip_skip")
    _take_loras(saying, said.pop("loras", None))
    # Which of the two holds the network depends on how it was loaded.
    model = {"name": models.pop("model", None) or models.pop("diffusion_model", None), "hash": None}
    saying.name({**said, "sampling": sampling, "guidance": guidance, "models": models, "prompt": prompt})
    return saying.said(model)


def _take_loras(saying: Saying, loras: object) -> None:
    """They are taken out of the prompt that is written here; one for high noise works in a part of the steps only."""
    if not isinstance(loras, list):
        saying.name({"loras": loras})
        return
    found: list[tuple[object, object, object]] = []
    for one in loras:
        match one:
            case {"name": name, "multiplier": scale} if not one.get("is_high_noise"):
                found.append((name, scale, one))
            case _:
                found.append((None, None, one))
    saying.take_loras(found, "loras")


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    part = values.pop(key, None)
    return dict(part) if isinstance(part, dict) else {}


def _scheduler(sampler: object, spacing: object) -> str | None:
    if sampler == "ddim_trailing":
        return "ddim"
    return scheduler(
        sampler, {"discrete": "normal", "": None}.get(spacing, spacing) if isinstance(spacing, str) else spacing
    )
