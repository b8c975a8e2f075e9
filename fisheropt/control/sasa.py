"""SASA+: drop the step size when the iterates are stationary by a test on <x, d>."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.wish import unchanged
from fisheropt.theory.stationarity import sasa_interval

BLOCKS = 50


@final
@dataclass(frozen=True)
class SASA(Controller):
    """eta <- eta/drop where the interval of z on the newest part contains 0 and both its halves have one sign.

        z_k = <theta_k, d_k> - (eta/2) |d_k|^2,   d_k = P g_k,

    has mean zero at stationarity, after Zhang, Lang, Liu and Xiao. It depends on the origin of the coordinates and on
    weight decay, and tests |theta|, not the loss.

    Defaults and the order of the tests are those of the authors' statopt: the first drop needs both halves' intervals to
    contain 0, later ones that of the whole. Two things differ. Their default takes the standard deviation of independent
    samples, as it names a mode that the code does not know; here the interval is from the means of ten long batches. And
    the state keeps the newest part as the means of 50 to 100 blocks, which double as it grows: a list of floats.

    Reference: zhang2020statistical

    Args:
        significance: of the two-sided interval.
        leak: the newest 1/leak of the steps since the last drop are tested.
        fewest: steps that this part must have.
        every: steps between tests.
        warmup: steps before the first drop.
        drop: factor by which eta falls.
    """

    significance: float = 0.05
    leak: int = 8
    fewest: int = 1000
    every: int = 100
    warmup: int = 1000
    drop: float = 10.0
    name: ClassVar[str] = "sasa"
    needs: ClassVar[frozenset[str]] = frozenset({"drift"})

    def __post_init__(self) -> None:
        counts = self.leak >= 1 and self.fewest >= 2 * BLOCKS and self.every >= 1 and self.warmup >= 0
        if not (counts and 0.0 < self.significance < 1.0 and math.isfinite(self.drop) and self.drop > 1.0):
            raise ValueError(
                f"{self!r}: significance in (0, 1), leak and every at least 1, fewest at least {2 * BLOCKS}, drop above 1; "
                "write SASA(significance=0.05, leak=8, fewest=1000, every=100, warmup=1000, drop=10.0)."
            )

    def kept(self, lr: float, wanted: float, actual: float) -> float:
        """All of it: the step size is the user's, or planned."""
        return 1.0

    def initial_state(self) -> State:
        """Steps in all and since the last drop, the block means with their length, the block under way, the last test."""
        counts = {"made": 0.0, "steps": 0.0, "drops": 0.0, "lr_factor": 1.0}
        summary = {"blocks": [], "length": 1.0, "sum": 0.0, "count": 0.0}
        return counts | summary | {"lower": math.nan, "upper": math.nan}

    def propose(self, state: State, reading: GradientNoise | None, moment: Moment) -> Proposal:
        """The size in use; the factor of the step size falls by `drop` at each stationary test."""
        if math.isnan(moment.drift):
            return unchanged(state, moment)
        new = _counted(state, moment.drift, self.leak)
        if new["steps"] <= self.leak * self.fewest or new["made"] % self.every:
            return Proposal(moment.stay(), new, new["lr_factor"])
        blocks = torch.tensor(new["blocks"], dtype=torch.float64)
        lower, upper = sasa_interval(blocks, 1.0 - self.significance)
        new |= {"lower": lower, "upper": upper}
        stationary = _stationary(blocks, lower, upper, both=new["drops"] == 0.0)
        if stationary and new["made"] > self.warmup:
            new |= {"blocks": [], "length": 1.0, "sum": 0.0, "count": 0.0, "steps": 0.0}
            new |= {"drops": new["drops"] + 1.0, "lr_factor": new["lr_factor"] / self.drop}
        why = f"<theta, d> - eta |d|^2/2 between {lower:.2g} and {upper:.2g}"
        return Proposal(moment.stay(), new, new["lr_factor"], why)


def _stationary(blocks: torch.Tensor, lower: float, upper: float, both: bool) -> bool:
    """Whether 0 lies in the interval, or in those of the same width around both halves; the halves having one sign."""
    half = len(blocks) // 2
    first, second, width = float(blocks[:half].mean()), float(blocks[half:].mean()), (upper - lower) / 2.0
    contained = max(abs(first), abs(second)) < width if both else lower < 0.0 < upper
    return contained and first * second > 0.0


def _counted(state: State, drift: float, leak: int) -> State:
    """With one more number in the block means, of which those older than the newest 1/leak of the steps are left out."""
    steps, total, count = state["steps"] + 1.0, state["sum"] + drift, state["count"] + 1.0
    blocks, length = list(state["blocks"]), state["length"]
    if count == length:
        blocks.append(total / count)
        total, count = 0.0, 0.0
    while (len(blocks) - 1) * length >= steps / leak:
        del blocks[0]
    if len(blocks) == 2 * BLOCKS:
        blocks = [(a + b) / 2.0 for a, b in zip(blocks[::2], blocks[1::2], strict=True)]
        length *= 2.0
    moved = {"made": state["made"] + 1.0, "steps": steps, "blocks": blocks, "length": length}
    return state | moved | {"sum": total, "count": count}
