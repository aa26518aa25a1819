"""How a prompt is read: which syntax, what becomes of a long one, and what can't be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from sdcli.errors import UsageError
from sdcli.models import Family, Model
from sdcli.prompts import a1111
from sdcli.request import GenerationRequest

if TYPE_CHECKING:
    from sdcli.prompts.tokens import Reader


class How(msgspec.Struct, frozen=True):
    """How prompts are read."""

    syntax: Literal["a1111", "compel", "plain"]
    long: Literal["chunk", "cut", "error"]


def how(request: GenerationRequest, family: Family | None) -> How:
    """Return how a request's prompts are read for a family (None: not known yet).

    Raises UsageError for a syntax or a length that its text encoder has no use for.
    """
    syntax, long = request.prompt_syntax, request.long_prompt
    if family is None or family.weighs:
        return How(syntax or "a1111", long or "chunk")
    if syntax not in (None, "plain"):
        raise _about(
            "prompt_syntax",
            f"{family.name} can't use the syntax {syntax}: its text encoder takes no weights",
            "leave --prompt-syntax out",
        )
    if long == "chunk":
        raise _about(
            "long_prompt",
            f"{family.name} can't read a prompt in chunks: its text encoder reads one",
            "leave --long-prompt out, or cut",
        )
    return How("plain", long or "cut")


def check(
    request: GenerationRequest, model: Model, added: Mapping[str, int] | None = None, passes: Sequence[int] = ()
) -> None:
    """Refuse prompts that can't be read; those too long for `error`, where the tokenizer is here. `added` are words of
    embeddings and how many tokens each is, `passes` how many steps each pass draws, if not all.
    """
    way, reader = how(request, model.family), None
    if way.long == "error":
        from sdcli.prompts.tokens import Reader

        reader = Reader.of(model, added or {})
    for field in ("prompt", "negative_prompt"):
        try:
            for steps in passes or (request.num_inference_steps,):
                check_text(getattr(request, field), way, steps, negative=field != "prompt", reader=reader)
        except UsageError as error:
            error.field = error.field or field
            raise


def check_text(text: str, way: How, steps: int, *, negative: bool = False, reader: Reader | None = None) -> None:
    """Refuse a prompt that can't be read that way; one too long, where there is a reader."""
    if way.syntax == "compel":
        from sdcli.prompts import compel

        compel.read(text)
    # A1111 takes a negative prompt's AND for a word.
    if way.syntax == "a1111" and not negative and a1111.composes(text):
        raise UsageError(
            "AND is not drawn: composed prompts need more noise estimates a step than diffusers' step loop takes",
            "write 'and', or --prompt-syntax plain",
        )
    for said in texts(text, way.syntax, steps):
        if way.syntax == "a1111":
            a1111.weights(said)
        if reader is not None and way.long == "error":
            reader.read(said, syntax=way.syntax, long="error")


def texts(prompt: str, syntax: str, steps: int) -> list[str]:
    """Return the different texts that a prompt says in its steps, in their order."""
    if syntax != "a1111":
        return [prompt]
    return list(dict.fromkeys(text for _, text in a1111.schedule(prompt, steps)))


def _about(field: str, message: str, hint: str) -> UsageError:
    error = UsageError(message, hint)
    error.field = field
    return error
