"""Steps in the metric of curvature H or of gradient noise G.

    θ ← θ - ηγP ∇L,    P = (M + ρI)⁻¹,    M = H (curvature) or G (fisher)

G is the covariance of the per-sample gradients in the ordinary backward. H is the model Fisher information, which is the
Gauss-Newton matrix for canonical links, measured by one more backward from the likelihood's cotangents. Without a
likelihood H = G, which holds where the model is well specified. In what form M is kept is a matter of `metrics`.

Reference: zantedeschi2026
"""

from __future__ import annotations

from typing import Any, Literal, final

from torch import Tensor, nn

from fisheropt.inference.covariance import SandwichCovariance
from fisheropt.likelihoods import Likelihood
from fisheropt.optim import metrics, running
from fisheropt.optim.base import FisherOptimizer
from fisheropt.optim.group import Group
from fisheropt.optim.metrics import basis
from fisheropt.optim.metrics.full import check
from fisheropt.optim.observing import Parameters
from fisheropt.optim.reading import Reading
from fisheropt.statistics import JointStatistic
from fisheropt.taps import Tap

_METRICS = ("curvature", "fisher", None)
_GAINS = ("constant", "running")
_RUNNING = 2.0  # 1 is the plain mean, which forgets a far start too slowly; 2 costs a third more variance in one pass
_FAR = 4.0  # ‖ĝ‖²_P in units of its noise V/b, above which the fit is still travelling
_SURE = 4.75  # standard normal deviations: of a million gradients of pure noise one is taken for travelling


