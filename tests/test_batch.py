"""`sdcli batch` through the front door: what goes in, what comes out, and what is done twice or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sdcli.jobs.jobs import Job, pack_size, packs
from sdcli.pipeline import likeness
from sdcli.request import GenerationRequest
from tests.conftest import Outcome, Sdcli, pixels, record_of
from tests.test_rows import MALFORMED

DEMO = ("--model", "demo", "--dtype", "fp32", "--steps", "1")
SUMMARY_KEYS = "schema event done failed skipped left seconds".split()


def write(tmp_path: Path, name: str, *lines: str) -> str:
    (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return name


def images(done: Outcome) -> list[dict[str, Any]]:
    return [e for e in done.events if e["event"] == "image"]


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "sdcli-batch.jsonl").read_text().splitlines()]


# What goes in


def test_rows_draw_what_they_say(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(
        tmp_path, "p.txt", "# a comment", "", "a red circle", "a cat's house --seed 5 --steps 2 --size 64x96", "a blue \\",
        "star --cfg 3 --count 2",
    )  # fmt: skip
    done = sdcli("batch", file, *DEMO, "--seed", "9", "--json")
    assert done.code == 0, done.stderr
    requests = [record_of(e["path"])["request"] for e in images(done)]
    by_line = {(e["line"], r["seed"]): r for e, r in zip(images(done), requests, strict=True)}
    assert set(by_line) == {(3, 9), (4, 5), (5, 9), (5, 10)}
    assert (
        by_line[4, 5] | {"prompt": "a cat's house", "num_inference_steps": 2, "width": 64, "height": 96}
        == by_line[4, 5]
    )
    assert by_line[5, 10] | {"prompt": "a blue star", "guidance_scale": 3, "num_inference_steps": 1} == by_line[5, 10]
    assert list(done.events[-1]) == SUMMARY_KEYS
    assert done.events[-1] | {"done": 4, "failed": 0, "skipped": 0, "left": 0} == done.events[-1]
    assert all(Path(e["path"]).parent == Path("sdcli-batch") for e in images(done))


def test_a_batch_draws_what_generate_draws(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", "a red circle --seed 7")
    (drawn,) = images(sdcli("batch", file, *DEMO, "--json"))
    (single,) = sdcli("generate", "a red circle", "--seed", "7", *DEMO, "--json").events
    assert (drawn["id"], drawn["pixels"]) == (single["id"], single["pixels"])


def test_every_format_means_the_same(sdcli: Sdcli, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a red circle", "seed": 1, "tags": {"set": "a"}},
        {"prompt": "ein Stern, größer", "seed": 2, "steps": 2},
    ]
    write(tmp_path, "a.csv", "prompt,seed,steps,tags.set", "a red circle,1,,a", '"ein Stern, größer",2,2,')
    write(
        tmp_path,
        "b.tsv",
        "prompt\tseed\tsteps\ttags",
        'a red circle\t1\t\t"{""set"": ""a""}"',
        "ein Stern, größer\t2\t2\t",
    )
    write(tmp_path, "c.jsonl", *map(json.dumps, rows))
    write(tmp_path, "d.json", json.dumps(rows))
    found = []
    for name in ("a.csv", "b.tsv", "c.jsonl", "d.json"):
        done = sdcli("batch", name, *DEMO, "--json", "-o", f"out-{name}/")
        assert done.code == 0, done.stderr
        found.append([(e["id"], record_of(e["path"])["tags"]) for e in images(done)])
    assert all(one == found[0] for one in found)
    assert [tags for _, tags in found[0]] == [{"set": "a"}, {}]


def test_a_row_wins_over_the_command_line(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(
        tmp_path, "p.txt", "a star --steps 3", "a heart --preset fast", "a heart --preset fast --steps 4", "a ring"
    )
    done = sdcli("batch", file, "--model", "demo", "--steps", "7", "--seed", "1", "--dry-run", "--json")
    assert done.code == 0, done.stderr
    steps = [(e["request"]["num_inference_steps"], e["origins"]["num_inference_steps"]) for e in done.events]
    assert steps == [(3, "p.txt:1"), (12, "preset fast"), (4, "p.txt:3"), (7, "flag")]
    assert [e["origins"]["prompt"] for e in done.events] == ["p.txt:1", "p.txt:2", "p.txt:3", "p.txt:4"]


def test_a_dry_run_says_what_is_drawn(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", "a star", "a star", "a heart --seed 3 --count 2")
    plans = sdcli("batch", file, *DEMO, "--dry-run", "--json").events
    assert [e["request"]["seed"] for e in plans] == [None, None, 3, 4]
    assert [e["id"] is None for e in plans] == [True, True, False, False]
    assert not (tmp_path / "sdcli-batch").exists(), "nothing is made"
    drawn = {e["id"]: e for e in images(sdcli("batch", file, *DEMO, "--json"))}
    plans = sdcli("batch", file, *DEMO, "--dry-run", "--json").events
    assert {e["id"]: (e["request"]["seed"], e["path"]) for e in plans} == {
        id: (e["seed"], e["path"]) for id, e in drawn.items()
    }
    assert [e["origins"]["seed"] for e in plans] == ["journal", "journal", "p.txt:3", "p.txt:3"]


def test_a_dry_run_needs_no_torch(process: Sdcli, tmp_path: Path, probe: Any) -> None:
    write(tmp_path, "p.txt", "a star", "a heart")
    code = (
        "import sys; from sdcli.cli.main import main\n"
        "assert main(['batch', 'p.txt', '--model', 'demo', '--dry-run']) == 0\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
        "assert main(['batch', 'p.txt', '--model', 'demo', '--scheduler', 'nope']) == 2 and 'torch' not in sys.modules\n"
        "open('p.txt', 'a').write('a --scheduler nope')\n"
        "assert main(['batch', 'p.txt', '--model', 'demo']) == 65 and 'torch' not in sys.modules\n"
    )
    done = probe(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "data", "line", "reason"), [m[1:] for m in MALFORMED], ids=[m[0] for m in MALFORMED])
def test_malformed_files_are_refused(
    sdcli: Sdcli, tmp_path: Path, name: str, data: bytes, line: int, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    done = sdcli("batch", name, "--model", "demo", "--json")
    assert done.code == 65
    assert f"{name}:{line}: {reason}" in done.stderr
    (event,) = done.events
    assert (event["event"], event["exit"], event["code"]) == ("error", 65, "bad-input")
    assert not (tmp_path / "sdcli-batch").exists()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", done.stderr)


def test_at_least_33_malformed_files() -> None:
    assert len({m[2] for m in MALFORMED}) >= 33


VALUES = [
    ("a --steps ten", "num_inference_steps can't be 'ten'"),
    ("a --size 12", "size is WIDTHxHEIGHT"),
    ("a --size 65x65", "multiple of 8"),
    ("a --scheduler eulr", "eulr"),
    ("a --count 0", "count can't be"),
    ("a --set eta=2", "eta can't be"),
    ("a --preset nope", "there is no preset nope"),
    ("a --preset lowvram", "which is set for the whole run"),
    ("a --clip-skip 60", "clip"),
]


@pytest.mark.parametrize(("row", "reason"), VALUES)
def test_values_that_cannot_be(sdcli: Sdcli, tmp_path: Path, row: str, reason: str) -> None:
    done = sdcli("batch", write(tmp_path, "p.txt", "good", row), "--model", "demo")
    assert done.code == 65 and "error: p.txt:2: " in done.stderr and reason in done.stderr


def test_the_first_hundred_bad_rows_are_told(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", *[f"a --nope {i}" for i in range(150)], "good")
    done = sdcli("batch", file, *DEMO)
    assert done.code == 65
    assert len(re.findall(r"^p\.txt:\d+: ", done.stderr, re.M)) == 100 and "and 50 more" in done.stderr
    assert "150 bad rows" in done.stderr


def test_bad_rows_can_be_left_out(sdcli: Sdcli, tmp_path: Path) -> None:
    done = sdcli(
        "batch", write(tmp_path, "p.txt", "a --nope", "a star", "b --steps x"), *DEMO, "--skip-bad-rows", "--json"
    )
    assert done.code == 1
    assert [(e["event"], e.get("line")) for e in done.events] == [
        ("error", 1), ("error", 3), ("image", 2), ("summary", None),
    ]  # fmt: skip
    assert done.events[0]["exit"] == 65 and done.events[0]["message"].startswith("p.txt:1: ")
    assert done.events[-1] | {"done": 1, "failed": 2, "left": 0} == done.events[-1]


def test_rows_with_an_output_of_their_own(sdcli: Sdcli, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a star", "output": "sub/x.png"},
        {"prompt": "a heart", "name": "h"},
        {"prompt": "a ring", "output": "r/"},
    ]
    file = write(tmp_path, "p.jsonl", *map(json.dumps, rows))
    done = sdcli("batch", file, *DEMO, "-o", "out/{name}-{line}.png", "--json")
    assert done.code == 0, done.stderr
    paths = {e["line"]: e["path"] for e in images(done)}
    assert paths[1] == "sub/x.png" and paths[2] == "out/h-2.png" and paths[3].startswith("r/a-ring-")
    assert {e["path"] for e in journal(tmp_path / "out") if e["event"] == "image"} == {
        os.path.relpath(p, "out") for p in paths.values()
    }
    assert [e["event"] for e in sdcli("batch", file, *DEMO, "-o", "out/{name}-{line}.png", "--json").events[:-1]] == [
        "skipped"
    ] * 3
    twice = write(tmp_path, "t.jsonl", *[json.dumps(rows[0] | {"seed": i}) for i in range(2)])
    done = sdcli("batch", twice, *DEMO)
    assert done.code == 65 and "t.jsonl:2: another row writes sub/x.png too" in done.stderr


# What happens


def test_the_same_command_goes_on(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", "a star", "a heart")
    first = images(sdcli("batch", file, *DEMO, "--json"))
    write(tmp_path, "p.txt", "a ring", "a heart", "a star", "a star")  # edited, in another order, longer
    done = sdcli("batch", file, *DEMO, "--json")
    assert done.code == 0, done.stderr
    assert {(e["id"], e["line"]) for e in done.events if e["event"] == "skipped"} == {
        (first[0]["id"], 3), (first[1]["id"], 2),
    }  # fmt: skip
    assert sorted(e["prompt"] for e in images(done)) == ["a ring", "a star"]
    assert done.events[-1] | {"done": 2, "skipped": 2} == done.events[-1]
    lines = journal(tmp_path / "sdcli-batch")
    assert [line["event"] for line in lines] == ["run"] + ["image"] * 4
    assert list(lines[0]) == ["schema", "event", "seed", "batch_size", "time"]
    assert all(set(line) == {*first[0], "time"} and "/" not in line["path"] for line in lines[1:])


def test_what_is_finished_needs_no_model(sdcli: Sdcli, tmp_path: Path, probe: Any) -> None:
    file = write(tmp_path, "p.txt", "a star", "a heart")
    assert sdcli("batch", file, *DEMO).code == 0
    code = (
        "import sys; from sdcli.cli.main import main\n"
        f"assert main(['batch', 'p.txt', *{DEMO!r}]) == 0 and 'torch' not in sys.modules"
    )
    done = probe(code)
    assert done.returncode == 0 and "2 skipped" in done.stderr, done.stderr


def test_seeds_are_one_runs_own(sdcli: Sdcli, tmp_path: Path) -> None:
    """Equal rows get different seeds; another folder, another run seed."""
    file = write(tmp_path, "p.txt", "a star", "a star", "a star --count 2")
    one, other = (images(sdcli("batch", file, *DEMO, "--json", "-o", f"{name}/")) for name in "ab")
    seeds = [e["seed"] for e in one]
    assert len(set(seeds)) == 4 and seeds[3] == seeds[2] + 1
    assert not set(seeds) & {e["seed"] for e in other}


def test_equal_rows_are_one_picture(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", *["a star --seed 1"] * 3, "a heart --seed 1", "a star --seed 1")
    for size in ("1", "2"):
        done = sdcli("batch", file, *DEMO, "--json", "--batch-size", size, "-o", f"out{size}/")
        assert done.code == 0, done.stderr
        stars = [e for e in images(done) if e["prompt"] == "a star"]
        assert sorted(e["line"] for e in stars) == [1, 2, 3, 5] and len({e["path"] for e in stars}) == 1
        assert len(list((tmp_path / f"out{size}").glob("*.png"))) == 2
        assert done.events[-1] | {"done": 5, "left": 0} == done.events[-1]


def test_a_picture_is_the_same_in_any_pack(sdcli: Sdcli, tmp_path: Path) -> None:
    """At one size bit for bit, whoever is beside it and however full the pack is; across sizes by 1/255 at most."""
    rows = [
        f"a {c} {s} --seed {i}"
        for i, (c, s) in enumerate((c, s) for c in ("red", "blue", "green") for s in ("star", "ring"))
    ]
    options = (*DEMO[:-2], "--steps", "4", "--scheduler", "Euler a", "--json")
    found: dict[str, dict[str, str]] = {}
    for name, lines, size in [
        ("all", rows, "4"),
        ("turned", rows[::-1], "4"),
        ("alone", rows[2:3], "4"),
        ("one", rows, "1"),
    ]:
        file = write(tmp_path, f"{name}.txt", *lines)
        done = sdcli("batch", file, *options, "--batch-size", size, "-o", f"{name}/")
        assert done.code == 0, done.stderr
        found[name] = {e["id"]: e["path"] for e in images(done)}
        assert {record_of(p)["plan"]["pack_size"] for p in found[name].values()} == {int(size)}
    for id, path in found["all"].items():
        assert (pixels(path) == pixels(found["turned"][id])).all()
        assert abs(pixels(path) - pixels(found["one"][id])).max() <= 1
    assert all((pixels(path) == pixels(found["all"][id])).all() for id, path in found["alone"].items())


def test_auto_takes_large_packs_where_they_fill(sdcli: Sdcli, tmp_path: Path) -> None:
    alike = write(tmp_path, "alike.txt", *[f"a star --seed {i}" for i in range(16)])
    unlike = write(tmp_path, "unlike.txt", *[f"a star --steps {i}" for i in range(1, 5)])
    for file, size in ((alike, 16), (unlike, 1)):
        assert sdcli("batch", file, *DEMO, "-o", f"{file}-out/").code == 0
        assert journal(tmp_path / f"{file}-out")[0]["batch_size"] == size
    write(tmp_path, "alike.txt", "a heart --seed 1")
    assert sdcli("batch", alike, *DEMO, "-o", f"{alike}-out/").code == 0
    assert len([e for e in journal(tmp_path / f"{alike}-out") if e["event"] == "run"]) == 1, "the size stays"
    assert sdcli("batch", alike, *DEMO, "-o", f"{alike}-out/", "--seed", "2", "--batch-size", "2").code == 0


def test_auto_halves_where_memory_runs_out(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The U-Net has no memory for more than four pictures, with guidance eight rows; the rest is real."""
    import torch
    from diffusers import UNet2DConditionModel

    forward = UNet2DConditionModel.forward

    def short(self: UNet2DConditionModel, sample: Any, *args: Any, **kwargs: Any) -> Any:
        if len(sample) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", short)
    done = sdcli("batch", write(tmp_path, "p.txt", *[f"a star --seed {i}" for i in range(16)]), *DEMO, "--json")
    assert done.code == 0, done.stderr
    records = [record_of(e["path"]) for e in images(done)]
    assert {r["plan"]["pack_size"] for r in records} == {4}
    assert records[0]["fallbacks"] == ["batch-size-8", "batch-size-4"] and "drawing 4 at a time" in done.stderr


