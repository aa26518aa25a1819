"""Dynamic prompts: `{red|blue} car` and `__animal__`, drawn by a seed or all of them in their order."""

from __future__ import annotations

import heapq
import itertools
import json
import math
import os
import re
import unicodedata
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from sdcli.errors import BadInput, InputMissing, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynamicprompts.commands import Command, VariantCommand, WildcardCommand
    from dynamicprompts.commands.variable_commands import VariableAccessCommand, VariableAssignmentCommand

# Bounds against what would never end. The largest thing that was ever meant is far below each.
LONGEST = 20_000  # characters of a template or value: the parser reads about 6,000 a second
LARGEST = 50_000  # characters and parts of what is drawn
DEEPEST = 64  # things inside things, of which a text has at most 16 braces
BRACES = 16
PATIENCE = 200_000  # parts that are looked at without a new prompt, which takes seconds; more than twice LARGEST
REMEMBERED = 100_000  # prompts, so that none is given twice
HEAVIEST = 1_000_000_000  # weight, so that their sums are numbers
NAMES = 1_000  # that a wildcard can have whose name is drawn
MOST = 100_000  # files and lists in a folder
BIGGEST = 64 << 20  # bytes of a file

MEND = "mend the file, or take it out of the folder"

_LOOKS_DYNAMIC = re.compile(
    r"\{[^{}|]*\|[^{}]*\}"  # {a|b}
    r"|\{\s*[~!@]?\s*\d*(?:-\d*)?\$\$"  # {2$$...
    r"|(?<!\w)__(?!_)\S(?:[^_\n]|_(?!_)){0,100}?__(?!\w)"  # __name__
)
# What the parser gives a meaning to; text without any of it stays as it is.
_MARKS = ("{", "__", "$", "#")
_VALUE_MARKS = re.compile(r"[{$#%]|__|//|/\*")
# The parser can't read a $ or % that is only a character. It gets a noncharacter instead, which no text has.
_ALONE = re.compile(r"(\$\$[^${}]*\$\$)|%(?!\{)|(?<!\$)\$(?![${])")
_AWAY = {ord("$"): "\ufdd0", ord("%"): "\ufdd1"}
_BACK = {0xFDD0: "$", 0xFDD1: "%"}
_BLANKS = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029]+")
_WEIGHT = re.compile(r"(\d+\.?\d*|\.\d+)\s*::(.*)", re.DOTALL)


def looks_dynamic(prompt: str) -> bool:
    """Whether a prompt looks as if it wants expanding: `{a|b}`, `{2$$a|b}` or `__name__`. A guess, for a hint."""
    return _LOOKS_DYNAMIC.search(prompt) is not None


