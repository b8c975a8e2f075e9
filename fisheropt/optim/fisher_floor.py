"""SGD that keeps the information in weak directions above a floor.

    θ ← θ - η (∇L + V A Vᵀ(θ - θ₀)),    A = Σᵢ max(0, τ - λᵢ) wᵢwᵢᵀ

Γ_V = Σᵢ λᵢ wᵢwᵢᵀ is the Fisher information in the directions V. The anchor adds exactly what is missing, so that the
information of data and anchor together, Γ_V + A, is at least τ in every direction; a Cholesky factor certifies it each
time that Γ_V is measured. The floor holds for data plus anchor, not for the data.

Reference: huang2025spectral
"""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from fisheropt.directions import Directions
from fisheropt.likelihoods import Likelihood
from fisheropt.optim import critical, running
from fisheropt.optim.base import FisherOptimizer
from fisheropt.optim.group import Group, device_of, noise_shape
from fisheropt.optim.observing import Parameters
from fisheropt.optim.reading import Reading
from fisheropt.optim.report import plural
from fisheropt.persample import Dense
from fisheropt.statistics import JointStatistic
from fisheropt.taps import Tap
from fisheropt.theory.certificate import certify_floor_cholesky
from fisheropt.theory.levels import gaussian_level
from fisheropt.theory.status import Status, classify
from fisheropt.theory.whitening import required_samples

_NULL = 1e-9  # of the largest eigenvalue: below it a direction carries no information at all
_REFERENCE = 4  # samples a direction, from which on Γ can serve as the reference of the floor
_CURRENT = 10  # samples a direction, from which on one step's Γ is worth comparing with the smoothed one


