"""Prompt files: what is read out of each format, what of a malformed one is said, and that no file fills memory."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.errors import BadInput, CannotCreateOutput, InputMissing, OutputFailed, SdcliError, UsageError
from sdcli.jobs import rows
from sdcli.jobs.rows import FORMATS, LIMIT, BadRow, Row, Source, format_of, from_lines, lines_of
from sdcli.options import options_of, plain_type
from sdcli.request import GenerationRequest
from sdcli.settings import merge

BOM = b"\xef\xbb\xbf"
CALM = settings(deadline=None)  # A busy machine is no failure.
NO_MORE = " (nothing after it was read)"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(data: bytes | str, input_format: str = "text") -> list[Row | BadRow]:
    Path("rows").write_bytes(data if isinstance(data, bytes) else data.encode())
    with Source("rows", input_format) as source:
        return list(source.rows())


def values(data: bytes | str, input_format: str = "text") -> list[dict[str, Any]]:
    """The values of a file that has good rows only."""
    found = read(data, input_format)
    assert not [r for r in found if isinstance(r, BadRow)]
    return [r.values for r in found if isinstance(r, Row)]


def prompts(data: bytes | str, input_format: str = "text") -> list[str]:
    return [v["prompt"] for v in values(data, input_format)]


def reasons(data: bytes | str, input_format: str = "text") -> list[str]:
    return [r.reason for r in read(data, input_format) if isinstance(r, BadRow)]


# Text


def test_a_prompt_a_line() -> None:
    found = read("a cat\n\n   # a note\n\t a  dog's house  \n#\nlast")
    assert found == [
        Row(file="rows", line=1, values={"prompt": "a cat"}),
        Row(file="rows", line=4, values={"prompt": "a  dog's house"}),
        Row(file="rows", line=6, values={"prompt": "last"}),
    ]


@pytest.mark.parametrize(
    "text",
    [
        'a "cat', "a cat's house", "tom -- jerry", "a--b", "x --5 y", "a -s 5", "a - b", "(cat:1.2) [dog]", "{red|blue}",
        "__animal__", "a # b", "a, b; c\td", r"a \(cat\) b",
        "猫と犬", "قطة زرقاء", "кот", "🐈‍⬛ 👩🏽‍🚀", "cafe\u0301", "a\x85b\u2028c\x0bd",
    ],
)  # fmt: skip
def test_a_prompt_is_literal(text: str) -> None:
    assert values(f"{text}\nnext\n") == [{"prompt": text}, {"prompt": "next"}]


def test_line_ends_and_marks() -> None:
    assert read(BOM + b"a\r\nb c\r\n\r\nd\n") == [
        Row(file="rows", line=n, values={"prompt": p}) for n, p in [(1, "a"), (2, "b c"), (4, "d")]
    ]
    assert prompts(BOM) == [] == prompts(b"") == prompts(b"\n\r\n  \n")
    # A carriage return alone ends no line.
    assert prompts(b"a\rb\nc\r") == ["a b", "c"]
    # In the file's middle it is text.
    assert prompts(b"a\n" + BOM + b"b") == ["a", "\ufeffb"]


def test_a_line_goes_on_after_a_backslash() -> None:
    found = read("a cat, \\\n  blue \\\r\n--steps 4 \\\n--seed 5\nb\n")
    assert found[0] == Row(
        file="rows", line=1, values={"prompt": "a cat,   blue", "num_inference_steps": "4", "seed": "5"}
    )
    assert found[1] == Row(file="rows", line=5, values={"prompt": "b"})
    # Pairs end the row and stay; of an odd number the last one joins.
    assert prompts("a\\\\\nb\\\\\\\nc\n") == ["a\\\\", "b\\\\c"]
    # One that a blank follows is text, a comment ends with its line, and what a line goes on in is no comment.
    assert prompts("a \\ \n# b \\\nc \\\n# d\n") == ["a \\", "c # d"]


def test_flags_fill_fields() -> None:
    line = (
        "a castle --seed 5 --steps=40 --size 640x384 --set eta=0.5 -p fast --preset quality -c 3 -o x.png --cfg -1 "
        """--negative "blurry, 'bad'" --set name=one --set 'tags={"set": "a b"}'"""
    )
    assert values(line) == [
        {
            "prompt": "a castle", "seed": "5", "num_inference_steps": "40", "size": "640x384", "eta": "0.5",
            "preset": ["fast", "quality"], "count": "3", "output": "x.png", "guidance_scale": "-1",
            "negative_prompt": "blurry, 'bad'", "name": "one", "tags": {"set": "a b"},
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a --steps 3 -s5", {"num_inference_steps": "3", "seed": "5"}),
        ("a --negative=", {"negative_prompt": ""}),
        ("a --negative ''", {"negative_prompt": ""}),
        ("a --negative=--foo", {"negative_prompt": "--foo"}),
        ("a --negative -cat", {"negative_prompt": "-cat"}),
        ("a --negative cat\\'s\\ hat", {"negative_prompt": "cat's hat"}),
        ("a --negative '#1'", {"negative_prompt": "#1"}),
        ("a\t--seed\t7", {"seed": "7"}),
        ("a\u3000--seed\u30007\u3000--negative\u3000'b'", {"seed": "7", "negative_prompt": "b"}),
        ("a --set scheduler=dpm++2m=x", {"scheduler": "dpm++2m=x"}),
        ("a --set=num-inference-steps=9", {"num_inference_steps": "9"}),
        ("a --set preset=fast,quality", {"preset": ["fast", "quality"]}),
        ("a --format webp --sampler ddim", {"format": "webp", "scheduler": "ddim"}),
    ],
)
def test_flags_are_spelled_as_in_generate(line: str, wanted: dict[str, Any]) -> None:
    assert values(line) == [{"prompt": "a", **wanted}]


def test_every_flag_of_a_request_is_known() -> None:
    for option in options_of(GenerationRequest):
        for flag in option.flags:
            if plain_type(option.type) is bool:
                assert values(f"a --set name=n {flag}") == [{"prompt": "a", "name": "n", option.field: True}]
                continue
            expected = ["1"] if option.many else "1"
            assert values(f"a --set name=n {flag} 1") == [{"prompt": "a", "name": "n", option.field: expected}]


def test_a_row_may_have_several_adapters_and_records() -> None:
    several = [{"prompt": "a", "lora": ["x:0.5", "y"]}]
    assert values("a --lora x:0.5 --lora y") == several
    assert values('{"prompt": "a", "lora": ["x:0.5", "y"]}', "jsonl") == several
    assert values('{"prompt": "a", "hires": {"factor": 2}}', "jsonl") == [{"prompt": "a", "hires": {"factor": 2}}]


def test_a_switch_takes_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    # No field that a row may set is a switch yet.
    monkeypatch.setattr(rows, "OF_A_ROW", ("vae_tiling",))
    for table in (rows._fields, rows._flags):
        table.cache_clear()
    try:
        assert values("a --vae-tiling --seed 1") == [{"prompt": "a", "vae_tiling": True, "seed": "1"}]
        assert values("a --no-vae-tiling") == [{"prompt": "a", "vae_tiling": False}]
        assert reasons("a --vae-tiling=yes\nb --vae-tiling yes\nc --vae-tiling --no-vae-tiling") == [
            "--vae-tiling takes no value",
            "no option takes yes; a value with blanks stands in quotes",
            "--no-vae-tiling is given twice",
        ]
    finally:
        for table in (rows._fields, rows._flags):
            table.cache_clear()


# CSV and TSV


def test_a_header_names_the_columns() -> None:
    text = (
        'prompt , num-inference-steps,negative,tags.set,preset\n"a cat, blue", 40 ,," x","fast, quality"\nb,,bad , ,\n'
    )
    assert values(text, "csv") == [
        {"prompt": "a cat, blue", "num-inference-steps": "40", "preset": ["fast", "quality"], "tags": {"set": " x"}},
        {"prompt": "b", "negative": "bad "},
    ]


def test_cells_are_quoted() -> None:
    text = b'prompt,seed\r\n"a\r\nb ""c""",1\r\n\r\n d\xe2\x80\xa8,2\r\n"e\rf",3'
    assert read(BOM + text, "csv") == [
        Row(file="rows", line=2, values={"prompt": 'a\nb "c"', "seed": "1"}),
        Row(file="rows", line=5, values={"prompt": " d\u2028", "seed": "2"}),
        Row(file="rows", line=6, values={"prompt": "e f", "seed": "3"}),
    ]
    assert values(b'prompt\tseed\na, "b"\t1\n"c\td"\t2\n', "tsv") == [
        {"prompt": 'a, "b"', "seed": "1"},
        {"prompt": "c\td", "seed": "2"},
    ]


