"""Enlarging: exact sizes, tiles without seams, and nothing but safetensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcli.errors import BadInput, InputMissing, ModelUnavailable, NotFinite, SdcliError, UsageError
from sdcli.models import sha256_of
from sdcli.pipeline import upscaling
from sdcli.pipeline.machine import import_libraries
from sdcli.request import Upscale
from tests import hub as hubs
from tests.conftest import record_of
from tests.running import environment

SMALL = {"embed_dim": 6, "depths": [1], "num_heads": [2], "mlp_ratio": 1.0, "upsampler": "pixelshuffledirect"}


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _values(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(image).astype(int)


def _upscaler(folder: Path, factor: int, box: bool = False, **changed: float) -> Path:
    """Save a tiny Swin2SR that makes each pixel a square of its colour; with `box`, of the mean of the nine around it.

    `changed` sets all of a tensor of that name (dots as __) to a number.
    """
    import_libraries()
    import torch
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    torch.manual_seed(0)
    model = Swin2SRForImageSuperResolution(Swin2SRConfig(upscale=factor, **SMALL))
    tensors = model.state_dict()
    with torch.no_grad():
        for name in (
            n for n in tensors if "conv_after_body" in n or "first_convolution" in n or n.startswith("upsample")
        ):
            tensors[name].zero_()
        for channel in range(3):
            into = tensors["swin2sr.first_convolution.weight"][channel, channel]
            if box:
                into.fill_(1 / 9)
            else:
                into[1, 1] = 1
            # A pixel shuffle takes the square's pixels from neighbouring channels.
            square = slice(channel * factor**2, (channel + 1) * factor**2)
            tensors["upsample.conv.weight"][square, channel, 1, 1] = 1
        for name, value in changed.items():
            tensors[name.replace("__", ".")].fill_(value)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an upscaler that doubles every pixel."""
    return _upscaler(tmp_path_factory.mktemp("models") / "twice", 2)


def test_lanczos_takes_any_factor() -> None:
    image = _noise(24, 16)
    for factor, size in ((None, (48, 32)), (1.5, (36, 24)), (4.0, (96, 64)), (1.03, (25, 16))):
        found = upscaling.enlarge(image, Upscale(name="lanczos", factor=factor))
        assert found.size == size and found.tobytes() == image.resize(size, Image.Resampling.LANCZOS).tobytes()
    assert upscaling.pinned(Upscale(name="lanczos", factor=3.0)) == Upscale(name="lanczos", factor=3.0)


@pytest.mark.parametrize("size", [(16, 16), (21, 13), (250, 40), (200, 230)])
def test_a_network_enlarges_exactly(size: tuple[int, int], twice: Path) -> None:
    """What the network does is known for each pixel, so tiles must not be seen at all."""
    image = _noise(*size)
    found = upscaling.enlarge(image, Upscale(name=str(twice)))
    assert found.tobytes() == image.resize((size[0] * 2, size[1] * 2), Image.Resampling.NEAREST).tobytes()


def test_a_factor_of_its_own(twice: Path, tmp_path: Path) -> None:
    image = _noise(20, 12)
    doubled = image.resize((40, 24), Image.Resampling.NEAREST)
    for factor, size in ((3.0, (60, 36)), (1.5, (30, 18))):
        found = upscaling.enlarge(image, Upscale(name=str(twice), factor=factor))
        assert found.tobytes() == doubled.resize(size, Image.Resampling.LANCZOS).tobytes()
    third = _upscaler(tmp_path / "third", 3)
    assert upscaling.factor_of(Upscale(name=str(third))) == 3.0
    assert upscaling.enlarge(image, Upscale(name=str(third))).size == (60, 36)


