"""What pictures are drawn from besides words, in batches, grids, presets, settings and records: one more field each."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import load_file, save_file

from sdcli.pipeline import Pipeline
from sdcli.request import GenerationRequest
from tests.conftest import Outcome, Sdcli, pixels, record_of
from tests.killing import Nursery

DEMO = ("--model", "demo", "--dtype", "fp32", "--steps", "2")
LAYERS = [f"unet.mid_block.attentions.0.transformer_blocks.0.attn2.{name}" for name in ("to_v", "to_out.0")]
PROMPT = "a red circle"


def lora(to: Path, seed: int) -> Path:
    """Write a LoRA that changes the demo model's pictures."""
    generator = np.random.default_rng(seed)
    shapes = {f"{layer}.lora_{end}.weight": (2, 128) if end == "A" else (128, 2) for layer in LAYERS for end in "AB"}
    to.parent.mkdir(exist_ok=True)
    save_file({name: generator.standard_normal(shape).astype("float32") for name, shape in shapes.items()}, to)
    return to


def edited(source: Path, to: Path, edit: Any) -> None:
    """Write a LoRA again, with one of its layers changed."""
    state = load_file(source)
    name = f"{LAYERS[1]}.lora_B.weight"
    save_file(state | {name: edit(state[name])}, to)


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    """A picture, another one, a mask and LoRAs, in the current folder and in one of adapters."""
    for name, colours in (("start.png", ("blue", "red")), ("other.png", ("green", "yellow"))):
        picture = Image.new("RGB", (128, 128), colours[0])
        ImageDraw.Draw(picture).ellipse((30, 30, 90, 90), fill=colours[1])
        picture.save(tmp_path / name)
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (32, 32, 64, 64))
    mask.save(tmp_path / "mask.png")
    for name, seed in (("a", 1), ("b", 2)):
        shutil.copy(lora(tmp_path / "adapters" / f"{name}.safetensors", seed), tmp_path)


def write(name: str, *lines: str) -> str:
    Path(name).write_text("".join(f"{line}\n" for line in lines))
    return name


def events(done: Outcome, kind: str) -> list[dict[str, Any]]:
    return [e for e in done.events if e["event"] == kind]


def plan(sdcli: Sdcli, *argv: str, prompt: str | None = PROMPT) -> dict[str, Any]:
    """Return what a command would draw."""
    done = sdcli("generate", *([prompt] if prompt else []), *DEMO, "-s", "5", *argv, "--dry-run", "--json")
    assert done.code == 0, done.stderr
    (event,) = done.events
    return event


# Rows

ROWS: list[dict[str, Any]] = [
    {"lora": ["a.safetensors:0.5", {"name": "b.safetensors", "scale": 0.2}]},
    {"init_image": "start.png", "strength": 0.5},
    {"init_image": "start.png", "mask": "mask.png", "invert_mask": True, "mask_blur": 4},
    {"hires": {"factor": 1.5, "strength": 0.5}, "variation": {"seed": 3, "strength": 0.2}},
    {"init_image": "start.png", "outpaint": {"left": 32, "top": 16}, "upscale": {"name": "lanczos", "factor": 2}},
    {"init_image": "other.png", "resize": "fit", "width": 96, "lora": "a.safetensors"},
]  # fmt: skip
AS_FLAGS = [
    "--lora a.safetensors:0.5 --lora ./b.safetensors:0.2",
    "--init-image start.png --strength 0.5",
    "--init-image start.png --mask mask.png --invert-mask --set mask_blur=4",
    "--hires 1.5x:0.5 --variation 3:0.2",
    "--init-image start.png --outpaint left=32,top=16 --upscale lanczos:2",
    "--init-image other.png --resize fit --width 96 --lora a.safetensors",
]


def planned(sdcli: Sdcli, file: str) -> list[str]:
    done = sdcli("batch", file, *DEMO, "-s", "5", "--dry-run", "--json")
    assert done.code == 0, done.stderr
    return [e["id"] for e in done.events]