class Expander:
    """Draws prompts from templates, with the wildcards of a folder. A file is read once, when it is first needed.

    The syntax is that of the library dynamicprompts, whose parser reads it (its docs/SYNTAX.md says more):

    * `{red|blue}`, `{3::red|blue}`: one of them, by weight; one of weight 0 is never drawn
    * `{2$$ and $$a|b|c}`, `{1-2$$a|b|c}`: so many different ones in any order, or as many as there are
    * `__animal__`, `__animals/cats__`: a value of a wildcard; `__animals/*__`: of all whose names fit (`*` fits `/` too)
    * `{2$$__animal__}`: two different values of a wildcard
    * `__animals/{cats|dogs}__`: a wildcard whose name is drawn first
    * `${a={x|y}}`, `${a=!{x|y}}`: sets a variable, drawn anew wherever it is used, or once; `?=` sets one that is not set
    * `${a}`, `${a:else}`, `__dress(a=red)__`: uses a variable; with a value if it is not set; sets one for a wildcard
    * `%{a photo of ... at dusk$$text}`: puts the text where `...` stands
    * `# note`: left out up to the end of the line, as are `//` and `/* */` after a `}` or `__`

    The library's marks for drawing one part in another way (`{~a|b}`, `{!a|b}`, `__@a__`) are refused.

    The wildcard `animals/cats` is the file `animals/cats.txt`, a value a line, without blank lines and `#` lines. A file
    `animals/any.yaml` (.yml, .json) holds lists by keys: `animals/KEY`, `animals/KEY/KEY`; an item is `text`, `3::text` or
    {text: ..., weight: 3}; a list without a key goes by the file's name. Values may hold all of the above. A name that is
    not there is looked for in subfolders. Hidden files are left alone; links out of the folder, and to folders, are
    refused where they are asked for.

    A template without `{`, `__`, `$` and `#` comes back as it is. In what another one gives, a run of blanks and control
    characters is one blank, and there is none at the ends.

    Only the parser is the library's. Its samplers (0.31) never end on a missing wildcard, give nothing for `{2$$a|a}`, give the
    first value alone for `${a=!{x|y}}` and `__{x|y}__` when asked for all, and mix up weights after the first of several.
    """

    def __init__(self, folder: Path | None) -> None:
        """Raise InputMissing where `folder` is not there, BadInput where it is no folder; None is no wildcards."""
        self._wildcards = _Wildcards(folder)
        self._sizes: dict[str, _Size] = {}

    def check(self, template: str) -> None:
        """Raise BadInput with a reason of one line for all that could go wrong in any draw.

        That is: what the parser can't read; a wildcard that is missing, empty, not UTF-8 or contains itself, however many files
        away; a variable that is not set or contains itself; a prompt that would grow beyond LARGEST. A reason
        that lies in a wildcard's file starts with FILE:LINE, or FILE and the list's key in YAML and JSON.
        """
        if _is_plain(template):
            return
        try:
            _Check(self._wildcards, self._sizes).size(_parsed(template), _Scope(), ())
        except RecursionError:
            raise _too_deep() from None

    def random(self, template: str, seed: int) -> str:
        """Return one prompt: the same for the same template, wildcards and seed, whenever and wherever.

        Equal options count each. Raises BadInput, as `check` does, if the draw comes upon what is wrong.
        """
        if _is_plain(template):
            return template
        try:
            return _finished(_Draw(self._wildcards, seed).text(_parsed(template), _Scope()))
        except RecursionError:
            raise _too_deep() from None

    def all(self, template: str, limit: int | None) -> Iterator[str]:
        """Yield every prompt, at most `limit`, in the template's order: what stands last changes first.

        Wildcards are in the order of their names, their values in that of the file; `{1-2$$...}` counts upwards. None is given
        twice among the first REMEMBERED; past those it may be, so that memory stays the same. Raises BadInput as
        `check` does, when it comes upon what is wrong, and if PATIENCE ends before there is a new prompt.
        """
        if limit is not None and limit < 1:
            return
        if _is_plain(template):
            yield template
            return
        every = _Every(self._wildcards)
        texts = every.new(map(_finished, every.texts(_parsed(template), _Scope())), REMEMBERED)
        try:
            for text in itertools.islice(texts, limit):
                every.left = PATIENCE
                yield text
        except RecursionError:
            raise _too_deep() from None


def _is_plain(template: str) -> bool:
    return not any(mark in template for mark in _MARKS)


def _finished(text: str) -> str:
    return _BLANKS.sub(" ", text.translate(_BACK)).strip(" ")


def _too_deep() -> BadInput:
    return BadInput(f"things are nested more than {DEEPEST} deep", "nest fewer braces and wildcards")


def _too_large() -> BadInput:
    return BadInput(f"it grows beyond {LARGEST:,} characters", "use fewer wildcards and variables inside others")


# Reading templates


@cache
def _parser() -> Callable[[str], Command]:
    import warnings

    from dynamicprompts.parser.parse import parse

    with warnings.catch_warnings():
        # The first call builds the grammar, with names that pyparsing 3.3 wants changed.
        warnings.simplefilter("ignore", DeprecationWarning)
        parse("{a}")
    return parse


@lru_cache(maxsize=256)
def _parsed(text: str) -> Command:
    return _parse(text)


def _parse(text: str) -> Command:
    """Return what a template or value says; BadInput with the reason where it can't be read."""
    if len(text) > LONGEST:
        raise BadInput(f"it has more than {LONGEST:,} characters", "shorten it, or put parts of it into wildcards")
    depth = 0
    for brace in re.findall("[{}]", text):
        depth = depth + 1 if brace == "{" else max(depth - 1, 0)
        # The parser would run out of stack, sooner or later depending on who calls.
        if depth > BRACES:
            raise BadInput(f"braces are nested more than {BRACES} deep", "put the inner ones into wildcards")
    parse, place = _parser(), 0
    for attempt in dict.fromkeys((text, _ALONE.sub(lambda match: match[1] or match[0].translate(_AWAY), text))):
        try:
            return parse(attempt)
        except RecursionError:
            raise _too_deep() from None
        except Exception as error:
            # Not the parser's own alone: the library asserts and converts as it goes.
            place = getattr(error, "loc", 0)
    rest = text[place : place + 30]
    why = "a { has no }, or between them is none of {a|b}, {2$$a|b} and ${name}"
    if rest.startswith("__"):
        why = "a __ has no other, or between them is no name"
    if "#" in text:
        why += "; # starts a note"
    raise BadInput(f"can't be read from character {place + 1} on, {rest!r}: {why}", "mend the braces or underscores")


