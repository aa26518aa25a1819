"""A picture says how it was made: to sdcli without loss, to others in A1111's grammar and as XMP."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli import metadata, prompts
from sdcli.errors import BadInput, InputMissing, UsageError
from sdcli.metadata import ours, readers, xmp
from sdcli.metadata.infotext import infotext
from sdcli.metadata.readers import a1111
from sdcli.record import (
    SCHEMA,
    ModelRecord,
    PixelRecord,
    PlanRecord,
    Record,
    SchedulerRecord,
    SecondsRecord,
    TokenRecord,
    pixels_of,
)
from sdcli.request import File, GenerationRequest, Hires, Upscale, Variation
from tests.conftest import Outcome, Sdcli

PICTURE = Image.linear_gradient("L").resize((24, 16)).convert("RGB")
SHA = hashlib.sha256(b"weights").hexdigest()
# A busy machine is no failure.
CALM = settings(deadline=None)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


def record(prompt: str = "a red circle", **changes: Any) -> Record:
    """Return a record; `changes` are of its request, or of the record where they bear a record's name."""
    made = Record(
        id="0" * 64,
        request=GenerationRequest(prompt=prompt, seed=7),
        model=ModelRecord(name="org/model", family="sd1", repo="org/model", commit="c0ffee"),
        plan=PlanRecord(
            device="cpu", dtype="float32", attention_slicing="off", vae_tiling=False, offload="none", threads=2,
            pack_size=1,
        ),
        versions={"sdcli": "0.1.0"},
        tokens=TokenRecord(used=5, chunks=1),
        scheduler=SchedulerRecord(name="ddim", class_name="DDIMScheduler", sampler="DDIM", schedule_type=None),
        seconds=SecondsRecord(load=1.5, draw=2.0, decode=0.25),
        pixels=pixels_of(PICTURE),
    )  # fmt: skip
    of_record = {k: changes.pop(k) for k in list(changes) if k in Record.__struct_fields__}
    request = msgspec.structs.replace(made.request, **changes)
    return msgspec.structs.replace(made, request=request, **of_record)


def chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Walk a PNG's chunks, checking each one's sum."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        (check,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert zlib.crc32(kind + content) == check
        yield kind.decode(), content
        at += 12 + length
    assert at == len(data)


def png(made: Record) -> bytes:
    return metadata.encoded(PICTURE, made, "png", "full").data


# A1111's reader


def read_infotext(text: str) -> tuple[str, str, dict[str, str]]:
    """Read as A1111's parse_generation_parameters does."""
    *lines, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(pairs) >= 3 and last.startswith("Steps: ")
    both = ["", ""]
    which = 0
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            which, line = 1, line[16:].strip()
        both[which] += ("\n" if both[which] else "") + line
    return both[0], both[1], {k: json.loads(v) if v[:1] == v[-1:] == '"' else v for k, v in pairs}


