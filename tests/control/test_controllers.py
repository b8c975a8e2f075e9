"""Controllers: exact laws of the rules, purity, robustness, and the quantiser's dead zone."""

import inspect
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

import fisheropt.control
from fisheropt.control.base import Controller, GradientNoise
from fisheropt.control.fixed import Fixed
from fisheropt.control.go_f import GOF
from fisheropt.control.inner_product import InnerProduct
from fisheropt.control.matched_step import matched_step
from fisheropt.control.noise_scale import NoiseScale
from fisheropt.control.norm_test import NormTest
from fisheropt.control.quantise import quantise
from fisheropt.control.table import names, resolve

ANY = (1.0, 1e12)
quick = settings(max_examples=100, deadline=None, derandomize=True)
every_controller = pytest.mark.parametrize("controller", [resolve(name) for name in names()], ids=names())


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

    def steps(self, count: int) -> Iterator[tuple[float, float, float, dict[str, float]]]:
        """Yields A, the batch size and the samples seen before each step, and the state after it."""
        state, seen = self.controller.initial_state(), 0.0
        batch = self.lr / (1 - self.lr) * self.trace / self.signal
        for step in range(count):
            before = self.signal, batch, seen
            reading = GradientNoise(self.signal, self.trace, self.participation, batch)  # type: ignore[arg-type]
            seen += batch
            eta = self.lr * self.contraction
            self.signal = (1 - eta) ** 2 * self.signal + eta**2 * self.trace / batch
            state, batch = self.controller.propose(
                state,
                None if step % self.every else reading,
                lr=self.lr,
                batch_size=batch,
                samples=seen,  # type: ignore[arg-type]
                bounds=(1e-6, 1e300),
            )
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


@pytest.mark.parametrize("lr", [0.1, 0.3, 0.5, 0.8])
def test_the_sampled_norm_test_at_one_minus_eta_follows_it_too(lr: float) -> None:
    run = Run(NormTest(), lr)
    start = run.trace / run.signal
    for signal, _, seen, _ in run.steps(40):
        assert signal * (start + seen) / run.trace == pytest.approx(1.0, abs=1e-12)


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
    assert with_doubt < 0.8 * without


def test_go_f_predicts_over_steps_it_was_not_asked_about() -> None:
    controller, lr, trace, signal, batch = GOF(doubt=0.0), 0.2, 20.0, 2.0, 64
    state, seen = controller.initial_state(), 0
    for step in range(9):
        seen += batch
        reading = GradientNoise(signal, trace, 20.0, batch)
        signal = (1 - lr) ** 2 * signal + lr**2 * trace / batch
        if step % 4 == 0:
            state, _ = controller.propose(state, reading, lr=lr, batch_size=batch, samples=seen, bounds=ANY)
            assert state["signal"] == pytest.approx(signal, rel=1e-12)


def test_go_f_lowers_the_batch_when_signal_returns() -> None:
    controller = GOF()
    state, batch = controller.initial_state(), 1000.0
    proposals = []
    for step, signal in enumerate([0.02] * 10 + [5.0] * 5):
        reading = GradientNoise(signal, 20.0, 20.0, 1000)
        state, batch = controller.propose(
            state, reading, lr=0.3, batch_size=1000.0, samples=1000 * (step + 1), bounds=ANY
        )
        proposals.append(batch)
    assert proposals[9] > 5 * proposals[-1]


@pytest.mark.parametrize("theta", [0.9, 1.5])
def test_the_norm_test_has_no_fixed_point_in_pure_noise(theta: float) -> None:
    """AB-R4: b_next/b = 1/theta^2 on the average of ||g||^2; 6 standard errors are below 5 %."""
    rng = np.random.default_rng(1)
    batch, width, ratios = 32, 30, []
    for _ in range(400):
        sample = rng.standard_normal((batch, width))
        mean, trace = sample.mean(0), sample.var(0, ddof=1).sum()
        reading = GradientNoise(mean @ mean - trace / batch, trace, float(width), batch)
        _, proposal = NormTest(theta).propose({}, reading, lr=0.1, batch_size=batch, samples=batch, bounds=ANY)
        ratios.append(batch / proposal)
    assert np.mean(ratios) == pytest.approx(theta**2, rel=0.05)


