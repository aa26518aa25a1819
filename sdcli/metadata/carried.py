"""What a picture's file carries besides its pixels."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sdcli.errors import BadInput
from sdcli.metadata import infotext, ours
from sdcli.metadata.bounds import MOST_CHARACTERS
from sdcli.metadata.xmp import mark
from sdcli.record import Record
from sdcli.request import GenerationRequest

# Characters that the mark and its packet may take, with the name of a model in it.
REST = 2**12

How = Literal["full", "minimal", "none"]


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """A1111's text, the JSON of the record or of its identity, and XMP's mark; what is empty is left out."""

    infotext: str = ""
    record: str = ""
    mark: dict[str, str] = msgspec.field(default_factory=dict)


def carried(record: Record, how: How) -> Carried:
    """Return all of it (`full`), the mark and the job's id and pixels (`minimal`), or nothing (`none`).

    Raises BadInput for text that is not Unicode, or that is longer than what can be read again.
    """
    if how == "none":
        return Carried()
    said = ours.encode(record if how == "full" else ours.identity_of(record))
    for_others = infotext.infotext(record) if how == "full" else ""
    _check_length(said, for_others)
    return Carried(infotext=for_others, record=said, mark=mark(record.model, record.versions.get("sdcli")))


def check_length(request: GenerationRequest, how: How) -> None:
    """Refuse a request that no record can hold, before it is drawn: of the record only this much is known then.

    Raises BadInput.
    """
    if how == "full":
        # Of files a record has the names alone.
        nothing: dict[str, Any] = {"init_image": None, "mask": None, "upscale": None}
        nothing |= dict.fromkeys(("lora", "embedding", "controlnet", "ip_adapter"), ())
        request = msgspec.structs.replace(request, **nothing)
        _check_length(ours.encode(request), request.prompt + request.negative_prompt)


def _check_length(said: str, for_others: str) -> None:
    """Refuse what readers do not take, which is the same for all containers: where it is XMP, they have it twice, as the packet
    and as what was found in it, and in ASCII; and A1111's text in UTF-16 beside it. The rest of the packet has its room.
    """
    length = len(for_others) + 2 * (ours.length_in_ascii(said) + REST)
    if length > MOST_CHARACTERS:
        raise BadInput(
            f"the prompt is too long for a record: it takes {length / 1e6:.1f} million characters, and "
            f"{MOST_CHARACTERS / 1e6:.1f} can be read again",
            "shorten it, or leave it out with --metadata minimal",
        )
