"""NF-B3 to NF-B6: probes are unbiased, vary as said, and only with the weight √p."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fisheropt import FisherMetric
from fisheropt.likelihoods import Categorical, Likelihood
from fisheropt.theory.estimator_quality import diagonal_cv
from recipes.studies.base import Finding, Findings, Study, StudyError, Tell
from recipes.studies.metric_networks import Case, case


@final
@dataclass(frozen=True)
class WeightP(Likelihood):
    """The mutation of NF-B5: p in place of its root."""

    def factor(self, logits: Tensor, signs: Tensor) -> Tensor:
        p = logits.softmax(-1)
        u = p * signs
        return u - p * u.sum(-1, keepdim=True)


@final
class MetricProbes(Study):
    """Thousands of probes of a trained network with four classes, beside its exact Fisher matrix.

    Args:
        probes: T.
        points: N, where F is measured.
        epochs: of training.
        hidden: width of the two hidden layers.
        seed: of data, network and probes.
    """

    title: ClassVar[str] = "Probes of a Fisher matrix"
    question: ClassVar[str] = (
        "Is the mean over Rademacher probes the Fisher matrix, within the errors predicted for it? Does any entry of its "
        "diagonal vary by more than √2? And what becomes of it with p in place of √p for the weight?"
    )
    reference: ClassVar[str] = "after sun2025; NF-B3, NF-B4, NF-B5, NF-B6, NF-14"

    def __init__(
        self, probes: int = 40_000, points: int = 64, epochs: int = 60, hidden: int = 24, seed: int = 0
    ) -> None:
        if probes < 100 or not 2 <= points <= 1024:
            raise StudyError(
                f"probes={probes}, points={points}: write probes=40000 (100 or more) and points=64 (2 to 1024)"
            )
        self.probes, self.points, self.epochs, self.hidden, self.seed = probes, points, epochs, hidden, seed

    def run(self, tell: Tell) -> Findings:
        """The exact matrix, then probes of three kinds."""
        network = case(4, self.epochs, self.points, self.seed, self.hidden)
        rows = network.rows()
        fisher = rows.square().sum(0)
        tell(0.1, "exact rows")
        findings = [*self._probes(network, rows, fisher, tell), *self._mutated(network, fisher), _three_forms(network)]
        tell(1.0, "mutation")
        return Findings(tuple(findings))

    def _metric(self, network: Case, likelihood: Likelihood, probe: str) -> FisherMetric:
        settings: Any = {"num_probes": self.probes, "probe": probe, "seed": self.seed}
        return FisherMetric(network.model, likelihood, reduction="sum", **settings).update(network.x)

    def _probes(self, network: Case, rows: Tensor, fisher: Tensor, tell: Tell) -> list[Finding]:
        alive = fisher > 1e-9 * fisher.max()
        findings: list[Finding] = []
        for number, (probe, kurtosis) in enumerate((("rademacher", 1.0), ("gaussian", 3.0))):
            metric = self._metric(network, Categorical(), probe)
            exact = diagonal_cv(rows, kurtosis=kurtosis)[alive]
            ratio = _flat(metric.diagonal())[alive] / fisher[alive]
            trace, true = metric.trace(), float(fisher.sum())
            findings += _unbiased(probe, (ratio - 1).abs() / exact * math.sqrt(self.probes))
            findings.append(_trace(probe, trace.value / true, trace.error / true))
            measured = _flat(metric.coefficient_of_variation().measured)[alive] * math.sqrt(self.probes)
            findings += self._variation(probe, exact, measured)
            tell(0.1 + 0.3 * (number + 1), probe)
        return findings

    def _variation(self, probe: str, exact: Tensor, measured: Tensor) -> list[Finding]:
        name, limit = f"B4, {probe}:", math.sqrt(2)
        least, most = (0.93, 1.41) if probe == "rademacher" else (1.37, 1.48)
        far = limit * (1 + 10 / math.sqrt(self.probes))
        return [
            Finding.between(f"{name} largest exact CV of an entry", float(exact.max()), None, limit * (1 + 1e-12)),
            Finding.told(f"{name} smallest exact CV of an entry", float(exact.min()), expected=least),
            Finding.near(f"{name} mean CV over the probes", float(measured.mean()), float(exact.mean()), relative=0.05),
            Finding.between(f"{name} largest CV over the probes", float(measured.max()), None, far, expected=most),
        ]

    def _mutated(self, network: Case, fisher: Tensor) -> list[Finding]:
        trace = self._metric(network, WeightP(), "rademacher").trace()
        ratio, error = trace.value / float(fisher.sum()), trace.error / float(fisher.sum())
        return [
            Finding.between(
                "B5: trace with the weight p, over the true one", ratio, 0.15, 0.5, expected=".20 to .43", error=error
            ),
            Finding.between("B5: the same, its distance from one in standard errors", (1 - ratio) / error, 5.0, None),
        ]


def _unbiased(probe: str, far: Tensor) -> list[Finding]:
    """From deviations of the entries, in predicted standard errors."""
    count, beyond = len(far), float((far > 2).double().mean())
    return [
        Finding.between(
            f"B3, {probe}: largest deviation of an entry, in predicted standard errors",
            float(far.max()),
            None,
            5.0,
            remark=f"of {count} entries; the document's 3 is for one",
        ),
        Finding.near(
            f"B3, {probe}: share of entries beyond two standard errors",
            beyond,
            0.0455,
            absolute=0.04,
            remark="entries are correlated",
        ),
    ]


def _trace(probe: str, ratio: float, error: float) -> Finding:
    what = f"B3, {probe}: trace over the exact one"
    return Finding.near(what, ratio, 1.0, absolute=3 * error, error=error, remark="accepted: three of its own errors")


def _flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def _three_forms(network: Case) -> Finding:
    """u pulled back, and the gradients of Σ √p.detach() log p ξ and of Σ 2 exp(log p/2) ξ."""
    generator = torch.Generator().manual_seed(0)
    logits = network.model(network.x)
    signs = torch.randint(0, 2, logits.shape, generator=generator).to(logits.dtype) * 2 - 1
    parameters = list(network.model.parameters())
    log_p = logits.log_softmax(1)
    scalars = ((log_p / 2).exp().detach() * log_p * signs).sum(), (2 * (log_p / 2).exp() * signs).sum()
    u = Categorical().factor(logits.detach(), signs)
    pulled = torch.autograd.grad(logits, parameters, u, retain_graph=True)
    found = [torch.autograd.grad(scalar, parameters, retain_graph=True) for scalar in scalars]
    scale = max(float(g.abs().max()) for g in pulled)
    worst = max(float((a - b).abs().max()) for other in found for a, b in zip(pulled, other, strict=True))
    return Finding.between("B6: largest difference of the three forms, same signs", worst / scale, None, 1e-13)
