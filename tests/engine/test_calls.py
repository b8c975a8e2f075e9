"""What a call brings of its own: positions for indices, lent buffers, an input that is overwritten."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import fisheropt
from tests.cases import Case, batch, classification, regression, tokens
from tests.engine.test_statistics import EXACT, check_full
from tests.oracle import covariance, flattened, per_sample_gradients


class Positions(nn.Module):
    """Tokens and their places, as written for a row of all places or for one of each sample."""

    def __init__(self, size, expanded):
        super().__init__()
        self.token, self.place, self.last = nn.Embedding(7, 4), nn.Embedding(size, 4), nn.Linear(4, 7)
        self.expanded = expanded

    def forward(self, x):
        places = torch.arange(x.shape[1])
        places = places.expand(len(x), -1) if self.expanded else places
        return self.last(torch.tanh(self.token(x) + self.place(places)))


def sentences(n, size, expanded):
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randint(0, 7, (2, n, size), generator=generator)
    return Case(Positions(size, expanded).double(), (x, y), tokens)


@pytest.mark.parametrize("statistic", [fisheropt.Trace(), fisheropt.SecondMoment(), fisheropt.FullCovariance()])
@pytest.mark.parametrize("n", [5, 6])
def test_positions_are_not_taken_for_samples(n, statistic):
    """Also where there are as many of them."""
    case = sentences(n, 5, False)
    with (
        fisheropt.observe(case.model, statistic),
        pytest.raises(RuntimeError, match=r"positions.*\n?.*expand\(len\(x\)"),
    ):
        case.loss().backward()


@pytest.mark.parametrize("n", [5, 6])
def test_positions_of_each_sample_are_exact(n):
    case = sentences(n, 5, True)
    check_full(case)
    gradients = per_sample_gradients(case)
    case.model.zero_grad()
    with fisheropt.observe(case.model, fisheropt.Trace()) as tap:
        case.loss().backward()
    for p, g in zip(case.model.parameters(), gradients.values(), strict=True):
        found = torch.as_tensor(tap.covariance(p).per_sample().trace())
        torch.testing.assert_close(found.double(), g.var(0).sum(), **EXACT)


class Looked(nn.Module):
    """One index of each sample, found in several ways."""

    def __init__(self, index):
        super().__init__()
        self.table, self.last, self.index = nn.Embedding(7, 4), nn.Linear(4, 3), index

    def forward(self, x):
        return self.last(torch.tanh(self.index(self, x)))


INDICES = {
    "the input": ((), lambda m, x: m.table(x)),
    "made of the only input": ((), lambda m, x: m.table((3 * x + 1) % 7)),
    "a column": ((5,), lambda m, x: m.table(x[:, 2])),
    "made of a column": ((5,), lambda m, x: m.table(((x[:, 2] + 1) % 7)[:, None]).squeeze(1)),
}


@pytest.mark.parametrize("name", INDICES)
def test_indices_of_the_samples_are_exact(name):
    shape, index = INDICES[name]
    x, y = torch.randint(0, 7, (5, *shape)), torch.randint(0, 3, (5,))
    check_full(Case(Looked(index).double(), (x, y), classification))


@pytest.mark.parametrize("index", [lambda m, x: m.table(x[0]), lambda m, x: m.table((x[:, 2] + 1) % 7)])
def test_indices_that_may_be_positions_are_refused(index):
    model, x = Looked(index), torch.randint(0, 7, (5, 5))
    with fisheropt.observe(model, fisheropt.Trace()), pytest.raises(RuntimeError, match="no input of the model"):
        model(x)


class Shifted(nn.Module):
    """Under the generic rule, with a buffer that every call overwrites when it is done."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5))
        self.register_buffer("shift", torch.zeros(5))

    def forward(self, x):
        return torch.tanh(x * self.scale + self.shift)


@pytest.mark.parametrize("build", [lambda: nn.BatchNorm1d(5).eval(), Shifted])
def test_lent_buffers_are_those_of_the_call(build):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), build(), nn.Linear(5, 3)).double()

    generator = torch.Generator().manual_seed(1)
    model, x, y = network(), *batch(4, classes=3)
    lent = {n: 1 + torch.rand(b.shape, generator=generator).to(b) for n, b in model.named_buffers() if b.ndim}
    other = network()
    other.load_state_dict(lent, strict=False)
    gradients = flattened(per_sample_gradients(Case(other, (x, y), classification)))
    with fisheropt.observe(model, fisheropt.FullCovariance()) as tap:
        nn.functional.cross_entropy(functional_call(model, lent, x), y).backward()
    torch.testing.assert_close(tap.covariance().per_sample().matrix(), torch.cov(gradients.T), **EXACT)


