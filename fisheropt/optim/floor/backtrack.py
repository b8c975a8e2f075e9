"""Shorter steps in place of lower information: halve the step until the floor holds where it leads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.optim.floor.mode import Mode
from fisheropt.optim.floor.spectrum import judged, reaches, running_eigen, smallest
from fisheropt.optim.floor.watch import Watch
from fisheropt.optim.group import Group

_HALVINGS = 10
NEAR = 4.0  # τ: with less than this the next step is looked at too; ten steps can lose a factor of three


@final
class Backtrack(Mode):
    """θ ← θ - 2⁻ʲ η d for the least j ≤ 10 with λ(θ) ≥ min(τ, λ before) on the batch; without one the step is left out.

    A batch that lies below the floor before the step is asked not to fall further.
    """

    exact, insistent, follows = True, True, False

    def learn(self, group: Group, current: Tensor, count: int) -> float:
        level = group["level"]
        values, vectors = running_eigen(group)
        basis = judged(group, vectors, count)
        lowest = min(float(values[0]), smallest(basis, current))
        group["near"] = float(lowest < NEAR * level)
        group["certified"] = float(reaches(vectors, group["information"], level) and reaches(basis, current, level))
        return lowest

    def direction(self, group: Group, watch: Watch, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        return grads

    @torch.no_grad()
    def step(self, group: Group, watch: Watch, advance: Callable[[], None]) -> None:
        if not (group["level"] and watch.ready):
            advance()
            return
        moved = [p for p in group["params"] if p.grad is not None]
        before = [p.detach().clone() for p in moved]
        basis = judged(group, running_eigen(group)[1], group["count"])
        required = min(group["level"], smallest(basis, watch.information()))
        advance()
        for _ in range(_HALVINGS):
            if smallest(basis, watch.information()) >= required:
                return
            group["halvings"] += 1
            torch._foreach_lerp_(moved, before, 0.5)
        if not smallest(basis, watch.information()) >= required:
            torch._foreach_copy_(moved, before)
            group["left_out"] += 1

    def verdict(self, details: dict[str, Any]) -> str:
        proof = "reaches τ (Cholesky)" if details["certified"] else "did NOT reach τ"
        return (
            f"Steps are halved that would lead their own batch below τ = {details['floor']:.3g}, or further below it, in the "
            f"directions that a batch can judge: {details['halvings']} halvings so far, {details['left_out']} steps left "
            f"out. What data that are not in the batch lose is not bounded; the information at the last reading {proof}, and "
            f"the smallest seen was {max(0.0, details['lowest']):.3g}."
        )
