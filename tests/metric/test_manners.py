"""How a metric behaves: seeds, states, precision, company of an optimizer, and errors that teach."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from fisheropt.likelihoods import Likelihood
from fisheropt.metric.variants import NAMES
from tests.metric.networks import CORES, dense, flat, metric, network, points

RANDOM = [name for name in NAMES if name not in ("exact", "empirical")]


def updated(found, x, y, times=1):
    for _ in range(times):
        found.update(x, **({"targets": y} if found._name == "empirical" else {}))
    return found


@pytest.mark.parametrize("variant", RANDOM)
def test_seeds_decide_and_nothing_global_is_touched(variant):
    model, (x, y) = network(), points()
    before = torch.get_rng_state()
    one, same, other = (flat(updated(metric(model, variant, seed=s), x, y).diagonal()) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())
    twice = updated(metric(model, variant, seed=1), x, y, times=2)
    assert not torch.equal(flat(twice.diagonal()), 2 * one)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("variant", NAMES)
def test_a_state_goes_on_as_the_metric_would(variant, ema):
    """Saved, loaded with weights_only, and continued: the same numbers, also of the errors."""
    model, (x, y) = network(), points()
    settings = {"num_probes": 3, "ema": ema, "keep": ema is None}
    ours = updated(metric(model, variant, **settings), x, y, times=2)
    buffer = io.BytesIO()
    torch.save(ours.state_dict(), buffer)
    buffer.seek(0)
    theirs = metric(model, variant, **settings)
    theirs.load_state_dict(torch.load(buffer, weights_only=True))
    for found in (ours, theirs):
        updated(found, x, y)
    assert str(ours) == str(theirs) and ours.updates == theirs.updates == 3
    assert torch.equal(flat(ours.diagonal()), flat(theirs.diagonal()))
    if ema is None:
        assert torch.equal(ours.block("2"), theirs.block("2"))


def test_states_are_copies():
    model, (x, y) = network(), points()
    found = updated(metric(model), x, y)
    state = found.state_dict()
    reading, kept = found.diagonal(), copy.deepcopy(state["diagonal"])
    values = flat(reading).clone()
    updated(found, x, y)
    assert all(torch.equal(state["diagonal"][name], kept[name]) for name in kept)
    assert torch.equal(flat(reading), values)
    with pytest.raises(ValueError, match=r"variant='hutchinson'"):
        metric(model, "exact").load_state_dict(state)
    with pytest.raises(ValueError, match=r"differs in the parameters \['0.weight'"):
        metric(network(hidden=7)).load_state_dict(state)
    found.clear()
    assert found.updates == 0


def test_gradients_and_graph_stay_usable():
    model, (x, y) = network(), points()
    logits = model(x)
    found = metric(model).update(logits=logits)
    assert all(p.grad is None for p in model.parameters())
    F.cross_entropy(logits, y).backward()
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), model[0].weight)[0]
    assert torch.equal(model[0].weight.grad, expected)
    assert torch.equal(flat(found.diagonal()), flat(metric(model).update(x).diagonal()))


def test_optimizers_beside_it_see_nothing_of_it():
    """Their hooks are on the model's forward, whose statistics only the loss's backward may feed."""
    found = []
    for asked in (False, True):
        model, (x, y) = network(), points()
        opt = fisheropt.FisherFloorSGD(model, lr=0.1, mode="monitor")
        for _ in range(3):
            logits = model(x)
            if asked:
                metric(model, num_probes=2).update(logits=logits)
                metric(model, "exact").update(logits=logits)
            F.cross_entropy(logits, y).backward()
            opt.step(), opt.zero_grad()
        found.append((str(opt.report()), flat(dict(model.named_parameters())).detach()))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_autocast_keeps_the_cotangent_in_float32():
    """bfloat16 has three digits; so much of an answer is right, and nothing underflows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 6))
    x = torch.randn(64, 4)
    for variant in ("exact", "eig", "lower", "upper"):
        expected = metric(model, variant, num_probes="all").update(x).trace().value
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(x)
            assert logits.dtype == torch.bfloat16
            found = metric(model, variant, num_probes="all").update(logits=logits)
        assert found.trace().value == pytest.approx(expected, rel=0.02)
        assert {v.dtype for v in found.diagonal().values()} == {torch.float32}


