"""What inference asks of a likelihood beyond its core information: its value at labels, and labels drawn from it.

Functions of the likelihood's class, so that a head of one's own joins by `log_loss.register(MyHead)`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from fisheropt.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Poisson


@singledispatch
def log_loss(likelihood: Likelihood, logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target | logits) of each sample [n], summed over its outputs, constants included.

    Args:
        likelihood: an object of `fisheropt.likelihoods`.
        logits: [n, ...].
        targets: shaped like the logits; for "categorical" the classes, without their axis.

    Raises:
        TypeError: for a likelihood without a value.
        ValueError: for labels that it cannot have.
    """
    name = type(likelihood).__name__
    raise TypeError(
        f"{name} says how to measure the Fisher information, but not its value; "
        f"write fisheropt.inference.log_loss.register({name}, function), function(likelihood, logits, targets) -> [n]"
    )


@singledispatch
def draw(likelihood: Likelihood, logits: Tensor, generator: torch.Generator) -> Tensor:
    """Labels drawn from the model, in the form that `log_loss` takes.

    Args:
        likelihood: an object of `fisheropt.likelihoods`.
        logits: [n, ...].
        generator: of the random numbers, on the CPU.
    """
    name = type(likelihood).__name__
    raise TypeError(
        f"{name} has no labels to draw; write fisheropt.inference.draw.register({name}, function), "
        f"function(likelihood, logits, generator) -> targets"
    )


@singledispatch
def profiled(likelihood: Likelihood, logits: Tensor, targets: Tensor) -> Likelihood:
    """The likelihood with its free scale, where it has one, at the value that these labels suggest."""
    return likelihood


@log_loss.register
def _(likelihood: Bernoulli, logits: Tensor, targets: Tensor) -> Tensor:
    y = _alike("bernoulli", logits, targets)
    if bool(((y < 0) | (y > 1)).any()):
        raise ValueError("likelihood='bernoulli': found targets outside of [0, 1]; write 0 and 1")
    return F.binary_cross_entropy_with_logits(logits, y, reduction="none").flatten(1).sum(1)


@log_loss.register
def _(likelihood: Gaussian, logits: Tensor, targets: Tensor) -> Tensor:
    squares = (logits - _alike("gaussian", logits, targets)).square() / likelihood.variance
    return ((squares + math.log(2 * math.pi * likelihood.variance)) / 2).flatten(1).sum(1)


@log_loss.register
def _(likelihood: Poisson, logits: Tensor, targets: Tensor) -> Tensor:
    y = _alike("poisson", logits, targets)
    if bool((y < 0).any()):
        raise ValueError("likelihood='poisson': found negative targets; they are counts")
    return (logits.exp() - y * logits + torch.lgamma(y + 1)).flatten(1).sum(1)


@log_loss.register
def _(likelihood: Categorical, logits: Tensor, targets: Tensor) -> Tensor:
    axis = -1 if likelihood.dim is None else likelihood.dim
    log_p = logits.movedim(axis, -1).log_softmax(-1)
    if targets.is_floating_point() or targets.shape != log_p.shape[:-1]:
        raise ValueError(
            f"likelihood='categorical': found targets {targets.dtype} {tuple(targets.shape)} for logits "
            f"{tuple(logits.shape)}; write the classes as integers {list(log_p.shape[:-1])}"
        )
    if bool(((targets < 0) | (targets >= log_p.shape[-1])).any()):
        raise ValueError(f"likelihood='categorical': found classes outside of 0 ... {log_p.shape[-1] - 1}")
    return -log_p.gather(-1, targets[..., None])[..., 0].reshape(len(logits), -1).sum(1)


@draw.register
def _(likelihood: Bernoulli, logits: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype)
    return (uniform.to(logits.device) < logits.sigmoid()).to(logits.dtype)


@draw.register
def _(likelihood: Gaussian, logits: Tensor, generator: torch.Generator) -> Tensor:
    normal = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
    return logits + likelihood.variance**0.5 * normal.to(logits.device)


@draw.register
def _(likelihood: Poisson, logits: Tensor, generator: torch.Generator) -> Tensor:
    return torch.poisson(logits.exp().cpu(), generator=generator).to(logits.device)


@draw.register
def _(likelihood: Categorical, logits: Tensor, generator: torch.Generator) -> Tensor:
    p = logits.movedim(-1 if likelihood.dim is None else likelihood.dim, -1).softmax(-1).cpu()
    drawn = torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=generator)
    return drawn.reshape(p.shape[:-1]).to(logits.device)


@profiled.register
def _(likelihood: Gaussian, logits: Tensor, targets: Tensor) -> Likelihood:
    return replace(likelihood, variance=float((logits - targets).square().mean()))


def _alike(name: str, logits: Tensor, targets: Tensor) -> Tensor:
    """The targets in the precision of the logits, when they have their shape."""
    if targets.shape != logits.shape:
        raise ValueError(
            f"likelihood={name!r}: the model returns {tuple(logits.shape)} for targets {tuple(targets.shape)}; "
            f"give both one shape, with y[:, None] or model(x)[:, 0]"
        )
    return targets.to(logits.dtype)
