"""A tap without an optimizer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fisheropt.statistics import Statistic
from fisheropt.taps.data import Observation
from fisheropt.taps.sample import SampleTap


def observe(
    model: nn.Module,
    statistic: Statistic,
    parameters: list[str] | None = None,
    *,
    sample: Observation = "sequence",
    contraction: Mapping[str, str] | None = None,
) -> SampleTap:
    """Collect a statistic of per-sample gradients during the ordinary backward.

    Σₙ φ(hₙ) over all samples of all backward passes, hₙ being what sample n contributes to `p.grad`. With sample="token" the
    observations are positions, hₙₜ being what position t of sample n contributes through every layer: the gradient that
    the position's own copy of the weights would have, and where no operation mixes positions that of the token's own loss.

    Args:
        model: any module. Its forward stays as it is; `p.grad` is the same to rounding, as layers form it with the statistic.
        statistic: `Trace()`, `SecondMoment()`, `Kronecker()`, `FullCovariance()`, `Projection(...)` or `Gram()`. A penalty on
            gradients (`create_graph=True`) has no share in it.
        parameters: names of the parameters to observe; all trainable ones if left out.
        sample: what one observation is: "sequence" for all that stands at one index of the first axis, "token" for one
            position of the first two axes [samples, tokens, ...], which every observed layer must keep apart.
        contraction: the way that is to be taken for a parameter, by its name, in place of the cheapest: one of those that
            `explain(model, x)` lists for it.

    Returns:
        The tap, also a context manager: `tap.covariance(param)`, `tap.read(param)`, `tap.clear()`, `tap.remove()`, and
        `tap.ignore(mask)` for padding.

    Raises:
        ValueError: for an unknown name, a trainable parameter that has no route, or of sample="token" one whose layer
            mixes positions.

    Reference: eschenhagen2023kronecker
    """
    chosen: dict[str, Tensor] | None = None
    if parameters is not None:
        known = dict(model.named_parameters())
        unknown = [name for name in parameters if name not in known]
        if unknown:
            raise ValueError(f"observe(parameters={unknown}): the model's parameters are {list(known)}")
        chosen = {name: known[name] for name in parameters}
    if chosen == {} or not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"observe({type(model).__name__}, ...): no parameter to observe is trained; write model.requires_grad_(True), or "
            f"model.<parameter>.requires_grad_(True) for some"
        )
    if sample not in ("sequence", "token"):
        raise ValueError(f"observe(sample={sample!r}): write 'sequence', one sample of the first axis, or 'token'")
    tap = SampleTap(model, statistic, chosen, sample=sample)
    strange = [name for name in contraction or () if name not in tap.parameters]
    if strange:
        tap.remove()
        raise ValueError(f"observe(contraction=...) names {strange}; the tapped parameters are {list(tap.parameters)}")
    tap.channel.ways = dict(contraction or {})
    return tap
