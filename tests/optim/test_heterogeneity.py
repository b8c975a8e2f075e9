"""The between-rank component: by simulation, as a law of sums, and on two gloo ranks."""

from __future__ import annotations

import traceback
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import fisheropt
from fisheropt.theory import between
from fisheropt.theory.between import between_component, component_of, rank_sums

PATIENCE = timedelta(seconds=30)
NAMES = ("alike", "apart", "tracked")


def drawn(counts, k, component, generator, spread=1.0):
    """Means and covariances of ranks from g = a_r + e, Cov(a) = component I, Cov(e) = diag(1..2)²."""
    scales = torch.linspace(1, 2, k, dtype=torch.float64) * spread
    means, covariances = [], []
    for count in counts:
        effect = component**0.5 * torch.randn(k, generator=generator, dtype=torch.float64)
        x = torch.randn(count, k, generator=generator, dtype=torch.float64) * scales + effect
        means.append(x.mean(0))
        covariances.append(torch.cov(x.T).reshape(k, k))
    return torch.stack(means), torch.stack(covariances), torch.tensor(counts)


@pytest.mark.parametrize(
    ("counts", "k", "component"), [((12, 9, 14, 10), 3, 0.3), ((8, 20), 1, 0.0), ((6,) * 5, 2, 2.0)]
)
def test_the_component_is_unbiased_and_its_error_honest(counts, k, component):
    """The mean of 600 estimates lies within 4 of its standard errors; the stated error is not below the true one."""
    generator = torch.Generator().manual_seed(len(counts))
    found = [between_component(*drawn(counts, k, component, generator)) for _ in range(600)]
    values = torch.stack([f.value for f in found])
    error = values.std(0) / len(found) ** 0.5
    assert ((values.mean(0) - component * torch.eye(k, dtype=torch.float64)).abs() <= 4 * error).all()
    traces = torch.tensor([f.trace() for f in found])
    stated = torch.tensor([f.trace_standard_error() for f in found]).square().mean().sqrt()
    assert 0.9 * traces.std() <= stated
    assert found[0].dof == len(counts) - 1 and found[0].within_dof == sum(counts) - len(counts)


@pytest.mark.parametrize(("counts", "k"), [((32, 32), 1), ((32, 32), 6), ((20, 25, 30, 35), 3)])
def test_equal_ranks_are_seldom_said_to_differ(counts, k):
    """Stated: .02 to .05. Of 1000 sets at most .05 and four standard errors of the count."""
    generator = torch.Generator().manual_seed(k)
    flagged = sum(between_component(*drawn(counts, k, 0.0, generator)).differ() for _ in range(1000))
    assert flagged / 1000 <= 0.05 + 4 * (0.05 * 0.95 / 1000) ** 0.5


def test_ranks_that_differ_are_found():
    generator = torch.Generator().manual_seed(0)
    assert all(between_component(*drawn((64,) * 4, 3, 4.0, generator)).differ() for _ in range(50))


def test_the_sums_of_parts_are_those_of_the_whole():
    """What a rank sends is additive, and says what the classical formula says."""
    means, covariances, counts = drawn((5, 9, 7), 2, 0.5, torch.Generator().manual_seed(3))
    rows = zip(means, covariances, counts, strict=True)
    sums = [rank_sums(m, s * (n - 1), n.double()) for m, s, n in rows]
    found = component_of(sums[2] + (sums[0] + sums[1]))
    grand = (means * counts[:, None]).sum(0) / counts.sum()
    centred = means - grand
    square = (centred * counts[:, None]).T @ centred / 2
    pooled = (covariances * (counts - 1)[:, None, None]).sum(0) / (counts.sum() - 3)
    size = (counts.sum() - counts.square().sum() / counts.sum()) / 2
    torch.testing.assert_close(found.value, (square - pooled) / size)
    torch.testing.assert_close(found.within, pooled)


