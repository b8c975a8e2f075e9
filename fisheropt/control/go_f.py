"""GO-F: the efficient batch size by a filter on the signal, for steps in a Fisher or Newton metric."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from fisheropt.control.base import LARGEST, Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.matched_step import matched_step
from fisheropt.control.signal_filter import Belief, Mixture, Noise
from fisheropt.control.wish import granted, unchanged, words

UNKNOWN_PARTICIPATION = 30.0
NEWEST_WEIGHT = 0.1
MOST_STEPS = 20
SMALLEST_STEP = 1e-9


@final
@dataclass(frozen=True)
class GOF(Controller):
    """The batch size that gains most information a sample, from a filtered signal A (ours).

    With theta <- theta - eta P g and P = H^-1 a step makes A' = (1-eta)^2 A + eta^2 V/b. The information 1/A
    grows most a sample at b = eta/(1-eta) V/A, where A is the one that the *next* batch meets. Then exactly
    A_k = V/(n_0 + n_k), and the last iterate has the Cramer-Rao (sandwich) excess risk V/(2 (n_0 + n)) for
    every eta in (0, 1). A Kalman filter follows A, as single readings are far too noisy for a small eta.

    A metric is never quite H^-1: it is damped, structured, late. A second filter therefore supposes that a
    step contracts by 1 - eta `slow` only; the readings weigh the two, and the size is the best for their
    mixture. `doubt=0` leaves the first filter alone, and with exact readings the exact recursion above.

    Under multiplicative noise eta (1 + (d + 1)/b) < 1 is needed, which bounds the smallest batch size.

    Args:
        drift: q, standard deviation of the part of A's change in a step that the model misses, relative to A.
        slow: contraction of the second filter, in (0, 1).
        doubt: prior weight of the second filter, in [0, 1).
        memory: factor in [0, 1) by which evidence for either filter fades with each reading.
    """

    drift: float = 0.3
    slow: float = 0.25
    doubt: float = 0.1
    memory: float = 0.9
    name: ClassVar[str] = "go_f"

    def __post_init__(self) -> None:
        fractions = 0.0 < self.slow < 1.0 and 0.0 <= self.doubt < 1.0 and 0.0 <= self.memory < 1.0
        if not (fractions and self.drift >= 0.0):
            raise ValueError(f"{self!r}: drift is at least 0, slow, doubt and memory are in [0, 1); write GOF().")

    @property
    def newton(self) -> bool:
        """Of steps eta < 1 in a metric P near H^-1."""
        return True

    def kept(self, lr: float, wanted: float, actual: float) -> float:
        """As in `matched_step`, which loses no efficiency."""
        return matched_step(lr, wanted, actual) / lr if lr and actual < wanted else 1.0

    def initial_state(self) -> State:
        """V, 1/d and the samples behind them; both beliefs and their odds; the last call and its results."""
        keys = ("trace", "inverse_participation", "read", "seen", "proposed")
        beliefs = ("signal", "variance", "slow_signal", "slow_variance", "log_odds")
        return dict.fromkeys(keys + beliefs, 0.0) | {"lr_factor": 1.0}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """Filter, predict, choose.

        Steps since the last call are predicted too, on `samples` and `batch_size`. A call at every step,
        with None where nothing was measured, lets the size grow in between, which matters for a large eta.
        Beyond the largest batch the step falls instead, as in `matched_step`, and is predicted as it was made.
        """
        lr = moment.lr
        if not 0.0 <= lr < 1.0:
            raise ValueError(
                f"GOF().propose(state, reading, Moment(lr={lr}, ...)): needed is 0 <= lr < 1, a step in a metric "
                "P ~ H^-1; lower lr, or use NormTest(theta=0.9), which knows no step size."
            )
        if reading is not None and reading.usable:
            new = _averaged(state, reading)
        elif state["read"]:
            new, reading = state, None
        else:
            return unchanged(state, moment)
        if lr < SMALLEST_STEP:
            return replace(unchanged(state, moment), batch_size=moment.clip(state["proposed"] or moment.stay()))
        noise = Noise(new["trace"], 1.0 / new["inverse_participation"])
        steps = max(round((moment.samples - state["seen"]) / moment.batch_size), 1) if state["read"] else 1
        mixture = self._filtered(state, reading, noise, moment, steps - 1)
        fastest = max(state["proposed"], moment.batch_size) * ((1.0 + lr) / (1.0 - lr)) ** min(steps, MOST_STEPS)
        wanted = min(mixture.best_batch(lr, self.slow, noise, self.doubt), fastest, LARGEST)
        size, factor = granted(wanted, moment, lr)
        said = "" if reading is None else words(mixture.right.signal, noise.trace, moment.batch_size, factor)
        result = {"seen": float(moment.samples), "proposed": max(wanted, size), "lr_factor": factor}
        return Proposal(size, new | _floats(mixture) | result, factor, said)

    def _filtered(
        self, state: State, reading: GradientNoise | None, noise: Noise, moment: Moment, missed: int
    ) -> Mixture:
        """What is believed of the A that the next batch meets, after steps of the size that was made."""
        lr, batch_size = moment.lr * state["lr_factor"], moment.batch_size
        if reading is not None and not state["read"]:
            mixture = Mixture.first(reading, lr, noise)
        else:
            mixture = _mixture(state).after(missed, lr, self.slow, batch_size, noise, self.drift)
            if reading is not None:
                mixture = mixture.given(reading, lr, self.slow, noise, self.memory)
        return mixture.after(1, lr, self.slow, batch_size, noise, self.drift)


def _averaged(state: State, reading: GradientNoise) -> State:
    """State with V and 1/d averaged over the readings, the newest with at least a tenth of the weight."""
    read = state["read"] + reading.batch_size
    weight = max(NEWEST_WEIGHT, reading.batch_size / read)
    known = state["inverse_participation"] or 1.0 / UNKNOWN_PARTICIPATION
    newest = 1.0 / reading.participation if reading.participation >= 1.0 else known
    base = known if state["read"] else newest
    return state | {
        "read": read,
        "trace": state["trace"] + weight * (reading.noise - state["trace"]),
        "inverse_participation": base + weight * (newest - base),
    }


def _mixture(state: State) -> Mixture:
    right = Belief(state["signal"], state["variance"])
    return Mixture(right, Belief(state["slow_signal"], state["slow_variance"]), state["log_odds"])


def _floats(mixture: Mixture) -> State:
    return {
        "signal": mixture.right.signal,
        "variance": mixture.right.variance,
        "slow_signal": mixture.slow.signal,
        "slow_variance": mixture.slow.variance,
        "log_odds": mixture.log_odds,
    }
