"""Controllers: exact laws of the rules, purity and robustness."""

import copy
import inspect
import json
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import ClassVar

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import fisheropt.control
from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal, State
from fisheropt.control.fixed import Fixed
from fisheropt.control.go_f import GOF
from fisheropt.control.inner_product import InnerProduct
from fisheropt.control.matched_step import matched_step
from fisheropt.control.noise_scale import NoiseScale
from fisheropt.control.norm_test import NormTest
from fisheropt.control.table import names, resolve

ANY = (1.0, 1e12)
quick = settings(max_examples=100, deadline=None, derandomize=True)
OURS = [name for name in names() if type(resolve(name)).__module__.startswith("fisheropt.")]
ALONE = [name for name in OURS if "sketches" not in resolve(name).needs]  # the others have tests of their own
RULES = [name for name in ALONE if "budget" not in resolve(name).needs]
every_controller = pytest.mark.parametrize("controller", [resolve(name) for name in ALONE], ids=ALONE)
every_rule = pytest.mark.parametrize("controller", [resolve(name) for name in RULES], ids=RULES)


def ask(
    controller: Controller,
    state: State,
    reading: GradientNoise | None,
    lr: float = 0.1,
    batch: float = 64.0,
    samples: float = 64.0,
    bounds: tuple[float, float] = ANY,
    loss: float = 2.0,
) -> Proposal:
    moment = Moment(lr, batch, samples, bounds, budget=100_000, loss=loss)  # type: ignore[arg-type]
    return controller.propose(state, reading, moment)


@dataclass
class Run:
    """The recursion A <- (1 - eta h)^2 A + (eta h)^2 V/b that a metric P = h H^-1 makes, under a controller."""

    controller: Controller
    lr: float
    trace: float = 20.0
    signal: float = 2.0
    contraction: float = 1.0
    participation: float = 20.0
    every: int = 1
    largest: float = 1e300

    def steps(self, count: int) -> Iterator[tuple[float, float, float, State]]:
        """Yields A, the batch size and the samples seen before each step, and the state after it."""
        state, seen, factor = self.controller.initial_state(), 0.0, 1.0
        batch = self.lr / (1 - self.lr) * self.trace / self.signal
        for step in range(count):
            before = self.signal, batch, seen
            reading = GradientNoise(self.signal, self.trace, self.participation, batch)  # type: ignore[arg-type]
            seen += batch
            eta = self.lr * factor * self.contraction
            self.signal = (1 - eta) ** 2 * self.signal + eta**2 * self.trace / batch
            proposal = ask(
                self.controller,
                state,
                None if step % self.every else reading,
                self.lr,
                batch,
                seen,
                (1e-6, self.largest),
            )
            state, batch, factor = proposal.state, proposal.batch_size, proposal.lr_factor
            yield *before, state


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("participation", [3.0, math.nan])
@pytest.mark.parametrize("lr", [0.01, 0.1, 0.3, 0.5, 0.8, 0.95])
def test_go_f_follows_the_efficient_recursion(lr: float, participation: float, every: int) -> None:
    """AB-R2: A_k = V/(n_0 + n_k), also with three steps in four unmeasured."""
    run = Run(GOF(doubt=0.0), lr, participation=participation, every=every)
    start = run.trace / run.signal
    for signal, _, seen, _ in run.steps(60):
        assert signal * (start + seen) / run.trace == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("lr", [0.1, 0.3, 0.5, 0.8])
def test_go_f_with_doubt_loses_little_where_there_is_no_reason_for_it(lr: float) -> None:
    run = Run(GOF(), lr)
    start = run.trace / run.signal
    *_, (signal, _, seen, _) = run.steps(80)
    assert 1.0 - 1e-12 <= signal * (start + seen) / run.trace < 1.06


@pytest.mark.parametrize("largest", [1e300, 1000.0])
@pytest.mark.parametrize("rule", [GOF(doubt=0.0), NormTest()])
@pytest.mark.parametrize("lr", [0.1, 0.3, 0.5, 0.8])
def test_the_norm_test_at_one_minus_eta_follows_it_too_and_both_do_at_the_largest_batch(
    lr: float, rule: Controller, largest: float
) -> None:
    """With a largest size it is the step that falls: 1/n, and as efficient as a batch that grows."""
    run = Run(rule, lr, largest=largest)
    start = run.trace / run.signal
    steps = list(run.steps(80 if largest < 1e6 else 40))
    for signal, _, seen, _ in steps:
        assert signal * (start + seen) / run.trace == pytest.approx(1.0, abs=1e-12)
    _, size, _, state = steps[-1]
    assert (size == largest and state["lr_factor"] < 0.9) or largest > 1e6


