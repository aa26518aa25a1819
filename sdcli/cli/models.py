"""`sdcli models`: which models there are, here and known, and the fetching, checking and deleting of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdcli.cli import completing
from sdcli.cli.main import app, leaving_at_once, screen
from sdcli.cli.results import Results
from sdcli.cli.screen import printable
from sdcli.cli.shared import Json, Offline, Quiet, Verbose
from sdcli.errors import ModelUnavailable, OutputFailed, SdcliError, SomeFailed, UsageError

if TYPE_CHECKING:
    from sdcli.models import KnownModel, Model
    from sdcli.models.keeping import Kept

commands = typer.Typer(
    help="""List, fetch, look at, check and delete models; give them names of your own.

What comes from the hub lies in huggingface_hub's cache (HF_HOME), which other programs share. NAME is what --model
takes: demo, an alias, a hub id (ORG/NAME or ORG/NAME@REVISION), a folder or a .safetensors file.

Examples:

  sdcli models list

  sdcli models pull sdxl-turbo

  sdcli models info sdxl-turbo

  sdcli models alias mine someone/their-model@v2

  sdcli models rm someone/their-model --dry-run
""",
)
app.add_typer(commands, name="models")

Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="What --model takes.", autocompletion=completing.models),
]
# The keys of every object that is printed; those that do not apply are null.
KEYS = (
    "name", "kind", "target", "repo", "commit", "commits", "refs", "path", "family", "licence", "here", "complete", "size",
    "used", "download", "defaults", "scheduler", "components", "parameters", "needs", "fetched", "freed", "files",
)  # fmt: skip


def _begin(as_json: bool, quiet: bool, verbose: int, offline: bool = False) -> Results:
    from sdcli.models import hub

    screen.verbosity = -1 if quiet else verbose
    screen.as_json = as_json
    if not screen.draws:
        # Read when huggingface_hub is imported, which looking a model up does.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    hub.offline(offline)
    return Results(as_json=as_json)


def _event(**values: Any) -> dict[str, Any]:
    return {"schema": 1, "event": "model", **{key: values.pop(key, None) for key in KEYS}, **values}


@commands.command(
    name="list",
    help="""List the models that are here, and those that have a short name.

Of the hub's cache it lists what is in diffusers' layout: size on disk, when it was used last, whether it is whole.

Examples:

  sdcli models list

  sdcli models list --here

  sdcli models list --json | jq -r 'select(.complete == false).name'
