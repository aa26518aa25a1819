"""`sdcli grid` through the front door: cells are jobs, the sheet shows them, and its record lists them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcli.pipeline import Pipeline
from tests.conftest import Sdcli, pixels, record_of
from tests.test_batch import DEMO, images, journal

AXES = ("--x", "prompt:red=red,blue", "--y", "steps=1,2")
SHEET_KEYS = "schema event id path width height format pixels".split()


def _holds(sheet: Any, picture: Any) -> bool:
    """Whether a picture lies in the sheet somewhere, pixel for pixel."""
    height, width = picture.shape[:2]
    for top in range(sheet.shape[0] - height + 1):
        row = (sheet[top, : sheet.shape[1] - width + 1] == picture[0, 0]).all(-1).nonzero()[0]
        for left in row:
            if (sheet[top : top + height, left : left + width] == picture).all():
                return True
    return False


def test_cells_are_jobs_and_the_sheet_shows_them(sdcli: Sdcli, tmp_path: Path) -> None:
    done = sdcli("grid", "a red star", *AXES, *DEMO, "--json", "-o", "g/")
    assert done.code == 0, done.stderr
    cells, (sheet, summary) = images(done), done.events[-2:]
    assert [e["event"] for e in done.events] == ["image"] * 4 + ["sheet", "summary"]
    assert list(sheet) == SHEET_KEYS and summary["done"] == 4
    requests = [record_of(e["path"])["request"] for e in cells]
    assert {(r["prompt"], r["num_inference_steps"]) for r in requests} == {
        ("a red star", 1), ("a blue star", 1), ("a red star", 2), ("a blue star", 2),
    }  # fmt: skip
    assert len({r["seed"] for r in requests}) == 1, "one seed for all, so that they can be compared"
    with Image.open(sheet["path"]) as image:
        assert image.size == (sheet["width"], sheet["height"])
        record = json.loads(image.info["sdcli"])  # type: ignore[attr-defined]
    assert all(_holds(pixels(sheet["path"]), pixels(e["path"])) for e in cells)
    by_id = {e["id"]: e for e in cells}
    assert record["kind"] == "grid" and [a["field"] for a in record["axes"]] == ["prompt", "num_inference_steps"]
    assert [(c["x"], c["y"], c["z"]) for c in record["cells"]] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    for cell in record["cells"]:
        event = by_id[cell["id"]]
        assert str(Path("g") / cell["path"]) == event["path"]
        assert (cell["seed"], cell["pixels"], cell["error"]) == (event["seed"], event["pixels"], None)


def test_the_same_grid_goes_on(sdcli: Sdcli, tmp_path: Path) -> None:
    argv = ("grid", "a red star", *AXES, *DEMO, "--json", "-o", "g/")
    first = sdcli(*argv)
    Path(images(first)[2]["path"]).unlink()
    again = sdcli(*argv)
    assert again.code == 0 and [e["event"] for e in again.events].count("skipped") == 3
    assert images(again)[0]["id"] == images(first)[2]["id"] and images(again)[0]["pixels"] == images(first)[2]["pixels"]
    assert first.events[-2] == again.events[-2], "the same sheet, under the same name"
    more = sdcli(
        "grid", "a red star", "--x", "prompt:red=red,green,blue", "--y", "steps=1,2", *DEMO, "--json", "-o", "g/"
    )
    assert [e["event"] for e in more.events].count("skipped") == 4 and more.events[-2]["path"] != first.events[-2][
        "path"
    ]
    assert [line["event"] for line in journal(tmp_path / "g")] == ["run"] + ["image"] * 7


def test_plain_results_are_paths(sdcli: Sdcli, tmp_path: Path) -> None:
    done = sdcli("grid", "a red star", "--x", "seed=1,2", *DEMO)
    assert done.code == 0 and len(done.lines) == 3 and done.lines[-1].startswith("sdcli-batch/grid-a-red-star-")
    assert all((tmp_path / line).is_file() for line in done.lines)


def test_a_failed_cell_is_shown_as_failed(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdcli.errors import NotFinite
    from sdcli.pipeline import Pipeline

    real = Pipeline._draw

    def draw(self: Pipeline, pack: Any, *more: Any) -> Any:
        if any(r.num_inference_steps == 2 for r in pack):
            raise NotFinite("the values are not finite", "try another")
        return real(self, pack, *more)

    monkeypatch.setattr(Pipeline, "_draw", draw)
    done = sdcli("grid", "a star", "--x", "steps=1,2", "--model", "demo", "--json", "-o", "g/")
    assert done.code == 1 and [e["event"] for e in done.events] == ["image", "error", "sheet", "summary"]
    with Image.open(done.events[2]["path"]) as image:
        record = json.loads(image.info["sdcli"])  # type: ignore[attr-defined]
    assert [(c["path"] is None, c["error"]) for c in record["cells"]] == [(False, None), (True, "not-finite")]
    monkeypatch.setattr(Pipeline, "_draw", real)
    again = sdcli("grid", "a star", "--x", "steps=1,2", "--model", "demo", "--json", "-o", "g/", "--retry-failed")
    assert again.code == 0 and again.events[-2]["path"] == done.events[2]["path"], "the sheet is filled in"


def test_origins_name_the_axis(sdcli: Sdcli, tmp_path: Path) -> None:
    done = sdcli(
        "grid",
        "a star",
        "--x",
        "steps=1",
        "--y",
        "preset=fast,quality",
        "--z",
        "size=64x64",
        "--model",
        "demo",
        "--dry-run",
        "--json",
    )
    assert done.code == 0, done.stderr
    origins = [e["origins"] for e in done.events]
    assert [o["num_inference_steps"] for o in origins] == ["--x", "--x"]
    assert [(o["width"], o["prompt"]) for o in origins] == [("--z", "argument")] * 2
    assert not list(tmp_path.iterdir())


def test_a_sheet_that_is_left_is_told_of(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells are there, and the run was asked to stop before it came to its sheet."""
    real = Pipeline._draw

    def draw(self: Pipeline, *more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(self, *more)

    monkeypatch.setattr(Pipeline, "_draw", draw)
    asked = ("grid", "a red star", "--x", "seed=1,2", *DEMO, "--batch-size", "2", "-o", "g/")
    done = sdcli(*asked)
    assert done.code == 130 and len(done.lines) == 2 and "2 drawn" in done.stderr
    assert "the same command goes on where this one stopped" in done.stderr
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert sdcli(*asked).lines[-1].startswith("g/grid-")


def test_private_sheets(sdcli: Sdcli, tmp_path: Path) -> None:
    done = sdcli("grid", "a star", "--x", "steps=1,2", "--model", "demo", "--metadata", "none")
    assert done.code == 0, done.stderr
    with Image.open(done.lines[-1]) as image:
        assert "sdcli" not in image.info and not image.info.get("XML:com.adobe.xmp")
    done = sdcli("grid", "a star", "--x", "steps=1,2", "--model", "demo", "--metadata", "minimal", "-o", "m/")
    with Image.open(done.lines[-1]) as image:
        assert json.loads(image.info["sdcli"]) == {"schema": 1, "kind": "grid"}
        assert "trainedAlgorithmicMedia" in str(image.info["XML:com.adobe.xmp"])
    assert Path(done.lines[-1]).name.startswith("grid-") and "star" not in done.lines[-1]
    assert sdcli("inspect", "--check", "m/").code == 0


REFUSED = [
    ([], "a grid"),
    (["--x", "stpes=1,2"], "did you mean"),
    (["--x", "steps=1,ten"], "--x: steps can't be 'ten'"),
    (["--x", "model=demo,sd15"], "model"),
    (["--x", "steps=1", "--y", "steps=2"], "steps"),
    (["--x", "prompt:cat=dog"], "cat"),
    (["--x", "size=100x100"], "the cell size 100x100 can't be drawn"),
    (["--x", "steps=1..9999"], "steps has no range"),
    (["--x", "steps=1,2", "--count", "2"], "a cell of a grid is one picture"),
    (["--x", "steps=1,2", "-o", "x.png"], "2 pictures do not go to one path"),
    (["--x", "steps=1,2", "-o", "-"], "give a folder to -o"),
    (["--x", "seed=1..1000+1", "--size", "64x64"], "pixels"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=[" ".join(r[0]) for r in REFUSED])
def test_refused(sdcli: Sdcli, tmp_path: Path, options: list[str], said: str) -> None:
    done = sdcli("grid", "a star", "--model", "demo", *options)
    assert done.code == 2 and said in done.stderr and done.stdout == b"", done.stderr
    assert not list(tmp_path.iterdir())