@final
class GodambeSGD(FisherOptimizer):
    """SGD in the metric of curvature or gradient noise, θ ← θ - η (M + ρI)⁻¹ ∇L.

    With gain="running" the step falls like batch size over samples seen, and one pass over the data comes near the
    statistical limit tr(H⁻¹G)/2N; `report()` says how far H and G are apart.

    Args:
        params_or_model: the model, for per-sample noise; or parameters, each backward then being one observation.
        lr: η, in (0, 1] as for a Newton step, so that SGD's does not carry over; a float or a tensor of one element.
        momentum: of the step, as in torch.optim.SGD; it multiplies the step by 1/(1 - momentum) here too.
        dampening: of the momentum.
        weight_decay: λ of (λ/2)‖θ‖², added to the gradient before the metric, and to M.
        nesterov: Nesterov momentum.
        maximize: ascend.
        foreach: as in torch.optim.SGD.
        differentiable: allow autograd through the step.
        metric: "curvature" for M = H, "fisher" for M = G, None for plain SGD.
        gain: "constant" steps by η; "running" by η·2b/(2b+d+n) for d parameters, batch size b and n samples since the
            gradient was last clear of its noise, which makes the iterate a mean of Newton steps with weights that grow
            linearly; `lr` stays an LR scheduler's.
        structure: "full", one matrix over all parameters of a group; "lowrank", a few eigenpairs and one number for all
            other directions; "auto" takes full up to 4096 parameters and low rank beyond.
        rank: how many eigenpairs "lowrank" keeps; "edge" keeps those above the edge that noise alone would give the
            spectrum, each shrunk by how far its eigenvector can be trusted.
        largest_rank: how many eigenpairs are tracked, and kept at most.
        damping: ρ; "auto" with one matrix is a share of what one more sample could add, tr(H)/10n or tr(G)/n, which
            falls like 1/n; with low rank it is "bulk", the mean of the eigenvalues that are not kept.
        likelihood: of the model's output, for H: "bernoulli", "categorical", "gaussian", "poisson", "multilabel" or an
            object of `fisheropt.likelihoods`; the loss is its mean negative log-likelihood.
        every: steps between measurements; "auto" takes the first ten and then each tenth, with low rank the steps 0, 1, 2, 4,
            8 and 10, from there on each 1.3 times the one before (15 of the first 125), until they are as many apart as
            `overhead` allows.
        overhead: the share of a step that measuring may cost.

    Raises:
        ValueError: for a group with more parameters than structure="full" serves, or hyper-parameters outside their
            range.

    Reference: zantedeschi2026
    """

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
        metric: Literal["curvature", "fisher"] | None = "curvature",
        gain: Literal["constant", "running"] = "constant",
        structure: Literal["auto", "full", "lowrank"] = "auto",
        rank: int | Literal["edge"] = "edge",
        largest_rank: int = 16,
        damping: float | Literal["auto", "bulk"] = "auto",
        likelihood: Likelihood | str | None = None,
        every: int | Literal["auto"] = "auto",
        overhead: float = 0.05,
    ) -> None:
        for name, value, known in (
            ("metric", metric, _METRICS),
            ("structure", structure, metrics.NAMES),
            ("gain", gain, _GAINS),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: write one of {known}")
        if damping != "bulk":
            check(damping)
        metrics.check_rank(rank, largest_rank)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "metric": metric,
            "gain": gain,
            "structure": structure,
            "rank": rank,
            "largest_rank": largest_rank,
            "damping": damping,
            "likelihood": None if likelihood is None else str(likelihood),
            "every": every,
            "overhead": overhead,
        }
        super().__init__(params_or_model, defaults, likelihood if metric == "curvature" else None)

    def _statistic(self, group: Group, parameters: dict[str, Tensor]) -> JointStatistic | None:
        if group["metric"] is None:
            return None
        return metrics.choose(group, parameters).statistic(group, parameters)

    def _fresh(self, tap: Tap | None) -> Group:
        return metrics.of(tap).fresh(tap) | {"gain_from": 0.0}

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group, and aim its tap for its first step."""
        super().add_param_group(param_group)
        tap = self._taps[-1]
        if tap is not None:
            self._arm(tap, self.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, and keep the precision of what was learnt beside parameters of less."""
        super().load_state_dict(state_dict)
        basis.restore(self.state, self.param_groups, state_dict)
        for tap, group in zip(self._taps, self.param_groups, strict=True):
            if tap is not None:  # torch's own loading has aimed along a basis that it had rounded
                self._arm(tap, group)

    def _due(self, group: Group) -> bool:
        tap = self._tap_of(group)
        interval = metrics.of(tap).interval(group, tap, self._likelihood is not None)
        if group["every"] != "auto" or interval is None:
            return super()._due(group)
        return metrics.scheduled(int(group["steps"]), interval)

    def _arm(self, tap: Tap, group: Group) -> None:
        super()._arm(tap, group)
        metrics.of(tap).aim(group, tap, self.state, self._due(group))

    def _decay(self, group: Group, count: int) -> float:
        return running.growing(group["measured"])

    def _learn(self, group: Group, reading: Reading) -> None:
        decay, tap = self._decay(group, reading.count), self._tap_of(group)
        if reading.information is not None:
            running.add(group, "information", reading.information, reading.count, decay)
        seen = metrics.of(tap).learn(group, tap, self.state, reading, decay)
        if seen is not None and seen.squared > _far(_dimension(tap)) * seen.noise:
            group["gain_from"] = group["steps"]

    def _active(self, group: Group) -> bool:
        return bool(group["metric_ready"])

    def _direction(self, group: Group, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        tap = self._tap_of(group)
        return metrics.of(tap).apply(group, tap, self.state, _gain(group, tap), parameters, grads)

    def sandwich(self, group: int = 0, *, samples: int | None = None) -> SandwichCovariance:
        """H⁻¹GH⁻¹/n of a group's parameters from what training has measured: standard errors without another pass.

        `fisheropt.inference.sandwich(model, loader, likelihood)` looks at the data once more and is the better choice where
        they are at hand: measured while training, coverage falls short by a few per cent below n = 500 d.

        Args:
            group: index of the parameter group.
            samples: n, of distinct samples. None takes those seen, of which gain="running" uses three quarters, as
                late samples weigh more; after several epochs over the same data give their number.

        Raises:
            RuntimeError: if the curvature or the noise was not measured in full.

        Reference: white1982maximum
        """
        held = self.param_groups[group]
        if (
            "covariance" not in held
            or held["covariance"].ndim != 2
            or self._likelihood is None
            or not held["metric_ready"]
        ):
            raise RuntimeError(
                f"GodambeSGD.sandwich({group}) needs H and G in full, each measured once at least: build the optimizer as "
                f"GodambeSGD(model, likelihood=..., structure='full'); or call fisheropt.inference.sandwich(model, ...)"
            )
        seen = int(held["samples"] * (0.75 if held["gain"] == "running" else 1.0))
        count = seen if samples is None else samples
        remark = f"measured while training; n = {count}, " + (
            "as given" if samples is not None else "from the gradients seen"
        )
        return SandwichCovariance.of_moments(
            self._tap_of(held).parameters, held["information"], held["covariance"], count, remarks=[remark]
        )

    def _details(self, group: Group) -> dict[str, Any]:
        details: dict[str, Any] = {"metric": group["metric"], "damping": group["metric_damping"]}
        tap = self._tap_of(group)
        return details | metrics.of(tap).details(group, tap)

    def _words(self, groups: list[Group]) -> tuple[str, tuple[str, ...]]:
        if not any(group["metric_ready"] for group in groups):
            return (
                "No covariance could be measured, so the steps are those of plain SGD.",
                ("Write GodambeSGD(model, ...), or run at least two backward() a step.",),
            )
        measured = next(group for group in groups if group["metric_ready"])
        tap = self._tap_of(measured)
        return metrics.of(tap).words(measured, tap, self._likelihood is not None)


def _gain(group: Group, tap: Tap) -> float:
    """1, or 2/(2 + t + d/b) for t steps since the gradient was last clear of its noise.

    Before d samples were seen, the noise of a Newton step exceeds what it can gain.
    """
    if group["gain"] == "constant":
        return 1.0
    steps = float(group["steps"]) - float(group["gain_from"])
    return _RUNNING / (_RUNNING + steps + _dimension(tap) / group["count"])


def _far(dimension: int) -> float:
    """What noise alone, χ²_d/d in d dimensions, all but never exceeds; by Wilson and Hilferty's cube."""
    spread = 2 / (9 * dimension)
    return max(_FAR, (1 - spread + _SURE * spread**0.5) ** 3)


def _dimension(tap: Tap) -> int:
    return sum(p.numel() for p in tap.parameters.values())