@quick
@given(lr=st.floats(0.01, 0.95), sizes=st.lists(st.integers(1, 10**5), min_size=1, max_size=20))
def test_a_matched_step_follows_the_recursion_with_any_sizes(lr: float, sizes: list[int]) -> None:
    trace, signal, seen = 20.0, 2.0, 0
    for size in sizes:
        step = matched_step(lr, lr / (1 - lr) * trace / signal, size)
        signal = (1 - step) ** 2 * signal + step**2 * trace / size
        seen += size
        assert signal * (trace / 2.0 + seen) / trace == pytest.approx(1.0, abs=1e-11)
    assert matched_step(lr, 48.0, 48.0) == pytest.approx(lr)
    with pytest.raises(ValueError, match="lr=1.0"):
        matched_step(1.0, 8.0, 8.0)


@pytest.mark.parametrize("lr", [0.3, 0.5, 0.8])
def test_go_f_notices_a_metric_that_is_too_small(lr: float) -> None:
    def loss(controller: Controller) -> tuple[float, float]:
        run = Run(controller, lr, contraction=0.25)
        start = run.trace / run.signal
        last = next(step for step in run.steps(500) if step[2] > 1e5)
        return last[0] * (start + last[2]) / run.trace, last[3]["log_odds"]

    with_doubt, odds = loss(GOF())
    without, _ = loss(GOF(doubt=0.0))
    assert odds > 0.0
    assert with_doubt < 0.9 * without


def test_go_f_predicts_over_steps_it_was_not_asked_about() -> None:
    controller, lr, trace, signal, batch = GOF(doubt=0.0), 0.2, 20.0, 2.0, 64
    state, seen = controller.initial_state(), 0
    for step in range(9):
        seen += batch
        reading = GradientNoise(signal, trace, 20.0, batch)
        signal = (1 - lr) ** 2 * signal + lr**2 * trace / batch
        if step % 4 == 0:
            state = ask(controller, state, reading, lr, batch, seen).state
            assert state["signal"] == pytest.approx(signal, rel=1e-12)


def test_go_f_lowers_the_batch_when_signal_returns() -> None:
    controller = GOF()
    state, proposals = controller.initial_state(), []
    for step, signal in enumerate([0.02] * 10 + [5.0] * 5):
        reading = GradientNoise(signal, 20.0, 20.0, 1000)
        proposals.append(ask(controller, state, reading, 0.3, 1000.0, 1000 * (step + 1)))
        state = proposals[-1].state
    assert proposals[9].batch_size > 5 * proposals[-1].batch_size


@pytest.mark.parametrize("theta", [0.9, 1.5])
def test_the_norm_test_has_no_fixed_point_in_pure_noise(theta: float) -> None:
    """AB-R4: b_next/b = 1/theta^2 on the average of ||g||^2; 6 standard errors are below 5 %."""
    rng = np.random.default_rng(1)
    batch, width, ratios = 32, 30, []
    for _ in range(400):
        sample = rng.standard_normal((batch, width))
        mean, trace = sample.mean(0), sample.var(0, ddof=1).sum()
        reading = GradientNoise(mean @ mean - trace / batch, trace, float(width), batch)
        rule = NormTest(theta)
        ratios.append(batch / ask(rule, rule.initial_state(), reading, batch=batch).batch_size)
    assert np.mean(ratios) == pytest.approx(theta**2, rel=0.05)


def test_the_inner_product_test_falls_in_pure_noise() -> None:
    """AB-R4: b_next/b = 1/(theta^2 d), where the variance along g outweighs that across it."""
    batch, width = 3200, 20.0
    reading = GradientNoise(0.0, width, width, batch)
    for rule, growth in ((InnerProduct(), 1 / (0.81 * width)), (InnerProduct(theta=9.0), 0.95 / 5.84**2)):
        proposal = ask(rule, rule.initial_state(), reading, batch=batch)
        assert proposal.batch_size / batch == pytest.approx(growth)


