"""One step's measurement of a group, in units of one sample's gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from fisheropt.optim.group import device_of
from fisheropt.optim.layered import Layered, layered
from fisheropt.optim.scored import Sample, Scored, mean_square, scored, squared_mean
from fisheropt.statistics import JointStatistic
from fisheropt.statistics.layerwise import Layerwise
from fisheropt.statistics.response import Response
from fisheropt.taps import MicrobatchTap, SampleTap, Tap
from fisheropt.taps.base import joint_moments
from fisheropt.taps.channel import Information
from fisheropt.taps.layers import Layers
from fisheropt.taps.reduce import between_ranks, ranks, reduce_augmented, reduce_sum
from fisheropt.taps.scores import Scores
from fisheropt.theory.between import BetweenComponent


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
        between: how far the ranks' means differ beyond chance, [k, k]; None on one rank and in trace form.
        scored: what a `Response` says of the whole matrix: of the model Fisher information given a likelihood, else of
            the covariance or second moment.
        projected: the reading in all k directions, where this one is of traces, or of the tracked directions alone.
        layered: what a `Layerwise` says of each parameter.
    """

    count: int
    gradient: Tensor
    second: Tensor
    covariance: Tensor | None
    information: Tensor | None
    between: BetweenComponent | None = None
    scored: Scored | None = None
    projected: Reading | None = None
    layered: Layered | None = None

    @property
    def finite(self) -> bool:
        """Whether every number is finite; reads a value back to the host."""
        held = [self.gradient.sum(), _scale(self.second)]
        if self.information is not None:
            held.append(_scale(self.information))
        return all(math.isfinite(float(x)) for x in held)

    def leading(self, k: int) -> Reading:
        """The same in the first k directions."""
        return replace(
            self,
            gradient=self.gradient[:k],
            second=self.second[:k, :k],
            covariance=None if self.covariance is None else self.covariance[:k, :k],
            information=None if self.information is None else self.information[:k, :k],
            between=None if self.between is None else self.between.leading(k),
        )


def _scale(matrix: Tensor) -> Tensor:
    """The trace of a sum of squares, which is finite where all of it is."""
    return matrix.trace() if matrix.ndim else matrix


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
    measured = tap.information() if isinstance(tap, SampleTap) else None
    information = None if measured is None else measured.augmented
    between = None
    if isinstance(tap, SampleTap) and tap.channel.parallel:
        between = between_ranks(augmented, scale)
        augmented = reduce_augmented(augmented, tap.divisor())
        information = None if information is None else reduce_sum(information.double())
    moments = joint_moments(augmented).unscaled(scale)
    reading = Reading(
        count=moments.count,
        gradient=augmented[:-1, -1] / scale,
        second=moments.second * moments.count,
        covariance=moments.covariance().per_sample().value if moments.count > 1 else None,
        information=None if information is None else (information[:-1, :-1] / information[-1, -1]).double(),
        between=between,
    )
    if isinstance(tap.statistic, Response):
        return _responding(tap, tap.statistic, reading, scale, measured)
    return _layered(tap, reading, scale, measured) if isinstance(tap.statistic, Layerwise) else reading


def _sample(tap: Tap, count: int, scale: float, tracked: int, centred: bool) -> Sample:
    """How the samples of a step are scaled and centred."""
    parallel = isinstance(tap, SampleTap) and tap.channel.parallel
    return Sample(
        count=count,
        unit=count / (scale * (tap.divisor() if isinstance(tap, SampleTap) else 1)),
        tracked=tracked,
        dimension=sum(p.numel() for p in tap.parameters.values()),
        centred=centred and count > 1,
        parallel=parallel,
    )


def _layered(tap: Tap, reading: Reading, scale: float, measured: Information | None) -> Reading:
    """The reading in traces, with what is known of each parameter."""
    held, information = tap.layers(), None if measured is None else measured.scores
    assert held is not None and not isinstance(information, Scores)
    sample = _sample(tap, reading.count, scale, 0, True)
    own = None if not isinstance(information, Layers) else information.over(tap.parameters)
    with torch.autocast(device_of(tap).type, enabled=False):
        found = layered(held.over(tap.parameters), sample, own)
    squared, second, count = found.squared, found.mean_square, reading.count
    return Reading(
        count=count,
        gradient=squared.sqrt(),
        second=second,
        covariance=(second - squared) * (count / (count - 1)) if count > 1 else None,
        information=found.information_trace,
        layered=found,
        projected=reading,
    )


def _responding(tap: Tap, statistic: Response, reading: Reading, scale: float, measured: Information | None) -> Reading:
    """The reading with what the response says of the whole matrix; of traces where the statistic asks for them."""
    held, of_likelihood = tap.scores(), None if measured is None else measured.scores
    assert held is not None
    scores = held.over(tap.parameters)
    information = of_likelihood.over(tap.parameters) if isinstance(of_likelihood, Scores) else None
    sample = _sample(tap, reading.count, scale, statistic.tracked, statistic.centred)
    source, form = (scores, sample) if information is None else (information, replace(sample, unit=1.0, centred=False))
    found = scored(source, form) if information is not None or reading.count > 1 or not statistic.centred else None
    if not statistic.traces:
        return replace(reading.leading(statistic.tracked), scored=found, projected=reading)
    squared, second = squared_mean(scores, sample), mean_square(scores, sample)
    return Reading(
        count=reading.count,
        gradient=squared.sqrt(),
        second=second,
        covariance=(second - squared) * (reading.count / (reading.count - 1)) if reading.count > 1 else None,
        information=None if information is None or found is None else second.new_tensor(found.trace),
        scored=found,
        projected=reading,
    )


def _traces(tap: Tap, scale: float) -> Reading:
    """Traces summed over parameters.

    Over the ranks of DistributedDataParallel V is pooled within ranks and ‖∇L‖² the mean of their own, so that nothing of
    the parameters' size travels. A rank may have any number of samples, one included.
    """
    sums = [moments.unscaled(scale) for moments in tap.all_sums().values()]
    count = sums[0].count
    second = torch.stack([m.second.double() for m in sums]).sum() * count
    squared = torch.stack([m.total.double() for m in sums]).sum()
    noise, dof, inverse = (second - squared) * count, count - 1.0, 1 / count
    if isinstance(tap, SampleTap) and tap.channel.parallel and not tap.channel.sharded:
        own = [second, squared, noise, noise.new_tensor(dof), noise.new_tensor(inverse), noise.new_tensor(count)]
        pooled = reduce_sum(torch.stack([x.double() for x in own]))
        second, squared, noise = pooled[0] / ranks(), pooled[1] / ranks(), pooled[2]
        dof, inverse, count = float(pooled[3]), float(pooled[4]) / ranks(), round(float(pooled[5]))
    if dof < 1:
        return Reading(count, squared.sqrt(), second, None, None)
    noise = noise / dof
    signal = squared - noise * inverse
    return Reading(count, (signal + noise / count).clamp_min(0).sqrt(), second, noise, None)
