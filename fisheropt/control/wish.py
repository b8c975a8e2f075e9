"""From the size that a rule wants to a proposal: within the bounds, and the step size for what lies beyond them."""

from fisheropt.control.base import LARGEST, Moment, Proposal, State


def granted(wanted: float, moment: Moment, lr: float = 0.0) -> tuple[float, float]:
    """The batch size b within the bounds nearest to b* = `wanted`, and the factor of the step size there.

    Where b* is more than the largest batch it is the step that falls, by b/(b eta + b* (1 - eta)), as in
    `matched_step`. With eta = 0 that keeps the temperature, eta'/b = eta/b*. A batch larger than b* keeps its step.

    Args:
        wanted: b*, positive.
        moment: with the bounds.
        lr: eta in [0, 1) of a step in a metric P ~ H^-1; 0 where the step is in other units.
    """
    wanted = min(wanted, LARGEST)
    size = moment.clip(wanted)
    return size, size / (size * lr + wanted * (1.0 - lr)) if wanted > size else 1.0


def unchanged(state: State, moment: Moment) -> Proposal:
    """The size in use and the factor in use, where nothing was learned."""
    return Proposal(moment.stay(), dict(state), state["lr_factor"])


def words(signal: float, noise: float, batch_size: float, lr_factor: float = 1.0) -> str:
    """What A is beside V/b, the noise of a batch, in a few words; and whether the step had to fall as well."""
    share = signal * batch_size / noise
    said = f"signal {share:.2g} of the noise" if share > 0.0 else "no signal seen in the noise"
    return said if lr_factor == 1.0 else f"{said}, at the largest batch"
