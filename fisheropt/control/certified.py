"""Lower the temperature when a certificate says that training is stationary at the present one."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, Sketches, State
from fisheropt.control.wish import granted
from fisheropt.theory.stationarity import FEWEST, StationarityCertificate, batch_means
from fisheropt.theory.tails import two_sided_quantile

EVERY = 20
TWICE = 2
BATCHES = 10
FEWEST_READINGS = 4


@final
@dataclass(frozen=True)
class Certified(Controller):
    """b <- factor b where mean(A + C) < r_0 mean(A) with confidence, twice in a row; then eta, where b is at its largest.

        A_k = |s_k|^2 - V_k/b_k,   C_k = <s_k, s_{k+1}>,

    from the sketches s of the gradients in the metric of the step; for a loader that shuffles n samples, V/n is added
    to both, as a batch that is drawn leaves less of its kind for the next. At stationarity C = -A. The test is made
    every 20 steps, on the last half of at least 60 since the last change. Ours.

    V falls with the loss and V/b is often larger than A, so V_k is of the tested half: the straight line through its
    readings there, or through the last four since the change where fewer are there; before four there is no certificate.
    What the line leaves of the readings makes its standard error, which widens the bound and the error of the decrease,
    with dof after Welch; read at every tenth step only, V takes much of the power: give the optimizer every=1. The
    relation between A, C and the decrease of the loss is that of steps without momentum.

    Args:
        factor: by which the temperature eta/b falls, above 1.
        share: r_0, the part of the decrease of a step without noise that has to be left for training to go on; the larger,
            the earlier.
        level: of the one-sided bound.
    """

    factor: float = 4.0
    share: float = 0.5
    level: float = 0.95
    name: ClassVar[str] = "certified"
    needs: ClassVar[frozenset[str]] = frozenset({"sketches"})

    def __post_init__(self) -> None:
        sound = math.isfinite(self.factor) and self.factor > 1.0 and 0.0 < self.share < 1.0 and 0.5 < self.level < 1.0
        if not sound:
            raise ValueError(
                f"{self!r}: factor is above 1, share in (0, 1), level in (0.5, 1); "
                "write Certified(factor=4.0, share=0.5, level=0.95)."
            )

    def initial_state(self) -> State:
        """Steps, 1/b and readings of V since the last change, b* (0 before the first step), and the last certificate.

        The lists reach as far back as the tested half: 2049 numbers for a history of 4096 steps. `noise` is V there.
        """
        counts = {"steps": 0.0, "wanted": 0.0, "lr_factor": 1.0, "changes": 0.0}
        verdict = {"upper": math.nan, "decrease": math.nan, "decrease_se": math.nan, "tested": 0.0, "in_a_row": 0.0}
        return counts | verdict | {"noise": math.nan, "noise_se": math.nan} | _nothing_seen()

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """The size in use until the certificate was given twice in a row; then b* times the factor.

        Raises:
            ValueError: without sketches.
        """
        if moment.sketches is None:
            raise ValueError(
                "Certified().propose(state, reading, Moment(..., sketches=None)) compares gradients of consecutive steps; "
                "write Moment(..., sketches=history.Ring(group)), or use it in an optimizer that keeps them: "
                "AdaptiveBatchSGD(..., controller='certified')"
            )
        new = _counted(state, reading, moment, moment.sketches)
        why = ""
        compared = _compared(new, moment.sketches)
        if new["steps"] % EVERY == 0 and compared >= FEWEST and len(new["readings"]) >= FEWEST_READINGS:
            certificate, noise = self._certificate(new, moment, moment.sketches, compared - compared // 2)
            new |= noise | _verdict(new, certificate)
            why = _words(certificate)
        if new["in_a_row"] >= TWICE:
            new |= _nothing_seen() | {"steps": 0.0, "in_a_row": 0.0}
            new |= {"wanted": new["wanted"] * self.factor, "changes": new["changes"] + 1.0}
        size, new["lr_factor"] = granted(new["wanted"], moment)
        return Proposal(size, new, new["lr_factor"], why)

    def _certificate(
        self, state: State, moment: Moment, sketches: Sketches, half: int
    ) -> tuple[StationarityCertificate, State]:
        """The test of the last `half` products, less those that fill no batch, and V over them with its error."""
        tested = half // BATCHES * BATCHES
        squared, lagged = products(sketches.last(tested + 1))
        steps = torch.arange(-tested, 0, dtype=torch.float64) + state["steps"]
        inverse = torch.tensor(state["inverse_batches"][-1 - tested : -1], dtype=torch.float64)
        shuffled = 0.0 if moment.data_size is None else 1.0 / moment.data_size
        line = _Line.through(state["reading_steps"], state["readings"])
        noise = line.at(steps)
        a, c = squared - noise * (inverse - shuffled), lagged + noise * shuffled
        of_a, of_c = shuffled - inverse, torch.full_like(inverse, shuffled)  # by which an error of V enters both
        mean, mean_error = batch_means(a + c, BATCHES)
        excess, error = batch_means((1.0 - self.share) * a + c, BATCHES)
        of_noise = line.error(steps, (1.0 - self.share) * of_a + of_c)
        upper = excess + _one_sided(self.level, error, of_noise, line.dof)
        lr = moment.lr * state["lr_factor"]
        decrease_se = lr / 2.0 * math.hypot(mean_error, line.error(steps, of_a + of_c))
        certificate = StationarityCertificate(upper < 0.0, upper, lr / 2.0 * mean, decrease_se, tested)
        return certificate, {"noise": float(noise.mean()), "noise_se": line.error(steps, torch.ones_like(inverse))}


@final
@dataclass(frozen=True)
class _Line:
    """V over the steps, by least squares.

    Args:
        centre: mean step of the readings.
        level: V there.
        slope: of V a step.
        level_error: standard error of the level.
        slope_error: of the slope.
        dof: of both.
    """

    centre: float
    level: float
    slope: float
    level_error: float
    slope_error: float
    dof: int

    @staticmethod
    def through(steps: list[float], readings: list[float]) -> "_Line":
        """The line through three readings or more, and its errors from what it leaves of them."""
        v, x = torch.tensor(readings, dtype=torch.float64), torch.tensor(steps, dtype=torch.float64)
        centre, level = float(x.mean()), float(v.mean())
        x = x - centre
        spread, dof = float(x.square().sum()), len(readings) - 2
        slope = float(x @ v) / spread
        left = math.sqrt(float((v - level - slope * x).square().sum()) / dof)
        return _Line(centre, level, slope, left / math.sqrt(len(readings)), left / math.sqrt(spread), dof)

    def at(self, steps: Tensor) -> Tensor:
        """V at the steps."""
        return self.level + self.slope * (steps - self.centre)

    def error(self, steps: Tensor, weights: Tensor) -> float:
        """Standard error of the mean of weights V over the steps."""
        moved = float((weights * (steps - self.centre)).mean())
        return math.hypot(float(weights.mean()) * self.level_error, moved * self.slope_error)


def products(rows: Tensor) -> tuple[Tensor, Tensor]:
    """|s_k|^2 and <s_k, s_{k+1}> of all rows [n, m] but the last, on the host: one synchronisation."""
    rows = rows.double()
    squared, lagged = rows[:-1].square().sum(1), (rows[:-1] * rows[1:]).sum(1)
    return squared.cpu(), lagged.cpu()


def _one_sided(level: float, error: float, of_noise: float, dof: int) -> float:
    """Distance of the bound from the mean, with both standard errors and, after Welch, the dof of their sum."""
    total = math.hypot(error, of_noise)
    part = (of_noise / total) ** 2 if 0.0 < total < math.inf else 0.0
    return two_sided_quantile(2.0 * level - 1.0, 1.0 / ((1.0 - part) ** 2 / (BATCHES - 1) + part**2 / dof)) * total


def _nothing_seen() -> State:
    return {"inverse_batches": [], "reading_steps": [], "readings": []}


def _compared(state: State, sketches: Sketches) -> int:
    """Pairs of consecutive gradients since the last change, as far as they are held."""
    return min(int(state["steps"]), sketches.steps - 1)


def _counted(state: State, reading: GradientNoise | None, moment: Moment, sketches: Sketches) -> State:
    """With this step's 1/b and its reading of V, and without those older than the half that is tested."""
    new = state | {"steps": state["steps"] + 1.0, "wanted": state["wanted"] or float(moment.stay())}
    compared = _compared(new, sketches)
    half = compared - compared // 2
    new["inverse_batches"] = [*state["inverse_batches"], 1.0 / moment.batch_size][-1 - half :]
    if reading is not None and reading.usable:
        steps, readings = [*state["reading_steps"], new["steps"]], [*state["readings"], reading.noise]
        old = sum(step < new["steps"] - half for step in steps[:-FEWEST_READINGS])
        new |= {"reading_steps": steps[old:], "readings": readings[old:]}
    return new


def _verdict(state: State, certificate: StationarityCertificate) -> State:
    return {
        "upper": certificate.upper,
        "decrease": certificate.decrease,
        "decrease_se": certificate.decrease_se,
        "tested": float(certificate.steps),
        "in_a_row": state["in_a_row"] + 1.0 if certificate.stationary else 0.0,
    }


def _words(certificate: StationarityCertificate) -> str:
    decrease = f"{certificate.decrease:.2g} +- {certificate.decrease_se:.1g} a step, over {certificate.steps} steps"
    return f"{'stationary' if certificate.stationary else 'the loss still falls'}: {decrease}"
