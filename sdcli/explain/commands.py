"""Command lines that draw a picture again, for whoever copies them into a shell."""

from __future__ import annotations

import json
import os
import re
import shlex
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from sdcli import schedulers
from sdcli.errors import ModelUnavailable, UsageError
from sdcli.jobs import again
from sdcli.metadata.inspecting import Found
from sdcli.options import Option, options_of
from sdcli.request import Adapter, GenerationRequest, Hires, Outpaint, Upscale, Variation

# What models differ in, so that a command says it even where it is sdcli's own default.
SAID = ("num_inference_steps", "guidance_scale")
KINDS = ("lora", "embedding", "controlnet", "ip_adapter")
# Characters; a longer command is none to paste, and `--from` says the same.
LONGEST = 20_000
# Joiners, which spell words and emoji; other invisible characters can steer a terminal or turn what it shows round.
_JOINERS = "\u200c\u200d"


def from_picture(found: Found, relative: str) -> str | None:
    """Return `sdcli generate --from PICTURE`; None for a picture that does not say what it was made from."""
    if "prompt" not in found.request:
        return None
    path = f"./{relative}" if relative.startswith("-") else relative
    return line(["sdcli", "generate", "--from", path])


def in_full(found: Found, relative: str) -> str | None:
    """Return the command with the prompt and a flag for all that is not as it is anyway; None where there is no such command.

    Files that a record names are written as lying beside the picture if something of that name does, else by their names.
    """
    said = request_of(found)
    prompt = said.get("prompt")
    if prompt is None or prompt == "-":  # which would be stdin
        return None
    words = [*_model(found), *_size(said)]
    for option in options_of(GenerationRequest):
        if option.field in said and option.field not in ("width", "height"):
            words += _words(option, said[option.field], os.path.dirname(relative), Path(found.path).parent)
    argument = ["--", prompt] if prompt.startswith("-") else [prompt]
    ordered = [*words, *argument] if argument[0] == "--" else [*argument, *words]
    made = line(["sdcli", "generate", *ordered])
    return made if len(made) <= LONGEST else None


def note(found: Found) -> str | None:
    """Return what the commands can't say, None where they say it all."""
    if "prompt" not in found.request:
        return None
    if found.record is None:
        name = (found.model or {}).get("name")
        return f"The picture says that its model was {name}: say which one here with --model." if name else None
    if _unplaced(found):
        return f"It was drawn by {found.record.model.name}, and does not say where that lies: add --model."
    return None


def request_of(found: Found) -> dict[str, Any]:
    """Return what a picture says of its request and what is not as it is anyway, as JSON has it."""
    said = {k: v for k, v in found.request.items() if k in SAID or k == "prompt" or v != defaults().get(k)}
    if found.record is not None and found.record.tokens.syntax is None:
        # Of a time when prompts were read plainly, and cut.
        said |= {"prompt_syntax": "plain", "long_prompt": "cut"}
    if "eta" in said and said["eta"] == _own_eta(said.get("scheduler")):
        del said["eta"]
    return said


def line(words: Sequence[str]) -> str:
    """Return a command line for a POSIX shell."""
    return " ".join(map(quoted, words))


def quoted(word: str) -> str:
    """Return a word for a shell; bytes that could steer the terminal it is pasted into become escapes of its `$'...'`.

    That is POSIX of 2024, and bash, zsh and ksh have had it for long. Line ends stay: a quoted one is only a line end.
    """
    if not any(_steers(c) for c in word):
        return shlex.quote(word)
    made = []
    for char in word:
        if _steers(char) or char == "\n":
            made += [f"\\x{byte:02x}" for byte in os.fsencode(char)]
        else:
            made.append({"\\": "\\\\", "'": "\\'"}.get(char, char))
    # The byte after an escape must not be read as one more of its digits.
    return "$'" + re.sub(r"(\\x[0-9a-f]{2})(?=[0-9A-Fa-f])", r"\1'$'", "".join(made)) + "'"


def _steers(char: str) -> bool:
    if char == "\n" or char in _JOINERS:
        return False
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


@cache
def defaults() -> Mapping[str, Any]:
    """Return the values, as JSON has them, that a request's fields have where nothing is said."""
    fields = msgspec.structs.fields(GenerationRequest)
    return {f.name: msgspec.to_builtins(f.default) for f in fields if f.name != "prompt"} | {f: [] for f in KINDS}


