"""Rules of others and plain schedules: what they do in pure noise and in pure signal, and the temperatures they claim."""

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from fisheropt.control import (
    CABS,
    AdaptiveBatchSampler,
    AdaScale,
    Controller,
    EqualTemperature,
    Fixed,
    GradientNoise,
    InnerProduct,
    LinearDecay,
    Moment,
    NoiseScale,
    NormTest,
    Proposal,
    SampleLR,
    Seesaw,
    Smith,
    as_batches,
)
from fisheropt.control.base import State
from fisheropt.control.schedule import cosine, linear

BUDGET = 60_000
START = 48.0
quick = settings(max_examples=60, deadline=None, derandomize=True)
Plan = list[tuple[float, float, float]]


def inverse_root(spent: float) -> float:
    return 1 / math.sqrt(1 + 99 * spent)


def plan(controller: Controller, bounds: tuple[float, float], start: float = START) -> Plan:
    """Samples seen, batch size and factor of each step over the budget; nothing is measured."""
    proposal, seen, steps = Proposal(start, controller.initial_state()), 0.0, []
    while seen < BUDGET:
        size = proposal.batch_size
        steps.append((seen, size, proposal.lr_factor))
        seen += size
        moment = Moment(0.1, size, seen, bounds, BUDGET)  # type: ignore[arg-type]
        proposal = controller.propose(proposal.state, None, moment)
    return steps


def repeated(controller: Controller, reading: GradientNoise, size: float, moment: Callable[[int], Moment]) -> Proposal:
    """The proposal after two thousand like readings."""
    proposal = Proposal(size, controller.initial_state())
    for step in range(1, 2001):
        proposal = controller.propose(proposal.state, reading, moment(step))
    return proposal


@pytest.mark.parametrize("schedule", ["linear", "cosine", inverse_root])
@pytest.mark.parametrize("bounds", [(1.0, math.inf), (1.0, 200.0), (1.0, START)])
def test_equal_temperature_has_the_temperature_of_the_schedule(schedule, bounds) -> None:
    """eta/b = (eta_0/b_0) f(n/N) to rounding, whatever the largest batch; without one it is b alone that moves."""
    f = {"linear": linear, "cosine": cosine}.get(schedule, schedule)
    for seen, size, factor in plan(EqualTemperature(schedule), bounds):
        assert factor / size == pytest.approx(f(seen / BUDGET) / START, rel=1e-12)
        assert size <= bounds[1] and (factor == 1.0 or size == bounds[1])


def test_equal_temperature_rises_as_far_as_the_smallest_batch_and_then_by_the_step() -> None:
    (_, *steps) = plan(EqualTemperature(triangle), (24.0, math.inf))
    assert {size for _, size, factor in steps if factor > 1.0} == {24.0}
    for seen, size, factor in steps:
        assert factor / size == pytest.approx(triangle(seen / BUDGET) / START, rel=1e-12)


def triangle(spent: float) -> float:
    return 1.0 + 3.0 * min(spent, 1.0 - spent)


def test_a_linear_decay_takes_twice_the_steps_of_a_batch_that_grows() -> None:
    """AB-R7: N/b_0 steps and N/(2 b_0)."""
    decay, growth = plan(LinearDecay(), (1.0, math.inf)), plan(EqualTemperature(), (1.0, math.inf))
    assert len(decay) == BUDGET / START
    assert len(growth) == pytest.approx(len(decay) / 2, abs=4)
    for seen, size, factor in decay:
        assert size == START and factor == pytest.approx(1 - seen / BUDGET, rel=1e-12)


@quick
@given(
    budget=st.integers(1, 10**5),
    start=st.integers(1, 512),
    smallest=st.integers(1, 64),
    width=st.integers(0, 4096),
    schedule=st.sampled_from(["linear", "cosine", inverse_root, triangle]),
)
def test_a_plan_in_whole_samples_spends_the_budget_at_the_temperature_of_the_schedule(
    budget: int, start: int, smallest: int, width: int, schedule: object
) -> None:
    f = {"linear": linear, "cosine": cosine}.get(schedule, schedule)  # type: ignore[call-overload]
    steps = as_batches(schedule, budget, start, (smallest, smallest + width))  # type: ignore[arg-type]
    assert sum(size for size, _ in steps) == budget
    seen = 0
    for size, factor in steps:
        assert factor / size == pytest.approx(f(seen / budget) / start, rel=1e-12)
        seen += size
        assert type(size) is int and 1 <= size <= smallest + width and (size >= smallest or seen == budget)


