"""Where fields meet: what stays on after a failure, what records may not make sdcli open, and what comes out of a template."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli import DevicePlan, GenerationRequest, load
from sdcli.errors import BadInput
from sdcli.pipeline import Pipeline
from sdcli.record import GeneratedImage
from sdcli.request import Adapter, Hires, Variation
from tests import families
from tests.adapter_files import saved
from tests.conftest import Sdcli, pixels, record_of

GREEN = Path(__file__).parent / "adapters" / "green.safetensors"
DEMO = ["-m", "demo", "--steps", "4"]


@pytest.fixture(scope="module")
def demo() -> Pipeline:
    return load("demo", DevicePlan(dtype="fp32"))


def drawn(pipeline: Pipeline, **more: Any) -> GeneratedImage:
    request = GenerationRequest(prompt="a red circle", seed=1, num_inference_steps=4, guidance_scale=2.0)
    (picture,) = pipeline.generate(
        [GenerationRequest(**{f: getattr(request, f) for f in request.__struct_fields__} | more)]
    )
    return picture


# Adapters from picture to picture


def test_a_refused_adapter_takes_nothing_off_in_silence(demo: Pipeline, tmp_path: Path) -> None:
    import torch

    plain = drawn(demo).record
    green = drawn(demo, lora=(Adapter(name=str(GREEN)),)).record
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_{}.weight"
    wide = saved(
        {layer.format("A"): torch.zeros(2, 2048), layer.format("B"): torch.zeros(128, 2)}, tmp_path / "wide.safetensors"
    )
    with pytest.raises(BadInput):
        drawn(demo, lora=(Adapter(name=str(wide)),))
    after = drawn(demo).record
    assert after.pixels == plain.pixels != green.pixels and after.model.adapters == ()


def test_another_file_under_the_same_name_is_another_adapter(demo: Pipeline, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "style.safetensors"
    shutil.copy(GREEN, path)
    first = drawn(demo, lora=(Adapter(name=str(path)),)).record
    other = {k: -v if "lora_B" in k or "lora.up" in k else v for k, v in load_file(path).items()}
    path.unlink()
    saved(other, path)
    second = drawn(demo, lora=(Adapter(name=str(path)),)).record
    assert second.pixels != first.pixels and second.id != first.id
    assert second.model.adapters[0]["sha256"] == second.request.lora[0].sha256 != first.request.lora[0].sha256


# Variations


def test_neighbours_without_a_variation_do_not_take_it_away(tmp_path: Path) -> None:
    """On a family that diffusers draws whole, too; and a second pass starts from the picture, whatever the first one's noise."""
    folder = families.saved("StableDiffusionXLPipeline", tmp_path / "xl")
    xl = load(str(folder), DevicePlan(dtype="fp32"))
    size = {"width": 64, "height": 64, "num_inference_steps": 4, "guidance_scale": 2.0, "seed": 1}
    plain = GenerationRequest(prompt="a star", **size)
    varied = GenerationRequest(prompt="a star", variation=Variation(seed=5, strength=0.6), **size)
    alone = [next(iter(xl.generate([one], batch_size=2))).record.pixels for one in (plain, varied)]
    together = [one.record.pixels for one in xl.generate([plain, varied], batch_size=2)]
    assert together == alone and alone[0] != alone[1]
    over = [
        next(iter(xl.generate([GenerationRequest(prompt="a star", hires=Hires(factor=2.0), variation=to, **size)])))
        for to in (None, Variation(seed=3, strength=0.0))
    ]
    assert over[0].record.pixels == over[1].record.pixels


def test_a_grid_of_variations_has_its_pictures_on_the_sheet(sdcli: Sdcli) -> None:
    done = sdcli("grid", "a star", *DEMO, "--x", "cfg=2,3", "--variation=-1:0.3", "--seed", "1", "-o", "out/", "--json")
    assert done.code == 0, done.stderr
    sheet = next(Path("out").glob("grid-*.png"))
    with Image.open(sheet) as image:
        cells = json.loads(image.text["sdcli"])["cells"]  # type: ignore[attr-defined]
    assert all(cell["path"] for cell in cells)
    seeds = {record_of(Path("out") / cell["path"])["request"]["variation"]["seed"] for cell in cells}
    assert len(seeds) == 1 and seeds != {1}


def test_a_plan_knows_no_seed_that_is_drawn_later(sdcli: Sdcli) -> None:
    (plan,) = sdcli("generate", "a star", *DEMO, "--seed", "1", "--variation=-1:0.2", "--dry-run", "--json").events
    assert plan["id"] is None and plan["request"]["variation"]["seed"] is None


# What records say


def edited(path: Path, to: str, **more: Any) -> None:
    """Write a picture whose record was edited."""
    with Image.open(path) as image:
        image.load()
        record = json.loads(image.text["sdcli"])  # type: ignore[attr-defined]
        record["request"] |= more
        said = PngInfo()
        said.add_itxt("sdcli", json.dumps(record))
        image.save(to, pnginfo=said)


