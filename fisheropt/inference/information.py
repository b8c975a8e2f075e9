"""White's information test, with its null law drawn from the fitted model.

The textbook χ² of the information matrix test rejects true models far too often at moderate n, so the law
of its statistics under the model is taken from fits to data drawn from it. The model is linearised at its parameters, which
is exact for generalised linear models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.inference.heads import draw, profiled
from fisheropt.inference.scores import Linear, Scores, output_factor, output_scores
from fisheropt.likelihoods import Likelihood
from fisheropt.theory.sandwich import InformationGaps, information_gaps

_STEPS = 3
_LARGEST = 1 << 26
_LOST = 0.1


@final
@dataclass(frozen=True)
class InformationTest:
    """Whether G = H, as it is where the model is true.

    Args:
        dimension: tr(H⁻¹G), the number of parameters where the model is true and many samples were seen.
        expected: its mean over data sets drawn from the fitted model.
        distance: ‖H^(-1/2) G H^(-1/2) - I‖²_F, which sees every departure, though each less well.
        expected_distance: its mean over the drawn data sets.
        p_dimension: two-sided p-value of the first, studentised.
        p_distance: one-sided p-value of the second.
        p_value: of both together: the share of data sets whose smaller p-value is as small.
        draws: data sets drawn; a p-value is a multiple of 1/(draws + 1).
    """

    dimension: float
    expected: float
    distance: float
    expected_distance: float
    p_dimension: float
    p_distance: float
    p_value: float
    draws: int

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "H and G differ: rely on the sandwich" if self.p_value < 0.05 else "no difference of H and G is seen"
        return (
            f"Information test: tr(H⁻¹G) = {self.dimension:.4g}, {self.expected:.4g} expected of the model "
            f"(p = {self.p_dimension:.3g}); distance {self.distance:.4g}, {self.expected_distance:.4g} expected "
            f"(p = {self.p_distance:.3g}); p = {self.p_value:.3g} from {self.draws} draws: {verdict}."
        )


@final
@dataclass(frozen=True, eq=False)
class Refit:
    """The fit to be repeated on data drawn from the model.

    Args:
        scores: the model and its data, at the estimate.
        basis: of the identified directions [d, r].
    """

    scores: Scores
    basis: Tensor

    def test(self, draws: int, seed: int) -> InformationTest:
        """The test with `draws` data sets."""
        call = f"fit.information_test(draws={draws!r})"
        if draws < 19:
            raise ValueError(f"{call}: a p-value of .05 needs 19 draws at least; write draws=199")
        linear, head = self._linear(call), self.scores.objective
        assert isinstance(head, Likelihood)
        seen = refitted_gaps(head, linear)
        head = profiled(head, linear.logits, linear.targets)
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for _ in range(draws):
            gaps = refitted_gaps(head, linear._replace(targets=draw(head, linear.logits, generator)))
            if all(value == value for value in gaps):
                drawn.append(gaps)
        if not all(value == value for value in seen) or len(drawn) < (1 - _LOST) * draws:
            raise ValueError(
                f"{call}: {draws - len(drawn)} of the {draws} data sets drawn from the model have no finite fit; there "
                f"are too few samples for so many parameters"
            )
        return _outcome(torch.tensor([seen, *drawn], dtype=torch.float64))

    def _linear(self, call: str) -> Linear:
        n, r = self.scores.samples, self.basis.shape[1]
        if n * r > _LARGEST:
            raise ValueError(
                f"{call}: {n} samples times {r} directions are too many to be fitted again and again; write "
                f"sandwich(..., parameters=[...]) with fewer parameters, or take a part of the data"
            )
        linear = self.scores.linearised()
        return linear._replace(jacobian=linear.jacobian @ self.basis)


def refitted_gaps(likelihood: Likelihood, linear: Linear) -> InformationGaps:
    """The gaps between G and H after Newton steps to the optimum; NaN where there is none.

    Args:
        likelihood: of the logits; a free scale is fitted too.
        linear: logits near the optimum, their Jacobian in identified directions, and the labels.
    """
    start, delta = linear.logits, linear.jacobian.new_zeros(linear.jacobian.shape[-1])
    for step in range(_STEPS + 1):
        logits = start + (linear.jacobian @ delta).reshape(start.shape)
        fitted = profiled(likelihood, logits, linear.targets)
        cotangent, _ = output_scores(fitted, logits, linear.targets)
        scores = torch.einsum("nk,nkr->nr", cotangent, linear.jacobian)
        roots = output_factor(fitted, logits).mT @ linear.jacobian
        rows = roots.flatten(0, 1)
        lower, failed = torch.linalg.cholesky_ex((rows.mT @ rows) / len(start))
        if bool(failed) or not bool(lower.isfinite().all()):
            return InformationGaps(*(float("nan"),) * 3)
        if step < _STEPS:
            delta = delta - torch.cholesky_solve(scores.mean(0)[:, None], lower)[:, 0]
    return information_gaps(scores, roots)


def _outcome(gaps: Tensor) -> InformationTest:
    """The test from the gaps of the data, first, and of the draws [draws + 1, 3]."""
    count = len(gaps)
    distance, ratio = gaps[:, 1], gaps[:, 2]
    below = (ratio[:, None] >= ratio).sum(1) / count
    above = (ratio[:, None] <= ratio).sum(1) / count
    two_sided = (2 * torch.minimum(below, above)).clamp_max(1)
    one_sided = (distance[:, None] <= distance).sum(1) / count
    smaller = torch.minimum(two_sided, one_sided)
    mean = gaps[1:].mean(0)
    return InformationTest(
        dimension=float(gaps[0, 0]),
        expected=float(mean[0]),
        distance=float(gaps[0, 1]),
        expected_distance=float(mean[1]),
        p_dimension=float(two_sided[0]),
        p_distance=float(one_sided[0]),
        p_value=float((smaller <= smaller[0]).double().mean()),
        draws=count - 1,
    )
