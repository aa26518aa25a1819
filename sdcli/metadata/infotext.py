"""The record as A1111 writes it, under the keyword `parameters`: what other programs and upload sites read.

The grammar, the fields and their order are those of A1111's `create_infotext` (modules/processing.py), what is lost that of
its reader (modules/infotext_utils.py), which strips every line, and takes a prompt's own line `Negative prompt:` for the
negative prompt.
"""

from __future__ import annotations

import json
from pathlib import PurePath

from sdcli.record import ModelRecord, Record

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
        "Size": f"{record.pixels.width}x{record.pixels.height}",
        "Model hash": _hash(own),
        "Model": _model_name(record.model),
        "VAE hash": _hash(vae),
        "VAE": PurePath(next(iter(vae))).name if _hash(vae) else None,
        # A1111 counts the layer that is read (1: the last), diffusers the layers that are left out.
        "Clip skip": request.clip_skip + 1 if request.clip_skip else None,
        "RNG": "CPU",
        # A1111's plain `Eta` is that of its ancestral samplers, which diffusers' `eta` does not reach.
        "Eta DDIM": _number(request.eta) if request.eta and record.scheduler.sampler == "DDIM" else None,
        "Version": f"sdcli {record.versions['sdcli']}" if "sdcli" in record.versions else None,
    }
    text = _clean(request.prompt)
    if request.negative_prompt:
        text += f"\nNegative prompt: {_clean(request.negative_prompt)}"
    text += "\n" + ", ".join(f"{key}: {_quote(str(value))}" for key, value in details.items() if value is not None)
    return text.strip()


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
