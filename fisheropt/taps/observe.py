"""A tap without an optimizer."""

from __future__ import annotations

from torch import Tensor, nn

from fisheropt.statistics import Statistic
from fisheropt.taps.sample import SampleTap


def observe(model: nn.Module, statistic: Statistic, parameters: list[str] | None = None) -> SampleTap:
    """Collect a statistic of per-sample gradients during the ordinary backward.

    Σₙ φ(hₙ) over all samples of all backward passes, hₙ being what sample n contributes to `p.grad`.

    Args:
        model: any module; its forward and backward stay as they are.
        statistic: `Trace()`, `SecondMoment()`, `FullCovariance()`, `Projection(...)`.
        parameters: names of the parameters to observe; all trainable ones if left out.

    Returns:
        The tap, also a context manager: `tap.covariance(param)`, `tap.read(param)`, `tap.clear()`, `tap.remove()`.

    Raises:
        ValueError: for an unknown name, or a trainable parameter that has no route.
    """
    chosen: dict[str, Tensor] | None = None
    if parameters is not None:
        known = dict(model.named_parameters())
        unknown = [name for name in parameters if name not in known]
        if unknown:
            raise ValueError(f"observe(parameters={unknown}): the model's parameters are {list(known)}")
        chosen = {name: known[name] for name in parameters}
    return SampleTap(model, statistic, chosen)
