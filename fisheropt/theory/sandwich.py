"""The sandwich covariance of an estimate, as pure functions of its scores.

An estimate that makes the mean of the scores s_i vanish, with curvature H of the mean loss and G the second moment of
the scores, has covariance H^-1 G H^-1/n, whether or not the model is true. Leading axes count data sets:
everything but the identification is batched over them.

Index legend: n samples, k outputs of a sample, d parameters, r identified directions.

Reference: huber1967behavior, white1982maximum
"""

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_symmetric

Correction: TypeAlias = Literal["HC0", "HC1", "HC2", "HC3"]

CORRECTIONS: tuple[Correction, ...] = ("HC0", "HC1", "HC2", "HC3")
NULL = 1e-10
"""Share of the largest eigenvalue of H, in units of its own diagonal, below which a direction has no curvature."""

_SATURATED = 1e-9
_UNSEEN = 1e-9


class Identification(NamedTuple):
    """Orthonormal bases of the directions that the data identify [d, r] and of the others [d, d - r]."""

    basis: Tensor
    null: Tensor


def score_noise(scores: Tensor, clusters: Tensor | None = None) -> Tensor:
    """G = (1/n) sum s_i s_i^T, or (1/n) sum over clusters of the outer products of their summed scores.

    Not centred, as the scores of an estimate have mean zero.

    Args:
        scores: [..., n, d].
        clusters: labels [n]; scores of one cluster may depend on each other in any way.

    Returns:
        G [..., d, d].
    """
    rows = scores if clusters is None else cluster_sums(scores, clusters.unique(return_inverse=True)[1])
    return rows.mT @ rows / scores.shape[-2]


def cluster_sums(scores: Tensor, index: Tensor, count: int | None = None) -> Tensor:
    """Scores summed within each cluster [..., C, d].

    Args:
        scores: [..., n, d].
        index: cluster of each sample [n], from 0 to C - 1.
        count: C; None for the largest index plus one.
    """
    size = int(index.max()) + 1 if count is None else count
    zeros = scores.new_zeros(*scores.shape[:-2], size, scores.shape[-1])
    return zeros.index_add(-2, index, scores)


def correction_factor(correction: Correction, samples: int, dimension: int, clusters: int | None = None) -> float:
    """What the covariance is multiplied by for the degrees of freedom that the fit used.

    HC1: n/(n - d), with C clusters C/(C - 1) (n - 1)/(n - d); the others: 1.

    Args:
        correction: "HC0" to "HC3".
        samples: n.
        dimension: d, the identified parameters.
        clusters: C; None without clusters.

    Raises:
        ValueError: for an unknown correction, n <= d, or a single cluster.

    Reference: mackinnon1985some, liang1986longitudinal
    """
    if correction not in CORRECTIONS:
        raise ValueError(f"correction={correction!r}: write one of {CORRECTIONS}")
    if samples <= dimension:
        raise ValueError(
            f"{samples} samples for {dimension} parameters leave no degree of freedom for the noise; take more samples, "
            "or fewer parameters with parameters=[...]"
        )
    if clusters is not None and clusters < 2:
        raise ValueError("found one cluster; a covariance between clusters needs two at least, better fifty")
    if correction != "HC1":
        return 1.0
    if clusters is None:
        return samples / (samples - dimension)
    return clusters / (clusters - 1) * (samples - 1) / (samples - dimension)


def leverage_adjusted(scores: Tensor, roots: Tensor, inverse: Tensor, correction: Correction) -> Tensor:
    """Scores whose residuals are divided by (1 - h)^(1/2) for HC2, by 1 - h for HC3, h the leverage of the sample.

    With R = B^T J the root of a sample's information R^T R and A = (n H)^-1, the leverage is the matrix S = R A R^T
    [k, k], and J^T B f(S) B^+ u = s + R^T q(S) R A s with q(S) = (f(S) - 1)/S: for HC3 f = 1/(1 - S), for HC2 its
    root. With one output h is the hat value of a generalised linear model, w x^T (X^T W X)^-1 x; the matrix form is ours.

    Args:
        scores: [..., n, d].
        roots: R [..., n, k, d].
        inverse: A [..., d, d], a pseudo-inverse where directions are not identified.
        correction: "HC2" or "HC3"; the others leave the scores as they are.

    Raises:
        ValueError: for a sample of leverage one, which is fitted exactly whatever its label.

    Reference: mackinnon1985some
    """
    if correction not in ("HC2", "HC3"):
        return scores
    along = roots @ inverse[..., None, :, :]
    values, vectors = torch.linalg.eigh(along @ roots.mT)
    left = 1 - values
    if bool((left < _SATURATED).any()):
        bad = int((left < _SATURATED).any(-1).sum())
        raise ValueError(
            f"{bad} samples have leverage 1: the fit follows their labels wherever they go, so {correction} divides by "
            "zero; write correction='HC1', or take the parameters out that these samples alone determine"
        )
    gain = 1 / left if correction == "HC3" else 1 / (left.sqrt() * (1 + left.sqrt()))
    push = vectors @ (gain[..., None] * (vectors.mT @ (along @ scores[..., None])))
    return scores + (roots.mT @ push)[..., 0]


def sandwich_covariance(curvature: Tensor, noise: Tensor, samples: int, basis: Tensor | None = None) -> Tensor:
    """H^-1 G H^-1/n, with pseudo-inverses on the span of a basis K: K (K^T H K)^-1 K^T G K (K^T H K)^-1 K^T/n.

    Args:
        curvature: H [..., d, d], positive definite on the span.
        noise: G [..., d, d].
        samples: n.
        basis: K [d, r], orthonormal; None for all directions.

    Returns:
        [..., d, d].
    """
    bread = restricted_inverse(curvature, basis)
    result = bread @ noise @ bread / samples
    return (result + result.mT) / 2


