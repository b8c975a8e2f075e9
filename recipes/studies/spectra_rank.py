"""The rank of a low-rank metric: from the edge of the bulk, fixed, or none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisheropt.optim.godambe import GodambeSGD
from fisheropt.theory.dynamics import expected_loss
from fisheropt.theory.mixture_nodes import make_mixture
from recipes.drawing import BLUE, GREY, INK, RED, plain_decades
from recipes.medians import Interval, median_interval
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.spectra_samples import Setting, features, orthonormal

Make = Callable[[nn.Module, float], torch.optim.Optimizer]

CLASSES, SNR = 4, 8.0
SETTINGS = {"means around 0": 0.0, "common mean of length 3": 3.0, "common mean of length 6": 6.0}
RANKS = (1, 2, 4, 8)
EDGE, SGD = "rank edge", "SGD"
NEWTON_RATES, SGD_RATES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4), (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_BATCH, _EVERY, _LARGEST, _TUNING = 64, 8, 8, 4


class Method(NamedTuple):
    """An optimizer and its learning rates to choose from, equally many for each."""

    make: Make
    rates: tuple[float, ...]


class Outcome(NamedTuple):
    """Excess losses [seeds] at the rate chosen, and the directions kept at the end."""

    rate: float
    excess: list[float]
    kept: list[int]

    @property
    def interval(self) -> Interval:
        """The median over seeds."""
        found = median_interval(self.excess)
        assert found is not None
        return found


def _lowrank(rank: int | str, metric: str = "curvature") -> Make:
    def make(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return GodambeSGD(
            model,
            lr,
            structure="lowrank",
            rank=rank,  # type: ignore[arg-type]
            metric=metric,  # type: ignore[arg-type]
            largest_rank=_LARGEST,
            likelihood="categorical" if metric == "curvature" else None,
            every=_EVERY,
        )

    return make


def _full(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return GodambeSGD(model, lr, structure="full", likelihood="categorical", every=_EVERY)


METHODS = {
    SGD: Method(lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr), SGD_RATES),
    **{f"rank {rank}": Method(_lowrank(rank), NEWTON_RATES) for rank in RANKS},
    EDGE: Method(_lowrank("edge"), NEWTON_RATES),
    "rank edge of G": Method(_lowrank("edge", "fisher"), NEWTON_RATES),
    "full": Method(_full, NEWTON_RATES),
}


@final
class SpectraRank(Study):
    """One pass of softmax regression over a mixture by SGD, low-rank metrics and the full one.

    Args:
        dimension: features.
        samples: of a pass.
        seeds: of the comparison; four others choose the learning rates.
        seed: added to all of them.
    """

    title: ClassVar[str] = "Rank by the edge of the bulk"
    question: ClassVar[str] = (
        "Does GodambeSGD(structure='lowrank', rank='edge') end a pass over a mixture at a lower loss than fixed ranks, the "
        "full metric, or plain SGD? Six learning rates each, chosen on four seeds and compared on others; "
        "class means around zero, and around a common mean, which gives the curvature large outliers."
    )
    reference: ClassVar[str] = "design rule of ours from benarous2025local, MS section 1"

    def __init__(self, dimension: int = 60, samples: int = 6000, seeds: int = 16, seed: int = 0) -> None:
        require(dimension > CLASSES, f"dimension={dimension}", f"dimension=60, more than {CLASSES}")
        require(samples >= 2 * _BATCH, f"samples={samples}", f"samples=6000, {2 * _BATCH} or more")
        require(seeds >= 2, f"seeds={seeds}", "seeds=16, two or more")
        self.dimension, self.samples, self.seeds, self.seed = dimension, samples, seeds, seed

    def run(self, tell: Tell) -> Findings:
        """Tune and compare in every setting."""
        rows: list[Finding] = []
        outcomes: dict[str, dict[str, Outcome]] = {}
        for place, (name, shift) in enumerate(SETTINGS.items()):
            setting = _setting(self.dimension, shift)
            found = {}
            for index, (label, method) in enumerate(METHODS.items()):
                tell((place + index / len(METHODS)) / len(SETTINGS), f"{name}, {label}")
                found[label] = self._contest(method, setting)
            outcomes[name] = found
            rows += _medians(name, found) + _differences(name, found)
            if shift:
                rows.append(_rank(name, found[EDGE].kept))
        return Findings(tuple(rows), (_picture(outcomes),))

    def _contest(self, method: Method, setting: Setting) -> Outcome:
        """Choose the learning rate by the mean over four seeds, then run the others with it."""
        tuning = range(_TUNING)
        means = [sum(self._pass(method.make, rate, setting, s)[0] for s in tuning) for rate in method.rates]
        rate = method.rates[means.index(min(means))]
        runs = [self._pass(method.make, rate, setting, _TUNING + s) for s in range(self.seeds)]
        return Outcome(rate, [excess for excess, _ in runs], [kept for _, kept in runs])

    def _pass(self, make: Make, rate: float, setting: Setting, seed: int) -> tuple[float, int]:
        """Excess loss after one pass from zero, infinite if it diverged, and the directions kept."""
        generator = torch.Generator().manual_seed(10_000 * self.seed + seed)
        inputs, labels = features(setting, self.samples, generator)
        order = torch.randperm(self.samples, generator=generator)
        inputs, labels = inputs[order].float(), labels[order]
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, self.dimension, CLASSES, bias=False)
        nn.init.zeros_(layer.weight)
        optimizer = make(layer, rate)
        for start in range(0, self.samples - _BATCH + 1, _BATCH):
            batch = slice(start, start + _BATCH)
            F.cross_entropy(layer(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
        excess = _loss(setting, layer.weight.detach().double().T) - _loss(setting, SNR * setting.means)
        return excess, int(optimizer.param_groups[0].get("kept", 0))


def _setting(dimension: int, shift: float) -> Setting:
    """Orthonormal means, moved together along another unit vector."""
    columns = orthonormal(dimension, CLASSES + 1)
    means = columns[:, :CLASSES] + shift * columns[:, CLASSES:]
    return Setting(means, means, (1 / CLASSES,) * CLASSES, SNR)


def _loss(setting: Setting, head: Tensor) -> float:
    """The expected loss, exactly; λμ is the best head as all means have one length."""
    if not head.isfinite().all():
        return math.inf
    columns = torch.cat((head, setting.means), 1)
    return expected_loss(make_mixture(columns.T @ columns, setting.proportions, setting.snr))


def _words(interval: Interval) -> str:
    return f"{interval.coverage:.0%} interval {interval.low:.3g} to {interval.high:.3g}"


def _rank(name: str, kept: list[int]) -> Finding:
    """The curvature's large eigenvalues belong to the common mean, once for each coordinate that softmax sees."""
    what, middle = f"{name}: directions that {EDGE} keeps, median", sorted(kept)[len(kept) // 2]
    return Finding.near(what, middle, CLASSES - 1, absolute=1, remark="the common mean in C - 1 coordinates, and means")


def _medians(name: str, found: dict[str, Outcome]) -> list[Finding]:
    rows = []
    for label, outcome in found.items():
        rates, kept = METHODS[label].rates, sorted(outcome.kept)
        ends = ", an end of its grid" if outcome.rate in (rates[0], rates[-1]) else ""
        held = f"; keeps {kept[0]} to {kept[-1]}" if label.startswith(EDGE) else ""
        remark = f"{_words(outcome.interval)}; η = {outcome.rate:g}{ends}{held}"
        rows.append(Finding.told(f"{name}: {label}, excess loss, median", outcome.interval.median, remark=remark))
    return rows


def _differences(name: str, found: dict[str, Outcome]) -> list[Finding]:
    """The same data in the same order for both: the difference has less chance in it than either."""
    rows, edge = [], found[EDGE]
    for label, outcome in found.items():
        if label == EDGE:
            continue
        interval = median_interval([a - b for a, b in zip(edge.excess, outcome.excess, strict=True)])
        assert interval is not None
        verdict = "undecided" if interval.low <= 0 <= interval.high else "better" if interval.high < 0 else "worse"
        what = f"{name}: {EDGE} minus {label}, median of paired differences"
        rows.append(Finding.told(what, interval.median, remark=f"{EDGE} is {verdict}: {_words(interval)}"))
    return rows


def _picture(outcomes: dict[str, dict[str, Outcome]]) -> Picture:
    def draw(axes: list[Any]) -> None:
        for ax, (name, found) in zip(axes, outcomes.items(), strict=True):
            for place, (label, outcome) in enumerate(found.items()):
                colour = RED if label == EDGE else BLUE
                ax.plot([place] * len(outcome.excess), outcome.excess, "o", color=GREY, markersize=3.5)
                ax.plot([place - 0.3, place + 0.3], [outcome.interval.median] * 2, color=colour, linewidth=2.2)
            ax.set_yscale("log")
            plain_decades(ax.yaxis)
            ax.set_ylabel("excess loss")
            ax.set_title(name, loc="left", fontsize=9.5, color=INK)
        names = [label.replace("rank edge of G", "edge of G").replace("rank edge", "edge") for label in METHODS]
        axes[-1].set_xticks(range(len(names)), names)
        axes[-1].grid(visible=False, axis="x")

    words = "Dots: seeds; bars: medians, each method at its own best learning rate. Lower is better."
    return Picture("Loss after one pass", words, draw, width=6.4, height=2.2 * len(outcomes), rows=len(outcomes))
