"""Which cotangents an update pulls back from the logits to the parameters, a class an idea.

A draw is a set of cotangents u [R, N, C] whose rows g = Jᵀu give Σ_r gᵣgᵣᵀ; draws are independent and averaged.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from fisheropt.inference.heads import draw, log_loss
from fisheropt.likelihoods import Likelihood, eigen_factor, lower_factor, upper_factor
from fisheropt.metric.chance import Chance
from fisheropt.metric.inputs import Inputs
from fisheropt.theory.estimator_quality import diagonal_cv_bound

Factor: TypeAlias = Callable[[Likelihood, Tensor, Tensor], Tensor]
Probes: TypeAlias = int | Literal["all"]


class Variant(ABC):
    """An estimate of J ᵀIJ, or a bound on it.

    Attributes:
        draws: independent draws an update.
        random: whether draws differ.
        labelled: whether it asks for targets.
    """

    draws: int
    random: bool
    labelled: bool

    @abstractmethod
    def cotangents(self, inputs: Inputs, chance: Chance) -> Iterator[Tensor]:
        """One draw: rows u [N, C], of all inputs together or of one input alone."""

    @abstractmethod
    def cv_bound(self, inputs: Inputs, draws: float, kurtosis: float) -> float:
        """What the coefficient of variation of a diagonal entry is at most after `draws` draws."""


@final
class Hutchinson(Variant):
    """u = B(z)ξ of all inputs at once, one backward a draw: E[ggᵀ] = Σ JᵀBBᵀJ.

    Args:
        factor: B.
        signs: of an input, given the number of classes.
        draws: M.
    """

    random, labelled = True, False

    def __init__(self, factor: Factor, signs: Callable[[int], int], draws: int) -> None:
        self._factor, self._signs, self.draws = factor, signs, draws

    def cotangents(self, inputs: Inputs, chance: Chance) -> Iterator[Tensor]:
        yield self._factor(inputs.likelihood, inputs.logits, chance.signs(inputs.logits))

    def cv_bound(self, inputs: Inputs, draws: float, kurtosis: float) -> float:
        return diagonal_cv_bound(draws, len(inputs.kept) * self._signs(inputs.logits.shape[1]), kurtosis)


@final
class Columns(Variant):
    """Every column of B(z) of every input alone, N C backwards: Σ JᵀBBᵀJ with nothing random.

    Args:
        factor: B.
    """

    draws, random, labelled = 1, False, False

    def __init__(self, factor: Factor) -> None:
        self._factor = factor

    def cotangents(self, inputs: Inputs, chance: Chance) -> Iterator[Tensor]:
        for column in range(inputs.logits.shape[1]):
            signs = torch.zeros_like(inputs.logits)
            signs[:, column] = 1
            u = self._factor(inputs.likelihood, inputs.logits, signs)
            if bool(u.any()):
                yield from _alone(u, inputs)

    def cv_bound(self, inputs: Inputs, draws: float, kurtosis: float) -> float:
        return 0.0


@final
class Labels(Variant):
    """Scores ∂l/∂z at labels drawn from the model.

    Args:
        draws: M.
        per_sample: whether each input is pulled back alone, N backwards a draw; else all are summed before the square, as
            independent scores have mean zero.
    """

    random, labelled = True, False

    def __init__(self, draws: int, *, per_sample: bool) -> None:
        self.draws, self._per_sample = draws, per_sample

    def cotangents(self, inputs: Inputs, chance: Chance) -> Iterator[Tensor]:
        u = _score(inputs, draw(inputs.likelihood, inputs.logits, chance.labels))
        if self._per_sample:
            yield from _alone(u, inputs)
        else:
            yield u

    def cv_bound(self, inputs: Inputs, draws: float, kurtosis: float) -> float:
        return math.inf


@final
class Empirical(Variant):
    """Scores at the labels of the data, each input alone: biased wherever the model is not the truth."""

    draws, random, labelled = 1, False, True

    def cotangents(self, inputs: Inputs, chance: Chance) -> Iterator[Tensor]:
        assert inputs.targets is not None
        yield from _alone(_score(inputs, inputs.targets), inputs)

    def cv_bound(self, inputs: Inputs, draws: float, kurtosis: float) -> float:
        return 0.0


def full_factor(likelihood: Likelihood, logits: Tensor, signs: Tensor) -> Tensor:
    """B(z)ξ of the likelihood itself."""
    return likelihood.factor(logits, signs)


NAMES = (
    "hutchinson",
    "exact",
    "empirical",
    "monte_carlo",
    "monte_carlo_per_sample",
    "eig",
    "upper",
    "lower",
)


def build(name: str, probes: Probes, rank: int) -> Variant:
    """The variant of that name.

    Args:
        name: one of `NAMES`.
        probes: M; "all" takes every column of the factor and leaves nothing to chance.
        rank: k of "lower".

    Raises:
        ValueError: for an unknown name, and "all" where labels are drawn.
    """
    factors: dict[str, tuple[Factor, Callable[[int], int]]] = {
        "hutchinson": (full_factor, lambda classes: classes),
        "eig": (eigen_factor, lambda classes: max(1, classes - 1)),
        "upper": (upper_factor, lambda classes: classes),
        "lower": (partial(lower_factor, rank=rank), lambda classes: min(rank, classes)),
    }
    if name == "exact":
        return Columns(full_factor)
    if name == "empirical":
        return Empirical()
    if name in factors:
        factor, signs = factors[name]
        return Columns(factor) if probes == "all" else Hutchinson(factor, signs, probes)
    if name not in NAMES:
        raise ValueError(f"FisherMetric(model, likelihood, variant={name!r}): write one of {list(NAMES)}")
    if probes == "all":
        raise ValueError(f"FisherMetric(..., variant={name!r}, num_probes='all'): labels are drawn; write a number")
    return Labels(probes, per_sample=name == "monte_carlo_per_sample")


def _score(inputs: Inputs, labels: Tensor) -> Tensor:
    """∂ log p(label | z)/∂z, [N, C]."""
    with torch.enable_grad():
        z = inputs.logits.clone().requires_grad_()
        loss = log_loss(inputs.likelihood, z, labels).sum()
        return -torch.autograd.grad(loss, z)[0]


def _alone(u: Tensor, inputs: Inputs) -> Iterator[Tensor]:
    """The rows of u [N, C] one at a time, each with zeros for all other inputs."""
    for index in inputs.kept.tolist():
        row = torch.zeros_like(u)
        row[index] = u[index]
        yield row
