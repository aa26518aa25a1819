"""Where pictures go: their names, and files that are never half there."""

from __future__ import annotations

import errno
import itertools
import os
import re
import secrets
import string
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from sdcli.errors import CannotCreateOutput, ClosedPipe, OutputFailed, SdcliError, UsageError, nearest
from sdcli.metadata import check_format, signing
from sdcli.options import meta
from sdcli.record import Record

COMES_OUT = "What comes out"

# What default names begin with, where prompts are no secret.
PROMPT = "{prompt:40}-"
DEFAULT = PROMPT + "{seed}.{format}"

FIELDS = (
    "date", "time", "prompt", "seed", "id", "model", "scheduler", "steps", "width", "height", "index", "line", "name",
    "format",
)  # fmt: skip
ENDINGS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp", ".avif": "avif"}

# Linux's and macOS's limit for one name in a path, less room for a suffix such as -12345.
NAME_BYTES = 255 - 8
ELSEWHERE = "choose another output with -o"


# A bound that holds for a number and not for None stands inside the union.
Quality = Annotated[int, msgspec.Meta(ge=1, le=100)]


class OutputPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where pictures go and what their files are."""

    output: Annotated[
        str | None,
        meta(
            "FILE.png, FOLDER/, template ({seed}.png ...) or -.",
            "--output", "-o", panel=COMES_OUT, metavar="PATH",
        ),
    ] = None  # fmt: skip
    format: Annotated[
        Literal["png", "jpg", "webp", "avif"] | None,
        meta("png, jpg, webp, avif; or as the output ends.", "--format", panel=COMES_OUT),
    ] = None
    quality: Annotated[
        Quality | None,
        meta("1 to 100, for jpg, webp (100: lossless), avif.", "--quality", panel=COMES_OUT),
    ] = None
    overwrite: Annotated[
        bool,
        meta("Overwrite; else a taken name gets -2, -3.", "--overwrite", panel=COMES_OUT),
    ] = False
    metadata: Annotated[
        Literal["full", "minimal", "none"],
        meta("full; minimal: no prompt; none.", "--metadata", panel=COMES_OUT),
    ] = "full"
    sign: Annotated[
        tuple[str, str] | None,
        meta("Sign (C2PA) with two PEM files.", "--sign", panel=COMES_OUT, metavar="CERT KEY"),
    ] = None


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run's pictures go, checked: `text` is a path if `kind` is exact, and a template if it is template.

    `signer` signs them; None: they are not signed.
    """

    kind: Literal["stdout", "exact", "template"]
    text: str
    format: str
    quality: int | None = None
    overwrite: bool
    signer: signing.Signer | None = None


class Naming(msgspec.Struct, frozen=True, kw_only=True):
    """What a picture's name can be made of; None is what there is none of. `when` is local time."""

    when: datetime
    prompt: str
    seed: int | None
    id: str
    model: str
    scheduler: str | None
    steps: int
    width: int | None
    height: int | None
    index: int
    line: int | None = None
    name: str | None = None


def naming(record: Record, *, index: int, when: datetime, line: int | None = None, name: str | None = None) -> Naming:
    """Return what the name of a picture that was drawn can be made of."""
    return Naming(
        when=when, prompt=record.request.prompt, seed=record.request.seed, id=record.id, model=short(record.model.name),
        scheduler=record.scheduler.name or record.scheduler.class_name, steps=record.request.num_inference_steps,
        width=record.pixels.width, height=record.pixels.height, index=index, line=line, name=name,
    )  # fmt: skip


# Names


def resolve(
    plan: OutputPlan, *, pictures: int, json: bool, print0: bool, stdout_is_tty: bool, default: str = DEFAULT
) -> Destination:
    """Return where the pictures go, or refuse. Nothing is created: folders are made with the first picture in them.

    A template ends in `.{format}` or a picture's ending, or in `/` or nothing more than a folder, which then hold
    `default`'s name, without the prompt unless the pictures' metadata has it. Folders that are missing are made, those of
    an exact path too. An exact path that is a folder is refused unless it is written with `/`; a symbolic link there is
    replaced and what it points to stays.
    Raises UsageError, and CannotCreateOutput where the output's folder cannot be written; with `sign` also InputMissing and
    BadInput, where its files cannot sign.
    """
    if plan.metadata != "full":
        default = default.replace(PROMPT, "")
    output = default if plan.output is None else plan.output
    if "\0" in output:
        raise UsageError("the output has a NUL character in it", "leave it out")
    if output == "-":
        if json or print0:
            raise UsageError(f"-o - and {'--json' if json else '--print0'} both want stdout", "give a path to -o")
        if stdout_is_tty:
            raise UsageError("a picture is not written to a terminal", "give a path to -o, or pipe it: ... -o - | ...")
        _one(pictures, "stdout")
        return _destination("stdout", output, plan, None)
    if "{" in output:
        template = output + os.path.basename(default) if output.endswith("/") else output
    elif is_folder(output):
        template = os.path.join(_escape(output), os.path.basename(default))
    elif ending := _ending(output):
        _one(pictures, "one path")
        destination = _destination("exact", output, plan, ending)
        _check_exact(Path(output))
        return destination
    else:
        raise UsageError(f"{output!r} is neither a folder nor a picture ({', '.join(ENDINGS)})", "add / for a folder")
    return _template(template, plan, pictures)


