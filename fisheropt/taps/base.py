"""What every tap offers: read, clear, switch, remove."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor

from fisheropt.directions import Directions
from fisheropt.statistics import Covariance, Gram, JointStatistic, Moments, NoiseGram, ParameterStatistic, Statistic
from fisheropt.taps.grams import Grams
from fisheropt.taps.layers import Layers
from fisheropt.taps.scores import Scores

Unit = Literal["sample", "microbatch"]


class Tap(ABC):
    """Collects one statistic of some parameters during the ordinary backward.

    As a context manager it is removed on leaving; what it has read stays.
    """

    unit: Unit
    statistic: Statistic
    parameters: dict[str, Tensor]
    directions: dict[str, Directions]
    """The part of a joint statistic's directions in each parameter; empty for a statistic of each by itself."""

    @cached_property
    def dimension(self) -> int:
        """How many numbers the parameters have in all."""
        return sum(p.numel() for p in self.parameters.values())

    @abstractmethod
    def sums(self, name: str | None) -> Moments:
        """The raw sums for a named parameter, or for all together where the statistic is joint."""

    @abstractmethod
    def all_sums(self) -> dict[str, Moments]:
        """The raw sums of every parameter, where the statistic is of each by itself."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all readings."""

    @abstractmethod
    def drop_gradients(self) -> None:
        """Forget what backward has left, as zero_grad does; what the forward has measured stays."""

    @abstractmethod
    def augmented(self) -> Tensor | None:
        """[[Σzzᵀ, Σz], [Σzᵀ, c]] of a joint statistic since the last `clear`; None if no sample was seen."""

    @abstractmethod
    def aim(self, directions: dict[str, Directions]) -> None:
        """Replace the directions of a joint statistic, as many as before, from the next forward on."""

    @abstractmethod
    def scores(self) -> Scores | None:
        """What a `Response` has collected since the last `clear`; None for another statistic."""

    @abstractmethod
    def layers(self) -> Layers | None:
        """What a `Layerwise` has collected since the last `clear`; None for another statistic."""

    @abstractmethod
    def grams(self) -> Grams | None:
        """What a `Gram` has kept since the last `clear`; None for another statistic."""

    @abstractmethod
    def seen(self) -> int:
        """How many samples are data since the last `clear`, of this rank; an error if none, or if some were missed."""

    @abstractmethod
    def attach(self) -> None:
        """Place the hooks, as after construction; again after the tap was copied or unpickled."""

    @abstractmethod
    def enable(self, on: bool = True) -> None:
        """Switch the tap on or off; off, a forward costs one attribute look-up a layer."""

    @abstractmethod
    def remove(self) -> None:
        """Take every hook off again; the readings stay."""

    def read(self, parameter: Tensor | None = None) -> Moments:
        """The raw sums over all samples since the last `clear`.

        Args:
            parameter: whose; left out for a joint statistic (`Projection`, `FullCovariance`).

        Raises:
            ValueError: for a parameter that is not tapped.
        """
        if isinstance(self.statistic, Gram):
            raise TypeError("Gram() has no sums over samples: write tap.gram(), and tap.gram().eigenpairs(16)")
        if isinstance(self.statistic, JointStatistic):
            return self.sums(None)
        name = next((name for name, p in self.parameters.items() if p is parameter), None)
        if name is None:
            raise ValueError(f"tap.read(parameter) needs one of the tapped parameters: {', '.join(self.parameters)}")
        return self.sums(name)

    def covariance(self, parameter: Tensor | None = None) -> Covariance:
        """The covariance of the minibatch gradient, unbiased; `.per_sample()` of it is that of one sample."""
        return self.read(parameter).covariance()

    def gram(self) -> NoiseGram:
        """The Gram matrix of the per-sample gradients since the last `clear`, where the statistic is `Gram()`.

        Raises:
            TypeError: of another statistic.
            RuntimeError: if what it is computed from was changed since backward.
        """
        grams = self.grams()
        if grams is None:
            raise TypeError(
                f"this tap observes {type(self.statistic).__name__}, which keeps no inner products. Write "
                f"fisheropt.observe(model, fisheropt.Gram()) before the forward"
            )
        return grams.reading(self.seen())

    def __enter__(self) -> Tap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def of_parameter(statistic: Statistic) -> ParameterStatistic:
    """The statistic, known to be one of each parameter by itself."""
    assert isinstance(statistic, ParameterStatistic)
    return statistic


def joint_moments(augmented: Tensor) -> Moments:
    """The raw sums in [[Σzzᵀ, Σz], [Σzᵀ, c]]; reads the count back to the host."""
    total = torch.outer(augmented[:-1, -1], augmented[-1, :-1])
    return Moments(augmented[:-1, :-1], total, round(float(augmented[-1, -1])), "matrix")
