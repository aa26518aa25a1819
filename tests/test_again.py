"""Pictures drawn again from what they say: `generate --from` and `batch --from`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import Sdcli, pixels, record_of
from tests.test_batch import DEMO, images

A1111 = (
    "a red circle on a blue background\nNegative prompt: green\n"
    "Steps: 2, Sampler: Euler a, CFG scale: 3, Seed: 11, Size: 128x128, Model: dreamshaper, Clip skip: 2, ENSD: 31337"
)


def a1111(path: Path, text: str = A1111) -> str:
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path.name


def test_a_picture_is_drawn_again(sdcli: Sdcli, tmp_path: Path) -> None:
    assert (
        sdcli(
            "generate", "a {red|blue} star", "--expand", "random", *DEMO, "--seed", "4", "--steps", "3", "-o", "a.png"
        ).code
        == 0
    )
    done = sdcli("generate", "--from", "a.png", "--dtype", "fp32", "-o", "b.png")
    assert done.code == 0 and "warning" not in done.stderr, done.stderr
    one, other = record_of("a.png"), record_of("b.png")
    assert (pixels("a.png") == pixels("b.png")).all()
    for key in ("id", "request", "template", "tags", "model"):
        assert one[key] == other[key]
    assert one["template"] == "a {red|blue} star"


@pytest.mark.parametrize("ending", ["jpg", "webp", "avif"])
def test_any_container_will_do(sdcli: Sdcli, tmp_path: Path, ending: str) -> None:
    drawn = sdcli("generate", "a blue ring", *DEMO, "--seed", "4", "-o", f"a.{ending}", "--json").events[0]
    again = sdcli("generate", "--from", f"a.{ending}", "--dtype", "fp32", "-o", f"b.{ending}", "--json").events[0]
    assert (drawn["id"], drawn["pixels"], drawn["seed"]) == (again["id"], again["pixels"], again["seed"])


def test_options_lie_on_top(sdcli: Sdcli, tmp_path: Path) -> None:
    sdcli("generate", "a star", *DEMO, "--seed", "4", "-o", "a.png")
    done = sdcli("generate", "--from", "a.png", "-p", "fast", "--cfg", "5", "--dry-run", "--json")
    (plan,) = done.events
    shown = {
        f: (plan["request"][f], plan["origins"][f]) for f in ("prompt", "seed", "num_inference_steps", "guidance_scale")
    }
    assert shown == {
        "prompt": ("a star", "a.png"), "seed": (4, "a.png"), "num_inference_steps": (12, "preset fast"),
        "guidance_scale": (5.0, "flag"),
    }  # fmt: skip
    other = sdcli("generate", "--from", "a.png", "a heart", "--dry-run", "--json").events[0]
    assert (other["request"]["prompt"], other["request"]["seed"], other["origins"]["prompt"]) == (
        "a heart",
        4,
        "argument",
    )
    several = sdcli("generate", "--from", "a.png", "--count", "3", "--dry-run", "--json").events
    assert [e["request"]["seed"] for e in several] == [4, 5, 6]


def test_a_prompt_is_not_expanded_twice(sdcli: Sdcli, tmp_path: Path) -> None:
    sdcli("generate", "a {red|blue} star", *DEMO, "-o", "a.png")
    plan = sdcli("generate", "--from", "a.png", "--expand", "random", "--dry-run", "--json").events[0]
    assert plan["request"]["prompt"] == "a {red|blue} star"
    plan = sdcli("batch", "--from", "a.png", "--expand", "all", "--dry-run", "--json").events[0]
    assert plan["request"]["prompt"] == "a {red|blue} star"


def test_other_programs_pictures(sdcli: Sdcli, tmp_path: Path) -> None:
    a1111(tmp_path / "a.png")
    done = sdcli("generate", "--from", "a.png", "--model", "demo", "--dtype", "fp32", "-o", "b.png")
    assert done.code == 0, done.stderr
    request = record_of("b.png")["request"]
    said = {
        "prompt": "a red circle on a blue background", "negative_prompt": "green", "num_inference_steps": 2, "seed": 11,
        "guidance_scale": 3, "width": 128, "height": 128, "clip_skip": 1, "scheduler": "euler-a",
    }  # fmt: skip
    assert {k: request[k] for k in said} == said
    assert "ENSD" in done.stderr and "dreamshaper" in done.stderr


def test_from_stdin(sdcli: Sdcli, process: Sdcli, tmp_path: Path) -> None:
    sdcli("generate", "a star", *DEMO, "--seed", "4", "-o", "a.png")
    done = process("generate", "--from", "-", "--dry-run", "--json", stdin=(tmp_path / "a.png").read_bytes())
    assert done.events[0]["request"]["seed"] == 4, done.stderr


def test_a_folder_becomes_jobs(sdcli: Sdcli, tmp_path: Path) -> None:
    sdcli("grid", "a star", "--x", "steps=1,2", *DEMO[:-2], "-o", "g/")
    a1111(tmp_path / "g" / "foreign.png")
    done = sdcli("batch", "--from", "g/", "--scheduler", "euler", *DEMO[:-2], "-o", "again/", "--json")
    assert done.code == 0, done.stderr
    assert "ENSD" in done.stderr, "what can't be drawn is said"
    requests = [record_of(e["path"])["request"] for e in images(done)]
    assert sorted((r["prompt"], r["num_inference_steps"], r["scheduler"]) for r in requests) == [
        ("a red circle on a blue background", 2, "euler"), ("a star", 1, "euler"), ("a star", 2, "euler"),
    ]  # fmt: skip
    seeds = {record_of(p)["request"]["seed"] for p in (tmp_path / "g").glob("a-star*.png")}
    assert seeds == {r["seed"] for r in requests if r["prompt"] == "a star"}
    Image.new("RGB", (8, 8)).save(tmp_path / "g" / "photo.png")
    done = sdcli("batch", "--from", "g/", *DEMO[:-2], "-o", "again/")
    assert done.code == 65 and "g/photo.png: it does not say what it was made from" in done.stderr
    assert sdcli("batch", "--from", "g/", *DEMO[:-2], "-o", "more/", "--skip-bad-rows").code == 1


def edited(path: Path, change: dict[str, object]) -> str:
    with Image.open(path) as image:
        record = json.loads(image.info["sdcli"])  # type: ignore[attr-defined]
        info = PngInfo()
        info.add_text("sdcli", json.dumps({**record, "model": {**record["model"], **change}}))
        image.save(path, pnginfo=info)
    return path.name


def test_models_of_pictures(sdcli: Sdcli, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        sdcli("generate", "a star", *DEMO, "-o", f"{name}.png")
    edited(tmp_path / "a.png", {"name": "/etc/passwd"})
    done = sdcli("generate", "--from", "a.png")
    assert done.code == 69 and "say it with --model" in done.stderr
    assert sdcli("generate", "--from", "a.png", *DEMO, "-o", "d.png").code == 0
    edited(tmp_path / "b.png", {"name": "x", "repo": "nobody/nothing", "commit": "0" * 40})
    done = sdcli("batch", "--from", "b.png", "--from", "c.png")
    assert done.code == 2 and "by several models: demo, nobody/nothing@000" in done.stderr
    done = sdcli("generate", "--from", "b.png", *DEMO, "-o", "e.png")
    assert done.code == 0
    edited(tmp_path / "c.png", {"files": {"unet/diffusion_pytorch_model.safetensors": "0" * 64}})
    done = sdcli("generate", "--from", "c.png", *DEMO, "-o", "f.png")
    assert done.code == 0 and "was drawn by other weights than these" in done.stderr


@pytest.mark.parametrize("repo", ["models/mine", "models/mine.safetensors", "models/..", "../models", "a/b/c"])
def test_no_path_out_of_a_picture_is_opened(sdcli: Sdcli, tmp_path: Path, repo: str) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine.safetensors").write_bytes(b"no weights")
    sdcli("generate", "a star", *DEMO, "-o", "a.png")
    edited(tmp_path / "a.png", {"name": repo, "repo": repo, "commit": None})
    done = sdcli("generate", "--from", "a.png")
    assert done.code == 69 and "say it with --model" in done.stderr, done.stderr
    done = sdcli("verify", "a.png")
    assert done.code == 65 and "names a model that can't be" in done.stderr, done.stderr


def test_a_flood_of_words_is_cut(sdcli: Sdcli, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text(
        "invokeai_metadata", json.dumps({"positive_prompt": "a star"} | {f"k{i}" * 100: i for i in range(2000)})
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    done = sdcli("generate", "--from", "a.png", *DEMO)
    assert done.code == 0 and "and 1990 more" in done.stderr and len(done.stderr) < 5000


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["generate", "--from", "nope.png"], 66, "nope.png is not there"),
        (["generate", "--from", "text.txt"], 65, "text.txt"),
        (["generate", "--from", "plain.png"], 65, "does not say what it was made from"),
        (["generate", "--from", "-", "-"], 2, "stdin can be read once"),
        (["generate"], 2, "there is no PROMPT"),
        (["batch"], 2, "there is no FILE"),
        (["batch", "--from", "nope"], 66, "nope is not there"),
        (["batch", "-", "--stream", "--from", "plain.png"], 2, "give - as the only FILE"),
    ],
)
def test_refused(sdcli: Sdcli, tmp_path: Path, argv: list[str], code: int, said: str) -> None:
    (tmp_path / "text.txt").write_text("a star")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    done = sdcli(*argv)
    assert done.code == code and said in done.stderr, done.stderr
