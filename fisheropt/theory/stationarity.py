"""When has training become stationary at the present temperature? Tests on inner products of gradients.

A_k is the unbiased squared norm of the gradient, C_k the product of the gradients of steps k and k + 1. For quadratics
A + C = -(2/eta) times the expected decrease of the loss in a step, and 0 at stationarity. That a mean is *not clearly
positive* is no evidence; the certificate asks that the decrease be clearly below a share of what a noiseless step makes.
The certificate is ours.
"""

from dataclasses import dataclass

from torch import Tensor

from fisheropt.theory.tails import two_sided_quantile

FEWEST = 60
_SHARE = 0.5
_BATCHES = 10


@dataclass(frozen=True)
class StationarityCertificate:
    """One test of the last half of a history.

    Attributes:
        stationary: The upper bound is below zero.
        upper: 95 % upper bound of mean(A + C) - r_0 mean(A).
        decrease: Predicted decrease of the loss a step, (eta/2) mean(A + C).
        decrease_se: Its standard error, from batch means.
        steps: Steps in the half that was tested.
    """

    stationary: bool
    upper: float
    decrease: float
    decrease_se: float
    steps: int


def batch_means(values: Tensor, batches: int = _BATCHES) -> tuple[float, float]:
    """Mean of a correlated series and its standard error, from the spread of the means of long batches.

    Args:
        values: [n], in order; the oldest that fill no whole batch are left out.
        batches: Number of batches, each much longer than the correlation should be.
    """
    size = len(values) // batches
    if size < 1:
        raise ValueError(f"batch_means: {len(values)} values make no {batches} batches; give {batches} or more")
    means = values.detach().double()[-size * batches :].reshape(batches, size).mean(1)
    return float(means.mean()), float(means.std()) / batches**0.5


def stationarity_certificate(
    squared: Tensor, lagged: Tensor, lr: float, *, share: float = _SHARE, level: float = 0.95
) -> StationarityCertificate:
    """Whether mean(A + C) < r_0 mean(A), with confidence, on the last half of a history.

    One test errs with probability 1 - level for Gaussian batch means, and is repeated while training goes on: ask for it
    twice in a row before acting on it.

    Args:
        squared: A_k [n], unbiased estimates of |grad L|^2 in the metric of the step.
        lagged: C_k [n], products of the gradients of steps k and k + 1 in the same metric.
        lr: eta.
        share: r_0.
        level: Of the one-sided bound.

    Raises:
        ValueError: for fewer than 60 steps, or histories of different lengths.

    Reference: yaida2019fluctuation
    """
    if len(squared) != len(lagged) or len(squared) < FEWEST:
        raise ValueError(
            f"stationarity_certificate: {len(squared)} values of A and {len(lagged)} of C; give one of each a step, for "
            f"{FEWEST} steps or more"
        )
    half = len(squared) // 2
    a, c = squared[half:].double(), lagged[half:].double()
    excess, error = batch_means(a + c - share * a)
    upper = excess + two_sided_quantile(2 * level - 1, _BATCHES - 1) * error
    mean, mean_error = batch_means(a + c)
    return StationarityCertificate(upper < 0, upper, lr / 2 * mean, lr / 2 * mean_error, len(a))


def running_product(lagged: Tensor, burn: int = 0) -> Tensor:
    """sum_k C_k after burn-in [n - burn], which Pflug's test, after Chee and Toulis, compares with zero.

    It turns negative long before stationarity, as C has the optimal temperature at zero.

    Args:
        lagged: C_k [n].
        burn: Steps left out.

    Reference: chee2018convergence
    """
    return lagged.detach().double()[burn:].cumsum(0)


def sasa_interval(products: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Interval for the mean of z_k = <x_k, d_k> - (eta/2)|d_k|^2, zero at stationarity, after Lang, Zhang and Xiao.

    It depends on the origin of the coordinates, and tests |x|, not the loss.

    Args:
        products: z_k [n], in order.
        level: Of the interval.

    Reference: lang2019using
    """
    mean, error = batch_means(products)
    width = two_sided_quantile(level, _BATCHES - 1) * error
    return mean - width, mean + width