def lines_of(text: str) -> str:
    """Return what A1111 leaves of a text."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    return "\n".join(line.strip() for line in text.split("\n")).strip()


def test_infotext_to_the_letter() -> None:
    made = record(
        "a cat,\non a mat", negative_prompt="dog", num_inference_steps=20, guidance_scale=7.0, clip_skip=1,
        scheduler=SchedulerRecord(
            name="dpm++2m-karras", class_name="DPMSolverMultistepScheduler", sampler="DPM++ 2M", schedule_type="Karras"
        ),
        model=ModelRecord(name="/models/sd15.safetensors", family="sd1", files={"sd15.safetensors": SHA}),
    )  # fmt: skip
    assert infotext(made) == (
        "a cat,\non a mat\nNegative prompt: dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 7, Size: 24x16, "
        f"Model hash: {SHA[:10]}, Model: sd15, Clip skip: 2, RNG: CPU, Version: sdcli 0.1.0"
    )
    assert infotext(record("x")) == (
        "x\nSteps: 25, Sampler: DDIM, CFG scale: 7.5, Seed: 7, Size: 24x16, Model: org/model, RNG: CPU, "
        "Version: sdcli 0.1.0"
    )


@CALM
@given(prompt=UNICODE, negative=UNICODE, name=UNICODE, scale=st.floats(0, 1000), seed=st.integers(0, 2**32))
def test_infotext_is_read_back(prompt: str, negative: str, name: str, scale: float, seed: int) -> None:
    if re.search(r"^\s*Negative prompt:", lines_of(prompt) + "\n" + lines_of(negative), re.MULTILINE):
        return  # Not lossless in A1111's grammar.
    # A bare value that begins with a quote, or with blanks around it, is lost there too.
    name = name.strip().lstrip('"').strip() or "x"
    model = ModelRecord(name=name, family="sd1", repo="org/model")
    made = record(prompt, negative_prompt=negative, guidance_scale=scale, seed=seed, model=model)
    # What is lost besides stands in `test_what_infotext_loses`.
    read_prompt, read_negative, details = read_infotext(infotext(made))
    assert read_prompt.strip() == lines_of(prompt)
    assert read_negative.strip() == lines_of(negative)
    assert details["Model"] == name.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    assert float(details["CFG scale"]) == scale and int(details["Seed"]) == seed
    assert list(details) == ["Steps", "Sampler", "CFG scale", "Seed", "Size", "Model", "RNG", "Version"]


@pytest.mark.parametrize(
    ("prompt", "negative", "read"),
    [
        ("  blanks \t\n  around lines  ", "", ("blanks\naround lines", "")),
        ("\n\nempty lines at the start\n", "\n\nhere too\n", ("empty lines at the start\n", "here too\n")),
        ("CR\rand CRLF\r\nare LF", "", ("CR\nand CRLF\nare LF", "")),
        ("NUL\0is another sign", "", ("NUL\ufffdis another sign", "")),
        ("a\nNegative prompt: b\nc", "d", ("a", "b\nc\nd")),
        ("a", "b\nNegative prompt: c", ("a", "b\nc")),
        ("\u3000all blanks of Unicode\u2028", "", ("all blanks of Unicode", "")),
        ("Steps: 1, Sampler: no, Seed: 2", "", ("Steps: 1, Sampler: no, Seed: 2", "")),
        ("emoji ✨👩‍👩‍👧 and \ufffe, \x01", "星", ("emoji ✨👩‍👩‍👧 and \ufffe, \x01", "星")),
    ],
)
def test_what_infotext_loses(prompt: str, negative: str, read: tuple[str, str]) -> None:
    assert read_infotext(infotext(record(prompt, negative_prompt=negative)))[:2] == read
    made = ours.encode(record(prompt, negative_prompt=negative))
    kept = ours.decode(made)
    assert kept is not None and (kept.request.prompt, kept.request.negative_prompt) == (prompt, negative)


def test_a_bare_value_with_quotes_or_blanks_around_it_is_read_without() -> None:
    for name, read in (('"x"', "x"), (" x ", "x ")):
        made = record(model=ModelRecord(name=name, family="sd1", repo="r"))
        assert read_infotext(infotext(made))[2]["Model"] == read


@pytest.mark.parametrize(
    ("files", "hash"),
    [
        ({}, None),
        ({"a.safetensors": SHA}, SHA[:10]),
        ({"unet/a.safetensors": SHA, "vae/b.safetensors": SHA}, None),
        ({"a.bin": SHA}, None),
        ({"a.safetensors": SHA, "--vae/b.safetensors": SHA[::-1]}, SHA[:10]),
    ],
)
def test_model_hash_only_of_one_file(files: dict[str, str], hash: str | None) -> None:
    details = read_infotext(infotext(record(model=ModelRecord(name="m", family="sd1", files=files))))[2]
    assert details.get("Model hash") == hash
    if len(files) == 2 and hash:
        assert (details["VAE hash"], details["VAE"]) == (SHA[::-1][:10], "b.safetensors")
        assert list(details)[5:9] == ["Model hash", "Model", "VAE hash", "VAE"]


def test_eta_is_written_where_a1111_has_it() -> None:
    assert "Eta DDIM: 0.5" in infotext(record(eta=0.5))
    euler = SchedulerRecord(name="euler", class_name="EulerDiscreteScheduler", sampler="Euler", schedule_type=None)
    assert "Eta" not in infotext(record(eta=0.5, scheduler=euler))


# What is drawn besides a prompt, and read again

WORDS = st.lists(
    st.sampled_from([
        "(", ")", "[", "]", "\\", "\\(", ":", ":1.3", "|", "<", ">", "<lora:x:1>", "<lora:", "a", "b", " ", "\n", "BREAK", "AND",
        "AND ", " BREAK ", "0.5", "++", '"', "{", "}", ",", "AANDD", "_AND_", "Ä",
    ]),
    max_size=14,
).map("".join)  # fmt: skip


def read_again(made: Record) -> readers.Said:
    said = a1111.read({"parameters": infotext(made)})
    assert said is not None
    return said


@settings(CALM, max_examples=300)
@given(prompt=WORDS, negative=WORDS)
def test_plain_words_are_read_as_these_words(prompt: str, negative: str) -> None:
    """By sdcli's own reader of A1111's syntax, which has A1111's examples as tests of its own."""
    tokens = TokenRecord(used=5, chunks=1, syntax="plain")
    read = read_again(record(prompt, negative_prompt=negative, tokens=tokens, prompt_syntax="plain")).request
    assert "lora" not in read
    for field, text in (("prompt", prompt), ("negative_prompt", negative)):
        found = read.get(field, "").strip()
        assert prompts.weights(found) == [(lines_of(text), 1.0)]
        assert prompts.schedule(found, 10) == [(10, found)]
        assert not re.search(r"\b(AND|BREAK)\b", found) and not re.search(r"<\w+:", found)


