"""Prompts as compel reads them: `word++`, `(some words)1.3`, `("one", "other").blend(0.3, 0.7)`, `("one", "other").and()`."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from sdcli.errors import UsageError

INSTALL = "pip install 'sdcli[compel]'"
SENTENCE = (".</w>",)
PHRASE = (".</w>", ",</w>", ";</w>", ":</w>")

Fragments: TypeAlias = list[tuple[str, float]]


@cache
def _grammar() -> Any:
    """Return compel's module that reads prompts. It is taken out of its package, which imports torch."""
    found = importlib.util.find_spec("compel")
    if found is None or found.origin is None:
        raise UsageError("compel's syntax needs the library compel, which is not installed", INSTALL)
    name = "compel.prompt_parser"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        "sdcli_compel_grammar", Path(found.origin).parent / "prompt_parser.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses ask for the module by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def _parser() -> Any:
    return _grammar().PromptParser()


@lru_cache(maxsize=256)
def read(prompt: str) -> tuple[tuple[Fragments, ...], ...]:
    """Return what is encoded one after the other, each of which is several texts that are blended, or one: fragments and weights.

    Raises UsageError for what can't be read, and for what compel reads and nothing here can draw: `.swap()`, `.withLora()`.
    """
    with warnings.catch_warnings():
        # pyparsing wants names changed that compel uses.
        warnings.simplefilter("ignore")
        try:
            conjunction = _parser().parse_conjunction(prompt)
        except RecursionError:
            raise UsageError("the prompt's brackets are nested too deep for compel", "nest fewer") from None
        except Exception as error:
            # Not the parser's own alone: the library asserts and converts as it goes.
            raise UsageError(f"compel can't read the prompt: {error or type(error).__name__}", HINT) from error
    if conjunction.lora_weights:
        raise UsageError("compel's .withLora() is not read here", "name the LoRA by --lora NAME:WEIGHT")
    parts = []
    for prompt_read in conjunction.prompts:
        if prompt_read.wants_cross_attention_control:
            raise UsageError(
                "compel's .swap() needs an attention of its own in each step, which diffusers' step loop has not",
                "write two prompts, or --prompt-syntax a1111 and [from:to:0.3]",
            )
        blended = getattr(prompt_read, "prompts", None) or [prompt_read]
        parts.append(tuple([(child.text, child.weight) for child in one.children] for one in blended))
    return tuple(parts)


HINT = r"write \( and \) for brackets, \" for quotes; or --prompt-syntax plain"


def split(words: list[str], most: int) -> int:
    """Return how many tokens compel takes into a chunk of `most`: up to the last sentence's end, else phrase's, else word's."""
    if len(words) <= most:
        return len(words)
    for ends in (SENTENCE, PHRASE):
        if last := next((i for i in range(most, 0, -1) if words[i - 1] in ends), 0):
            return last
    return next((i for i in range(most, 0, -1) if words[i - 1].endswith("</w>")), most)
