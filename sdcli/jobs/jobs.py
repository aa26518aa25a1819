"""A job: one picture to draw in a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from sdcli.request import GenerationRequest, draw_seed


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to draw: its request with the seed filled in, its place in the run (from 1), the line that it came
    from, and what travels with it."""

    request: GenerationRequest
    index: int
    line: int | None = None
    template: str | None = None
    name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


def of_prompts(
    prompts: Sequence[str],
    request: GenerationRequest,
    *,
    count: int = 1,
    name: str | None = None,
    tags: dict[str, str] | None = None,
) -> Iterator[Job]:
    """Yield `count` jobs for each prompt; picture k of a prompt's has its seed + k."""
    index = 0
    for prompt in prompts:
        first = draw_seed() if request.seed in (None, -1) else request.seed
        assert first is not None
        for k in range(count):
            index += 1
            # Seeds go round where they end.
            one = msgspec.structs.replace(request, prompt=prompt, seed=(first + k) % 2**63)
            yield Job(request=one, index=index, name=name, tags=tags or {})
