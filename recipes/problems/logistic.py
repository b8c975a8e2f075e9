"""problem=logistic: ridge logistic or softmax regression on bundled, stored or synthetic data."""

from __future__ import annotations

from typing import final

import numpy as np

from recipes.problems.base import require
from recipes.problems.classification import Classification, Samples
from recipes.problems.labels import find_classes
from recipes.problems.readers import Array
from recipes.problems.sources import SYNTHETIC, Source, load
from recipes.problems.synthetic import draw

HOLDOUT = 0.2


@final
class Logistic(Classification):
    r"""Ridge logistic regression, from zero weights: convex, with a known optimum.

    $f(w, b) = -\frac1n \sum_i \log p_{y_i}(W x_i + b) + \frac{\lambda}{2} \lVert W \rVert^2$
    """

    def __init__(
        self,
        data: str = "breast_cancer",
        *,
        data_dir: str = ".",
        label: str | None = None,
        context: int = 1,
        kind: str = "well_specified",
        n: int = 1000,
        d: int = 20,
        condition: float = 1.0,
        test_fraction: float | None = None,
        l2: float | None = None,
        intercept: bool | None = None,
        standardise: bool | None = None,
        dtype: str = "float32",
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        """Read or draw the data.

        Args:
            data: "breast_cancer", "digits", "iris" or "wine"; "synthetic"; or the path of a LIBSVM or CSV
                file, of MNIST's idx images, or of a text, whose next character is predicted; plain, xz, bz2
                or gz.
            data_dir: where to look for the file besides the current folder.
            label: the label's column in a CSV file with a header; None for the last one.
            context: previous characters that a text's next one is predicted from.
            kind: of synthetic data: "well_specified", "misspecified" or "separable".
            n: synthetic training samples.
            d: synthetic features.
            condition: condition number of the synthetic features' covariance.
            test_fraction: of the samples, held out at random for testing (synthetic: drawn in addition to
                n). None takes the test file `NAME.t` beside a file; without one, 0 for a file, else .2.
                With a number the test file is not read.
            l2: strength λ of the ridge on the weights, the intercept left out; None for 1/n.
            intercept: None for yes with bundled and CSV data, and no with the others.
            standardise: features to mean 0 and variance 1 over the training samples; None: bundled data only.
            dtype: of model and training data, "float32" or "float64"; evaluations are in float64.
            seed: of the synthetic data and of the held-out part.
            cache_dir: folder that keeps computed optima; None for none.
        """
        fraction = test_fraction
        require(fraction is None or 0 <= fraction < 1, f"test_fraction={fraction}", "problem.test_fraction=0.2")
        if data == SYNTHETIC:
            extra = round((HOLDOUT if fraction is None else fraction) * n)
            name, form = kind, SYNTHETIC
            samples = _drawn(kind, n, d, condition, extra, seed)
        else:
            source = load(data, data_dir, label=label, context=context, with_test=fraction is None)
            name, form = source.name, source.train.format
            samples = _split(source, fraction, seed)
        if form == "bundled" if standardise is None else standardise:
            samples = _standardised(samples)
        super().__init__(
            f"logistic-{name}",
            samples,
            l2=l2,
            intercept=form in ("bundled", "csv") if intercept is None else intercept,
            dtype=dtype,
            cache_dir=cache_dir,
        )


def _drawn(kind: str, n: int, d: int, condition: float, test: int, seed: int) -> Samples:
    drawn = draw(kind, n, d, condition, test, seed)
    return Samples(
        drawn.x,
        drawn.y,
        2,
        (drawn.test_x, drawn.test_y) if test else None,
        f"synthetic, condition {condition:g}",
    )


def _split(source: Source, fraction: float | None, seed: int) -> Samples:
    """The source's own test set, or a part of the training set held out at random, or none."""
    classes = find_classes(source.train.y, source.origin)
    x, y = source.train.x, classes.encode(source.train.y, source.origin)
    if source.test is not None:
        test = (source.test.x, classes.encode(source.test.y, f"{source.name}'s test file"))
        return Samples(x, y, len(classes), test, source.origin)
    default = HOLDOUT if source.train.format == "bundled" else 0.0
    held = round((default if fraction is None else fraction) * len(x))
    held = min(held, len(x) - 1)
    if held == 0:
        return Samples(x, y, len(classes), None, source.origin)
    order = np.random.default_rng(seed).permutation(len(x))
    kept, out = np.sort(order[held:]), np.sort(order[:held])
    return Samples(x[kept], y[kept], len(classes), (x[out], y[out]), source.origin)


def _standardised(samples: Samples) -> Samples:
    """Mean 0 and variance 1 over the training samples; a feature that is constant there becomes 0 there."""
    mean, scale = samples.x.mean(0), samples.x.std(0)
    scale[scale < 1e-12 * (1.0 + np.abs(mean))] = 1.0

    def scaled(x: Array) -> Array:
        changed: Array = (x - mean) / scale
        return changed

    test = None if samples.test is None else (scaled(samples.test[0]), samples.test[1])
    return Samples(scaled(samples.x), samples.y, samples.classes, test, samples.origin)
