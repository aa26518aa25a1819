"""A batch that is killed, stopped, or runs out of disk, and is started again: nothing is lost and nothing is done twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli import metadata
from sdcli.jobs.journal import CLOCK, holds
from tests import killing
from tests.conftest import Sdcli
from tests.killing import Child, Nursery, Started

JOURNAL = "sdcli-batch.jsonl"
QUICK = ("--model", "demo", "--steps", "1", "--size", "64x64", "--dtype", "fp32", "--device", "cpu")
ENDINGS = (".png", ".jpg", ".webp", ".avif")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with killing.nursery() as made:
        yield made


# What lies in a folder


@dataclass(frozen=True)
class Picture:
    path: Path
    id: str | None
    pixels: str
    inode: int
    changed: int


@dataclass(frozen=True)
class Found:
    """All that can be seen of a run's work: its pictures, and the journal's lines."""

    pictures: list[Picture]
    lines: list[dict[str, Any]]

    @property
    def images(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == "image"]

    @property
    def by_name(self) -> dict[str, str]:
        """The pixels of each picture. Folders are left out: a run at midnight has two dates."""
        assert len({p.path.name for p in self.pictures}) == len(self.pictures)
        return {p.path.name: p.pixels for p in self.pictures}

    @property
    def without_line(self) -> list[Picture]:
        told = {line["pixels"] for line in self.images}
        return [p for p in self.pictures if p.pixels not in told]


def look(cwd: Path, folder: str = "sdcli-batch") -> Found:
    """Look at all that a run made, and check what must hold whenever it was killed.

    Every picture that can be seen is whole; the journal's complete lines parse; no job has two lines, and no two pictures are
    of one job; each line's picture is there, with the pixels that the line says.
    """
    pictures = []
    for path in sorted(cwd.rglob("*")):
        if path.suffix in ENDINGS and not path.name.startswith("."):
            with Image.open(path) as image:
                pixels = hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
            identity, stat = metadata.identity(path), path.stat()
            pictures.append(Picture(path, identity and identity.id, pixels, stat.st_ino, stat.st_mtime_ns))
    journal = cwd / folder / JOURNAL
    text = journal.read_bytes() if journal.exists() else b""
    lines = [json.loads(line) for line in text.split(b"\n")[:-1]]
    found = Found(pictures, lines)
    assert max(Counter(line["id"] for line in found.images).values(), default=1) == 1, "a job has two lines"
    assert max(Counter(p.id or p.pixels for p in pictures).values(), default=1) == 1, "a job has two pictures"
    by_path = {p.path: p for p in pictures}
    for line in found.images:
        path = Path(os.path.normpath(journal.parent / line["path"]))
        assert path in by_path, f"{path} has a line, and is not there"
        assert by_path[path].pixels == line["pixels"]
        assert by_path[path].id in (line["id"], None)
    return found


def wait_for(done: Callable[[], bool]) -> None:
    until = time.monotonic() + killing.PATIENCE
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


# Runs


def prompts(count: int, *, seeds: bool = False) -> str:
    """Return a file of different prompts."""
    things = ("red circle", "blue star", "green square", "yellow triangle")
    return "".join(f"a {things[i % 4]}, number {i}" + f" --seed {1000 + i}" * seeds + "\n" for i in range(count))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to run a batch: more options, the rows, where its journal lies, and whether there are hard links."""

    options: tuple[str, ...] = ()
    rows: str = prompts(30)
    file: str = "prompts.txt"
    folder: str = "sdcli-batch"
    links: bool = True

    @property
    def argv(self) -> tuple[str, ...]:
        return ("batch", self.file, *QUICK, "--json", *self.options)

    def start(self, nursery: Nursery, cwd: Path, *more: str, **fate: Any) -> Child:
        """Start the run, the same command each time, in a folder that has the rows."""
        cwd.mkdir(exist_ok=True)
        (cwd / self.file).write_text(self.rows, encoding="utf-8")
        return nursery.start(*self.argv, *more, cwd=cwd, links=self.links, **fate)

    def finish(self, nursery: Nursery, cwd: Path, *more: str) -> list[dict[str, Any]]:
        """Run to the end, and return what was told."""
        child = self.start(nursery, cwd, *more)
        assert child.wait() == 0, child.stderr.decode()
        return child.events

    def start_for_real(self, cwd: Path) -> Started:
        """Start the run as a process of its own from its first import on."""
        (cwd / self.file).write_text(self.rows, encoding="utf-8")
        return Started(*self.argv, cwd=cwd)

    def look(self, cwd: Path) -> Found:
        return look(cwd, self.folder)

    def undisturbed(self, nursery: Nursery, cwd: Path, like: Path) -> Found:
        """Run from start to end with the run seed and the pack size of another run, which its journal's first line has."""
        journal = cwd / self.folder / JOURNAL
        journal.parent.mkdir(parents=True)
        first = (like / self.folder / JOURNAL).read_bytes().split(b"\n")[0]
        journal.write_bytes(first + b"\n")
        told = self.finish(nursery, cwd)
        assert {event["event"] for event in told} == {"image", "summary"}
        return self.look(cwd)


