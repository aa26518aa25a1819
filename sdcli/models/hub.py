"""The hub and its cache: what a model needs is fetched, and nothing else."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from sdcli.errors import BadInput, ModelGated, ModelUnavailable, OutputFailed
from sdcli.models.cache import cached
from sdcli.models.files import of_file
from sdcli.models.folders import no_checker, of_folder, of_index, parts_of, texts_of
from sdcli.models.known import AT_ONCE
from sdcli.models.spec import Incomplete, Model, Weights, with_defaults
from sdcli.models.vae import fitted, vae_of_folder
from sdcli.models.weights import by_variant, common_variant, digest, named_sha256

# Seconds until a hub that does not answer is given up, and that a busy one may ask to wait for an answer.
PATIENCE = 5.0
LONGEST_WAIT = 60
# Seconds after which nobody still writes to what has not grown: a connection times out in ten.
STALE = 3600
Say = Callable[[str], None]


def of_cache(model: Model, checker: bool) -> Model:
    """Fill in what the hub's cache knows; a model that is there in whole needs no connection."""
    assert model.repo is not None
    folder = cached(model.repo, model.revision, "model_index.json")
    if folder is None:
        return model
    try:
        return _of_snapshot(model, folder, checker)
    except Incomplete:
        # A download that was interrupted, or that another program made: `fetch` goes on with it.
        return model


def _of_snapshot(model: Model, folder: Path, checker: bool) -> Model:
    """Fill in what a folder in the hub's cache says; what is bad in it can be downloaded again."""
    try:
        return of_folder(replace(model, path=folder, commit=folder.name), checker)
    except Incomplete:
        raise
    except BadInput as error:
        raise BadInput(error.message, f"`sdcli models rm {model.repo}` lets it be downloaded again") from error


def fetch(model: Model, *, safety_checker: bool, say: Say) -> Model:
    """Return the model with its files here, downloading them where they are not.

    One precision is fetched, safetensors only. `say` is told name and size before anything is downloaded. The commit
    that the revision means is looked up once and pinned. Raises ModelUnavailable, ModelGated, BadInput.
    """
    if model.path is None:
        wanted = model
        folder = download(wanted, lambda names: _wanted(names, wanted, safety_checker), say)
        model = with_defaults(_of_snapshot(model, folder, safety_checker))
    elif model.configs is None:
        wanted, config = model, model.named_config
        assert config is not None
        folder = download(config, lambda names: _wanted_config(names, wanted, config), say)
        model = with_defaults(of_file(replace(model, named_config=replace(config, path=folder)), safety_checker))
    if model.vae is not None and model.vae.path is None:
        vae = model.vae
        folder = download(vae, lambda names: _wanted_vae(names, vae), say)
        model = replace(model, vae=vae_of_folder(replace(vae, path=folder, commit=folder.name)))
    return fitted(model)