@settings(CALM, max_examples=200)
@given(prompt=WORDS.filter(lambda text: not re.search("<(lora|lyco|hypernet):", text)), scale=st.floats(-100, 100))
def test_prompts_in_other_syntaxes_are_written_as_they_are(prompt: str, scale: float) -> None:
    sea = {"kind": "lora", "name": "sea.safetensors", "scale": scale, "sha256": SHA, "image": None}
    model = ModelRecord(name="m", family="sd1", adapters=(sea,))
    for syntax in ("a1111", "compel", None):
        read = read_again(record(prompt, model=model, tokens=TokenRecord(used=5, chunks=1, syntax=syntax))).request
        assert read["prompt"].strip() == lines_of(prompt)
        assert read["lora"] == [{"name": "sea", "scale": scale}]
        assert read.get("prompt_syntax") == ("compel" if syntax == "compel" else None)


def test_adapters_to_the_letter() -> None:
    image = {"name": "x.png", "sha256": SHA}
    made = record(
        "a cat", negative_prompt="fog",
        model=ModelRecord(name="m", family="sd1", adapters=(
            {"kind": "lora", "name": "line art.safetensors", "scale": 1.0, "sha256": SHA},
            {"kind": "embedding", "name": "cute.safetensors", "scale": 1.0, "sha256": SHA, "token": "<cute>"},
            {"kind": "lora", "name": "org/repo/sea.safetensors", "scale": -0.25, "sha256": SHA},
            {"kind": "controlnet", "name": "org/canny", "scale": 0.5, "sha256": SHA, "image": image},
            # What a tag can't hold, and what no sdcli wrote.
            {"kind": "lora", "name": "a:b.safetensors", "scale": 1.0}, {"kind": "lora", "name": ".hidden", "scale": 1.0},
            {"kind": "lora", "name": "a>b", "scale": 1.0}, {"kind": "lora", "name": "x", "scale": float("inf")},
            {"kind": "lora", "name": "x", "scale": "1"}, {"kind": "lora", "scale": 1.0}, {"kind": ["lora"]}, {},
        )),
    )  # fmt: skip
    text = infotext(made)
    assert text.startswith("a cat <lora:line art:1> <lora:sea:-0.25>\nNegative prompt: fog\nSteps: 25, ")
    said = read_again(made)
    assert said.request["prompt"] == "a cat"
    assert said.request["lora"] == [{"name": "line art", "scale": 1.0}, {"name": "sea", "scale": -0.25}]
    alone = record("", model=made.model)
    assert (
        infotext(alone).startswith("<lora:line art:1> <lora:sea:-0.25>\n") and read_again(alone).request["prompt"] == ""
    )


