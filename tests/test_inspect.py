"""`sdcli inspect`: what a picture says, whether it is still what its record says, and that no picture does harm."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from PIL import Image

from sdcli import metadata
from sdcli.errors import BadInput, InputMissing
from sdcli.metadata import inspecting, ours
from sdcli.record import (
    ModelRecord,
    PlanRecord,
    Record,
    SchedulerRecord,
    SecondsRecord,
    TokenRecord,
    pixels_of,
)
from sdcli.request import GenerationRequest
from tests import corpus
from tests.conftest import Sdcli
from tests.corpus import chunk, node, png, png_chunks, saved

PICTURE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
PROMPT = "a cat,\n  on a mat \nNegative prompt: none\nSteps: 1, Seed: 2, Size: 3x4"
RECORD = Record(
    id="0" * 64,
    request=GenerationRequest(
        prompt=PROMPT, negative_prompt="dog", seed=7, width=64, height=48, scheduler="euler", clip_skip=1
    ),
    template="a {cat|dog}",
    tags={"series": "one"},
    model=ModelRecord(name="org/model", family="sd1", repo="org/model", commit="c0ffee"),
    plan=PlanRecord(
        device="cpu", dtype="fp32", attention_slicing="off", vae_tiling=True, offload="none", threads=2, pack_size=1
    ),
    versions={"sdcli": "0.1.0", "torch": "2.13"},
    tokens=TokenRecord(used=80, chunks=2, cut="the end"),
    scheduler=SchedulerRecord(
        name="euler", class_name="EulerDiscreteScheduler", sampler="Euler", schedule_type="Uniform"
    ),
    fallbacks=("attention slicing",),
    seconds=SecondsRecord(load=1.5, draw=2.0, decode=0.25),
    pixels=pixels_of(PICTURE),
)
ENDINGS = {"png": "png", "jpg": "jpg", "webp": "webp", "avif": "avif"}


def write(path: Path, how: Any = "full", format: str = "png") -> Path:
    path.write_bytes(metadata.encoded(PICTURE, RECORD, format, how).data)
    return path


# What it says


@pytest.mark.parametrize("format", ENDINGS)
def test_our_own_comes_back_whole(sdcli: Sdcli, tmp_path: Path, format: str) -> None:
    """Infotext of the same picture would have lost blanks and made a negative prompt of a line of the prompt."""
    path = write(tmp_path / f"x.{format}", format=format)
    done = sdcli("inspect", "--json", "--check", str(path))
    assert done.code == 0
    (event,) = done.events
    assert list(event) == ["schema", "path", "format", "request", "model", "unmapped", "raw", "check"]
    assert (event["schema"], event["path"], event["format"]) == (1, str(path), "sdcli")
    assert event["request"] == json.loads(msgspec.json.encode(RECORD.request))
    assert event["model"] == {
        "name": "org/model", "family": "sd1", "repo": "org/model", "commit": "c0ffee", "files": {}, "adapters": [],
        "hash": None,
    }  # fmt: skip
    assert event["unmapped"] == {} and event["check"] == {"pixels": "match", "signature": None}
    assert json.loads(event["raw"]["sdcli"])["id"] == RECORD.id
    found = inspecting.inspect(path)
    assert found.record is not None and found.record.request == RECORD.request and not found.checked
    assert json.loads(json.dumps(found.request)) == {k: v for k, v in event["request"].items() if v is not None}


def test_a_table_for_people(sdcli: Sdcli, tmp_path: Path) -> None:
    write(tmp_path / "x.png")
    done = sdcli("inspect", "x.png", "--check")
    assert (done.code, done.stderr) == (0, "")
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "x.png: sdcli"
    # No line of the prompt looks like a row of the table.
    at = lines.index("  prompt                 a cat,")
    assert lines[at + 1 : at + 4] == [
        " " * 25 + "  on a mat", " " * 25 + "Negative prompt: none", " " * 25 + "Steps: 1, Seed: 2, Size: 3x4"
    ]  # fmt: skip
    rows = {line[:25].strip(): line[25:] for line in lines[1:] if line[:25].strip()}
    assert rows["seed"] == "7" and rows["scheduler"] == "euler" and rows["model"] == "org/model"
    assert rows["template"] == "a {cat|dog}" and rows["tags"] == "series one" and rows["tokens cut"] == "the end"
    assert rows["device"] == "cpu, fp32, 2 threads, pack of 1" and rows["tokens"] == "80 in 2 chunks"
    assert rows["fall-backs"] == "attention slicing" and rows["versions"] == "sdcli 0.1.0, torch 2.13"
    assert rows["seconds"] == "load 1.50, draw 2.00, decode 0.25" and rows["PIXELS"].startswith("match")


def test_a_drawn_picture(sdcli: Sdcli) -> None:
    path = sdcli("generate", "a star", "-m", "demo", "-s", "3", "--steps", "1").lines[0]
    (event,) = sdcli("inspect", path, "--json", "--check").events
    assert (event["request"]["prompt"], event["request"]["seed"]) == ("a star", 3)
    assert event["model"]["name"] == "demo" and event["check"]["pixels"] == "match"


def test_what_is_not_mapped_is_told(sdcli: Sdcli, tmp_path: Path) -> None:
    text = "a cat\nSteps: 20, Sampler: Restart, Seed: 1, Size: 512x512, ENSD: 31337"
    (tmp_path / "x.png").write_bytes(png({"parameters": text}))
    lines = sdcli("inspect", "x.png").lines
    assert lines[0] == "x.png: a1111"
    assert lines[lines.index("  NOT MAPPED") :] == [
        "  NOT MAPPED", "  Sampler                Restart", "  ENSD                   31337"
    ]  # fmt: skip


def test_raw(sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png({"parameters": "one\n\x1b[2Jtwo", "other": "three"}))
    done = sdcli("inspect", "--raw", "x.png")
    assert done.lines == [
        "x.png: no record", "  parameters", "    one", "    \\x1b[2Jtwo", "  other", "    three"
    ]  # fmt: skip
    refused = sdcli("inspect", "--raw", "--json", "x.png")
    assert refused.code == 2 and "--raw" in refused.stderr


def test_metadata_minimal(sdcli: Sdcli, tmp_path: Path) -> None:
    """The prompt is gone, and the pixels can be checked all the same."""
    write(tmp_path / "x.png", how="minimal")
    done = sdcli("inspect", "--json", "--check", "x.png")
    (event,) = done.events
    assert done.code == 0 and event["format"] == "sdcli" and event["check"]["pixels"] == "match"
    assert not any(event["request"].values()) and "a cat" not in done.stdout.decode()
    assert event["model"] == {"name": "org/model", "hash": None, "version": "c0ffee"}
    assert event["unmapped"] == {"CreatorTool": "sdcli 0.1.0", "id": RECORD.id}


def test_a_tag_of_any_name_is_no_sheet(sdcli: Sdcli, tmp_path: Path) -> None:
    record = msgspec.structs.replace(RECORD, tags={"kind": "grid", "commas": "," * 400_000})
    (tmp_path / "x.png").write_bytes(metadata.encoded(PICTURE, record, "png", "full").data)
    (event,) = sdcli("inspect", "--json", "x.png").events
    assert event["request"]["prompt"] == PROMPT


def test_a_grids_sheet(sdcli: Sdcli, tmp_path: Path) -> None:
    sheet = {"schema": 1, "kind": "grid", "prompt": "a cat", "axes": [], "cells": [{"path": "a.png"}], "versions": {}}
    (tmp_path / "x.png").write_bytes(png({"sdcli": json.dumps(sheet)}))
    (event,) = sdcli("inspect", "--json", "x.png").events
    assert event["format"] == "sdcli" and event["unmapped"] == sheet and not any(event["request"].values())
    done = sdcli("inspect", "--check", "x.png")
    assert done.code == 1 and done.lines[0] == "x.png: sdcli, the sheet of a grid"
    assert done.lines[-1].split(maxsplit=1)[1].startswith("not checked: a sheet"), "it is told as what it is"


def test_a_grids_sheet_among_pictures(sdcli: Sdcli, tmp_path: Path) -> None:
    """It is drawn from no record, so that there is nothing to check it against."""
    sheet = png({"sdcli": json.dumps({"schema": 1, "kind": "grid", "cells": []})})
    for name in ("all/sheet.png", "only/sheet.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(sheet)
    write(tmp_path / "all" / "x.png")
    done = sdcli("inspect", "--check", "all", "--json")
    assert done.code == 0 and [e["path"] for e in done.events] == ["all/x.png"]
    assert "all/sheet.png" in done.stderr and "sheet of a grid" in done.stderr
    done = sdcli("inspect", "--check", "only", "--json")
    assert done.code == 65 and done.events[0]["path"] == "only" and "nothing to check" in done.stderr
    assert sdcli("inspect", "all").code == 0 and len(sdcli("inspect", "all", "--json").events) == 2


# The check


def flipped(data: bytes, format: str, **more: Any) -> bytes:
    """The same file with one pixel changed, and all its texts."""
    with Image.open(io.BytesIO(data)) as image:
        changed = image.convert("RGB")
        changed.putpixel((3, 2), tuple(255 - v for v in changed.getpixel((3, 2))))  # type: ignore[union-attr]
        return saved(changed, format, **more)


def test_one_pixel_is_noticed(sdcli: Sdcli, tmp_path: Path) -> None:
    data = metadata.encoded(PICTURE, RECORD, "png", "full").data
    (tmp_path / "x.png").write_bytes(flipped(data, "PNG", pnginfo=_texts({"sdcli": ours.encode(RECORD)})))
    done = sdcli("inspect", "--check", "x.png", "--json")
    assert done.code == 1 and done.events[0]["check"] == {"pixels": "differ", "signature": None}
    assert "differ" in sdcli("inspect", "--check", "x.png").lines[-1]
    # The record can be read all the same, when nobody asks for the pixels.
    assert sdcli("inspect", "x.png").code == 0


@pytest.mark.parametrize("change", ["size", "mode", "encoding"])
def test_other_pixels_are_noticed(sdcli: Sdcli, tmp_path: Path, change: str) -> None:
    texts = _texts({"sdcli": ours.encode(RECORD)})
    if change == "size":
        data = saved(PICTURE.crop((0, 0, 63, 48)), "PNG", pnginfo=texts)
    elif change == "mode":
        data = saved(PICTURE.convert("RGBA"), "PNG", pnginfo=texts)
    else:  # Somebody's JPEG of it, with the record moved along.
        xmp = metadata.xmp.packet({}, ours.in_ascii(ours.encode(RECORD)))
        data = saved(PICTURE, "JPEG", quality=50, xmp=xmp.encode())
    (tmp_path / "x.png").write_bytes(data)
    assert sdcli("inspect", "--check", "x.png", "--json").events[0]["check"]["pixels"] == "differ"


def _texts(texts: dict[str, str]) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for keyword, text in texts.items():
        info.add_itxt(keyword, text)
    return info


def test_nothing_to_check_against(sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png({"parameters": corpus.PLAIN}))
    assert sdcli("inspect", "x.png").code == 0
    done = sdcli("inspect", "--check", "x.png", "--json")
    assert done.code == 1 and done.events[0]["check"] == {"pixels": None, "signature": None}


def test_pixels_that_cannot_be_decoded(sdcli: Sdcli, tmp_path: Path) -> None:
    path = write(tmp_path / "x.png")
    data = path.read_bytes()
    at = data.index(b"IDAT")
    end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
    path.write_bytes(data[: at - 4] + chunk(b"IDAT", bytes(20) + data[at + 24 : end]) + data[end + 4 :])
    assert sdcli("inspect", "x.png").code == 0
    done = sdcli("inspect", "--check", "x.png")
    assert done.code == 65 and "decoded" in done.stderr


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"IEND", b"tEXt", b"iTXt", b"tIME"])
@pytest.mark.parametrize("option", ["--json", "--check"])
def test_a_wrong_sum_is_refused_wherever_it_is(sdcli: Sdcli, tmp_path: Path, kind: bytes, option: str) -> None:
    data = metadata.encoded(PICTURE, RECORD, "png", "full").data
    data = data[:33] + chunk(b"tIME", bytes(7)) + chunk(b"tEXt", b"a\0b") + data[33:]
    (tmp_path / "good.png").write_bytes(data)
    assert sdcli("inspect", option, "good.png").code == 0
    (tmp_path / "x.png").write_bytes(wrong_sum(data, kind))
    done = sdcli("inspect", option, "x.png")
    assert done.code == 65 and f"the chunk {kind.decode()} has a wrong sum" in done.stderr


def test_a_file_of_many_gigabytes_is_not_read_through(tmp_path: Path) -> None:
    """Sums are made of so much; whoever wants the pixels checked is refused anyway."""
    path = tmp_path / "x.png"
    length = 2**31 - 1
    path.write_bytes(header(60_000, 60_000) + claiming(60_000, 60_000) + struct.pack(">I4s", length, b"IDAT"))
    os.truncate(path, path.stat().st_size + length + 4)
    with path.open("ab") as file:
        file.write(END)
    assert inspecting.inspect(path).format == "sdcli"
    with pytest.raises(BadInput, match="too large"):
        inspecting.inspect(path, check=True)


# Exit codes, several pictures


def test_no_record(sdcli: Sdcli, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "x.png")
    done = sdcli("inspect", "x.png")
    assert (done.code, done.lines, done.stderr) == (1, ["x.png: no record"], "")
    done = sdcli("inspect", "x.png", "--json")
    assert done.code == 1
    (event,) = done.events
    assert event["format"] is None and event["model"] is None and event["raw"] == {} and event["unmapped"] == {}
    assert list(event["request"]) == list(GenerationRequest.__struct_fields__) and not any(event["request"].values())


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("x.png", None, 66),
        ("x.png", b"", 65),
        ("x.png", b"GIF89a", 65),
        ("x.png", corpus.png({"a": "b"})[:-20], 65),
        ("x.png", png({"sdcli": '{"schema": 99}'}), 65),
        ("x.png", png({"sdcli": "no JSON", "parameters": corpus.PLAIN}), 65),
        ("x.png", png({"sdcli": '{"kind": "grid", ', "parameters": corpus.PLAIN}), 65),
        (
            "x.png",
            png({"sdcli": '{"schema": 1, "kind": "grid", "cells": [' + "[" * 500, "parameters": corpus.PLAIN}),
            65,
        ),
        (
            "x.png",
            png({"sdcli": '{"kind": "grid", "cells": [' + "1," * 400_000 + "1]}", "parameters": corpus.PLAIN}),
            65,
        ),
    ],
)
def test_a_single_failure_keeps_its_code(
    sdcli: Sdcli, tmp_path: Path, name: str, content: bytes | None, code: int
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = sdcli("inspect", name, "--json")
    assert done.code == code and done.stderr.startswith(f"error: {name}")
    (event,) = done.events
    assert (event["event"], event["path"], event["exit"]) == ("error", name, code)
    assert list(event) == ["schema", "event", "id", "path", "line", "exit", "code", "message", "hint"]
    with pytest.raises(InputMissing if code == 66 else BadInput):
        inspecting.inspect(tmp_path / name)


def test_one_of_several_stops_no_other(sdcli: Sdcli, tmp_path: Path) -> None:
    write(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    done = sdcli("inspect", "bad.png", "gone.png", "good.png", "--json")
    assert done.code == 1
    assert [(e.get("event"), e["path"]) for e in done.events] == [
        ("error", "bad.png"), ("error", "gone.png"), (None, "good.png")
    ]  # fmt: skip
    assert done.stderr.count("error: ") == 2
    assert sdcli("inspect", "good.png", "good.png").code == 0
    lines = sdcli("inspect", "good.png", "gone.png", "good.png").lines
    assert lines.count("good.png: sdcli") == 2


def test_folders(sdcli: Sdcli, tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.png", "a/c/3.jpeg", "4.webp", "notes.txt", "b/x.part", "b/._1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, format={"jpeg": "jpg", "webp": "webp"}.get(name.rpartition(".")[2], "png"))
    done = sdcli("inspect", "--json", "--check", ".")
    assert done.code == 0
    assert [e["path"] for e in done.events] == ["4.webp", "a/c/3.jpeg", "b/1.png", "b/2.PNG"]
    (tmp_path / "empty").mkdir()
    done = sdcli("inspect", "empty", "--json")
    assert done.code == 66 and done.events[0]["path"] == "empty"
    # A file of that name is no stdin.
    write(tmp_path / "-")
    assert sdcli("inspect", "./-").lines[0] == "-: sdcli"


def test_what_is_no_file(sdcli: Sdcli, tmp_path: Path) -> None:
    """Nobody waits for a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "x.png")
    done = sdcli("inspect", "x.png")
    assert done.code == 65 and "not a file" in done.stderr
    with pytest.raises(BadInput, match="not a file"):
        inspecting.inspect(tmp_path)