@pytest.mark.parametrize("variant", ["eig", "lower", "monte_carlo", "empirical"])
def test_autocast_around_the_update_changes_nothing(variant):
    model, (x, y) = network().float(), points()
    logits = model(x.float())
    labels = {"targets": y} if variant == "empirical" else {}
    outside = metric(model, variant, rank=2).update(logits=logits, **labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = metric(model, variant, rank=2).update(logits=logits, **labels)
    assert torch.equal(flat(inside.diagonal()), flat(outside.diagonal()))


def test_half_precision_parameters_are_measured_in_float32():
    model, (x, _) = network(), points()
    expected = metric(model, "exact").update(x).trace().value
    half = copy.deepcopy(model).bfloat16()
    found = metric(half, "exact").update(x.bfloat16())
    assert found.trace().value == pytest.approx(expected, rel=0.05)
    assert {v.dtype for v in found.diagonal().values()} == {torch.float32}


def test_batchnorm_and_dropout_are_those_of_the_forward():
    """The full Jacobian of the batch, the mask conditioned on: a pullback of what was computed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    x = torch.randn(8, 4).double()
    logits = model(x)
    rows = [torch.autograd.grad(z, model.parameters(), retain_graph=True) for z in logits.flatten()]
    J = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).unflatten(0, (8, 3))
    p = logits.detach().softmax(1)
    core = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("nap,nab,nbp->p", J, core, J)
    torch.testing.assert_close(flat(metric(model, "exact").update(logits=logits).diagonal()), expected)


def test_tied_and_frozen_and_chosen_parameters():
    model, (x, _) = network(), points()
    model[2].bias.requires_grad_(False)
    everything = metric(model, "exact").update(x)
    assert everything.parameters == ("0.weight", "0.bias", "2.weight")
    chosen = fisheropt.FisherMetric(
        model, "categorical", "exact", reduction="sum", parameters=[model[0].bias, "2.weight"]
    )
    chosen.update(x)
    assert chosen.parameters == ("0.bias", "2.weight")
    assert torch.equal(chosen.diagonal()["2.weight"], everything.diagonal()["2.weight"])
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    tied[1].weight = tied[0].weight
    z = tied(x)
    rows = torch.stack([torch.autograd.grad(e, tied[0].weight, retain_graph=True)[0] for e in z.flatten()]).unflatten(
        0, (9, 4)
    )
    expected = torch.einsum("naij,nab,nbij->ij", rows, CORES["categorical"](z.detach()), rows)
    torch.testing.assert_close(metric(tied, "exact").update(x).diagonal()["0.weight"], expected)


def test_what_the_logits_do_not_reach_is_told():
    model, (x, _) = network(), points()
    model.extra = nn.Parameter(torch.ones(2).double())
    found = metric(model[:3], "exact").update(x)
    with torch.no_grad():
        whole = nn.ModuleDict({"used": model[:3], "idle": nn.Linear(2, 2).double()})
    beside = metric(whole, "exact").update(logits=whole["used"](x))
    assert beside.unreached == ("idle.weight", "idle.bias") and "not reached" in str(beside)
    assert float(beside.diagonal()["idle.weight"].sum()) == 0
    assert beside.trace().value == pytest.approx(found.trace().value)


def test_compiled_models_are_measured_alike():
    """Probes and, but for backends whose backward reads memory itself, rows; those say so."""
    model, (x, _) = network(), points()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for variant in ("hutchinson", "exact"):
        expected = flat(metric(model, variant).update(x).diagonal())
        with torch._functorch.config.patch(donated_buffer=False):  # as torch asks for where a graph is kept
            found = metric(model, variant).update(logits=compiled(x)).diagonal()
        torch.testing.assert_close(flat(found), expected)

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage")

    with pytest.raises(RuntimeError, match=r"the model before torch\.compile"):
        metric(model, "exact").update(logits=Opaque.apply(model(x)))


def test_dicts_and_tuples_are_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, x, scale):
            return scale * self.layer(x)

    model, (x, _) = Two(), points()
    one = metric(model, "exact").update((x, 2.0)).trace().value
    assert metric(model, "exact").update({"x": x, "scale": 2.0}).trace().value == one


def test_a_head_of_ones_own():
    """`factor` alone serves for F; a bound asks for its own factor, in so many words."""

    class Doubled(Likelihood):
        def factor(self, logits, signs):
            return 2**0.5 * signs

    model, (x, _) = network(), points()
    expected = 2 * dense(model, x, CORES["gaussian"])
    torch.testing.assert_close(flat(metric(model, "exact", Doubled()).update(x).diagonal()), expected.diagonal())
    with pytest.raises(TypeError, match=r"upper_factor\.register\(Doubled"):
        metric(model, "upper", Doubled()).update(x)
    with pytest.raises(TypeError, match=r"draw\.register\(Doubled"):
        metric(model, "monte_carlo", Doubled()).update(x)


WRONG = {
    "num_probes=0": {"num_probes": 0},
    "num_probes='some'": {"num_probes": "some"},
    "rank=0": {"rank": 0},
    "probe='uniform'": {"probe": "uniform"},
    "reduction='none'": {"reduction": "none"},
    "ema=1.0": {"ema": 1.0},
    "ema=0.9, keep=True": {"ema": 0.9, "keep": True},
    "variant='magic'": {"variant": "magic"},
    "num_probes='all'": {"variant": "monte_carlo", "num_probes": "all"},
    "likelihood=None": {"likelihood": None},
    "no trainable parameter 'wrong'": {"parameters": ["wrong"]},
}


@pytest.mark.parametrize("message", WRONG)
def test_settings_outside_their_range_are_refused(message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        fisheropt.FisherMetric(network(), **({"likelihood": "categorical"} | WRONG[message]))


def test_errors_say_what_to_write():
    model, (x, y) = network(), points()
    found, logits = metric(model), model(x)
    with pytest.raises(RuntimeError, match=r"diagonal\(\): nothing was measured yet"):
        found.diagonal()
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"not attached to the graph.*torch\.no_grad"):
        found.update(x)
    with pytest.raises(RuntimeError, match="not attached"):
        found.update(logits=logits.detach())
    with pytest.raises(RuntimeError, match="not of a copy"):
        metric(copy.deepcopy(model)).update(logits=logits)
    with pytest.raises(ValueError, match="either inputs or logits"):
        found.update()
    with pytest.raises(ValueError, match="takes no targets"):
        found.update(x, targets=y)
    with pytest.raises(ValueError, match="needs targets="):
        metric(model, "empirical").update(x)
    with pytest.raises(ValueError, match="classes as integers"):
        metric(model, "empirical").update(x, targets=y.double())
    with pytest.raises(ValueError, match=r"mask has shape \(3,\)"):
        found.update(x, mask=torch.ones(3))
    with pytest.raises(ValueError, match="at least 0"):
        found.update(x, weights=-torch.ones(9))
    with pytest.raises(ValueError, match="no input is left"):
        found.update(x, mask=torch.zeros(9))
    with pytest.raises(ValueError, match="write likelihood='bernoulli'"):
        metric(network(1)).update(x)
    with pytest.raises(ValueError, match=r"write one of \['0', '2', '0.weight'"):
        metric(model).update(x).trace("wrong")
    with pytest.raises(RuntimeError, match="keep=True"):
        metric(model).update(x).low_rank(1)
    with pytest.raises(ValueError, match=r"low_rank\(2\): 1 rows were kept"):
        metric(model, keep=True).update(x).low_rank(2)
    with pytest.raises(ValueError, match="above 0"):
        metric(model, keep=True).update(x).low_rank(1).solve(torch.ones(43).double(), 0.0)
    with pytest.raises(ValueError, match="no trainable parameter"):
        metric(network().requires_grad_(False))
    assert found.updates == 0
    F.cross_entropy(logits, y).backward()
    with pytest.raises(RuntimeError, match=r"before loss\.backward\(\)"):
        found.update(logits=logits)


def test_what_is_not_finite_is_refused_and_leaves_the_state():
    model, (x, _) = network(), points()
    found = metric(model, num_probes=2).update(x)
    before = flat(found.diagonal())
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        found.update(torch.full_like(x, float("inf")))
    wild = nn.Sequential(nn.Linear(4, 3), nn.Identity())
    loud = metric(wild).update(x.float())
    with pytest.raises(FloatingPointError, match=r"information of '0\.weight' is not finite"):
        logits = wild(x.float()).detach() + (wild[0](1e25 * x.float()) * 1.0 - wild[0](1e25 * x.float()).detach())
        loud.update(logits=logits)
    assert torch.equal(flat(found.diagonal()), before) and found.updates == loud.updates == 1
    assert math.isfinite(loud.trace().value)