OUTPUTS = "".join(
    json.dumps({"prompt": f"a red circle, number {i}", "output": f"sub/x{i}.png"}) + "\n" for i in range(24)
)
VARIANTS = {
    "png": Variant(options=("--batch-size", "2")),
    "seeds in the file": Variant(options=("--batch-size", "2"), rows=prompts(30, seeds=True)),
    "packs of 4": Variant(options=("--batch-size", "4"), rows=prompts(40)),
    "jpg": Variant(options=("--format", "jpg", "--batch-size", "2")),
    "webp": Variant(options=("--format", "webp", "--batch-size", "2")),
    "minimal": Variant(options=("--metadata", "minimal", "--batch-size", "2")),
    "none": Variant(options=("--metadata", "none", "--batch-size", "2")),
    "template": Variant(options=("-o", "out/{date}/{prompt}-{seed}.png", "--batch-size", "2"), folder="out"),
    "a row's own output": Variant(options=("--batch-size", "2"), rows=OUTPUTS, file="rows.jsonl"),
    "no links": Variant(options=("--batch-size", "2"), links=False),
    "overwrite": Variant(options=("--overwrite", "--batch-size", "2")),
}


# Kills at named points

# Each point, the how manieth time a run comes by it, and how many pictures are then without a line. What an earlier kill left
# without one gets its line first of all.
KILLS = (
    ("before the run line", 1, 0), ("in the run line", 1, 0), ("after the run line", 1, 0),
    ("before the temporary file", 2, 0), ("in the temporary file", 1, 0), ("before the link", 2, 0),
    ("after the link", 1, 1), ("before the line", 1, 1), ("after the line", 1, 0),
    ("before the line", 2, 1), ("in the line", 1, 1), ("before the cut", 1, 1), ("after the cut", 1, 1),
    ("in the line", 2, 1), ("after the line", 2, 0),
)  # fmt: skip
FEW_KILLS = (("before the link", 1, 0), ("after the link", 2, 1), ("in the line", 2, 1), ("after the line", 1, 0))


def run_through(nursery: Nursery, tmp_path: Path, variant: Variant, kills: Sequence[tuple[str, int, int]]) -> None:
    """Kill a run at one point after the other, start it again each time, and compare it with one that nobody killed."""
    killed, left, begun = tmp_path / "killed", {}, []
    for point, nth, without_line in kills:
        child = variant.start(nursery, killed, point=point, nth=nth)
        assert child.wait() == -9, f"{point}: {child.stderr.decode()}"
        found = variant.look(killed)
        assert len(found.without_line) == without_line, point
        left |= {p.pixels: p for p in found.without_line}
        runs = [line["seed"] for line in found.lines if line["event"] == "run"]
        assert begun == runs[: len(begun)] and len(runs) <= 1, "one seed for all runs"
        begun = runs
    told = variant.finish(nursery, killed)
    end = variant.look(killed)
    assert len(end.pictures) == len(end.images) == len(variant.rows.splitlines())
    assert told[-1]["event"] == "summary" and told[-1]["done"] + told[-1]["skipped"] == len(end.images)
    kept = {p.pixels: p for p in end.pictures}
    assert {pixels: kept[pixels] for pixels in left} == left, "what had no line is taken as it is"
    assert end.by_name == variant.undisturbed(nursery, tmp_path / "undisturbed", killed).by_name


def test_kills_at_named_points(nursery: Nursery, tmp_path: Path) -> None:
    run_through(nursery, tmp_path, VARIANTS["png"], KILLS)


def few(variant: Variant) -> Variant:
    """Return the same with fewer rows."""
    return replace(variant, rows="".join(variant.rows.splitlines(keepends=True)[:14]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "png"])
def test_kills_at_named_points_in_other_ways(nursery: Nursery, tmp_path: Path, name: str) -> None:
    run_through(nursery, tmp_path, few(VARIANTS[name]), FEW_KILLS)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "png"])
def test_all_kills_at_named_points_in_other_ways(nursery: Nursery, tmp_path: Path, name: str) -> None:
    run_through(nursery, tmp_path, VARIANTS[name], KILLS)


@pytest.mark.slow
def test_a_picture_without_a_line_is_told_when_it_is_found(nursery: Nursery, tmp_path: Path) -> None:
    variant = VARIANTS["png"]
    assert variant.start(nursery, tmp_path, point="after the link", nth=3).wait() == -9
    (left,) = variant.look(tmp_path).without_line
    told = variant.finish(nursery, tmp_path)
    (event,) = (event for event in told if event.get("id") == left.id)
    assert (event["event"], event["pixels"], event["seconds"]) == ("image", left.pixels, None)
    assert tmp_path / event["path"] == left.path and event["prompt"] in variant.rows
    assert [event["event"] for event in told] == ["skipped"] * 2 + ["image"] * 28 + ["summary"]


@pytest.mark.slow
@pytest.mark.parametrize("touched", ["the cut line", "another pack size"])
def test_a_picture_without_a_line_outlasts_a_journal_that_changed_since(
    nursery: Nursery, tmp_path: Path, touched: str
) -> None:
    """A second run that is killed before it found the picture has changed the journal; the third finds it all the same."""
    variant = VARIANTS["png"]
    first, more, second = ("after the link", ("--batch-size", "3"), "after the run line")
    if touched == "the cut line":
        first, more, second = ("in the line", (), "after the cut")
    assert variant.start(nursery, tmp_path, point=first, nth=3).wait() == -9
    (left,) = variant.look(tmp_path).without_line
    time.sleep(2 * CLOCK + 0.5)
    assert variant.start(nursery, tmp_path, *more, point=second).wait() == -9
    variant.finish(nursery, tmp_path, *more)
    assert left in variant.look(tmp_path).pictures


