"""Tokens: how much of a prompt a text encoder reads, in which chunks, and what it does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from sdcli.errors import BadInput, UsageError
from sdcli.models import Model
from sdcli.prompts import a1111, compel
from sdcli.prompts.syntax import texts
from sdcli.record import TokenRecord

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# CLIP reads 77 tokens: 75 between the marks of its start and end.
CLIP_LENGTH = 77
# A chunk ends at its last comma, if that is so near (A1111's comma_padding_backtrack).
BACKTRACK = 20
SPECIAL = ("unk_token", "bos_token", "eos_token", "pad_token")


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


def refuse_cut(cut: str, limit: int) -> None:
    """Raise UsageError for text that does not fit, where `--long-prompt error` asks for that."""
    if cut:
        raise UsageError(
            f'the prompt is longer than {limit} tokens; this would be cut off: "{cut}"',
            "shorten it, or --long-prompt cut (chunk where the model can)",
        )


class Token(NamedTuple):
    """A token: the text that it stands for, its number in the vocabulary, and its weight."""

    text: str
    id: int
    weight: float = 1.0


class Read(msgspec.Struct, frozen=True):
    """A text as it is read: its tokens in chunks, without marks and padding; how many they are; and the text that is cut."""

    chunks: tuple[tuple[Token, ...], ...]
    used: int
    cut: str = ""


class Piece(NamedTuple):
    """A token as a tokenizer finds it: its number, its name in the vocabulary, and where its text begins and ends."""

    id: int
    name: str
    start: int
    end: int


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """A tokenizer, under the name of its component: `pieces` finds a text's tokens, `limit` is how many a chunk takes, and
    `start`, `end` and `pad` are the marks around and after them (None: it has none). `added` are the words of embeddings that
    are more than one token: word to the tokens."""

    name: str
    pieces: Callable[[str], list[Piece]]
    limit: int
    start: int | None
    end: int | None
    pad: int | None
    comma: int | None
    added: Mapping[str, tuple[tuple[str, int], ...]]


class _Word(NamedTuple):
    """What stays together: a token, or all of an embedding's; where it stands in the text; None for BREAK."""

    tokens: tuple[Token, ...] | None
    name: str
    part: int
    start: int


class Reader:
    """Reads prompts as a model's text encoders do, without them."""

    def __init__(self, vocabularies: Sequence[Vocabulary], *, chunks: bool) -> None:
        """`chunks`: whether the encoders read more than one chunk."""
        self.vocabularies = tuple(vocabularies)
        self.chunks = chunks

    @property
    def name(self) -> str:
        """The component whose tokens are shown."""
        return self.vocabularies[0].name

    @property
    def limit(self) -> int:
        """How many tokens a chunk takes."""
        return self.vocabularies[0].limit

    @staticmethod
    def of(model: Model, added: Mapping[str, int] | None = None) -> Reader | None:
        """Return what reads a model's prompts, None where its tokenizer is not here or can't be read without the libraries.

        `added` are the words of embeddings that will be loaded, and how many vectors each has. Raises BadInput for a
        tokenizer that is broken.
        """
        folder, family = model.configs, model.family
        if folder is None or family is None:
            return None
        words = tuple((added or {}).items())
        if family.weighs:
            names = [n for n in ("tokenizer", "tokenizer_2") if n in model.components]
            found = [_clip(folder / name, words) for name in names]
            whole = [v for v in found if v is not None]
            return Reader(whole, chunks=True) if whole and len(whole) == len(names) else None
        name, most = next(((n, m) for n, m in family.readers if n in model.components), (None, None))
        one = _other(folder / name, most) if name is not None else None
        return Reader([one], chunks=False) if one is not None else None

    @staticmethod
    def over(tokenizers: Mapping[str, Any]) -> Reader:
        """Return what reads with CLIP tokenizers of transformers, by the names of their components."""
        return Reader([_loaded(name, one) for name, one in tokenizers.items()], chunks=True)

    def read(self, text: str, *, syntax: str, long: str, which: int = 0) -> Read:
        """Return how a text is read by the tokenizer number `which`; of a scheduled prompt one of its texts.

        `syntax` is a1111, compel or plain; `long` is chunk, cut or error, which raises UsageError for what would be cut.
        """
        vocabulary = self.vocabularies[which]
        one = "chunk" if long == "chunk" and self.chunks else "cut"
        if syntax == "compel":
            found = _read_compel(text, vocabulary, one)
        else:
            parts = a1111.weights(text) if syntax == "a1111" else [(text, 1.0)]
            found = _read_parts(parts, vocabulary, one, breaks=syntax == "a1111")
        if long == "error":
            refuse_cut(found.cut, vocabulary.limit)
        return found

    def chunks_of(self, text: str, *, syntax: str, long: str) -> int:
        """Return how many chunks a text is, in the tokenizer that makes most of it."""
        if syntax != "compel" and (long != "chunk" or not self.chunks):
            return 1
        return max(
            len(self.read(text, syntax=syntax, long=long, which=i).chunks) for i in range(len(self.vocabularies))
        )


