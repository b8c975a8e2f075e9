"""Settings of layers and ways of calling them that a rule must refuse, or serve although they are rare."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fisheropt
from fisheropt.persample import Convolved, Dense, Geometry, Outer, Rows, base, joined
from fisheropt.rules import Rule
from tests.cases import CASES, Case, batch, regression
from tests.engine.test_layers import check
from tests.engine.test_statistics import EXACT
from tests.layers import LAYERS, Head, squares
from tests.oracle import per_sample_gradients

REFUSED = {
    "counts over the batch": (lambda: nn.Embedding(5, 3, scale_grad_by_freq=True), "couples its samples"),
    "sparse": (lambda: nn.Embedding(5, 3, sparse=True), "sparse=False"),
    "sparse bag": (lambda: nn.EmbeddingBag(5, 3, mode="sum", sparse=True), "sparse=False"),
    "bag of frequencies": (lambda: nn.EmbeddingBag(5, 3, scale_grad_by_freq=True), "couples its samples"),
    "maximum": (lambda: nn.EmbeddingBag(5, 3, mode="max"), "mode='sum'"),
    "time first": (lambda: nn.MultiheadAttention(4, 2), "batch_first=True"),
    "given keys": (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True), "add_bias_kv"),
    "empty keys": (lambda: nn.MultiheadAttention(4, 2, add_zero_attn=True, batch_first=True), "add_zero_attn"),
    "normed projection": (lambda: normed("out_proj"), "parametrise a nn.Linear that is"),
    "normed projections in": (lambda: normed(""), "its weights parametrised"),
    "threads": (lambda: nn.DataParallel(nn.Linear(4, 3)), "DistributedDataParallel"),
    "complex": (lambda: nn.Linear(4, 3, dtype=torch.complex64), "view_as_real"),
}


def normed(child):
    """Attention with one of its weights parametrised."""
    layer = nn.MultiheadAttention(4, 2, batch_first=True)
    weight_norm(layer.get_submodule(child), "weight" if child else "in_proj_weight")
    return layer


@pytest.mark.parametrize("name", REFUSED)
def test_settings_without_per_sample_gradients_are_refused_by_name(name):
    build, line = REFUSED[name]
    with pytest.raises(ValueError, match="no route") as error:
        fisheropt.observe(nn.Sequential(build()), fisheropt.Trace())
    assert line in str(error.value)


LATE = {
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyConv1d(3, 2)), r"0\.weight.*1\.bias.*Run one batch first"),
    "frozen": (lambda: nn.Linear(4, 3).requires_grad_(False), "no parameter to observe is trained"),
    "without parameters": (lambda: nn.ReLU(), "no parameter to observe is trained"),
    "quantised": (lambda: torch.ao.nn.quantized.dynamic.Linear(4, 3), "no parameter to observe is trained"),
}


@pytest.mark.filterwarnings("ignore")  # torch deprecates its own quantisation
@pytest.mark.parametrize("statistic", [fisheropt.Trace(), fisheropt.FullCovariance()])
@pytest.mark.parametrize("name", LATE)
def test_models_without_trained_parameters_are_refused(name, statistic):
    build, words = LATE[name]
    with pytest.raises(ValueError, match=words):
        fisheropt.observe(build(), statistic)


def test_a_lazy_model_is_exact_after_one_batch():
    model, x = nn.Sequential(nn.LazyLinear(3)).double(), torch.randn(9, 4, dtype=torch.float64)
    model(x)
    case = Case(model, (x,), squares)
    check(case, per_sample_gradients(case))


def test_a_replica_in_a_thread_is_refused():
    """DataParallel around a tapped model, of which one device makes no replica."""
    model = nn.Linear(4, 3)
    with fisheropt.observe(model, fisheropt.Trace()), pytest.raises(RuntimeError, match="DistributedDataParallel"):
        model._replicate_for_data_parallel()(torch.randn(2, 4))


def test_the_power_iteration_of_a_parametrisation_is_refused_in_train_mode():
    model = nn.Sequential(spectral_norm(nn.Linear(4, 3)))
    with fisheropt.observe(model, fisheropt.Trace()), pytest.raises(RuntimeError, match="power iteration"):
        model(torch.randn(9, 4))


class Doubled(nn.Module):
    """Two parameters, of which its rule knows one."""

    def __init__(self):
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x * self.weight + self.shift


@fisheropt.rule(Doubled)
class Forgetful(Rule):
    in_place = False

    def prepare(self, module):
        return self

    def saved(self, module, args, kwargs):
        return args, None

    def forms(self, module, names, saved, context, grad):
        return {"weight": Dense(grad * saved[0])}


@pytest.mark.parametrize("statistic", [fisheropt.Trace(), fisheropt.FullCovariance()])
def test_a_parameter_that_a_rule_forgets_is_named(statistic):
    model = nn.Sequential(Doubled())
    with (
        fisheropt.observe(model, statistic),
        pytest.raises(RuntimeError, match=r"Forgetful of Doubled '0' gives no per-sample gradients of 0\.shift"),
    ):
        model(torch.randn(4, 3)).square().sum(1).mean().backward()
    model[0].shift.requires_grad_(False)
    with fisheropt.observe(model, statistic) as tap:
        model(torch.randn(4, 3)).square().sum(1).mean().backward()
    assert tap.read(None if isinstance(statistic, fisheropt.FullCovariance) else model[0].weight).count == 4


def test_calls_without_samples_are_refused():
    bag = nn.EmbeddingBag(5, 3, mode="sum")
    with fisheropt.observe(bag, fisheropt.Trace()), pytest.raises(TypeError, match="with offsets"):
        bag(torch.tensor([1, 2, 3]), torch.tensor([0, 2]))
    for layer, x in ((nn.Conv1d(2, 3, 2), torch.randn(2, 5)), (nn.LayerNorm((3, 4)), torch.randn(3, 4))):
        with fisheropt.observe(layer, fisheropt.Trace()), pytest.raises(RuntimeError, match="no axis of samples"):
            layer(x)


def test_attention_weights_in_the_loss_and_dropout_are_refused():
    layer, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(9, 5, 4)
    with fisheropt.observe(layer, fisheropt.Trace()):
        out, weights = layer(x, x, x)
        out.sum().backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="need_weights=False"):
            weights.square().sum().backward()
    layer.dropout = 0.1
    with fisheropt.observe(layer, fisheropt.Trace()), pytest.raises(RuntimeError, match="a second run cannot repeat"):
        layer(x, x, x)


def test_rows_of_bounded_norm():
    """max_norm rescales rows before they are looked up; a second time it finds nothing to do."""
    torch.manual_seed(0)
    plain = nn.Embedding(6, 3).double()
    bounded = nn.Embedding(6, 3, max_norm=0.7).double()
    bounded.weight.data.copy_(plain.weight.data)
    x = torch.randint(0, 6, (9, 7))
    bounded(torch.arange(6))
    plain.weight.data.copy_(bounded.weight.data)
    truth_of, model = Head(plain, x), Head(bounded, x)
    model.read = truth_of.read
    check(Case(model, (x,), squares), per_sample_gradients(Case(truth_of, (x,), squares)))


def test_attention_of_a_frozen_projection():
    case = LAYERS["MultiheadAttention"]()
    case.model.layer.attention.in_proj_weight.requires_grad_(False)
    check(case, per_sample_gradients(case))


@pytest.mark.parametrize("name", ["Conv2d grouped", "Conv1d strided", "Embedding", "ConvTranspose1d wider"])
def test_tiles_change_nothing(name, monkeypatch):
    """With room for one or two samples in a temporary."""
    monkeypatch.setattr(base, "TILE", 60)
    monkeypatch.setattr(base, "_NEAR", 60)
    case = LAYERS[name]()
    check(case, per_sample_gradients(case))


class Live(TorchDispatchMode):
    """The most tensors of one shape that are there at one time."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.held, self.most = shape, [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.shape == self.shape:
            self.held = [held for held in self.held if held() is not None] + [weakref.ref(found)]
            self.most = max(self.most, len(self.held))
        return found