# Reading wildcards


class _Option(msgspec.Struct, frozen=True):
    """One of several things to draw, and where it stands: FILE:LINE, or nothing for a part of the template."""

    command: Command
    weight: float
    where: str = ""


class _Values(msgspec.Struct, frozen=True):
    """A wildcard's values, at least one, none of weight 0, and the sums of their weights up to each."""

    name: str
    options: Sequence[_Option]
    sums: Sequence[float]


class _Placed(BadInput):
    """A reason that starts with its FILE:LINE."""


class _List(msgspec.Struct, frozen=True):
    """A list that a file holds: its items, or None for a text file's lines, which are read when they are needed."""

    file: Path
    shown: str
    items: Sequence[Any] | None = None


class _Wildcards:
    """The wildcards of a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lists: dict[str, list[_List]] | BadInput | None = None
        self._links: list[str] = []
        self._found: dict[str, _Values | BadInput] = {}
        if folder is None:
            return
        if not os.path.exists(folder):
            raise InputMissing(f"{_shown(folder)} is not there", "give the folder that the wildcards' files are in")
        if not os.path.isdir(folder):
            raise BadInput(f"{_shown(folder)} is no folder", "give the folder that the wildcards' files are in")

    def find(self, name: str) -> _Values:
        """Return the values of the wildcard, or of all whose names fit. Raises BadInput where there are none."""
        wanted = unicodedata.normalize("NFC", re.sub(r"[\\/]+", "/", name.translate(_BACK)).strip("/ \t\n"))
        found = self._found.get(wanted)
        if found is None:
            try:
                found = self._read(wanted)
            except BadInput as error:
                found = error
            self._found[wanted] = found
        if isinstance(found, BadInput):
            raise type(found)(found.message, found.hint)
        return found

    def _read(self, wanted: str) -> _Values:
        if self._folder is None:
            raise BadInput(
                f"there is no wildcard {wanted!r}: no folder of wildcards was given", "--wildcards DIR gives one"
            )
        if self._lists is None:
            try:
                self._lists = self._index(self._folder)
            except BadInput as error:
                self._lists = error
        if isinstance(self._lists, BadInput):
            raise type(self._lists)(self._lists.message, self._lists.hint)
        names: list[str] = []
        for pattern in (wanted, f"**/{wanted}"):
            if links := [link for link in self._links if fnmatchcase(os.path.splitext(link)[0], pattern)]:
                reason = f"the wildcard {wanted!r} is a link to a folder or out of {_shown(self._folder)}: {links[0]}"
                raise BadInput(reason, "put the files themselves into the folder")
            names = [name for name in self._lists if name == pattern or fnmatchcase(name, pattern)]
            if names:
                break
        if not names:
            also = f"; links are not followed: {', '.join(self._links[:3])}" if self._links else ""
            reason = f"there is no wildcard {wanted!r} in {_shown(self._folder)}{nearest(wanted, self._lists)}{also}"
            raise BadInput(reason, "a wildcard is a file NAME.txt, or a list in a .yaml or .json file")
        lists = [one for name in names for one in self._lists[name]]
        places: dict[tuple[str, float], str] = {}
        for one in lists:
            for text, weight, where in _items(one):
                # The same value twice is no more likely, as in the library.
                places.setdefault((text, weight), where)
        options = [_option(text, weight, where) for (text, weight), where in places.items() if weight > 0]
        if not options:
            raise _Placed(f"{lists[0].shown}: the wildcard {wanted!r} has no values", "put a value on each line")
        return _Values(wanted, options, list(itertools.accumulate(option.weight for option in options)))

    def _index(self, top: Path) -> dict[str, list[_List]]:
        """Return the folder's lists by their names, in their order. Only structured files are read for that."""
        lists: dict[str, list[_List]] = {}
        real = os.path.realpath(top)
        counted = itertools.count(1)

        def one_more() -> None:
            if next(counted) > MOST:
                raise BadInput(
                    f"{_shown(top)} has more than {MOST:,} files and lists", "give the wildcards' own folder"
                )

        for at, folders, files in os.walk(top, onerror=_unreadable_folder):
            prefix = os.path.relpath(at, top).replace(os.sep, "/") + "/"
            prefix = "" if prefix == "./" else prefix
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            self._links += [f"{prefix}{f}/" for f in folders if os.path.islink(os.path.join(at, f))]
            for file in sorted(files):
                one_more()
                stem, ending = os.path.splitext(file)
                path = Path(at, file)
                if file.startswith(".") or ending.lower() not in (".txt", ".yaml", ".yml", ".json"):
                    continue
                if os.path.commonpath([real, os.path.realpath(path)]) != real:
                    self._links.append(prefix + file)
                    continue
                if ending.lower() == ".txt":
                    found: Iterable[tuple[str, _List]] = [(stem, _List(path, _shown(path)))]
                else:
                    found = _structured(path, stem)
                for name, one in found:
                    one_more()
                    lists.setdefault(unicodedata.normalize("NFC", prefix + name).strip("/"), []).append(one)
        return dict(sorted(lists.items()))


