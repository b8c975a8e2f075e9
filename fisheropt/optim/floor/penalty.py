"""The floor as a penalty on the smallest eigenvalue itself: it is the data's information that is kept up.

    θ ← θ - η clip(∇L + ∇ a ψ(1 - λ/τ), 1)

The gradient is that of -⟨D, Γ(θ)⟩ with D held fixed, by the envelope theorem.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.likelihoods import Bernoulli, Categorical, Likelihood
from fisheropt.optim.floor.backtrack import NEAR
from fisheropt.optim.floor.level import evidence
from fisheropt.optim.floor.mode import Mode
from fisheropt.optim.floor.spectrum import eigen, judged, reaches, running_eigen
from fisheropt.optim.floor.watch import Watch
from fisheropt.optim.group import Group
from fisheropt.theory.penalty import PSI, penalty_force

_QUANTILE = 1.645  # of a one-sided bound at 95 %
_NEGLIGIBLE = 1e-3  # of the largest weight of the soft minimum: directions that would cost a jvp and change nothing


@final
class Penalty(Mode):
    """g + ∇ a ψ(1 - λ/mτ), clipped; λ is the running mean's or the batch's own, whichever has less, as a mean lags.

    m > 1 is for the error of λ: without it, half of the batches would show τ while the data have less.
    """

    exact, insistent, follows = True, True, False

    def learn(self, group: Group, current: Tensor, count: int) -> float:
        level, information = group["level"], group["information"]
        found = running_eigen(group)
        basis = judged(group, found[1], count)
        readings = [(*found, _margin(group, evidence(group)))]
        if basis.shape[1]:
            readings.append((*eigen(basis, current), _margin(group, float(count))))
        values, vectors, margin = min(readings, key=lambda reading: float(reading[0][0]) / reading[2])
        force = penalty_force(torch.diag(values), margin * level, group["charge"], PSI[group["penalty"]])
        group["stiffness"] = vectors @ force @ vectors.T
        group["held"] = float((values < margin * level).sum())
        group["active"] = float(force.trace() > 0)
        group["near"] = float(values[0] < NEAR * margin * level)
        group["certified"] = float(reaches(found[1], information, level) and reaches(basis, current, level))
        return min(float(reading[0][0]) for reading in readings)

    def direction(self, group: Group, watch: Watch, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        if not watch.ready:  # gradients of another origin, as a checkpoint makes to have optimizer state
            return grads
        strengths, vectors = torch.linalg.eigh(group["stiffness"])
        rows = (vectors * strengths.clamp_min(0).sqrt()).T[strengths > _NEGLIGIBLE * strengths[-1]]
        charges = watch.gradient(rows, parameters)
        return _clipped([g - c.to(g.dtype) for g, c in zip(grads, charges, strict=True)], group["max_norm"])

    def verdict(self, details: dict[str, Any]) -> str:
        proof = (
            "certified by Cholesky at the last reading" if details["certified"] else "NOT reached at the last reading"
        )
        return (
            f"The penalty keeps the information itself above τ = {details['floor']:.3g} ({proof}): it acted on "
            f"{details['acted']} of {details['readings']} measured steps, and the smallest information seen was "
            f"{details['lowest']:.3g}."
        )


def _margin(group: Group, count: float) -> float:
    """By what factor above τ the penalty begins, as λ of n samples is known within a relative √(2/n) (1 - n/N)^½.

    With it the lower bound of λ is at τ. It is at most 2, which the start meets where floor="auto".
    """
    missing = 1.0 if group["data_size"] is None else max(0.0, 1 - count / group["data_size"])
    return 1 / (1 - min(_QUANTILE * (2 * missing / count) ** 0.5, 0.5))


def automatic_weight(likelihood: Likelihood, shape: torch.Size) -> float:
    """Twice the loss of a model that knows nothing, in place of a = 2 L(θ₀): 2 ln C for each label of C classes.

    Of labels whose mean is the loss, as of an optimizer's "categorical", it is once that.

    Args:
        likelihood: "bernoulli" or "categorical".
        shape: of the logits.

    Raises:
        ValueError: for a likelihood whose loss at the start is not known.
    """
    outputs = shape[1:].numel()
    if isinstance(likelihood, Bernoulli):
        return 2 * outputs * math.log(2)
    if isinstance(likelihood, Categorical):
        classes = shape[-1 if likelihood.dim is None else likelihood.dim]
        labels = 1 if likelihood.averaged else outputs // classes
        return 2 * labels * math.log(classes)
    raise ValueError(
        f"weight='auto' is 2 ln C for each label and is not known for {likelihood}: write weight=2 * the loss at the start"
    )


def _clipped(grads: list[Tensor], largest: float) -> list[Tensor]:
    norm = torch.stack([g.norm() for g in grads]).norm()
    return list(torch._foreach_mul(grads, (largest / norm.clamp_min(1e-300)).clamp_max(1.0)))
