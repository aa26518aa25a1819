"""The plan of the house: which way imports run, and what must not wait for torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sdcli
from tests.conftest import Sdcli

PACKAGE = Path(sdcli.__file__).parent
# From the top down; a room may import those below it, and none above.
FLOORS = [
    {"cli", "__main__"},
    {"explain"},
    {"jobs"},
    {"pipeline"},
    {"settings"},
    {"output"},
    {"metadata"},
    {"prompts", "schedulers", "pictures"},
    {"record"},
    {"request", "models", "device"},
    {"options", "places"},
    {"errors"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"torch", "diffusers", "transformers", "accelerate"}


def _imports(file: Path) -> list[tuple[str, bool]]:
    """Return a file's imports, each with whether it stands at the module's top level and runs there."""
    tree = ast.parse(file.read_text("utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = [f"{node.module}.{a.name}" if node.module == "sdcli" else node.module for a in node.names]
        elif isinstance(node, ast.Import):
            parts = [a.name for a in node.names]
        else:
            continue
        found += [(part, node in tree.body) for part in parts]
    return found


def _room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [f for f in sorted(PACKAGE.rglob("*.py")) if f.name != "__init__.py" or f.parent != PACKAGE]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_arrows_run_one_way(file: Path) -> None:
    room = _room(file)
    for name, at_top in _imports(file):
        parts = name.split(".")
        if parts[0] == "sdcli" and len(parts) > 1 and parts[1] in FLOOR and parts[1] != room:
            assert FLOOR[parts[1]] >= FLOOR[room], f"{room} must not know {parts[1]}"
        if parts[0] in HEAVY:
            assert not at_top and room in ("pipeline", "schedulers"), f"{room} imports {name}"
        if parts[0] in ("typer", "rich"):
            assert room == "cli"


def test_every_room_has_its_floor() -> None:
    assert {_room(f) for f in FILES} == set(FLOOR)


@pytest.mark.parametrize("statement", ["import sdcli", "import sdcli.cli.main", "import sdcli.cli.generate"])
def test_imports_are_light(statement: str) -> None:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not set(done.stdout.split()) & {*HEAVY, "numpy", "PIL", "huggingface_hub"}


def test_the_python_door_draws(sdcli: Sdcli) -> None:
    """A program that uses the library gets the pixels that the command line gets."""
    import sdcli as library
    from tests.conftest import record_of

    done = sdcli("generate", "a star", "-m", "demo", "-s", "3", "--steps", "2", "--cfg", "7.5", "--dtype", "fp32")
    pipeline = library.load("demo", library.DevicePlan(dtype="fp32"))
    steps: list[int] = []
    request = library.GenerationRequest(prompt="a star", seed=3, num_inference_steps=2)
    (picture,) = pipeline.generate([request], listener=lambda step: steps.append(step.number))
    assert picture.record.pixels.sha256 == record_of(done.lines[0])["pixels"]["sha256"]
    assert steps == [1, 2]
    (other,) = pipeline.generate([library.GenerationRequest(prompt="a star", num_inference_steps=1)])
    assert other.record.request.seed is not None
    assert set(library.__all__) <= set(dir(library)) | set(library._ROOMS)
