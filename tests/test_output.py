"""Names that cannot leave their folder, and files that are never half there."""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli import output
from sdcli.errors import CannotCreateOutput, ClosedPipe, OutputFailed, UsageError
from sdcli.options import options_of
from sdcli.output import (
    FIELDS,
    NAME_BYTES,
    Destination,
    Naming,
    OutputPlan,
    expand,
    resolve,
    safe,
    save,
    write,
)

NAMING = Naming(
    when=datetime(2026, 11, 21, 6, 7, 8), prompt="a red circle", seed=42, id="0123456789abcdef", model="org/model",
    scheduler="ddim", steps=25, width=512, height=256, index=3,
)  # fmt: skip
CALM = settings(deadline=None)  # A busy machine is no failure.
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def to(text: str | None, pictures: int = 1, **more: Any) -> Destination:
    how: dict[str, Any] = {"json": False, "print0": False, "stdout_is_tty": False}
    how.update({k: more.pop(k) for k in (*how, "default") if k in more})
    return resolve(OutputPlan(output=text, **more), pictures=pictures, **how)


def named(template: str, **changes: Any) -> str:
    return expand(template, msgspec.structs.replace(NAMING, **changes), "png")


def left(folder: Path) -> list[str]:
    """Return all that lies in a folder, hidden files too."""
    return sorted(os.listdir(folder))


# What -o means


def test_default_names() -> None:
    assert named(to(None).text) == "a-red-circle-42.png"
    assert (
        named(to(None, 2, default="sdcli-batch/{prompt:40}-{seed}-{id:8}.{format}").text)
        == "sdcli-batch/a-red-circle-42-01234567.png"
    )


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("out/", "out/a-red-circle-42.png"),
        ("there", "there/a-red-circle-42.png"),
        (".", "./a-red-circle-42.png"),
        ("folder.png/", "folder.png/a-red-circle-42.png"),
        ("a}b/", "a}b/a-red-circle-42.png"),
        ("{date}/", "2026-11-21/a-red-circle-42.png"),
        ("{{{seed}}}/x{time}.{format}", "{42}/x060708.png"),
        ("{model}/{scheduler}_{steps}_{width}x{height}_{index}.png", "org-model/ddim_25_512x256_3.png"),
        ("{line}{name}-{id:4}.PNG", "__-0123.PNG"),
        ("{prompt:5}.png", "a-red.png"),
        ("{prompt:6}.png", "a-red.png"),
    ],
)
def test_folders_and_templates(text: str, path: str) -> None:
    os.mkdir("there")
    before = left(Path())
    destination = to(text, pictures=3)
    assert destination.kind == "template" and destination.format == "png" and not destination.overwrite
    assert named(destination.text) == path
    assert left(Path()) == before  # Asking makes nothing.


def test_exact_and_stdout() -> None:
    exact = to("deep/x.png")
    assert (exact.kind, exact.text, exact.overwrite) == ("exact", "deep/x.png", True)
    assert to("-").kind == "stdout"
    assert not os.path.exists("deep")


@pytest.mark.parametrize(
    ("text", "more", "format"),
    [
        ("x.jpg", {}, "jpg"),
        ("x.JPEG", {"format": "jpg"}, "jpg"),
        ("{seed}.webp", {"quality": 100}, "webp"),
        ("x.avif", {"quality": 1}, "avif"),
        ("{seed}.{format}", {"format": "webp"}, "webp"),
        ("out/", {"format": "jpg", "quality": 90}, "jpg"),
        ("-", {"format": "avif"}, "avif"),
        (None, {"format": "webp"}, "webp"),
    ],
)
def test_the_format_is_what_the_ending_or_the_option_says(text: str | None, more: dict[str, Any], format: str) -> None:
    destination = to(text, **more)
    assert (destination.format, destination.quality) == (format, more.get("quality"))