class Overwritten(nn.Module):
    """Nothing but the frozen weight would need the layer's input, which is overwritten."""

    def __init__(self):
        super().__init__()
        self.first, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)
        self.layer.weight.requires_grad_(False)

    def forward(self, x):
        h = self.first(x)
        out = self.layer(h)
        h += 1
        return out + h.square()


def test_an_input_may_be_overwritten_where_only_the_bias_learns():
    case = Case(Overwritten().double(), (torch.randn(9, 4).double(), torch.randn(9, 4).double()), regression)
    truth = covariance({n: g for n, g in per_sample_gradients(case).items() if n != "layer.weight"})
    case.model.zero_grad()
    with fisheropt.observe(case.model, fisheropt.FullCovariance()) as tap:
        case.loss().backward()
    torch.testing.assert_close(tap.covariance().per_sample().matrix(), truth, **EXACT)


FROZEN = {
    "Linear": (lambda: nn.Linear(5, 4), (9, 5)),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 2), (9, 2, 5)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 2), (9, 2, 5)),
    "LayerNorm": (lambda: nn.LayerNorm(5), (9, 5)),
    "GroupNorm": (lambda: nn.GroupNorm(1, 5), (9, 5)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(5).eval(), (9, 5)),
}


@pytest.mark.parametrize("name", FROZEN)
def test_beside_a_frozen_weight_a_tap_keeps_no_input(name):
    """And the bias is exact."""
    build, shape = FROZEN[name]
    layer, x = build().double(), torch.randn(shape, dtype=torch.float64)
    layer.weight.requires_grad_(False)

    def kept():
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.data_ptr()) or t, lambda t: t):
            out = layer(x)
        return out, held.count(x.data_ptr())

    plain = kept()[1]
    with fisheropt.observe(layer, fisheropt.SecondMoment()) as tap:
        out, tapped = kept()
        out.square().flatten(1).sum(1).mean().backward()
    assert tapped <= plain
    h = 2 * out.detach()
    expected = (h.flatten(2).sum(2) if h.ndim > 2 else h).var(0)
    torch.testing.assert_close(tap.covariance(layer.bias).per_sample().diagonal(), expected, **EXACT)


@pytest.mark.parametrize("statistic", [fisheropt.Trace(), fisheropt.SecondMoment()])
def test_a_look_at_some_gradients_leaves_nothing_behind(statistic):
    """autograd.grad with respect to some parameters runs the layers above them, and never asks for their statistic."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    case = Case(model, batch(4, classes=3), classification)
    truth = per_sample_gradients(case)
    model.zero_grad()
    with fisheropt.observe(model, statistic) as tap:
        loss = case.loss()
        torch.autograd.grad(loss, [model[0].weight, model[2].weight], retain_graph=True)
        loss.backward()
    for p, g in zip(model.parameters(), truth.values(), strict=True):
        found = tap.covariance(p).per_sample()
        value = torch.as_tensor(found.trace()).double() if isinstance(statistic, fisheropt.Trace) else found.diagonal()
        torch.testing.assert_close(
            value, g.var(0).sum() if isinstance(statistic, fisheropt.Trace) else g.var(0), **EXACT
        )


class Pair(nn.Module):
    """Two views of a sample in one forward, as docs/troubleshooting.md has it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, view, other):
        return self.model(view), self.model(other)


@pytest.mark.parametrize("statistic", [fisheropt.SecondMoment(), fisheropt.FullCovariance()])
def test_two_views_of_a_sample_in_one_forward_are_one_sample(statistic):
    def losses(model, view, other):
        first, second = model(view, other)
        return (first - second).square().sum(1) + first.sum(1)

    layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    case = Case(Pair(layers).double(), (torch.randn(9, 4).double(), torch.randn(9, 4).double()), losses)
    truth = covariance(per_sample_gradients(case))
    case.model.zero_grad()
    with fisheropt.observe(case.model, statistic) as tap:
        case.loss().backward()
    if isinstance(statistic, fisheropt.FullCovariance):
        torch.testing.assert_close(tap.covariance().per_sample().matrix(), truth, **EXACT)
        return
    found = torch.cat([tap.covariance(p).per_sample().diagonal().flatten() for p in case.model.parameters()])
    torch.testing.assert_close(found, truth.diagonal(), **EXACT)


def test_backward_into_chosen_inputs_is_named():
    model = nn.Linear(3, 2)
    with fisheropt.observe(model, fisheropt.Trace()) as tap:
        model(torch.randn(4, 3)).sum(1).mean().backward(inputs=list(model.parameters()))
    with pytest.raises(RuntimeError, match=r"without inputs="):
        tap.covariance(model.weight)
