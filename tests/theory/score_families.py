"""Families of scores with known Fisher matrices, drawn in batches [data sets, n, k]."""

import math

import torch
from torch import Tensor

from fisheropt.theory import mixture

FAMILIES = ("gaussian", "student", "logistic", "mixture")


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def logistic_information(strength: float) -> tuple[float, float]:
    """E p (1 - p) x^2 along theta and E p (1 - p) across it, x ~ N(0, I), by the trapezoidal rule."""
    x = torch.arange(-12, 12, 1 / 64, dtype=torch.float64)
    p = torch.sigmoid(strength * x)
    density = torch.softmax(-(x**2) / 2, 0) * p * (1 - p)
    return float(density @ x**2), float(density.sum())


def standard_scores(
    family: str, shape: tuple[int, int, int], generator: torch.Generator, strength: float = 1.0
) -> Tensor:
    """Scores with Gamma = I; Student t has 5 degrees of freedom, `strength` is |theta| of the other two."""
    draws, n, k = shape
    z = normal(*shape, generator=generator)
    if family == "gaussian":
        return z
    if family == "student":
        chi = normal(*shape, 5, generator=generator).square().sum(-1)
        return z / (chi / 5).sqrt() * math.sqrt(3 / 5)
    uniform = torch.rand(draws, n, generator=generator, dtype=torch.float64)
    if family == "logistic":
        p = torch.sigmoid(strength * z[..., 0])
        scores, (along, across) = ((uniform < p).double() - p)[..., None] * z, logistic_information(strength)
    else:
        mean = torch.zeros(k, dtype=torch.float64)
        mean[0] = strength
        x = z + ((uniform < 0.5).double() * 2 - 1)[..., None] * mean
        scores = mixture.score(mean, x.reshape(-1, k)).reshape(shape)
        along, across = mixture.fisher_coefficients(strength)
    scale = torch.full((k,), across, dtype=torch.float64)
    scale[0] = along
    return scores / scale.sqrt()


def moments(scores: Tensor) -> Tensor:
    return scores.transpose(1, 2) @ scores / scores.shape[1]


def operator_norms(matrices: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrices).abs().amax(-1)


def random_psd(k: int, generator: torch.Generator, floor: float = 0.0) -> Tensor:
    root = normal(k, k + 2, generator=generator)
    return root @ root.T / k + floor * torch.eye(k, dtype=torch.float64)