@pytest.mark.parametrize(
    "more",
    [
        {"init_image": "SECRET/s.png"},
        {"lora": [{"name": "SECRET/green.safetensors", "scale": 1.0}]},
        {"controlnet": [{"name": "x", "scale": 1.0, "sha256": "0" * 64, "image": "SECRET/s.png"}]},
        {"upscale": {"name": "/dev/stdin", "factor": 2.0}},
        {"lora": [{"name": "a" * 300 + ".safetensors", "scale": 1.0, "sha256": "0" * 64}]},
        {"lora": [{"name": "someone/style", "scale": 1.0, "sha256": "0" * 64}]},
    ],
    ids=["init image", "lora", "control picture", "upscaler", "long name", "hub"],
)
def test_no_file_is_opened_or_fetched_at_a_pictures_word(
    sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    from sdcli.models import adapters

    secret = tmp_path / "elsewhere"
    secret.mkdir()
    sdcli("generate", "a star", *DEMO, "-o", "star.png", "-q")
    shutil.copy("star.png", secret / "s.png")
    shutil.copy(GREEN, secret / "green.safetensors")
    edited(Path("star.png"), "evil.png", **json.loads(json.dumps(more).replace("SECRET", str(secret))))

    def never(*_: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(adapters, "download", never)
    done = sdcli("verify", "evil.png")
    assert done.code in (65, 66, 69), done.stderr
    if "someone/style" not in str(more):  # Whoever says --from a picture that names what is on the hub has it fetched.
        done = sdcli("generate", "--from", "evil.png", "-m", "demo", "-o", "x.png")
        assert done.code in (65, 66, 69) and not Path("x.png").exists(), done.stderr


# Templates and tags


def test_tags_are_read_when_all_is_expanded(sdcli: Sdcli, configuration: Path) -> None:
    folder = configuration / "adapters"
    folder.mkdir(parents=True)
    shutil.copy(GREEN, folder / "green.safetensors")
    Path("words").mkdir()
    Path("words/w.txt").write_text("green\n")
    for prompt in ("a heart <lora:green:{1|1.0}>", "a heart <lora:__w__:1>"):
        done = sdcli(
            "generate", prompt, *DEMO, "--expand", "random", "--wildcards", "words", "-o", "x.png", "--overwrite"
        )
        assert done.code == 0, done.stderr
        record = record_of("x.png")
        assert record["request"]["prompt"] == "a heart" and record["template"] == prompt
        assert record["model"]["adapters"][0]["name"] == "green.safetensors"


def test_what_a_wildcard_names_and_is_not_here_costs_its_row_alone(sdcli: Sdcli) -> None:
    Path("words").mkdir()
    Path("words/s.txt").write_text("<lora:missing:1> square\n")
    Path("rows.txt").write_text("a red circle\na __s__\na blue star\n")
    done = sdcli("batch", "rows.txt", *DEMO, "--expand", "random", "--wildcards", "words", "-o", "out/", "--json")
    assert done.code == 1, done.stderr
    *_, summary = done.events
    assert (summary["done"], summary["failed"]) == (2, 1)
    (error,) = [e for e in done.events if e["event"] == "error"]
    assert error["line"] == 2 and error["exit"] == 69


def test_a_tag_is_no_word_of_the_prompt(sdcli: Sdcli, configuration: Path) -> None:
    folder = configuration / "adapters"
    folder.mkdir(parents=True)
    shutil.copy(GREEN, folder / "green.safetensors")
    prompt = " ".join(["star"] * 75) + " <lora:green:0.5>"
    Path("rows.jsonl").write_text(json.dumps({"prompt": prompt}))
    assert sdcli("batch", "rows.jsonl", *DEMO, "--long-prompt", "error", "-o", "out/").code == 0
    done = sdcli("generate", "a star " + "<lora:green:0.01>" * 33, *DEMO, "-o", "many.png")
    assert done.code == 2 and "32 at most" in done.stderr


# Odd input


def test_odd_input_is_refused_with_a_word(sdcli: Sdcli, tmp_path: Path) -> None:
    os.mkfifo("pipe.safetensors")
    done = sdcli("generate", "a star", *DEMO, "--lora", "pipe.safetensors")
    assert done.code == 65 and "no file" in done.stderr
    Path("deep.csv").write_text('prompt,lora\na star,"' + "[" * 100_000 + '"\n')
    assert sdcli("batch", "deep.csv", *DEMO, "-o", "out/").code == 65
    Image.new("RGB", (128, 128), "red").save("red.png")
    done = sdcli("generate", "a star", *DEMO, "-i", "red.png", "--outpaint", "left=0")
    assert done.code == 2 and "adds nothing" in done.stderr
    done = sdcli(
        "generate", "a star", *DEMO, "-i", "red.png", "--outpaint", "left=64", "--width", "192", "-o", "wide.png"
    )
    assert done.code == 0 and pixels("wide.png").shape[:2] == (128, 192)
    strange = tmp_path / os.fsdecode(b"\xff")
    strange.mkdir()
    shutil.copy("red.png", strange / "red.png")
    done = sdcli("generate", "a star", *DEMO, "-i", str(strange / "red.png"), "--strength", "0", "-o", "same.png")
    assert done.code == 0, done.stderr
    assert (np.asarray(pixels("same.png")) == np.asarray(pixels("red.png"))).all()


def test_what_is_on_the_hub_only_does_not_hinder_a_plan(sdcli: Sdcli) -> None:
    Path("rows.txt").write_text("a star\n")
    done = sdcli("batch", "rows.txt", *DEMO, "--lora", "someone/thing", "--dry-run", "--json")
    assert done.code == 0, done.stderr
    assert done.events[0]["id"] is None