def test_variations_and_second_passes_to_the_letter() -> None:
    made = record(
        "x", variation=Variation(seed=9, strength=0.25), hires=Hires(factor=1.5, strength=0.6), width=512, height=256,
        upscale=Upscale(name="lanczos"), num_inference_steps=20,
    )  # fmt: skip
    assert infotext(made) == (
        "x\nSteps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 7, Size: 512x256, Model: org/model, Variation seed: 9, "
        "Variation seed strength: 0.25, Denoising strength: 0.6, RNG: CPU, Hires upscale: 1.5, Hires steps: 12, "
        "Hires upscaler: Lanczos, Postprocess upscale by: 2, Postprocess upscaler: Lanczos, Version: sdcli 0.1.0"
    )
    said = read_again(made)
    assert {k: said.request[k] for k in ("variation", "hires", "upscale", "width", "height")} == {
        "variation": {"seed": 9, "strength": 0.25}, "hires": {"factor": 1.5, "strength": 0.6},
        "upscale": {"name": "lanczos", "factor": 2.0}, "width": 512, "height": 256,
    }  # fmt: skip
    assert said.unmapped == {"RNG": "CPU", "Version": "sdcli 0.1.0"}


@CALM
@given(
    seed=st.integers(0, 2**63 - 1), share=st.floats(0, 1), factor=st.floats(1, 8, exclude_min=True),
    strength=st.floats(0, 1, exclude_min=True), steps=st.integers(1, 1000),
)  # fmt: skip
def test_any_variation_and_second_pass_comes_back(
    seed: int, share: float, factor: float, strength: float, steps: int
) -> None:
    changes: dict[str, Any] = {
        "variation": Variation(seed=seed, strength=share),
        "hires": Hires(factor=factor, strength=strength),
        "upscale": Upscale(name="lanczos", factor=factor),
    }
    said = read_again(record("x", num_inference_steps=steps, width=8, height=8, **changes))
    assert {k: msgspec.convert(said.request[k], type(v)) for k, v in changes.items()} == changes
    assert not said.unmapped.keys() - {"RNG", "Version"}


