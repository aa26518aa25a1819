"""What a shell is told when somebody presses Tab: commands and options by Typer, values by the tables that know them.

An answer has a seventh of a second, and importing a command takes longer. So what commands and options there are is kept
in an index in the user's cache, and Typer is asked about stand-ins that are made from it.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from sdcli import places

if TYPE_CHECKING:
    import typer

VARIABLE = "_SDCLI_COMPLETE"
# What a shell takes as it stands: candidates end in scripts that a shell evaluates.
_PLAIN = re.compile(r"\w[\w./@+-]*")
_OPTION = re.compile(r"--?[A-Za-z0-9][A-Za-z0-9-]*")
_TYPES: dict[str, Any] = {"switch": bool, "count": int, "text": str, "list": list[str], "pair": tuple[str, str]}


def complete() -> int:
    """Answer a shell that completes a line, or print its script, as the variable asks; return the exit code.

    The protocol is Typer's. What fails, fails in silence: a person is in the middle of typing.
    """
    # Typer takes the markup out of help with Rich, whose import would cost more than all the rest: no markup is in ours.
    sys.modules["rich"] = None  # type: ignore[assignment]
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer), contextlib.redirect_stderr(io.StringIO()):
            code = _answer()
        # zsh knows a script by its first line, and Typer begins with an empty one.
        text = answer.getvalue().strip("\n")
        if sys.stdout is not None and text:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        return code
    except (Exception, KeyboardInterrupt):
        # fish offers files then, and the others do what they do where nothing is known.
        return 1


def _answer() -> int:
    from sdcli.cli.main import app

    if os.environ[VARIABLE].startswith("complete"):  # else a shell's script is asked for
        index = _index()
        _join_assigned()
        # Commands that were imported to make the index make room for their stand-ins.
        app.registered_commands.clear()
        app.registered_groups.clear()
        _stand_in(app, index["commands"], index["models"], _words())
    try:
        app(args=[], prog_name="sdcli", standalone_mode=False)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def _join_assigned() -> None:
    """Take out the lone = that bash makes a word of its own in --option=value; Typer knows it only at the end."""
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), os.environ.get("COMP_CWORD", "")
    if not at.isdecimal():
        return
    cursor = int(at)
    lone = [i for i in range(1, min(cursor, len(words))) if words[i] == "=" and _OPTION.fullmatch(words[i - 1])]
    os.environ["COMP_WORDS"] = "\n".join(w for i, w in enumerate(words) if i not in lone)
    os.environ["COMP_CWORD"] = str(cursor - len(lone))


def _words() -> list[str]:
    """Return the words of the line, as far as they are needed to find the command."""
    return (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "").split()[1:]


# The index


def _index() -> dict[str, Any]:
    """Return the commands with their options: from the cache where that is as new as this code, else from the code."""
    import json

    from sdcli import __version__

    # An editable installation changes without a new version.
    package = Path(__file__).parent.parent
    code = (os.path.join(folder, f) for folder, _, files in os.walk(package) for f in files if f.endswith(".py"))
    newest = max(os.stat(file).st_mtime_ns for file in code)
    key = f"{__version__} {newest} {package}"
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(_index_file().read_bytes())
        if isinstance(kept, dict) and kept.get("key") == key:
            return kept
    from sdcli import models, output
    from sdcli.cli import main

    main.import_commands([])
    made = {"key": key, "commands": _commands(main.app), "models": list(models.ALIASES)}
    with contextlib.suppress(Exception):
        output.write(_index_file(), json.dumps(made).encode(), overwrite=True)
    return made


def _index_file() -> Path:
    return places.cache_folder() / "completion.json"


def _commands(app: typer.Typer) -> dict[str, Any]:
    """Return an app's commands by name, and those of the apps in it."""
    found: dict[str, Any] = {}
    for command in app.registered_commands:
        assert command.callback is not None
        parameters = inspect.signature(command.callback, eval_str=True).parameters.values()
        about = (inspect.cleandoc(command.help or command.callback.__doc__ or "").splitlines() or [""])[0]
        name = command.name or command.callback.__name__.replace("_", "-")
        found[name] = {"help": about, "options": [o for p in parameters for o in _option(p)]}
    for group in app.registered_groups:
        inner = group.typer_instance
        if inner is not None:
            title = next((n for n in (group.name, inner.info.name) if isinstance(n, str)), "")
            about = next((h for h in (group.help, inner.info.help) if isinstance(h, str)), "")
            found[title] = {"help": (about.splitlines() or [""])[0], "commands": _commands(inner)}
    return found