def test_tags_are_columns_or_an_object() -> None:
    text = 'prompt,tags,tags.b\na,"{""a"": ""1""}",2\nb,{},\nc,"{""b"": ""1""}",2\n'
    assert read(text, "csv") == [
        Row(file="rows", line=2, values={"prompt": "a", "tags": {"a": "1", "b": "2"}}),
        Row(file="rows", line=3, values={"prompt": "b"}),
        BadRow(file="rows", line=4, reason="the tag b is given twice"),
    ]


def test_size_and_its_sides_may_be_columns_of_different_rows() -> None:
    assert values("prompt,size,width,height\na,64x64,,\nb,,64,32\n", "csv") == [
        {"prompt": "a", "size": "64x64"},
        {"prompt": "b", "width": "64", "height": "32"},
    ]


# JSON


def test_an_object_a_line() -> None:
    text = (
        '{"prompt": "a", "seed": 5, "cfg": 2.5, "steps": null}\n\n  {"prompt": "\\ud83d\\udc08 \\u732b", "tags": {"a": "b"},'
        ' "preset": ["fast"]}\r\n{"prompt": "", "preset": "fast, quality", "size": "64x32"}'
    )
    assert read(BOM + text.encode(), "jsonl") == [
        Row(file="rows", line=1, values={"prompt": "a", "seed": 5, "cfg": 2.5}),
        Row(file="rows", line=3, values={"prompt": "🐈 猫", "tags": {"a": "b"}, "preset": ["fast"]}),
        Row(file="rows", line=4, values={"prompt": "", "preset": ["fast", "quality"], "size": "64x32"}),
    ]


def test_an_array_of_objects_or_one() -> None:
    text = '[\n {"prompt": "a",\n  "seed": 1},\n\n {"prompt":\n"b"}]\n\n'
    assert read(BOM + text.replace("\n", "\r\n").encode(), "json") == [
        Row(file="rows", line=2, values={"prompt": "a", "seed": 1}),
        Row(file="rows", line=5, values={"prompt": "b"}),
    ]
    assert values(' {"prompt": "a"} ', "json") == [{"prompt": "a"}]
    assert values("[ ]", "json") == []


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii", [True, False])
def test_an_array_is_read_through_a_window(indent: int | None, ascii: bool) -> None:
    """Rows that lie across the edges of the blocks that are read, in all ways."""
    made = [{"prompt": "猫 é 🐈 " + "x" * (i % 700), "seed": i * 10**6, "cfg": i / 8} for i in range(2000)]
    text = json.dumps(made, ensure_ascii=ascii, indent=indent)
    assert len(text.encode()) > 10 * rows._BLOCK
    assert values(text, "json") == made
    found = read(text, "json")
    assert [r.line for r in found] == [1 if indent is None else 2 + i * 5 for i in range(2000)]


