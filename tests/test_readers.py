"""What other programs wrote into a picture is found again, field by field, and nothing is made up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdcli import schedulers
from sdcli.metadata import inspecting, readers
from sdcli.metadata.readers import a1111
from sdcli.request import GenerationRequest
from tests import corpus
from tests.conftest import Sdcli
from tests.corpus import SAMPLES, Sample

CALM = settings(deadline=None)
FORMATS = {"a1111", "comfyui", "invokeai", "fooocus", "novelai", "drawthings", "sdcpp", "mflux", "mold"}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
def test_the_corpus(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{sample.ending}"
    path.write_bytes(sample.make())
    found = inspecting.inspect(path)
    assert (found.format, found.request) == (sample.format, dict(sample.request))
    assert found.model == sample.model
    assert found.unmapped == dict(sample.unmapped)
    assert found.record is None and found.raw
    # What was found is a request, once what it must have is there.
    made = GenerationRequest(**{"prompt": "", **found.request})
    if made.scheduler:
        assert schedulers.find(made.scheduler).name == made.scheduler


def test_the_corpus_is_whole() -> None:
    assert {s.format for s in SAMPLES} == FORMATS
    assert len({s.name for s in SAMPLES}) == len(SAMPLES)
    folder = Path(readers.__file__).parent
    assert {f.stem for f in folder.glob("*.py")} == {*FORMATS, "sdcli", "__init__"}
    assert len(readers.readers()) == len(FORMATS) + 1


def test_the_corpus_at_the_front_door(sdcli: Sdcli, tmp_path: Path) -> None:
    for sample in SAMPLES:
        (tmp_path / f"{sample.name}.{sample.ending}").write_bytes(sample.make())
    done = sdcli("inspect", "--json", ".")
    assert (done.code, done.stderr) == (0, "")
    events = {Path(e["path"]).name: e for e in done.events}
    assert [e["path"] for e in done.events] == sorted(e["path"] for e in done.events)
    for sample in SAMPLES:
        event = events[f"{sample.name}.{sample.ending}"]
        assert list(event) == ["schema", "path", "format", "request", "model", "unmapped", "raw", "check"]
        assert list(event["request"]) == list(GenerationRequest.__struct_fields__)
        assert {k: v for k, v in event["request"].items() if v is not None} == dict(sample.request)
        assert event["format"] == sample.format and event["check"] is None
        assert event["unmapped"] == json.loads(json.dumps(dict(sample.unmapped)))


def test_another_reader_touches_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the folder is a format."""
    (tmp_path / "other.py").write_text(
        "from sdcli.metadata.readers import Saying\n"
        "ORDER = 5\n"
        "def read(texts):\n"
        "    saying = Saying('other')\n"
        "    saying.take('prompt', texts.get('other'), 'other')\n"
        "    return saying.said() if 'other' in texts else None\n"
    )
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path)])
    readers.readers.cache_clear()
    try:
        said = readers.read({"other": "a dog", "parameters": corpus.PLAIN})
        assert said is not None and (said.format, said.request) == ("other", {"prompt": "a dog"})
        said = readers.read({"parameters": corpus.PLAIN})
        assert said is not None and said.format == "a1111"
    finally:
        readers.readers.cache_clear()


def test_a_broken_text_hides_no_other() -> None:
    broken = {"invokeai_metadata": '{"positive_prompt": ', "prompt": '{"1": [', "parameters": corpus.PLAIN}
    said = readers.read(broken)
    assert said is not None and (said.format, said.request) == ("a1111", corpus.PLAIN_REQUEST)
    with pytest.raises(readers.Unreadable, match="invokeai_metadata"):
        readers.read({k: v for k, v in broken.items() if k != "parameters"})


def test_a_graph_without_a_sampler_hides_no_infotext() -> None:
    graph = json.dumps({"1": corpus.node("LoadImage", image="x.png")})
    said = readers.read({"prompt": graph, "parameters": corpus.PLAIN})
    assert said is not None and said.format == "a1111"
    said = readers.read({"prompt": json.dumps(corpus.DEFAULT), "parameters": corpus.PLAIN})
    assert said is not None and said.format == "comfyui"


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"prompt": "a cat, as Easy Diffusion writes it"},
        {"parameters": "a cat"},
        {"parameters": "Sampler: Euler, Seed: 1, Size: 8x8"},
        {"UserComment": "Steps: three, four"},
        {"UserComment": '{"c": "camera"}', "Software": "Adobe Photoshop", "Make": "Canon"},
        {"Comment": "Created with GIMP", "Description": "a photo"},
        {"Comment": '{"a": 1}'},
        {"XMP": "<x"},
        {"XMP": "<x xmlns='http://ns.adobe.com/exif/1.0/'"},
        {"Dream": "of what?"},
        {"sdcli-like": "{}"},
    ],
)
def test_what_is_nobodys(texts: dict[str, str]) -> None:
    assert readers.read(texts) is None


