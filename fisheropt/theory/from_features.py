"""The mixture behind a linear head: class means, SNR, ratio and Gram matrix estimated from its features.

Index legend: a, b classes; n_b samples of class b; nu = n - k degrees of freedom; p features; w [C, p]
weights.

The squared norm of a sample mean overshoots by sigma^2 p/n_b, which is no small correction when p is of the
order of n_b; it is subtracted. With whitening by the pooled covariance, E Sigma-hat^-1 = nu/(nu - p - 1)
Sigma^-1 is undone too.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_LARGEST_SE = 0.1


@dataclass(frozen=True)
class MixtureStatistics:
    """Arguments of :func:`fisheropt.theory.spectrum.effective_spectrum`, estimated.

    Attributes:
        gram: [q, q] of (w, means), projected on the positive semi-definite matrices.
        gram_se: [q, q], standard errors of its entries before the projection.
        proportions: [k], of the classes present.
        proportions_se: [k].
        snr: One over the pooled noise variance; 1 after whitening.
        snr_se: Its standard error.
        ratio: n/p.
        class_of: [k], the class of each component.
        bias: [C].
        samples: n.
        anisotropy: p tr Sigma^2/(tr Sigma)^2, 1 for isotropic noise; the theory asks for 1, `whiten=True`
            gives it.
        projected: Size of the largest negative eigenvalue removed from `gram`, relative to the largest.
    """

    gram: Tensor
    gram_se: Tensor
    proportions: Tensor
    proportions_se: Tensor
    snr: float
    snr_se: float
    ratio: float
    class_of: Tensor
    bias: Tensor
    samples: int
    anisotropy: float
    projected: float


class _Pooled(NamedTuple):
    """Classes present, counts [k], means [k, p], within-class covariance [p, p] and degrees of freedom."""

    classes: Tensor
    counts: Tensor
    means: Tensor
    covariance: Tensor
    dof: int


def _pool(features: Tensor, labels: Tensor) -> _Pooled:
    classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
    if int(counts.min()) < 2:
        raise ValueError(
            f"mixture_statistics: class {int(classes[counts.argmin()])} has one sample, too few to tell its "
            "mean from noise; pass at least two samples of each class present in `labels`"
        )
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.float64).index_add(0, index, features)
    means = sums / counts[:, None]
    residuals = features - means[index]
    dof = len(features) - len(classes)
    return _Pooled(classes, counts.double(), means, residuals.T @ residuals / dof, dof)


def _anisotropy(pooled: _Pooled) -> float:
    """Unbiased p tr Sigma^2/(tr Sigma)^2 for Gaussian noise, not below one."""
    dof, size = pooled.dof, len(pooled.covariance)
    trace, square = float(pooled.covariance.trace()), float(pooled.covariance.square().sum())
    unbiased = dof**2 / ((dof - 1) * (dof + 2)) * (square - trace**2 / dof) if dof > 1 else square
    return max(1.0, size * unbiased / trace**2)


def _isotropic(weights: Tensor, pooled: _Pooled) -> tuple[Tensor, float]:
    """Gram matrix with the unbiased norms of the means, and the noise variance."""
    noise = float(pooled.covariance.diagonal().mean())
    columns = torch.cat((weights, pooled.means))
    correction = torch.cat((torch.zeros(len(weights), dtype=torch.float64), noise * weights.shape[1] / pooled.counts))
    return columns @ columns.T - correction.diag(), noise


def _whitened(weights: Tensor, pooled: _Pooled) -> tuple[Tensor, float]:
    """Gram matrix of (Sigma^(1/2) w, Sigma^(-1/2) mu): the logits stay and the noise becomes the identity."""
    size, dof = weights.shape[1], pooled.dof
    if dof < 2 * size + 4:
        raise ValueError(
            f"mixture_statistics(..., whiten=True): {dof} degrees of freedom are too few to invert a "
            f"covariance of {size} features; pass at least {2 * size + 4 + len(pooled.means)} samples, or "
            "whiten=False"
        )
    inverse = torch.linalg.solve(pooled.covariance, pooled.means.T)
    means = (dof - size - 1) / dof * pooled.means @ inverse - (size / pooled.counts).diag()
    cross = weights @ pooled.means.T
    top = torch.cat((weights @ pooled.covariance @ weights.T, cross), 1)
    return torch.cat((top, torch.cat((cross.T, means), 1))), 1.0


def _mean_variances(gram: Tensor, noise: float, pooled: _Pooled, size: int) -> Tensor:
    """From the noise of the means: sigma^2 (G_ii/n_j + G_jj/n_i) + sigma^4 p/(n_i n_j), doubled at i = j."""
    heads = len(gram) - len(pooled.counts)
    rates = torch.cat((torch.zeros(heads, dtype=torch.float64), 1 / pooled.counts))
    norms = gram.diagonal().clamp(min=0)
    variance = noise * (norms[:, None] * rates + rates[:, None] * norms) + noise**2 * size * rates[:, None] * rates
    return variance + variance.diagonal().diag()


def _whitening_variances(gram: Tensor, pooled: _Pooled, size: int) -> Tensor:
    """From the error of the covariance: Wishart for w^T Sigma w, its inverse for means, none for w^T mu."""
    heads = len(gram) - len(pooled.counts)
    rates = torch.cat((torch.zeros(heads, dtype=torch.float64), size / pooled.counts))
    sizes = gram.clone() + rates.diag()
    result = sizes.diagonal()[:, None] * sizes.diagonal() + sizes.square()
    result[:heads, :heads] /= pooled.dof
    result[heads:, heads:] /= pooled.dof - size - 3
    result[:heads, heads:] = 0
    result[heads:, :heads] = 0
    return result


def _checked(weights: Tensor, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    call = "mixture_statistics"
    if weights.ndim != 2 or features.ndim != 2 or weights.shape[1] != features.shape[1] or len(weights) < 2:
        raise ValueError(
            f"{call}: `weights` must be [classes >= 2, p] and `features` [n, p], got "
            f"{tuple(weights.shape)} and {tuple(features.shape)}; "
            "write mixture_statistics(head.weight, features, labels)"
        )
    if labels.shape != (len(features),) or labels.is_floating_point():
        raise ValueError(f"{call}: `labels` must be {len(features)} integers, got {labels.dtype} {tuple(labels.shape)}")
    if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= len(weights):
        raise ValueError(f"{call}: `labels` must be non-empty and in 0..{len(weights) - 1}, the rows of `weights`")
    if not (weights.isfinite().all() and features.isfinite().all()):
        raise ValueError(f"{call}: `weights` and `features` must be finite")
    moved = weights.detach().to("cpu", torch.float64), features.detach().to("cpu", torch.float64)
    return *moved, labels.detach().cpu()


def mixture_statistics(
    weights: Tensor, features: Tensor, labels: Tensor, *, bias: Tensor | None = None, whiten: bool = False
) -> MixtureStatistics:
    """Class means, pooled SNR, ratio and Gram matrix of a linear softmax head on its features.

    The features must be fresh: on the data that trained the head, the theory does not hold. On deep features
    it is at best an approximation, for features near Gaussian around their class means.

    Args:
        weights: Head weights w [C, p], as in ``torch.nn.Linear``.
        features: Inputs of the head [n, p].
        labels: Class of each sample [n].
        bias: Head bias [C].
        whiten: Colour by the pooled covariance: describes the matrix Sigma^(-1/2) M Sigma^(-1/2) at noise
            variance 1.
    """
    weights, features, labels = _checked(weights, features, labels)
    pooled = _pool(features, labels)
    size, count = features.shape[1], len(features)
    anisotropy = _anisotropy(pooled)
    relative = (2 * anisotropy / (pooled.dof * size)) ** 0.5
    if relative > _LARGEST_SE:
        raise ValueError(
            f"mixture_statistics: too few samples to estimate the SNR: {count} samples of {size} features "
            f"give a relative standard error of {relative:.2f}, and {_LARGEST_SE} is needed; pass at least "
            f"{int(2 * anisotropy / _LARGEST_SE**2 / size) + len(pooled.classes) + 1} samples"
        )
    gram, noise = (_whitened if whiten else _isotropic)(weights, pooled)
    variances = _mean_variances(gram, noise, pooled, size)
    if whiten:
        variances = variances + _whitening_variances(gram, pooled, size)
    values, vectors = torch.linalg.eigh(gram)
    shares = pooled.counts / count
    return MixtureStatistics(
        gram=(vectors * values.clamp(min=0)) @ vectors.T,
        gram_se=variances.clamp(min=0).sqrt(),
        proportions=shares,
        proportions_se=(shares * (1 - shares) / count).sqrt(),
        snr=1 / noise,
        snr_se=0.0 if whiten else relative / noise,
        ratio=count / size,
        class_of=pooled.classes,
        bias=torch.zeros(len(weights), dtype=torch.float64) if bias is None else bias.detach().to("cpu", torch.float64),
        samples=count,
        anisotropy=1.0 if whiten else anisotropy,
        projected=max(0.0, -float(values[0]) / float(values[-1])),
    )
