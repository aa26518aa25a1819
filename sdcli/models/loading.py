"""What loading a model brings: its files, their hashes and parameters."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from sdcli.models.folders import folder_parts, texts_of
from sdcli.models.spec import Model
from sdcli.models.weights import by_variant, files_in, sha256_of, shapes_of


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
