"""SGD that keeps the information in weak directions above a floor.

    θ ← θ - η (1 + ηVAVᵀ)⁻¹ (∇L + V A Vᵀ(θ - θ₀)),    A = Σᵢ max(0, τ - λᵢ) wᵢwᵢᵀ

Γ_V = Σᵢ λᵢ wᵢwᵢᵀ is the Fisher information in the directions V. The anchor adds exactly what is missing, so that the
information of data and anchor together, Γ_V + A, is at least τ in every direction; a Cholesky factor certifies it each
time that Γ_V is measured. The factor (1 + ηVAVᵀ)⁻¹ takes the anchor's pull where the step ends, so that no τ makes a step
unstable. The floor holds for data plus anchor, not for the data. The other modes, one a file of `fisheropt.optim.floor`, hold
up the data's own information, the metric's, or nothing.

Reference: huang2025spectral
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from fisheropt.likelihoods import Likelihood
from fisheropt.optim import critical, running, tracking
from fisheropt.optim.amp import LossScale
from fisheropt.optim.base import FisherOptimizer
from fisheropt.optim.critical import space
from fisheropt.optim.floor import MODES, settings, words
from fisheropt.optim.floor.held_out import HeldOut
from fisheropt.optim.floor.level import evidence, set_level
from fisheropt.optim.floor.penalty import automatic_weight
from fisheropt.optim.floor.watch import Watch, frame, full_precision
from fisheropt.optim.group import Group, device_of, noise_shape
from fisheropt.optim.metrics import basis
from fisheropt.optim.observing import Parameters
from fisheropt.optim.reading import Reading
from fisheropt.optim.report import plural
from fisheropt.statistics import JointStatistic
from fisheropt.taps import SampleTap, Tap
from fisheropt.theory.penalty import PsiName
from fisheropt.theory.whitening import required_samples

_NUMBERS = ("anchored", "held", "active", "near", "level", "certified", "charge")
_COUNTS = ("acted", "halvings", "left_out", "not_finite")


@final
class FisherFloorSGD(FisherOptimizer):
    """SGD that keeps Fisher information, direction by direction, above a floor τ.

    θ ← θ - η (1 + ηVAVᵀ)⁻¹ (∇L + V A Vᵀ(θ - θ₀)) with A = Σᵢ max(0, τ - λᵢ) wᵢwᵢᵀ, λᵢ and wᵢ the eigenpairs of the
    information Γ_V.

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
        mode: "anchor" adds what is missing to the objective; "penalty" adds a ψ(1 - λ/τ), so that the data's own
            information λ is kept up; "metric" steps by λ₁/max(λᵢ, τ) in each direction, τ = Λ* if "auto"; "backtrack"
            halves steps that would lead below τ; "monitor" only measures. "penalty" and "backtrack" need the model and a
            likelihood, and measure each step while information is short.
        directions: "auto" watches the whole space up to 256 parameters, else 16 random rank-one directions; names of
            modules or parameters, or `Contrast` objects between outputs; "per_layer" or "tracked"; or per parameter a tensor
            [k, *parameter], by name or in order, or by name `Directions`. What never carries information is left out.
        likelihood: of the model's output; with it Γ is the model Fisher, else the second moment of the scores.
        fisher: how the model Fisher is had: "hutchinson" by one more backward from random cotangents, "sampled" by one
            from labels drawn of the model, "exact" by k jvps in eval mode on the inputs of the step's forwards; "auto" is
            "exact" for the modes that need it and "hutchinson" for the others.
        penalty: ψ, "hinge", "squared" or "softmin", of the mode "penalty".
        weight: a of the penalty; "auto" is twice the loss of a model that knows nothing, 2 ln C for each label.
        max_norm: to which gradient and penalty together are clipped while the penalty acts, as a/τ is large.
        delta: δ, the probability with which Λ* may be exceeded.
        data_size: the number of distinct samples, beyond which repeats are no evidence; None counts each as new.
        held_out: a loader or list of batches that are not trained on, inputs or (inputs, labels): one is measured with
            each reading, in groups of the model's parameters, and reported by itself. Needs the model and a likelihood.
        every: steps between measurements; "auto" takes the first ten, and then as few as `overhead` asks, at most each tenth.
        overhead: the share of a step that measuring is expected to cost, by the work model of `explain`.
        smoothing: decay of the running mean of Γ; "auto" is .9, or as long as Γ needs to be known within one half.

    Raises:
        ValueError: for hyper-parameters outside their range, or a trainable parameter without a route.

    Reference: huang2025spectral
    """

    _kept = ("_chosen", "_exact", "_held_out")
    _cubed = 130.0  # several spectra, of the information and of what its noise leaves of it

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
        mode: Literal["anchor", "penalty", "metric", "backtrack", "monitor"] = "anchor",
        directions: critical.Chosen = "auto",
        likelihood: Likelihood | str | None = None,
        fisher: Literal["auto", "hutchinson", "exact", "sampled"] = "auto",
        penalty: PsiName = "hinge",
        weight: float | Literal["auto"] = "auto",
        max_norm: float = 1.0,
        delta: float = 0.05,
        data_size: int | None = None,
        held_out: Iterable[Any] | None = None,
        every: int | Literal["auto"] = "auto",
        overhead: float = 0.05,
        smoothing: float | Literal["auto"] = "auto",
    ) -> None:
        self._chosen = directions
        self._held_out = None if held_out is None else HeldOut(held_out)
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
            "fisher": fisher,
            "penalty": penalty,
            "weight": weight,
            "max_norm": max_norm,
            "delta": delta,
            "data_size": data_size,
            "held_out": None if held_out is None else "given",
            "every": every,
            "overhead": overhead,
            "smoothing": smoothing,
        }
        settings.check(defaults)
        self._exact = settings.exact(params_or_model, likelihood, defaults)
        super().__init__(params_or_model, defaults, settings.drawn(likelihood, defaults))
        if self._exact is not None:
            weakref.finalize(self, self._exact.remove)

    def _statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic | None:
        settings.check(group)
        if settings.off(group):
            return None
        if MODES[group["mode"]].exact and not settings.computable(group, self.defaults, self._model, parameters):
            return None
        return critical.statistic(self._chosen, parameters, critical.elsewhere(self._model, parameters))

    def _fresh(self, tap: Tap | None) -> Group:
        shape, device = (torch.Size((0, 0)), None) if tap is None else (noise_shape(tap), device_of(tap))
        zero = torch.zeros(shape, dtype=torch.float64, device=device)
        state: Group = {"anchor": zero.sum(0), "frame": zero, "stiffness": zero, "axes": zero, "strengths": zero.sum(0)}
        state |= space.fresh(tap, zero) | HeldOut.fresh()
        running.start(state, "held_information", zero)
        apart = {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
        return apart | dict.fromkeys((*_NUMBERS, *_COUNTS), 0.0) | {"lowest": float("inf")}

    def _decay(self, group: Group, count: int) -> float:
        if group["smoothing"] != "auto":
            return float(group["smoothing"])
        needed = required_samples(len(group["anchor"]), group["delta"])
        return max(0.9, (needed - count) / (needed + count))

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group, and aim its tap for its first step."""
        super().add_param_group(param_group)
        self._aim(self._taps[-1], self.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, and keep the precision of directions beside parameters of less."""
        super().load_state_dict(state_dict)
        basis.restore(self.state, self.param_groups, state_dict)
        if self._held_out is not None:
            self._held_out.resume(self.param_groups)
        for tap, group in zip(self._taps, self.param_groups, strict=True):
            self._aim(tap, group)

    def _aim(self, tap: Tap | None, group: Group) -> None:
        if tap is not None and tracking.is_tracked(tap):
            tracking.aim(group, tap, self.state)

    def _due(self, group: Group) -> bool:
        tap = next((t for t, held in zip(self._taps, self.param_groups, strict=True) if held is group), None)
        if tap is None:
            return False
        if bool(group["near"]) and MODES[group["mode"]].insistent:
            return True
        if group["every"] == "auto" and tracking.is_tracked(tap):
            return tracking.is_due(group)
        return super()._due(group)

    def _interval(self, group: Group) -> int:
        if group["near"] and MODES[group["mode"]].insistent:
            return 1
        if group["every"] == "auto" and tracking.is_tracked(self._tap_of(group)):
            return tracking.spacing(group)
        return super()._interval(group)

    def _overhead(self, group: Group) -> float:  # the work model knows nothing of jvps and held-out batches
        return super()._overhead(group) if self._exact is None else float("nan")

    def _arm(self, tap: Tap, group: Group) -> None:
        super()._arm(tap, group)
        self._aim(tap, group)
        if self._exact is not None:
            self._exact.arm(any(self._due(g) for g in self.param_groups))
        if self._held_out is not None:
            self._held_out.release()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and forget what their backward has left."""
        super().zero_grad(set_to_none)
        if self._exact is not None:
            self._exact.batch.clear()

    def _watch(self, group: Group) -> Watch:
        return Watch(self._tap_of(group), group["frame"], self._exact)

    def _learn(self, group: Group, reading: Reading) -> None:
        with full_precision(group):
            self._take_in(group, reading)

    def _take_in(self, group: Group, reading: Reading) -> None:
        tap, decay = self._tap_of(group), self._decay(group, reading.count)
        if not group["anchored"]:  # at the first reading, so that weights loaded after construction are the start
            group["frame"] = frame(tap, group["frame"])
            group["anchor"], group["anchored"] = self._watch(group).coordinates().detach(), 1.0
            tracking.anchor_here(tap, self.state)
        current = space.information(group, tap, reading, self._exact if settings.is_exact(self.defaults) else None)
        if not current.isfinite().all():  # of the model in eval mode: the step's own numbers are known to be finite
            group["not_finite"] += 1
            return
        current = space.learn(group, tap, self.state, reading, current, decay)
        if self._held_out is not None and isinstance(tap, SampleTap):
            self._held_out.learn(group, self._watch(group), decay)
        set_level(group, MODES[group["mode"]])
        if group["level"]:
            self._respond(group, current, reading.count)

    def _respond(self, group: Group, current: Tensor, count: int) -> None:
        if group["weight"] != "auto":
            group["charge"] = float(group["weight"])
        elif group["mode"] == "penalty" and self._exact is not None and not group["charge"]:
            group["charge"] = automatic_weight(self._exact.likelihood, self._exact.batch.seen[-1].shape)
        group["lowest"] = min(group["lowest"], MODES[group["mode"]].learn(group, current, count))
        group["acted"] += group["active"]

    def _active(self, group: Group) -> bool:
        return bool(group["active"])

    def _direction(self, group: Group, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        with full_precision(group):
            return MODES[group["mode"]].direction(group, self._watch(group), parameters, grads)

    def _update(self, group: Group, scale: LossScale) -> None:
        mode = MODES[group["mode"]]
        if mode.exact and group["level"]:
            mode.step(group, self._watch(group), partial(super()._update, group, scale))
        else:
            super()._update(group, scale)

    def _details(self, group: Group) -> dict[str, Any]:
        if not evidence(group):
            return {"not_finite": int(group["not_finite"])}
        beside = space.details(group, self._tap_of(group), evidence(group))
        return words.details(group) | words.held_out(group) | beside

    def _words(self, groups: list[Group]) -> tuple[str, tuple[str, ...]]:
        if not evidence(groups[0]):
            return words.nothing_finite(groups[0])
        details = self._details(groups[0])
        unit = plural(self._tap_of(groups[0]).unit)
        advice = words.advice(details, groups[0], unit) + space.advice(groups[0], details)
        return words.verdict(details, groups[0]["mode"], unit), advice

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_exact" in state and self._exact is not None:
            self._exact.remove()
            self._exact.attach()
            weakref.finalize(self, self._exact.remove)
