"""Pictures in a terminal: each protocol read back, what a terminal is asked, previews, and silence elsewhere."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdcli as library
from sdcli.cli import seeing
from sdcli.cli.main import screen
from sdcli.cli.terminal import Protocol, Terminal
from sdcli.errors import NotFinite
from sdcli.jobs.jobs import Job
from sdcli.pipeline import Step, passes, previewing
from tests.conftest import Outcome, Sdcli, pixels

RED, BLUE, GREEN, WHITE = (230, 20, 30), (20, 40, 220), (10, 160, 60), (255, 255, 255)
DRAW = ("generate", "a red circle on a blue background", "-m", "demo", "-s", "3")
# A row that is erased, with the cursor on the one above then.
ERASED = "\x1b[2K\x1b[A"
# What terminals are asked: whether they know sixels, kitty's graphics, and how large a cell is.
SIXEL, KITTY, CELL = b"\x1b[c", re.compile(rb"\x1b_Gi=(\d+),s=1,v=1,a=q[^\x1b]*\x1b\\"), b"\x1b[16t"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of four colours, a quarter each."""
    quarters = np.array([[RED, BLUE], [GREEN, WHITE]], dtype=np.uint8).repeat(40, 0).repeat(40, 1)
    Image.fromarray(quarters).save(tmp_path / "quarters.png")
    return tmp_path / "quarters.png"


def has_four_quarters(found: Any, off: int) -> bool:
    """Say whether a picture (height, width, 3) is the fixture's, at the quarters' middles, to so many levels."""
    high, wide = found.shape[0] // 4, found.shape[1] // 4
    middles = [found[y, x] for y in (high, 3 * high) for x in (wide, 3 * wide)]
    return all(np.abs(m - np.array(c)).max() <= off for m, c in zip(middles, (RED, BLUE, GREEN, WHITE), strict=True))


# The protocols, read back


def blocks(text: str) -> Any:
    """Return the pixels (2 * rows, columns, 3) of half blocks: the upper one is written, the lower one is behind it."""
    rows = []
    for line in text.splitlines():
        cells = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀", line)
        if cells:
            values = np.array(cells, dtype=int)
            rows += [values[:, :3], values[:, 3:]]
    return np.array(rows)


def sixel(text: str) -> Any:
    """Return the pixels (height, width, 3) of sixels (DEC STD 070, chapter 9): six rows at once, a colour at a time."""
    (data,) = re.findall(r"\x1bP[\d;]*q(.*?)\x1b\\", text, re.DOTALL)
    across, down = map(int, re.match(r'"\d+;\d+;(\d+);(\d+)', data).groups())  # type: ignore[union-attr]
    found, colours, colour = np.zeros((down + 6, across, 3), int), dict[str, Any](), np.zeros(3)
    x = y = 0
    for piece in re.findall(r'"[\d;]+|#\d+(?:;2;\d+;\d+;\d+)?|!\d+[?-~]|[$?-~-]', data):
        if piece.startswith("#"):
            number, *mixed = piece[1:].split(";")
            if mixed:
                colours[number] = np.array([int(v) * 255 / 100 for v in mixed[1:]])
            colour = colours[number]
        elif piece == "$":
            x = 0
        elif piece == "-":
            x, y = 0, y + 6
        elif not piece.startswith('"'):
            count = int(piece[1:-1]) if piece[0] == "!" else 1
            bits = ord(piece[-1]) - 63
            for bit in range(6):
                if bits >> bit & 1:
                    found[y + bit, x : x + count] = colour
            x += count
    return found[:down]


def kitty(text: str) -> Any:
    """Return the pixels of a picture that is sent to kitty in pieces, and placed (sw.kovidgoyal.net/kitty/graphics-protocol)."""
    pieces = [
        (dict(pair.split("=") for pair in keys.split(",")), data)
        for keys, data in re.findall(r"\x1b_G([^;\x1b]*);?([^\x1b]*)\x1b\\", text)
    ]
    sent = [(keys, data) for keys, data in pieces if data]
    (placed,) = [keys for keys, data in pieces if keys.get("a") == "p"]
    assert {keys["f"] for keys, _ in sent} == {"100"} and {keys["i"] for keys, _ in sent} == {placed["i"]}
    assert [keys["m"] for keys, _ in sent] == [*["1"] * (len(sent) - 1), "0"]
    assert max(len(data) for _, data in sent) <= 4096
    # The cells that it fills.
    assert text.count("\U0010eeee") == int(placed["c"]) * int(placed["r"])
    return png("".join(data for _, data in sent))


