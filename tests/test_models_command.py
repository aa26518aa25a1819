"""`sdcli models`: what is here and what is known, fetched, looked at, deleted, named and checked."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sdcli import models, places
from sdcli.models import hub, known, remembered, weights
from sdcli.models.folders import FAMILIES
from tests import models_on_disk as disk
from tests.conftest import Outcome, Sdcli, record_of
from tests.hub import git_hash
from tests.running import Told, environment, run

Process = Callable[..., Outcome]
COMMIT = "0123456789" * 4
OTHER = "fedcba9876" * 4


def kept(home: Path, repo: str, folder: Path, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """Put a folder into the hub's cache as huggingface_hub keeps it; return its snapshot."""
    place = home / "hub" / f"models--{repo.replace('/', '--')}"
    for file in (f for f in folder.rglob("*") if f.is_file()):
        content = file.read_bytes()
        large = file.suffix not in (".json", ".txt", ".md")
        blob = place / "blobs" / (hashlib.sha256(content).hexdigest() if large else git_hash(content))
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = place / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref is not None:
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / ref).write_text(commit)
    return place / "snapshots" / commit


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the hub's cache in it."""
    (tmp_path / "hub").mkdir()
    return tmp_path


def sdcli_in(home: Path, *commands: list[str], **env: str) -> list[Told]:
    return run([["models", *c] for c in commands], home, environment(home) | env)


# The table


def test_the_table_is_complete_and_its_values_fit() -> None:
    for row in known.KNOWN:
        assert row.family in FAMILIES, "a family that sdcli draws with"
        assert row.wants("num_inference_steps") >= 1 and row.wants("guidance_scale") >= 0
        assert row.size is None or all(side % 8 == 0 for side in row.size)
        family = FAMILIES[row.family].defaults
        assert not row.defaults.items() & family.items(), "what the family wants anyway is said there"
    repos = [row.repo for row in known.KNOWN if row.repo]
    assert len(set(repos)) == len(repos) and known.ALIASES["sd15"].repo == models.DEFAULT
    assert models.find(models.ModelSpec(model="sdxl-turbo")).defaults["num_inference_steps"] == 1


# list


@pytest.fixture
def shelf(home: Path) -> Path:
    """A cache with a whole model, one that is not whole, one of another kind, and what is no model."""
    kept(home, "org/whole", disk.hollow(home / "whole"))
    kept(home, "org/whole", disk.hollow(home / "again"), OTHER, "v1")
    part = disk.hollow(home / "part")
    (part / disk.UNET).unlink()
    kept(home, "org/part", part)
    video = disk.hollow(home / "video")
    disk.edit_json(video / "model_index.json", _class_name="CogVideoXPipeline")
    kept(home, "org/video", video)
    (home / "notes").mkdir()
    (home / "notes" / "README.md").write_text("no model")
    kept(home, "org/notes", home / "notes")
    kept(home, "org/evil", disk.hollow(home / "evil"), ref="\x1b[31mred")
    (home / "hub" / "models--org--broken").mkdir()
    (home / "hub" / "datasets--org--data" / "snapshots" / COMMIT).mkdir(parents=True)
    (home / "config" / "sdcli").mkdir(parents=True)
    (home / "config" / "sdcli" / "aliases.toml").write_text('mine = "org/whole@v1"\n')
    return home


def test_what_is_here_and_what_is_known(shelf: Path) -> None:
    here, listed, table, told = sdcli_in(
        shelf, ["list", "--here", "--json"], ["list", "--known", "--json"], ["list"], ["list", "--here", "-v"]
    )
    assert [t.code for t in (here, listed, table, told)] == [0] * 4, table.err
    events = {e["name"]: e for e in here.events}
    assert set(events) == {
        "demo", "org/whole", "org/whole@v1", "org/part", "org/video", "org/evil@\x1b[31mred", "mine", "org/broken",
    }  # fmt: skip
    states = {name: e["complete"] for name, e in events.items()}
    assert (states["demo"], states["org/whole"], states["org/part"], states["org/video"]) == (True, True, False, None)
    whole = events["org/whole"]
    assert (whole["commit"], whole["refs"], whole["repo"]) == (COMMIT, ["main"], "org/whole")
    blobs = {f.resolve() for f in Path(whole["path"]).rglob("*") if f.is_file()}
    assert whole["size"] == sum(b.stat().st_size for b in blobs)
    assert whole["used"][:4].isdecimal() and whole["family"] == "stable-diffusion"
    assert events["org/video"]["family"] == "CogVideoXPipeline"
    assert (events["mine"]["kind"], events["mine"]["target"]) == ("alias", "org/whole@v1")
    assert {e["name"]: e["repo"] for e in listed.events} == {k.alias: k.repo for k in known.KNOWN if k.repo}
    assert len({tuple(e) for e in [*here.events, *listed.events]}) == 1, "every object has all the keys"
    assert all((e["schema"], e["event"]) == (1, "model") for e in here.events)
    assert any(line.split()[:1] == ["sd15"] for line in table.out)
    assert "\x1b" not in "".join(table.out) and any("\\x1b[31mred" in line for line in table.out)
    assert any("org--broken" in line for line in told.err) and not table.err


