"""What measuring is expected to cost an optimizer, agreed on by all ranks."""

from __future__ import annotations

import torch

from fisheropt.cost import machine
from fisheropt.statistics import JointStatistic
from fisheropt.taps import SampleTap
from fisheropt.taps.expected import expected, smallest_step
from fisheropt.taps.reduce import ranks, reduce_sum


def extra(tap: SampleTap, cubed: float) -> float:
    """What a measured step adds, in plain steps; 0 where no shapes are known, of the shortest way what learning takes alone.

    Seconds are summed over ranks before they are divided: batches of different shapes must not lead to different steps.

    Args:
        tap: after a forward that it has observed.
        cubed: operations that learning from a reading takes, for each entry of the cube of its number of directions.
    """
    channel, device = tap.channel, next(iter(tap.parameters.values())).device
    size = tap.statistic.rank(tap.parameters) if isinstance(tap.statistic, JointStatistic) else 0
    learning = machine(device.type).flop * cubed * size**3
    if not channel.shapes and not channel.parallel:
        return 0.0 if tap.direct is None else learning / smallest_step(device.type)
    times = torch.zeros(2, dtype=torch.float64, device=device)
    if channel.shapes:
        found = expected(
            tap.routes,
            channel.shapes,
            tap.statistic,
            tap.directions,
            device.type,
            likelihood=tap.likelihood is not None,
            by_token=channel.by_token,
            ways=channel.ways,
        )
        times = times.new_tensor([found.extra + learning, found.step])
    if channel.parallel and ranks() > 1:
        times = reduce_sum(times)
    measured, plain = times.tolist()
    return measured / plain if plain else 0.0