def test_rows_of_every_format_mean_the_same(sdcli: Sdcli) -> None:
    rows = [{"prompt": PROMPT} | row for row in ROWS]
    fields = list(dict.fromkeys(field for row in rows for field in row))
    # In a table a record is text, as on the command line, or JSON.
    cells = [
        {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} | {"lora": row.get("lora", "")}
        for row in rows
    ]
    cells[0]["lora"] = json.dumps(rows[0]["lora"])
    cells[3] |= {"hires": "1.5x:0.5", "variation": "3:0.2"}
    table = [",".join('"' + str(c.get(f, "")).replace('"', '""') + '"' for f in fields) for c in cells]
    formats = {
        "rows.txt": [f"{PROMPT} {flags}" for flags in AS_FLAGS],
        "rows.jsonl": [json.dumps(row) for row in rows],
        "rows.json": [json.dumps(rows)],
        "rows.csv": [",".join(fields), *table],
    }
    found = {name: planned(sdcli, write(name, *lines)) for name, lines in formats.items()}
    assert len(set(found["rows.txt"])) == len(ROWS)
    assert all(ids == found["rows.txt"] for ids in found.values()), found


def test_a_batch_draws_what_generate_draws(sdcli: Sdcli) -> None:
    """Whatever was on for the rows before: each row's picture is that of a command of its own."""
    lines = [*AS_FLAGS, "", "--lora adapters/a.safetensors:0.5 --lora b.safetensors:0.2 --seed 6"]
    done = sdcli("batch", write("rows.txt", *(f"{PROMPT} {flags}" for flags in lines)), *DEMO, "-s", "5", "--json")
    assert done.code == 0, done.stderr
    drawn = {e["line"]: e for e in events(done, "image")}
    assert len(drawn) == len(lines)
    for number in (1, 2, 4, 7):
        alone = sdcli("generate", PROMPT, *DEMO, "-s", "5", *lines[number - 1].split(), "--json").events[0]
        assert (alone["id"], alone["pixels"]) == (drawn[number]["id"], drawn[number]["pixels"]), number
    sizes = [pixels(drawn[number]["path"]).shape[1::-1] for number in (2, 4, 5, 6)]
    assert sizes == [(128, 128), (192, 192), (320, 288), (96, 128)]
    assert sdcli("verify", *(e["path"] for e in drawn.values()), "--json").code == 0


def test_what_a_file_says_decides_what_is_drawn_again(sdcli: Sdcli) -> None:
    """By content, not by name: another picture under the same name is another job, the same one elsewhere is not."""
    rows = write(
        "rows.txt",
        f"{PROMPT} --seed 1",
        f"{PROMPT} --seed 2 --init-image start.png",
        f"{PROMPT} --lora a.safetensors --seed 3",
    )

    def run(done: int, skipped: int) -> None:
        outcome = sdcli("batch", rows, *DEMO, "--json")
        assert outcome.code == 0, outcome.stderr
        assert (outcome.events[-1]["done"], outcome.events[-1]["skipped"]) == (done, skipped)

    run(3, 0)
    run(0, 3)
    shutil.copy("start.png", "kept.png")
    shutil.copy("other.png", "start.png")
    run(1, 2)
    shutil.copy("b.safetensors", "a.safetensors")
    run(1, 2)
    Path("rows.txt").write_text(Path("rows.txt").read_text().replace("start.png", "kept.png"))
    run(0, 3)


TRAVERSALS = (
    "../b",
    "/etc/passwd",
    "sub/../../b",
    "..",
    "./a",
    "~/a",
    "a.safetensors/../../b",
    "%2e%2e/b",
    "C:\\b",
    "//host/b",
)