def test_where_nothing_is(home: Path) -> None:
    (home / "hub").rmdir()
    (done,) = sdcli_in(home, ["list", "--here", "--json"])
    assert [e["name"] for e in done.events] == ["demo"]


# info


def test_what_a_model_consists_of(sdcli: Sdcli) -> None:
    done = sdcli("models", "info", "demo", "--json")
    (event,) = done.events
    assert done.code == 0 and event["complete"] is True and event["licence"] == "cc0-1.0"
    parts = {p["name"]: p for p in event["components"]}
    assert {name: p["class"] for name, p in parts.items()} == {
        "text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL",
    }  # fmt: skip
    assert parts["unet"]["precision"] == "fp16" and parts["unet"]["size"] == (disk.DEMO / disk.UNET).stat().st_size
    assert event["parameters"] == models.count_parameters(models.find(models.ModelSpec(model="demo")))
    assert (event["needs"]["half"], event["needs"]["full"]) == (event["parameters"] * 2, event["parameters"] * 4)
    assert event["needs"]["device"] is None, "PyTorch was not asked"
    assert event["defaults"] == {"num_inference_steps": 25, "guidance_scale": 2.0, "width": 128, "height": 128}
    text = sdcli("models", "info", "demo").lines
    assert any(line.startswith("unet") and "5,626,180 parameters" in line for line in text)


def test_what_this_machine_would_do(sdcli: Sdcli) -> None:
    (event,) = sdcli("models", "info", "demo", "--probe", "--json").events
    needs = event["needs"]
    assert needs["device"] == "cpu" and needs["dtype"] in ("fp32", "bf16")
    assert needs["weights"] == event["parameters"] * (4 if needs["dtype"] == "fp32" else 2)


def test_other_models(home: Path) -> None:
    folder = kept(home, "org/carded", disk.hollow(home / "carded"))
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: mine-1.0\n---\n# A model\n")
    disk.configuration(disk.DEMO, home / "one")
    disk.hollow_checkpoint(home / "one.safetensors")
    carded, file, absent, unknown = sdcli_in(
        home, ["info", "org/carded", "--json"], ["info", "./one.safetensors", "--json"], ["info", "sdxl", "--json"],
        ["info", "org/nothing"],
    )  # fmt: skip
    (event,) = carded.events
    assert (event["licence"], event["commit"], event["kind"]) == ("mine-1.0", COMMIT, "hub")
    (event,) = file.events
    assert event["kind"] == "file" and [p["class"] for p in event["components"]] == ["StableDiffusionPipeline"]
    (event,) = absent.events
    assert event["here"] is False and event["components"] is None and event["download"] > 6e9
    assert unknown.code == 69 and "sdcli models pull org/nothing" in unknown.two_lines[1]


# pull and rm; the hub's answers are in test_hub.py


def test_what_is_here_is_not_fetched(home: Path) -> None:
    snapshot = kept(home, "org/whole", disk.hollow(home / "whole"))
    both, demo, gone = sdcli_in(
        home,
        ["pull", "org/whole", "demo"],
        ["pull", "demo", "--json"],
        ["pull", "demo", "org/x", "--offline", "--json"],
    )
    assert both.code == 0 and both.out == [str(snapshot), str(models.demo_folder())]
    assert demo.events[0]["fetched"] is False
    assert gone.code == 1, "some of several failed"
    assert [(e["event"], e.get("code")) for e in gone.events] == [("model", None), ("error", "model-unavailable")]
    assert "--offline" in gone.events[1]["hint"]


