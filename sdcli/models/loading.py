"""What loading a model brings: its files, their hashes and parameters; and what it can't draw."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from sdcli.errors import UsageError
from sdcli.models.folders import folder_parts, texts_of
from sdcli.models.spec import Model
from sdcli.models.weights import by_variant, files_in, sha256_of, shapes_of
from sdcli.request import GenerationRequest


def loaded_files(model: Model) -> dict[str, Path]:
    """Return the weight files that decide pixels, by their path in the model's folder (`--vae/...`: another autoencoder's)."""
    assert model.path is not None
    found: dict[str, Path] = {}
    if model.single_file:
        found = {model.path.name: model.path}
    if not model.single_file or model.alone:
        folder = model.configs
        assert folder is not None
        for part in folder_parts(model):
            names = by_variant(files_in(folder / part))[model.variant]
            found |= {f"{part}/{name}": folder / part / name for name in names}
    vae = model.vae
    if vae is not None and vae.path is not None:
        names = [""] if vae.single_file else by_variant(files_in(vae.path))[vae.variant]
        found |= {f"--vae/{name or vae.path.name}": vae.path / name for name in names}
    return found


def _about(field: str, message: str, hint: str) -> UsageError:
    error = UsageError(message, hint)
    error.field = field
    return error


def check(request: GenerationRequest, model: Model) -> None:
    """Refuse what the model can't draw, or would not heed; what its configuration says is known only when it is here."""
    check_size(model, request.width, request.height)
    family = model.family
    if family is None:
        return
    for field, reason in family.lacks.items():
        if getattr(request, field) != _DEFAULTS[field]:
            raise _about(field, f"{model.name} ({family.name}) can't use {field}: {reason}", f"leave {field} out")
    if request.num_inference_steps < family.min_steps:
        raise _about(
            "num_inference_steps",
            f"{model.name} ({family.name}) can't draw in {request.num_inference_steps} steps",
            f"--steps is at least {family.min_steps}",
        )
    if request.scheduler and family.own_scheduler is not None:
        raise _about(
            "scheduler",
            f"{model.name} ({family.name}) can't use another scheduler: {family.own_scheduler}",
            "leave --scheduler out",
        )
    if request.negative_prompt and not heeds_negative(model, request.true_cfg_scale):
        raise _about(
            "negative_prompt",
            f"{model.name} ({family.name}) can't use a negative prompt as it is: its guidance is built in",
            "--set true_cfg_scale=2 or so makes a second pass, which reads it, and takes twice the time",
        )
    if not model.guided and request.guidance_scale > 1:
        raise _about(
            "guidance_scale",
            f"{model.name} ({family.name}) can't use guidance: it was distilled to be drawn without",
            "leave --guidance-scale out",
        )
    check_clip_skip(model, request.clip_skip)


def heeds_negative(model: Model, true_cfg_scale: float) -> bool:
    """Whether a negative prompt can have an effect."""
    family = model.family
    if family is None:
        return True
    return "negative_prompt" not in family.lacks and (family.guidance != "built-in" or true_cfg_scale > 1)


_DEFAULTS = {f: getattr(GenerationRequest(prompt=""), f) for f in GenerationRequest.__struct_fields__}


def check_size(model: Model, width: int | None, height: int | None) -> None:
    """Refuse a width or height, in pixels, that the model can't draw; None is what it decides itself."""
    for side, pixels in (("width", width), ("height", height)):
        if pixels is not None and pixels % model.multiple:
            below = pixels // model.multiple * model.multiple
            nearest_are = f"the nearest are {below} and {below + model.multiple}"
            raise _about(
                side,
                f"{model.name} can't draw a {side} of {pixels}: it is no multiple of {model.multiple}",
                nearest_are if below else f"the smallest is {model.multiple}",
            )


def check_clip_skip(model: Model, clip_skip: int) -> None:
    """Refuse to leave out more layers than the model's text encoder has to spare."""
    layers = model.encoder_layers
    if layers is not None and clip_skip >= layers:
        raise _about(
            "clip_skip", f"{model.name}'s text encoder has {layers} layers", f"--clip-skip is at most {layers - 1}"
        )


def count_parameters(model: Model) -> int:
    """Return how many parameters loading a model brings, read off its files' headers."""
    shapes = [
        shape for file in loaded_files(model).values() for name, shape in shapes_of(file).items() if is_loaded(name)
    ]
    return sum(math.prod(shape) for shape in shapes)


def is_loaded(name: str) -> bool:
    """Whether a tensor of a weight file is loaded: checkpoints in one file may bring their training's moving average along."""
    return not name.startswith("model_ema.")


def hashes(model: Model) -> dict[str, str]:
    """Return the names of the weight files that decide pixels, with their SHA-256.

    `--config` is that of the configurations and vocabularies: over the lines `SHA-256  NAME` of all of them, by name. A
    commit stands for those of a repository.
    """
    found = {name: sha256_of(file) for name, file in loaded_files(model).items()}
    return found if model.commit is not None else found | {"--config": _texts_sha256(model)}


def _texts_sha256(model: Model) -> str:
    folder = model.configs
    assert folder is not None
    files = [folder / "model_index.json"]
    for part in texts_of(model, checker=False):
        if (folder / part).is_dir():
            files += [f for f in (folder / part).iterdir() if f.is_file() and f.suffix in (".json", ".txt", ".model")]
    # An index of weights in pieces says nothing that the pieces do not.
    lines = (
        f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(folder).as_posix()}\n"
        for f in sorted(files)
        if not f.name.endswith(".safetensors.index.json")
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()
