"""The cost table: ratios are of neighbours in time, peaks are true, shares add up, and what is absent is listed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisheropt
from recipes import measure
from recipes.measuring import conduct, memory, schedule, turns
from recipes.measuring.choices import choices
from recipes.measuring.models import QUICK, SUBJECTS, Subject
from recipes.measuring.row import EACH, MEASURED, ORDINARY, NothingThere, Prepared, Row
from recipes.measuring.statistics import statistics
from recipes.measuring.table import ratio, table
from recipes.measuring.targets import Target, targets
from recipes.measuring.trainee import Trainee

CPU = torch.device("cpu")
MIB = 2**20
TINY = Subject("tiny", "a layer of 6", lambda: nn.Linear(6, 10), lambda n: torch.randn(n, 6), 10, 8)


def quiet(done: float, words: str) -> None:
    assert 0 <= done <= 1 and words


def test_peaks_are_those_of_the_second_run() -> None:
    held: list[Tensor] = []

    def call() -> None:
        first = torch.empty(MIB)  # 4 MiB
        second = torch.empty(MIB // 2)
        del first
        third = torch.empty(MIB // 4)
        held[:] = [torch.empty(MIB // 8)]  # replaced: there before as after
        del second, third

    assert memory.peak(call, CPU) == 6 * MIB


def test_what_is_held_already_is_not_new() -> None:
    held = [torch.empty(MIB)]

    def replace() -> None:
        held[0] = torch.empty(0)
        held[0] = torch.empty(MIB)

    assert memory.peak(replace, CPU) == 0
    assert memory.highest([]) == 0
    assert memory.highest([4, -4, 3, 2, -5, 1]) == 5


def test_scratch_inside_an_operator_counts() -> None:
    image = torch.randn(1, 8, 32, 32)
    kernel = torch.randn(8, 8, 3, 3, dtype=torch.float64)
    columns = 8 * 9 * 32 * 32 * 8
    seen = memory.peak(lambda: nn.functional.conv2d(image.double(), kernel, padding=1), CPU)
    assert seen > columns, "a convolution in double unfolds its input"


def test_what_is_kept_is_what_outlives_the_making() -> None:
    def make() -> list[Tensor]:
        scratch = torch.empty(MIB)
        return [scratch[:1].clone(), torch.empty(MIB // 2)]

    assert memory.kept(make, CPU) == 2 * MIB + 4


@pytest.mark.parametrize("every", [1, 4, 10, "auto"])
def test_the_schedule_is_the_optimizers_own(every: Any) -> None:
    trainee = Trainee(TINY, CPU)
    optimizer = fisheropt.FisherFloorSGD(trainee.model, 1e-3, every=every)
    seen = []
    for step in range(30):
        expected = schedule.due(optimizer, [step, step + 7])[0]
        assert optimizer.param_groups[0]["steps"] == step, "asking leaves the optimizer as it was"
        before = optimizer.param_groups[0]["measured"]
        trainee.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(optimizer.param_groups[0]["measured"] > before)
        assert seen[-1] == expected
    assert any(seen)
    if isinstance(every, int):
        assert schedule.share(optimizer) == pytest.approx(1 / every)


def test_a_cost_that_comes_now_and_then_is_not_lost_in_a_median() -> None:
    ordinary, measured = [1.0] * 20, [2.0, 2.0, 2.0, 2.0, 12.0] * 4
    seen = schedule.amortised(ordinary, measured, 0.1)
    assert seen.median == pytest.approx(0.9 * 1 + 0.1 * 4)
    assert seen.low < seen.median < seen.high
    assert schedule.amortised(ordinary, measured, 0.0).median == 1.0
    assert schedule.amortised(ordinary, measured, 1.0).median == pytest.approx(4.0)


def test_an_amortised_ratio_is_as_uncertain_as_both_of_its_parts() -> None:
    spread, still = [0.9, 1.0, 1.1] * 10, [1.0] * 30
    assert _width(schedule.amortised(still, still, 0.5)) == 0
    for parts in ((spread, still), (still, spread)):
        assert 0 < _width(schedule.amortised(*parts, 0.5)) < _width(schedule.amortised(spread, spread, 0.5))


def _width(interval: Any) -> float:
    return float(interval.high - interval.low)


def test_each_call_is_compared_with_the_plain_one_just_before_it() -> None:
    plain, cheap, dear = (lambda: None), (lambda: 0), (lambda: 1)
    steps = iter(range(10**6))

    def seconds(call: Any) -> float:
        machine = 1.5 ** (next(steps) // 2)  # slower with every pair
        return {plain: 1.0, cheap: 2.0, dear: 5.0}[call] * machine

    seen = turns.take_turns({"a": turns.Pair(plain, cheap), "b": turns.Pair(plain, dear)}, 4, seconds, quiet)
    assert seen["a"].ratios == [2.0] * 4
    assert seen["b"].ratios == [5.0] * 4


def test_long_calls_have_fewer_turns_and_those_that_break_have_none() -> None:
    plain, long = (lambda: None), (lambda: 0)

    def broken() -> None:
        raise ValueError("first\nsecond")

    def seconds(call: Any) -> float:
        call()
        return 2.0 if call is long else 1.0

    pairs = {"long": turns.Pair(plain, long), "broken": turns.Pair(plain, broken), "short": turns.Pair(plain, plain)}
    seen = turns.take_turns(pairs, 8, seconds, quiet)
    assert len(seen["long"].ratios) == turns.LEAST
    assert seen["broken"].ratios == [] and seen["broken"].failed == "ValueError: first"
    assert len(seen["short"].ratios) == 5, "a second each, and more than four"


@pytest.fixture(scope="module")
def records() -> list[conduct.Record]:
    """Statistics, an optimizer of ours and of torch's, and three rows that come to nothing."""

    def refuses(subject: Subject, device: torch.device) -> Prepared:
        raise RuntimeError("no such layer | here\nmore of it")

    def nothing(subject: Subject, device: torch.device) -> Prepared:
        raise NothingThere

    chosen = measure.chosen_rows("noise,16 rank-one,FisherFloorSGD,AdamW")
    strangers = [
        Row("absent", "peers", refuses, "no_such_package"),
        Row("refusing", "peers", refuses),
        Row("empty", "peers", nothing),
    ]
    return list(conduct.measure(TINY, [*chosen, *strangers], 3, CPU, quiet))


