"""Processes of sdcli that meet their end at a named point: a kill, a signal, a full disk.

They are forked from one that has imported the libraries, so that each costs half a second and is yet a process of its own, with
the command's real entry. Run as a program, this file is that process and those that come from it.
"""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# Where a run can be met, in the order in which it comes by: a line is a job's in the journal, the run line its first, and the
# cut is that of a line which a kill left without its end.
OF_RUN = ("before the run line", "in the run line", "after the run line")
OF_PICTURE = (
    "before the temporary file", "in the temporary file", "before the link", "after the link", "before the line",
    "in the line", "after the line",
)  # fmt: skip
OF_CUT = ("before the cut", "after the cut")
PATIENCE = 120.0


class Child:
    """A run under way. `stdout` and `stderr` grow as it speaks."""

    def __init__(self, nursery: Nursery, pid: int, out: int, err: int, *, reads: bool = True) -> None:
        self.pid = pid
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._nursery = nursery
        self._status: int | None = None
        self._unread = None if reads else out
        self._readers = [
            threading.Thread(target=_read, args=(open(end, "rb"), into), daemon=True)
            for end, into in ((out, self.stdout), (err, self.stderr))
            if end != self._unread
        ]
        for reader in self._readers:
            reader.start()

    @property
    def events(self) -> list[dict[str, Any]]:
        return _events(self.stdout)

    def wait(self) -> int:
        """Return how it ended: its exit code, or less the number of the signal."""
        self._await(lambda status: not os.WIFSTOPPED(status))
        assert self._status is not None
        if self._unread is not None:
            os.close(self._unread)
            self._unread = None
        for reader in self._readers:
            reader.join(PATIENCE)
        return os.waitstatus_to_exitcode(self._status)

    def wait_until_stopped(self) -> None:
        """Return when it has stopped itself, or fail if it has ended."""
        self._await(lambda status: True)
        assert self._status is not None and os.WIFSTOPPED(self._status), self.stderr.decode()
        self._status = None

    def send(self, number: int) -> None:
        assert self._status is None
        os.kill(self.pid, number)

    @property
    def has_ended(self) -> bool:
        if self._status is None:
            self._status = self._nursery.look(self.pid)
        return self._status is not None

    def _await(self, wanted: Callable[[int], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while self._status is None:
            status = self._nursery.look(self.pid)
            if status is not None and wanted(status):
                self._status = status
            elif time.monotonic() > until:
                raise TimeoutError(f"it neither ended nor stopped; it said: {self.stderr.decode()}")
            else:
                time.sleep(0.005)


class Started:
    """A run that was started as a process of its own."""

    def __init__(self, *argv: str, cwd: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sdcli", *argv], cwd=cwd, env=environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None and self._process.stderr is not None
        self.stdout, self.stderr = bytearray(), bytearray()
        self._readers = [
            threading.Thread(target=_read, args=(stream, into), daemon=True)
            for stream, into in ((self._process.stdout, self.stdout), (self._process.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def events(self) -> list[dict[str, Any]]:
        return _events(self.stdout)

    def says(self, text: str) -> bool:
        """Wait until a text is on stdout; False if it ends without."""
        until = time.monotonic() + PATIENCE
        while text.encode() not in self.stdout:
            if self._process.poll() is not None:
                return text.encode() in self.stdout
            assert time.monotonic() < until
            time.sleep(0.002)
        return True

    def ends_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> int:
        """Kill it, if it is there, and return how it ended."""
        self._process.kill()
        code = self._process.wait()
        for reader in self._readers:
            reader.join(PATIENCE)
        return code


class Nursery:
    """The process that the runs are forked from."""

    def __init__(self) -> None:
        self._wire, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment(),
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        self._children: list[Child] = []

    def start(
        self, *argv: str, cwd: Path, point: str | None = None, nth: int = 1, act: str = "kill", room: int | None = None,
        links: bool = True, reads: bool = True, almighty: bool = True,
        stdin: Path = Path(os.devnull),
    ) -> Child:  # fmt: skip
        """Start a command line in `cwd`, and let it `act` when it comes to a point for the nth time.

        `act`: kill (at once), stop (until SIGCONT), hang (that thread, for good), full (a write or link fails as on a full
        disk, once), INT or TERM (the signal). `room`: no file grows beyond so many bytes. `links`: whether the file system
        has hard links. `reads`: whether somebody reads its stdout, a pipe that soon is full.
        `stdin` is a file. `almighty`: whether root may do what modes forbid.
        """
        out, theirs = os.pipe()
        if not reads:
            os.set_blocking(theirs, False)
            with suppress(BlockingIOError):
                while os.write(theirs, bytes(2**12)):
                    pass
            os.set_blocking(theirs, True)
        err, theirs_too = os.pipe()
        asked = {
            "argv": argv, "cwd": str(cwd), "point": point, "nth": nth, "act": act, "room": room, "links": links,
            "almighty": almighty, "stdin": str(stdin),
        }  # fmt: skip
        pid = self._ask({"start": asked}, [theirs, theirs_too])
        os.close(theirs)
        os.close(theirs_too)
        child = Child(self, pid, out, err, reads=reads)
        self._children.append(child)
        return child

    def look(self, pid: int) -> int | None:
        """Return the wait status of a child that has ended or stopped, None for one that is under way."""
        return self._ask({"look": pid}, [])

    def close(self) -> None:
        """End all that is left."""
        for child in self._children:
            if not child.has_ended:
                with suppress(ProcessLookupError):
                    child.send(signal.SIGKILL)
                child.wait()
        self._wire.close()
        self._process.wait(PATIENCE)

    def _ask(self, what: dict[str, Any], handles: Sequence[int]) -> Any:
        socket.send_fds(self._wire, [json.dumps(what).encode() + b"\n"], handles)
        return json.loads(_line(self._wire, [])[0])


@contextmanager
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    try:
        yield made
    finally:
        made.close()


def environment() -> dict[str, str]:
    """Return what a run's environment is here."""
    # Other numbers of threads may add up to other last bits.
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return {**os.environ, **threads, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).parent.parent)}


def _read(stream: IO[bytes], into: bytearray) -> None:
    with stream:
        while data := stream.read1(2**16):  # type: ignore[attr-defined]
            into += data


def _events(said: bytearray) -> list[dict[str, Any]]:
    """Return the JSON lines that were said so far, whole ones."""
    return [json.loads(line) for line in bytes(said).split(b"\n")[:-1]]


def _line(wire: socket.socket, handles: list[int]) -> tuple[bytes, list[int]]:
    """Return the next line, empty at the end, and the handles that came with it. One line is under way at a time."""
    text = b""
    while not text.endswith(b"\n"):
        data, came, _, _ = socket.recv_fds(wire, 2**16, 2)
        if not data:
            return b"", handles
        text, handles = text + data, [*handles, *came]
    return text, handles


# The other side: the process with the libraries, and its children


def _serve(wire: socket.socket) -> None:
    from sdcli import pipeline

    pipeline.import_libraries()
    import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion  # noqa: F401

    import sdcli.cli.batch  # noqa: F401

    while True:
        line, handles = _line(wire, [])
        if not line:
            return
        asked = json.loads(line)
        if "look" in asked:
            pid, status = os.waitpid(asked["look"], os.WNOHANG | os.WUNTRACED)
            answer = status if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                wire.close()
                _be(asked["start"], handles)
            for handle in handles:
                os.close(handle)
        wire.sendall(json.dumps(answer).encode() + b"\n")


def _be(asked: dict[str, Any], handles: Sequence[int]) -> None:
    """Be the command line; never return."""
    try:
        for number, handle in enumerate([os.open(asked["stdin"], os.O_RDONLY), *handles]):
            os.dup2(handle, number)
            os.close(handle)
        os.chdir(asked["cwd"])
        if asked["point"]:
            _arm(asked["point"], asked["nth"], asked["act"])
        if not asked["links"]:
            os.link = _no_links
        if asked["room"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["room"], asked["room"]))
        if not asked["almighty"] and os.geteuid() == 0:
            _obey_modes()
        sys.argv = ["sdcli", *asked["argv"]]
        from sdcli.cli.main import entry

        entry()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(99)


def _no_links(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def _obey_modes() -> None:
    """Give up the capabilities by which Linux lets root write what modes forbid (capset(2))."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and again for the capabilities from 32 on
    if libc.capget(header, sets) == 0:
        sets[0] &= ~0b111  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        sets[1] &= ~0b111
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _arm(point: str, nth: int, act: str) -> None:
    """Put the act at its point: round the calls by which sdcli writes."""
    assert point in (*OF_RUN, *OF_PICTURE, *OF_CUT), point
    left = nth

    def at(here: str) -> None:
        nonlocal left
        if here != point or left == 0:
            return
        left -= 1
        if left:
            return
        if act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif act == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif act == "hang":
            threading.Event().wait()
        elif act == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:
            os.kill(os.getpid(), getattr(signal, f"SIG{act}"))

    def round_(call: Any, before: str, after: str) -> Any:
        def called(*given: Any, **named: Any) -> Any:
            at(before)
            answer = call(*given, **named)
            at(after)
            return answer

        return called

    class Temporary(io.BufferedWriter):
        """A picture's file under its hidden name."""

        def write(self, data: Any) -> int:
            half = len(data) // 2
            super().write(data[:half])
            self.flush()
            at("in the temporary file")
            return half + super().write(data[half:])

    really_open, really_write = Path.open, os.write

    def open_(path: Path, mode: str = "r", *given: Any, **named: Any) -> IO[Any]:
        if not path.name.endswith(".part"):
            return really_open(path, mode, *given, **named)
        at("before the temporary file")
        return Temporary(io.FileIO(path, mode.replace("b", "")))

    def write(handle: int, data: bytes) -> int:
        """Write a journal's line by halves, as a disk does that fills up meanwhile."""
        data = bytes(data)
        if not data.startswith(b'{"schema"') or not data.endswith(b"\n"):
            return really_write(handle, data)
        kind = "run line" if json.loads(data)["event"] == "run" else "line"
        at(f"before the {kind}")
        half = really_write(handle, data[: len(data) // 2])
        at(f"in the {kind}")
        written = half + really_write(handle, data[half:])
        at(f"after the {kind}")
        return written

    Path.open = open_  # type: ignore[method-assign,assignment]
    os.write = write  # type: ignore[assignment]
    # A picture gets its name by a link, by a replacement where it may overwrite, or by a new name where there are no links.
    for name in ("link", "replace", "rename"):
        setattr(os, name, round_(getattr(os, name), "before the link", "after the link"))
    os.ftruncate = round_(os.ftruncate, "before the cut", "after the cut")


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _wire:
        _serve(_wire)
