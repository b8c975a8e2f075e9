"""A metric of two ranks' data: their sums make the metric of one process that saw all of it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fisheropt.metric import FisherMetric, summed

SHARES = (slice(0, 5), slice(5, 16))  # unequal, so that a mean of the ranks' readings is wrong


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def inputs() -> torch.Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def measured(variant: str, reduction: str, rows: slice, model: nn.Module | None = None) -> FisherMetric:
    metric = FisherMetric(
        network() if model is None else model, "categorical", variant, reduction=reduction, num_probes=4
    )
    for x in inputs()[rows].split(4):
        metric.update(x)
    return metric


def whole(own: FisherMetric, variant: str, reduction: str) -> FisherMetric:
    pooled = FisherMetric(network(), "categorical", variant, reduction=reduction, num_probes=4)
    pooled.load_state_dict(summed(own.state_dict()))
    return pooled


def child(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found: dict[str, Any] = {}
    for variant in ("exact", "hutchinson"):
        for reduction in ("mean", "sum"):
            own = measured(variant, reduction, SHARES[rank])
            pooled = whole(own, variant, reduction)
            found[f"{variant} {reduction}"] = (pooled.diagonal(), pooled.trace(), own.trace(), own.state_dict())
    found["logits of DDP"] = _trained()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _trained() -> list[float]:
    """Losses of training steps whose logits a metric reads before their backward, and of the same steps without it."""
    seen = []
    for watch in (True, False):
        model = DistributedDataParallel(network())
        metric = FisherMetric(model.module, "categorical")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for x in inputs().split(8):
            logits = model(x)
            if watch:
                metric.update(logits=logits)
            loss = nn.functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seen.append(float(loss.detach()))
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = str(tmp_path_factory.mktemp("ranks"))
    mp.spawn(child, args=(folder,), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_two_ranks_are_one_process_on_all_the_data(seen: list[dict[str, Any]], reduction: str) -> None:
    alone = measured("exact", reduction, slice(None))
    for found in seen:
        diagonal, trace, _, _ = found[f"exact {reduction}"]
        for name, value in alone.diagonal().items():
            torch.testing.assert_close(diagonal[name], value, rtol=1e-5, atol=1e-7)
        assert trace.value == pytest.approx(alone.trace().value, rel=1e-5)


def test_errors_of_ranks_add_up(seen: list[dict[str, Any]]) -> None:
    """The mean's error of 5 and 11 inputs is that of independent sums; degrees of freedom add."""
    _, first, one, _ = seen[0]["hutchinson mean"]
    _, second, two, _ = seen[1]["hutchinson mean"]
    assert first == second
    assert first.value == pytest.approx((5 * one.value + 11 * two.value) / 16, rel=1e-6)
    assert first.error == pytest.approx(((5 * one.error) ** 2 + (11 * two.error) ** 2) ** 0.5 / 16, rel=1e-6)
    assert first.dof == one.dof + two.dof


def test_a_metric_does_not_disturb_the_training_of_ddp(seen: list[dict[str, Any]]) -> None:
    for found in seen:
        watched, plain = found["logits of DDP"]
        assert watched == plain


def test_an_average_over_time_is_refused() -> None:
    metric = FisherMetric(network(), "categorical", ema=0.9)
    metric.update(inputs())
    metric.update(inputs())
    with pytest.raises(ValueError, match="ema=None"):
        summed(metric.state_dict())


def test_one_process_keeps_its_state() -> None:
    own = measured("hutchinson", "mean", slice(None))
    assert whole(own, "hutchinson", "mean").trace() == own.trace()
