"""Tokens: how much of a prompt a text encoder reads, and what it does not."""

from __future__ import annotations

from typing import Any

from sdcli.record import TokenRecord


def count(prompt: str, tokenizer: Any, most: int | None = None) -> TokenRecord:
    """Return how many of a prompt's tokens fit, and the text of those that do not.

    `most` is the limit, marks of start and end included, where it is not the tokenizer's own: a CLIP tokenizer of limit
    77 reads 75 tokens between its marks.
    """
    # Far past the limit no more than the fact matters, and tokenizers warn of what is counted here.
    encoded = tokenizer(prompt, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False)
    limit = (most or tokenizer.model_max_length) - tokenizer.num_special_tokens_to_add()
    offsets = encoded["offset_mapping"]
    if len(offsets) <= limit:
        return TokenRecord(used=len(offsets), chunks=1)
    return TokenRecord(used=limit, chunks=1, cut=prompt[offsets[limit][0] :].strip())