def test_words_reach_no_file_outside_the_folder_of_adapters(sdcli: Sdcli) -> None:
    lines = [f"{PROMPT} <lora:{name}:0.5>" for name in TRAVERSALS]
    done = sdcli("batch", write("rows.txt", *lines), *DEMO, "--set", "adapter_dir=adapters", "--json")
    assert done.code == 65 and not events(done, "image")
    assert [e["line"] for e in events(done, "error") if e["line"]] in ([], [*range(1, len(lines) + 1)])
    for number in range(1, len(lines) + 1):
        assert f"rows.txt:{number}: " in done.stderr
    # The same through an object's name is what a person who writes a file of rows may do.
    good = sdcli("batch", write("rows.txt", f"{PROMPT} <lora:a:0.5>"), *DEMO, "--set", "adapter_dir=adapters", "--json")
    assert good.code == 0 and record_of(good.events[0]["path"])["request"]["lora"][0]["name"] == "a.safetensors"


# Failures


def test_a_picture_that_is_missing_is_told_before_anything_is_drawn(sdcli: Sdcli) -> None:
    rows = write(
        "rows.txt",
        PROMPT,
        f"{PROMPT} --init-image gone.png",
        f"{PROMPT} --lora corrupt.safetensors",
        f"{PROMPT} --seed 3",
    )
    Path("corrupt.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:500])
    done = sdcli("batch", rows, *DEMO, "--json")
    assert done.code == 65 and not events(done, "image")
    assert "rows.txt:2: gone.png is not there" in done.stderr
    assert "rows.txt:3: corrupt.safetensors is no safetensors file" in done.stderr
    done = sdcli("batch", rows, *DEMO, "--json", "--skip-bad-rows")
    assert done.code == 1 and [e["line"] for e in events(done, "image")] == [1, 4]
    assert [e["line"] for e in events(done, "error")] == [2, 3]


def test_an_adapter_that_fails_spoils_no_other_row(sdcli: Sdcli) -> None:
    """One of another shape than its header lets see, one full of numbers that are none."""
    edited(Path("a.safetensors"), Path("shape.safetensors"), lambda tensor: np.zeros((131, 2), "float32"))
    edited(Path("a.safetensors"), Path("nan.safetensors"), lambda tensor: np.full_like(tensor, np.nan))
    names = ("a", "shape", "b", "nan", "a", "b")
    lines = [f"{PROMPT} --seed {n} --lora {name}.safetensors:0.5" for n, name in enumerate(names, 1)]
    done = sdcli("batch", write("rows.txt", *lines, f"{PROMPT} --seed 9"), *DEMO, "--json")
    assert done.code == 1, done.stderr
    failed = {e["line"]: e["code"] for e in events(done, "error") if e["line"]}
    assert failed == {2: "bad-input", 4: "not-finite"}
    drawn = {e["line"]: e["pixels"] for e in events(done, "image")}
    for line, options in ((5, ("--lora", "a.safetensors:0.5")), (6, ("--lora", "b.safetensors:0.5")), (7, ())):
        seed = "9" if line == 7 else str(line)
        alone = sdcli("generate", PROMPT, *DEMO, "-s", seed, *options, "--json")
        assert alone.events[0]["pixels"] == drawn[line], line
    assert sdcli("generate", PROMPT, *DEMO, "--lora", "nan.safetensors").code == 76


def test_memory_that_runs_out_with_a_picture_to_start_from(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder is the one that any drawing goes down, and what is drawn at its end is of the same picture."""
    import torch
    from diffusers import UNet2DConditionModel

    command = ["generate", PROMPT, *DEMO, "-s", "5", "-i", "start.png", "--lora", "a.safetensors:0.5"]
    assert sdcli(*command, "-o", "whole.png").code == 0
    forward, fails = UNet2DConditionModel.forward, [4]

    def short(self: UNet2DConditionModel, *args: object, **kwargs: object) -> object:
        if fails[0]:
            fails[0] -= 1
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", short)
    done = sdcli(*command, "-c", "2", "--batch-size", "2", "--json")
    assert done.code == 0, done.stderr
    record = record_of(done.events[0]["path"])
    assert record["fallbacks"] == ["batch-size-1", "attention-slicing", "attention-slicing-max", "vae-tiling"]
    assert record["request"]["init_image"]["name"] == "start.png" and record["request"]["seed"] == 5
    assert np.abs(pixels(done.events[0]["path"]) - pixels("whole.png")).mean() < 3
    fails[0] = 99
    assert sdcli(*command, "-o", "none.png").code == 75


@pytest.mark.slow
@pytest.mark.parametrize("act", ["kill", "TERM"])
def test_a_run_that_is_ended_goes_on(sdcli: Sdcli, tmp_path: Path, act: str) -> None:
    lines = [f"{PROMPT} --seed {n} {flags}" for n, flags in enumerate(AS_FLAGS, 1)]
    command = ("batch", write("rows.txt", *lines), *DEMO, "--json")
    nursery = Nursery()
    try:
        child = nursery.start(*command, cwd=tmp_path, point="after the link", nth=3, act=act)
        assert child.wait() == {"kill": -9, "TERM": 143}[act]
    finally:
        nursery.close()
    done = sdcli(*command)
    assert done.code == 0, done.stderr
    assert done.events[-1]["skipped"] >= 2 and done.events[-1]["done"] + done.events[-1]["skipped"] == len(lines)
    assert len(list(Path("sdcli-batch").glob("*.png"))) == len(lines)
    assert sdcli("verify", *map(str, Path("sdcli-batch").glob("*.png"))).code == 0


# Presets, settings, grids

TABLES = """
lora = ["a.safetensors:0.5", {name = "b.safetensors", scale = 0.2}]
init_image = "start.png"
strength = 0.5
hires = {factor = 1.5, strength = 0.4}
[outpaint]
left = 16
"""
TEXTS = """
lora = '["a.safetensors:0.5", "b.safetensors:0.2"]'
init_image = "start.png"
strength = 0.5
hires = "1.5x:0.4"
outpaint = "left=16"
"""
FLAGS = "--lora a.safetensors:0.5 --lora b.safetensors:0.2 -i start.png --strength 0.5 --outpaint left=16".split()


def test_presets_settings_and_variables_say_the_same(
    sdcli: Sdcli, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, texts = (text.replace("hires", "# hires") for text in (TABLES, TEXTS))
    wanted = plan(sdcli, *FLAGS)["id"]
    for number, text in enumerate((tables, texts)):
        Path(f"{number}.toml").write_text(text)
        assert plan(sdcli, "-p", f"./{number}.toml")["id"] == wanted
        configuration.mkdir(parents=True, exist_ok=True)
        (configuration / "sdcli.toml").write_text(text)
        assert plan(sdcli)["id"] == wanted
        (configuration / "sdcli.toml").unlink()
    for name, value in (
        ("LORA", '["a.safetensors:0.5", "b.safetensors:0.2"]'), ("INIT_IMAGE", "start.png"), ("STRENGTH", "0.5"),
        ("OUTPAINT", "left=16"),
    ):  # fmt: skip
        monkeypatch.setenv(f"SDCLI_{name}", value)
    found = plan(sdcli)
    assert found["id"] == wanted and found["origins"]["lora"] == "SDCLI_LORA"
    # What is nearer takes the place of all of it.
    assert plan(sdcli, "--lora", "b.safetensors")["request"]["lora"][0]["name"] == "b.safetensors"
    assert plan(sdcli, "--set", "lora=[]")["request"]["lora"] == []


def test_settings_without_a_picture_to_start_from_change_nothing(sdcli: Sdcli, configuration: Path) -> None:
    before = plan(sdcli)
    for field, value in (("strength", "0.5"), ("resize", "fit"), ("mask_blur", "3"), ("invert_mask", "true")):
        assert sdcli("config", "set", field, value).code == 0
    assert plan(sdcli)["id"] == before["id"]
    assert plan(sdcli, "-i", "start.png")["request"]["strength"] == 0.5


def test_a_plan_and_a_record_have_every_field(sdcli: Sdcli) -> None:
    found = plan(sdcli, *FLAGS)
    fields = set(GenerationRequest.__struct_fields__)
    assert set(found["request"]) == fields
    assert found["request"]["init_image"]["name"] == "start.png" and len(found["request"]["init_image"]["sha256"]) == 64
    assert found["request"]["outpaint"] == {"left": 16, "top": 0, "right": 0, "bottom": 0}
    assert (found["request"]["width"], found["request"]["height"]) == (144, 128)
    done = sdcli("generate", PROMPT, *DEMO, "-s", "5", *FLAGS, "-o", "drawn.png", "--json")
    assert done.events[0]["id"] == found["id"]
    assert set(record_of("drawn.png")["request"]) == fields
    said = sdcli("inspect", "drawn.png", "--json").events[0]["request"]
    assert {k: said[k] for k in ("strength", "outpaint", "lora", "init_image")} == {
        k: found["request"][k] for k in ("strength", "outpaint", "lora", "init_image")
    }
    told = sdcli("inspect", "drawn.png").stdout.decode()
    for word in ("init_image", "start.png", "strength", "0.5", "outpaint", "a.safetensors", "b.safetensors"):
        assert word in told
    assert str(Path.cwd()) not in json.dumps(record_of("drawn.png"))


def test_a_picture_s_making_can_be_taken_over_in_parts(sdcli: Sdcli) -> None:
    assert sdcli("generate", PROMPT, *DEMO, "-s", "5", *FLAGS, "-o", "drawn.png").code == 0
    whole = plan(sdcli, "--from", "drawn.png", prompt=None)
    assert whole["id"] == record_of("drawn.png")["id"]
    for options, field, value in (
        (("--set", "lora=[]"), "lora", []),
        (("--strength", "0.9"), "strength", 0.9),
        (("--outpaint", "right=8"), "outpaint", {"left": 0, "top": 0, "right": 8, "bottom": 0}),
    ):
        changed = plan(sdcli, "--from", "drawn.png", *options, "--set", "width=null", prompt=None)["request"]
        same = set(changed) - {field, "width", "height"}
        assert changed[field] == value and all(changed[k] == whole["request"][k] for k in same), options
    assert (
        plan(sdcli, "--from", "drawn.png", "-i", "other.png", prompt=None)["request"]["init_image"]["name"]
        == "other.png"
    )
    Path("start.png").unlink()
    done = sdcli("generate", "--from", "drawn.png", *DEMO, "--dry-run")
    assert done.code == 66 and "start.png" in done.stderr and "--init-image" in done.stderr


def test_a_preset_of_a_picture_holds_its_adapters(sdcli: Sdcli, configuration: Path) -> None:
    more = ("--lora", "a.safetensors:0.5", "--hires", "1.5x", "--variation", "3:0.2")
    assert sdcli("generate", PROMPT, *DEMO, "-s", "5", *more, "-o", "drawn.png").code == 0
    assert sdcli("presets", "new", "mine", "--from", "drawn.png").code == 0
    text = (configuration / "presets" / "mine.toml").read_text()
    assert "a.safetensors" in text and "sha256" in text and str(Path.cwd()) not in text
    assert plan(sdcli, "-p", "mine")["id"] == plan(sdcli, *more)["id"]
    shutil.copy("b.safetensors", "a.safetensors")
    gone = sdcli("generate", PROMPT, *DEMO, "-p", "mine", "--dry-run")
    assert gone.code in (66, 69) and "a.safetensors" in gone.stderr


@pytest.mark.parametrize(
    ("axis", "field", "values"),
    [
        ("strength=0,0.5,1", "strength", [0, 0.5, 1]),
        ("variation=3:0,3:0.5", "variation", [{"seed": 3, "strength": 0}, {"seed": 3, "strength": 0.5}]),
        ("hires=1.5x:0.6,2x", "hires", [{"factor": 1.5, "strength": 0.6}, {"factor": 2, "strength": 0.5}]),
        ("lora=[],a.safetensors:0.5,b.safetensors", "lora", [[], [("a.safetensors", 0.5)], [("b.safetensors", 1)]]),
        (
            'lora="[""a.safetensors:0.5"", ""b.safetensors""]",b.safetensors', "lora",
            [[("a.safetensors", 0.5), ("b.safetensors", 1)], [("b.safetensors", 1)]],
        ),
        ("init-image=start.png,other.png", "init_image", ["start.png", "other.png"]),
        ('outpaint="left=8,top=8",right=8', "outpaint", [{"left": 8, "top": 8}, {"right": 8}]),
        ("upscale=2x,lanczos:3", "upscale", [{"factor": 2}, {"factor": 3}]),
    ],
)  # fmt: skip
def test_axes_hold_them(sdcli: Sdcli, axis: str, field: str, values: list[Any]) -> None:
    start = ("-i", "start.png") if field in ("strength", "outpaint") else ()
    done = sdcli("grid", PROMPT, *DEMO, "-s", "5", *start, "--x", axis, "--dry-run", "--json")
    assert done.code == 0, done.stderr
    found = [e["request"][field] for e in done.events]
    if field == "lora":
        found = [[(one["name"], one["scale"]) for one in cell] for cell in found]
    elif field == "init_image":
        found = [cell["name"] for cell in found]
    elif isinstance(values[0], dict):
        found = [{k: v for k, v in cell.items() if k in one} for cell, one in zip(found, values, strict=True)]
    assert found == values


def test_a_grid_of_strengths_is_drawn(sdcli: Sdcli) -> None:
    done = sdcli("grid", PROMPT, *DEMO, "-s", "5", "-i", "start.png", "--x", "strength=0,0.5,1", "--json")
    assert done.code == 0, done.stderr
    first, *others = (pixels(e["path"]) for e in events(done, "image"))
    assert (first == pixels("start.png")).all() and all((other != first).any() for other in others)
    assert len(events(done, "sheet")) == 1


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        ("lora=gone.safetensors,a.safetensors", "gone.safetensors"),
        ("mask=mask.png", "--init-image"),
        ("lora=", "lora has no values"),
    ],
)
def test_axes_that_can_not_be_drawn(sdcli: Sdcli, axis: str, said: str) -> None:
    done = sdcli("grid", PROMPT, *DEMO, "--x", axis)
    assert done.code in (2, 69) and said in done.stderr


# Files that change while a run is under way


def test_what_goes_after_it_was_looked_at_costs_its_own_rows_alone(
    sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "changed"):
        shutil.copy("start.png", f"{name}.png")
    shutil.copy("b.safetensors", "gone.safetensors")
    options = (
        "",
        "--lora gone.safetensors",
        "--init-image gone.png",
        "--init-image changed.png",
        "--lora a.safetensors",
    )
    # Equal rows are one job.
    rows = write(
        "rows.txt",
        *(f"{PROMPT} --seed {n} {flags}" for n, flags in enumerate(options, 1)),
        f"{PROMPT} --seed 4 {options[3]}",
    )
    generate = Pipeline.generate

    def later(self: Pipeline, *args: Any, **kwargs: Any) -> Any:
        for name in ("gone.png", "gone.safetensors"):
            Path(name).unlink(missing_ok=True)
        shutil.copy("other.png", "changed.png")
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(Pipeline, "generate", later)
    done = sdcli("batch", rows, *DEMO, "--json", "--batch-size", "2")
    assert done.code == 1, done.stderr
    assert {e["line"]: e["code"] for e in events(done, "error") if e["line"]} == {
        2: "model-unavailable",
        3: "input-missing",
    }
    assert sorted(e["line"] for e in events(done, "image")) == [1, 4, 5, 6]
    assert events(done, "summary")[0]["left"] == 0
    of_changed = next(e for e in events(done, "image") if e["line"] == 4)
    found = record_of(of_changed["path"])["request"]["init_image"]["sha256"]
    assert found == hashlib.sha256(Path("other.png").read_bytes()).hexdigest()
    again = sdcli("batch", rows, *DEMO, "--json")
    assert again.code == 65 and "rows.txt:2" in again.stderr and "rows.txt:3" in again.stderr


# Nothing, as a value


def test_nothing_takes_away(sdcli: Sdcli, configuration: Path) -> None:
    plain = plan(sdcli)["id"]
    Path("p.toml").write_text(TABLES)
    taken = ("--lora", "", "-i", "", "--hires", "", "--set", "outpaint=", "--set", "strength=null")
    assert plan(sdcli, "-p", "./p.toml", *taken)["id"] == plain
    assert sdcli("generate", PROMPT, *DEMO, "-s", "5", *FLAGS, "-o", "drawn.png").code == 0
    taken = ("--lora", "", "-i", "", "--outpaint", "", "--set", "strength=null", "--size", "128x128")
    assert plan(sdcli, "--from", "drawn.png", *taken, prompt=None)["id"] == plain
    gone = sdcli("config", "set", "hires", "")
    assert gone.code == 2 and "unset" in gone.stderr


def test_values_that_can_not_be_are_told_as_they_were_typed(sdcli: Sdcli) -> None:
    for options, said in (
        (("--hires", "2x:0"), "hires can't be '2x:0': expected float > 0.0 (strength)"),
        (("--lora", "a.safetensors:101"), "expected float <= 100.0 (scale)"),
        (("--variation", "3:1.5"), "variation can't be '3:1.5'"),
    ):
        done = sdcli("generate", PROMPT, *DEMO, *options, "--dry-run")
        assert done.code == 2 and said in done.stderr, done.stderr


# Settings, presets and sheets that hold them


def test_settings_hold_them(sdcli: Sdcli, configuration: Path) -> None:
    for field, value in (
        ("lora", '["a.safetensors:0.5", "b.safetensors:0.2"]'), ("init_image", "start.png"), ("strength", "0.5"),
        ("outpaint", "left=16"),
    ):  # fmt: skip
        done = sdcli("config", "set", field, value)
        assert done.code == 0, done.stderr
    assert plan(sdcli)["id"] == plan(sdcli, *FLAGS)["id"]
    # A path means the same in every folder.
    assert str(Path.cwd() / "start.png") in (configuration / "sdcli.toml").read_text()


def test_a_preset_of_a_picture_finds_the_picture_that_it_was_drawn_from(sdcli: Sdcli, configuration: Path) -> None:
    assert sdcli("generate", PROMPT, *DEMO, "-s", "5", *FLAGS, "-o", "drawn.png").code == 0
    assert sdcli("presets", "new", "mine", "--from", "drawn.png").code == 0
    assert plan(sdcli, "-p", "mine")["id"] == record_of("drawn.png")["id"]
    rows = write("rows.txt", f"{PROMPT} --preset mine")
    done = sdcli("batch", rows, *DEMO, "-s", "5", "--dry-run", "--json")
    assert done.code == 0 and done.events[0]["id"] == record_of("drawn.png")["id"]
    shutil.copy("other.png", "start.png")
    done = sdcli("generate", PROMPT, *DEMO, "-p", "mine", "--dry-run")
    assert done.code == 66 and "start.png" in done.stderr


def test_a_sheet_names_files_without_their_folders(sdcli: Sdcli) -> None:
    here = Path.cwd()
    axes = (
        "--x",
        f"lora=[],{here}/a.safetensors:0.5,adapters/b.safetensors",
        "--y",
        f"init-image={here}/start.png,./other.png",
    )
    done = sdcli("grid", PROMPT, *DEMO, "-s", "5", *axes, "--json")
    assert done.code == 0, done.stderr
    (sheet,) = events(done, "sheet")
    record = record_of(sheet["path"])
    assert str(here) not in json.dumps(record) and "adapters" not in json.dumps(record)
    x, y = record["axes"]
    assert x["labels"] == ["lora []", "lora a.safetensors:0.5", "lora b.safetensors"]
    assert [[(one["name"], one["scale"]) for one in value] for value in x["values"]] == [
        [], [("a.safetensors", 0.5)], [("b.safetensors", 1.0)],
    ]  # fmt: skip
    assert y["values"] == ["start.png", "other.png"]
    done = sdcli("grid", PROMPT, *DEMO, "-s", "5", "--x", "hires=1.5x:0.5,2x", "--y", "variation=3:0,3:0.5", "--json")
    assert done.code == 0 and len(events(done, "sheet")) == 1