# A1111's grammar

THEIRS = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
LINES = st.text(st.sampled_from('ab1 -/:,"\\ſé\t{}'), max_size=40)


@settings(CALM, max_examples=500)
@given(LINES)
@example('aa: "b, c: d", ee:"\\"", f: g')
@example('aa: "b" c, dd: "e')
@example(" - /aa : b,,bb:,cc")
def test_pairs_are_those_that_a1111_finds(line: str) -> None:
    assert a1111.PAIR.findall(line) == THEIRS.findall(line)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"))


@CALM
@given(prompt=TEXT, negative=TEXT, model=TEXT)
def test_infotext_comes_back(prompt: str, negative: str, model: str) -> None:
    """Written as A1111 does, and read; what its grammar can't hold is what A1111's own reader loses."""

    def lines(text: str) -> str:
        return "\n".join(line.strip() for line in text.split("\n")).strip()

    prompt, negative, model = lines(prompt), lines(negative), model.strip()
    if re.search("^Negative prompt:", f"{prompt}\n{negative}", re.MULTILINE) or model[:1] == '"':
        return
    quoted = json.dumps(model, ensure_ascii=False) if any(c in model for c in ",:\n") else model
    text = f"{prompt}\nNegative prompt: {negative}\nSteps: 20, Seed: 1, Model: {quoted}, Size: 8x16"
    parsed = a1111.parse(text)
    assert parsed is not None
    assert (parsed[0].strip(), parsed[1].strip()) == (prompt, negative)
    assert parsed[2] == {"Steps": "20", "Seed": "1", "Model": model, "Size": "8x16"}


# Values are data


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_inference_steps", 10**9), ("num_inference_steps", 0), ("num_inference_steps", True),
        ("num_inference_steps", 20.5), ("num_inference_steps", "20 "), ("num_inference_steps", "null"),
        ("num_inference_steps", [20]), ("num_inference_steps", 10**400), ("num_inference_steps", "9" * 5000),
        ("width", -512), ("width", 10**6), ("height", "512px"), ("seed", -1), ("seed", 2**64), ("seed", "nan"),
        ("guidance_scale", float("nan")), ("guidance_scale", "inf"), ("guidance_scale", "1e999"), ("guidance_scale", -1),
        ("eta", 2), ("guidance_rescale", "NaN"), ("clip_skip", -1), ("prompt", 3), ("prompt", None), ("prompt", ["a"]),
        ("prompt", "\ud800"), ("negative_prompt", {"a": 1}), ("scheduler", 1), ("prompt_syntax", "sdnext"),
        ("variation", {"seed": -1, "strength": 0.5}), ("variation", {"seed": 1, "strength": 2}), ("variation", {"seed": 1}),
        ("variation", {"seed": "null", "strength": "0.5"}), ("hires", {"factor": "null"}), ("hires", {"factor": 1}),
        ("hires", {"factor": float("nan"), "strength": 0.5}), ("hires", {"factor": 2, "strength": "nan"}),
        ("upscale", {"name": "lanczos", "factor": "null"}), ("upscale", {"name": "\ud800"}), ("lora", "sea"),
        ("lora", [{"name": "a", "scale": "inf"}]), ("lora", [{"name": "a", "scale": float("nan")}]), ("lora", [{"scale": 1}]),
        ("lora", [{"name": "a", "path": "b"}]), ("lora", [{"name": 1}]), ("lora", [{"name": "a"}] * 33),
    ],
)  # fmt: skip
def test_what_no_field_can_be(field: str, value: object) -> None:
    with pytest.raises(ValueError):
        readers.typed(field, value)
    saying = readers.Saying("test")
    saying.take(field, value, "its name")
    assert saying.request == {} and saying.unmapped == ({} if value is None else {"its name": value})


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("sea", "sea"), (" line art ", "line art"), ("sea.safetensors", "sea"), ("sea.SafeTensors.safetensors", "sea"),
        ("猫-v1.5", "猫-v1.5"), ("null", "null"),
        # No paths, ids, addresses and pickles; nothing that a prompt's tag can't hold.
        ("", None), (".safetensors", None), ("a/b", None), ("..\\b", None), ("../b", None), (".b", None), ("~b", None),
        ("c:b", None), ("a\0b", None), ("a<b", None), ("a>b", None), ("a\nb", None), ("x" * 201, None), ("\ud800", None),
        ("a.pt", None), ("a.ckpt", None), (None, None), (3, None), (["a"], None),
    ],
)  # fmt: skip
def test_only_a_lora_s_bare_name_is_taken(name: object, taken: str | None) -> None:
    saying = readers.Saying("test")
    saying.take_loras([(name, "0.5", {"said": name})], "loras")
    assert saying.request == ({"lora": [{"name": taken, "scale": 0.5}]} if taken else {})
    assert saying.unmapped == ({} if taken else {"loras": [{"said": name}]})