@pytest.mark.parametrize(
    ("text", "more", "reason"),
    [
        ("x.png", {"pictures": 2}, "2 pictures"),
        ("-", {"pictures": 2}, "2 pictures"),
        ("-", {"json": True}, "--json"),
        ("-", {"print0": True}, "--print0"),
        ("-", {"stdout_is_tty": True}, "terminal"),
        ("x", {}, "add / for a folder"),
        ("", {}, "add / for a folder"),
        ("x.tiff", {}, "add / for a folder"),
        (".png", {}, "add / for a folder"),
        ("a\0b/", {}, "NUL"),
        ("{seed}", {}, "add .{format}"),
        ("{seed}.tiff", {}, "add .{format}"),
        ("{seed}/.png", {}, "add .{format}"),
        ("{sede}.png", {}, "seed"),
        ("{}.png", {}, "no field"),
        ("{seed[0]}.png", {}, "no field"),
        ("{seed.real}.png", {}, "no field"),
        ("{seed!r}.png", {}, "cut"),
        ("{seed:08}.png", {}, "cut"),
        ("{seed:{id}}.png", {}, "cut"),
        ("{seed.png", {}, "braces"),
        ("{seed}}.png", {}, "braces"),
        ("{{seed}.png", {}, "braces"),
        ("x.png", {"format": "jpg"}, "--format says jpg"),
        ("{seed}.png", {"format": "webp"}, "--format says webp"),
        ("x.png", {"quality": 90}, "png has no quality"),
        ("out/", {"quality": 90}, "png has no quality"),
        ("{prompt}.png", {"pictures": 2, "overwrite": True}, "one name"),
    ],
)
def test_what_is_refused(text: str | None, more: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        to(text, **more)
    assert reason in f"{caught.value.message} {caught.value.hint}"
    assert left(Path()) == []


def test_a_path_that_cannot_be_is_refused_before_anything_is_drawn() -> None:
    Path("file").write_text("x")
    os.mkdir("folder.png")
    os.mkfifo("fifo.png")
    os.symlink("nowhere", "link")
    for text in ("file/", "file/x.png", "file/{seed}.png", "file/deep/{seed}.png", "folder.png", "fifo.png", "link/"):
        with pytest.raises(CannotCreateOutput) as caught:
            to(text)
        assert caught.value.hint
    os.symlink("folder.png", "also.png")
    with pytest.raises(CannotCreateOutput):
        to("also.png")


def test_a_folder_that_may_not_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # A superuser may write anywhere, so the answer is given here; the question is the one that is tested.
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((str(path), mode)))
    for text in ("/x{seed}/a.png", "/nowhere/at/all/", "/nowhere/x.png"):
        with pytest.raises(CannotCreateOutput, match="cannot be written"):
            to(text)
    assert asked == [("/", os.W_OK | os.X_OK)] * 3


def test_the_plan_declares_its_options() -> None:
    flags = ["--output", "--format", "--quality", "--overwrite", "--metadata", "--sign"]
    assert [o.flags[0] for o in options_of(OutputPlan)] == flags
    assert {o.panel for o in options_of(OutputPlan)} == {"What comes out"}
    assert msgspec.convert({"format": "jpg", "overwrite": True}, OutputPlan).format == "jpg"


# Names made safe


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "_"),
        ("..", "_"),
        ("../../etc/passwd", "etc-passwd"),
        ("-rf *", "rf"),
        (".hidden", "hidden"),
        ('a: "b" <c>|d?\\e', "a-b-c-d-e"),
        ("tabs\tand\nlines\x1b[31m\x7f\x85", "tabs-and-lines-[31m"),
        ("ends. . .", "ends"),
        ("\udc80\ud800", "_"),
        ("e\u0301t\u00e9 日本 🎨", "été-日本-🎨"),
        ("a\u202egnp.exe", "a-gnp.exe"),
        (FAMILY, FAMILY),
    ],
)
def test_safe(text: str, name: str) -> None:
    assert safe(text) == name


