"""What of the hub is kept on this machine, in huggingface_hub's cache: listed, checked, deleted."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sdcli.errors import BadInput, ModelUnavailable, OutputFailed, nearest
from sdcli.models.hub import differs, of_cache
from sdcli.models.spec import Model, Weights
from sdcli.models.weights import read_json

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, HFCacheInfo

INDEX = "model_index.json"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A revision of a model in diffusers' layout. `name` is what `--model` takes; `size` is in bytes; `used` is when one of
    its files was read last, in seconds since 1970 (of the repository: revisions share files); `complete` says whether all is
    there that drawing needs, None where it can't be drawn with, which `why` then tells. Of a repository that is broken
    there is no commit: all of it is one, and not complete."""

    name: str
    repo: str
    commit: str | None
    refs: tuple[str, ...]
    path: Path
    size: int
    used: float
    family: str | None
    complete: bool | None
    why: str | None


def kept() -> tuple[list[Kept], list[str]]:
    """Return the models in diffusers' layout in the hub's cache, those used last first, and what in it is broken."""
    cache = _scan()
    if cache is None:
        return [], []
    found = [
        _kept(repo, revision)
        for repo in cache.repos
        if repo.repo_type == "model"
        for revision in repo.revisions
        if (revision.snapshot_path / INDEX).exists()
    ]
    scanned = {r.repo_path.name for r in cache.repos}
    found += [_kept_broken(f) for f in sorted(_folder().glob("models--*")) if f.name not in scanned and _is_ours(f)]
    return sorted(found, key=lambda k: (-k.used, k.name)), [str(w) for w in cache.warnings]


def _folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _is_ours(folder: Path) -> bool:
    """Whether a broken repository's folder may be a model in diffusers' layout: nothing that is left of it says otherwise."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    snapshots = [s for s in (folder / "snapshots").glob("*") if s.is_dir()]
    return not snapshots or any(os.path.lexists(s / INDEX) for s in snapshots)


def _kept_broken(folder: Path) -> Kept:
    name = folder.name.removeprefix("models--").replace("--", "/")
    return Kept(
        name=name, repo=name, commit=None, refs=(), path=folder, size=_size(folder), used=folder.stat().st_mtime,
        family=None, complete=False, why=None,
    )  # fmt: skip


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files; of its links only their own."""
    return sum(f.lstat().st_size for f in folder.rglob("*") if f.is_symlink() or not f.is_dir())


def _broken(cache: HFCacheInfo | None, repo: str) -> Path | None:
    """Return the folder of a repository that huggingface_hub makes nothing of, None where there is none or it is a link."""
    folder = _folder() / f"models--{repo.replace('/', '--')}"
    known = cache is not None and any(r.repo_type == "model" and r.repo_id == repo for r in cache.repos)
    try:
        return folder if not known and not folder.is_symlink() and folder.is_dir() else None
    except OSError:  # a name that no system takes
        return None


def _kept(repo: CachedRepoInfo, revision: CachedRevisionInfo) -> Kept:
    refs = tuple(sorted(revision.refs))
    name = repo.repo_id if "main" in refs else f"{repo.repo_id}@{refs[0] if refs else revision.commit_hash}"
    complete, why = None, None
    try:
        # Not by its name, which may be a folder's here as well.
        model = of_cache(Model(name=name, repo=repo.repo_id, revision=revision.commit_hash), checker=False)
        complete = model.path is not None
    except BadInput as error:
        why = error.message
    return Kept(
        name=name, repo=repo.repo_id, commit=revision.commit_hash, refs=refs, path=revision.snapshot_path,
        size=revision.size_on_disk, used=repo.last_accessed, family=_class_in(revision.snapshot_path),
        complete=complete, why=why,
    )  # fmt: skip


def _class_in(folder: Path) -> str | None:
    try:
        name = read_json(folder / INDEX, dict[str, Any]).get("_class_name")
    except BadInput:
        return None
    return name if isinstance(name, str) else None


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """What was deleted, or would be: revisions, their names, and the bytes that are freed."""

    commits: tuple[str, ...]
    refs: tuple[str, ...]
    freed: int


