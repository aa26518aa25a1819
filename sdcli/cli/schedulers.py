"""`sdcli schedulers`: what takes the noise away, under all its names."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli import schedulers as table
from sdcli.cli.main import app
from sdcli.cli.results import Results


@app.command(
    help="""List the schedulers with all their names.

Examples:

  sdcli schedulers

  sdcli schedulers --json | jq -r .name
"""
)
def schedulers(
    as_json: Annotated[bool, typer.Option("--json/--no-json", help="Print a JSON object a line.")] = False,
) -> None:
    results = Results(as_json=as_json)
    entries = table.entries_json()
    if as_json:
        for entry in entries:
            results.event({"schema": 1, "event": "scheduler", **entry})
        return
    rows = [("NAME", "A1111", "DIFFUSERS", "K-DIFFUSION", "")]
    for entry in entries:
        a1111 = " ".join(w for w in (entry["a1111"], entry["schedule_type"]) if w) if entry["a1111"] else "-"
        note = "" if entry["available"] else f"needs {', '.join(entry['needs'])}: pip install 'sdcli[schedulers]'"
        rows.append((entry["name"], a1111, entry["class"], entry["k_diffusion"] or "-", note))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        results.line(
            "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[4]]).rstrip()
        )
