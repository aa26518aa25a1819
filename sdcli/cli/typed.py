"""A command's options, taken from the fields that they fill."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_origin

import msgspec
import typer

from sdcli.cli import completing
from sdcli.options import Option, options_of, plain_type

METAVARS = {int: "N", float: "X", str: "TEXT"}


def options_from(
    *records: type[msgspec.Struct], without: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these records' fields, but those `without`; it gets those that were typed as the dict `typed`.

    Values stay text: they are converted and checked where those of presets, rows and `--set` are.
    """
    options = [o for record in records for o in options_of(record) if o.flags and o.field not in without]

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters

        def called(**values: Any) -> None:
            typed = {o.field: value for o in options if (value := values.pop(o.field)) not in (None, [])}
            command(**values, typed=typed)

        parameters = [_completed(p) for p in own.values() if p.name != "typed"]
        parameters += [_parameter(o) for o in options]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        called.__doc__, called.__name__ = command.__doc__, command.__name__
        return called

    return wrap


def _completed(parameter: inspect.Parameter) -> inspect.Parameter:
    """Let an option of the command's own complete as the field does that it is called after."""
    for info in getattr(parameter.annotation, "__metadata__", ()):
        info.autocompletion = info.autocompletion or completing.of_field(parameter.name)
    return parameter


def _parameter(option: Option) -> inspect.Parameter:
    kind = plain_type(option.type)
    switch = kind is bool
    flags = [f"{f}/--no-{f[2:]}" if switch and f.startswith("--") else f for f in option.flags]
    said = (
        option.default in (None, "", 0, ())
        or switch
        or str(option.default) in option.help
        or len(str(option.default)) > 12
    )
    default = "" if said else f" ({option.default})"
    info = typer.Option(
        *flags, help=option.help + default, rich_help_panel=option.panel, show_default=False,
        metavar=None if switch else option.metavar or METAVARS.get(kind, "NAME"),
        autocompletion=completing.of_field(option.field, option.type),
    )  # fmt: skip
    # What has several values has as many words in argv.
    words = list[str] if option.many else kind if get_origin(kind) is tuple else bool if switch else str
    annotation = Annotated[words | None, info]  # type: ignore[valid-type]
    return inspect.Parameter(option.field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
