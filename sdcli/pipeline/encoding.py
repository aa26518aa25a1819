"""Prompts into embeddings: CLIP's, in chunks, with weights, and other ones in other steps."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from sdcli import models
from sdcli.errors import UsageError
from sdcli.models import Model
from sdcli.prompts import a1111, compel
from sdcli.prompts.tokens import Read, Reader, Token, Vocabulary
from sdcli.record import TokenRecord

# What embeddings of texts that may come again are kept: some 280 texts of SD 1.5 in fp16.
ENCODED_BYTES = 32 * 2**20
LEAST_MEAN = 0.01


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A prompt's embeddings: (the last step that they are for, from 1; embeddings (1, 77 * chunks, width); pooled ones
    (1, width), None where the model has none). All have as many chunks. `tokens` is how the first step's text was read."""

    schedule: tuple[tuple[int, Any, Any], ...]
    tokens: TokenRecord
    # What an empty chunk of it is made with.
    layer: int
    zeros: bool

    @property
    def chunks(self) -> int:
        """How many chunks it is encoded in."""
        return self.tokens.chunks

    @property
    def changes(self) -> bool:
        """Whether the embeddings are other ones in other steps."""
        return len(self.schedule) > 1

    def at(self, step: int) -> tuple[Any, Any]:
        """Return the embeddings, and the pooled ones, for a step, from 1."""
        return next(((e, p) for until, e, p in self.schedule if step <= until), self.schedule[-1][1:])