""",
)
def list_(
    here: Annotated[bool, typer.Option("--here/--no-here", show_default=False, help="Only what is here.")] = False,
    known: Annotated[
        bool, typer.Option("--known/--no-known", show_default=False, help="Only what has a short name.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    from sdcli.models import aliases, keeping
    from sdcli.models.known import ALIASES, DEMO, KNOWN

    results = _begin(as_json, quiet, verbose)
    both = here == known
    found, broken = keeping.kept()
    for text in broken:
        screen.say(f"in the hub's cache: {text}", level=1)
    whole = {k.repo for k in found if k.complete}
    events: list[dict[str, Any]] = []
    if here or both:
        events.append(_of_known(ALIASES[DEMO]) | _of_demo())
        events += [_of_kept(k) for k in found]
        events += [_event(name=name, kind="alias", target=target) for name, target in aliases.read().items()]
    if known or both:
        events += [_of_known(k) | {"here": k.repo in whole} for k in KNOWN if k.repo is not None]
    if as_json:
        for event in events:
            results.event(event)
        return
    at = next((i for i, e in enumerate(events) if e["kind"] == "known"), len(events))
    if at:
        _table(results, _rows_here(events[:at]))
    if at and at < len(events):
        results.line("")
    if at < len(events):
        _table(results, _rows_known(events[at:]))


def _of_demo() -> dict[str, Any]:
    from sdcli import models

    folder = models.demo_folder()
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return {"kind": "demo", "path": str(folder), "here": True, "complete": True, "size": size, "download": None}


def _of_kept(kept: Kept) -> dict[str, Any]:
    return _event(
        name=kept.name, kind="hub", repo=kept.repo, commit=kept.commit, refs=list(kept.refs), path=str(kept.path),
        family=_family(kept.family), licence=_licence(kept.repo, None), here=True, complete=kept.complete, size=kept.size,
        used=datetime.fromtimestamp(kept.used, UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def _of_known(known: KnownModel) -> dict[str, Any]:
    fields = ("num_inference_steps", "guidance_scale")
    size = known.size or (None, None)
    return _event(
        name=known.alias, kind="known", repo=known.repo, family=_family(known.family), licence=known.licence,
        download=known.download, scheduler=known.scheduler,
        defaults={f: known.wants(f) for f in fields} | {"width": size[0], "height": size[1]},
    )  # fmt: skip


def _family(class_name: str | None) -> str | None:
    """Return what sdcli calls the models of a pipeline's class; of a class that it can't draw with, its name."""
    from sdcli import models

    family = models.FAMILIES.get(class_name or "")
    return family.name if family is not None else class_name


def _licence(repo: str | None, folder: Any) -> str | None:
    """Return a model's licence: its card's where that is here, else the table's."""
    from sdcli.models import keeping
    from sdcli.models.known import KNOWN

    known = next((k.licence for k in KNOWN if repo is not None and k.repo == repo), None)
    return (keeping.licence_of(folder) if folder is not None else None) or known