def test_stdin(process: Sdcli, tmp_path: Path) -> None:
    data = write(tmp_path / "x.png").read_bytes()
    done = process("inspect", "-", "--check", "--json", stdin=data)
    assert done.code == 0
    (event,) = done.events
    assert event["path"] == "-" and event["request"]["prompt"] == PROMPT and event["check"]["pixels"] == "match"
    done = process("inspect", "-", "--json", stdin=data[:100])
    assert done.code == 65 and done.events[0]["path"] == "-" and done.stderr.startswith("error: -: ")


@pytest.mark.parametrize("command", [("inspect", "-"), ("generate", "--from", "-", "-m", "demo")])
def test_stdin_has_an_end(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    """One bound for both; what comes behind it is not read."""

    class Endless:
        given = 0

        def read(self, size: int = -1) -> bytes:
            assert size > 0, "all of it would be waited for"
            self.given += size
            assert self.given <= 2**23
            return bytes(size)

    monkeypatch.setattr(inspecting, "MOST_STREAM", 2**22)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Endless(), isatty=lambda: False))
    done = sdcli(*command)
    assert done.code == 65 and "more than 4 MiB" in done.stderr and "loading" not in done.stderr


def test_stdin_is_read_once(sdcli: Sdcli) -> None:
    assert sdcli("inspect", "-", "-").code == 2