@pytest.mark.parametrize("asked", ["square_sum", "squares_and_sum"])
@pytest.mark.parametrize("kind", [Outer, Convolved])
def test_squares_of_many_tiles_are_added_as_they_come(kind, asked, monkeypatch):
    """One parameter's worth for every tile would be all samples' gradients at once."""
    monkeypatch.setattr(base, "_NEAR", 1)
    if kind is Outer:
        form = Outer(torch.randn(30, 2, 4), torch.randn(30, 2, 3))
    else:
        geometry = Geometry((1,), (0,), (1,), 1)
        form = Convolved(torch.randn(30, 4, 5), torch.randn(30, 3, 6), torch.Size((4, 3, 2)), geometry)
    with Live(form.sum().shape) as live:
        getattr(form, asked)()
    assert live.most < 10


def test_patches_written_out():
    torch.manual_seed(0)
    x, g = torch.randn(3, 2, 7, 6, dtype=torch.float64), torch.randn(3, 4, 3, 2, dtype=torch.float64)
    form = Convolved(g, x, torch.Size((4, 2, 3, 2)), Geometry((2, 3), (0, 1), (1, 3), 1))
    torch.testing.assert_close(form.unfolded().materialise(), form.materialise().flatten(2), **EXACT)
    torch.testing.assert_close(form.sum(), form.materialise().sum(0), **EXACT)