class Encoder:
    """Encodes prompts for Stable Diffusion 1.x, 2.x, XL and latent consistency models; what may come again is kept.

    With one chunk and no weights it is bit for bit what diffusers' own `encode_prompt` gives. Longer ones, and weights, are
    as A1111's (modules/sd_hijack_clip.py, emphasis "Original"): each chunk is encoded by itself, its tokens' embeddings are
    multiplied by their weights, and the chunk's mean is put back, where it has one worth the name (over LEAST_MEAN of the
    standard deviation).
    """

    def __init__(self, pipe: Any, model: Model) -> None:
        self.pipe, self.model = pipe, model
        assert model.family is not None
        self.xl = model.family.class_name == "StableDiffusionXLPipeline"
        self.forget()

    def forget(self) -> None:
        """Forget all that was encoded, and which words there are: adapters may have changed the encoders."""
        self._kept: dict[tuple[Any, ...], tuple[Any, Any, TokenRecord]] = {}
        self._kept_bytes = 0
        names = [n for n in ("tokenizer", "tokenizer_2") if getattr(self.pipe, n, None) is not None]
        self._encoders = [getattr(self.pipe, n.replace("tokenizer", "text_encoder")) for n in names]
        self.reader = Reader.over({n: getattr(self.pipe, n) for n in names})

    def encode(
        self, text: str, *, syntax: str, long: str, clip_skip: int = 0, steps: int = 1, negative: bool = False
    ) -> Encoded:
        """Return a prompt's embeddings for so many steps.

        `syntax` is a1111, compel or plain; `long` is chunk, cut or error, which raises UsageError for what would be cut.
        `negative`: it is the negative prompt, which in SDXL knows no clip skip, and is zeros where it is empty, if the model
        was trained so.
        """
        models.check_clip_skip(self.model, clip_skip)
        layer = 0 if self.xl and negative else clip_skip
        zeros = self.xl and negative and not text and bool(self.pipe.config.force_zeros_for_empty_prompt)
        texts = a1111.schedule(text, steps) if syntax == "a1111" else [(steps, text)]
        found = [(until, *self._text(said, syntax, long, layer)) for until, said in texts]
        most = max(tokens.chunks for _, _, _, tokens in found)
        tokens = _in_chunks(found[0][3], most)
        encoded = Encoded(
            schedule=tuple((until, self._longer(e, most, layer, zeros), p) for until, e, p, _ in found),
            tokens=tokens, layer=layer, zeros=zeros,
        )  # fmt: skip
        if not zeros:
            return encoded
        nothing = tuple((until, e.new_zeros(e.shape), p.new_zeros(p.shape)) for until, e, p in encoded.schedule)
        return replace(encoded, schedule=nothing)

    def padded(self, encoded: Encoded, chunks: int) -> Encoded:
        """Return embeddings of at least `chunks` chunks: what is missing are those of an empty prompt."""
        if chunks <= encoded.chunks:
            return encoded
        longer = tuple(
            (until, self._longer(e, chunks, encoded.layer, encoded.zeros), p) for until, e, p in encoded.schedule
        )
        return replace(encoded, schedule=longer, tokens=_in_chunks(encoded.tokens, chunks))

    def _longer(self, embeds: Any, chunks: int, layer: int, zeros: bool) -> Any:
        import torch

        missing = chunks - embeds.shape[1] // (self.reader.limit + 2)
        if missing < 1:
            return embeds
        empty = self._text("", "plain", "chunk", layer)[0]
        return torch.cat([embeds, *[empty.new_zeros(empty.shape) if zeros else empty] * missing], dim=1)

    def _text(self, text: str, syntax: str, long: str, layer: int) -> tuple[Any, Any, TokenRecord]:
        """Return one text's embeddings, pooled ones, and how it was read."""
        key = (text, syntax, long, layer)
        if key in self._kept:
            # The one that was used last goes last, so that a negative prompt which all rows share never does.
            self._kept[key] = self._kept.pop(key)
            return self._kept[key]
        reads = [self.reader.read(text, syntax=syntax, long=long, which=i) for i in range(len(self._encoders))]
        if syntax == "compel":
            embeds, pooled = self._by_compel(text, long, layer)
        else:
            embeds, pooled = self._by_chunks(reads, layer)
        device = self.pipe._execution_device
        embeds = embeds.to(dtype=self._encoders[-1].dtype, device=device)
        pooled = pooled.to(device=device) if pooled is not None else None
        chunks = embeds.shape[1] // (self.reader.limit + 2)
        self._kept[key] = embeds, pooled, TokenRecord(used=reads[0].used, chunks=chunks, cut=reads[0].cut)
        self._kept_bytes += embeds.nbytes
        while self._kept_bytes > ENCODED_BYTES and len(self._kept) > 2:
            self._kept_bytes -= self._kept.pop(next(iter(self._kept)))[0].nbytes
        return embeds, pooled, self._kept[key][2]

    # Chunks and weights

    def _by_chunks(self, reads: Sequence[Read], layer: int) -> tuple[Any, Any]:
        import torch

        most = max(len(read.chunks) for read in reads)
        sides, pooled = [], None
        for at, read in enumerate(reads):
            chunks = [*read.chunks, *[()] * (most - len(read.chunks))]
            found = [self._chunk(at, chunk, layer) for chunk in chunks]
            sides.append(found[0][0] if most == 1 else torch.cat([embeds for embeds, _ in found], dim=1))
            pooled = pooled if pooled is not None else found[0][1]
        return sides[0] if len(sides) == 1 else torch.concat(sides, dim=-1), pooled

    def _chunk(self, at: int, chunk: Sequence[Token], layer: int) -> tuple[Any, Any]:
        """Return a chunk's embeddings by the encoder number `at`, and the pooled ones if it gives any."""
        import torch

        vocabulary = self.reader.vocabularies[at]
        ids = torch.tensor([_ids(chunk, vocabulary)])
        mask = None
        if not self.xl and getattr(self._encoders[at].config, "use_attention_mask", False):
            mask = torch.zeros_like(ids)
            mask[:, : len(chunk) + 2] = 1
        embeds, pooled = self._hidden(at, ids, mask, layer)
        if all(token.weight == 1 for token in chunk):
            return embeds, pooled
        weights = torch.ones((1, ids.shape[1], 1), dtype=torch.float32, device=embeds.device)
        weights[0, 1 : len(chunk) + 1, 0] = torch.tensor([token.weight for token in chunk])
        full = embeds.float()
        weighted = full * weights
        before, after = full.mean(), weighted.mean()
        # A mean that is nothing beside the spread is chance, and so would be what it is put back by.
        if min(abs(before), abs(after)) > LEAST_MEAN * full.std():
            weighted *= before / after
        return weighted.to(embeds.dtype), pooled

    def _hidden(self, at: int, ids: Any, mask: Any, layer: int) -> tuple[Any, Any]:
        """Return what the encoder number `at` makes of tokens (1, 77), `layer` layers before its family's own; and its pooled.

        diffusers' own clip skip asks transformers' CLIP for a `text_model` that it no longer has
        (huggingface/diffusers#14124); with none skipped this is bit for bit what diffusers does.
        """
        encoder, device = self._encoders[at], self.pipe._execution_device
        found = encoder(
            ids.to(device),
            attention_mask=mask.to(device) if mask is not None else None,
            output_hidden_states=self.xl or layer > 0,
        )
        if self.xl:
            return found.hidden_states[-(layer + 2)], found[0] if found[0].ndim == 2 else None
        if not layer:
            return found[0], None
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        return norm(found.hidden_states[-(layer + 1)]), None

    # compel

    def _by_compel(self, text: str, long: str, layer: int) -> tuple[Any, Any]:
        """Return what the library compel makes of a text; it asks the encoders through `_Heard`, which knows of clip skip."""
        import torch

        try:
            library = importlib.import_module("compel")
        except ImportError:
            raise UsageError(
                "compel's syntax needs the library compel, which is not installed", compel.INSTALL
            ) from None
        sides, pooled = [], None
        for at, vocabulary in enumerate(self.reader.vocabularies):
            heard = _Heard(self, at, layer)
            made = library.Compel(
                tokenizer=getattr(self.pipe, vocabulary.name), text_encoder=heard, device=str(heard.device),
                truncate_long_prompts=long == "cut", textual_inversion_manager=_Expanding(vocabulary),
                dtype_for_device_getter=lambda _: torch.float32,
            )  # fmt: skip
            try:
                sides.append(made.build_conditioning_tensor(text))
                if heard.pooled is not None and pooled is None:
                    pooled = made.conditioning_provider.get_pooled_embeddings([text], device=str(heard.device))
            except (ValueError, TypeError, LookupError, AssertionError) as error:
                raise UsageError(f"compel can't encode the prompt: {error}", compel.HINT) from error
            except RuntimeError as error:
                # So compel says that it lost its way; memory that ran out is another matter.
                if "token sequence" not in str(error):
                    raise
                raise UsageError(f"compel can't encode the prompt: {error}", compel.HINT) from error
        width = max(side.shape[1] for side in sides)
        for at, side in enumerate(sides):
            if missing := (width - side.shape[1]) // (self.reader.limit + 2):
                empty = self._chunk(at, (), layer)[0].to(side)
                sides[at] = torch.cat([side, *[empty] * missing], dim=1)
        return sides[0] if len(sides) == 1 else torch.concat(sides, dim=-1), pooled


