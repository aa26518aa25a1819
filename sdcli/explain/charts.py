"""Charts, as SVG for light pages and dark ones, and as PNG."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdcli.errors import UsageError
from sdcli.explain.pages import INSTALL, plain
from sdcli.explain.painting import uri

# Texts, quieter lines, and the colours of what is shown: each readable on its page, and apart in greys.
_LIGHT = {"text": "#1c1d1f", "line": "#c9cbce", "first": "#1f5fbf", "second": "#b8500c", "back": "#ffffff"}
_DARK = {"text": "#e8e8e6", "line": "#4a4e55", "first": "#8ab4f8", "second": "#ffb066", "back": "#1d1f22"}
Colours = dict[str, str]
SVG = "image/svg+xml"
# In inches: a phone is nearly as wide.
WIDTH = 5.0
# Texts on cells that are dark and light on any page.
_ON_DARK, _ON_LIGHT = "#fefefe", "#1b1c1e"
# More names than these can't be read beside a chart, nor longer ones.
MOST_WORDS, LONGEST = 24, 16


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart: data: URIs of SVGs for light and dark pages, its size in a page's pixels, what it shows in words, and what makes
    a PNG."""

    light: str
    dark: str
    png: Callable[[], bytes]
    width: int
    height: int
    alt: str


def require() -> None:
    """Raise UsageError without matplotlib."""
    # It tells of folders that it can't keep its fonts' list in.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("charts take matplotlib, which is not installed", INSTALL) from None


def chart(draw: Callable[[Any, Colours], None], size: tuple[float, float], alt: str) -> Chart:
    """Return what `draw` puts onto axes; `size` is in inches. Raises UsageError without matplotlib."""
    require()
    import matplotlib
    from matplotlib.figure import Figure

    def made(kind: str) -> bytes:
        # Text stays text, and the same chart the same bytes.
        quiet: Any = {
            "svg.fonttype": "none", "svg.hashsalt": "sdcli", "text.parse_math": False, "text.usetex": False, "font.size": 10,
        }  # fmt: skip
        out = io.BytesIO()
        with matplotlib.rc_context(quiet), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.add_subplot()
            _dress(axes, _LIGHT)
            draw(axes, _LIGHT)
            if kind == "png":
                figure.savefig(out, format="png", dpi=144, facecolor=_LIGHT["back"])
            else:
                figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return out.getvalue()

    light = dark = made("svg")
    # The same lines in other colours; a text that names one of them is no loss.
    for name, colour in _LIGHT.items():
        dark = dark.replace(colour.encode(), _DARK[name].encode())
    return Chart(
        light=uri(light, SVG), dark=uri(dark, SVG), png=lambda: made("png"), width=round(size[0] * 96),
        height=round(size[1] * 96), alt=alt,
    )  # fmt: skip


def _dress(axes: Any, colours: Colours) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=colours["text"], which="both")
    for side, spine in axes.spines.items():
        spine.set_color(colours["line"])
        spine.set_visible(side in ("left", "bottom"))
    axes.xaxis.label.set_color(colours["text"])
    axes.yaxis.label.set_color(colours["text"])


def schedule(
    signals: Sequence[float], sigmas: Sequence[float], steps: Sequence[tuple[float, float, float]], alt: str
) -> Chart:
    """Chart signal and noise over the timesteps of training, and the `steps` taken: (timestep, signal, sigma), of unit size."""

    def draw(axes: Any, colours: Colours) -> None:
        for values, name, colour, mark in ((signals, "signal", "first", "o"), (sigmas, "noise", "second", "s")):
            axes.plot(range(len(values)), values, color=colours[colour], linewidth=1, alpha=0.7)
            at = 1 if name == "signal" else 2
            axes.plot(
                [s[0] for s in steps], [s[at] for s in steps], mark, color=colours[colour], markersize=5, label=name
            )
        axes.set_xlim(len(signals), 0)
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("timestep, from noise to picture")
        axes.set_ylabel("share of the latent")
        axes.grid(color=colours["line"], linewidth=0.5)
        axes.legend(frameon=False, labelcolor=colours["text"], loc="center left")

    return chart(draw, (WIDTH, 2.8), alt)


def similarity(words: Sequence[str], values: Any, alt: str) -> Chart:
    """Chart the cosine between each two words: NumPy (words, words). Long words are cut."""
    count = len(words)
    labels = [word if len(word) <= LONGEST else word[: LONGEST - 1] + "…" for word in map(plain, words)]
    side = min(7.0, 1.1 + 0.33 * count)

    def draw(axes: Any, colours: Colours) -> None:
        axes.pcolormesh(values, cmap="RdBu_r", vmin=-1, vmax=1, edgecolors=colours["back"], linewidth=1)
        axes.set_xticks([i + 0.5 for i in range(count)], labels=labels, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks([i + 0.5 for i in range(count)], labels=labels)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if count <= 12:
            for row in range(count):
                for column in range(count):
                    value = float(values[row, column])
                    shade = _ON_DARK if abs(value) > 0.6 else _ON_LIGHT
                    axes.text(
                        column + 0.5,
                        row + 0.5,
                        f"{round(value, 1) + 0.0:.1f}",
                        ha="center",
                        va="center",
                        color=shade,
                        fontsize=8,
                    )

    return chart(draw, (side, side), alt)


def line(values: Sequence[tuple[float, float]], marked: float | None, names: tuple[str, str], alt: str) -> Chart:
    """Chart (x, y) points as a line, x of them whole numbers, with one x marked; `names` are those of the axes."""

    def draw(axes: Any, colours: Colours) -> None:
        axes.plot(
            [x for x, _ in values], [y for _, y in values], "o-", color=colours["first"], markersize=3, linewidth=1.2
        )
        if marked is not None:
            axes.axvline(marked, color=colours["second"], linewidth=1.2, linestyle="--")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
        axes.grid(color=colours["line"], linewidth=0.5)

    return chart(draw, (WIDTH, 2.2), alt)


def bars(names: Sequence[str], pairs: Sequence[tuple[float, float]], kinds: tuple[str, str], alt: str) -> Chart:
    """Chart two shares (0 to 1) for each name, one above the other; `kinds` says what they are shares of."""

    def draw(axes: Any, colours: Colours) -> None:
        for at, (kind, colour) in enumerate(zip(kinds, ("first", "second"), strict=True)):
            places = [i + (at - 0.5) * 0.38 for i in range(len(names))]
            axes.barh(places, [100 * pair[at] for pair in pairs], height=0.36, color=colours[colour], label=kind)
        axes.set_yticks(range(len(names)), labels=names)
        axes.invert_yaxis()
        axes.set_xlabel("%")
        axes.grid(color=colours["line"], linewidth=0.5, axis="x")
        axes.set_axisbelow(True)
        # Above the bars, which may be as long as the chart is wide.
        axes.legend(
            frameon=False, labelcolor=colours["text"], loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0
        )

    return chart(draw, (WIDTH, 0.9 + 0.34 * len(names)), alt)