@pytest.mark.slow
def test_without_metadata_equal_names_are_told_apart(nursery: Nursery, tmp_path: Path) -> None:
    """A picture whose name was taken lies under another, and is found there."""
    rows = "".join(f"a red circle --seed {i}\n" for i in range(6))
    variant = Variant(
        options=("--metadata", "none", "-o", "out/{prompt}.png", "--batch-size", "2"), rows=rows, folder="out"
    )
    assert variant.start(nursery, tmp_path, point="after the link", nth=3).wait() == -9
    (left,) = variant.look(tmp_path).without_line
    assert left.path.name == "a-red-circle-3.png"
    variant.finish(nursery, tmp_path)
    end = variant.look(tmp_path)
    assert left in end.pictures and len(end.pictures) == 6


def test_without_metadata_jobs_with_equal_pixels_have_a_picture_each(nursery: Nursery, tmp_path: Path) -> None:
    rows = "".join(f"a red circle --seed 5 --cfg 1 --negative {word}\n" for word in ("grey", "pale"))
    variant = Variant(
        options=("--metadata", "none", "-o", "out/{prompt}.png", "--batch-size", "2"), rows=rows, folder="out"
    )
    told = variant.finish(nursery, tmp_path)
    assert told[0]["pixels"] == told[1]["pixels"] and told[0]["path"] != told[1]["path"]
    assert len(list(tmp_path.glob("out/*.png"))) == 2


def test_fresh_draws_all_anew(nursery: Nursery, tmp_path: Path) -> None:
    """Rows with a seed of their own too: the old pictures stay, and are not taken for new ones."""
    variant = Variant(rows="a red circle\na blue star --seed 5\n", options=("--batch-size", "2"))
    first = variant.finish(nursery, tmp_path)
    before = variant.look(tmp_path)
    told = variant.finish(nursery, tmp_path, "--fresh")
    assert [e["seconds"] is None for e in told[:2]] == [False, False]
    assert told[0]["seed"] != first[0]["seed"] and told[1]["seed"] == 5
    now = {p: (tmp_path / p).stat().st_ino for e in (*first[:2], *told[:2]) for p in (e["path"],)}
    assert len(now) == 4 and {p.inode for p in before.pictures} < set(now.values())
    aside = tmp_path / "sdcli-batch" / "sdcli-batch-2.jsonl"
    assert [json.loads(line) for line in aside.read_bytes().splitlines()] == before.lines


# Kills at random moments


@dataclass
class Moments:
    """When to kill: a fourth of the times before the first picture, else while pictures are written."""

    kills: int
    random: random.Random
    until_first: float = 4.0
    a_picture: float = 0.05
    landed: Counter[str] = field(default_factory=Counter)

    def kill(self, run: Started, left: int, size: int) -> str:
        """Kill a run that has so many pictures left to draw, in packs of a size, and say when."""
        began = time.monotonic()
        # The last packs are kept for the last kills.
        if left < 200 and (self.random.random() < 0.25 or left <= 2 * size):
            wait, since = self.random.uniform(0, self.until_first), "the start"
        else:
            assert run.says('"event": "image"'), run.stderr.decode()
            self.until_first = time.monotonic() - began
            wait, since = self.random.uniform(0, 2 * self.a_picture * left / self.kills), "the first picture"
        told = len(run.events)
        if run.ends_within(wait):
            since += ", at its own end"
        elif len(run.events) > told + 10:
            self.a_picture = wait / (len(run.events) - told)
        run.kill()
        self.kills -= 1
        return f"{wait:.3f} s after {since}"


@pytest.mark.parametrize(
    ("size", "seeds", "kills"),
    [
        pytest.param(4, True, 4, marks=pytest.mark.slow), pytest.param(16, False, 4, marks=pytest.mark.slow),
        pytest.param(4, True, 50, marks=pytest.mark.full), pytest.param(4, False, 50, marks=pytest.mark.full),
    ],
)  # fmt: skip
@pytest.mark.timeout(3600)
def test_kills_at_random_moments(nursery: Nursery, tmp_path: Path, size: int, seeds: bool, kills: int) -> None:
    """200 prompts; whenever it is killed, nothing is lost, nothing is there by half, nothing is done twice."""
    variant = Variant(options=("--batch-size", str(size)), rows=prompts(200, seeds=seeds))
    seed = int.from_bytes(os.urandom(8))
    print(f"the moments come from random.Random({seed})")
    moments, killed = Moments(kills=kills, random=random.Random(seed)), tmp_path / "killed"
    (killed / "sdcli-batch").mkdir(parents=True)
    begun: list[Any] = []
    for _ in range(kills):
        before = variant.look(killed)
        parts = set(killed.rglob(".*.part"))
        size_before = len(before.lines)
        run = variant.start_for_real(killed)
        moment = moments.kill(run, 200 - len(before.images), size)
        found = variant.look(killed)
        print(
            f"{moment}: {len(found.images) - len(before.images)} more pictures, {len(found.without_line)} without a line"
        )
        told = [event["id"] for event in run.events if event["event"] == "image"]
        assert not {line["id"] for line in before.images} & set(told), "a job that has its line is not drawn again"
        assert set(told) <= {line["id"] for line in found.images} and len(told) == len(set(told))
        assert found.lines[:size_before] == before.lines, "lines stay as they are"
        assert {(p.path, p.inode, p.changed) for p in before.pictures} <= {
            (p.path, p.inode, p.changed) for p in found.pictures
        }
        assert len(found.without_line) <= 1
        runs = [line["seed"] for line in found.lines if line["event"] == "run"]
        assert begun == runs[: len(begun)] and len(runs) <= 1
        begun = runs
        moments.landed["while pictures were written" if told else "before the first picture"] += 1
        moments.landed["with a picture under its hidden name"] += bool(set(killed.rglob(".*.part")) - parts)
        moments.landed["with a picture that has no line"] += bool(found.without_line)
    print(dict(moments.landed))
    assert moments.landed["while pictures were written"] > kills / 5
    told = variant.finish(nursery, killed)
    end = variant.look(killed)
    assert len(end.pictures) == len(end.images) == 200
    assert told[-1]["done"] + told[-1]["skipped"] == 200
    assert end.by_name == variant.undisturbed(nursery, tmp_path / "undisturbed", killed).by_name


