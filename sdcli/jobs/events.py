"""What a run tells machines: one JSON object a line (the contract, section JSON). A key that does not apply is null."""

from __future__ import annotations

from typing import Any

from sdcli.errors import SdcliError
from sdcli.jobs.jobs import Job
from sdcli.record import SCHEMA, Record


def image(job: Job, record: Record, path: str | None, format: str, warnings: tuple[str, ...]) -> dict[str, Any]:
    """Return the event of a finished picture; `seconds` are those of its pack, shared out."""
    seconds = (record.seconds.draw + record.seconds.decode) / record.plan.pack_size
    return {
        "schema": SCHEMA,
        "event": "image",
        "id": record.id,
        "path": path,
        "line": job.line,
        "prompt": record.request.prompt,
        "seed": record.request.seed,
        "width": record.pixels.width,
        "height": record.pixels.height,
        "format": format,
        "pixels": record.pixels.sha256,
        "seconds": round(seconds, 3),
        "warnings": list(warnings),
    }


def error(failure: SdcliError, *, line: int | None = None) -> dict[str, Any]:
    """Return the event of a failure: a job's, or the command's."""
    return {
        "schema": SCHEMA,
        "event": "error",
        "id": failure.id,
        "path": None,
        "line": line,
        "exit": failure.exit_code,
        "code": failure.slug,
        "message": failure.message,
        "hint": failure.hint,
    }
