"""Presets: where they are found, what they extend, the styles that they put on, and `sdcli presets`."""

from __future__ import annotations

import io
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from sdcli.settings import presets_folder
from tests.conftest import Sdcli, record_of

DEMO = ["--model", "demo", "--steps", "1"]
SPEED = ["fast", "lcm", "lightning", "lowvram", "quality", "turbo"]
LOOKS = [
    "anime", "cinematic", "comic", "low-poly", "noir", "oil", "pencil", "photo", "pixel-art", "watercolor",
]  # fmt: skip


def put(folder: Path, **texts: str) -> None:
    """Write presets into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)


def plan(sdcli: Sdcli, *argv: str) -> dict[str, Any]:
    """Return the one plan of a command, without its model said."""
    done = sdcli(*argv, "-m", "demo", "--dry-run", "--json")
    assert done.code == 0, done.stderr
    (event,) = done.events
    return event


# Those that are shipped


def test_the_shipped_presets_are_sound(sdcli: Sdcli) -> None:
    done = sdcli("presets", "check")
    assert (done.code, done.stdout) == (0, b"") and "16 presets are sound" in done.stderr
    events = sdcli("presets", "list", "--json").events
    assert [e["name"] for e in events] == sorted([*SPEED, *LOOKS])
    assert all(e["place"] == "shipped" and len(e["description"]) > 20 for e in events)
    assert {e["path"] for e in events} == {str(f) for f in presets_folder().glob("*.toml")}


@pytest.mark.parametrize("name", [*SPEED, *LOOKS])
def test_a_shipped_preset_plans(sdcli: Sdcli, name: str) -> None:
    event = plan(sdcli, "generate", "a star", "-p", name)
    assert f"preset {name}" in " ".join(event["origins"].values())
    assert (event["request"]["prompt"] != "a star") == (name in LOOKS), "looks change the prompt, speeds do not"


def test_looks_differ_and_turbo_is_unguided(sdcli: Sdcli) -> None:
    prompts = [plan(sdcli, "generate", "a star", "-p", name)["request"] for name in LOOKS]
    assert len({p["prompt"] for p in prompts}) == len({p["negative_prompt"] for p in prompts}) == 10
    turbo = plan(sdcli, "generate", "a star", "-p", "turbo")["request"]
    assert (turbo["guidance_scale"], turbo["num_inference_steps"]) == (0, 4)
    lcm = plan(sdcli, "generate", "a star", "-p", "lcm")["request"]
    assert lcm["scheduler"] == "lcm" and 1 <= lcm["guidance_scale"] <= 2 and 4 <= lcm["num_inference_steps"] <= 8


# Styles


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    """A project's presets that are styles."""
    put(
        tmp_path / "presets",
        oil='prompt = "{prompt}, oil on canvas"\nnegative_prompt = "photo"\n',
        dusk='prompt = "at dusk: {prompt}"\nnegative = "noon"\nsteps = 2\n',
        braces='prompt = "{prompt} {a|b} {{c}} {prompts}"\n',
        plain="steps = 2\n",
    )
    return tmp_path


def test_a_style_is_put_on_and_its_origin_told(sdcli: Sdcli, styles: Path) -> None:
    event = plan(sdcli, "generate", "a star", "-p", "oil", "--seed", "4")
    assert event["request"]["prompt"] == "a star, oil on canvas"
    assert event["request"]["negative_prompt"] == "photo"
    assert event["origins"]["prompt"] == "argument, preset oil"
    assert event["origins"]["negative_prompt"] == "preset oil"
    assert event["path"] == "a-star,-oil-on-canvas-4.png"
    event = plan(sdcli, "generate", "a star", "-p", "plain")
    assert (event["request"]["prompt"], event["origins"]["prompt"]) == ("a star", "argument")


def test_styles_nest_in_their_order(sdcli: Sdcli, styles: Path) -> None:
    event = plan(sdcli, "generate", "a star", "-p", "oil", "-p", "dusk", "--negative", "blurry")
    assert event["request"]["prompt"] == "at dusk: a star, oil on canvas"
    assert event["request"]["negative_prompt"] == "blurry, photo, noon"
    assert event["origins"]["prompt"] == "argument, preset oil, preset dusk"
    assert event["origins"]["negative_prompt"] == "flag, preset oil, preset dusk"
    event = plan(sdcli, "generate", "a star", "-p", "dusk", "-p", "oil", "--negative", "")
    assert event["request"]["prompt"] == "at dusk: a star, oil on canvas".replace("at dusk: a star", "at dusk: a star")
    assert (event["request"]["negative_prompt"], event["origins"]["negative_prompt"]) == (
        "noon, photo", "preset dusk, preset oil",
    )  # fmt: skip