def _option(parameter: inspect.Parameter) -> Iterable[dict[str, Any]]:
    """Yield a command's option or argument as the index keeps it."""
    import typer

    hint = parameter.annotation
    for info in getattr(hint, "__metadata__", ()):
        argument = isinstance(info, type(typer.Argument()))
        plain = [part for part in (get_args(get_args(hint)[0]) or ()) if part is not type(None)]
        kind = plain[0] if len(plain) == 1 and get_origin(get_args(hint)[0]) not in (list, tuple) else get_args(hint)[0]
        # Both say so by what they are called after; what a command says itself comes first.
        source = info.autocompletion or VALUES.get(parameter.name)
        named = next((name for name, function in VALUES.items() if function is source), None)
        yield {
            "name": parameter.name,
            "argument": argument,
            # In an annotation Typer takes the first of them as its first parameter, which is the default elsewhere.
            "flags": [] if argument else [f for f in (info.default, *(info.param_decls or ())) if isinstance(f, str)],
            "help": info.help or "",
            "type": "count" if getattr(info, "count", False) else "switch" if kind is bool
            else "pair" if get_origin(kind) is tuple else "list" if get_origin(kind) is list else "text",
            "values": named if named in ON_DISK else list(source()) if source else [],
        }  # fmt: skip


def _stand_in(app: typer.Typer, commands: Mapping[str, Any], aliases: Sequence[str], words: Sequence[str]) -> None:
    """Give an app commands that have the options of those in the index, and do nothing."""
    import typer

    for name, command in commands.items():
        if "commands" in command:
            inner = typer.Typer(add_completion=False)
            inner.callback()(lambda: None)
            _stand_in(inner, command["commands"], aliases, words)
            app.add_typer(inner, name=name, help=command["help"])
            continue

        def stand_in(**_: Any) -> None:
            pass

        # Only the command that the line has needs its options.
        options = [_parameter(o, aliases) for o in command["options"]] if name in words else []
        stand_in.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        stand_in.__annotations__ = {p.name: p.annotation for p in options}
        app.command(name, help=command["help"])(stand_in)


