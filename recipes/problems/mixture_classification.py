"""problem=mixture_classification: softmax regression on a Gaussian mixture, whose spectra are known."""

from __future__ import annotations

from typing import final

import numpy as np
import torch

from recipes.problems.base import require
from recipes.problems.classification import Classification, Samples


@final
class MixtureClassification(Classification):
    r"""Which component of a k-component Gaussian mixture a sample comes from, by ridge softmax regression.

    $Y = \mu_b + \lambda^{-1/2} Z$, b uniform on k classes, Z ~ N(0, I_d), the means $\mu_b$ orthonormal.
    The test set is drawn afresh. `fisheropt.theory.effective_spectrum` predicts the spectra of Hessian and
    information.

    Reference: benarous2025local

    Attributes:
        means: μ, [k, d].
        snr: λ.
    """

    def __init__(
        self,
        *,
        k: int = 3,
        d: int = 50,
        n: int = 1000,
        snr: float = 4.0,
        test: int = 1000,
        l2: float | None = None,
        intercept: bool = False,
        dtype: str = "float32",
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        """Draw the data.

        Args:
            k: classes; two have one logit.
            d: features, at least k.
            n: training samples.
            snr: λ, the squared distance of a mean from 0 over the variance in each direction.
            test: test samples; 0 for no test set.
            l2: strength of the ridge on the weights, the intercept left out; None for 1/n.
            intercept: whether the model has one.
            dtype: of model and training data, "float32" or "float64"; evaluations are in float64.
            seed: of the data.
            cache_dir: folder that keeps computed optima; None for none.
        """
        require(2 <= k <= d, f"k={k}, d={d}", f"problem.k=2 or more, and problem.d={max(k, 2)} or more")
        require(n >= 1 and test >= 0, f"n={n}, test={test}", "problem.n=1000 problem.test=1000")
        require(snr > 0, f"snr={snr}", "problem.snr=4, or another number above 0")
        rng = np.random.default_rng(seed)
        means = np.linalg.qr(rng.standard_normal((d, k)))[0].T
        y = rng.integers(0, k, n + test)
        x = means[y] + snr**-0.5 * rng.standard_normal((n + test, d))
        held = (x[n:], y[n:]) if test else None
        samples = Samples(x[:n], y[:n], k, held, f"{k} orthonormal means, snr = {snr:g}")
        self.means = torch.from_numpy(means.copy())
        self.snr = snr
        super().__init__(
            "mixture_classification", samples, l2=l2, intercept=intercept, dtype=dtype, cache_dir=cache_dir
        )
