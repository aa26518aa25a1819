"""sdcli's own record, which is lossless; where `--metadata minimal` left it out, its id and what the XMP says.

Source: `sdcli.metadata.ours` and `sdcli.metadata.xmp`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sdcli.errors import BadInput
from sdcli.metadata import ours
from sdcli.metadata.readers import Said, Saying, Texts, Unreadable, json_object, xmp_text
from sdcli.metadata.xmp import NAMESPACES
from sdcli.record import Record

ORDER = 0
# What IPTC calls the model and what pins it.
SYSTEM = {"name": "AISystemUsed", "version": "AISystemVersionUsed"}


def read(texts: Texts) -> Said | None:
    """Raises BadInput, after which nobody else is asked: infotext beside a record that can't be read is half the truth."""
    if '"kind"' in texts.get(ours.KEYWORD, "") and (sheet := _sheet(texts[ours.KEYWORD])):
        return Said(format="sdcli", request={}, unmapped=sheet)
    record = ours.decode(texts[ours.KEYWORD]) if ours.KEYWORD in texts else None
    return _full(record) if record else _minimal(texts)


class _Sheet(msgspec.Struct):
    """What tells a grid's sheet: its cells' pictures have each a record of their own, and it has no job's id."""

    kind: Literal["grid"]
    id: msgspec.UnsetType = msgspec.UNSET


def _sheet(text: str) -> dict[str, Any] | None:
    """Return what the sheet of a grid says, None for what is none. Raises BadInput for one that can't be read."""
    try:
        msgspec.json.decode(text, type=_Sheet)
        return json_object(text, ours.KEYWORD)
    except Unreadable as error:
        raise BadInput(error.message, error.hint) from error
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        return None  # A record, or what is none of either: the next that looks says why.


def _full(record: Record) -> Said:
    request = {k: v for k, v in msgspec.to_builtins(record.request).items() if v is not None}
    model = msgspec.to_builtins(record.model)
    match [(name, sha256) for name, sha256 in record.model.files.items() if not name.startswith("--")]:
        case [(path, sha256)] if path.endswith(".safetensors"):
            model["hash"] = sha256[:10]  # As A1111 counts it, for a checkpoint of one file.
        case _:
            model["hash"] = None
    return Said(format="sdcli", request=request, model=model, record=record)


def _minimal(texts: Texts) -> Said | None:
    tool = xmp_text(texts, NAMESPACES["xmp"], "CreatorTool")
    if ours.KEYWORD not in texts and not (tool and tool.split()[:1] == ["sdcli"]):
        return None
    saying = Saying("sdcli")
    saying.name({"CreatorTool": tool})
    if ours.KEYWORD in texts:
        saying.name({"id": ours.identity(texts[ours.KEYWORD]).id})
    used = {key: xmp_text(texts, NAMESPACES["Iptc4xmpExt"], name) for key, name in SYSTEM.items()}
    return saying.said({"name": used["name"], "hash": None, "version": used["version"]})
