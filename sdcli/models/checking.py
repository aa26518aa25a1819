"""What a model can't draw, or would not heed: refused before anything is loaded."""

from __future__ import annotations

import math

import msgspec

from sdcli.errors import UsageError
from sdcli.models.families import NO_RESCALE, Family
from sdcli.models.spec import Model
from sdcli.request import Adapter, GenerationRequest


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
    _check_start(request, model, family)


def start_of(request: GenerationRequest) -> str:
    """Return what a request starts from, as `Family.starts` calls it; empty: from noise and words alone."""
    start = "mask" if request.mask or request.outpaint else "image" if request.init_image else ""
    return "-".join(filter(None, ("control" if any(net.scale for net in request.controlnet) else "", start)))


def strength_of(request: GenerationRequest) -> float | None:
    """Return how far a request may go from its picture, None where it has none: diffusers' defaults where nothing is said."""
    if request.init_image is None or request.strength is not None:
        return request.strength
    return 1.0 if start_of(request).endswith("mask") else 0.8


def steps_of(steps: int, strength: float, family: Family) -> int:
    """Return how many of a number of steps are drawn from a picture, as the family's pipelines of diffusers reckon."""
    if family.part == "all":
        return steps
    drawn = min(steps * strength, steps)
    return int(drawn) if family.part == "down" else steps - int(steps - drawn)


def enlarged(request: GenerationRequest, model: Model) -> tuple[int, int]:
    """Return the width and height in pixels at which a resolved request is drawn over: rounded to what the model can draw."""
    assert request.hires is not None and request.width is not None and request.height is not None
    factor, multiple = request.hires.factor, model.multiple
    width, height = (round(side * factor / multiple) * multiple for side in (request.width, request.height))
    return width, height


# What each field needs beside it to have an effect.
NEEDS = {
    "strength": ("init_image",), "mask": ("init_image",), "outpaint": ("init_image",),
    "resize": ("init_image", "controlnet"), "invert_mask": ("mask",), "mask_blur": ("mask", "outpaint"),
    "control_preprocess": ("controlnet",),
}  # fmt: skip


def idle(request: GenerationRequest) -> list[str]:
    """Return the fields that are given and have no effect, because another is not given."""
    given = (field for field in NEEDS if getattr(request, field) != _DEFAULTS[field])
    return [field for field in given if not any(getattr(request, other) for other in NEEDS[field])]


def without_idle(request: GenerationRequest) -> GenerationRequest:
    """Return a request without what has no effect in it."""
    return msgspec.structs.replace(request, **{field: _DEFAULTS[field] for field in idle(request)})


STARTS = {
    "image": "from a picture", "mask": "over a part of a picture", "control": "with a ControlNet",
    "control-image": "from a picture with a ControlNet", "control-mask": "over a part of a picture with a ControlNet",
}  # fmt: skip
# What each kind of adapter has besides its name and its scale.
_READS: dict[str, tuple[str, ...]] = {
    "lora": (),
    "embedding": ("token",),
    "controlnet": ("image",),
    "ip_adapter": ("image",),
}
# The steps that an LCM's scheduler knows where its configuration says nothing (arXiv 2310.04378).
LCM_STEPS = 50
# Families whose starting noise sdcli makes itself, and those for which it is made in the same way.
_OWN_NOISE = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "LatentConsistencyModelPipeline")


def _check_start(request: GenerationRequest, model: Model, family: Family) -> None:
    """Refuse what can't be started from, and fields that would have no effect without another."""
    for kind in _READS:
        for one in getattr(request, kind):
            _check_reads(kind, one)
    for field in idle(request):
        flags = " or ".join(f"--{n.replace('_', '-')}" for n in NEEDS[field])
        raise _about(field, f"{field} has no effect without {flags}", f"give {flags}, or leave {field} out")
    start = start_of(request)
    if start and start not in family.starts:
        about = "controlnet" if start.startswith("control") else "mask" if request.mask else "init_image"
        why = f": {family.no_starts}" if family.no_starts else ""
        raise _about(about, f"{model.name} ({family.name}) can't draw {STARTS[start]}{why}", "name another model")
    if strength := strength_of(request):
        _check_strength("strength", strength, request.num_inference_steps, model, family)
    if request.hires is not None:
        if start.endswith("mask"):
            raise _about("hires", "hires can't draw over a part of a picture", "leave --hires out, or the mask")
        again = start.replace("image", "").strip("-")
        if (again + "-image").strip("-") not in family.starts:
            why = f": {family.no_starts}" if family.no_starts else ""
            raise _about("hires", f"{model.name} ({family.name}) can't draw over a picture{why}", "leave --hires out")
        _check_strength("hires", request.hires.strength, request.num_inference_steps, model, family)
        start = (again + "-image").strip("-")
    if request.guidance_rescale and start in family.unrescaled:
        raise _about(
            "guidance_rescale",
            f"{model.name} ({family.name}) can't use guidance_rescale {STARTS[start]}: {NO_RESCALE}",
            "leave guidance_rescale out",
        )
    if request.variation is not None:
        if family.class_name not in _OWN_NOISE:
            raise _about(
                "variation", f"{model.name} ({family.name}) makes its starting noise itself", "leave variation out"
            )
        if request.init_image:
            raise _about(
                "variation",
                "a variation goes from one starting noise to another, and a picture has its own start",
                "leave --variation (--vary) out: --from it with another --seed varies it",
            )


def _check_reads(kind: str, adapter: Adapter) -> None:
    """Refuse an adapter without the picture that its kind reads, and what its kind has no use for."""
    for name in ("image", "token"):
        if name not in _READS[kind] and getattr(adapter, name) is not None:
            raise _about(kind, f"{adapter.name}: a {kind} has no {name}", f"leave {name} out")
    if "image" in _READS[kind] and adapter.image is None:
        flag = f"--{kind.replace('_', '-')}"
        raise _about(kind, f"{adapter.name} has no picture to read", f"as in {flag} {adapter.name}=PICTURE")


def _check_strength(field: str, strength: float, steps: int, model: Model, family: Family) -> None:
    """Refuse a strength of which no step is left, or more steps than the scheduler of a family that draws all of them has."""
    if steps_of(steps, strength, family) < 1:
        least = math.ceil(1 / strength)
        raise _about(
            field, f"{steps} steps at a strength of {strength:g} are no step at all", f"--steps is at least {least}"
        )
    if family.part == "all":
        most = int((model.scheduler or {}).get("original_inference_steps", LCM_STEPS) * strength)
        if steps > most:
            raise _about(
                field,
                f"{model.name} ({family.name}) has {most} steps at a strength of {strength:g}, not {steps}",
                f"--steps is at most {most}" if most else "a higher strength is what it takes",
            )


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
