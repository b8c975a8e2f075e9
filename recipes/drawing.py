"""How the small pictures look: colours, style, and the few habits that every one of them shares."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

INK = "#26313c"
MUTED = "#75818d"
GRID = "#e7ebef"
BLUE = "#1f6fb4"
RED = "#cf4a1f"
GREEN = "#2c8a63"
GREY = "#b7c0c9"
DASHED = (0, (4, 2))
LABEL_HEIGHT = 0.075
SERIES = (BLUE, RED, GREEN, "#8a5fb0", "#b8860b", "#0f8b8d", "#c2407d", "#5b6b7a")

Draw = Callable[[Any], None]

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fisheropt",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def svg(draw: Draw, *, width: float = 5.4, height: float = 3.0, rows: int = 1) -> str:
    """What `draw` makes of a figure with `rows` axes, as an SVG element for an HTML page.

    Args:
        draw: gets the axes (a list of them for several rows).
        width: inches.
        height: inches.
        rows: axes above each other with a common x axis.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, 1, sharex=True)
        draw(axes if rows == 1 else list(axes))
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata)
    return _inline(buffer.getvalue())


def _inline(document: str) -> str:
    """The bare element: in a page it needs neither prolog nor namespaces, and no fixed size."""
    element = document[document.index("<svg") :]
    element = re.sub(r"\s*<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", element)
    head, rest = element.split(">", 1)
    return re.sub(r'\s(width|height|version)="[^"]*"', "", head) + ">" + rest


def standalone(element: str, width: float, height: float) -> str:
    """The element as a file of its own, on white, so that it reads on dark pages too."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{96 * width:.0f}" height="{96 * height:.0f}" style="background:#fff"'
    )
    return element.replace("<svg", head, 1)


def embedded(document: str) -> str:
    """What `standalone` made a file of, as an element for a page again."""
    return re.sub(
        r'<svg xmlns="[^"]*" xmlns:xlink="[^"]*" width="\d+" height="\d+" style="[^"]*"', "<svg", document, count=1
    )


def end(points: tuple[list[float], list[Any]], name: str, colour: str) -> list[tuple[float, str, str]]:
    """Where a line ends, for `beside`; nothing for an empty line."""
    return [(points[1][-1], name, colour)] if points[1] else []


def beside(axes: Any, names: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right ends of lines, moved apart where they would overlap; found sooner than a legend."""
    low, high = axes.get_ylim()
    scale = math.log if axes.get_yscale() == "log" else float
    height = scale(high) - scale(low)
    names = [name for name in names if name[0] > 0 or scale is float]
    places = sorted(((scale(y) - scale(low)) / height, name, colour) for y, name, colour in names)
    at = -math.inf
    for place, name, colour in places:
        at = max(place, at + LABEL_HEIGHT)
        axes.annotate(name, (1.0, at), xycoords="axes fraction", xytext=(5, 0), textcoords="offset points",
                      color=colour, va="center", fontsize=9)  # fmt: skip


def by_epoch(axes: Any) -> None:
    """The common x axis."""
    axes.set_xlabel("epoch")
    axes.margins(x=0.01)


def plain_decades(axis: Any) -> None:
    """On a log scale of few decades, 0.1, 0.2, 0.5 in place of powers."""
    low, high = axis.get_view_interval()
    if axis.get_scale() == "log" and high / low < 300:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 30 else (1.0, 3.0)))
        axis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.set_minor_formatter(NullFormatter())


def zoom(axes: Any, values: Sequence[float]) -> None:
    """Limits that show these values, and not the outliers of the minibatches behind them."""
    low, high = min(values), max(values)
    if axes.get_yscale() == "log":
        axes.set_ylim(low / 1.2, high * 1.2)
    else:
        pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - pad, high + pad)


def positive(points: tuple[list[float], list[Any]]) -> tuple[list[float], list[Any]]:
    """The points that a log scale can show."""
    kept = [(x, y) for x, y in zip(*points, strict=True) if y > 0]
    return [x for x, _ in kept], [y for _, y in kept]
