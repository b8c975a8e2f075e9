"""FF-8: the information along directions, its value and its gradient, with optimizers' hooks in place too."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from fisheropt.products import ModelFisher, information
from tests.cases import Tied
from tests.products.test_products import CORES, close, double, jacobian, labelled, small, trainable


def directions_of(model, count):
    return {name: double(count, *p.shape) for name, p in trainable(model).items()}


def flat(directions):
    return torch.cat([v.flatten(1) for v in directions.values()], 1)


def gradient(model, value):
    found = torch.autograd.grad(value, list(trainable(model).values()), materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def difference(model, value, step=1e-4):
    """Central differences of fourth order in every parameter."""
    found = []
    with torch.no_grad():
        for p in trainable(model).values():
            for entry in p.view(-1):
                at = float(entry)
                values = [float(value(entry.fill_(at + s * step))) for s in (-2, -1, 1, 2)]
                entry.fill_(at)
                found.append((values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", CORES)
def test_value_is_that_of_the_explicit_matrix(name):
    model, (x, _) = small(), labelled()
    directions, rows = directions_of(model, 3), jacobian(model, x)
    moved = torch.einsum("nap,kp->nka", rows, flat(directions))
    expected = torch.einsum("nka,nab,nlb->kl", moved, CORES[name](model(x).detach()), moved) / len(x)
    found = information(model, name, x, directions)
    assert close(found.detach(), expected)
    assert close(ModelFisher(model, name, [x]).quadratic(flat(directions).T), expected)


def test_value_is_a_variance_under_the_models_labels():
    """R10: one direction has mean_x Var_p(Jv)."""
    model, (x, _) = small(), labelled()
    directions = directions_of(model, 1)
    t, p = jacobian(model, x) @ flat(directions)[0], model(x).softmax(1).detach()
    expected = ((p * t.square()).sum(1) - (p * t).sum(1).square()).mean()
    assert float(information(model, "categorical", x, directions).detach()) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("name", CORES)
def test_gradient_is_that_of_finite_differences(name):
    model, (x, _) = small(), labelled()
    directions = directions_of(model, 2)

    def value(_=None):
        return information(model, name, x, directions)[0].sum()

    assert close(gradient(model, value()), difference(model, value), 1e-7)


def test_gradient_of_an_eigenvalue_holds_its_vector_fixed():
    """The envelope theorem: grad λ_min = grad of uᵀΓu, u fixed."""
    model, (x, _) = small(), labelled()
    directions = directions_of(model, 3)
    form = information(model, "categorical", x, directions)
    vector = torch.linalg.eigh(form.detach())[1][:, 0]
    smallest = gradient(model, torch.linalg.eigvalsh(form)[0])
    fixed = gradient(model, vector @ information(model, "categorical", x, directions) @ vector)
    assert close(fixed, smallest)


def test_tied_weights_move_together():
    model, x = Tied(3).double(), double(5, 3)
    directions = directions_of(model, 2)
    assert list(directions) == ["first.weight", "first.bias"]
    moved = torch.einsum("nap,kp->nka", jacobian(model, x), flat(directions))
    expected = torch.einsum("nka,nla->kl", moved, moved) / 5
    assert close(information(model, "gaussian", x, directions).detach(), expected)
    renamed = {"last.weight": directions["first.weight"], "first.bias": directions["first.bias"]}
    assert close(information(model, "gaussian", x, renamed).detach(), expected)
    with pytest.raises(ValueError, match="each tensor under one name"):
        information(model, "gaussian", x, directions | renamed)


def test_directions_in_one_parameter():
    model, (x, _) = small(), labelled()
    direction = {"2.bias": double(2, 3)}
    core = CORES["categorical"](model(x).detach()).mean(0)
    expected = direction["2.bias"] @ core @ direction["2.bias"].T
    assert close(information(model, "categorical", x, direction).detach(), expected)


@pytest.mark.parametrize("likelihood", [None, "categorical"])
def test_hooks_of_an_optimizer_change_nothing_and_are_not_changed(likelihood):
    """Value and gradient are the same, and so is what the optimizer reads of the step."""
    readings, found = [], []
    for asked in (False, True):
        torch.manual_seed(1)
        model, (x, y) = small(), labelled()
        directions = directions_of(model, 2)
        opt = fisheropt.FisherFloorSGD(model, lr=0.1, mode="monitor", likelihood=likelihood, every=1)
        for _ in range(3):
            loss = F.cross_entropy(model(x), y)
            if asked:
                form = information(model, "categorical", x, directions)
                found.append(gradient(model, form.trace()))
            loss.backward()
            opt.step(), opt.zero_grad()
        readings.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        readings.append(str(opt.report()))
    assert torch.equal(readings[0], readings[2]) and readings[1] == readings[3]
    torch.manual_seed(1)
    bare, (x, _) = small(), labelled()
    form = information(bare, "categorical", x, directions_of(bare, 2))
    assert torch.equal(gradient(bare, form.trace()), found[0])


def test_autocast_changes_nothing():
    model, x = small().float(), torch.randn(9, 4)
    directions = {name: v.float() for name, v in directions_of(model, 2).items()}
    expected = information(model, "categorical", x, directions)
    with torch.autocast("cpu"):
        assert torch.equal(information(model, "categorical", x, directions), expected)


def test_errors_say_what_to_write():
    model, (x, _) = small(), labelled()
    directions = directions_of(model, 2)
    with pytest.raises(ValueError, match="likelihood=None"):
        information(model, None, x, directions)
    with pytest.raises(ValueError, match="no parameter 'wrong'"):
        information(model, "categorical", x, {"wrong": directions["0.bias"]})
    with pytest.raises(ValueError, match=r"directions\['0.bias'\] has shape \(2, 4\).*\[k, 5\]"):
        information(model, "categorical", x, {"0.bias": double(2, 4)})
    with pytest.raises(ValueError, match="same number k"):
        information(model, "categorical", x, {"0.bias": double(2, 5), "2.bias": double(1, 3)})
    with pytest.raises(ValueError, match="no parameter to differentiate"):
        information(model, "categorical", x, {})
    with pytest.raises(RuntimeError, match=r"Dropout '1' is active.*model\.eval\(\)"):
        information(nn.Sequential(nn.Linear(4, 3), nn.Dropout()).double(), "categorical", x, {"0.bias": double(1, 3)})