def test_the_noise_scale_is_a_ratio_of_averages() -> None:
    """It converges to V/A on readings half of which are negative, where a mean of ratios would not."""
    rng, controller = np.random.default_rng(2), NoiseScale(scale=2.0, smoothing=0.999)
    state = controller.initial_state()
    for step in range(1, 20_001):
        reading = GradientNoise(0.5 + 3.0 * rng.standard_normal(), 20.0 + rng.standard_normal(), 20.0, 64)
        proposal = ask(controller, state, reading, samples=64 * step, bounds=(1.0, 1e6))
        state = proposal.state
    assert proposal.batch_size == pytest.approx(80.0, rel=0.5)
    assert ask(controller, state, GradientNoise(-1e6, 1.0, 1.0, 8)).batch_size == 64.0


def test_the_noise_scale_averages_readings_without_signal_too() -> None:
    rule = NoiseScale(smoothing=0.5)
    first = ask(rule, rule.initial_state(), GradientNoise(-1.0, 20.0, 20.0, 64))
    second = ask(rule, first.state, GradientNoise(3.0, 20.0, 20.0, 64))
    assert (first.batch_size, second.batch_size) == (64.0, 15.0 / 1.25)


@pytest.mark.parametrize("rule", [NormTest(), NormTest(0.9), NoiseScale()])
def test_the_step_is_never_of_length_zero(rule: Controller) -> None:
    """However small the gradient is beside its noise: a step of length zero would never end."""
    reading = GradientNoise(1e-300, 1e90, 20.0, 64)
    proposal = ask(rule, rule.initial_state(), reading, batch=1e300, bounds=(8.0, 512.0))
    again = ask(rule, proposal.state, reading, batch=1e300, bounds=(8.0, 512.0))
    assert 0.0 < again.lr_factor < 1e-90 and proposal.lr_factor > 0.0


def test_the_largest_size_is_taken_where_no_gradient_is_seen() -> None:
    reading = GradientNoise(-1.0, 20.0, 20.0, 16)
    for rule in (NormTest(0.9), InnerProduct()):
        proposal = ask(rule, rule.initial_state(), reading, bounds=(8.0, 512.0))
        assert (proposal.batch_size, proposal.lr_factor) == (512.0, 1.0)


@every_controller
@quick
@given(
    readings=st.lists(
        st.tuples(
            st.floats(-1e12, 1e12) | st.sampled_from([0.0, math.nan, math.inf, -1e-300, 1e90]),
            st.floats(0.0, 1e12) | st.sampled_from([0.0, math.nan, 1e-300, 1e-90, 1e90]),
            st.floats(-10.0, 1e6) | st.just(math.nan),
            st.integers(2, 10**6),
            st.booleans(),
            st.floats(1e-6, 1e6) | st.sampled_from([0.0, -1.0, math.nan, math.inf, 1e-300]),
        ),
        max_size=12,
    ),
    lr=st.sampled_from([0.0, 1e-20, 1e-6, 0.1, 0.5, 0.99]),
)
def test_proposals_stay_finite_and_in_bounds(
    controller: Controller, readings: list[tuple[float, float, float, int, bool, float]], lr: float
) -> None:
    state, samples, batch = controller.initial_state(), 0, 32.0
    for signal, noise, participation, size, measured, loss in readings:
        samples += int(batch)
        reading = GradientNoise(signal, noise, participation, size) if measured else None
        proposal = ask(controller, state, reading, lr, batch, samples, (8.0, 4096.0), loss)
        state, batch = proposal.state, proposal.batch_size
        assert 8.0 <= batch <= 4096.0
        assert math.isfinite(proposal.lr_factor) and proposal.lr_factor > 0.0
        numbers = [x for value in state.values() for x in (value if type(value) is list else [value])]
        assert all(type(x) is float for x in numbers)
        assert all(map(math.isfinite, numbers)) or "drift" in controller.needs  # nan: not tested yet


@every_controller
def test_a_controller_is_pure_and_its_state_is_json(controller: Controller) -> None:
    assert is_dataclass(controller) and controller == type(controller)() == pickle.loads(pickle.dumps(controller))
    with pytest.raises(AttributeError):
        setattr(controller, fields(controller)[0].name if fields(controller) else "name", 1.0)
    state = controller.initial_state()
    for step in range(1, 5):
        kept = copy.deepcopy(state)
        calls = [
            ask(controller, given, GradientNoise(1.0 / step, 20.0, 15.0, 64), 0.3, samples=64 * step)
            for given in (state, json.loads(json.dumps(state)))
        ]
        assert repr(calls[0]) == repr(calls[1]) and repr(state) == repr(kept)
        assert calls[0].state.keys() == kept.keys()
        state = calls[0].state