def chunk_count(prompt: str, reader: Reader, syntax: str, steps: int, long: str = "chunk") -> int:
    """Return how many chunks a prompt is encoded in: of its texts in all steps the most."""
    # A token is a character at least, where none is normalized to more.
    if syntax != "compel" and len(prompt) <= reader.limit and prompt.isascii():
        if a1111.BREAK not in prompt and not any(v.added for v in reader.vocabularies):
            return 1
    return max(reader.chunks_of(text, syntax=syntax, long=long) for text in texts(prompt, syntax, steps))


# Reading


def _words(part: int, text: str, weight: float, vocabulary: Vocabulary) -> Iterator[_Word]:
    for piece in vocabulary.pieces(text):
        several = vocabulary.added.get(piece.name, ())
        tokens = [Token(text[piece.start : piece.end] or piece.name, piece.id, weight)]
        tokens += [Token(name, number, weight) for name, number in several]
        yield _Word(tuple(tokens), piece.name, part, piece.start)


def _read_parts(parts: Sequence[tuple[str, float]], vocabulary: Vocabulary, long: str, *, breaks: bool) -> Read:
    words: list[_Word] = []
    for at, (text, weight) in enumerate(parts):
        if breaks and (text, weight) == (a1111.BREAK, a1111.BREAK_WEIGHT):
            words.append(_Word(None, "", at, 0))
        else:
            words += _words(at, text, weight, vocabulary)
    if long == "cut":
        return _cut(parts, words, vocabulary)
    chunks = _chunked(words, vocabulary)
    return Read(tuple(map(tuple, chunks)), sum(map(len, chunks)))


def _cut(parts: Sequence[tuple[str, float]], words: list[_Word], vocabulary: Vocabulary) -> Read:
    """Return what fits into one chunk; what follows a BREAK never does."""
    kept: list[Token] = []
    for word in words:
        room = vocabulary.limit - len(kept)
        if word.tokens is None or room <= 0:
            rest = parts[word.part][0][word.start :] + "".join(text for text, _ in _spaced(parts[word.part + 1 :]))
            rest = rest.removeprefix(a1111.BREAK if word.tokens is None else "").strip()
            if rest or word.tokens is not None:
                return Read((tuple(kept),), len(kept), rest)
            break
        kept += word.tokens[:room]
    return Read((tuple(kept),), len(kept))


