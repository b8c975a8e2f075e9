"""The floor in the metric: it holds by construction, and certifies the step, not the model."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from fisheropt.optim.floor.mode import Mode
from fisheropt.optim.floor.spectrum import reaches, running_eigen
from fisheropt.optim.floor.watch import Watch
from fisheropt.optim.group import Group


@final
class Metric(Mode):
    """g + Q S Qᵀg, S = Σᵢ (λ₁/max(λᵢ, τ) - 1) wᵢwᵢᵀ with λ₁ the largest eigenvalue.

    The strongest direction keeps the plain step and weak ones are lengthened, by λ₁/τ at most; directions that are not
    watched keep theirs. The learning rate of plain SGD therefore carries over: where the information is the curvature,
    no direction's curvature times step grows beyond the largest one of before.
    """

    exact, insistent, follows = False, False, True

    def learn(self, group: Group, current: Tensor, count: int) -> float:
        values, vectors = running_eigen(group)
        floored = values.clamp_min(group["level"])
        group["stiffness"] = (vectors * (floored[-1] / floored - 1)) @ vectors.T
        group["held"] = float((values < group["level"]).sum())
        group["active"] = float(floored[0] < floored[-1])
        group["certified"] = float(reaches(vectors, group["information"], group["level"]))
        return float(values[0])

    def direction(self, group: Group, watch: Watch, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        given = {id(p): g for p, g in zip(parameters, grads, strict=True)}
        return watch.add(group["stiffness"] @ watch.coordinates(given), parameters, grads)

    def verdict(self, details: dict[str, Any]) -> str:
        largest = max(details["eigenvalues"][-1], details["floor"])
        reached = "reaches" if details["certified"] else "does NOT reach"
        return (
            f"The floor τ = {details['floor']:.3g} holds in the metric by construction: no step is lengthened by more than "
            f"{largest / details['floor']:.3g}, and {details['held']} of {details['directions']} directions are at the "
            f"floor. It certifies the step, not the model: the data's own information {reached} τ (Cholesky)."
        )
