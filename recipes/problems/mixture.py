"""problem=mixture: maximum likelihood of a Gaussian mixture, a density with bare parameters."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import TensorDataset

from recipes.problems.base import FISHER_LIMIT, Problem, dtype_of, parameters64, require
from recipes.problems.cache import OptimumCache
from recipes.problems.em import best_fit, start
from recipes.problems.errors import DataError
from recipes.problems.gaussians import DiagonalMixture, FullMixture, GaussianMixture
from recipes.problems.readers import Array, read_bytes, read_csv
from recipes.problems.sources import SYNTHETIC, checked, locate, stem

FAITHFUL = "faithful"
STARTS = 20
COVARIANCES = {"diagonal": DiagonalMixture, "full": FullMixture}


@final
class Mixture(Problem):
    r"""Maximum likelihood of a k-component Gaussian mixture.

    $f(\theta) = -\frac1n \sum_i \log \sum_j w_j \, N(x_i; \mu_j, \Sigma_j)$

    f is not convex, and not bounded where a component shrinks onto one sample; `optimum` is the best
    stationary point that EM finds from STARTS seeded starts. A run that ends below has found a better one,
    or a collapse.
    """

    def __init__(
        self,
        data: str = FAITHFUL,
        *,
        data_dir: str = ".",
        k: int = 2,
        covariance: str = "diagonal",
        n: int = 1000,
        d: int = 2,
        separation: float = 4.0,
        standardise: bool = True,
        dtype: str = "float32",
        seed: int = 0,
        start_seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        """Read or draw the data.

        Args:
            data: "faithful" for Old Faithful, from `faithful.csv` in the current folder or in `data_dir`,
                or, without that file, two generated clusters of the same shape; "synthetic"; or the path of
                a CSV file of features, without a label.
            data_dir: where to look for the file besides the current folder.
            k: components, of the model and of synthetic data.
            covariance: of the model's components, "diagonal" or "full".
            n: synthetic training samples; as many are drawn for testing, other data have no test set.
            d: synthetic dimensions.
            separation: the smallest distance between the means of two synthetic components, whose
                covariance is I.
            standardise: features to mean 0 and variance 1 over the training samples.
            dtype: of model and training data, "float32" or "float64"; evaluations are in float64.
            seed: of the data and of EM.
            start_seed: of the initial means, which are k of the training samples.
            cache_dir: folder that keeps computed optima; None for none.
        """
        require(covariance in COVARIANCES, f"covariance={covariance!r}", "problem.covariance=diagonal or full")
        x, test, self.name, self._origin = _samples(data, data_dir, k, n, d, separation, seed)
        require(1 <= k <= len(x), f"k={k}", f"problem.k=2, or another number from 1 to the {len(x)} samples")
        _require_spread(x, self._origin)
        if standardise:
            mean, scale = x.mean(0), x.std(0)
            x, test = (x - mean) / scale, None if test is None else (test - mean) / scale
        self.k = k
        self._seed = seed
        self._full = covariance == "full"
        self._x = torch.from_numpy(x)
        self._test_x = None if test is None else torch.from_numpy(test)
        self.likelihood = None
        self.train = TensorDataset(self._x.to(dtype_of(dtype)))
        self.test = None if self._test_x is None else TensorDataset(self._test_x.to(dtype_of(dtype)))
        self.cache = OptimumCache(cache_dir)
        self._exact = self._module(x, start_seed)
        self.model: nn.Module = copy.deepcopy(self._exact).to(dtype_of(dtype))

    def loss(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        """The mean negative log-likelihood of the batch."""
        (x,) = batch
        value: Tensor = -model(x).mean()
        return value

    def train_loss(self, model: nn.Module) -> float:
        """The mean negative log-likelihood of all of `train`."""
        return self._mean_loss(model, self._x)

    def test_loss(self, model: nn.Module) -> float | None:
        """The mean negative log-likelihood of `test`; None if there is no test set."""
        return None if self._test_x is None else self._mean_loss(model, self._test_x)

    def accuracy(self, model: nn.Module) -> float | None:
        """None: a density classifies nothing."""
        return None

    def fisher(self, model: nn.Module) -> Tensor | None:
        r"""Eigenvalues of the empirical Fisher $\frac1n \sum_i s_i s_i^T$ of the scores on `train`.

        A density has no labels to draw from the model given x, so the scores of the data stand for their law.
        """
        parameters = self._named(model)
        if sum(p.numel() for p in parameters.values()) > FISHER_LIMIT:
            return None
        scores = vmap(grad(self._log_likelihood), in_dims=(None, 0))(parameters, self._x)
        flat = torch.cat([score.flatten(1) for score in scores.values()], 1)
        eigenvalues: Tensor = torch.linalg.eigvalsh(flat.T @ flat / len(flat))
        return eigenvalues

    def describe(self) -> str:
        """Data, model and objective in a line."""
        n, d = self._x.shape
        kind = "full" if self._full else "diagonal"
        test = "no test set" if self.test is None else f"{len(self.test)} test samples"
        return (
            f"{self.name} ({self._origin}): {n} samples in {d} dimensions, {test}, "
            f"{self.k} components with {kind} covariances"
        )

    def fingerprint(self) -> str:
        """A hash of the data, k, the kind of covariance and EM's seed."""
        key = f"k={self.k} full={self._full} seed={self._seed} starts={STARTS} {tuple(self._x.shape)}"
        return hashlib.sha256(key.encode() + self._x.numpy().tobytes()).hexdigest()

    def solve(self) -> float | None:
        """The smallest loss that EM finds."""
        fit = best_fit(self._x.numpy(), self.k, full=self._full, starts=STARTS, seed=self._seed)
        if fit is None:
            warnings.warn(
                f"{self.name}: no optimum, as every EM start collapsed onto a few samples; "
                f"write problem.k={max(1, self.k - 1)} or fewer",
                stacklevel=2,
            )
            return None
        return fit.loss

    def _module(self, x: Array, seed: int) -> GaussianMixture:
        first = start(x, self.k, self._full, np.random.default_rng(seed))
        values = (torch.from_numpy(value.copy()) for value in (first.weights, first.means, first.covariances))
        return FullMixture(*values) if self._full else DiagonalMixture(*values)

    def _named(self, model: nn.Module) -> dict[str, Tensor]:
        names = (name for name, _ in self._exact.named_parameters())
        return dict(zip(names, parameters64(model, self._exact), strict=True))

    def _log_likelihood(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        value: Tensor = functional_call(self._exact, parameters, (x,))
        return value

    def _mean_loss(self, model: nn.Module, x: Tensor) -> float:
        return -float(self._log_likelihood(self._named(model), x).mean())


def _samples(
    data: str, data_dir: str, k: int, n: int, d: int, separation: float, seed: int
) -> tuple[Array, Array | None, str, str]:
    """Training samples, test samples or None, name and origin."""
    if data == SYNTHETIC:
        require(k >= 1 and n >= 1 and d >= 1, f"k={k}, n={n}, d={d}", "problem.k=2 problem.n=1000 problem.d=2")
        x = _clusters(k, 2 * n, d, separation, np.random.default_rng(seed))
        return x[:n], x[n:], "mixture-synthetic", f"separation {separation:g}"
    try:
        path = locate("faithful.csv" if data == FAITHFUL else data, data_dir, (FAITHFUL, SYNTHETIC))
    except DataError:
        if data != FAITHFUL:
            raise
        return (
            _faithful(np.random.default_rng(seed)),
            None,
            "mixture-faithful-like",
            "generated, as there is no faithful.csv",
        )
    table = checked(read_csv(read_bytes(path), path, labelled=False), str(path))
    return table.x, None, f"mixture-{stem(path)}", f"csv file {path}"


def _require_spread(x: Array, origin: str) -> None:
    """Refuse samples in a plane: their likelihood has no bound."""
    mean, scale = x.mean(0), x.std(0)
    varies = bool((scale > 1e-12 * (1.0 + np.abs(mean))).all())
    if not varies or np.linalg.matrix_rank((x - mean) / scale, tol=1e-9 * len(x)) < x.shape[1]:
        raise DataError(
            f"{origin}: a column is constant or a linear combination of the others, so that the likelihood "
            "of a normal law has no bound.\nDrop that column, or take more samples than columns."
        )


def _clusters(k: int, n: int, d: int, separation: float, rng: np.random.Generator) -> Array:
    """n samples of k equally likely normal components whose two closest means are `separation` apart."""
    means = rng.standard_normal((k, d))
    gaps = np.linalg.norm(means[:, None] - means, axis=2)[~np.eye(k, dtype=bool)]
    means *= separation / gaps.min(initial=np.inf) if k > 1 else 0.0
    return means[rng.integers(0, k, n)] + rng.standard_normal((n, d))


def _faithful(rng: np.random.Generator) -> Array:
    """272 samples (minutes of eruption, minutes to the next) of two clusters like Old Faithful's."""
    long = (rng.random(272) < 0.64)[:, None]
    means = np.where(long, [4.29, 80.0], [2.04, 54.5])
    return means + np.where(long, [0.41, 6.0], [0.26, 5.8]) * rng.standard_normal((272, 2))