def _unreadable_folder(error: OSError) -> None:
    raise BadInput(f"{_shown(error.filename)}: {error.strerror}", "give a folder that can be read")


def _shown(path: Path | str) -> str:
    # A name on disk may be no UTF-8.
    return os.fsencode(path).decode("utf-8", "replace")


def _option(text: str, weight: float, where: str) -> _Option:
    """Return a wildcard's value, parsed. Most have nothing to parse, which takes a thousandth of the time."""
    from dynamicprompts.commands import LiteralCommand

    if not _VALUE_MARKS.search(text):
        return _Option(LiteralCommand(text), weight, where)
    try:
        return _Option(_parse(text), weight, where)
    except BadInput as error:
        raise _Placed(f"{where}: {error.message}", error.hint) from None


def _text(file: Path) -> str:
    """Return a file's text without its BOM; BadInput with FILE:LINE where it is no UTF-8."""
    shown = _shown(file)
    try:
        # Anything else, a pipe say, might never end.
        if not file.is_file():
            raise _Placed(f"{shown}: is no regular file", "wildcards are text files")
        if file.stat().st_size > BIGGEST:
            raise _Placed(f"{shown}: has more than {BIGGEST >> 20} MB", "split it, or leave it out of the folder")
        data = file.read_bytes()
    except OSError as error:
        raise _Placed(f"{shown}: {error.strerror}", "give a folder whose files can be read") from None
    bad = data.find(b"\0")
    what = "has a NUL character"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad, what = error.start, "is not UTF-8"
    if bad >= 0:
        raise _Placed(f"{shown}:{len(data[: bad + 1].splitlines())}: {what}", "save the file as UTF-8")
    return text


def _items(one: _List) -> Iterator[tuple[str, float, str]]:
    """Yield a list's items that are not empty: text, weight, and where it stands."""
    if one.items is None:
        for number, line in enumerate(re.split(r"\r\n|\r|\n", _text(one.file)), 1):
            if (text := line.strip()) and not text.startswith("#"):
                yield text, 1.0, f"{one.shown}:{number}"
        return
    for number, item in enumerate(one.items, 1):
        if not item:
            continue
        where = f"{one.shown}: item {number}"
        weight: Any = 1.0
        if isinstance(item, dict):
            text, weight = item.get("text") or item.get("content"), item.get("weight", 1.0)
        elif isinstance(item, str) and (match := _WEIGHT.fullmatch(item.strip())):
            weight, text = match.groups()
        else:
            text = item
        try:
            weight = float(weight)
        except (TypeError, ValueError):
            weight = math.nan
        if not isinstance(text, str) or not 0 <= weight <= HEAVIEST:
            raise _Placed(f"{where} is no text", 'items are "text", "3::text" or {"text": "text", "weight": 3}')
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise _Placed(f"{where} has half of a character", "mend its \\u escapes")
        if text := text.strip():
            yield text, weight, where


