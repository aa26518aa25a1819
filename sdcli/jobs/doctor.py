"""What stops or slows a run on this machine, examined part by part, each with its remedy."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from sdcli import __version__, models, pipeline, settings
from sdcli.device import Decision, DevicePlan, decide
from sdcli.errors import SdcliError
from sdcli.output import OutputPlan
from sdcli.pipeline import attention
from sdcli.request import GenerationRequest
from sdcli.settings import config, presets

R = TypeVar("R", bound=msgspec.Struct)
Status = Literal["ok", "warning", "problem"]
# The libraries that a picture depends on; the others that sdcli requires are named only where they don't fit.
LIBRARIES = (
    "torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub", "pillow",
)  # fmt: skip
# Extras for those who work on sdcli.
OF_DEVELOPERS = ("test", "full", "lint")
# Free bytes where models go: one of SDXL's size, and some pictures.
ROOM = 10 * 10**9
# Where a system shows that it has such a GPU, whatever torch was built for.
NVIDIA = ("/proc/driver/nvidia/version", "/dev/nvidia0")
AMD = ("/dev/kfd",)
# Parameters of a model of SD 1.5's size, which the plan is made for.
PARAMETERS = 1_066_000_000


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was examined: `value` for machines (text, number, object or None), `message` for people where the
    value does not say it, `hint` what to do where something is amiss.

    A problem stops or slows runs; a warning may stop some.
    """

    name: str
    status: Status = "ok"
    value: Any = None
    message: str | None = None
    hint: str | None = None


def examine(*, offline: bool) -> Iterator[Finding]:
    """Yield what there is to say of this machine, what takes no time first. `offline`: the hub is not asked.

    Nothing is downloaded and nothing is kept but torch's own caches; the hub is asked once at most.
    """
    yield from _versions()
    try:
        Path.cwd()
    except OSError:
        yield Finding(
            name="output", status="problem", message="the current folder has been removed", hint="cd to another"
        )
        return  # Nor are settings and presets to be looked for then.
    yield from _settings()
    yield _output()
    yield from _cache()
    yield from _hub(offline)
    yield from _memory()
    try:
        pipeline.import_libraries()
    except Exception as error:  # What a broken installation raises has no common base.
        yield Finding(
            name="import", status="problem", value=type(error).__name__,
            message=f"the libraries can't be imported: {_line(error)}",
            hint="install them again in a fresh environment: python -m venv, then pip install sdcli",
        )  # fmt: skip
        return
    yield from _devices()
    decision: Decision | None = None
    plan = _set(DevicePlan)
    try:
        decision = decide(plan, pipeline.probe(plan.device), parameters=PARAMETERS)
    except SdcliError as error:
        yield Finding(name="plan", status="problem", message=error.message, hint=error.hint)
    if decision is not None:
        for field in ("device", "dtype", "attention_slicing"):
            value = getattr(decision, field)
            yield Finding(name=field, value=value, message=f"{value}: {decision.reasons[field]}")
        yield _attention(decision)
    yield _drawing(decision)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# What is installed


def _versions() -> Iterator[Finding]:
    from packaging.markers import default_environment
    from packaging.requirements import Requirement

    yield Finding(name="python", value=platform.python_version())
    yield Finding(name="sdcli", value=__version__)
    try:
        wanted = [Requirement(text) for text in metadata.requires("sdcli") or ()]
    except metadata.PackageNotFoundError:  # run from its folder
        wanted = []
    always = {r.name.replace("-", "_"): r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})}
    for name in dict.fromkeys([*LIBRARIES, *always]):
        requirement = always.get(name, Requirement(name))
        version = _version(name)
        if version is None:
            yield Finding(name=name, status="problem", message="is not installed", hint=f"pip install '{requirement}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding(
                name=name, status="warning", value=version,
                message=f"{version} is installed, and sdcli wants {requirement.specifier}",
                hint=f"pip install '{requirement}'",
            )  # fmt: skip
        elif name in LIBRARIES:
            yield Finding(name=name, value=version)
    environment = {k: str(v) for k, v in default_environment().items()}
    for extra in metadata.metadata("sdcli").get_all("Provides-Extra") or () if wanted else ():
        if extra in OF_DEVELOPERS:
            continue
        needs = [r for r in wanted if r.marker and r.marker.evaluate({**environment, "extra": extra})]
        versions = {r.name: _version(r.name) for r in needs if r.name.replace("-", "_") not in always}
        there = None not in versions.values()
        found = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
        yield Finding(
            name=f"extra {extra}", value=there,
            message=found if there else f"not installed: pip install 'sdcli[{extra}]'",
        )  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# What is set