def test_the_order_of_styles_shows_where_they_wrap(sdcli: Sdcli, tmp_path: Path) -> None:
    put(tmp_path / "presets", a='prompt = "a({prompt})"', b='prompt = "b({prompt})"')
    assert plan(sdcli, "generate", "x", "-p", "a", "-p", "b")["request"]["prompt"] == "b(a(x))"
    assert plan(sdcli, "generate", "x", "-p", "b", "-p", "a")["request"]["prompt"] == "a(b(x))"


@pytest.mark.parametrize("prompt", ["{prompt}", "{", "a {b|c} {prompt} {", "%s {0} \\1", ""])
def test_a_style_takes_a_prompt_as_it_is(sdcli: Sdcli, styles: Path, prompt: str) -> None:
    assert plan(sdcli, "generate", prompt, "-p", "oil")["request"]["prompt"] == f"{prompt}, oil on canvas"
    assert plan(sdcli, "generate", prompt, "-p", "braces")["request"]["prompt"] == prompt + " {a|b} {{c}} {prompts}"


def test_the_settings_negative_prompt_is_appended_to(sdcli: Sdcli, styles: Path) -> None:
    (styles / "sdcli.toml").write_text('negative = "blurry"\n')
    event = plan(sdcli, "generate", "a star", "-p", "oil")
    assert event["request"]["negative_prompt"] == "blurry, photo"
    assert event["origins"]["negative_prompt"] == "project settings, preset oil"


def test_the_record_says_what_was_drawn_and_what_was_typed(sdcli: Sdcli, styles: Path) -> None:
    argv = [*DEMO, "--seed", "4", "--json"]
    styled = sdcli("generate", "a star", "-p", "oil", *argv).events[0]
    record = record_of(styled["path"])
    assert (record["request"]["prompt"], record["template"]) == ("a star, oil on canvas", "a star")
    assert record["request"]["negative_prompt"] == "photo"
    typed = sdcli("generate", "a star, oil on canvas", "--negative", "photo", *argv).events[0]
    assert (typed["id"], typed["pixels"]) == (styled["id"], styled["pixels"])
    assert record_of(typed["path"])["template"] is None


def test_a_style_is_put_on_after_expansion(sdcli: Sdcli, styles: Path) -> None:
    argv = ["generate", "a {red|red} star", "-p", "oil", "-p", "braces", "--expand", "random"]
    event = plan(sdcli, *argv, "--seed", "4")
    assert event["request"]["prompt"] == "a red star, oil on canvas {a|b} {{c}} {prompts}"
    assert event["origins"]["prompt"] == "argument, preset oil, preset braces"
    event = plan(sdcli, *argv)
    assert event["request"]["prompt"] == "a {red|red} star, oil on canvas {a|b} {{c}} {prompts}"
    assert event["origins"]["prompt"] == "decided at run time"
    event = plan(sdcli, "generate", "a star", "-p", "oil", "--expand", "random")
    assert event["origins"]["prompt"] == "argument, preset oil", "nothing in it is decided by the seed"
    done = sdcli("generate", "{a|b}", "-p", "oil", "--expand", "all", "-m", "demo", "--dry-run", "--json")
    assert [e["request"]["prompt"] for e in done.events] == ["a, oil on canvas", "b, oil on canvas"]
    drawn = sdcli("generate", "a {red|red} star", "-p", "oil", "--expand", "random", *DEMO, "--json").events[0]
    record = record_of(drawn["path"])
    assert (record["request"]["prompt"], record["template"]) == ("a red star, oil on canvas", "a {red|red} star")


