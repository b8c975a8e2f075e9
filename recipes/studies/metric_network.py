"""NF-B1, NF-B2, NF-B7 and the table of four networks: bounds on both sides, biased and unbiased estimates."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from fisheropt import FisherMetric
from fisheropt.theory.estimator_quality import diagonal_cv
from recipes.drawing import SERIES
from recipes.studies.base import Finding, Findings, Picture, Study, StudyError, Tell
from recipes.studies.metric_networks import Case, case

SIDES = {
    "C = 2, at initialisation": ((1, 1, 1), (1.4, 1.6, 2.0), (1.02, 1.03, 1.03)),
    "C = 2, trained": ((1, 1, 1), (7.9, 7.6, 20.9), (0.28, 0.29, 0.30)),
    "C = 4, at initialisation": ((0.27, 0.31, 0.36), (1.38, 1.35, 1.34), (0.96, 0.98, 1.00)),
    "C = 4, trained": ((0.79, 0.79, 0.81), (2.7, 3.0, 4.6), (0.66, 0.72, 0.78)),
}
"""LR/F, DG/F, empirical/F of the weights of layers 1, 2, 3 as the document has them; of the last it has the range."""
CERTAINTY = {"C = 2, trained": 0.95, "C = 4, trained": 0.81}
CERTAIN = {"C = 2, trained": 6.8, "C = 4, trained": 1.71}


@final
class MetricNetwork(Study):
    """Diagonals of F, of its bounds and of the empirical Fisher, and the variation of three estimators.

    Args:
        points: N, where F is measured.
        epochs: of training.
        hidden: width of the two hidden layers.
        seed: of data and networks.
    """

    title: ClassVar[str] = "The Fisher matrix of a network between its bounds"
    question: ClassVar[str] = (
        "Do the bounds of rank one and of the diagonal core hold in every entry of the diagonal, how tight are they before "
        "and after training, and how far may an estimate from labels drawn from the model be off? MLP 20-48-48-C on Gaussian "
        "blobs; all numbers are exact, without probes."
    )
    reference: ClassVar[str] = "after sun2025; NF-B1, NF-B2, NF-B4, NF-B7"

    def __init__(self, points: int = 256, epochs: int = 60, hidden: int = 48, seed: int = 0) -> None:
        if not 2 <= points <= 1024 or epochs < 1:
            raise StudyError(
                f"points={points}, epochs={epochs}: write points=256 (2 to 1024) and epochs=60 (1 or more)"
            )
        self.points, self.epochs, self.hidden, self.seed = points, epochs, hidden, seed

    def run(self, tell: Tell) -> Findings:
        """Four networks, one after another."""
        rows: list[Finding] = []
        shares = {}
        names = [(2, 0), (2, self.epochs), (4, 0), (4, self.epochs)]
        for number, (classes, epochs) in enumerate(names):
            network = case(classes, epochs, self.points, self.seed, self.hidden)
            found, shares[network.name] = self._network(network)
            rows += found
            tell((number + 1) / len(names), network.name)
        return Findings(tuple(rows), (_picture(shares),))

    def _network(self, network: Case) -> tuple[list[Finding], dict[str, Tensor]]:
        lower, fisher, upper = (_diagonal(network, variant) for variant in ("lower", "exact", "upper"))
        empirical = _diagonal(network, "empirical")
        name, scale = network.name, fisher.max()
        worst = float(torch.maximum(lower - fisher, fisher - upper).max() / scale)
        rows = [Finding.between(f"{name}: B1, largest violation of LR <= F <= DG in an entry", worst, None, 1e-10)]
        if name.startswith("C = 2"):
            off = float((lower - fisher).abs().max() / scale)
            rows.append(Finding.between(f"{name}: B2, largest |LR - F|", off, None, 1e-10, expected=0.0))
        if name in CERTAINTY:
            rows.append(Finding.told(f"{name}: mean max p", network.certainty, expected=CERTAINTY[name]))
        parts = list(network.weights().values())
        for kind, of, expected in zip(
            ("LR/F", "DG/F", "empirical/F"), (lower, upper, empirical), SIDES[name], strict=True
        ):
            for layer, (part, value) in enumerate(zip(parts, expected, strict=True), start=1):
                ratio = float(of[part].sum() / fisher[part].sum())
                rows.append(_judged(f"{name}: {kind}, weights of layer {layer}", kind, ratio, value))
        return rows + self._variation(network, fisher), {"LR": lower / fisher, "DG": upper / fisher}

    def _variation(self, network: Case, fisher: Tensor) -> list[Finding]:
        name, alive = network.name, fisher > 1e-12 * fisher.max()
        probes = float(diagonal_cv(network.rows())[alive].max())
        fourth, squares = _scores(network)
        total = fisher * len(network.x)
        spread = (fourth - squares).clamp(min=0)
        per_sample = float((spread.sqrt() / total)[alive].max())
        summed = float(((fourth - 3 * squares + 2 * total.square()).clamp(min=0).sqrt() / total)[alive].max())
        limit = 1.5 if name in CERTAIN and "C = 2" in name else None
        drawn, expected = f"{name}: B7, largest CV of an entry by drawn labels, one backward", CERTAIN.get(name, 1.41)
        return [
            Finding.between(f"{name}: B4, largest CV of a Hutchinson entry", probes, None, 2**0.5, expected=1.41),
            Finding.between(drawn, summed, limit, None, expected=expected),
            Finding.told(f"{name}: the same by drawn labels, sample by sample", per_sample),
        ]


def _diagonal(network: Case, variant: str) -> Tensor:
    """Of F, a bound or the empirical Fisher, mean over inputs, with nothing random."""
    metric = FisherMetric(network.model, "categorical", variant, num_probes="all")
    metric.update(network.x, targets=network.y if variant == "empirical" else None)
    return torch.cat([d.flatten() for d in metric.diagonal().values()])


def _scores(network: Case) -> tuple[Tensor, Tensor]:
    """Σ_x E s⁴ and Σ_x (E s²)² of the scores s = Jᵀ(e_y - p), y ~ p, [P] each."""
    J = network.jacobian()
    with torch.no_grad():
        p = network.model(network.x).softmax(1)
    fourth = squares = torch.zeros(J.shape[2], dtype=J.dtype)
    second = torch.zeros(len(J), J.shape[2], dtype=J.dtype)
    for label in range(p.shape[1]):
        residual = F.one_hot(torch.tensor(label), p.shape[1]) - p
        score = torch.einsum("nap,na->np", J, residual)
        weight = p[:, label, None]
        fourth = fourth + (weight * score**4).sum(0)
        second = second + weight * score.square()
    return fourth, squares + second.square().sum(0)


def _judged(what: str, kind: str, seen: float, expected: float) -> Finding:
    """Side by side; required is the order, not the size, as the blobs of the document are unknown."""
    if kind == "empirical/F":
        return Finding.told(what, seen, expected=expected)
    low, high = (None, 1 + 1e-10) if kind == "LR/F" else (1 - 1e-10, None)
    return Finding.between(what, seen, low, high, expected=expected)


def _picture(shares: dict[str, dict[str, Tensor]]) -> Picture:
    def draw(axes: Any) -> None:
        for at, sides in enumerate(shares.values()):
            for side, colour in (("LR", SERIES[0]), ("DG", SERIES[1])):
                values = sides[side][sides[side].isfinite()]
                low, middle, high = values.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)).tolist()
                axes.plot([low, high], [at, at], color=colour, linewidth=5, alpha=0.45)
                axes.plot([middle], [at], "o", color=colour, markersize=5, label=f"{side}/F" if at == 0 else None)
        axes.axvline(1, color="#26313c", linewidth=1)
        axes.set_xscale("log")
        axes.set_yticks(range(len(shares)), list(shares))
        axes.set_xlabel("bound / F, entries of the diagonal: median and 5 to 95 %")
        axes.legend(loc="lower right", fontsize=9)

    words = "The lower side tightens with training, the upper side loosens; for two classes the lower side is F itself."
    return Picture("Bounds relative to F", words, draw)