def test_too_few_ranks_or_samples_are_refused():
    with pytest.raises(ValueError, match="two ranks"):
        between_component(torch.zeros(1, 2), torch.zeros(1, 2, 2), torch.tensor([5]))
    with pytest.raises(ValueError, match="two samples in one of them"):
        between_component(torch.zeros(3, 2), torch.zeros(3, 2, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"means\[:, None\]"):
        between_component(torch.zeros(3), torch.zeros(3), torch.ones(3))


def test_a_component_that_forgets_the_samples_of_a_rank_is_seen(monkeypatch):
    """Deliberate fault: the mean square between is not freed of the noise of the ranks' means."""
    right = between.component_of

    def wrong(sums):
        found = right(sums)
        value = found.value + found.within / found.per_rank
        return between.BetweenComponent(value, found.within, found.ranks, found.samples, found.per_rank)

    monkeypatch.setattr(between, "component_of", wrong)
    with pytest.raises(AssertionError):
        test_the_component_is_unbiased_and_its_error_honest((8, 20), 1, 0.0)


def model():
    torch.manual_seed(1)
    return nn.Linear(3, 2)


def batch(step, rank, shift):
    """Six samples of a rank; a shift of their inputs and labels makes the ranks' gradients differ."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    x = torch.randn(24, 3, generator=generator) + shift * rank
    return x, torch.randn(24, 2, generator=generator) + 3 * shift * rank


def trained(rank, shift, steps=6):
    inner = model()
    wrapped = DistributedDataParallel(inner)
    optimizer = fisheropt.FisherFloorSGD(inner, lr=1e-3, mode="monitor", every=1)
    for step in range(steps):
        x, y = batch(step, rank, shift)
        optimizer.zero_grad()
        F.mse_loss(wrapped(x), y).backward()
        optimizer.step()
    return optimizer


def followed(rank, steps=24):
    """The directions that two ranks track together, and where they train to."""
    torch.manual_seed(2)
    inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    wrapped = DistributedDataParallel(inner)
    optimizer = fisheropt.FisherFloorSGD(inner, lr=0.3, directions="tracked", likelihood="gaussian", every=1)
    for step in range(steps):
        x, y = batch(step, rank, 0.2)
        optimizer.zero_grad()
        (F.mse_loss(wrapped(x), y) / 2).backward()
        optimizer.step()
    numbers = [p.double().sum().item() for p in inner.parameters()]
    numbers += [optimizer.state[p]["basis"].double().pow(3).sum().item() for p in inner.parameters()]
    return optimizer.param_groups[0]["refreshes"], numbers


def work(rank, port):
    """One report of ranks that differ and one of ranks that do not, left in the store; then what they track."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=PATIENCE)
    for name, shift in (("alike", 0.0), ("apart", 1.0)):
        dist.init_process_group("gloo", store=dist.PrefixStore(name, store), rank=rank, world_size=2, timeout=PATIENCE)
        try:
            report = trained(rank, shift).report()
            (group,) = report.as_dict()["groups"]
            said = "differ" if any("ranks differ" in line for line in report.advice) else "agree"
            numbers = (group["between_ranks_trace"], group["between_ranks_trace_se"], group["between_ranks_dof"])
            store.set(f"{name}/{rank}", f"{said} {numbers} {group['eigenvalues']}")
        except Exception:
            store.set(f"{name}/{rank}", traceback.format_exc())
        dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.PrefixStore("on", store), rank=rank, world_size=2, timeout=PATIENCE)
    try:
        store.set(f"tracked/{rank}", repr(followed(rank)))
    except Exception:
        store.set(f"tracked/{rank}", traceback.format_exc())
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def verdicts():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    torch.multiprocessing.spawn(work, args=(store.port,), nprocs=2)
    return {f"{name}/{rank}": store.get(f"{name}/{rank}").decode() for name in NAMES for rank in (0, 1)}


@pytest.mark.parametrize(("name", "said"), [("alike", "agree"), ("apart", "differ")])
def test_two_ranks(verdicts, name, said):
    assert verdicts[f"{name}/0"] == verdicts[f"{name}/1"], "the ranks must report the same numbers"
    assert verdicts[f"{name}/0"].startswith(f"{said} ("), verdicts[f"{name}/0"]
    assert ", 1)" in verdicts[f"{name}/0"], "two ranks leave one degree of freedom"


def test_two_ranks_track_the_same_directions(verdicts):
    assert verdicts["tracked/0"] == verdicts["tracked/1"]
    assert verdicts["tracked/0"].startswith("(1.0, ["), verdicts["tracked/0"]


def test_one_process_says_nothing_of_ranks():
    inner = model()
    optimizer = fisheropt.FisherFloorSGD(inner, lr=1e-3, mode="monitor")
    x, y = batch(0, 0, 0.0)
    F.mse_loss(inner(x), y).backward()
    optimizer.step()
    assert optimizer.report().as_dict()["groups"][0]["between_ranks_trace"] is None
