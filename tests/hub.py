"""A small Hugging Face hub on loopback: what huggingface_hub's own client asks for, served from folders."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Fault:
    """A refusal: `status` for a file, or for the list of files (""), the first `times` that it is asked for."""

    file: str
    status: int
    times: int = 1
    method: str = "GET"
    retry_after: int | None = None

    def meets(self, method: str, file: str) -> bool:
        if (method, file) != (self.method, self.file) or not self.times:
            return False
        self.times -= 1
        return True


@dataclass
class Repo:
    """A repository: a folder, the names of its revisions, and how it misbehaves.

    `error` is (status, X-Error-Code) for every request; `drop` is the file whose first download breaks off halfway,
    after which the repository answers 503 until `drop` is taken away. `faults` come one by one. Of `cuts`, the files'
    connections break off halfway so many times; of `wrong`, the files have another content the first time; of `sizes`, the
    list says another size.
    """

    folder: Path
    revisions: tuple[str, ...] = ("main",)
    error: tuple[int, str] | None = None
    drop: str | None = None
    dropped: bool = False
    faults: list[Fault] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        return hashlib.sha1(str(self.folder).encode()).hexdigest()

    def files(self) -> list[dict[str, Any]]:
        """Return the repository's files: path, size, and their SHA-256 where git would keep them apart (LFS)."""
        found = []
        for file in sorted(f for f in self.folder.rglob("*") if f.is_file()):
            name = file.relative_to(self.folder).as_posix()
            entry: dict[str, Any] = {"path": name, "size": self.sizes.get(name, file.stat().st_size)}
            if file.suffix not in (".json", ".txt", ".md"):
                entry["lfs"] = hashlib.sha256(file.read_bytes()).hexdigest()
            found.append(entry)
        return found


@dataclass
class Hub:
    """What is served, and what was asked: (method, path) of every request in its order, (path, first byte) of those that
    asked for a part, and what the clients called themselves."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    parts: list[tuple[str, int]] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)

    def downloaded(self, repo: str) -> set[str]:
        """Return the files whose content was asked for."""
        found = (re.fullmatch(rf"/{repo}/resolve/[^/]+/(.+)", path) for method, path in self.asked if method == "GET")
        return {m[1] for m in found if m}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        self.hub.agents.append(self.headers.get("User-Agent", ""))
        match = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?", path)
        name, what, revision, file = match.groups() if match else ("", None, None, None)
        repo = self.hub.repos.get(name)
        if repo is None:
            self._refuse(404, "RepoNotFound")
        elif repo.error is not None:
            self._refuse(*repo.error)
        elif fault := next((f for f in repo.faults if f.meets(self.command, file or "")), None):
            self._refuse(fault.status, "", fault.retry_after)
        elif revision not in (None, *repo.revisions, repo.commit):
            self._refuse(404, "RevisionNotFound")
        elif what == "resolve":
            self._file(repo, str(file))
        elif what == "tree":
            self._json([_tree_entry(f) for f in repo.files()])
        else:
            self._json(
                {"id": name, "modelId": name, "sha": repo.commit, "siblings": [_sibling(f) for f in repo.files()]}
            )

    def _file(self, repo: Repo, name: str) -> None:
        entry = next((f for f in repo.files() if f["path"] == name), None)
        if entry is None:
            return self._refuse(404, "EntryNotFound")
        if repo.dropped:
            return self._refuse(503, "")
        content = (repo.folder / name).read_bytes()
        etag = entry.get("lfs") or git_hash(content)
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            self.hub.parts.append((name, start))
        if self.command == "GET":
            content = repo.wrong.pop(name, content)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET" and name == repo.drop:
            repo.dropped = True
            self.wfile.write(content[start : len(content) // 2])
            self.close_connection = True
        elif self.command == "GET" and repo.cuts.get(name):
            repo.cuts[name] -= 1
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.close_connection = True
        elif self.command == "GET":
            self.wfile.write(content[start:])

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str, retry_after: int | None = None) -> None:
        self.send_response(status)
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def git_hash(content: bytes) -> str:
    """Return what Git calls a file of this content, which is a small file's name in the hub's cache."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(file: dict[str, Any]) -> dict[str, Any]:
    lfs = {"lfs": {"size": file["size"], "sha256": file["lfs"], "pointerSize": 130}} if "lfs" in file else {}
    return {"rfilename": file["path"], "size": file["size"], "blobId": "0" * 40} | lfs


def _tree_entry(file: dict[str, Any]) -> dict[str, Any]:
    lfs = {"lfs": {"size": file["size"], "oid": file["lfs"], "pointerSize": 130}} if "lfs" in file else {}
    return {"type": "file", "path": file["path"], "size": file["size"], "oid": "0" * 40} | lfs


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that has been killed, or has given up, is no error here."""


@contextmanager
def serving(**repos: Repo) -> Iterator[Hub]:
    """Serve repositories; `org__name` stands for org/name."""
    hub = Hub(repos={name.replace("__", "/"): repo for name, repo in repos.items()})
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
