"""Random mixtures against sampled matrices in 350 dimensions: bulk, edge, outliers and overlaps; and what is refused."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fisheropt.theory.dynamics import effective_dynamics
from fisheropt.theory.from_features import mixture_statistics
from fisheropt.theory.spectrum import EffectiveSpectrum, effective_spectrum
from fisheropt.theory.static_threshold import static_threshold
from tests.theory.mixture_samples import (
    Sample,
    generator,
    gram,
    overlaps,
    random_head,
    sample_mixture,
    softmax_matrix,
    weight_traces,
)

DIMENSION = 350


@dataclass(frozen=True)
class Case:
    """A random setting and which matrix of it is looked at."""

    means: Tensor
    head: Tensor
    proportions: list[float]
    class_of: list[int]
    snr: float
    ratio: float
    kind: str
    block: int | str
    seed: int

    @property
    def samples(self) -> int:
        return round(self.ratio * DIMENSION)

    def predict(self) -> EffectiveSpectrum:
        return effective_spectrum(
            gram(self.head, self.means),
            self.proportions,
            self.snr,
            self.samples / DIMENSION,
            kind=self.kind,
            block=self.block,
            class_of=self.class_of,
            samples=self.samples,
        )

    def draw(self) -> tuple[Sample, Tensor]:
        sample = sample_mixture(self.means, self.proportions, self.snr, self.samples, self.seed)
        return sample, torch.tensor(self.class_of)[sample.components]


def random_case(seed: int) -> Case:
    """Correlated means of different lengths, and a head from random to aligned with them."""
    source = generator(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=source))

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=source))

    classes = whole(2, 3)
    components = whole(classes, classes + 1)
    class_of = [component % classes for component in range(components)]
    shares = torch.rand(components, generator=source, dtype=torch.float64) + 0.5
    own = random_head(DIMENSION, components, 3 * seed + 1)
    mixing = torch.eye(components).double() + 0.4 * random_head(components, components, 3 * seed + 2)
    means = uniform(0.7, 1.6) * own @ mixing
    labels = torch.nn.functional.one_hot(torch.tensor(class_of)).double()
    head = uniform(0, 1.5) * means @ labels / components + uniform(0.1, 1.5) * random_head(DIMENSION, classes, 3 * seed)
    return Case(
        means=means,
        head=head,
        proportions=(shares / shares.sum()).tolist(),
        class_of=class_of,
        snr=uniform(1.0, 12.0),
        ratio=uniform(0.6, 5.0),
        kind=("hessian", "information")[whole(0, 1)],
        block=("full", *range(classes))[whole(0, classes)],
        seed=seed,
    )


@dataclass(frozen=True)
class Errors:
    """What a sampled matrix says of the prediction.

    Attributes:
        bulk: KS distance of all eigenvalues but the outliers.
        edge: largest eigenvalue of these over the edge, minus one.
        outliers: relative errors of those beyond 1.2 edges.
        overlaps: errors of the mean overlap of the first, the first two, ... of them; close pairs mix.
        spread: relative standard error of the trace: large where few samples carry the matrix.
    """

    bulk: float
    edge: float
    outliers: Tensor
    overlaps: Tensor
    spread: float

    def failures(self, samples: int) -> list[str]:
        """Which tolerances are missed; they grow with the noise of the samples."""
        chance = 1.5 * (2 / samples) ** 0.5 + 1.5 * self.spread
        broken = {
            "bulk": self.bulk > 0.02 + 0.2 * self.spread,
            "edge": not -0.15 < self.edge < 0.06 + 2 * self.spread,
            "outliers": bool((self.outliers.abs() > 0.03 + chance).any()),
            "overlaps": bool((self.overlaps.abs() > 0.06).any()),
        }
        return [name for name, failed in broken.items() if failed]


def compare(case: Case) -> Errors:
    spectrum, (sample, labels) = case.predict(), case.draw()
    values, vectors = torch.linalg.eigh(softmax_matrix(sample, case.head, labels, case.kind, case.block))
    values, count = values.flip(0), len(spectrum.outliers)
    separated = int((spectrum.outliers > 1.2 * spectrum.edge).sum())
    shares = overlaps(vectors.flip(1)[:, :separated], case.head, case.means)
    traces = weight_traces(sample, case.head, labels, case.kind, case.block)
    grid = torch.linspace(spectrum.edge / 50, spectrum.edge, 40, dtype=torch.float64)
    below = torch.searchsorted(values[count:].flip(0).contiguous(), grid, right=True) / (len(values) - count)
    return Errors(
        bulk=float((below - spectrum.cdf(grid)).abs().max()),
        edge=float(values[count]) / spectrum.edge - 1,
        outliers=values[:separated] / spectrum.outliers[:separated] - 1,
        overlaps=(shares - spectrum.overlaps[:separated]).cumsum(0) / torch.arange(1, separated + 1),
        spread=float(traces.std() / traces.mean()) / case.samples**0.5,
    )


def test_random_mixtures_against_samples():
    """At most one of 16 cases may miss a tolerance.

    Of 248 other random cases 2 missed one, both information matrices that few samples carry: at that rate chance fails
    this test for .7 % of the choices of 16 seeds, which are fixed.
    """
    cases = [random_case(seed) for seed in range(1000, 1016)]
    missed = {case.seed: failures for case in cases if (failures := compare(case).failures(case.samples))}
    assert len(missed) <= 1, missed
    assert {case.kind for case in cases} == {"hessian", "information"} and "full" in {case.block for case in cases}


def entries(**change):
    """Every function that takes a mixture, called with one argument changed."""
    call = {"gram": torch.eye(4, dtype=torch.float64), "proportions": [0.5, 0.5], "snr": 4.0} | change
    ratio = call.pop("ratio", 4.0)
    return {
        "effective_spectrum": lambda: effective_spectrum(**call, ratio=ratio),
        "static_threshold": lambda: static_threshold(**call, ratio=ratio),
        "effective_dynamics": lambda: effective_dynamics(**call, duration=0.1),
    }


def refused(change, message, without=()):
    for name, call in entries(**change).items():
        if name not in without:
            with pytest.raises(ValueError, match=message) as error:
                call()
            assert str(error.value).startswith(name)


@pytest.mark.parametrize("seed", range(20))
def test_a_matrix_of_no_vectors_is_refused(seed):
    """Any Gram matrix with its smallest eigenvalue pushed below zero by a thousandth of the largest, or more."""
    vectors = torch.linalg.qr(torch.randn(4, 4, generator=generator(seed), dtype=torch.float64))[0]
    values = torch.rand(4, generator=generator(seed + 1), dtype=torch.float64) + 0.1
    good = (vectors * values) @ vectors.T
    values[0] = -(10.0 ** -(seed % 4)) * float(values.max())
    refused({"gram": (vectors * values) @ vectors.T}, "not positive semi-definite.*smallest eigenvalue")
    effective_spectrum((good + good.T) / 2, [0.5, 0.5], 4.0, 4.0)


@pytest.mark.parametrize(
    "proportions", [[0.5, 0.4], [0.5, 0.51], [1.0, 1.0], [1.2, -0.2], [1.0, 0.0], [float("nan"), 0.5]]
)
def test_proportions_that_are_none_are_refused(proportions):
    refused({"proportions": proportions}, "`proportions` must (sum to 1|be a vector of positive)")


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan")])
def test_no_samples_are_refused(ratio):
    refused({"ratio": ratio}, "`ratio` must be positive", without=("effective_dynamics",))


@pytest.mark.parametrize("snr", [0.0, -1.0, float("inf"), float("nan")])
def test_no_snr_is_refused(snr):
    refused({"snr": snr}, "`snr` must be a positive number")


@pytest.mark.parametrize("size", [4, 20, 60])
def test_the_samples_asked_for_are_enough_for_the_snr(size):
    """Too few are refused with a number to pass; that number is accepted, and gives the stated precision."""

    def call(count: int):
        labels = torch.arange(count) % 2
        features = torch.randn(count, size, generator=generator(0), dtype=torch.float64)
        return mixture_statistics(torch.eye(2, size), features, labels)

    with pytest.raises(ValueError, match="too few samples to estimate the SNR") as error:
        call(4)
    wanted = int(str(error.value).split("at least ")[1].split()[0])
    found = call(3 * wanted)
    assert found.snr_se / found.snr <= 0.1
