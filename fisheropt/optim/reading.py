"""One step's measurement of a group, in units of one sample's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.statistics import JointStatistic
from fisheropt.taps import MicrobatchTap, SampleTap, Tap
from fisheropt.taps.base import joint_moments
from fisheropt.taps.reduce import ranks, reduce_augmented, reduce_sum


@final
@dataclass(frozen=True)
class Reading:
    """The first two moments of the per-sample gradients gₙ = c·hₙ, in k directions or as traces over all parameters.

    Args:
        count: the number of samples or microbatches c.
        gradient: their mean, the minibatch gradient, [k]; in trace form its norm, [].
        second: (1/c) Σ gₙgₙᵀ, the empirical Fisher information, [k, k], or its trace, [].
        covariance: the unbiased covariance of gₙ, [k, k], or its trace, []; None where c < 2.
        information: the model Fisher information, [k, k]; None without a likelihood.
    """

    count: int
    gradient: Tensor
    second: Tensor
    covariance: Tensor | None
    information: Tensor | None

    @property
    def finite(self) -> bool:
        """Whether every number is finite; reads a value back to the host."""
        held = (self.gradient, self.second, self.information)
        return all(bool(x.isfinite().all()) for x in held if x is not None)


def read(tap: Tap, scale: float) -> Reading | None:
    """What a tap has read since the last step; None if no backward was seen.

    Args:
        tap: of a joint statistic, or of `Trace`.
        scale: of the loss in backward; the likelihood's own backward has none.
    """
    if isinstance(tap, MicrobatchTap) and not tap.observed():
        return None
    if not isinstance(tap.statistic, JointStatistic):
        return _traces(tap, scale)
    augmented = tap.augmented()
    if augmented is None:
        return None
    augmented = augmented.double()
    information = tap.information(round(float(augmented[-1, -1]))) if isinstance(tap, SampleTap) else None
    if isinstance(tap, SampleTap) and tap.channel.parallel:
        augmented = reduce_augmented(augmented)
        information = None if information is None else reduce_sum(information.double())
    moments = joint_moments(augmented).unscaled(scale)
    return Reading(
        count=moments.count,
        gradient=augmented[:-1, -1] / scale,
        second=moments.second * moments.count,
        covariance=moments.covariance().per_sample().value if moments.count > 1 else None,
        information=None if information is None else (information[:-1, :-1] / information[-1, -1]).double(),
    )


def _traces(tap: Tap, scale: float) -> Reading:
    """Traces summed over parameters; over ranks each rank's own unbiased V and ‖∇L‖² are averaged."""
    sums = [moments.unscaled(scale) for moments in tap.all_sums().values()]
    count = sums[0].count
    second = torch.stack([m.second.double() for m in sums]).sum() * count
    squared = torch.stack([m.total.double() for m in sums]).sum()
    if count < 2:
        return Reading(count, squared.sqrt(), second, None, None)
    noise = torch.stack([m.covariance().per_sample().value.double() for m in sums]).sum()
    signal = squared - noise / count
    if isinstance(tap, SampleTap) and tap.channel.parallel:
        pooled = reduce_sum(torch.stack([second, noise, signal, torch.full_like(noise, ranks() * count)])) / ranks()
        second, noise, signal, count = pooled[0], pooled[1], pooled[2], round(float(pooled[3]))
    return Reading(count, (signal + noise / count).clamp_min(0).sqrt(), second, noise, None)
