"""What is given, and what a model can use: presets give way, settings give way to names, and refusals say who asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import families, hub, models_on_disk
from tests.conftest import Sdcli, pixels, record_of

DRAW = ("-m", "demo", "-s", "1", "--steps", "2", "--dtype", "fp32")


def request_of(outcome: Any) -> dict[str, Any]:
    assert outcome.code == 0, outcome.stderr
    found: dict[str, Any] = outcome.events[0]["request"]
    return found


@pytest.mark.parametrize(
    ("model", "preset", "field"),
    [
        ("flux-dev", "fast", "scheduler"), ("flux-dev", "quality", "scheduler"), ("lcm-dreamshaper", "lcm", "scheduler"),
        ("sana", "lowvram", "attention_slicing"), ("flux-dev", "oil", "negative_prompt"),
    ],
)  # fmt: skip
def test_what_a_preset_says_gives_way(model: str, preset: str, field: str, sdcli: Sdcli) -> None:
    done = sdcli("generate", "a star", "-m", model, "-p", preset, "--dry-run", "--json")
    said = request_of(done) | done.events[0]["plan"]
    assert not said[field] or said[field] == "auto"
    assert f"{field} (preset {preset})" in done.stderr and "left out" in done.stderr
    assert "preset" not in (done.events[0]["origins"][field] or "")


def test_a_refusal_says_who_asked(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDCLI_SCHEDULER", "euler")
    done = sdcli("generate", "a star", "-m", "flux-dev", "--dry-run")
    assert done.code == 2 and "it is set by: SDCLI_SCHEDULER" in done.stderr
    (tmp_path / "rows.txt").write_text("a star\n")
    done = sdcli("batch", "rows.txt", "-m", "flux-dev", "--dry-run")
    assert done.code == 2 and "it is set by: SDCLI_SCHEDULER" in done.stderr


def test_settings_of_the_format_give_way_to_a_name(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_FORMAT", "jpg")
    monkeypatch.setenv("SDCLI_QUALITY", "80")
    for name, kind in (("a.png", b"\x89PNG"), ("b.webp", b"RIFF"), ("c/", b"\xff\xd8")):
        done = sdcli("generate", "a star", *DRAW, "-o", name)
        assert done.code == 0, done.stderr
        assert Path(done.lines[0]).read_bytes().startswith(kind)
    assert sdcli("generate", "a star", *DRAW, "-o", "d.png", "--format", "jpg").code == 2


def test_a_picture_without_a_scheduler_says_so(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sdcli("generate", "a star", *DRAW, "-o", "a.png").code == 0
    monkeypatch.setenv("SDCLI_SCHEDULER", "euler")
    assert sdcli("generate", "--from", "a.png", "--dtype", "fp32", "-o", "b.png").code == 0
    assert record_of("b.png")["id"] == record_of("a.png")["id"] and (pixels("a.png") == pixels("b.png")).all()
    done = sdcli("batch", "--from", "a.png", "--dtype", "fp32", "-o", "again/", "--json")
    assert done.events[0]["id"] == record_of("a.png")["id"]
    # And a preset, which is stronger, is heeded.
    assert sdcli("generate", "--from", "a.png", "-p", "fast", "-o", "c.png").code == 0
    assert record_of("c.png")["request"]["scheduler"] == "dpm++2m-karras"


def test_a_style_is_heeded_where_a_row_makes_it_so(sdcli: Sdcli, tmp_path: Path) -> None:
    folder = families.saved("FluxPipeline", tmp_path / "flux")
    row = {"prompt": "a star", "preset": "noir", "seed": 1}
    rows = "".join(json.dumps(row | more) + "\n" for more in ({"true_cfg_scale": 3}, {}))
    (tmp_path / "rows.jsonl").write_text(rows)
    done = sdcli("batch", "rows.jsonl", "-m", str(folder), "--size", "64x64", "--dry-run", "--json")
    assert done.code == 0, done.stderr
    heeded, left = (e["request"]["negative_prompt"] for e in done.events)
    assert "daylight" in heeded and left == ""


def test_another_configuration_is_another_job(sdcli: Sdcli, tmp_path: Path) -> None:
    folder = models_on_disk.demo(tmp_path / "one")
    command = ("a star", "-m", str(folder), "-s", "1", "--steps", "2", "--size", "128x128", "--dtype", "fp32")
    assert sdcli("generate", *command, "-o", "a.png").code == 0
    models_on_disk.edit_json(folder / "scheduler/scheduler_config.json", beta_end=0.02)
    assert sdcli("generate", *command, "-o", "b.png").code == 0
    first, second = record_of("a.png"), record_of("b.png")
    assert first["id"] != second["id"]
    done = sdcli("verify", "a.png", "-m", str(folder), "--json")
    assert done.code == 1 and any("--config" in cause for cause in done.events[0]["causes"])


def test_a_single_files_name_makes_no_other_job(sdcli: Sdcli, tmp_path: Path) -> None:
    demo = models_on_disk.demo(tmp_path / "demo")
    file = models_on_disk.checkpoint(demo, tmp_path / "a.safetensors")
    ids = []
    for name in ("a.safetensors", "b.safetensors"):
        file = file.rename(tmp_path / name)
        done = sdcli("generate", "a star", "-m", name, "--model-config", "demo/", "-s", "1", "--dry-run", "--json")
        assert done.code == 0, done.stderr
        ids.append(done.events[0]["id"])
    assert ids[0] == ids[1] is not None


def test_the_first_run_is_as_the_next(tmp_path: Path) -> None:
    """A model that is not here is drawn with its family's values from the first picture on, and its jobs keep their ids."""
    folder = families.saved("FluxPipeline", tmp_path / "flux")
    (tmp_path / "rows.txt").write_text("a star\na moon\n")
    with hub.serving(org__tiny=hub.Repo(folder)) as there:
        env = os.environ | {"HF_ENDPOINT": there.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        command = (
            "batch", "rows.txt", "-m", "org/tiny", "--size", "64x64", "--dtype", "fp32", "-o", "out/", "--json", "-c", "1",
            "--set", "guidance_scale=2",
        )  # fmt: skip
        runs = []
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-m", "sdcli", *command], cwd=tmp_path, env=env, capture_output=True, timeout=240
            )
            assert done.returncode == 0, done.stderr
            runs.append([json.loads(line) for line in done.stdout.splitlines()])
    first, second = ([e for e in events if e["event"] in ("image", "skipped")] for events in runs)
    assert [e["event"] for e in first] == ["image"] * 2 and [e["event"] for e in second] == ["skipped"] * 2
    assert {e["id"] for e in first} == {e["id"] for e in second}
    steps = {record_of(tmp_path / e["path"])["request"]["num_inference_steps"] for e in first}
    assert steps == {28}


