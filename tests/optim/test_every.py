"""every="auto": the first ten steps, then as rarely as `overhead` asks, from shapes alone."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fisheropt
from fisheropt.control import AdaptiveBatchSampler
from fisheropt.optim import expectation, tracking
from fisheropt.optim.group import UNKNOWN
from fisheropt.taps.expected import interval

KINDS = {
    "floor": lambda model, **kw: fisheropt.FisherFloorSGD(model, lr=0.01, directions=NAMES, mode="monitor", **kw),
    "godambe": lambda model, **kw: fisheropt.GodambeSGD(model, lr=0.01, **kw),
    "adaptive": lambda model, **kw: fisheropt.AdaptiveBatchSGD(model, lr=0.01, controller="fixed", **kw),
}
NAMES = ["0.weight"]


def network(width=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def step(model, optimizer, index=0, samples=8):
    make = torch.Generator().manual_seed(index)
    x, y = torch.randn(samples, 4, generator=make), torch.randint(3, (samples,), generator=make)
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


def measured(model, optimizer, steps, first=0):
    """The steps that were measured."""
    found = []
    for index in range(first, first + steps):
        before = optimizer.param_groups[0]["measured"]
        step(model, optimizer, index)
        if optimizer.param_groups[0]["measured"] > before:
            found.append(index)
    return found


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_first_ten_then_as_rarely_as_overhead_asks(kind):
    model = network()
    optimizer = KINDS[kind](model, overhead=0.2)
    group = optimizer.param_groups[0]
    assert group["extra"] == UNKNOWN
    step(model, optimizer)
    apart = math.ceil(group["extra"] / 0.2)
    assert 10 < apart < 60  # nothing but Python, in a network so small: a step takes several times a plain one
    seen = measured(model, optimizer, 2 * apart, first=1)
    assert seen == [*range(1, 10), apart, 2 * apart]
    assert group["extra"] / apart <= 0.2


def test_the_interval_is_of_shapes_and_not_of_clocks(monkeypatch):
    found = []
    for factor in (1, 1000):
        model = network()
        optimizer = KINDS["floor"](model)
        monkeypatch.setattr("time.perf_counter", lambda factor=factor: factor)
        for index in range(3):
            step(model, optimizer, index * factor)
        found.append(optimizer.param_groups[0]["extra"])
    assert found[0] == found[1] > 0


def test_another_batch_is_another_share():
    shares = []
    for samples in (8, 20000):
        model = network(64)
        optimizer = KINDS["adaptive"](model)
        step(model, optimizer, samples=samples)
        shares.append(optimizer.param_groups[0]["extra"])
    assert shares[1] < 0.5 * shares[0]


def test_overhead_may_be_changed_while_training():
    model = network()
    optimizer = KINDS["godambe"](model)
    step(model, optimizer)
    group = optimizer.param_groups[0]
    for overhead in (0.01, 0.05, 0.2, math.inf):
        group["overhead"] = overhead
        assert optimizer._interval(group) == min(100, interval(group["extra"], overhead)) >= 10
    assert optimizer._interval(group) == 10


@pytest.mark.parametrize(
    ("share", "overhead", "apart"), [(0.0, 0.05, 10), (0.5, 0.05, 10), (0.501, 0.05, 11), (3, 0.05, 60)]
)
def test_the_interval_is_the_least_that_keeps_the_overhead(share, overhead, apart):
    assert interval(share, overhead) == apart


def test_a_number_of_steps_is_taken_as_it_is():
    model = network()
    assert measured(model, KINDS["godambe"](model, every=4), 9) == [0, 4, 8]


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_checkpoint_goes_on_with_the_same_steps(kind):
    model = network()
    optimizer = KINDS[kind](model, overhead=0.3)
    measured(model, optimizer, 12)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    whole = measured(model, optimizer, 40, first=12)
    other = network(6)
    resumed = KINDS[kind](other, overhead=0.3)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert resumed.param_groups[0]["extra"] == optimizer.param_groups[0]["extra"]
    assert measured(other, resumed, 40, first=12) == whole != []


def test_a_checkpoint_from_before_learns_it_at_the_next_reading():
    model = network()
    optimizer = KINDS["godambe"](model)
    measured(model, optimizer, 3)
    state = optimizer.state_dict()
    extra = state["param_groups"][0].pop("extra")
    optimizer.load_state_dict(state)
    step(model, optimizer)
    assert optimizer.param_groups[0]["extra"] == extra


def test_ranks_with_other_batches_measure_on_the_same_steps(monkeypatch):
    """Each rank adds its seconds to those of all, so that the quotient is one number."""
    taps, own = [], []
    for samples in (4, 400):
        model = network(32)
        optimizer = KINDS["adaptive"](model)
        step(model, optimizer, samples=samples)
        taps.append(optimizer._taps[0])
    monkeypatch.setattr(expectation, "ranks", lambda: 2)
    monkeypatch.setattr(expectation, "reduce_sum", lambda times: own.append(times) or times)
    for tap in taps:
        tap.channel.parallel = True
        expectation.extra(tap, 0.0)
    assert own[0].tolist() != own[1].tolist()
    monkeypatch.setattr(expectation, "reduce_sum", lambda times: own[0] + own[1])
    shares = [expectation.extra(tap, 0.0) for tap in taps]
    assert shares[0] == shares[1] == pytest.approx(float((own[0] + own[1])[0] / (own[0] + own[1])[1]))


def test_explain_says_what_the_optimizer_does():
    model, x = network(), torch.zeros(8, 4)
    optimizer = KINDS["adaptive"](model)
    step(model, optimizer)
    group, said = optimizer.param_groups[0], fisheropt.explain(model, x, overhead=0.07)
    group["overhead"] = 0.07
    assert said.share == group["extra"]
    assert said.every == optimizer._interval(group) == optimizer.report().every
    assert said.overhead == optimizer.report().overhead
    assert f"every {said.every}, expected overhead {said.overhead:.1%}" in str(optimizer.report())


def test_learning_from_a_reading_counts_too():
    model, x = network(), torch.zeros(8, 4)
    optimizer = KINDS["floor"](model)
    step(model, optimizer)
    said = fisheropt.explain(model, x, statistic=optimizer._taps[0].statistic)
    assert optimizer.param_groups[0]["extra"] > said.share


@pytest.mark.filterwarnings("ignore")  # torch looks at .grad of what is no leaf, and hides its own warning of it
@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_model_has_the_interval_of_the_model_itself(compiled):
    model = network()
    run = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    optimizer = KINDS["adaptive"](model)
    step(run, optimizer)
    eager = network()
    other = KINDS["adaptive"](eager)
    step(eager, other)
    assert optimizer.param_groups[0]["extra"] == other.param_groups[0]["extra"]


def test_parameters_alone_have_no_shapes_and_are_measured_each_tenth_step():
    model = network()
    optimizer = fisheropt.AdaptiveBatchSGD(model.parameters(), lr=0.01, controller="fixed")
    assert measured(model, optimizer, 31) == [*range(10), 10, 20, 30]
    assert math.isnan(optimizer.report().overhead) and optimizer.report().as_dict()["overhead"] is None


def test_small_models_with_a_running_gain_are_measured_each_step():
    model = network()
    optimizer = KINDS["godambe"](model, gain="running", overhead=0.01)
    assert measured(model, optimizer, 15) == list(range(15))
    assert optimizer.report().every == 1


def test_a_sampler_steered_in_a_metric_is_measured_each_step():
    model, sampler = network(), AdaptiveBatchSampler(range(64), 8, max_batch_size=32)
    optimizer = fisheropt.AdaptiveBatchSGD(model, lr=0.1, sampler=sampler, metric="fisher", overhead=0.01)
    assert optimizer.param_groups[0]["every"] == 1


def test_tracked_directions_go_by_the_same_model():
    model = network(12)
    optimizer = fisheropt.FisherFloorSGD(model, lr=0.01, directions="tracked", mode="monitor", overhead=0.5)
    group = optimizer.param_groups[0]
    step(model, optimizer)
    apart = tracking.spacing(group)
    assert apart == interval(group["extra"], 0.5) == optimizer.report().every
    early = [s for s in range(1, apart) if s & (s - 1) == 0]
    assert measured(model, optimizer, 2 * apart, first=1) == [*early, apart, 2 * apart]


def test_a_copy_measures_on_the_same_steps():
    model = network()
    optimizer = KINDS["godambe"](model, overhead=0.4)
    measured(model, optimizer, 11)
    again, twin = copy.deepcopy((model, optimizer))
    assert measured(again, twin, 30, first=11) == measured(model, optimizer, 30, first=11)


def test_steering_beside_another_optimizer_takes_an_overhead():
    model = network()
    steering = fisheropt.BatchSteering(
        model, torch.optim.SGD(model.parameters(), lr=0.1), controller="fixed", overhead=0.5
    )
    assert steering._watch.param_groups[0]["overhead"] == 0.5


def test_a_mode_that_insists_says_that_it_measures_each_step():
    """And claims no overhead: the work model knows nothing of its jvps."""
    model = network()
    optimizer = fisheropt.FisherFloorSGD(model, lr=0.01, mode="penalty", floor=1.0, likelihood="categorical")
    assert measured(model, optimizer, 30) == list(range(30))
    report = optimizer.report()
    assert report.every == 1
    assert math.isnan(report.overhead) and "expected overhead" not in str(report)


def test_a_batch_of_another_size_is_priced_anew():
    """A batch that grows makes measuring relatively cheaper: the interval follows it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = fisheropt.AdaptiveBatchSGD(model, lr=1e-3)
    group, found = optimizer.param_groups[0], {}
    for size in (8, 2048):
        for _ in range(101):
            torch.nn.functional.cross_entropy(model(torch.randn(size, 64)), torch.zeros(size).long()).backward()
            optimizer.step()
            optimizer.zero_grad()
        found[size] = optimizer._interval(group)
    assert found[2048] < found[8]


def test_no_metric_is_left_for_more_than_a_hundred_steps():
    """However dear a reading is; a running gain lives on readings and has one each tenth step."""
    model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
    for options, apart in (({}, 100), ({"gain": "running"}, 10)):
        optimizer = fisheropt.GodambeSGD(model, lr=1e-3, structure="full", likelihood="categorical", **options)
        optimizer.param_groups[0]["extra"] = 50.0
        assert optimizer._interval(optimizer.param_groups[0]) == apart
    chosen = fisheropt.GodambeSGD(model, lr=1e-3, structure="full", every=250)
    assert chosen._interval(chosen.param_groups[0]) == 250
