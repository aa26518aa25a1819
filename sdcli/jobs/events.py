"""What a run tells machines: one JSON object a line (the contract, section JSON). A key that does not apply is null."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdcli import metadata, output
from sdcli.errors import SdcliError
from sdcli.jobs.jobs import Job
from sdcli.record import SCHEMA, Record


def image(
    job: Job, record: Record, path: str | None, format: str, pixels: str, warnings: tuple[str, ...], *, among: int = 1
) -> dict[str, Any]:
    """Return the event of a finished picture: `pixels` is the SHA-256 of those that its file holds, `seconds` are those
    of its pack, shared out `among` its pictures."""
    seconds = (record.seconds.draw + record.seconds.decode) / among
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
        "pixels": pixels,
        "seconds": round(seconds, 3),
        "warnings": list(warnings),
    }


def found(job: Job, id: str, path: Path) -> dict[str, Any]:
    """Return the event of a picture that is there and of whose drawing nobody has told; its seconds are not known."""
    identity = metadata.identity(path)
    assert identity is not None
    return {
        "schema": SCHEMA,
        "event": "image",
        "id": id,
        "path": str(path),
        "line": job.line,
        "prompt": job.request.prompt,
        "seed": job.request.seed,
        "width": identity.pixels.width,
        "height": identity.pixels.height,
        "format": output.ENDINGS[path.suffix.lower()],
        "pixels": identity.pixels.stored_sha256 or identity.pixels.sha256,
        "seconds": None,
        "warnings": [],
    }


def error(failure: SdcliError, *, line: int | None = None) -> dict[str, Any]:
    """Return the event of a failure: a job's, or the command's."""
    return {
        "schema": SCHEMA,
        "event": "error",
        "id": failure.id,
        "path": None,
        "line": failure.line if line is None else line,
        "exit": failure.exit_code,
        "code": failure.slug,
        "message": failure.message,
        "hint": failure.hint,
    }


def skipped(id: str, path: str | None, line: int | None) -> dict[str, Any]:
    """Return the event of a job that an earlier run has done; `path` is null where it had failed."""
    return {"schema": SCHEMA, "event": "skipped", "id": id, "path": path, "line": line}


def sheet(id: str, path: str, width: int, height: int, pixels: str) -> dict[str, Any]:
    """Return the event of a grid's contact sheet."""
    return {
        "schema": SCHEMA, "event": "sheet", "id": id, "path": path, "width": width, "height": height, "format": "png",
        "pixels": pixels,
    }  # fmt: skip


def summary(*, done: int, failed: int, skipped: int, left: int, seconds: float) -> dict[str, Any]:
    """Return the last event of a run; the counts are those of rows' pictures."""
    return {
        "schema": SCHEMA, "event": "summary", "done": done, "failed": failed, "skipped": skipped, "left": left,
        "seconds": round(seconds, 3),
    }  # fmt: skip
