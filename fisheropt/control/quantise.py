"""From a real-valued proposal to the batch size to use: a coarse ladder, and no step without a clear gain."""

import math


def quantise(
    previous: int,
    proposed: float,
    lo: int,
    hi: int,
    *,
    factor: float = math.sqrt(2.0),
    hysteresis: float = 0.75,
    multiple: int = 1,
) -> int:
    """Next batch size: `previous`, or the rung nearest to the proposal if that is clearly elsewhere.

    Rungs are the multiples of `multiple` nearest to multiple * factor^j. The size stays while
    |log(proposed/previous)| < hysteresis log(factor); it goes down as readily as up. A proposal at a bound
    takes that bound, as the wish beyond it is unknown.

    Args:
        previous: size in use.
        proposed: what a controller returned.
        lo: smallest size.
        hi: largest size.
        factor: ratio of neighbouring rungs; loses some per cent of efficiency at sqrt(2). Ours.
        hysteresis: width of the dead zone in rungs; above 1/2, or rounding alone would move the size. Ours.
        multiple: the number of ranks, so that shares are even.
    """
    _check(previous, proposed, lo, hi, factor, hysteresis, multiple)
    low, high = multiple * math.ceil(lo / multiple), multiple * (hi // multiple)
    if low > high:
        raise ValueError(
            f"quantise(lo={lo}, hi={hi}, multiple={multiple}): no multiple of {multiple} lies between the "
            "bounds; widen them or lower the number of ranks."
        )
    if proposed >= high or proposed <= low:
        return high if proposed >= high else low
    allowed = low <= previous <= high and previous % multiple == 0
    if allowed and abs(math.log(proposed / previous)) < hysteresis * math.log(factor):
        return previous
    rung = round(math.log(proposed / multiple) / math.log(factor)) if proposed > multiple else 0
    return min(max(multiple * round(factor**rung), low), high)


def _check(
    previous: int, proposed: float, lo: int, hi: int, factor: float, hysteresis: float, multiple: int
) -> None:
    if not (math.isfinite(proposed) and proposed > 0 and previous >= 1):
        raise ValueError(
            f"quantise(previous={previous}, proposed={proposed}): both have to be positive and finite; "
            "a controller returns the size in use where it knows nothing."
        )
    if not (1 <= lo <= hi and factor > 1.0 and hysteresis > 0.5 and multiple >= 1):
        raise ValueError(
            f"quantise(lo={lo}, hi={hi}, factor={factor}, hysteresis={hysteresis}, multiple={multiple}): "
            "needed is 1 <= lo <= hi, factor > 1, hysteresis > 0.5 and multiple >= 1."
        )