def _settings() -> Iterator[Finding]:
    for place in config.ORIGINS:
        name, path = f"{place} settings", str(config.path(place))
        try:
            values = config.read(place)
            there = config.document(place) is not None
        except SdcliError as error:
            yield Finding(name=name, status="problem", value=path, message=error.message, hint=error.hint)
            continue
        said = f"{path}: sound, sets {', '.join(values) or 'nothing'}" if there else "none"
        yield Finding(name=name, value=path if there else None, message=said)
    try:
        found = [name for name, _ in config.environment()]
        yield Finding(name="variables", value=found, message=", ".join(found) or "none of SDCLI_*")
    except SdcliError as error:
        yield Finding(name="variables", status="problem", message=error.message, hint=error.hint)
    own = [(name, *files[0]) for name, files in presets.known().items() if files[0][0] != "shipped"]
    bad = [(name, fault) for name, place, path in own for fault in presets.faults(name, place, path)]
    if bad:
        yield Finding(
            name="presets", status="warning", value=[name for name, _, _ in own], message=str(bad[0][1]),
            hint="`sdcli presets check` says all that is wrong",
        )  # fmt: skip
    else:
        yield Finding(name="presets", value=[name for name, _, _ in own], message=f"{len(own)} of your own, sound")


def _set(record: type[R]) -> R:
    """Return what is set of a record; its defaults where the settings are not sound, which is told of by itself."""
    try:
        return settings.current().build(record)
    except SdcliError:
        return record()


# Where things go


def _output() -> Finding:
    folder = _output_folder()
    free = shutil.disk_usage(_existing(folder)).free
    value = {"path": str(folder), "free": free}
    try:
        # Asked of the system by doing it: what permissions say is not all, on a network's disk.
        with tempfile.TemporaryFile(dir=_existing(folder)):
            pass
    except OSError as error:
        return Finding(
            name="output", status="problem", value=value, message=f"{folder} can't be written: {error.strerror}",
            hint="go to another folder, or name one with -o",
        )  # fmt: skip
    return Finding(name="output", value=value, message=f"{folder}: can be written, {_size(free)} free")


def _output_folder() -> Path:
    """Return the folder that pictures go to if a command says nothing else."""
    named = _set(OutputPlan).output
    if not named or named == "-":
        return Path.cwd()
    plain = named.partition("{")[0]
    is_folder = plain.endswith("/") or (plain == named and Path(named).is_dir())
    folder = Path(plain) if is_folder else Path(plain).parent
    return folder.absolute()


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    return next(f for f in (folder, *folder.absolute().parents) if f.is_dir())


def _cache() -> Iterator[Finding]:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    repos = [f for f in _entries(folder) if f.startswith("models--")]
    size = sum(_bytes_in(folder / name) for name in repos)
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    value = {"path": str(folder), "bytes": size, "models": len(repos)}
    said = f"{folder}: {len(repos)} model{'' if len(repos) == 1 else 's'}, {_size(size)}"
    if not os.access(place, os.W_OK):
        yield Finding(
            name="cache", status="problem", value=value, message=f"{folder} can't be written",
            hint="mend its permissions, or set HF_HOME to a folder that can be",
        )  # fmt: skip
    else:
        yield Finding(name="cache", value=value, message=said if folder.is_dir() else f"{folder}: not made yet")
    low = free < ROOM
    yield Finding(
        name="disk", status="problem" if low else "ok", value=free,
        message=f"{_size(free)} free where models go" + (f", under {_size(ROOM)}" if low else ""),
        hint="remove what is not used (`hf cache rm`), or set HF_HOME to another disk" if low else None,
    )  # fmt: skip


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _bytes_in(folder: Path) -> int:
    """Return the bytes of the files under a folder; links, which a cache is full of, lead to files in it."""
    found = 0
    for top, _, files in os.walk(folder):
        for name in files:
            try:
                about = os.lstat(os.path.join(top, name))
            except OSError:
                continue
            found += about.st_blocks * 512 if hasattr(about, "st_blocks") else about.st_size
    return found


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


# The hub


def _hub(offline: bool) -> Iterator[Finding]:
    import huggingface_hub
    from huggingface_hub import constants

    address = constants.ENDPOINT
    if offline or constants.HF_HUB_OFFLINE:
        why = "--offline" if offline else "HF_HUB_OFFLINE is set"
        yield Finding(name="hub", value=None, message=f"{address}: not asked ({why})")
    else:
        answer = _ask(address)
        if isinstance(answer, int) and answer < 500:
            yield Finding(name="hub", value=address, message=f"{address}: reachable")
        else:
            said = f"it answers {answer}" if isinstance(answer, int) else answer
            yield Finding(
                name="hub", status="warning", value=address, message=f"{address} can't be reached: {said}",
                hint="models that are here still draw, `demo` too; a proxy is named by HTTPS_PROXY, another hub by HF_ENDPOINT",
            )  # fmt: skip
    there = huggingface_hub.get_token() is not None
    yield Finding(name="token", value=there, message="there is one" if there else "none: only gated models need one")


