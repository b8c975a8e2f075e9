"""A few eigenpairs of M, and one number for all other directions.

    P = Σᵢ (1/lᵢ') vᵢvᵢᵀ + (1/μ)(I - VVᵀ),    lᵢ' = |rᵢ|² lᵢ + (1 - |rᵢ|²) μ

Eigenvalues of a matrix of few samples in many dimensions spread by themselves: those above the edge of that bulk are kept,
each shrunk by its eigenvector's overlap |r|² with the true one; the mean μ of the bulk stands for the rest and is the
damping. A number ρ as damping gives 1/(lᵢ + ρ) and 1/ρ.

Reference: benarous2025local
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.directions import DenseDirections, Directions
from fisheropt.optim import running, subspace
from fisheropt.optim.group import Group, device_of
from fisheropt.optim.metrics import basis, edge, outliers
from fisheropt.optim.metrics.full import long_run
from fisheropt.optim.metrics.structure import InMetric, State, Structure
from fisheropt.optim.reading import Reading
from fisheropt.statistics import JointStatistic
from fisheropt.statistics.response import Response
from fisheropt.taps import Tap

_FRESH = 4
_MEMORY = 0.9  # G vanishes as a fit improves: with a longer memory the readings of the start would be all of its mean


def check_rank(rank: int | str, largest: int) -> None:
    """Refuse a rank that is no number of directions."""
    if not isinstance(largest, int) or largest < 1:
        raise ValueError(f"largest_rank={largest!r} must be a whole number of directions >= 1")
    if rank != "edge" and (not isinstance(rank, int) or not 1 <= rank <= largest):
        raise ValueError(
            f"rank={rank!r} must be 'edge', or a whole number of directions from 1 to largest_rank={largest}"
        )


@final
class LowRank(Structure):
    """V in the parameters' state under "basis"; l and what was made of it in the group."""

    def statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic:
        if group["metric"] == "godambe":
            raise ValueError(
                "metric='godambe' needs G in the eigenvectors of H, which structure='lowrank' does not measure; write "
                "GodambeSGD(..., metric='godambe', structure='kronecker'), or 'full' up to 4,096 parameters"
            )
        if group["damping"] not in ("auto", "bulk") and float(group["damping"]) + float(group["weight_decay"]) <= 0:
            raise ValueError("damping=0 would step without bound where structure='lowrank' keeps nothing; write 'bulk'")
        tracked = max(1, min(group["largest_rank"], sum(p.numel() for p in parameters.values()) // 2))
        return Response(tracked + min(_FRESH, tracked), tracked, traces=True)

    def fresh(self, tap: Tap | None) -> Group:
        assert tap is not None and isinstance(tap.statistic, Response)
        zero = torch.zeros(tap.statistic.tracked, dtype=torch.float64, device=device_of(tap))
        held = {"eigenvalues": zero, "overlaps": zero.clone(), "gains": zero.clone()}
        numbers = {
            "bulk": 0.0,
            "threshold": 0.0,
            "kept": 0,
            "tracked": 0,
            "angle": 0.0,
            "metric_damping": 0.0,
            "metric_ready": 0.0,
        }
        means = edge.fresh() | {"scores_weight": 0.0, "scores_weight_squared": 0.0}
        return held | numbers | means | outliers.fresh()

    def interval(self, group: Group, tap: Tap, likelihood: bool) -> int | None:
        """As many steps as keep the cost of measuring within `overhead`, in products of matrices."""
        k = tap.statistic.rank(tap.parameters) if isinstance(tap.statistic, Response) else 0
        products = 2 * k + 1 + (k + 3 if likelihood else 0)  # of which a step of SGD has three; and as much again for V
        return math.ceil(2 * products / 3 / group["overhead"])

    def aim(self, group: Group, tap: Tap, state: State, due: bool) -> None:
        statistic = tap.statistic
        assert isinstance(statistic, Response)
        if group["steps"]:
            for p in tap.parameters.values():
                if basis.KEY not in state[p]:
                    state[p][basis.KEY] = basis.blank(p, statistic.tracked)
        if not due:
            tap.aim(statistic.directions(tap.parameters))
            return
        known = group["tracked"]
        kept = {n: state[p][basis.KEY][:known] for n, p in tap.parameters.items()} if known else None
        drawn = subspace.fresh(tap.parameters, statistic.count - known, int(group["steps"]), kept)
        held = drawn if kept is None else {n: torch.cat([kept[n], drawn[n]]) for n in drawn}
        along: dict[str, Directions] = {n: DenseDirections(part) for n, part in held.items()}
        tap.aim(along)

    def learn(self, group: Group, tap: Tap, state: State, reading: Reading, decay: float) -> InMetric | None:
        seen = self._in_metric(group, reading)  # before V moves: the reading is along the old one
        found, statistic = reading.scored, tap.statistic
        if found is None or not isinstance(statistic, Response):
            return seen
        kept = decay if reading.information is not None else min(decay, _MEMORY)
        running.add(group, "scores", edge.head(found), reading.count, kept)
        watched = {n: d.basis for n, d in tap.directions.items() if isinstance(d, DenseDirections)}
        old = torch.zeros(statistic.count, dtype=torch.float64, device=group["eigenvalues"].device)
        old[: statistic.tracked] = group["eigenvalues"]
        weight = reading.count / group["scores_weight"]
        edge.remember(group, found, weight)
        ritz = subspace.power(watched, old, found.rows, weight, statistic.tracked, found.mixing)
        known, group["eigenvalues"] = group["tracked"], ritz.eigenvalues.to(old)
        group["tracked"] = int((ritz.eigenvalues > 0).sum())
        for n, p in tap.parameters.items():
            state[p][basis.KEY] = ritz.basis[n]
        self._renew(group, tap)
        group["angle"] = ritz.angle(group["kept"], known) if known else 90.0
        return seen

    def _renew(self, group: Group, tap: Tap) -> None:
        """Choose what is kept, and from it the metric."""
        count, dimension = running.effective_count(group, "scores"), _dimension(tap)
        values, scores = group["eigenvalues"], group["scores"]
        if float(scores[0]) <= 0:
            return
        sizes = group["sizes"] * group["sizes"].new_tensor([[1.0], [group["sizes_unit"]]])
        chosen = edge.above(values, scores, sizes, count, dimension)
        outliers.note(group, chosen.rank, float(values[0]) / chosen.threshold if chosen.threshold else 0.0)
        if group["rank"] != "edge":
            chosen = edge.first(values, scores, count, dimension, int(group["rank"]))._replace(
                threshold=chosen.threshold
            )
        decay, damping = float(group["weight_decay"]), group["damping"]
        bulk = damping in ("auto", "bulk")
        rest = decay + (chosen.bulk if bulk else float(damping))
        own = (chosen.shrunk if bulk else values + float(damping)) + decay
        kept = torch.arange(len(values), device=values.device) < chosen.rank
        group["gains"] = torch.where(kept, 1 / own - 1 / rest, 0.0)
        group["overlaps"], group["kept"] = chosen.overlaps, chosen.rank
        group["bulk"], group["bulk_dimension"], group["threshold"] = chosen.bulk, chosen.dimension, chosen.threshold
        group["metric_damping"], group["metric_ready"] = rest, 1.0

    def _in_metric(self, group: Group, reading: Reading) -> InMetric | None:
        along = reading.projected
        if not group["metric_ready"] or along is None or along.covariance is None or reading.covariance is None:
            return None
        gains, rest = group["gains"], group["metric_damping"]
        r = len(gains)
        squared = reading.gradient.square() / rest + gains @ along.gradient[:r].square()
        noise = reading.covariance / rest + gains @ along.covariance.diagonal()[:r]
        return InMetric(float(squared), float(noise) / reading.count)

    def apply(
        self, group: Group, tap: Tap, state: State, gain: float, parameters: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        with torch.autocast(parameters[0].device.type, enabled=False):
            return self._applied(group, tap, state, gain, parameters, grads)

    def _applied(
        self, group: Group, tap: Tap, state: State, gain: float, parameters: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        """γP∇ in the precision of the basis."""
        kept, rest = group["kept"], group["metric_damping"]
        watched = {id(p) for p in tap.parameters.values()}
        moved = [(p, g) for p, g in zip(parameters, grads, strict=True) if id(p) in watched]
        if not moved:
            return grads
        rows = [subspace.flat(state[p][basis.KEY][:kept]) for p, _ in moved]
        flat = [g.reshape(-1).to(row.dtype) for row, (_, g) in zip(rows, moved, strict=True)]
        home = flat[0].device
        along = torch.stack([(row @ g).to(home) for row, g in zip(rows, flat, strict=True)]).sum(0)
        answered = group["gains"][:kept].to(along) * along
        squared = torch.stack([(g @ g).to(home) for g in flat]).sum() / rest + answered @ along
        length = gain * squared.clamp_min(0).sqrt() * long_run(group)
        scale = gain / length.clamp_min(1)
        stepped = {
            id(p): (g * (scale / rest).to(g)).addmv_(row.T, (answered * scale).to(row)).reshape(p.shape).to(p.dtype)
            for row, g, (p, _) in zip(rows, flat, moved, strict=True)
        }
        return [stepped.get(id(p), g) for p, g in zip(parameters, grads, strict=True)]

    def details(self, group: Group, tap: Tap) -> dict[str, Any]:
        count = running.effective_count(group, "scores")
        if not group["metric_ready"] or not count:
            return {}
        values = [float(x) for x in group["eigenvalues"]]
        return {
            "rank": group["kept"],
            "edge": group["threshold"],
            "eigenvalues": values,
            "eigenvalues_se": [x * (2 / count) ** 0.5 for x in values],
            "overlaps": [float(x) for x in group["overlaps"]],
            "bulk_mean": group["bulk"],
            "bulk_dimension": group["bulk_dimension"],
            "metric_count": count,
            "angle": group["angle"],
        }

    def words(self, group: Group, tap: Tap, likelihood: bool) -> tuple[str, tuple[str, ...]]:
        found = self.details(group, tap)
        name, largest = ("curvature H" if likelihood else "noise G"), found["eigenvalues"][0]
        error, rank, size = found["eigenvalues_se"][0], found["rank"], _dimension(tap)
        verdict = (
            f"The {name} keeps {rank} of {size:,} directions; the largest eigenvalue, {largest:.3g} ± {error:.2g}, is "
            f"{group['ratio']:.2f} x the edge {found['edge']:.3g} of a bulk of mean {found['bulk_mean']:.3g} in "
            f"{found['bulk_dimension']:,.0f} directions, at {found['metric_count']:.0f} samples."
        )
        if not likelihood and outliers.lost(group):
            return verdict, (outliers.words(group),)
        return verdict, () if likelihood else ("Give likelihood= to tell the curvature H from the noise G.",)


def _dimension(tap: Tap) -> int:
    return sum(p.numel() for p in tap.parameters.values())