def _in_chunks(tokens: TokenRecord, chunks: int) -> TokenRecord:
    """Return the same with another number of chunks."""
    return TokenRecord(used=tokens.used, chunks=chunks, cut=tokens.cut)


def _ids(chunk: Sequence[Token], vocabulary: Vocabulary) -> list[int]:
    """Return the ids of a chunk with its marks, filled up."""
    assert vocabulary.start is not None and vocabulary.end is not None and vocabulary.pad is not None
    filling = vocabulary.limit - len(chunk)
    return [vocabulary.start, *(token.id for token in chunk), vocabulary.end, *[vocabulary.pad] * filling]


class _Heard:
    """A text encoder as compel knows one, that gives the layer which is wanted as its last."""

    def __init__(self, encoder: Encoder, at: int, layer: int) -> None:
        self.encoder, self.at, self.layer = encoder, at, layer
        self.device = encoder.pipe._execution_device
        self.dtype = encoder._encoders[at].dtype
        self.pooled: Any = None

    def __call__(self, ids: Any, mask: Any = None, **_: Any) -> SimpleNamespace:
        hidden, pooled = self.encoder._hidden(self.at, ids, mask, self.layer)
        self.pooled = pooled
        return SimpleNamespace(last_hidden_state=hidden, pooler_output=pooled)


class _Expanding:
    """What compel asks of the words of embeddings that are several tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        start = {word: more for word, more in vocabulary.added.items()}
        self.more = {
            piece.id: start[piece.name] for word in start for piece in vocabulary.pieces(word) if piece.name in start
        }

    def expand_textual_inversion_token_ids_if_necessary(self, ids: list[int]) -> list[int]:
        return [one for i in ids for one in (i, *(number for _, number in self.more.get(i, ())))]