def test_pictures_to_start_from_to_the_letter() -> None:
    source = File(name="x.png", sha256=SHA)
    more: dict[str, Any] = {
        "init_image": source,
        "strength": 0.75,
        "mask": source,
        "invert_mask": True,
        "mask_blur": 4.0,
    }
    made = record("x", **more, hires=Hires(factor=2.0), upscale=Upscale(name="net.safetensors", sha256=SHA))
    text = infotext(made)
    for part in (
        "Denoising strength: 0.75, ", "RNG: CPU, Mask mode: Inpaint not masked, Mask blur: 4, Postprocess upscaler: net, ",
    ):  # fmt: skip
        assert part in text
    # A1111 has one strength, and no second pass in pictures that started from another.
    assert "Hires" not in text
    said = read_again(made)
    assert not said.request.keys() & {"init_image", "strength", "mask", "hires", "upscale"}
    assert said.unmapped["Denoising strength"] == "0.75"


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (
            r"a (red:1.5) [star] \ BREAK a AND b <lora:x:1>",
            ["--prompt-syntax", "plain", "--negative", "[blue] (heart)"],
        ),
        ("a (red:1.5) star", ["--variation", "9:0.25", "--hires", "1.5x:0.5", "--upscale", "2x"]),
        ("a star", ["--lora", str(Path(__file__).parent / "adapters" / "green.safetensors") + ":0.5"]),
    ],
)
def test_infotext_alone_draws_the_same_pixels(
    prompt: str, options: list[str], sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCLI_ADAPTER_DIR", str(Path(__file__).parent / "adapters"))
    draw = ["--model", "demo", "--dtype", "fp32", "-o"]
    first = sdcli("generate", prompt, "--scheduler", "ddim", "--steps", "2", "--seed", "5", *options, *draw, "a.png")
    assert first.code == 0, first.stderr
    with Image.open(tmp_path / "a.png") as image:
        text, pixels = image.info["parameters"], pixels_of(image)
    info = PngInfo()
    info.add_itxt("parameters", text)
    PICTURE.save(tmp_path / "info.png", pnginfo=info)
    again = sdcli("generate", "--from", "info.png", *draw, "b.png")
    assert again.code == 0, again.stderr
    with Image.open(tmp_path / "b.png") as image:
        assert pixels_of(image) == pixels


# Ours


def read_back(data: bytes, folder: Path) -> Record | None:
    path = folder / "x.png"
    path.write_bytes(data)
    return metadata.read(path)


@CALM
@given(prompt=UNICODE, negative=UNICODE, tags=st.dictionaries(UNICODE, UNICODE, max_size=3), scale=st.floats(0, 1000))
def test_nothing_is_lost_through_a_png(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, negative: str, tags: dict[str, str], scale: float
) -> None:
    made = record(prompt, negative_prompt=negative, guidance_scale=scale, tags=tags)
    data = png(made)
    assert read_back(data, tmp_path_factory.getbasetemp()) == made
    texts = [(kind, content) for kind, content in chunks(data) if kind in ("tEXt", "iTXt")]
    assert [content.partition(b"\0")[0] for _, content in texts] == [b"parameters", b"sdcli", b"XML:com.adobe.xmp"]
    for kind, content in texts:
        _, _, rest = content.partition(b"\0")
        # iTXt: not compressed, no language, no translated keyword. No NUL and no CR in either.
        text = rest if kind == "tEXt" else rest.removeprefix(b"\0\0\0\0")
        assert b"\0" not in text and b"\r" not in text
        assert (kind == "tEXt") == text.isascii()


def test_lone_surrogates_are_refused() -> None:
    for made in (record("a\udc80b"), record(tags={"a": "\ud800"}), record(negative_prompt="\udfff")):
        with pytest.raises(BadInput, match="Unicode"):
            png(made)
    with pytest.raises(BadInput):
        ours.decode('{"schema": 1, "id": "\udc80"}')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read"),
        ("null", "cannot be read"),
        ("{}", "schema"),
        (f'{{"schema": {SCHEMA}}}', "missing required field"),
        (f'{{"schema": "{SCHEMA}"}}', "Expected `int`"),
        (f'{{"schema": {SCHEMA + 1}, "unheard": "of"}}', "newer|knows up to"),
        ('{"schema": 0}', "never was"),
        ('{"schema": ' + "[" * 100_000, "cannot be read"),
    ],
)
def test_bad_records_are_refused(text: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        ours.decode(text)


def test_a_record_s_types_are_checked() -> None:
    good = msgspec.json.decode(ours.encode(record()))
    good["pixels"]["width"] = "24"
    with pytest.raises(BadInput, match=r"Expected `int`.*pixels.width"):
        ours.decode(json.dumps(good))


def test_records_of_earlier_versions_are_read() -> None:
    said = msgspec.json.decode(ours.encode(record()))
    del said["encoding"], said["pixels"]["stored_sha256"]
    assert ours.decode(json.dumps(said)) == record()


def test_minimal_keeps_the_id_and_nothing_of_the_request() -> None:
    made = record("a secret", tags={"secret": "secret"}, template="secret", negative_prompt="secret")
    text = ours.encode(ours.identity_of(made))
    assert json.loads(text) == {"schema": 1, "id": made.id, "pixels": msgspec.to_builtins(made.pixels)}
    assert ours.decode(text) is None
    for kept in (text, ours.encode(made)):
        identity = ours.identity(kept)
        assert (identity.id, identity.pixels) == (made.id, made.pixels)
    for bad in ("{}", '{"schema": 1, "id": "x"}', '{"schema": 2}', "[" * 100_000):
        with pytest.raises(BadInput):
            ours.identity(bad)


# XMP

FILES = {"unet/a.safetensors": "a" * 64, "b.safetensors": "b" * 64}


@pytest.mark.parametrize(
    ("model", "name", "version"),
    [
        (ModelRecord(name="org/model", family="sd1", repo="org/model", commit="c0ffee", files=FILES), "org/model", "c0ffee"),
        (ModelRecord(name="dir/x", family="sd1", files={"x": SHA, "--vae/y": "y"}), "x", SHA),
        (
            ModelRecord(name="x", family="sd1", files=FILES), "x",
            hashlib.sha256(f"{'b' * 64}  b.safetensors\n{'a' * 64}  unet/a.safetensors\n".encode()).hexdigest(),
        ),
        (ModelRecord(name="x", family="sd1"), "x", None),
        (ModelRecord(name='a<b>&"\'\x01\ud800é', family="sd1", commit="c"), 'a<b>&"\'\ufffd\ufffdé', "c"),
    ],
)  # fmt: skip
def test_the_mark(model: ModelRecord, name: str, version: str | None) -> None:
    packet = xmp.packet(xmp.mark(model, "0.1.0"))
    iptc = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    assert xmp.find(packet, iptc, "DigitalSourceType") == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )
    assert xmp.find(packet, iptc, "AISystemUsed") == name
    assert xmp.find(packet, iptc, "AISystemVersionUsed") == version
    assert xmp.find(packet, "http://ns.adobe.com/xap/1.0/", "CreatorTool") == "sdcli 0.1.0"
    assert packet.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>')
    assert packet.endswith('<?xpacket end="r"?>') and "secret" not in packet
    assert xmp.own_record(packet) is None


