"""What a picture's file carries besides its pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sdcli.errors import BadInput
from sdcli.metadata import infotext, ours
from sdcli.metadata.bounds import MOST_TEXT
from sdcli.metadata.xmp import mark
from sdcli.record import Record

How = Literal["full", "minimal", "none"]


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A1111's text, the JSON of the record or of its identity, and XMP's mark; what is empty is left out."""

    infotext: str = ""
    record: str = ""
    mark: dict[str, str] = field(default_factory=dict)


def carried(record: Record, how: How) -> Carried:
    """Return all of it (`full`), the mark and the job's id and pixels (`minimal`), or nothing (`none`).

    Raises BadInput for text that is not Unicode, or that is longer than what can be read again.
    """
    if how == "none":
        return Carried()
    said = ours.encode(record if how == "full" else ours.identity_of(record))
    # An ASCII character takes one byte and the others six in XMP; EXIF's takes two.
    if 6 * len(said) > MOST_TEXT:
        raise BadInput(
            f"the record is {len(said) / 1e6:.1f} million characters long, and {MOST_TEXT // 6 / 1e6:.1f} can be read again",
            "shorten the prompt, or leave it out with --metadata minimal",
        )
    return Carried(
        infotext=infotext.infotext(record) if how == "full" else "",
        record=said,
        mark=mark(record.model, record.versions.get("sdcli")),
    )
