"""Studies of the floor, small: rows come out and hold, a fault in what they measure makes a row fail."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from fisheropt import FisherFloorSGD
from recipes.drawing import svg
from recipes.studies import (
    floor_accuracy,
    floor_certificates,
    floor_collapse,
    floor_logistic,
    floor_mixture,
    floor_network,
    floor_penalty,
    floor_promises,
    floor_rate,
    floor_scaling,
    floor_transition,
)
from recipes.studies.base import Finding, Findings, Study, StudyError
from recipes.studies.draws import share
from recipes.studies.floor_samples import FAMILIES, crossing, extremes, standard_scores
from tests.recipes.harness import CONF

STUDIES: dict[str, tuple[type[Study], dict[str, Any]]] = {
    "accuracy": (floor_accuracy.FloorAccuracy, {"data": ["iris"], "held_out": [0.7], "seeds": 10, "epochs": 3}),
    "certificates": (
        floor_certificates.FloorCertificates,
        {"seeds": 2, "weights": [300, 1000], "steps": 200, "starts": 4, "depths": [10, 20]},
    ),
    "collapse": (
        floor_collapse.FloorCollapse,
        {"dimensions": [5, 10], "ratios": [1.5, 2], "draws": 40, "runs": 4, "steps": 1500},
    ),
    "mixture": (
        floor_mixture.FloorMixture,
        {"dimensions": [8, 16], "clear": [8, 12, 16], "blurred": [51.8, 110], "draws": 12},
    ),
    "network": (floor_network.FloorNetwork, {"runs": 1, "steps": 40}),
    "penalty": (floor_penalty.FloorPenalty, {"runs": 2, "steps": 400}),
    "promises": (
        floor_promises.FloorPromises,
        {"data_sets": 60, "families": ["gaussian", "student"], "sizes": [[2, 60]]},
    ),
    "rate": (floor_rate.FloorRate, {"dimension": 6, "runs": 3, "steps": 500}),
    "scaling": (floor_scaling.FloorScaling, {"dimensions": [20, 60], "ratios": [0.02, 0.1], "draws": 10}),
    "transition": (
        floor_transition.FloorTransition,
        {"dimensions": [8, 32], "ratios": [6, 10, 11.66, 16, 19.8, 26, 34], "draws": 60},
    ),
}
LOOSE = {
    "mixture": ("51.8: P(λ_min", "P(raw reading", "largest distance"),
    "transition": ("n/d = 16", "n/d = 19.8", "n/d = 10", "its distance"),
    "network": ("no floor",),
    "collapse": ("n/d = 1.5: ",),
    "penalty": ("no penalty", "a/τ = 10:"),
}
"""Pieces of rows that so small a run, or another dimension, need not meet."""


@functools.cache
def plain(name: str) -> Findings:
    return conducted(name)


def conducted(name: str, seed: int = 0, **changes: Any) -> Findings:
    kind, small = STUDIES[name]
    told: list[float] = []
    findings = kind(**small | changes, seed=seed).run(lambda done, words: told.append(round(done, 9)))
    assert told == sorted(told) and told[-1] <= 1, "progress goes up to one"
    return findings


def missed(findings: Findings) -> list[str]:
    return [row.what for row in findings.rows if row.holds is False]


@pytest.mark.parametrize("name", STUDIES)
def test_small_runs_hold(name: str) -> None:
    findings = plain(name)
    assert findings.rows and findings.pictures
    assert [what for what in missed(findings) if not any(piece in what for piece in LOOSE.get(name, ()))] == []
    for picture in findings.pictures:
        assert svg(picture.draw, width=picture.width, height=picture.height, rows=picture.rows).count("<path") > 5


@pytest.mark.parametrize("name", ["certificates", "promises", "rate", "scaling"])
def test_equal_seeds_give_equal_rows(name: str) -> None:
    assert conducted(name).rows == plain(name).rows
    assert plain(name).rows != conducted(name, seed=1).rows


def wider(d: int, n: int, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    errors, smallest = extremes(d, n, draws, generator)
    return 1.3 * errors, smallest / 1.3


def half_a_step(data: Any, steps: int, lr: Any, **rest: Any) -> Tensor:
    return floor_logistic.descend(data, steps, lr / 2, **rest)


def boastful(*arguments: Any, **keywords: Any) -> Any:
    bound = floor_certificates_bound(*arguments, **keywords)
    return dataclasses.replace(bound, value=bound.value + 2 * bound.resolution)


def certain(scores: Tensor, **keywords: Any) -> Any:
    level = floor_promises_level(scores, **keywords)
    return dataclasses.replace(level, value=level.value / 5)


def doubled(data: Any, theta: Tensor) -> Tensor:
    return 2 * fisher(data, theta)


def only_watching(task: floor_network.Task, weight: float, smoothing: float) -> Any:
    return lambda model: FisherFloorSGD(model, lr=0.2, mode="monitor", directions=task.directions)


fisher = floor_logistic.Data.fisher
floor_certificates_bound = floor_certificates.lanczos_lower_bound
floor_promises_level = floor_promises.lambda_star

FAULTS: list[tuple[str, Any, str, Callable[..., Any], str]] = [
    ("scaling", floor_scaling, "extremes", wider, "median error"),
    ("transition", floor_transition, "extremes", wider, "n/d = 26"),
    ("mixture", floor_mixture, "maximum_likelihood", lambda start, points: start, "r = 1/2, n/d = 51.8: P(error"),
    ("mixture", floor_mixture, "threshold_ratio", lambda ratio: 20.0, "Gaussian formula"),
    ("collapse", floor_collapse, "separability_probability", lambda n, d: 0.5, "P(separable)"),
    ("collapse", floor_logistic.Data, "fisher", doubled, "n/d = 4: λ_min"),
    ("network", floor_network, "_floored", only_watching, "min(EMA .9, current): min"),
    ("rate", floor_rate, "descend", half_a_step, "contraction"),
    ("penalty", floor_logistic.Penalty, "slope", lambda self, least: 0 * least, "a/τ = 1000: smallest"),
    ("certificates", floor_certificates, "lanczos_lower_bound", boastful, "Lanczos steps"),
    ("certificates", floor_certificates, "_promised", lambda *_: torch.full((2,), 1.2), "guarantee"),
    ("promises", floor_promises, "lambda_star", certain, "student scores, bootstrap: rate"),
]


@pytest.mark.parametrize(("name", "place", "attribute", "fault", "row"), FAULTS)
def test_a_fault_makes_a_row_fail(
    name: str, place: Any, attribute: str, fault: Callable[..., Any], row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(row in what for what in missed(plain(name))), "holds without the fault"
    monkeypatch.setattr(place, attribute, fault)
    assert any(row in what for what in missed(conducted(name)))


def test_accuracy_says_which_way_it_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer that hardly moves is called worse, and the same one no different."""
    remarks = [row.remark for row in plain("accuracy").rows]
    assert "no difference shown" in remarks[0]

    class Slow(floor_accuracy.FisherFloorSGD):
        def __init__(self, model: Any, lr: float, likelihood: Any) -> None:
            super().__init__(model, lr / 500, likelihood=likelihood)

    monkeypatch.setattr(floor_accuracy, "FisherFloorSGD", Slow)
    slow = conducted("accuracy", epochs=10).rows
    assert slow[1].seen > 0 and slow[1].remark.startswith("worse")