def test_tiles_leave_no_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile does not see what is beside it, here as black: its edges are wrong, and must not show."""
    model = Upscale(name=str(_upscaler(tmp_path / "box", 2, box=True)))
    image = Image.linear_gradient("L").resize((152, 112)).convert("RGB")
    whole = _values(upscaling.enlarge(image, model))
    monkeypatch.setattr(upscaling, "TILE", 64)
    tiled = _values(upscaling.enlarge(image, model))
    assert abs(tiled - whole).max() <= 2
    monkeypatch.setattr(upscaling, "_ramp", lambda length, shared: Image.new("L", (length, 1), 255))
    assert abs(_values(upscaling.enlarge(image, model)) - whole).max() > 20, "which put together plainly they do"


def test_equal_to_transformers_own(tmp_path: Path) -> None:
    """In one tile: the values that transformers' model gives for the picture."""
    import_libraries()
    import torch
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    torch.manual_seed(3)
    model = Swin2SRForImageSuperResolution(Swin2SRConfig(upscale=2, **SMALL)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(tmp_path / "model")
    image = _noise(48, 40)
    with torch.no_grad():
        given = model(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255).reconstruction[0]
    expected = (given.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(int)
    found = _values(upscaling.enlarge(image, Upscale(name=str(tmp_path / "model"))))
    assert (found == expected).all() and len(np.unique(found)) > 100


def test_values_that_are_not_finite_are_no_picture(tmp_path: Path) -> None:
    broken = _upscaler(tmp_path / "nan", 2, upsample__conv__bias=float("nan"))
    with pytest.raises(NotFinite, match="not finite"):
        upscaling.enlarge(_noise(16, 16), Upscale(name=str(broken)))


def test_what_records_keep_and_how_it_is_found_again(twice: Path, tmp_path: Path) -> None:
    sha256 = sha256_of(twice / "model.safetensors")
    kept = upscaling.pinned(Upscale(name=str(twice), factor=1.5))
    assert kept == Upscale(name="twice", factor=1.5, sha256=sha256) == upscaling.pinned(kept)
    assert upscaling.pinned(Upscale(name=str(twice / "model.safetensors"))).name == "model.safetensors"
    found = upscaling.located(kept, [tmp_path, twice.parent])
    assert found == Upscale(name=str(twice), factor=1.5)
    by_file = Upscale(name="model.safetensors", sha256=sha256)
    assert upscaling.located(by_file, [twice]).name == str(twice / "model.safetensors")
    for name in ("../twice", str(twice), "other", "", "..", "twice\0", f"x/../{twice.name}"):
        stray = Upscale(name=name, sha256=sha256)
        assert upscaling.located(stray, [twice.parent, twice / "sub"]) == stray
    changed = Upscale(name="twice", sha256="0" * 64)
    assert upscaling.located(changed, [twice.parent]) == changed
    with pytest.raises(InputMissing, match="twice") as missing:
        upscaling.check(changed)
    assert "--upscale" in str(missing.value.hint)
    # Another one may take the place of a file that was used before.
    other = tmp_path / "twice"
    _upscaler(other, 2)
    assert upscaling.enlarge(_noise(16, 16), Upscale(name=str(other))).size == (32, 32)
    _upscaler(other, 3)
    assert upscaling.enlarge(_noise(16, 16), Upscale(name=str(other))).size == (48, 48)


def test_one_in_the_hubs_cache(twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--some--upscaler"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    folder = repo / "snapshots" / commit
    _copy(twice, folder)
    named = Upscale(name="some/upscaler")
    upscaling.check(named)
    assert upscaling.enlarge(_noise(16, 16), named).size == (32, 32)
    kept = upscaling.pinned(Upscale(name=f"some/upscaler@{commit}"))
    assert kept == Upscale(name="some/upscaler", sha256=sha256_of(twice / "model.safetensors"))
    assert upscaling.located(kept, []) == Upscale(name=str(folder))
    (folder / "model.safetensors").unlink()
    assert not upscaling.is_here(named)
    with pytest.raises(ModelUnavailable, match="not on this machine"):
        upscaling.pinned(named)
    assert upscaling.located(kept, []) == kept


def test_one_on_the_hub_is_fetched(twice: Path, tmp_path: Path) -> None:
    """Once; the next run asks nobody, and without a connection it says so."""
    command = [
        sys.executable,
        "-m",
        "sdcli",
        "generate",
        "a star",
        "-m",
        "demo",
        "--steps",
        "2",
        "--upscale",
        "some/upscaler",
    ]
    with hubs.serving(some__upscaler=hubs.Repo(_copy(twice, tmp_path / "repo"))) as hub:
        env = environment(tmp_path / "home") | {"HF_ENDPOINT": hub.url}

        def run(*more: str) -> subprocess.CompletedProcess[str]:
            whole = [*command, *more]
            return subprocess.run(whole, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)

        before = run("--offline", "-o", "none.png")
        assert before.returncode == 69 and not (tmp_path / "none.png").exists(), before.stderr
        first = run("-o", "one.png")
        assert first.returncode == 0 and "downloading some/upscaler" in first.stderr, first.stderr
        assert hub.downloaded("some/upscaler") == {"config.json", "model.safetensors"}
        again = run("--offline", "-o", "two.png")
        assert again.returncode == 0 and "downloading" not in again.stderr
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (256, 256)
    kept = record_of(tmp_path / "two.png")["request"]["upscale"]
    assert kept == {"name": "some/upscaler", "factor": None, "sha256": sha256_of(twice / "model.safetensors")}


def _copy(source: Path, target: Path, **config: Any) -> Path:
    target.mkdir()
    (target / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    said = json.loads((source / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(said))
    return target


def _refused(name: Path | str, error: type[SdcliError], words: str) -> None:
    with pytest.raises(error, match=words) as refused:
        upscaling.check(Upscale(name=str(name)))
    assert refused.value.hint
    with pytest.raises(error):
        upscaling.pinned(Upscale(name=str(name)))


def test_what_is_no_upscaler_is_refused(twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    upscaling.check(Upscale(name=str(twice)))
    for name in ("4x.pth", "4x.pt", "4x.ckpt", "4x.bin"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
        _refused(tmp_path / name, BadInput, "pickle")
    _refused(tmp_path / "none.safetensors", InputMissing, "no upscaler")
    _refused("lanczoz", ModelUnavailable, "lanczos")
    assert not upscaling.is_here(Upscale(name="nobody/upscaler"))
    with pytest.raises(ModelUnavailable, match="not on this machine"):
        upscaling.pinned(Upscale(name="nobody/upscaler"))
    _refused(_copy(twice, tmp_path / "other", model_type="swinir"), BadInput, "no Swin2SR")
    _refused(_copy(twice, tmp_path / "grey", num_channels=1), BadInput, "three channels")
    _refused(_copy(twice, tmp_path / "huge", upscale=10**9), BadInput, "no configuration")
    cut = _copy(twice, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((twice / "model.safetensors").read_bytes()[:-9])
    _refused(cut, BadInput, "truncated")
    bare = _copy(twice, tmp_path / "bare")
    (bare / "config.json").unlink()
    _refused(bare, BadInput, "no config.json")
    _refused(bare / "model.safetensors", BadInput, "no config.json")
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    _refused(bare, BadInput, "pickles only")
    (bare / "pytorch_model.bin").unlink()
    _refused(bare, BadInput, "no model.safetensors")


def test_weights_that_do_not_fit_are_refused(twice: Path, tmp_path: Path) -> None:
    for name, changed in (("wide", {"embed_dim": 12}), ("deep", {"depths": [2]}), ("odd", {"upsampler": 7})):
        wrong = Upscale(name=str(_copy(twice, tmp_path / name, **changed)))
        with pytest.raises(BadInput, match="config.json") as refused:
            upscaling.enlarge(_noise(16, 16), wrong)
        assert refused.value.hint


def test_what_would_be_too_large_is_refused() -> None:
    upscaling.check(Upscale(name="lanczos", factor=16.0), (1024, 1024))
    for call in (upscaling.check, lambda up, size: upscaling.enlarge(Image.new("RGB", size), up)):
        with pytest.raises(UsageError, match="32768x16384"):
            call(Upscale(name="lanczos", factor=16.0), (2048, 1024))


def test_checking_needs_no_torch(twice: Path, probe: Any) -> None:
    done = probe(
        "import sys; from sdcli.pipeline import upscaling; from sdcli.request import Upscale; from pathlib import Path\n"
        f"up = Upscale(name={str(twice)!r}); upscaling.check(up, (512, 512)); kept = upscaling.pinned(up)\n"
        f"assert upscaling.located(kept, [Path({str(twice.parent)!r})]) == up and upscaling.factor_of(up) == 2\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