def test_every_row_has_a_record(records: list[conduct.Record]) -> None:
    by = {record["row"]: record for record in records}
    assert by["absent"]["why"] == "not installed"
    assert by["refusing"]["why"] == "refused: RuntimeError: no such layer | here"
    assert by["empty"]["why"] == by["noise trace, normalisation only"]["why"] == "–"
    trace, floor, adam = by["noise trace"], by["FisherFloorSGD"], by["AdamW"]
    assert set(trace["calls"]) == set(adam["calls"]) == {EACH}
    assert set(floor["calls"]) == {ORDINARY, MEASURED}
    assert floor["share"] > 0 and floor["kept"] > 0
    parts = [floor["calls"][kind]["ratio"]["median"] for kind in (ORDINARY, MEASURED)]
    assert min(parts) * 0.5 < floor["amortised"]["median"] < max(parts) * 2
    assert floor["first"]["median"] > 0
    weights = 4 * 70
    assert adam["kept"] >= 2 * weights
    plain, own = trace["bytes"]["plain"], trace["bytes"][EACH]
    assert trace["memory"][EACH] == own / plain
    plain, own = floor["bytes"]["plain"], floor["bytes"][MEASURED]
    assert own > plain and floor["memory"][MEASURED] == (weights + own) / (weights + plain)


def test_the_table_has_all_of_it(records: list[conduct.Record]) -> None:
    by = {record["row"]: record for record in records}
    seen = by["noise trace"]["calls"][EACH]["ratio"]["median"]
    aims = [
        Target("noise trace", "tiny", "time", 2 * seen, "1.08"),
        Target("AdamW", "tiny", "time", 1e-3),
        Target("nobody", "tiny", "time", 1.0),
    ]
    text = table(records, [TINY], aims, "here and now")
    assert "**1 of 2 met.**" in text
    assert f"| noise trace | tiny | time | {ratio(seen)} (" in text
    assert "✓" in text and "**✗** 0.00" in text and "**missed by" in text
    assert "| absent | not installed |" in text
    assert "| refusing | refused [" in text
    assert "1. RuntimeError: no such layer | here" in text
    assert "| empty | – |" in text
    assert "*here and now.*" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_choices_of_the_work_model_are_counted() -> None:
    good = {"form": "Outer (1, 1)", "quantity": "norms", "chosen": "a", "seconds": {"a": 1.0, "b": 2.0}, "regret": 1.0}
    bad = good | {"chosen": "b", "regret": 2.0}
    assert "**2 of 2 choices" in choices([good, good]) and "| b |" not in choices([good, good])
    text = choices([good, bad, good])
    assert "**2 of 3 choices take at most 1.2 times" in text and "median 1.00, worst 2.00" in text
    assert "| Outer (1, 1) | norms | b | a | 2.00 |" in text


