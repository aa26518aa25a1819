"""Prompts as A1111 reads them: weights, BREAK, and words that come and go between steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from sdcli.errors import UsageError

STRONGER = 1.1
WEAKER = 1 / STRONGER
BREAK = "BREAK"
BREAK_WEIGHT = -1.0
# More brackets inside brackets than this are no prompt.
DEEPEST = 200

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_WEIGHED = re.compile(rf"\\[\\()\[\]]|\\|:\s*({_NUMBER})\s*\)|[()\[\]:]|[^\\()\[\]:]+")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_AND = re.compile(r"\bAND\b")
_SWITCHED = re.compile(r"\\.|[()\[\]:|]|[^\\()\[\]:|]+|\\|\n")
_WHEN = re.compile(rf"\s*({_NUMBER}(?:[eE][+-]?\d+)?)\s*")


def composes(prompt: str) -> bool:
    """Whether a prompt has an AND in it, which A1111 makes noise estimates of their own for."""
    return _AND.search(prompt) is not None


def weights(text: str) -> list[tuple[str, float]]:
    r"""Return a text's parts, each with its weight, as A1111 reads them (modules/prompt_parser.py says how, by examples).

    `(a)` is 1.1 times as strong, `(a:1.3)` 1.3 times, `[a]` 1.1 times weaker; they multiply. `\(`, `\)`, `\[`, `\]` and `\\` are
    the characters themselves. What is not closed holds up to the end. `BREAK` is a part of its own, of weight -1; in
    brackets too. Raises UsageError for brackets without end, and for weights that multiply to more than a number holds.
    """
    parts: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(since: int, factor: float) -> None:
        parts[since:] = [(t, w if _is_break(t, w) else w * factor) for t, w in parts[since:]]

    for found in _WEIGHED.finditer(text):
        piece, factor = found[0], found[1]
        if piece[0] == "\\":
            parts.append((piece[1:], 1.0))
        elif piece in opened:
            opened[piece].append(len(parts))
            if len(opened["("]) + len(opened["["]) > DEEPEST:
                raise UsageError(
                    f"the prompt has more than {DEEPEST} brackets open", "close them, or --prompt-syntax plain"
                )
        elif factor is not None and opened["("]:
            weigh(opened["("].pop(), float(factor))
        elif piece == ")" and opened["("]:
            weigh(opened["("].pop(), STRONGER)
        elif piece == "]" and opened["["]:
            weigh(opened["["].pop(), WEAKER)
        else:
            first, *more = _BREAK.split(piece)
            parts.append((first, 1.0))
            for part in more:
                parts += [(BREAK, BREAK_WEIGHT), (part, 1.0)]
    for since in opened["("]:
        weigh(since, STRONGER)
    for since in opened["["]:
        weigh(since, WEAKER)
    if not all(math.isfinite(weight) for _, weight in parts):
        raise UsageError("the prompt's weights multiply to more than a number holds", "take some of its brackets away")
    return list(_joined(parts)) or [("", 1.0)]


def _is_break(text: str, weight: float) -> bool:
    return text == BREAK and weight == BREAK_WEIGHT


def _joined(parts: list[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Join neighbours of the same weight."""
    at = 0
    while at < len(parts):
        end, weight = at + 1, parts[at][1]
        if not _is_break(*parts[at]):
            while end < len(parts) and parts[end][1] == weight and not _is_break(*parts[end]):
                end += 1
        yield "".join(text for text, _ in parts[at:end]), weight
        at = end


Part: TypeAlias = "str | _Switch | _Turns"


class _Switch(msgspec.Struct, frozen=True):
    """`[before:after:when]`."""

    before: list[Part]
    after: list[Part]
    when: str

    def until(self, steps: int) -> int:
        """Return the last step that `before` is for; 0: none. A number with a point is a share of the steps."""
        share = float(self.when) * (steps if "." in self.when else 1)
        return int(min(max(share, 0.0), float(steps)))


class _Turns(msgspec.Struct, frozen=True):
    """`[a|b]`: one after the other, a step each."""

    texts: list[list[Part]]