def test_the_inner_product_test_falls_in_pure_noise() -> None:
    """AB-R4: b_next/b = 1/(theta^2 d), where the variance along g outweighs that across it."""
    batch, width = 3200, 20.0
    reading = GradientNoise(0.0, width, width, batch)
    _, proposal = InnerProduct().propose({}, reading, lr=0.1, batch_size=batch, samples=batch, bounds=ANY)
    assert proposal / batch == pytest.approx(1 / (0.81 * width))
    _, proposal = InnerProduct(theta=9.0).propose({}, reading, lr=0.1, batch_size=batch, samples=batch, bounds=ANY)
    assert proposal / batch == pytest.approx(0.95 / 5.84**2)


def test_the_noise_scale_is_a_ratio_of_averages() -> None:
    """It converges to V/A on readings half of which are negative, where a mean of ratios would not."""
    rng, controller = np.random.default_rng(2), NoiseScale(scale=2.0, smoothing=0.999)
    state = controller.initial_state()
    for step in range(1, 20_001):
        reading = GradientNoise(0.5 + 3.0 * rng.standard_normal(), 20.0 + rng.standard_normal(), 20.0, 64)
        state, proposal = controller.propose(
            state, reading, lr=0.1, batch_size=64.0, samples=64 * step, bounds=(1.0, 1e6)
        )
    assert proposal == pytest.approx(80.0, rel=0.5)
    assert (
        controller.propose(state, GradientNoise(-1e6, 1.0, 1.0, 8), lr=0.1, batch_size=64.0, samples=8, bounds=ANY)[1]
        == 64.0
    )


def test_the_norm_test_takes_the_largest_size_where_it_sees_no_gradient() -> None:
    reading = GradientNoise(-1.0, 20.0, 20.0, 16)
    assert NormTest(0.9).propose({}, reading, lr=0.1, batch_size=64.0, samples=64, bounds=(8.0, 512.0))[1] == 512.0


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
        ),
        max_size=12,
    ),
    lr=st.sampled_from([0.0, 1e-20, 1e-6, 0.1, 0.5, 0.99]),
)
def test_proposals_stay_finite_and_in_bounds(
    controller: Controller, readings: list[tuple[float, float, float, int, bool]], lr: float
) -> None:
    state, samples, batch = controller.initial_state(), 0, 32.0
    for signal, noise, participation, size, measured in readings:
        samples += int(batch)
        reading = GradientNoise(signal, noise, participation, size) if measured else None
        state, batch = controller.propose(
            state, reading, lr=lr, batch_size=batch, samples=samples, bounds=(8.0, 4096.0)
        )
        assert 8.0 <= batch <= 4096.0
        assert all(type(value) is float and math.isfinite(value) for value in state.values())


@every_controller
def test_a_controller_is_pure_and_its_state_is_json(controller: Controller) -> None:
    assert is_dataclass(controller) and controller == type(controller)()
    with pytest.raises(AttributeError):
        setattr(controller, fields(controller)[0].name if fields(controller) else "name", 1.0)
    state = controller.initial_state()
    for step in range(1, 5):
        kept = dict(state)
        calls = [
            controller.propose(
                given,
                GradientNoise(1.0 / step, 20.0, 15.0, 64),
                lr=0.3,
                batch_size=64.0,
                samples=64 * step,
                bounds=ANY,
            )
            for given in (state, json.loads(json.dumps(state)))
        ]
        assert calls[0] == calls[1] and state == kept
        assert calls[0][0].keys() == kept.keys()
        state = calls[0][0]


@every_controller
@pytest.mark.parametrize("reading", [None, GradientNoise(math.nan, 1.0, 1.0, 8), GradientNoise(1.0, 0.0, 1.0, 8)])
def test_the_size_stays_before_the_first_usable_reading(controller: Controller, reading: GradientNoise | None) -> None:
    state = controller.initial_state()
    assert controller.propose(state, reading, lr=0.3, batch_size=48.0, samples=48, bounds=ANY) == (
        state,
        48.0,
    )


