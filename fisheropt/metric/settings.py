"""What a metric may be asked for."""

from __future__ import annotations

from fisheropt.metric.chance import PROBES


def check(probes: object, rank: int, probe: str, reduction: str, ema: float | None, keep: bool) -> None:
    """Refuse a setting outside its range, with the one to write instead.

    Raises:
        ValueError: for the first one that is.
    """
    counted = isinstance(probes, int) and probes >= 1
    allowed = [
        (probes == "all" or counted, f"num_probes={probes!r}", "num_probes=1 or more, or 'all'"),
        (rank >= 1, f"rank={rank!r}", "rank=1 or more"),
        (probe in PROBES, f"probe={probe!r}", "probe='rademacher' or 'gaussian'"),
        (reduction in ("mean", "sum"), f"reduction={reduction!r}", "reduction='mean' or 'sum'"),
        (ema is None or 0 <= ema < 1, f"ema={ema!r}", "ema=0.99, in [0, 1), or None"),
        (ema is None or not keep, f"ema={ema!r}, keep=True", "ema=None, as rows count all updates alike"),
    ]
    for fine, given, instead in allowed:
        if not fine:
            raise ValueError(f"FisherMetric(model, likelihood, {given}): write {instead}")
