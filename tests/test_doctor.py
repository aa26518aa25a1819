"""`sdcli doctor`: what it finds, what it says of it, and what it leaves alone."""

from __future__ import annotations

import itertools
import platform
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from sdcli import models, pipeline
from sdcli.errors import OutOfMemory
from sdcli.jobs import doctor
from sdcli.jobs.doctor import Finding
from sdcli.pipeline import attention
from tests.conftest import ROOT, Sdcli

KEYS = ["schema", "event", "name", "status", "value", "message", "hint"]


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the disk of whoever runs the tests has left, and what lies on it, is no matter here."""
    monkeypatch.setattr(doctor, "ROOM", 0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for paths in ("NVIDIA", "AMD"):
        monkeypatch.setattr(doctor, paths, ())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Something on loopback in the hub's place; what it was asked. /silent... is not answered."""
    asked: list[str] = []
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(f"{self.command} {self.path}")
            if self.path.startswith("/silent"):
                ended.wait(20)
            self.send_response(503 if self.path.startswith("/broken") else 200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    try:
        yield asked
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def until(name: str, **asked: Any) -> dict[str, Finding]:
    """Return what is found up to a name; what comes after it is not examined."""
    found: dict[str, Finding] = {}
    for finding in doctor.examine(**{"offline": True, **asked}):
        found[finding.name] = finding
        if finding.name == name:
            return found
    raise AssertionError(f"nothing was said of {name}")


def test_a_sound_machine(sdcli: Sdcli, hub: list[str]) -> None:
    done = sdcli("doctor", "--json", "--offline")
    events = {e["name"]: e for e in done.events}
    assert len(events) == len(done.events)
    assert all(list(e) == KEYS and (e["schema"], e["event"]) == (1, "check") for e in done.events)
    assert {e["status"] for e in done.events} == {"ok"}, [e for e in done.events if e["status"] != "ok"]
    assert done.code == 0
    assert events["python"]["value"] == platform.python_version()
    assert events["torch"]["value"] == metadata.version("torch")
    assert events["diffusers"]["value"] == metadata.version("diffusers")
    assert events["device"]["value"] == "cpu" and "no GPU" in events["device"]["message"]
    assert events["dtype"]["value"] in ("bf16", "fp32") and "bf16" in events["dtype"]["message"]
    assert "math" in events["attention"]["value"]
    seconds = events["drawing"]["value"]
    assert set(seconds) == {"load", "step", "decode"} and all(0 < s < 120 for s in seconds.values())
    assert events["memory"]["value"]["total"] > events["memory"]["value"]["free"] > 0
    # Not asked, and said so.
    assert events["hub"]["value"] is None and "--offline" in events["hub"]["message"]
    assert hub == []


def test_people_get_a_table_with_remedies(
    sdcli: Sdcli, hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ROOM", 10**18)
    (tmp_path / "sdcli.toml").write_text("stepps = 3\n")
    done = sdcli("doctor")
    assert done.code == 1
    assert done.stderr.startswith("examining")
    assert done.stderr.endswith("2 problems, no warnings\n")
    rows = done.lines
    assert {row.split()[0] for row in rows} == {"ok", "problem", "hint:"}
    setting = next(i for i, row in enumerate(rows) if row.startswith("problem  project settings"))
    assert "sdcli.toml:1: there is no field stepps; did you mean steps" in rows[setting]
    assert rows[setting + 1].strip().startswith("hint: fields are")
    disk = next(i for i, row in enumerate(rows) if row.startswith("problem  disk"))
    assert "free where models go" in rows[disk] and "HF_HOME" in rows[disk + 1]
    assert any(row.startswith("ok       torch") for row in rows)
    assert len({row.index(row.split(maxsplit=2)[1]) for row in rows if not row.startswith(" ")}) == 1
    assert hub == ["HEAD /api/models"]


def test_the_hub_is_asked_once_and_not_waited_for(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert until("hub", offline=False)["hub"].status == "ok"
    assert hub == ["HEAD /api/models"]
    address = huggingface_hub.constants.ENDPOINT
    for path, said in (("/broken", "503"), ("/silent", "")):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address + path)
        monkeypatch.setattr(models, "PATIENCE", 0.3)
        began = time.monotonic()
        found = until("hub", offline=False)["hub"]
        assert time.monotonic() - began < 5
        assert found.status == "warning" and "can't be reached" in str(found.message) and said in str(found.message)
        assert found.hint and "HTTPS_PROXY" in found.hint
    del hub[:]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    quiet = until("hub", offline=False)["hub"]
    assert quiet.status == "ok" and "HF_HUB_OFFLINE" in str(quiet.message)
    assert hub == []


def test_a_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = until("token")["token"]
    assert found.value is True and "secret" not in repr(found)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "nothing")
    assert until("token")["token"] == Finding(name="token", value=False, message="none: only gated models need one")


def test_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "diffusers":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "typer" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {f.name: f for f in itertools.takewhile(lambda f: f.name != "user settings", doctor.examine(offline=True))}
    assert found["diffusers"].status == "problem" and "pip install 'diffusers" in str(found["diffusers"].hint)
    assert found["typer"].status == "warning" and "0.1 is installed" in str(found["typer"].message)
    assert found["torch"].status == "ok"
    # What was not asked about is not told of where it fits.
    assert "rich" not in found
    assert found["extra schedulers"].value is True
    assert found["extra schedulers"].message == f"scipy {real('scipy')}, torchsde {real('torchsde')}"
    assert not {"extra test", "extra lint"} & set(found)


def test_each_extra_is_shown(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = ["Metadata-Version: 2.4", "Name: sdcli", "Version: 1"]
    for extra, needs in project["optional-dependencies"].items():
        markers = [need.replace("; ", "; (") + ") and" if ";" in need else need + ";" for need in needs]
        lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {m} extra == '{extra}'" for m in markers)]
    # As pip leaves it; what is installed in a folder that is worked on may be of an earlier day.
    about = tmp_path / "site" / "sdcli-1.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text("\n".join([*lines, ""]))
    monkeypatch.syspath_prepend(about.parent.parent)
    real = metadata.version
    versions = {"c2pa-python": "0.38.1", "cryptography": "46.0.1", "gguf": None}

    def version(name: str) -> str:
        if (found := versions.get(name, "")) is None:
            raise metadata.PackageNotFoundError(name)
        return found or real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "_drawing", lambda _: Finding(name="drawing"))
    done = sdcli("doctor", "--offline", "--json")
    assert done.code == 0
    found = {e["name"]: e for e in done.events if e["name"].startswith("extra ")}
    extras = set(project["optional-dependencies"]) - set(doctor.OF_DEVELOPERS)
    assert set(found) == {f"extra {name}" for name in extras}
    assert {e["status"] for e in found.values()} == {"ok"}, "who needs none is not warned"
    c2pa, gguf = found["extra c2pa"], found["extra gguf"]
    assert (c2pa["value"], c2pa["message"]) == (True, "c2pa-python 0.38.1, cryptography 46.0.1")
    assert (gguf["value"], gguf["message"]) == (False, "not installed: pip install 'sdcli[gguf]'")


def test_quiet_says_what_is_amiss_only(sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_drawing", lambda _: Finding(name="drawing"))
    done = sdcli("doctor", "--offline", "-q")
    assert (done.code, done.stdout, done.stderr) == (0, b"", "")
    (tmp_path / "sdcli.toml").write_text("stepps = 3\n")
    done = sdcli("doctor", "--offline", "-q")
    assert (done.code, done.stderr) == (1, "")
    assert [line.split()[0] for line in done.lines] == ["problem", "hint:"] and "stepps" in done.lines[0]
    assert len(sdcli("doctor", "--offline", "-q", "--json").events) > 10


def test_settings_presets_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDCLI_CONFIG", str(tmp_path / "config"))
    assert {f.status for f in until("presets").values()} == {"ok"}
    (tmp_path / "config").mkdir()
    (tmp_path / "config/sdcli.toml").write_text("steps = 12\n")
    (tmp_path / "sdcli.toml").write_text("steps = \n")
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/mine.toml").write_text("no = 1\n")
    monkeypatch.setenv("SDCLI_STEPPS", "3")
    found = until("presets")
    assert found["user settings"].status == "ok" and "num_inference_steps" in str(found["user settings"].message)
    assert found["project settings"].status == "problem" and "sdcli.toml:1" in str(found["project settings"].message)
    assert found["variables"].status == "problem" and "SDCLI_STEPS" in str(found["variables"].message)
    assert found["presets"].status == "warning" and "mine.toml:1" in str(found["presets"].message)
    assert all(f.hint for f in found.values() if f.status != "ok")


def test_the_cache_is_measured_without_its_links_twice(tmp_path: Path) -> None:
    repo = tmp_path / "hub/models--org--name"
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots").mkdir()
    (repo / "blobs/0").write_bytes(b"x" * 5_000_000)
    (repo / "snapshots/model.safetensors").symlink_to(repo / "blobs/0")
    value = until("cache")["cache"].value
    assert value["models"] == 1 and value["path"] == str(tmp_path / "hub")
    assert 5_000_000 <= value["bytes"] < 5_300_000


def test_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert until("output")["output"].value["path"] == str(tmp_path)
    (tmp_path / "sdcli.toml").write_text('output = "pictures/{seed}.png"\n')
    assert until("output")["output"].value["path"] == str(tmp_path / "pictures")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    found = until("output")["output"]
    assert found.status == "problem" and found.hint


@pytest.mark.parametrize(
    ("built", "env", "status", "said"),
    [
        ((), None, "problem", "built without CUDA"),
        (("cuda",), None, "problem", "can't use it"),
        (("cuda",), "", "warning", "hidden by CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu_that_is_not_used(
    built: tuple[str, ...], env: str | None, status: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "nvidia0"
    there.touch()
    monkeypatch.setattr(doctor, "NVIDIA", (str(there),))
    monkeypatch.setattr(attention, "built_for", lambda: built)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if env is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", env)
    found = until("gpu")["gpu"]
    assert found.status == status and said in str(found.message) and found.hint


def test_what_a_run_would_be_refused_is_a_problem(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_DEVICE", "cuda")

    def full(*_: Any, **__: Any) -> None:
        raise OutOfMemory("demo does not fit into memory", "try a smaller one")

    monkeypatch.setattr(pipeline, "load", full)
    done = sdcli("doctor", "--offline", "--json", "-q")
    bad = {e["name"]: e for e in done.events if e["status"] == "problem"}
    assert set(bad) == {"plan", "drawing"}
    assert "no device cuda" in bad["plan"]["message"]
    assert (
        bad["drawing"]["message"] == "demo does not fit into memory" and bad["drawing"]["hint"] == "try a smaller one"
    )
    assert (done.code, done.stderr) == (1, "")


def test_kernels_are_those_that_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert attention.kernels("cpu", "fp32") == ("flash", "math")
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        assert attention.kernels("cpu", "fp32") == ("math",)
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


def test_something_is_said_before_torch_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "sdcli", "doctor", "--offline"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(b"ok       python")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    said = err.decode()
    assert said.index("examining") < said.index("interrupted by signal 2")
    assert " torch\n" not in said[: said.index("examining")]