def download(wanted: Weights, choose: Callable[[Sequence[str]], list[str]], say: Say) -> Path:
    """Return the folder of a repository's snapshot with the files that `choose` picks from its list."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    repo = wanted.repo
    assert repo is not None
    with _listening(wanted, say) as heard, _hub_errors(wanted):
        info = _patiently(
            lambda: HfApi().model_info(repo, revision=wanted.revision, files_metadata=True, timeout=PATIENCE)
        )
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
        files = choose(list(sizes))
        missing = [f for f in files if cached(repo, info.sha, f) is None]
        size = sum(sizes[f] for f in missing)
        _check_room(wanted, size)
        say(f"downloading {repo} ({in_bytes(size)}) into the hub's cache")
        # One by its name and not by the commit, so that the cache learns what the name means: the next run asks nobody.
        one = min(files, key=lambda f: f.count("/"))
        first = Path(hf_hub_download(repo, one, revision=wanted.revision))
        snapshot = first.parents[one.count("/")]
        commit = snapshot.name
        _sweep(snapshot.parents[1] / "blobs")
        # The rest by the commit, which may not change meanwhile.
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=[glob.escape(f) for f in files]))
        if not all((folder / f).exists() for f in files):
            said = f"answered HTTP {heard.status}" if heard.status else "can't be reached"
            raise ModelUnavailable(f"{wanted.name} is not here in whole, and the hub {said}", kept_hint())
        for file in missing:
            _check_content(wanted, folder / file)
        return folder


def kept_hint() -> str:
    return f"run it again: the files that are whole are kept; {AT_ONCE}"


def _sweep(blobs: Path) -> None:
    """Delete what downloads that were killed have left: huggingface_hub never looks at it again, and it may be large."""
    for part in blobs.glob("*.incomplete"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > STALE:
                part.unlink()


def _check_room(wanted: Weights, size: int) -> None:
    """Refuse what the disk has no room for; OutputFailed."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    place = next((p for p in (folder, *folder.parents) if p.exists()), None)
    if place is None:
        return
    free = shutil.disk_usage(place).free
    if size > free:
        raise OutputFailed(
            f"{wanted.name} takes {in_bytes(size)}, and {in_bytes(free)} are free in {folder}",
            f"`sdcli models rm` frees some, or set HF_HOME to a folder with room; {AT_ONCE}",
        )


def _check_content(wanted: Weights, file: Path) -> None:
    """Take a file that has just come away where its content is not what its name in the cache says."""
    blob = file.resolve()
    if differs(file):
        file.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise ModelUnavailable(
            f"{wanted.name} was not downloaded: what came for {file.name} is not what the hub has (another hash)",
            f"check HF_ENDPOINT and the proxy; {kept_hint()}",
        )


def differs(file: Path) -> bool | None:
    """Return whether a file of the hub's cache has another content than its blob is named after, None where none can tell.

    The names are the hub's: the SHA-256 of large files, and of the others what Git calls them; some mirrors' are the SHA-1.
    """
    if named := named_sha256(file):
        return digest(file) != named
    target = Path(os.readlink(file)) if file.is_symlink() else file
    if target.parent.name != "blobs" or not re.fullmatch("[0-9a-f]{40}", target.name):
        return None
    content = file.read_bytes()
    named_so = (b"blob %d\0" % len(content) + content, content)
    return all(hashlib.sha1(text, usedforsecurity=False).hexdigest() != target.name for text in named_so)