@pytest.mark.slow
def test_a_file_that_was_changed_goes_on(nursery: Nursery, tmp_path: Path) -> None:
    """Rows in another order, some more and some fewer, and equal ones among them: each picture is drawn once."""
    lines = [*prompts(12).splitlines(), *["a red circle"] * 4]
    one = Variant(options=("--batch-size", "4"), rows="\n".join(lines) + "\n")
    two = replace(one, rows="\n".join(["a blue star, the last", *lines[::-1], "a red circle", "a green square"]) + "\n")
    three = replace(one, rows="\n".join(lines[2:]) + "\n")
    assert one.start(nursery, tmp_path, point="before the line", nth=6).wait() == -9
    first = one.look(tmp_path)
    assert two.start(nursery, tmp_path, point="in the line", nth=6).wait() == -9
    second = two.look(tmp_path)
    assert set(first.pictures) <= set(second.pictures)
    told = three.finish(nursery, tmp_path)
    third = three.look(tmp_path)
    assert set(second.pictures) <= set(third.pictures)
    assert told[-1]["done"] + told[-1]["skipped"] == len(lines) - 2
    one.finish(nursery, tmp_path)
    two.finish(nursery, tmp_path)
    end = two.look(tmp_path)
    assert set(third.pictures) <= set(end.pictures) and len(end.pictures) == len(lines) + 3
    assert one.undisturbed(nursery, tmp_path / "undisturbed", tmp_path).by_name.items() <= end.by_name.items()


def test_a_line_that_is_lost_costs_no_second_picture(nursery: Nursery, done: Path, tmp_path: Path) -> None:
    """Long after, when nobody looks for pictures without lines any more: the job's own picture has its name, and is taken."""
    shutil.copytree(done, tmp_path / "run")
    before = DAMAGED.look(tmp_path / "run")
    for picture in before.pictures:
        os.utime(picture.path, (0, 0))
    journal = tmp_path / "run" / "sdcli-batch" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    lost = json.loads(lines[3])["id"]
    journal.write_bytes(b"".join((*lines[:3], b"\0" * len(lines[3]) + b"\n", *lines[4:])))
    told = DAMAGED.finish(nursery, tmp_path / "run")
    assert [e["id"] for e in told if e["event"] == "image"] == [lost]
    assert {p.inode for p in before.pictures} == {p.path.stat().st_ino for p in before.pictures}
    assert len(list((tmp_path / "run").rglob("*.png"))) == 6


# A full disk


def stopped_by_a_full_disk(child: Child, variant: Variant, cwd: Path) -> Found:
    """Check how a run ends that finds no room: at once, with a word on the job, and with nothing half there."""
    assert child.wait() == 74, child.stderr.decode()
    *before, error, summary = child.events
    assert {event["event"] for event in before} <= {"image", "skipped"}
    assert (error["event"], error["exit"], error["code"], summary["event"]) == ("error", 74, "io-error", "summary")
    found = variant.look(cwd)
    rows = variant.rows.splitlines()
    assert error["id"] is not None and error["id"] not in {line["id"] for line in found.lines if "id" in line}
    assert summary["done"] + summary["skipped"] + summary["left"] == len(rows) and summary["failed"] == 0
    assert 1 <= error["line"] <= len(rows)
    assert b"the same command goes on" in child.stderr and b"Traceback" not in child.stderr
    # What was written has been told.
    told = {event["id"] for event in before}
    assert told == {line["id"] for line in found.images}
    return found


@pytest.mark.parametrize("what", ["pictures", "the journal"])
def test_a_full_disk_stops_at_once_and_loses_nothing(nursery: Nursery, tmp_path: Path, what: str) -> None:
    """No file may grow beyond a limit: the first picture that is larger, or the journal, meets it midway."""
    long = " and a star" * 150
    rows = {
        "pictures": "".join(f"a red circle{long * (i == 5)} {i} --seed {i}\n" for i in range(12)),
        "the journal": "".join(f"a red circle {i} --seed {i}\n" for i in range(40)),
    }[what]
    variant = Variant(
        options=("--batch-size", "4", "--metadata", "full" if what == "pictures" else "minimal"), rows=rows
    )
    full, room = tmp_path / "full", {"pictures": 13_000, "the journal": 11_111}[what]
    found = stopped_by_a_full_disk(variant.start(nursery, full, room=room), variant, full)
    assert len(found.pictures) - len(found.images) == (what == "the journal")
    assert 3 <= len(found.images) < len(rows.splitlines())
    assert not [p for p in full.rglob(".*.part")], "what was begun is taken away again"
    variant.finish(nursery, full)
    end = variant.look(full)
    assert set(found.pictures) <= set(end.pictures)
    assert end.by_name == variant.undisturbed(nursery, tmp_path / "undisturbed", full).by_name