@every_rule
@pytest.mark.parametrize("reading", [None, GradientNoise(math.nan, 1.0, 1.0, 8), GradientNoise(1.0, 0.0, 1.0, 8)])
def test_the_size_stays_before_the_first_usable_reading(controller: Controller, reading: GradientNoise | None) -> None:
    state = controller.initial_state()
    proposal = ask(controller, state, reading, 0.3, 48.0, 48)
    assert (proposal.batch_size, proposal.lr_factor) == (48.0, 1.0)
    assert repr(ask(controller, state, reading, 0.3, 48.0, 48, loss=math.nan)) == repr(proposal)
    if reading is not None:
        assert repr(ask(controller, state, None, 0.3, 48.0, 48)) == repr(proposal)


@every_rule
def test_a_short_batch_leaves_the_size_in_use(controller: Controller) -> None:
    """The last batch of an epoch is no wish for such batches: 7 samples, of a loader that goes on with 64."""
    first = ask(controller, controller.initial_state(), None)
    moment = Moment(0.3, 7, 71, ANY, budget=100_000, loss=2.0, in_use=64.0)
    assert controller.propose(first.state, None, moment).batch_size == 64.0


def test_a_step_of_length_zero_changes_nothing_in_go_f() -> None:
    reading = GradientNoise(1.0, 20.0, 20.0, 64)
    first = ask(GOF(), GOF().initial_state(), reading, 0.3)
    assert ask(GOF(), first.state, reading, 0.0, samples=128) == Proposal(first.batch_size, first.state)


def test_fixed_stays() -> None:
    reading = GradientNoise(1.0, 20.0, 20.0, 64)
    assert ask(Fixed(), {}, reading, 5.0, 48.0) == Proposal(48.0)


@pytest.mark.parametrize("controller", [GOF(), NormTest()])
@pytest.mark.parametrize("lr", [1.0, 2.0, -0.1, math.nan])
def test_a_step_outside_the_rule_is_an_error(controller: Controller, lr: float) -> None:
    with pytest.raises(ValueError, match=r"0 <= lr < 1.*NormTest\(theta=0.9\)"):
        ask(controller, controller.initial_state(), None, lr)


@pytest.mark.parametrize("wrong", [{"slow": 1.0}, {"doubt": 1.0}, {"memory": -0.1}, {"drift": math.nan}])
def test_hyper_parameters_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"write GOF\(\)"):
        GOF(**wrong)


@pytest.mark.parametrize(
    "make", [lambda: NormTest(0.0), lambda: InnerProduct(nu=-1.0), lambda: NoiseScale(smoothing=1.0)]
)
def test_baselines_check_theirs(make: Callable[[], Controller]) -> None:
    with pytest.raises(ValueError, match="write (NormTest|InnerProduct|NoiseScale)"):
        make()


def test_controllers_are_found_by_name() -> None:
    assert {"fixed", "go_f", "norm_test"} <= set(names())
    assert resolve("go_f") == GOF() and resolve("norm_test") == NormTest() and resolve("fixed") == Fixed()
    mine = NormTest(0.5)
    assert resolve(mine) is mine
    with pytest.raises(ValueError, match=r"controller='gof': known are .*'go_f'"):
        resolve("gof")


def test_a_new_controller_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(inspect.getfile(Fixed)).read_text()
    (tmp_path / "brand_new.py").write_text(source.replace("Fixed", "BrandNew").replace('"fixed"', '"brand_new"'))
    monkeypatch.setattr(fisheropt.control, "__path__", [*fisheropt.control.__path__, str(tmp_path)])
    assert "brand_new" in names()
    assert type(resolve("brand_new")).__name__ == "BrandNew"


def test_a_class_of_the_user_is_found_once_defined() -> None:
    @dataclass(frozen=True)
    class Mine(Controller):
        name: ClassVar[str] = "mine"
        initial_state = Fixed.initial_state  # type: ignore[assignment]
        propose = Fixed.propose  # type: ignore[assignment]

    assert resolve("mine") == Mine()
