"""GodambeSGD(structure="lowrank"): the tracked subspace against a dense oracle, the step against its formula, the report."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from fisheropt.optim import subspace
from tests.cases import CASES
from tests.optim.candidates import Candidate
from tests.optim.contract import ranks
from tests.optim.layerwise_oracle import step, vector
from tests.oracle import covariance, flattened, per_sample_gradients

SIZE, SAMPLES, RANK, FRESH = 120, 96, 8, 4


def angle(left, right):
    """The largest angle between two subspaces with orthonormal rows, in degrees."""
    return math.degrees(math.acos(min(1.0, float(torch.linalg.svdvals(left @ right.T)[-1]))))


def rotated(basis, by, generator):
    """Each of the columns turned by an angle towards a random direction."""
    towards = torch.randn(basis.shape, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(basis * math.cos(by) + towards / towards.norm(dim=0) * math.sin(by)).Q


def follow(readings, by=0.0, weight=None, strengths=(40.0, 20.0, 10.0)):
    """Track a stream of second moments that turns `by` radians a reading; the tracked pairs and the dense mean."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.linalg.qr(torch.randn(SIZE, len(strengths), generator=generator, dtype=torch.float64)).Q
    like, mean, ritz = {"p": torch.zeros(SIZE, dtype=torch.float64)}, torch.zeros(SIZE, SIZE, dtype=torch.float64), None
    for k in range(1, readings + 1):
        truth = rotated(truth, by, generator) if by else truth
        x = torch.randn(SAMPLES, SIZE, generator=generator, dtype=torch.float64)
        x = x + (x @ truth) * (torch.tensor(strengths, dtype=torch.float64).sqrt() - 1) @ truth.T
        moment, w = x.T @ x / SAMPLES, weight if weight and k > 1 else 2 / (k + 1)
        mean = (1 - w) * mean + w * moment
        kept = None if ritz is None else ritz.basis
        drawn = subspace.fresh(like, RANK + FRESH if kept is None else FRESH, k, kept)
        along = drawn if kept is None else {"p": torch.cat([kept["p"], drawn["p"]])}
        values = torch.zeros(RANK + FRESH, dtype=torch.float64)
        values[:RANK] = 0.0 if ritz is None else ritz.eigenvalues
        ritz = subspace.power(along, values, {"p": along["p"] @ moment}, w, RANK)
    dense = torch.linalg.eigh(mean)
    return ritz, dense.eigenvalues.flip(0), dense.eigenvectors.flip(1).T, truth.T


def test_the_subspace_becomes_that_of_the_running_mean():
    """After 40 readings of a stationary stream within 2 degrees; no eigenvalue is above its own of the mean."""
    ritz, values, vectors, _ = follow(40)
    assert angle(ritz.basis["p"][:3], vectors[:3]) < 2
    torch.testing.assert_close(ritz.eigenvalues[:3], values[:3], rtol=0.02, atol=0)
    assert (ritz.eigenvalues <= values[:RANK] * (1 + 1e-9)).all()
    torch.testing.assert_close(ritz.basis["p"] @ ritz.basis["p"].T, torch.eye(RANK, dtype=torch.float64))
    assert ritz.angle(3, RANK) < 3


def test_the_subspace_follows_a_stream_that_turns():
    """At 1.1 degrees a reading and a memory of five, it is as near to the truth as the dense mean is, within 2 degrees."""
    ritz, _, vectors, truth = follow(60, by=0.02, weight=0.2)
    assert angle(ritz.basis["p"][:3], vectors[:3]) < 4
    assert angle(ritz.basis["p"][:3], truth) < angle(vectors[:3], truth) + 2


def test_a_mixture_of_rows_is_what_it_stands_for():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    moment = rows.T @ rows
    along = subspace.fresh({"p": torch.zeros(30, dtype=torch.float64)}, 6, 0, None)
    answers, mixing = along["p"] @ moment, torch.randn(6, 6, generator=generator, dtype=torch.float64)
    mixed = torch.linalg.solve(mixing.T, answers)
    plain = subspace.power(along, torch.zeros(6), {"p": answers}, 1.0, 4)
    other = subspace.power(along, torch.zeros(6), {"p": mixed}, 1.0, 4, mixing)
    torch.testing.assert_close(other.eigenvalues, plain.eigenvalues)
    torch.testing.assert_close(other.cosines, along["p"] @ other.basis["p"].T)