@pytest.mark.parametrize(
    "point",
    [
        "in the run line",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("in the line", "in the temporary file", "before the link")),
    ],
)
def test_no_space_left_at_named_points(nursery: Nursery, tmp_path: Path, point: str) -> None:
    """The line that is written by half is cut again, and so is the next run's; its picture is taken as it is."""
    variant = Variant(options=("--batch-size", "4"), rows=prompts(10))
    child = variant.start(nursery, tmp_path, point=point, nth=1 if point == "in the run line" else 3, act="full")
    if point == "in the run line":
        assert child.wait() == 74
        (error,) = child.events
        assert error["exit"] == 74 and look(tmp_path) == Found([], [])
    else:
        found = stopped_by_a_full_disk(child, variant, tmp_path)
        assert len(found.without_line) == (point == "in the line") and len(found.images) == 2
    assert (tmp_path / "sdcli-batch" / JOURNAL).read_bytes()[-1:] in (b"\n", b"")
    variant.finish(nursery, tmp_path)
    assert len(variant.look(tmp_path).images) == 10


@pytest.mark.slow
def test_no_space_for_the_line_of_a_picture_that_was_found(nursery: Nursery, tmp_path: Path) -> None:
    variant = Variant(options=("--batch-size", "2"), rows=prompts(6))
    assert variant.start(nursery, tmp_path, point="after the link", nth=3).wait() == -9
    (left,) = variant.look(tmp_path).without_line
    child = variant.start(nursery, tmp_path, point="in the line", act="full")
    found = stopped_by_a_full_disk(child, variant, tmp_path)
    assert found.without_line == [left] and child.events[-2]["id"] == left.id
    variant.finish(nursery, tmp_path)
    assert left in variant.look(tmp_path).pictures


FULL_TMPFS = """
mount -t tmpfs -o size=240k none "$1"
cp "$2" "$1"
cd "$1"
set +e
"${@:5}" >"$3.out" 2>"$3.err"
code=$?
set -e
df -k . >&2
cp -a "$1" "$3"
mount -o remount,size=64m "$1"
"${@:5}" >"$4.out" 2>"$4.err"
cp -a "$1" "$4"
exit $code
"""


@pytest.mark.full
def test_a_small_file_system_that_fills_up(nursery: Nursery, tmp_path: Path) -> None:
    """A tmpfs of its own, where the kernel lets us mount one; made larger, it holds what an undisturbed run draws."""
    variant = Variant(options=("--batch-size", "4"), rows=prompts(40))
    disk, full, end = (tmp_path / name for name in ("disk", "full", "end"))
    disk.mkdir()
    (tmp_path / variant.file).write_text(variant.rows, encoding="utf-8")
    alone = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    paths = [str(path) for path in (disk, tmp_path / variant.file, full, end)]
    script = ["bash", "-euc", FULL_TMPFS, "bash", *paths, sys.executable, "-m", "sdcli", *variant.argv]
    done = subprocess.run([*alone, *script], capture_output=True, text=True, env=killing.environment(), check=False)
    assert done.returncode == 74, done.stderr
    *told, error, summary = [json.loads(line) for line in Path(f"{full}.out").read_bytes().splitlines()]
    found = variant.look(full)
    assert 4 <= len(found.images) < 40 and len(found.without_line) <= 1
    assert {event["id"] for event in told} == {line["id"] for line in found.images}
    assert (error["event"], error["exit"], error["code"]) == ("error", 74, "io-error") and error["id"] and error["line"]
    assert (summary["event"], summary["done"], summary["left"]) == ("summary", len(told), 40 - len(told))
    assert not [part for part in full.rglob(".*.part")]
    after = variant.look(end)
    assert found.by_name.items() <= after.by_name.items()
    assert after.by_name == variant.undisturbed(nursery, tmp_path / "undisturbed", end).by_name


# Signals