def test_a_style_over_a_picture_styles_it_again(sdcli: Sdcli, styles: Path) -> None:
    argv = [*DEMO, "--negative", "bad", "--seed", "4", "--expand", "random", "-o", "{index}.png"]
    assert sdcli("generate", "a {red|red} star", "a ring", *argv).code == 0
    event = plan(sdcli, "generate", "--from", "1.png", "--set", "steps=3")
    assert (event["request"]["prompt"], event["origins"]["prompt"]) == ("a red star", "1.png")
    event = plan(sdcli, "generate", "--from", "1.png", "-p", "dusk")
    assert event["request"]["prompt"] == "at dusk: a red star"
    assert event["request"]["negative_prompt"] == "bad, noon"
    assert (event["origins"]["prompt"], event["origins"]["num_inference_steps"]) == (
        "1.png, preset dusk",
        "preset dusk",
    )
    assert plan(sdcli, "batch", "--from", "1.png", "-p", "dusk")["request"] == event["request"]
    done = sdcli("batch", "--from", "1.png", "--from", "2.png", "-p", "dusk", "--steps", "1", "--json")
    records = [record_of(e["path"]) for e in done.events[:-1]]
    assert [(r["request"]["prompt"], r["template"]) for r in records] == [
        ("at dusk: a red star", "a {red|red} star"), ("at dusk: a ring", "a ring"),
    ]  # fmt: skip
    (styles / "again.png").write_bytes(Path(done.events[0]["path"]).read_bytes())
    event = plan(sdcli, "generate", "--from", "again.png")
    assert event["request"]["prompt"] == "at dusk: a red star", "a record's prompt is styled already"
    event = plan(sdcli, "generate", "--from", "again.png", "-p", "dusk")
    assert event["request"]["prompt"] == "at dusk: at dusk: a red star", "asked for is asked for"


def test_rows_get_the_commands_style_and_then_their_own(sdcli: Sdcli, styles: Path) -> None:
    (styles / "p.csv").write_text(
        'prompt,preset,negative\na star,,\na star,dusk,\na star,dusk,blurry\na star,"dusk,dusk",\n'
    )
    done = sdcli("batch", "p.csv", "-p", "oil", "-m", "demo", "--dry-run", "--json")
    said = [(e["request"]["prompt"], e["request"]["negative_prompt"]) for e in done.events]
    assert said == [
        ("a star, oil on canvas", "photo"),
        ("at dusk: a star, oil on canvas", "photo, noon"),
        ("at dusk: a star, oil on canvas", "blurry, photo, noon"),
        ("at dusk: at dusk: a star, oil on canvas", "photo, noon, noon"),
    ]
    assert done.events[1]["origins"]["prompt"] == "p.csv:3, preset oil, preset dusk"
    assert done.events[2]["origins"]["negative_prompt"] == "p.csv:4, preset oil, preset dusk"


def test_a_styled_batch_goes_on(sdcli: Sdcli, styles: Path) -> None:
    (styles / "p.txt").write_text("a star\na star --preset dusk --steps 1\na {red|blue} ring\n")
    argv = ["batch", "p.txt", "-p", "oil", *DEMO, "--expand", "random", "--json"]
    first = sdcli(*argv).events
    again = sdcli(*argv).events
    assert [e["event"] for e in first] == ["image"] * 3 + ["summary"]
    assert {e["id"] for e in again[:-1]} == {e["id"] for e in first[:-1]}
    assert [e["event"] for e in again] == ["skipped"] * 3 + ["summary"]
    for event in first[:-1]:
        record = record_of(event["path"])
        assert record["request"]["prompt"] == event["prompt"] != record["template"]
    # Another style draws others, and the row that is gone leaves the others' seeds as they were.
    (styles / "p.txt").write_text("a star --preset dusk --steps 1\na {red|blue} ring\n")
    assert [e["event"] for e in sdcli(*argv).events] == ["skipped"] * 2 + ["summary"]
    (styles / "presets" / "oil.toml").write_text('prompt = "{prompt}, acrylic"')
    assert [e["event"] for e in sdcli(*argv).events] == ["image"] * 2 + ["summary"]


def test_two_rows_may_not_write_one_picture_in_two_styles(sdcli: Sdcli, styles: Path) -> None:
    rows = "a star --seed 4 -o a.png --preset oil\na star --seed 4 -o a.png{}\n"
    (styles / "p.txt").write_text(rows.format(" --preset dusk"))
    done = sdcli("batch", "p.txt", "-m", "demo", "--dry-run")
    assert "p.txt:2: another row writes a.png too" in done.stderr
    (styles / "p.txt").write_text(rows.format(" --preset oil"))
    assert sdcli("batch", "p.txt", "-m", "demo", "--dry-run").code == 0


