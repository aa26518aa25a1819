"""Pages that need nothing but themselves: a template with its style, its script and its data inside."""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.errors import UsageError

if TYPE_CHECKING:
    import jinja2

INSTALL = "pip install 'sdcli[show]'"
TEMPLATES = Path(__file__).parent / "templates"
# What a page may load: pictures beside it and inside it, and of scripts and styles only those that were written into it.
_POLICY = (
    "default-src 'none'; img-src 'self' file: data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
    "base-uri 'none'; form-action 'none'"
)
# What joins two signs, in words and in emoji.
_JOINERS = {"\u200c", "\u200d", *map(chr, range(0xE0020, 0xE0080))}
# JSON is data wherever it stands in HTML once none of these can end a script, or a line of one, in it.
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def environment() -> jinja2.Environment:
    """Return what fills templates in; every text that is filled in is escaped, and `plain`. Raises UsageError without Jinja2."""
    try:
        import jinja2
    except ImportError:
        raise UsageError("a page takes jinja2, which is not installed", INSTALL) from None
    return jinja2.Environment(
        autoescape=True,
        # What is markup already is ours.
        finalize=lambda value: plain(value) if type(value) is str else value,
        loader=jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def plain(text: str) -> str:
    """Return a text, in one line, without characters that are not seen, or that turn what is beside them round."""
    # Most are, pictures' megabytes too.
    return text if text.isprintable() else "".join(map(_seen, text))


def _seen(char: str) -> str:
    if char.isspace():
        return " " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
    hidden = unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in _JOINERS
    return "\N{REPLACEMENT CHARACTER}" if hidden else char


def page(name: str, data: object, **values: Any) -> bytes:
    """Return the page (UTF-8) that the template `name`.html makes, with `name`.css and `name`.js in it and what is `data` for
    the script.

    The template has `policy`, `style`, `script`, `data` and `values`. Raises UsageError without Jinja2.
    """
    env = environment()
    from markupsafe import Markup

    style, script = ((TEMPLATES / f"{name}.{kind}").read_text("utf-8") for kind in ("css", "js"))
    policy = _POLICY.format(style=_digest(style), script=_digest(script))
    made = env.get_template(f"{name}.html").render(
        policy=policy, style=Markup(style), script=Markup(script), data=Markup(as_data(data)), **values
    )
    return made.encode()


def as_data(value: object) -> str:
    """Return JSON that can stand in a script element, whatever texts are in it.

    Half a surrogate pair, which no UTF-8 can hold, stays as an escape.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)
    return text.encode("utf-8", "backslashreplace").decode()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