SIGNALS = [("INT", 130), pytest.param("TERM", 143, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("name", "code"), SIGNALS)
def test_a_signal_lets_what_is_in_flight_be_finished(nursery: Nursery, tmp_path: Path, name: str, code: int) -> None:
    variant = Variant(options=("--batch-size", "4"), rows=prompts(24))
    child = variant.start(nursery, tmp_path, point="before the link", nth=6, act=name)
    assert child.wait() == code
    found, (*told, summary) = variant.look(tmp_path), child.events
    assert {event["event"] for event in told} == {"image"} and summary["event"] == "summary"
    assert {event["id"] for event in told} == {line["id"] for line in found.images} == {p.id for p in found.pictures}
    # Whole packs, and no more than what was in flight: the pack that is written, the one that is drawn, and one between.
    assert len(told) in (8, 12, 16)
    assert (summary["done"], summary["left"]) == (len(told), 24 - len(told))
    said = child.stderr.decode()
    assert f"{len(told)} drawn, 0 failed, 0 skipped, {24 - len(told)} left" in said
    assert "the same command goes on where this one stopped" in said and "Traceback" not in said
    variant.finish(nursery, tmp_path)
    assert variant.look(tmp_path).by_name == variant.undisturbed(nursery, tmp_path / "undisturbed", tmp_path).by_name


@pytest.mark.parametrize(("name", "code"), SIGNALS)
def test_a_second_signal_ends_at_once(nursery: Nursery, tmp_path: Path, name: str, code: int) -> None:
    """Whatever the disk does: here it never answers."""
    variant = Variant(options=("--batch-size", "4"), rows=prompts(12))
    child = variant.start(nursery, tmp_path, point="before the link", nth=3, act="hang")
    wait_for(lambda: len(list(tmp_path.rglob("*.png"))) >= 2)
    child.send(getattr(signal, f"SIG{name}"))
    wait_for(lambda: b"once more" in child.stderr)
    time.sleep(0.3)
    assert not child.has_ended, "it waits for what is in flight"
    began = time.monotonic()
    child.send(getattr(signal, f"SIG{name}"))
    assert child.wait() == code
    print(f"{time.monotonic() - began:.3f} s")
    assert len(variant.look(tmp_path).pictures) == 2
    variant.finish(nursery, tmp_path)
    assert len(variant.look(tmp_path).images) == 12


def test_a_second_signal_ends_at_once_when_nobody_reads(nursery: Nursery, tmp_path: Path) -> None:
    """Who is in the midst of writing to a full pipe can say no more, and ends all the same."""
    variant = Variant(rows=prompts(30, seeds=True), options=("--batch-size", "2"))
    variant.finish(nursery, tmp_path)
    child = variant.start(nursery, tmp_path, reads=False)
    wait_for(lambda: b"pictures, 2 at a time" in child.stderr)
    child.send(signal.SIGINT)
    wait_for(lambda: b"once more" in child.stderr)
    time.sleep(0.3)
    assert not child.has_ended, "it waits for its reader"
    child.send(signal.SIGINT)
    assert child.wait() == 130, child.stderr.decode()


@pytest.mark.slow
def test_a_signal_while_the_model_is_loaded(nursery: Nursery, tmp_path: Path) -> None:
    """There is nothing in flight then: it ends at once, and says so."""
    variant = Variant(options=("--batch-size", "4"), rows=prompts(12))
    assert variant.start(nursery, tmp_path, point="after the line", nth=2).wait() == -9
    child = variant.start(nursery, tmp_path)
    wait_for(lambda: b"loading" in child.stderr)
    child.send(signal.SIGINT)
    assert child.wait() == 130
    assert b"Traceback" not in child.stderr
    variant.finish(nursery, tmp_path)
    assert len(variant.look(tmp_path).images) == 12


@pytest.mark.slow
def test_a_coprocess_with_a_journal_goes_on(nursery: Nursery, tmp_path: Path) -> None:
    """Each line is answered again, with the pictures of the run that was killed."""
    (tmp_path / "lines").write_text(prompts(8), encoding="utf-8")
    argv = ("batch", "-", "--stream", "-o", "out/", *QUICK)
    for point, nth in (("before the line", 3), ("in the line", 2), ("after the link", 1)):
        child = nursery.start(*argv, cwd=tmp_path, stdin=tmp_path / "lines", point=point, nth=nth)
        assert child.wait() == -9
        found = look(tmp_path, "out")
        assert len(found.without_line) == 1
    child = nursery.start(*argv, cwd=tmp_path, stdin=tmp_path / "lines")
    assert child.wait() == 0, child.stderr.decode()
    end = look(tmp_path, "out")
    assert set(found.pictures) <= set(end.pictures)
    assert [(event["event"], event["line"]) for event in child.events] == [("image", i) for i in range(1, 9)]
    assert [event["pixels"] for event in child.events] == [line["pixels"] for line in end.images]


# Two at once


def test_a_second_run_is_refused_and_disturbs_nothing(nursery: Nursery, tmp_path: Path) -> None:
    variant = Variant(options=("--batch-size", "4"), rows=prompts(12))
    first = variant.start(nursery, tmp_path, point="before the line", nth=3, act="stop")
    first.wait_until_stopped()
    before = variant.look(tmp_path)
    for more in ((), ("--fresh",), ("--batch-size", "1"), ("--retry-failed",)):
        second = variant.start(nursery, tmp_path, *more)
        assert second.wait() == 73
        (error,) = second.events
        assert error["exit"] == 73 and "another run is writing into" in error["message"]
        assert b"another run is writing into" in second.stderr
    assert variant.look(tmp_path) == before
    first.send(signal.SIGCONT)
    assert first.wait() == 0
    end = variant.look(tmp_path)
    assert set(before.pictures) <= set(end.pictures) and len(end.images) == 12
    assert [e["event"] for e in first.events] == ["image"] * 12 + ["summary"]


@pytest.mark.slow
def test_after_a_kill_the_next_run_can_start_at_once(nursery: Nursery, tmp_path: Path) -> None:
    variant = Variant(options=("--batch-size", "4"), rows=prompts(12))
    first = variant.start(nursery, tmp_path, point="before the line", nth=3, act="stop")
    first.wait_until_stopped()
    assert variant.start(nursery, tmp_path).wait() == 73
    first.send(signal.SIGKILL)
    assert first.wait() == -9
    variant.finish(nursery, tmp_path)
    assert len(variant.look(tmp_path).images) == 12


@pytest.mark.slow
def test_of_runs_that_start_together_each_job_is_drawn_by_one(nursery: Nursery, tmp_path: Path) -> None:
    variant = Variant(options=("--batch-size", "4"), rows=prompts(16))
    runs = [variant.start(nursery, tmp_path) for _ in range(6)]
    codes = {run.wait() for run in runs}  # One may begin after another's end.
    assert 0 in codes <= {0, 73}
    assert len(variant.look(tmp_path).images) == 16


# Damage


@pytest.fixture(scope="module")
def done(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a batch that is done, to be copied."""
    folder = tmp_path_factory.mktemp("done")
    DAMAGED.finish(nursery, folder)
    return folder


DAMAGED = Variant(options=("--batch-size", "2"), rows=prompts(6, seeds=True))


def cut(path: Path, others: list[Path]) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def delete(path: Path, others: list[Path]) -> None:
    path.unlink()


def edit(path: Path, others: list[Path]) -> None:
    with Image.open(path) as image:
        info = PngInfo()
        for keyword, text in image.info.items():
            info.add_text(keyword, text)
        image.putpixel((3, 4), tuple(c ^ 1 for c in image.getpixel((3, 4))))
        image.save(path, pnginfo=info)
    identity = metadata.identity(path)
    assert identity is not None


def swap(path: Path, others: list[Path]) -> None:
    path.write_bytes(others[0].read_bytes())


def strip(path: Path, others: list[Path]) -> None:
    with Image.open(path) as image:
        image.copy().save(path)


def flip(path: Path, others: list[Path]) -> None:
    """Flip a bit among the compressed pixels."""
    data = bytearray(path.read_bytes())
    data[-500] ^= 16
    path.write_bytes(data)


def empty(path: Path, others: list[Path]) -> None:
    path.write_bytes(b"")


def folder_instead(path: Path, others: list[Path]) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [cut, delete, edit, *(pytest.param(d, marks=pytest.mark.slow) for d in (swap, strip, flip, empty, folder_instead))],
    ids=lambda d: d.__name__,
)
def test_a_damaged_picture_is_drawn_again_beside_it(
    nursery: Nursery, done: Path, tmp_path: Path, damage: Callable[[Path, list[Path]], None]
) -> None:
    shutil.copytree(done, tmp_path / "run")
    before = DAMAGED.look(tmp_path / "run")
    victim, *others = before.pictures
    damage(victim.path, [p.path for p in others])
    damaged = victim.path.read_bytes() if victim.path.is_file() else None
    told = DAMAGED.finish(nursery, tmp_path / "run")
    assert [e["event"] for e in told].count("skipped") == 5
    (event,) = (e for e in told if e["event"] == "image")
    assert (event["id"], event["pixels"]) == (victim.id, victim.pixels)
    if damage is not delete:
        assert (tmp_path / "run" / event["path"]).stem == f"{victim.path.stem}-2"
    assert (victim.path.read_bytes() if victim.path.is_file() and damage is not delete else None) == damaged
    assert all((p.path.stat().st_ino, p.path.stat().st_mtime_ns) == (p.inode, p.changed) for p in others)
    again = DAMAGED.finish(nursery, tmp_path / "run")
    assert [e["event"] for e in again] == ["skipped"] * 6 + ["summary"]


def run_line(**changes: Any) -> bytes:
    line = {"schema": 1, "event": "run", "seed": 5, "batch_size": 2, "time": "2026-11-21T09:34:01.672+00:00"} | changes
    return json.dumps({key: value for key, value in line.items() if value is not ...}).encode() + b"\n"


NO_JOURNALS = {
    "text": (b"dear diary\n", 1, "not the first line"),
    "another JSON": (b'{"event": "image"}\n', 1, "not the first line"),
    "bytes": (bytes(range(256)) + b"\n", 1, "not the first line"),
    "a list": (b"[1, 2]\n", 1, "not the first line"),
    "a line that is no run's": (b'{"schema": 1, "event": "image", "id": null}\n', 1, "not the first line"),
    "no seed": (run_line(seed=...), 1, "not the first line"),
    "no pack size": (run_line(batch_size=...), 1, "not the first line"),
    "packs of none": (run_line(batch_size=0), 1, "not the first line"),
    "newer": (run_line(schema=2), 1, "schema 2"),
    "newer later": (run_line() + run_line(schema=2), 2, "schema 2"),
}


@pytest.mark.parametrize("name", NO_JOURNALS)
def test_what_is_no_journal_is_refused(sdcli: Sdcli, tmp_path: Path, name: str) -> None:
    content, line, reason = NO_JOURNALS[name]
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    journal = tmp_path / "sdcli-batch" / JOURNAL
    journal.parent.mkdir()
    journal.write_bytes(content)
    done = sdcli("batch", "prompts.txt", *QUICK, "--batch-size", "2", "--json")
    assert done.code == 65 and f"sdcli-batch/{JOURNAL}:{line}: " in done.stderr and reason in done.stderr
    assert "--fresh" in done.stderr
    assert [event["exit"] for event in done.events] == [65]
    assert journal.read_bytes() == content and os.listdir(journal.parent) == [JOURNAL]


def test_a_journal_that_cannot_be_opened_is_refused(sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    journal = tmp_path / "sdcli-batch" / JOURNAL
    journal.mkdir(parents=True)
    done = sdcli("batch", "prompts.txt", *QUICK, "--batch-size", "2")
    assert done.code == 73 and "cannot be created: Is a directory" in done.stderr
    journal.rmdir()
    os.mkfifo(journal)
    done = sdcli("batch", "prompts.txt", *QUICK, "--batch-size", "2")
    assert done.code == 73 and "Traceback" not in done.stderr


@pytest.mark.parametrize("where", ["journal", "folder"])
def test_a_journal_that_may_not_be_written_is_refused(nursery: Nursery, done: Path, tmp_path: Path, where: str) -> None:
    shutil.copytree(done, tmp_path / "run")
    before = DAMAGED.look(tmp_path / "run")
    path = tmp_path / "run" / "sdcli-batch" / (JOURNAL if where == "journal" else "")
    path.chmod(path.stat().st_mode & ~0o222)
    child = DAMAGED.start(nursery, tmp_path / "run", "--json", almighty=False)
    assert child.wait() == 73, child.stderr.decode()
    (error,) = child.events
    assert error["exit"] == 73
    assert DAMAGED.look(tmp_path / "run") == before


IMAGE = {"schema": 1, "event": "image"}
GARBAGE = {
    "bytes": bytes(range(1, 10)) + b"\xff\xfe\n",
    "no object": b"42\n",
    "an object": b"{}\n",
    "brackets": b"[" * 5000 + b"\n",
    "a blank line": b"\n",
    "an event of a later version": b'{"schema": 1, "event": "pause", "id": "x"}\n',
    "an id that is none": json.dumps(IMAGE | {"id": "12", "path": "x.png", "pixels": "0"}).encode() + b"\n",
    "a torn line": b'{"schema": 1, "event": "ima',
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_in_the_journal_costs_nothing(sdcli: Sdcli, done: Path, name: str) -> None:
    shutil.copytree(done, "run")
    os.chdir("run")
    journal = Path("sdcli-batch", JOURNAL)
    lines = journal.read_bytes().splitlines(keepends=True)
    at = len(lines) if name == "a torn line" else 3
    journal.write_bytes(b"".join((*lines[:at], GARBAGE[name], *lines[at:])))
    told = sdcli("batch", DAMAGED.file, *QUICK, "--json", *DAMAGED.options)
    assert told.code == 0 and [e["event"] for e in told.events] == ["skipped"] * 6 + ["summary"], told.stderr


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["path", "pixels", "id"])
def test_a_line_that_says_too_little_is_none(nursery: Nursery, done: Path, tmp_path: Path, missing: str) -> None:
    """Its job is drawn again, or its picture found; nothing is overwritten."""
    shutil.copytree(done, tmp_path / "run")
    before = DAMAGED.look(tmp_path / "run")
    journal = tmp_path / "run" / "sdcli-batch" / JOURNAL
    first, *lines = before.lines
    del lines[2][missing]
    journal.write_text("".join(json.dumps(line) + "\n" for line in (first, *lines)))
    told = DAMAGED.finish(nursery, tmp_path / "run")
    assert [e["event"] for e in told].count("skipped") == 5
    assert {p.path.stat().st_ino for p in before.pictures} == {p.inode for p in before.pictures}
    again = DAMAGED.finish(nursery, tmp_path / "run")
    assert [e["event"] for e in again] == ["skipped"] * 6 + ["summary"]


# Whether a picture is whole


FORMATS = ("png", "jpg", "webp", "avif")


@pytest.mark.parametrize("format", FORMATS)
def test_damage_never_passes_and_never_raises(of_each_format: dict[str, Path], tmp_path: Path, format: str) -> None:
    """A picture that is cut, or whose bytes were changed, is whole only where its pixels still are as they were."""
    path = of_each_format[format]
    data, identity = path.read_bytes(), metadata.identity(path)
    assert identity is not None
    own = identity.pixels.stored_sha256 or identity.pixels.sha256
    assert holds(path, identity.id, own) and holds(path, identity.id, None) and holds(path, None, own)
    assert not holds(path, "0" * 64, own) and not holds(path, identity.id, "0" * 64) and not holds(path, None, None)
    chance, copy, answers = random.Random(1), tmp_path / path.name, Counter[bool]()
    for kind in range(240):
        damaged = bytearray(data)
        at = chance.randrange(len(data) // 2, len(data)) if kind % 2 else chance.randrange(len(data))
        if kind % 3 == 0:
            del damaged[at:]
        elif kind % 3 == 1:
            damaged[at] ^= 1 << chance.randrange(8)
        else:
            damaged[at : at + chance.randrange(1, 200)] = chance.randbytes(chance.randrange(1, 200))
        copy.write_bytes(damaged)
        whole = holds(copy, identity.id, own)
        answers[whole] += 1
        if whole:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(copy) as image:
                    assert hashlib.sha256(image.convert("RGB").tobytes()).hexdigest() == own
    assert answers[False] > 100


@pytest.fixture(scope="module")
def of_each_format(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("formats")
    rows = "".join(json.dumps({"prompt": "a red circle", "seed": i, "format": f}) + "\n" for i, f in enumerate(FORMATS))
    told = Variant(rows=rows, file="rows.jsonl", options=("--batch-size", "4")).finish(nursery, folder)
    return {event["format"]: folder / event["path"] for event in told[:-1]}


def test_a_picture_that_cannot_be_written_at_once_keeps_its_code(
    sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast its thread is: the only picture's failure may be there before the pack is left."""
    submit = ThreadPoolExecutor.submit

    def submit_and_wait(pool: ThreadPoolExecutor, *given: Any) -> Any:
        future = submit(pool, *given)
        wait([future])
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_and_wait)
    (tmp_path / "star").touch()
    done = sdcli("generate", "star", *QUICK, "-o", "{prompt}/x.png", "--json")
    assert done.code == 73 and "Traceback" not in done.stderr
    assert [event["exit"] for event in done.events] == [73]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "none"])
def test_a_picture_that_is_wanted_twice_is_finished_twice(nursery: Nursery, tmp_path: Path, how: str) -> None:
    """One job with two outputs has two lines, and the next run has nothing to do."""
    rows = "".join(json.dumps({"prompt": "a star", "seed": 5, "output": f"sub/x{i}.png"}) + "\n" for i in range(2))
    variant = Variant(rows=rows, file="rows.jsonl", options=("--batch-size", "1", "--metadata", how))
    told = variant.finish(nursery, tmp_path)
    assert [event["event"] for event in told] == ["image", "image", "summary"]
    journal = (tmp_path / "sdcli-batch" / JOURNAL).read_bytes()
    for _ in range(2):
        told = variant.finish(nursery, tmp_path)
        assert [event["event"] for event in told] == ["skipped", "skipped", "summary"]
        assert [os.path.basename(event["path"]) for event in told[:2]] == ["x0.png", "x1.png"]
    assert (tmp_path / "sdcli-batch" / JOURNAL).read_bytes() == journal
