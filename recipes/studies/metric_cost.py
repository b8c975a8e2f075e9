"""NF-B8: what probes cost beside a training step that shares its forward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, final

import torch
from torch import nn
from torch.nn import functional as F

from fisheropt import FisherMetric
from recipes.studies.base import Finding, Findings, Study, StudyError, Tell

EXPECTED = {1: 1.47, 4: 3.2}
REMARK = "depends on the machine; expected for two threads"


@final
class MetricCost(Study):
    """Processor time of steps with and without probes, taken in turns.

    Args:
        probes: numbers M of probes.
        repeats: steps of each kind; medians are compared.
        width: of the two hidden layers.
        batch: samples of a step.
        seed: of data and network.
    """

    title: ClassVar[str] = "Cost of a probe"
    question: ClassVar[str] = (
        "How much longer is a step of SGD with M probes of the Fisher matrix from its own logits? MLP 784-512-512-10, batch "
        "256, one thread; processor time, so that other work on the machine matters less."
    )
    reference: ClassVar[str] = "after sun2025; NF-B8"

    def __init__(
        self, probes: Sequence[int] = (1, 4), repeats: int = 40, width: int = 512, batch: int = 256, seed: int = 0
    ) -> None:
        if repeats < 3 or not probes or min(probes) < 1:
            raise StudyError(f"probes={list(probes)}, repeats={repeats}: write probes=[1, 4] and repeats=40")
        self.probes, self.repeats, self.width, self.batch, self.seed = list(probes), repeats, width, batch, seed

    def run(self, tell: Tell) -> Findings:
        """All kinds of steps in turns."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            steps = self._steps()
        seconds: dict[int, list[float]] = {m: [] for m in steps}
        for number in range(self.repeats):
            for m, step in steps.items():
                began = time.process_time()
                step()
                seconds[m].append(time.process_time() - began)
            tell((number + 1) / self.repeats, f"step {number + 1}")
        plain = statistics.median(seconds[0])
        rows = [Finding.told("milliseconds of a step", 1e3 * plain)]
        for m in self.probes:
            what = f"B8: a step with {m} probe{'s' * (m > 1)}, over one without"
            ratio = statistics.median(seconds[m]) / plain
            rows.append(Finding.between(what, ratio, None, 1 + 1.2 * m, expected=EXPECTED.get(m), remark=REMARK))
        return Findings(tuple(rows))

    def _steps(self) -> dict[int, Callable[[], None]]:
        width = self.width
        layers = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
        model = nn.Sequential(*layers)
        x, y = torch.randn(self.batch, 784), torch.randint(0, 10, (self.batch,))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step(metric: FisherMetric | None) -> None:
            logits = model(x)
            if metric is not None:
                metric.update(logits=logits)
            F.cross_entropy(logits, y).backward()
            optimizer.step()
            optimizer.zero_grad()

        metrics = {m: FisherMetric(model, "categorical", num_probes=m, ema=0.99) for m in self.probes}
        return {0: lambda: step(None)} | {m: _bound(step, metric) for m, metric in metrics.items()}


def _bound(step: Callable[[FisherMetric | None], None], metric: FisherMetric) -> Callable[[], None]:
    return lambda: step(metric)
