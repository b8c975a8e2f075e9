"""Running means of matrices with the effective number of samples that they rest on, kept in a parameter group.

A group, and not an attribute, because pickle, deepcopy, DCP and FSDP2 keep nothing else.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fisheropt.optim.rows import Product


def start(group: dict[str, Any], key: str, zero: Tensor) -> None:
    """Put an empty running mean into the group."""
    group.setdefault(key, zero)
    group.setdefault(f"{key}_weight", 0.0)
    group.setdefault(f"{key}_weight_squared", 0.0)


def add(group: dict[str, Any], key: str, value: Tensor | Product, weight: float, decay: float) -> None:
    """M ← (bW M + w N)/(bW + w), with W ← bW + w and, for the effective number, W₂ ← b²W₂ + w.

    Args:
        group: the parameter group.
        key: of the running mean M in it.
        value: the new reading N; a product is formed within the mean.
        weight: w, its number of samples or degrees of freedom.
        decay: b in [0, 1], the factor by which all earlier samples count less.
    """
    kept = decay * group[f"{key}_weight"]
    if kept + weight == 0:
        return
    share = weight / (kept + weight)
    if isinstance(value, Product):
        group[key] = value.mixed(group[key], share)
    else:
        group[key] = group[key].to(value.device).lerp(value, share)
    group[f"{key}_weight"] = kept + weight
    group[f"{key}_weight_squared"] = decay**2 * group[f"{key}_weight_squared"] + weight


def growing(readings: float) -> float:
    """The decay at this reading by which weights grow linearly: early parameters are forgotten, the mean still settles."""
    return 1.0 - 1.0 / readings


def effective_count(group: dict[str, Any], key: str) -> float:
    """(Σw)²/Σw²: how many equally weighted samples the running mean is worth, B(1+b)/(1-b) in a steady run."""
    squared: float = group[f"{key}_weight_squared"]
    return group[f"{key}_weight"] ** 2 / squared if squared else 0.0