def test_unknown_values_are_not_guessed(sdcli: Sdcli) -> None:
    done = sdcli("generate", "a star", "-m", "someone/unknown", "--dry-run", "--json")
    event = done.events[0]
    assert event["request"]["num_inference_steps"] is None and event["request"]["guidance_scale"] is None
    assert event["origins"]["num_inference_steps"] == "decided at run time"
    done = sdcli("generate", "a star", "-m", "flux-dev", "--dry-run", "--json")
    assert (done.events[0]["request"]["num_inference_steps"], done.events[0]["request"]["width"]) == (50, 1024)
    done = sdcli("generate", "a star", "-m", "flux-dev", "--size", "1000x1000", "--dry-run")
    assert done.code == 2 and "992 and 1008" in done.stderr


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_code_of_a_model_never_runs(part: str, sdcli: Sdcli, tmp_path: Path) -> None:
    """Auto classes look into the model's files for what they are, and may find code there."""
    folder = models_on_disk.demo(tmp_path / "model")
    kind = {"text_encoder": "AutoModel", "tokenizer": "AutoTokenizer"}[part]
    models_on_disk.edit_json(folder / "model_index.json", **{part: ["transformers", kind]})
    (folder / part / "evil.py").write_text("open('ran', 'w')\n")
    done = sdcli("generate", "a star", "-m", "model/")
    assert done.code == 65 and "never run" in done.stderr and not Path("ran").exists()


def test_edits_are_told_of_pictures_that_are_identical(sdcli: Sdcli, tmp_path: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    assert sdcli("generate", "a yellow star", *DRAW, "-o", "a.png").code == 0
    with Image.open("a.png") as image:
        info = PngInfo()
        info.add_text("sdcli", image.info["sdcli"])  # type: ignore[attr-defined]
        info.add_text("parameters", image.info["parameters"].replace("yellow", "purple"))  # type: ignore[attr-defined]
        image.save("b.png", pnginfo=info)
    done = sdcli("verify", "b.png", "--json")
    assert done.code == 0 and done.events[0]["verdict"] == "identical"
    assert any("purple" in cause for cause in done.events[0]["causes"])
    assert sdcli("verify", "a.png", "--json").events[0]["causes"] == []