def test_a_grid_varies_prompts_and_styles(sdcli: Sdcli, styles: Path) -> None:
    argv = ["grid", "a red star", "--x", "prompt:red=red,blue", "--y", "preset=dusk,plain", "-p", "oil", "-m", "demo"]
    done = sdcli(*argv, "--dry-run", "--json")
    assert [e["request"]["prompt"] for e in done.events] == [
        "at dusk: a red star, oil on canvas", "at dusk: a blue star, oil on canvas",
        "a red star, oil on canvas", "a blue star, oil on canvas",
    ]  # fmt: skip
    assert done.events[0]["origins"]["prompt"] == "--x, preset oil, preset dusk"
    assert done.events[2]["request"]["negative_prompt"] == "photo"


# Where they are found


def test_the_nearest_place_wins(sdcli: Sdcli, tmp_path: Path, configuration: Path) -> None:
    argv = ["generate", "a star", "-p", "fast"]
    assert plan(sdcli, *argv)["request"]["num_inference_steps"] == 12
    put(configuration / "presets", fast="steps = 3")
    assert plan(sdcli, *argv)["request"]["num_inference_steps"] == 3
    put(tmp_path / "presets", fast="steps = 4")
    assert plan(sdcli, *argv)["request"]["num_inference_steps"] == 4
    (event,) = [e for e in sdcli("presets", "list", "--json").events if e["name"] == "fast"]
    assert (event["place"], event["hides"], event["path"]) == ("project", ["user", "shipped"], "presets/fast.toml")
    assert sdcli("presets", "path", "fast").lines == ["presets/fast.toml"]
    assert any(line.startswith("fast ") and "(not user, shipped)" in line for line in sdcli("presets", "list").lines)


