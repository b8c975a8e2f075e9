"""Stationary covariance of SGD near a minimum, and the noise floor of the loss that follows from it.

The matrix that drives SGD is the covariance G of per-sample gradients, not the sandwich H^-1 G H^-1; the temperature
tau = eta/b scales it. Exact for quadratic losses; for others the relative error grows like tau. After Zantedeschi and
Muthuraman (2026, v4); the discrete, preconditioned, heavy-ball and reshuffled formulas are ours.
"""

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_positive, checked_symmetric
from fisheropt.theory.linear_recursion import Modes, epoch_end, epoch_mean, independent, modes

Sampling: TypeAlias = Literal["iid", "without", "reshuffle"]
Method: TypeAlias = Literal["discrete", "continuous"]

_GAUGE = 1e-10  # of the largest curvature: below it a direction has no restoring force
_CALL = "stationary_covariance"


class _Frame(NamedTuple):
    """Curvatures [d], noise [d, d] and the map [D, d] back to the parameters, in the eigenbasis of L^T H L."""

    curvatures: Tensor
    noise: Tensor
    back: Tensor


def temperature(lr: float, batch_size: float, *, momentum: float = 0.0, n: int | None = None) -> float:
    """Effective temperature tau = eta/(b (1 - beta)), times (n - b)/n for batches drawn without replacement from n samples.

    Args:
        lr: eta.
        batch_size: b.
        momentum: beta of the heavy ball; the formula is its small-step limit.
        n: Size of the data set; None for fresh samples. It goes with the covariance that divides by n - 1.

    Reference: zantedeschi2026
    """
    eta, size = checked_positive(lr, "lr", "temperature"), checked_positive(batch_size, "batch_size", "temperature")
    return eta / (size * (1 - momentum)) * (1.0 if n is None else 1 - size / n)


def stationary_covariance(
    H: Tensor,
    G: Tensor,
    lr: float,
    batch_size: float,
    *,
    precond: Tensor | None = None,
    momentum: float = 0.0,
    n: int | None = None,
    sampling: Sampling = "iid",
    project: Tensor | None = None,
    method: Method = "discrete",
) -> Tensor:
    """Covariance [d, d] of the iterates of SGD at stationarity.

    Discrete and exact for quadratics: Sigma = (I - eta P H) Sigma (I - eta H P) + (eta^2/b) P G P; continuous:
    P H Sigma + Sigma H P = tau P G P; reshuffled epochs: at their ends, with Cov(two batches) = -G/n.

    Args:
        H: Curvature [d, d].
        G: Covariance of per-sample gradients [d, d]; with `n` the one that divides by n - 1.
        lr: eta.
        batch_size: b.
        precond: P [d, d], symmetric positive definite; identity when omitted.
        momentum: beta of the heavy ball m <- beta m + g.
        n: Size of the data set, for batches drawn from it.
        sampling: "iid" for fresh samples, "without" for batches drawn without replacement but independently,
            "reshuffle" for a DataLoader with shuffle=True.
        project: Projector [d, d], or a basis [d, k], of the identifiable directions; the others do not move.
        method: "discrete", or the small-step limit "continuous".

    Raises:
        ValueError: for a step that diverges, a direction without curvature, or arguments that do not fit together.

    Reference: zantedeschi2026
    """
    frame = _frame(H, G, precond, project)
    noise = frame.noise * _share(batch_size, n, sampling) / batch_size
    if method == "continuous":
        return _mapped(_continuous(frame, noise, lr, momentum, sampling), frame)
    if method != "discrete":
        raise ValueError(f'{_CALL}: method={method!r} must be "discrete" or "continuous"')
    recursion = _stable(frame.curvatures, lr, momentum)
    if sampling == "reshuffle":
        return _mapped(epoch_end(recursion, noise, _batches(batch_size, n))[..., 0, 0], frame)
    return _mapped(independent(recursion, noise)[..., 0, 0], frame)


def reshuffled_mean(
    H: Tensor,
    G: Tensor,
    lr: float,
    batch_size: float,
    n: int,
    *,
    precond: Tensor | None = None,
    momentum: float = 0.0,
    project: Tensor | None = None,
) -> Tensor:
    """Covariance [d, d] of reshuffled SGD averaged over an epoch, where `stationary_covariance` has its end.

    At position k it is A^k Sigma A^k + (m s_2(k) - s_1(k) N s_1(k)^T)/(m - 1), N the covariance of a batch mean.

    Args:
        H: Curvature [d, d].
        G: Covariance of per-sample gradients that divides by n - 1, [d, d].
        lr: eta.
        batch_size: b.
        n: Size of the data set.
        precond: P [d, d].
        momentum: beta.
        project: Projector or basis of the identifiable directions.

    Reference: zantedeschi2026
    """
    frame = _frame(H, G, precond, project)
    noise = frame.noise * _share(batch_size, n, "reshuffle") / batch_size
    recursion = _stable(frame.curvatures, lr, momentum)
    return _mapped(epoch_mean(recursion, noise, _batches(batch_size, n))[..., 0, 0], frame)


def noise_floor(H: Tensor, covariance: Tensor) -> float:
    """Expected excess loss tr(H Sigma)/2 of iterates with covariance Sigma; about (tau/4) tr(P G) for small steps.

    Args:
        H: Curvature [d, d].
        covariance: Sigma [d, d].

    Reference: zantedeschi2026
    """
    return 0.5 * float((H.double() * covariance.double()).sum())


