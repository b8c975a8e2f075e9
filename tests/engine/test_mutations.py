"""Deliberate faults of the engine: each check passes on the package as it is, and fails on every mutant of it.

A mutant is a function that breaks one thing; it names the check that has to see it, and the statistics that must be wrong.
"""

import threading
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fisheropt
from fisheropt.persample import Dense, Tied
from fisheropt.rules import Linear
from fisheropt.statistics import Moments
from fisheropt.taps import SampleTap, pooled
from fisheropt.taps import reduce as reducing
from fisheropt.taps.apart import Apart
from fisheropt.taps.data import Data
from fisheropt.taps.together import Together
from tests.cases import CASES
from tests.engine import test_grid as grid
from tests.engine import test_tokens as tokens
from tests.engine.test_statistics import EXACT
from tests.expected import JUDGES
from tests.oracle import per_sample_gradients
from tests.wrappers import WRAPPERS

MUTANTS = []
APART = ("Trace", "SecondMoment", "Kronecker")
JOINT = ("FullCovariance", "Projection, dense", "Projection, rank one")


def mutant(check, titles, *subjects):
    def enrol(fault):
        MUTANTS.extend((fault, check, subject, title) for subject in subjects for title in titles)
        return fault

    return enrol


def exact(subject, title, wrapper="plain"):
    """One statistic of one model, under one wrapper."""
    for found, right in grid.run(subject, WRAPPERS[wrapper], JUDGES[title]):
        torch.testing.assert_close(found, right, **EXACT)


def scaled(subject, title):
    exact(subject, title, "loss scale")


def padded(subject, title):
    tokens.test_padded_tokens_are_no_data(subject, title)


class Ranks:
    """Two processes as two threads, whose reductions wait for each other."""

    def __init__(self, monkeypatch):
        self.here, self.barrier, self.held = threading.local(), threading.Barrier(2, timeout=60), [None, None]
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
        monkeypatch.setattr(dist, "all_reduce", self.all_reduce)
        monkeypatch.setattr(DistributedDataParallel, "_active_ddp_module", object())

    def all_reduce(self, tensor, *_):
        self.held[self.here.rank] = tensor.clone()
        self.barrier.wait()
        total = self.held[0] + self.held[1]
        self.barrier.wait()
        tensor.copy_(total)

    def run(self, rank, work, errors):
        self.here.rank = rank
        try:
            work(rank)
        except BaseException as error:  # of a thread, which would be lost
            errors.append(error)
            self.barrier.abort()

    def both(self, work):
        errors = []
        threads = [threading.Thread(target=self.run, args=(rank, work, errors)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((e for e in errors if isinstance(e, AssertionError)), errors[0])


def of_two_ranks(subject, title):
    """Four samples on one rank and five on the other: with the mean of two mean losses, a sample weighs 9/8 or 9/10."""
    parts, judge = (slice(0, 4), slice(4, 9)), JUDGES[title]
    case = CASES[subject]()
    weights = torch.cat([torch.full((n,), 9 / (2 * n), dtype=torch.float64) for n in (4, 5)])
    truth = [torch.einsum("n,n...->n...", weights, g.detach()) for g in per_sample_gradients(case).values()]

    def work(rank):
        part = replace(CASES[subject](), batch=tuple(x[parts[rank]] for x in case.batch))
        part.model.load_state_dict(case.model.state_dict())
        named = {n: p for n, p in part.model.named_parameters() if p.requires_grad}
        with fisheropt.observe(part.model, judge.build(named)) as tap:
            part.loss().backward()
        for found, right in judge.pairs(tap, named, truth, 1.0):
            torch.testing.assert_close(found, right, **EXACT)

    with pytest.MonkeyPatch.context() as monkeypatch:
        Ranks(monkeypatch).both(work)


@mutant(exact, APART, "tied", "tied_table", "called_twice", "table_called_twice", "convolution_called_twice")
def the_calls_of_a_tied_weight_are_squared_apart(monkeypatch):
    def take(self, forms, lent):
        for name, form in forms.items():
            self._deliver(name, self.statistic.of(form), form.samples / self.calls[name])
            self._add_sum(name, form.sum(), name in lent)
        return {name: form.sum() for name, form in forms.items()}

    monkeypatch.setattr(Apart, "take", take)


@mutant(exact, ("Trace", "SecondMoment"), "tied_table")
def the_rows_of_a_tied_table_do_not_meet_its_head(monkeypatch):
    monkeypatch.setattr(Tied, "_met", lambda self, rows: torch.zeros_like(rows.g))


@mutant(exact, JOINT, "tied", "tied_table", "called_twice", "mlp")
def every_call_is_multiplied_by_itself(monkeypatch):
    """The coordinates of a sample are not summed over calls before."""
    share, close = Together.share, Together.close

    def alone(self, name, form, lent):
        self._z = None
        total = share(self, name, form, lent)
        self.held = [*getattr(self, "held", ()), self._z]
        return total

    def summed(self):
        total = 0
        for z in self.held:
            self._z = z
            total = total + close(self)
        total[-1, -1] = self.samples
        return total

    monkeypatch.setattr(Together, "share", alone)
    monkeypatch.setattr(Together, "close", summed)


@mutant(of_two_ranks, (*APART, *JOINT), "mlp")
def one_rank_is_dropped(monkeypatch):
    for module in (pooled, reducing):
        monkeypatch.setattr(module, "reduce_sum", lambda values: values)


@mutant(of_two_ranks, (*APART, *JOINT), "mlp")
def the_mean_over_ranks_counts_as_a_sum(monkeypatch):
    monkeypatch.setattr(SampleTap, "divisor", lambda self: 1.0)


@mutant(scaled, (*APART, *JOINT), "mlp")
def the_loss_scale_divides_out_once(monkeypatch):
    monkeypatch.setattr(Moments, "unscaled", lambda m, s: replace(m, second=m.second / s, total=m.total / s))


@mutant(scaled, (*APART, *JOINT), "mlp")
def the_loss_scale_divides_out_of_the_samples_alone(monkeypatch):
    """The total that centres them keeps it."""
    monkeypatch.setattr(Moments, "unscaled", lambda m, s: replace(m, second=m.second / s**2))


@mutant(exact, JUDGES, "mlp", "sequence")
def a_bias_is_missed(monkeypatch):
    whole = Linear.forms

    def forms(self, *given):
        found = whole(self, *given)
        return found | ({"bias": Dense(0 * found["bias"].materialise())} if "bias" in found else {})

    monkeypatch.setattr(Linear, "forms", forms)


@mutant(padded, JUDGES, "sequence", "tied_table")
def padding_counts_as_data(monkeypatch):
    monkeypatch.setattr(Data, "count", lambda self, seen, channel: seen)


IDS = [f"{fault.__name__}-{subject}-{title}" for fault, _, subject, title in MUTANTS]
CHECKS = sorted({(check.__name__, subject, title) for _, check, subject, title in MUTANTS})


@pytest.mark.parametrize(("check", "subject", "title"), CHECKS)
def test_sound(check, subject, title):
    globals()[check](subject, title)


@pytest.mark.parametrize(("fault", "check", "subject", "title"), MUTANTS, ids=IDS)
def test_the_fault_is_seen(monkeypatch, fault, check, subject, title):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check(subject, title)