def is_folder(output: str) -> bool:
    """Say whether an output means a folder: it ends with /, or is one that is there and has no picture's ending."""
    return "{" not in output and (output.endswith("/") or (os.path.isdir(output) and _ending(output) is None))


def fields_of(template: str) -> frozenset[str]:
    """Return the fields that a template uses. Raises UsageError if it is none."""
    return frozenset(field for _, field, _ in _parse(template) if field)


def folder_of(destination: Destination) -> tuple[Path, int]:
    """Return the folder that pictures go to as far as it is the same for all, and how many levels under it they lie."""
    if destination.kind != "template":
        return Path(os.path.dirname(destination.text)), 0
    known, rest, varies = "", "", False
    for literal, field, _ in _parse(destination.text):
        known, rest = (known, rest + literal) if varies else (known + literal, rest)
        varies = varies or field is not None
    return Path(os.path.dirname(known)), rest.count("/")


def short(model: str) -> str:
    """Return what {model} stands for: the last part of a model's name, without a file's ending."""
    return model.rstrip("/").rpartition("/")[2].removesuffix(".safetensors")


def expand(template: str, naming: Naming, format: str) -> str:
    """Return the path that a template makes; no field's text leaves the part of the path that it stands in."""
    values: dict[str, object] = {
        **msgspec.structs.asdict(naming),
        "date": naming.when.strftime("%Y-%m-%d"),
        "time": naming.when.strftime("%H%M%S"),
        "format": format,
    }
    # A part of the path is a list of texts, each with whether it came from a field and so may be shortened.
    parts: list[list[tuple[str, bool]]] = [[]]
    for literal, field, length in _parse(template):
        first, *rest = literal.split("/")
        parts[-1].append((first, False))
        parts.extend([(text, False)] for text in rest)
        if field:
            value = values[field]
            parts[-1].append((safe("" if value is None else str(value), length), True))
    return "/".join(_fit(part) for part in parts)


def safe(text: str, length: int | None = None) -> str:
    """Return a text as a part of a file's name, at most `length` characters of it; `_` where nothing is left.

    Every run of blanks and of what some system forbids in names becomes one `-`; dots, blanks and dashes at the ends
    go, so that it is no hidden file, no option and no `..`.
    """
    kept = "".join(c if _allowed(c) else "-" for c in unicodedata.normalize("NFC", text))
    kept = re.sub("-{2,}", "-", kept).strip(".-")
    return _cut(kept, length if length is not None else len(kept)).strip(".-") or "_"


def _one(pictures: int, where: str) -> None:
    if pictures > 1:
        raise UsageError(f"{pictures} pictures do not go to {where}", "give a folder (with / at its end) or a template")


def _ending(path: str) -> str | None:
    """Return the ending of a path, `.{format}` too, if it is one of a picture; `x.tar.png` has one, `.png` has none."""
    ending = os.path.splitext(path)[1]
    return ending if ending.lower() in ENDINGS or ending == ".{format}" else None


def format_of(output: str | None) -> str | None:
    """Return the format that an output's ending says, None where it says none."""
    ending = _ending(output) if output else None
    return ENDINGS.get(ending.lower()) if ending else None


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _destination(
    kind: Literal["stdout", "exact", "template"], text: str, plan: OutputPlan, ending: str | None
) -> Destination:
    said = ENDINGS.get(ending.lower()) if ending else None
    if said and plan.format and said != plan.format:
        raise UsageError(f"{text!r} ends in {ending}, and --format says {plan.format}", "leave one of them out")
    format = said or plan.format or "png"
    check_format(format, plan.quality)
    return Destination(
        kind=kind,
        text=text,
        format=format,
        quality=plan.quality,
        overwrite=plan.overwrite or kind == "exact",
        signer=_signer(plan),
    )


def _signer(plan: OutputPlan) -> signing.Signer | None:
    if plan.sign is None:
        return None
    if plan.metadata == "none":
        # A signature says who signed, and that it was made by AI.
        raise UsageError(
            "--sign is metadata, and --metadata none wants none", "say --metadata minimal: it has no prompt"
        )
    return signing.signer(*plan.sign)