@final
class FisherFloorSGD(FisherOptimizer):
    """SGD with an anchor that keeps Fisher information, direction by direction, above a floor τ.

    θ ← θ - η (∇L + V A Vᵀ(θ - θ₀)) with A = Σᵢ max(0, τ - λᵢ) wᵢwᵢᵀ, λᵢ and wᵢ the eigenpairs of the information Γ_V.

    Args:
        params_or_model: the model, for per-sample scores; or parameters, each backward then being one observation.
        lr: η, a float or a tensor of one element.
        momentum: of the step, as in torch.optim.SGD.
        dampening: of the momentum.
        weight_decay: λ of (λ/2)‖θ‖².
        nesterov: Nesterov momentum.
        maximize: ascend.
        foreach: as in torch.optim.SGD.
        differentiable: allow autograd through the step.
        floor: τ, in units of the information of one sample; "auto" is the least of Λ* and half the smallest information
            at the start, which the start itself meets; 0 or None for plain SGD.
        mode: "anchor" holds the floor, "monitor" only measures.
        directions: "auto" watches the whole space up to 256 parameters, else 16 random rank-one directions; or per
            parameter a tensor [k, *parameter], by name or in order.
        likelihood: of the model's output; with it Γ is the model Fisher, else the second moment of the scores.
        delta: δ, the probability with which Λ* may be exceeded.
        every: steps between measurements; "auto" takes the first ten and then each tenth.
        overhead: the share of a step that measuring may cost.
        smoothing: decay of the running mean of Γ; "auto" is .9, or as long as Γ needs to be known within one half.

    Raises:
        ValueError: for hyper-parameters outside their range, or a trainable parameter without a route.

    Reference: huang2025spectral
    """

    _kept = ("_chosen",)

    def __init__(
        self,
        params_or_model: Parameters | nn.Module,
        lr: float | Tensor = 1e-3,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        floor: float | Literal["auto"] | None = "auto",
        mode: Literal["anchor", "monitor"] = "anchor",
        directions: critical.Chosen = "auto",
        likelihood: Likelihood | str | None = None,
        delta: float = 0.05,
        every: int | Literal["auto"] = "auto",
        overhead: float = 0.05,
        smoothing: float | Literal["auto"] = "auto",
    ) -> None:
        _check(floor, mode, delta, smoothing)
        self._chosen = directions
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "floor": floor,
            "mode": mode,
            "directions": directions if isinstance(directions, str) else "given",
            "likelihood": None if likelihood is None else str(likelihood),
            "delta": delta,
            "every": every,
            "overhead": overhead,
            "smoothing": smoothing,
        }
        super().__init__(params_or_model, defaults, likelihood)

    def _statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic | None:
        if group["mode"] == "anchor" and not group["floor"]:
            return None
        return critical.statistic(self._chosen, parameters)

    def _fresh(self, tap: Tap | None) -> Group:
        shape, device = (torch.Size((0, 0)), None) if tap is None else (noise_shape(tap), device_of(tap))
        zero = torch.zeros(shape, dtype=torch.float64, device=device)
        return {"anchor": zero.sum(0), "anchored": 0.0, "stiffness": zero, "held": 0.0, "level": 0.0, "certified": 0.0}

    def _decay(self, group: Group, count: int) -> float:
        if group["smoothing"] != "auto":
            return float(group["smoothing"])
        needed = required_samples(len(group["anchor"]), group["delta"])
        return max(0.9, (needed - count) / (needed + count))

    def _learn(self, group: Group, reading: Reading) -> None:
        if not group["anchored"]:  # at the first reading, so that weights loaded after construction are the start
            group["anchor"], group["anchored"] = self._coordinates(group), 1.0
        current = reading.second if reading.information is None else reading.information
        running.add(group, "information", current, reading.count, self._decay(group, reading.count))
        self._set_level(group, torch.linalg.eigvalsh(group["information"]))
        if group["mode"] == "monitor" or not group["level"]:
            return
        stiffness = _missing(group["information"], group["level"])
        if reading.count >= _CURRENT * len(current):  # the running mean lags behind information that is being lost
            stiffness = stiffness + _missing(current + stiffness, group["level"])
        group["stiffness"] = stiffness
        group["held"] = float((torch.linalg.eigvalsh(stiffness) > _NULL * group["level"]).sum())
        effective = group["information"] + group["stiffness"]
        group["certified"] = float(certify_floor_cholesky(effective, group["level"] * (1 - 1e-6)).certified)

    def _set_level(self, group: Group, values: Tensor) -> None:
        """Fix τ, for "auto" once the information at the start is known well enough to refer to."""
        if group["level"] or not group["floor"]:
            return
        if group["floor"] != "auto":
            group["level"] = float(group["floor"])
            return
        carrying = values[values > _NULL * values[-1]]
        if len(carrying) and running.effective_count(group, "information") >= _REFERENCE * len(values):
            group["level"] = min(self._threshold(group, values), float(carrying[0]) / 2)

    def _threshold(self, group: Group, values: Tensor) -> float:
        count = running.effective_count(group, "information")
        return gaussian_level(float(values[-1]), len(values), count, group["delta"]).value

    def _active(self, group: Group) -> bool:
        return bool(group["held"])

    def _along(self, group: Group) -> dict[int, tuple[Tensor, Directions]]:
        """The watched parameters with their part of the directions, by identity."""
        tap = self._tap_of(group)
        return {id(tap.parameters[name]): (tap.parameters[name], d) for name, d in tap.directions.items()}

    def _coordinates(self, group: Group) -> Tensor:
        """Vᵀθ, [k]."""
        along = self._along(group).values()
        return torch.stack([Dense(p.unsqueeze(0)).project(d)[0].double() for p, d in along]).sum(0).detach()

    def _direction(self, group: Group, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        along = self._along(group)
        force = group["stiffness"] @ (self._coordinates(group) - group["anchor"])
        return [
            g + along[id(p)][1].combine(force).reshape(p.shape).to(g.dtype) if id(p) in along else g
            for p, g in zip(parameters, grads, strict=True)
        ]

    def _details(self, group: Group) -> dict[str, Any]:
        values = torch.linalg.eigvalsh(group["information"])
        resolution = _NULL * values[-1]  # below is rounding
        values = values.where(values > resolution, torch.zeros_like(values))
        effective = torch.linalg.eigvalsh(group["information"] + group["stiffness"]).clamp_min(0)
        count = running.effective_count(group, "information")
        threshold = self._threshold(group, values)
        return {
            "directions": len(values),
            "eigenvalues": values.tolist(),
            "eigenvalues_se": (values * (2 / count) ** 0.5).clamp_min(float(resolution)).tolist(),
            "effective_eigenvalues": effective.tolist(),
            "lambda_star": threshold,
            "delta": group["delta"],
            "status": classify(float(values[0]), threshold).value,
            "identified": int((values > 3 * threshold).sum()),
            "below": int((values < threshold).sum()),
            "null": int((values == 0).sum()),
            "held": int(group["held"]),
            "floor": group["level"],
            "certified": bool(group["certified"]),
            "required_samples": required_samples(len(values), group["delta"]),
        }

    def _words(self, groups: list[Group]) -> tuple[str, tuple[str, ...]]:
        details = self._details(groups[0])
        count = running.effective_count(groups[0], "information")
        unit = plural(self._tap_of(groups[0]).unit)
        advice = _advice(details, count, unit)
        if not running.effective_count(groups[0], "covariance"):
            advice = (
                "Write FisherFloorSGD(model, ...), or run at least two backward() a step, to see the noise.",
                *advice,
            )
        return _verdict(details, count, groups[0]["mode"], unit), advice


def _missing(information: Tensor, level: float) -> Tensor:
    """Σᵢ max(0, τ - λᵢ) wᵢwᵢᵀ, the least that lifts every direction to τ."""
    values, vectors = torch.linalg.eigh(information)
    return (vectors * (level - values).clamp_min(0)) @ vectors.T


def _verdict(details: dict[str, Any], count: float, mode: str, unit: str) -> str:
    total = details["directions"]
    words = (
        f"{details['identified']} of {total} directions are identified at {count:.0f} effective {unit} (information "
        f"above 3Λ* = {3 * details['lambda_star']:.3g}, δ = {details['delta']:g}); "
        f"{details['below']} lie below their fluctuation Λ*."
    )
    if mode == "monitor":
        return words
    if not details["floor"]:
        return f"{words} The floor is not set yet: too few samples were measured."
    smallest = details["effective_eigenvalues"][0]
    proof = "certified by Cholesky" if details["certified"] else "NOT certified"
    return (
        f"{words} The floor τ = {details['floor']:.3g} is held: the effective information of data and anchor is at least "
        f"{smallest:.3g} ({proof}); the anchor carries {details['held']} of {total} directions."
    )


def _advice(details: dict[str, Any], count: float, unit: str) -> tuple[str, ...]:
    advice = []
    null, total = details["null"], details["directions"]
    if null:
        advice.append(
            f"{null} of {total} directions carry no information at all, as a shift of all logits or a dead unit does: no "
            f"data will settle them, and the anchor costs nothing there."
        )
    if details["status"] != Status.ABOVE.value and null < total:
        smallest, largest = details["eigenvalues"][null], details["eigenvalues"][-1]
        advice.append(
            f"Weak directions have {smallest:.2g} ± {details['eigenvalues_se'][null]:.1g} of information where strong ones "
            f"have {largest:.2g}: parameters along them are set by the start and the anchor, not by the data."
        )
    if count < details["required_samples"]:
        more = details["required_samples"] - count
        advice.append(
            f"About {more:,.0f} more {unit} would settle the information within one half in every direction; raise the "
            f"batch size, or write smoothing=.99"
        )
    if details["held"] > null:
        advice.append(
            "Collect data along the held directions, drop redundant features, or accept the anchor as a prior."
        )
    return tuple(advice)


def _check(floor: float | str | None, mode: str, delta: float, smoothing: float | str) -> None:
    if floor is not None and floor != "auto" and (isinstance(floor, str) or not floor >= 0):
        raise ValueError(f"floor={floor!r} must be 'auto', None or a number >= 0, the least information τ")
    if mode not in ("anchor", "monitor"):
        raise ValueError(f"mode={mode!r} must be 'anchor' or 'monitor'")
    if not 0 < delta < 1:
        raise ValueError(
            f"delta={delta!r} must lie between 0 and 1; it is the probability of a wrong claim, for instance .05"
        )
    if smoothing != "auto" and (isinstance(smoothing, str) or not 0 <= smoothing < 1):
        raise ValueError(f"smoothing={smoothing!r} must be 'auto' or a number in [0, 1)")
