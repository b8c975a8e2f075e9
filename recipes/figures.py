"""The small pictures of the reports, one function each: what is drawn, from which lines of the record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.drawing import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    INK,
    MUTED,
    RED,
    SERIES,
    beside,
    by_epoch,
    end,
    plain_decades,
    positive,
    svg,
    zoom,
)

CURVES = 24

Line = Mapping[str, Any]


def series(lines: Sequence[Line], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the lines that have a finite value of the key."""
    points = [(line["train/epoch"], line[key]) for line in lines if _finite(line.get(key))]
    return [x for x, _ in points], [y for _, y in points]


def spectra(lines: Sequence[Line], key: str) -> tuple[list[float], list[Any]]:
    """The same of an entry of the spectrum; lists of eigenvalues come in ascending order."""
    points = [(line["train/epoch"], line["spectrum"][key]) for line in lines if key in line.get("spectrum", {})]
    return [x for x, _ in points], [sorted(y) if isinstance(y, list) else y for _, y in points]


def loss(lines: Sequence[Line], optimum: float | None) -> str:
    """Objective on all training and test data, with that of the minibatches behind, and the optimum."""
    train, test = series(lines, "train/loss"), series(lines, "test/loss")

    def draw(axes: Any) -> None:
        axes.plot(*series(lines, "train/batch_loss"), color=GREY, linewidth=0.9)
        axes.plot(*train, color=BLUE)
        axes.plot(*test, color=GREEN)
        names = [*end(train, "training", BLUE), *end(test, "test", GREEN)]
        if optimum is not None:
            axes.axhline(optimum, color=RED, linewidth=1.2, linestyle=DASHED)
            names.append((optimum, "optimum f*", RED))
        if min(train[1] + test[1]) > 0 and _spread(train[1]) > 5:
            axes.set_yscale("log")
        zoom(axes, train[1] + test[1] + ([] if optimum is None else [optimum]))
        plain_decades(axes.yaxis)
        by_epoch(axes)
        beside(axes, names)

    return svg(draw)


def suboptimality(lines: Sequence[Line]) -> str | None:
    """(f - f*)/f* on a log scale; None where f* is unknown."""
    points = positive(series(lines, "train/relative_suboptimality"))
    if not points[0]:
        return None

    def draw(axes: Any) -> None:
        axes.plot(*points, color=BLUE)
        axes.set_yscale("log")
        plain_decades(axes.yaxis)
        by_epoch(axes)

    return svg(draw)


def noise_floor(lines: Sequence[Line]) -> str | None:
    """f - f* against the floor that the temperature predicts; None where either is unknown."""
    measured, predicted = positive(series(lines, "train/suboptimality")), positive(series(lines, "noise/noise_floor"))
    if not measured[0] or not predicted[0]:
        return None

    def draw(axes: Any) -> None:
        axes.set_yscale("log")
        axes.plot(*measured, color=BLUE)
        axes.plot(*predicted, color=RED, linestyle=DASHED)
        by_epoch(axes)
        beside(axes, [*end(measured, "f - f*", BLUE), *end(predicted, "noise floor", RED)])

    return svg(draw)


def spectrum(lines: Sequence[Line], key: str) -> str | None:
    """Eigenvalues over training against Λ*, 2Λ*, 3Λ* and the floor; None where none were measured."""
    epochs, rows = spectra(lines, key)
    if not epochs:
        return None
    columns = _thinned(_aligned(rows))
    bottom = _bottom(columns)

    def draw(axes: Any) -> None:
        axes.set_yscale("log")
        for rank, column in reversed(list(enumerate(columns))):
            weight = 2.2 if rank == 0 else 1.0
            axes.plot(epochs, [max(v, bottom) for v in column], color=BLUE, alpha=_alpha(rank), linewidth=weight)
        names = [(rows[-1][-1], "largest", BLUE), (max(rows[-1][0], bottom), "smallest", BLUE)]
        names += _thresholds(axes, lines)
        by_epoch(axes)
        beside(axes, names)

    return svg(draw)