def test_xmp_of_others() -> None:
    packet = '<a xmlns:b="b/" xmlns="a/"><b:c>one<d/> two &amp;</b:c><e b:f="three"/></a>'
    assert xmp.find(packet, "b/", "c") == "one two &"
    assert xmp.find(packet, "b/", "f") == "three"
    assert xmp.find(packet, "b/", "g") is None
    for bad in (
        "<a>",
        "no",
        '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
        "<a>" * 200 + "</a>" * 200,
        "<a/>" + " " * 2**20,
    ):
        with pytest.raises(BadInput, match="XMP"):
            xmp.find(bad, "b/", "c")
    for text in (
        "<sdcli:record>{&quot;a&quot;}</sdcli:record>",
        "<a sdcli:record='{\"a\"}'/>",
        '<a\nsdcli:record="{&#34;a&#x22;}">',
    ):
        assert xmp.own_record(text) == '{"a"}'


# PNG


def test_texts_stand_before_the_pixels_and_pixels_are_kept() -> None:
    made = record("über")
    data = png(made)
    assert [kind for kind, _ in chunks(data)] == ["IHDR", "iTXt", "iTXt", "iTXt", "IDAT", "IEND"]
    assert [kind for kind, _ in chunks(png(record("plain")))] == ["IHDR", "tEXt", "tEXt", "iTXt", "IDAT", "IEND"]
    assert png(made) == data
    with Image.open(io.BytesIO(data)) as image:
        assert pixels_of(image) == made.pixels
        assert image.info["parameters"] == infotext(made)


def test_metadata_none_leaves_pixels_only(tmp_path: Path) -> None:
    data = metadata.encoded(PICTURE, record("secret"), "png", "none").data
    assert [kind for kind, _ in chunks(data)] == ["IHDR", "IDAT", "IEND"]
    assert read_back(data, tmp_path) is None


@pytest.mark.parametrize("format", ["jpeg", "gif", "bmp"])
def test_other_formats_are_refused(format: str) -> None:
    with pytest.raises(UsageError) as caught:
        metadata.encoded(PICTURE, record(), format, "full")
    assert caught.value.hint and "png, jpg, webp, avif" in caught.value.hint


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        metadata.read(tmp_path / "none.png")
    with pytest.raises(BadInput):
        metadata.read(tmp_path)
    with pytest.raises(BadInput, match="not a picture"):
        read_back(b"hello", tmp_path)


@settings(CALM, max_examples=60)
@given(data=st.data())
def test_a_damaged_picture_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(png(record("ü")))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del whole[at:]
    else:
        whole[at] ^= data.draw(st.integers(1, 255))
    try:
        read_back(bytes(whole), tmp_path_factory.getbasetemp())
    except BadInput as error:
        assert "x.png" in error.message


def test_a_huge_picture_s_record_is_read(tmp_path: Path) -> None:
    # Pillow's Image.open refuses so many pixels; none of them is looked at here.
    made = record(pixels=PixelRecord(sha256=SHA, width=16384, height=16384, mode="RGB"))
    data = png(made)
    header = b"IHDR" + struct.pack(">II", 16384, 16384) + data[24:29]
    data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    assert read_back(data, tmp_path) == made


# Prompts that are private, through the front door

SECRETS = ("a secret star", "a secret heart", " ".join(["secret"] * 100))


def kept(folder: Path) -> str:
    """Return all that a folder tells: names, texts of pictures, and other files whole."""
    told = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    for path in filter(Path.is_file, folder.rglob("*")):
        told.append(path.read_bytes().decode("latin-1"))
    return "\n".join(told)


