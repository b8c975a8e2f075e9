"""Every parameter by itself: P = U diag(1/(m + ρ)) Uᵀ, with m the second moments of M in a basis U of the parameter's own.

`diagonal` takes U = 1, so that m is the diagonal of M. `kronecker` takes the eigenvectors of M's two partial traces,
U = Uₗ ⊗ Uᵣ, in which the second moments are exact and not products of eigenvalues. A vector's block is then whole.

Reference: martens2015optimizing, george2018fast
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.directions import Directions
from fisheropt.optim import running
from fisheropt.optim.group import Group, device_of
from fisheropt.optim.metrics import eigenbasis
from fisheropt.optim.metrics.eigenbasis import MOMENTS, NOISE, STEP, Held
from fisheropt.optim.metrics.full import long_run
from fisheropt.optim.metrics.schedule import scheduled
from fisheropt.optim.metrics.structure import InMetric, State, Structure
from fisheropt.optim.reading import Reading
from fisheropt.statistics import JointStatistic
from fisheropt.statistics.kronecker import as_matrix, sides, turned
from fisheropt.statistics.layerwise import Layerwise as Statistic
from fisheropt.taps import Tap

_MEMORY = 0.9  # G vanishes as a fit improves: with a longer memory the readings of the start would be all of its mean
_SHARE = 3.0  # standard errors of an average coordinate
_FADE = 0.7  # of the excess from one reading to the next: a reading is of one direction, the next step has another
_TINY = 1e-30
_READINGS = 5  # from one eigendecomposition to the next, in the end
_EIGEN = 10.0  # what it takes, in products of matrices of its size


@final
class Layerwise(Structure):
    """Second moments, factors and bases in the parameters' state; in the group one trace and one ρ for each parameter.

    Args:
        longest: the longest side of a parameter that has a basis of its own; 0 for a diagonal.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest

    def statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic:
        if group["damping"] == "bulk":
            raise ValueError(
                f"damping='bulk' is the mean of the eigenvalues that structure='lowrank' leaves out; write "
                f"GodambeSGD(..., structure={group['structure']!r}, damping='auto')"
            )
        return Statistic(longest=self._longest)

    def fresh(self, tap: Tap | None) -> Group:
        assert tap is not None
        zero = torch.zeros(len(tap.parameters), dtype=torch.float64, device=device_of(tap))
        numbers = {"turned": 0.0, "dimension": 0.0, "excess": 1.0, "compared": 0.0}
        means = {"traces": zero, "traces_weight": 0.0, "traces_weight_squared": 0.0}
        return means | {"dampings": zero.clone()} | numbers | {"metric_damping": 0.0, "metric_ready": 0.0}

    def interval(self, group: Group, tap: Tap, likelihood: bool) -> int | None:
        """As many steps as keep the cost of measuring within `overhead`, in products of matrices."""
        statistic, batch = tap.statistic, group["count"] or 128.0
        assert isinstance(statistic, Statistic)
        step = extra = 0.0
        for p in tap.parameters.values():
            o, i = sides(p.shape)
            rotated = [side for side, on in zip((o, i), statistic.factored(p), strict=True) if on]
            one, turns = batch * o * i, batch * sum(side * side for side in rotated)
            step += 3 * one
            extra += (2 * one + turns) * (2 if likelihood else 1) + turns + (one if likelihood else 0)
            extra += _EIGEN * sum(side**3 for side in rotated) / _READINGS
        return math.ceil(extra / max(step, 1.0) / group["overhead"])

    def aim(self, group: Group, tap: Tap, state: State, due: bool) -> None:
        held = self._held(group, tap, state)
        if group["steps"]:
            for part in held.values():
                part.start()
        if due:
            bases: dict[str, Directions] = {name: part.basis(bool(group["turned"])) for name, part in held.items()}
            tap.aim(bases)

    def learn(self, group: Group, tap: Tap, state: State, reading: Reading, decay: float) -> InMetric | None:
        with torch.autocast(device_of(tap).type, enabled=False):
            return self._learned(group, tap, state, reading, decay)

    def _learned(self, group: Group, tap: Tap, state: State, reading: Reading, decay: float) -> InMetric | None:
        """Take a reading in, in the precision of the state."""
        held, found = self._held(group, tap, state), reading.layered
        seen = self._in_metric(group, held, reading)
        if found is None:
            return seen
        moments = found.noise if found.information is None else found.information
        if moments is None:
            return seen
        kept = min(decay, _MEMORY) if found.information is None else decay
        traces = torch.stack([moments[name].double().sum() for name in held])  # backward has another order
        running.add(group, "traces", traces, reading.count, kept)
        share = reading.count / group["traces_weight"]
        self._compare(group, held, reading)
        for name, part in held.items():
            part.start()
            part.add(MOMENTS, moments[name], share)
            part.add(NOISE, None if found.noise is None else found.noise[name], share)
            part.add("left_factor", found.lefts.get(name), share)
            part.add("right_factor", found.rights.get(name), share)
        if self._longest and scheduled(int(group["measured"]) - 1, _READINGS):
            eigenbasis.turn(held.values(), first=not group["turned"])
            group["turned"] += 1.0
        self._damp(group, tap)
        return seen

    def _compare(self, group: Group, held: dict[str, Held], reading: Reading) -> None:
        """How much more information the last step met than the metric believed, sᵀ(M + ρ)s/sᵀ(UmUᵀ + ρ)s."""
        along = reading.projected
        if along is None:
            return
        found = along.covariance if along.information is None else along.information
        if found is None or not group["metric_ready"]:
            return
        believed = ridge = reading.gradient.new_zeros(())
        for part, rho in zip(held.values(), group["dampings"], strict=True):
            own = part.own
            step = turned(as_matrix(own[STEP]), *self._bases(group, own)).square()
            believed = believed + (step * as_matrix(own[MOMENTS])).sum()
            ridge = ridge + rho * step.sum()
        if not float(believed + ridge) > 0:
            return
        ratio = float((found[0, 0] + ridge) / (believed + ridge))
        excess = max(1.0, ratio, _FADE * group["excess"])
        if group["compared"] and excess > group["excess"]:  # what momentum holds was too long as well
            for part in held.values():
                part.shorten(group["excess"] / excess)
        group["excess"] = excess
        group["compared"] += 1.0

    def _damp(self, group: Group, tap: Tap) -> None:
        """ρ of each parameter, and whether there is a metric at all."""
        count, traces = running.effective_count(group, "traces"), group["traces"]
        if not float(traces.sum()) > 0:
            return
        sizes = traces.new_tensor([p.numel() for p in tap.parameters.values()])
        if group["damping"] == "auto":
            dampings = _SHARE * traces / sizes * (2 / count) ** 0.5
        else:
            dampings = torch.full_like(traces, float(group["damping"]))
        floor = torch.finfo(torch.float32).eps * traces.sum() / sizes.sum()
        group["dampings"] = (dampings + float(group["weight_decay"])).clamp_min(floor)
        group["metric_damping"] = float(group["dampings"] @ sizes / sizes.sum())
        group["metric_ready"] = 1.0

    def _in_metric(self, group: Group, held: dict[str, Held], reading: Reading) -> InMetric | None:
        found = reading.layered
        if found is None or found.noise is None or not group["metric_ready"]:
            return None
        squared = noise = reading.gradient.new_zeros(())
        for (name, part), rho in zip(held.items(), group["dampings"], strict=True):
            own, answer = part.own, as_matrix(_answer(part.own, rho))
            mean = turned(as_matrix(found.gradient[name]), *self._bases(group, own)).to(answer)
            squared = squared + (mean.square() * answer).sum()
            noise = noise + (found.noise[name].to(answer) * answer).sum()
        group["dimension"] = float(noise)
        return InMetric(float(squared), float(noise) / reading.count)

    def apply(
        self, group: Group, tap: Tap, state: State, gain: float, parameters: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        place = {id(p): i for i, p in enumerate(tap.parameters.values())}
        moved = [(p, g) for p, g in zip(parameters, grads, strict=True) if id(p) in place]
        if not moved:
            return grads
        with torch.autocast(parameters[0].device.type, enabled=False):
            steps, found = zip(*self._answered(group, state, place, moved), strict=True)
            believed, own = torch.stack(found).sum(0).clamp_min(0)
            excess = group["excess"]
            if not group["compared"]:  # nothing is known yet beyond H ≤ tr H
                excess = (group["traces"].sum().to(own) * own / believed.clamp_min(_TINY)).clamp_min(1)
            length = gain * (believed / excess).sqrt() * long_run(group)
            scale = gain / excess / length.clamp_min(1)
            stepped = {
                id(p): self._back(group, state[p], step * scale.to(step)).reshape(p.shape).to(p.dtype)
                for (p, _), step in zip(moved, steps, strict=True)
            }
            for p, _ in moved:
                state[p][STEP].copy_(stepped[id(p)].detach())
        return [stepped.get(id(p), g) for p, g in zip(parameters, grads, strict=True)]

    def _answered(
        self, group: Group, state: State, place: dict[int, int], moved: list[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """P∇ of each parameter in its basis; its squared length in M + ρI, and by itself."""
        home = moved[0][1].device
        for p, g in moved:
            own, rho = state[p], group["dampings"][place[id(p)]]
            moments = own[MOMENTS]
            along = turned(as_matrix(g.to(moments.dtype)), *self._bases(group, own))
            step = along * as_matrix(_answer(own, rho))
            other = along if NOISE not in own else step * as_matrix(moments + rho.to(moments))
            yield step, torch.stack([(step * other).sum(), step.square().sum()]).to(home)

    def _bases(self, group: Group, own: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        return (own.get("left_basis"), own.get("right_basis")) if group["turned"] else (None, None)

    def _back(self, group: Group, own: dict[str, Any], step: Tensor) -> Tensor:
        left, right = self._bases(group, own)
        step = step if left is None else left @ step
        return step if right is None else step @ right.T

    def details(self, group: Group, tap: Tap) -> dict[str, Any]:
        count = running.effective_count(group, "traces")
        if not group["metric_ready"] or not count:
            return {}
        return {
            "metric_count": count,
            "excess": group["excess"],
            "effective_dimension": group["dimension"],
            "effective_dimension_se": group["dimension"] * (2 / max(1.0, group["count"] - 1)) ** 0.5,
            "layer_traces": dict(zip(tap.parameters, group["traces"].tolist(), strict=True)),
            "layer_dampings": dict(zip(tap.parameters, group["dampings"].tolist(), strict=True)),
        }

    def words(self, group: Group, tap: Tap, likelihood: bool) -> tuple[str, tuple[str, ...]]:
        found, size = self.details(group, tap), sum(p.numel() for p in tap.parameters.values())
        name = "curvature H" if likelihood else "noise G"
        verdict = (
            f"The {name} is kept parameter by parameter, from {found['metric_count']:.0f} samples; in this metric the noise "
            f"of one sample is tr(PG) = {found['effective_dimension']:.3g} ± {found['effective_dimension_se']:.2g} (at "
            f"most) for {size:,} parameters. What tensors have in common is left out; along a step it makes the {name} "
            f"{group['excess']:.3g} x as large, by which steps are shortened."
        )
        return verdict, () if likelihood else ("Give likelihood= to tell the curvature H from the noise G.",)

    def _held(self, group: Group, tap: Tap, state: State) -> dict[str, Held]:
        statistic = tap.statistic
        assert isinstance(statistic, Statistic)
        noise = group["metric"] == "godambe"
        return {name: Held(state, p, statistic.factored(p), noise) for name, p in tap.parameters.items()}


def _answer(own: dict[str, Any], rho: Tensor) -> Tensor:
    """P in the basis: 1/(m + ρ), or (n + ρ)/(m + ρ)² with n the second moments of G."""
    moments = own[MOMENTS]
    damped = moments + rho.to(moments)
    return damped.reciprocal() if NOISE not in own else (own[NOISE] + rho.to(moments)) / damped.square()
