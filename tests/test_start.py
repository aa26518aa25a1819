"""Pictures as a start: from one, over a part of one, beyond its edges, and over one's own, enlarged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.conftest import Sdcli, pixels, record_of
from training import judge

CIRCLE = "a red circle on a blue background"
PLAIN = ["-m", "demo", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def circle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red circle on blue, as the bundled model draws it."""
    from sdcli import DevicePlan, GenerationRequest, load

    path = tmp_path_factory.mktemp("start") / "circle.png"
    request = GenerationRequest(prompt=CIRCLE, seed=3, guidance_scale=2.0)
    (drawn,) = load("demo", DevicePlan(dtype="fp32")).generate([request])
    drawn.image.save(path)
    return path


@pytest.fixture
def square_mask(tmp_path: Path) -> Path:
    """White in the middle, where the circle is, black outside."""
    mask = Image.new("L", (128, 128), 0)
    ImageDraw.Draw(mask).rectangle((24, 24, 103, 103), fill=255)
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks" / "mask.png")
    return tmp_path / "masks" / "mask.png"


def plain(kind: str) -> Any:
    """Return a pipeline of diffusers over the bundled model, as anybody would load it."""
    import diffusers
    import torch

    from sdcli.models import demo_folder

    kind_ = getattr(diffusers, kind)
    found = kind_.from_pretrained(
        demo_folder(), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    found.set_progress_bar_config(disable=True)
    for part in found.components.values():
        # Weights that are mapped from a file lie at any address, where the CPU's kernels round in other ways.
        for tensor in part.parameters() if isinstance(part, torch.nn.Module) else ():
            tensor.data = tensor.data.clone()
    return found


# From a picture


def test_strength_0_is_the_picture_itself(sdcli: Sdcli, circle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network has a part in it: diffusers fails where there is no step."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a network was asked")

    for kind in (AutoencoderKL, UNet2DConditionModel):
        monkeypatch.setattr(kind, "forward", never)
    monkeypatch.setattr(AutoencoderKL, "encode", never)
    monkeypatch.setattr(AutoencoderKL, "decode", never)
    done = sdcli("generate", "a green star", *PLAIN, "-i", str(circle), "--strength", "0", "-s", "1", "-o", "x.png")
    assert done.code == 0 and (pixels("x.png") == pixels(circle)).all()
    done = sdcli(
        "generate", "a green star", *PLAIN, "-i", str(circle), "--strength", "0", "--size", "96x64", "-o", "y.png"
    )
    with Image.open(circle) as image:
        expected = np.asarray(image.resize((96, 64), Image.Resampling.LANCZOS, box=(0, 64 / 3, 128, 128 - 64 / 3)))
    assert np.abs(pixels("y.png").astype(int) - expected).max() <= 1


def likeness(one: Any, other: Any) -> float:
    """How much two pictures have the same layout: the correlation of their pixels, -1 to 1."""
    return float(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1])


@pytest.mark.slow
def test_strength_says_how_much_of_the_layout_is_kept(sdcli: Sdcli, table: Any) -> None:
    """It goes down as the strength goes up, and at 1 there is no more of it than chance gives and a trace.

    Twelve starts with a shape each somewhere, drawn over as a shape of another colour, of which no place is said. What all of them
    have in common is taken off first.
    """
    places = ("in the top left corner", "in the bottom right corner", "on the left", "at the bottom")
    things = [
        ("red circle", "blue", "a yellow circle"),
        ("green square", "white", "a blue square"),
        ("blue star", "black", "a white star"),
    ]
    asked = [
        (f"a {thing} {place} on a {ground} background", again) for thing, ground, again in things for place in places
    ]
    assert (
        sdcli("generate", *(start for start, _ in asked), *PLAIN, "-s", "0", "-o", "start/{index}.png", "-q").code == 0
    )
    starts = _apart([_layout(pixels(f"start/{i}.png")) for i in range(1, 13)])
    kept: dict[float, float] = {}
    for strength in (0.3, 0.5, 0.7, 1.0):
        for i, (_, again) in enumerate(asked):
            done = sdcli(
                "generate", again, *PLAIN, "-i", f"start/{i + 1}.png", "--strength", str(strength), "-s", str(100 + i),
                "-o", f"{strength}-{i}.png", "-q",
            )  # fmt: skip
            assert done.code == 0, done.stderr
        drawn = _apart([_layout(pixels(f"{strength}-{i}.png")) for i in range(12)])
        kept[strength] = float(np.mean([likeness(s, d) for s, d in zip(starts, drawn, strict=True)]))
        # What chance gives: each result against another's start, a thousand times; the hundredth part lies above.
        alike = np.array([[likeness(start, one) for one in drawn] for start in starts])
        shuffles = np.random.default_rng(0)
        chance = np.quantile([alike[range(12), shuffles.permutation(12)].mean() for _ in range(1000)], 0.99)
        table("layout kept, as a correlation", {
            "strength": str(strength), "mean of 12": f"{kept[strength]:.3f}", "by chance": f"{chance:.3f}",
        })  # fmt: skip
    assert kept[0.3] > kept[0.5] > kept[0.7] > kept[1.0]
    # diffusers puts noise on the picture at strength 1 too, and so much of it is left under that: sdcli's pixels are diffusers'.
    left = plain("StableDiffusionPipeline").scheduler.alphas_cumprod[-1] ** 0.5
    assert kept[0.3] > 0.5 and kept[1.0] < chance + float(left) and left < 0.07


