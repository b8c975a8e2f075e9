"""An anchor that adds exactly what is missing: the floor holds for data plus anchor, not for the data.

The pull is that at the end of the step, (1 + ηA)⁻¹A, and not that at its start: a step is stable wherever that without the
anchor is, however large ηA, and comes to rest at the same place.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from fisheropt.optim.floor.mode import Mode
from fisheropt.optim.floor.spectrum import eigen, judged, reaches, running_eigen, smallest
from fisheropt.optim.floor.watch import Watch
from fisheropt.optim.group import Group
from fisheropt.theory.floor import anchor_strengths

_ZERO = 1e-9  # of τ: a stiffness below it is rounding
_FAR = 0.1  # of Λ*: a smaller τ is said to lie far below it


@final
class Anchor(Mode):
    """g + Q (1 + ηA)⁻¹A Qᵀ(θ - ηg - θ₀), which is (1 + ηQAQᵀ)⁻¹ (g + Q A Qᵀ(θ - θ₀)), A = Σᵢ max(0, τ - λᵢ) wᵢwᵢᵀ.

    Weak directions of the step's own reading are lifted too.
    """

    exact, insistent, follows = False, False, False

    def learn(self, group: Group, current: Tensor, count: int) -> float:
        level = group["level"]
        values, vectors = running_eigen(group)
        stiffness = (vectors * anchor_strengths(values, level)) @ vectors.T
        present, own = eigen(basis := judged(group, vectors, count), current + stiffness)
        stiffness = stiffness + (own * anchor_strengths(present, level)) @ own.T
        group["stiffness"] = stiffness
        strengths, group["axes"] = torch.linalg.eigh(stiffness)
        group["strengths"] = strengths.clamp_min(0)
        group["held"] = float((strengths > _ZERO * level).sum())
        group["active"] = float(group["held"] > 0)
        group["certified"] = float(reaches(vectors, group["information"] + stiffness, level))
        return min(float(values[0]), smallest(basis, current))

    def direction(self, group: Group, watch: Watch, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        given = {id(p): g for p, g in zip(parameters, grads, strict=True)}
        lr, strengths, axes = group["lr"], group["strengths"], group["axes"]
        lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
        ahead = watch.coordinates() - group["anchor"] - lr * watch.coordinates(given)
        return watch.add(axes @ (strengths / (1 + lr * strengths) * (axes.T @ ahead)), parameters, grads)

    def verdict(self, details: dict[str, Any]) -> str:
        if not details["held"]:
            return _idle(details)
        proof = "certified by Cholesky" if details["certified"] else "NOT certified"
        return (
            f"The floor τ = {details['floor']:.3g} is held: the effective information of data and anchor is at least "
            f"{details['effective_smallest']:.3g} ({proof}); the anchor carries {details['held']} of "
            f"{details['directions']} directions."
        )


def _idle(details: dict[str, Any]) -> str:
    """That nothing is added, and how little a τ far below Λ* asks for."""
    floor, star = details["floor"], details["lambda_star"]
    steps = "are those of plain SGD at present" if details["acted"] else "so far are those of plain SGD"
    words = f"The floor is not acting: no direction has less than τ = {floor:.3g}, and the steps {steps}."
    if floor >= _FAR * star:
        return words
    return (
        f"{words} τ is {star / floor:.2g} times smaller than Λ* = {star:.3g}, below which information is not told from none; "
        f"a floor={star:.1g} would act."
    )