@pytest.mark.parametrize("how", ["minimal", "none"])
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["7.png", "7-2.png"]),
        (["-o", "out/"], ["out/7.png", "out/7-2.png"]),
        (["-o", "{width}/"], ["128/7.png", "128/7-2.png"]),
        (["-o", "{prompt:3}-{seed}.png"], ["a-s-7.png", "a-s-7-2.png"]),
    ],
)
def test_default_names_hold_no_private_prompt(
    sdcli: Sdcli, tmp_path: Path, how: str, options: list[str], names: list[str]
) -> None:
    draw = ["--model", "demo", "--steps", "1", "--seed", "7", "--metadata", how, *options]
    done = sdcli("generate", *SECRETS[:2], *draw)
    assert done.code == 0 and done.lines == names, done.stderr
    assert "secret" not in kept(tmp_path)
    shown = sdcli("generate", SECRETS[0], *draw, "--dry-run", "--json").events[0]["path"]
    assert shown == names[0]


@pytest.mark.parametrize("how", ["minimal", "none"])
def test_a_private_batch_keeps_no_prompt_and_goes_on(sdcli: Sdcli, tmp_path: Path, how: str) -> None:
    rows = [{"prompt": SECRETS[0]}, {"prompt": SECRETS[1], "output": "own/"}, {"prompt": SECRETS[2], "format": "jpg"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "in").mkdir()
    draw = ["--model", "demo", "--steps", "1", "--long-prompt", "cut"]
    batch = ["batch", "rows.jsonl", *draw, "--metadata", how, "-o", "in/", "--json"]
    done = sdcli(*batch)
    assert done.code == 0, done.stderr
    told = [e for e in done.events if e["event"] == "image"]
    assert sorted(e["prompt"] for e in told) == sorted(SECRETS), "whoever asked is told"
    assert any("secret" in warning for e in told for warning in e["warnings"]), "of what was cut too"
    assert all(re.fullmatch(r"(in|own)/[0-9]+-[0-9a-f]{8}\.(png|jpg)", e["path"]) for e in told)
    assert "secret" not in kept(tmp_path / "in") + kept(tmp_path / "own")
    journal = tmp_path / "in" / "sdcli-batch.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [(line["prompt"], line["warnings"]) for line in lines if line["event"] == "image"] == [(None, [])] * 3
    assert all(list(line) == [*told[0], "time"] for line in lines[1:]), "the shape stays"
    # Finished, it draws nothing; killed between a picture and its line, it finds it.
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path != journal}
    again = sdcli(*batch)
    assert again.code == 0 and [e["event"] for e in again.events] == ["skipped"] * 3 + ["summary"]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    again = sdcli(*batch)
    assert again.code == 0, again.stderr
    assert {e["path"] for e in again.events if "path" in e} == {e["path"] for e in told}
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path != journal} == before
    assert "secret" not in kept(tmp_path / "in")
    # With full records prompts are kept as ever.
    full = sdcli(*batch[:-3], "-o", "full/", "--metadata", "full")
    assert full.code == 0 and "secret" in kept(tmp_path / "full")


def test_a_private_stream_answers_with_its_prompts(
    sdcli: Sdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def streamed() -> Outcome:
        stdin = SimpleNamespace(buffer=io.BytesIO("\n".join([SECRETS[0], SECRETS[0], SECRETS[1]]).encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        return sdcli(*batch)

    batch = "batch - --stream --model demo --steps 1 --metadata minimal --seed 4 -o s/".split()
    (tmp_path / "s").mkdir()
    first, again = streamed(), streamed()
    for done in (first, again):
        assert done.code == 0, done.stderr
        assert [e["prompt"] for e in done.events] == [SECRETS[0], SECRETS[0], SECRETS[1]]
    assert [e["path"] for e in first.events] == [e["path"] for e in again.events]
    assert "secret" not in kept(tmp_path / "s")


def test_a_private_grid_goes_on(sdcli: Sdcli, tmp_path: Path) -> None:
    grid = ["grid", SECRETS[0], "--x", "steps=1,2", "--model", "demo", "--metadata", "minimal", "--json", "-o", "g/"]
    first, again = sdcli(*grid), sdcli(*grid)
    assert (first.code, again.code) == (0, 0), first.stderr + again.stderr
    cells = [e["path"] for e in first.events if e["event"] == "image"]
    assert [e["path"] for e in again.events if e["event"] == "skipped"] == cells
    assert "secret" not in "".join(cells) and "secret" not in (tmp_path / "g" / "sdcli-batch.jsonl").read_text()
    assert first.events[-2] == again.events[-2], "the same sheet"


def test_importing_is_cheap() -> None:
    code = "import sys, sdcli.metadata, sdcli.output; print([m for m in ('PIL', 'torch', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
