"""AB-E3, AB-R5 and AB-R6: temperature control of a small network, with a known budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.control import Controller, Fixed
from fisheropt.control.go_h import GOH
from fisheropt.control.linear_decay import LinearDecay
from fisheropt.control.smith import Smith
from recipes import drawing
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Picture, Study, Tell
from recipes.studies.network_runs import START, TRAINING, Digits, Outcome, train

GREEDY = GOH(horizon=1e-9)  # lag 1 whatever is left
RULES: dict[str, Controller] = {
    "fixed": Fixed(),
    "linear decay": LinearDecay(),
    "Smith ×4": Smith(factor=4.0, stages=(0.5, 0.75, 0.9)),
    "greedy, lag 1": GREEDY,
    "GO-H": GOH(directions=30.0),
}
RATES = {"SGD": (0.1, 0.3, 0.6), "diagonal P": (0.005, 0.02, 0.05)}
MARGIN, COMPRESSED = 0.006, 0.01

KNOWN: dict[tuple[int, str], dict[str, tuple[float, float, float]]] = {
    (10, "SGD"): {
        "fixed": (0.666, 0.591, 0.602),
        "linear decay": (0.722, 0.623, 0.558),
        "Smith ×4": (0.711, 0.614, 0.555),
        "greedy, lag 1": (0.679, 0.626, 0.595),
        "GO-H": (0.665, 0.569, 0.527),
    },
    (10, "diagonal P"): {
        "fixed": (0.695, 0.592, 0.592),
        "linear decay": (0.764, 0.633, 0.555),
        "Smith ×4": (0.749, 0.624, 0.555),
        "greedy, lag 1": (0.700, 0.613, 0.579),
        "GO-H": (0.695, 0.582, 0.530),
    },
    (40, "SGD"): {
        "fixed": (0.492, 0.415, 0.451),
        "linear decay": (0.570, 0.430, 0.374),
        "Smith ×4": (0.554, 0.422, 0.377),
        "greedy, lag 1": (0.561, 0.505, 0.508),
        "GO-H": (0.489, 0.385, 0.374),
    },
    (40, "diagonal P"): {
        "fixed": (0.547, 0.424, 0.455),
        "linear decay": (0.618, 0.457, 0.369),
        "Smith ×4": (0.604, 0.444, 0.376),
        "greedy, lag 1": (0.583, 0.497, 0.494),
        "GO-H": (0.546, 0.400, 0.373),
    },
}


@final
class BatchNetwork(Study):
    """An MLP 64-32-10 on digits with a tenth of the labels at random.

    Args:
        epochs: budgets.
        seeds: starts of each rule and step size.
        seed: of the division, the wrong labels, the starts and the draws.
    """

    title: ClassVar[str] = "Temperature of a small network"
    question: ClassVar[str] = (
        "With a known number of samples to come, does GO-H reach a training loss as low as the best of a fixed batch, a "
        "linear decay of the step, batches × 4 at 50, 75 and 90 %, and lag 1, whichever step size the user chose? MLP "
        "64-32-10 (tanh), scikit-learn's digits, weight decay 10⁻³, batches from 16, samples drawn with replacement; the "
        "loss is the cross-entropy on all 1400 training points, a tenth of whose labels are random."
    )
    reference: ClassVar[str] = "adaptive-batch, AB-E3, AB-R5 and AB-R6"

    def __init__(self, epochs: Sequence[int] = (10, 40), seeds: int = 4, seed: int = 0) -> None:
        require(min(epochs, default=0) >= 1, f"epochs={list(epochs)}", "epochs=[10, 40]")
        require(seeds >= 2, f"seeds={seeds}", "seeds=4; a standard error needs two at least")
        self.epochs, self.seeds, self.seed = tuple(epochs), seeds, seed

    def run(self, tell: Tell) -> Findings:
        """Each budget and metric: the rules beside each other, then what a sketch costs."""
        digits = Digits.load(self.seed)
        rows: list[Finding] = []
        found: dict[tuple[int, str], dict[str, Outcome]] = {}
        settings = [(epochs, metric) for epochs in self.epochs for metric in RATES]
        for place, (epochs, metric) in enumerate(settings):
            outcomes: dict[str, Outcome] = {}
            for index, (name, rule) in enumerate(RULES.items()):
                tell((place + index / len(RULES)) / len(settings), f"{epochs} epochs, {metric}, {name}")
                outcomes[name] = self._train(digits, rule, epochs, metric)
            found[epochs, metric] = outcomes
            rows += _compared(epochs, metric, outcomes)
        rows.append(_gain(list(found.values())))
        for metric in RATES:
            tell(0.99, f"{metric}, gradients as they are")
            epochs = min(self.epochs)
            exact = train(digits, RULES["GO-H"], RATES[metric], self.seeds, epochs, metric != "SGD", None, self.seed)
            rows += _compression(epochs, metric, found[epochs, metric]["GO-H"], exact)
        return Findings(tuple(rows), (_picture(found),))

    def _train(self, digits: Digits, rule: Controller, epochs: int, metric: str) -> Outcome:
        return train(digits, rule, RATES[metric], self.seeds, epochs, metric != "SGD", seed=self.seed)


def _compared(epochs: int, metric: str, outcomes: dict[str, Outcome]) -> list[Finding]:
    rows = []
    baselines = [name for name in outcomes if name != "GO-H"]
    for index, lr in enumerate(RATES[metric]):
        what = f"{epochs} epochs, {metric}, η = {lr}"
        for name, outcome in outcomes.items():
            mean, error = _mean(outcome.objective[index])
            known = KNOWN.get((epochs, metric), {}).get(name)
            words = (
                f"{outcome.steps[index].mean():.0f} steps, {100 * outcome.accuracy[index].mean():.1f} % on clean labels"
            )
            expected = None if known is None else known[index]
            rows.append(Finding.told(f"{what}: {name}", mean, expected=expected, error=error, remark=words))
        best = min(baselines, key=lambda name: float(outcomes[name].objective[index].mean()))
        mean, error = _mean(outcomes["GO-H"].objective[index] - outcomes[best].objective[index])
        rows.append(
            Finding.between(f"R5, {what}: GO-H less {best}, the best baseline", mean, None, MARGIN, error=error)
        )
    return rows


def _gain(found: Sequence[dict[str, Outcome]]) -> Finding:
    """Mean over all settings of what GO-H is below the best of the three schedules that look at nothing."""
    gains, accuracies = [], []
    for outcomes in found:
        for index in range(len(outcomes["GO-H"].objective)):
            blind = [outcomes[name] for name in ("fixed", "linear decay", "Smith ×4")]
            best = min(blind, key=lambda outcome: float(outcome.objective[index].mean()))
            gains.append(best.objective[index].mean() - outcomes["GO-H"].objective[index].mean())
            accuracies.append(outcomes["GO-H"].accuracy[index].mean() - best.accuracy[index].mean())
    mean, error = _mean(torch.stack(gains))
    accuracy, spread = _mean(100 * torch.stack(accuracies))
    words = f"accuracy on clean labels {accuracy:+.1f} ± {spread:.1f} points: no gain is claimed"
    return Finding.told("mean gain over the best of three schedules", mean, expected=0.012, error=error, remark=words)


def _compression(epochs: int, metric: str, sketched: Outcome, exact: Outcome) -> list[Finding]:
    rows = []
    for index, lr in enumerate(RATES[metric]):
        mean, error = _mean(sketched.objective[index] - exact.objective[index])
        what = f"R6, {epochs} epochs, {metric}, η = {lr}: sketch of 256 less gradients as they are"
        rows.append(Finding.between(what, mean, -COMPRESSED, COMPRESSED, error=error))
    return rows


def _mean(values: Tensor) -> tuple[float, float]:
    """With its standard error."""
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def _picture(found: dict[tuple[int, str], dict[str, Outcome]]) -> Picture:
    """All losses above the lowest of their setting."""

    def draw(axes: Any) -> None:
        labels, lowest = [], []
        for (epochs, metric), outcomes in found.items():
            for index, lr in enumerate(RATES[metric]):
                labels.append(f"{epochs}\n{'P' if metric != 'SGD' else 'SGD'}\n{lr:g}")
                lowest.append(min(float(outcome.objective[index].mean()) for outcome in outcomes.values()))
        for place, name in enumerate(RULES):
            means = [float(x.mean()) for outcomes in found.values() for x in outcomes[name].objective]
            above = [mean - low for mean, low in zip(means, lowest, strict=True)]
            style = {"marker": "o", "linestyle": "none", "markersize": 7 if name == "GO-H" else 4}
            axes.plot(range(len(above)), above, color=drawing.SERIES[place], label=name, **style)
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
        axes.set_ylabel("loss above the lowest")
        axes.legend(fontsize=8)

    words = f"Columns are budgets in epochs of {TRAINING} samples, metrics and step sizes; all begin with batches of {START}."
    return Picture("Training loss of each rule", words, draw, width=6.4)