def test_how_much_is_said(sdcli: Sdcli, tmp_path: Path) -> None:
    write(tmp_path / "x.png")
    done = sdcli("inspect", "-q", "x.png", "gone.png")
    assert done.lines[0] == "x.png: sdcli" and done.stderr.startswith("error: gone.png")
    assert sdcli("inspect", "-v", "x.png").stderr == "x.png: its texts are parameters, sdcli, XMP\n"
    (tmp_path / "bad.png").write_bytes(png({"sdcli": "no JSON"}))
    assert "Traceback" in sdcli("inspect", "-vv", "bad.png").stderr


# Hostile pictures

HEAD = b"\x89PNG\r\n\x1a\n"
END = chunk(b"IEND", b"")
DEEP = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"


def header(width: int, height: int, kind: int = 2) -> bytes:
    return HEAD + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))


def zeros(width: int, height: int, channels: int) -> bytes:
    """The pixels' chunk of a picture that is all zeros."""
    deflate = zlib.compressobj(1)
    rows = bytes(64 * (width * channels + 1))
    return chunk(b"IDAT", b"".join(deflate.compress(rows) for _ in range(height // 64)) + deflate.flush())


def inflated(megabytes: int) -> bytes:
    deflate = zlib.compressobj(1)
    return b"".join(deflate.compress(b"a" * 2**20) for _ in range(megabytes)) + deflate.flush()


def claiming(width: int, height: int) -> bytes:
    """A record that says that the picture is so large."""
    pixels = msgspec.structs.replace(RECORD.pixels, width=width, height=height)
    text = ours.encode(msgspec.structs.replace(RECORD, pixels=pixels))
    return chunk(b"tEXt", b"sdcli\0" + text.encode())


def graph(nodes: dict[str, Any]) -> bytes:
    return png({"prompt": json.dumps(nodes)})


def sampler(**inputs: Any) -> dict[str, Any]:
    return node("KSampler", **{"seed": 1, "steps": 2, "positive": ["0", 0], "negative": ["0", 1], **inputs})


def chained(count: int) -> dict[str, Any]:
    """A conditioning that two of each are combined for, all the way up: as many ways through it as there are atoms."""
    link = "conditioning_1", "conditioning_2"
    return {str(i): {"class_type": "C", "inputs": {k: [str(i + 1), 0] for k in link}} for i in range(count)}


def doubling() -> dict[str, Any]:
    nodes = {
        str(i): node("StringConcatenate", string_a=[f"{i + 1}", 0], string_b=[f"{i + 1}", 0], delimiter="")
        for i in range(1, 45)
    }
    nodes |= {"45": node("PrimitiveString", value="x" * 1000), "0": node("CLIPTextEncode", text=["1", 0])}
    return nodes | {"k": sampler(negative=["0", 0]), "s": node("SaveImage", images=["k", 0])}


def values(count: int) -> str:
    return "{" + ",".join(f'"{i:06x}":"{i:06x}"' for i in range(count)) + "}"


def entities(head: str, entity: str, tail: str, size: int = 16 * 2**20 - 200) -> bytes:
    """As much as a picture may have, all of it to be unescaped."""
    return png({"XML:com.adobe.xmp": head + entity * (size // len(entity)) + tail}, itxt=True)


def wrong_sum(data: bytes, kind: bytes) -> bytes:
    """The same PNG with a wrong sum at the end of the first chunk of that kind."""
    at = data.index(kind)
    end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


INFOTEXT = "\nSteps: 1, Seed: 1, Size: 8x8"
SAVE = {"s": node("SaveImage", images=["k", 0])}
# Each with the exit codes that are right: that of a refusal, or that of a truthful answer.
HOSTILE: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "header-of-3600-megapixels": (lambda: header(60_000, 60_000, 6) + chunk(b"IDAT", zlib.compress(b"\0")) + END, {1}),
    "alpha-of-8-megapixels": (lambda: header(4096, 2048, 6) + zeros(4096, 2048, 4) + END, {1}),
    "gigabyte-of-text": (lambda: header(8, 8) + struct.pack(">I", 2**30) + b"tEXtparameters\0", {65}),
    "compressed-text": (lambda: png_chunks(chunk(b"zTXt", b"parameters\0\0" + inflated(64))), {65}),
    "compressed-international-text": (
        lambda: png_chunks(chunk(b"iTXt", b"parameters\0\1\0\0\0" + inflated(64))), {65},
    ),
    "wrong-sum": (lambda: png({"parameters": corpus.PLAIN}).replace(b"lighthouse", b"warehouses"), {65}),
    "deep-graph": (lambda: png({"prompt": DEEP}), {65}),
    "deep-record": (lambda: png({"sdcli": DEEP}), {65}),
    "deep-xmp": (
        lambda: png({"XML:com.adobe.xmp": "<x xmlns:e='http://ns.adobe.com/exif/1.0/'>" + "<a>" * 50_000}, itxt=True),
        {1},
    ),
    "entities": (
        lambda: png({
            "XML:com.adobe.xmp": "<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'>" + "".join(
                f"<!ENTITY {chr(98 + i)} '{f'&{chr(97 + i)};' * 10}'>" for i in range(12)
            ) + "]><x xmlns:e='http://ns.adobe.com/exif/1.0/'>&m;</x>"
        }, itxt=True),
        {1},
    ),
    "entities-in-a-record": (lambda: entities("<sdcli:record>", "&#34;", "</sdcli:record>"), {65}),
    "entities-in-an-attribute": (lambda: entities(" sdcli:record='", "&quot;", "'"), {65}),
    "fewer-entities": (lambda: entities("<sdcli:record>", "&#34;", "</sdcli:record>", size=8 * 10**6), {65}),
    "wrong-sum-of-pixels": (lambda: wrong_sum(metadata.encoded(PICTURE, RECORD, "png", "full").data, b"IDAT"), {65}),
    "graph-of-100000-nodes": (lambda: graph({str(i): {"class_type": "C", "inputs": {}} for i in range(100_000)}), {0, 65}),
    "graph-of-many-ways": (lambda: graph({**chained(30_000), "k": sampler(), **SAVE}), {0, 65}),
    "graph-of-many-samplers": (
        lambda: graph({
            **chained(30_000), **{f"k{i}": sampler() for i in range(50)},
            **{f"s{i}": node("SaveImage", images=[f"k{i}", 0]) for i in range(50)},
        }),
        {0, 65},
    ),
    "texts-that-double": (lambda: graph(doubling()), {0}),
    "many-values": (lambda: png({"invokeai_metadata": values(299_000)}), {0}),
    "more-values": (lambda: png({"invokeai_metadata": values(301_000)}), {65}),
    "hidden-text-of-no-end": (lambda: saved(corpus.hidden(b"stealth_pngcomp", b"x", bits=2**32 - 8), "PNG"), {1}),
    "hidden-text-that-grows": (
        lambda: saved(corpus.hidden(b"stealth_pngcomp", gzip.compress(bytes(2**20))), "PNG"), {1},
    ),
    "infotext-of-blanks": (lambda: png({"parameters": "a\nSteps: 1, " + " " * 10**6}), {1}),
    "infotext-of-a-word": (lambda: png({"parameters": "a\nSteps: 1, " + "a" * 10**6}), {1}),
    "infotext-of-quotes": (lambda: png({"parameters": "a\nSteps: 1, " + 'aa: "\\"' * 140_000}), {1}),
    "infotext-of-lines": (lambda: png({"parameters": "\n" * 10**6 + "a" + INFOTEXT}), {0}),
    "infotext-of-loras": (lambda: png({"parameters": "<lora:" * 150_000 + INFOTEXT}), {0}),
    "dream-of-quotes": (lambda: png({"Dream": '"' + '" \t' * 300_000 + "x"}), {1}),
    "control-characters": (lambda: png({"invokeai_metadata": json.dumps({"positive_prompt": "\x1b[2J\x07" * 190_000})}), {0}),
    "numbers": (lambda: png({"invokeai_metadata": '{"seed": ' + "9" * 4000 + ', "steps": 1e999, "cfg_scale": NaN}'}), {0}),
    "pixels-of-a-record": (lambda: header(4096, 4096)[:33] + claiming(4096, 4096) + zeros(4096, 4096, 3) + END, {0, 1}),
    "too-many-pixels": (lambda: header(12_288, 12_288)[:33] + claiming(12_288, 12_288) + chunk(b"IDAT", b"") + END, {0, 65}),
}  # fmt: skip
# A process's own peak is read by itself: what `wait` tells of a child begins with what its parent had.
MEASURED = """
import json, sys, time
from sdcli.cli.main import main
option, *names = sys.argv[1:]
with open("measured", "w") as file:
    for name in names:
        start = time.process_time()
        code = main(["inspect", option, name])
        sys.stdout.flush()
        seconds = time.process_time() - start
        peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(json.dumps([name, code, seconds, int(peak) / 1024]), file=file)
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of them."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (make, _) in HOSTILE.items():
        (folder / f"{name}.png").write_bytes(make())
    # All of it is there, as far as anybody can see.
    os.truncate(folder / "gigabyte-of-text.png", 2**30 + 2**20)
    return folder


def check_harmless(folder: Path, option: str) -> None:
    """Each picture is refused or truly answered in less than two seconds, and all of them together in less than 300 MB."""
    limits = {resource.RLIMIT_DATA: 400 * 2**20, resource.RLIMIT_CPU: 60}
    names = sorted(path.name for path in folder.glob("*.png"))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, option, *names], capture_output=True, cwd=folder, timeout=240,
        preexec_fn=lambda: [resource.setrlimit(what, (most, most)) for what, most in limits.items()],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    told = [json.loads(line) for line in (folder / "measured").read_text().splitlines()]
    assert [name for name, *_ in told] == names
    for name, code, seconds, megabytes in told:
        codes = HOSTILE[name.removesuffix(".png")][1]
        # Asked for the pixels, a picture that has no record of ours answers no.
        assert code in (codes | {1} if option == "--check" else codes), name
        assert seconds < 2, f"{name}: {seconds} s"
        assert megabytes < 300, f"{name}: {megabytes} MB"
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stdout + done.stderr)
    if option == "--json":
        events = [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]
        assert [e["path"] for e in events] == names
        assert {e["exit"] for e in events if e.get("event") == "error"} == {65}


def test_hostile_pictures_do_no_harm(hostile: Path) -> None:
    check_harmless(hostile, "--json")


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--no-json", "--check", "--raw"])
def test_nor_in_any_other_way(hostile: Path, option: str) -> None:
    check_harmless(hostile, option)


def test_a_jpeg_of_many_scans(sdcli: Sdcli, tmp_path: Path) -> None:
    xmp = metadata.xmp.packet({}, ours.in_ascii(ours.encode(RECORD)))
    data = saved(PICTURE, "JPEG", progressive=True, xmp=xmp.encode())
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    (tmp_path / "x.jpg").write_bytes(data[:end] + data[start:end] * 300 + data[end:])
    assert sdcli("inspect", "x.jpg").code == 0
    done = sdcli("inspect", "--check", "x.jpg")
    assert done.code == 65 and "scans" in done.stderr
    (tmp_path / "x.jpg").write_bytes(data)
    assert sdcli("inspect", "--check", "x.jpg").code == 1


def test_what_looks_like_scans_in_a_text_is_none(sdcli: Sdcli, tmp_path: Path) -> None:
    """In UTF-16, as EXIF has it, this letter is the marker of a scan."""
    made = msgspec.structs.replace(RECORD, request=msgspec.structs.replace(RECORD.request, prompt="\uffda" * 100))
    (tmp_path / "x.jpg").write_bytes(metadata.encoded(PICTURE, made, "jpg", "full").data)
    assert (tmp_path / "x.jpg").read_bytes().count(b"\xff\xda") > 100
    done = sdcli("inspect", "--check", "x.jpg")
    assert done.code == 0, done.stderr


@pytest.mark.parametrize("options", [(), ("--raw",), ("--json",), ("--check", "-vv")])
def test_no_control_byte_reaches_the_terminal(sdcli: Sdcli, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Neither out of a text, a keyword nor a file's name; the bytes 0x80 to 0x9f steer some terminals as well."""
    steering = "\x1b[31m\x1b]0;x\x07 \x9b2J \u202e \u200b \u2066 \x7f \x85 \r\b"
    text = f"a {steering}\nNegative prompt: {steering}\nSteps: 1, Sampler: {steering}, Seed: 1, Size: 8x8, M\x9b: {steering}"
    name = "x\x1b[2J\n\x9b.png"
    (tmp_path / name).write_bytes(
        png({"parameters": text, "k\x9b\x85": steering, "workflow": json.dumps({steering: 1})})
    )
    (tmp_path / f"bad{name}").write_bytes(b"no picture")
    for path in (name, f"bad{name}"):
        done = sdcli("inspect", *options, path)
        shown = done.stdout.decode() + done.stderr
        assert not [c for c in shown if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u200b\u2066")]
        assert "\\x1b[2J" in shown or "\\u001b[2J" in shown


def test_a_table_is_cut_where_a_text_is_endless(sdcli: Sdcli, tmp_path: Path) -> None:
    values = {"positive_prompt": "a" * 10**6, **{f"key {i}": i for i in range(1000)}}
    (tmp_path / "x.png").write_bytes(png({"invokeai_metadata": json.dumps(values)}))
    done = sdcli("inspect", "x.png")
    assert done.code == 0 and len(done.stdout) < 50_000
    assert "(990000 more characters: --raw or --json shows them)" in done.stdout.decode()
    assert done.lines[-1].split() == ["...", "800", "more:", "--raw", "or", "--json", "shows", "them"]
    (event,) = sdcli("inspect", "x.png", "--json").events
    assert len(event["request"]["prompt"]) == 10**6 and len(event["unmapped"]) == 1000