def test_a_text_is_encoded_once(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPTextModel

    forward, seen = CLIPTextModel.forward, []

    def counting(self: CLIPTextModel, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(input_ids)
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(CLIPTextModel, "forward", counting)
    rows = [f"a {shape} --seed {i} --negative blue" for i in range(4) for shape in ("star", "heart")]
    assert sdcli("batch", write(tmp_path, "p.txt", *rows), *DEMO, "--batch-size", "2").code == 0
    assert len(seen) == 3, "a star, a heart, and what must not be seen"


def test_rows_are_expanded(sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    write(tmp_path / "w", "shape.txt", "star", "heart", "ring")
    file = write(tmp_path, "p.txt", "a {red|blue} __shape__ --count 3", "a cross")
    plain = sdcli("batch", file, "--model", "demo", "--dry-run", "--json")
    assert {e["request"]["prompt"] for e in plain.events} == {"a {red|blue} __shape__", "a cross"}
    done = sdcli("batch", file, *DEMO, "--wildcards", "w", "--json")
    assert done.code == 0, done.stderr
    for event in images(done):
        record = record_of(event["path"])
        if event["line"] == 1:
            assert record["template"] == "a {red|blue} __shape__"
            assert re.fullmatch("a (red|blue) (star|heart|ring)", record["request"]["prompt"])
        else:
            assert record["template"] is None and event["prompt"] == "a cross"
        alone = (
            "generate",
            record["template"] or "a cross",
            "--wildcards",
            "w",
            "--seed",
            str(event["seed"]),
            "--model",
            "demo",
        )
        assert sdcli(*alone, "--dry-run", "--json").events[0]["request"]["prompt"] == event["prompt"], (
            "its seed decides"
        )
    again = sdcli("batch", file, *DEMO, "--wildcards", "w", "--json")
    assert [e["event"] for e in again.events[:-1]] == ["skipped"] * 4
    every = sdcli("batch", file, "--model", "demo", "--wildcards", "w", "--expand", "all", "--dry-run", "--json")
    assert len({e["request"]["prompt"] for e in every.events}) == 7 and len(every.events) == 6 * 3 + 1
    some = sdcli(
        "batch", file, "--model", "demo", "--wildcards", "w", "--expand", "all", "--limit", "2", "--dry-run", "--json"
    )
    assert len(some.events) == 2 * 3 + 1


def test_an_expansion_without_an_end_is_refused(sdcli: Sdcli, tmp_path: Path) -> None:
    endless = "{a|b|c|d|e|f|g|h}" * 12
    done = sdcli("generate", endless, "--model", "demo", "--expand", "all")
    assert done.code == 2 and "--limit N" in done.stderr
    done = sdcli("batch", write(tmp_path, "p.txt", "a star", endless), "--model", "demo", "--expand", "all")
    assert done.code == 65 and "p.txt:2: " in done.stderr
    done = sdcli("generate", endless, "--model", "demo", "--expand", "all", "--limit", "3", "--dry-run", "--json")
    assert len({e["request"]["prompt"] for e in done.events}) == 3


def test_a_prompt_that_looks_dynamic_gets_one_hint(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", "a {red|blue} star", "a {red|blue} heart")
    done = sdcli("batch", file, *DEMO)
    assert done.code == 0 and done.stderr.count("looks like a dynamic prompt") == 1


def test_a_missing_wildcard_is_refused_before_anything_loads(sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    write(tmp_path / "w", "shape.txt", "star")
    file = write(tmp_path, "p.txt", "a __shape__", "a __shap__")
    for how in ("random", "all"):
        done = sdcli("batch", file, "--model", "demo", "--wildcards", "w", "--expand", how)
        assert done.code == 65 and "p.txt:2: " in done.stderr and "shap" in done.stderr and "loading" not in done.stderr
        done = sdcli("generate", "a __shap__", "--model", "demo", "--wildcards", "w", "--expand", how)
        assert done.code == 65 and "loading" not in done.stderr
    assert sdcli("batch", file, "--model", "demo", "--wildcards", "nowhere").code == 66


def _not_finite(monkeypatch: pytest.MonkeyPatch, *prompts: str) -> None:
    """Make the pictures of some prompts fail; the rest is real."""
    from sdcli.errors import NotFinite
    from sdcli.pipeline import Pipeline

    real = Pipeline._draw

    def draw(self: Pipeline, pack: Any, *more: Any) -> Any:
        if any(r.prompt in prompts for r in pack):
            raise NotFinite("the values are not finite", "try another")
        return real(self, pack, *more)

    monkeypatch.setattr(Pipeline, "_draw", draw)


def test_one_bad_job_does_not_stop_the_others(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "p.txt", "a star", "bad", "a heart", "worse", "a ring")
    _not_finite(monkeypatch, "bad", "worse")
    done = sdcli("batch", file, *DEMO, "--batch-size", "3", "--json")
    assert done.code == 1 and "2 of 5 pictures failed" in done.stderr
    assert sorted(e["prompt"] for e in images(done)) == ["a heart", "a ring", "a star"]
    failed = [e for e in done.events if e["event"] == "error"]
    assert [(e["line"], e["exit"], e["code"]) for e in failed] == [(2, 76, "not-finite"), (4, 76, "not-finite")]
    assert {e["id"] for e in failed} == {e["id"] for e in journal(tmp_path / "sdcli-batch") if e["event"] == "error"}
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    again = sdcli("batch", file, *DEMO, "--json")
    assert again.code == 1 and "--retry-failed" in again.stderr
    assert sorted((e["line"], e["path"] is None) for e in again.events[:-1]) == [
        (1, False), (2, True), (3, False), (4, True), (5, False),
    ]  # fmt: skip
    retried = sdcli("batch", file, *DEMO, "--json", "--retry-failed")
    assert retried.code == 0 and sorted(e["prompt"] for e in images(retried)) == ["bad", "worse"]


def test_a_row_that_fails_is_named(sdcli: Sdcli, tmp_path: Path) -> None:
    write(tmp_path, "p.jsonl", *[json.dumps({"prompt": "a star", "output": o}) for o in ("a.png", f"{'x' * 300}.png")])
    done = sdcli("batch", "p.jsonl", *DEMO)
    assert done.code == 1 and "error: p.jsonl:2: " in done.stderr
    assert "hint: choose another output for this row" in done.stderr and "-o" not in done.stderr


def test_a_row_whose_expansion_can_not_be_drawn_is_named(sdcli: Sdcli, tmp_path: Path) -> None:
    write(tmp_path, "p.txt", "a star", "a {<lora:nope:1>|<lora:nope2:1>} circle")
    done = sdcli("batch", "p.txt", *DEMO, "--expand", "all")
    assert done.code == 1 and done.stderr.count("error: p.txt:2: there is no LoRA called nope") == 2
    assert len(done.lines) == 1


@pytest.mark.parametrize("kept", ["full", "minimal", "none"])
def test_the_journal_says_which_prompt_failed(
    sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """No more of it than pictures would; and those who are told of a failure, later too, know what they asked for."""
    _not_finite(monkeypatch, "bad")
    file = write(tmp_path, "p.txt", "bad --seed 7", "bad --seed 7")
    done = sdcli("batch", file, *DEMO, "--json", "--metadata", kept)
    assert [sorted(e) for e in done.events if e["event"] == "error"] == [
        ["code", "event", "exit", "hint", "id", "line", "message", "path", "schema"]
    ] * 2
    (line,) = [line for line in journal(tmp_path / "sdcli-batch") if line["event"] == "error"]
    assert (line["prompt"], line["seed"]) == ("bad" if kept == "full" else None, 7)
    assert line.items() >= (done.events[0] | {"path": line["path"]}).items()


def test_one_picture_that_fails_has_its_own_code(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _not_finite(monkeypatch, "bad")
    done = sdcli("batch", write(tmp_path, "p.txt", "bad"), *DEMO, "--json")
    assert done.code == 76 and [e["event"] for e in done.events] == ["error", "summary"]


@pytest.mark.parametrize(("options", "tried"), [(["--fail-fast"], 1), (["--max-failures", "2"], 2)])
def test_failures_can_end_it(
    sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], tried: int
) -> None:
    _not_finite(monkeypatch, "bad")
    done = sdcli(
        "batch", write(tmp_path, "p.txt", *["bad"] * 3, "a star"), *DEMO, *options, "--json", "--batch-size", "1"
    )
    assert done.code == 1
    assert done.events[-1] | {"done": 0, "failed": tried, "left": 4 - tried} == done.events[-1]


def test_memory_that_is_too_small_ends_it(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three in a row; a picture between them begins the count again."""
    import torch
    from diffusers import UNet2DConditionModel

    forward = UNet2DConditionModel.forward

    def short(self: UNet2DConditionModel, sample: Any, *args: Any, **kwargs: Any) -> Any:
        if sample.shape[-1] > 16:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", short)
    large = "a star --size 256x256"
    done = sdcli(
        "batch",
        write(tmp_path, "p.txt", large, large, "a ring", *[large] * 3, "a heart"),
        *DEMO,
        "--json",
        "--batch-size",
        "1",
    )
    assert done.code == 75, done.stderr
    assert [e.get("line") for e in done.events if e["event"] == "error"] == [1, 2, 4, 5, 6]
    assert [e["line"] for e in images(done)] == [3]
    assert done.events[-1] | {"done": 1, "failed": 5, "left": 1} == done.events[-1]


def test_fresh_draws_all_anew(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", "a star")
    (first,) = images(sdcli("batch", file, *DEMO, "--json"))
    (second,) = images(sdcli("batch", file, *DEMO, "--json", "--fresh"))
    assert first["seed"] != second["seed"] and (tmp_path / first["path"]).exists()
    assert (tmp_path / "sdcli-batch" / "sdcli-batch-2.jsonl").exists()


def test_fresh_draws_what_has_its_own_seed_too(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", "a star --seed 1")
    for argv in (("batch", file), ("batch", file, "--fresh")):
        assert [e["event"] for e in sdcli(*argv, *DEMO, "--json").events] == ["image", "summary"]
    assert len(list((tmp_path / "sdcli-batch").glob("*.png"))) == 2
    assert sdcli("batch", file, *DEMO, "--json").events[0]["event"] == "skipped"


def test_what_generate_drew_is_taken_over(sdcli: Sdcli, tmp_path: Path) -> None:
    """A picture with a job's id in it is that job's, whoever drew it and wherever the folder came from."""
    sdcli("generate", "a star", "--seed", "1", *DEMO, "-o", "out/")
    done = sdcli("batch", write(tmp_path, "p.txt", "a star --seed 1"), *DEMO, "-o", "out/", "--json")
    assert images(done)[0]["path"] == "out/a-star-1.png" and len(list((tmp_path / "out").glob("*.png"))) == 1


def test_what_kills_left_is_swept(sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    old, new = tmp_path / "out" / ".sdcli-0123456789abcdef.part", tmp_path / "out" / ".sdcli-fedcba9876543210.part"
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert sdcli("batch", write(tmp_path, "p.txt", "a star"), *DEMO, "-o", "out/").code == 0
    assert not old.exists() and new.exists(), "the new one may be being written"


def test_without_metadata_the_pixels_tell(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", "a star", "a heart")
    done = sdcli("batch", file, *DEMO, "--metadata", "none", "--json")
    assert done.code == 0, done.stderr
    assert [e["event"] for e in sdcli("batch", file, *DEMO, "--metadata", "none", "--json").events[:-1]] == [
        "skipped"
    ] * 2
    Path(images(done)[0]["path"]).write_bytes(Path(images(done)[1]["path"]).read_bytes())
    again = sdcli("batch", file, *DEMO, "--metadata", "none", "--json")
    assert [e["event"] for e in again.events] == ["image", "skipped", "summary"] or [e["event"] for e in again.events] == [
        "skipped", "image", "summary",
    ]  # fmt: skip
    assert images(again)[0]["pixels"] == images(done)[0]["pixels"]


def test_what_nobody_expected_is_one_jobs_failure(
    sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library's own exception ends no run; three in a row are no single job's."""
    from sdcli.pipeline import Pipeline

    real = Pipeline._draw

    def draw(self: Pipeline, pack: Any, *more: Any) -> Any:
        if any(r.prompt == "bad" for r in pack):
            raise KeyError("what")
        return real(self, pack, *more)

    monkeypatch.setattr(Pipeline, "_draw", draw)
    done = sdcli("batch", write(tmp_path, "p.txt", "a star", "bad", "a heart"), *DEMO, "--json", "--batch-size", "2")
    assert done.code == 1 and sorted(e["prompt"] for e in images(done)) == ["a heart", "a star"]
    (failed,) = [e for e in done.events if e["event"] == "error"]
    assert (failed["exit"], failed["code"], failed["line"]) == (70, "bug", 2) and "KeyError" in failed["message"]
    again = sdcli("batch", "p.txt", *DEMO, "--json")
    assert again.code == 1 and [e["event"] for e in again.events[:-1]] == ["skipped"] * 3
    file = write(tmp_path, "q.txt", *[f"bad --seed {i}" for i in range(5)], "a star")
    done = sdcli("batch", file, *DEMO, "--json", "--batch-size", "1", "-o", "other/")
    assert done.code == 70 and done.events[-1] | {"failed": 3, "left": 3} == done.events[-1]


def test_what_goes_elsewhere_is_another_picture(sdcli: Sdcli, tmp_path: Path) -> None:
    """The same request for other files; and rows that are equal in all, their file too, are one."""
    rows = [
        {"prompt": "a star", "seed": 7, "output": "a.png"}, {"prompt": "a star", "seed": 7, "output": "b.png"},
        {"prompt": "a star", "seed": 7, "format": "jpg"}, {"prompt": "a star", "seed": 7, "output": "a.png"},
    ]  # fmt: skip
    file = write(tmp_path, "p.jsonl", *map(json.dumps, rows))
    done = sdcli("batch", file, *DEMO, "--json")
    assert done.code == 0, done.stderr
    paths = {e["line"]: e["path"] for e in images(done)}
    assert (paths[1], paths[2], paths[4]) == ("a.png", "b.png", "a.png") and paths[3].endswith(".jpg")
    assert all((tmp_path / p).is_file() for p in paths.values())
    assert [e["event"] for e in sdcli("batch", file, *DEMO, "--json").events[:-1]] == ["skipped"] * 4
    sdcli("generate", "a star", "--seed", "9", *DEMO, "-o", "sdcli-batch/other.png")
    wanted = write(tmp_path, "w.jsonl", json.dumps({"prompt": "a star", "seed": 9, "output": "wanted.png"}))
    assert images(sdcli("batch", wanted, *DEMO, "--json"))[0]["path"] == "wanted.png" and Path("wanted.png").is_file()


def test_an_output_behind_a_link(sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/down")
    file = write(
        tmp_path, "p.jsonl", json.dumps({"prompt": "a star", "seed": 1, "output": "own/a.png"}), '{"prompt": "a ring"}'
    )
    for folder in ("link/out/", "link/out/", "deep/down/out/", "link/../down/out/"):
        done = sdcli("batch", file, *DEMO, "--json", "-o", folder)
        for picture in tmp_path.rglob("*.png"):
            os.utime(picture, (1e9, 1e9))
        last = [e["event"] for e in done.events[:-1]]
    assert last == ["skipped"] * 2 and len(list(tmp_path.rglob("*.png"))) == 2
    assert (tmp_path / "own" / "a.png").is_file()


def test_a_damaged_line_costs_its_job_alone(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", "a star", "a heart", "a ring")
    assert sdcli("batch", file, *DEMO, "--batch-size", "1").code == 0
    path = tmp_path / "sdcli-batch" / "sdcli-batch.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"event": "image"', b'"event": "\xffmage"')
    lines[2] = lines[2].replace(b'"prompt": "a ', b'"prompt": "\xff ')
    lines.append(b"[" * 100_000 + b"\n")
    path.write_bytes(b"".join(lines))
    done = sdcli("batch", file, *DEMO, "--json")
    assert done.code == 0, done.stderr
    assert done.events[-1]["left"] == 0 and len({e["id"] for e in done.events[:-1]}) == 3


def test_the_pack_size_is_that_of_pictures_that_are_there(sdcli: Sdcli, tmp_path: Path) -> None:
    write(tmp_path, "p.txt", "# nothing yet")
    assert sdcli("batch", "p.txt", *DEMO).code == 0
    write(tmp_path, "p.txt", *[f"a star --seed {i}" for i in range(8)])
    assert sdcli("batch", "p.txt", *DEMO).code == 0
    assert [e["batch_size"] for e in journal(tmp_path / "sdcli-batch") if e["event"] == "run"] == [8]


def test_packs_go_by_what_the_model_makes_of_a_row(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "p.txt",
        "a --scheduler euler",
        "b --scheduler Euler",
        "c --scheduler EulerDiscreteScheduler",
        "d --size 128x128 --scheduler euler",
    )
    done = sdcli("batch", file, *DEMO, "--json", "--batch-size", "4", "-v")
    assert done.code == 0, done.stderr
    assert len({record_of(e["path"])["seconds"]["draw"] for e in images(done)}) == 1, "one pass"


def test_a_folder_that_goes_away_ends_it(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from sdcli.pipeline import Pipeline

    real = Pipeline._draw

    def draw(self: Pipeline, pack: Any, *more: Any) -> Any:
        if pack[0].prompt == "a ring":
            shutil.rmtree(tmp_path / "sdcli-batch")
        return real(self, pack, *more)

    monkeypatch.setattr(Pipeline, "_draw", draw)
    done = sdcli("batch", write(tmp_path, "p.txt", "a star", "a ring", "a heart"), *DEMO, "--json", "--batch-size", "1")
    assert done.code == 74 and "was removed" in done.stderr


def test_bad_rows_are_no_failures_to_stop_at(sdcli: Sdcli, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", *["b --nope"] * 120, "a star")
    done = sdcli("batch", file, *DEMO, "--skip-bad-rows", "--fail-fast", "--json")
    assert done.code == 1 and len(images(done)) == 1 and done.stderr.count("there is no option") == 100
    dry = sdcli("batch", file, *DEMO, "--skip-bad-rows", "--dry-run", "--json")
    assert dry.code == 1 and len(dry.events) == 1 and "and 20 more" in dry.stderr


def test_names_steer_no_terminal(sdcli: Sdcli, tmp_path: Path) -> None:
    name = "a\x1b[31mred.txt"
    write(tmp_path, name, "a star --steps 2")
    done = sdcli("batch", name, "--model", "demo", "--dry-run")
    assert done.code == 0 and b"\x1b" not in done.stdout and "\x1b" not in done.stderr
    file = write(tmp_path, "p.jsonl", json.dumps({"prompt": "a", "output": "x\x1b[2J.png"}))
    done = sdcli("batch", file, "--model", "demo")
    assert done.code == 65 and "control characters" in done.stderr and "\x1b" not in done.stderr


def test_a_closed_stdin_is_said_before_anything_loads(tmp_path: Path) -> None:
    script = f"{sys.executable} -m sdcli batch - --stream {' '.join(DEMO)} <&-"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 66 and "loading" not in done.stderr
    assert json.loads(done.stdout)["exit"] == 66, "a coprocess hears of it too"


# As a coprocess


def _coprocess(tmp_path: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sdcli", "batch", "-", "--stream", *DEMO, *options]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )


def test_a_coprocess_answers_each_line_at_once(tmp_path: Path) -> None:
    running = _coprocess(tmp_path)
    assert running.stdin and running.stdout
    asked = [
        "a red circle",
        '{"prompt": "a blue star", "seed": 3}',
        "a --nope 1",
        "# nothing",
        '{"prompt": 3}',
        "a ring --steps 2",
    ]
    answers = []
    for line in asked:
        running.stdin.write(line.encode() + b"\n")
        running.stdin.flush()
        if not line.startswith("#"):
            answers.append(json.loads(running.stdout.readline()))
    running.stdin.close()
    assert running.stdout.read() == b"" and running.wait(60) == 1
    assert [(a["event"], a["line"]) for a in answers] == [
        ("image", 1), ("image", 2), ("error", 3), ("error", 5), ("image", 6),
    ]  # fmt: skip
    assert answers[1]["seed"] == 3 and (tmp_path / answers[1]["path"]).exists()
    assert not (tmp_path / "sdcli-batch" / "sdcli-batch.jsonl").exists()
    running.stdout.close()
    assert running.stderr
    running.stderr.close()


@pytest.mark.slow
def test_a_coprocess_answers_in_order(process: Sdcli, tmp_path: Path) -> None:
    """Whatever the packs, and whatever an earlier run has done already."""
    lines = [
        "a star --seed 1",
        "a ring --seed 1 --steps 2",
        "b --nope",
        "a star --seed 1",
        "a heart --seed 4",
        "a heart --seed 5",
    ]
    stdin = "".join(f"{line}\n" for line in lines).encode()
    for _ in range(2):
        done = process("batch", "-", "--stream", *DEMO, "--batch-size", "2", "-o", "out/", stdin=stdin)
        assert done.code == 1, done.stderr
        assert [(e["event"], e["line"]) for e in done.events] == [
            ("image", 1), ("image", 2), ("error", 3), ("image", 4), ("image", 5), ("image", 6),
        ]  # fmt: skip
    assert [e["event"] for e in journal(tmp_path / "out")] == ["run"] + ["image"] * 4


def test_a_reader_that_leaves_ends_the_coprocess(tmp_path: Path) -> None:
    sdcli = f"{sys.executable} -m sdcli"
    asked = "printf '%s\\n' 'a red circle' 'a blue star'"
    script = f"{asked} | {sdcli} batch - --stream --json {' '.join(DEMO)} | head -1; echo ${{PIPESTATUS[1]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True, timeout=240)
    answer, code = done.stdout.splitlines()
    assert json.loads(answer)["prompt"] == "a red circle" and code == "141"
    assert "Traceback" not in done.stderr and "error" not in done.stderr


@pytest.mark.slow
def test_a_coprocess_that_waits_can_be_stopped(tmp_path: Path) -> None:
    running = _coprocess(tmp_path)
    assert running.stdin and running.stdout and running.stderr
    running.stdin.write(b"a star\n")
    running.stdin.flush()
    assert json.loads(running.stdout.readline())["event"] == "image"
    running.terminate()
    assert running.wait(20) == 143
    for pipe in (running.stdin, running.stdout, running.stderr):
        pipe.close()


REFUSED = [
    (["batch", "p.txt", "--stream"], 2, "give - as the only FILE"),
    (["batch", "-", "--stream", "--dry-run"], 2, "leave --dry-run out"),
    (["batch", "-", "-"], 2, "stdin can be read once"),
    (["batch", "p.txt", "-o", "-"], 2, "give a folder to -o"),
    (["batch", "p.txt", "-o", "x.png"], 2, "2 pictures do not go to one path"),
    (["batch", "p.txt", "--input-format", "yaml"], 2, "there is no input format yaml"),
    (["batch", "nope.txt"], 66, "nope.txt is not there"),
    (["batch", "."], 65, "is a folder"),
    (["batch", "p.txt", "-o", "p.txt/"], 73, "is not a folder"),
    (["batch", "p.txt", "--batch-size", "many"], 2, "--batch-size can't be 'many'"),
    (["batch", "p.txt", "--limit", "3"], 2, "--limit is for --expand all"),
    (["batch", "-", "--stream", "--input-format", "csv"], 2, "reads text or jsonl"),
    (["batch", "p.txt", "-o", "{seed}.png", "--overwrite"], 2, "add {id} to the template"),
    (["batch", "p.txt", "-o", "{index}.png", "--overwrite"], 2, "add {id} to the template"),
]


@pytest.mark.parametrize(("argv", "code", "said"), REFUSED, ids=[" ".join(r[0]) for r in REFUSED])
def test_refused(sdcli: Sdcli, tmp_path: Path, argv: list[str], code: int, said: str) -> None:
    write(tmp_path, "p.txt", "a star", "a heart")
    done = sdcli(*argv, "--model", "demo")
    assert done.code == code and said in done.stderr
    assert [e["exit"] for e in done.events] == ([code] if "--stream" in argv else [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.txt"]


def test_nothing_to_draw_is_no_failure(sdcli: Sdcli, tmp_path: Path) -> None:
    done = sdcli("batch", write(tmp_path, "p.txt", "# nothing"), *DEMO, "--json")
    assert done.code == 0 and [e["event"] for e in done.events] == ["summary"]


# On screen


def test_the_bar_is_for_terminals(tmp_path: Path) -> None:
    write(tmp_path, "p.txt", *[f"a star --seed {i} --steps 3" for i in range(6)])
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "sdcli", "batch", "p.txt", "--model", "demo", "--batch-size", "1"]
    env = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    running = subprocess.Popen(command, cwd=tmp_path, stdin=follower, stdout=subprocess.PIPE, stderr=follower, env=env)
    os.close(follower)
    seen = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(leader)
    assert running.stdout
    out = running.stdout.read()
    running.stdout.close()
    assert running.wait(60) == 0 and len(out.splitlines()) == 6
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "0/6" in text and re.search(r"[1-5]/6 .*\d left, \d+/min, ETA 0:00:\d\d a star", text)
    assert "6 drawn, 0 failed, 0 skipped" in text


def test_paths_and_the_bar_share_a_terminal(tmp_path: Path) -> None:
    write(tmp_path, "p.txt", *[f"a star --seed {i} --steps 3" for i in range(4)])
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "sdcli",
        "batch",
        "p.txt",
        "--model",
        "demo",
        "--batch-size",
        "1",
        "-o",
        "x/{seed}.png",
    ]
    env = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, cwd=tmp_path, stdin=follower, stdout=follower, stderr=follower, env=env) as running:
        os.close(follower)
        seen = b""
        with contextlib.suppress(OSError):
            while chunk := os.read(leader, 65536):
                seen += chunk
        os.close(leader)
    # At the beginning of a row, or of one that has been cleared.
    alone = re.findall(rb"(?:\n|\x1b\[2K)(?:\x1b\[\?25h)?(x/\d\.png)\r\n", seen)
    assert running.returncode == 0 and sorted(alone) == [b"x/%d.png" % i for i in range(4)], seen
    assert b"4 left" in seen


# Packs


def _job(index: int, steps: int) -> Job:
    return Job(request=GenerationRequest(prompt=str(index), seed=index, num_inference_steps=steps), index=index)


def test_packs_take_what_is_alike_out_of_a_window() -> None:
    jobs = [_job(i, 1 + i % 3) for i in range(10)]
    found = [[j.index for j in pack] for pack in packs(jobs, 2, likeness, in_order=False)]
    assert found == [[0, 3], [1, 4], [2, 5], [6, 9], [7], [8]]
    assert [[j.index for j in pack] for pack in packs(jobs[:4], 2, likeness, in_order=True)] == [[0], [1], [2], [3]]
    alike = [_job(i, 1) for i in range(5)]
    assert [len(pack) for pack in packs(alike, 2, likeness, in_order=True)] == [2, 2, 1]


def test_packs_give_out_what_waits_before_they_wait() -> None:
    asked: list[str] = []

    def source() -> Any:
        yield _job(0, 1)
        asked.append("idle")
        yield None
        asked.append("more")
        yield _job(1, 1)

    given = packs(source(), 4, likeness, in_order=True)
    assert [j.index for j in next(given)] == [0] and asked == ["idle"]
    assert next(given) == [] and asked == ["idle"]
    assert [j.index for j in next(given)] == [1]


def test_the_window_is_bounded() -> None:
    pulled = 0

    def source() -> Any:
        nonlocal pulled
        for i in range(5000):
            pulled += 1
            yield _job(i, 1 + i % 1000)

    next(packs(source(), 16, likeness, in_order=False))
    assert pulled == 1024


@pytest.mark.parametrize(
    ("counts", "size"), [([200], 16), ([6], 2), ([16], 16), ([1] * 50, 1), ([100, 3], 16), ([3], 1), ([0], 16)]
)
def test_packs_are_filled_by_a_quarter_at_most(counts: list[int], size: int) -> None:
    assert pack_size([i for i, n in enumerate(counts) for _ in range(n)], 16) == size


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "last", "code"), [(1_000_000, "a star --nope", 65), (100_000, "a star", 0)])
def test_many_rows_take_no_memory(tmp_path: Path, probe: Any, rows: int, last: str, code: int) -> None:
    """At most 100 bytes a row: the first reading of a million, whose last is bad, and all of it for a tenth of them."""
    with open(tmp_path / "p.txt", "w") as file:
        for i in range(rows - 1):
            file.write(f"a picture number {i} of a red circle on a blue background\n")
        file.write(last + "\n")
    done = probe(
        "import resource, sys\n"
        "from sdcli.cli.main import main\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "open('one.txt', 'w').write('a star')\n"
        "sys.stdout = open('/dev/null', 'w')\n"
        "assert main(['batch', 'one.txt', '--model', 'demo', '--dry-run', '--json']) == 0\n"
        "before = used()\n"
        f"assert main(['batch', 'p.txt', '--model', 'demo', '--dry-run', '--json']) == {code}\n"
        f"print((used() - before) / {rows}, file=sys.stderr)\n"
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stderr.splitlines()[-1]) <= 100, "bytes a row"
