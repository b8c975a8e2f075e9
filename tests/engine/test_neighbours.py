"""What goes on beside a measured step: evaluation in another thread, heads used in turn, batches without samples."""

import sys
import threading

import pytest
import torch
from torch import nn

import fisheropt
from tests.cases import Case
from tests.oracle import per_sample_gradients


def test_evaluation_in_another_thread_changes_no_gradient():
    """300 steps with a thread that evaluates the same model all the time, switched as often as Python can."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(5, 6)
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    done, interval = threading.Event(), sys.getswitchinterval()

    def evaluate():
        with torch.no_grad():
            while not done.is_set():
                model(x)

    sys.setswitchinterval(1e-5)
    with fisheropt.observe(model, fisheropt.Trace()) as tap:
        other = threading.Thread(target=evaluate)
        other.start()
        try:
            for _ in range(300):
                model.zero_grad()
                tap.clear()
                model(x).square().sum().backward()
                for p, truth in zip(model.parameters(), expected, strict=True):
                    torch.testing.assert_close(p.grad, truth)
        finally:
            done.set()
            other.join()
            sys.setswitchinterval(interval)


class Heads(nn.Module):
    """Two heads with nothing in common; a batch takes the first or the second."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x, head):
        return torch.tanh((self.first if head == 0 else self.second)(x))


@pytest.mark.parametrize("statistic", [fisheropt.Trace(), fisheropt.SecondMoment()])
def test_a_sample_that_misses_a_head_has_a_gradient_of_zero_there(statistic):
    torch.manual_seed(0)
    model, batches = Heads().double(), [torch.randn(5, 3).double(), torch.randn(7, 3).double()]
    with fisheropt.observe(model, statistic) as tap:
        for head, x in enumerate(batches):
            (model(x, head).square().sum() / 12).backward()

    def losses(model, x, head):
        return torch.where(head[:, None] == 0, model(x, 0), model(x, 1)).square().sum(1)

    which = torch.tensor([0] * 5 + [1] * 7)
    truth = per_sample_gradients(Case(model, (torch.cat(batches), which), losses))
    for name, p in model.named_parameters():
        seen = tap.covariance(p).per_sample()
        assert tap.read(p).count == 12
        expected = truth[name].flatten(1).var(0)
        torch.testing.assert_close(seen.trace(), expected.sum(), rtol=1e-9, atol=1e-12)


def test_a_forward_that_failed_leaves_no_samples():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)), torch.randn(6, 3)
    with fisheropt.observe(model[0], fisheropt.Trace()) as tap, fisheropt.observe(model, fisheropt.Trace()) as outer:
        with pytest.raises(RuntimeError, match="shapes"):
            model(x)
        model[0](x).sum().backward()
        assert tap.read(model[0].weight).count == 6
        with pytest.raises(RuntimeError, match="no sample"):
            outer.read(model[0].weight)


def test_a_mask_of_numbers_is_refused():
    tap = fisheropt.observe(nn.Linear(2, 1), fisheropt.Trace())
    with pytest.raises(ValueError, match="attention_mask == 0"):
        tap.ignore(torch.ones(4))


def test_an_empty_batch_passes():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with fisheropt.observe(model, fisheropt.FullCovariance()):
        model(torch.zeros(0, 3)).sum().backward()
    assert all(not p.grad.any() for p in model.parameters())