@pytest.mark.parametrize("scale", [None, True, "much", "", float("nan"), "1e999", 101, [1]])
def test_a_lora_s_scale_is_a_number(scale: object) -> None:
    saying = readers.Saying("test")
    saying.take_loras([("sea", 1, "one"), ("ink", scale, "two")], "loras")
    assert saying.request == {"lora": [{"name": "sea", "scale": 1.0}]} and saying.unmapped == {"loras": ["two"]}


def test_more_loras_than_a_request_holds_are_named() -> None:
    saying = readers.Saying("test")
    saying.take_loras([(f"a{k}", 1, k) for k in range(40)], "loras")
    assert len(saying.request["lora"]) == 32 and saying.unmapped == {"loras": [*range(32, 40)]}


def test_prompts_without_end_are_read_at_once() -> None:
    began = time.monotonic()
    for prompt in (" " * 2**19, " <" * 2**18, "<lora:" * 2**16, "<lora:" + ":" * 2**19, " \t" * 2**18 + "<lora:a:1>"):
        a1111.without_networks(prompt)
    assert time.monotonic() - began < 2


def test_what_a_field_can_be() -> None:
    assert readers.typed("variation", {"seed": "7", "strength": "0.5"}) == {"seed": 7, "strength": 0.5}
    assert readers.typed("lora", [{"name": "null", "scale": "1"}]) == [{"name": "null", "scale": 1.0}]
    assert readers.typed("seed", "965400086") == 965400086
    assert readers.typed("num_inference_steps", 20.0) == 20
    assert readers.typed("guidance_scale", "7") == 7.0
    assert readers.typed("prompt", "null") == "null"


# Any graph, any text

NAMES = st.sampled_from([
    "1", "2", "3", "model", "positive", "negative", "text", "steps", "seed", "cfg", "sampler", "sigmas", "noise", "guider",
    "latent_image", "samples", "images", "conditioning", "value", "string_a", "string_b", "width", "height", "lora_name",
    "clip", "vae", "sampler_name", "scheduler", "ckpt_name", "delimiter", "batch_size", "control_after_generate",
    "strength_model", "strength_clip", "lora_1", "on", "lora", "strength",
])  # fmt: skip
KINDS = st.sampled_from([
    "KSampler", "SamplerCustom", "SamplerCustomAdvanced", "SaveImage", "CLIPTextEncode", "CLIPTextEncodeSDXL", "Reroute",
    "EmptyLatentImage", "StringConcatenate", "ConditioningCombine", "ControlNetApplyAdvanced", "BasicGuider", "RandomNoise",
    "KSamplerSelect", "BasicScheduler", "KarrasScheduler", "LoraLoader", "CheckpointLoaderSimple", "VAEDecode", "Other",
    "FluxGuidance", "ShowText|pysssss", "RepeatLatentBatch", "CLIPSetLastLayer",
])  # fmt: skip
LINK = st.tuples(st.sampled_from(["1", "2", "3", "4", "9"]), st.integers(-1, 2)).map(list)
LEAF = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["euler", "karras"])
)
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
NODE = st.fixed_dictionaries({"class_type": KINDS, "inputs": st.dictionaries(NAMES, LINK | LEAF, max_size=8)})
GRAPH = st.dictionaries(st.sampled_from(["1", "2", "3", "4", "5"]), NODE | JSON, max_size=5)
VALUES = st.dictionaries(
    st.sampled_from([
        "prompt", "uc", "c", "seed", "steps", "scale", "sampler", "scheduler", "width", "height", "size", "model", "image",
        "resolution", "clip_skip", "base_model", "negative_prompt", "version", "positive_prompt", "v4_prompt", "Comment",
        "mflux_version", "sampling", "models", "schema", "guidance", "noise_schedule", "generation_mode", "kind", "id",
        "loras", "name", "weight", "multiplier", "model_name", "app_version",
    ]),
    JSON,
)  # fmt: skip
KEYWORDS = (
    "parameters", "prompt", "invokeai_metadata", "sd-metadata", "Dream", "Comment", "Description", "Source", "UserComment",
    "MakerNote", "fooocus_scheme", "mold:parameters", "XMP", "Model", "Software",
)  # fmt: skip