def schedule(text: str, steps: int) -> list[tuple[int, str]]:
    r"""Return what a text says at which steps, as A1111 reads it: (the last step of `steps` that it is for, from 1; the text).

    `[from:to:when]` changes after step `when`, which is a share of the steps where it has a point; `[to:when]` comes, and
    `[from::when]` goes; `[a|b]` takes turns, a step each. They nest; the texts keep their weights. What is not closed
    is text. Raises UsageError for nesting without end.
    """
    parts = _parts(text)
    try:
        untils = sorted({steps, *(step for part in parts for step in _changes(part, steps) if step > 0)})
        return [(until, _at(parts, until, steps)) for until in untils]
    except RecursionError:
        raise UsageError(
            "the prompt's [from:to:when] are nested too deep", "nest fewer, or --prompt-syntax plain"
        ) from None


def _changes(part: Part, steps: int) -> Iterator[int]:
    """Yield the last steps before a part changes."""
    if isinstance(part, str):
        return
    if isinstance(part, _Switch):
        yield part.until(steps)
        inner = [part.before, part.after]
    else:
        yield from range(1, steps + 1)
        inner = part.texts
    for parts in inner:
        for one in parts:
            yield from _changes(one, steps)


def _at(parts: list[Part], step: int, steps: int) -> str:
    found = []
    for part in parts:
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, _Switch):
            found.append(_at(part.before if step <= part.until(steps) else part.after, step, steps))
        else:
            found.append(_at(part.texts[(step - 1) % len(part.texts)], step, steps))
    return "".join(found)


def _parts(text: str) -> list[Part]:
    """Return a text's parts. Brackets that belong to nothing are text."""
    if "[" not in text:
        return [text]
    tokens = _SWITCHED.findall(text)
    # From the last bracket to the first: what is inside one has been read by then.
    read: dict[int, tuple[list[Part], int]] = {}
    for at in range(len(tokens) - 1, -1, -1):
        found = _bracket(tokens, at, read)
        if found is not None:
            read[at] = found
    parts: list[Part] = []
    at = 0
    while at < len(tokens):
        inner, end = read.get(at) or ([tokens[at]], at + 1)
        _extend(parts, inner)
        at = end
    return parts


def _bracket(tokens: list[str], at: int, read: dict[int, tuple[list[Part], int]]) -> tuple[list[Part], int] | None:
    """Return what the bracket at `at` says and where it ends, None where it opens nothing."""

    def run(start: int, *ends: str) -> tuple[list[Part], int, str]:
        """Return the parts from `start` on, where they end, and with what: "" where a bracket belongs to nothing."""
        parts: list[Part] = []
        while start < len(tokens):
            if tokens[start] in ends:
                return parts, start, tokens[start]
            if tokens[start] in ("(", "["):
                if start not in read:
                    break
                inner, start = read[start]
            elif tokens[start] in (")", "]", ":"):
                break
            else:
                inner, start = [tokens[start]], start + 1
            _extend(parts, inner)
        return parts, start, ""

    if tokens[at] == "(":
        first, end, mark = run(at + 1, ")", ":")
        if mark == ":":
            second, end, mark = run(end + 1, ")")
            first = [*first, ":", *second]
        return (_joint("(", first, ")"), end + 1) if mark else None
    if tokens[at] != "[":
        return None
    texts: list[list[Part]] = []
    end, mark = at, "|"
    while mark == "|":
        one, end, mark = run(end + 1, "|", "]")
        texts.append(one)
    if mark and len(texts) > 1:
        return [_Turns(texts)], end + 1
    first, end, mark = run(at + 1, "]", ":")
    if mark == "]":
        return _joint("[", first, "]"), end + 1
    if mark == ":":
        if when := _when(tokens, end):
            return [_Switch([], first, when)], end + 3
        second, end, mark = run(end + 1, ":")
        if mark and (when := _when(tokens, end)):
            return [_Switch(first, second, when)], end + 3
    return None


def _when(tokens: list[str], colon: int) -> str | None:
    """Return the number between a colon and a `]`."""
    if tokens[colon + 2 : colon + 3] != ["]"]:
        return None
    found = _WHEN.fullmatch(tokens[colon + 1])
    return found[1] if found else None


def _joint(*pieces: str | list[Part]) -> list[Part]:
    parts: list[Part] = []
    for piece in pieces:
        _extend(parts, [piece] if isinstance(piece, str) else piece)
    return parts


def _extend(parts: list[Part], more: list[Part]) -> None:
    """Append parts; text that follows text becomes one."""
    for part in more:
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        else:
            parts.append(part)