def _apart(pictures: list[Any]) -> list[Any]:
    """Return what pictures have that they do not have in common."""
    common = np.mean(pictures, 0)
    return [picture - common for picture in pictures]


def _layout(picture: Any) -> Any:
    """Return where something lies that is not the background, in 16 x 16 fields."""
    values = np.asarray(picture, float)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    away = np.abs(values - np.median(border, axis=0)).mean(-1) > 24
    return away.reshape(16, away.shape[0] // 16, 16, away.shape[1] // 16).mean((1, 3))


def test_from_a_picture_the_pixels_are_diffusers(sdcli: Sdcli, circle: Path) -> None:
    import torch

    for strength in ("0.5", "1"):
        done = sdcli(
            "generate",
            "a green square",
            *PLAIN,
            "-i",
            str(circle),
            "--strength",
            strength,
            "-s",
            "5",
            "-o",
            "x.png",
            "--overwrite",
        )
        assert done.code == 0
        with Image.open(circle) as image:
            expected = plain("StableDiffusionImg2ImgPipeline")(
                "a green square", image=image.convert("RGB"), strength=float(strength), num_inference_steps=25,
                guidance_scale=2.0, generator=torch.Generator().manual_seed(5),
            ).images[0]  # fmt: skip
        assert (pixels("x.png") == np.asarray(expected)).all()


def test_the_size_follows_the_picture(sdcli: Sdcli, tmp_path: Path) -> None:
    """Its own where the model can draw that, else its aspect; orientation counts."""
    Image.new("RGB", (160, 96), "red").save("own.png")
    Image.new("RGB", (1600, 800), "red").save("large.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (160, 96), "red").save("turned.jpg", exif=exif)
    sizes = {}
    for name in ("own.png", "large.jpg", "turned.jpg"):
        done = sdcli("generate", "a star", *PLAIN, "-i", name, "--strength", "0.1", "--steps", "10", "--json")
        sizes[name] = (done.events[0]["width"], done.events[0]["height"])
    assert sizes == {"own.png": (160, 96), "large.jpg": (184, 88), "turned.jpg": (96, 160)}


def test_stdin_can_be_the_picture(process: Sdcli, circle: Path, tmp_path: Path) -> None:
    command = ["generate", "a star", *PLAIN, "-i", "-", "--strength", "0", "-o", "x.png"]
    done = process(*command, stdin=circle.read_bytes())
    assert done.code == 0, done.stderr
    assert (pixels(tmp_path / "x.png") == pixels(circle)).all()
    assert record_of(tmp_path / "x.png")["request"]["init_image"]["name"] == "stdin"
    done = process("generate", "-", *PLAIN, "-i", "-", stdin=b"")
    assert done.code == 2 and "once" in done.stderr


# Over a part of one


def test_outside_the_mask_no_pixel_changes(sdcli: Sdcli, circle: Path, square_mask: Path) -> None:
    inside = pixels(square_mask) > 0
    before = pixels(circle)
    shapes = []
    for seed in range(4):
        done = sdcli(
            "generate", "a green square on a blue background", *PLAIN, "-i", str(circle), "--mask", str(square_mask), "-s",
            str(seed), "-o", f"{seed}.png",
        )  # fmt: skip
        assert done.code == 0, done.stderr
        now = pixels(f"{seed}.png")
        assert (now[~inside] == before[~inside]).all()
        seen = judge.look(Image.fromarray(now.astype("uint8")))
        shapes.append((seen.things[0].shape, seen.things[0].colour) if seen.things else None)
    assert shapes.count(("square", "green")) >= 3, shapes
    done = sdcli(
        "generate",
        "a green square",
        *PLAIN,
        "-i",
        str(circle),
        "--mask",
        str(square_mask),
        "--invert-mask",
        "-o",
        "in.png",
    )
    assert (pixels("in.png")[inside] == before[inside]).all()
    assert (pixels("in.png")[~inside] != before[~inside]).any()


def test_inside_the_mask_the_pixels_are_diffusers(sdcli: Sdcli, circle: Path, square_mask: Path) -> None:
    import torch

    sdcli("generate", "a green square", *PLAIN, "-i", str(circle), "--mask", str(square_mask), "-s", "5", "-o", "x.png")
    with Image.open(circle) as image, Image.open(square_mask) as mask:
        expected = plain("StableDiffusionInpaintPipeline")(
            "a green square", image=image.convert("RGB"), mask_image=mask, strength=1.0, num_inference_steps=25,
            guidance_scale=2.0, generator=torch.Generator().manual_seed(5), height=128, width=128,
        ).images[0]  # fmt: skip
    inside = pixels(square_mask) > 0
    assert (pixels("x.png")[inside] == np.asarray(expected)[inside]).all()


def test_outpainting_keeps_the_picture(sdcli: Sdcli, circle: Path) -> None:
    done = sdcli(
        "generate",
        CIRCLE,
        *PLAIN,
        "-i",
        str(circle),
        "--outpaint",
        "left=64,bottom=32",
        "-s",
        "1",
        "-o",
        "x.png",
        "--json",
    )
    assert (done.events[0]["width"], done.events[0]["height"]) == (192, 160)
    assert (pixels("x.png")[:128, 64:] == pixels(circle)).all()
    assert record_of("x.png")["request"]["outpaint"] == {"left": 64, "top": 0, "right": 0, "bottom": 32}
    done = sdcli("generate", CIRCLE, *PLAIN, "-i", str(circle), "--outpaint", "left=63")
    assert done.code == 2 and "no multiple of 8" in done.stderr


# Larger


def test_hires_draws_over_the_same_picture(sdcli: Sdcli) -> None:
    sdcli("generate", CIRCLE, *PLAIN, "-s", "3", "-o", "small.png")
    done = sdcli("generate", CIRCLE, *PLAIN, "-s", "3", "--hires", "2x:0.4", "-o", "large.png", "--json")
    assert (done.events[0]["width"], done.events[0]["height"]) == (256, 256)
    record = record_of("large.png")
    assert record["request"]["hires"] == {"factor": 2.0, "strength": 0.4} and record["request"]["width"] == 128
    with Image.open("large.png") as image:
        again = np.asarray(image.resize((128, 128), Image.Resampling.LANCZOS))
    assert likeness(_layout(pixels("small.png")), _layout(again)) > 0.7
    with Image.open("small.png") as image:
        enlarged = np.asarray(image.resize((256, 256), Image.Resampling.LANCZOS))
    assert (pixels("large.png") != enlarged).any()
    # In a pack each is drawn over from its own.
    sdcli(
        "generate", CIRCLE, *PLAIN, "-s", "2", "--count", "2", "--batch-size", "2", "--hires", "2x:0.4", "-o", "pack/"
    )
    pack = [pixels(path) for path in sorted(Path("pack").iterdir())]
    assert np.abs(pack[1].astype(int) - pixels("large.png")).max() <= 2


def test_what_would_not_fit_is_decoded_in_tiles(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU nothing fails when memory runs out: another process is killed. So it is reckoned, and said."""
    import psutil

    class Little:
        available = 8 * 2**20

    done = sdcli("generate", CIRCLE, *PLAIN, "-s", "3", "--size", "256x256", "--steps", "4", "-o", "whole.png")
    assert record_of("whole.png")["fallbacks"] == [] and not record_of("whole.png")["plan"]["vae_tiling"]
    monkeypatch.setattr(psutil, "virtual_memory", Little)
    done = sdcli("generate", CIRCLE, *PLAIN, "-s", "3", "--size", "256x256", "--steps", "4", "-o", "tiles.png")
    record = record_of("tiles.png")
    assert record["fallbacks"] == ["vae-tiling"] and record["plan"]["vae_tiling"]
    assert "decoding 256x256 at once takes" in record["plan"]["reasons"]["vae_tiling"] and "in tiles" in done.stderr
    assert np.abs(pixels("tiles.png").astype(int) - pixels("whole.png")).mean() < 4


def test_upscale_enlarges_what_was_drawn(sdcli: Sdcli) -> None:
    sdcli("generate", CIRCLE, *PLAIN, "-s", "3", "-o", "small.png")
    sdcli("generate", CIRCLE, *PLAIN, "-s", "3", "--upscale", "3x", "-o", "large.png")
    with Image.open("small.png") as image:
        expected = np.asarray(image.resize((384, 384), Image.Resampling.LANCZOS))
    assert (pixels("large.png") == expected).all()
    assert record_of("large.png")["request"]["upscale"] == {"name": "lanczos", "factor": 3.0, "sha256": None}


# Variations


def test_variations_lie_between_two_starts(sdcli: Sdcli) -> None:
    """0 is the one picture, 1 the other, bit for bit; what is near is like it."""
    for name, more in {
        "one": ["-s", "3"],
        "zero": ["-s", "3", "--variation", "9:0"],
        "near": ["-s", "3", "--variation", "9:0.1"],
        "far": ["-s", "3", "--variation", "9:0.7"],
        "all": ["-s", "3", "--variation", "9:1"],
        "other": ["-s", "9"],
    }.items():
        assert sdcli("generate", "a red star", *PLAIN, *more, "-o", f"{name}.png").code == 0
    found = {name: pixels(f"{name}.png") for name in ("one", "zero", "near", "far", "all", "other")}
    assert (found["zero"] == found["one"]).all() and (found["all"] == found["other"]).all()
    difference = {name: np.abs(found[name].astype(int) - found["one"]).mean() for name in found}
    assert 0 < difference["near"] < difference["far"]
    assert record_of("near.png")["request"]["variation"] == {"seed": 9, "strength": 0.1}


def test_noise_on_the_way_is_noise() -> None:
    import torch

    from sdcli.pipeline.passes import slerp

    one, other = (torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    for share in (0.25, 0.5, 0.9):
        between = slerp(share, one, other)
        assert abs(float(between.std()) - 1) < 0.02
    assert torch.equal(slerp(0, one, other), one) and torch.equal(slerp(1, one, other), other)
    assert torch.allclose(slerp(0.5, one, one), one)


def test_vary_draws_more_like_a_picture(sdcli: Sdcli) -> None:
    sdcli("generate", "a red star", *PLAIN, "-s", "3", "-o", "star.png")
    done = sdcli("generate", "--vary", "star.png", "--count", "3", *PLAIN, "--json")
    assert done.code == 0, done.stderr
    requests = [record_of(event["path"])["request"] for event in done.events]
    assert {r["seed"] for r in requests} == {3}
    seeds = [r["variation"]["seed"] for r in requests]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2] and {r["variation"]["strength"] for r in requests} == {0.2}
    pictures = [pixels(event["path"]) for event in done.events]
    assert len({p.tobytes() for p in pictures}) == 3
    done = sdcli("generate", "--vary", "star.png", "--variation", "5:0.4", *PLAIN, "-o", "x.png")
    assert record_of("x.png")["request"]["variation"] == {"seed": 5, "strength": 0.4}
    assert sdcli("generate", "--vary", "star.png", "--from", "star.png").code == 2


# In records


def test_a_record_names_its_pictures_and_finds_them(sdcli: Sdcli, circle: Path, square_mask: Path) -> None:
    """By name and content, beside the picture or here; never by a path."""
    shutil.copy(circle, "photo.png")
    done = sdcli(
        "generate", "a green square", *PLAIN, "-i", "photo.png", "--mask", str(square_mask), "-s", "4", "-o", "x.png"
    )
    assert done.code == 0, done.stderr
    record = record_of("x.png")
    assert (
        set(record["request"]["init_image"]) == {"name", "sha256"}
        and record["request"]["init_image"]["name"] == "photo.png"
    )
    assert record["request"]["mask"]["name"] == "mask.png" and str(square_mask.parent) not in Path(
        "x.png"
    ).read_bytes().decode("latin-1")
    assert record["request"]["strength"] == 1.0
    Path("away").mkdir()
    done = sdcli("generate", "--from", "x.png", *PLAIN, "-o", "again.png")
    assert done.code == 66 and "mask.png" in done.stderr and "--mask" in done.stderr
    shutil.copy(square_mask, "mask.png")
    assert sdcli("generate", "--from", "x.png", *PLAIN, "-o", "again.png").code == 0
    assert record_of("again.png")["id"] == record["id"] and (pixels("again.png") == pixels("x.png")).all()
    assert sdcli("verify", "x.png", "again.png").code == 0
    Path("photo.png").write_bytes(square_mask.read_bytes())
    done = sdcli("generate", "--from", "x.png", *PLAIN, "-o", "again.png")
    assert done.code == 66 and "photo.png" in done.stderr
    assert sdcli("generate", "--from", "x.png", "-i", str(circle), *PLAIN, "-o", "third.png").code == 0
    assert record_of("third.png")["id"] == record["id"]


def test_rows_presets_and_settings_may_say_it(sdcli: Sdcli, circle: Path) -> None:
    rows = [{"prompt": "a star", "init_image": str(circle), "strength": 0}, {"prompt": "a star", "hires": "1.5x"}]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = sdcli("batch", "rows.jsonl", *PLAIN, "-o", "out/", "--json")
    assert done.code == 0, done.stderr
    first, second, _ = done.events
    assert (pixels(first["path"]) == pixels(circle)).all() and second["width"] == 192
    again = sdcli("batch", "rows.jsonl", *PLAIN, "-o", "out/", "--json")
    assert [e["event"] for e in again.events] == ["skipped", "skipped", "summary"]
    # What a preset says of pictures is left out where there is none.
    Path("mine.toml").write_text('strength = 0.5\nhires = "2x"\n')
    done = sdcli("generate", "a star", *PLAIN, "-p", "./mine.toml", "-s", "1", "-o", "x.png", "--dry-run", "--json")
    assert done.code == 0, done.stderr
    assert done.events[0]["request"]["strength"] is None
    assert done.events[0]["request"]["hires"] == {"factor": 2.0, "strength": 0.5}
    assert done.events[0]["origins"]["hires"].startswith("preset ")


REFUSED = [
    (["--strength", "0.5"], 2, "--init-image"),
    (["--mask", "circle.png"], 2, "--init-image"),
    (["--outpaint", "left=8"], 2, "--init-image"),
    (["-i", "circle.png", "--outpaint", "up=8"], 2, "left=128"),
    (["-i", "nowhere.png"], 66, "nowhere.png"),
    (["-i", "text.png"], 65, "text.png"),
    (["-i", "circle.png", "--mask", "black.png"], 2, "black"),
    (["-i", "circle.png", "--strength", "0.05", "--steps", "10"], 2, "--steps is at least 20"),
    (["-i", "circle.png", "--variation", "1:0.5"], 2, "variation"),
    (["-i", "circle.png", "--mask", "circle.png", "--hires", "2x"], 2, "hires"),
    (["--hires", "9x"], 2, "hires"),
    (["--variation", "1"], 2, "SEED:STRENGTH"),
    (["--upscale", "model.pth"], 65, "pickle"),
    (["-m", "flux-schnell", "--controlnet", "x=circle.png"], 2, "ControlNet"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "code", "word"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_what_can_not_be_is_refused(sdcli: Sdcli, circle: Path, more: list[str], code: int, word: str) -> None:
    shutil.copy(circle, "circle.png")
    Path("text.png").write_text("no picture")
    Path("model.pth").write_bytes(b"\x80\x02.")
    Image.new("L", (128, 128), 0).save("black.png")
    done = sdcli("generate", "a star", "-m", "demo", *more, "-o", "x.png")
    assert done.code == code and word in done.stderr, done.stderr
    assert not Path("x.png").exists()
