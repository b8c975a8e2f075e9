"""Do 95 % intervals cover in 95 % of data sets when the model is false, and after a single training pass?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisheropt import GodambeSGD
from fisheropt.inference import SandwichCovariance, sandwich
from fisheropt.theory.sandwich import CORRECTIONS, Correction
from recipes import drawing
from recipes.studies.base import Finding, Findings, Picture, Study, StudyError, Tell
from recipes.studies.inference_sets import KINDS, Sets, covered, wrong_link

_BLOCK = 50
_OWN = "optimizer.sandwich()"
_HALF = "half-width against HC3 at the optimum"
_NAMES = {None: "H⁻¹/n", **{correction: correction for correction in CORRECTIONS}}

Seen = dict[str, list[tuple[Tensor, Tensor]]]


class Coverage(NamedTuple):
    """Share of intervals that held the truth, and its standard error over data sets."""

    share: float
    error: float


@final
class InferenceCoverage(Study):
    """Coverage at n = 50 d.

    Args:
        d: parameters.
        sets: data sets of each kind for the intervals at the optimum, in a batch.
        passes: data sets for the training passes, one at a time by the public functions.
        lengths: samples of a training pass, in units of d.
        batches: minibatches of a training pass.
        seed: of the data.
    """

    title: ClassVar[str] = "Coverage of intervals"
    question: ClassVar[str] = (
        "How often do 95 % intervals hold the parameters that fit best, at n = 50 d, where the model is false: a linear "
        "model with growing noise, overdispersed counts, and a logistic regression with the wrong link? And how often "
        "when the model saw the data in one pass of GodambeSGD?"
    )
    reference: ClassVar[str] = "white1982maximum, mackinnon1985some"

    def __init__(
        self,
        d: int = 8,
        sets: int = 2000,
        passes: int = 2000,
        lengths: tuple[int, ...] = (50, 500),
        batches: int = 50,
        seed: int = 0,
    ) -> None:
        if d < 2 or sets < 10 or passes < 10 or min(lengths) * d < 2 * batches:
            raise StudyError(
                f"InferenceCoverage(d={d}, sets={sets}, passes={passes}, lengths={lengths}, batches={batches}): needs "
                f"d >= 2, ten data sets and two samples a batch; write d=8, sets=2000, passes=2000, lengths=[50, 500]"
            )
        self.d, self.sets, self.passes = d, sets, passes
        self.lengths, self.batches, self.seed = tuple(lengths), batches, seed

    def run(self, tell: Tell) -> Findings:
        rows, seen = [], {}
        for index, (name, make) in enumerate(KINDS.items()):
            tell(0.15 * index, name)
            seen[name] = self._at_the_optimum(make)
            rows += [self._row(name, correction, coverage) for correction, coverage in seen[name].items()]
        for index, length in enumerate(self.lengths):
            tell(0.45 + 0.5 * index / len(self.lengths), f"one pass over {length} d samples")
            rows += self._after_one_pass(length * self.d)
        return Findings(tuple(rows), (_picture(seen),))

    def _at_the_optimum(self, make: Callable[..., Sets]) -> dict[Correction | None, Coverage]:
        generator = torch.Generator().manual_seed(self.seed)
        held: dict[Correction | None, list[Tensor]] = {correction: [] for correction in (None, *CORRECTIONS)}
        for size in _blocks(self.sets):
            sets = make(size, 50 * self.d, self.d, generator)
            theta = sets.fits()
            for correction, shares in held.items():
                shares.append(covered(sets, theta, correction))
        return {correction: _coverage(torch.cat(shares)) for correction, shares in held.items()}

    def _row(self, name: str, correction: Correction | None, coverage: Coverage) -> Finding:
        what = f"{name}: {_NAMES[correction]}"
        if correction != "HC3":
            return Finding.told(what, coverage.share, error=coverage.error, expected=0.95)
        return Finding.between(what, coverage.share, 0.94, 0.96, error=coverage.error, expected=0.95)

    def _after_one_pass(self, n: int) -> list[Finding]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        seen: Seen = {}
        for _ in range(self.passes):
            data = wrong_link(1, n, self.d, generator)
            for name, fit in self._fits(data).items():
                seen.setdefault(name, []).append(_flat(fit))
        truth = data.truth
        best = torch.stack([error for _, error in seen["Newton step, HC3"]]).mean()
        return [self._pass_row(n, name, pairs, truth, float(best)) for name, pairs in seen.items()]

    def _fits(self, data: Sets) -> dict[str, SandwichCovariance]:
        """Four ways to an interval after the same pass."""
        x, y = data.x[0, :, 1:], data.y[0, :, None]
        model, opt = self._trained(x, y)
        near: dict[str, Any] = {"correction": "HC3", "tolerance": math.inf}
        named = dict(model.named_parameters())
        group = opt.param_groups[0]
        return {
            "moments of the pass": SandwichCovariance.of_moments(
                named, group["information"], group["covariance"], len(x)
            ),
            _OWN: opt.sandwich(),
            "second look, HC3": sandwich(model, [(x, y)], data.likelihood, **near),
            "Newton step, HC3": sandwich(model, [(x, y)], data.likelihood, one_step=True, **near),
        }

    def _trained(self, x: Tensor, y: Tensor) -> tuple[nn.Linear, GodambeSGD]:
        model = nn.Linear(x.shape[1], 1, dtype=torch.float64)
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        opt = GodambeSGD(model, lr=1.0, gain="running", likelihood="bernoulli", every=1)
        for inputs, targets in zip(x.chunk(self.batches), y.chunk(self.batches), strict=True):
            F.binary_cross_entropy_with_logits(model(inputs), targets).backward()
            opt.step()
            opt.zero_grad()
        return model, opt

    def _pass_row(self, n: int, name: str, pairs: list[tuple[Tensor, Tensor]], truth: Tensor, best: float) -> Finding:
        order = torch.cat((truth[1:], truth[:1]))
        estimates, errors = (torch.stack(column) for column in zip(*pairs, strict=True))
        coverage = _coverage(((estimates - order).abs() <= 1.959964 * errors).double().mean(1))
        bias = float((estimates.mean(0) - order).norm() / errors.square().mean(0).sum().sqrt())
        spread = float(((estimates - order).square().mean(0).sum() / errors.square().mean(0).sum()).sqrt())
        remark = (
            f"rms error {spread:.2f} and bias {bias:.2f} of the standard errors; "
            f"{_HALF} {float(errors.mean()) / best:.2f}"
        )
        what = f"one pass, n = {n}: {name}"
        if name.startswith("Newton") or name == _OWN:
            return Finding.between(what, coverage.share, 0.94, 0.96, error=coverage.error, expected=0.95, remark=remark)
        return Finding.told(what, coverage.share, error=coverage.error, expected=0.95, remark=remark)


def _blocks(count: int) -> Iterator[int]:
    """Block sizes that stay within the processor's cache."""
    for start in range(0, count, _BLOCK):
        yield min(_BLOCK, count - start)


def _coverage(shares: Tensor) -> Coverage:
    return Coverage(float(shares.mean()), float(shares.std() / len(shares) ** 0.5))


def _flat(fit: SandwichCovariance) -> tuple[Tensor, Tensor]:
    errors = torch.cat([error.flatten() for error in fit.standard_errors().values()])
    return fit.estimate, errors


def _picture(seen: dict[str, dict[Correction | None, Coverage]]) -> Picture:
    def draw(axes: Any) -> None:
        axes.axhspan(0.94, 0.96, color="0.9")
        for index, (name, found) in enumerate(seen.items()):
            places = [place + 0.12 * (index - 1) for place in range(len(found))]
            shares = [coverage.share for coverage in found.values()]
            errors = [1.96 * coverage.error for coverage in found.values()]
            axes.errorbar(places, shares, errors, fmt="o", markersize=4, color=drawing.SERIES[index], label=name)
        axes.set_xticks(range(len(_NAMES)), list(_NAMES.values()))
        axes.set_ylabel("share of intervals that cover")
        axes.legend(fontsize=8)

    return Picture(
        "Coverage of 95 % intervals at the optimum",
        "The grey band is 94 to 96 %; bars are 95 % intervals of the simulation itself.",
        draw,
    )
