"""Loading: weights from this machine onto the device that the plan means."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sdcli import models
from sdcli.device import DevicePlan, decide
from sdcli.errors import BadInput, OutOfMemory, SdcliError
from sdcli.models import Model, ModelSpec, Weights
from sdcli.models.hub import Say
from sdcli.pipeline.machine import align, import_libraries, out_of_memory, probe, quiet
from sdcli.pipeline.requests import identity

if TYPE_CHECKING:
    from sdcli.pipeline.drawing import Pipeline

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def load(spec: ModelSpec | str, plan: DevicePlan | None = None, *, say: Say = quiet) -> Pipeline:
    """Load a model onto the device that `plan` means; `say` is told of downloads and fall-backs.

    Raises what `models.find` and `models.fetch` raise, BadInput for weights that can't be read, OutOfMemory, and
    UsageError for a device that is not there.
    """
    spec, plan = ModelSpec(model=spec) if isinstance(spec, str) else spec, plan or DevicePlan()
    model = models.find(spec)
    if not model.is_here and (plan.device not in ("auto", "cpu") or plan.dtype == "fp16" or plan.offload != "none"):
        # What this machine can't do is refused before gigabytes are downloaded for it.
        import_libraries()
        decide(plan, probe(plan.device))
    model = models.fetch(model, safety_checker=spec.safety_checker, say=say)
    began = time.monotonic()
    # Hashing reads the files that loading reads next, on another core.
    with ThreadPoolExecutor(1) as pool:
        hashed = pool.submit(models.hashes, model)
        import_libraries()
        import torch

        assert model.family is not None
        parameters = models.count_parameters(model)
        decision = decide(
            plan, probe(plan.device), family_dtype=model.family.dtype, parameters=parameters, slices=model.family.slices,
            tiles=model.family.tiles,
        )  # fmt: skip
        if decision.threads:
            torch.set_num_threads(decision.threads)
        with warnings.catch_warnings():
            # diffusers tells of names of its own that its own families still use.
            warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
            pipe = _load_pipe(model, spec.safety_checker, getattr(torch, DTYPES[decision.dtype]))
        hashed.result()
    # Rooms that are of no use before: a refusal does not wait for them.
    from sdcli.pipeline.drawing import Pipeline

    pipeline = Pipeline(pipe, model, identity(model), decision, say)
    pipeline.seconds_to_load = time.monotonic() - began
    return pipeline


def _load_pipe(model: Model, checker: bool, dtype: Any) -> Any:
    """Load a model's components from this machine, with no connection."""
    import diffusers

    assert model.family is not None
    kind = getattr(diffusers, model.family.class_name)
    takes = inspect.signature(kind.__init__).parameters
    # Left out: what drawing from text does without. The checker is loaded apart: what older models say of it names
    # classes that transformers no longer has.
    parts: dict[str, Any] = {name: None for name in models.LEFT_OUT if name in takes}
    if "requires_safety_checker" in takes:
        parts["requires_safety_checker"] = False
    # What the libraries raise for files that are not what they say has no common base.
    try:
        if model.vae is not None:
            parts["vae"] = _load_vae(model.vae, dtype)
        if model.single_file and not model.alone:
            pipe = kind.from_single_file(
                str(model.path), config=str(model.config), dtype=dtype, local_files_only=True, **parts
            )
        else:
            parts |= _load_encoders(model, dtype)
            if model.alone:
                parts[model.family.denoiser] = _load_denoiser(model, dtype)
            pipe = kind.from_pretrained(
                model.configs, dtype=dtype, variant=model.variant, use_safetensors=True, local_files_only=True, **parts
            )
        if checker:
            _load_checker(pipe, model, dtype)
    except SdcliError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise OutOfMemory(
                f"{model.name} does not fit into memory", "try --dtype bf16, or a smaller model"
            ) from error
        reason = " ".join(str(error).split()).split(". ")[0][:300]
        if isinstance(error, NotImplementedError) and "meta tensor" in reason:
            reason = "weights are missing in it"
        raise BadInput(f"{model.name} can't be loaded: {reason}", "fetch it again, or name another model") from error
    import torch

    for part, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            _check_whole(model, part, [name for name, p in component.named_parameters() if p.is_meta])
            # A text encoder out of a single file would be left in training, and drop out what it reads.
            component.eval()
            align(component)
    return pipe


def _load_encoders(model: Model, dtype: Any) -> dict[str, Any]:
    """Load the components that are transformers'."""
    import transformers

    return {
        part: _load_whole(getattr(transformers, model.components[part][1]), model, part, dtype)
        for part in models.folder_parts(model)
        if model.components[part][0] == "transformers"
    }


def _load_denoiser(model: Model, dtype: Any) -> Any:
    """Load the network that predicts noise from a file of its own."""
    import diffusers

    assert model.family is not None and model.path is not None
    part = model.family.denoiser
    more: dict[str, Any] = {}
    if model.path.suffix.lower() == ".gguf":
        more["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    kind = getattr(diffusers, model.components[part][1])
    return kind.from_single_file(
        str(model.path), config=str(model.config), subfolder=part, dtype=dtype, local_files_only=True, **more
    )


def _load_vae(vae: Weights, dtype: Any) -> Any:
    from diffusers import AutoencoderKL

    if vae.single_file:
        return AutoencoderKL.from_single_file(str(vae.path), config=str(vae.config), dtype=dtype, local_files_only=True)
    return AutoencoderKL.from_pretrained(
        vae.path, dtype=dtype, variant=vae.variant, use_safetensors=True, local_files_only=True
    )


def _load_whole(kind: Any, model: Model, part: str, dtype: Any) -> Any:
    """Load a component of transformers, which fills weights that are missing with random ones and says nothing."""
    assert model.configs is not None
    loaded, told = kind.from_pretrained(
        model.configs / part, dtype=dtype, variant=model.variant, use_safetensors=True, local_files_only=True,
        output_loading_info=True,
    )  # fmt: skip
    _check_whole(model, part, sorted(told["missing_keys"]))
    return loaded


def _check_whole(model: Model, part: str, missing: Sequence[str]) -> None:
    if missing:
        raise BadInput(
            f"{model.name} can't be loaded: its {part} lacks weights ({len(missing)}; the first is {missing[0]})",
            "fetch it again, or name another model",
        )


def _load_checker(pipe: Any, model: Model, dtype: Any) -> None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    assert model.path is not None
    pipe.register_modules(
        safety_checker=_load_whole(StableDiffusionSafetyChecker, model, "safety_checker", dtype),
        feature_extractor=CLIPImageProcessor.from_pretrained(model.path / "feature_extractor", local_files_only=True),
    )
