"""What a line of metrics.jsonl says: where the run is, how good it is, and what the gradient noise is."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from fisheropt import FisherOptimizer, monitor
from recipes.assemble import Parts
from recipes.problems import Problem

SPECTRUM = (
    "eigenvalues",
    "eigenvalues_se",
    "effective_eigenvalues",
    "lambda_star",
    "floor",
    "status",
    "dof",
    "noise_trace",
    "noise_trace_se",
    "signal",
    "signal_se",
    "effective_dimension",
    "effective_dimension_se",
    "damping",
)


def position(parts: Parts, step: int) -> dict[str, float]:
    """Where the run is, on every axis that a plot may want."""
    lr = float(parts.optimizer.param_groups[0]["lr"])
    size = parts.sampler.batch_size
    return {
        "train/step": step,
        "train/samples": parts.sampler.samples_seen,
        "train/epoch": parts.sampler.samples_seen / parts.samples,
        "train/lr": lr,
        "train/batch_size": size,
        "train/temperature": lr / size,
    }


def evaluation(problem: Problem, optimum: float | None) -> dict[str, float | None]:
    """The objective on all training data against its optimum, and the test data."""
    loss = problem.train_loss(problem.model)
    return {
        "train/loss": loss,
        **{f"train/{key}": value for key, value in above(loss, optimum).items()},
        "test/loss": problem.test_loss(problem.model),
        "test/accuracy": problem.accuracy(problem.model),
    }


def above(loss: float, optimum: float | None) -> dict[str, float | None]:
    """Suboptimality f - f* and (f - f*) / f*; None where f* is unknown, the quotient also where f* is 0."""
    if optimum is None:
        return {"suboptimality": None, "relative_suboptimality": None}
    gap = loss - optimum
    return {"suboptimality": gap, "relative_suboptimality": gap / optimum if optimum else None}


def noise(optimizer: Optimizer) -> dict[str, float]:
    """The flat noise record of an optimizer of ours; {} for others."""
    return {f"noise/{key}": value for key, value in monitor.record(optimizer).items()}


def spectrum(optimizer: Optimizer) -> dict[str, Any]:
    """Eigenvalues, thresholds and errors of the first parameter group, under one key; {} where not measured."""
    groups = (full_report(optimizer) or {"groups": []})["groups"]
    found = {key: groups[0][key] for key in SPECTRUM if groups and groups[0].get(key) is not None}
    return {"spectrum": found} if found else {}


def full_report(optimizer: Optimizer) -> dict[str, Any] | None:
    """opt.report().as_dict(), or None for an optimizer that has no report."""
    return optimizer.report().as_dict() if isinstance(optimizer, FisherOptimizer) else None


def smallest_information(problem: Problem) -> float | None:
    """The smallest eigenvalue of the Fisher information on all training samples; None for large models."""
    eigenvalues = problem.fisher(problem.model)
    return None if eigenvalues is None else max(float(eigenvalues[0]), 0.0)
