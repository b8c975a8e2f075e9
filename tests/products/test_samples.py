"""Products of the data that were given: the same samples in every pass, and a loss that is the mean over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fisheropt.inference import sandwich
from fisheropt.products import EmpiricalFisher, Hessian, ModelFisher
from tests.inference.fits import features, fitted


def classes(samples: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(samples, 4, generator=generator), torch.randint(0, 3, (samples,), generator=generator)
    )


class Augmented(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(4), index % 3


def product(kind: Any, data: Any) -> Any:
    return kind(nn.Linear(4, 3), "categorical" if kind is ModelFisher else F.cross_entropy, data)


@pytest.mark.parametrize("kind", [Hessian, ModelFisher, EmpiricalFisher])
@pytest.mark.parametrize(
    "data",
    [DataLoader(classes(), 60, shuffle=True, drop_last=True), DataLoader(Augmented(), 16)],
    ids=["drop_last", "augmented"],
)
def test_other_samples_in_another_pass_are_refused(kind: Any, data: Any) -> None:
    found = product(kind, data)
    assert found.samples in (60, 32)
    with pytest.raises(ValueError, match=r"other samples before.*write data=list\(loader\)"):
        found.dense()


def test_other_labels_in_another_pass_are_refused() -> None:
    x, y = classes().tensors
    data = [(x, y)]
    found = product(EmpiricalFisher, data)
    found.dense()
    data[0] = (x, (y + 1) % 3)
    with pytest.raises(ValueError, match="64 other samples before"):
        found.dense()


@pytest.mark.parametrize("kind", [Hessian, ModelFisher, EmpiricalFisher])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_another_order_is_the_same_data(kind: Any, shift: float) -> None:
    x, y = classes(300).tensors
    found = product(kind, DataLoader(TensorDataset(x + shift, y), 7, shuffle=True))
    v = torch.arange(15.0)
    first = found @ v
    torch.testing.assert_close(found @ v, first, rtol=1e-3, atol=1e-3 * float(first.abs().max()))


def weighted(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(z, y, weight=torch.tensor([1.0, 5.0, 20.0]).to(z))


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_class_weights_are_refused_where_samples_count_alone(start: float) -> None:
    """At weights of zero too, where all losses are the same."""
    model = nn.Linear(4, 3)
    for p in model.parameters():
        p.data.mul_(start)
    x, y = classes().tensors
    alike = torch.zeros(8, dtype=torch.long)
    with pytest.raises(ValueError, match=r"class weights.*reduction='none'"):
        EmpiricalFisher(model, weighted, [(x[:8], alike), (x, y)]).dense()
    with pytest.raises(ValueError, match=r"class weights.*reduction='none'"):
        EmpiricalFisher(model, weighted, [(x, y)]).quadratic(torch.ones(15))
    Hessian(model, weighted, [(x, y)]).dense()


def test_the_loss_that_the_error_asks_for_is_taken() -> None:
    w, (x, y), model = torch.tensor([1.0, 5.0, 20.0]), classes().tensors, nn.Linear(4, 3)

    def loss(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (w[target] * F.cross_entropy(z, target, reduction="none")).mean()

    scores = w[y, None] * (model(x).softmax(1) - F.one_hot(y, 3)).detach()
    expected = torch.einsum("na,nb->ab", scores, scores) / 64
    found = EmpiricalFisher(model, loss, [(x, y)], ["bias"]).dense()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_class_weights_are_refused_by_the_sandwich() -> None:
    x = features(200, 2, 0)
    y = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(1))

    def loss(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        z = torch.cat((z, torch.zeros_like(z)), 1)
        return F.cross_entropy(z, target, weight=torch.tensor([1.0, 5.0]).to(z))

    model = fitted(nn.Linear(2, 1, dtype=torch.float64), x, y, loss)
    with pytest.raises(ValueError, match=r"sandwich.*class weights"):
        sandwich(model, [(x, y)], loss=loss)


@pytest.mark.parametrize("loss", [F.mse_loss, F.huber_loss, F.smooth_l1_loss, F.l1_loss, F.softplus])
def test_hessians_of_losses_without_a_forward_derivative(loss: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x, y = features(20, 2, 0), features(20, 1, 1)
    value = (lambda z, _: F.softplus(z).mean()) if loss is F.softplus else loss
    found = Hessian(model, value, [(x, y)]).dense()
    values = tuple(model.parameters())

    def of(*parts: torch.Tensor) -> torch.Tensor:
        put = dict(zip(dict(model.named_parameters()), parts, strict=True))
        return value(torch.func.functional_call(model, put, x), y)

    rows = torch.autograd.functional.hessian(of, values)
    expected = torch.cat(
        [
            torch.cat([b.flatten(p.ndim).flatten(0, p.ndim - 1) for b in row], 1)
            for row, p in zip(rows, values, strict=True)
        ]
    )
    torch.testing.assert_close(found, expected)