def test_a_plan_of_batches_takes_half_the_steps_of_the_decay() -> None:
    """AB-R7, 20 and 60 epochs of 1400 in batches of 16: the steps as measured there."""
    for budget, decay, growth in ((28_000, 1750, 878), (84_000, 5250, 2629)):
        assert len(as_batches("linear", budget, 16, (16, 16))) == decay
        assert len(as_batches("linear", budget, 16)) == growth


@pytest.mark.parametrize("length", [None, 5000])
@pytest.mark.parametrize("factor", [4.0, 5.0])
def test_smith_multiplies_the_batch_and_at_its_end_divides_the_step(factor: float, length: int | None) -> None:
    rule = Smith(factor, (0.3, 0.6, 0.9), length)
    largest = 0.1 * length if length else math.inf
    for seen, size, lr_factor in plan(rule, (1.0, 1e9)):
        stage = sum(seen / BUDGET >= begin for begin in rule.stages)
        assert lr_factor / size == pytest.approx(factor**-stage / START, rel=1e-12)
        assert size == pytest.approx(min(START * factor**stage, largest), rel=1e-12)


@pytest.mark.parametrize("cut", [0.5, 0.1])
@pytest.mark.parametrize("largest", [1e9, 300.0])
def test_seesaw_moves_both_and_keeps_the_temperature_of_a_normalised_step(cut: float, largest: float) -> None:
    """Each cut is sqrt(a) of the step and 1/a of the batch, eta/sqrt(b) falls by a, and a^k >= f > a^(k + 1)."""
    steps = plan(Seesaw("cosine", cut), (1.0, largest))
    for seen, size, factor in steps:
        fallen = factor / math.sqrt(size / START)
        cuts = math.log(fallen) / math.log(cut)
        assert cuts == pytest.approx(round(cuts), abs=1e-9)
        assert cut ** (round(cuts) + 1) < cosine(seen / BUDGET) <= cut ** round(cuts) + 1e-12
        if size < largest:
            assert factor == pytest.approx(math.sqrt(cut) ** round(cuts), rel=1e-12)
    sizes = sorted({size for _, size, _ in steps})
    assert len(sizes) > 2 or largest < 1e9
    for low, high in pairwise(size for size in sizes if size < largest):
        cuts = math.log(low / high) / math.log(cut)
        assert cuts == pytest.approx(round(cuts), abs=1e-9)


def test_seesaw_counts_whole_cuts_at_exact_powers() -> None:
    for cut in (0.5, 0.1, 0.3):
        for cuts in range(12):
            assert Seesaw(cut=cut)._cuts(cut**cuts) == cuts
    assert Seesaw()._cuts(0.0) > 90


@pytest.mark.parametrize("largest", [1e9, 100.0])
def test_cabs_stays_where_the_loss_does(largest: float) -> None:
    """Weakness 3: b = c eta V/L* at the irreducible loss, with and without signal; in temperature where b may not."""
    for signal in (0.0, 1e-3, 5.0):
        reading = GradientNoise(signal, 400.0, 20.0, 64)
        rule = CABS(scale=2.0, smoothing=0.9)
        found = repeated(rule, reading, 64.0, lambda step: Moment(0.3, 64, 64 * step, (1.0, largest), loss=0.5))
        assert found.batch_size / found.lr_factor == pytest.approx(2.0 * 0.3 * 400.0 / 0.5, rel=1e-12)
        assert found.batch_size == min(480.0, largest) or largest > 480.0


def test_cabs_divides_averages() -> None:
    """Loss and variance come in antiphase; .95 of the past in either."""
    rule, proposal = CABS(), Proposal(64.0, CABS().initial_state())
    trace, loss = 0.0, 0.0
    for step in range(50):
        noise, value = (100.0, 1.0) if step % 2 else (300.0, 3.0 + step)
        trace, loss = 0.95 * trace + 0.05 * noise, 0.95 * loss + 0.05 * value
        moment = Moment(0.2, 64, 64 * (step + 1), (1e-9, 1e9), loss=value)
        proposal = rule.propose(proposal.state, GradientNoise(1.0, noise, 20.0, 64), moment)
        assert proposal.batch_size == pytest.approx(0.2 * trace / loss, rel=1e-12)


