"""A page over a folder of pictures: what each says of its making, what of a batch has failed, and what can't be read."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from sdcli import output
from sdcli.errors import BadInput, CannotCreateOutput, InputMissing, UsageError
from sdcli.explain import commands, pages
from sdcli.explain.columns import Columns
from sdcli.explain.thumbnails import Thumbnail, Thumbnails
from sdcli.jobs import journal
from sdcli.metadata import inspecting
from sdcli.metadata.inspecting import Found
from sdcli.record import Record

NAME = "gallery.html"
# Stands near the beginning of every page that was written here.
MARK = b'<meta name="generator" content="sdcli gallery">'
HEAD = 2**10
# Adapters, as fields whose values are their names, and how strongly each works beside them.
ADAPTERS = commands.KINDS
# What of a record stands below the request and the model.
MADE = ("scheduler", "tokens", "plan", "flagged", "fallbacks", "seconds", "versions", "encoding", "pixels", "id")
# What is said of a picture where its own record has no place for it.
MOST_OTHERS = 200
# Thumbnails that may be waited for.
AHEAD = 64

Told = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Written:
    """A page that was written, and how much is on it."""

    path: Path
    pictures: int
    failures: int
    unreadable: int


@dataclass(kw_only=True)
class _Pictures:
    """What the page has of each picture besides its fields; every list has an entry a picture."""

    url: list[str] = field(default_factory=list)
    thumb: list[str | None] = field(default_factory=list)
    # The commands that draw it again, from the picture and in full, and what they can't say.
    from_: list[str | None] = field(default_factory=list)
    full: list[str | None] = field(default_factory=list)
    note: list[str | None] = field(default_factory=list)


def page_of(folder: Path, asked: str | None, *, overwrite: bool) -> Path:
    """Return where the page goes: into the folder, unless a file or another folder was asked for.

    Raises InputMissing and UsageError for what is no folder, UsageError for a name that is no page's, and CannotCreateOutput
    where something else is in its place.
    """
    if not os.path.lexists(folder):
        raise InputMissing(f"{folder} is not there", "check the path")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "give a folder of pictures")
    if asked is None:
        page = folder / NAME
    elif asked.endswith("/") or os.path.isdir(asked):
        page = Path(asked) / NAME
    elif asked.lower().endswith((".html", ".htm")):
        page = Path(asked)
    else:
        raise UsageError(f"{asked!r} is neither a folder nor a page (.html)", "add / for a folder, or .html")
    if not overwrite and os.path.lexists(page) and not _is_ours(page):
        raise CannotCreateOutput(f"{page} is there and is no gallery", "choose another with -o, or say --overwrite")
    return page


def _is_ours(page: Path) -> bool:
    try:
        with page.open("rb") as file:
            return MARK in file.read(HEAD)
    except OSError:
        return False


def write(folder: Path, page: Path, *, overwrite: bool = False, told: Told = lambda done, of, name: None) -> Written:
    """Write the page, and thumbnails into a folder beside it; `told` hears of each picture: how many are done, of how many.

    A picture that can't be read is listed as such. Raises BadInput where there is nothing to show, UsageError without
    Jinja2, CannotCreateOutput and OutputFailed.
    """
    pages.environment()
    paths = list(journal.pictures(folder))
    failures = list(failures_in(folder))
    if not paths and not failures:
        raise BadInput(f"{folder}: there is nothing to show", f"looked for: {', '.join(output.ENDINGS)}")
    columns, shown, unreadable = Columns(), _Pictures(), []
    thumbnails = Thumbnails(page.parent / f"{page.stem}-files")
    waiting: deque[Future[Thumbnail]] = deque()

    def settle(row: int, thumbnail: Thumbnail) -> None:
        shown.thumb.append(_url(f"{thumbnails.folder.name}/{thumbnail.name}") if thumbnail.name else None)
        if thumbnail.size is not None:
            columns.put(row, "size", "{}x{}".format(*thumbnail.size))

    with thumbnails.working():
        for number, path in enumerate(paths, 1):
            relative = _relative(path, page.parent)
            try:
                about = path.stat()
                found = inspecting.inspect(path)
                waiting.append(thumbnails.ask(path, relative))
            except (BadInput, InputMissing, OSError) as error:
                unreadable.append(_unreadable(path, relative, error))
            else:
                _add(shown, found, relative)
                columns.add(_fields(found, path, folder, about))
            # Reading is quicker than making thumbnails, and must not run away from what is told.
            if len(waiting) > AHEAD:
                settle(len(shown.thumb), waiting.popleft().result())
            told(number, len(paths), path.name)
        while waiting:
            settle(len(shown.thumb), waiting.popleft().result())
    data = {
        "pictures": {name.rstrip("_"): values for name, values in vars(shown).items()},
        "columns": columns.as_json(),
        "failures": failures,
        "unreadable": unreadable,
    }
    named = folder if folder.name not in ("", "..") else folder.resolve()
    title = _shown(named.name or str(named))
    counts = {"pictures": len(shown.url), "failures": len(failures), "unreadable": len(unreadable)}
    text = pages.page("gallery", data, title=title, **counts)
    there = overwrite or os.path.lexists(page)
    written = output.write(page, text, overwrite=there)
    # Only now: the page that was there before had them.
    thumbnails.sweep()
    return Written(path=written, **counts)


def _add(shown: _Pictures, found: Found, relative: str) -> None:
    shown.url.append(_url(relative))
    shown.from_.append(commands.from_picture(found, relative))
    shown.full.append(commands.in_full(found, relative))
    shown.note.append(commands.note(found))


def _relative(path: Path, folder: Path) -> str:
    # As a browser takes `..` off a URL, by its letters and not by where links lead.
    return os.path.relpath(os.path.abspath(path), os.path.abspath(folder))


def _url(relative: str) -> str:
    """Return a path as a relative URL, byte by byte. No part of it can be taken for a scheme or a query."""
    return quote(os.fsencode(relative), safe="/")


def _shown(path: str) -> str:
    """Return a path as Unicode, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _unreadable(path: Path, relative: str, error: Exception) -> dict[str, Any]:
    code, hint = getattr(error, "slug", BadInput.slug), getattr(error, "hint", None)
    message = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error)
    # The page names it beside that, and no folder of its maker's.
    message = message.removeprefix(f"{path}: ").replace(str(path), relative)
    return {"path": _shown(relative), "code": code, "message": _shown(message), "hint": hint}