def _template(template: str, plan: OutputPlan, pictures: int) -> Destination:
    fields = fields_of(template)
    ending = _ending(template)
    if ending is None:
        raise UsageError(f"the template {template!r} has no picture's ending", "add .{format} at its end, or .png")
    if plan.overwrite and pictures > 1 and not fields & {"seed", "id", "index"}:
        # Overwriting is meant for what was there before the run, not for its own pictures.
        raise UsageError(
            f"with --overwrite the pictures may all get one name from {template!r}", "add {seed}, {id} or {index}"
        )
    destination = _destination("template", template, plan, ending)
    check_folder(folder_of(destination)[0])
    return destination


def _parse(template: str) -> list[tuple[str, str | None, int | None]]:
    """Return a template as texts, each with the field after it (None: none) and the length that it is cut to."""
    pieces = []
    try:
        for literal, field, length, conversion in string.Formatter().parse(template):
            if field is not None and field not in FIELDS:
                raise UsageError(
                    f"no field {{{field}}} in {template!r}{nearest(field, FIELDS)}", f"the fields: {', '.join(FIELDS)}"
                )
            if conversion or (length and not re.fullmatch("[1-9][0-9]{0,3}", length)):
                raise UsageError(f"the field {{{field}}} in {template!r} can be cut, and no more", "as in {prompt:40}")
            pieces.append((literal, field, int(length) if length else None))
    except ValueError as error:
        raise UsageError(
            f"the template {template!r} cannot be read: {error}", "{{ and }} are braces that stand for themselves"
        ) from error
    return pieces


def _fit(part: list[tuple[str, bool]]) -> str:
    """Join a part of a path, its longest fields shortened until it is a name that file systems take."""
    texts = [text for text, _ in part]
    while (over := _size("".join(texts)) - NAME_BYTES) > 0:
        longest = max((i for i, (_, field) in enumerate(part) if field), key=lambda i: _size(texts[i]), default=None)
        if longest is None or len(texts[longest]) <= 1:
            break  # The template's own text is too long: the file system says so.
        text = texts[longest]
        left = max(0, _size(text) - over)
        keep = len(text.encode()[:left].decode(errors="ignore"))
        texts[longest] = _cut(text, max(1, keep)).rstrip(".-") or "_"
    return "".join(texts)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _allowed(char: str) -> bool:
    # Of the invisible format characters (Cf) some turn a terminal's text round; the joiners and tags spell words and
    # emoji. Cs are lone surrogates, Z* blanks and line ends.
    category = unicodedata.category(char)
    if category == "Cf":
        return char in "\u200c\u200d" or "\U000e0020" <= char <= "\U000e007f"
    return category not in ("Cc", "Cs", "Zs", "Zl", "Zp") and char not in '<>:"/\\|?*'


def _cut(text: str, length: int) -> str:
    """Return the first `length` characters, or fewer so that no accent or emoji is cut in two."""
    end = length
    while 0 < end < len(text) and _joined(text, end):
        end -= 1
    return text[: end or length]


def _joined(text: str, at: int) -> bool:
    """Say whether one sign goes on at `at`: a mark or joiner follows, or a flag's second letter (UAX 29, in short)."""
    before, after = text[at - 1], text[at]
    if before == "\u200d" or unicodedata.category(after) in ("Mn", "Mc", "Me", "Cf"):
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff":  # The tone of a skin.
        return True
    if not _flag_letter(after):
        return False
    start = at
    while start and _flag_letter(text[start - 1]):
        start -= 1
    return (at - start) % 2 == 1


def _flag_letter(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


# Checks that need no picture


def _check_exact(path: Path) -> None:
    if os.path.isdir(path):
        raise CannotCreateOutput(f"{path} is a folder", f"write {path}/ for pictures inside it")
    check_folder(path.parent)
    if os.path.lexists(path) and not (path.is_symlink() or path.is_file()):
        raise CannotCreateOutput(f"{path} is there and is no file", "choose another output with -o")


def check_folder(folder: Path, hint: str = ELSEWHERE) -> None:
    """Refuse a folder that is not there and cannot be made, or is there and cannot be written. CannotCreateOutput."""
    nearest_there = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), Path())
    if not os.path.isdir(nearest_there):
        raise CannotCreateOutput(f"{nearest_there} is not a folder", hint)
    if not os.access(nearest_there, os.W_OK | os.X_OK):
        raise CannotCreateOutput(f"the folder {nearest_there} cannot be written", hint)


def is_empty(folder: Path, hint: str = ELSEWHERE) -> bool:
    """Whether a folder has nothing in it, or is not there. CannotCreateOutput for one that can't be listed."""
    try:
        return not folder.is_dir() or not any(folder.iterdir())
    except OSError as error:
        raise CannotCreateOutput(f"the folder {folder} cannot be listed: {error.strerror}", hint) from error


