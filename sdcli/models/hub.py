"""The hub and its cache: what a model needs is fetched, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sdcli.errors import BadInput, ModelGated, ModelUnavailable, OutputFailed
from sdcli.models.cache import cached
from sdcli.models.files import of_file
from sdcli.models.folders import no_checker, of_folder, parts_of
from sdcli.models.known import AT_ONCE, DEFAULT
from sdcli.models.spec import Incomplete, Model, Weights, with_defaults
from sdcli.models.vae import fitted, vae_of_folder
from sdcli.models.weights import by_variant, common_variant

# Seconds until a hub that does not answer is given up.
PATIENCE = 5.0
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
        raise BadInput(error.message, f"`hf cache rm model/{model.repo}` lets it be downloaded again") from error


def fetch(model: Model, *, safety_checker: bool, say: Say) -> Model:
    """Return the model with its files here, downloading them where they are not.

    One precision is fetched, safetensors only. `say` is told name and size before anything is downloaded. The commit
    that the revision means is looked up once and pinned. Raises ModelUnavailable, ModelGated, BadInput.
    """
    if model.path is None:
        folder = _download(model, lambda names: wanted_files(names, model, safety_checker=safety_checker), say)
        model = with_defaults(_of_snapshot(model, folder, safety_checker))
    elif model.configs is None:
        places = f"looked in {model.path.with_suffix('')}/, {model.path.parent}/ and the hub's cache"
        default = Weights(name=f"the configuration of {model.name} ({places})", repo=DEFAULT)
        _download(default, lambda names: _texts(names, ()), say)
        model = of_file(model, safety_checker)
    if model.vae is not None and model.vae.path is None:
        vae = model.vae
        folder = _download(vae, lambda names: _wanted_vae(names, vae), say)
        model = replace(model, vae=vae_of_folder(replace(vae, path=folder, commit=folder.name)))
    return fitted(model)


def _download(wanted: Weights, choose: Callable[[Sequence[str]], list[str]], say: Say) -> Path:
    """Return the folder of a repository's snapshot with the files that `choose` picks from its list."""
    from huggingface_hub import HfApi, snapshot_download

    repo = wanted.repo
    assert repo is not None
    with _hub_errors(wanted):
        info = HfApi().model_info(repo, revision=wanted.revision, files_metadata=True, timeout=PATIENCE)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
    files = choose(list(sizes))
    missing = sum(sizes[f] for f in files if cached(repo, info.sha, f) is None)
    say(f"downloading {repo} ({_bytes(missing)}) into the hub's cache")
    with _hub_errors(wanted):
        # By its name and not by the commit, so that the cache learns what the name means: the next run asks nobody.
        return Path(snapshot_download(repo, revision=wanted.revision, allow_patterns=files))


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@contextmanager
def _hub_errors(wanted: Weights) -> Iterator[None]:
    """Turn what huggingface_hub raises into what sdcli raises."""
    from huggingface_hub import errors

    # httpx's or httpx2's: whichever this huggingface_hub is built on.
    http_error = errors.HTTPError  # type: ignore[attr-defined]
    name, repo = wanted.name, wanted.repo
    kept = f"run it again: the files that are whole are kept; {AT_ONCE}"
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
        hint = f"unset HF_HUB_OFFLINE to download it; {AT_ONCE}"
        raise ModelUnavailable(f"{name} is not here in whole, and HF_HUB_OFFLINE is set", hint) from error
    except (
        http_error,
        ConnectionError,
        TimeoutError,
        errors.LocalEntryNotFoundError,
        errors.XetDownloadError,
    ) as error:
        raise ModelUnavailable(f"{name} is not here in whole, and the hub can't be reached", kept) from error
    except OSError as error:
        if error.errno is None:  # huggingface_hub's own: what came is not what was promised
            raise ModelUnavailable(f"{name} was not downloaded: {' '.join(str(error).split())[:200]}", kept) from error
        hint = f"free some disk, or set HF_HOME to a folder with room; {kept}"
        raise OutputFailed(f"{name} could not be stored: {error.strerror}", hint) from error
    except (ValueError, TypeError, KeyError) as error:
        hint = f"check HF_ENDPOINT and the proxy; {AT_ONCE}"
        raise ModelUnavailable(f"{name} is not here, and what answered is no hub", hint) from error


def wanted_files(names: Sequence[str], model: Model, *, safety_checker: bool) -> list[str]:
    """Return which of a repository's files will be loaded: configurations, and one precision of each component.

    Half precision (`*.fp16.safetensors`) is taken where every component has it: it is what a GPU runs.
    """
    if "model_index.json" not in names:
        raise BadInput(f"{model.repo} is no model in diffusers' layout: it has no model_index.json", AT_ONCE)
    if safety_checker and not any(n.startswith("safety_checker/") for n in names):
        raise no_checker(model)
    parts = {p: [n for n in names if n.startswith(p + "/")] for p in parts_of(model, safety_checker)}
    variant = _hub_variant(parts, str(model.repo))
    more = ("safety_checker", "feature_extractor") if safety_checker else ()
    return _texts(names, more) + [n for found in parts.values() for n in by_variant(found)[variant]]


def _texts(names: Iterable[str], more: Sequence[str]) -> list[str]:
    """Return the configurations and vocabularies among a repository's files."""
    folders = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", *more)
    return [
        n for n in names if n == "model_index.json" or (n.endswith((".json", ".txt")) and n.split("/")[0] in folders)
    ]


def _wanted_vae(names: Sequence[str], vae: Weights) -> list[str]:
    roots = [n for n in names if "/" not in n]
    if "config.json" not in roots:
        raise BadInput(f"{vae.repo} is no autoencoder: it has no config.json", "name the hub id of one")
    return ["config.json", *by_variant(roots)[_hub_variant({"": roots}, str(vae.repo))]]


def _hub_variant(parts: Mapping[str, Sequence[str]], repo: str) -> str | None:
    try:
        return common_variant(parts, "fp16", repo)
    except Incomplete as error:
        raise BadInput(error.message, AT_ONCE) from None
