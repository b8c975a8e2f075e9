"""The gain of gain="running": one weight w a sample, in the iterate and in M alike.

    γ = bw/(Σbw + wd),    w = (n/(n + 10(d + b)))³,    M = Σbw M̂/Σbw

b is the batch size, d the number of parameters and n the samples seen since the gradient was last clear of its noise. With
every step measured that is recursive least squares: the iterate minimises the weighted sum of the quadratic models that each
batch gave of the loss. Equal weights cost no variance, but keep what was said far from the optimum, where the model is no
quadratic; hence the rise. Where samples return, each epoch k after the first has one weight, k⁴ times the mean of the
first's, so that at its end every sample counts as much as any other and the noise of the order of samples cancels. The
constants are ours (docs/design.md has the numbers).

Reference: bercu2020efficient, ljung1983theory
"""

from __future__ import annotations

from fisheropt.optim.group import Group
from fisheropt.optim.metrics.schedule import SOON
from fisheropt.optim.metrics.structure import InMetric

NAMES = ("constant", "running")
_NEAR = 0.5  # of what is far
_FAR = 4.0  # ‖ĝ‖²_P in units of its noise V/b, above which the fit is still travelling
_SURE = 4.75  # standard normal deviations: of a million gradients of pure noise one is taken for travelling
_RISE, _STAIRS = 3, 4


def fresh() -> Group:
    """The state of a group before any step.

    Σbw, Σbw², the mean weight of the first epoch, the weight of the last reading, after how many samples the gradient was
    last clear of its noise, and one sample's noise when it was last asked for.
    """
    zero = ("total", "squared", "unit", "read", "from", "noise")
    return {f"gain_{name}": 0.0 for name in zero}


def check(data_size: int | None) -> None:
    """Refuse a number of samples that is none."""
    if data_size is not None and (isinstance(data_size, bool | str) or data_size < 1):
        raise ValueError(f"data_size={data_size!r} must be None or the samples of an epoch; write len(dataset)")


def weight(group: Group, dimension: int) -> float:
    """The weight w of the batch at hand, in which samples of earlier epochs count as seen.

    Args:
        group: the parameter group.
        dimension: d.
    """
    samples, batch, size = float(group["samples"]), float(group["count"]), group["data_size"]
    epoch = int(samples // size) if size else 0
    if epoch:
        unit = group["gain_unit"] or group["gain_total"] / samples
        if unit:
            return float(unit * (epoch + 1) ** _STAIRS)
    seen = samples - group["gain_from"] + batch
    return float((seen / (seen + SOON * (dimension + batch))) ** _RISE)


def decay(group: Group, dimension: int) -> float:
    """By what factor earlier readings of M count less at this one."""
    return min(1.0, group["gain_read"] / weight(group, dimension))


def read(group: Group, dimension: int, seen: InMetric | None) -> None:
    """Remember the weight of a reading; begin anew where its gradient is clear of its noise.

    Args:
        group: the parameter group.
        dimension: d.
        seen: the reading in the metric.
    """
    if seen is not None and seen.squared > far(dimension) * seen.noise:
        group.update(gain_total=0.0, gain_squared=0.0, gain_from=group["samples"])
    if seen is not None:
        group["gain_noise"] = seen.noise * group["count"]
    group["gain_read"] = weight(group, dimension)


def near(group: Group, dimension: int, squared: float) -> bool:
    """Whether a gradient seems clear of its noise, by what that was when last asked for, so that it is asked for now.

    Args:
        group: the parameter group.
        dimension: d.
        squared: ‖ĝ‖²_P.
    """
    limit = _NEAR * far(dimension) * group["gain_noise"]
    return group["gain"] == "running" and bool(squared * group["count"] > limit)


def take(group: Group, dimension: int) -> float:
    """γ of the step at hand, whose batch is then counted; 1 for gain="constant".

    The d in it is for the start: before d samples were seen, the noise of a Newton step exceeds what it can gain.
    """
    if group["gain"] == "constant":
        return 1.0
    own, batch = weight(group, dimension), float(group["count"])
    if group["data_size"] and group["samples"] >= group["data_size"]:
        group["gain_unit"] = group["gain_unit"] or group["gain_total"] / group["samples"]
    group["gain_total"] += batch * own
    group["gain_squared"] += batch * own**2
    return float(batch * own / (group["gain_total"] + own * dimension))


def distinct(group: Group) -> float:
    """How many equally weighted samples the iterate rests on, (Σbw)²/Σbw² with gain="running"; no more than there are."""
    running = group["gain"] == "running" and group["gain_squared"]
    seen = group["gain_total"] ** 2 / group["gain_squared"] if running else group["samples"]
    return min(float(seen), float(group["data_size"] or "inf"))


def far(dimension: int) -> float:
    """What noise alone, χ²_d/d in d dimensions, all but never exceeds; by Wilson and Hilferty's cube."""
    spread = 2 / (9 * dimension)
    return max(_FAR, (1 - spread + _SURE * spread**0.5) ** 3)