def of_a_run_before(told: Path, names: Iterable[object], kind: re.Pattern[str]) -> dict[Path, int]:
    """Return the files beside the file `told`, which names them, and when each was changed, in nanoseconds.

    Only of names of that `kind`, which lead nowhere else; and none that was changed after it was told of: somebody's own.
    """
    found: dict[Path, int] = {}
    with suppress(OSError):
        last = told.stat().st_mtime_ns
        for name in names:
            if isinstance(name, str) and kind.fullmatch(name):
                with suppress(OSError):
                    changed = (told.parent / name).stat().st_mtime_ns
                    found |= {told.parent / name: changed} if changed <= last else {}
    return found


def remove(before: Mapping[Path, int]) -> None:
    """Remove files that are as they were at those times; one that can't be removed stays."""
    for path, changed in before.items():
        with suppress(OSError):
            if path.stat().st_mtime_ns == changed:
                path.unlink()


# Files


def save(destination: Destination, data: bytes, naming: Naming, hint: str = ELSEWHERE) -> Path | None:
    """Write a picture's file to where it goes; return its path, None for stdout.

    Raises CannotCreateOutput and OutputFailed; and ClosedPipe.
    """
    if destination.kind == "stdout":
        _to_stdout(data)
        return None
    return write(Path(path_of(destination, naming)), data, overwrite=destination.overwrite, hint=hint)


def path_of(destination: Destination, naming: Naming) -> str:
    """Return the path that a picture gets if it is not taken."""
    if destination.kind == "template":
        return expand(destination.text, naming, destination.format)
    return destination.text


def write(path: Path, data: bytes, *, overwrite: bool, hint: str = ELSEWHERE) -> Path:
    """Write a file whole or not at all, and return its path: `path`, or with -2, -3 ... if that name is taken.

    Missing folders are made. With `overwrite` the path is replaced, and stays as it was if that fails. A process that
    is killed leaves at most a hidden `.sdcli-*.part`.
    """
    temporary = path.parent / f".sdcli-{secrets.token_hex(8)}.part"
    try:
        make_folder(path.parent)
        try:
            # "x" makes it with the mode that the umask leaves, and never through somebody's link.
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                temporary.replace(path)
            else:
                path = _place(temporary, path)
        finally:
            with suppress(OSError):  # It is not there any more, or what went wrong before is said instead.
                temporary.unlink()
        sync(path.parent)
    except OSError as error:
        raise _failure(error, path, hint) from error
    except UnicodeEncodeError as error:
        raise CannotCreateOutput(f"this system's names cannot spell {path}", "set PYTHONUTF8=1") from error
    return path


# What a file system says that knows no hard links (FAT, some FUSE and network ones).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# What happens to a write that was allowed to begin.
_MIDWAY = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE}


def _place(temporary: Path, path: Path) -> Path:
    """Give a whole file its name, or the first free one; of two processes that want one name each gets its own."""
    for name in names(path):
        try:
            os.link(temporary, name)
            return name
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            break
    return _place_without_links(temporary, path)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder: hidden files that nobody has touched for an hour."""
    for left in folder.glob(".sdcli-*.part"):
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - 3600:
                left.unlink()


def set_aside(path: Path) -> None:
    """Give a file the next free name (-2, -3 ...)."""
    aside = next(name for name in itertools.islice(names(path), 1, None) if not os.path.lexists(name))
    path.rename(aside)
    sync(path.parent)


def names(path: Path) -> Iterator[Path]:
    """Yield the names that a file may get, without end: `path`, and then with -2, -3 ..."""
    yield path
    for count in itertools.count(2):
        yield path.with_name(f"{path.stem}-{count}{path.suffix}")


def _place_without_links(temporary: Path, path: Path) -> Path:
    # An empty file that claims the name would be seen, and would stay after a kill. So the folder is locked, which ends
    # with the process: other sdcli processes wait, and other programs do not take such names.
    import fcntl

    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        name = next(name for name in names(path) if not os.path.lexists(name))
        temporary.rename(name)
        return name
    finally:
        os.close(folder)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, durably."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)


def sync(folder: Path) -> None:
    """Make names in a folder outlast a power cut, where the system can."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # A folder can be writable and not readable.
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _to_stdout(data: bytes) -> None:
    if sys.stdout is None:
        raise CannotCreateOutput("stdout is closed", "give a path to -o")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ClosedPipe from None
    except OSError as error:
        raise _failure(error, Path("stdout")) from error


def _failure(error: OSError, path: Path, hint: str = ELSEWHERE) -> SdcliError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputFailed(f"{path} was not written: {reason}", f"free some space, or {hint}")
    if error.errno in _MIDWAY:
        return OutputFailed(f"{path} was not written: {reason}", hint)
    return CannotCreateOutput(f"{path} cannot be created: {reason}", hint)
