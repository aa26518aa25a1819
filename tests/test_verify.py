"""`sdcli verify` through the front door: pictures of the bundled model, drawn again, and what was done to them told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli import metadata, schedulers
from sdcli.device import Accelerator, DevicePlan, Probe
from sdcli.errors import BadInput, ModelUnavailable
from sdcli.jobs import sheet, verifying
from sdcli.jobs.verifying import CHANGED, UNTOLD, Subject, Verdict, judge, nearest, plan_of, spec_of
from sdcli.models import ModelSpec
from sdcli.record import GeneratedImage, ModelRecord, Record, pixels_of
from tests import hub as hubs
from tests import models_on_disk as disk
from tests.conftest import Outcome, Sdcli, record_of
from tests.hub import Repo

KEYS = "schema event path verdict psnr max_difference causes".split()
DRAW = ("-m", "demo", "--steps", "1", "-s", "7", "-q")
EDITED = "the record was edited: its id is not that of its request and model"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Give the other tests back the threads that they had."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def change(path: Path | str, pixels: Callable[[Any], None] | None = None, **record: Any) -> None:
    """Write a PNG anew with its texts, its pixels changed in place and values of its record replaced; `a__b` is b in a."""
    with Image.open(path) as image:
        texts, array = dict(image.text), np.array(image)  # type: ignore[attr-defined]
    if pixels is not None:
        pixels(array)
    said = json.loads(texts["sdcli"])
    for name, value in record.items():
        *folders, last = name.split("__")
        place = said
        for folder in folders:
            place = place[folder]
        place[last] = value
    info = PngInfo()
    for keyword, text in (texts | {"sdcli": json.dumps(said)}).items():
        info.add_itxt(keyword, text)
    Image.fromarray(array).save(path, pnginfo=info)


def drifted(path: Path | str, pixels: Callable[[Any], None], **record: Any) -> None:
    """Make a picture what another machine would have made of it: other pixels, which its record hashes."""
    change(path, pixels)
    with Image.open(path) as image:
        sha256 = pixels_of(image).sha256
    change(path, pixels__sha256=sha256, **record)


def flip(array: Any) -> None:
    array[5, 9, 1] ^= 1


def one(done: Outcome) -> dict[str, Any]:
    """Return the only verdict."""
    (event,) = done.events
    assert list(event) == KEYS and (event["schema"], event["event"]) == (1, "verify"), done.stderr
    return event


IDENTICAL = {"verdict": "identical", "psnr": None, "max_difference": 0, "causes": []}

# Identical


def test_each_option_and_format_is_drawn_again_as_it_was(sdcli: Sdcli, tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {}, {"cfg": 1}, {"negative": "a blue square", "cfg": 5}, {"clip_skip": 1}, {"scheduler": "dpm++2m-sde-karras"},
        {"scheduler": "ddim", "eta": 0.7}, {"guidance_rescale": 0.5}, {"size": "64x96"},
        {"prompt": "a {red|blue} circle, (very:1.2) \n blank "}, {"format": "jpg"}, {"format": "webp"}, {"format": "avif"},
    ]  # fmt: skip
    asked = rows(tmp_path / "rows.jsonl", *({"prompt": "a red circle", "seed": i} | k for i, k in enumerate(kinds)))
    drawn = sdcli("batch", asked, "-m", "demo", "--steps", "1", "--batch-size", "1", "-o", "pictures/", "-q")
    assert len(drawn.lines) == len(kinds), drawn.stderr
    done = sdcli("verify", "pictures", "--json")
    assert done.code == 0, done.stdout
    assert sorted(e["path"] for e in done.events) == sorted(drawn.lines)
    assert all(e | IDENTICAL == e for e in done.events), done.stdout
    assert done.stderr.count("loading demo") == 1


@pytest.mark.parametrize("size", [4, 16])
def test_from_a_pack(sdcli: Sdcli, tmp_path: Path, size: int) -> None:
    """The pass is as large as it was, and its other pictures need not be there: in fp32 another size changes bits."""
    made = rows(tmp_path / "rows.jsonl", *({"prompt": f"a {c} star", "seed": 4} for c in ("red", "blue", "green")))
    draw = ("-m", "demo", "--steps", "1", "--cfg", "1", "--dtype", "fp32", "--scheduler", "euler-a")
    drawn = sdcli("batch", made, *draw, "--batch-size", str(size), "-o", "pictures/", "-q")
    assert {record_of(path)["plan"]["pack_size"] for path in drawn.lines} == {size}
    Path(drawn.lines[0]).unlink()
    done = sdcli("verify", "pictures")
    assert done.lines == sorted(f"{path}: identical" for path in drawn.lines[1:])


def test_dtype_threads_and_slicing_are_repeated(sdcli: Sdcli, tmp_path: Path) -> None:
    for name, options in {
        "a": ("--dtype", "fp32", "--threads", "2"), "b": ("--dtype", "bf16", "--threads", "1"),
        "c": ("--dtype", "fp32", "--threads", "1", "--attention-slicing", "max", "--vae-tiling"),
    }.items():  # fmt: skip
        assert sdcli("generate", "a red circle", *DRAW, *options, "-o", f"all/{name}.png").code == 0
    done = sdcli("verify", "all")
    assert done.lines == [f"all/{name}.png: identical" for name in "abc"]
    assert done.stderr.count("loading demo") == 3 and "3 identical" in done.stderr


def test_what_was_expanded_is_not_expanded_again(sdcli: Sdcli) -> None:
    sdcli("generate", "a {red|blue|green|yellow} circle", *DRAW, "--expand", "random", "-o", "a.png")
    assert record_of("a.png")["template"] == "a {red|blue|green|yellow} circle"
    assert sdcli("verify", "a.png").lines == ["a.png: identical"]


# Changed by hand


def test_a_flipped_pixel_is_caught(sdcli: Sdcli) -> None:
    """The least difference that there is; that it can't be seen is no excuse for who changed it."""
    sdcli("generate", "a red circle", *DRAW, "-o", "a.png")
    change("a.png", flip)
    done = sdcli("verify", "a.png", "--json")
    event = one(done)
    assert done.code == 1 and event["verdict"] == "different" and event["causes"] == [CHANGED]
    assert event["max_difference"] == 1
    assert event["psnr"] == pytest.approx(10 * np.log10(255**2 * 128 * 128 * 3), abs=0.01)
    done = sdcli("verify", "a.png")
    assert done.lines == ["a.png: different (PSNR 95.0 dB, largest difference 1)", f"  {CHANGED}"] and done.code == 1


