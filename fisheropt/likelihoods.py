"""Output heads: the cotangents by which a backward measures the model Fisher.

A head has logits z and core information I(z) = B(z)B(z)ᵀ. With signs ξ, E[ξξᵀ] = 1, the backward of u = B(z)ξ gives per
sample J ᵀu, and E[Jᵀu uᵀJ] = Jᵀ I(z) J, the sample's Fisher information.

Reference: sun2025
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@dataclass(frozen=True)
class Likelihood(ABC):
    """A negative log-likelihood of the model's output, whose mean over samples is the loss.

    Its scale matters, as H is taken from the likelihood and the gradient from the loss: for "gaussian" the loss is
    `F.mse_loss(...) / 2`, summed over outputs; labels of one sample are summed, samples averaged.
    """

    @abstractmethod
    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        """U = B(z)ξ, shaped like the logits."""

    def cotangent(self, logits: Tensor, seed: int) -> Tensor:
        """B(z)ξ with Rademacher signs of its own, drawn from `seed` and from no global generator."""
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
    """

    dim: int | None = None

    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        if self.dim is None and logits.ndim > 3:
            raise ValueError(
                f"likelihood='categorical' takes the last axis for the classes, found logits of shape "
                f"{tuple(logits.shape)}; write likelihood=fisheropt.likelihoods.Categorical(dim=1)"
            )
        dim = -1 if self.dim is None else self.dim
        p = logits.softmax(dim)
        u = p.sqrt() * signs
        return u - p * u.sum(dim, keepdim=True)


@final
@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """One logit a label, also several labels: I = diag(σ(1-σ)). With one logit a sample no randomness is left."""

    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        return (logits.sigmoid() * (-logits).sigmoid()).sqrt() * signs


@final
@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Squared error (z - y)²/2v: I = 1/v.

    Args:
        variance: v of the noise.
    """

    variance: float = 1.0

    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        return signs / self.variance**0.5


@final
@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts with log link, rate eᶻ: I = diag eᶻ."""

    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        return (logits / 2).exp() * signs


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