def _structured(file: Path, stem: str) -> Iterator[tuple[str, _List]]:
    """Yield the lists of a YAML or JSON file, by their keys."""
    text, shown = _text(file), _shown(file)
    try:
        if file.suffix.lower() == ".json":
            data = json.loads(text, parse_int=str, parse_float=str)
        else:
            import yaml  # type: ignore[import-untyped]

            # The loader that makes texts, lists and dicts, and nothing else: "no" stays "no".
            loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
            depth = 0
            for event in yaml.parse(text, loader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                # Deep down the loader overflows the stack of the process.
                if depth > DEEPEST:
                    raise RecursionError
            data = yaml.load(text, loader)
    except RecursionError:
        raise _Placed(f"{shown}: is nested too deeply", MEND) from None
    except json.JSONDecodeError as error:
        raise _Placed(f"{shown}:{error.lineno}: {error.msg}", MEND) from None
    except Exception as error:
        # A yaml.YAMLError, which has no name before its import.
        mark = getattr(error, "problem_mark", None)
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise _Placed(f"{shown}:{mark.line + 1 if mark else 1}: {reason}", MEND) from None
    if isinstance(data, list):
        yield stem, _List(file, shown, data)
    elif isinstance(data, dict):
        yield from _keys(data, (), file, shown)


def _keys(data: Mapping[str, Any], above: tuple[str, ...], file: Path, shown: str) -> Iterator[tuple[str, _List]]:
    if len(above) > DEEPEST:
        raise _Placed(f"{shown}: is nested too deeply", MEND)
    for key, value in data.items():
        name = (*above, str(key))
        if isinstance(value, dict):
            yield from _keys(value, name, file, shown)
        elif isinstance(value, (list, str)):
            items = [value] if isinstance(value, str) else value
            yield "/".join(name), _List(file, f"{shown}: {'/'.join(name)}", items)


# What templates mean


class _Scope(msgspec.Struct, frozen=True):
    """The variables that are set, and those that are just being drawn.

    A variable is drawn in the scope that it is used in, or in the one that it came with.
    """

    variables: Mapping[str, tuple[Command, _Scope | None]] = msgspec.field(default_factory=dict)
    busy: frozenset[str] = frozenset()

    def having(self, name: str, value: Command, scope: _Scope | None = None) -> _Scope:
        return _Scope({**self.variables, name: (value, scope)}, self.busy - {name})

    def value(self, use: VariableAccessCommand) -> tuple[Command, _Scope]:
        """Return what a variable stands for, and the scope for that."""
        if use.name in self.variables:
            value, scope = self.variables[use.name]
            if scope is not None:
                return value, scope
            if use.name in self.busy:
                raise BadInput(f"the variable {use.name} contains itself", "leave it out of its own value")
            return value, replace(self, busy=self.busy | {use.name})
        if use.default is None:
            raise BadInput(f"the variable {use.name} is not set", f"${{{use.name}=...}} sets it")
        return use.default, self


def _unmarked(command: VariantCommand | WildcardCommand) -> None:
    if command.sampling_method is not None:
        mark = {"random": "~", "combinatorial": "!", "cycle": "@"}[command.sampling_method.value]
        raise BadInput(f"the mark {mark} wants one part drawn in another way", "leave it out: --expand says it for all")


def _options(command: VariantCommand) -> Sequence[_Option]:
    """Return what can be drawn of `{a|b}`."""
    if any(option.weight > HEAVIEST for option in command.variants):
        raise BadInput(f"a weight is larger than {HEAVIEST:,}", "weights are numbers such as 3 and 0.5")
    options = [_Option(option.value, option.weight) for option in command.variants if option.weight > 0]
    if not options:
        raise BadInput("all weights of a {...} are 0", "give one of them a weight")
    return options


def _several_of(command: VariantCommand) -> WildcardCommand | None:
    """Return the wildcard of `{2$$__animal__}`, of whose values several are meant."""
    from dynamicprompts.commands import LiteralCommand, SequenceCommand, WildcardCommand

    _unmarked(command)
    if len(command.variants) != 1 or (command.min_bound, command.max_bound) == (1, 1):
        return None
    only = command.variants[0].value
    parts = only.tokens if isinstance(only, SequenceCommand) else [only]
    parts = [part for part in parts if not (isinstance(part, LiteralCommand) and not part.literal.strip())]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], WildcardCommand) else None


def _bounds(command: VariantCommand, count: int) -> tuple[int, int]:
    """Return how many of `count` are drawn at least and at most."""
    return min(command.min_bound, count), min(command.max_bound, count)


def _inside(command: WildcardCommand, scope: _Scope) -> _Scope:
    """Return the scope of a wildcard's values: `__dress(colour=red)__`."""
    inside = scope
    for name, value in command.variables.items():
        inside = inside.having(name, value, scope)
    return inside


def _sets(part: VariableAssignmentCommand, scope: _Scope) -> bool:
    return part.overwrite or part.name not in scope.variables