def batch_size_for_floor(H: Tensor, G: Tensor, lr: float, floor: float, *, precond: Tensor | None = None) -> float:
    """The batch size b at which independent batches and step size eta leave the excess loss `floor`.

    Exact, as Sigma is proportional to 1/b.

    Args:
        H: Curvature [d, d].
        G: Covariance of per-sample gradients [d, d].
        lr: eta.
        floor: Excess loss.
        precond: P [d, d].

    Reference: zantedeschi2026
    """
    wanted = checked_positive(floor, "floor", "batch_size_for_floor")
    return noise_floor(H, stationary_covariance(H, G, lr, 1.0, precond=precond)) / wanted


def lr_for_floor(H: Tensor, G: Tensor, batch_size: float, floor: float, *, precond: Tensor | None = None) -> float:
    """The step size eta at which batches of size b leave the excess loss `floor`, by bisection.

    The floor grows from 0 to infinity as eta goes from 0 to 2/lambda_max(P H).

    Args:
        H: Curvature [d, d].
        G: Covariance of per-sample gradients [d, d].
        batch_size: b.
        floor: Excess loss.
        precond: P [d, d].

    Reference: zantedeschi2026
    """
    wanted = checked_positive(floor, "floor", "lr_for_floor")
    low, high = 0.0, 2 / float(_frame(H, G, precond, None).curvatures[-1])
    for _ in range(60):
        middle = (low + high) / 2
        above = noise_floor(H, stationary_covariance(H, G, middle, batch_size, precond=precond)) > wanted
        low, high = (low, middle) if above else (middle, high)
    return (low + high) / 2


def _frame(H: Tensor, G: Tensor, precond: Tensor | None, project: Tensor | None) -> _Frame:
    curvature, noise = checked_symmetric(H, _CALL), checked_symmetric(G, _CALL)
    if curvature.shape != noise.shape:
        raise ValueError(f"{_CALL}: H is {tuple(curvature.shape)} and G is {tuple(noise.shape)}; give both as [d, d]")
    basis = torch.eye(len(curvature), dtype=torch.float64) if project is None else _basis(project)
    root = basis if precond is None else basis @ _root(basis.T @ checked_symmetric(precond, _CALL) @ basis)
    curvatures, vectors = torch.linalg.eigh(root.T @ curvature @ root)
    if float(curvatures[0]) <= _GAUGE * float(curvatures[-1]):
        flat = int((curvatures <= _GAUGE * curvatures[-1]).sum())
        raise ValueError(
            f"{_CALL}: {flat} of {len(curvatures)} directions have no curvature, so nothing holds the iterates there; "
            "give project= with a projector on the others (for a softmax, (I - 11^T/C) (x) I)"
        )
    back = root @ vectors
    return _Frame(curvatures, back.T @ noise @ back, back)


def _basis(project: Tensor) -> Tensor:
    """Orthonormal basis of the range of a projector, or of the span of columns."""
    left, singular, _ = torch.linalg.svd(project.detach().to("cpu", torch.float64), full_matrices=False)
    return left[:, singular > 1e-9 * singular[0]]


def _root(precond: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(precond)
    if failed:
        smallest = float(torch.linalg.eigvalsh(precond)[0])
        raise ValueError(f"{_CALL}: `precond` must be positive definite, its smallest eigenvalue is {smallest:.3g}")
    return factor


def _share(batch_size: float, n: int | None, sampling: Sampling) -> float:
    """1 - b/n where a batch is drawn without replacement."""
    checked_positive(batch_size, "batch_size", _CALL)
    if sampling == "iid":
        return 1.0
    if sampling not in ("without", "reshuffle"):
        raise ValueError(f'{_CALL}: sampling={sampling!r} must be "iid", "without" or "reshuffle"')
    if n is None or n < batch_size:
        raise ValueError(
            f"{_CALL}: sampling={sampling!r} draws from a data set; write n=len(data), at least {batch_size}"
        )
    return 1 - batch_size / n


def _batches(batch_size: float, n: int | None) -> int:
    """Batches an epoch."""
    count = (n or 0) / batch_size
    if count < 2 or count != round(count):
        raise ValueError(
            f'{_CALL}: sampling="reshuffle" needs two or more whole batches an epoch, found n/b = {n}/{batch_size:g}; '
            "leave out the incomplete batch, as drop_last=True does"
        )
    return round(count)


def _stable(curvatures: Tensor, lr: float, momentum: float) -> Modes:
    eta = checked_positive(lr, "lr", _CALL)
    if not 0 <= momentum < 1:
        raise ValueError(f"{_CALL}: momentum={momentum!r} must lie in [0, 1)")
    largest = 2 * (1 + momentum) / float(curvatures[-1])
    if eta >= largest:
        raise ValueError(f"{_CALL}: lr={lr:g} diverges; the largest stable step size is {largest:.4g}")
    return modes(curvatures, eta, momentum)


def _continuous(frame: _Frame, noise: Tensor, lr: float, momentum: float, sampling: Sampling) -> Tensor:
    if sampling == "reshuffle":
        raise ValueError(f'{_CALL}: sampling="reshuffle" has no continuous limit; write method="discrete"')
    eta = checked_positive(lr, "lr", _CALL) / (1 - momentum)
    return eta * noise / (frame.curvatures[:, None] + frame.curvatures)


def _mapped(covariance: Tensor, frame: _Frame) -> Tensor:
    result = frame.back @ covariance @ frame.back.T
    return (result + result.T) / 2