def _ask(address: str) -> int | str:
    """Return the status of the hub's answer, or why there was none."""
    from huggingface_hub import get_session

    told: list[int | str] = []

    def ask() -> None:
        try:
            told.append(get_session().head(f"{address}/api/models", timeout=models.PATIENCE).status_code)
        except Exception as error:  # The client's exceptions have changed their base with its HTTP library.
            told.append(_line(error))

    # A name's look-up knows no time-out of ours, and a thread that is left behind does not keep the process.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(models.PATIENCE + 1)
    return told[0] if told else f"no answer within {models.PATIENCE:.0f} seconds"


# The machine


def _memory() -> Iterator[Finding]:
    import psutil

    cores, memory = os.cpu_count() or 1, psutil.virtual_memory()
    name = _cpu_name()
    yield Finding(name="cpu", value={"name": name, "cores": cores}, message=f"{name}, {cores} cores")
    yield Finding(
        name="memory", value={"free": memory.available, "total": memory.total},
        message=f"{_size(memory.available)} free of {_size(memory.total)}",
    )  # fmt: skip


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _devices() -> Iterator[Finding]:
    built = attention.built_for()
    found = pipeline.probe().accelerators
    for one in found:
        free, total = attention.memory(one.device)
        said = f", {_size(free)} free of {_size(total)}" if free is not None and total is not None else ""
        yield Finding(
            name="gpu", value={"device": one.device, "name": one.name, "free": free, "total": total, "bf16": one.bf16},
            message=f"{one.device}: {one.name or 'a GPU'}{said}",
        )  # fmt: skip
    torch = f"torch {_version('torch')}"
    start = "install the one that pytorch.org/get-started names for this machine"
    hidden = next((v for v in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES") if os.environ.get(v) in ("", "-1")), None)
    nvidia = any(map(os.path.exists, NVIDIA))
    kinds = {one.device.partition(":")[0] for one in found}
    if "cuda" not in kinds and hidden and nvidia:
        yield Finding(name="gpu", status="warning", message=f"GPUs are hidden by {hidden}", hint=f"unset {hidden}")
    elif "cuda" not in kinds and nvidia:
        if "cuda" in built:
            yield Finding(
                name="gpu", status="problem", message=f"there is an NVIDIA GPU, and {torch} can't use it",
                hint="see whether `nvidia-smi` works: the driver may be too old for this torch, or closed to this user",
            )  # fmt: skip
        else:
            yield Finding(
                name="gpu",
                status="problem",
                message=f"there is an NVIDIA GPU, and {torch} is built without CUDA",
                hint=start,
            )
    elif "cuda" not in kinds and any(map(os.path.exists, AMD)) and "rocm" not in built:
        yield Finding(
            name="gpu", status="problem", message=f"there is an AMD GPU, and {torch} is built without ROCm", hint=start
        )
    elif not found:
        yield Finding(name="gpu", message="none: pictures are drawn on the CPU")


def _attention(decision: Decision) -> Finding:
    try:
        found = attention.kernels(decision.device, decision.dtype)
    except Exception as error:  # A device that is there and does not work raises what it likes.
        return Finding(
            name="attention", status="problem", message=f"{decision.device} does not compute: {_line(error)}",
            hint="--device cpu draws without it; see whether its driver works",
        )  # fmt: skip
    if found and found[0] != "math":
        others = f"; {', '.join(found[1:])} where it can't" if found[1:] else ""
        said = f"{found[0]}: PyTorch's kernel for {decision.dtype} on {decision.device}{others}"
    else:
        said = (
            f"math: PyTorch has no kernel that does without the full matrix for {decision.dtype} on {decision.device}"
        )
    return Finding(name="attention", value=list(found), message=said)


def _drawing(decision: Decision | None) -> Finding:
    """Draw two steps with the bundled model, and tell how long each part took."""
    plan = DevicePlan(device=decision.device, dtype=decision.dtype) if decision else DevicePlan()
    try:
        drawer = pipeline.load("demo", plan)
        request = GenerationRequest(prompt="a red circle on a blue background", num_inference_steps=2, seed=0)
        (picture,) = drawer.generate([request])
    except SdcliError as error:
        return Finding(name="drawing", status="problem", message=error.message, hint=error.hint)
    except Exception as error:  # What a device's libraries raise has no common base.
        return Finding(
            name="drawing", status="problem", message=f"it failed: {_line(error)}",
            hint="`sdcli generate \"a star\" --model demo -vv` shows where; --device cpu may do better",
        )  # fmt: skip
    seconds = picture.record.seconds
    step = seconds.draw / 2
    return Finding(
        name="drawing", value={"load": seconds.load, "step": round(step, 4), "decode": seconds.decode},
        message=f"load {seconds.load:.2f} s, {step:.3f} s a step, decode {seconds.decode:.2f} s (demo, 128 x 128)",
    )  # fmt: skip
