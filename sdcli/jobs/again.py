"""A picture as what to draw again: its values, its model, and what of it can't be had here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from sdcli import pipeline
from sdcli.errors import BadInput, InputMissing, ModelUnavailable
from sdcli.jobs import journal
from sdcli.metadata import inspecting
from sdcli.metadata.inspecting import Found
from sdcli.models import ALIASES, hub_name
from sdcli.record import Record
from sdcli.request import GenerationRequest

# So many things that a picture says and sdcli can't draw are named.
MOST_NAMED = 10


def look(path: str, stdin: BinaryIO | None = None) -> Found | None:
    """Return what the picture at `path` says (- with `stdin`: what comes there), None for the sheet of a grid.

    Raises InputMissing, and BadInput for what is no sound picture or says nothing that could be drawn.
    """
    if path == "-" and stdin is not None:
        found = inspecting.inspect_stream(stdin, "stdin")
    elif os.path.isdir(path):
        raise BadInput(f"{path} is a folder", "sdcli batch --from draws all that is in it")
    else:
        found = inspecting.inspect(Path(path))
    if found.is_sheet:
        return None
    if "prompt" not in found.request:
        raise BadInput(
            f"{found.path}: it does not say what it was made from", "sdcli inspect --raw shows what it says at all"
        )
    return found


def as_drawn(record: Record, path: str | Path) -> GenerationRequest:
    """Return the request that draws a record's picture again: with the pictures that it names, where they lie beside it, or here.

    Records that do not say how the prompt was read are of times when it was read plainly, and cut.
    """
    request = record.request
    if record.tokens.syntax is None:
        request = msgspec.structs.replace(request, prompt_syntax="plain", long_prompt="cut")
    pipeline.check_recorded(request)
    return pipeline.located(request, (Path(path).parent, Path()))


def values(found: Found) -> dict[str, Any]:
    """Return the picture's request as values to merge others over, and its tags; None is what the model decides."""
    said = dict(found.request)
    if found.record is not None:
        said = msgspec.to_builtins(as_drawn(found.record, found.path))
    said = {field: value for field, value in said.items() if value is not None}
    if found.record is not None and found.record.tags:
        said["tags"] = dict(found.record.tags)
    return said


def nothing(found: Found) -> frozenset[str]:
    """Return the fields of which the picture's own record says that none was given, and the model decided."""
    if found.record is None:
        return frozenset()
    request = found.record.request
    return frozenset(f for f in request.__struct_fields__ if getattr(request, f) is None)


def template(found: Found) -> str | None:
    """Return what the picture's prompt was expanded from."""
    return found.record.template if found.record is not None else None


def model(found: Found) -> str | None:
    """Return the model to name for drawing a picture again, None where it does not say.

    A model on the disk of whoever drew it is a name and no path, and a path in a picture is nobody's to open: ModelUnavailable.
    """
    record = found.record.model if found.record is not None else None
    if record is None:
        return None
    if record.repo is not None and (name := hub_name(record.repo, record.commit)):
        return name
    if record.name in ALIASES:
        return record.name
    raise ModelUnavailable(
        f"{found.path} was drawn by {record.name}, and does not say where that lies", "say it with --model"
    )


def missing(found: Found, files: Mapping[str, str] | None) -> list[str]:
    """Return what of a picture's making can't be had: what it says besides, and weights that are others here.

    `files` are the SHA-256 of the model's files that will draw, None where they are not known yet.
    """
    told = [f"{_short(name)}: {_short(value)}" for name, value in islice(found.unmapped.items(), MOST_NAMED)]
    if len(found.unmapped) > MOST_NAMED:
        told.append(f"and {len(found.unmapped) - MOST_NAMED} more")
    lines = [f"{found.path} says what sdcli does not draw: {', '.join(told)}"] if told else []
    record = found.record.model if found.record is not None else None
    if record is None:
        name = (found.model or {}).get("name")
        if name:
            lines.append(f"{found.path} was made with the model {_short(name)}, which is not looked for")
    elif files is not None and files != record.files:
        changed = sorted(k for k in {*files, *record.files} if files.get(k) != record.files.get(k))
        lines.append(f"{found.path} was drawn by other weights than these: {', '.join(changed[:3])}")
    return lines


def models_of(paths: Iterable[str]) -> Iterator[str | None]:
    """Yield the models of pictures; those that can't be drawn again are left for the reading that refuses them."""
    for path in paths:
        try:
            found = look(path)
        except (BadInput, InputMissing):
            continue
        if found is not None:
            yield model(found)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def pictures(names: Sequence[str]) -> list[str]:
    """Return the pictures that files and folders mean, those in a folder in their order. Raises InputMissing."""
    found: list[str] = []
    for name in names:
        if os.path.isdir(name):
            found += map(str, journal.pictures(Path(name)))
        elif os.path.lexists(name):
            found.append(name)
        else:
            raise InputMissing(f"{name} is not there", "check the path")
    return found
