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


@pytest.fixture(scope="session")
def nobodys_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which nothing is."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def nobodys_settings(nobodys_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what whoever runs the tests has set: no test, and no process of one, finds settings that it did not make."""
    for variable in [v for v in os.environ if v.startswith("SDCLI_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(nobodys_home))
    # A file, so that no test can leave settings there for the others.
    (nobodys_home / "nothing").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(nobodys_home / "nothing"))


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration folder, for tests that put something in it; it is not made yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "sdcli"


@pytest.fixture(autouse=True)
def no_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide accelerators from all tests but those marked `gpu`: the others are about what a CPU does."""
    if "gpu" in request.keywords:
        return
    from sdcli.pipeline import machine

    monkeypatch.setattr(machine, "accelerators", lambda device: ())
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


@pytest.fixture
def table(record_property: Callable[[str, object], None]) -> Callable[[str, dict[str, str]], None]:
    """Add a row to a table that stands at the end of the tests' output."""
    return lambda name, row: record_property(f"table: {name}", row)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tables: dict[str, list[dict[str, str]]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, row in report.user_properties:
            if name.startswith("table: ") and isinstance(row, dict):
                tables.setdefault(name.removeprefix("table: "), []).append(row)
    for name, rows in tables.items():
        terminalreporter.section(name)
        rows.sort(key=lambda row: list(row.values()))
        widths = {k: max(len(k), *(len(str(row[k])) for row in rows)) for k in rows[0]}
        for row in [{k: k for k in widths}, *rows]:
            terminalreporter.write_line("  ".join(str(row[k]).ljust(w) for k, w in widths.items()).rstrip())
