"""What an optimizer says about the fit: numbers with their uncertainty, and words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, final

from fisheropt.optim import running
from fisheropt.optim.group import Group, number


def plural(unit: str) -> str:
    """More than one sample or microbatch."""
    return "microbatches" if unit == "microbatch" else f"{unit}s"


@final
@dataclass(frozen=True)
class GroupReport:
    """One parameter group.

    Args:
        parameters: the number of scalars in it.
        unit: what one observation was, a sample or a microbatch.
        batch_size: the last number of samples a step.
        temperature: η/b, learning rate over batch size.
        count: the effective number of observations behind the estimates.
        dof: degrees of freedom of the noise covariance.
        noise_trace: tr G of one sample's gradient, in the measured directions.
        noise_trace_se: its standard error.
        signal: ‖∇L‖² in the same directions, unbiased, so that it may be negative.
        signal_se: its standard error.
        details: what this kind of optimizer adds.
    """

    parameters: int
    unit: str
    batch_size: float
    temperature: float
    count: float
    dof: float
    noise_trace: float
    noise_trace_se: float
    signal: float
    signal_se: float
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, flat and ready for JSON: None for what is not known yet."""
        numbers = {key: value for key, value in vars(self).items() if key != "details"} | self.details
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}

    def __str__(self) -> str:
        return (
            f"  noise tr G       {self.noise_trace:.4g} ± {self.noise_trace_se:.2g} "
            f"({self.dof:.0f} degrees of freedom, from {plural(self.unit)})\n"
            f"  signal |∇L|²     {self.signal:.4g} ± {self.signal_se:.2g}\n"
            f"  temperature η/b  {self.temperature:.4g} (batch size {self.batch_size:g}, counted in {plural(self.unit)})"
        )


@final
@dataclass(frozen=True)
class Report:
    """What `optimizer.report()` returns; print it, or log `.as_dict()`.

    Args:
        optimizer: the class.
        steps: taken.
        samples: seen, about: steps times the last batch size measured before each.
        measurements: steps whose noise was measured.
        skipped: steps not taken because a gradient or a statistic was not finite.
        verdict: what the noise says, in a sentence.
        advice: what to do about it.
        groups: one report a parameter group that has been measured.
        every: how many steps apart the first of them is measured, after the first steps.
        overhead: what that is expected to add to a step on average, by the work model; nan where no shapes are known.
    """

    optimizer: str
    steps: int
    samples: int
    measurements: int
    skipped: int
    verdict: str
    advice: tuple[str, ...]
    groups: tuple[GroupReport, ...]
    every: int = 0
    overhead: float = math.nan

    def as_dict(self) -> dict[str, Any]:
        """The report as nested dictionaries, lists, numbers and strings, ready for JSON."""
        plain = {key: value for key, value in vars(self).items() if key not in ("groups", "advice")}
        plain["overhead"] = None if math.isnan(self.overhead) else self.overhead
        return plain | {"advice": list(self.advice), "groups": [group.as_dict() for group in self.groups]}

    def __str__(self) -> str:
        head = f"{self.optimizer}: {self.steps} steps, noise measured on {self.measurements}, {self.skipped} skipped"
        if self.every and not math.isnan(self.overhead):
            head += f"; from now on every {self.every}, expected overhead {self.overhead:.1%}"
        return "\n".join(
            [head, f"  {self.verdict}", *(str(g) for g in self.groups), *(f"  → {a}" for a in self.advice)]
        )


def group_report(group: Group, unit: str, details: dict[str, Any]) -> GroupReport:
    """The report of one measured group.

    Args:
        group: with its running means.
        unit: what one observation was.
        details: what the optimizer adds.
    """
    dof = running.effective_count(group, "covariance")
    count, covariance = group["count"], group["covariance"]
    trace = float(covariance.trace() if covariance.ndim else covariance)
    square = float(covariance.square().sum())
    nan = float("nan")
    return GroupReport(
        parameters=sum(p.numel() for p in group["params"]),
        unit=unit,
        batch_size=count,
        temperature=number(group["lr"]) / count,
        count=running.effective_count(group, "information") or dof,
        dof=dof,
        noise_trace=trace if dof else nan,
        noise_trace_se=(2 * square / dof) ** 0.5 if dof else nan,
        signal=group["signal"],
        signal_se=(2 * square / (count * (count - 1))) ** 0.5 if dof and count > 1 else nan,
        details=details,
    )


def nothing_measured(observing: bool) -> tuple[str, tuple[str, ...]]:
    """Verdict and advice before any measurement."""
    if observing:
        return "Nothing was measured so far.", ("Take a step after a backward().",)
    return "The feature is off: this is plain SGD.", ()