def _split(parts: Iterable[Command]) -> tuple[list[VariableAssignmentCommand], list[Command]]:
    """Return the assignments among a text's parts, which come first wherever they stand, and the others."""
    from dynamicprompts.commands.variable_commands import VariableAssignmentCommand

    parts = list(parts)
    first = [part for part in parts if isinstance(part, VariableAssignmentCommand)]
    return first, [part for part in parts if not isinstance(part, VariableAssignmentCommand)]


def _joined(texts: Sequence[str], separator: str) -> str:
    return separator.join(text for text in texts if text) if len(texts) > 1 else "".join(texts)


def _wrapped(around: str, text: str) -> str:
    from dynamicprompts.commands.wrap_command import WRAP_MARKER_RE

    match = WRAP_MARKER_RE.search(around)
    return around[: match.start()] + text + around[match.end() :] if match else around + text


class _Draw:
    """One draw of each part, by a seed."""

    def __init__(self, wildcards: _Wildcards, seed: int) -> None:
        self._wildcards = wildcards
        # Of it only random() is used, which Python promises to keep.
        self._random = Random(seed).random
        self._left = LARGEST

    def text(self, command: Command, scope: _Scope) -> str:
        from dynamicprompts import commands as kinds
        from dynamicprompts.commands.variable_commands import VariableAccessCommand

        self._left -= 1 + (len(command.literal) if isinstance(command, kinds.LiteralCommand) else 0)
        if self._left < 0:
            raise _too_large()
        if isinstance(command, kinds.LiteralCommand):
            return command.literal
        if isinstance(command, kinds.VariantCommand):
            wildcard = _several_of(command)
            values = self._values(wildcard, scope) if wildcard else None
            if wildcard:
                scope = _inside(wildcard, scope)
            options = values.options if values else _options(command)
            low, high = _bounds(command, len(options))
            count = low + int(self._random() * (high - low + 1)) if high > low else low
            texts = [self.text(option.command, scope) for option in self._picked(options, count)]
            return _joined(texts, command.separator)
        if isinstance(command, kinds.WildcardCommand):
            values = self._values(command, scope)
            at = bisect(values.sums, self._random() * values.sums[-1], hi=len(values.sums) - 1)
            return self.text(values.options[at].command, _inside(command, scope))
        if isinstance(command, VariableAccessCommand):
            return self.text(*scope.value(command))
        if isinstance(command, kinds.WrapCommand):
            return _wrapped(self.text(command.wrapper, scope), self.text(command.inner, scope))
        first, parts = _split(command.tokens if isinstance(command, kinds.SequenceCommand) else [command])
        for part in first:
            if _sets(part, scope):
                value = kinds.LiteralCommand(self.text(part.value, scope)) if part.immediate else part.value
                scope = scope.having(part.name, value)
        return "".join([self.text(part, scope) for part in parts])

    def _values(self, command: WildcardCommand, scope: _Scope) -> _Values:
        _unmarked(command)
        name = command.wildcard
        return self._wildcards.find(name if isinstance(name, str) else self.text(name, scope))

    def _picked(self, options: Sequence[_Option], count: int) -> Sequence[_Option]:
        """Return `count` different options, each in turn drawn by weight among those left."""
        if count == 1:
            sums = list(itertools.accumulate(option.weight for option in options))
            return [options[bisect(sums, self._random() * sums[-1], hi=len(sums) - 1)]]
        # Each option's clock rings at a random time, the heavier the sooner (Efraimidis and Spirakis, 2006).
        clocks = [(-math.log(1 - self._random()) / option.weight, i) for i, option in enumerate(options)]
        return [options[i] for _, i in heapq.nsmallest(count, clocks)]