def iterm2(text: str) -> Any:
    """Return the pixels of a picture that is sent to iTerm2 (iterm2.com/documentation-images.html)."""
    (keys, data), = re.findall(r"\x1b\]1337;File=([^:]*):([^\x07]*)\x07", text)  # fmt: skip
    said = dict(pair.split("=") for pair in keys.split(";"))
    assert said["inline"] == "1" and int(said["size"]) == len(base64.b64decode(data))
    return png(data)


def png(data: str) -> Any:
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


READ = {"blocks": blocks, "sixel": sixel, "kitty": kitty, "iterm2": iterm2}


@pytest.mark.parametrize(("way", "off"), [("blocks", 1), ("sixel", 3), ("kitty", 0), ("iterm2", 0)])
def test_each_protocol(sdcli: Sdcli, picture: Path, way: str, off: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")  # That is for text.
    done = sdcli("show", str(picture), "--graphics", way, "--width", "20")
    assert done.code == 0 and done.stderr == ""
    text = done.stdout.decode()
    assert has_four_quarters(READ[way](text), off)
    # The cursor is under it: a terminal's cells are twice as high as wide.
    assert text.count("\n") == (1 if way == "iterm2" else 10)
    assert not any(mark in text for mark in {"\x1bP", "\x1b_G", "\x1b]1337", "▀"} - MARKS[way])


MARKS = {"blocks": {"▀"}, "sixel": {"\x1bP"}, "kitty": {"\x1b_G"}, "iterm2": {"\x1b]1337"}}


def test_terminals_of_256_colours(sdcli: Sdcli, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)
    text = sdcli("show", str(picture), "--graphics", "blocks", "--width", "4").stdout.decode()
    cells = re.findall(r"\x1b\[38;5;(\d+);48;5;(\d+)m▀", text)
    # The nearest of the cube's: red, blue, green and white.
    assert cells == [("160", "160")] * 2 + [("20", "20")] * 2 + [("35", "35")] * 2 + [("231", "231")] * 2
    assert "38;2;" not in text


def test_of_several_some_cannot_be_shown(sdcli: Sdcli, picture: Path) -> None:
    Path("text.png").write_text("no picture")
    done = sdcli("show", "nothing.png", "quarters.png", "text.png", "quarters.png", "--graphics", "iterm2")
    assert done.code == 1 and done.stdout.count(b"\x1b]1337;File=") == 2
    assert [line for line in done.stderr.splitlines() if "hint" not in line] == [
        "error: nothing.png is not there", "quarters.png", "error: text.png is no picture", "quarters.png",
        "error: 2 of 4 pictures could not be shown",
    ]  # fmt: skip
    assert done.stderr.count("  hint: ") == 3


def test_nobody_knows_where_a_pipe_was_kept(process: Sdcli) -> None:
    done = process("show", "-", "--graphics", "sixel")
    assert done.code == 65 and done.stderr.startswith("error: stdin is no picture\n")
    done = process("generate", "a star", "-m", "demo", "--init-image", "-", "--dry-run", stdin=b"no picture")
    assert done.code == 65 and done.stderr.startswith("error: stdin is no picture\n")


def test_from_stdin_and_several(process: Sdcli, picture: Path) -> None:
    done = process("show", "-", "quarters.png", "--graphics", "iterm2", stdin=picture.read_bytes())
    assert done.code == 0 and done.stdout.count(b"\x1b]1337;File=") == 2
    assert done.stderr.splitlines() == ["-", "quarters.png"]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["quarters.png"], 2, "no terminal"),
        (["quarters.png", "--graphics", "sixels"], 2, "did you mean sixel"),
        (["-", "-", "--graphics", "sixel"], 2, "once"),
        (["nothing.png", "--graphics", "sixel"], 66, "nothing.png"),
        (["text.png", "--graphics", "sixel"], 65, "text.png"),
    ],
)
def test_refused(sdcli: Sdcli, picture: Path, argv: list[str], code: int, said: str) -> None:
    Path("text.png").write_text("no picture")
    done = sdcli("show", *argv)
    assert done.code == code and said in done.stderr and done.stdout == b""


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("nothing.png --graphics blocks >/dev/full", 74, "stdout can't be written"),
        ("--graphics sixel >&-", 73, "stdout is closed"),
    ],
)
def test_stdout_is_the_result(picture: Path, command: str, code: int, said: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m sdcli show quarters.png {command}", shell=True, stderr=subprocess.PIPE, text=True,
        cwd=picture.parent, timeout=60,
    )  # fmt: skip
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
    assert "nothing.png" not in done.stderr  # It ends at once.


