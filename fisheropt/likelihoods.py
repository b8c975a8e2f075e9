"""Output heads: the cotangents by which a backward measures the model Fisher.

A head has logits z and core information I(z) = B(z)B(z)ᵀ. With signs ξ, E[ξξᵀ] = 1, the backward of u = B(z)ξ gives per
sample J ᵀu, and E[Jᵀu uᵀJ] = Jᵀ I(z) J, the sample's Fisher information. Other factors in place of B give I by its
eigenvectors, something above it, or something below it; they are functions of the likelihood's class, so that a head of
one's own joins by `upper_factor.register(MyHead)`.

Reference: sun2025
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import final

import torch
from torch import Tensor

from fisheropt.theory.envelopes import leading_vectors, low_rank_factor
from fisheropt.theory.simplex import core

_WIDE = 4  # bytes of float32


@dataclass(frozen=True)
class Likelihood(ABC):
    """A negative log-likelihood of the model's output, whose mean over samples is the loss.

    Its scale matters, as H is taken from the likelihood and the gradient from the loss. An optimizer that is given a name
    takes the loss for torch's of that name, a mean over all labels of all samples: F.cross_entropy, of sequences too,
    F.binary_cross_entropy_with_logits, `F.mse_loss(...) / 2`, F.poisson_nll_loss. An object sums the labels of a sample.

    Args:
        averaged: whether the loss of a sample is the mean over its labels, and not their sum.
    """

    averaged: bool = field(default=False, kw_only=True)

    def labels(self, logits: Tensor) -> int:
        """T, the labels of one sample."""
        return logits[0].numel() if len(logits) else 1

    def scale(self, logits: Tensor) -> float:
        """1/√T where the loss of a sample is the mean over its T labels, so that I becomes their mean."""
        return max(1, self.labels(logits)) ** -0.5 if self.averaged else 1.0

    @abstractmethod
    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        """U = B(z)ξ, shaped like the logits."""

    def cotangent(self, logits: Tensor, seed: int) -> Tensor:
        """B(z)ξ with Rademacher signs of its own, drawn from `seed` and from no global generator."""
        if logits.ndim == 2 and logits.shape[1] == 1:  # of one number only the square is used
            z = logits if logits.dtype.itemsize >= _WIDE else logits.float()
            return self.factor(z, torch.ones_like(z)).to(logits.dtype)
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, logits.shape, generator=generator).to(logits.device, torch.float32) * 2 - 1
        wide = torch.promote_types(logits.dtype, torch.float32)
        return self.factor(logits.to(wide), signs.to(wide)).to(logits.dtype)


@final
@dataclass(frozen=True)
class Categorical(Likelihood):
    """Softmax over one axis: I = diag p - ppᵀ, u = √p∘ξ - p⟨√p, ξ⟩.

    Args:
        dim: the axis of the classes; None takes the last, for logits of at most three axes.
        averaged: whether the loss of a sample is the mean over its labels, and not their sum.
    """

    dim: int | None = None

    def axis(self, logits: Tensor) -> int:
        """The axis of the classes."""
        if self.dim is None and logits.ndim > 3:
            raise ValueError(
                f"likelihood='categorical' takes the last axis for the classes, found logits of shape "
                f"{tuple(logits.shape)}; write likelihood=fisheropt.likelihoods.Categorical(dim=1, averaged=True) for "
                f"F.cross_entropy's mean over all labels, without averaged=True for a loss that sums those of a sample"
            )
        return -1 if self.dim is None else self.dim

    def labels(self, logits: Tensor) -> int:
        return super().labels(logits) // logits.shape[self.axis(logits)] if logits.ndim > 1 else 1

    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        dim = self.axis(logits)
        p = logits.softmax(dim)
        u = p.sqrt() * signs
        return self.scale(logits) * (u - p * u.sum(dim, keepdim=True))


@final
@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """One logit a label, also several labels: I = diag(σ(1-σ)). With one logit a sample no randomness is left."""

    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        half = 0.5 * self.scale(logits)
        return half * signs / (logits * 0.5).cosh()  # √(σ(z)σ(-z)), where both would round to 0 or 1 too


@final
@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Squared error (z - y)²/2v: I = 1/v.

    Args:
        variance: v of the noise.
    """

    variance: float = 1.0

    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        return signs * (self.scale(logits) / self.variance**0.5)


