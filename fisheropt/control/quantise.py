"""From a real-valued proposal to the batch size to use: a coarse ladder, and no move without a clear gain."""

import math


def quantise(
    previous: int,
    proposed: float,
    lo: int,
    hi: int,
    *,
    factor: float = math.sqrt(2.0),
    hysteresis: float = 0.5,
    multiple: int = 1,
) -> int:
    """Next batch size: `previous`, or the rung nearest to the proposal if that is clearly nearer.

    Rungs are `multiple` times factor^j in whole numbers. With distances |log(size/proposed)| the size moves only
    if the rung is nearer by more than hysteresis log(factor): up and down alike, and not to and fro under small
    changes of the proposal. A proposal at a bound takes that bound, as the wish beyond it is unknown.

    Args:
        previous: size in use.
        proposed: what a controller returned.
        lo: smallest size.
        hi: largest size.
        factor: ratio of neighbouring rungs. Ours; sqrt(2) costs no efficiency that can be measured.
        hysteresis: the clear gain, in rungs. Ours.
        multiple: the number of ranks, so that shares are even.
    """
    _check(previous, proposed, lo, hi, factor, hysteresis, multiple)
    low, high = multiple * math.ceil(lo / multiple), multiple * (hi // multiple)
    if low > high:
        raise ValueError(
            f"quantise(lo={lo}, hi={hi}, multiple={multiple}): no multiple of {multiple} lies between the "
            "bounds; widen them or lower the number of ranks."
        )
    if not low < proposed < high:
        return low if proposed <= low else high
    exponent = round(math.log(proposed / multiple, factor))
    rungs = (multiple * round(factor ** (exponent + shift)) for shift in (-1, 0, 1))
    distances = {size: abs(math.log(size / proposed)) for size in (min(max(rung, low), high) for rung in rungs)}
    nearest = min(distances, key=distances.__getitem__)
    gain = abs(math.log(previous / proposed)) - distances[nearest]
    allowed = low <= previous <= high and previous % multiple == 0
    return previous if allowed and gain <= hysteresis * math.log(factor) else nearest


def _check(previous: int, proposed: float, lo: int, hi: int, factor: float, hysteresis: float, multiple: int) -> None:
    if not (math.isfinite(proposed) and proposed > 0 and previous >= 1):
        raise ValueError(
            f"quantise(previous={previous}, proposed={proposed}): both have to be positive and finite; "
            "a controller returns the size in use where it knows nothing."
        )
    if not (1 <= lo <= hi and factor > 1.0 and hysteresis >= 0.0 and multiple >= 1):
        raise ValueError(
            f"quantise(lo={lo}, hi={hi}, factor={factor}, hysteresis={hysteresis}, multiple={multiple}): "
            "needed is 1 <= lo <= hi, factor > 1, hysteresis >= 0 and multiple >= 1."
        )
