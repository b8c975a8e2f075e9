"""Dynamical transitions: outliers of the effective spectra along a trajectory of the summary statistics."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisheropt.theory.dynamics import EffectiveDynamics
from fisheropt.theory.spectrum import Block, EffectiveSpectrum, Kind, effective_spectrum


@dataclass(frozen=True)
class Transitions:
    """Outliers along a trajectory.

    Attributes:
        times: [t].
        edges: [t].
        counts: [t], number of outliers.
        ratios: [t, m], outlier over edge, largest first; NaN where there is none.
        spectra: The spectrum at each time.
    """

    times: Tensor
    edges: Tensor
    counts: Tensor
    ratios: Tensor
    spectra: tuple[EffectiveSpectrum, ...]


def spectral_transitions(
    dynamics: EffectiveDynamics,
    ratio: float,
    *,
    times: Sequence[float] | Tensor | None = None,
    kind: Kind = "hessian",
    block: Block = 0,
    samples: int | None = None,
) -> Transitions:
    """Effective spectra at the recorded times nearest to `times` (all of them when omitted).

    The theory is for fresh data, so `ratio` counts the samples that form the matrix, not those trained on.

    Args:
        dynamics: From :func:`fisheropt.theory.dynamics.effective_dynamics`.
        ratio: phi of the matrix.
        times: Times in the trajectory.
        kind: "hessian" or "information".
        block: Class, or "full".
        samples: Samples that form the matrix, for the tail of the weights; None is the limit.

    Reference: benarous2025local
    """
    wanted = dynamics.times if times is None else torch.as_tensor(times, dtype=torch.float64)
    indices = (dynamics.times[:, None] - wanted).abs().argmin(0).tolist()
    mixture = dynamics.mixture
    spectra = tuple(
        effective_spectrum(
            dynamics.grams[i],
            mixture.proportions,
            mixture.snr,
            ratio,
            kind=kind,
            block=block,
            class_of=mixture.class_of,
            samples=samples,
        )
        for i in indices
    )
    counts = torch.tensor([len(spectrum.outliers) for spectrum in spectra])
    ratios = torch.full((len(spectra), max(1, int(counts.max()))), torch.nan, dtype=torch.float64)
    for row, spectrum in zip(ratios, spectra, strict=True):
        row[: len(spectrum.outliers)] = spectrum.outliers / spectrum.edge
    edges = torch.tensor([spectrum.edge for spectrum in spectra], dtype=torch.float64)
    return Transitions(dynamics.times[indices], edges, counts, ratios, spectra)