def _thresholds(axes: Any, lines: Sequence[Line]) -> list[tuple[float, str, str]]:
    """Λ* with what lies below it shaded, 2Λ* and 3Λ*, and the floor τ; returns their names.

    The limits hold their last values and not the first, which a handful of samples make large.
    """
    names, star, floor = [], spectra(lines, "lambda_star"), positive(spectra(lines, "floor"))
    shown = [*axes.get_ylim(), *(3.5 * v for v in star[1][-1:] if v > 0), *(v / 1.2 for v in floor[1][-1:])]
    axes.set_ylim(min(shown), max(shown))
    if star[0]:
        axes.fill_between(star[0], min(shown), star[1], color=RED, alpha=0.07, linewidth=0)
        for times in (1, 2, 3):
            level = star[0], [times * value for value in star[1]]
            axes.plot(*level, color=RED, linestyle=DASHED, linewidth=1.4 if times == 1 else 0.7)
            names += end(level, "Λ*" if times == 1 else f"{times}Λ*", RED)
    if floor[0]:
        axes.plot(*floor, color=INK, linestyle=DASHED, linewidth=1.2)
        names += end(floor, "floor τ", INK)
    return names


def _aligned(rows: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Columns of rows that end with the largest; early ones may hold null directions that were then left out."""
    size = max(len(row) for row in rows)
    return list(zip(*([math.nan] * (size - len(row)) + list(row) for row in rows), strict=True))


def final_spectrum(group: Mapping[str, Any]) -> str | None:
    """The last eigenvalues with two standard errors each, and where the floor has lifted them to."""
    values, errors = group.get("eigenvalues"), group.get("eigenvalues_se")
    if not values:
        return None
    order = sorted(range(len(values)), key=lambda i: float(values[i]))
    places = range(1, len(order) + 1)
    bottom = _bottom([[v] for v in values])

    def draw(axes: Any) -> None:
        axes.set_yscale("log")
        for place, i in zip(places, order, strict=True):
            reach = 2.0 * errors[i] if errors else 0.0
            ends = [max(values[i] - reach, bottom), max(values[i] + reach, bottom)]
            axes.plot([place, place], ends, color=BLUE, linewidth=1.4, alpha=0.45)
        axes.plot(places, [max(values[i], bottom) for i in order], "o", color=BLUE, markersize=4)
        names = []
        if group.get("effective_eigenvalues"):
            axes.plot(places, sorted(group["effective_eigenvalues"]), "_", color=INK, markersize=8, markeredgewidth=1.4)
        if group.get("lambda_star"):
            for times, name in ((1, "Λ*"), (3, "3Λ*")):
                axes.axhline(times * group["lambda_star"], color=RED, linewidth=1.2 / times, linestyle=DASHED)
                names.append((times * group["lambda_star"], name, RED))
        if group.get("floor"):
            axes.axhline(group["floor"], color=INK, linewidth=1.0, linestyle=DASHED)
            names.append((group["floor"], "floor τ", INK))
        axes.set_xlabel("direction, from the weakest")
        axes.xaxis.get_major_locator().set_params(integer=True)
        beside(axes, names)

    return svg(draw)


def temperature(lines: Sequence[Line]) -> str:
    """Temperature lr / b, and the batch size under it."""
    rows = (("train/temperature", "temperature η/b", BLUE), ("train/batch_size", "batch size b", GREEN))

    def draw(axes: Any) -> None:
        for panel, (key, name, colour) in zip(axes, rows, strict=True):
            points = series(lines, key)
            panel.plot(*points, color=colour, drawstyle="steps-post")
            panel.set_title(name, loc="left", fontsize=9.5, color=MUTED)
            if _spread(points[1]) > 10:
                panel.set_yscale("log")
            else:
                panel.set_ylim(0, 1.15 * max(points[1]) or 1.0)
            panel.margins(x=0.01)
        axes[1].set_xlabel("epoch")

    return svg(draw, rows=2)


def signal_and_noise(lines: Sequence[Line]) -> str | None:
    """‖∇L‖² against tr G / b, what a step knows and what it does not; None where not measured."""
    measured = [line for line in lines if "noise_trace" in line.get("spectrum", {})]
    if not measured:
        return None
    epochs = [line["train/epoch"] for line in measured]
    noise = positive((epochs, [line["spectrum"]["noise_trace"] / line["train/batch_size"] for line in measured]))
    signal = positive(spectra(lines, "signal"))

    def draw(axes: Any) -> None:
        axes.set_yscale("log")
        axes.plot(*noise, color=RED)
        axes.plot(*signal, color=BLUE, linewidth=0.8, marker="o", markersize=2.5)
        by_epoch(axes)
        beside(axes, [*end(noise, "noise tr G/b", RED), *end(signal, "signal ‖∇L‖²", BLUE)])

    return svg(draw)


def dimension(lines: Sequence[Line]) -> str | None:
    """Effective dimension with a band of two standard errors; None where it was not measured."""
    epochs, values = spectra(lines, "effective_dimension")
    if not epochs:
        return None

    def draw(axes: Any) -> None:
        _, errors = spectra(lines, "effective_dimension_se")
        if len(errors) == len(values):
            low = [v - 2 * e for v, e in zip(values, errors, strict=True)]
            high = [v + 2 * e for v, e in zip(values, errors, strict=True)]
            axes.fill_between(epochs, low, high, color=BLUE, alpha=0.15, linewidth=0)
        axes.plot(epochs, values, color=BLUE)
        by_epoch(axes)

    return svg(draw)


def accuracy(lines: Sequence[Line]) -> str | None:
    """Share of the test data that is classified rightly; None for a problem without classes."""
    points = series(lines, "test/accuracy")
    if not points[0]:
        return None

    def draw(axes: Any) -> None:
        axes.plot(*points, color=GREEN)
        zoom(axes, points[1][len(points[1]) // 10 :])
        by_epoch(axes)

    return svg(draw)


def comparison(rows: Sequence[tuple[str, float, float, float]], *, log: bool) -> str:
    """A line per setting: its median and its interval over seeds, best first.

    Args:
        rows: name, median, low and high.
        log: logarithmic axis.
    """

    def draw(axes: Any) -> None:
        for place, (_, median, low, high) in enumerate(reversed(rows)):
            axes.plot([low, high], [place, place], color=BLUE, alpha=0.35, linewidth=5)
            axes.plot([median], [place], "o", color=BLUE, markersize=6)
        axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)], color=INK)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        if log:
            axes.set_xscale("log")
            plain_decades(axes.xaxis)

    return svg(draw, width=9.0, height=0.7 + 0.3 * len(rows))


def curves(runs: Mapping[str, Sequence[tuple[list[float], list[float]]]], *, log: bool) -> str:
    """One colour per setting, one thin line per seed."""

    def draw(axes: Any) -> None:
        for colour, (name, seeds) in zip(_colours(len(runs)), runs.items(), strict=True):
            for i, points in enumerate(seeds):
                kept = positive(points) if log else points
                axes.plot(*kept, color=colour, linewidth=1.4, alpha=0.85, label=name if i == 0 else None)
        if log:
            axes.set_yscale("log")
        by_epoch(axes)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2, labelcolor=INK)

    return svg(draw, width=9.0, height=3.4)


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _spread(values: Sequence[float]) -> float:
    kept = [value for value in values if value > 0]
    return max(kept) / min(kept) if kept else 1.0


def _thinned(columns: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """At most CURVES of them, evenly chosen, the first and the last included."""
    if len(columns) <= CURVES:
        return columns
    return [columns[round(i * (len(columns) - 1) / (CURVES - 1))] for i in range(CURVES)]


def _alpha(rank: int) -> float:
    """The weakest direction stands out."""
    return 1.0 if rank == 0 else 0.45


def _bottom(columns: Sequence[Sequence[float]]) -> float:
    """Where a log scale shows values that are not positive: below all others, at most nine decades down."""
    shown = [value for column in columns for value in column if value > 0]
    return max(min(shown) / 2, 1e-9 * max(shown)) if shown else 1e-9


def _colours(count: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]
