"""Command lines, one after the other in one process of their own, and how each ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN = """
import io, json, sys, time
from sdcli.cli.main import main
real = sys.stdout
for argv in json.loads(sys.argv[1]):
    sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    began = time.monotonic()
    code = main(argv)
    sys.stdout.flush()
    done = {"code": code, "out": sys.stdout.buffer.getvalue().decode(), "err": sys.stderr.getvalue()}
    done |= {"seconds": time.monotonic() - began, "torch": "torch" in sys.modules}
    print(json.dumps(done), file=real, flush=True)
"""


@dataclass(frozen=True)
class Told:
    """How a command line ended, and what people were told."""

    code: int
    out: list[str]
    err: list[str]
    seconds: float

    @property
    def two_lines(self) -> tuple[str, str]:
        """The error and its hint, or the last two lines that were said."""
        said = [*self.err, "", ""]
        at = next((i for i, line in enumerate(self.err) if line.startswith("error: ")), max(len(self.err) - 2, 0))
        return said[at], said[at + 1]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out]


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a person of whom nothing is set, with all caches in a folder, and a hub that is not there."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SDCLI_", "HF_"))}
    places = {"XDG_CONFIG_HOME": str(home / "config"), "XDG_CACHE_HOME": str(home / "cache"), "HF_HOME": str(home)}
    return own | places | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}


def run(commands: Sequence[Sequence[str]], folder: Path, env: Mapping[str, str]) -> list[Told]:
    """Run command lines that need no torch."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        capture_output=True, text=True, env=dict(env), cwd=folder, timeout=120, check=False,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(found) == len(commands), done.stderr
    assert not any(d["torch"] for d in found), "torch was imported"
    return [Told(d["code"], d["out"].splitlines(), d["err"].splitlines(), d["seconds"]) for d in found]