# What a picture says, as fields


def _fields(found: Found, path: Path, folder: Path, about: os.stat_result) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a picture, with the values that the page shows, searches and filters by."""
    yield from _request(found)
    yield "made by", "sdcli, the sheet of a grid" if found.is_sheet else found.format
    model = dict(found.model or {})
    yield "model", model.pop("name", None)
    files = model.pop("files", None) or {}
    model.pop("adapters", None)
    yield from _flat("model", model)
    yield "model.files", [f"{name}: {sha256}" for name, sha256 in files.items()]
    if found.record is not None:
        yield from _record(found.record)
    yield "other", [f"{name}: {_text(value)}" for name, value in list(found.unmapped.items())[:MOST_OTHERS]]
    relative = _relative(path, folder)
    yield "file.name", _shown(os.path.basename(relative))
    yield "file.folder", _shown(os.path.dirname(relative)) or "."
    yield "file.format", output.ENDINGS.get(path.suffix.lower())
    yield "file.bytes", about.st_size
    yield "file.changed", datetime.fromtimestamp(about.st_mtime, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _request(found: Found) -> Iterator[tuple[str, Any]]:
    said = commands.request_of(found)
    if found.record is not None and "scheduler" not in said:
        ran = found.record.scheduler
        said["scheduler"] = ran.name or ran.class_name
    for name, value in said.items():
        if name in ADAPTERS:
            yield name, [str(one.get("name")) for one in value]
            yield f"{name}.scale", [f"{one.get('name')}: {one['scale']:g}" for one in value if "scale" in one]
            yield f"{name}.sha256", [f"{one.get('name')}: {one['sha256']}" for one in value if one.get("sha256")]
        else:
            yield from _flat(name, value)


def _record(record: Record) -> Iterator[tuple[str, Any]]:
    """Yield what sdcli's record says beyond the request and the model."""
    yield "template", record.template
    yield from _flat("tags", record.tags)
    made: dict[str, Any] = msgspec.to_builtins(record)
    made["scheduler"].pop("name")
    made["plan"].pop("reasons")
    for side in ("width", "height"):
        made["pixels"].pop(side)
    for name in MADE:
        yield from _flat(name, made[name])


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield an object's values under the names of the way to them."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _flat(f"{name}.{key}", one)
    elif isinstance(value, list | tuple):
        yield name, [_text(one) for one in value]
    else:
        yield name, value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# What has failed


class _Line(msgspec.Struct):
    """What is looked for in a line of a journal."""

    event: str
    id: str | None = None
    line: int | None = None
    prompt: str | None = None
    seed: int | None = None
    code: str = ""
    message: str = ""
    hint: str | None = None
    time: str | None = None


def failures_in(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the jobs of which the journals in a folder, and in those inside it, say last that they have failed."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        if journal.NAME in names:
            yield from _failures(Path(place) / journal.NAME, _shown(os.path.relpath(place, folder)))


def _failures(path: Path, where: str) -> Iterable[dict[str, Any]]:
    # Whoever gets the page need not know where its maker had the folder.
    own = f"{os.path.abspath(path.parent)}/"
    decoder = msgspec.json.Decoder(_Line)
    failed: dict[tuple[str | None, int | None], _Line] = {}
    try:
        with path.open("rb") as file:
            for text in file:
                try:
                    said = decoder.decode(text)
                except journal.UNREADABLE:
                    continue  # What a kill left, or is being written.
                if said.event == "error":
                    failed[said.id, None if said.id else said.line] = said
                elif said.event == "image":
                    # A row that was refused before it had an id is known by its line.
                    failed.pop((said.id, None), None)
                    failed.pop((None, said.line), None)
    except OSError:
        return []
    return [
        {
            "code": said.code, "message": said.message.replace(own, ""), "hint": said.hint and said.hint.replace(own, ""),
            "prompt": said.prompt, "seed": said.seed, "id": said.id, "line": said.line, "time": said.time,
            "journal": journal.NAME if where == "." else f"{where}/{journal.NAME}",
        }
        for said in failed.values()
    ]  # fmt: skip