def test_whoever_reads_stdout_has_gone(picture: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command("show", str(picture), "--graphics", "blocks"), stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert done.returncode == 141 and done.stderr == b""


def test_an_encoding_that_lacks_blocks(process: Sdcli, picture: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    done = process("show", str(picture), "--graphics", "blocks", env=ascii_only)
    assert done.code == 73 and "ascii" in done.stderr and "--graphics sixel" in done.stderr and done.stdout == b""
    assert process("show", str(picture), "--graphics", "iterm2", env=ascii_only).code == 0


@pytest.mark.parametrize("way", ["blocks", "sixel", "kitty", "iterm2"])
@pytest.mark.parametrize(("size", "across"), [((40, 400), 59), ((1, 65000), 1), ((65000, 1), 200)], ids=str)
def test_how_large_pictures_get(
    sdcli: Sdcli, way: str, size: tuple[int, int], across: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are 297 rows at most, in which a picture keeps its shape; cells are twice as high as wide."""
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    Image.new("RGB", size, RED).save("x.png")
    done = sdcli("show", "x.png", "--graphics", way, "--width", "200")
    assert done.code == 0, done.stderr
    text = done.stdout.decode()
    down = 297 if size[1] > size[0] else 1
    assert READ[way](text).shape[:2] == {
        "blocks": (2 * down, across), "kitty": (20 * down, 10 * across), "sixel": (20 * down, 10 * across),
        "iterm2": size[::-1],
    }[way]  # fmt: skip
    assert way != "iterm2" or f"width={across};height={down};" in text
    assert sdcli("show", "x.png", "--width", "298").code == 2 and b"297" in sdcli("show", "--help").stdout


# On a terminal


@dataclass(frozen=True)
class Session:
    """What a command on a terminal of its own did: `seen` is what the terminal got, `out` what went to stdout's pipe."""

    code: int
    out: bytes
    seen: bytes


def on_a_terminal(
    command: Sequence[str],
    folder: Path,
    *,
    env: Mapping[str, str | None] | None = None,
    answers: bool = True,
    knows: Sequence[str] = (),
    typed: bytes = b"",
    interrupts_at: bytes | None = None,
    piped: bool = True,
) -> Session:
    """Run a command whose stdin and stderr are a terminal, and stdout too unless `piped`.

    It is of 80 columns and 30 rows, answers what it is asked and knows the protocols that it `knows`. Ctrl-C is typed once it
    has got `interrupts_at`.
    """
    own = {
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "NO_COLOR": None,
        "TERM_PROGRAM": None,
        "LC_TERMINAL": None,
    }
    environ = {k: v for k, v in {**os.environ, **own, **(env or {})}.items() if v is not None}
    ours, theirs = os.pipe()
    child, terminal = pty.fork()
    if child == 0:
        try:
            os.chdir(folder)
            fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
            if piped:
                os.dup2(theirs, 1)
            while typed and not select.select([0], [], [], 0)[0]:
                time.sleep(0.01)
            os.execvpe(command[0], list(command), environ)
        finally:
            os._exit(99)
    os.close(theirs)
    if typed:
        os.write(terminal, typed)
    seen, out, answered, open_ends = b"", b"", set[bytes](), {terminal, ours}
    while open_ends:
        ready = select.select([*open_ends], [], [], 120)[0]
        assert ready, f"nothing for two minutes after {seen[-200:]!r}"
        for end in ready:
            try:
                data = os.read(end, 65536)
            except OSError:  # Linux's word for the other end's having gone
                data = b""
            if not data:
                open_ends.discard(end)
            elif end == ours:
                out += data
            else:
                seen += data
        if interrupts_at is not None and interrupts_at in seen:
            interrupts_at = None
            time.sleep(0.05)  # What is said to have come is no longer being written.
            os.write(terminal, b"\x03")
        if not answers:
            continue
        asked = KITTY.search(seen) if "kitty" in knows else None
        for question, answer in [
            *([(asked[0], b"\x1b_Gi=" + asked[1] + b";OK\x1b\\")] if asked else []),
            (CELL, b"\x1b[6;20;10t"),
            (SIXEL, b"\x1b[?62;4c" if "sixel" in knows else b"\x1b[?62c"),
        ]:
            if question in seen and question not in answered:
                answered.add(question)
                os.write(terminal, answer)
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    os.close(ours)
    return Session(os.waitstatus_to_exitcode(status), out, seen)


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "sdcli", *argv]


@pytest.fixture
def watched(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Outcome, str]]:
    """Run a command line in this process, with a terminal that answers nothing as stderr; and give what that got."""

    def run(*argv: str, rows: int = 30, columns: int = 80, **env: str) -> tuple[Outcome, str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        seen: list[bytes] = []

        def read() -> None:
            try:
                while data := os.read(ours, 65536):
                    seen.append(data)
            except OSError:  # Linux's word for the other end's having gone
                pass

        reader = threading.Thread(target=read)
        reader.start()
        with monkeypatch.context() as patch, open(theirs, "w", encoding="utf-8") as stderr:
            for name in ("NO_COLOR", "TERM_PROGRAM", "LC_TERMINAL"):
                patch.delenv(name, raising=False)
            for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor", **env}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stderr", stderr)
            done = sdcli(*argv)
        reader.join()
        os.close(ours)
        return done, b"".join(seen).decode()

    return run


@pytest.mark.parametrize(
    ("knows", "env", "way"),
    [
        (["sixel"], {}, "sixel"), (["kitty"], {}, "kitty"), (["sixel", "kitty"], {}, "sixel"), ([], {}, "blocks"),
        ([], {"TERM_PROGRAM": "iTerm.app"}, "iterm2"), (["sixel"], {"LC_TERMINAL": "iTerm2"}, "iterm2"),
    ],
    ids=str,
)  # fmt: skip
def test_the_terminal_is_asked(picture: Path, knows: list[str], env: dict[str, str], way: str) -> None:
    done = on_a_terminal(
        command("show", "quarters.png", "--width", "20"), picture.parent, knows=knows, env=env, piped=False
    )
    assert done.code == 0, done.seen
    # What it was asked is no picture.
    text = KITTY.sub(b"", done.seen).decode()
    assert has_four_quarters(READ[way](text), 3)
    # Who says what it is, is not asked.
    assert (SIXEL in done.seen) == (way != "iterm2")
    assert way == "sixel" or bool(KITTY.search(done.seen)) == (way != "iterm2")


def test_a_terminal_that_does_not_answer(picture: Path) -> None:
    began = time.monotonic()
    done = on_a_terminal(command("show", "quarters.png"), picture.parent, answers=False, piped=False)
    assert done.code == 0 and has_four_quarters(blocks(KITTY.sub(b"", done.seen).decode()), 1)
    assert time.monotonic() - began < 60 and b"Traceback" not in done.seen


def test_a_dumb_terminal(picture: Path) -> None:
    """It is asked nothing, and shown no picture unless somebody says how."""
    dumb = {"TERM": "dumb"}
    done = on_a_terminal(command("show", "quarters.png"), picture.parent, env=dumb, piped=False)
    assert done.code == 2 and b"dumb" in done.seen and b"--graphics" in done.seen and b"\x1b" not in done.seen
    argv = command("show", "quarters.png", "--graphics", "sixel", "--width", "20")
    done = on_a_terminal(argv, picture.parent, env=dumb, piped=False)
    assert done.code == 0 and has_four_quarters(sixel(done.seen.decode()), 3) and CELL not in done.seen


def test_no_line_is_wider_than_the_terminal(picture: Path) -> None:
    argv = command("show", "quarters.png", "--graphics", "blocks", "--width", "200")
    done = on_a_terminal(argv, picture.parent, piped=False)
    assert done.code == 0 and blocks(done.seen.decode()).shape == (80, 80, 3)


def test_what_is_typed_ahead_is_for_the_next(picture: Path) -> None:
    script = f"{sys.executable} -m sdcli show quarters.png; read line; echo got $line."
    done = on_a_terminal(["sh", "-c", script], picture.parent, typed=b"hello\n", knows=["sixel"], piped=False)
    assert b"got hello." in done.seen and SIXEL not in done.seen and blocks(done.seen.decode()).size


def test_a_pipe_on_stdin_is_left_alone(picture: Path) -> None:
    """The terminal is asked through itself, not through stdin."""
    script = f"cat quarters.png | {sys.executable} -m sdcli show - --width 20"
    done = on_a_terminal(["sh", "-c", script], picture.parent, knows=["sixel"], piped=False)
    assert has_four_quarters(sixel(done.seen.decode()), 3)


def test_a_preview_forms_in_its_place(watched: Callable[..., tuple[Outcome, str]], tmp_path: Path) -> None:
    done, text = watched(*DRAW, "--steps", "60", "--preview", "--show", "-o", "x.png")
    assert done.code == 0 and done.stdout == b"x.png\n"
    told = [int(number) for number in re.findall(r"(\d+)/60, [\d.]+ s/step  a red circle on a blue background", text)]
    assert len(told) >= 2 and told == sorted(told)
    # Every picture after the first is drawn where that was, and the last one is taken away.
    shown, after = text.split("seed 3, ")
    parts = shown.split("s/step")
    rows = [len(blocks(part)) // 2 for part in parts[:-1]]
    assert len(set(rows)) == 1 and rows[0] > 10
    for part in parts[1:-1]:
        assert f"\r\x1b[{rows[0]}A" in part
    assert parts[-1].rstrip().endswith(f"\r{ERASED * rows[0]}\x1b[J")
    # The last preview is like the picture, and the finished one is the picture.
    made, last, final = pixels(tmp_path / "x.png"), blocks(parts[-2]), blocks(after)
    assert np.abs(final - resized(made, final)).mean() < 3 and np.abs(last - resized(made, last)).mean() < 40
    assert "\x1b[J" not in after and "ETA" not in text


@pytest.mark.slow
def test_previews_of_a_terminal_that_is_asked(tmp_path: Path) -> None:
    argv = command(*DRAW, "--steps", "100", "--preview", "--show", "-o", "x.png")
    done = on_a_terminal(argv, tmp_path, knows=["kitty"])
    assert done.code == 0 and done.out == b"x.png\n"
    sent = re.findall(rb"a=p,i=(\d+)", done.seen)
    # All but the finished picture are taken away.
    assert len(sent) >= 2 and re.findall(rb"a=d,I=(\d+)", done.seen) == sent[:-1]


def resized(values: Any, like: Any) -> Any:
    image = Image.fromarray(values.astype(np.uint8)).resize(like.shape[1::-1])
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("how", ["dumb", "quiet"])
def test_where_nothing_is_drawn(watched: Callable[..., tuple[Outcome, str]], how: str) -> None:
    argv = (*DRAW, "--steps", "2", "--preview", "--show", "-o", "x.png")
    done, seen = watched(*argv, TERM="dumb") if how == "dumb" else watched(*argv, "-q")
    assert done.code == 0 and done.stdout == b"x.png\n" and "\x1b" not in seen


def test_a_terminal_that_does_not_say_its_size(watched: Callable[..., tuple[Outcome, str]]) -> None:
    """It is taken for one of 80 columns and 24 rows."""
    done, seen = watched(*DRAW, "--steps", "2", "--show", "-o", "x.png", rows=0, columns=0)
    assert done.code == 0 and blocks(seen).shape == (38, 38, 3)


@pytest.mark.parametrize(("columns", "rows"), [(100, 30), (80, 24), (40, 10)])
def test_what_is_said_stays_in_sight(watched: Callable[..., tuple[Outcome, str]], columns: int, rows: int) -> None:
    done, seen = watched(*DRAW, "--steps", "1", "--show", "-o", "x.png", columns=columns, rows=rows)
    after = seen[seen.index("seed 3") :]
    # Besides the path, which is on stdout, and the shell's next prompt.
    assert done.code == 0 and rows - 4 <= after.count("\n") + 2 <= rows and blocks(after).shape[0] == 2 * (rows - 5)


@pytest.mark.parametrize(
    ("way", "width", "line", "rows"),
    [
        ("blocks", 100, 10, 20), ("blocks", 45, 60, 21), ("blocks", 39, 10, 29), ("blocks", 10, 10, 29), ("sixel", 20, 30, 21),
        ("iterm2", 20, 30, 21), ("kitty", 20, 30, 29),
    ],
)  # fmt: skip
def test_a_terminal_that_has_been_resized(
    way: Protocol, width: int, line: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that are wider than it is now have been wrapped; pictures that are no characters have not."""
    monkeypatch.setenv("TERM", "xterm-256color")
    ours, theirs = pty.openpty()
    written: list[str] = []
    with open(theirs, "w", encoding="utf-8") as stream:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
        terminal = Terminal(stream, way, write=written.append)
        terminal.over(Image.new("RGB", (16, 16), RED), "x" * line)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
        terminal.over(Image.new("RGB", (16, 16), RED), "forming")
    os.close(ours)
    across = min(40, width)
    again = f"\r\x1b[{rows}A" if (rows, across) == (20, 40) else f"\r{ERASED * rows}\x1b[J"
    assert written[1].startswith(again) and ("\x1b[J" in written[1]) == again.endswith("J")


def test_a_preview_s_line_has_room(
    watched: Callable[..., tuple[Outcome, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of wide characters too; and for what the terminal echoes of Ctrl-C."""
    monkeypatch.setattr(seeing, "SHARE", 100.0)
    done, seen = watched("generate", "月" * 60, "-m", "demo", "--steps", "2", "-o", "x.png", "--preview")
    (line, *_) = re.findall(r"s/step  (月+)", seen)
    assert done.code == 0 and 25 <= len(line) <= (80 - 3 - len("1/2, 0.00 s/step  ")) / 2


def test_silence_off_a_terminal(sdcli: Sdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the library is not needed either."""
    monkeypatch.setitem(sys.modules, "textual_image", None)
    plain = sdcli(*DRAW, "--steps", "2", "-o", "x.png")
    done = sdcli(*DRAW, "--steps", "2", "-o", "y.png", "--preview", "--show")
    assert done.code == 0 and done.stdout == b"y.png\n" and "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == len(plain.stderr.splitlines())
    assert np.array_equal(pixels("x.png"), pixels("y.png"))
    refused = sdcli("show", "x.png", "--graphics", "blocks")
    assert refused.code == 2 and "pip install 'sdcli[show]'" in refused.stderr


def test_a_batch_and_a_grid(watched: Callable[..., tuple[Outcome, str]], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue star\n")
    small = ("-m", "demo", "--steps", "1", "--size", "64x64", "-s", "1", "--show")
    done, seen = watched("batch", "prompts.txt", *small, TERM_PROGRAM="iTerm.app")
    assert done.code == 0 and seen.count("\x1b]1337;File=") == 2 and len(done.lines) == 2
    done, seen = watched("grid", "a star", "--x", "steps=1,2", *small, TERM_PROGRAM="iTerm.app")
    sheet = next((tmp_path / "sdcli-batch").glob("grid-*.png"))
    assert done.code == 0 and np.array_equal(iterm2(seen), pixels(sheet))


@pytest.fixture
def each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show each step, however little time it takes."""
    monkeypatch.setattr(seeing, "SHARE", 100.0)


SMALL = ("-m", "demo", "--steps", "2", "--size", "64x64", "--batch-size", "1", "-s", "3")


def labels(seen: str) -> list[str]:
    """Return what stands under the previews of second steps."""
    return re.findall(r"2/2, [\d.]+ s/step  ([^\r]*)\r", seen)


def told(folder: Path) -> list[dict[str, Any]]:
    """Return what a folder's journal says, without what differs from run to run."""
    (journal,) = folder.glob("*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "path", "seconds", "seed")} for line in lines]


@pytest.mark.usefixtures("each_step")
def test_a_batch_that_is_looked_at(sdcli: Sdcli, watched: Callable[..., tuple[Outcome, str]], tmp_path: Path) -> None:
    """It is the same as without; what was skipped counts; nothing is left on the terminal."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue star\na green square\na red circle\n")
    plain = sdcli("batch", "prompts.txt", *SMALL, "-o", "plain/", "--json")
    done, seen = watched("batch", "prompts.txt", *SMALL, "-o", "seen/", "--json", "--preview")
    assert done.code == plain.code == 0 and labels(seen) == [
        "1/4 a red circle",
        "2/4 a blue star",
        "3/4 a green square",
    ]
    assert [e["event"] for e in done.events] == [e["event"] for e in plain.events]
    assert told(tmp_path / "seen") == told(tmp_path / "plain") and len(told(tmp_path / "seen")) >= 3
    made = sorted(path.name for path in (tmp_path / "seen").glob("*.png"))
    assert made == sorted(path.name for path in (tmp_path / "plain").glob("*.png")) and len(made) == 3
    assert all(np.array_equal(pixels(tmp_path / "seen" / name), pixels(tmp_path / "plain" / name)) for name in made)
    # Each picture's last preview is taken away, and the bar comes between them.
    ends = re.findall(r"2/2, [\d.]+ s/step  [^\r]*\r((?:\x1b\[2K\x1b\[A)+)\x1b\[J", seen)
    assert (
        ends == [ERASED * 20] * 3 and seen.endswith("\n") and "4 drawn" in seen and seen.count("▀") == 3 * 2 * 20 * 40
    )
    for name in made[:2]:
        (tmp_path / "seen" / name).unlink()
    done, seen = watched("batch", "prompts.txt", *SMALL, "-o", "seen/", "--preview", "--batch-size", "2")
    assert done.code == 0 and len(labels(seen)) == 1 and re.match(r"[123]/4 a ", labels(seen)[0])


@pytest.mark.usefixtures("each_step")
def test_a_grid_and_a_stream_that_are_looked_at(
    watched: Callable[..., tuple[Outcome, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, seen = watched("grid", "a star", "--x", "seed=1,2", *SMALL[:-2], "--preview")
    assert done.code == 0 and labels(seen) == ["1/2 a star", "2/2 a star"]
    lines = b'{"prompt": "a red circle"}\n{"prompt": "2 stars"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    done, seen = watched("batch", "-", "--stream", *SMALL, "--preview", "-o", "stream/")
    assert done.code == 0 and labels(seen) == ["1: a red circle", "2: 2 stars"] and len(done.events) == 2


@pytest.mark.usefixtures("each_step")
@pytest.mark.parametrize("run", [("batch", "prompts.txt"), ("generate", "a star", "a red circle", "-o", "x/")], ids=str)
def test_steps_that_cannot_be_shown(
    watched: Callable[..., tuple[Outcome, str]], tmp_path: Path, run: Sequence[str]
) -> None:
    """That is said once, and there is a bar as without."""
    from tests.families import saved

    (tmp_path / "prompts.txt").write_text("a star\na red circle\n")
    model = str(saved("FluxPipeline", tmp_path / "flux"))
    some = ("-m", model, "--steps", "2", "--size", "32x32", "--batch-size", "1")
    done, seen = watched(*run, *some, "--preview")
    assert done.code == 0 and seen.count("no preview: ") == seen.count("its steps can't be shown") == 1
    assert len(done.lines) == 2 and "━" in seen and "▀" not in seen


@pytest.mark.usefixtures("each_step")
def test_failures_leave_a_clean_terminal(
    watched: Callable[..., tuple[Outcome, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("a star\na red circle\n")

    def decode(*_: Any, **__: Any) -> Any:
        raise NotFinite("the picture's values are not finite")

    monkeypatch.setattr(passes.StableDiffusion, "_decode", decode)
    done, seen = watched("batch", "prompts.txt", *SMALL, "--preview")
    assert done.code == 1 and labels(seen) == ["1/2 a star", "2/2 a red circle"], seen[-2000:]
    assert len(re.findall(r"A\x1b\[J\x1b\[31merror: \x1b\[0mprompts.txt:\d: the picture's values", seen)) == 2


def test_after_ctrl_c_nothing_forms_any_more(tmp_path: Path) -> None:
    """What is said of it stands where the preview was."""
    (tmp_path / "prompts.txt").write_text("a star\na red circle\n")
    some = ("-m", "demo", "--steps", "200", "--batch-size", "1", "-o", "x/")
    argv = command("batch", "prompts.txt", *some, "--preview", "--graphics", "blocks")
    done = on_a_terminal(argv, tmp_path, interrupts_at=b"s/step")
    assert done.code == 130 and done.out.count(b"\n") == 1
    before, after = done.seen.decode().split("finishing what is in flight; once more stops at once\r\n")
    assert "▀" in before and before.endswith(f"\r{ERASED * 20}\x1b[J")
    assert "▀" not in after and "\x1b[J" not in after and "\x1b[A" not in after


def test_a_signal_amid_a_frame_takes_nothing_else_away() -> None:
    """How much of it is there then nobody knows: it stays."""
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        erased.append(terminal.leave())

    erased: list[str] = []
    terminal = Terminal(io.StringIO(), "blocks", write=write)
    terminal.over(Image.new("RGB", (16, 16), RED), "forming")
    terminal.clear()
    terminal.over(Image.new("RGB", (16, 16), RED), "forming")
    assert erased == [""] and len(written) == 1


@pytest.mark.parametrize("run", ["generate", "batch", "grid"])
def test_graphics_of_nothing(sdcli: Sdcli, run: str) -> None:
    Path("x.txt").write_text("a star\n")
    argv = (run, *{"batch": ["x.txt"], "grid": ["a star", "--x", "steps=1,2"]}.get(run, ["a star"]), "-m", "demo")
    done = sdcli(*argv, "--graphics", "sixel")
    assert done.code == 2 and "--graphics is for" in done.stderr and "--show" in done.stderr
    done = sdcli(*argv, "--graphics", "sixels", "--show", "--dry-run")
    assert done.code == 2 and "did you mean sixel" in done.stderr
    assert sdcli(*argv, "--graphics", "sixel", "--show", "--dry-run").code == 0
    assert sdcli(*argv, "--graphics", "sixel", "--preview", "--dry-run").code == 0


@pytest.mark.parametrize("run", ["generate", "batch", "grid"])
def test_a_dry_run_asks_no_terminal(watched: Callable[..., tuple[Outcome, str]], tmp_path: Path, run: str) -> None:
    (tmp_path / "x.txt").write_text("a star\n")
    argv = (run, *{"batch": ["x.txt"], "grid": ["a star", "--x", "steps=1,2"]}.get(run, ["a star"]), "-m", "demo")
    done, seen = watched(*argv, "--preview", "--show", "--dry-run")
    assert done.code == 0 and done.lines and "\x1b" not in seen


# Previews


@pytest.fixture(scope="module")
def demo() -> library.Pipeline:
    return library.load("demo", library.DevicePlan(dtype="fp32"))


class Kept:
    """Keeps the steps that it hears."""

    hears = frozenset({"estimates"})

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, step: Step) -> None:
        self.steps.append(step)


def test_the_linear_map(demo: library.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = Kept()
    request = library.GenerationRequest(prompt=DRAW[1], seed=3, num_inference_steps=12, guidance_scale=5)
    (made,) = demo.generate([request], listener=kept)
    began = time.monotonic()
    fitted = previewing.linear(demo)
    assert time.monotonic() - began < 5
    small = np.asarray(made.image.resize((16, 16), Image.Resampling.BOX)).astype(int)
    away = [np.abs(np.asarray(fitted.pictures(s.clean)[0]).astype(int) - small).mean() for s in kept.steps]
    assert away[-1] < 12 and away[3] < 50 and away[-1] < away[3] < away[0]
    # Kept on disk, and made again where what is there is not it.
    (file,) = (tmp_path / "sdcli" / "previews").iterdir()
    whole = file.read_text()
    monkeypatch.setattr(previewing, "_fitted", lambda _: pytest.fail("it is kept"))
    assert previewing.linear(demo).weights == fitted.weights
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for broken in ("", "[[1, 2]]", '{"a": NaN}', whole.replace("[", "[[", 1), whole[:-9] + "NaN]]"):
        file.write_text(broken)
        assert np.allclose(previewing.linear(demo).weights, fitted.weights)
        assert np.allclose(previewing._kept(file, 4).weights, fitted.weights)  # type: ignore[union-attr]
    # The autoencoder's own are the picture.
    (decoded,) = previewing.decode(demo, kept.steps[-1].latents)
    assert np.array_equal(np.asarray(decoded), np.asarray(made.image))


def test_a_preview_leaves_finished_pictures() -> None:
    """kitty keeps a picture by its number: those of previews are taken away, those that were put are not."""
    written = io.StringIO()
    terminal = Terminal(written, "kitty")
    image = Image.new("RGB", (16, 16), RED)
    for _ in range(2):
        terminal.over(image, "forming")
        terminal.over(image, "forming")
        terminal.put(image)
    sent = re.findall(r"a=p,i=(\d+)", written.getvalue())
    taken = re.findall(r"a=d,I=(\d+)", written.getvalue())
    assert len(sent) == 6 and taken == [sent[0], sent[1], sent[3], sent[4]]


@pytest.mark.parametrize(
    ("step", "cost", "steps", "first", "count"),
    [
        (0.02, 0.003, 25, 17, (2, 2)), (0.02, 0.01, 25, 17, (1, 1)), (0.02, 0.01, 50, 17, (1, 1)),
        (0.5, 0.01, 30, 1, (20, 25)), (5.0, 0.02, 20, 1, (20, 20)), (1.0, 0.5, 100, 1, (3, 3)),
    ],
)  # fmt: skip
def test_a_preview_is_paid_for_before_it_is_shown(
    demo: library.Pipeline, monkeypatch: pytest.MonkeyPatch, step: float, cost: float, steps: int, first: int,
    count: tuple[int, int],
) -> None:  # fmt: skip
    """Steps and previews take so many seconds; previews have 1.5 % of the time."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "thread_time", lambda: clock[0])
    monkeypatch.setattr(screen, "preview", None)
    shown: list[str] = []

    class Slow:
        is_clear = True

        def clear(self) -> None:
            pass

        def over(self, image: Any, line: str) -> None:
            shown.append(line)
            clock[0] += cost

    terminal: Any = Slow()
    request = library.GenerationRequest(prompt="a star")
    forming = seeing.Previewing(terminal, 1).pack(demo, [Job(request=request, index=1)])
    for number in range(1, steps + 1):
        clock[0] += step
        forming(Step(number=number, of=steps, timestep=1.0, latents=torch.zeros(1, 4, 2, 2)))
    assert shown[0] == f"{first}/{steps}, {step:.2f} s/step  a star"
    assert count[0] <= len(shown) <= count[1]
    # The first one may cost more than was thought.
    assert cost * (len(shown) - 1) / clock[0] <= 0.015 and cost * len(shown) / clock[0] <= 0.021