def test_an_edited_seed_is_caught_and_named(sdcli: Sdcli) -> None:
    sdcli("generate", "a red circle", *DRAW, "-o", "a.png")
    change("a.png", request__seed=8)
    done = sdcli("verify", "a.png", "--json")
    assert done.code == 1 and one(done)["verdict"] == "different"
    assert one(done)["causes"] == [f"{EDITED} (seed is 8, and 7 in A1111's text beside it)"]
    change("a.png", request__seed=7)
    assert sdcli("verify", "a.png").lines == ["a.png: identical"]


def test_edits_that_change_no_pixel_are_told_of_an_identical_picture(sdcli: Sdcli) -> None:
    sdcli("generate", "a red circle", *DRAW, "--cfg", "1", "-o", "a.png")
    change("a.png", request__negative_prompt="a lie", pixels__sha256="0" * 64)
    done = sdcli("verify", "a.png", "--json")
    event = one(done)
    assert done.code == 0 and event["verdict"] == "identical"
    assert [c.startswith("the record was edited") for c in event["causes"]] == [True, True]
    assert "negative_prompt is a lie, and none in A1111's text" in event["causes"][0]


@pytest.mark.parametrize("ending", ["jpg", "webp", "avif"])
def test_a_lossy_picture_saved_again_is_caught(sdcli: Sdcli, ending: str) -> None:
    sdcli("generate", "a red circle", *DRAW, "-o", f"a.{ending}")
    with Image.open(f"a.{ending}") as image:
        image.save(f"a.{ending}", quality=60, xmp=image.info["xmp"])
    done = sdcli("verify", f"a.{ending}", "--json")
    assert done.code == 1 and one(done)["verdict"] == "different" and one(done)["causes"] == [CHANGED]


