"""The raw sums of each parameter by itself over the samples of all ranks, in one reduction a statistic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fisheropt.persample import Dense
from fisheropt.statistics import Moments, ParameterStatistic
from fisheropt.taps.reduce import ranks, reduce_sum
from fisheropt.taps.shards import alike, here, whole


@final
class Pool:
    """What one reading of a statistic of each parameter comes to.

    Args:
        statistic: of each parameter.
        left: Σₙ φ(hₙ) and Σₙ hₙ of a named parameter. A DTensor is summed over ranks already, all else is this rank's.
        count: the samples of this rank.
        divisor: by what the sum of the ranks' gradients is divided; None on one rank by itself.
    """

    def __init__(
        self,
        statistic: ParameterStatistic,
        left: Callable[[str], tuple[Tensor, Tensor]],
        count: int,
        divisor: float | None,
    ) -> None:
        self.statistic, self.left, self.count, self.divisor = statistic, left, count, divisor

    def here(self, names: Iterable[str]) -> dict[str, Moments]:
        """Of this rank's samples alone."""
        found = {name: self.left(name) for name in names}
        return {n: self._moments(second, self._squared(total), self.count) for n, (second, total) in found.items()}

    def everywhere(self, names: Iterable[str]) -> dict[str, Moments]:
        """Of the samples of all ranks, for the gradient that the step uses; all ranks must ask."""
        if self.divisor is None:
            return self.here(names)
        found = {name: self._summed(*self.left(name)) for name in names}
        numbers = [x.double() for pair in found.values() for x in pair if _partial(x)]
        count = torch.tensor(float(self.count), dtype=torch.float64, device=next(iter(found.values()))[0].device)
        pooled: Iterator[Tensor] = iter(reduce_sum(torch.stack([count, *numbers])).unbind())
        samples, square = round(float(next(pooled))), self.divisor**2
        summed = {n: [(next(pooled) if _partial(x) else x) / square for x in pair] for n, pair in found.items()}
        return {name: self._moments(second, squared, samples) for name, (second, squared) in summed.items()}

    def _summed(self, second: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Σₙ φ(hₙ) and φ(Σₙ hₙ) over ranks; where they are numbers, this rank's part of them."""
        if not isinstance(total, DTensor):
            squared = self._squared(reduce_sum(total))
            return (second, squared / ranks()) if second.ndim == 0 else (reduce_sum(second), squared)
        if isinstance(second, DTensor):
            return second, alike(self._squared(total.to_local()), total)
        if second.ndim == 0:
            return second, self._squared(here(total))
        return reduce_sum(second), self._squared(whole(total))

    def _squared(self, total: Tensor) -> Tensor:
        """φ(Σₙ hₙ), as if it were one sample."""
        return self.statistic.of(Dense(total.unsqueeze(0)))

    def _moments(self, second: Tensor, squared: Tensor, count: int) -> Moments:
        return Moments(second, squared, count, self.statistic.shape)


def _partial(value: Tensor) -> bool:
    """Whether a value is a number, of which each rank has its own part."""
    return value.ndim == 0 and not isinstance(value, DTensor)