def test_targets_name_rows_and_models_that_there_are() -> None:
    names = {row.name for row in measure.all_rows()}
    for device in ("cpu", "cuda"):
        found = targets(device)
        assert found and {target.row for target in found} <= names
        assert {target.subject for target in found} <= set(SUBJECTS)
    assert Target("a", "b", "time", 1.0).verdict(1.0) == "met"
    assert Target("a", "b", "time", 1.2).verdict(1.5) == "missed by 25 %"


@pytest.mark.parametrize("row", statistics(), ids=lambda row: row.name)
def test_statistics_leave_nothing_behind(row: Row) -> None:
    try:
        prepared = row.prepare(QUICK["transformer"], CPU)
    except NothingThere:
        pytest.fail("the transformer has all that there is to measure")
    if row.name == "whole covariance":
        return
    assert memory.kept(prepared.calls[EACH], CPU) == 0
    trainee = Trainee(QUICK["transformer"], CPU)
    assert prepared.settle is not None and prepared.settle(trainee) is not None
    assert all(p.grad is None for p in trainee.model.parameters())


def test_models_are_those_of_the_design() -> None:
    sizes = {name: [p.numel() for p in SUBJECTS[name].build().parameters()] for name in ("mlp", "cnn", "transformer")}
    assert {name: sum(found) for name, found in sizes.items()} == {"mlp": 669706, "cnn": 206922, "transformer": 867328}
    assert len(sizes["transformer"]) == 54


@pytest.mark.parametrize("subject", QUICK.values(), ids=QUICK)
def test_models_take_their_batches(subject: Subject) -> None:
    trainee = Trainee(subject, CPU)
    trainee.backward()
    assert all(p.grad is not None for p in trainee.model.parameters())
    trainee.clear()
    again = Trainee(subject, CPU)
    for mine, its in zip(trainee.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, its) and mine.grad is None


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["measure.py", "--device=cpu", f"--folder={tmp_path}", *words])
        measure.main()

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_the_command_leaves_a_table_and_its_numbers(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("--quick", "--models=mlp", "--rows=noise trace,AdamW", "--rounds=1")
    found = json.loads((tmp_path / "result_cpu.json").read_text())
    assert [record["row"] for record in found["records"]] == ["noise trace", "AdamW"]
    text = (tmp_path / "table_cpu.md").read_text()
    assert "| noise trace | " in text and "| mlp | AdamW | " in text
    assert "`python recipes/measure.py --models mlp --rows noise trace,AdamW --rounds 1 --quick`" in text
    assert f"table: {tmp_path / 'table_cpu.md'}" in capsys.readouterr().out


def test_words_that_mean_nothing_are_refused(command: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match="--models mpl: there is mlp.*write --models 'mlp'"):
        command("--quick", "--models=mpl")
    with pytest.raises(SystemExit, match="--rows tracer: there is .*write --rows 'noise trace'"):
        command("--quick", "--rows=tracer")
    with pytest.raises(SystemExit, match="--docs writes the whole table"):
        command("--quick", "--docs")


def test_rows_are_chosen_by_part_or_by_words() -> None:
    assert {row.part for row in measure.chosen_rows("statistics")} == {"statistics"}
    assert [row.name for row in measure.chosen_rows("noise trace")] == ["noise trace"]
    assert {"AdamW", "SINGD"} == {row.name for row in measure.chosen_rows("adamw,singd")}
    assert len(measure.chosen_rows(None)) == len(measure.all_rows())
    assert len({row.name for row in measure.all_rows()}) == len(measure.all_rows())
    keys = [subject.key for subject in measure.chosen_subjects(None, CPU, quick=False)]
    assert keys == ["mlp", "cnn", "transformer"]
