"""The hub, on loopback, with huggingface_hub's own client: what is asked of it, and what people are told when it fails.

The table of all cases is printed: `pytest -s tests/test_hub.py -k table`.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sdcli import models
from tests import hub as hubs
from tests import models_on_disk as disk
from tests.hub import Fault, Hub, Repo
from tests.running import Told, environment, run

# What huggingface_hub writes at once, in bytes.
CHUNK = 10 * 2**20
WEIGHTS = (disk.TEXT, disk.UNET, disk.VAE)


class Shop:
    """A process that runs one command line after the other against a hub."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.environment = environment(home) | {"HF_ENDPOINT": hub.url}

    def run(self, *commands: list[str], **env: str) -> list[Told]:
        self.hub.asked.clear()
        self.hub.parts.clear()
        return run(commands, self.home, self.environment | env)


@dataclass(frozen=True)
class Case:
    """A repository that misbehaves, the command, and what is to come of it: exit code, words, content that was asked for."""

    make: Callable[[Path], Repo]
    code: int
    words: tuple[str, ...]
    content: set[str] | None = None
    command: tuple[str, ...] = ("models", "pull")


def hollow(change: Callable[[Path], object] = lambda folder: None, **faults: Any) -> Callable[[Path], Repo]:
    def make(to: Path) -> Repo:
        folder = with_distinct_weights(disk.hollow(to))
        change(folder)
        return Repo(folder, **faults)

    return make


def with_other_content(name: str) -> Callable[[Path], Repo]:
    """A file that comes with another content, of its length, the first time."""

    def make(to: Path) -> Repo:
        repo = hollow()(to)
        repo.wrong[name] = bytes((to / name).stat().st_size)
        return repo

    return make


def with_distinct_weights(folder: Path) -> Path:
    """Files of one content are one file in the hub's cache."""
    for name in WEIGHTS:
        save_file({}, folder / name, {"name": name})
    return folder


