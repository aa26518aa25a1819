"""What the tests share: the front door, and a look at what came out of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes with as many threads each as there are cores would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    """How a command line ended."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.decode().splitlines()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


Sdcli = Callable[..., Outcome]


@pytest.fixture
def sdcli(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sdcli:
    """Run a command line through `main()` in this process, in an empty folder."""
    from sdcli.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> Outcome:
        capfdbinary.readouterr()
        code = main(argv)
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return Outcome(code, out, err.decode())

    return run


@pytest.fixture(autouse=True)
def no_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide accelerators from all tests but those marked `gpu`: the others are about what a CPU does."""
    if "gpu" in request.keywords:
        return
    from sdcli import pipeline
    from sdcli.device import Probe

    monkeypatch.setattr(pipeline, "probe", lambda device="auto": Probe(cpu_bf16=pipeline.cpu_has_bf16()))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def process(tmp_path: Path) -> Sdcli:
    """Run a command line as a process of its own, in an empty folder."""

    def run(*argv: str, stdin: bytes | None = b"", **more: Any) -> Outcome:
        env = {**os.environ, **more.pop("env", {})}
        command = [sys.executable, "-m", "sdcli", *argv]
        done = subprocess.run(command, input=stdin, capture_output=True, cwd=tmp_path, env=env, timeout=240, **more)
        return Outcome(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.fixture
def probe(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a piece of Python in a fresh process, in an empty folder."""

    def run(code: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=240, check=False, **more
        )

    return run


def record_of(path: Path | str) -> dict[str, Any]:
    """Return the JSON record inside a PNG, as an outside reader finds it."""
    with Image.open(path) as image:
        loaded: dict[str, Any] = json.loads(image.info["sdcli"])  # type: ignore[attr-defined]
        return loaded


def pixels(path: Path | str) -> Any:
    """Return a picture's pixels (height, width, 3), as signed integers so that differences can be taken."""
    import numpy as np

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)