def test_a_cut_out_and_a_picture_with_holes(sdcli: Sdcli) -> None:
    sdcli("generate", "a red circle", *DRAW, "-o", "cut.png")
    shutil.copy("cut.png", "holes.png")
    for name, edit in {"cut": lambda i: i.crop((0, 0, 100, 90)), "holes": lambda i: i.convert("RGBA")}.items():
        with Image.open(f"{name}.png") as image:
            info = PngInfo()
            info.add_text("sdcli", image.text["sdcli"])  # type: ignore[attr-defined]
            edit(image).save(f"{name}.png", pnginfo=info)
    cut, holes = (one(sdcli("verify", f"{name}.png", "--json")) for name in ("cut", "holes"))
    assert (cut["verdict"], cut["psnr"], cut["max_difference"]) == ("different", None, None)
    assert cut["causes"] == ["size: 100x90 is the picture's, 128x128 its record's", CHANGED]
    assert sdcli("verify", "cut.png").lines[0] == "cut.png: different"
    assert (holes["verdict"], holes["psnr"], holes["max_difference"]) == ("different", None, 0)
    assert holes["causes"] == [f"{CHANGED} (stored as RGBA)"]


# Another place, other versions


def test_what_was_other_then_is_named(sdcli: Sdcli) -> None:
    """A picture as another machine would have left it."""
    sdcli("generate", "a red circle", *DRAW, "--dtype", "fp32", "--threads", "1", "-o", "a.png")
    there = {
        "versions__torch": "1.0", "versions__diffusers": "0.1", "versions__transformers": "4", "versions__sdcli": "0.0.1",
        "versions__python": "3.10.1", "versions__platform": "linux-riscv64", "plan__device": "cuda:3",
        "plan__dtype": "fp16", "plan__offload": "model", "fallbacks": ["vae-fp32", "batch-size-4"],
    }  # fmt: skip
    drifted("a.png", flip, **there)
    record = metadata.read(Path("a.png"))
    assert record is not None
    done = sdcli("verify", "a.png", "--json")
    event = one(done)
    assert done.code == 0 and (event["verdict"], event["max_difference"]) == ("equal", 1)
    import torch

    assert f"torch: 1.0 then, {torch.__version__} now" in event["causes"]
    told = [cause.partition(":")[0] for cause in event["causes"]]
    assert told == [
        "sdcli", "torch", "diffusers", "transformers", "python", "platform", "device", "dtype", "offload", "fall-back vae-fp32"
    ]  # fmt: skip
    assert {"device: cuda:3 then, cpu now", "dtype: fp16 then, fp32 now"} < set(event["causes"])
    assert sdcli("verify", "a.png").lines[0] == "a.png: equal to the eye (PSNR 95.0 dB, largest difference 1)"


def test_nothing_that_is_recorded_explains_it(sdcli: Sdcli) -> None:
    sdcli("generate", "a red circle", *DRAW, "-o", "a.png")
    drifted("a.png", lambda array: array[:64].fill(0))
    done = sdcli("verify", "a.png", "--json")
    assert done.code == 1 and one(done)["verdict"] == "different" and one(done)["causes"] == [UNTOLD]


def test_another_encoder_is_named(sdcli: Sdcli) -> None:
    sdcli("generate", "a red circle", *DRAW, "-o", "a.jpg")
    subject = verifying.take(Path("a.jpg"))
    with Image.open("a.jpg") as image:
        other = Image.fromarray(np.asarray(image) ^ 1)
    assert subject.record.encoding is not None
    versions = {"pillow": "1.0", "libjpeg-turbo": subject.record.encoding.versions["libjpeg-turbo"]}
    then = msgspec.structs.replace(
        subject.record, encoding=msgspec.structs.replace(subject.record.encoding, versions=versions),
        pixels=msgspec.structs.replace(subject.record.pixels, stored_sha256=pixels_of(other).sha256),
    )  # fmt: skip
    sdcli("generate", "a red circle", *DRAW, "-o", "a.png")
    with Image.open("a.png") as image:
        image.load()
        now = metadata.read(Path("a.png"))
        assert now is not None
        verdict = judge(Subject(record=then, image=other), GeneratedImage(image=image, record=now))
    assert verdict.verdict == "equal" and verdict.max_difference == 1
    (cause,) = verdict.causes
    assert cause.startswith("pillow: 1.0 then, ")