def test_equal_rows_of_one_sample_are_added_before_squares():
    g = torch.tensor([[[1.0], [2.0], [4.0]], [[1.0], [2.0], [4.0]]])
    form = Rows(g, torch.tensor([[0, 1, 0], [2, 2, 2]]), 3)
    assert form.squared_norms().tolist() == [29, 49]
    assert form.square_sum().flatten().tolist() == [25, 4, 49]
    twice = joined([form, form])
    assert twice.squared_norms().tolist() == [4 * 29, 4 * 49]


def test_a_call_that_fails_gives_its_weight_back():
    layer = nn.Linear(4, 3)
    with fisheropt.observe(layer, fisheropt.Trace()), pytest.raises(RuntimeError, match="shapes"):
        layer(torch.randn(9, 5))
    assert "weight" not in vars(layer) and layer.weight.is_leaf


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("name", ["tied", "tied_table", "called_twice"])
def test_shared_parameters_in_a_compiled_model_are_refused(name, fullgraph):
    """A graph cannot wait for a second call."""
    case = CASES[name]()
    torch._dynamo.reset()
    compiled = torch.compile(case.model, backend="eager", fullgraph=fullgraph)
    with fisheropt.observe(case.model, fisheropt.SecondMoment()), pytest.raises(Exception, match="cross terms"):
        case.loss(compiled)


def test_shared_parameters_in_a_reentrant_checkpoint_are_refused():
    class Reentrant(type(CASES["called_twice"]().model)):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=True)

    case = CASES["called_twice"]()
    case.model.__class__ = Reentrant
    case.batch[0].requires_grad_()
    with fisheropt.observe(case.model, fisheropt.Trace()), pytest.raises(RuntimeError, match="use_reentrant=False"):
        case.loss().backward()


def test_parts_frozen_between_forward_and_backward():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    case = Case(model, batch(4) + batch(4), regression)
    truth = per_sample_gradients(case)
    with fisheropt.observe(model, fisheropt.Trace()) as tap:
        loss = case.loss()
        model[0].requires_grad_(False)
        loss.backward()
    measured = tap.covariance(model[2].weight).per_sample()
    torch.testing.assert_close(measured.trace(), truth["2.weight"].flatten(1).var(0).sum(), **EXACT)