@pytest.mark.parametrize(
    ("signal", "gain"), [(0.0, 8.0), (-1.0, 8.0), (1e9, 1.0), (2.0, (10 / 32 + 2) / (10 / 256 + 2))]
)
def test_adascale_gains_the_ratio_of_batches_in_noise_and_nothing_in_signal(signal: float, gain: float) -> None:
    """r = (V/b_0 + A)/(V/b + A), between S in pure noise and 1 in pure signal; the batch stays."""
    reading = GradientNoise(signal, 10.0, 20.0, 256)
    found = repeated(AdaScale(base=32), reading, 256.0, lambda step: Moment(0.1, 256, 256 * step, (1.0, 1e9)))
    assert found.lr_factor == pytest.approx(gain, rel=1e-6)
    assert found.batch_size == 256.0
    assert found.state["progress"] == pytest.approx(1 + 1999 * gain, rel=1e-6)


def test_adascale_counts_steps_that_were_not_asked_about_and_takes_the_first_batch_for_its_base() -> None:
    rule = AdaScale()
    state = rule.initial_state()
    first = rule.propose(state, GradientNoise(0.0, 10.0, 20.0, 64), Moment(0.1, 64, 64, (1.0, 1e9)))
    assert (first.lr_factor, first.state["base"], first.state["progress"]) == (1.0, 64.0, 1.0)
    larger = rule.propose(first.state, GradientNoise(0.0, 10.0, 20.0, 256), Moment(0.1, 256, 320, (1.0, 1e9)))
    assert (larger.lr_factor, larger.state["progress"]) == (4.0, 2.0)
    later = rule.propose(larger.state, None, Moment(0.1, 256, 320 + 5 * 256, (1.0, 1e9)))
    assert (later.lr_factor, later.state["progress"], later.why) == (4.0, 22.0, "")


@pytest.mark.parametrize(
    ("rule", "largest"),
    [(NormTest(0.9), 60.0), (InnerProduct(theta=0.1), 60.0), (NoiseScale(), 60.0), (CABS(), 60.0)],
)
def test_beyond_the_largest_batch_the_temperature_is_that_of_the_wanted_one(rule: Controller, largest: float) -> None:
    """eta factor/b_max = eta/b*, for the b* that the same rule proposes without a bound; kept until the next reading."""
    reading = GradientNoise(0.01, 20.0, 20.0, 60)
    free = rule.propose(rule.initial_state(), reading, Moment(0.9, 60, 60, (1e-9, 1e9), loss=0.1))
    bound = rule.propose(rule.initial_state(), reading, Moment(0.9, 60, 60, (1e-9, largest), loss=0.1))
    assert free.batch_size > largest and free.lr_factor == 1.0
    assert bound.batch_size == largest and bound.lr_factor == pytest.approx(largest / free.batch_size, rel=1e-12)
    assert bound.why.endswith("at the largest batch") and not free.why.endswith("at the largest batch")
    later = rule.propose(bound.state, None, Moment(0.9, 60, 120, (1e-9, largest)))
    assert (later.batch_size, later.lr_factor, later.why) == (largest, bound.lr_factor, "")


def test_words_say_what_was_seen() -> None:
    def why(signal: float) -> str:
        reading = GradientNoise(signal, 20.0, 20.0, 60)
        rule = NormTest(0.9)
        return rule.propose(rule.initial_state(), reading, Moment(0.1, 60, 60, (1.0, 1e9))).why

    assert (why(0.1), why(-0.1)) == ("signal 0.3 of the noise", "no signal seen in the noise")


@pytest.mark.parametrize("name", ["Smith", "Seesaw", "LinearDecay", "EqualTemperature"])
def test_a_schedule_needs_a_budget(name: str) -> None:
    rule: Controller = {c.__name__: c() for c in (Smith, Seesaw, LinearDecay, EqualTemperature)}[name]
    assert rule.needs == {"budget"}
    with pytest.raises(ValueError, match=rf"{name}\(\).propose\(.*budget=None.*budget=epochs"):
        rule.propose(rule.initial_state(), None, Moment(0.1, 8, 8, (1.0, 1e9)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Smith(factor=1.0),
        lambda: Smith(stages=(0.5, 0.5)),
        lambda: Smith(stages=(0.0,)),
        lambda: Smith(length=0),
        lambda: Seesaw(cut=1.0),
        lambda: Seesaw("cosinus"),
        lambda: EqualTemperature("linea"),
        lambda: CABS(scale=0.0),
        lambda: AdaScale(base=-1.0),
        lambda: as_batches("linear", 0, 8),
        lambda: as_batches("lin", 10, 8),
        lambda: SampleLR(sgd(), "linear", 0),
        lambda: SampleLR(sgd(), "lin", 10),
    ],
)
def test_hyper_parameters_are_checked(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"write|needed"):
        make()