@pytest.mark.parametrize("name", STUDIES)
def test_the_yaml_lists_every_keyword(name: str) -> None:
    kind, _ = STUDIES[name]
    study = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"floor_{name}.yaml"))["study"]
    assert study.pop("_target_") == f"{kind.__module__}.{kind.__qualname__}"
    assert study.pop("seed") == "${seed}"
    defaults = {key: p.default for key, p in inspect.signature(kind).parameters.items() if key != "seed"}
    assert set(study) == set(defaults)
    plain = OmegaConf.to_container(OmegaConf.create({key: _listed(value) for key, value in defaults.items()}))
    assert study == plain


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("accuracy", {"seeds": 3}),
        ("accuracy", {"lr": 0.0}),
        ("certificates", {"delta": 2.0}),
        ("certificates", {"weights": [0.0]}),
        ("collapse", {"steps": 5}),
        ("collapse", {"ratios": [3, 2]}),
        ("mixture", {"draws": 1}),
        ("network", {"steps": 0}),
        ("penalty", {"samples": 5}),
        ("promises", {"sizes": [[9, 3]]}),
        ("promises", {"families": ["cauchy"]}),
        ("rate", {"strength": -1.0}),
        ("scaling", {"dimensions": [5]}),
        ("transition", {"draws": 0}),
    ],
)
def test_bad_settings_say_what_to_write(name: str, setting: dict[str, Any]) -> None:
    kind, small = STUDIES[name]
    (key,) = setting
    with pytest.raises(StudyError, match=f"{key}=.*: write ") as caught:
        kind(**small | setting)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_the_identity_as_fisher_matrix(family: str) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = standard_scores(family, (40, 4000, 3), generator)
    moments = scores.mT @ scores / 4000
    error = moments.std(0) / 40**0.5
    assert ((moments.mean(0) - torch.eye(3)).abs() <= 4.5 * error).all()
    assert (scores.mean((0, 1)).abs() < 5 / 400).all()


