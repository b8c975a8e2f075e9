"""MS-T4: outliers along training; the Hessian keeps them, the information matrix loses them."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from fisheropt.theory.dynamics import EffectiveDynamics, effective_dynamics
from fisheropt.theory.spectrum import Kind
from fisheropt.theory.transitions import Transitions, spectral_transitions
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Study, Tell
from recipes.studies.spectra_ratios import Curves, Seen, picture
from recipes.studies.spectra_samples import SEPARATED, Setting, mean_and_error, orthonormal, random_head, sampled

NODES = 500_000
"""Resolves soft edges as the document's nodes did, out to a probability of 2e-6 (found by matching T4b)."""
TWO, THREE = (0.5, 0.5), (0.4, 0.35, 0.25)
HESSIAN = {0.0: (2.80, 2.79), 6.0: (2.62, 1.94), 16.0: (2.31, 1.27)}
INFORMATION = {0.0: (2.68, 2.61), 4.0: (1.68, 1.04), 6.0: (1.34,), 10.0: (1.04,)}
RATIO, DURATION = 4.0, 20.0
VISIBLE = 1.01
_UNKNOWN = (
    "the document gives neither start, proportions nor block; none of 144 combinations that we tried has both its times"
)


class Paths(NamedTuple):
    """Transitions of Hessian, information with the document's nodes, in the limit, and at the samples drawn here."""

    hessian: Transitions
    nodes: Transitions
    limit: Transitions
    finite: Transitions


@final
class SpectraTransitions(Study):
    """The dynamical transitions of MS-T4.

    Args:
        dimension: d of the sampled matrices.
        draws: sampled matrices a time.
        times: at which matrices are sampled, below 20.
        seed: of the samples.
    """

    title: ClassVar[str] = "Outliers along training"
    question: ClassVar[str] = (
        "Softmax regression is trained by one-pass SGD, and matrices are formed from fresh samples. Which of their "
        "outliers stay? Predicted along the ODE of the summary statistics, and sampled."
    )
    reference: ClassVar[str] = "after benarous2025local, MS-T4"

    def __init__(
        self, dimension: int = 400, draws: int = 4, times: tuple[float, ...] = (0, 2, 4, 6, 10, 16), seed: int = 0
    ) -> None:
        require(dimension >= 20, f"dimension={dimension}", "dimension=400, 20 or more")
        require(draws >= 2, f"draws={draws}", "draws=4, two or more")
        require(all(0 <= t <= DURATION for t in times), f"times={list(times)}", f"times from 0 to {DURATION:g}")
        self.dimension, self.draws, self.seed = dimension, draws, seed
        self.times = tuple(float(t) for t in times)

    def run(self, tell: Tell) -> Findings:
        """Two classes in detail, three classes, a low SNR."""
        generator = torch.Generator().manual_seed(self.seed)
        tell(0.0, "two classes")
        dynamics = _trained(torch.eye(4), TWO, 10.0, every=5)
        paths = Paths(
            spectral_transitions(dynamics, RATIO),
            *(
                spectral_transitions(dynamics, RATIO, kind="information", samples=samples)
                for samples in (NODES, None, self._count)
            ),
        )
        seen = {kind: self._sampled(dynamics, kind, generator, tell) for kind in ("hessian", "information")}
        rows = [*_ratios(paths), *_ends(paths, self._count)]
        rows += _beside("hessian", seen["hessian"], paths.hessian) + _beside(
            "information", seen["information"], paths.finite
        )
        tell(0.8, "three classes")
        rows += _three_classes() + _low_snr(random_head(800, 2, generator))
        curves = Curves(paths.hessian, paths.limit, paths.finite, self._count)
        return Findings(tuple(rows), (picture(curves, seen["hessian"], seen["information"]),))

    @property
    def _count(self) -> int:
        return round(RATIO * self.dimension)

    def _sampled(self, dynamics: EffectiveDynamics, kind: Kind, generator: torch.Generator, tell: Tell) -> list[Seen]:
        """The two largest eigenvalues of fresh matrices at the times, mean and standard error."""
        result = []
        for index, time in enumerate(self.times):
            tell(0.1 + 0.35 * (index / len(self.times) + (kind != "hessian")), f"{kind} at t = {time:g}")
            setting = _at(dynamics, time, self.dimension)
            tops = [sampled(setting, self._count, kind, 0, 2, generator).eigenvalues[:2] for _ in range(self.draws)]
            mean, error = mean_and_error(tops)
            assert error is not None
            result.append(Seen(time, mean, error))
        return result


def _trained(gram: Tensor, proportions: tuple[float, ...], snr: float, every: int) -> EffectiveDynamics:
    return effective_dynamics(gram, proportions, snr, duration=DURATION, c_delta=0.5, dt=0.1, every=every)


def _index(times: Tensor, time: float) -> int:
    return int((times - time).abs().argmin())


