"""The model Fisher by labels that are drawn from the model: the scores s = ∂ log p(y|z)/∂z at y ~ p(·|z)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Poisson


@final
@dataclass(frozen=True)
class Sampled(Likelihood):
    """E[ssᵀ] = I(z), so that the backward of s measures the model Fisher as that of B(z)ξ does, with more noise.

    Args:
        likelihood: whose labels are drawn.
    """

    likelihood: Likelihood

    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        return self.likelihood.factor(logits, signs)

    def cotangent(self, logits: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        wide = logits.to("cpu", torch.promote_types(logits.dtype, torch.float32))
        self.likelihood.factor(wide, torch.zeros_like(wide))  # for its checks of the shape
        return (self.likelihood.scale(wide) * _score(self.likelihood, wide, generator)).to(logits)


def _score(likelihood: Likelihood, logits: Tensor, generator: torch.Generator) -> Tensor:
    match likelihood:
        case Categorical(dim):
            return _categorical(logits, -1 if dim is None else dim, generator)
        case Bernoulli():
            p = logits.sigmoid()
            return torch.bernoulli(p, generator=generator) - p
        case Gaussian(variance):
            return torch.randn(logits.shape, generator=generator, dtype=logits.dtype) / variance**0.5
        case Poisson():
            return torch.poisson(logits.exp(), generator=generator) - logits.exp()
    raise ValueError(
        f"fisher='sampled' cannot draw labels of {likelihood}; write fisher='hutchinson', which needs its factor alone"
    )


def _categorical(logits: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    p = logits.movedim(dim, -1).softmax(-1)
    drawn = torch.multinomial(p.flatten(0, -2), 1, generator=generator).reshape(p.shape[:-1])
    return (torch.nn.functional.one_hot(drawn, p.shape[-1]) - p).movedim(-1, dim)
