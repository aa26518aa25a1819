"""Embeddings: bit for bit diffusers' where it can make them, A1111's chunks and weights, compel's, and what is kept."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from sdcli import models
from sdcli.errors import UsageError
from sdcli.models import FAMILIES, Model, ModelSpec
from sdcli.pipeline import encoding
from sdcli.pipeline.encoding import Encoder
from sdcli.prompts.tokens import Reader
from tests import families

PROMPT = "a red circle on a blue background"
LONG = "a red circle, " * 30 + "a green star"
SD, XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
BOTH = pytest.mark.parametrize("name", [SD, XL])


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


@cache
def pipe_of(name: str) -> Any:
    from diffusers import StableDiffusionPipeline

    if name == XL:
        return families.BUILDERS[XL]()
    return StableDiffusionPipeline.from_pretrained(families.DEMO, local_files_only=True)


def model_of(name: str) -> Model:
    demo = models.find(ModelSpec(model="demo"))
    return demo if name == SD else replace(demo, family=FAMILIES[XL], encoder_layers=2)


def encoder_of(name: str) -> Encoder:
    return Encoder(pipe_of(name), model_of(name))


def embeds(encoder: Encoder, text: str, *, syntax: str = "a1111", long: str = "chunk", **more: Any) -> Any:
    encoded = encoder.encode(text, syntax=syntax, long=long, **more)
    return encoded.at(1)[0]


def by_diffusers(name: str, text: str, **more: Any) -> Any:
    return pipe_of(name).encode_prompt(
        text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **more
    )


@BOTH
@pytest.mark.parametrize("text", ["", PROMPT, "red " * 75, "wow!! a star!"])
@pytest.mark.parametrize("syntax", ["plain", "a1111", "compel"])
def test_without_weights_they_are_what_diffusers_makes(name: str, text: str, syntax: str) -> None:
    wanted = by_diffusers(name, text)
    found = encoder_of(name).encode(text, syntax=syntax, long="chunk").schedule
    ((_, embeddings, pooled),) = found
    assert torch.equal(embeddings, wanted[0])
    if name == XL:
        assert torch.equal(pooled, wanted[2])
    else:
        assert pooled is None


@BOTH
def test_cut_is_what_diffusers_cuts(name: str) -> None:
    encoded = encoder_of(name).encode(LONG, syntax="a1111", long="cut")
    assert torch.equal(encoded.at(1)[0], by_diffusers(name, LONG)[0])
    assert encoded.tokens.cut.endswith("a green star")
    with pytest.raises(UsageError, match="cut off"):
        encoder_of(name).encode(LONG, syntax="plain", long="error")


def test_sdxl_skips_layers_as_diffusers_does() -> None:
    wanted = by_diffusers(XL, PROMPT, negative_prompt="a star", clip_skip=1)
    encoder = encoder_of(XL)
    assert torch.equal(embeds(encoder, PROMPT, clip_skip=1), wanted[0])
    assert torch.equal(embeds(encoder, "a star", clip_skip=1, negative=True), wanted[1])
    assert not torch.equal(wanted[0], by_diffusers(XL, PROMPT)[0])


def test_sd_skips_layers_and_norms_what_is_left() -> None:
    pipe, encoder = pipe_of(SD), encoder_of(SD)
    ids = pipe.tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    hidden = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
    norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
    assert torch.equal(embeds(encoder, PROMPT, clip_skip=1), norm(hidden))
    assert torch.equal(embeds(encoder, PROMPT, clip_skip=1, syntax="compel"), norm(hidden))
    with pytest.raises(UsageError, match="layers"):
        encoder.encode(PROMPT, syntax="a1111", long="chunk", clip_skip=3)


def test_sdxls_empty_negative_prompt_is_zeros_where_the_model_was_trained_so(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(XL)
    wanted = by_diffusers(XL, PROMPT)
    nothing = encoder.encode("", syntax="a1111", long="chunk", negative=True)
    assert torch.equal(nothing.at(1)[0], wanted[1])
    assert torch.equal(nothing.at(1)[1], wanted[3])
    assert not wanted[1].any()
    longer = encoder.padded(nothing, 2)
    assert longer.at(1)[0].shape[1] == 154
    assert not longer.at(1)[0].any()
    assert embeds(encoder, "a", negative=True).any()
    assert embeds(encoder, "").any()


@BOTH
def test_a_chunk_is_encoded_by_itself(name: str) -> None:
    encoder = encoder_of(name)
    both = encoder.encode(f"{PROMPT} BREAK a green star", syntax="a1111", long="chunk")
    assert (both.chunks, both.tokens.used) == (2, 10)
    apart = [embeds(encoder, text) for text in (PROMPT, "a green star")]
    assert torch.equal(both.at(1)[0], torch.cat(apart, dim=1))
    if name == XL:
        assert torch.equal(both.at(1)[1], by_diffusers(name, PROMPT)[2])
    padded = encoder.padded(encoder.encode(PROMPT, syntax="a1111", long="chunk"), 2)
    assert torch.equal(padded.at(1)[0], torch.cat([apart[0], embeds(encoder, "")], dim=1))
    assert encoder.padded(both, 1) is both


def test_sdxls_two_tokenizers_may_make_different_chunks() -> None:
    encoder = encoder_of(XL)
    first, second = encoder.reader.vocabularies
    encoder.reader = Reader([first, replace(second, added={"red</w>": (("a", 320), ("b", 321))})], chunks=True)
    many = "red " * 40
    assert [len(encoder.reader.read(many, syntax="plain", long="chunk", which=i).chunks) for i in (0, 1)] == [1, 2]
    assert encoder.encode(many, syntax="plain", long="chunk").chunks == 2
    assert encoder.reader.chunks_of(many, syntax="plain", long="chunk") == 2
    assert torch.equal(embeds(encoder, many)[:, 77:, :16], embeds(encoder, "")[..., :16])


@BOTH
def test_weights_multiply_their_own_tokens(name: str) -> None:
    encoder = encoder_of(name)
    plain, heavy = embeds(encoder, PROMPT), embeds(encoder, "a (red:1.5) circle on a blue background")
    # Each encoder's by itself.
    for ratio in (heavy / plain)[0].split(16 if name == XL else 128, dim=-1):
        factor = ratio[1, 0].item()  # what the mean is put back by, where it is
        assert torch.allclose(ratio[2], torch.full_like(ratio[2], 1.5 * factor), rtol=1e-3)
        assert torch.allclose(ratio[3:], torch.full_like(ratio[3:], factor), rtol=1e-3)
    assert torch.equal(embeds(encoder, "a (red:1) circle on a blue background"), plain)


def test_a_mean_that_is_one_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(SD)
    mean, hidden = 0.3, encoder._hidden
    monkeypatch.setattr(encoder, "_hidden", lambda *given: (hidden(*given)[0] + mean, None))
    plain, heavy = embeds(encoder, PROMPT), embeds(encoder, "(a red circle on a blue background:2)")
    assert math.isclose(plain.mean(), heavy.mean(), rel_tol=1e-4)
    assert not torch.allclose(plain, heavy)


def test_words_come_and_go() -> None:
    encoder = encoder_of(SD)
    encoded = encoder.encode(f"a [red:{LONG}:0.5] star", syntax="a1111", long="chunk", steps=10)
    assert [until for until, _, _ in encoded.schedule] == [5, 10]
    assert encoded.changes
    assert torch.equal(
        encoded.at(5)[0], encoder.padded(encoder.encode("a red star", syntax="a1111", long="chunk"), 2).at(1)[0]
    )
    assert torch.equal(encoded.at(6)[0], embeds(encoder, f"a {LONG} star"))
    assert encoded.at(10)[0].shape == encoded.at(1)[0].shape
    assert not encoder.encode("a [red:blue:0.5] star", syntax="plain", long="chunk", steps=10).changes


# compel


@pytest.mark.parametrize(
    "prompt",
    [
        "red++ circle",
        "a (red circle)1.3 (on a blue background)0.4",
        '("red circle","blue square").blend(0.3,0.7)',
        '("red circle","blue square").and(1,0.5)',
        f"{LONG} (blue)1.2 {LONG}",
    ],
)
def test_compel_is_the_library(prompt: str) -> None:
    from compel import CompelForSD, CompelForSDXL

    wanted = CompelForSD(pipe_of(SD))(prompt)
    encoder = encoder_of(SD)
    encoded = encoder.encode(prompt, syntax="compel", long="chunk")
    assert torch.equal(encoded.at(1)[0], wanted.embeds)
    assert encoded.chunks == encoder.reader.chunks_of(prompt, syntax="compel", long="chunk")
    if prompt.endswith(".and(1,0.5)"):
        return  # which the library fails on for SDXL
    wanted = CompelForSDXL(pipe_of(XL))(prompt)
    found = encoder_of(XL).encode(prompt, syntax="compel", long="chunk").at(1)
    assert torch.equal(found[0], wanted.embeds)
    assert torch.equal(found[1], wanted.pooled_embeds)


def test_compel_weighs_what_it_joins_for_sdxl_too() -> None:
    encoder = encoder_of(XL)
    joined = embeds(encoder, '("red circle","blue square").and(1,0.5)', syntax="compel")
    first, second, empty = (embeds(encoder, text) for text in ("red circle", "blue square", ""))
    assert torch.equal(joined, torch.cat([first, empty + (second - empty) * 0.5], dim=1))


def test_compel_cut_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(SD)
    assert torch.equal(
        embeds(encoder, LONG, syntax="compel", long="cut"), embeds(encoder, LONG, syntax="plain", long="cut")
    )
    import importlib

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError) as caught:
        encoder.encode("never+ encoded", syntax="compel", long="chunk")
    assert caught.value.hint == "pip install 'sdcli[compel]'"


# Embeddings that were learned


def test_words_of_embeddings_are_as_many_tokens_as_diffusers_makes_of_them() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(families.DEMO, local_files_only=True)
    encoder = Encoder(pipe, model_of(SD))
    before = embeds(encoder, "a <toy> star")
    generator = torch.Generator().manual_seed(0)
    pipe.load_textual_inversion({"<toy>": torch.randn(3, 128, generator=generator)})
    assert torch.equal(embeds(encoder, "a <toy> star"), before)
    encoder.forget()
    wanted = pipe.encode_prompt("a <toy> star", "cpu", 1, False)[0]
    for syntax in ("a1111", "plain", "compel"):
        assert torch.equal(embeds(encoder, "a <toy> star", syntax=syntax), wanted)
    assert not torch.equal(wanted, before)
    assert encoder.encode("a <toy> star", syntax="plain", long="chunk").tokens.used == 5


# What is kept


def test_what_may_come_again_is_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(SD)
    asked: list[int] = []
    hidden = encoder._hidden
    monkeypatch.setattr(encoder, "_hidden", lambda *given: asked.append(1) or hidden(*given))  # type: ignore[func-returns-value]
    for _ in range(3):
        embeds(encoder, PROMPT)
    assert len(asked) == 1
    monkeypatch.setattr(encoding, "ENCODED_BYTES", 3 * embeds(encoder, PROMPT).nbytes)
    for text in ("a", "b", "c", "d"):
        embeds(encoder, text)
        embeds(encoder, "")
    asked.clear()
    embeds(encoder, "")
    embeds(encoder, "d")
    assert not asked
    embeds(encoder, "a")
    assert len(asked) == 1
    encoder.forget()
    embeds(encoder, "a")
    assert len(asked) == 2
