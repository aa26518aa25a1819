"""`sdcli tokens`: how a prompt is read, before anything is drawn."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from sdcli import models, settings
from sdcli.cli import completing
from sdcli.cli.main import app, screen
from sdcli.cli.results import Results
from sdcli.cli.screen import is_dumb, printable
from sdcli.cli.shared import Json, Quiet, Verbose, prompt_of_stdin
from sdcli.errors import SdcliError, UsageError
from sdcli.jobs.jobs import lift
from sdcli.models import Model, ModelSpec
from sdcli.models.known import DEMO
from sdcli.prompts import a1111, compel, syntax
from sdcli.prompts.syntax import How
from sdcli.prompts.tokens import Read, Reader, Token
from sdcli.request import GenerationRequest


@app.command(
    help="""Show how a prompt is read: its tokens, chunks and weights, and what would be cut off.

By the tokenizer of the model, if that is here, else by that of the bundled model.

Examples:

  sdcli tokens "a (red:1.3) circle on a blue background"

  sdcli tokens "a red circle BREAK on a blue background" --model sdxl

  sdcli tokens --json - < prompt.txt | jq .chunks
"""
)
def tokens(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to read; - reads it from stdin.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Whose tokenizer.", autocompletion=completing.models),
    ] = None,
    prompt_syntax: Annotated[
        str | None,
        typer.Option(
            "--prompt-syntax", metavar="NAME", help="a1111, compel or plain.",
            autocompletion=completing.of_field("prompt_syntax", settings.names()["prompt_syntax"].type),
        ),
    ] = None,
    long_prompt: Annotated[
        str | None,
        typer.Option(
            "--long-prompt", metavar="HOW", help="chunk, cut or error.",
            autocompletion=completing.of_field("long_prompt", settings.names()["long_prompt"].type),
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option("--steps", metavar="N", help="Steps in which words come and go.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:  # fmt: skip
    screen.verbosity, screen.as_json = -1 if quiet else verbose, as_json
    typed = {"prompt_syntax": prompt_syntax, "long_prompt": long_prompt, "steps": steps}
    text = prompt_of_stdin() if prompt == "-" else prompt
    if not settings.is_unicode(text):
        raise UsageError("the prompt is not UTF-8", "check the terminal's or the script's encoding")
    chosen, values = _given(model, typed)
    request = lift(GenerationRequest(prompt=text, **values))
    how = syntax.how(request, chosen.family)
    if request.lora:
        screen.say(f"left out, for it is no text: {', '.join(f'the LoRA {one.name}' for one in request.lora)}")
    name, reader = _reader(chosen)
    syntax.check_text(request.prompt, how, request.num_inference_steps, reader=reader)
    shown = _Shown(request.prompt, how, request.num_inference_steps, name, reader)
    results = Results(as_json=as_json)
    if as_json:
        results.event(shown.as_json())
        return
    for line in shown.lines():
        results.line(line)


def _given(model: str | None, typed: Mapping[str, str | None]) -> tuple[Model, dict[str, Any]]:
    """Return the chosen or default model, and the fields that say how its prompts are read."""
    sources = settings.sources()
    given = settings.merge(*sources, ("flag", {"model": model}))
    try:
        chosen = models.find(given.build(ModelSpec))
    except SdcliError:
        if model is not None:
            raise
        # It is the settings' or the environment's, and only its tokenizer was wanted.
        chosen = models.find(ModelSpec(model=DEMO))
        screen.say(f"{given.values.get('model')} is not here")
    fields = ("prompt_syntax", "long_prompt", "num_inference_steps")
    # What a setting says that another model can't use is no mistake here, as it is none where pictures are drawn.
    under = settings.merge(("model", chosen.defaults), *sources)
    if chosen.family is not None and not chosen.family.weighs:
        under = under.without("prompt_syntax", "long_prompt")
    values = under.over(("flag", typed)).values
    return chosen, {field: values[field] for field in fields if field in values}


def _reader(model: Model) -> tuple[str, Reader]:
    """Return the name of the model whose tokenizer it is, and what reads with it."""
    reader = Reader.of(model)
    name = model.shown_name
    if reader is None:
        screen.say(f"{model.name}'s tokenizer is not here: read by that of the bundled model, whose words are few")
        name, reader = DEMO, Reader.of(models.find(ModelSpec(model=DEMO)))
    assert reader is not None
    if len(reader.vocabularies) > 1:
        others = ", ".join(v.name for v in reader.vocabularies[1:])
        screen.say(f"{name} has several tokenizers: shown is {reader.name}, and not {others}")
    elif model.family is not None and len(model.family.readers) > 1 and name != DEMO:
        screen.say(f"{name} has several tokenizers: shown is {reader.name}, which reads most")
    return name, reader


class _Shown:
    """How a prompt is read, for machines and for people."""

    def __init__(self, prompt: str, how: How, steps: int, model: str, reader: Reader) -> None:
        self.how, self.model, self.reader = how, model, reader
        self.schedule = a1111.schedule(prompt, steps) if how.syntax == "a1111" else [(steps, prompt)]
        self.reads = {text: reader.read(text, syntax=how.syntax, long=how.long) for _, text in self.schedule}
        counts = [reader.chunks_of(text, syntax=how.syntax, long=how.long) for text in self.reads]
        self.chunks = max(counts)

    @property
    def first(self) -> Read:
        return self.reads[self.schedule[0][1]]

    @property
    def cut(self) -> str:
        """What is cut off: of the texts of all steps the first that is too long."""
        return next((read.cut for read in self.reads.values() if read.cut), "")

    def as_json(self) -> dict[str, Any]:
        """Return the prompt as JSON has it: weights and tokens are those of the first step's text, chunks count from 1."""
        return {
            "schema": 1, "event": "tokens", "weights": self._weights(), "schedule": self.schedule,
            "tokens": [
                {"text": token.text, "id": token.id, "chunk": number, "weight": token.weight}
                for number, chunk in enumerate(self.first.chunks, 1)
                for token in chunk
            ],
            "chunks": self.chunks, "limit": self.reader.limit, "cut": self.cut, "model": self.model,
            "tokenizer": self.reader.name, "syntax": self.how.syntax,
        }  # fmt: skip

    def _weights(self) -> list[tuple[str, float]]:
        text = self.schedule[0][1]
        if self.how.syntax == "a1111":
            return a1111.weights(text)
        if self.how.syntax == "compel":
            return [part for blended in compel.read(text) for one in blended for part in one]
        return [(text, 1.0)]

    def lines(self) -> Iterator[str]:
        """Yield a coloured line a chunk; what each says is there without colours too."""
        limit = self.reader.limit
        for text, read in self.reads.items():
            if len(self.schedule) > 1:
                yield f"steps {_ranges(self.schedule, text)}: {printable(text.replace(chr(10), ' '))}"
            for number, chunk in enumerate(read.chunks, 1):
                yield _coloured(f"chunk {number}, {len(chunk)} of {limit}:", chunk)
            if read.cut:
                yield f'cut off: "{printable(read.cut.replace(chr(10), " "))}"'
        used, chunks = max(read.used for read in self.reads.values()), self.chunks
        yield (
            f"{used} token{'s' * (used != 1)} in {chunks} chunk{'s' * (chunks != 1)} of {limit}, "
            f"read by {self.reader.name} of {printable(self.model)} as {self.how.syntax}"
        )


def _ranges(schedule: Sequence[tuple[int, str]], text: str) -> str:
    """Return the steps that a text is for, as in `1-3, 7`."""
    found: list[list[int]] = []
    start = 1
    for until, one in schedule:
        if one == text:
            if found and found[-1][1] == start - 1:
                found[-1][1] = until
            else:
                found.append([start, until])
        start = until + 1
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def _coloured(label: str, chunk: Sequence[Token]) -> str:
    """Return a chunk as a line: a token's weight stands behind it, where it is not 1."""
    words = [(_word(token), _style(at, token.weight)) for at, token in enumerate(chunk)]
    if sys.stdout is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR") or is_dumb():
        return " ".join([label, *(word for word, _ in words)])
    # Takes a while to import, and nobody would see it.
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    with console.capture() as line:
        console.print(Text(" ").join([Text(label), *(Text(*word) for word in words)]), soft_wrap=True, end="")
    return line.get()


def _word(token: Token) -> str:
    text = printable(token.text.replace("\n", " "))
    return text if token.weight == 1 else f"{text}({token.weight:.4g})"


def _style(at: int, weight: float) -> str:
    if weight == 1:
        return "cyan" if at % 2 else "default"
    return "bold green" if weight > 1 else "yellow"