def test_few_directions_leave_the_others_zero():
    """A matrix of rank two, four eigenpairs asked for."""
    x = torch.randn(2, 10, dtype=torch.float64)
    along = subspace.fresh({"p": torch.zeros(10, dtype=torch.float64)}, 5, 0, None)
    ritz = subspace.power(along, torch.zeros(5), {"p": along["p"] @ (x.T @ x)}, 1.0, 4)
    torch.testing.assert_close(ritz.eigenvalues[:2].sum(), x.square().sum())
    assert ritz.eigenvalues[2:].abs().max() == 0 and ritz.basis["p"][2:].abs().max() == 0


def basis(optimizer):
    return torch.cat([optimizer.state[p]["basis"].flatten(1) for g in optimizer.param_groups for p in g["params"]], 1)


@pytest.mark.parametrize("name", ["mlp", "custom", "tied", "called_twice", "sequence"])
@pytest.mark.parametrize("options", [{"rank": 3, "damping": 0.7}, {"rank": 3}, {"damping": 0.7}, {}])
def test_the_step_is_the_formula(name, options):
    """With the eigenpairs it reports; these are eigenpairs of the oracle's covariance as M D shows it."""
    case = CASES[name]()
    gradients = per_sample_gradients(case)
    noise, mean, start = covariance(gradients), flattened(gradients).mean(0), vector(case.model)
    optimizer = fisheropt.GodambeSGD(case.model, lr=1e-3, metric="fisher", structure="lowrank", **options)
    (tap,) = optimizer._taps
    along = torch.cat([d.basis.flatten(1) for d in tap.directions.values()], 1)
    step(case, optimizer)
    group, v = optimizer.param_groups[0], basis(optimizer)
    values, kept, mu = group["eigenvalues"], group["kept"], group["bulk"]
    answers = along @ noise
    nystrom = answers.T @ torch.linalg.pinv(answers @ along.T, hermitian=True, rtol=1e-10) @ answers
    torch.testing.assert_close(values, torch.linalg.eigvalsh(nystrom).flip(0)[: len(values)], rtol=1e-5, atol=1e-8)
    overlaps = group["overlaps"]
    own = values + 0.7 if "damping" in options else overlaps * values + (1 - overlaps) * mu
    rest = 0.7 if "damping" in options else mu
    p = torch.eye(len(mean), dtype=torch.float64) / rest
    p = p + (v[:kept].T * (1 / own[:kept] - 1 / rest)) @ v[:kept]
    length = 1e-3 * (mean @ p @ mean).sqrt()
    torch.testing.assert_close(
        vector(case.model), start - 1e-3 * (p @ mean) / length.clamp_min(1), rtol=1e-7, atol=1e-9
    )
    assert kept == (3 if "rank" in options else group["above"])
    trace = mu * group["bulk_dimension"] + values[:kept].sum()
    torch.testing.assert_close(trace, noise.trace(), rtol=1e-6, atol=1e-9)