def restricted_inverse(curvature: Tensor, basis: Tensor | None = None) -> Tensor:
    """K (K^T H K)^-1 K^T, the inverse of H on the span of K.

    Args:
        curvature: H [..., d, d], positive definite on the span.
        basis: K [d, r]; None for all directions.
    """
    if basis is None or basis.shape[0] == basis.shape[1]:
        return torch.cholesky_inverse(torch.linalg.cholesky(curvature))
    inner = torch.cholesky_inverse(torch.linalg.cholesky(basis.mT @ curvature @ basis))
    return basis @ inner @ basis.mT


def identification(curvature: Tensor, project: Tensor | None = None) -> Identification:
    """The directions with curvature, and those without, such as the shift of all logits of a softmax.

    Judged on D^(-1/2) H D^(-1/2) with D the diagonal of H, so that the units of the features do not matter.

    Args:
        curvature: H [d, d].
        project: a projector [d, d] or a basis [d, r] of the directions to keep, in place of the search.

    Raises:
        ValueError: for a negative curvature, which is no minimum, or a basis of another size.
    """
    call = "sandwich(...)"
    H = checked_symmetric(curvature, call).to(curvature.device)
    if project is not None:
        if project.ndim != 2 or len(project) != len(H):
            raise ValueError(
                f"{call}: project is {tuple(project.shape)}; write a projector [d, d] or a basis [d, r], d = {len(H)}"
            )
        left, singular, _ = torch.linalg.svd(project.detach().to(H), full_matrices=True)
        rank = int((singular > 1e-9 * singular[0]).sum())
        return Identification(left[:, :rank], left[:, rank:])
    diagonal = H.diagonal()
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * H * scale)
    floor = NULL * float(values[-1].clamp_min(0))
    if float(values[0]) < -max(floor, NULL):
        raise ValueError(
            f"{call}: the Hessian has {int((values < -floor).sum())} negative eigenvalues, the parameters are at no "
            "minimum; train further, or write curvature='fisher', which is never negative"
        )
    flat = values <= floor
    if not bool(flat.any()):
        return Identification(torch.eye(len(H), dtype=H.dtype, device=H.device), H.new_zeros(len(H), 0))
    whole = torch.linalg.qr(scale[:, None] * vectors[:, flat], mode="complete")[0]
    count = int(flat.sum())
    return Identification(whole[:, count:], whole[:, :count])


def score_distance(gradient: Tensor, noise: Tensor, curvature: Tensor, samples: int) -> float:
    """How far the optimum is, in standard errors of the direction in which it is farthest: (n g^T G^+ g)^(1/2).

    That is the length of the Newton step H^-1 g in the metric of H^-1 G H^-1/n, where H cancels. To G is added 1e-9 of H, in
    units of G, so that a direction without noise is not far from its optimum by a step that no loss would show.

    Args:
        gradient: g [d], the mean score.
        noise: G [d, d].
        curvature: H [d, d].
        samples: n.
    """
    curved = curvature.diagonal() > 0
    unit = (noise.diagonal()[curved] / curvature.diagonal()[curved]).sum() / curved.sum().clamp_min(1)
    noise = noise + _UNSEEN * unit * curvature
    scale = noise.diagonal().clamp_min(torch.finfo(noise.dtype).tiny).rsqrt()
    scaled = scale * gradient
    inverse = torch.linalg.pinv(scale[:, None] * noise * scale, hermitian=True, rtol=1e-12)
    return float((samples * (scaled @ inverse @ scaled)).clamp_min(0).sqrt())


class InformationGaps(NamedTuple):
    """How far G is from H, which it equals where the model is true.

    In order: the dimension tr(H^-1 G), the distance |H^(-1/2) G H^(-1/2) - I|_F^2, and the ratio of tr(H^-1 G) less its
    value at G = H to its standard error.
    """

    dimension: float
    distance: float
    ratio: float


def information_gaps(scores: Tensor, roots: Tensor) -> InformationGaps:
    """The gaps between G = (1/n) sum s_i s_i^T and H = (1/n) sum R_i^T R_i.

    The ratio is sum m_i over the norm of m_i = s_i^T H^-1 s_i - tr(H^-1 R_i^T R_i) less its regression on the scores, as the
    parameters were estimated from the same samples. It is no standard normal at moderate n: simulate its law.

    Args:
        scores: s [n, r], of mean zero, n above r.
        roots: R [n, k, r], of a positive definite H.

    Reference: white1982maximum, presnell2004ios
    """
    rows = roots.flatten(0, 1)
    lower = torch.linalg.cholesky(rows.mT @ rows / len(scores))
    white = torch.linalg.solve_triangular(lower, scores.mT, upper=False).mT
    root = torch.linalg.solve_triangular(lower, rows.mT, upper=False).mT.reshape(roots.shape)
    gap = score_noise(white) - torch.eye(white.shape[1], dtype=white.dtype, device=white.device)
    contributions = white.square().sum(1) - root.square().sum((1, 2))
    basis = torch.linalg.qr(white)[0]
    left = contributions - basis @ (basis.mT @ contributions)
    return InformationGaps(
        dimension=float(gap.trace()) + len(gap),
        distance=float(gap.square().sum()),
        ratio=float(contributions.sum() / left.norm().clamp_min(torch.finfo(left.dtype).tiny)),
    )