def test_another_model_is_caught_and_named(sdcli: Sdcli, tmp_path: Path) -> None:
    disk.demo(tmp_path / "mine")
    sdcli("generate", "a red circle", *DRAW, "-m", "mine", "-o", "a.png")
    assert sdcli("verify", "a.png", "--model", "mine").lines == ["a.png: identical"]
    assert sdcli("verify", "a.png", "--model", "demo").lines == ["a.png: identical"], "the same weights"
    disk.edit_tensors(tmp_path / "mine" / disk.VAE, lambda t: {k: v * v.dtype.type(0.9) for k, v in t.items()})
    done = sdcli("verify", "a.png", "--json", "--model", str(tmp_path / "mine"))
    assert done.code == 1 and one(done)["verdict"] == "different"
    (cause,) = one(done)["causes"]
    assert cause.startswith(f"model file {disk.VAE}: sha256 ")
    # A folder that bears the bundled model's name, which is what is looked for.
    (tmp_path / "mine").rename(tmp_path / "demo")
    sdcli("generate", "a red circle", *DRAW, "-m", "./demo", "-o", "b.png")
    assert sdcli("verify", "b.png", "-m", "./demo").lines == ["b.png: identical"]
    (cause,) = one(sdcli("verify", "b.png", "--json"))["causes"]
    assert cause.startswith(f"model file {disk.VAE}: sha256 ")


