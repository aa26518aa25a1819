"""The words of a pack, as pipelines of diffusers take them: embeddings, and other ones in later steps where a prompt says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdcli.pipeline.encoding import Encoded, Encoder
from sdcli.prompts import syntax
from sdcli.request import GenerationRequest


class Words:
    """What is read for a pack whose requests have one shape; `steps` are those that will be drawn."""

    def __init__(self, encoder: Encoder, pack: Sequence[GenerationRequest], *, guided: bool, steps: int) -> None:
        self.steps, self.pooled = steps, encoder.xl

        def encoded(field: str) -> list[Encoded]:
            found = []
            for request in pack:
                how = syntax.how(request, encoder.model.family)
                found.append(
                    encoder.encode(
                        getattr(request, field), syntax=how.syntax, long=how.long, clip_skip=request.clip_skip,
                        steps=steps, negative=field != "prompt",
                    )
                )  # fmt: skip
            return found

        self.prompts = encoded("prompt")
        self.negatives = encoded("negative_prompt") if guided else []
        most = max(one.chunks for one in (*self.prompts, *self.negatives))
        self.prompts = [encoder.padded(one, most) for one in self.prompts]
        self.negatives = [encoder.padded(one, most) for one in self.negatives]

    @property
    def change(self) -> bool:
        """Whether other words are read in some steps."""
        return any(one.changes for one in (*self.prompts, *self.negatives))

    def arguments(self) -> dict[str, Any]:
        """Return what a pipeline is called with; the words are those of the first step."""
        given: dict[str, Any] = {}
        for prefix, many in (("", self.prompts), ("negative_", self.negatives)):
            if many:
                embeds, pooled = _together([one.at(1) for one in many])
                given[f"{prefix}prompt_embeds"] = embeds
                if self.pooled:
                    given[f"{prefix}pooled_prompt_embeds"] = pooled
        return given

    @property
    def told(self) -> list[str]:
        """What a pipeline has to hand over after each step, for `after` to change it."""
        if not self.change:
            return []
        return ["prompt_embeds", "add_text_embeds"] if self.pooled else ["prompt_embeds"]

    def after(self, index: int, of: int) -> dict[str, Any]:
        """Return what the network reads after its call number `index` (from 0) of `of`: some schedulers call it twice a step."""
        if not self.change:
            return {}
        step = 1 + (index + 1) * self.steps // of
        embeds, pooled = _together([one.at(step) for one in (*self.negatives, *self.prompts)])
        return {"prompt_embeds": embeds} | ({"add_text_embeds": pooled} if self.pooled else {})


def _together(many: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    import torch

    pooled = None if many[0][1] is None else torch.cat([p for _, p in many])
    return torch.cat([e for e, _ in many]), pooled