def test_shares_and_crossings() -> None:
    seen, error = share(torch.tensor([True] * 20 + [False] * 20))
    assert (seen, round(error, 3)) == (0.5, 0.079)
    assert share(torch.zeros(50))[1] > 0, "no share is known without an error"
    assert crossing([1, 2, 4], [0.0, 0.2, 0.8], 0.5) == pytest.approx(3.0)
    assert crossing([1, 2], [0.0, 0.2], 0.5) != crossing([1, 2], [0.0, 0.2], 0.5), "NaN where it is not reached"


def test_derivatives_of_the_penalised_loss() -> None:
    generator = torch.Generator().manual_seed(4)
    data = floor_logistic.draw(3, 40, 4, generator, strength=1.0)
    theta = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(data.loss(theta).sum(), theta)
    torch.testing.assert_close(data.gradient(theta), gradient)
    (curvature,) = torch.autograd.grad(data.gradient(theta)[:, 0].sum(), theta)
    torch.testing.assert_close(data.fisher(theta)[:, 0], curvature)
    values, vectors = torch.linalg.eigh(data.fisher(theta))
    for squared in (False, True):
        penalty = floor_logistic.Penalty(3 * values[:, 0].detach(), 3.0, squared)
        (exact,) = torch.autograd.grad(penalty.value(values[:, 0]).sum(), theta, retain_graph=True)
        lifted = data.lifting(theta, vectors[..., 0]) * penalty.slope(values[:, 0])[:, None]
        torch.testing.assert_close(-lifted, exact)


def test_newton_finds_the_estimate() -> None:
    data = floor_logistic.draw(5, 90, 6, torch.Generator().manual_seed(5), strength=1.0, separable=False)
    assert float(data.gradient(floor_logistic.maximum_likelihood(data)).norm()) < 1e-12


def test_data_that_cannot_be_drawn_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor_logistic, "REFUSED", 3)
    with pytest.raises(StudyError, match="0 of 2 data sets were separable: write another n/d"):
        floor_logistic.draw(2, 200, 2, torch.Generator().manual_seed(0), separable=True)


def test_every_row_has_its_own_name() -> None:
    for name in STUDIES:
        rows: tuple[Finding, ...] = plain(name).rows
        assert len({row.what for row in rows}) == len(rows)