def test_only_what_is_named_is_deleted(shelf: Path) -> None:
    hub = shelf / "hub"
    outside = shelf / "outside.safetensors"
    outside.write_bytes(b"somebody's own")
    (hub / "models--org--whole" / "snapshots" / OTHER / "own.safetensors").symlink_to(outside)
    dry, one, listed, rest, twice = sdcli_in(
        shelf, ["rm", "org/whole@v1", "--dry-run", "--json"], ["rm", "org/whole@v1"], ["list", "--here", "--json"],
        ["rm", "org/whole", "org/part"], ["rm", "org/whole"],
    )  # fmt: skip
    assert dry.code == 0 and dry.events[0]["here"] is True
    assert (dry.events[0]["commits"], dry.events[0]["refs"]) == ([OTHER], ["v1"])
    assert one.code == 0 and "1 revision deleted" in one.out[0], one.err
    left = {e["name"]: e["complete"] for e in listed.events}
    assert left["org/whole"] is True and "org/whole@v1" not in left, "the other revision shares files with it"
    assert rest.code == 0, rest.err
    assert not (hub / "models--org--whole").exists() and not (hub / "models--org--part").exists()
    assert (hub / "models--org--video").exists() and outside.read_bytes() == b"somebody's own"
    assert twice.code == 69 and "sdcli models list" in twice.two_lines[1]


def test_bytes_that_are_said_to_be_freed_are_freed(home: Path) -> None:
    kept(home, "org/whole", disk.hollow(home / "whole"))
    blobs = list((home / "hub/models--org--whole/blobs").iterdir())
    size = sum(b.stat().st_size for b in blobs)
    dry, done = sdcli_in(home, ["rm", "org/whole", "--dry-run", "--json"], ["rm", "org/whole", "--json"])
    assert dry.events[0]["freed"] == done.events[0]["freed"] == size
    assert not any(b.exists() for b in blobs)


def blob_gone(repo: Path) -> None:
    (repo / "snapshots" / COMMIT / disk.UNET).resolve().unlink()


def snapshots_gone(repo: Path) -> None:
    shutil.rmtree(repo / "snapshots")


@pytest.mark.parametrize("breaks", [blob_gone, snapshots_gone])
def test_what_is_broken_is_listed_and_can_be_deleted(home: Path, breaks: Callable[[Path], None]) -> None:
    kept(home, "org/whole", disk.hollow(home / "whole"))
    kept(home, "org/bad", disk.hollow(home / "bad"))
    repo = home / "hub" / "models--org--bad"
    breaks(repo)
    outside = home / "own.safetensors"
    outside.write_bytes(b"somebody's own")
    (repo / "blobs" / "own").symlink_to(outside)
    size = sum(f.lstat().st_size for f in repo.rglob("*") if not f.is_dir())
    listed, table, checked, one, dry, done, rest, twice = sdcli_in(
        home, ["list", "--here", "--json"], ["list", "--here"], ["verify", "org/bad"], ["rm", "org/bad@v1"],
        ["rm", "org/bad", "--dry-run", "--json"], ["rm", "org/bad", "--json"], ["list", "--here", "--json"],
        ["rm", "org/bad"],
    )  # fmt: skip
    events = {e["name"]: e for e in listed.events}
    assert events["org/bad"]["complete"] is False and events["org/whole"]["complete"] is True
    assert any(line.startswith("org/bad ") and "not complete" in line for line in table.out)
    assert checked.code == 65 and "sdcli models rm org/bad" in checked.two_lines[1]
    assert one.code == 65 and "sdcli models rm org/bad" in one.two_lines[1], "which revision is whose can't be told"
    assert dry.events[0]["freed"] == done.events[0]["freed"] == size, done.err
    assert done.code == 0 and not repo.exists() and outside.read_bytes() == b"somebody's own"
    assert {e["name"] for e in rest.events} == {"demo", "org/whole"}
    assert twice.code == 69


def test_a_link_in_the_cache_is_not_deleted(home: Path) -> None:
    (home / "own").mkdir()
    (home / "own" / "notes").write_text("somebody's own")
    (home / "hub" / "models--org--link").symlink_to(home / "own")
    (done,) = sdcli_in(home, ["rm", "org/link"])
    assert done.code == 69 and (home / "own" / "notes").exists() and (home / "hub" / "models--org--link").is_symlink()


