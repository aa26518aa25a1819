"""The record as A1111 writes it, under the keyword `parameters`: what other programs and upload sites read.

The grammar, the fields and their order are those of A1111's `create_infotext` (modules/processing.py), what is lost that of
its reader (modules/infotext_utils.py), which strips every line, and takes a prompt's own line `Negative prompt:` for the
negative prompt. Weights are those of modules/prompt_parser.py, LoRAs those of extensions-builtin/Lora.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import PurePath
from typing import Any

from sdcli.record import ModelRecord, Record
from sdcli.request import LANCZOS_FACTOR, GenerationRequest

KEYWORD = "parameters"


def infotext(record: Record) -> str:
    """Return the prompt, the line `Negative prompt: ` if there is one, and the line of details."""
    request = record.request
    vae = {name: sha256 for name, sha256 in record.model.files.items() if name.startswith("--vae/")}
    own = {name: sha256 for name, sha256 in record.model.files.items() if not name.startswith("--")}
    # What A1111 adds only when it differs from its own default is None here when it does not.
    details = {
        "Steps": request.num_inference_steps,
        "Sampler": record.scheduler.sampler,
        "Schedule type": record.scheduler.schedule_type,
        "CFG scale": _number(request.guidance_scale),
        "Seed": request.seed,
        "Size": _size(record),
        "Model hash": _hash(own),
        "Model": _model_name(record.model),
        "VAE hash": _hash(vae),
        "VAE": PurePath(next(iter(vae))).name if _hash(vae) else None,
        "Variation seed": request.variation.seed if request.variation else None,
        "Variation seed strength": _number(request.variation.strength) if request.variation else None,
        "Denoising strength": _strength(request),
        # A1111 counts the layer that is read (1: the last), diffusers the layers that are left out.
        "Clip skip": request.clip_skip + 1 if request.clip_skip else None,
        "RNG": "CPU",
        # A1111's plain `Eta` is that of its ancestral samplers, which diffusers' `eta` does not reach.
        "Eta DDIM": _number(request.eta) if request.eta and record.scheduler.sampler == "DDIM" else None,
        **_extra(request),
        # A1111 has no such field, and no words for what compel reads.
        "Prompt syntax": "compel" if record.tokens.syntax == "compel" else None,
        "Version": f"sdcli {record.versions['sdcli']}" if "sdcli" in record.versions else None,
    }
    prompt, negative = _clean(request.prompt), _clean(request.negative_prompt)
    if record.tokens.syntax == "plain":
        prompt, negative = _plain(prompt), _plain(negative)
    text = " ".join([prompt, *_loras(record.model)])
    if negative:
        text += f"\nNegative prompt: {negative}"
    text += "\n" + ", ".join(f"{key}: {_quote(str(value))}" for key, value in details.items() if value is not None)
    return text.strip()


def _size(record: Record) -> str:
    """Return the size that was drawn first: A1111's field says nothing of what made it larger."""
    request = record.request
    if (request.hires or request.upscale) and request.width is not None and request.height is not None:
        return f"{request.width}x{request.height}"
    return f"{record.pixels.width}x{record.pixels.height}"


def _strength(request: GenerationRequest) -> str | None:
    # One field for both in A1111, where nothing that started from a picture has a second pass.
    if request.init_image is not None:
        return _number(request.strength) if request.strength is not None else None
    return _number(request.hires.strength) if request.hires else None


def _extra(request: GenerationRequest) -> dict[str, Any]:
    """Return what A1111 says of masks and of what makes a picture larger."""
    hires = request.hires if request.init_image is None else None
    masked = request.mask is not None or request.outpaint is not None
    found: dict[str, Any] = {}
    if hires is not None:
        # Without `Hires steps` A1111 takes all steps over what strength leaves, instead of that share of them.
        steps = int(request.num_inference_steps * hires.strength)
        found = {"Hires upscale": _number(hires.factor), "Hires steps": steps, "Hires upscaler": "Lanczos"}
    if request.mask is not None and request.invert_mask:
        found["Mask mode"] = "Inpaint not masked"
    if masked and request.mask_blur:
        found["Mask blur"] = _number(request.mask_blur)
    if request.upscale is not None and request.upscale.name == "lanczos":
        by = _number(request.upscale.factor or LANCZOS_FACTOR)
        found |= {"Postprocess upscale by": by, "Postprocess upscaler": "Lanczos"}
    elif request.upscale is not None:
        found["Postprocess upscaler"] = _stem(request.upscale.name)
    return found


def _plain(text: str) -> str:
    """Return a text that A1111 reads as these words, whatever they look like.

    It drops a backslash that stands before nothing of its grammar: so AND, BREAK and networks are taken apart.
    """
    text = re.sub(r"[\\()\[\]]", r"\\\g<0>", text)
    text = re.sub(r"\b(A)(?=ND\b)|\b(BR)(?=EAK\b)", r"\g<0>\\", text)
    return re.sub(r"<\w+(?=:)", r"\g<0>\\", text)


def _loras(model: ModelRecord) -> list[str]:
    """Return the LoRAs that drew, as A1111's prompts name them; a name that they can't hold is left out."""
    found = []
    for one in model.adapters:
        match one:
            # Out of a picture they may be anything.
            case {"kind": "lora", "name": str(name), "scale": int() | float() as scale} if math.isfinite(scale):
                if re.fullmatch(r"[^.~<>:\\\0\r\n][^<>:\\\0\r\n]*", stem := _stem(name)):
                    found.append(f"<lora:{stem}:{_number(scale)}>")
    return found


def _stem(name: str) -> str:
    return PurePath(name).name.removesuffix(".safetensors")


def _clean(text: str) -> str:
    """Return a text as PNG can hold it: without NUL, and with lines that end with LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def _quote(text: str) -> str:
    value = _clean(text)
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ",:\n") else value


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def _model_name(model: ModelRecord) -> str:
    # Of a model on disk only the last name, as in A1111: where it lies is nobody's business.
    return model.name if model.repo else PurePath(model.name).name.removesuffix(".safetensors") or model.name


def _hash(files: dict[str, str]) -> str | None:
    """Return A1111's hash, which is defined for weights of one file: ten digits of its SHA-256."""
    match list(files.items()):
        case [(path, sha256)] if path.endswith(".safetensors"):
            return sha256[:10]
    return None
