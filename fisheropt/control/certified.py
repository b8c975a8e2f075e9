"""Lower the temperature when a certificate says that training is stationary at the present one."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, Sketches, State
from fisheropt.control.wish import granted
from fisheropt.theory.stationarity import FEWEST, StationarityCertificate, stationarity_certificate

EVERY = 20
TWICE = 2


@final
@dataclass(frozen=True)
class Certified(Controller):
    """b <- factor b where mean(A + C) < r_0 mean(A) with confidence, twice in a row; then eta, where b is at its largest.

        A_k = |s_k|^2 - V/b,   C_k = <s_{k-1}, s_k>,

    from the sketches s of the gradients in the metric of the step; for a loader that shuffles n samples, V/n is added
    to both, as a batch that is drawn leaves less of its kind for the next. At stationarity C = -A. The test is made
    every 20 steps, on the last half of at least 60 since the last change. Ours.

    V is the mean of its readings since the last change, with linearly growing weights as V falls with the loss; before
    the first reading there is no certificate. The relation between A, C and the decrease of the loss is that of steps
    without momentum, and batches that are short, as at the end of an epoch, enter by the mean of 1/b.

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
        """Steps, mean 1/b and V since the last change, b* (0 before the first step), and the last certificate."""
        counts = {"steps": 0.0, "inverse_batch": 0.0, "readings": 0.0, "noise": 0.0, "wanted": 0.0, "lr_factor": 1.0}
        verdict = {"upper": math.nan, "decrease": math.nan, "decrease_se": math.nan, "tested": 0.0, "in_a_row": 0.0}
        return counts | verdict | {"changes": 0.0}

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
        new = _counted(state, reading, moment)
        why = ""
        if new["steps"] % EVERY == 0 and new["noise"] > 0.0:
            certificate = self._certificate(new, moment, moment.sketches)
            if certificate is not None:
                new |= _verdict(new, certificate)
                why = _words(certificate)
        if new["in_a_row"] >= TWICE:
            anew = {"steps": 0.0, "inverse_batch": 0.0, "readings": 0.0, "in_a_row": 0.0}
            new |= anew | {"wanted": new["wanted"] * self.factor, "changes": new["changes"] + 1.0}
        size, new["lr_factor"] = granted(new["wanted"], moment)
        return Proposal(size, new, new["lr_factor"], why)

    def _certificate(self, state: State, moment: Moment, sketches: Sketches) -> StationarityCertificate | None:
        count = min(int(state["steps"]), sketches.steps - 1)
        if count < FEWEST:
            return None
        squared, lagged = products(sketches.last(count + 1))
        bias = 0.0 if moment.data_size is None else state["noise"] / moment.data_size
        signal = squared - state["noise"] * state["inverse_batch"] + bias
        lr = moment.lr * state["lr_factor"]
        return stationarity_certificate(signal, lagged + bias, lr, share=self.share, level=self.level)


def products(rows: Tensor) -> tuple[Tensor, Tensor]:
    """|s_k|^2 and <s_{k-1}, s_k> of all rows [n, m] but the first, on the host: one synchronisation."""
    rows = rows.double()
    squared, lagged = rows[1:].square().sum(1), (rows[:-1] * rows[1:]).sum(1)
    return squared.cpu(), lagged.cpu()


def _counted(state: State, reading: GradientNoise | None, moment: Moment) -> State:
    """With this step in the mean of 1/b, and its reading in that of V."""
    steps = state["steps"] + 1.0
    inverse = state["inverse_batch"] + (1.0 / moment.batch_size - state["inverse_batch"]) / steps
    new = state | {"steps": steps, "inverse_batch": inverse, "wanted": state["wanted"] or float(moment.stay())}
    if reading is not None and reading.usable:
        readings = state["readings"] + 1.0
        weight = 2.0 / (readings + 1.0)
        new |= {"readings": readings, "noise": state["noise"] + weight * (reading.noise - state["noise"])}
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
