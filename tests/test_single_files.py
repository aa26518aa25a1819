"""Models in single files draw what their folders draw, and say where their configuration is to come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import families, models_on_disk, single_files
from tests.conftest import Sdcli, pixels, record_of

Write = Callable[[Path, Path], Path]
# The model's folder, the file, how it is written, and the family that is recorded.
FILES: dict[str, tuple[Callable[[Path], Path], str, Write, str]] = {
    "Stable Diffusion 2": (
        lambda to: families.saved("StableDiffusionPipeline 2", to), "sd2.safetensors", single_files.sd2, "stable-diffusion",
    ),
    "SDXL": (single_files.sdxl_model, "sdxl.safetensors", single_files.sdxl, "stable-diffusion-xl"),
    "Flux dev": (
        lambda to: families.saved("FluxPipeline", to), "flux.safetensors", single_files.flux_transformer, "flux",
    ),
    "Flux schnell, for ComfyUI": (
        lambda to: families.saved("FluxPipeline schnell", to), "flux.safetensors",
        lambda folder, to: single_files.flux_transformer(folder, to, single_files.IN_A_CHECKPOINT), "flux",
    ),
    "Stable Diffusion 3": (
        lambda to: families.saved("StableDiffusion3Pipeline", to), "sd3.safetensors", single_files.sd3_transformer,
        "stable-diffusion-3",
    ),
}  # fmt: skip


def drawn(sdcli: Sdcli, model: Path, name: str, *more: str) -> object:
    command = ("-s", "7", "--steps", "2", "--size", "64x64", "--dtype", "fp32", "-o", name, *more)
    done = sdcli("generate", "a red circle", "-m", str(model), *command)
    assert done.code == 0, done.stderr
    return pixels(name)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    single_files.read_narrow_flux(monkeypatch)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_draws_what_its_folder_draws(kind: str, sdcli: Sdcli, tmp_path: Path) -> None:
    make, name, write, family = FILES[kind]
    folder = make(tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    file = write(folder, tmp_path / "elsewhere" / name)
    expected = drawn(sdcli, folder, "folder.png")
    assert (drawn(sdcli, file, "file.png", "--model-config", str(folder)) == expected).all()
    record = record_of("file.png")
    assert record["model"]["family"] == family and name in record["model"]["files"]
    parts = {f.split("/")[0] for f in record["model"]["files"]} - {name, "--config"}
    if "transformer" in {p.name for p in folder.iterdir()}:
        # All but the transformer come from the configuration's folder, and are in the record.
        assert parts == {p.parent.name for p in folder.glob("*/*.safetensors")} - {"transformer"}
    else:
        assert not parts
    # Beside the file it is found without a word, and the picture can be verified.
    file = file.rename(tmp_path / name)
    folder.rename(file.with_suffix(""))
    assert (drawn(sdcli, file, "beside.png") == expected).all()
    found = sdcli("verify", "beside.png", "--model", str(file), "--json")
    assert found.code == 0 and found.events[0]["verdict"] == "identical", found.stdout


@pytest.mark.parametrize("quantized", ["F16", "Q8_0"])
def test_gguf(quantized: str, sdcli: Sdcli, tmp_path: Path) -> None:
    folder = families.saved("FluxPipeline", tmp_path / "flux")
    file = single_files.gguf(folder, tmp_path / "flux.gguf", quantized)
    there = drawn(sdcli, file, "gguf.png")
    difference = np.abs(there - drawn(sdcli, folder, "folder.png"))  # type: ignore[operator]
    assert difference.mean() < 12, "another picture"
    record = record_of("gguf.png")
    assert record["model"]["family"] == "flux" and "flux.gguf" in record["model"]["files"]
    assert "transformer" not in {f.split("/")[0] for f in record["model"]["files"]}
    found = sdcli("verify", "gguf.png", "--model", str(file), "--json")
    assert found.events[0]["verdict"] == "identical"


def test_what_is_refused(sdcli: Sdcli, tmp_path: Path) -> None:
    flux = families.saved("FluxPipeline", tmp_path / "models" / "flux")
    file = single_files.flux_transformer(flux, tmp_path / "one.safetensors")
    schnell = families.saved("FluxPipeline schnell", tmp_path / "models" / "schnell")
    bare = models_on_disk.configuration(flux, tmp_path / "models" / "bare")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    demo = str(models_on_disk.demo(tmp_path / "models" / "demo"))
    for argv, code, words in (
        ([str(file), "--model-config", str(schnell)], 65, ("another model's", "Flux (dev)")),
        ([str(file), "--model-config", demo], 65, ("another model's",)),
        ([str(file), "--model-config", str(bare)], 65, ("transformer alone", "text_encoder", "--model-config")),
        ([str(file), "--model-config", "nowhere/at/all"], 66, ("nowhere",)),
        ([str(file), "--model-config", str(tmp_path)], 65, ("model_index.json",)),
        ([demo, "--model-config", demo], 2, ("no single file",)),
        ([str(tmp_path / "bad.gguf")], 65, ("GGUF", "fetch")),
    ):
        done = sdcli("generate", "a star", "-m", *argv, "--dry-run")
        assert done.code == code and all(w in done.stderr for w in words), (argv, done.stderr)


def test_without_a_configuration_the_hub_is_asked(
    sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And which repository that would be is said."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    flux = families.saved("FluxPipeline", tmp_path / "models" / "flux")
    file = single_files.flux_transformer(flux, tmp_path / "one.safetensors")
    done = sdcli("generate", "a star", "-m", str(file))
    assert done.code == 69 and "configuration of" in done.stderr