@final
@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts with log link, rate eᶻ: I = diag eᶻ."""

    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        return self.scale(logits) * (logits / 2).exp() * signs


@singledispatch
def eigen_factor(likelihood: Likelihood, logits: Tensor, signs: Tensor) -> Tensor:
    """V√λ ξ with the eigenvectors of I = VλVᵀ: the same expectation as B(z)ξ from one sign less, shaped like the logits.

    Args:
        likelihood: an object of this module.
        logits: z, at least float32.
        signs: ξ, shaped like the logits.
    """
    raise TypeError(_unknown(likelihood, "eigen_factor", "likelihood, logits, signs"))


@singledispatch
def upper_factor(likelihood: Likelihood, logits: Tensor, signs: Tensor) -> Tensor:
    """A factor U ξ with UUᵀ diagonal and at least I: √p∘ξ of softmax; of heads with a diagonal I their own.

    Args:
        likelihood: an object of this module.
        logits: z, at least float32.
        signs: ξ, shaped like the logits.
    """
    raise TypeError(_unknown(likelihood, "upper_factor", "likelihood, logits, signs"))


@singledispatch
def lower_factor(likelihood: Likelihood, logits: Tensor, signs: Tensor, rank: int) -> Tensor:
    """A factor W ξ with WWᵀ of rank k and at most I: I Q (QᵀIQ)⁺ QᵀI of softmax; else the k largest variances of an input.

    Args:
        likelihood: an object of this module.
        logits: z, at least float32.
        signs: ξ, shaped like the logits, of whose classes the first k are used.
        rank: k; above the number of classes as good as that.
    """
    raise TypeError(_unknown(likelihood, "lower_factor", "likelihood, logits, signs, rank"))


@eigen_factor.register
def _(likelihood: Categorical, logits: Tensor, signs: Tensor) -> Tensor:
    dim = likelihood.axis(logits)
    values, vectors = torch.linalg.eigh(core(logits.movedim(dim, -1).softmax(-1)))
    roots = values.clamp(min=0).sqrt()
    roots[..., 0] = 0
    return likelihood.scale(logits) * (vectors @ (roots * signs.movedim(dim, -1))[..., None])[..., 0].movedim(-1, dim)


@upper_factor.register
def _(likelihood: Categorical, logits: Tensor, signs: Tensor) -> Tensor:
    return likelihood.scale(logits) * logits.softmax(likelihood.axis(logits)).sqrt() * signs


@lower_factor.register
def _(likelihood: Categorical, logits: Tensor, signs: Tensor, rank: int) -> Tensor:
    dim = likelihood.axis(logits)
    p = logits.movedim(dim, -1).softmax(-1)
    rank = min(rank, p.shape[-1])
    factor = low_rank_factor(p, leading_vectors(p, rank))
    return likelihood.scale(logits) * (factor @ signs.movedim(dim, -1)[..., :rank, None])[..., 0].movedim(-1, dim)


@eigen_factor.register(Bernoulli)
@eigen_factor.register(Gaussian)
@eigen_factor.register(Poisson)
@upper_factor.register(Bernoulli)
@upper_factor.register(Gaussian)
@upper_factor.register(Poisson)
def _(likelihood: Likelihood, logits: Tensor, signs: Tensor) -> Tensor:
    return likelihood.factor(logits, signs)


@lower_factor.register(Bernoulli)
@lower_factor.register(Gaussian)
@lower_factor.register(Poisson)
def _(likelihood: Likelihood, logits: Tensor, signs: Tensor, rank: int) -> Tensor:
    roots = likelihood.factor(logits, torch.ones_like(logits))
    rank = min(rank, roots.shape[-1])
    largest = roots.topk(rank, -1)
    return torch.zeros_like(roots).scatter(-1, largest.indices, largest.values * signs[..., :rank])


def _unknown(likelihood: object, function: str, arguments: str) -> str:
    name = type(likelihood).__name__
    return (
        f"{name} has no {function}; write fisheropt.likelihoods.{function}.register({name}, function), "
        f"function({arguments}) -> a tensor like the logits"
    )


_NAMED: dict[str, Likelihood] = {
    "bernoulli": Bernoulli(),
    "categorical": Categorical(),
    "gaussian": Gaussian(),
    "multilabel": Bernoulli(),
    "poisson": Poisson(),
}


def resolve(likelihood: Likelihood | str | None) -> Likelihood | None:
    """The likelihood of that name; an object or None is handed through.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    if likelihood is None or isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood not in _NAMED:
        raise ValueError(f"likelihood={likelihood!r} is not known; write one of {sorted(_NAMED)}")
    return _NAMED[likelihood]


def of_loss(likelihood: Likelihood | str | None) -> Likelihood | None:
    """The likelihood of an optimizer: of a name that of torch's loss, a mean over all labels; an object as it is."""
    found = resolve(likelihood)
    return replace(found, averaged=True) if found is not None and isinstance(likelihood, str) else found
