"""What a tap would do with a model is what it does; the choice of a contraction follows the work model."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import fisheropt
from fisheropt.cost import cheapest, convolved, machine, options, outer
from fisheropt.cost.machine import Machine
from fisheropt.cost.work import Work
from fisheropt.directions import DenseDirections, RankOneDirections
from fisheropt.persample import Convolved, Dense, Geometry, Outer, Rows, Tied
from fisheropt.statistics import FullCovariance, Projection, SecondMoment, Trace
from fisheropt.taps.expected import interval


def network():
    layers = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    return nn.Sequential(*layers)


IMAGES = torch.zeros(6, 1, 6, 6)


def forms():
    """One of each form, with ways of its own to choose from."""
    make = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=make, dtype=torch.float64)

    index = torch.randint(0, 7, (5, 3), generator=make)
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1)
    return {
        "one position": Outer(draw(5, 1, 4), draw(5, 1, 3)),
        "positions": Outer(draw(5, 6, 4), draw(5, 6, 3)),
        "convolved": Convolved(draw(5, 4, 6, 6), draw(5, 2, 6, 6), torch.Size((4, 2, 3, 3)), geometry),
        "rows": Rows(draw(5, 3, 4), index, 7),
        "tied": Tied(Rows(draw(5, 3, 4), index, 7), Outer(draw(5, 2, 7), draw(5, 2, 4))),
        "dense": Dense(draw(5, 4, 3)),
    }


def directions(form, kind):
    shape = form.materialise().shape[1:]
    if kind == "dense":
        return DenseDirections(torch.arange(2.0 * shape.numel()).sin().reshape(2, *shape).double())
    left, right = torch.arange(2.0 * shape[0]).cos(), torch.arange(2.0 * shape[1:].numel()).sin()
    return RankOneDirections(left.reshape(2, -1).double(), right.reshape(2, -1).double())


def had(form, quantity):
    if quantity == "norms":
        return form.squared_norms()
    return form.square_sum() if quantity == "square_sum" else form.project(directions(form, quantity))


@pytest.mark.parametrize("quantity", ["norms", "square_sum", "dense", "rank_one"])
@pytest.mark.parametrize("name", list(forms()))
def test_every_way_comes_to_the_same(name, quantity):
    form = forms()[name]
    h = form.materialise()
    more = (2,) if quantity in ("dense", "rank_one") else ()
    reference = had(Dense(h), quantity)
    for way in form.ways[quantity](*form.sizes, *more):
        asked = replace(form, way=way)
        torch.testing.assert_close(had(asked, quantity), reference, rtol=1e-10, atol=1e-10, msg=way)


@pytest.mark.parametrize(
    "quantity", ["norms", "square_sum", "dense", "rank_one", "coordinates", "combine", "step", "gram"]
)
@pytest.mark.parametrize("name", [name for name in forms() if name != "tied"])
def test_work_grows_with_the_samples_and_is_never_negative(name, quantity):
    form = forms()[name]
    more = (3,) if quantity in ("dense", "rank_one", "coordinates", "combine") else ()
    n, *rest = form.sizes
    one, ten = (options(form.ways[quantity], "cpu", (m, *rest, *more)) for m in (n, 10 * n))
    for way in one:
        assert min(one[way][0]) >= 0.0
        assert ten[way][1] >= one[way][1] > 0.0


def test_the_choice_is_the_least_of_the_model_and_changes_where_it_should():
    """Gram matrices for few positions of a wide layer, hₙ itself for many of a narrow one: peers.md 5.1, T(o+i) < oi."""
    assert cheapest(outer.norms, "cpu", (256, 1, 512, 512)) == "sides"
    assert cheapest(outer.norms, "cpu", (16, 64, 512, 128)) == "gram"
    assert cheapest(outer.norms, "cpu", (8, 256, 128, 128)) == "formed"
    assert cheapest(outer.dense, "cpu", (256, 1, 128, 128, 16)) == "direct"
    assert cheapest(outer.dense, "cpu", (16, 64, 128, 128, 16)) == "formed"
    assert cheapest(convolved.norms, "cpu", (128, 784, 16, 9, 1, 9, 784)) == "formed"
    assert cheapest(convolved.norms, "cpu", (8, 16, 128, 1152, 1, 9, 2048)) == "gram"
    assert cheapest(convolved.rank_one, "cpu", (128, 784, 16, 9, 1, 9, 784, 16)) == "formed"
    assert cheapest(convolved.rank_one, "cpu", (4, 16, 256, 2304, 1, 9, 4096, 16)) == "filters"
    for sizes in [(n, t, o, i) for n in (1, 32) for t in (2, 16, 200) for o in (8, 300) for i in (9, 1000)]:
        found = options(outer.norms, "cpu", sizes)
        assert cheapest(outer.norms, "cpu", sizes) == min(found, key=lambda way: found[way][1])


def test_a_machine_adds_its_three_terms():
    assert Machine(2.0, 3.0, 5.0).seconds(Work(flops=7, bytes=11, calls=13, held=17)) == 112
    assert machine("meta") is machine("cpu")
    assert machine("cuda").flop < machine("cpu").flop


def test_without_a_batch_it_is_the_table_of_rules():
    lines = str(fisheropt.explain(network())).splitlines()
    assert lines[0].split() == ["parameter", "shape", "module", "rule"]
    assert [line.split()[0] for line in lines[1:]] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert "Convolution" in lines[1]


def test_a_batch_adds_form_way_bytes_and_share():
    found = fisheropt.explain(network(), IMAGES, statistic=SecondMoment())
    rows = {row.parameter: row for row in found.rows}
    assert [rows[n].form for n in ("0.weight", "0.bias", "3.weight")] == ["Convolved", "Dense", "Outer"]
    assert rows["0.weight"].contractions[0].quantity == "square_sum"
    assert rows["0.weight"].held == 2 * 4 * 6 * 36
    assert 0 < sum(row.share for row in found.rows) < found.share
    assert found.every == interval(found.share, 0.05) and found.overhead == found.share / found.every <= 0.05
    assert json.loads(json.dumps(found.as_dict()))["rows"][0]["form"] == "Convolved"
    assert "every='auto' measures" in str(found) and f"every {found.every}," in str(found)


def test_layers_that_are_frozen_have_no_price():
    model = network()
    model[0].requires_grad_(False)
    rows = fisheropt.explain(model, IMAGES).rows
    assert [row.parameter for row in rows if not row.form] == ["0.weight", "0.bias"]
    with pytest.raises(ValueError, match="no parameter is trained"):
        fisheropt.explain(model.requires_grad_(False), IMAGES)


def test_a_call_counts_as_often_as_it_is_made():
    shared = nn.Linear(8, 8)
    once, thrice = (fisheropt.explain(nn.Sequential(*[shared] * times), torch.zeros(4, 8)) for times in (1, 3))
    assert thrice.rows[0].contractions[0].work.flops > once.rows[0].contractions[0].work.flops


def test_k_is_as_many_rank_one_directions():
    model = network()
    along = {
        name: RankOneDirections(torch.ones(16, p.shape[0]), torch.ones(16, p[0].numel()))
        if p.ndim > 1
        else DenseDirections(torch.ones(16, *p.shape))
        for name, p in model.named_parameters()
    }
    given = fisheropt.explain(model, IMAGES, statistic=Projection(along))
    short = fisheropt.explain(model, IMAGES, k=16)
    assert short.rows == given.rows and short.share == given.share
    with pytest.raises(ValueError, match="leave one out"):
        fisheropt.explain(model, IMAGES, k=2, statistic=Trace())


def test_a_likelihood_runs_a_backward_more():
    plain, modelled = (fisheropt.explain(network(), IMAGES, k=2, likelihood=on) for on in (False, True))
    assert modelled.share > plain.share + 1 / 3


class Restless(nn.Module):
    """Draws, counts and changes its buffers."""

    def __init__(self):
        super().__init__()
        self.linear, self.drop, self.norm = nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)
        self.register_buffer("seen", torch.zeros(()))
        self.norm.eval()

    def forward(self, x):
        self.seen += 1
        return self.norm(self.drop(self.linear(x)))


def test_nothing_is_left_behind():
    model = Restless()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    optimizer = fisheropt.FisherFloorSGD(model, lr=0.1)
    held, random = model.seen, torch.get_rng_state()
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    fisheropt.explain(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), random)
    assert model.seen is held and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert all(p.grad is None for p in model.parameters())
    assert optimizer._taps[0].channel.shapes == ()


def test_what_a_measured_step_refuses_is_refused():
    model = Restless().train()
    with pytest.raises(RuntimeError, match="BatchNorm1d in train mode"):
        fisheropt.explain(model, torch.zeros(3, 4))


@pytest.mark.parametrize("statistic", [Trace(), SecondMoment(), FullCovariance()])
@pytest.mark.parametrize("way", ["formed", "patches", "gram"])
def test_a_way_that_is_asked_for_is_taken_and_comes_to_the_same(statistic, way):
    torch.manual_seed(0)
    model, x = network().double(), torch.randn(6, 1, 6, 6, dtype=torch.float64)
    found = []
    for contraction in (None, {"0.weight": way}):
        with fisheropt.observe(model, statistic, contraction=contraction) as tap:
            model(x).square().sum().backward()
            parameter = None if isinstance(statistic, FullCovariance) else model[0].weight
            found.append(tap.covariance(parameter).value)
    torch.testing.assert_close(*found)


def test_a_way_reaches_the_backward():
    model = network()
    with fisheropt.observe(model, Trace(), contraction={"0.weight": "magic"}):
        loss = model(IMAGES + 1).square().sum()
        with pytest.raises(ValueError, match="contraction='magic': for this layer and statistic write one of formed"):
            loss.backward()


def test_explain_shows_a_way_that_is_asked_for_with_its_price():
    free, asked = (fisheropt.explain(network(), IMAGES, contraction=c) for c in (None, {"0.weight": "gram"}))
    assert free.rows[0].contractions[0].way == "formed" and asked.rows[0].contractions[0].way == "gram"
    assert asked.share > free.share


def test_a_way_or_a_name_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="write one of formed, patches, gram"):
        fisheropt.explain(network(), IMAGES, contraction={"0.weight": "magic"})
    with pytest.raises(ValueError, match=r"names \['head'\]"):
        fisheropt.observe(network(), Trace(), contraction={"head": "formed"})


def test_a_compiled_model_shows_its_shapes():
    compiled = torch.compile(network(), backend="eager", fullgraph=True)
    found = fisheropt.explain(compiled, IMAGES)
    assert found.rows[0].form == "Convolved"