def test_the_curvature_is_that_of_the_cotangents():
    """One Gaussian head: H is the mean of inputs' outer products, and so are the tracked eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 12, generator=generator, dtype=torch.float64) * torch.logspace(1, -1, 12)
    model = nn.Linear(12, 1, bias=False).double()
    optimizer = fisheropt.GodambeSGD(model, lr=1e-9, structure="lowrank", likelihood="gaussian", every=1, rank=2)
    for _ in range(30):
        (model(x).square() / 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = torch.linalg.eigvalsh(x.T @ x / 64).flip(0)
    group = optimizer.param_groups[0]
    torch.testing.assert_close(group["eigenvalues"][:3], expected[:3], rtol=1e-3, atol=0)
    torch.testing.assert_close(group["information"], expected.sum(), rtol=1e-9, atol=0)


def test_a_long_step_is_shortened_to_one_in_the_metric():
    case = CASES["mlp"]()
    start = vector(case.model)
    optimizer = fisheropt.GodambeSGD(case.model, lr=1e4, metric="fisher", structure="lowrank", rank=2, damping=1e-2)
    step(case, optimizer)
    moved, group, v = vector(case.model) - start, optimizer.param_groups[0], basis(optimizer)
    metric = moved.square().sum() * 0.01 + ((v[:2] @ moved).square() * group["eigenvalues"][:2]).sum()
    torch.testing.assert_close(metric.sqrt(), torch.ones((), dtype=torch.float64), rtol=1e-6, atol=0)


def isotropic(dimension, seed):
    """A linear model whose scores are isotropic but for two directions, and the optimizer that has seen 20 batches."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.ones(dimension)
    scale[:2] = torch.tensor([6.0, 3.0])
    model = nn.Linear(dimension, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = fisheropt.GodambeSGD(model, lr=1e-12, metric="fisher", structure="lowrank", every=1)
    for _ in range(20):
        x = torch.randn(100, dimension, generator=generator) * scale
        (model(x).squeeze(1) * torch.randn(100, generator=generator)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_the_edge_keeps_the_signal_and_shrinks_it_towards_the_truth():
    """Two of 150 directions have variance 36 and 9, the others 1: five runs keep these two and give about the variance
    that the population has along the tracked eigenvectors.
    """
    for seed in range(5):
        optimizer = isotropic(150, seed)
        group = optimizer.report().as_dict()["groups"][0]
        assert group["rank"] == 2
        assert group["bulk_mean"] == pytest.approx(1.0, rel=0.1)
        assert group["bulk_dimension"] == pytest.approx(148, rel=0.25)
        v = basis(optimizer)[:2].double()
        truth = torch.ones(150, dtype=torch.float64)
        truth[:2] = torch.tensor([36.0, 9.0])
        along = v.square() @ truth
        shrunk = 1 / (optimizer.param_groups[0]["gains"][:2] + 1 / group["damping"])
        torch.testing.assert_close(shrunk, along, rtol=0.25, atol=0)
        assert abs(group["eigenvalues"][0] - 36) < 4 * group["eigenvalues_se"][0] + 0.15 * 36


def test_noise_alone_keeps_nothing():
    """Twelve runs of isotropic scores in 100 directions, the last of 10 readings each: at level .01 two or more directions
    by chance have probability below .01.
    """
    found = 0
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Linear(100, 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = fisheropt.GodambeSGD(model, lr=1e-12, metric="fisher", structure="lowrank", every=1)
        for _ in range(10):
            x = torch.randn(60, 100, generator=generator)
            (model(x).squeeze(1) * torch.randn(60, generator=generator)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found += optimizer.param_groups[0]["kept"] > 0
    assert found < 2


def mixture_fit(seed, **options):
    """Softmax regression on fresh batches of two Gaussian classes in 100 dimensions, signal-to-noise ratio 10."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Linear(100, 2, bias=False)
    nn.init.normal_(model.weight, std=0.1)
    optimizer = fisheropt.GodambeSGD(model, lr=0.01, structure="lowrank", every=4, **options)
    for _ in range(400):
        y = torch.randint(0, 2, (50,), generator=generator)
        x = torch.eye(2, 100)[y] + torch.randn(50, 100, generator=generator) / 10**0.5
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer.report()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_noise_metric_that_has_lost_its_outliers_is_told(seed):
    """MS-T4: the information matrix loses its outliers as the fit improves, the Hessian keeps them."""
    (advice,) = mixture_fit(seed, metric="fisher").advice
    assert "above the edge of its bulk" in advice and "has none now" in advice and "metric='curvature'" in advice
    curvature = mixture_fit(seed, likelihood="categorical", metric="curvature")
    assert curvature.advice == ()
    assert curvature.as_dict()["groups"][0]["rank"] == 2


def test_auto_is_low_rank_beyond_4096_parameters():
    x = torch.randn(16, 70)
    for size, expected in ((58, "FullCovariance"), (60, "Response")):
        model = nn.Linear(70, size, bias=False)
        optimizer = fisheropt.GodambeSGD(model, lr=0.1)
        assert type(optimizer._taps[0].statistic).__name__ == expected
        model(x).square().mean().backward()
        if size == 60:
            optimizer.step()


def test_readings_grow_apart_until_they_are_as_rare_as_overhead_asks():
    model = nn.Linear(10, 4)
    optimizer = fisheropt.GodambeSGD(model, lr=0.1, structure="lowrank", overhead=1.0)
    measured = []
    for i in range(180):
        before = optimizer.param_groups[0]["measured"]
        model(torch.randn(8, 10)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        measured += [i] if optimizer.param_groups[0]["measured"] > before else []
    assert measured == [0, 1, 2, 4, 8, 10, 13, 17, 23, 30, 39, 51, 67, 88, 115, 143, 171]


def test_a_short_run_measures_enough_to_keep_directions():
    """125 steps on two classes in 100 dimensions, of two outliers: four kept in three runs, two at powers of two alone."""
    kept, measured = 0, 0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        model = nn.Linear(100, 2, bias=False)
        nn.init.normal_(model.weight, std=0.1)
        optimizer = fisheropt.GodambeSGD(model, lr=0.01, structure="lowrank", likelihood="categorical")
        for _ in range(125):
            y = torch.randint(0, 2, (50,), generator=generator)
            x = 0.7 * torch.eye(2, 100)[y] + torch.randn(50, 100, generator=generator) / 10**0.5
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        kept += optimizer.param_groups[0]["kept"]
        measured += optimizer.param_groups[0]["measured"]
    assert measured == 45 and kept >= 4


def test_parameters_alone_take_microbatches_as_samples():
    case = CASES["mlp"]()
    expected = covariance(per_sample_gradients(case)).trace()
    optimizer = fisheropt.GodambeSGD(case.model.parameters(), lr=0.01, metric="fisher", structure="lowrank")
    for i in range(case.samples):
        (case.slice(i, i + 1).loss() / case.samples).backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.param_groups[0]["covariance"], expected, rtol=1e-9, atol=0)
    assert "keeps" in optimizer.report().verdict


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_half_precision_keeps_a_basis_of_more(copied):
    """Through copies and checkpoints, as torch casts a state to the parameters' dtype."""
    model = nn.Linear(6, 5).bfloat16()
    optimizer = fisheropt.GodambeSGD(model, lr=0.01, metric="fisher", structure="lowrank", every=1)
    model(torch.randn(8, 6).bfloat16()).float().square().mean().backward()
    optimizer.step()
    other, twin = copied((model, optimizer))
    fresh = fisheropt.GodambeSGD(other, lr=0.01, metric="fisher", structure="lowrank", every=1)
    fresh.load_state_dict(optimizer.state_dict())
    for held in (twin, fresh):
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            assert held.state[theirs]["basis"].dtype == torch.float32
            assert torch.equal(held.state[theirs]["basis"], optimizer.state[mine]["basis"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "lowrank", "rank": 0}, "rank=0"),
        ({"structure": "lowrank", "rank": 17}, "largest_rank=16"),
        ({"structure": "lowrank", "rank": "all"}, "rank='all'"),
        ({"structure": "lowrank", "largest_rank": 0}, "largest_rank=0"),
        ({"structure": "lowrank", "damping": 0.0}, "damping=0"),
        ({"structure": "lowrank", "damping": -1.0}, "damping"),
        ({"damping": "bulk"}, "structure='lowrank'"),
        ({"structure": "block"}, "structure='block'"),
    ],
)
def test_what_means_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fisheropt.GodambeSGD(nn.Linear(8, 4), lr=0.1, **options)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_told_so():
    torch._dynamo.reset()
    model = nn.Linear(8, 4)
    optimizer = fisheropt.GodambeSGD(model, lr=0.1, structure="lowrank")
    torch.compile(model, backend="aot_eager", fullgraph=True)(torch.randn(8, 8)).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"without torch\.compile"):
        optimizer.step()


def test_two_ranks_are_one_process():
    """Under DDP: bit-identical ranks, and one process on the whole batch within 1e-4.

    With a fixed rank: whether one of so few samples makes an outlier turns on the last digit.
    """
    rows = {
        "noise": {"structure": "lowrank", "every": 1, "rank": 2, "damping": 0.5},
        "likelihood": {"structure": "lowrank", "every": 1, "likelihood": "gaussian", "damping": 0.5},
    }
    jobs = [("ddp", Candidate(fisheropt.GodambeSGD, name, row, "module")) for name, row in rows.items()]
    jobs.append(("ddp_single", Candidate(fisheropt.GodambeSGD, "noise", rows["noise"], "parameters")))
    assert ranks.run(jobs) == ["", "", ""]
