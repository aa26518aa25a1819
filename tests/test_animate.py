"""What is kept of a picture's steps: animations and folders of steps, beside a picture that is the same without."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdcli as library
from sdcli.jobs import watching
from sdcli.pipeline import previewing
from tests.conftest import Sdcli, pixels, record_of

DRAW = ("generate", "a red circle on a blue background", "-m", "demo", "-s", "3", "--size", "64x64", "--steps", "3")


def frames(path: str | Path) -> list[tuple[Any, int]]:
    """Return an animation's frames (height, width, 3) and how long each stays, in milliseconds."""
    found = []
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()
            found.append((np.asarray(image.convert("RGB")).astype(int), round(image.info.get("duration", 0))))
    return found


def kept(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "more",
    [
        (), ("--count", "3", "--batch-size", "2"), ("--hires", "1.5x"),
        ("--init-image", "start.png", "--strength", "0.7"),
        *(pytest.param(("--scheduler", name), marks=pytest.mark.slow) for name in ("euler-a", "heun", "dpm++sde")),
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_picture_is_the_same(sdcli: Sdcli, more: tuple[str, ...]) -> None:
    Image.new("RGB", (64, 64), "green").save("start.png")
    plain = sdcli(*DRAW, *more, "-o", "plain/")
    told = sdcli(*DRAW, *more, "-o", "told/", "--animate", "{seed}.gif", "--save-steps", "steps")
    assert plain.code == told.code == 0, told.stderr
    assert len(plain.lines) == len(told.lines) == (3 if "--count" in more else 1)
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


def test_an_animation_goes_from_noise_to_picture(sdcli: Sdcli) -> None:
    done = sdcli(*DRAW, "--steps", "4", "-o", "x.png", "--animate", "x.webp", "--animate-clean")
    assert done.code == 0 and done.lines == ["x.png"] and "animation: x.webp" in done.stderr
    shown, picture = frames("x.webp"), pixels("x.png")
    assert len(shown) == 5 and all(frame.shape == (64, 128, 3) for frame, _ in shown)
    assert np.array_equal(shown[-1][0], np.concatenate([picture, picture], 1))
    # What each step predicts of the picture is nearer to it than what it began with.
    away = [[np.abs(half - picture).mean() for half in np.split(frame, 2, 1)] for frame, _ in shown]
    assert away[0][0] > 30 and away[0][0] > away[2][0] > away[3][0]
    assert all(clean < noisy for noisy, clean in away[:3])


@pytest.mark.parametrize(("ending", "wrong"), [(".webp", 0), (".apng", 0), (".gif", 3)])
def test_formats(tmp_path: Path, ending: str, wrong: float) -> None:
    """They go round for ever, and each frame stays as long as it is to; GIF has 256 colours, the others lose nothing."""
    at = np.arange(64)
    given = [
        np.stack(np.broadcast_arrays(at[None] * 4, at[:, None] * 4, 60 * i), -1).astype(np.uint8) for i in range(5)
    ]
    file = tmp_path / f"x{ending}"
    file.write_bytes(watching.animated([Image.fromarray(one) for one in given], ending))
    shown = frames(file)
    assert [stays for _, stays in shown] == [200, 200, 200, 200, 2000]
    assert max(np.abs(frame - one).mean() for (frame, _), one in zip(shown, given, strict=True)) <= wrong
    with Image.open(file) as image:
        assert image.info["loop"] == 0


def test_the_numbers_of_steps(sdcli: Sdcli) -> None:
    assert sdcli(*DRAW, "--steps", "4", "--scheduler", "euler", "--save-steps", "steps", "-o", "x.png").code == 0
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
    assert all(pixels(Path("steps", name)).shape == (64, 64, 3) for name in named)
    # The last step's prediction is the picture.
    assert np.abs(pixels("steps/step-4-clean.png") - pixels("x.png")).mean() < 1


def test_a_picture_in_two_parts(sdcli: Sdcli) -> None:
    assert sdcli(*DRAW, "--hires", "1.5x:0.7", "--save-steps", "steps", "--animate", "x.apng", "-o", "x.png").code == 0
    assert [(step["part"], step["step"]) for step in kept("steps")] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]
    assert pixels("steps/step-1.png").shape == (64, 64, 3) and pixels("steps/step-2-1.png").shape == (96, 96, 3)
    assert [frame.shape for frame, _ in frames("x.apng")] == [(96, 96, 3)] * 6


def test_long_runs_have_as_many_frames_as_one_watches(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watching.MOST_FRAMES == 60
    monkeypatch.setattr(watching, "MOST_FRAMES", 4)
    monkeypatch.setattr(watching, "MOVING", 210)
    assert sdcli(*DRAW, "--steps", "6", "-o", "x.png", "--animate", "x.webp").code == 0
    shown = frames("x.webp")
    assert len(shown) == 4 and {stays for _, stays in shown[:-1]} == {70}


def test_templates_and_names_that_are_taken(sdcli: Sdcli) -> None:
    command = [*DRAW, "-o", "{seed}.png", "--animate", "{prompt:5}/{seed}.gif"]
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
        (["--animate", "x.webp", "-o", "x.webp"], 2, "where a picture goes"),
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
    command = [*DRAW, "-o", "x.png", "--save-steps", "steps"]
    assert sdcli(*command).code == 0
    assert sdcli(*command).code == 73
    assert sdcli(*command, "--overwrite", "--steps", "2").code == 0
    assert len(kept("steps")) == 2
    assert len(os.listdir("steps")) == 5, "pictures of the run before are left"


def test_only_what_a_run_before_wrote_is_removed(sdcli: Sdcli) -> None:
    """Not what its numbers name elsewhere, nor a picture that this run has put there."""
    Path("other").mkdir()
    mine = [Path("step-1.png"), Path("other/step-2.png"), Path("steps/note.png")]
    assert sdcli(*DRAW, "--save-steps", "steps").code == 0
    for path in mine:
        path.write_bytes(b"mine")
    with Path("steps/steps.jsonl").open("a") as file:
        file.write(json.dumps({"pictures": ["../step-1.png", str(Path("other/step-2.png").absolute()), "note.png"]}))
    more = ["--save-steps", "steps", "--overwrite", "--steps", "2", "-o", "steps/step-3.png"]
    assert sdcli(*DRAW, *more).code == 0
    assert record_of("steps/step-3.png")["request"]["num_inference_steps"] == 2
    assert all(path.read_bytes() == b"mine" for path in mine)
    assert len(kept("steps")) == 2 and not Path("steps/step-3-clean.png").exists()


def test_a_picture_among_its_own_steps(sdcli: Sdcli) -> None:
    """It stays what it is; so does one that somebody put in the place of a step before."""
    command = (*DRAW, "-o", "steps/step-1.png", "--save-steps", "steps", "--overwrite")
    for _ in range(2):
        assert sdcli(*command).code == 0
        assert record_of("steps/step-1.png")["request"]["num_inference_steps"] == 3
        other, clean = kept("steps")[0]["pictures"]
        assert other.startswith("step-1-") and clean == "step-1-clean.png" and len(os.listdir("steps")) == 8
        Path("steps/step-1.png").unlink()
    assert sdcli(*DRAW, "-o", "steps/step-3.png").code == 0
    assert sdcli(*DRAW, "--save-steps", "steps", "--overwrite", "--steps", "2").code == 0
    assert record_of("steps/step-3.png")["request"]["num_inference_steps"] == 3
    assert not Path("steps/step-3-clean.png").exists()


def test_equal_pictures_have_steps_of_their_own(sdcli: Sdcli) -> None:
    prompt, *more = DRAW[1:]
    done = sdcli("generate", prompt, prompt, *more, "-o", "x/", "--save-steps", "steps", "--json")
    folders = [Path(e["path"]) for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "steps"]
    assert done.code == 0 and len(set(folders)) == 2
    assert all(len(os.listdir(folder)) == 7 and len(kept(folder)) == 3 for folder in folders)


def test_events_say_what_was_kept_of_which_picture(sdcli: Sdcli) -> None:
    Path("7.gif").touch()
    done = sdcli(*DRAW, "--count", "2", "--seed", "7", "--animate", "{seed}.gif", "--save-steps", "steps", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    pictures = {e["id"]: e["seed"] for e in events if e["event"] == "image"}
    films = {pictures[e["id"]]: e["path"] for e in events if e["event"] == "animation"}
    assert films == {7: "7-2.gif", 8: "8.gif"}
    assert {pictures[e["id"]]: Path(e["path"]).is_dir() for e in events if e["event"] == "steps"} == {7: True, 8: True}
    assert done.code == 0 and len(events) == 6


def test_a_plan_writes_nothing(sdcli: Sdcli) -> None:
    done = sdcli(*DRAW, "--animate", "x.gif", "--save-steps", "steps", "--dry-run")
    assert done.code == 0 and not Path("x.gif").exists() and not Path("steps").exists()


def test_a_place_that_is_lost_meanwhile(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture itself is there, and told."""

    def frames(*_: Any, **__: Any) -> list[Any]:
        Path("there").touch()
        return [Image.new("RGB", (8, 8))]

    monkeypatch.setattr(watching, "frames", frames)
    done = sdcli(*DRAW, "-o", "x.png", "--animate", "there/x.gif")
    assert done.code == 73 and "there/x.gif" in done.stderr and "hint: choose another place\n" in done.stderr
    assert done.lines == ["x.png"] and pixels("x.png").shape == (64, 64, 3)


def test_a_map_is_fitted_and_the_device_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = library.load("demo")
    freed: list[bool] = []
    monkeypatch.setattr(pipeline.pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    previewing._fitted(pipeline)
    assert not freed
    # Only an accelerator's parts can be offloaded.
    monkeypatch.setattr(pipeline, "offload", "model")
    previewing._fitted(pipeline)
    assert freed


def test_a_family_whose_latents_are_its_own(sdcli: Sdcli, tmp_path: Path) -> None:
    from tests.families import saved

    model = str(saved("FluxPipeline", tmp_path / "flux"))
    done = sdcli("generate", "a star", "-m", model, "--steps", "2", "--size", "32x32", "--animate", "x.gif")
    assert done.code == 2 and "its steps can't be shown" in done.stderr


def test_pictures_come_before_what_is_made_of_their_steps(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for an animation, no picture is lost, and all are told."""
    from sdcli.errors import OutputFailed

    def full(*_: Any, **__: Any) -> list[Any]:
        raise OutputFailed("the disk is full", "make room")

    monkeypatch.setattr(watching, "frames", full)
    some = ("--count", "4", "--batch-size", "4", "-o", "four/", "--animate", "{seed}.gif", "--json")
    done = sdcli(*DRAW, *some)
    assert done.code == 74
    assert len([e for e in done.events if e["event"] == "image"]) == len(list(Path("four").glob("*.png"))) == 4


def test_what_draws_no_step_says_so(sdcli: Sdcli) -> None:
    """What was asked for is there: of no step there is nothing but the picture, and no numbers."""
    Image.new("RGB", (64, 64), "green").save("x.png")
    done = sdcli(*DRAW, "-i", "x.png", "--strength", "0", "-o", "y.png", "--animate", "y.gif", "--save-steps", "steps")
    assert done.code == 0 and done.stderr.count("no step was drawn") == 1
    assert len(frames("y.gif")) == 1 and kept("steps") == []


@pytest.mark.parametrize(
    ("output", "animate", "overwrite", "refused"),
    [
        ("{seed}.webp", "{seed}.webp", False, True), ("out/{seed}.{format}", "./out/{seed}.webp", False, True),
        ("3.webp", "./3.webp", False, True), ("{seed}.webp", "3.webp", False, False), ("3.webp", "{seed}.webp", False, False),
        ("{seed}.webp", "3.webp", True, True), ("{index}.webp", "{seed}.webp", True, True),
        ("3.webp", "{seed}.webp", True, True),
        ("{seed}.webp", "new.webp", True, False), ("{seed}.webp", "out/{seed}.webp", True, False),
    ],
)  # fmt: skip
def test_an_animation_never_takes_a_pictures_path(
    sdcli: Sdcli, output: str, animate: str, overwrite: bool, refused: bool
) -> None:
    if overwrite:
        Path("3.webp").touch()
    more = ["--overwrite"] * overwrite
    done = sdcli(*DRAW, *more, "--format", "webp", "-o", output, "--animate", animate)
    assert done.code == (2 if refused else 0), done.stderr
    if refused:
        assert "where a picture goes" in done.stderr and "loading" not in done.stderr
        return
    (picture,) = done.lines
    said = next(line for line in done.stderr.splitlines() if line.startswith("animation: "))
    assert len(frames(picture)) == 1 and len(frames(said.removeprefix("animation: "))) == 4


def test_animations_of_one_run_do_not_replace_each_other(sdcli: Sdcli) -> None:
    command = [*DRAW, "--count", "2", "-o", "{seed}.png", "--animate", "{prompt:5}.gif", "--overwrite"]
    assert sdcli(*command).code == 0
    assert len(list(Path().glob("*.gif"))) == 2
    assert sdcli(*command[:-1]).code == 0
    assert len(list(Path().glob("*.gif"))) == 4


def test_an_animations_path_is_replaced_by_a_later_run(sdcli: Sdcli) -> None:
    Path("x.webp").touch()
    assert sdcli(*DRAW, "--format", "webp", "-o", "{seed}.{format}", "--animate", "x.webp").code == 0
    assert len(frames("x.webp")) == 4


def test_steps_beside_pictures_that_are_called_so(sdcli: Sdcli) -> None:
    """Neither replaces the other."""
    assert sdcli(*DRAW, "-o", "steps/step-1.png", "--save-steps", "steps").code == 0
    assert record_of("steps/step-1.png")["request"]["seed"] == 3
    assert kept("steps")[0]["pictures"] == ["step-1-2.png", "step-1-clean.png"]
    assert all(Path("steps", name).is_file() for step in kept("steps") for name in step["pictures"])


def test_a_folder_of_steps_that_cannot_be_listed(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root lists everything."""
    Path("steps").mkdir()

    def refused(path: Any) -> Any:
        if Path(path).name == "steps":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    listed = os.listdir
    monkeypatch.setattr("os.listdir", refused)
    done = sdcli(*DRAW, "-o", "x.png", "--save-steps", "steps")
    assert done.code == 73 and "steps" in done.stderr and "hint" in done.stderr and "loading" not in done.stderr
