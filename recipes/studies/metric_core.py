"""NF-1, NF-2, NF-11 to NF-13: spectrum, bounds and envelopes of the core on thousands of random probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt.theory import envelopes, simplex
from recipes.drawing import SERIES
from recipes.studies.base import Finding, Findings, Picture, Study, StudyError, Tell

ROUNDING = 1e-13
LEAST = 1e-6
"""Violations relative to a smaller λ_C would be those of the rounding of eigh."""
CAPTURED = {1: 0.84, 3: 0.94, 10: 0.99}
NAIVE = {0: 0.33, 3: 0.24, 30: 0.003}
CORNERS = {4: 0.667, 10: 0.556, 100: 0.505}


@final
class MetricCore(Study):
    """Every statement about diag(p) - ppᵀ, checked for violations.

    Args:
        classes: numbers C of classes.
        concentrations: of the Dirichlet laws that p is drawn from.
        draws: of p for each pair.
        seed: of them.
    """

    title: ClassVar[str] = "The core information of a softmax head"
    question: ClassVar[str] = (
        "Is any bound on the largest eigenvalue of diag(p) - ppᵀ, any envelope or any error formula violated by a random p? "
        "How much does a safe form of rank one hold, and does a naive one overshoot?"
    )
    reference: ClassVar[str] = "after sun2025; NF-1, NF-2, NF-11, NF-12, NF-13"

    def __init__(
        self,
        classes: Sequence[int] = (2, 3, 4, 10, 20, 50),
        concentrations: Sequence[float] = (0.1, 0.5, 1.0, 10.0),
        draws: int = 300,
        seed: int = 0,
    ) -> None:
        if min(classes) < 2 or min(concentrations) <= 0 or draws < 2:
            raise StudyError(
                "classes, concentrations and draws: write classes of 2 or more, positive concentrations, draws=300"
            )
        self.classes, self.concentrations, self.draws, self.seed = list(classes), list(concentrations), draws, seed

    def run(self, tell: Tell) -> Findings:
        """All draws, class by class."""
        worst: dict[str, float] = {}
        tight: dict[str, list[Tensor]] = {}
        shares: dict[str, list[Tensor]] = {}
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for number, classes in enumerate(self.classes):
                for concentration in self.concentrations:
                    law = torch.distributions.Dirichlet(torch.full((classes,), concentration, dtype=torch.float64))
                    p = law.sample((self.draws,))
                    p = p / p.sum(1, keepdim=True)
                    for name, value in _violations(p).items():
                        worst[name] = max(worst.get(name, 0.0), value)
                    for name, values in _tightness(p).items():
                        tight.setdefault(name, []).append(values)
                    for name, values in _low_rank(p).items():
                        shares.setdefault(name, []).append(values)
                tell((number + 1) / len(self.classes), f"C = {classes}")
        rows = [
            Finding.between(f"NF-1: largest violation, {name}", value, None, ROUNDING) for name, value in worst.items()
        ]
        return Findings((*rows, *_shares(shares), *_corners()), (_picture(tight),))


def _violations(p: Tensor) -> dict[str, float]:
    values, information = simplex.spectrum(p), simplex.core(p)
    largest = values[:, -1]
    low, high = simplex.interlacing(p)
    below, above = envelopes.lower_envelope(p), envelopes.upper_envelope(p)
    lower, upper = simplex.lower_bounds(p), simplex.upper_bounds(p)
    found = {
        "interlacing": torch.maximum(low - values, values - high),
        "secular root against eigh (NF-2)": (simplex.largest_eigenvalue(p) - largest).abs(),
        "sum of the eigenvalues": (values.sum(1) - simplex.core_trace(p)).abs(),
        "λ_C vvᵀ <= I": -torch.linalg.eigvalsh(information - below)[:, 0],
        "I <= diag(p)": -torch.linalg.eigvalsh(above - information)[:, 0],
        "error of the upper side, |p|²": (
            (above - information).flatten(1).norm(dim=1) - envelopes.upper_error(p)
        ).abs(),
        "error of the lower side, √Σλ²": (envelopes.lower_error(p) - values[:, :-1].norm(dim=1)).abs(),
        "its bound |p trimmed|": envelopes.lower_error(p) - envelopes.lower_error_bound(p),
    }
    found |= {f"lower bound {name}": bound - largest for name, bound in vars(lower).items()}
    found |= {f"upper bound {name}": largest - bound for name, bound in vars(upper).items()}
    return {name: max(0.0, float(value.max())) for name, value in found.items()}


def _tightness(p: Tensor) -> dict[str, Tensor]:
    largest = simplex.largest_eigenvalue(p)
    bounds = {**vars(simplex.lower_bounds(p)), **vars(simplex.upper_bounds(p))}
    return {name: bound / largest for name, bound in bounds.items()}


def _low_rank(p: Tensor) -> dict[str, Tensor]:
    """From a random start: what the safe form holds of λ_C, its violation and that of the naive form, relative to λ_C."""
    p = p[simplex.largest_eigenvalue(p) > LEAST]
    information, largest = simplex.core(p), simplex.largest_eigenvalue(p)
    vector = torch.nn.functional.normalize(torch.randn(*p.shape, 1, dtype=p.dtype), dim=1)
    found = {}
    for step in range(31):
        if step in (*CAPTURED, *NAIVE):
            safe = envelopes.low_rank(p, vector)
            naive = (vector.mT @ information @ vector) * vector @ vector.mT
            found[f"held {step}"] = safe.diagonal(dim1=1, dim2=2).sum(1) / largest
            found[f"safe {step}"] = -torch.linalg.eigvalsh(information - safe)[:, 0] / largest
            found[f"naive {step}"] = -torch.linalg.eigvalsh(information - naive)[:, 0] / largest
        vector = torch.nn.functional.normalize(information @ vector, dim=1)
    return found


def _shares(shares: dict[str, list[Tensor]]) -> list[Finding]:
    all_of = {name: torch.cat(values) for name, values in shares.items()}
    rows = [
        Finding.near(f"NF-12: share of λ_C that the safe form holds after {k} iterations", float(all_of[f"held {k}"].mean()),
                     expected, absolute=0.03)
        for k, expected in CAPTURED.items()
    ]  # fmt: skip
    safe = max(float(values.max()) for name, values in all_of.items() if name.startswith("safe"))
    rows.append(Finding.between("NF-12: largest violation by the safe form, over λ_C", safe, None, 1e-9))
    for k, expected in NAIVE.items():
        value = float(all_of[f"naive {k}"].max())
        rows.append(
            Finding.between(
                f"NF-13: the same by the naive form after {k} iterations", value, 1e-6, None, expected=expected
            )
        )
    violating = float((all_of["naive 30"] > 1e-9).double().mean())
    rows.append(
        Finding.told("NF-13: share of p where the naive form overshoots after 30 iterations", violating, expected=0.16)
    )
    return rows


def _corners() -> list[Finding]:
    rows = []
    for classes, expected in CORNERS.items():
        p = torch.full((classes,), 1e-9 / (classes - 1), dtype=torch.float64)
        p[0] = 1 - 1e-9
        what = f"NF-11: λ_C/tr I beside a corner, C = {classes}"
        rows.append(Finding.near(what, float(envelopes.captured(p)), expected, absolute=1e-3))
    return rows


def _picture(tight: dict[str, list[Tensor]]) -> Picture:
    def draw(axes: Any) -> None:
        for at, parts in enumerate(tight.values()):
            values = torch.cat(parts)
            low, middle, high = values.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)).tolist()
            colour = SERIES[0] if float(values.mean()) < 1 else SERIES[1]
            axes.plot([low, high], [at, at], color=colour, linewidth=5, alpha=0.45)
            axes.plot([middle], [at], "o", color=colour, markersize=5)
        axes.axvline(1, color="#26313c", linewidth=1)
        axes.set_xscale("log")
        axes.set_yticks(range(len(tight)), [name.replace("_", " ") for name in tight])
        axes.set_xlabel("bound / λ_C over all draws: median and 5 to 95 %")

    words = "The quotient of the two largest classes is the best lower bound; among the upper ones no single bound is."
    return Picture("Bounds on the largest eigenvalue", words, draw)