class _Every:
    """Every draw of each part, in their order; `left` is how many parts may be looked at."""

    def __init__(self, wildcards: _Wildcards) -> None:
        self._wildcards = wildcards
        self.left = PATIENCE

    def _step(self, by: int = 1) -> None:
        self.left -= by
        if self.left < 0:
            reason = f"{PATIENCE:,} parts were put together without a prompt that is new"
            raise BadInput(reason, "give fewer parts that can be left out or are alike, or --limit")

    def texts(self, command: Command, scope: _Scope) -> Iterator[str]:
        from dynamicprompts import commands as kinds
        from dynamicprompts.commands.variable_commands import VariableAccessCommand

        self._step()
        if isinstance(command, kinds.LiteralCommand):
            self._step(len(command.literal))
            return iter((command.literal,))
        if isinstance(command, kinds.VariantCommand):
            return self.new(self._variant(command, scope))
        if isinstance(command, kinds.WildcardCommand):
            return self.new(self._wildcard(command, scope))
        if isinstance(command, VariableAccessCommand):
            return self.texts(*scope.value(command))
        if isinstance(command, kinds.WrapCommand):
            return (_wrapped(*both) for both in self._together([(command.wrapper, scope), (command.inner, scope)]))
        return self._sequence(
            *_split(command.tokens if isinstance(command, kinds.SequenceCommand) else [command]), scope
        )

    def new(self, texts: Iterable[str], remembered: int | None = None) -> Iterator[str]:
        """Yield those that were not there before, as far as is remembered."""
        seen: set[bytes] = set()
        remembered = REMEMBERED // 10 if remembered is None else remembered
        for text in texts:
            self._step()
            key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
            if key not in seen:
                if len(seen) < remembered:
                    seen.add(key)
                yield text

    def _variant(self, command: VariantCommand, scope: _Scope) -> Iterator[str]:
        wildcard = _several_of(command)
        if wildcard is None:
            yield from self._some(command, _options(command), scope)
            return
        for values in self.values(wildcard, scope):
            yield from self._some(command, values.options, _inside(wildcard, scope))

    def _some(self, command: VariantCommand, options: Sequence[_Option], scope: _Scope) -> Iterator[str]:
        low, high = _bounds(command, len(options))
        for count in range(low, high + 1):
            for some in itertools.permutations(options, count):
                for texts in self._together([(option.command, scope) for option in some]):
                    yield _joined(texts, command.separator)

    def _wildcard(self, command: WildcardCommand, scope: _Scope) -> Iterator[str]:
        for values in self.values(command, scope):
            for option in values.options:
                yield from self.texts(option.command, _inside(command, scope))

    def values(self, command: WildcardCommand, scope: _Scope) -> Iterator[_Values]:
        """Yield the values of each wildcard that is meant: several where its name is drawn."""
        _unmarked(command)
        name = command.wildcard
        for one in [name] if isinstance(name, str) else self.texts(name, scope):
            yield self._wildcards.find(one)

    def _sequence(
        self, first: Sequence[VariableAssignmentCommand], parts: Sequence[Command], scope: _Scope
    ) -> Iterator[str]:
        from dynamicprompts.commands import LiteralCommand

        for i, part in enumerate(first):
            if _sets(part, scope) and part.immediate:
                for text in self.texts(part.value, scope):
                    yield from self._sequence(first[i + 1 :], parts, scope.having(part.name, LiteralCommand(text)))
                return
            if _sets(part, scope):
                scope = scope.having(part.name, part.value)
        for texts in self._together([(part, scope) for part in parts]):
            yield "".join(texts)

    def _together(self, parts: Sequence[tuple[Command, _Scope]]) -> Iterator[list[str]]:
        """Yield a text of each part, for all combinations; the last part turns fastest, like a counter's wheels."""
        if not parts:
            yield []
            return
        wheels = [self.texts(*parts[0])]
        texts: list[str] = []
        while wheels:
            del texts[len(wheels) - 1 :]
            text = next(wheels[-1], None)
            if text is None:
                wheels.pop()
                continue
            texts.append(text)
            if len(wheels) == len(parts):
                yield texts
            else:
                wheels.append(self.texts(*parts[len(wheels)]))


class _Size(msgspec.Struct, frozen=True):
    """What a part can grow to, characters and parts of its largest draw, and depth; and the variables that it looks at."""

    cost: int
    depth: int
    looks_at: frozenset[str] = frozenset()


