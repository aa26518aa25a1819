"""Tokens without the libraries: the same as transformers finds, chunks as A1111 makes them, and `sdcli tokens`."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from msgspec.structs import replace
from transformers import CLIPTokenizer

from sdcli import models
from sdcli.errors import BadInput, UsageError
from sdcli.models import Model, ModelSpec
from sdcli.prompts.tokens import Reader, chunk_count
from tests import families
from tests.conftest import Sdcli

TOKENIZER = families.DEMO / "tokenizer"
MARK = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
START, END = ({"content": f"<|{word}oftext|>", **MARK} for word in ("start", "end"))
CONFIG = {"model_max_length": 77, "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END["content"]}
CONFIG = {k: {"__type": "AddedToken", **v} if isinstance(v, dict) else v for k, v in CONFIG.items()}
# The files of SD 1.5's tokenizer, of SD 2.1's, and of SDXL's second, as they lie on the hub.
LAYOUTS: dict[str, dict[str, Any]] = {
    "sd15": {"tokenizer_config": CONFIG, "special_tokens_map": {"bos_token": START, "eos_token": END}},
    "sd21": {"tokenizer_config": CONFIG, "special_tokens_map": {"pad_token": "!"}},
    "sdxl": {
        "tokenizer_config": CONFIG
        | {"pad_token": "!"}
        | {"added_tokens_decoder": {"0": {"content": "!", **MARK, "normalized": False, "special": True}}}
    },
    "added": {"tokenizer_config": CONFIG, "added_tokens": {"<cat-toy>": 885}},
}
WORDS = {"cat": 2, "sks*": 3, "<Cat-Toy>": 1}


def varied(count: int) -> list[str]:
    draw = random.Random(3)
    known = [token.removesuffix("</w>") for token in json.loads((TOKENIZER / "vocab.json").read_text("utf-8"))]
    odd = ["  ", "\n", "!", "!!", ",", "'s", "don't", "İ", "ß", "ﬁ", "é", "1234", "<|endoftext|>", "<|ENDOFTEXT|>"]
    odd += ["<cat-toy>", "<Cat-Toy>", "sks*", "catalog", "क़", "👍🏽", "\u200b", "\ud7ff"]
    ranges = [(32, 126), (0xA0, 0x24F), (0x300, 0x36F), (0x900, 0x97F), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF)]

    def piece() -> str:
        kind = draw.random()
        if kind < 0.4:
            return draw.choice(known)
        return chr(draw.randint(*draw.choice(ranges))) if kind < 0.6 else f" {draw.choice(odd)}"

    return ["".join(piece() for _ in range(draw.randint(0, 30))) for _ in range(count)]


def model_of(name: str, to: Path) -> Model:
    """Return the demo with its vocabulary in another layout."""
    demo = models.find(ModelSpec(model="demo"))
    if name == "demo":
        return demo
    (to / "tokenizer").mkdir(parents=True)
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / file, to / "tokenizer" / file)
    for file, content in LAYOUTS[name].items():
        (to / "tokenizer" / f"{file}.json").write_text(json.dumps(content))
    return replace(demo, path=to)


@pytest.mark.parametrize("name", ["demo", *LAYOUTS])
def test_tokens_are_those_that_transformers_finds(name: str, tmp_path: Path) -> None:
    model = model_of(name, tmp_path)
    assert model.configs is not None
    # Which of two words it is that differ in case alone, the library leaves to chance.
    for added in ({}, {k: v for k, v in WORDS.items() if name != "added" or k != "<Cat-Toy>"}):
        tokenizer = CLIPTokenizer.from_pretrained(model.configs / "tokenizer", local_files_only=True)
        for word, count in added.items():
            tokenizer.add_tokens([word, *(f"{word}_{i}" for i in range(1, count))])
        reader = Reader.of(model, added)
        assert reader is not None
        (here,), (there,) = reader.vocabularies, Reader.over({"tokenizer": tokenizer}).vocabularies
        assert (here.start, here.end, here.pad, here.comma) == (there.start, there.end, there.pad, there.comma)
        assert here.added == there.added
        assert (here.limit, there.limit) == (75, 75)
        for text in varied(1000):
            ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
            assert [piece.id for piece in here.pieces(text)] == ids, text


def reader(added: dict[str, int] | None = None) -> Reader:
    found = Reader.of(models.find(ModelSpec(model="demo")), added)
    assert found is not None
    return found


def chunks(
    prompt: str, *, syntax: str = "a1111", long: str = "chunk", added: dict[str, int] | None = None
) -> list[str]:
    read = reader(added).read(prompt, syntax=syntax, long=long)
    assert read.used == sum(map(len, read.chunks))
    return [" ".join(token.text for token in chunk) for chunk in read.chunks]


RED = "red " * 100


def test_up_to_75_tokens_are_one_chunk() -> None:
    assert chunks("") == [""]
    assert chunks("red " * 75) == ["red " * 74 + "red"]
    assert chunks("red " * 76) == ["red " * 74 + "red", "red"]
    assert chunks("red " * 76, syntax="plain") == chunks("red " * 76)


def test_break_fills_a_chunk_up() -> None:
    assert chunks("a BREAK b") == ["a", "b"]
    assert chunks("BREAK b") == ["", "b"]
    assert chunks("a BREAK") == ["a"]
    assert chunks("a BREAK BREAK b") == ["a", "", "b"]
    assert chunks("(a BREAK b:1.2)") == ["a", "b"]
    assert chunks("a BREAK b", syntax="plain")[0].startswith("a BR")


def test_a_full_chunk_ends_at_a_comma_that_is_near() -> None:
    def sizes(before: int, after: int) -> list[int]:
        return [len(c.split()) for c in chunks("red " * before + ", " + "blue " * after)]

    assert sizes(60, 30) == [61, 30]
    # The comma stands 20 tokens before the end, and 21.
    assert sizes(55, 30) == [56, 30]
    assert sizes(54, 30) == [75, 10]
    assert sizes(75, 3) == [75, 4]
    assert sizes(74, 3) == [75, 3]


def test_weights_are_each_tokens_own() -> None:
    (chunk,) = reader().read("a (red circle:1.3) [b]", syntax="a1111", long="chunk").chunks
    assert [(t.text, t.weight) for t in chunk] == [("a", 1), ("red", 1.3), ("circle", 1.3), ("b", 1 / 1.1)]
    (chunk,) = reader().read("(red:1.3)", syntax="plain", long="chunk").chunks
    assert {t.weight for t in chunk} == {1}
    assert "".join(t.text for t in chunk) == "(red:1.3)"


def test_what_is_cut_is_named() -> None:
    read = reader().read("red " * 70 + "(blue " * 3 + "green, star BREAK crescent", syntax="a1111", long="cut")
    assert [len(c) for c in read.chunks] == [75]
    assert read.cut == "star BREAK crescent"
    assert reader().read("a BREAK b", syntax="a1111", long="cut").cut == "b"
    assert reader().read("red " * 75, syntax="plain", long="cut").cut == ""
    with pytest.raises(UsageError, match='cut off: "b"'):
        reader().read("a BREAK b", syntax="a1111", long="error")


def test_an_embeddings_tokens_stay_together() -> None:
    added = {"<toy>": 4}
    assert chunks("a <toy> b", added=added) == ["a <toy> <toy>_1 <toy>_2 <toy>_3 b"]
    assert [len(c.split()) for c in chunks("red " * 73 + "<toy> b", added=added)] == [73, 5]
    assert [len(c.split()) for c in chunks("red " * 73 + "<toy> b", added=added, long="cut")] == [75]
    assert [len(c.split()) for c in chunks("a <toy>", added={"<toy>": 100})] == [75, 26]


def test_how_many_chunks_without_reading_where_that_is_plain() -> None:
    one = reader()
    assert chunk_count("a red circle", one, "a1111", 25) == 1
    assert chunk_count("a BREAK b", one, "a1111", 25) == 2
    assert chunk_count("क़" * 25, one, "plain", 25) == len(chunks("क़" * 25, syntax="plain")) > 1
    assert chunk_count(f"[a:{RED}:0.5]", one, "a1111", 25) == 2
    assert chunk_count(f"[a:{RED}:0.5]", one, "a1111", 25, "cut") == 1
    assert chunk_count('("a", "b").and()', one, "compel", 25) == 2
    assert chunk_count("<toy>" * 20, reader({"<toy>": 4}), "plain", 25) == 2


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    model = model_of("sd15", tmp_path)
    (tmp_path / "tokenizer" / "vocab.json").write_text("[")
    with pytest.raises(BadInput, match="tokenizer can't be read"):
        Reader.of(model)


# The command


def test_it_says_how_a_prompt_is_read(sdcli: Sdcli) -> None:
    done = sdcli("tokens", "a (red:1.3) circle", "-m", "demo")
    assert (done.code, done.stderr) == (0, "")
    assert done.lines == [
        "chunk 1, 3 of 75: a red(1.3) circle",
        "3 tokens in 1 chunk of 75, read by tokenizer of demo as a1111",
    ]


def test_its_json(sdcli: Sdcli) -> None:
    (found,) = sdcli("tokens", "a [(red:1.3):blue:0.5] BREAK star", "-m", "demo", "--steps", "10", "--json").events
    assert found["weights"] == [["a ", 1.0], ["red", 1.3], ["BREAK", -1.0], ["star", 1.0]] or found["weights"] == [
        ["a ", 1.0], ["red", 1.3], ["", 1.0], ["BREAK", -1.0], ["star", 1.0]
    ]  # fmt: skip
    assert found["schedule"] == [[5, "a (red:1.3) BREAK star"], [10, "a blue BREAK star"]]
    assert [(t["text"], t["chunk"], t["weight"]) for t in found["tokens"]] == [
        ("a", 1, 1),
        ("red", 1, 1.3),
        ("star", 2, 1),
    ]
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text("utf-8"))
    assert [t["id"] for t in found["tokens"]] == [vocabulary[f"{word}</w>"] for word in ("a", "red", "star")]
    assert (found["chunks"], found["limit"], found["cut"], found["model"]) == (2, 75, "", "demo")


def test_it_says_what_is_cut_and_what_changes(sdcli: Sdcli) -> None:
    done = sdcli("tokens", "red " * 75 + "star", "-m", "demo", "--long-prompt", "cut")
    assert done.lines[1:] == ['cut off: "star"', "75 tokens in 1 chunk of 75, read by tokenizer of demo as a1111"]
    done = sdcli("tokens", "[a|b] star", "-m", "demo", "--steps", "4")
    assert done.lines[0::2] == ["steps 1, 3: a star", "steps 2, 4: b star", "2 tokens" + done.lines[4][8:]]
    assert sdcli("tokens", "red " * 76, "-m", "demo", "--long-prompt", "error").code == 2


def test_another_models_tokenizer_and_the_demos_where_it_is_not_here(sdcli: Sdcli, tmp_path: Path) -> None:
    done = sdcli("tokens", "a star", "--json")
    assert done.events[0]["model"] == "demo"
    assert "is not here: read by that of the bundled model" in done.stderr
    families.saved("StableDiffusionXLPipeline", tmp_path / "xl")
    done = sdcli("tokens", "a star!!", "-m", "xl", "--json")
    assert (done.events[0]["model"], done.events[0]["tokenizer"]) == ("xl", "tokenizer")
    assert "several tokenizers: shown is tokenizer" in done.stderr
    families.saved("FluxPipeline", tmp_path / "flux")
    done = sdcli("tokens", "(a star:2)", "-m", "flux", "--json")
    assert done.events[0]["weights"] == [["(a star:2)", 1.0]]
    assert (done.events[0]["tokenizer"], done.events[0]["limit"]) == ("tokenizer_2", 511)
    assert sdcli("tokens", "(a:2)", "-m", "flux", "--prompt-syntax", "a1111").code == 2


def test_prompts_out_of_files_and_texts_that_would_steer(sdcli: Sdcli, process: Sdcli) -> None:
    done = process("tokens", "-", "-m", "demo", stdin=b"a \x1b[31mstar\n")
    assert done.code == 0
    assert b"\x1b" not in done.stdout
    assert process("tokens", "-", "-m", "demo", stdin=b"\xff").code == 65
    done = sdcli("tokens", "a AND b", "-m", "demo", "--json")
    assert (done.code, done.events[0]["code"]) == (2, "usage")
    done = sdcli("tokens", "a <lora:green:0.8> star", "-m", "demo")
    assert "a star" in done.lines[0]
    assert "the LoRA green" in done.stderr


@pytest.mark.parametrize("syntax", ["a1111", "plain", "compel"])
def test_no_torch_is_needed(syntax: str, probe: Callable[[str], CompletedProcess[str]]) -> None:
    code = f"""
import sys
from sdcli.cli.main import main
assert main(["tokens", "a (red)1.3 circle", "-m", "demo", "--prompt-syntax", "{syntax}", "--json"]) == 0
assert not {{"torch", "transformers", "diffusers", "rich"}} & set(sys.modules)
"""
    done = probe(code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["syntax"] == syntax


def test_weights_are_seen_in_colour_on_a_terminal(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from sdcli.cli import tokens
    from sdcli.prompts.tokens import Token

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    words = [Token("a", 1), Token("red", 2, 1.3)]
    assert "\x1b[" in tokens._coloured("chunk 1:", words)
    monkeypatch.setenv("NO_COLOR", "1")
    assert tokens._coloured("chunk 1:", words) == "chunk 1: a red(1.3)"