def _spaced(parts: Sequence[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    for text, weight in parts:
        yield (f" {text} " if (text, weight) == (a1111.BREAK, a1111.BREAK_WEIGHT) else text), weight


def _chunked(words: Sequence[_Word], vocabulary: Vocabulary) -> list[list[Token]]:
    """Return a text's chunks, as A1111 makes them: a full one ends at a comma that is near, BREAK ends one anywhere, and an
    embedding's tokens stay together."""
    most = vocabulary.limit
    chunks: list[list[Token]] = []
    chunk: list[Token] = []
    comma: int | None = None

    def end() -> None:
        nonlocal chunk, comma
        chunks.append(chunk)
        chunk, comma = [], None

    for word in words:
        if word.tokens is None:
            end()
            continue
        if vocabulary.comma is not None and word.tokens[0].id == vocabulary.comma:
            comma = len(chunk)
        elif len(chunk) == most and comma is not None and most - comma <= BACKTRACK:
            chunk, later = chunk[: comma + 1], chunk[comma + 1 :]
            end()
            chunk = later
        if len(chunk) == most or (len(chunk) + len(word.tokens) > most >= len(word.tokens)):
            end()
        left = list(word.tokens)
        while len(chunk) + len(left) > most:  # More than a chunk in one word.
            room = most - len(chunk)
            chunk += left[:room]
            left = left[room:]
            end()
        chunk += left
    if chunk or not chunks:
        end()
    return chunks


def _read_compel(text: str, vocabulary: Vocabulary, long: str) -> Read:
    """Read as compel does: what `.and()` joins has chunks of its own; of what is blended the longest text is shown."""
    chunks: list[tuple[Token, ...]] = []
    cut: list[str] = []
    for blended in compel.read(text):
        reads = []
        for fragments in blended:
            words = [w for at, part in enumerate(fragments) for w in _words(at, *part, vocabulary)]
            if long == "cut":
                reads.append(_cut(fragments, words, vocabulary))
                continue
            tokens = [(token, word.name) for word in words for token in word.tokens or ()]
            made: list[tuple[Token, ...]] = []
            while tokens or not made:
                at = compel.split([name for _, name in tokens], vocabulary.limit)
                made.append(tuple(token for token, _ in tokens[:at]))
                tokens = tokens[at:]
            reads.append(Read(tuple(made), 0))
        longest = max(reads, key=lambda read: (len(read.chunks), sum(map(len, read.chunks)), len(read.cut)))
        chunks += longest.chunks
        cut += [read.cut for read in reads if read.cut]
    return Read(tuple(chunks), sum(map(len, chunks)), " ".join(cut))


# Tokenizers


def _loaded(name: str, tokenizer: Any) -> Vocabulary:
    """Return a tokenizer of transformers, as it is now: with the words that were added."""

    def pieces(text: str) -> list[Piece]:
        found = tokenizer(text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False)
        ids = found["input_ids"]
        names = tokenizer.convert_ids_to_tokens(ids)
        return [Piece(i, n, *span) for i, n, span in zip(ids, names, found["offset_mapping"], strict=True)]

    return Vocabulary(
        name=name,
        pieces=pieces,
        limit=_length({"model_max_length": tokenizer.model_max_length}) - 2,
        start=tokenizer.bos_token_id,
        end=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        comma=tokenizer.get_vocab().get(",</w>"),
        added=_several(dict(tokenizer.added_tokens_encoder)),
    )


def _several(ids: Mapping[str, int]) -> dict[str, tuple[tuple[str, int], ...]]:
    """Return the added words of several tokens with those after the first: `word_1`, `word_2` ..., as diffusers names them."""
    found = {}
    for word in ids:
        more: list[tuple[str, int]] = []
        while (name := f"{word}_{len(more) + 1}") in ids:
            more.append((name, ids[name]))
        if more:
            found[word] = tuple(more)
    return found


@lru_cache(maxsize=8)
def _clip(folder: Path, added: tuple[tuple[str, int], ...]) -> Vocabulary | None:
    """Return the CLIP tokenizer that transformers would make of a folder, without transformers."""
    whole, vocabulary, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
        return None
    try:
        tokenizer, marks, length = _made(folder)
        names = [name for word, vectors in added for name in (word, *(f"{word}_{i}" for i in range(1, vectors)))]
        tokenizer.add_tokens(names)
        ids = {name: number for name in names if (number := tokenizer.token_to_id(name)) is not None}
    except Exception as error:
        # tokenizers raises nothing more special for files that it can't read.
        raise BadInput(f"{folder}: the tokenizer can't be read: {error}", "fetch the model again") from error
    return Vocabulary(
        name=folder.name,
        pieces=_pieces(tokenizer),
        limit=length - 2,
        start=tokenizer.token_to_id(marks["bos_token"]),
        end=tokenizer.token_to_id(marks["eos_token"]),
        pad=tokenizer.token_to_id(marks["pad_token"]),
        comma=tokenizer.token_to_id(",</w>"),
        added=_several(ids),
    )


def _made(folder: Path) -> tuple[Tokenizer, dict[str, str], int]:
    """Return CLIP's tokenizer, its special tokens, and how many tokens it reads, as transformers 5 takes them from a folder."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    whole = folder / "tokenizer.json"
    config, mapped, legacy = (
        _json(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    special: dict[str, Any] = dict.fromkeys(SPECIAL, "<|endoftext|>") | {"bos_token": "<|startoftext|>"}
    special |= {k: v for k, v in config.items() if k in SPECIAL and v is not None}
    added: dict[int, Any] = {int(k): v for k, v in config.get("added_tokens_decoder", {}).items()}
    if "added_tokens_decoder" not in config:
        special |= {k: v for k, v in mapped.items() if k in SPECIAL and v is not None}
        known = {_content(v) for v in special.values()}
        added = {i: {"content": t, "special": t in known, "normalized": t not in known} for t, i in legacy.items()}
    if whole.is_file():
        tokenizer = Tokenizer.from_file(str(whole))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if "added_tokens_decoder" not in config:
            added |= {token["id"]: token for token in _json(whole).get("added_tokens", [])}
    else:
        unknown = _content(special["unk_token"])
        made = models.BPE.from_file(
            str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token=unknown, end_of_word_suffix="</w>",
            continuing_subword_prefix="", fuse_unk=False,
        )  # fmt: skip
        tokenizer = Tokenizer(made)
    # Whatever the file says: these are the class's own.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's own pattern
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    by_text = {_content(token): token for token in added.values()}
    tokens = [added[i] for i in sorted(added)]
    tokens += [v for v in special.values() if _content(v) not in by_text]
    marks = {k: _content(v) for k, v in special.items()}
    for token in tokens:
        settings = dict(token) if isinstance(token, dict) else {"content": token}
        flags = {k: settings[k] for k in ("lstrip", "rstrip", "single_word", "normalized") if k in settings}
        is_special = bool(settings.get("special")) or settings["content"] in marks.values()
        tokenizer.add_tokens([AddedToken(settings["content"], special=is_special, **flags)])
    return tokenizer, marks, _length(config)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return found


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _length(config: Mapping[str, Any]) -> int:
    length = config.get("model_max_length")
    return int(length) if isinstance(length, (int, float)) and 2 < length < 1_000_000 else CLIP_LENGTH


def _pieces(tokenizer: Tokenizer) -> Callable[[str], list[Piece]]:
    def pieces(text: str) -> list[Piece]:
        found = tokenizer.encode(text, add_special_tokens=False)
        return [Piece(i, n, *span) for i, n, span in zip(found.ids, found.tokens, found.offsets, strict=True)]

    return pieces


@lru_cache(maxsize=8)
def _other(folder: Path, most: int | None) -> Vocabulary | None:
    """Return another family's tokenizer, where one file holds all of it."""
    whole = folder / "tokenizer.json"
    if not whole.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(whole))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        limit = (most or _length(_json(folder / "tokenizer_config.json"))) - tokenizer.num_special_tokens_to_add(False)
    except Exception as error:
        raise BadInput(f"{folder}: the tokenizer can't be read: {error}", "fetch the model again") from error
    return Vocabulary(
        name=folder.name, pieces=_pieces(tokenizer), limit=limit, start=None, end=None, pad=None, comma=None, added={}
    )