@pytest.mark.parametrize("block", [64, 65, 127])
def test_the_window_may_be_small(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row, and each fault, at many edges."""
    monkeypatch.setattr(rows, "_BLOCK", block)
    made = [
        {"prompt": f"猫 {i} \u0430\n" + "🐈" * (i % 9), "seed": i**4, "cfg": 1.5e-7 * i, "count": 1} for i in range(300)
    ]
    for ascii in (True, False):
        assert values(json.dumps(made, ensure_ascii=ascii), "json") == made
    good = "[" + '{"prompt": "é"},\n' * 50
    for _, name, data, line, reason in MALFORMED:
        if name == "a.json" and data.startswith(b"[{") and len(data) < 200:
            found = [r for r in read(good.encode() + data[1:], "json") if isinstance(r, BadRow)]
            assert [(r.line, r.reason.partition(" at ")[0]) for r in found] == [
                (line + 50, reason.partition(" at ")[0])
            ]


def test_a_row_may_be_long() -> None:
    long = "é" * (LIMIT // 2 - 20)
    assert prompts(long) == [long]
    assert prompts(f"prompt,seed\n{long},1\n", "csv") == [long]
    assert prompts('prompt,seed\n"' + "line\n" * 100_000 + '",1\n', "csv") == ["line\n" * 100_000]
    # ASCII alone counts as many characters as bytes.
    assert prompts('{"prompt": "' + long + '"}\n', "jsonl") == [long]
    assert prompts('[{"prompt": "' + "é" * 900_000 + '"}, {"prompt": "b"}]', "json") == ["é" * 900_000, "b"]


def test_brackets_in_text_are_no_nesting() -> None:
    assert prompts(json.dumps({"prompt": "[{" * 100}), "jsonl") == ["[{" * 100]


def test_an_array_goes_on_after_a_bad_row() -> None:
    data = b'[{"prompt": "a\xff"}, 5, {"prompt": 3}, {"prompt": "a", "prompt": "b"},\n [NaN], {"prompt": "b"}]'
    assert read(data, "json") == [
        BadRow(file="rows", line=1, reason="not UTF-8: invalid start byte at byte 15 of the line"),
        BadRow(file="rows", line=1, reason="a row is an object, not a number"),
        BadRow(file="rows", line=1, reason="prompt is text, not a number"),
        BadRow(file="rows", line=1, reason="prompt is given twice"),
        BadRow(file="rows", line=2, reason="NaN is no JSON number"),
        Row(file="rows", line=2, values={"prompt": "b"}),
    ]


def test_faults_far_into_a_line_have_their_place() -> None:
    """An array of one line, whose start is let go of long before its fault is met."""
    good = '{"prompt": "é"}, ' * 20_000
    line = f"not UTF-8: invalid start byte at byte {1 + len(good.encode()) + 13} of the line"
    assert reasons(b"[" + good.encode() + b'{"prompt": "\xff"}, {"prompt": "b"}]', "json") == [line]
    column = f"not JSON: expecting ',' delimiter at column {1 + len(good) + 14}{NO_MORE}"
    assert reasons("[" + good + '{"prompt": 1 2}, {"prompt": "b"}]', "json") == [column]
    nul = f"a NUL character at byte {1 + len(good.encode()) + 13} of the line{NO_MORE}"
    assert reasons("[" + good + '{"prompt": "\0"}, {"prompt": "b"}]', "json") == [nul]


def test_what_is_too_long_in_an_array_is_passed_by_or_ends_it() -> None:
    over, far_over = "x" * LIMIT, "x" * 4 * LIMIT
    assert read('[{"prompt": "' + over + '"}, {"prompt": "b"}]', "json") == [
        BadRow(file="rows", line=1, reason="longer than 1 MiB"),
        Row(file="rows", line=1, values={"prompt": "b"}),
    ]
    assert reasons('[{"prompt": "' + far_over + '"}, {"prompt": "b"}]', "json") == ["longer than 1 MiB" + NO_MORE]


# All formats

TABLE: list[dict[str, str]] = [
    {"prompt": "a castle", "num_inference_steps": "40", "size": "640x384"},
    {"prompt": "a cat's house, blue", "seed": "-1", "negative_prompt": "blurry, 'bad'", "eta": "0.5"},
    {"prompt": "猫と犬 🐈‍⬛", "count": "3", "name": "x"},
    {"prompt": "قطة", "output": "a b/{seed}.png", "format": "webp", "guidance_scale": "2.5"},
]
SPELLED = {"num_inference_steps": "steps", "negative_prompt": "negative-prompt", "guidance_scale": "cfg"}


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    """A row as JSON has it."""
    return {k: json.loads(v) if k in ("seed", "num_inference_steps", "count", "eta") else v for k, v in row.items()}


def _table(delimiter: str) -> str:
    out = io.StringIO()
    names = list(dict.fromkeys(k for row in TABLE for k in row))
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(SPELLED.get(n, n) for n in names)
    writer.writerows([row.get(n, "") for n in names] for row in TABLE)
    return out.getvalue()


def _text() -> str:
    lines = []
    for row in TABLE:
        flags = [f'--set "{k}={v}"' for k, v in row.items() if k != "prompt"]
        lines.append(" ".join([row["prompt"], *flags]))
    spelled = {'--set "num_inference_steps=40"': "--steps 40", '--set "size=640x384"': "--size=640x384"}
    text = "\n".join(lines)
    for written, shorter in spelled.items():
        assert written in text
        text = text.replace(written, shorter)
    return text


WRITTEN = {
    "text": _text(),
    "csv": _table(","),
    "tsv": _table("\t"),
    "jsonl": "\n".join(json.dumps({SPELLED.get(k, k): v for k, v in _numbers(r).items()}) for r in TABLE),
    "json": json.dumps([_numbers(r) for r in TABLE], indent=2, ensure_ascii=False),
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("input_format", FORMATS)
def test_all_formats_say_the_same(input_format: str, mark: bytes, end: str) -> None:
    data = mark + WRITTEN[input_format].replace("\n", end).encode()
    found = [merge(("row", v)).values for v in values(data, input_format)]
    assert found == [merge(("row", row)).values for row in TABLE]


@pytest.mark.parametrize(
    ("path", "asked", "wanted"),
    [
        ("a.txt", None, "text"), ("a.CSV", None, "csv"), ("x.d/a.tsv", None, "tsv"), ("a.jsonl", None, "jsonl"),
        ("a.ndjson", None, "jsonl"), ("a.json", None, "json"), ("a.md", None, "text"), ("json", None, "text"),
        ("-", None, "text"), ("-", "json", "json"), ("a.csv", "text", "text"), (".csv", None, "text"),
    ],
)  # fmt: skip
def test_the_ending_says_the_format(path: str, asked: str | None, wanted: str) -> None:
    assert format_of(path, asked) == wanted


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no input format jsnol; did you mean jsonl"):
        format_of("a", "jsnol")


# What is wrong

LONG = b"x" * (LIMIT + 1)
# A file's id, name and bytes; the line and the reason of the one fault in it. None needs a model or a picture.
MALFORMED: list[tuple[str, str, bytes, int, str]] = [
    # All formats
    ("nul", "a.txt", b"a\nb\0c\nd\n", 2, "a NUL character at byte 2 of the line"),
    ("latin-1", "a.txt", b"one\nun caf\xe9 noir\nthree\n",
     2, "not UTF-8: invalid continuation byte at byte 7 of the line"),
    ("stray byte", "a.txt", b"a red circle 123\xff\n", 1, "not UTF-8: invalid start byte at byte 17 of the line"),
    ("cut character", "a.txt", "猫".encode()[:2], 1, "not UTF-8: unexpected end of data at byte 1 of the line"),
    ("utf-8 surrogate", "a.txt", b"a\xed\xa0\x80\n", 1, "not UTF-8: invalid continuation byte at byte 2 of the line"),
    ("utf-16", "a.txt", "a cat\na dog\n".encode("utf-16"), 1, "UTF-16, not UTF-8: convert it, for example with iconv"),
    ("utf-16 be", "a.csv", b"\xfe\xff\0p", 1, "UTF-16, not UTF-8: convert it, for example with iconv"),
    ("utf-32", "a.json", "[]".encode("utf-32"), 1, "UTF-32, not UTF-8: convert it, for example with iconv"),
    ("long line", "a.txt", b"a\n" + LONG + b"\nb\n", 2, "longer than 1 MiB"),
    ("very long line", "a.txt", b"a\n" + 3 * LONG + b"\nb\n", 2, "longer than 1 MiB"),
    ("long lines joined", "a.txt", b"a\n" + 3 * (LONG[: LIMIT // 2] + b"\\\n") + b"\nb\n", 2, "longer than 1 MiB"),
    # Text
    ("unknown flag", "a.txt", b"a --stpes 40\n", 1, "there is no option --stpes; did you mean --steps?"),
    ("unknown short flag", "a.txt", b"a --steps 4 -z 1\n", 1, "there is no option -z"),
    ("no flag for it", "a.txt", b"a --eta 0.5\n", 1, "there is no option --eta; write --set eta=VALUE"),
    ("a run's flag", "a.txt", b"a\nb --model demo\n", 2, "--model is set for the whole run, not for a row"),
    ("a run's short flag", "a.txt", b"b --seed 1 -m demo\n", 1, "-m is set for the whole run, not for a row"),
    ("a run's switch", "a.txt", b"b --no-overwrite\n", 1, "--no-overwrite is set for the whole run, not for a row"),
    ("flags only", "a.txt", b"--steps 4\n", 1, "no prompt"),
    ("open quote in flags", "a.txt", b"a --negative 'b\nc\n", 1, "a quote is not closed"),
    ("apostrophe in flags", "a.txt", b"a --negative cat's --seed 1\n", 1, "a quote is not closed"),
    ("backslash at the end of flags", "a.txt", b"a --negative b\\ \n", 1, r"the last \ has nothing after it"),
    ("backslash at the end", "a.txt", b"a\nb \\\nc \\\n", 3, r"the line goes on after its \, and there is none"),
    ("flag without value", "a.txt", b"a --steps\n", 1, "--steps has no value"),
    ("flag before a flag", "a.txt", b"a --steps --seed 1\n", 1, "--steps has no value"),
    ("flag before a short one", "a.txt", b"a --steps -s 1\n", 1, "--steps has no value"),
    ("stray word", "a.txt", b"a --steps 4 b c\n", 1, "no option takes b; a value with blanks stands in quotes"),
    ("flag twice", "a.txt", b"a --steps 3 --steps 4\n", 1, "--steps is given twice"),
    ("flag by two names", "a.txt", b"a --cfg 3 --guidance-scale 3\n", 1, "--guidance-scale is given twice"),
    ("flag and --set", "a.txt", b"a --steps 3 --set num-inference-steps=4\n", 1, "num-inference-steps is given twice"),
    ("size and width", "a.txt", b"a --width 8 --size 8x8\n", 1, "width is given twice: by size too"),
    ("--set without =", "a.txt", b"a --set eta\n", 1, "--set wants FIELD=VALUE, not eta"),
    ("--set of nothing known", "a.txt", b"a --set etaa=1\n", 1, "there is no field etaa; did you mean eta?"),
    ("--set of a run's", "a.txt", b"a --set device=cpu\n", 1, "device is set for the whole run, not for a row"),
    ("--set prompt", "a.txt", b"a --set prompt=b\n", 1, "prompt is given twice"),
    ("escape in a flag", "a.txt", b"a --\xc3\xa9\x1b[2J 1\n", 1, r"there is no option --é\x1b[2J"),
    # CSV and TSV
    ("csv of nothing", "a.csv", b"", 1, "no header: the first line names the columns, prompt among them"),
    ("csv without header", "a.csv", b"a cat,5\nb,6\n",
     1, "no header: the first line names the columns, prompt among them" + NO_MORE),
    ("csv with empty header", "a.csv", b",,\na,b,c\n", 1, "the header is empty" + NO_MORE),
    ("csv with nameless column", "a.csv", b"prompt,seed,\na,1,\n", 1, "column 3 has no name" + NO_MORE),
    ("csv with nameless tag", "a.csv", b"prompt,tags.\na,1\n", 1, "column 2 has no name" + NO_MORE),
    ("csv with unknown column", "a.csv", b"prompt,stpes\na,4\nb,4\n",
     1, "there is no field stpes; did you mean steps?" + NO_MORE),
    ("csv with a run's column", "a.csv", b"prompt,model\na,demo\n",
     1, "model is set for the whole run, not for a row" + NO_MORE),
    ("csv with column twice", "a.csv", b"prompt,cfg,guidance-scale\na,4,4\n",
     1, "guidance-scale is given twice" + NO_MORE),
    ("csv with tag twice", "a.csv", b"prompt,tags.a,tags.a\na,4,4\n", 1, "tags.a is given twice" + NO_MORE),
    ("csv without prompts", "a.csv", b"steps,seed\n1,2\n", 1, "no column is called prompt" + NO_MORE),
    ("csv with semicolons", "a.csv", b"prompt;seed\na;2\n",
     1, "columns are separated by commas, not as in prompt;seed" + NO_MORE),
    ("tsv with commas", "a.tsv", b"prompt,seed\na,2\n",
     1, "columns are separated by tabs, not as in prompt,seed" + NO_MORE),
    ("csv in latin-1", "a.csv", b"prompt,n\xe9gative\na,2\n",
     1, "not UTF-8: invalid continuation byte at byte 9 of the line" + NO_MORE),
    ("cells short", "a.csv", b"prompt,seed\na,1\nb\nc,2\n", 3, "1 cell, and the header has 2"),
    ("cells over", "a.tsv", b"prompt\tseed\na\t1\t2\nc\t2\n", 2, "3 cells, and the header has 2"),
    ("cell empty", "a.csv", b'prompt,seed\n"",1\n', 2, "no prompt"),
    ("cell blank", "a.csv", b"prompt,seed\na,1\n ,1\n", 3, "no prompt"),
    ("cell with open quote", "a.csv", b'prompt,seed\na,1\n"b,2\nc,3\n', 3, "a quote is not closed" + NO_MORE),
    ("cell after its quote", "a.csv", b'prompt,seed\n"a"b,1\nc,3\n',
     2, """the quotes are wrong: ',' expected after '"'"""),
    ("tsv cell after its quote", "a.tsv", b'prompt\tseed\n"a"b\t1\n',
     2, r"""the quotes are wrong: '\t' expected after '"'"""),
    ("cell with nul", "a.csv", b'prompt,seed\n"a\nb\0",1\nc,3\n', 3, "a NUL character at byte 2 of the line"),
    ("cell in latin-1", "a.csv", b'prompt,seed\n"\xe9,"",\n",1\nc,3\n',
     2, "not UTF-8: invalid continuation byte at byte 2 of the line"),
    ("cell too long", "a.csv", b"prompt,seed\n" + LONG + b",1\nc,3\n", 2, "longer than 1 MiB"),
    ("cell far too long", "a.csv", b'prompt,seed\n"' + 3 * LONG + b'",1\nc,3\n', 2, "longer than 1 MiB"),
    ("cell too long, open", "a.csv", b'prompt,seed\n"' + 3 * LONG + b'\n",1\nc,3\n', 2, "longer than 1 MiB" + NO_MORE),
    ("cell too long, closed later", "a.csv", b'prompt,seed\n"a\n' + LONG + b'",1\nc,3\n', 3, "longer than 1 MiB"),
    ("cell of endless lines", "a.csv", b'prompt,seed\n"' + 300_000 * b"a b\n",
     2, "longer than 1 MiB: is a quote not closed?" + NO_MORE),
    ("cell with no tags", "a.csv", b"prompt,tags\na,red\n", 2, "not JSON: expecting value at column 1"),
    ("cell with other tags", "a.csv", b"prompt,tags\na,[]\n", 2, "tags is an object of text, not an array"),
    ("cells for size and height", "a.csv", b"prompt,size,height\na,8x8,8\n", 2, "height is given twice: by size too"),
    # JSON Lines
    ("not json", "a.jsonl", b'{"prompt": "a"}\na cat\n', 2, "not JSON: expecting value at column 1"),
    ("no comma", "a.jsonl", b'  {"prompt": "a" "seed": 1}\n', 1, "not JSON: expecting ',' delimiter at column 18"),
    ("open text", "a.jsonl", b'{"prompt": "a}\n', 1, "not JSON: unterminated string starting at column 12"),
    ("open object", "a.jsonl", b'{"prompt": "a"\n}\n'[:15], 1, "not JSON: expecting ',' delimiter at column 15"),
    ("two objects in a line", "a.jsonl", b'{"prompt": "a"} {"prompt": "b"}\n', 1, "not JSON: extra data at column 17"),
    ("tab in text", "a.jsonl", b'{"prompt": "a\tb"}\n', 1, "not JSON: invalid control character at column 14"),
    ("an array for a row", "a.jsonl", b'["a cat"]\n', 1, "a row is an object, not an array"),
    ("text for a row", "a.jsonl", b'"a cat"\n', 1, "a row is an object, not text"),
    ("no prompt", "a.jsonl", b'{"seed": 1}\n', 1, "no prompt"),
    ("null for a prompt", "a.jsonl", b'{"prompt": null}\n', 1, "no prompt"),
    ("an empty object", "a.jsonl", b"{}\n", 1, "no prompt"),
    ("number for a prompt", "a.jsonl", b'{"prompt": 5}\n', 1, "prompt is text, not a number"),
    ("list of prompts", "a.jsonl", b'{"prompt": ["a", "b"]}\n', 1, "prompt is text, not an array"),
    ("unknown field", "a.jsonl", b'{"prompt": "a", "stpes": 4}\n', 1, "there is no field stpes; did you mean steps?"),
    ("a run's field", "a.jsonl", b'{"prompt": "a", "batch-size": 4}\n',
     1, "batch-size is set for the whole run, not for a row"),
    ("long field", "a.jsonl", b'{"prompt": "a", "' + 50 * b"q" + b'": 4}\n', 1, f"there is no field {39 * 'q'}…"),
    ("escape in a field", "a.jsonl", b'{"prompt": "a", "\\u001b[2J\\u202e": 4}\n',
     1, r"there is no field \x1b[2J\u202e"),
    ("key twice", "a.jsonl", b'{"prompt": "a", "seed": 1, "seed": 2}\n', 1, "seed is given twice"),
    ("field by two names", "a.jsonl", b'{"prompt": "a", "cfg": 1, "guidance_scale": 2}\n',
     1, "guidance_scale is given twice"),
    ("nan", "a.jsonl", b'{"prompt": "a", "cfg": NaN}\n', 1, "NaN is no JSON number"),
    ("infinity", "a.jsonl", b'{"prompt": "a", "cfg": -Infinity}\n', 1, "-Infinity is no JSON number"),
    ("overflow", "a.jsonl", b'{"prompt": "a", "cfg": 1e999}\n', 1, "the number 1e999 is too large"),
    ("endless number", "a.jsonl", b'{"prompt": "a", "seed": ' + 9999 * b"7" + b"}\n",
     1, f"the number {39 * '7'}… is too large"),
    ("deep", "a.jsonl", b'{"prompt": "a", "cfg": ' + 64 * b"[" + 64 * b"]" + b"}\n", 1, "nested deeper than 64"),
    ("very deep", "a.jsonl", 200_000 * b"[" + b"\n", 1, "nested deeper than 64"),
    ("object for a value", "a.jsonl", b'{"prompt": "a", "cfg": {}}\n', 1, "cfg is a single value, not an object"),
    ("array for a value", "a.jsonl", b'{"prompt": "a", "cfg": [1]}\n', 1, "cfg is a single value, not an array"),
    ("text for tags", "a.jsonl", b'{"prompt": "a", "tags": "red"}\n', 1, "tags is an object of text, not text"),
    ("number in tags", "a.jsonl", b'{"prompt": "a", "tags": {"a": 1}}\n', 1, "the tag a is text, not a number"),
    ("true in tags", "a.jsonl", b'{"prompt": "a", "tags": {"a": true}}\n', 1, "the tag a is text, not true"),
    ("tag twice", "a.jsonl", b'{"prompt": "a", "tags": {"a": "1", "a": "2"}}\n', 1, "a is given twice"),
    ("number for a preset", "a.jsonl", b'{"prompt": "a", "preset": 5}\n',
     1, "preset is text or an array of text, not a number"),
    ("numbers for presets", "a.jsonl", b'{"prompt": "a", "preset": [5]}\n',
     1, "preset is text or an array of text, not an array"),
    ("lone surrogate", "a.jsonl", b'{"prompt": "a \\ud800"}\n', 1, "a lone surrogate, half of a character"),
    ("lone surrogate in a tag", "a.jsonl", b'{"prompt": "a", "tags": {"\\udc00": "b"}}\n',
     1, "a lone surrogate, half of a character"),
    ("escaped nul", "a.ndjson", b'{"prompt": "a\\u0000"}\n', 1, "a NUL character"),
    ("object too long", "a.jsonl", b'{"prompt": "' + LONG + b'"}\n{"prompt": "b"}\n', 1, "longer than 1 MiB"),
    # JSON
    ("json of nothing", "a.json", b" \n ", 1, "not JSON: the file is empty"),
    ("text for json", "a.json", b"a cat\n", 1, "not JSON: expecting value at column 1" + NO_MORE),
    ("json text", "a.json", b'"a cat"\n', 1, "a row is an object, not text"),
    ("json lines for json", "a.json", b'{"prompt": "a"}\n{"prompt": "b"}\n',
     2, "more follows: is it JSON Lines (--input-format jsonl)?" + NO_MORE),
    ("array not closed", "a.json", b'[{"prompt": "a"},\n{"prompt": "b"}\n', 3, "not JSON: the array is not closed"),
    ("array cut off", "a.json", b'[{"prompt": "a"},\n{"prompt": "b',
     2, "not JSON: unterminated string starting at column 12" + NO_MORE),
    ("array without comma", "a.json", b'[{"prompt": "a"}\n {"prompt": "b"}]',
     2, "not JSON: expecting ',' delimiter at column 2" + NO_MORE),
    ("array with a comma over", "a.json", b'[{"prompt": "a"},\n]',
     2, "not JSON: expecting value at column 1" + NO_MORE),
    ("array and more", "a.json", b'[{"prompt": "a"}]\n]', 2, "more follows" + NO_MORE),
    ("array with a fault", "a.json", b'[\n{"prompt": "a"},\n{"prompt":\n "b",\n seed: 1},\n{"prompt": "c"}]',
     5, "not JSON: expecting property name enclosed in double quotes at column 2" + NO_MORE),
    ("array in latin-1", "a.json", b'[{"prompt":\n "caf\xe9"}]',
     2, "not UTF-8: invalid continuation byte at byte 6 of the line"),
    ("array with stray byte", "a.json", b'[{"prompt": "a"},\n \xff{"prompt": "b"}]',
     2, "not UTF-8: invalid start byte at byte 2 of the line" + NO_MORE),
    ("array cut in a character", "a.json", b'["' + "猫".encode()[:2],
     1, "not JSON: unterminated string starting at column 2" + NO_MORE),
    ("array with nul", "a.json", b'[{"prompt": "a"},\n\0{"prompt": "b"}]',
     2, "a NUL character at byte 1 of the line" + NO_MORE),
    ("array of arrays", "a.json", b'[["a"], {"prompt": "b"}]', 1, "a row is an object, not an array"),
    ("array of prompts", "a.json", b'[{"prompt": "a"},\n"b"]', 2, "a row is an object, not text"),
    ("array of numbers", "a.json", b"[1]", 1, "a row is an object, not a number"),
    ("very deep array", "a.json", 200_000 * b"[", 1, "nested deeper than 64" + NO_MORE),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "line", "reason"), [m[1:] for m in MALFORMED], ids=[m[0] for m in MALFORMED])
def test_what_is_malformed_is_told(name: str, data: bytes, line: int, reason: str) -> None:
    Path(name).write_bytes(data)
    with Source(name) as source:
        bad = [row for row in source.rows() if isinstance(row, BadRow)]
    assert bad == [BadRow(file=name, line=line, reason=reason)]
    assert reason.isprintable()


def test_the_malformed_are_many() -> None:
    assert len(MALFORMED) >= 33 and len({m[0] for m in MALFORMED}) == len(MALFORMED)
    assert {format_of(m[1], None) for m in MALFORMED} == set(FORMATS)


@pytest.mark.parametrize(
    ("input_format", "data", "good"),
    [
        ("text", b"a\n\xff\nb\0\n" + 2 * LONG + b"\nc --x y\n\xff \\\nstill bad\nd", ["a", "d"]),
        ("csv", b'prompt,seed\na,1\nb\n\xff,"\n",\n' + LONG + b'\n"c"d,1\ne,2\n', ["a", "e"]),
        ("jsonl", b'{"prompt": "a"}\n{\n\xff\n[]\n' + LONG + b'\n{"prompt": "b"}', ["a", "b"]),
    ],
)
def test_reading_goes_on_after_a_bad_row(input_format: str, data: bytes, good: list[str]) -> None:
    found = read(data, input_format)
    assert [r.values["prompt"] for r in found if isinstance(r, Row)] == good
    assert len(found) - len(good) >= 4


def test_many_bad_rows_take_no_longer_than_good_ones() -> None:
    """What a name may mean is not looked for anew in each row: that would take twenty seconds here."""
    start = time.process_time()
    assert len(set(reasons(b'{"prompt": "a", "stpes": 4}\n' * 20_000, "jsonl"))) == 1
    assert time.process_time() - start < 5


# Sources


def test_a_source_is_read_again_and_again() -> None:
    Path("a.csv").write_text("prompt\na\nb\nc\n")
    with Source("a.csv") as source:
        first, second = source.rows(), source.rows()
        assert next(first) == next(second)
        assert list(first) == list(second) == list(source.rows())[1:]
        Path("a.csv").unlink()
        with pytest.raises(InputMissing, match="a.csv is not there"):
            next(source.rows())


def _stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_stdin_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    many = b"".join(b'{"prompt": "%d"}\n' % i for i in range(20_000))
    _stdin(monkeypatch, many)
    with Source("-", "jsonl") as source:
        first, second = source.rows(), source.rows()
        for _ in range(10_000):
            assert next(first) == next(second)
        assert list(first) == list(second)
        found = list(source.rows())
    assert len(found) == 20_000 and found[0] == Row(file="stdin", line=1, values={"prompt": "0"})
    _stdin(monkeypatch, b"a --seed 1\n")
    with Source("-") as source:
        assert source.format == "text"
        assert list(source.rows()) == [Row(file="stdin", line=1, values={"prompt": "a", "seed": "1"})]


def test_a_fifo_is_kept() -> None:
    os.mkfifo("pipe.json")
    writer = threading.Thread(target=lambda: Path("pipe.json").write_bytes(b'[{"prompt": "a"}, {"prompt": "b"}]'))
    writer.start()
    with Source("pipe.json") as source:
        writer.join()
        assert [r.values["prompt"] for r in source.rows() if isinstance(r, Row)] == ["a", "b"]
        assert len(list(source.rows())) == 2


def test_an_open_pipe_has_a_path() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"a\nb\n")
    os.close(writer)
    try:
        with Source(f"/dev/fd/{reader}") as source:
            assert len(list(source.rows())) == len(list(source.rows())) == 2
    finally:
        os.close(reader)


def test_what_is_kept_has_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _stdin(monkeypatch, b"a\n")
    with Source("-") as source:
        assert list(tmp_path.iterdir()) == []
        assert len(list(source.rows())) == 1


def _folder() -> str:
    Path("f").mkdir()
    return "f"


def _socket() -> str:
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s")
    assert stat.S_ISSOCK(Path("s").stat().st_mode)
    return "s"


def _loop() -> str:
    Path("l").symlink_to("l")
    return "l"


def _below_a_file() -> str:
    Path("x").touch()
    return "x/y.txt"


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        (lambda: "none.csv", InputMissing, "none.csv is not there"),
        (_below_a_file, InputMissing, "x/y.txt is not there"),
        (_folder, BadInput, "f is a folder"),
        (_socket, BadInput, "s can't be read"),
        (_loop, BadInput, "l can't be read"),
        (lambda: "a\0b", BadInput, "can't be read"),
    ],
)
def test_what_can_not_be_read_is_refused(path: Callable[[], str], error: type[SdcliError], said: str) -> None:
    with pytest.raises(error) as caught:
        Source(path())
    assert said in caught.value.message and caught.value.hint


def test_what_can_not_be_read_any_more_is_refused() -> None:
    Path("a").write_text("a\n")
    with Source("a") as source:
        assert len(list(source.rows())) == 1
        Path("a").unlink()
        Path("a").mkdir()
        with pytest.raises(BadInput, match="a is a folder"):
            next(source.rows())
    memory = Path("/proc/self/mem")
    if memory.exists():  # Linux's file that opens and can't be read at its start
        with Source(str(memory)) as source, pytest.raises(BadInput, match="can't be read: Input/output error"):
            next(source.rows())


@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_stdin_is_refused(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    stream = io.TextIOWrapper(io.BytesIO())
    stream.close()
    monkeypatch.setattr(sys, "stdin", stream if closed else None)
    with pytest.raises(BadInput, match="stdin is closed"):
        Source("-")


def test_a_folder_as_stdin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("x").open("w+") as stream:
        folder = os.open(".", os.O_RDONLY)
        os.dup2(folder, stream.fileno())
        os.close(folder)
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(BadInput, match="stdin can't be read: Is a directory"):
            Source("-")


def test_no_room_for_a_copy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "nowhere")
    _stdin(monkeypatch, b"a\n")
    with pytest.raises(CannotCreateOutput, match="no temporary file for stdin"):
        Source("-")
    full = Path("/dev/full")
    if full.exists():  # Linux's disk that is always full
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full.open("wb"))
        _stdin(monkeypatch, b"a\n")
        with pytest.raises(OutputFailed, match="stdin was not copied to a temporary file: No space left"):
            Source("-")


# Lines as they come


class Pulled:
    """Lines that remember how many were asked for."""

    def __init__(self, *lines: bytes) -> None:
        self.lines = lines
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self.lines:
            self.count += 1
            yield line


def test_lines_are_not_read_ahead() -> None:
    pulled = Pulled(b"a\n", b"\n", b"b \\\n", b"c\n", b'{"prompt": "d"}\n', b"\xff\n", b"e\n")
    found = from_lines(iter(pulled), "stdin", None)
    assert pulled.count == 0
    seen = [(next(found), pulled.count) for _ in range(5)]
    assert seen == [
        (Row(file="stdin", line=1, values={"prompt": "a"}), 1),
        (Row(file="stdin", line=3, values={"prompt": "b c"}), 4),
        (Row(file="stdin", line=5, values={"prompt": "d"}), 5),
        (BadRow(file="stdin", line=6, reason="not UTF-8: invalid start byte at byte 1 of the line"), 6),
        (Row(file="stdin", line=7, values={"prompt": "e"}), 7),
    ]
    assert list(found) == []


def test_lines_of_a_pipe_come_at_once() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream, os.fdopen(writer, "wb", buffering=0) as answers:
        found = from_lines(lines_of(stream), "stdin", None)
        for i in range(3):
            answers.write(b"prompt %d\n" % i)
            assert next(found) == Row(file="stdin", line=i + 1, values={"prompt": f"prompt {i}"})


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (b'{"prompt": "a"}', {"prompt": "a"}),
        (b'  { "prompt": "a", "seed": 1 }\r\n', {"prompt": "a", "seed": 1}),
        (b"{red|blue} car --seed 1\n", {"prompt": "{red|blue} car", "seed": "1"}),
        (b"{2$$a|b}", {"prompt": "{2$$a|b}"}),
        (BOM + b'{"prompt": "a"}', {"prompt": "a"}),
        (BOM + b"a", {"prompt": "a"}),
        (b'["a"]', {"prompt": '["a"]'}),
    ],
)
def test_a_line_shows_what_it_is(line: bytes, values: dict[str, Any]) -> None:
    assert list(from_lines(iter([line]), "x", None)) == [Row(file="x", line=1, values=values)]


def test_bad_lines_do_not_end_it() -> None:
    lines = [b"{}", b'{"prompt": "a"', b"a --x", 2 * LONG, b"a \\", b"\0", b"\xff\xfe\xe9\0", b"b"]
    found = list(from_lines(lines_of(io.BytesIO(b"\n".join(lines))), "x", None))
    assert [(r.line, getattr(r, "reason", None)) for r in found] == [
        (1, "no prompt"),
        (2, "not JSON: expecting ',' delimiter at column 15"),
        (3, "there is no option --x"),
        (4, "longer than 1 MiB"),
        (6, "a NUL character at byte 1 of the line"),
        (7, "a NUL character at byte 4 of the line"),
        (8, None),
    ]


def test_lines_that_ask_for_a_format_get_it() -> None:
    assert list(from_lines(iter([b'{"prompt": "a"}']), "x", "text")) == [
        Row(file="x", line=1, values={"prompt": '{"prompt": "a"}'})
    ]
    assert list(from_lines(iter([b"a"]), "x", "jsonl")) == [
        BadRow(file="x", line=1, reason="not JSON: expecting value at column 1")
    ]
    first, second = from_lines(iter(["a".encode("utf-16"), b"b"]), "x", None)
    assert first == BadRow(file="x", line=1, reason="UTF-16, not UTF-8: convert it, for example with iconv")
    assert second == Row(file="x", line=2, values={"prompt": "b"})
    with pytest.raises(UsageError, match="csv can't be read a line at a time"):
        from_lines(iter([]), "x", "csv")


# What anybody may write

LINES = st.text(st.characters(exclude_characters="\0\n\r", exclude_categories=("Cs",)), max_size=60)


@CALM
@given(st.lists(LINES))
def test_prompts_come_back_out_of_json(written: list[str]) -> None:
    for ascii in (True, False):
        made = [json.dumps({"prompt": p}, ensure_ascii=ascii) for p in written]
        assert prompts("\n".join(made), "jsonl") == written
        assert prompts("[" + ",\n".join(made) + "]", "json") == written


@CALM
@given(st.lists(LINES.filter(str.strip)))
def test_prompts_come_back_out_of_tables(written: list[str]) -> None:
    for input_format, delimiter in (("csv", ","), ("tsv", "\t")):
        out = io.StringIO()
        writer = csv.writer(out, delimiter=delimiter)
        writer.writerows([["prompt", "seed"], *([p, ""] for p in written)])
        assert prompts(out.getvalue(), input_format) == written


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(FORMATS),
    st.binary(max_size=200),
    st.sampled_from([b"", b"prompt,seed\n", b'[{"prompt": "', b'{"prompt": "']),
)
def test_nothing_breaks_the_reader(input_format: str, data: bytes, before: bytes) -> None:
    for row in read(before + data, input_format):
        if isinstance(row, BadRow):
            assert row.reason.isprintable() and 0 < len(row.reason) < 1000 and row.line > 0
        else:
            assert isinstance(row.values["prompt"], str)


# Size


def _many(count: int, input_format: str) -> Iterator[bytes]:
    yield {"csv": b"prompt,seed\n", "json": b"[\n"}.get(input_format, b"")
    for i in range(count):
        if input_format == "text":
            yield b"a red circle on a blue background, number %d --seed %d\n" % (i, i) if i % 2 else b"a cat %d\n" % i
        elif input_format == "csv":
            yield b'"a red circle, number %d",%d\n' % (i, i)
        else:
            end = b"\n" if input_format == "jsonl" else b",\n" if i + 1 < count else b"]"
            yield b'{"prompt": "a red circle, number %d", "seed": %d}' % (i, i) + end


def _peak(count: int, input_format: str) -> int:
    """Read a file of so many rows; return the bytes that Python held at most."""
    with open("many", "wb") as file:
        file.writelines(_many(count, input_format))
    with Source("many", input_format) as source:
        tracemalloc.start()
        try:
            found = sum(isinstance(row, Row) for row in source.rows())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert found == count
    return peak


@pytest.mark.parametrize(
    ("input_format", "count"), [("text", 50_000), ("csv", 20_000), ("jsonl", 20_000), ("json", 50_000)]
)
def test_memory_does_not_grow_with_the_file(input_format: str, count: int) -> None:
    assert _peak(count, input_format) < 2**20


@pytest.mark.slow
@pytest.mark.parametrize("input_format", ["text", "json"])
def test_a_million_rows(input_format: str) -> None:
    assert _peak(1_000_000, input_format) < 2**20


def test_a_line_without_end_does_not_fill_memory() -> None:
    with open("long", "wb") as file:
        for _ in range(32):
            file.write(b"x" * LIMIT)
        file.write(b"\nb\n")
    for input_format in FORMATS:
        with Source("long", input_format) as source:
            tracemalloc.start()
            try:
                found = list(source.rows())
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert isinstance(found[0], BadRow) and peak < 24 * 2**20, input_format