@pytest.mark.parametrize("name", ["demo", "folder", "one.safetensors"])
def test_nothing_outside_the_cache_is_deleted(sdcli: Sdcli, tmp_path: Path, name: str) -> None:
    disk.hollow(tmp_path / "folder")
    disk.hollow_checkpoint(tmp_path / "one.safetensors")
    before = sorted(tmp_path.rglob("*"))
    done = sdcli("models", "rm", name)
    assert done.code == 2 and "not deleted" in done.stderr and sorted(tmp_path.rglob("*")) == before


# Names of one's own


def test_a_name_of_ones_own(sdcli: Sdcli, tmp_path: Path, configuration: Path) -> None:
    disk.demo(tmp_path / "models" / "inks")
    assert sdcli("models", "alias").lines == []
    configuration.mkdir(parents=True)
    file = configuration / "aliases.toml"
    file.write_text('# mine\nold = "org/old"\n')
    done = sdcli("models", "alias", "inks", "models/inks")
    assert done.code == 0 and done.lines == [] and "inks stands for" in done.stderr
    assert file.read_text().startswith('# mine\nold = "org/old"\n')
    listed = {e["name"]: e["target"] for e in sdcli("models", "alias", "--json").events}
    assert listed == {"old": "org/old", "inks": str(tmp_path / "models" / "inks")}

    drawn = sdcli("generate", "a star", "-m", "inks", "-s", "1", "--steps", "1", "--dtype", "fp32")
    assert drawn.code == 0, drawn.stderr
    assert record_of(drawn.lines[0])["model"]["name"] == "inks"
    planned = sdcli("generate", "a star", "-m", "old", "--dry-run", "--json").events[0]
    assert planned["model"]["name"] == "old" and planned["model"]["repo"] == "org/old"

    assert "no longer for org/old" in sdcli("models", "alias", "old", "org/new@v2").stderr
    assert sdcli("models", "alias", "--rm", "old").code == 0
    assert [e["name"] for e in sdcli("models", "alias", "--json").events] == ["inks"]
    slip = sdcli("models", "alias", "--rm", "ink")
    assert slip.code == 2 and "there is no alias ink; did you mean inks?" in slip.stderr


def test_a_name_for_what_is_not_there_yet(sdcli: Sdcli, tmp_path: Path, configuration: Path) -> None:
    done = sdcli("models", "alias", "gone", "./nodir")
    assert done.code == 0 and f"nothing is at {tmp_path / 'nodir'} yet" in done.stderr
    assert [e["target"] for e in sdcli("models", "alias", "--json").events] == [str(tmp_path / "nodir")]
    (tmp_path / "nodir").mkdir()
    assert "yet" not in sdcli("models", "alias", "gone", "./nodir").stderr
    assert "yet" not in sdcli("models", "alias", "far", "org/far").stderr


def test_an_alias_is_an_object_where_json_is_wanted(sdcli: Sdcli, configuration: Path) -> None:
    (made,) = sdcli("models", "alias", "mine", "org/x", "--json").events
    assert (made["name"], made["kind"], made["target"]) == ("mine", "alias", "org/x")
    (gone,) = sdcli("models", "alias", "--rm", "mine", "--json").events
    assert (gone["name"], gone["kind"], gone["target"], gone["here"]) == ("mine", "alias", "org/x", False)
    assert set(gone) == set(made)


def test_names_that_are_given_at_once_are_all_kept(process: Process, configuration: Path) -> None:
    names = {f"n{i}" for i in range(6)}
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda name: process("models", "alias", name, "org/x"), names))
    assert [d.code for d in done] == [0] * 6, done[0].stderr
    assert set(tomllib.loads((configuration / "aliases.toml").read_text())) == names
    assert os.listdir(configuration) == ["aliases.toml"], "nothing is left beside it"