@pytest.mark.parametrize(
    ("text", "length", "name"),
    [
        ("abc", 2, "ab"),
        ("abc", 9, "abc"),
        ("ab c", 3, "ab"),
        ("x" + FAMILY, 3, "x"),
        ("xe\u0323\u0302\u0301", 2, "x"),  # No one character has all these accents.
        ("x👍🏽", 2, "x"),
        ("x🇩🇪🇫🇷", 4, "x🇩🇪"),
        ("x🇩🇪🇫🇷", 3, "x🇩🇪"),
        (FAMILY, 2, FAMILY[:2]),  # What is one sign only is cut all the same.
    ],
)
def test_cut(text: str, length: int, name: str) -> None:
    assert safe(text, length) == name


TEMPLATES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(FIELDS), st.none() | st.integers(1, 300)).map(
            lambda f: f"{{{f[0]}}}" if f[1] is None else f"{{{f[0]}:{f[1]}}}"
        ),
        st.sampled_from(["-", "x", "{{", "}}", "sub/{seed}-"]),
    ),
    min_size=1,
    max_size=20,
).map(lambda pieces: "out/" + "".join(pieces) + ".{format}")
PIECES = ["..", "/", "\\", ".", "-", " ", "\0", "\n", "é" * 200, "🎨" * 99]
HOSTILE = st.text() | st.lists(st.sampled_from(PIECES)).map("".join)


@CALM
@given(template=TEMPLATES, prompt=HOSTILE, model=HOSTILE, name=HOSTILE)
def test_no_text_leaves_its_folder(template: str, prompt: str, model: str, name: str) -> None:
    path = named(template, prompt=prompt, model=model, name=name)
    parts = path.split("/")
    assert len(parts) == template.count("/") + 1
    assert parts[0] == "out" and os.path.normpath(path) == path
    for part in parts:
        assert part not in ("", ".", "..") and not part.endswith((".", " "))
        assert not any(unicodedata.category(c) in ("Cc", "Cs") or c in '<>:"\\|?*' for c in part)
        assert len(part.encode()) <= NAME_BYTES
    assert path.endswith(".png")


@CALM
@given(prompt=st.text(min_size=200, max_size=2000))
def test_a_long_prompt_leaves_the_seed_and_the_ending(prompt: str) -> None:
    name = named("{prompt}-{name}-{seed}.{format}", prompt=prompt, name=prompt)
    assert name.endswith("-42.png") and len(name.encode()) <= NAME_BYTES


def test_a_long_name_can_be_written_and_written_again() -> None:
    destination = to("{prompt}.png")
    naming = msgspec.structs.replace(NAMING, prompt="日" * 300)
    paths = [save(destination, b"x", naming) for _ in range(12)]
    assert len({str(p) for p in paths}) == 12 == len(left(Path()))
    assert str(paths[-1]).endswith("日-12.png")


# Files


def test_write_makes_folders_and_never_takes_a_taken_name(folder: Path) -> None:
    names = [write(Path("deep/er/x.png"), data, overwrite=False).name for data in (b"1", b"2", b"3")]
    assert names == ["x.png", "x-2.png", "x-3.png"]
    assert [(folder / "deep/er" / n).read_bytes() for n in names] == [b"1", b"2", b"3"]
    os.symlink("nowhere", "y.png")
    assert write(Path("y.png"), b"1", overwrite=False) == Path("y-2.png")
    assert left(folder / "deep/er") == sorted(names)


def test_overwrite_replaces_and_leaves_what_a_link_points_to(folder: Path) -> None:
    Path("kept.png").write_bytes(b"kept")
    os.symlink("kept.png", "x.png")
    for data in (b"1", b"22"):
        assert save(to("x.png"), data, NAMING) == Path("x.png")
        assert not Path("x.png").is_symlink() and Path("x.png").read_bytes() == data
    assert Path("kept.png").read_bytes() == b"kept"
    assert left(folder) == ["kept.png", "x.png"]


def test_the_umask_decides_the_mode() -> None:
    before = os.umask(0o027)
    try:
        for overwrite in (True, False):
            assert write(Path("x.png"), b"x", overwrite=overwrite).stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def no_links(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False])