def test_a_schedule_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"schedule\(0.5\) = nan"):
        as_batches(lambda spent: math.nan if spent else 1.0, 64, 32)


def sgd(lr: float | torch.Tensor = 0.2) -> torch.optim.Optimizer:
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    return torch.optim.AdamW([{"params": [first], "lr": lr}, {"params": [second], "lr": 3 * lr}], foreach=False)


def run(scheduler: SampleLR, sizes: list[int], optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, ...]]:
    """The learning rates of the step that begins at each sample count."""
    rates, seen = {}, scheduler.samples
    for size in sizes:
        rates[seen] = tuple(float(group["lr"]) for group in optimizer.param_groups)
        optimizer.step()
        scheduler.step(size)
        seen += size
    return rates


@pytest.mark.parametrize("schedule", ["linear", "cosine", inverse_root])
def test_the_rate_is_the_same_at_the_same_sample_whatever_the_sizes(schedule) -> None:
    runs = []
    for sizes in ([10] * 40, [40] * 10, [10, 30, 60] * 4, [400]):
        optimizer = sgd()
        runs.append(run(SampleLR(optimizer, schedule, 400), sizes, optimizer))
    f = {"linear": linear, "cosine": cosine}.get(schedule, schedule)
    for rates in runs:
        assert all(rates[n] == runs[0][n] for n in rates if n in runs[0])
        for seen, (low, high) in rates.items():
            assert (low, high) == pytest.approx((0.2 * f(seen / 400), 0.6 * f(seen / 400)), rel=1e-12)


def test_a_scheduler_resumes_where_it_was(tmp_path) -> None:
    sizes = [10, 30, 60, 20, 80, 100, 100, 50]  # beyond the budget at the end, where the rate stays
    whole_optimizer, optimizer, resumed = sgd(), sgd(), sgd()
    whole = run(SampleLR(whole_optimizer, "cosine", 400), sizes, whole_optimizer)
    scheduler = SampleLR(optimizer, "cosine", 400)
    before = run(scheduler, sizes[:3], optimizer)
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    scheduler = SampleLR(resumed, "cosine", 400)
    resumed.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert before | run(scheduler, sizes[3:], resumed) == whole
    assert scheduler.get_last_lr() == [0.0, 0.0]


def test_a_scheduler_reads_the_sampler_and_sets_a_tensor() -> None:
    optimizer = sgd(torch.tensor(0.5))
    data = AdaptiveBatchSampler(range(100), 10)
    scheduler = SampleLR(optimizer, "linear", 200, data)
    held = optimizer.param_groups[0]["lr"]
    for _ in data:
        optimizer.step()
        scheduler.step()
        data.batch_size = 17
    assert held is optimizer.param_groups[0]["lr"] and float(held) == pytest.approx(0.25)
    assert scheduler.state_dict().keys().isdisjoint({"sampler", "schedule"})


def test_a_scheduler_wants_the_samples_once() -> None:
    with pytest.raises(ValueError, match=r"write step\(len\(x\)\)"):
        SampleLR(sgd(), "linear", 100).step()
    with pytest.raises(ValueError, match=r"write step\(\)"):
        SampleLR(sgd(), "linear", 100, SimpleNamespace(samples_seen=0)).step(8)


@pytest.mark.parametrize(
    "rule", [AdaScale(32), CABS(), NormTest(), NoiseScale(), Smith(), Seesaw(), EqualTemperature(), Fixed()]
)
def test_a_rule_goes_on_from_a_saved_state_as_if_nothing_had_happened(rule: Controller) -> None:
    def follow(state: State, steps: range) -> list[Proposal]:
        found = []
        for step in steps:
            reading = None if step % 3 == 2 else GradientNoise(math.sin(step) / 9, 20.0 + step % 5, 15.0, 64)
            moment = Moment(0.3, 64, 64 * (step + 1), (8.0, 200.0), 6400, loss=1.0 + 1 / (step + 1))
            found.append(rule.propose(state, reading, moment))
            state = found[-1].state
        return found

    whole = follow(rule.initial_state(), range(100))
    saved = {key: float(repr(value)) for key, value in whole[49].state.items()}
    assert follow(saved, range(50, 100)) == whole[50:]
