"""Products against dense matrices: per-sample gradients of the oracle, Hessians of reverse mode, explicit Jacobians."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import fisheropt
from fisheropt import likelihoods
from fisheropt.products import EmpiricalFisher, Hessian, ModelFisher
from tests.cases import CASES
from tests.oracle import flattened, per_sample_gradients


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def small():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def labelled(samples=9):
    return double(samples, 4), torch.randint(0, 3, (samples,))


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def reverse_hessian(model, loss):
    """∂²L by reverse mode twice, L(θ) = loss of a model with the flat parameters θ."""
    values = trainable(model)
    sizes = [p.numel() for p in values.values()]

    def of(flat):
        parts = (part.view_as(p) for part, p in zip(flat.split(sizes), values.values(), strict=True))
        put = dict(zip(values, parts, strict=True))
        return loss(lambda *x: functional_call(model, put, x))

    return torch.autograd.functional.hessian(of, torch.cat([p.detach().flatten() for p in values.values()]))


def jacobian(model, x):
    """J [n, outputs, P] by one backward an entry."""
    output = model(x).flatten(1)
    rows = [torch.autograd.grad(z, trainable(model).values(), retain_graph=True) for z in output.flatten()]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).unflatten(0, output.shape)


def close(found, expected, tolerance=1e-12):
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def case_product(kind, case):
    """Every target carries the inputs too, as some losses of the cases look at their shape."""

    def loss(output, targets):
        return case.losses(lambda *_: output, *targets).mean()

    cut = case.samples // 3
    parts = case.slice(0, cut), case.slice(cut, case.samples)
    return kind(case.model, loss, [(part.batch[0], part.batch) for part in parts])


@pytest.mark.parametrize("name", CASES)
def test_empirical_fisher_is_the_second_moment_of_the_oracles_gradients(name):
    case = CASES[name]()
    gradients = flattened(per_sample_gradients(case))
    product = case_product(EmpiricalFisher, case)
    assert close(product.dense(), gradients.T @ gradients / case.samples)
    directions = double(product.size, 3)
    assert close(product.quadratic(directions), (gradients @ directions).T @ (gradients @ directions) / case.samples)


@pytest.mark.parametrize("name", CASES)
def test_hessian_is_that_of_reverse_mode(name):
    case = CASES[name]()
    assert close(case_product(Hessian, case).dense(), reverse_hessian(case.model, case.loss), 1e-11)


CORES = {
    "categorical": lambda z: torch.diag_embed(z.softmax(-1)) - z.softmax(-1)[..., None] * z.softmax(-1)[..., None, :],
    "bernoulli": lambda z: torch.diag_embed(z.sigmoid() * (1 - z.sigmoid())),
    "gaussian": lambda z: torch.eye(z.shape[-1], dtype=z.dtype).expand(*z.shape, -1),
    "poisson": lambda z: torch.diag_embed(z.exp()),
}


@pytest.mark.parametrize("name", CORES)
def test_model_fisher_is_the_explicit_matrix(name):
    model, (x, y) = small(), labelled()
    rows = jacobian(model, x)
    expected = torch.einsum("nap,nab,nbq->pq", rows, CORES[name](model(x).detach()), rows) / len(x)
    product = ModelFisher(model, name, [(x[:2], y[:2]), (x[2:], y[2:])])
    assert close(product.dense(), expected)
    directions = double(product.size, 4)
    assert close(product.quadratic(directions), directions.T @ expected @ directions)


def test_labels_of_one_sample_are_summed():
    model = nn.Conv2d(2, 3, 1).double()
    x = double(4, 2, 3, 3)
    rows = jacobian(model, x).unflatten(1, (3, 9)).transpose(1, 2)
    cores = CORES["categorical"](model(x).detach().flatten(2).transpose(1, 2))
    expected = torch.einsum("ntap,ntab,ntbq->pq", rows, cores, rows) / 4
    assert close(ModelFisher(model, likelihoods.Categorical(dim=1), [x]).dense(), expected)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)
        self.query, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.layer(x)
        x = F.scaled_dot_product_attention(self.query(x), x, x, is_causal=True)
        return self.head(x.mean(1))


def batch_normalised():
    model = nn.Sequential(nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4), nn.SiLU(), nn.Flatten(), nn.LazyLinear(3)).double()
    model(double(8, 5, 4))
    return model


@pytest.mark.parametrize("build", [lambda: Attention().double(), batch_normalised], ids=["attention", "batch norm"])
def test_networks_in_eval_mode(build):
    """Fused kernels have no forward derivative: an answer of zeros is what they would give."""
    model = build().eval()
    x, y = double(6, 5, 4), torch.randint(0, 3, (6,))
    rows, core = jacobian(model, x), CORES["categorical"](model(x).detach())
    direction = double(sum(p.numel() for p in trainable(model).values()))
    expected = torch.einsum("nap,nab,nb->p", rows, core, rows @ direction) / 6
    assert close(ModelFisher(model, "categorical", [(x, y)]) @ direction, expected, 1e-11)
    product = Hessian(model, F.cross_entropy, [(x, y)])
    shift, values = 1e-5 * direction / direction.norm(), dict(trainable(model))

    def slope(sign):
        moved = {n: p.detach() + sign * s[0] for (n, p), s in zip(values.items(), split.values(), strict=True)}
        moved = {n: p.requires_grad_() for n, p in moved.items()}
        with fisheropt.products.forward.exact("cpu"):
            loss = F.cross_entropy(functional_call(model, moved, (x,)), y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(moved.values()))])

    split = product.split(shift)
    assert close(product @ shift, (slope(1) - slope(-1)) / 2, 1e-6)


@pytest.mark.parametrize("kind", [Hessian, ModelFisher, EmpiricalFisher])
class TestLaws:
    def make(self, kind, model=None, data=None, **options):
        data = [labelled()] if data is None else data
        return kind(small() if model is None else model, self.head(kind), data, **options)

    def head(self, kind):
        return "categorical" if kind is ModelFisher else F.cross_entropy

    def test_linear_symmetric_and_alike_by_column(self, kind):
        product = self.make(kind)
        u, v = double(product.size), double(product.size)
        assert close(product @ (2 * u - 3 * v), 2 * (product @ u) - 3 * (product @ v))
        assert float(u @ (product @ v)) == pytest.approx(float(v @ (product @ u)), rel=1e-12)
        both = torch.stack((u, v), 1)
        assert close(product @ both, torch.stack((product @ u, product @ v), 1))
        assert (product @ u).shape == u.shape and (product @ u[:, None]).shape == (product.size, 1)
        assert close(product.quadratic(both), both.T @ (product @ both))

    def test_every_sample_weighs_the_same(self, kind):
        model, (x, y) = small(), labelled()
        whole = self.make(kind, model, [(x, y)]).dense()
        for cuts in ([1, 8], [4, 4, 1], [1] * 9):
            data = list(zip(x.split(cuts), y.split(cuts), strict=True))
            product = self.make(kind, model, data)
            assert close(product.dense(), whole)
            assert product.samples == 9
        doubled = self.make(kind, model, [(x, y), (x, y)])
        assert doubled.samples == 18 and close(doubled.dense(), whole)

    def test_parameters_choose_a_block(self, kind):
        model, data = small(), [labelled()]
        whole = self.make(kind, model, data).dense()
        at = torch.cat([torch.arange(20, 25), torch.arange(25, 40)])
        by_name = self.make(kind, model, data, parameters=["2.weight", "0.bias"])
        by_tensor = self.make(kind, model, data, parameters=[model[0].bias, model[2].weight])
        assert by_name.parameters == by_tensor.parameters == ("0.bias", "2.weight")
        assert close(by_name.dense(), whole[at][:, at])
        assert torch.equal(by_name.dense(), by_tensor.dense())

    def test_precision_is_that_of_the_model(self, kind):
        model, (x, y) = small(), labelled()
        whole = self.make(kind, model, [(x, y)]).dense()
        single = self.make(kind, model.float(), [(x.float(), y)]).dense()
        assert whole.dtype == torch.float64 and single.dtype == torch.float32
        assert close(single.double(), whole, 1e-5)

    def test_autocast_and_no_grad_change_nothing(self, kind):
        product = self.make(kind, small().float(), [(torch.randn(9, 4), torch.randint(0, 3, (9,)))])
        expected = product.dense()
        with torch.autocast("cpu"), torch.no_grad():
            assert torch.equal(product.dense(), expected)

    def test_model_is_left_as_it_was(self, kind):
        model = small()
        before = {name: p.clone() for name, p in model.state_dict().items()}
        state = torch.get_rng_state()
        product = self.make(kind, model, [labelled()])
        state = torch.get_rng_state()
        result = product.dense()
        assert not result.requires_grad and torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())

    def test_loaders_tuples_and_dicts_are_data(self, kind):
        class Two(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x, scale):
                return self.inner(x * scale)

        model, (x, y) = small(), labelled()
        expected = self.make(kind, model, [(x, y)]).dense()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
        ones = torch.ones(9, 1, dtype=torch.float64)
        assert close(self.make(kind, model, loader).dense(), expected)
        assert close(self.make(kind, Two(model), [((x, ones), y)]).dense(), expected)
        assert close(self.make(kind, Two(model), [({"scale": ones, "x": x}, y)]).dense(), expected)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (nn.BatchNorm1d(5), "BatchNorm1d '1' in train mode couples"),
            (nn.BatchNorm1d(5, track_running_stats=False), "BatchNorm1d '1' in train mode couples"),
            (nn.Dropout(0.5), "Dropout '1' is active"),
        ],
    )
    def test_coupled_and_random_models_are_refused(self, kind, layer, message):
        model = nn.Sequential(nn.Linear(4, 5), layer, nn.Linear(5, 3)).double()
        with pytest.raises(RuntimeError, match=message):
            self.make(kind, model)
        if getattr(layer, "track_running_stats", True):
            product = self.make(kind, model.eval())
            product.dense()
            with pytest.raises(RuntimeError, match=message):
                model.train(), product.dense()

    def test_chance_in_a_forward_is_refused(self, kind):
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = small()

            def forward(self, x):
                return self.inner(F.dropout(x, 0.5, self.training))

        product = self.make(kind, Noisy())
        with pytest.raises(RuntimeError, match=r"draws random numbers.*model\.eval\(\)"):
            product @ double(product.size)

    def test_errors_say_what_to_write(self, kind):
        model, (x, y) = small(), labelled()
        product = self.make(kind, model)
        with pytest.raises(ValueError, match=rf"{kind.__name__}.*found a vector \(3,\).*P = {product.size}"):
            product @ torch.ones(3)
        with pytest.raises(ValueError, match="no parameter '1.weight'"):
            self.make(kind, model, parameters=["1.weight"])
        with pytest.raises(ValueError, match="no parameter a tensor of shape"):
            self.make(kind, model, parameters=[torch.ones(3)])
        with pytest.raises(TypeError, match=r"one pass uses up; write data=list\(data\)"):
            self.make(kind, model, iter([(x, y)]))
        with pytest.raises(TypeError, match=r"write data=\[\(inputs, targets\)\]"):
            self.make(kind, model, x)
        with pytest.raises(ValueError, match="no batch"):
            self.make(kind, model, []).dense()
        with pytest.raises(TypeError, match="a batch is tuple"):
            self.make(kind, model, [(x, x, y)]).dense()
        with pytest.raises(TypeError, match=r"found DataParallel; write \w+\(model\.module"):
            self.make(kind, nn.DataParallel(model))
        with pytest.raises(ValueError, match="unfreeze"):
            self.make(kind, small().requires_grad_(False))
        with pytest.raises(FloatingPointError, match=r"not finite in '0\.weight'"):
            self.make(kind, model, [(x * float("inf"), y)]).dense()

    def test_a_large_matrix_is_not_formed(self, kind):
        model = nn.Linear(4, 1100).double()
        with pytest.raises(ValueError, match=r"P = 5500.*measured_spectrum\(product\)"):
            self.make(kind, model).dense()

    def test_data_that_change_are_refused(self, kind):
        x, y = labelled()
        data = [(x, y)]
        product = self.make(kind, small(), data)
        product @ double(product.size)
        data.append((x, y))
        with pytest.raises(ValueError, match="had 9 samples before and 18 now"):
            product @ double(product.size)


def test_a_sum_is_no_mean():
    product = Hessian(small(), lambda z, y: F.cross_entropy(z, y, reduction="sum"), [labelled()])
    with pytest.raises(ValueError, match="sum over samples"):
        product.dense()
    product = Hessian(small(), lambda z, y: F.cross_entropy(z, y, reduction="none"), [labelled()])
    with pytest.raises(ValueError, match=r"gave \(9,\), not one number"):
        product.dense()


def test_a_likelihood_needs_logits_by_sample():
    x, y = labelled()
    with pytest.raises(ValueError, match="likelihood=None"):
        ModelFisher(small(), None, [(x, y)])
    with pytest.raises(ValueError, match="for 9 samples"):
        ModelFisher(nn.Sequential(small(), nn.Flatten(0)), "bernoulli", [(x, y)]).dense()


def test_model_fisher_at_the_truth_is_what_the_labels_give():
    """E[s sᵀ] = F for labels of the model: 2e4 draws, each entry within 5 standard errors (1600 entries)."""
    model, x = small(), double(20000, 4)
    y = torch.multinomial(model(x).softmax(1), 1).squeeze(1)
    exact = ModelFisher(model, "categorical", [(x, y)]).dense()
    case = CASES["mlp"]()
    case.model, case.batch = model, (x, y)
    gradients = flattened(per_sample_gradients(case))
    assert close(EmpiricalFisher(model, F.cross_entropy, [(x, y)]).dense(), gradients.T @ gradients / len(x))
    fourth = gradients.square().T @ gradients.square() / len(x)
    error = (fourth / len(x)).sqrt()
    assert float(((gradients.T @ gradients / len(x) - exact).abs() / error).max()) < 5
