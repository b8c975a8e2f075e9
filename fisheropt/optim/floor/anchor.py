"""An anchor that adds exactly what is missing: the floor holds for data plus anchor, not for the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.optim.floor.mode import Mode
from fisheropt.optim.floor.spectrum import eigen, judged, reaches, running_eigen, smallest
from fisheropt.optim.floor.watch import Watch
from fisheropt.optim.group import Group
from fisheropt.theory.floor import anchor_strengths

_ZERO = 1e-9  # of τ: a stiffness below it is rounding


@final
class Anchor(Mode):
    """g + Q A Qᵀ(θ - θ₀), A = Σᵢ max(0, τ - λᵢ) wᵢwᵢᵀ; weak directions of the step's own reading are lifted too."""

    exact, insistent, follows = False, False, False

    def learn(self, group: Group, current: Tensor, count: int) -> float:
        level = group["level"]
        values, vectors = running_eigen(group)
        stiffness = (vectors * anchor_strengths(values, level)) @ vectors.T
        present, own = eigen(basis := judged(group, vectors, count), current + stiffness)
        stiffness = stiffness + (own * anchor_strengths(present, level)) @ own.T
        group["stiffness"] = stiffness
        group["held"] = float((torch.linalg.eigvalsh(stiffness) > _ZERO * level).sum())
        group["active"] = float(group["held"] > 0)
        group["certified"] = float(reaches(vectors, group["information"] + stiffness, level))
        return min(float(values[0]), smallest(basis, current))

    def direction(self, group: Group, watch: Watch, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        return watch.add(group["stiffness"] @ (watch.coordinates() - group["anchor"]), parameters, grads)

    def step(self, group: Group, watch: Watch, advance: Callable[[], None]) -> None:
        advance()

    def verdict(self, details: dict[str, Any]) -> str:
        proof = "certified by Cholesky" if details["certified"] else "NOT certified"
        return (
            f"The floor τ = {details['floor']:.3g} is held: the effective information of data and anchor is at least "
            f"{details['effective_smallest']:.3g} ({proof}); the anchor carries {details['held']} of "
            f"{details['directions']} directions."
        )