def test_a_preset_by_its_path(sdcli: Sdcli, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", mine="steps = 3")
    put(tmp_path, fast="steps = 4")
    event = plan(sdcli, "generate", "a star", "-p", "elsewhere/mine.toml")
    assert (event["request"]["num_inference_steps"], event["origins"]["num_inference_steps"]) == (
        3, "preset elsewhere/mine.toml",
    )  # fmt: skip
    assert plan(sdcli, "generate", "a star", "-p", "fast.toml")["request"]["num_inference_steps"] == 4
    assert plan(sdcli, "generate", "a star", "-p", "fast")["request"]["num_inference_steps"] == 12
    done = sdcli("generate", "a star", "-m", "demo", "-p", "./nothing.toml", "--dry-run")
    assert done.code == 66 and "./nothing.toml is not there" in done.stderr
    (tmp_path / "p.txt").write_text("a star --preset ./fast.toml\n")
    assert plan(sdcli, "batch", "p.txt")["request"]["num_inference_steps"] == 4


@pytest.mark.parametrize("name", ["oli", "Oil", "../oil", "", ".oil", "oil ", "o\x1b[31mil"])
def test_a_name_that_is_none(sdcli: Sdcli, name: str) -> None:
    done = sdcli("generate", "a star", "-m", "demo", "-p", name, "--dry-run")
    assert done.code in (2, 66) and "\x1b" not in done.stderr
    if name in ("oli", "Oil"):
        assert f"there is no preset {name}; did you mean oil" in done.stderr
    done = sdcli("presets", "show", name)
    assert done.code in (2, 66) and "\x1b" not in done.stderr


def test_a_row_can_only_take_what_is_a_rows(sdcli: Sdcli, tmp_path: Path) -> None:
    put(tmp_path / "presets", base="dtype = 'fp32'", mine="extends = 'base'")
    (tmp_path / "p.txt").write_text("a star --preset mine\n")
    done = sdcli("batch", "p.txt", "-m", "demo", "--dry-run")
    assert done.code == 65 and "p.txt:1: preset mine sets dtype, which is set for the whole run" in done.stderr


# What they extend


def test_the_nearest_is_stronger_than_what_it_extends(sdcli: Sdcli, tmp_path: Path) -> None:
    put(
        tmp_path / "presets",
        base='steps = 3\ncfg = 3\nseed = 3\nprompt = "base({prompt})"\nnegative = "b"',
        other='cfg = 4\nseed = 4\nprompt = "other({prompt})"',
        mine='extends = ["base", "other"]\nseed = 5\nprompt = "mine({prompt})"\nnegative = "m"',
    )
    event = plan(sdcli, "generate", "x", "-p", "mine")
    request, origins = event["request"], event["origins"]
    fields = ("num_inference_steps", "guidance_scale", "seed")
    assert [(request[f], origins[f]) for f in fields] == [
        (3, "preset mine (extends base)"), (4, "preset mine (extends other)"), (5, "preset mine"),
    ]  # fmt: skip
    assert (request["prompt"], request["negative_prompt"]) == ("mine(other(base(x)))", "b, m")
    assert origins["prompt"] == "argument, preset mine (extends base), preset mine (extends other), preset mine"
    (shown,) = sdcli("presets", "show", "mine", "--json").events
    assert shown["values"] == {
        "prompt": "mine(other(base({prompt})))", "num_inference_steps": 3, "guidance_scale": 4.0, "seed": 5,
        "negative_prompt": "b, m",
    }  # fmt: skip
    assert shown["origins"]["guidance_scale"] == "preset mine (extends other)"
    text = sdcli("presets", "show", "mine").stdout.decode()
    assert "mine: project, presets/mine.toml" in text and "preset mine (extends other)" in text


def test_its_own_name_means_the_weaker_place(sdcli: Sdcli, tmp_path: Path, configuration: Path) -> None:
    put(tmp_path / "presets", fast='extends = "fast"\ncfg = 3')
    put(configuration / "presets", fast='extends = "fast"\nseed = 3')
    event = plan(sdcli, "generate", "x", "-p", "fast")
    assert (event["request"]["num_inference_steps"], event["request"]["seed"]) == (12, 3)
    assert event["origins"]["num_inference_steps"] == "preset fast (extends shipped fast)"
    assert event["origins"]["seed"] == "preset fast (extends user fast)"
    assert event["origins"]["guidance_scale"] == "preset fast"


def test_what_is_extended_twice_counts_once(sdcli: Sdcli, tmp_path: Path) -> None:
    put(
        tmp_path / "presets",
        base='prompt = "base({prompt})"', a="extends = 'base'", b="extends = ['base']", mine="extends = ['a', 'b', 'base']",
    )  # fmt: skip
    assert plan(sdcli, "generate", "x", "-p", "mine")["request"]["prompt"] == "base(x)"


def test_a_path_is_taken_from_the_presets_folder(sdcli: Sdcli, tmp_path: Path) -> None:
    put(tmp_path / "sets", mine='extends = ["more/base.toml", "fast"]')
    put(tmp_path / "sets" / "more", base="cfg = 3\nextends = '../third.toml'")
    put(tmp_path / "sets", third="seed = 3")
    request = plan(sdcli, "generate", "x", "-p", "sets/mine.toml")["request"]
    assert (request["guidance_scale"], request["seed"], request["num_inference_steps"]) == (3, 3, 12)


EXTENDS = [
    ({"mine": "steps = 3\nextends = 'mine'"}, "mine.toml:2: extends: there is no other preset mine"),
    ({"mine": "extends = 'b'", "b": "# b\nextends = 'mine'"}, "b.toml:2: presets extend each other in a circle: mine > b > mine"),
    ({"mine": "extends = 'b'", "b": "extends = 'c'", "c": "extends = ['fast', 'b']"}, "c.toml:1: presets extend each other in a "
     "circle: b > c > b"),
    ({"mine": "extends = 'fats'"}, "mine.toml:1: extends: there is no preset fats; did you mean fast"),
    ({"mine": "extends = './nothing.toml'"}, "mine.toml:1: extends: ./nothing.toml is not there"),
    ({"mine": "extends = './mine.toml'"}, "mine.toml:1: presets extend each other in a circle: mine > ./mine.toml"),
    ({"mine": "extends = 'b'", "b": "steps = 'x'"}, "b.toml:1: steps can't be 'x'"),
    ({"mine": "extends = 3"}, "mine.toml:1: extends is the name of a preset, or a list"),
    ({"mine": "extends = ['fast', 3]"}, "mine.toml:1: extends is the name of a preset, or a list"),
]  # fmt: skip


@pytest.mark.parametrize(("texts", "said"), EXTENDS, ids=[e[1].split(": ", 1)[1][:40] for e in EXTENDS])
def test_what_cannot_be_extended(sdcli: Sdcli, tmp_path: Path, texts: dict[str, str], said: str) -> None:
    put(tmp_path / "presets", **texts)
    for argv in (["generate", "x", "-m", "demo", "-p", "mine", "--dry-run"], ["presets", "show", "mine"]):
        done = sdcli(*argv)
        assert (done.code, done.stdout) == (65, b"") and f"error: presets/{said}" in done.stderr, done.stderr
    done = sdcli("presets", "check", "mine")
    assert done.code == 65 and f"presets/{said}" in done.stdout.decode()


def test_a_chain_has_an_end(sdcli: Sdcli, tmp_path: Path) -> None:
    put(tmp_path / "presets", **{f"p{i}": f"extends = 'p{i + 1}'" for i in range(100)}, p100="steps = 3")
    done = sdcli("generate", "x", "-m", "demo", "-p", "p0", "--dry-run")
    assert done.code == 65 and "more than 50 presets extend each other" in done.stderr
    assert plan(sdcli, "generate", "x", "-p", "p60")["request"]["num_inference_steps"] == 3


# What is wrong with them


BAD = [
    ("an unknown key", "steps = 3\nstesp = 3\n", 2, "there is no field stesp; did you mean steps"),
    ("a wrong value", "steps = 0\n", 1, "steps can't be 0"),
    ("no placeholder", 'prompt = "oil on canvas"\n', 1, "prompt is a template, and {prompt} is not in it"),
    (
        "two placeholders",
        'prompt = "{prompt} {prompt}"\n',
        1,
        "prompt is a template, and {prompt} is in it more than once",
    ),
    ("a prompt that is no text", "prompt = 3\n", 1, "prompt is text"),
    ("a negative prompt that is no text", "negative = ['a']\n", 1, "negative is text"),
    ("two negative prompts", "negative = 'a'\nnegative_prompt = 'b'\n", 2, "negative_prompt is given twice"),
    ("a description that is no text", "description = 3\n", 1, "description is text"),
    ("a preset", "preset = 'fast'\n", 1, "preset is not set here"),
    ("a scheduler", "scheduler = 'eulr'\n", 1, "unknown scheduler 'eulr'; did you mean euler"),
    ("what does not go together", "device = 'cpu'\ndtype = 'fp16'\n", 2, "fp16 on a CPU is refused"),
    ("no TOML", "steps 3\n", 1, "it is not TOML"),
    ("no UTF-8", "steps = 3\nprompt = '\udcff'\n", 2, "it is not UTF-8"),
]


@pytest.mark.parametrize(("text", "line", "reason"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_presets_are_named_by_file_and_line(
    sdcli: Sdcli, tmp_path: Path, text: str, line: int, reason: str
) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    done = sdcli("generate", "x", "-m", "demo", "-p", "mine", "--dry-run")
    assert done.code == 65 and done.stderr.startswith(f"error: presets/mine.toml:{line}: {reason}"), done.stderr
    done = sdcli("presets", "check")
    assert done.code == 65 and done.lines[0].startswith(f"presets/mine.toml:{line}: {reason}")
    assert "1 of 17 presets are not sound" in done.stderr
    assert sdcli("presets", "list").code == 0, "the others are listed"


def test_check_says_every_fault_once(sdcli: Sdcli, tmp_path: Path) -> None:
    put(
        tmp_path / "presets",
        mine="stesp = 1\nsteps = 0\nprompt = 'x'\nextends = 'nope'\n", other="extends = 'mine'\ncfgg = 1\n",
        **{"not a name": "steps = 3"},
    )  # fmt: skip
    (tmp_path / "presets" / "gone.toml").symlink_to("nowhere")
    done = sdcli("presets", "check", "--json")
    *faults, error = done.events
    assert done.code == error["exit"] == 65 and "4 of 20" in error["message"]
    assert [(Path(f["path"]).name, f["line"], f["message"].split(";")[0]) for f in faults] == [
        ("gone.toml", None, "it is not there"),
        ("mine.toml", 1, "there is no field stesp"),
        ("mine.toml", 2, "steps can't be 0: expected int >= 1"),
        ("mine.toml", 3, "prompt is a template, and {prompt} is not in it"),
        ("mine.toml", 4, "extends: there is no preset nope"),
        ("other.toml", 2, "there is no field cfgg"),
        ("not a name.toml", None, "its name is none that a preset can have"),
    ]
    done = sdcli("presets", "check", "fast", "./presets/other.toml")
    assert done.code == 65 and [line.split(":")[0] for line in done.lines] == [
        "presets/other.toml",
        "presets/mine.toml",
    ]
    assert sdcli("presets", "check", "fast", "oil").code == 0


def test_check_names_what_extends_the_unsound(sdcli: Sdcli, tmp_path: Path) -> None:
    put(tmp_path / "presets", base="steps = 0\n", a="cfg = 3\nextends = 'base'\n", z="extends = 'a'\n")
    done = sdcli("presets", "check")
    assert done.code == 65 and "3 of 19" in done.stderr
    assert sorted(line.split(": ", 1)[0] for line in done.lines) == [
        "presets/a.toml:2", "presets/base.toml:1", "presets/z.toml:1",
    ]  # fmt: skip
    assert "presets/a.toml:2: it extends what is not sound: presets/base.toml" in done.lines


# New ones


def test_a_preset_out_of_a_picture(sdcli: Sdcli, tmp_path: Path, configuration: Path) -> None:
    argv = ["--seed", "4", "--cfg", "3", "--scheduler", "euler-a", "--negative", "blurry", "--size", "96x128"]
    drawn = sdcli("generate", "a star", *DEMO, *argv, "-o", "a.png", "--json").events[0]
    done = sdcli("presets", "new", "mine", "--from", "a.png")
    assert done.code == 0, done.stderr
    file = configuration / "presets" / "mine.toml"
    assert done.lines == [str(file)]
    assert tomllib.loads(file.read_text()) == {
        "description": "As in a.png.", "num_inference_steps": 1, "guidance_scale": 3.0, "scheduler": "euler-a",
        "width": 96, "height": 128, "negative_prompt": "blurry",
    }  # fmt: skip
    assert "# Made from a.png." in file.read_text() and "# It was drawn by the model demo." in file.read_text()
    again = sdcli("generate", "a star", "-m", "demo", "-p", "mine", "--seed", "4", "-o", "b.png", "--json").events[0]
    assert (again["id"], again["pixels"]) == (drawn["id"], drawn["pixels"])
    assert sdcli("presets", "new", "mine", "--from", "a.png").code == 2, "nothing is overwritten"
    done = sdcli(
        "presets", "new", "mine", "--from", "a.png", "--with-seed", "--overwrite", "--set", "steps=2", "--json"
    )
    assert done.events[0]["path"] == str(file)
    told = tomllib.loads(file.read_text())
    assert (told["seed"], told["num_inference_steps"]) == (4, 2)
    assert sdcli("presets", "check", "mine").code == 0


def test_a_preset_out_of_another_programs_picture(sdcli: Sdcli, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a star\nNegative prompt: ugly\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64, "
                  "Model: a \x1b[31mmodel")  # fmt: skip
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=info)
    assert sdcli("presets", "new", "mine", "--from", "a.png", "--project").code == 0
    text = (tmp_path / "presets" / "mine.toml").read_text()
    told = tomllib.loads(text)
    assert (told["num_inference_steps"], told["guidance_scale"], told["negative_prompt"]) == (20, 7.0, "ugly")
    assert "seed" not in told and "prompt" not in told and "\x1b" not in text
    assert plan(sdcli, "generate", "x", "-p", "mine")["request"]["num_inference_steps"] == 20


def test_a_preset_out_of_stdin(process: Sdcli, tmp_path: Path) -> None:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("parameters", "a star\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64")
    Image.new("RGB", (64, 64)).save(file, "png", pnginfo=info)
    done = process("presets", "new", "mine", "--from", "-", "--project", stdin=file.getvalue())
    assert (
        done.code == 0 and tomllib.loads((tmp_path / "presets" / "mine.toml").read_text())["num_inference_steps"] == 20
    )


def test_a_preset_out_of_nothing_and_on_top_of_others(sdcli: Sdcli, tmp_path: Path) -> None:
    argv = ["presets", "new", "fast", "--project", "--extends", "fast", "--extends", "oil"]
    done = sdcli(*argv, "--set", "prompt={prompt}, big", "--set", "negative=small", "--set", "tags={\"a\": \"b\"}",
                 "--description", "Fast,\nin \"oil\".")  # fmt: skip
    assert done.code == 0, done.stderr
    assert tomllib.loads((tmp_path / "presets" / "fast.toml").read_text()) == {
        "description": 'Fast, in "oil".', "extends": ["fast", "oil"], "prompt": "{prompt}, big",
        "negative_prompt": "small", "tags": {"a": "b"},
    }  # fmt: skip
    request = plan(sdcli, "generate", "x", "-p", "fast")["request"]
    assert request["num_inference_steps"] == 12 and request["prompt"].endswith(", rich colours, big")
    assert sdcli("presets", "new", "empty", "--project").code == 0
    text = (tmp_path / "presets" / "empty.toml").read_text()
    assert '# A style would be: prompt = "{prompt}, oil on canvas"' in text


def test_what_a_new_preset_hides_is_said(sdcli: Sdcli, configuration: Path) -> None:
    assert "hides" not in sdcli("presets", "new", "mine", "--project").stderr
    assert "it hides the shipped preset fast\n" in sdcli("presets", "new", "fast").stderr
    done = sdcli("presets", "new", "fast", "--project")
    assert done.code == 0 and "it hides the user and the shipped preset fast\n" in done.stderr
    done = sdcli("presets", "new", "fast", "--overwrite")
    assert "the project preset fast hides it here\n" in done.stderr and "it hides the shipped" in done.stderr


NEW = [
    (["a/b"], 2, "can't be called 'a/b'"),
    (["mine.toml"], 2, "can't be called"),
    ([".mine"], 2, "can't be called"),
    (["a,b"], 2, "can't be called"),
    (["--set", "stesp=3", "mine"], 2, "there is no field stesp"),
    (["--set", "steps=many", "mine"], 2, "steps can't be 'many'"),
    (["--set", "steps=1", "--set", "num_inference_steps=2", "mine"], 2, "num_inference_steps is given twice"),
    (["--set", "prompt=oil", "mine"], 2, "{prompt} is not in it"),
    (["--set", "scheduler=eulr", "mine"], 2, "unknown scheduler 'eulr'"),
    (["--set", "extends=fast", "mine"], 2, "extends is no field"),
    (["--extends", "fats", "mine"], 2, "there is no preset fats; did you mean fast"),
    (["--extends", "mine", "mine"], 2, "there is no preset mine"),
    (["--from", "nothing.png", "mine"], 66, "nothing.png is not there"),
    (["--with-seed", "mine"], 2, "--with-seed is for --from"),
]


@pytest.mark.parametrize(("argv", "code", "said"), NEW, ids=[" ".join(n[0]) for n in NEW])
def test_what_no_preset_can_be_made_of(
    sdcli: Sdcli, tmp_path: Path, configuration: Path, argv: list[str], code: int, said: str
) -> None:
    for more in ([], ["--project"]):
        done = sdcli("presets", "new", *argv, *more)
        assert (done.code, done.stdout) == (code, b"") and said in done.stderr, done.stderr
    assert not configuration.exists() and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--set", "model=/gone/\udcff"], ["--set", "prompt={prompt}\udcff"], ["--set", "negative=\udcff"],
        ["--set", "model-config=/gone/\udcff"], ["--set", "output=\udcff"], ["--extends", "./\udcff.toml"],
        ["--set", 'sign=["\udcff", "b"]'],
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_utf8_has_no_place_in_a_preset(sdcli: Sdcli, tmp_path: Path, argv: list[str]) -> None:
    (tmp_path / "\udcff.toml").write_text("steps = 3\n")
    done = sdcli("presets", "new", "mine", "--project", *argv)
    assert done.code == 2 and "not UTF-8" in done.stderr and not (tmp_path / "presets").exists()


def test_texts_of_presets_do_not_steer_a_terminal(sdcli: Sdcli, tmp_path: Path) -> None:
    put(tmp_path / "presets", mine='description = "\\u001b[31mred\\nline"\nprompt = "\\u001b[31m{prompt}"\n')
    for argv in (
        ["presets", "list"],
        ["presets", "show", "mine"],
        ["generate", "x", "-m", "demo", "-p", "mine", "--dry-run"],
    ):
        done = sdcli(*argv)
        assert done.code == 0 and b"\x1b" not in done.stdout and "\x1b" not in done.stderr
    assert json.loads(sdcli("presets", "show", "mine", "--json").lines[0])["description"] == "\x1b[31mred\nline"


def test_each_part_has_examples(sdcli: Sdcli) -> None:
    for part in ("list", "show", "path", "new", "check"):
        done = sdcli("presets", part, "-h")
        assert done.code == 0 and b"Examples:" in done.stdout and f"sdcli presets {part}".encode() in done.stdout