def remove(wanted: Weights, *, dry_run: bool) -> Removed:
    """Delete what the hub's cache has of a repository, or of the one revision that is named; never anything else.

    Of a repository that is broken, so that huggingface_hub makes nothing of it, the whole folder goes. Raises
    ModelUnavailable, BadInput, OutputFailed.
    """
    assert wanted.repo is not None
    if wanted.revision is None and (folder := _broken(_scan(), wanted.repo)) is not None:
        return _remove_broken(folder, dry_run=dry_run)
    cache, repo, revisions = _named(wanted)
    commits = [r.commit_hash for r in revisions]
    # Of this repository alone: a renamed one has the same commits.
    plan = dataclasses.replace(cache, repos=frozenset([repo])).delete_revisions(*commits)
    # A snapshot's links may lead anywhere, to files that somebody put there in place of a download.
    plan = dataclasses.replace(plan, blobs=frozenset(b for b in plan.blobs if repo.repo_path in b.parents))
    if not dry_run:
        plan.execute()
        left = [path for path in (*plan.repos, *plan.snapshots, *plan.blobs) if path.exists()]
        if left:
            raise OutputFailed(f"{left[0]} could not be deleted", "check who may write there")
    refs = sorted(ref for r in revisions for ref in r.refs)
    return Removed(commits=tuple(commits), refs=tuple(refs), freed=plan.expected_freed_size)


def _remove_broken(folder: Path, *, dry_run: bool) -> Removed:
    commits = sorted(s.name for s in (folder / "snapshots").glob("*"))
    refs = sorted(r.relative_to(folder / "refs").as_posix() for r in (folder / "refs").rglob("*") if r.is_file())
    removed = Removed(commits=tuple(commits), refs=tuple(refs), freed=_size(folder))
    if not dry_run:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise OutputFailed(
                f"{folder} could not be deleted: {error.strerror}", "check who may write there"
            ) from error
    return removed


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was read again: whether its content is what the hub says it is, None where nothing says what that is."""

    name: str
    path: Path
    size: int
    same: bool | None


def verify(wanted: Weights) -> Iterator[Verified]:
    """Read the files that the hub's cache has of a repository, or of the one revision that is named, all of them anew."""
    _, _, revisions = _named(wanted)
    seen: set[Path] = set()
    for revision in revisions:
        for file in sorted(revision.files, key=lambda f: f.file_path):
            if file.blob_path in seen:
                continue
            seen.add(file.blob_path)
            try:
                different = differs(file.file_path)
            except OSError as error:
                raise BadInput(f"{file.file_path} can't be read: {error.strerror}", "check its permissions") from error
            yield Verified(
                name=file.file_path.relative_to(revision.snapshot_path).as_posix(), path=file.file_path,
                size=file.size_on_disk, same=None if different is None else not different,
            )  # fmt: skip


def licence_of(folder: Path) -> str | None:
    """Return the licence that a model's card names, None where there is no card or it names none."""
    from huggingface_hub import metadata_load

    try:
        card = metadata_load(folder / "README.md") or {}
    except Exception:  # YAML's own errors, ValueError, UnicodeDecodeError: somebody else's text
        return None
    name = card.get("license_name") if card.get("license") == "other" else card.get("license")
    return name if isinstance(name, str) else None


def _scan() -> HFCacheInfo | None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir()
    except CacheNotFound:
        return None
    except (OSError, ValueError) as error:
        raise BadInput(f"the hub's cache can't be read: {error}", "check HF_HOME") from error


def _named(wanted: Weights) -> tuple[HFCacheInfo, CachedRepoInfo, Sequence[CachedRevisionInfo]]:
    """Return the cached repository that is named, and those of its revisions that are."""
    assert wanted.repo is not None
    cache = _scan()
    repos = {r.repo_id: r for r in cache.repos if r.repo_type == "model"} if cache is not None else {}
    repo = repos.get(wanted.repo)
    if _broken(cache, wanted.repo) is not None:
        raise BadInput(
            f"what the hub's cache has of {wanted.repo} is broken",
            f"`sdcli models rm {wanted.repo}` deletes all of it, and lets it be downloaded again",
        )
    if cache is None or repo is None:
        raise ModelUnavailable(f"{wanted.repo} is not in the hub's cache{nearest(wanted.repo, repos)}", _LIST)
    named = wanted.revision
    revisions = [r for r in repo.revisions if named is None or named in r.refs or _begins(r.commit_hash, named)]
    if not revisions:
        raise ModelUnavailable(f"the hub's cache has no revision {named} of {wanted.repo}", _LIST)
    return cache, repo, sorted(revisions, key=lambda r: r.commit_hash)


_LIST = "`sdcli models list --here` lists what it has"


def _begins(commit: str, named: str) -> bool:
    return len(named) >= 7 and commit.startswith(named)
