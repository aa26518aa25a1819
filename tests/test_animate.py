"""What is kept of a picture's steps: animations and folders of steps, beside a picture that is the same without."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdcli as library
from sdcli.cli import seeing
from tests.conftest import Sdcli, pixels, record_of

DRAW = ("generate", "a red circle on a blue background", "-m", "demo", "-s", "3", "--steps", "4")


def frames(path: str | Path) -> list[tuple[Any, int]]:
    """Return an animation's frames (height, width, 3) and how long each stays, in milliseconds."""
    found = []
    with Image.open(path) as image:
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            image.load()
            found.append((np.asarray(image.convert("RGB")).astype(int), round(image.info["duration"])))
    return found


def kept(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "more",
    [
        (), ("--scheduler", "euler-a"), ("--scheduler", "heun"), ("--scheduler", "dpm++sde"), ("--count", "2"),
        ("--count", "2", "--batch-size", "2"), ("--hires", "1.5x"), ("--init-image", "start.png", "--strength", "0.5"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_picture_is_the_same(sdcli: Sdcli, more: tuple[str, ...]) -> None:
    Image.new("RGB", (128, 128), "green").save("start.png")
    plain = sdcli(*DRAW, *more, "-o", "plain/")
    told = sdcli(*DRAW, *more, "-o", "told/", "--animate", "{seed}.gif", "--save-steps", "steps")
    assert plain.code == told.code == 0, told.stderr
    assert len(plain.lines) == len(told.lines) == (2 if "--count" in more else 1)
    for one, other in zip(plain.lines, told.lines, strict=True):
        assert record_of(one)["pixels"] == record_of(other)["pixels"] and record_of(one)["id"] == record_of(other)["id"]
        assert np.array_equal(pixels(one), pixels(other))
        seed = record_of(other)["request"]["seed"]
        folder = Path("steps") if "--count" not in more else Path("steps", f"{seed}-{record_of(other)['id'][:8]}")
        steps, shown = kept(folder), frames(f"{seed}.gif")
        assert len(shown) == len(steps) + 1 and shown[0][0].shape == pixels(other).shape
        # A palette of 256 colours.
        assert np.abs(shown[-1][0] - pixels(other)).mean() < 3
    assert not list(Path().rglob(".sdcli-*"))


@pytest.mark.parametrize("ending", ["webp", "apng"])
def test_formats_that_lose_nothing(sdcli: Sdcli, ending: str) -> None:
    done = sdcli(*DRAW, "-o", "x.png", "--animate", f"x.{ending}", "--animate-clean")
    assert done.code == 0 and done.lines == ["x.png"] and f"animation: x.{ending}" in done.stderr
    shown, picture = frames(f"x.{ending}"), pixels("x.png")
    assert len(shown) == 5 and all(frame.shape == (128, 256, 3) for frame, _ in shown)
    assert np.array_equal(shown[-1][0], np.concatenate([picture, picture], 1))
    assert [stays for _, stays in shown] == [200, 200, 200, 200, 2000]
    # From noise to picture; what each step predicts of it is nearer to it than what it began with.
    away = [[np.abs(half - picture).mean() for half in np.split(frame, 2, 1)] for frame, _ in shown]
    assert away[0][0] > 30 and away[0][0] > away[2][0] > away[3][0]
    assert all(clean < noisy for noisy, clean in away[:3])


def test_the_numbers_of_steps(sdcli: Sdcli) -> None:
    assert sdcli(*DRAW, "--scheduler", "euler", "--save-steps", "steps", "-o", "x.png").code == 0
    steps = kept("steps")
    assert [step["step"] for step in steps] == [1, 2, 3, 4] and {step["of"] for step in steps} == {4}
    assert [step["sigma"] for step in steps] == sorted((step["sigma"] for step in steps), reverse=True)
    assert steps[0]["sigma"] == pytest.approx(14.6, abs=0.1) and {step["signal"] for step in steps} == {1.0}
    assert steps[0]["before"]["std"] == pytest.approx(14.6, rel=0.1) and steps[0]["noise"]["std"] == pytest.approx(
        1, rel=0.1
    )
    for now, after in zip(steps, steps[1:], strict=False):
        assert after["before"] == now["latents"]
    named = {name for step in steps for name in step["pictures"]}
    assert named == {file.name for file in Path("steps").glob("*.png")} and len(named) == 8
    assert all(pixels(Path("steps", name)).shape == (128, 128, 3) for name in named)
    # The last step's prediction is the picture.
    assert np.abs(pixels("steps/step-4-clean.png") - pixels("x.png")).mean() < 1


def test_a_picture_in_two_parts(sdcli: Sdcli) -> None:
    assert sdcli(*DRAW, "--hires", "1.5x:0.5", "--save-steps", "steps", "--animate", "x.apng", "-o", "x.png").code == 0
    assert [(step["part"], step["step"]) for step in kept("steps")] == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2)]
    assert pixels("steps/step-1.png").shape == (128, 128, 3) and pixels("steps/step-2-1.png").shape == (192, 192, 3)
    assert [frame.shape for frame, _ in frames("x.apng")] == [(192, 192, 3)] * 7


def test_long_runs_have_as_many_frames_as_one_watches(sdcli: Sdcli) -> None:
    command = [*DRAW[:-1], "90", "--size", "64x64", "-o", "x.png", "--animate", "x.webp"]
    assert sdcli(*command).code == 0
    shown = frames("x.webp")
    assert len(shown) == 46 and {stays for _, stays in shown[:-1]} == {70}


def test_templates_and_names_that_are_taken(sdcli: Sdcli) -> None:
    command = [*DRAW, "--size", "64x64", "-o", "{seed}.png", "--animate", "{prompt:5}/{seed}.gif"]
    assert sdcli(*command).code == sdcli(*command).code == 0
    assert {str(path) for path in Path("a-red").iterdir()} == {"a-red/3.gif", "a-red/3-2.gif"}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--animate", "x.mp4"], 2, ".gif, .webp, .apng"),
        (["--animate", "x.gif", "--count", "2"], 2, "template"),
        (["--animate", "{what}.gif"], 2, "what"),
        (["--animate", "folder.gif"], 73, "folder"),
        (["--animate", "file/x.gif"], 73, "file is not a folder"),
        (["--animate", "x.webp", "-o", "x.webp"], 2, "where the picture goes"),
        (["--animate-clean"], 2, "--animate"),
        (["--save-steps", "full"], 73, "not empty"),
        (["--save-steps", "file"], 73, "file is not a folder"),
        (["--graphics", "kity", "--show"], 2, "kitty"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_refused_before_anything_is_loaded(sdcli: Sdcli, options: list[str], code: int, said: str) -> None:
    Path("folder.gif").mkdir()
    Path("full").mkdir()
    Path("full", "x").touch()
    Path("file").touch()
    done = sdcli(*DRAW, *options)
    assert done.code == code and said in done.stderr and "loading" not in done.stderr


def test_overwriting_a_folder_of_steps(sdcli: Sdcli) -> None:
    command = [*DRAW, "--size", "64x64", "--save-steps", "steps"]
    assert sdcli(*command).code == 0
    assert sdcli(*command).code == 73
    assert sdcli(*command, "--overwrite", "--steps", "3").code == 0
    assert len(kept("steps")) == 3


def test_a_plan_writes_nothing(sdcli: Sdcli) -> None:
    done = sdcli(*DRAW, "--animate", "x.gif", "--save-steps", "steps", "--dry-run")
    assert done.code == 0 and not Path("x.gif").exists() and not Path("steps").exists()


def test_a_place_that_is_lost_meanwhile(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture itself is there, and told."""
    from sdcli.jobs import watching

    def frames(*_: Any, **__: Any) -> list[Any]:
        Path("there").touch()
        return [Image.new("RGB", (8, 8))]

    monkeypatch.setattr(watching, "frames", frames)
    done = sdcli(*DRAW, "--size", "64x64", "-o", "x.png", "--animate", "there/x.gif")
    assert done.code == 73 and "there/x.gif" in done.stderr
    assert done.lines == ["x.png"] and pixels("x.png").shape == (64, 64, 3)


def test_a_family_whose_latents_are_its_own(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.families import saved

    model = str(saved("FluxPipeline", tmp_path / "flux"))
    done = sdcli("generate", "a star", "-m", model, "--steps", "2", "--size", "32x32", "--animate", "x.gif")
    assert done.code == 2 and "its steps can't be shown" in done.stderr
    said: list[str] = []
    monkeypatch.setattr(seeing.screen, "say", said.append)
    terminal = seeing.Terminal(io.StringIO(), "blocks")
    assert seeing.previews(terminal, library.load(model), 1) == [] and "no preview" in said[0]


def test_pictures_come_before_what_is_made_of_their_steps(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for an animation, no picture is lost, and all are told."""
    from sdcli.errors import OutputFailed
    from sdcli.jobs import watching

    def full(*_: Any, **__: Any) -> list[Any]:
        raise OutputFailed("the disk is full", "make room")

    monkeypatch.setattr(watching, "frames", full)
    some = ("--size", "64x64", "--count", "4", "--batch-size", "4", "-o", "four/", "--animate", "{seed}.gif", "--json")
    done = sdcli(*DRAW, *some)
    assert done.code == 74
    assert len([e for e in done.events if e["event"] == "image"]) == len(list(Path("four").glob("*.png"))) == 4


def test_what_draws_no_step_has_one_frame(sdcli: Sdcli) -> None:
    assert sdcli(*DRAW, "-o", "x.png").code == 0
    done = sdcli(*DRAW, "-i", "x.png", "--strength", "0", "-o", "y.png", "--animate", "y.gif")
    assert done.code == 0, done.stderr
    with Image.open("y.gif") as image:
        assert getattr(image, "n_frames", 1) == 1


def test_an_animation_does_not_take_its_pictures_name(sdcli: Sdcli) -> None:
    done = sdcli(*DRAW, "-o", "{seed}.webp", "--animate", "{seed}.webp")
    assert done.code == 2 and "where the pictures go" in done.stderr