@pytest.mark.parametrize("name", ["mine", "mine.safetensors", "sd15", "~", "."])
def test_no_name_out_of_a_picture_is_looked_for_here(
    sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whoever sends a picture and a folder does not choose what is loaded."""
    disk.demo(tmp_path / "mine")
    disk.demo(tmp_path / "sd15")
    (tmp_path / "mine.safetensors").write_bytes(b"no weights")
    shutil.copy(_picture(tmp_path), "a.png")
    change("a.png", model__name=name, model__repo=None, model__commit=None, plan__dtype="fp32")
    looked: list[str] = []
    monkeypatch.setattr(verifying.models, "find", lambda spec: looked.append(spec.model))
    done = sdcli("verify", "a.png", "--json")
    assert done.code == 69 and looked == [] and "loading" not in done.stderr
    (event,) = done.events
    assert "does not say where that lies" in event["message"] and "--model PATH" in event["hint"]


def test_nothing_is_downloaded_for_a_picture(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(_picture(tmp_path), "a.png")
    change(
        "a.png", model__name="nobody/nothing", model__repo="nobody/nothing", model__commit="0" * 40, plan__dtype="fp32"
    )
    with hubs.serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        done = sdcli("verify", "a.png", "--json")
        assert hub.asked == []
    assert done.code == 69 and "loading" not in done.stderr
    (event,) = done.events
    assert "which is not in the hub's cache" in event["message"]
    assert event["hint"].startswith(f"--model nobody/nothing@{'0' * 40} downloads it")


def test_another_autoencoder_has_to_be_said(sdcli: Sdcli, tmp_path: Path) -> None:
    vae = disk.demo(tmp_path / "other") / "vae"
    sdcli("generate", "a red circle", *DRAW, "--vae", str(vae), "-o", "a.png")
    done = sdcli("verify", "a.png")
    assert done.code == 69 and "--vae" in done.stderr and "another autoencoder" in done.stderr
    assert sdcli("verify", "a.png", "--vae", str(vae)).lines == ["a.png: identical"]


# Where there is nothing to draw from


def test_no_record(sdcli: Sdcli, tmp_path: Path) -> None:
    sdcli("generate", "a red circle", *DRAW, "--metadata", "minimal", "-o", "minimal.png")
    Image.new("RGB", (8, 8)).save("plain.png")
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64")
    Image.new("RGB", (64, 64)).save("foreign.png", pnginfo=info)
    (tmp_path / "broken.png").write_bytes((tmp_path / "minimal.png").read_bytes()[:-40])
    (tmp_path / "none").mkdir()
    for name, code, words in [
        ("minimal.png", 65, "--metadata minimal"), ("plain.png", 65, "no sdcli record"),
        ("foreign.png", 65, "sdcli generate --from"), ("broken.png", 65, "ends too early"), ("gone.png", 66, "is not there"),
        ("none", 66, "no picture"),
    ]:  # fmt: skip
        done = sdcli("verify", name, "--json")
        assert done.code == code and words in done.stderr and "loading" not in done.stderr, (name, done.stderr)
        (event,) = done.events
        assert (event["event"], event["exit"], event["path"]) == ("error", code, name) and name in event["message"]
    assert sdcli("verify").code == 2


def test_goes_on_after_a_bad_one(sdcli: Sdcli) -> None:
    sdcli("generate", "a red circle", *DRAW, "-o", "in/good.png")
    shutil.copy("in/good.png", "in/edited.png")
    change("in/edited.png", request__scheduler="no-such")
    shutil.copy("in/good.png", "in/steps.png")
    change("in/steps.png", request__scheduler="dpm2-karras", request__num_inference_steps=1, request__width=68)
    Image.new("RGB", (8, 8)).save("in/plain.png")
    grid = sheet.record("a", [], [], {})
    Path("in/sheet.png").write_bytes(sheet.encode(Image.new("RGB", (8, 8)), grid))
    done = sdcli("verify", "gone.png", "in", "--json")
    assert done.code == 1, "of several, 1"
    found = {e["path"]: e.get("verdict", e.get("exit")) for e in done.events}
    assert found == {
        "gone.png": 66, "in/edited.png": 65, "in/plain.png": 65, "in/steps.png": 65, "in/good.png": "identical"
    }, "and the sheet of a grid is nothing to draw again"  # fmt: skip
    assert "1 identical, 4 failed" in done.stderr
    assert "in/sheet.png is the sheet of a grid, and not verified" in done.stderr


def test_sheets_of_grids(sdcli: Sdcli) -> None:
    """They are drawn from no record: left out in folders, and told as what they are where they are named."""
    Path("in").mkdir()
    Path("in/sheet.png").write_bytes(sheet.encode(Image.new("RGB", (8, 8)), sheet.record("a", [], [], {})))
    done = sdcli("verify", "in", "--json")
    assert done.code == 65 and "in: nothing to verify is in this folder" in done.stderr
    (event,) = done.events
    assert (event["event"], event["exit"], event["path"]) == ("error", 65, "in")
    done = sdcli("verify", "in/sheet.png", "--json")
    assert done.code == 65 and "in/sheet.png is the sheet of a grid" in done.events[0]["message"]
    sdcli("generate", "a red circle", *DRAW, "-o", "in/good.png")
    done = sdcli("verify", "in")
    assert (done.code, done.lines) == (0, ["in/good.png: identical"]) and "sheet" in done.stderr


@pytest.mark.parametrize(
    ("edit", "code", "words"),
    [
        ({"plan__pack_size": 10**9}, 65, "pack size"),
        ({"plan__pack_size": 0}, 65, "pack size"),
        ({"plan__threads": 10**6}, 65, "plan can't be"),
        ({"plan__device": "auto"}, 65, "auto"),
        ({"plan__device": "\x1b[2Jcuda"}, 65, "plan can't be"),
        ({"request__seed": None}, 65, "seed"),
        ({"model__name": "../mine", "model__repo": None}, 69, "--model"),
        ({"model__name": "/etc/mine\x1b[31m", "model__repo": None}, 69, "--model"),
        ({"model__repo": "../../mine"}, 65, "can't be"),
        ({"model__repo": "a/b", "model__commit": "x/../../y.safetensors"}, 65, "can't be"),
    ],
    ids=str,
)
def test_hostile_records(sdcli: Sdcli, tmp_path: Path, edit: dict[str, Any], code: int, words: str) -> None:
    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    disk.demo(tmp_path / "mine")
    shutil.copy(_picture(tmp_path), path)
    change(path, **{"plan__dtype": "fp32", **edit})
    done = sdcli("verify", "in/a.png")
    assert done.code == code and words in done.stderr and not done.stdout, done.stderr
    assert "\x1b" not in done.stderr and "loading" not in done.stderr


def _picture(folder: Path) -> Path:
    """Return a picture with a record that was never drawn."""
    from tests.test_metadata import PICTURE, record

    path = folder / "picture.png"
    path.write_bytes(metadata.encoded(PICTURE, record(), "png", "full").data)
    return path


def test_a_text_in_a_record_steers_no_terminal(sdcli: Sdcli) -> None:
    sdcli("generate", "a red circle", *DRAW, "-o", "a.png")
    drifted(
        "a.png", flip, versions={"torch\x1b[2J\nb.png: identical": "x" * 10**5} | {str(i): "y" for i in range(1000)}
    )
    done = sdcli("verify", "a.png")
    assert b"\x1b" not in done.stdout and len(done.stdout) < 4000
    assert [line for line in done.lines if not line.startswith("  ")] == done.lines[:1]
    assert any("more of this kind" in line for line in done.lines)


# The parts


def test_the_python_door(sdcli: Sdcli) -> None:
    import sdcli as library

    sdcli("generate", "a red circle", *DRAW, "--dtype", "fp32", "--threads", "1", "-o", "a.png")
    pipe = library.load("demo", library.DevicePlan(dtype="fp32", threads=1))
    assert verifying.verify(Path("a.png"), pipe) == Verdict(verdict="identical", psnr=None, max_difference=0)
    other = verifying.verify(_picture(Path()), pipe)
    assert other.verdict == "different" and "size: 24x16 is the picture's, 128x128 its record's" in other.causes
    Image.new("RGB", (8, 8)).save("plain.png")
    with pytest.raises(BadInput):
        verifying.verify(Path("plain.png"), pipe)


def _judged(then: Any, now: Any) -> Verdict:
    from tests.test_metadata import record

    images = [Image.fromarray(a.astype("uint8")) for a in (then, now)]
    records: list[Record] = [record(pixels=pixels_of(image)) for image in images]
    records = [msgspec.structs.replace(r, versions={"torch": str(i)}) for i, r in enumerate(records)]
    return judge(Subject(record=records[0], image=images[0]), GeneratedImage(image=images[1], record=records[1]))


def test_the_bound_of_what_is_equal_to_the_eye() -> None:
    grey = np.full((512, 512, 3), 128)
    assert _judged(grey, grey) == Verdict(verdict="identical", psnr=None, max_difference=0)
    noise = grey + np.random.default_rng(0).integers(-3, 4, grey.shape)
    assert _judged(grey, noise).verdict == "equal", "42 dB"
    assert _judged(grey, grey + 3).verdict == "different", "38.6 dB"
    line = grey.copy()
    line[:, 255, 1] += 20
    edge = _judged(grey, line)
    assert (edge.verdict, edge.max_difference) == ("equal", 20) and edge.causes == ("torch: 0 then, 1 now",)
    spot = grey.copy()
    spot[300:308, 200:208] += 20
    seen = _judged(grey, spot)
    assert seen.psnr is not None and seen.psnr > 50 and seen.verdict == "different", "a spot in a large picture"
    dot = grey.copy()
    dot[7, 7] = 255
    assert _judged(grey, dot).verdict == "different"
    odd = np.full((13, 9, 3), 50)
    assert _judged(odd, odd + np.eye(13, 9)[:, :, None]).verdict == "equal", "sides of any length"


def test_the_nearest_plan() -> None:
    gpus = Probe(accelerators=(Accelerator(device="cuda:0"), Accelerator(device="cuda:1")))
    metal, nothing = Probe(accelerators=(Accelerator(device="mps:0"),)), Probe()
    asked = DevicePlan(device="cuda:1", dtype="fp16", offload="model", attention_slicing="max", threads=3)
    assert nearest(asked, gpus) == asked
    third = msgspec.structs.replace(asked, device="cuda:2")
    assert nearest(third, gpus).device == "cuda:0" and nearest(third, metal).device == "mps:0"
    here = nearest(asked, nothing)
    assert (here.device, here.dtype, here.offload) == ("cpu", "fp32", "none")
    assert (here.attention_slicing, here.threads) == ("max", 3)
    half = DevicePlan(device="cpu", dtype="bf16", threads=1)
    assert nearest(half, gpus) == half
    assert nearest(DevicePlan(device="mps", dtype="fp16"), metal).device == "mps"


def test_a_recorded_plan_is_a_plan() -> None:
    from tests.test_metadata import record

    plan = msgspec.structs.replace(record().plan, dtype="fp16", device="mps:0", attention_slicing="4", threads=2)
    assert plan_of(plan) == DevicePlan(
        device="mps", dtype="fp16", attention_slicing="4", vae_tiling=False, offload="none", threads=2
    )


def test_which_model_draws_again() -> None:
    commit = "c0ffee" + "0" * 34
    pinned = ModelRecord(name="sd15", family="x", repo="org/model", commit=commit)
    assert spec_of(pinned) == ModelSpec(model=f"org/model@{commit}")
    assert spec_of(pinned, "demo", "v") == ModelSpec(model="demo", vae="v")
    with pytest.raises(ModelUnavailable):
        spec_of(ModelRecord(name="sd15", family="x"))  # Somebody's folder, and not the hub's.
    with pytest.raises(ModelUnavailable):
        spec_of(msgspec.structs.replace(pinned, files={"--vae/other.safetensors": "0"}))


# Slower


@pytest.mark.slow
def test_a_model_of_the_hub_at_its_commit(process: Sdcli, tmp_path: Path) -> None:
    with hubs.serving(org__model=Repo(disk.demo(tmp_path / "repo"))) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        assert process("generate", "a star", *DRAW, "-m", "org/model", "-o", "a.png", env=env).code == 0
        hub.asked.clear()
        here = process("verify", "a.png", env=env)
        assert here.lines == ["a.png: identical"] and hub.asked == [] and "downloading" not in here.stderr
        env["HF_HOME"] = str(tmp_path / "empty")
        offline = process("verify", "a.png", "--json", env=env | {"HF_HUB_OFFLINE": "1"})
        assert offline.code == 69 and offline.events[0]["path"] == "a.png"


@pytest.mark.slow
def test_a_hundred_pictures_across_all_schedulers(sdcli: Sdcli, tmp_path: Path) -> None:
    """Each scheduler alone, and a third of them from packs of 16 that can't be filled again with the same neighbours."""
    known = [s for s in schedulers.SCHEDULERS if not schedulers.missing(s)]
    assert len(known) == len(schedulers.SCHEDULERS), "pip install sdcli[schedulers]"
    alone = [_row(i, entry) for i, entry in enumerate(known)]
    packed = [_row(i, entry) | {"seed": seed} for i, entry in enumerate(known[::3]) for seed in (i, 500 + i)]
    _draw(sdcli, tmp_path, alone, 1, "alone")
    paths = _draw(sdcli, tmp_path, packed, 16, "packs")
    for path in paths[::2]:
        Path(path).unlink()
    done = sdcli("verify", "alone", "packs", "--json")
    different = [(e["path"], e) for e in done.events if e.get("verdict") != "identical"]
    assert not different and done.code == 0
    assert len(done.events) == 100 and done.stderr.count("loading demo") == 1


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_every_scheduler_from_a_pack_of_16(sdcli: Sdcli, tmp_path: Path) -> None:
    for dtype in ("fp32", "bf16"):
        made = [
            _row(i, entry) | {"seed": s} for i, entry in enumerate(schedulers.SCHEDULERS) for s in (i, 500 + i, 900 + i)
        ]
        paths = _draw(sdcli, tmp_path, made, 16, dtype, "--dtype", dtype)
        for path in paths:
            if record_of(path)["request"]["seed"] < 900:
                Path(path).unlink()
        done = sdcli("verify", dtype, "--json")
        assert {e["verdict"] for e in done.events} == {"identical"}
        assert len(done.events) == len(schedulers.SCHEDULERS)


def _row(number: int, entry: schedulers.Scheduler) -> dict[str, Any]:
    prompts = ("a red circle", "a blue star on a green background")
    return {
        "prompt": prompts[number % 2], "seed": number, "scheduler": entry.name, "steps": max(4, entry.min_steps),
        "cfg": (1, 2)[number % 2],
    }  # fmt: skip


def _draw(sdcli: Sdcli, folder: Path, made: list[dict[str, Any]], size: int, to: str, *options: str) -> list[str]:
    asked = rows(folder / f"{to}.jsonl", *made)
    done = sdcli("batch", asked, "-m", "demo", "--batch-size", str(size), "-o", f"{to}/", "-q", *options)
    assert done.code == 0 and len(done.lines) == len(made), done.stderr
    assert {record_of(path)["plan"]["pack_size"] for path in done.lines} == {size}
    return done.lines