def test_a_step_of_length_zero_changes_nothing_in_go_f() -> None:
    reading = GradientNoise(1.0, 20.0, 20.0, 64)
    state, size = GOF().propose(GOF().initial_state(), reading, lr=0.3, batch_size=64.0, samples=64, bounds=ANY)
    assert GOF().propose(state, reading, lr=0.0, batch_size=64.0, samples=128, bounds=ANY) == (state, size)


def test_fixed_stays() -> None:
    reading = GradientNoise(1.0, 20.0, 20.0, 64)
    assert Fixed().propose({}, reading, lr=5.0, batch_size=48.0, samples=48, bounds=ANY) == ({}, 48.0)


@pytest.mark.parametrize("controller", [GOF(), NormTest()])
@pytest.mark.parametrize("lr", [1.0, 2.0, -0.1, math.nan])
def test_a_step_outside_the_rule_is_an_error(controller: Controller, lr: float) -> None:
    with pytest.raises(ValueError, match=r"0 <= lr < 1.*NormTest\(theta=0.9\)"):
        controller.propose(controller.initial_state(), None, lr=lr, batch_size=8.0, samples=8, bounds=ANY)


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


ladder = {
    "previous": st.integers(1, 5000),
    "ratio": st.floats(0.3, 3.0) | st.floats(1e-4, 1e4),
    "lo": st.integers(1, 64),
    "width": st.integers(8, 4096),
    "multiple": st.integers(1, 8),
}


@quick
@given(**ladder, wobbles=st.lists(st.floats(0.96, 1.04), min_size=2, max_size=8))
@example(previous=1, ratio=2.3125, lo=1, width=8, multiple=1, wobbles=[1.03125, 0.96875])
def test_quantised_sizes_are_allowed_and_do_not_flap(
    previous: int, ratio: float, lo: int, width: int, multiple: int, wobbles: list[float]
) -> None:
    """Proposals within 4 % of one another move the size once at most."""
    sizes, low, high = [previous], multiple * math.ceil(lo / multiple), multiple * ((lo + width) // multiple)
    for wobble in wobbles:
        proposed = min(max(ratio * previous * wobble, low + 0.1), high - 0.1)
        sizes.append(quantise(sizes[-1], proposed, lo, lo + width, multiple=multiple))
        assert lo <= sizes[-1] <= lo + width and sizes[-1] % multiple == 0
    assert sum(a != b for a, b in pairwise(sizes)) <= 1


@quick
@given(**ladder, more=st.floats(1.0, 100.0))
def test_quantised_sizes_grow_with_the_proposal(
    previous: int, ratio: float, lo: int, width: int, multiple: int, more: float
) -> None:
    proposals = ratio * previous, more * ratio * previous
    low, high = (quantise(previous, proposal, lo, lo + width, multiple=multiple) for proposal in proposals)
    assert low <= high


def test_quantised_sizes_move_by_clear_gains_both_ways_and_reach_the_bounds() -> None:
    assert [quantise(64, p, 8, 1000) for p in (50.0, 64.0, 82.0)] == [64, 64, 64]
    assert [quantise(64, p, 8, 1000) for p in (84.0, 128.0, 45.0, 16.0)] == [91, 128, 45, 16]
    assert [quantise(64, p, 8, 1000) for p in (2000.0, 1.0)] == [1000, 8]
    assert quantise(100, 100.0, 8, 1000) == 100
    assert [quantise(800, 1000.0, 8, 1000), quantise(9, 8.0, 8, 1000)] == [1000, 8]
    assert quantise(100, 100.0, 8, 1000, multiple=8) == 88


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((8, math.nan, 1, 9), "finite"), ((8, 8.0, 9, 8), "1 <= lo <= hi"), ((0, 8.0, 1, 9), "positive")],
)
def test_quantise_refuses_what_has_no_answer(arguments: tuple[int, float, int, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        quantise(*arguments)
    with pytest.raises(ValueError, match="no multiple of 16"):
        quantise(8, 8.0, 1, 9, multiple=16)
