"""Where weights come from: folders, files, a hub, its cache; and what is refused, before torch is imported."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sdcli import models
from sdcli.models.weights import by_variant
from sdcli.record import ModelRecord, job_id
from sdcli.request import GenerationRequest
from tests import hub as hubs
from tests import models_on_disk as disk
from tests.conftest import Outcome, Sdcli, pixels, record_of
from tests.hub import Hub, Repo

SHORT = ("generate", "a red circle", "--steps", "2", "--seed", "1", "--dtype", "fp32", "--json")
Make = Callable[[Path], list[str]]
Process = Callable[..., Outcome]

RUN_ALL = """
import json, sys, time
from sdcli.cli.main import main
for argv in json.loads(sys.argv[1]):
    began = time.monotonic()
    code = main(argv)
    print(json.dumps({"code": code, "torch": "torch" in sys.modules, "seconds": time.monotonic() - began}), flush=True)
"""


def run_all(commands: list[list[str]], folder: Path, **env: str) -> list[dict[str, Any]]:
    """Run command lines that all fail, one after the other in one process; return each one's error event and ending."""
    own = {"HF_HOME": str(folder / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps([[*SHORT, *c] for c in commands])],
        capture_output=True, text=True, cwd=folder, env={**os.environ, **own, **env}, timeout=120, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2 * len(commands), done.stderr
    return [event | ending for event, ending in zip(lines[::2], lines[1::2], strict=True)]


def refused(found: dict[str, Any], code: int, words: tuple[str, ...]) -> None:
    assert (found["code"], found["event"], found["torch"]) == (code, "error", False), found
    assert found["seconds"] < 3, found
    text = f"{found['message']} | {found['hint']}"
    assert found["hint"] and all(word in text for word in words), text


# What is refused by a look at it


def model(change: Callable[[Path], object]) -> Make:
    """A hollow model's folder, changed."""

    def make(place: Path) -> list[str]:
        change(disk.hollow(place / "model"))
        return ["--model", str(place / "model")]

    return make


def file(name: str, content: bytes) -> Make:
    def make(place: Path) -> list[str]:
        (place / name).write_bytes(content)
        return ["--model", str(place / name)]

    return make


def headed(name: str, tensor: dict[str, Any]) -> Make:
    """A safetensors file without data, and what its header says of its one tensor."""
    header = json.dumps({"model.diffusion_model.x": tensor}).encode()
    return file(name, len(header).to_bytes(8, "little") + header)


def single(config: bool = True, **more: Any) -> Make:
    """A hollow checkpoint in one file, with a configuration beside it."""

    def make(place: Path) -> list[str]:
        if config:
            disk.configuration(disk.DEMO, place / "one")
        return ["--model", str(disk.hollow_checkpoint(place / "one.safetensors", **more))]

    return make


def vae(change: Callable[[Path], object]) -> Make:
    def make(place: Path) -> list[str]:
        change(disk.hollow(place / "model") / "vae")
        return ["--model", "demo", "--vae", str(place / "model" / "vae")]

    return make


def fifo(place: Path) -> list[str]:
    # Whoever opens it waits for ever.
    os.mkfifo(place / "model.ckpt")
    return ["--model", str(place / "model.ckpt")]


def own_code(folder: Path) -> None:
    (folder / "unet" / "my_unet.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    disk.edit_json(folder / "model_index.json", unet=["my_unet", "MyUNet"])


def other_vae_file(place: Path) -> list[str]:
    name = disk.hollow_checkpoint(place / "v.safetensors", leave_out="first_stage_model")
    return ["--model", "demo", "--vae", str(name)]


def cut_unet(folder: Path) -> None:
    disk.edit_tensors(folder / disk.UNET, lambda _: {"conv_in.weight": np.zeros(1000)})
    disk.cut(folder / disk.UNET)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
LOOKED_AT: dict[str, tuple[Make, int, tuple[str, ...]]] = {
    "no such folder": (lambda _: ["--model", "not/there/"], 66, ("no model at not/there/", "--model demo")),
    "no such file": (lambda _: ["--model", "gone.safetensors"], 66, ("gone.safetensors",)),
    "no such home": (lambda _: ["--model", "~nobody-of-this-name/model"], 66, ("~nobody",)),
    "a misspelt alias": (lambda _: ["--model", "dmeo"], 69, ("did you mean demo?", "--model demo")),
    "no name": (lambda _: ["--model", ""], 69, ("--model demo",)),
    "no hub's name": (lambda _: ["--model", "some one/model"], 69, ("some one/model", "--model demo")),
    "a name that is too long": (lambda _: ["--model", "/" + "long" * 100], 65, ("longlong",)),
    "a pickle": (fifo, 65, ("pickle", ".safetensors")),
    "an empty folder": (lambda p: ["--model", str(p)], 65, ("model_index.json",)),
    "a garbled index": (model(lambda f: (f / "model_index.json").write_text("{")), 65, ("model_index.json",)),
    "an index that is a list": (model(lambda f: (f / "model_index.json").write_text("[]")), 65, ("model_index.json",)),
    "an index of bytes": (model(lambda f: (f / "model_index.json").write_bytes(b"\xff\xfe")), 65, ("model_index.json",)),
    "another family": (
        model(lambda f: disk.edit_json(f / "model_index.json", _class_name="StableDiffusionUpscalePipeline")),
        65,
        ("StableDiffusionUpscalePipeline", "did you mean StableDiffusion"),
    ),
    "a custom pipeline": (
        model(lambda f: disk.edit_json(f / "model_index.json", _class_name=["my_pipeline", "My"])), 65, ("my_pipeline",),
    ),
    "a component with code": (model(own_code), 65, ("code of its own", "my_unet", "never run")),
    "no tokenizer": (model(lambda f: [t.unlink() for t in (f / "tokenizer").iterdir()]), 65, ("tokenizer",)),
    "no scheduler": (model(lambda f: (f / "scheduler/scheduler_config.json").unlink()), 65, ("scheduler_config.json",)),
    "no weights": (model(lambda f: (f / disk.UNET).unlink()), 65, ("unet", "no .safetensors")),
    "pickles only": (
        model(lambda f: (f / disk.UNET).rename((f / disk.UNET).with_suffix(".bin"))), 65, ("unet", "pickles only"),
    ),
    "cut weights": (model(cut_unet), 65, ("truncated",)),
    "a pointer of Git LFS": (model(lambda f: (f / disk.VAE).write_bytes(POINTER)), 65, ("git lfs pull",)),
    "a web page for weights": (model(lambda f: (f / disk.VAE).write_bytes(b"<!DOCTYPE html>" * 9)), 65, ("no safetensors",)),
    "nothing for weights": (model(lambda f: (f / disk.VAE).write_bytes(b"")), 65, ("no safetensors",)),
    "precisions that don't match": (
        model(lambda f: (f / disk.UNET).rename((f / disk.UNET).with_suffix(".fp16.safetensors"))), 65, ("precision",),
    ),
    "a piece missing": (
        model(lambda f: (f / disk.UNET).rename(f / "unet/diffusion_pytorch_model-00001-of-00002.safetensors")), 65, ("unet",),
    ),
    "a size that is no number": (
        model(lambda f: disk.edit_json(f / "unet/config.json", sample_size="large")), 65, ("unet/config.json", "sample_size"),
    ),
    "a file of another kind": (file("model.gguf", b"GGUF"), 65, ("model.gguf",)),
    "a cut file": (file("cut.safetensors", b"\x99" * 7), 65, ("cut.safetensors",)),
    "a header that is too long": (file("long.safetensors", b"\xff" * 99), 65, ("long.safetensors",)),
    **{
        f"a file whose {key} is {value!r}": (
            headed("lies.safetensors", {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} | {key: value}),
            65, ("lies.safetensors", "no safetensors"),
        )
        for key, value in [
            ("shape", ["x"]), ("shape", 5), ("shape", [-1]), ("shape", None), ("shape", [1.5]), ("dtype", ["F32"]),
            ("data_offsets", [0, "0"]), ("data_offsets", [0, 0.0]),
        ]
    },
    "a file that lies": (file("lies.safetensors", b"\x02" + b"\0" * 7 + b"[]"), 65, ("lies.safetensors",)),
    "a checkpoint of another family": (
        single(more="conditioner.embedders.1.model.ln_final.weight"), 65, ("another model's", "SDXL"),
    ),
    "a file that is no checkpoint": (single(leave_out="model."), 65, ("no Stable Diffusion, SDXL",)),
    "an inpainting checkpoint": (single(channels=9), 65, ("inpainting",)),
    "a checkpoint without text encoder": (single(leave_out="cond_stage_model"), 65, ("text encoder",)),
    "a checkpoint without autoencoder": (single(leave_out="first_stage_model"), 65, ("--vae",)),
    "a checkpoint without configuration": (single(config=False), 65, ("configuration", "one/", "model_index.json")),
    "another checkpoint's configuration": (single(width=1024), 65, ("another model's",)),
    "a checkpoint of 1.x alone": (single(config=False, width=768), 69, ("configuration", "one/", "--model demo")),
    "no safety checker": (lambda _: ["--model", "demo", "--safety-checker"], 2, ("no safety checker",)),
    "no safety checker in a file": (lambda p: [*single()(p), "--safety-checker"], 2, ("no safety checker",)),
    "no such autoencoder": (lambda _: ["--model", "demo", "--vae", "./gone"], 66, ("no autoencoder at ./gone",)),
    "a misspelt autoencoder": (lambda _: ["--model", "demo", "--vae", "gone"], 69, ("gone", "hub id")),
    "a pickled autoencoder": (lambda _: ["--model", "demo", "--vae", "vae.pt"], 65, ("pickle",)),
    "a file that is no autoencoder": (other_vae_file, 65, ("no autoencoder",)),
    "an autoencoder without configuration": (vae(lambda f: (f / "config.json").unlink()), 65, ("config.json",)),
    "an autoencoder of another kind": (
        vae(lambda f: disk.edit_json(f / "config.json", _class_name="AutoencoderTiny")), 65, ("AutoencoderTiny",),
    ),
    "an autoencoder of other latents": (
        vae(lambda f: disk.edit_json(f / "config.json", latent_channels=16)), 65, ("16", "channels"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """All of LOOKED_AT in one process."""
    root = tmp_path_factory.mktemp("looked-at")
    commands = []
    for number, (make, _, _) in enumerate(LOOKED_AT.values()):
        place = root / str(number)
        place.mkdir()
        commands.append(make(place))
    return root, dict(zip(LOOKED_AT, run_all(commands, root), strict=True))


@pytest.mark.parametrize("name", LOOKED_AT)
def test_refused_by_a_look(looked_at: tuple[Path, dict[str, dict[str, Any]]], name: str) -> None:
    root, found = looked_at
    refused(found[name], *LOOKED_AT[name][1:])
    assert not list(root.rglob("ran")), "code of a model ran"
    assert not list(root.rglob("*.png"))


# A hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("repos")
    pickled, bare = disk.hollow(root / "pickled"), disk.hollow(root / "bare")
    (pickled / disk.UNET).rename((pickled / disk.UNET).with_suffix(".bin"))
    (bare / "model_index.json").unlink()
    hollow = disk.hollow(root / "hollow")
    garbled = disk.hollow(root / "garbled")
    (garbled / disk.UNET).write_bytes(POINTER)
    with ExitStack() as stack:
        serve = hubs.serving(
            org__decoys=Repo(_with_decoys(root / "decoys")),
            org__halves=Repo(_halves(root / "halves"), revisions=("main", "v1")),
            org__vae=Repo(Path(disk.demo(root / "vae") / "vae")),
            org__broken=Repo(disk.demo(root / "broken"), drop=disk.UNET),
            org__hollow=Repo(hollow),
            org__garbled=Repo(garbled),
            org__pickled=Repo(pickled),
            org__bare=Repo(bare),
            org__gated=Repo(hollow, error=(403, "GatedRepo")),
            org__private=Repo(hollow, error=(401, "RepoNotFound")),
            org__forbidden=Repo(hollow, error=(403, "")),
            org__down=Repo(hollow, error=(503, "")),
        )
        yield stack.enter_context(serve)


def _with_decoys(to: Path) -> Path:
    """The bundled model among what a repository also has: nothing of that is ever loaded."""
    disk.demo(to)
    for name in (
        "README.md", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/model.onnx", "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/flax_model.msgpack", "text_encoder/model.fp16.safetensors", "safety_checker/model.safetensors",
        "safety_checker/config.json", "feature_extractor/preprocessor_config.json", "images/sample.png",
    ):  # fmt: skip
        (to / name).parent.mkdir(exist_ok=True)
        (to / name).write_bytes(b"never asked for")
    return to


def _halves(to: Path) -> Path:
    """The bundled model in half precision and with a safety checker; the plain files are there too, and worth nothing."""
    disk.with_checker(disk.as_variant(disk.demo(to)), flags=True)
    checker = to / "safety_checker" / "model.safetensors"
    checker.rename(checker.with_suffix(".fp16.safetensors"))
    for name in (disk.UNET, disk.VAE, disk.TEXT):
        (to / name).write_bytes(b"never asked for")
    return to


HUB_SAYS: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "gated": (["--model", "org/gated"], 77, ("org/gated", "hf auth login", "--model demo")),
    "forbidden": (["--model", "org/forbidden"], 77, ("403", "hf auth login")),
    "private": (["--model", "org/private"], 69, ("private", "hf auth login", "--model demo")),
    "not there": (["--model", "org/nothing"], 69, ("no org/nothing", "--model demo")),
    "no such revision": (["--model", "org/halves@v9"], 69, ("revision v9", "--model demo")),
    "down": (["--model", "org/down"], 69, ("503", "later", "--model demo")),
    "pickles only": (["--model", "org/pickled"], 65, ("org/pickled/unet", "pickles only", "--model demo")),
    "no model": (["--model", "org/bare"], 65, ("model_index.json", "--model demo")),
    "no safety checker": (["--model", "org/hollow", "--safety-checker"], 2, ("no safety checker",)),
    "bad weights": (["--model", "org/garbled"], 65, ("Git LFS", "sdcli models rm org/garbled")),
    "bad weights, already here": (["--model", "org/garbled"], 65, ("Git LFS", "sdcli models rm org/garbled")),
    "gated autoencoder": (["--model", "demo", "--vae", "org/gated"], 77, ("hf auth login",)),
    "no autoencoder": (["--model", "demo", "--vae", "org/hollow"], 65, ("org/hollow", "config.json")),
}


@pytest.fixture(scope="module")
def hub_says(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    found = run_all(
        [argv for argv, _, _ in HUB_SAYS.values()], tmp_path_factory.mktemp("hub-says"), HF_ENDPOINT=hub.url
    )
    return dict(zip(HUB_SAYS, found, strict=True))


@pytest.mark.parametrize("name", HUB_SAYS)
def test_refused_by_the_hub(hub_says: dict[str, dict[str, Any]], name: str) -> None:
    refused(hub_says[name], *HUB_SAYS[name][1:])


def test_nothing_but_its_index_is_downloaded_of_what_is_refused(hub: Hub, hub_says: object) -> None:
    assert not hub.downloaded("org/bare")
    assert hub.downloaded("org/pickled") | hub.downloaded("org/hollow") == {"model_index.json"}


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    found = run_all([["--model", "org/model"], ["--model", "sd15"], ["--model", "demo", "--vae", "org/vae"]], tmp_path)
    for one, name in zip(found, ("org/model", "sd15", "org/vae"), strict=True):
        refused(one, 69, (name, "can't be reached", "--model demo"))


def test_offline(tmp_path: Path) -> None:
    (found,) = run_all([["--model", "org/model@v2"]], tmp_path, HF_HUB_OFFLINE="1")
    refused(found, 69, ("org/model@v2", "HF_HUB_OFFLINE", "--model demo"))


def test_what_answers_is_no_hub(tmp_path: Path) -> None:
    """A hotel's page to log in on says 200 to everything."""
    with hubs.serving(org__model=Repo(tmp_path, error=(200, ""))) as portal:
        (found,) = run_all([["--model", "org/model"]], tmp_path, HF_ENDPOINT=portal.url)
    refused(found, 69, ("org/model", "no hub", "HF_ENDPOINT"))


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_given_up_soon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (found,) = run_all(
            [["--model", "org/model"]], tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
    assert found["code"] == 69 and found["seconds"] < models.PATIENCE + 3


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_model_is_downloaded_once_and_no_more_than_is_loaded(hub: Hub, process: Process, tmp_path: Path) -> None:
    env = environment(hub, tmp_path / "hf")
    done = process(*SHORT, "--model", "org/decoys", env=env)
    assert done.code == 0, done.stderr
    folder = hub.repos["org/decoys"].folder
    weights = (disk.TEXT, disk.UNET, disk.VAE)
    texts = {f.relative_to(disk.DEMO).as_posix() for f in disk.DEMO.rglob("*") if f.suffix in (".json", ".txt")}
    assert hub.downloaded("org/decoys") == {*weights, *texts}
    size = sum((folder / name).stat().st_size for name in (*weights, *texts))
    assert f"downloading org/decoys ({size / 1e6:.1f} MB)" in done.stderr
    told = record_of(tmp_path / done.events[0]["path"])["model"]
    assert (told["name"], told["repo"], told["commit"]) == ("org/decoys", "org/decoys", hub.repos["org/decoys"].commit)
    assert told["files"] == {name: sha256(folder / name) for name in weights}

    hub.asked.clear()
    again = process(*SHORT, "--model", "org/decoys", env=env)
    assert again.code == 0, again.stderr
    assert hub.asked == [] and "downloading" not in again.stderr
    same = ("id", "pixels")
    assert [again.events[0][k] for k in same] == [done.events[0][k] for k in same]


@pytest.mark.slow
def test_what_was_downloaded_works_offline(hub: Hub, process: Process, tmp_path: Path) -> None:
    env = environment(hub, tmp_path / "hf")
    done = process(*SHORT, "--model", "org/halves", env=env)
    hub.asked.clear()
    again = process(*SHORT, "--model", "org/halves", env=env | {"HF_HUB_OFFLINE": "1"})
    assert (done.code, again.code) == (0, 0), again.stderr
    assert hub.asked == [] and again.events[0]["pixels"] == done.events[0]["pixels"]


def test_a_revision_in_half_precision_with_its_checker_and_another_autoencoder(
    hub: Hub, process: Process, tmp_path: Path
) -> None:
    env = environment(hub, tmp_path / "hf")
    done = process(*SHORT, "--model", "org/halves@v1", "--vae", "org/vae", "--safety-checker", env=env)
    assert done.code == 0, done.stderr
    halves, vae = hub.repos["org/halves"], hub.repos["org/vae"]
    record = record_of(tmp_path / done.events[0]["path"])
    told = record["model"]
    assert (told["name"], told["repo"], told["commit"]) == ("org/halves@v1", "org/halves", halves.commit)
    files = ("text_encoder/model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors")
    weights = "diffusion_pytorch_model.safetensors"
    assert told["files"] == {
        **{name: sha256(halves.folder / name) for name in files}, f"--vae/{weights}": sha256(vae.folder / weights),
    }  # fmt: skip
    assert hub.downloaded("org/vae") == {"config.json", weights}
    got = {name for name in hub.downloaded("org/halves") if name.endswith(".safetensors")}
    assert got == {*files, "safety_checker/model.fp16.safetensors"}, "not the autoencoder that is not used"
    assert record["flagged"] is True
    said = [line.split(" (")[0] for line in done.stderr.splitlines() if line.startswith("downloading")]
    assert said == ["downloading org/halves", "downloading org/vae"]

    hub.asked.clear()
    again = process(
        *SHORT, "--model", "org/halves@v1", "--vae", "org/vae", "--dry-run", env=env | {"HF_HUB_OFFLINE": "1"}
    )
    assert again.code == 0 and hub.asked == [], again.stderr
    assert again.events[0]["id"] == done.events[0]["id"]


FETCH = """
import sys
from sdcli import errors, models
try:
    model = models.fetch(models.find(models.ModelSpec(model=sys.argv[1])), safety_checker=False, say=print)
    print("here", model.commit, model.is_here)
    assert "torch" not in sys.modules
except errors.SdcliError as error:
    print(error.exit_code, error.message, error.hint)
"""


def fetch(name: str, hub: Hub, folder: Path) -> str:
    """Fetch a model in a process of its own; return what was said, and how it ended."""
    env = {**os.environ, **environment(hub, folder / "hf")}
    command = [sys.executable, "-c", FETCH, name]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=120, check=True).stdout


@pytest.mark.slow
def test_a_download_that_broke_off_goes_on(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repos["org/broken"]
    said, code = fetch("org/broken", hub, tmp_path).splitlines()
    assert "downloading org/broken" in said
    assert code.startswith("69 ") and "org/broken" in code and "run it again" in code and "--model demo" in code
    assert repo.dropped and not list((tmp_path / "hf").rglob("snapshots/*/unet/*.safetensors"))
    whole = {"/".join(f.parts[-2:]) for f in (tmp_path / "hf").rglob("snapshots/*/*/*.safetensors")}

    repo.drop, repo.dropped = None, False
    hub.asked.clear()
    said, ended = fetch("org/broken", hub, tmp_path).splitlines()
    left = sum(f["size"] for f in repo.files() if f["path"] in hub.downloaded("org/broken"))
    assert (said, ended) == (
        f"downloading org/broken ({left / 1e6:.1f} MB) into the hub's cache",
        f"here {repo.commit} True",
    )
    assert disk.UNET in hub.downloaded("org/broken")
    assert not whole & hub.downloaded("org/broken"), "what was whole is kept"
    hub.asked.clear()
    assert fetch("org/broken", hub, tmp_path) == f"here {repo.commit} True\n" and hub.asked == []


def test_the_configuration_of_a_checkpoint_of_1_x_comes_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    """Where none lies beside it: the configuration only, and once."""
    disk.hollow_checkpoint(tmp_path / "sd.safetensors", width=768)
    folder = disk.hollow(tmp_path / "of-1.x")
    disk.edit_json(folder / "unet/config.json", cross_attention_dim=768)
    hub.repos[models.DEFAULT] = Repo(folder)
    hub.asked.clear()
    said, ended = fetch("sd.safetensors", hub, tmp_path).splitlines()
    assert said.startswith(f"downloading {models.DEFAULT} (") and ended == "here None True"
    got = hub.downloaded(models.DEFAULT)
    assert {"model_index.json", "unet/config.json"} <= got and not [f for f in got if f.endswith(".safetensors")]
    hub.asked.clear()
    assert fetch("sd.safetensors", hub, tmp_path) == "here None True\n" and hub.asked == []


def weights_of(record: dict[str, Any]) -> dict[str, str]:
    """Return the recorded hashes of weights: all but that of the configurations."""
    files = dict(record["model"]["files"])
    assert len(files.pop("--config")) == 64
    return files


# Drawing, in this process, with no connection to anywhere


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundled model as a folder like any other: none of the bundled one's own defaults."""
    return disk.demo(tmp_path_factory.mktemp("demo") / "model")


def draw(sdcli: Sdcli, *argv: str) -> tuple[dict[str, Any], dict[str, Any]]:
    done = sdcli(*SHORT, *argv)
    assert done.code == 0, done.stderr
    return done.events[0], record_of(done.events[0]["path"])


@pytest.mark.parametrize("name", ["one", ""], ids=["folder of its name", "its own folder"])
def test_a_checkpoint_in_one_file_draws_what_its_folder_draws(
    sdcli: Sdcli, alone: None, demo: Path, tmp_path: Path, name: str
) -> None:
    """Its configuration lies in a folder of its name, or in its own."""
    disk.configuration(demo, tmp_path / name)
    disk.checkpoint(demo, tmp_path / "one.safetensors")
    of_file, record = draw(sdcli, "--model", "one.safetensors")
    of_folder, _ = draw(sdcli, "--model", str(demo))
    assert of_file["pixels"] == of_folder["pixels"]
    assert (of_file["width"], of_file["height"]) == (128, 128)
    assert weights_of(record) == {"one.safetensors": sha256(tmp_path / "one.safetensors")}
    assert record["model"]["repo"] is None and record["model"]["commit"] is None


def test_half_precision_on_disk(sdcli: Sdcli, alone: None, demo: Path, tmp_path: Path) -> None:
    disk.as_variant(disk.demo(tmp_path / "half"))
    plain = disk.demo(tmp_path / "plain")
    for name in (disk.UNET, disk.VAE, disk.TEXT):
        disk.edit_tensors(plain / name, disk.cast("float16"))
    of_variant, record = draw(sdcli, "--model", "half")
    of_plain, _ = draw(sdcli, "--model", "plain")
    assert of_variant["pixels"] == of_plain["pixels"]
    assert set(weights_of(record)) == {
        n.replace(".safetensors", ".fp16.safetensors") for n in (disk.UNET, disk.VAE, disk.TEXT)
    }


def test_a_folder_as_older_libraries_saved_it(sdcli: Sdcli, alone: None, demo: Path, tmp_path: Path) -> None:
    old = disk.demo(tmp_path / "old")
    (old / "tokenizer" / "tokenizer.json").unlink()
    disk.edit_tensors(
        old / disk.TEXT, lambda t: {f"text_model.{k.removeprefix('text_model.')}": v for k, v in t.items()}
    )
    # Loaded only with the checker, and not in this repository's download without it.
    disk.edit_json(old / "model_index.json", feature_extractor=["transformers", "CLIPFeatureExtractor"])
    assert draw(sdcli, "--model", "old")[0]["pixels"] == draw(sdcli, "--model", str(demo))[0]["pixels"]


@pytest.mark.parametrize("flags", [True, False], ids=["flagged", "not flagged"])
def test_the_safety_checker_tells_and_changes_nothing(
    sdcli: Sdcli, alone: None, demo: Path, tmp_path: Path, flags: bool
) -> None:
    disk.with_checker(disk.demo(tmp_path / "model"), flags=flags)
    done = sdcli(*SHORT, "--model", "model", "--safety-checker")
    assert done.code == 0, done.stderr
    record = record_of(done.events[0]["path"])
    said = ["the safety checker flags this picture"]
    assert (record["flagged"], done.events[0]["warnings"]) == (flags, said if flags else [])
    assert (f"warning: {said[0]}" in done.stderr) is flags
    of_demo, without = draw(sdcli, "--model", str(demo))
    assert done.events[0]["pixels"] == of_demo["pixels"] and without["flagged"] is None
    assert pixels(done.events[0]["path"]).max() > 0


def test_another_autoencoder(sdcli: Sdcli, alone: None, demo: Path, tmp_path: Path) -> None:
    other = disk.demo(tmp_path / "other")
    disk.edit_tensors(other / disk.VAE, disk.filled("decoder.conv_out.bias", 0.5))
    disk.checkpoint(other, tmp_path / "whole.safetensors")
    (tmp_path / "alone").mkdir()
    (other / disk.VAE).rename(tmp_path / "alone" / "vae.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_bytes((other / "vae/config.json").read_bytes())
    (tmp_path / "folder" / "diffusion_pytorch_model.safetensors").write_bytes(
        (tmp_path / "alone/vae.safetensors").read_bytes()
    )

    own, _ = draw(sdcli, "--model", str(demo))
    seen = [own]
    for name, weights in (
        ("folder", "folder/diffusion_pytorch_model.safetensors"),
        ("alone/vae.safetensors", "alone/vae.safetensors"),
        ("whole.safetensors", "whole.safetensors"),
    ):
        event, record = draw(sdcli, "--model", str(demo), "--vae", name)
        assert weights_of(record) == {
            disk.TEXT: sha256(demo / disk.TEXT), disk.UNET: sha256(demo / disk.UNET),
            f"--vae/{Path(weights).name}": sha256(tmp_path / weights),
        }  # fmt: skip
        seen.append(event)
    assert len({e["id"] for e in seen}) == 4
    assert len({e["pixels"] for e in seen[1:]}) == 1 and seen[1]["pixels"] != own["pixels"]
    assert pixels(seen[1]["path"]).mean() > pixels(own["path"]).mean() + 10, "a brighter bias makes a brighter picture"


def test_a_dry_run_foretells_the_id_with_another_autoencoder(sdcli: Sdcli, demo: Path) -> None:
    argv = ("--model", "demo", "--vae", str(demo / "vae"))
    (plan,) = sdcli(*SHORT, *argv, "--dry-run").events
    assert plan["id"] == draw(sdcli, *argv)[0]["id"]


SPOILT: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "noise that is not a number": (
        lambda f: disk.edit_tensors(f / disk.UNET, disk.filled("conv_out.bias", float("nan"))), 76, "not finite",
    ),
    "an infinite autoencoder": (
        lambda f: disk.edit_tensors(f / disk.VAE, disk.filled("decoder.conv_out.bias", float("inf"))), 76, "not finite",
    ),
    "a hole in the text encoder": (
        lambda f: disk.edit_tensors(f / disk.TEXT, disk.without("layers.1.mlp.fc1.weight")), 65, "text_encoder lacks weights",
    ),
    "a hole in the UNet": (
        lambda f: disk.edit_tensors(f / disk.UNET, disk.without("mid_block.resnets.0.conv1")), 65, "unet lacks weights",
    ),
    "a hole in the autoencoder": (
        lambda f: disk.edit_tensors(f / disk.VAE, disk.without("decoder.conv_in")), 65, "vae lacks weights",
    ),
    "another shape": (
        lambda f: disk.edit_json(f / "unet/config.json", block_out_channels=[32, 64, 64]), 65, "expected shape",
    ),
    "a scheduler that there is not": (
        lambda f: disk.edit_json(f / "model_index.json", scheduler=["diffusers", "NoSuchScheduler"]), 65, "NoSuchScheduler",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_weights_make_no_picture(sdcli: Sdcli, alone: None, tmp_path: Path, name: str) -> None:
    spoil, code, words = SPOILT[name]
    spoil(disk.demo(tmp_path / "model"))
    done = sdcli(*SHORT, "--model", "model")
    assert (done.code, done.events[0]["exit"]) == (code, code), done.stderr
    assert words in done.events[0]["message"] and done.events[0]["hint"]
    assert not list(tmp_path.glob("*.png"))


def test_a_checkpoint_with_a_hole(sdcli: Sdcli, alone: None, demo: Path, tmp_path: Path) -> None:
    disk.configuration(demo, tmp_path / "one")
    disk.edit_tensors(disk.checkpoint(demo, tmp_path / "one.safetensors"), disk.without("middle_block.0.in_layers.2"))
    done = sdcli(*SHORT, "--model", "one.safetensors")
    assert done.code == 65 and "weights are missing" in done.events[0]["message"]


# Names


def test_another_autoencoder_makes_another_id() -> None:
    request = GenerationRequest(prompt="a star", seed=1)
    of_hub = ModelRecord(name="m", family="f", repo="org/m", commit="c", files={"unet/model.safetensors": "1"})
    with_vae = [
        msgspec.structs.replace(of_hub, files=of_hub.files | {"--vae/vae.safetensors": sha}) for sha in ("2", "3")
    ]
    assert len({job_id(request, m) for m in (of_hub, *with_vae)}) == 3


def test_the_hash_of_a_blob_is_its_name_in_the_cache_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub may keep a blob under another hash, and a link to it under the SHA-256."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    store, blobs, snapshot = cache / "ab", cache / "repo" / "blobs", cache / "repo" / "snapshots" / "c"
    for folder in (store, blobs, snapshot):
        folder.mkdir(parents=True)
    (store / ("ab" * 32)).write_bytes(b"weights")
    (blobs / ("cd" * 32)).symlink_to(f"../../ab/{'ab' * 32}")
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{'cd' * 32}")
    assert models.sha256_of(snapshot / "model.safetensors") == "cd" * 32
    real = hashlib.sha256(b"weights").hexdigest()
    (snapshot / "elsewhere").symlink_to(store / ("ab" * 32))
    assert models.sha256_of(snapshot / "elsewhere") == real
    # The cache may be reached by a link, and what lies beside it may look like one.
    (tmp_path / "by a link").symlink_to(cache)
    assert models.sha256_of(tmp_path / "by a link" / "repo" / "snapshots" / "c" / "model.safetensors") == "cd" * 32
    for place in (tmp_path / "folder", tmp_path / "hub2"):
        (place / "blobs").mkdir(parents=True)
        (place / "blobs" / ("ef" * 32)).write_bytes(b"weights")
        (place / "model.safetensors").symlink_to(f"blobs/{'ef' * 32}")
        assert models.sha256_of(place / "model.safetensors") == real
        assert models.sha256_of(place / "blobs" / ("ef" * 32)) == real
    # A repository may lie on another disk.
    (tmp_path / "repo2" / "blobs").mkdir(parents=True)
    (tmp_path / "repo2" / "blobs" / ("ee" * 32)).write_bytes(b"weights")
    (tmp_path / "repo2" / "model.safetensors").symlink_to(f"blobs/{'ee' * 32}")
    (cache / "repo2").symlink_to(tmp_path / "repo2")
    assert models.sha256_of(cache / "repo2" / "model.safetensors") == "ee" * 32


def test_a_whole_file_comes_before_pieces() -> None:
    whole, one = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-00001-of-00001.safetensors"
    two = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert by_variant([whole, one]) == {None: [whole]}
    assert by_variant([whole, two[0]]) == {None: [whole]}
    assert by_variant([*two, "diffusion_pytorch_model-00001-of-00003.safetensors"]) == {None: two}
    assert by_variant([two[0]]) == {}


def test_pieces_are_loaded_only_with_all_their_pieces() -> None:
    names = [f"unet/diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    parts = {name: ("diffusers", "Anything") for name in ("unet", "vae", "text_encoder")}
    spec = models.Model(name="m", repo="m", components=parts)
    rest = ["model_index.json", "vae/model.fp16.safetensors", "text_encoder/model.fp16.safetensors"]
    assert set(models.wanted_files([*rest, *names], spec, safety_checker=False)) == {*rest, *names}
    with pytest.raises(models.BadInput, match="no .safetensors"):
        models.wanted_files([*rest, names[0]], spec, safety_checker=False)