def texts_of(draw: Any) -> dict[str, str]:
    free = st.text(st.sampled_from("ab\"'\\:,-<>[]{}()\n\0x1sSWHCA Steps:Sampler"), max_size=60)
    networks = st.lists(st.sampled_from(["<lora:", "a", ":", "1", ">", " ", "te=", "<hypernet:", "/"]), max_size=30)
    tagged = networks.map(lambda parts: corpus.PLAIN.replace("<lora:sea:0.8>", "".join(parts)))
    made: dict[str, str] = {}
    for keyword in draw(st.lists(st.sampled_from(KEYWORDS), min_size=1, max_size=3, unique=True)):
        json_text = (GRAPH if keyword == "prompt" else VALUES).map(json.dumps)
        known = st.sampled_from(
            ["NovelAI", "Fooocus v2", "fooocus", "a1111", "mold:parameters {}", "prompt:{}", corpus.PLAIN]
        )
        made[keyword] = draw(st.one_of(json_text, json_text, free, known, tagged))
    return made


def check_any(texts: dict[str, str]) -> None:
    """No text does more than be read or be refused; what is read is a request and JSON."""
    try:
        said = readers.read(texts)
    except readers.Unreadable:
        return
    if said is not None:
        GenerationRequest(**{"prompt": "", **said.request})
        for field, value in said.request.items():
            assert readers.typed(field, value) == value
        json.dumps([said.model, said.unmapped], allow_nan=False)


@settings(CALM, max_examples=150)
@given(st.data())
def test_any_texts(data: st.DataObject) -> None:
    check_any(texts_of(data.draw))


@pytest.mark.full
@pytest.mark.timeout(3600)
@settings(CALM, max_examples=10_000)
@given(st.data())
def test_any_texts_and_many(data: st.DataObject) -> None:
    check_any(texts_of(data.draw))


def cut_and_changed() -> Iterator[tuple[str, bytes]]:
    """Every sample's file, cut at and changed in places of which each is another one in each sample."""
    for number, sample in enumerate(SAMPLES):
        data = sample.make()
        for k in range(6):
            at = (number * 131 + k * 997) % len(data)
            yield f"cut.{sample.ending}", data[:at]
            changed = data[:at] + bytes([data[at] ^ (1 << k % 8)]) + data[at + 1 :]
            yield f"changed.{sample.ending}", changed
            if sample.ending == "png":
                yield "summed.png", summed(changed)


def summed(data: bytes) -> bytes:
    """A PNG with the sums that its chunks should have, as far as they go."""
    made, at = data[:8], 8
    while at + 12 <= len(data) and (end := at + 8 + int.from_bytes(data[at : at + 4], "big")) + 4 <= len(data):
        made += corpus.chunk(data[at + 4 : at + 8], data[at + 8 : end])
        at = end + 4
    return made + data[at:]


def test_broken_files(tmp_path: Path) -> None:
    """A broken file is read or refused, pixels and all."""
    from sdcli.errors import BadInput

    refused = read = 0
    for name, data in cut_and_changed():
        path = tmp_path / name
        path.write_bytes(data)
        try:
            inspecting.inspect(path, check=True)
            read += 1
        except BadInput:
            refused += 1
    assert refused > 150 and read > 150


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_fuzzing(tmp_path: Path) -> None:
    """Ten minutes of inputs that coverage leads to: none crashes, takes 5 seconds, or lets the memory grow."""
    root = Path(__file__).parent.parent
    limits = ["-max_total_time=600", "-timeout=5", "-rss_limit_mb=1000", "-max_len=100000", "-verbosity=0"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_readers", *limits, f"-artifact_prefix={tmp_path}/"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert list(tmp_path.iterdir()) == []
