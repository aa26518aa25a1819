"""Whole processes side by side: run turn by turn, so that what slows the machine slows both sides."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Command:
    """One side: its argv, what its environment has besides, and the exit code that means it did its work."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one process with its children: by the clock, and of the CPU (user and system)."""

    wall: float
    cpu: float


Costs = Mapping[str, Sequence[Cost]]


class Failed(Exception):
    """A side did not do its work, so there is nothing to compare."""


def once(name: str, command: Command, folder: Path) -> Cost:
    """Run a command to its end in `folder`; raises Failed with its stderr."""
    env = {**os.environ, **command.env}
    # Where Python may not keep what it compiles, a checkout is compiled at every start, unlike an installed package.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command.argv, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != command.exit_code:
        raise Failed(f"{name}: exit code {done.returncode}\n{done.stderr.strip()}")
    return Cost(wall=wall, cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def alternate(commands: Mapping[str, Command], rounds: int, folder: Path) -> Costs:
    """Run each command once unmeasured (files into the cache, bytecode written), then all in turn, `rounds` times."""
    for name, command in commands.items():
        once(name, command, folder)
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for turn in range(rounds):
        # Forth and back, so that none always comes after the same other.
        for name in list(commands)[:: 1 if turn % 2 == 0 else -1]:
            costs[name].append(once(name, commands[name], folder))
    return costs


def median(costs: Sequence[Cost], of: str) -> float:
    """Return the median of a side's `wall` or `cpu`."""
    return float(statistics.median(getattr(c, of) for c in costs))


def ratio(costs: Sequence[Cost], against: Sequence[Cost], of: str) -> float:
    """Return the median over the rounds of one side's `wall` or `cpu` over the other's in the same round."""
    return float(statistics.median(getattr(a, of) / getattr(b, of) for a, b in zip(costs, against, strict=True)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a markdown table: the first column is text, the others stand right."""
    cells = [list(head), *(list(r) for r in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    sides = [str.ljust, *[str.rjust] * (len(head) - 1)]
    lines = ["| " + " | ".join(s(c, w) for s, c, w in zip(sides, row, widths, strict=True)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