def test_who_holds_the_folder_is_waited_for(sdcli: Sdcli, configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration.mkdir(parents=True)
    monkeypatch.setattr(places, "PATIENCE", 0.2)
    holder = os.open(configuration, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    held = sdcli("models", "alias", "mine", "org/x")
    assert held.code == 73 and str(configuration) in held.stderr
    monkeypatch.setattr(places, "PATIENCE", 30)

    def end() -> None:
        (configuration / "aliases.toml").write_text("theirs = 'org/y'\n")
        os.close(holder)

    ending = threading.Timer(0.3, end)
    ending.start()
    assert sdcli("models", "alias", "mine", "org/x").code == 0
    ending.join()
    assert tomllib.loads((configuration / "aliases.toml").read_text()) == {"theirs": "org/y", "mine": "org/x"}


def test_a_name_that_is_no_utf8(sdcli: Sdcli, configuration: Path) -> None:
    done = sdcli("models", "alias", "y", "/gone/\udcff")
    assert done.code == 2 and "not UTF-8" in done.stderr and not configuration.exists()


@pytest.mark.parametrize("name", ["a" * 5000, "a/" + "b" * 5000, "/" + "c" * 5000], ids=lambda name: name[:3])
def test_a_name_that_no_system_takes(sdcli: Sdcli, configuration: Path, name: str) -> None:
    for argv in (["rm", name], ["verify", name], ["info", name], ["alias", name, "org/x"]):
        done = sdcli("models", *argv)
        assert done.code in (2, 65, 69) and "error: " in done.stderr, done.stderr[-300:]
    # One that can't be a hub's is refused; a path may be meant for later.
    assert sdcli("models", "alias", "mine", name).code in (0, 2)


def test_a_file_of_names_that_is_none(sdcli: Sdcli, configuration: Path) -> None:
    configuration.mkdir(parents=True)
    os.mkfifo(configuration / "aliases.toml")
    fifo = sdcli("models", "alias")
    assert fifo.code == 65 and "no regular file" in fifo.stderr
    (configuration / "aliases.toml").unlink()
    (configuration / "aliases.toml").write_text("#" * 2**20 + "\na = 'org/x'\n")
    large = sdcli("models", "alias")
    assert large.code == 65 and "1 MiB" in large.stderr


REFUSED = {
    "one of sdcli's": (["sd15", "org/x"], 2, "sdcli's own"),
    "a path": (["a/b", "org/x"], 2, "can't be an alias"),
    "a folder that is there": (["here", "org/x"], 2, "can't be an alias"),
    "no name": (["", "org/x"], 2, "can't be an alias"),
    "for nothing": (["mine"], 2, "TARGET"),
    "for no model": (["mine", "nothing"], 2, "no hub id, folder or file"),
    "for another alias": (["mine", "sd15"], 2, "no hub id, folder or file"),
    "an unknown one to remove": (["--rm", "mine"], 2, "no alias mine"),
    "one of sdcli's to remove": (["--rm", "demo"], 2, "sdcli's own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_are_refused(sdcli: Sdcli, tmp_path: Path, configuration: Path, name: str) -> None:
    (tmp_path / "here").mkdir()
    argv, code, words = REFUSED[name]
    done = sdcli("models", "alias", *argv)
    assert done.code == code and words in done.stderr, done.stderr
    assert not configuration.exists()


@pytest.mark.parametrize("text", ["mine = ", "mine = 3", "[mine]\na = 'b'", "mine = ''"])
def test_a_broken_file_of_names(sdcli: Sdcli, configuration: Path, text: str) -> None:
    configuration.mkdir(parents=True)
    (configuration / "aliases.toml").write_text(text)
    done = sdcli("models", "alias", "new", "org/x")
    assert done.code == 65 and "aliases.toml" in done.stderr
    assert (configuration / "aliases.toml").read_text() == text
    assert sdcli("generate", "a star", "-m", "mine", "--dry-run").code == 65
    assert sdcli("generate", "a star", "-m", "demo", "--dry-run").code == 0, "who names none is not bothered"


def test_a_name_whose_folder_is_gone(sdcli: Sdcli, configuration: Path) -> None:
    configuration.mkdir(parents=True)
    (configuration / "aliases.toml").write_text('mine = "/gone/model"\n')
    done = sdcli("generate", "a star", "-m", "mine", "--dry-run")
    assert done.code == 66 and "/gone/model" in done.stderr and "models alias --rm mine" in done.stderr
    misspelt = sdcli("generate", "a star", "-m", "minne", "--dry-run")
    assert misspelt.code == 69 and "did you mean mine" in misspelt.stderr


# verify, and hashes that are remembered


def test_files_are_read_again(home: Path) -> None:
    snapshot = kept(home, "org/whole", disk.demo(home / "whole"))
    good, as_json = sdcli_in(home, ["verify", "org/whole"], ["verify", "org/whole", "--json"])
    assert good.code == 0 and all(line.startswith("same ") for line in good.out)
    (event,) = as_json.events
    assert event["kind"] == "hub"
    assert event["complete"] is True and {f["name"] for f in event["files"]} == {
        f.relative_to(snapshot).as_posix() for f in snapshot.rglob("*") if f.is_file()
    }
    blob = (snapshot / disk.UNET).resolve()
    with blob.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\0\0\0\1")
    bad, text = sdcli_in(home, ["verify", "org/whole", "--json"], ["verify", "org/whole", "demo"])
    assert (bad.code, text.code) == (1, 1)
    assert [f["name"] for f in bad.events[0]["files"] if f["same"] is False] == [disk.UNET]
    assert any(line == f"DIFFERS  {disk.UNET}" for line in text.out)
    assert disk.UNET in text.two_lines[0] and "sdcli models pull org/whole" in text.two_lines[1]


def test_what_nothing_vouches_for(sdcli: Sdcli, tmp_path: Path) -> None:
    disk.hollow(tmp_path / "folder")
    for name, kind in (("demo", "demo"), ("./folder", "folder")):
        assert sdcli("models", "verify", name, "--json").events[0]["kind"] == kind
        done = sdcli("models", "verify", name)
        assert done.code == 0 and "nothing says what its files should be" in done.lines[0]
    assert sdcli("models", "verify", "org/nothing").code == 69


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Which files were read for their hashes, with a table of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found: list[Path] = []
    real = weights.digest
    monkeypatch.setattr(weights, "digest", lambda file: (found.append(file), real(file))[1])
    return found


def sha256_of(file: Path) -> str:
    """Ask as a new process does, which has nothing in memory."""
    weights._sha256_of.cache_clear()
    return models.sha256_of(file)


def old(file: Path, content: bytes) -> Path:
    """Write a file that has not been touched for a minute."""
    file.write_bytes(content)
    os.utime(file, (time.time() - 60,) * 2)
    return file


def test_no_file_is_read_twice(tmp_path: Path, reads: list[Path]) -> None:
    file = old(tmp_path / "a.safetensors", b"weights")
    first = hashlib.sha256(b"weights").hexdigest()
    assert [sha256_of(file) for _ in range(3)] == [first] * 3 and reads == [file]
    # The same length and the same time: another inode.
    other = old(tmp_path / "b.safetensors", b"WEIGHTS")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(other, file)
    assert sha256_of(file) == hashlib.sha256(b"WEIGHTS").hexdigest() and len(reads) == 2
    # What was written just now may be written again within the clock's tick.
    file.write_bytes(b"young")
    assert sha256_of(file) == sha256_of(file) and len(reads) == 4


@pytest.mark.parametrize("content", [b"no table", b"SQLite format 3\0" + b"x" * 4000, b""])
def test_a_broken_table_is_made_anew(tmp_path: Path, reads: list[Path], content: bytes) -> None:
    file = old(tmp_path / "a.safetensors", b"weights")
    table = tmp_path / "cache" / "sdcli" / remembered.FILE
    table.parent.mkdir(parents=True)
    table.write_bytes(content)
    assert sha256_of(file) == sha256_of(file) and len(reads) <= 2
    assert sha256_of(file) and len(reads) <= 2, "it is remembered again"


def test_a_table_that_can_not_be_written_is_done_without(tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "cache").write_text("in the way")
    file = old(tmp_path / "a.safetensors", b"weights")
    assert sha256_of(file) == sha256_of(file) and len(reads) == 2


def test_the_table_does_not_grow_for_ever(tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST", 3)
    files = [old(tmp_path / f"{i}.safetensors", b"%d" % i) for i in range(5)]
    for file in files:
        sha256_of(file)
    reads.clear()
    for file in reversed(files):
        sha256_of(file)
    assert reads[:2] == [files[1], files[0]], "the last three were still known"


def test_several_at_once(tmp_path: Path, reads: list[Path]) -> None:
    files = [old(tmp_path / f"{i}.safetensors", b"%d" % i) for i in range(20)]
    code = "import sys; from pathlib import Path; from sdcli import models; [models.sha256_of(Path(f)) for f in sys.argv[1:]]"

    def one(_: int) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *map(str, files)], capture_output=True, timeout=60
        )

    with ThreadPoolExecutor(4) as pool:
        assert all((done.returncode, done.stderr) == (0, b"") for done in pool.map(one, range(4)))
    assert [sha256_of(f) for f in files] == [hashlib.sha256(b"%d" % i).hexdigest() for i in range(20)] and not reads


# No connection

# A process in which whoever wants a connection is written down, and gets none.
GUARDED = """
import socket, sys
def never(*args, **kwargs):
    with open("attempts", "a") as file:
        file.write(repr(args) + "\\n")
    raise OSError("guarded")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = never
sys.argv[0] = "sdcli"
from sdcli.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def guarded(home: Path, *argv: str, wrapper: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    (home / "attempts").unlink(missing_ok=True)
    # The real address: nothing that is tried is to look like the tests' own.
    own = {k: v for k, v in environment(home).items() if k != "HF_ENDPOINT"} | env
    return subprocess.run(
        [*wrapper, sys.executable, "-c", GUARDED, *argv], capture_output=True, text=True, cwd=home, env=own, timeout=120
    )


OFFLINE: list[tuple[list[str], dict[str, str]]] = [([], {"HF_HUB_OFFLINE": "1"}), (["--offline"], {})]


@pytest.mark.parametrize(("flags", "env"), OFFLINE, ids=lambda v: str(v))
def test_offline_makes_no_connection(home: Path, flags: list[str], env: dict[str, str]) -> None:
    kept(home, "org/whole", disk.demo(home / "whole"))
    short = ["generate", "a star", "--steps", "1", "-s", "1", "--dtype", "fp32", *flags]
    drawn = guarded(home, *short, "-m", "org/whole", **env)
    assert drawn.returncode == 0 and not (home / "attempts").exists(), drawn.stderr
    missing = guarded(home, *short, "-m", "org/missing", **env)
    assert missing.returncode == 69 and not (home / "attempts").exists(), missing.stderr
    assert "offline" in missing.stderr and "--model demo" in missing.stderr


@pytest.mark.parametrize("said", [None, "", "0", "off", "no", "false", "FALSE"])
def test_the_guard_sees_who_wants_a_connection(home: Path, said: str | None) -> None:
    env = {} if said is None else {"HF_HUB_OFFLINE": said}
    offline = guarded(home, "models", "pull", "org/missing", "--offline", **env)
    assert offline.returncode == 69 and not (home / "attempts").exists()
    if said in (None, "0"):
        online = guarded(home, "models", "pull", "org/missing", **env)
        assert online.returncode == 69 and (home / "attempts").exists()


@pytest.mark.parametrize(("variable", "said"), [("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")])
def test_what_the_environment_says_is_put_back(monkeypatch: pytest.MonkeyPatch, variable: str, said: str) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(variable, said)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", said == "1")
    for wanted in (True, True, False, False):
        hub.offline(wanted)
        assert (os.environ.get("HF_HUB_OFFLINE") == "1") is wanted
        assert constants.HF_HUB_OFFLINE is (wanted or said == "1")
    assert os.environ[variable] == said


@pytest.mark.outside
def test_where_there_is_no_network_at_all(home: Path) -> None:
    """In a network namespace without so much as a loopback that is up; where the kernel makes none, under the guard alone."""
    kept(home, "org/whole", disk.demo(home / "whole"))
    short = ["generate", "a star", "--steps", "1", "-s", "1", "--dtype", "fp32"]
    ways = (("unshare", "--user", "--map-root-user", "--net"), ("unshare", "--net"))
    alone = next((way for way in ways if subprocess.run([*way, "true"], capture_output=True).returncode == 0), ())
    drawn = guarded(home, *short, "-m", "org/whole", wrapper=alone)
    assert drawn.returncode == 0 and not (home / "attempts").exists(), drawn.stderr


# Help


def test_help_asks_nobody(probe: Callable[[str], Any]) -> None:
    code = "import sys; from sdcli.cli.main import main; main(sys.argv[1:]); print(*sys.modules)"
    done = probe(code.replace("sys.argv[1:]", "['models', '--help']"))
    assert done.returncode == 0 and "Examples:" in done.stdout
    assert not set(done.stdout.split()) & {"torch", "huggingface_hub", "diffusers", "numpy"}


@pytest.mark.parametrize("command", ["list", "pull", "info", "rm", "alias", "verify"])
def test_each_command_opens_with_examples(sdcli: Sdcli, command: str) -> None:
    done = sdcli("models", command, "-h")
    assert done.code == 0 and f"sdcli models {command}" in done.stdout.decode()