class _Heard:
    """What the hub has answered: the last refusal, the seconds that it asked to wait by address, and what has begun to come."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.waits: dict[str, int] = {}
        self.begun: set[str] = set()


@contextmanager
def _listening(wanted: Weights, say: Say) -> Iterator[_Heard]:
    """Tell what huggingface_hub is waiting for, in place of its own log; give up where it would be for long."""
    import logging

    from huggingface_hub import get_session
    from huggingface_hub.utils import logging as hub_logging

    heard = _Heard()

    def listen(response: Any) -> None:
        status, address = response.status_code, str(response.url).partition("?")[0]
        name = address.rpartition("/")[2]
        if response.request.method == "GET" and status in (200, 206):
            if address in heard.begun:
                say(f"the connection broke off: {name} is fetched {'from where it was' if status == 206 else 'again'}")
            heard.begun.add(address)
        if status < 429 or status == 431:
            return
        heard.status = status
        wait = _asked_wait(response.headers)
        if wait is None:
            return
        heard.waits[address] = heard.waits.get(address, 0) + wait
        if heard.waits[address] > LONGEST_WAIT:
            raise ModelUnavailable(
                f"{wanted.name} is not here in whole, and the hub asks to wait {wait} s (HTTP {status})",
                f"run it again then: the files that are whole are kept; {AT_ONCE}",
            )
        say(f"the hub asks to wait {wait} s (HTTP {status})")

    listeners = get_session().event_hooks["response"]
    before = hub_logging.get_verbosity()
    if before == logging.WARNING:
        hub_logging.set_verbosity(logging.ERROR)
    listeners.append(listen)
    try:
        yield heard
    finally:
        listeners.remove(listen)
        hub_logging.set_verbosity(before)


def _asked_wait(headers: Mapping[str, str]) -> int | None:
    """Return the seconds that an answer asks to wait (Retry-After, or the hub's own RateLimit), None for none."""
    after = headers.get("Retry-After", "").strip()
    if not after.isdecimal():
        limit = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
        after = limit[1] if limit else ""
    return int(after) if after else None


def _patiently(ask: Callable[[], Any]) -> Any:
    """Return what the hub answers; one that asks to wait is waited for (see `_listening`: not for long)."""
    from huggingface_hub.errors import HfHubHTTPError

    while True:
        try:
            return ask()
        except HfHubHTTPError as error:
            wait = _asked_wait(error.response.headers)
            if error.response.status_code != 429 or wait is None:
                raise
            # Each time the listener counts at least one.
            time.sleep(max(wait, 1))


# Whether this process was made offline, and what the environment said of it before.
_made_offline = False
_said_before: str | None = None


def offline(wanted: bool) -> None:
    """Make no connection from here on; with False, only where the environment says so (HF_HUB_OFFLINE).

    To be called before anything else of the hub: it also keeps huggingface_hub from telling the hub about this machine.
    """
    global _made_offline, _said_before
    # Read when it is imported. Without this it asks the hub for a list of programs, to tell it which of them runs it.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if wanted == _made_offline:
        return
    _made_offline = wanted
    if wanted:
        _said_before = os.environ.get("HF_HUB_OFFLINE")
        os.environ["HF_HUB_OFFLINE"] = "1"
    elif _said_before is None:
        os.environ.pop("HF_HUB_OFFLINE", None)
    else:
        os.environ["HF_HUB_OFFLINE"] = _said_before
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # It has read the environment.
        said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
        constants.HF_HUB_OFFLINE = said.upper() in ("1", "ON", "YES", "TRUE")  # type: ignore[attr-defined]


def in_bytes(count: int) -> str:
    """Return a size for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@contextmanager
def _hub_errors(wanted: Weights) -> Iterator[None]:
    """Turn what huggingface_hub raises into what sdcli raises."""
    from huggingface_hub import errors

    # httpx's or httpx2's: whichever this huggingface_hub is built on.
    http_error = errors.HTTPError  # type: ignore[attr-defined]
    name, repo = wanted.name, wanted.repo
    kept = kept_hint()
    try:
        yield
    except errors.GatedRepoError as error:
        hint = f"ask for access at https://huggingface.co/{repo}, then run `hf auth login`; {AT_ONCE}"
        raise ModelGated(f"{name} is gated: its owner gives access person by person", hint) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        what = f"revision {wanted.revision} of {repo}" if isinstance(error, errors.RevisionNotFoundError) else repo
        hint = f"check the name; for a private one run `hf auth login`; {AT_ONCE}"
        raise ModelUnavailable(f"the hub has no {what}, or it is private", hint) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ModelGated(
                f"the hub does not permit {name} (HTTP {status})", f"run `hf auth login`; {AT_ONCE}"
            ) from error
        raise ModelUnavailable(
            f"{name} is not here, and the hub answered HTTP {status}", f"try later; {kept}"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        hint = f"without --offline or HF_HUB_OFFLINE it is downloaded; {AT_ONCE}"
        raise ModelUnavailable(f"{name} is not here in whole, and this is offline", hint) from error
    except (
        http_error,
        ConnectionError,
        TimeoutError,
        errors.LocalEntryNotFoundError,
        errors.XetDownloadError,
    ) as error:
        answer = getattr(error.__cause__, "response", None)
        said = f"answered HTTP {answer.status_code}" if answer is not None else "can't be reached"
        raise ModelUnavailable(f"{name} is not here in whole, and the hub {said}", kept) from error
    except OSError as error:
        if error.errno is None:  # huggingface_hub's own: what came is not what was promised
            said = " ".join(str(error).split())[:200]
            what = "a file came with another size than the hub has it" if said.startswith("Consistency check") else said
            raise ModelUnavailable(f"{name} was not downloaded: {what}", kept) from error
        hint = f"free some disk, or set HF_HOME to a folder with room; {kept}"
        raise OutputFailed(f"{name} could not be stored: {error.strerror}", hint) from error
    except (ValueError, TypeError, KeyError) as error:
        hint = f"check HF_ENDPOINT and the proxy; {AT_ONCE}"
        raise ModelUnavailable(f"{name} is not here, and what answered is no hub", hint) from error


def _wanted(names: Sequence[str], model: Model, checker: bool) -> list[str]:
    """Return which of a repository's files will be loaded."""
    return wanted_files(names, _indexed(names, model, checker), safety_checker=checker)


def _indexed(names: Sequence[str], model: Model, checker: bool = False) -> Model:
    """Return a model with what the model_index.json of its repository says."""
    from huggingface_hub import hf_hub_download

    assert model.repo is not None
    if "model_index.json" not in names:
        raise BadInput(f"{model.repo} is no model in diffusers' layout: it has no model_index.json", AT_ONCE)
    with _hub_errors(model):
        index = Path(hf_hub_download(model.repo, "model_index.json", revision=model.revision))
    try:
        return of_index(model, index.parent, checker)
    except BadInput as error:  # People know it by its name, not by its place in the cache.
        raise BadInput(error.message.replace(str(index.parent), model.repo or ""), error.hint) from error


def _wanted_config(names: Sequence[str], model: Model, config: Weights) -> list[str]:
    """Return which of a repository's files a single file needs: configurations, and weights of what it has not in it."""
    asked = Model(name=config.name, repo=config.repo, revision=config.revision, vae=model.vae)
    index = _indexed(names, asked)
    if not model.alone:
        return _texts(names, texts_of(index, checker=False))
    assert index.family is not None
    rest = {k: v for k, v in index.components.items() if k != index.family.denoiser}
    files = wanted_files(names, replace(index, components=rest), safety_checker=False)
    return [*files, *(n for n in names if n == f"{index.family.denoiser}/config.json")]


def wanted_files(names: Sequence[str], model: Model, *, safety_checker: bool) -> list[str]:
    """Return which of a repository's files will be loaded: configurations, and one precision of each component.

    Half precision (`*.fp16.safetensors`, and before it `*.bf16.safetensors` for families that want it) is taken where every
    component has it: it is what a GPU runs.
    """
    if safety_checker and not any(n.startswith("safety_checker/") for n in names):
        raise no_checker(model)
    parts = {p: [n for n in names if n.startswith(p + "/")] for p in parts_of(model, safety_checker)}
    variant = _hub_variant(parts, str(model.repo), model.family.variants if model.family else ("fp16",))
    return _texts(names, texts_of(model, safety_checker)) + [
        n for found in parts.values() for n in by_variant(found)[variant]
    ]


def _texts(names: Iterable[str], folders: Sequence[str]) -> list[str]:
    """Return the configurations and vocabularies among a repository's files; those of weights in pieces as well."""
    kinds = (".json", ".txt", "spiece.model", "tokenizer.model", ".jinja")
    return [n for n in names if n == "model_index.json" or (n.endswith(kinds) and n.split("/")[0] in folders)]


def _wanted_vae(names: Sequence[str], vae: Weights) -> list[str]:
    roots = [n for n in names if "/" not in n]
    if "config.json" not in roots:
        raise BadInput(f"{vae.repo} is no autoencoder: it has no config.json", "name the hub id of one")
    return ["config.json", *by_variant(roots)[_hub_variant({"": roots}, str(vae.repo), ("fp16",))]]


def _hub_variant(parts: Mapping[str, Sequence[str]], repo: str, prefer: Sequence[str]) -> str | None:
    try:
        return common_variant(parts, prefer, repo)
    except Incomplete as error:
        raise BadInput(error.message, AT_ONCE) from None