def _parameter(option: Mapping[str, Any], aliases: Sequence[str]) -> inspect.Parameter:
    import typer

    values = option["values"]
    source: Callable[[], Iterable[str]] | None = (lambda: values) if values else None
    if values == "model":
        source = lambda: [*aliases, *_own_models()]  # noqa: E731
    elif isinstance(values, str):
        source = VALUES[values]
    info: Any
    if option["argument"]:
        info = typer.Argument(help=option["help"], autocompletion=source)
    else:
        counts = option["type"] == "count"
        info = typer.Option(*option["flags"], help=option["help"], autocompletion=source, count=counts)
    annotation = Annotated[_TYPES[option["type"]] | None, info]  # type: ignore[valid-type]
    return inspect.Parameter(option["name"], inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


# Values


def models() -> list[str]:
    """Return what --model takes by name: what has a short name, and the repositories in the hub's cache."""
    from sdcli.models import ALIASES

    return [*ALIASES, *_own_models()]


def _own_models() -> list[str]:
    """Return the user's own names for models (`models.aliases` makes them), and the repositories in the hub's cache."""
    import tomllib

    try:
        own = tomllib.loads((places.config_folder() / "aliases.toml").read_text("utf-8"))
    except (OSError, ValueError):
        own = {}
    return [*filter(_PLAIN.fullmatch, own), *cached_repos()]


def cached_repos() -> list[str]:
    """Return the repositories of models in the hub's cache, by the names of their folders alone."""
    with contextlib.suppress(OSError):
        names = sorted(os.listdir(hub_cache()))
        # models--ORG--NAME is huggingface_hub's way to write ORG/NAME.
        repos = [n.removeprefix("models--").replace("--", "/", 1) for n in names if n.startswith("models--")]
        return list(filter(_PLAIN.fullmatch, repos))
    return []


def hub_cache() -> Path:
    """Return the hub's cache as huggingface_hub finds it, whose import takes longer than an answer may.

    Source: huggingface.co/docs/huggingface_hub/package_reference/environment_variables.
    """
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if given := os.environ.get(variable):
            return Path(os.path.expandvars(given)).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def schedulers() -> list[str]:
    """Return the schedulers' own names; `sdcli schedulers` has the others."""
    from sdcli.schedulers import SCHEDULERS

    return [s.name for s in SCHEDULERS]


def presets() -> list[str]:
    """Return the names of the presets in the project's folder, the user's and the package's.

    `settings.presets` knows more of them, and takes longer than an answer may.
    """
    package = Path(__file__).parent.parent
    folders = (Path("presets"), places.config_folder() / "presets", package / "presets", package.parent / "presets")
    found: set[str] = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            found |= {n.removesuffix(".toml") for n in os.listdir(folder) if n.endswith(".toml")}
    return sorted(filter(_PLAIN.fullmatch, found))


def adapters() -> list[str]:
    """Return the names of the files in the folder of adapters, and in its folders.

    Where settings name another folder is looked up when a command runs; here the variable alone says it.
    """
    return _of_adapters(folders=False)


def controlnets() -> list[str]:
    """Return the names of the adapters, and of the folders in diffusers' layout beside them."""
    return _of_adapters(folders=True)


def _of_adapters(*, folders: bool) -> list[str]:
    place = Path(os.environ.get("SDCLI_ADAPTER_DIR") or places.config_folder() / "adapters")
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for file in (*place.glob("*"), *place.glob("*/*")):
            if (file / "config.json").is_file():
                found |= {file.name} if folders else set()
            elif file.suffix == ".safetensors" and not (file.parent / "config.json").is_file():
                found.add(file.stem)
    return sorted(filter(_PLAIN.fullmatch, found))


def keys() -> list[str]:
    """Return the fields that settings may set."""
    from sdcli import settings

    return sorted({o.field for o in settings.names().values()})


# What completes a field whose type does not say it, or an argument, by its name.
VALUES: dict[str, Callable[[], Iterable[str]]] = {
    "model": models,
    "vae": cached_repos,
    "scheduler": schedulers,
    "preset": presets,
    "key": keys,
    "device": lambda: ("auto", "cpu", "cuda", "mps", "xpu"),
    "attention_slicing": lambda: ("auto", "on", "off", "max"),
    "lora": adapters,
    "embedding": adapters,
    "controlnet": controlnets,
    "ip_adapter": adapters,
    "upscale": lambda: ("lanczos",),
}
# Those of them that are looked up each time.
ON_DISK = ("model", "vae", "preset", "lora", "embedding", "controlnet", "ip_adapter")


def of_field(name: str, hint: Any = None) -> Callable[[], Iterable[str]] | None:
    """Return what completes a field, None where there is nothing to tell: a number, a path, free text.

    The words of a field of fixed words are in its type.
    """
    words = [w for w in _words_of(hint) if isinstance(w, str)]
    return VALUES.get(name) or ((lambda: words) if words else None)


def _words_of(hint: Any) -> Iterable[Any]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return [word for part in get_args(hint) if not isinstance(part, str) for word in _words_of(part)]