def cut_off(to: Path) -> Repo:
    """Weights whose connection breaks off halfway, once; huggingface_hub goes on from the last ten megabytes."""
    repo = hollow(cuts={disk.UNET: 1})(to)
    save_file({"hole": np.zeros(3 * CHUNK // 4, "float32")}, to / disk.UNET)
    return repo


def texts() -> set[str]:
    return {f.relative_to(disk.DEMO).as_posix() for f in disk.DEMO.rglob("*") if f.suffix in (".json", ".txt")}


def decoys(to: Path) -> Repo:
    """What a repository also has, and what is never asked for."""
    folder = with_distinct_weights(disk.hollow(to))
    for name in (
        "README.md", "model.ckpt", "model.safetensors", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.onnx", "safety_checker/model.safetensors",
    ):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never asked for")
    return Repo(folder)


def pickled(folder: Path) -> None:
    for name in WEIGHTS:
        (folder / name).rename((folder / name).with_suffix(".bin"))


def own_code(folder: Path) -> None:
    (folder / "unet" / "my_unet.py").write_text("raise SystemExit('ran')")
    disk.edit_json(folder / "model_index.json", unet=["my_unet", "MyUNet"])


ALL = texts() | set(WEIGHTS)
CASES: dict[str, Case] = {
    "a whole pull": Case(decoys, 0, ("downloading org/a-whole-pull",), ALL),
    "cut off midway": Case(cut_off, 0, ("the connection broke off", "from where it was"), ALL),
    "gated, not logged in": Case(
        hollow(error=(401, "GatedRepo")), 77, ("is gated", "ask for access", "hf auth login"), set()
    ),
    "gated, no access": Case(hollow(error=(403, "GatedRepo")), 77, ("is gated", "hf auth login"), set()),
    "private, or not there": Case(hollow(error=(401, "RepoNotFound")), 69, ("private", "check the name"), set()),
    "not there": Case(hollow(error=(404, "RepoNotFound")), 69, ("the hub has no", "check the name"), set()),
    "busy, for a moment": Case(
        hollow(faults=[Fault("", 429, retry_after=1)]), 0, ("the hub asks to wait 1 s (HTTP 429)",), ALL
    ),
    "busy in the midst": Case(
        hollow(faults=[Fault(disk.VAE, 429, retry_after=0)]), 0, ("the hub asks to wait 0 s (HTTP 429)",), ALL
    ),
    "busy for an hour": Case(
        hollow(faults=[Fault("", 429, times=99, retry_after=3600)]), 69, ("asks to wait 3600 s (HTTP 429)", "run it again"),
        set(),
    ),
    "busy for an hour, in the midst": Case(
        hollow(faults=[Fault(disk.VAE, 429, times=99, retry_after=3600)]), 69, ("asks to wait 3600 s", "are kept"), None,
    ),
    "500 from the start": Case(hollow(error=(500, "")), 69, ("HTTP 500", "try later"), set()),
    "503 for a file, once": Case(hollow(faults=[Fault(disk.VAE, 503, method="HEAD")]), 0, (), ALL),
    "500 for a file": Case(hollow(faults=[Fault(disk.VAE, 500, times=99)]), 69, ("HTTP 500", "are kept"), None),
    "another hash": Case(
        with_other_content(disk.UNET), 69, ("not what the hub has (another hash)", "HF_ENDPOINT", "are kept"), ALL,
    ),
    "another hash of a small file": Case(
        with_other_content("unet/config.json"), 69, ("config.json is not what the hub has",), ALL,
    ),
    "another size": Case(hollow(wrong={disk.UNET: b"short"}), 69, ("was not downloaded", "another size"), None),
    "pickles only": Case(hollow(pickled), 65, ("pickles only",), {"model_index.json"}),
    "code of its own": Case(
        hollow(own_code), 65, ("org/code-of-its-own brings code of its own", "never run"), {"model_index.json"},
    ),
    "no room": Case(hollow(sizes={disk.UNET: 10**15}), 74, ("takes 1000000.00 GB", "are free", "HF_HOME"), {"model_index.json"}),
}  # fmt: skip


def repo_of(case: str) -> str:
    return "org/" + case.replace(", ", "-").replace(" ", "-")


# What downloads have left in the cache that were killed two hours ago and just now, with the seconds since.
LEFT = {"abc.0123.incomplete": 7200, "abc.4567.incomplete": 1}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("hub")
    repos = {repo_of(name): case.make(root / str(i)) for i, (name, case) in enumerate(CASES.items())}
    for name, age in LEFT.items():
        file = root / "home" / "hub" / "models--org--a-whole-pull" / "blobs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half of it")
        os.utime(file, (time.time() - age,) * 2)
    with hubs.serving() as hub:
        hub.repos.update(repos)
        yield Shop(hub, root / "home")


@dataclass(frozen=True)
class Day:
    """All cases, with what the hub was asked for: content by repository, requests by method and path, parts of files."""

    told: dict[str, Told]
    content: dict[str, set[str]]
    asked: list[tuple[str, str]]
    parts: list[tuple[str, int]]


@pytest.fixture(scope="module")
def day(shop: Shop) -> Day:
    """Each case, in its own repository, one after the other in one process."""
    done = shop.run(*([*case.command, repo_of(name)] for name, case in CASES.items()))
    content = {name: shop.hub.downloaded(repo_of(name)) for name in CASES}
    return Day(dict(zip(CASES, done, strict=True)), content, list(shop.hub.asked), list(shop.hub.parts))


@pytest.mark.parametrize("name", CASES)
def test_what_people_are_told(day: Day, name: str) -> None:
    case, done = CASES[name], day.told[name]
    said = "\n".join(done.err)
    assert done.code == case.code, said
    assert all(word in said for word in case.words), said
    assert "Traceback" not in said
    if case.code:
        assert done.two_lines[0].startswith("error: ") and done.two_lines[1].startswith("  hint: ") and not done.out
    else:
        (folder,) = done.out
        found = {f.relative_to(folder).as_posix() for f in Path(folder).rglob("*") if f.is_file()}
        assert found == ALL, "what is loaded and nothing else"
    if case.content is not None:
        assert day.content[name] == case.content
    # Nobody is kept waiting for long.
    assert done.seconds < 15


def test_a_connection_that_broke_off_goes_on_where_it_was(day: Day) -> None:
    assert day.parts == [(disk.UNET, CHUNK)]
    gets = [p for m, p in day.asked if m == "GET" and p.startswith(f"/{repo_of('cut off midway')}/resolve/")]
    assert len(gets) == len(ALL) + 1, "nothing is fetched twice but what broke off"


def test_what_killed_downloads_left_is_swept(shop: Shop, day: Day) -> None:
    left = {f.name for f in shop.home.glob("hub/models--org--a-whole-pull/blobs/*.incomplete")}
    assert left == {"abc.4567.incomplete"}, "what may still be written to stays"


def test_what_came_wrong_is_fetched_again(shop: Shop, day: Day) -> None:
    again = ["models", "pull", repo_of("another hash")]
    (done,) = shop.run(again)
    assert done.code == 0, done.err
    assert shop.hub.downloaded(repo_of("another hash")) == {disk.UNET}, "and nothing else"


@pytest.fixture(scope="module")
def gone(shop: Shop, day: Day) -> dict[str, Told]:
    """What comes of it when the hub is there no more."""
    name = repo_of("a whole pull")
    commands = {
        "the hub gone, pulled again": ["models", "pull", name],
        "the hub gone, planned": ["generate", "a star", "--model", name, "--dry-run", "--json"],
        "the hub gone, looked at": ["models", "info", name],
        "the hub gone, another": ["models", "pull", "org/other"],
    }
    done = shop.run(*commands.values(), HF_ENDPOINT="http://127.0.0.1:9")
    assert shop.hub.asked == []
    return dict(zip(commands, done, strict=True))


def test_the_table_of_all_cases(day: Day, gone: dict[str, Told]) -> None:
    print()
    for name, done in (day.told | gone).items():
        print(f"{name:<32} exit {done.code:<3} {done.seconds:4.1f} s")
        for line in done.two_lines:
            print(f"    {line}")
    assert len(day.told) == len(CASES)


def test_only_the_model_is_asked_for(tmp_path: Path) -> None:
    """huggingface_hub would ask for a list of programs as well, to tell the hub in which of them it runs."""
    with hubs.serving(org__model=hollow()(tmp_path / "model")) as hub:
        shop = Shop(hub, tmp_path)
        del shop.environment["HF_HUB_DISABLE_TELEMETRY"]
        (pulled,) = shop.run(["models", "pull", "org/model"])
    assert pulled.code == 0, pulled.err
    assert {path.partition("/org/model")[0] for _, path in hub.asked} == {"", "/api/models"}, hub.asked
    assert all("/org/model" in path for _, path in hub.asked)
    assert not [agent for agent in hub.agents if "torch/" in agent or "agent/" in agent]


@pytest.mark.slow
def test_a_pull_that_was_killed_goes_on(tmp_path: Path) -> None:
    """Files that were whole are kept; of the one that was not, huggingface_hub keeps nothing."""
    repo = Repo(disk.demo(tmp_path / "repo"), drop=disk.UNET)
    (tmp_path / "home").mkdir()
    with hubs.serving(org__model=repo) as hub:
        shop = Shop(hub, tmp_path / "home")
        command = [sys.executable, "-m", "sdcli", "models", "pull", "org/model"]
        running = subprocess.Popen(command, env=shop.environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not repo.dropped and time.monotonic() < until:
            time.sleep(0.02)
        # The one may be dropped before others are whole.
        while len(_here(tmp_path / "home")) <= 3 and running.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        running.kill()
        running.wait()
        had = _here(tmp_path / "home")
        assert disk.UNET not in had and len(had) > 3
        repo.drop, repo.dropped = None, False
        (done,) = shop.run(["models", "pull", "org/model"])
        assert done.code == 0, done.err
        assert not had & hub.downloaded("org/model") and disk.UNET in hub.downloaded("org/model")
        (listed,) = shop.run(["models", "verify", "org/model"])
        assert listed.code == 0 and hub.asked == []


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "bars"), [([], True), (["-q"], False)], ids=["bars", "quiet"])
def test_a_bar_is_drawn_on_a_terminal(tmp_path: Path, flags: list[str], bars: bool) -> None:
    with hubs.serving(org__model=Repo(disk.demo(tmp_path / "repo"))) as hub:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        running = subprocess.Popen(
            [sys.executable, "-m", "sdcli", "models", "pull", "org/model", *flags], cwd=tmp_path, stdout=subprocess.PIPE,
            stderr=theirs, env=environment(tmp_path) | {"HF_ENDPOINT": hub.url, "TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)
        drawn = b""
        with suppress(OSError):  # how a terminal ends
            while piece := os.read(ours, 2**16):
                drawn += piece
        os.close(ours)
        assert running.stdout is not None
        with running.stdout as stdout:
            assert Path(stdout.read().decode().strip()).is_dir()
        assert running.wait(60) == 0
    assert (b"12/12" in drawn) is bars and bool(drawn) is bars


def _here(home: Path) -> set[str]:
    found = home.glob("hub/models--org--model/snapshots/*/**/*")
    return {"/".join(f.parts[f.parts.index("snapshots") + 2 :]) for f in found if f.is_file()}


def test_the_hub_is_gone_after_the_pull(day: Day, gone: dict[str, Told]) -> None:
    """What is here in whole asks nobody; what is not, says so."""
    pulled, planned, looked, other = gone.values()
    assert (pulled.code, pulled.out) == (0, day.told["a whole pull"].out) and "is here already" in pulled.err[0]
    assert planned.code == 0 and planned.events[0]["model"]["repo"] == repo_of("a whole pull")
    assert looked.code == 0
    assert other.code == 69 and "can't be reached" in other.two_lines[0]


def test_of_what_a_large_repository_has_only_what_is_loaded_is_wanted() -> None:
    """A listing like that of FLUX.1-schnell: weights in pieces, two encoders, and all of it once more in single files."""
    pieces = [f"transformer/diffusion_pytorch_model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    wanted = [
        "model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", *pieces,
        "transformer/diffusion_pytorch_model.safetensors.index.json", "text_encoder/config.json",
        "text_encoder/model.safetensors", "text_encoder_2/config.json", "text_encoder_2/model-00001-of-00002.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors", "text_encoder_2/model.safetensors.index.json",
        "tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer_2/spiece.model", "tokenizer_2/tokenizer.json",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    decoys = [
        "README.md", "flux1-schnell.safetensors", "ae.safetensors", "schnell_grid.jpeg", "text_encoder/pytorch_model.bin",
        "text_encoder/model.fp16.safetensors", "image_encoder/model.safetensors", "vae/extra.safetensors",
    ]  # fmt: skip
    parts = {
        "scheduler": "FlowMatchEulerDiscreteScheduler", "text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast", "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL", "image_encoder": "CLIPVisionModel",
    }  # fmt: skip
    model = models.Model(name="m", repo="org/m", components={name: ("diffusers", kind) for name, kind in parts.items()})
    found = models.wanted_files([*wanted, *decoys], model, safety_checker=False)
    assert sorted(found) == sorted(wanted)