def _at(dynamics: EffectiveDynamics, time: float, dimension: int) -> Setting:
    """Columns in `dimension` dimensions with the Gram matrix of that time."""
    mixture = dynamics.mixture
    values, vectors = torch.linalg.eigh(dynamics.grams[_index(dynamics.times, time)])
    columns = torch.zeros(dimension, len(values), dtype=torch.float64)
    columns[: len(values)] = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    classes = mixture.classes
    return Setting(columns[:, classes:], columns[:, :classes], tuple(mixture.proportions.tolist()), mixture.snr)


def _ratios(paths: Paths) -> list[Finding]:
    """Outliers over edge at the document's times."""
    rows = []
    for label, path, table in (
        ("T4a: Hessian", paths.hessian, HESSIAN),
        ("T4b: information", paths.nodes, INFORMATION),
    ):
        for time, expected in table.items():
            at = _index(path.times, time)
            for j, value in enumerate(expected):
                what = f"{label}, outlier {j + 1} / edge at t = {time:g}"
                rows.append(Finding.near(what, float(path.ratios[at, j].nan_to_num(0.0)), value, relative=0.03))
    kept = int(paths.hessian.counts[_index(paths.hessian.times, 16.0)])
    return [*rows, Finding.near("T4a: Hessian, number of outliers at t = 16", kept, 2)]


def _ends(paths: Paths, count: int) -> list[Finding]:
    """When the information matrix has lost its last outlier: the later, the more samples reach into the tail."""
    what = "T4b: information, first time without an outlier"
    late = f"a matrix of {count} samples does not reach the tail of the limit's edge, and keeps an outlier for longer"
    return [
        Finding.near(f"{what}, document's nodes", _first_without(paths.nodes), 12.0, absolute=2.0,
                     remark="document: one at t = 10, none at t ≥ 14"),
        Finding.told(f"{what}, limit", _first_without(paths.limit), remark="without samples="),
        Finding.told(f"{what}, samples={count}", _word(_first_without(paths.finite)), remark=late),
    ]  # fmt: skip


def _first_without(path: Transitions, wanted: int = 0) -> float:
    """First time with at most `wanted` outliers, NaN if there is none."""
    times = path.times[path.counts <= wanted]
    return float(times[0]) if len(times) else float("nan")


def _word(time: float) -> float | str:
    return f"after t = {DURATION:g}" if time != time else time


def _beside(kind: str, seen: list[Seen], path: Transitions) -> list[Finding]:
    """Sampled eigenvalues beside the outliers predicted at their number of samples."""
    rows = []
    for time, mean, error in seen:
        spectrum = path.spectra[_index(path.times, time)]
        for j, expected in enumerate(spectrum.outliers.tolist()):
            what = f"T4: sampled {kind}, eigenvalue {j + 1} at t = {time:g}"
            top, chance = float(mean[j]), float(error[j])
            if expected > SEPARATED * spectrum.edge:
                rows.append(Finding.near(what, top, expected, relative=0.05, error=chance))
            else:
                rows.append(
                    Finding.told(what, top, expected=expected, error=chance, remark="at the edge: no tolerance")
                )
    return rows


def _three_classes() -> list[Finding]:
    dynamics = _trained(torch.eye(6), THREE, 10.0, every=10)
    hessian = spectral_transitions(dynamics, 2.0)
    visible = hessian.times[(hessian.ratios[:, 2] > VISIBLE)]
    information = spectral_transitions(dynamics, 2.0, kind="information", samples=NODES)
    counts = information.counts
    return [
        Finding.near("T4c: Hessian, outliers at t = 0", int(hessian.counts[0]), 3),
        Finding.near("T4c: Hessian, outliers at t = 20", int(hessian.counts[-1]), 2),
        Finding.near("T4c: Hessian, last time with a third 1 % above the edge", float(visible[-1]), 15.0, absolute=1.0),
        Finding.near("T4c: information, outliers at t = 0", int(counts[0]), 2),
        Finding.near("T4c: information, first time with one", _first_without(information, 1), 3.0, absolute=1.0,
                     remark=_UNKNOWN),
        Finding.near("T4c: information, first time with none", _first_without(information), 12.0, absolute=1.0,
                     remark=_UNKNOWN),
        Finding.near("T4c: information, most outliers gained between two times", int(counts.diff().max()), 0),
    ]  # fmt: skip


def _low_snr(head: Tensor) -> list[Finding]:
    """Below the Hessian's threshold the information matrix can have an outlier, early."""
    setting = Setting(orthonormal(len(head), 2), head, TWO, 0.6)
    dynamics = _trained(setting.gram, TWO, 0.6, every=10)
    information = spectral_transitions(dynamics, RATIO, kind="information")
    first = float(information.ratios[0, 0].nan_to_num(0.0))
    marginal = "marginal: it depends on the random start"
    return [
        Finding.near(
            "T4d: Hessian, most outliers at any time", int(spectral_transitions(dynamics, RATIO).counts.max()), 0
        ),
        Finding.near("T4d: information, outlier / edge at t = 0", first, 1.01, absolute=0.01, remark=marginal),
        Finding.near("T4d: information, most outliers from t = 2", int(information.counts[2:].max()), 0),
    ]