def _own_eta(scheduler: str | None) -> float | None:
    try:
        return schedulers.find(scheduler).eta if scheduler else None
    except UsageError:
        return None


def _model(found: Found) -> list[str]:
    """Return the words that name the model, none where the picture does, or nothing can."""
    if found.record is None or _unplaced(found):
        return []
    name = again.model(found)
    return ["--model", name] if name else []


def _unplaced(found: Found) -> bool:
    try:
        again.model(found)
    except ModelUnavailable:
        return True
    return False


def _size(said: Mapping[str, Any]) -> list[str]:
    if "width" in said and "height" in said:
        return ["--size", f"{said['width']}x{said['height']}"]
    return [word for side in ("width", "height") if side in said for word in (f"--{side}", str(said[side]))]


def _words(option: Option, value: Any, folder: str, real: Path) -> Iterator[str]:
    flag = next((f for f in option.flags if f.startswith("--")), None)
    if isinstance(value, bool) and flag is not None:
        yield flag if value else f"--no-{flag[2:]}"
        return
    values = [_cleaned(option, one, folder, real) for one in (value if option.many else [value])]
    texts = [_text(option, one) for one in values]
    if flag is None or (option.many and None in texts):
        # A list is JSON as a whole.
        text = json.dumps(values, ensure_ascii=False) if option.many else texts[0]
        yield from ("--set", f"{option.field}={text}")
        return
    for one, text in zip(values, texts, strict=True):
        said = text if text is not None else json.dumps(one, ensure_ascii=False)
        yield from ((f"{flag}={said}",) if said.startswith("-") else (flag, said))


def _cleaned(option: Option, value: Any, folder: str, real: Path) -> Any:
    """Return a value without what nobody types, and files by their paths."""
    if not isinstance(value, dict):
        return value
    if option.read is None:  # a file
        return _placed(value["name"], folder, real)
    value = {k: v for k, v in value.items() if v is not None and k not in ("sha256", "commit")}
    if isinstance(image := value.get("image"), dict):
        value["image"] = _placed(image["name"], folder, real)
    return value


def _text(option: Option, value: Any) -> str | None:
    """Return a value as it is typed; None where that can't say it."""
    if option.read is None:
        return str(value).lower() if isinstance(value, bool) else str(value)
    short, kind = _SHORT[option.field](value), _STRUCTS.get(option.field, Adapter)
    try:
        return short if msgspec.convert(option.read(short), kind) == msgspec.convert(value, kind) else None
    except (ValueError, msgspec.ValidationError):
        return None


def _scaled(value: Mapping[str, Any]) -> str:
    scale = value.get("scale", 1.0)
    return f":{scale:g}" if scale != 1 else ""


def _adapter(value: Mapping[str, Any]) -> str:
    return f"{value['name']}{_scaled(value)}"


def _embedding(value: Mapping[str, Any]) -> str:
    return f"{value['name']}={value['token']}" if "token" in value else str(value["name"])


def _conditioned(value: Mapping[str, Any]) -> str:
    return f"{value['name']}={value.get('image', '')}{_scaled(value)}"


def _upscale(value: Mapping[str, Any]) -> str:
    return str(value["name"]) + (f":{value['factor']:g}" if "factor" in value else "")


_SHORT = {
    "lora": _adapter,
    "embedding": _embedding,
    "controlnet": _conditioned,
    "ip_adapter": _conditioned,
    "variation": lambda value: f"{value['seed']}:{value['strength']}",
    "outpaint": lambda value: ",".join(f"{side}={pixels}" for side, pixels in value.items() if pixels),
    "hires": lambda value: f"{value['factor']:g}x:{value['strength']:g}",
    "upscale": _upscale,
}
_STRUCTS = {"variation": Variation, "outpaint": Outpaint, "hires": Hires, "upscale": Upscale}


def _placed(name: str, folder: str, real: Path) -> str:
    """Return the path of a file that a record names, as seen from where the picture's own path is; names never lead elsewhere."""
    beside = name not in ("", ".", "..") and "/" not in name and "\0" not in name
    placed = os.path.join(folder, name) if beside and os.path.lexists(real / name) else name
    return f"./{placed}" if placed.startswith("-") else placed
