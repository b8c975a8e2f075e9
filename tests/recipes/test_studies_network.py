"""The study of temperature control on digits, small: its gradients are right, samples are counted, a bad rule misses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import grad, vmap

from fisheropt.control import Controller, Fixed
from fisheropt.control.go_h import GOH
from fisheropt.control.smith import Smith
from fisheropt.theory.sketch import CountSketch
from recipes.studies import batch_network, network_runs
from recipes.studies.base import Findings, StudyError
from recipes.studies.network_runs import DECAY, SIZES, TRAINING, Digits, train


def quiet(done: float, words: str) -> None:
    assert 0 <= done <= 1
    assert words


def missed(findings: Findings) -> list[str]:
    return [row.what for row in findings.rows if row.holds is False]


def start(runs: int) -> Tensor:
    return torch.stack([network_runs._start(seed) for seed in range(runs)])


def test_gradients_are_those_of_autograd() -> None:
    """Mean and mean square of single samples' gradients with the decay in each, three networks at once."""
    theta, generator = start(3) * 2, torch.Generator().manual_seed(0)
    images, labels = torch.rand(3, 5, 64, generator=generator), torch.randint(10, (3, 5), generator=generator)
    weights = torch.tensor([[0.2] * 5, [0.25] * 4 + [0.0], [1.0] + [0.0] * 4])

    def loss(parameters: Tensor, image: Tensor, label: Tensor) -> Tensor:
        first, bias, second, last = parameters.split(SIZES)
        logits = (image @ first.view(64, 32) + bias).tanh() @ second.view(32, 10) + last
        return F.cross_entropy(logits, label) + DECAY / 2 * parameters.square().sum()

    single = vmap(vmap(grad(loss), (None, 0, 0)))(theta, images, labels)
    mean, square = network_runs._gradient(theta, images, labels, weights)
    assert torch.allclose(mean, (single * weights[..., None]).sum(1), atol=1e-6)
    assert torch.allclose(square, (single.square() * weights[..., None]).sum(1), atol=1e-6)


def test_many_sketches_at_once_are_the_sketches() -> None:
    vectors = torch.randn(3, sum(SIZES), generator=torch.Generator().manual_seed(0))
    found = network_runs._sketched(vectors, network_runs._places(256), 256)
    expected = torch.stack([CountSketch(256)([vector]) for vector in vectors])
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_tenth_of_the_labels_is_drawn_anew_and_none_of_the_unseen() -> None:
    digits, data = Digits.load(0), load_digits()
    known = {tuple(row): int(label) for row, label in zip(data.data, data.target, strict=True)}
    clean = torch.tensor([known[tuple((image * 16).double().tolist())] for image in digits.images])
    wrong = int((clean != digits.labels).sum())
    assert 0.08 * TRAINING < wrong <= 0.1 * TRAINING
    unseen = [known[tuple((image * 16).double().tolist())] for image in digits.unseen]
    assert unseen == digits.unseen_labels.tolist() and len(unseen) == 397


@pytest.mark.parametrize("rule", [Fixed(), Smith(), GOH()])
@pytest.mark.parametrize("diagonal", [False, True])
def test_each_rule_uses_the_same_samples(rule: Controller, diagonal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches add up to the budget, and the loss falls."""
    drivers = []
    make = network_runs._Driver.__init__

    def kept(self: network_runs._Driver, *args: object) -> None:
        make(self, *args)  # type: ignore[arg-type]
        drivers.append(self)

    monkeypatch.setattr(network_runs._Driver, "__init__", kept)
    digits = Digits.load(0)
    outcome = train(digits, rule, (0.01, 0.05) if diagonal else (0.1, 0.6), 2, 2, diagonal)
    assert [driver.seen for driver in drivers] == [2 * TRAINING] * 4
    assert float(outcome.objective.max()) < float(network_runs.objective(start(4), digits).min()) - 0.1
    again = train(digits, rule, (0.01, 0.05) if diagonal else (0.1, 0.6), 2, 2, diagonal)
    assert torch.equal(outcome.objective, again.objective) and torch.equal(outcome.steps, again.steps)


def test_a_bad_rule_in_place_of_go_h_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_network, "RATES", {"SGD": (0.6,), "diagonal P": (0.05,)})
    study = batch_network.BatchNetwork(epochs=(2,), seeds=2)
    findings = study.run(quiet)
    assert [what for what in missed(findings) if what.startswith("R5")] == []
    assert len(findings.rows) == 2 * 6 + 1 + 2 and len(findings.pictures) == 1
    monkeypatch.setattr(batch_network, "RULES", batch_network.RULES | {"GO-H": Smith(factor=1e6, stages=(0.1,))})
    assert len([what for what in missed(study.run(quiet)) if what.startswith("R5")]) == 2


def test_settings_are_checked() -> None:
    with pytest.raises(StudyError, match="a standard error needs two"):
        batch_network.BatchNetwork(seeds=1)
    with pytest.raises(StudyError, match="epochs="):
        batch_network.BatchNetwork(epochs=())