class _Check:
    """Looks at all that can be drawn, each wildcard once for the variables that it sees."""

    def __init__(self, wildcards: _Wildcards, sizes: dict[str, _Size]) -> None:
        self._wildcards = wildcards
        # Kept from template to template: what a wildcard is where no variable is set that it looks at.
        self._sizes = sizes
        # The scope is kept beside the size, so that the ids in the key stay those of things that are there.
        self._seen: dict[tuple[object, ...], tuple[_Size, _Scope]] = {}

    def size(self, command: Command, scope: _Scope, trail: tuple[str, ...]) -> _Size:
        """Return the size of what is drawn; `trail` is the wildcards that it is inside of. Raises BadInput."""
        found = self._size(command, scope, trail)
        if found.cost > LARGEST:
            raise _too_large()
        if found.depth > DEEPEST:
            raise _too_deep()
        return found

    def _size(self, command: Command, scope: _Scope, trail: tuple[str, ...]) -> _Size:
        from dynamicprompts import commands as kinds
        from dynamicprompts.commands.variable_commands import VariableAccessCommand

        if isinstance(command, kinds.LiteralCommand):
            return _Size(1 + len(command.literal), 1)
        if isinstance(command, kinds.VariantCommand):
            if wildcard := _several_of(command):
                counts, each = self._wildcard(wildcard, scope, trail)
                _, count = _bounds(command, max(counts))
                return _Size(1 + count * (each.cost + len(command.separator)), each.depth + 1, each.looks_at)
            sizes = [self.size(option.command, scope, trail) for option in _options(command)]
            _, count = _bounds(command, len(sizes))
            cost = sum(heapq.nlargest(count, (s.cost for s in sizes))) + count * len(command.separator)
            return replace(_sum(sizes), cost=1 + cost)
        if isinstance(command, kinds.WildcardCommand):
            return self._wildcard(command, scope, trail)[1]
        if isinstance(command, VariableAccessCommand):
            key = (id(command), _signature(scope))
            if key not in self._seen:
                inner = self.size(*scope.value(command), trail)
                self._seen[key] = (_Size(1 + inner.cost, 1 + inner.depth, inner.looks_at | {command.name}), scope)
            return self._seen[key][0]
        if isinstance(command, kinds.WrapCommand):
            return _sum([self.size(command.wrapper, scope, trail), self.size(command.inner, scope, trail)])
        first, parts = _split(command.tokens if isinstance(command, kinds.SequenceCommand) else [command])
        sizes = []
        for part in first:
            if _sets(part, scope):
                if part.immediate:
                    sizes.append(self.size(part.value, scope, trail))
                scope = scope.having(part.name, part.value, scope if part.immediate else None)
        whole = _sum(sizes + [self.size(part, scope, trail) for part in parts])
        # What `?=` does depends on what is set.
        return replace(whole, looks_at=whole.looks_at | {part.name for part in first})

    def _wildcard(self, command: WildcardCommand, scope: _Scope, trail: tuple[str, ...]) -> tuple[list[int], _Size]:
        """Return how many values there are of each wildcard that can be meant, and the largest value."""
        name, counts, sizes = _Size(0, 0), [], []
        if not isinstance(command.wildcard, str):
            name = self.size(command.wildcard, scope, trail)
        for values in itertools.islice(_Every(self._wildcards).values(command, scope), NAMES + 1):
            counts.append(len(values.options))
            sizes.append(self._values(values, _inside(command, scope), trail))
        if len(counts) > NAMES:
            raise BadInput(f"a wildcard has more than {NAMES:,} names", "draw its name of fewer")
        return counts, replace(_sum([name, *sizes]), cost=1 + name.cost + max(s.cost for s in sizes))

    def _values(self, values: _Values, scope: _Scope, trail: tuple[str, ...]) -> _Size:
        kept = self._sizes.get(values.name)
        if kept is not None and not kept.looks_at & scope.variables.keys():
            return kept
        key = (values.name, _signature(scope))
        if key in self._seen:
            return self._seen[key][0]
        if values.name in trail:
            around = " -> ".join([*trail[trail.index(values.name) :], values.name])
            raise BadInput(f"wildcards contain each other: {around}", "take one of them out of the other")
        sizes = []
        for option in values.options:
            try:
                sizes.append(self.size(option.command, scope, (*trail, values.name)))
            except _Placed:
                raise
            except BadInput as error:
                raise _Placed(f"{option.where}: {error.message}", error.hint) from None
        found = replace(_sum(sizes), cost=max(size.cost for size in sizes), depth=max(size.depth for size in sizes))
        if not found.looks_at & scope.variables.keys():
            self._sizes[values.name] = found
        self._seen[key] = (found, scope)
        return found


def _signature(scope: _Scope) -> frozenset[tuple[str, int, int]]:
    return frozenset((name, id(value), id(own)) for name, (value, own) in scope.variables.items())


def _sum(sizes: Sequence[_Size]) -> _Size:
    """Return the size of a whole out of those of its parts."""
    depth = 1 + max((size.depth for size in sizes), default=0)
    return _Size(1 + sum(size.cost for size in sizes), depth, frozenset().union(*(size.looks_at for size in sizes)))
