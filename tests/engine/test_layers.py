"""Every layer with every statistic against the oracle, in all settings that its rule knows; wrappers are in test_grid."""

import pytest
import torch

import fisheropt
from fisheropt.statistics.response import Response
from fisheropt.taps import SampleTap
from tests.engine.test_statistics import EXACT, directions
from tests.layers import LAYERS
from tests.oracle import covariance, flattened, per_sample_gradients
from tests.others import OTHERS

KINDS = (fisheropt.DenseDirections, fisheropt.RankOneDirections)


def basis(along):
    units = torch.eye(3, dtype=torch.float64)
    return torch.cat([torch.stack([d.combine(u).reshape(-1) for u in units]) for d in along.values()], 1)


def check(case, truth, model=None):
    """All statistics of one backward, on taps side by side."""
    noise, alongs = covariance(truth), [directions(case, kind=kind) for kind in KINDS]
    apart = [fisheropt.SecondMoment(), fisheropt.Trace()]
    joint = [fisheropt.FullCovariance(), *(fisheropt.Projection(along) for along in alongs)]
    taps = [fisheropt.observe(case.model, statistic) for statistic in (*apart, *joint)]
    case.model.zero_grad()
    case.loss(model).backward()
    for name, gradients in truth.items():
        diagonal, trace = (tap.covariance(case.model.get_parameter(name)).per_sample() for tap in taps[:2])
        torch.testing.assert_close(diagonal.diagonal(), gradients.var(0), **EXACT)
        torch.testing.assert_close(trace.trace(), gradients.flatten(1).var(0).sum(), **EXACT)
    bases = [torch.eye(len(noise), dtype=noise.dtype), *(basis(along) for along in alongs)]
    for tap, vectors in zip(taps[2:], bases, strict=True):
        torch.testing.assert_close(tap.covariance().per_sample().matrix(), vectors @ noise @ vectors.T, **EXACT)
    for tap in taps:
        tap.remove()


def check_response(case, truth):
    """The sums that tracked directions need; h is each sample's share of the mean loss."""
    h, along = flattened(truth) / case.samples, directions(case)
    case.model.zero_grad()
    with SampleTap(case.model, Response(3, 2)) as tap:
        tap.aim(along)
        case.loss().backward()
    scores, z = tap.scores(), h @ basis(along).T
    torch.testing.assert_close(torch.cat(scores.coordinates).double(), z, **EXACT)
    torch.testing.assert_close(torch.cat(scores.squared_norms), h.square().sum(1), **EXACT)
    found = torch.cat([scores.responses[name].flatten(1) for name in truth], 1)
    torch.testing.assert_close(found, torch.cat([z, torch.ones_like(z[:, :1])], 1).T @ h, **EXACT)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch loops over what vmap does not know
@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_every_statistic_is_exact(name):
    case = (LAYERS | OTHERS)[name]()
    truth = per_sample_gradients(case)
    check(case, truth)
    check_response(case, truth)


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_has_a_rule_of_its_own(name):
    assert "Generic" not in str(fisheropt.explain(LAYERS[name]().model.layer))


EACH = {name.split()[0]: name for name in LAYERS}  # the last of every class
COMPILED = ("Conv2d", "ConvTranspose1d", "Embedding", "EmbeddingBag", "LayerNorm", "GroupNorm", "MultiheadAttention")


@pytest.mark.filterwarnings("ignore")  # torch looks at .grad of what is no leaf, and hides its own warning of it
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_to_one_graph(name):
    case = LAYERS[EACH[name]]()
    truth = per_sample_gradients(case)
    torch._dynamo.reset()
    check(case, truth, torch.compile(case.model, fullgraph=True, backend="aot_eager"))