def test_two_writers_of_one_name_get_two(folder: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda i: write(Path("x.png"), b"%d" % i, overwrite=False), range(40)))
    assert [p.read_bytes() for p in paths] == [b"%d" % i for i in range(40)]
    assert left(folder) == sorted(p.name for p in paths)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(
    ("number", "failure"),
    [
        (errno.ENOSPC, OutputFailed), (errno.EDQUOT, OutputFailed), (errno.EIO, OutputFailed),
        (errno.EFBIG, OutputFailed), (errno.EACCES, CannotCreateOutput), (errno.EROFS, CannotCreateOutput),
        (None, KeyboardInterrupt),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["open", "fsync", "place"])
def test_whatever_fails_the_old_file_stays_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int | None, failure: type[BaseException],
    overwrite: bool,
) -> None:  # fmt: skip
    Path("x.png").write_bytes(b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt if number is None else OSError(number, os.strerror(number))

    where = {"open": "open", "fsync": "fsync", "place": "replace" if overwrite else "link"}[where]
    with monkeypatch.context() as patch:
        patch.setattr(*((io, "open") if where == "open" else (os, where)), fail)
        with pytest.raises(failure):
            write(Path("x.png"), b"new", overwrite=overwrite)
    assert left(folder) == ["x.png"] and Path("x.png").read_bytes() == b"old"


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Let no file grow beyond `room` bytes; Python ignores the signal, so writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_full_disk_costs_nothing(folder: Path, overwrite: bool) -> None:
    good = os.urandom(60_000)
    write(Path("x.png"), good, overwrite=False)
    with full_disk(100_000), pytest.raises(OutputFailed) as caught:
        write(Path("x.png"), os.urandom(1_000_000), overwrite=overwrite)
    assert caught.value.exit_code == 74
    assert left(folder) == ["x.png"] and Path("x.png").read_bytes() == good


@pytest.mark.parametrize("path", ["/proc/x.png", "/proc/nowhere/x.png", "file/x.png", "x" * 300 + ".png", "there.png"])
def test_what_cannot_be_created(path: str) -> None:
    Path("file").write_text("x")
    os.mkdir("there.png")
    with pytest.raises(CannotCreateOutput) as caught:
        write(Path(path), b"x", overwrite=True)
    assert caught.value.exit_code == 73
    assert left(Path()) == ["file", "there.png"]


WRITER = """
import sys
from pathlib import Path
from sdcli.output import write
for i in range(10_000):
    write(Path("x.png"), bytes([i % 256]) * 1_000_000, overwrite=sys.argv[1] == "overwrite")
    if i == 0:
        print("begun", flush=True)
"""


@pytest.mark.parametrize("how", ["overwrite", "beside"])
def test_a_kill_leaves_no_half_file(folder: Path, how: str) -> None:
    command = [sys.executable, "-c", WRITER, how]
    environment = {**os.environ, "PYTHONPATH": str(Path(output.__file__).parents[1])}
    for delay in (0.0, 0.003, 0.01, 0.02, 0.04):
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout and process.stdout.readline() == b"begun\n"
            time.sleep(delay)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        for name in left(folder):
            if re.fullmatch(r"\.sdcli-[0-9a-f]{16}\.part", name):
                continue
            assert re.fullmatch(r"x(-[0-9]+)?\.png", name)
            content = Path(name).read_bytes()
            assert content == content[:1] * 1_000_000


# stdout


def test_stdout_carries_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stream)
    assert save(to("-"), b"\x89PNG\r\n\n", NAMING) is None
    assert stream.buffer.getvalue() == b"\x89PNG\r\n\n"


def test_stdout_that_is_full_closed_or_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w")
    reading, writing = os.pipe()
    os.close(reading)
    gone = os.fdopen(writing, "w")
    cases: list[tuple[Any, type[BaseException], Callable[[], None]]] = [
        (full, OutputFailed, full.close), (gone, ClosedPipe, gone.close), (None, CannotCreateOutput, lambda: None),
    ]  # fmt: skip
    for stream, failure, close in cases:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            with pytest.raises(failure):
                output.save(to("-"), b"x" * 100_000, NAMING)
        with suppress(OSError):
            close()