def _rows_here(events: Iterable[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield "HERE", "SIZE", "LAST USED", "STATE", "COMMIT", "FAMILY"
    for e in events:
        if e["kind"] == "alias":
            yield e["name"], "", "", f"your name for {e['target']}", "", ""
            continue
        state = {True: "complete", False: "not complete", None: "not for sdcli"}[e["complete"]]
        yield e["name"], _size(e["size"]), (e["used"] or "-")[:10], state, (e["commit"] or "-")[:12], e["family"] or "-"


def _rows_known(events: Iterable[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield "KNOWN", "HERE", "DOWNLOAD", "PIXELS", "STEPS", "GUIDANCE", "LICENCE", "REPOSITORY"
    for e in events:
        wants = e["defaults"]
        pixels = f"{wants['width']}x{wants['height']}" if wants["width"] else "-"
        numbers = ["-" if v is None else f"{v:g}" for v in (wants["num_inference_steps"], wants["guidance_scale"])]
        yield (
            e["name"],
            "yes" if e["here"] else "-",
            _size(e["download"]),
            pixels,
            *numbers,
            e["licence"] or "-",
            e["repo"],
        )


def _size(count: int | None) -> str:
    from sdcli.models.hub import in_bytes

    return "-" if count is None else in_bytes(count)


def _table(results: Results, rows: Iterable[tuple[str, ...]]) -> None:
    cells = [tuple(_line(cell) for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]) - 1)]
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        results.line("  ".join([*padded, row[-1]]).rstrip())


def _line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


@commands.command(
    help="""Fetch models into the hub's cache: only the files that drawing loads.

One precision, safetensors only, nothing twice. Files that are whole are not fetched again. Prints the folder of each.

Examples:

  sdcli models pull sd15

  sdcli models pull sdxl-turbo stabilityai/sd-turbo@main

  sdcli models pull sd15 --json | jq -r .path
"""
)
def pull(
    names: Names,
    offline: Offline = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    results = _begin(as_json, quiet, verbose, offline)

    def one(name: str) -> None:
        from sdcli import models

        model = models.find(models.ModelSpec(model=name))
        there = model.is_here
        if there:
            screen.say(f"{name} is here already")
        else:
            with leaving_at_once():
                model = models.fetch(model, safety_checker=False, say=screen.say)
        if as_json:
            results.event(_event(**_found(name, model), complete=True, fetched=not there))
        else:
            results.text(str(model.path))

    _each(names, one)


def _kind(name: str, model: Model) -> str:
    from sdcli.models.known import DEMO

    return "demo" if name == DEMO else "hub" if model.repo else "file" if model.single_file else "folder"


def _found(name: str, model: Model) -> dict[str, Any]:
    """Return what is known of a model before its weights' headers are read."""
    folder = model.configs
    return {
        "name": name, "kind": _kind(name, model), "repo": model.repo, "commit": model.commit,
        "path": str(model.path) if model.path is not None else None,
        "family": model.family.name if model.family is not None else None,
        "licence": _licence(model.repo, folder), "here": model.is_here,
    }  # fmt: skip


@commands.command(
    help="""Say what a model consists of: components, parameters, precision, commit, licence, and what it needs.

The weights are not read, and PyTorch is not asked, unless --probe wants to know what this machine would do.

Examples:

  sdcli models info demo

  sdcli models info sdxl-turbo --probe

  sdcli models info sd15 --json | jq .components
"""
)
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What --model takes.", autocompletion=completing.models)],
    probe: Annotated[bool, typer.Option("--probe/--no-probe", show_default=False, help="Ask this machine.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    from sdcli import models
    from sdcli.models import contents
    from sdcli.models.known import KNOWN

    results = _begin(as_json, quiet, verbose)
    model = models.find(models.ModelSpec(model=name))
    known = next((k for k in KNOWN if k.alias == name or (model.repo and k.repo == model.repo)), None)
    if not model.is_here and known is None:
        raise ModelUnavailable(f"{name} is not here in whole", f"`sdcli models pull {name}` fetches it")
    event = _of_known(known) if known is not None else _event()
    event |= {key: value for key, value in _found(name, model).items() if value is not None}
    event["complete"] = model.is_here if event["here"] else False
    event["defaults"] = _defaults(model, event["defaults"])
    if model.scheduler is not None:
        event["scheduler"] = model.scheduler.get("_class_name") or event["scheduler"]
    if model.is_here:
        parts = contents.components(model)
        event["components"] = [
            {
                "name": p.name,
                "class": p.class_name,
                "parameters": p.parameters,
                "precision": p.precision,
                "size": p.size,
            }
            for p in parts
        ]
        event["parameters"] = sum(p.parameters for p in parts)
        event["size"] = sum(p.size for p in parts)
        half, full = (contents.weight_bytes(parts, dtype) for dtype in ("fp16", "fp32"))
        event["needs"] = {"half": half, "full": full, "device": None, "dtype": None, "weights": None, "free": None}
        if probe:
            event["needs"] |= _needs(model, event["parameters"])
    if as_json:
        results.event(event)
        return
    for label, value in _described(event):
        results.line(f"{label:<12} {_line(value)}".rstrip())


def _defaults(model: Model, table: dict[str, Any] | None) -> dict[str, Any]:
    """Return the values that are used where none is given, as far as they are known."""
    width, height = model.size or (None, None)
    own = {
        **model.defaults,
        "width": model.defaults.get("width", width),
        "height": model.defaults.get("height", height),
    }
    return (table or {}) | {key: value for key, value in own.items() if value is not None}


def _needs(model: Model, parameters: int) -> dict[str, Any]:
    from sdcli import pipeline
    from sdcli.device import DevicePlan, decide

    screen.say("asking PyTorch ...")
    with leaving_at_once():
        seen = pipeline.probe()
    family = model.family
    decision = decide(DevicePlan(), seen, family_dtype=family.dtype if family else "fp16", parameters=parameters)
    gpu = next((a for a in seen.accelerators if a.device == decision.device), None)
    return {
        "device": decision.device, "dtype": decision.dtype,
        "weights": parameters * (4 if decision.dtype == "fp32" else 2), "free": gpu.memory_free if gpu else None,
    }  # fmt: skip


def _described(event: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the rows that people see of a model."""
    yield "model", event["name"]
    for key in ("repo", "commit", "path", "family", "licence"):
        if event[key]:
            yield key, event[key]
    if not event["here"]:
        yield "here", f"no: `sdcli models pull {event['name']}` fetches it"
        yield "download", f"about {_size(event['download'])}" if event["download"] else "-"
    for part in event["components"] or ():
        yield (
            part["name"],
            f"{part['class'] or '-'}, {part['parameters']:,} parameters, {part['precision'] or '-'}, {_size(part['size'])}",
        )
    if event["components"]:
        yield "in all", f"{event['parameters']:,} parameters, {_size(event['size'])}"
        needs = event["needs"]
        yield (
            "weights",
            f"{_size(needs['half'])} of memory at half precision, {_size(needs['full'])} at fp32; pictures on top",
        )
        if needs["device"]:
            free = f", {_size(needs['free'])} are free there" if needs["free"] is not None else ""
            yield "here it is", f"{needs['device']}, {needs['dtype']}: {_size(needs['weights'])} of weights{free}"
    if event["scheduler"]:
        yield "scheduler", event["scheduler"]
    wants = {key: value for key, value in event["defaults"].items() if value is not None}
    yield "defaults", ", ".join(f"{key} {value}" for key, value in wants.items()) or "-"


@commands.command(
    help="""Delete models from the hub's cache: all revisions of a hub id, or the one that is named.

Nothing outside the cache is ever deleted. Other programs share it.

Examples:

  sdcli models rm sd15 --dry-run

  sdcli models rm someone/their-model@v1
"""
)
def rm(
    names: Names,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run/--no-dry-run", show_default=False, help="Say what would be deleted; delete nothing."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    results = _begin(as_json, quiet, verbose)

    def one(name: str) -> None:
        from sdcli.models import finding, keeping
        from sdcli.models.known import DEMO

        wanted = finding.named_by(name)
        if wanted.repo is None:
            what = "comes with sdcli" if name == DEMO else "does not lie in the hub's cache"
            raise UsageError(f"{name} {what}: it is not deleted", "name a hub id, or an alias of one")
        gone = keeping.remove(wanted, dry_run=dry_run)
        done = "would be deleted" if dry_run else "deleted"
        if as_json:
            event = _event(name=name, kind="hub", repo=wanted.repo, here=dry_run or None, freed=gone.freed)
            results.event(event | {"commits": list(gone.commits), "refs": list(gone.refs)})
        else:
            count = f"{len(gone.commits)} revision{'s' * (len(gone.commits) != 1)}"
            results.line(_line(f"{wanted.repo}: {count} {done}, {_size(gone.freed)} {'would be ' * dry_run}freed"))

    _each(names, one)


@commands.command(
    help="""Give a model a name of your own, take one away, or list yours.

They lie in aliases.toml in the configuration folder, and work wherever --model does.

Examples:

  sdcli models alias mine someone/their-model@v2

  sdcli models alias inks ~/models/inks.safetensors

  sdcli models alias --rm inks

  sdcli models alias
"""
)
def alias(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The name.")] = None,
    target: Annotated[str | None, typer.Argument(metavar="TARGET", help="A hub id, a folder or a file.")] = None,
    remove: Annotated[str | None, typer.Option("--rm", metavar="NAME", help="Take this one away.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    from sdcli.models import aliases

    results = _begin(as_json, quiet, verbose)
    if remove is not None:
        if name is not None:
            raise UsageError("--rm takes the one name", "leave the others out")
        try:
            was = aliases.remove(remove)
        except ModelUnavailable as error:  # No model is asked for: the name is a slip.
            raise UsageError(error.message, error.hint) from None
        screen.say(f"{remove} no longer stands for {was}")
        if as_json:
            results.event(_event(name=remove, kind="alias", target=was, here=False))
        return
    if name is not None and target is None:
        raise UsageError(f"what is {name} to stand for?", f"sdcli models alias {name} TARGET")
    if name is not None and target is not None:
        before = aliases.add(name, target)
        instead = f" (and no longer for {before})" if before is not None else ""
        stands_for = aliases.read()[name]
        screen.say(f"{name} stands for {stands_for}{instead}")
        if os.path.isabs(stands_for) and not os.path.exists(stands_for):
            screen.warn(f"nothing is at {stands_for} yet")
        if as_json:
            results.event(_event(name=name, kind="alias", target=stands_for))
        return
    found = aliases.read()
    if as_json:
        for key, value in found.items():
            results.event(_event(name=key, kind="alias", target=value))
        return
    if not found:
        screen.say("there is none; `sdcli models alias NAME TARGET` makes one")
    width = max((len(key) for key in found), default=0)
    for key, value in found.items():
        results.line(f"{_line(key):<{width}}  {_line(value)}")


@commands.command(
    help="""Read a model's files again, all of them, and compare their hashes with the hub's.

Ends with 1 if a file is not what the hub has. A folder, a file or demo has no such list to be compared with.

Examples:

  sdcli models verify sd15

  sdcli models verify sd15 --json | jq '.files[] | select(.same == false)'
"""
)
def verify(names: Names, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> int:
    results = _begin(as_json, quiet, verbose)
    good = True

    def one(name: str) -> None:
        nonlocal good
        good = _verified(name, results) and good

    _each(names, one)
    return 0 if good else 1


def _verified(name: str, results: Results) -> bool:
    """Check one model and tell of it; return whether each file is what it should be."""
    from sdcli import models
    from sdcli.models import finding, keeping

    wanted = finding.named_by(name)
    files: list[dict[str, Any]] = []
    kind = "hub"
    if wanted.repo is not None:
        screen.say(f"reading {name} ...")
        for found in keeping.verify(wanted):
            files.append({"name": found.name, "size": found.size, "same": found.same})
            if not results.as_json:
                state = {True: "same", False: "DIFFERS", None: "unknown"}[found.same]
                results.line(f"{state:<8} {_line(found.name)}")
    else:
        model = models.find(models.ModelSpec(model=name))
        kind = _kind(name, model)
        for key, path in models.loaded_files(model).items():
            files.append({"name": key, "size": path.stat().st_size, "same": None})
        if not results.as_json:
            results.line(
                _line(f"{name}: nothing says what its files should be; they are whole as far as their headers say")
            )
    bad = [f["name"] for f in files if f["same"] is False]
    if results.as_json:
        event = _event(name=name, kind=kind, repo=wanted.repo, here=True, files=files)
        event["complete"] = None if all(f["same"] is None for f in files) else not bad
        results.event(event)
    if bad:
        screen.error(
            SdcliError(
                f"{name}: {bad[0]} is not what the hub has" + (f", and {len(bad) - 1} more" if len(bad) > 1 else ""),
                f"`sdcli models rm {name}`, then `sdcli models pull {name}`",
            )
        )
    return not bad


def _each(names: Sequence[str], one: Callable[[str], None]) -> None:
    """Do one thing to each of several models: a failure of one does not keep the others from it."""
    if len(names) == 1:
        one(names[0])
        return
    failed = 0
    for name in names:
        with _told() as went_wrong:
            one(name)
        failed += went_wrong()
    if failed:
        raise SomeFailed(f"{failed} of {len(names)} failed")


@contextmanager
def _told() -> Iterator[Callable[[], bool]]:
    """Tell of what fails inside and go on; a full disk or broken stdout ends the whole run."""
    from sdcli.jobs import events

    failures: list[SdcliError] = []
    try:
        yield lambda: bool(failures)
    except OutputFailed:
        raise
    except SdcliError as error:
        if error.exit_code > 128:
            raise
        failures.append(error)
        screen.error(error)
        if screen.as_json:
            Results(as_json=True).event(events.error(error))
