"""The problems of the recipes: readers, errors, objectives, optima, and independence of global state."""

import bz2
import gzip
import inspect
import lzma
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from sklearn.linear_model import LogisticRegression
from torch.func import functional_call, grad, jacrev, vmap

from recipes.problems import DataError, newton
from recipes.problems.cache import OptimumCache
from recipes.problems.em import best_fit
from recipes.problems.gaussians import DiagonalMixture, FullMixture
from recipes.problems.logistic import Logistic
from recipes.problems.mixture import Mixture
from recipes.problems.mixture_classification import MixtureClassification
from recipes.problems.softmax import tally
from recipes.problems.synthetic import linearly_separable

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "conf" / "problem").glob("*.yaml"))
SHARED = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder shared/data beside the project is absent")

COMPRESS = {"": bytes, ".xz": lzma.compress, ".bz2": bz2.compress, ".gz": gzip.compress}
LIBSVM = b"+1 1:0.5 3:2\n-1 2:1e-1\n# nothing\n-1 1:-3 2:.25 3:7 # a comment\n+1 3:1\n"
LIBSVM_X = [[0.5, 0, 2], [0, 0.1, 0], [-3, 0.25, 7], [0, 0, 1]]

SMALL = {
    "two classes": lambda **kw: Logistic("breast_cancer", **kw),
    "three classes": lambda **kw: Logistic("iris", **kw),
    "no intercept": lambda **kw: Logistic("wine", intercept=False, **kw),
    "well specified": lambda **kw: Logistic("synthetic", n=100, d=4, **kw),
    "misspecified": lambda **kw: Logistic("synthetic", kind="misspecified", n=100, d=4, **kw),
    "separable": lambda **kw: Logistic("synthetic", kind="separable", n=15, d=10, **kw),
    "diagonal": lambda **kw: Mixture(**kw),
    "full": lambda **kw: Mixture("synthetic", covariance="full", k=3, n=150, d=3, **kw),
    "mixture classes": lambda **kw: MixtureClassification(k=3, d=6, n=90, test=30, **kw),
}


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def shifted(model, scale=0.3, seed=1):
    """The model with normal numbers added to its parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
    return model


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("first", [0, 1])
def test_libsvm_files_plain_and_compressed_counted_from_0_or_1(tmp_path, suffix, first):
    text = re.sub(rb"(\d+):", lambda m: b"%d:" % (int(m[1]) - 1 + first), LIBSVM)
    write(tmp_path, f"small{suffix}", COMPRESS[suffix](text))
    problem = Logistic("small", data_dir=str(tmp_path), dtype="float64")
    x, y = problem.train.tensors
    torch.testing.assert_close(x, torch.tensor(LIBSVM_X, dtype=torch.float64))
    assert y.tolist() == [1, 0, 0, 1]
    assert (problem.likelihood, problem.l2, problem.model.bias, problem.test) == (
        "bernoulli",
        0.25,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("1,2,no\n3,4,yes\n5,6,yes\n", {}),
        ("a,b,y\n1,2,no\n3,4,yes\n5,6,yes\n", {}),
        ("y;a;b\r\nno;1;2\r\nyes;3;4\r\n\r\nyes;5;6\r\n", {"label": "y"}),
        ('"a"\t"y"\t"b"\n1\t1\t2\n3\t2\t4\n5\t2\t6\n', {"label": "y"}),
    ],
)
def test_csv_files_with_and_without_a_header(tmp_path, content, options):
    problem = Logistic(write(tmp_path, "data.csv", content), **options)
    x, y = problem.train.tensors
    assert x.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert y.tolist() == [0, 1, 1]
    assert problem.model.bias is not None


def test_idx_images_take_the_labels_beside_them(tmp_path):
    images = np.arange(3 * 2 * 2, dtype=np.uint8)
    head = b"\0\0\x08\x03" + np.array([3, 2, 2], ">i4").tobytes()
    path = write(tmp_path, "t-images-idx3-ubyte.gz", gzip.compress(head + images.tobytes()))
    labels = b"\0\0\x08\x01" + np.array([3], ">i4").tobytes() + bytes([2, 0, 1])
    write(tmp_path, "t-labels-idx1-ubyte.gz", gzip.compress(labels, mtime=0))
    problem = Logistic(path)
    x, y = problem.train.tensors
    torch.testing.assert_close(x, torch.arange(12.0).reshape(3, 4) / 255)
    assert y.tolist() == [2, 0, 1]
    assert (problem.likelihood, problem.model.out_features) == ("categorical", 3)


def test_text_predicts_the_next_character_from_the_ones_before(tmp_path):
    problem = Logistic(write(tmp_path, "words.txt.xz", lzma.compress(b"abcab")), context=2)
    x, y = problem.train.tensors
    nearest, before = x[:, :3].argmax(1), x[:, 3:].argmax(1)
    assert (before.tolist(), nearest.tolist(), y.tolist()) == ([0, 1, 2], [1, 2, 0], [2, 0, 1])
    assert x.sum(1).tolist() == [2, 2, 2]


def test_the_optimum_of_a_text_is_the_conditional_entropy_of_its_pairs(tmp_path):
    text = "".join(np.random.default_rng(0).choice(list("aab"), 300))
    pairs = list(zip(text, text[1:], strict=False))
    log_p = (math.log(pairs.count(pair) / sum(first == pair[0] for first, _ in pairs)) for pair in pairs)
    problem = Logistic(write(tmp_path, "text.txt", text), l2=0.0)
    assert problem.optimum == pytest.approx(-sum(log_p) / len(pairs), abs=1e-12)


@pytest.mark.parametrize("line", ["+1 1:1\n-1 2:1\n", "+1 1:1 9:5\n-1 2:1 9:5\n"])
def test_the_test_file_beside_is_padded_or_cut_to_the_training_features(tmp_path, line):
    write(tmp_path, "set.t.bz2", bz2.compress(line.encode()))
    path = write(tmp_path, "set", LIBSVM)
    assert Logistic(path).test.tensors[0].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert Logistic(path).test.tensors[1].tolist() == [1, 0]
    assert Logistic(path, test_fraction=0).test is None


def test_a_part_held_out_is_seeded_and_leaves_the_rest_for_training():
    parts = [Logistic("iris", standardise=False, test_fraction=0.3, seed=seed) for seed in (0, 0, 1)]
    (x, _), (held, _) = parts[0].train.tensors, parts[0].test.tensors
    assert (len(x), len(held)) == (105, 45)
    whole = Logistic("iris", standardise=False, test_fraction=0).train.tensors[0]
    assert sorted(torch.cat([x, held]).tolist()) == sorted(whole.tolist())
    assert torch.equal(held, parts[1].test.tensors[0])
    assert not torch.equal(held, parts[2].test.tensors[0])


def test_standardising_takes_mean_and_variance_from_the_training_samples():
    problem = Logistic("digits", dtype="float64")
    raw = Logistic("digits", dtype="float64", standardise=False)
    x, held = problem.train.tensors[0], problem.test.tensors[0]
    mean, scale = raw.train.tensors[0].mean(0), raw.train.tensors[0].std(0, unbiased=False)
    varies = scale > 0
    assert not varies.all()
    torch.testing.assert_close(x.var(0, unbiased=False), varies.double())
    torch.testing.assert_close(held[:, varies], ((raw.test.tensors[0] - mean) / scale)[:, varies])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set", "1 1:2 2:3\n-1 1:x\n", r"set, line 2: expected `label index:value .*found '-1 1:x'"),
        ("set", "1 1:2\n\n-1 2:1 1:3\n", r"set, line 3: indices must increase, found \[2, 1\]"),
        ("set", "1 1:nan 2:3\n-1 1:2\n", r"set: row 1, feature 1 is nan \(1 NaN"),
        ("set", "1 1:1\n-1 1:2 2:1e39\n", r"set: row 2, feature 2 is 1e\+39"),
        ("set", "nan 1:1\n-1 1:2\n", r"label 1 of 2 is NaN"),
        ("set", "1 1:1\n5 1:2\n7 1:1\n", r"labels 1, 5, 7 are neither two values nor"),
        ("set", "1 1:1\n1 1:2\n", r"all 2 labels are 1"),
        ("set", "1\n-1\n", r"2 labels and no features"),
        ("set", " \n", r"set is empty"),
        ("set.xz", lzma.compress(LIBSVM)[:-9], r"set.xz .*is truncated or not a .xz file"),
        ("set.bz2", bz2.compress(LIBSVM)[:-9], r"set.bz2 .*is truncated or not a .bz2 file"),
        ("set.gz", gzip.compress(LIBSVM, mtime=0)[:-9], r"set.gz .*is truncated or not a .gz file"),
        ("set.gz", LIBSVM, r"set.gz .*is truncated or not a .gz file"),
        ("set.csv", "a,b,y\n1,2,0\n\n1,1\n", r"set.csv, line 4: 2 columns, but the first line has 3"),
        ("set.csv", "a,b,y\n1,2,0\n1,foo,1\n", r"set.csv, line 3, column 'b': 'foo' is not a number"),
        ("set.csv", "1,2,0\n1,,1\n", r"set.csv, line 2, column 2: '' is not a number"),
        ("set.csv", "1,inf,0\n1,2,1\n", r"set.csv: row 1, feature 2 is inf"),
        ("set.csv", "1,2,.5\n2,2,1.5\n3,3,7\n", r"labels 0.5, 1.5, 7 are neither two values nor"),
        ("set.csv", "1\n2\n", r"set.csv has one column"),
        ("set.csv", b"1,2\n\xff,1\n", r"set.csv is not UTF-8"),
        (
            "a-images-idx3-ubyte",
            b"\0\0\x08\x03" + bytes(12),
            r"its labels, a-labels-idx1-ubyte, are not beside it",
        ),
        ("text.txt", "a", r"context=1: .*text.txt has 1 characters"),
    ],
)
def test_unusable_files_are_refused_with_the_place(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        Logistic(write(tmp_path, name, content))


def test_truncated_idx_images_are_refused(tmp_path):
    head = b"\0\0\x08\x03" + np.array([2, 2, 2], ">i4").tobytes()
    write(tmp_path, "a-labels-idx1-ubyte", b"\0\0\x08\x01" + np.array([2], ">i4").tobytes() + bytes([0, 1]))
    with pytest.raises(DataError, match=r"promises \(2, 2, 2\) bytes and holds 7"):
        Logistic(write(tmp_path, "a-images-idx3-ubyte", head + bytes(7)))


def test_a_missing_file_is_refused_with_what_there_is(tmp_path):
    write(tmp_path, "mushrooms.xz", b"")
    with pytest.raises(DataError) as error:
        Logistic("mushroom", data_dir=str(tmp_path))
    assert f"Looked for {Path.cwd() / 'mushroom'}, {tmp_path / 'mushroom'}, also with .xz, .bz2, .gz" in str(
        error.value
    )
    assert f"Files in {tmp_path}: mushrooms.xz." in str(error.value)
    assert f"Write problem.data={tmp_path / 'mushrooms.xz'}" in str(error.value)
    with pytest.raises(DataError, match=r"There is no folder .*nowhere"):
        Logistic("mushroom", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="Write problem.data=breast_cancer"):
        Logistic("breast_cancr")
    with pytest.raises(DataError, match="nor one of faithful, synthetic"):
        Mixture("faithfull.csv")


def test_a_test_file_of_another_set_is_refused(tmp_path):
    path = write(tmp_path, "set", LIBSVM)
    write(tmp_path, "set.t", "1 1:1\n0 1:2\n")
    with pytest.raises(DataError, match=r"labels 0 are not among the training set's -1, 1"):
        Logistic(path)
    write(tmp_path, "set.t", "1 0:1\n-1 1:2\n")
    with pytest.raises(DataError, match="counts features from 0 and its training file from 1"):
        Logistic(path)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Logistic(l2=-1.0), "l2=-1.0: write problem.l2="),
        (lambda: Logistic(test_fraction=1.0), "test_fraction=1.0: write problem.test_fraction=0.2"),
        (lambda: Logistic("iris", label="y"), "label='y' names a column of a CSV file; iris is bundled"),
        (
            lambda: Logistic("synthetic", kind="hard"),
            "problem.kind=well_specified or misspecified or separable",
        ),
        (lambda: Logistic("synthetic", condition=0.5), "condition=0.5: write problem.condition=1 or more"),
        (lambda: Logistic(dtype="half"), "dtype='half': write problem.dtype=float32"),
        (
            lambda: Mixture(covariance="round"),
            "covariance='round': write problem.covariance=diagonal or full",
        ),
        (lambda: Mixture(k=0), "k=0: write problem.k=2"),
        (lambda: MixtureClassification(k=9, d=8), "k=9, d=8: write problem.k=2 or more, and problem.d=9"),
        (lambda: MixtureClassification(snr=0.0), "snr=0.0: write problem.snr=4"),
    ],
)
def test_impossible_arguments_are_refused_with_the_cure(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


@pytest.mark.parametrize("content", ["1,2\n1,3\n1,5\n", "1,2\n2,4\n4,8\n"])
def test_mixtures_on_a_line_are_refused(tmp_path, content):
    with pytest.raises(DataError, match="constant or a linear combination"):
        Mixture(write(tmp_path, "flat.csv", content))


@pytest.mark.parametrize("build", SMALL.values(), ids=SMALL.keys())
def test_the_objective_on_all_data_is_the_loss_of_one_large_batch(build):
    problem = build(dtype="float64")
    model = shifted(problem.model)
    batch = problem.train[torch.arange(len(problem.train))]
    assert problem.train_loss(model) == pytest.approx(problem.loss(model, batch).item(), rel=1e-12)


@pytest.mark.parametrize("build", SMALL.values(), ids=SMALL.keys())
def test_gradient_descent_lowers_the_loss_and_never_below_the_optimum(build):
    problem = build()
    losses = [problem.train_loss(problem.model)]
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
    for _ in range(40):
        batch = problem.train[torch.arange(len(problem.train))]
        problem.loss(problem.model, batch).backward()
        assert all(p.grad.isfinite().all() and p.dtype == torch.float32 for p in problem.model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(problem.train_loss(problem.model))
    assert problem.optimum <= losses[-1] < losses[0]
    assert all(later < before for before, later in zip(losses, losses[1:], strict=False))


@pytest.mark.parametrize("build", SMALL.values(), ids=SMALL.keys())
def test_a_problem_is_the_same_whatever_the_global_generators_hold_and_leaves_them_alone(build):
    def built(seed):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        problem = build()
        optimum = problem.optimum
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])
        return [*problem.train.tensors, *problem.model.parameters()], optimum

    (first, f), (second, g) = built(1), built(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert f == g


def test_another_seed_is_another_sample():
    for build in (SMALL["well specified"], SMALL["mixture classes"], SMALL["full"]):
        assert not torch.equal(build(seed=0).train.tensors[0], build(seed=1).train.tensors[0])
    same_data = Mixture(start_seed=0), Mixture(start_seed=1)
    assert torch.equal(same_data[0].train.tensors[0], same_data[1].train.tensors[0])
    assert not torch.equal(same_data[0].model.means, same_data[1].model.means)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("data", ["breast_cancer", "iris", "wine"])
def test_optima_agree_with_scikit_learn(data, intercept):
    problem = Logistic(data, intercept=intercept, dtype="float64")
    x, y = (t.numpy() for t in problem.train.tensors)
    peer = LogisticRegression(C=1 / (len(x) * problem.l2), fit_intercept=intercept, tol=1e-12, max_iter=500)
    peer.set_params(solver="newton-cholesky").fit(x, y)
    with torch.no_grad():
        problem.model.weight.copy_(torch.from_numpy(peer.coef_))
        if intercept:
            problem.model.bias.copy_(torch.from_numpy(peer.intercept_))
    assert problem.train_loss(problem.model) == pytest.approx(problem.optimum, abs=1e-9)
    assert problem.accuracy(problem.model) == peer.score(*(t.numpy() for t in problem.test.tensors))
    x, y = problem.test.tensors
    fit = F.cross_entropy(problem.model(x), y) if y.dtype == torch.long else None
    fit = F.binary_cross_entropy_with_logits(problem.model(x)[:, 0], y) if fit is None else fit
    assert problem.test_loss(problem.model) == pytest.approx(fit.item(), rel=1e-12)


@pytest.mark.parametrize(
    "build",
    [lambda: Logistic("wine"), lambda: Logistic("synthetic", n=500, d=12, condition=1e4, l2=1e-6)],
    ids=["three classes", "ill conditioned"],
)
def test_conjugate_gradients_find_the_same_optimum(monkeypatch, build):
    by_cholesky = build().optimum
    monkeypatch.setattr(newton, "DIRECT_LIMIT", 0)
    monkeypatch.setattr(newton, "CG_STEPS", 60)
    monkeypatch.setattr(newton, "STEPS", 15)
    assert build().optimum == pytest.approx(by_cholesky, abs=1e-13)


def test_a_repeated_feature_changes_no_unpenalised_optimum(tmp_path):
    rows = Logistic("synthetic", n=60, d=3, dtype="float64").train.tensors
    table = np.column_stack([t.numpy() for t in rows])
    np.savetxt(tmp_path / "once.csv", table, delimiter=",", fmt="%.17g")
    np.savetxt(tmp_path / "twice.csv", np.column_stack([table[:, 0], table]), delimiter=",", fmt="%.17g")
    once, twice = (Logistic(str(tmp_path / name), l2=0.0).optimum for name in ("once.csv", "twice.csv"))
    assert once == pytest.approx(twice, abs=1e-12)
    assert 0.01 < once < math.log(2)


def test_the_ridge_is_on_the_weights_and_not_on_the_intercept():
    problem, free = (Logistic("iris", l2=l2, dtype="float64") for l2 in (0.1, 0.0))
    model = shifted(problem.model)
    ridge = 0.05 * model.weight.square().sum().item()
    assert problem.train_loss(model) - free.train_loss(model) == pytest.approx(ridge, rel=1e-12)


@pytest.mark.parametrize("build", [SMALL["two classes"], SMALL["three classes"], SMALL["no intercept"]])
def test_the_fisher_is_the_mean_over_samples_of_the_jacobians_product(build):
    problem = build(dtype="float64")
    model = shifted(problem.model)
    parameters = dict(model.named_parameters())
    x = problem.train.tensors[0]
    jacobians = jacrev(lambda p: functional_call(model, p, (x,)))(parameters)
    j = torch.cat([value.flatten(2) for value in jacobians.values()], 2)
    z = model(x)
    p = torch.sigmoid(z) if z.shape[1] == 1 else torch.softmax(z, 1)
    b = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    fisher = torch.einsum("nca,ncd,ndb->ab", j, b, j) / len(x)
    torch.testing.assert_close(problem.fisher(model), torch.linalg.eigvalsh(fisher), rtol=1e-9, atol=1e-12)


def test_the_fisher_is_left_out_for_many_parameters():
    assert Logistic("digits").fisher(Logistic("digits").model) is None


def test_the_tally_forgets_only_order_and_repetition():
    x = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [1.0, 2.0]])
    once = tally(x, np.array([0, 1, 1, 0]), 3, intercept=True)
    assert once.x.tolist() == [[1, 2, 1], [0, 1, 1]]
    assert once.counts.tolist() == [[2, 1, 0], [0, 1, 0]]
    assert once.digest() == tally(x, np.array([1, 1, 0, 0]), 3, intercept=True).digest()
    assert once.digest() != tally(x, np.array([1, 1, 1, 0]), 3, intercept=True).digest()


@pytest.mark.parametrize(("n", "d"), [(30, 20), (200, 5)])
def test_separable_data_are_separated_by_a_perceptron_and_have_the_infimum_0(n, d):
    problem = Logistic("synthetic", kind="separable", n=n, d=d, l2=0.0, dtype="float64")
    x, y = problem.train.tensors
    signed, w = (2 * y - 1)[:, None] * x, torch.zeros(d, dtype=torch.float64)
    for _ in range(100_000):
        wrong = (signed @ w <= 0).nonzero()
        if len(wrong) == 0:
            break
        w = w + signed[wrong[0, 0]]
    assert (signed @ w > 0).all()
    assert problem.optimum == 0.0
    with torch.no_grad():
        problem.model.weight.copy_(1e4 * w / w.norm())
    assert 0.0 <= problem.train_loss(problem.model) < 0.01


def test_coins_are_drawn_again_until_they_are_separable():
    optima = [Logistic("synthetic", kind="separable", n=20, d=10, l2=0.0, seed=seed).optimum for seed in range(8)]
    assert optima == [0.0] * 8


def test_a_sample_that_no_plane_can_classify_keeps_the_infimum_above_0(tmp_path):
    path = write(tmp_path, "touching", "1 1:1\n1 1:2\n-1 1:-1\n-1 1:0\n")
    assert Logistic(path, l2=0.0).optimum == pytest.approx(math.log(2) / 4, abs=1e-9)


def test_coins_are_separable_as_often_as_cover_says():
    rng = np.random.default_rng(0)
    share = np.mean([linearly_separable(rng.standard_normal((10, 5)), rng.integers(0, 2, 10)) for _ in range(300)])
    assert abs(share - 0.5) < 3.3 * 0.5 / math.sqrt(300)


def test_overlapping_coins_have_an_optimum_above_0():
    problem = Logistic("synthetic", kind="misspecified", n=400, d=3, l2=0.0)
    assert 0.1 < problem.optimum < math.log(2)


def test_noise_and_curvature_agree_where_the_model_is_right_and_only_there():
    def largest_ratio(kind):
        problem = Logistic("synthetic", kind=kind, n=20_000, d=5, test_fraction=0, dtype="float64")
        w = newton.minimise(problem._objective).w
        x, y = problem.train.tensors
        scores = (torch.sigmoid(x @ w[0]) - y)[:, None] * x
        noise, curvature = scores.T @ scores / len(x), problem._objective.information(w)
        return torch.linalg.eigvals(torch.linalg.solve(curvature, noise)).real.max().item()

    assert largest_ratio("well_specified") < 1.1
    assert largest_ratio("misspecified") > 1.5


def test_the_condition_number_is_that_of_the_features():
    x = Logistic("synthetic", n=20_000, d=4, condition=100.0, dtype="float64").train.tensors[0]
    spectrum = torch.linalg.eigvalsh(x.T @ x / len(x))
    torch.testing.assert_close(
        spectrum, torch.tensor([0.01, 0.01 ** (2 / 3), 0.01 ** (1 / 3), 1.0]).double(), rtol=0.06, atol=0
    )


def test_mixture_classification_has_orthonormal_means_and_the_stated_noise():
    problem = MixtureClassification(k=3, d=5, n=9000, snr=2.0, dtype="float64")
    torch.testing.assert_close(problem.means @ problem.means.T, torch.eye(3, dtype=torch.float64))
    x, y = problem.train.tensors
    residual = x - problem.means[y]
    assert residual.var().item() == pytest.approx(0.5, abs=3.3 * 0.5 * math.sqrt(2 / 45_000))
    assert residual.mean(0).abs().max().item() < 4 * math.sqrt(0.5 / 9000)
    assert not torch.equal(problem.test.tensors[0], x[:1000])


@pytest.mark.parametrize("build", [SMALL["diagonal"], SMALL["full"]])
def test_mixtures_are_safe_under_vmap_and_for_one_sample(build):
    problem = build(dtype="float64")
    model, x = shifted(problem.model), problem.train.tensors[0][:7]
    parameters = dict(model.named_parameters())
    together = model(x)
    assert together.shape == (7,)
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x]), together)
    torch.testing.assert_close(torch.stack([model(row) for row in x]), together)
    scores = vmap(grad(lambda p, row: functional_call(model, p, (row[None],))[0]), (None, 0))(parameters, x)
    for i, value in enumerate(together):
        alone = torch.autograd.grad(value, list(parameters.values()), retain_graph=True)
        for score, expected in zip(scores.values(), alone, strict=True):
            torch.testing.assert_close(score[i], expected)
    flat = torch.cat([score.flatten(1) for score in scores.values()], 1)
    assert flat.isfinite().all()
    assert torch.linalg.matrix_rank(flat) > 1


@pytest.mark.parametrize("kind", [DiagonalMixture, FullMixture])
def test_mixture_densities_are_those_of_torch_distributions(kind):
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    covariances = a @ a.mT + torch.eye(2, dtype=torch.float64)
    if kind is DiagonalMixture:
        covariances = covariances * torch.eye(2)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    means, x = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64)
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights),
        torch.distributions.MultivariateNormal(means[:3], covariances),
    )
    torch.testing.assert_close(kind(weights, means[:3], covariances)(x), law.log_prob(x))


@pytest.mark.parametrize("build", [SMALL["diagonal"], SMALL["full"]])
def test_the_optimum_of_a_mixture_is_a_stationary_point_of_the_same_objective(build):
    problem = build(dtype="float64")
    x = problem.train.tensors[0]
    full = isinstance(problem.model, FullMixture)
    fit = best_fit(x.numpy(), problem.k, full=full, starts=5, seed=0)
    values = [torch.from_numpy(value) for value in (fit.weights, fit.means, fit.covariances)]
    model = (FullMixture if full else DiagonalMixture)(*values)
    problem.loss(model, (x,)).backward()
    assert max(p.grad.abs().max().item() for p in model.parameters()) < 1e-6
    assert problem.train_loss(model) == pytest.approx(problem.optimum, abs=1e-9)
    scores = vmap(grad(lambda p, row: functional_call(model, p, (row,))), (None, 0))(dict(model.named_parameters()), x)
    flat = torch.cat([score.flatten(1) for score in scores.values()], 1)
    expected = torch.linalg.eigvalsh(flat.T @ flat / len(x))
    torch.testing.assert_close(problem.fisher(model), expected, rtol=1e-9, atol=1e-12)


def test_one_component_has_the_closed_form():
    problem = Mixture("synthetic", k=1, n=200, d=3, covariance="full", dtype="float64")
    covariance = torch.cov(problem.train.tensors[0].T, correction=0)
    expected = 0.5 * (3 * math.log(2 * math.pi) + 3 + torch.logdet(covariance).item())
    assert problem.optimum == pytest.approx(expected, rel=1e-12)


def test_a_mixture_that_always_collapses_has_no_optimum(tmp_path):
    path = write(tmp_path, "few.csv", "1,2\n2,1\n8,9\n9,9.5\n")
    with pytest.warns(UserWarning, match="every EM start collapsed"):
        assert Mixture(path, k=3).optimum is None


def test_optima_are_kept_by_content_and_found_again_if_damaged(tmp_path):
    def optimum(**options):
        return Logistic("iris", cache_dir=str(tmp_path / "kept"), **options).optimum

    value = optimum()
    (path,) = (tmp_path / "kept").iterdir()
    whole = path.read_text()
    path.write_text(whole.replace(str(value), "0.125"))
    assert optimum() == 0.125
    for damaged in ("", whole[:40], "[]", whole.replace(str(value), "NaN"), whole.replace(str(value), '"1"')):
        path.write_text(damaged)
        assert optimum() == value
        assert path.read_text() == whole
    path.write_text(whole.replace(str(value), "0.125").replace('"fingerprint": "', '"fingerprint": "0'))
    assert optimum() == value
    assert len({optimum(), optimum(l2=0.5), optimum(intercept=False), optimum(seed=1)}) == 4
    assert len(list((tmp_path / "kept").iterdir())) == 4


def test_a_column_of_ones_is_no_intercept_to_the_cache(tmp_path):
    for name, rows in (("a", "1,1\n3,2\n2,1\n"), ("b", "1,1,1\n3,1,2\n2,1,1\n")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "data.csv", rows)
    first = Logistic(str(tmp_path / "a" / "data.csv"), cache_dir=str(tmp_path / "kept"))
    second = Logistic(str(tmp_path / "b" / "data.csv"), intercept=False, cache_dir=str(tmp_path / "kept"))
    assert first.name == second.name
    assert first.optimum < second.optimum


def test_a_cache_that_cannot_be_written_warns_and_an_unknown_optimum_is_not_kept(tmp_path):
    write(tmp_path, "file", "x")
    with pytest.warns(UserWarning, match="set problem.cache_dir"):
        assert OptimumCache(str(tmp_path / "file")).fetch("name", "hash", lambda: 1.0) == 1.0
    assert OptimumCache(str(tmp_path / "new")).fetch("name", "hash", lambda: None) is None
    assert not (tmp_path / "new").exists()


def test_a_model_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"shapes \[\(1, 3\)\], and the problem evaluates \[\(1, 30\), \(1,\)\]"):
        Logistic().train_loss(torch.nn.Linear(3, 1, bias=False))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_mirror_the_constructors_and_build(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.load(path)
    settings = {k: v for k, v in OmegaConf.to_container(cfg, resolve=True).items() if not k.startswith("_")}
    signature = inspect.signature(get_class(cfg["_target_"]))
    assert settings == {name: parameter.default for name, parameter in signature.parameters.items()}
    assert list(settings) == list(signature.parameters)
    assert cfg["_convert_"] == "all"
    problem = instantiate(cfg)
    assert problem.optimum < problem.train_loss(problem.model)
    assert problem.name in problem.describe() and str(len(problem.train)) in problem.describe()
    assert list(tmp_path.iterdir()) == []


def test_the_runs_seed_starts_a_mixture_and_does_not_change_its_data():
    cfg = OmegaConf.create({"seed": 5, "problem": OmegaConf.load(ROOT / "conf" / "problem" / "mixture.yaml")})
    assert (cfg.problem.seed, cfg.problem.start_seed) == (0, 5)


@needs_data
@pytest.mark.parametrize(
    ("name", "shape", "optimum"),
    [
        ("a9a", (32561, 123), 0.323379582465),
        ("mushrooms", (8124, 112), 0.014485866128),
        ("ijcnn1", (49990, 22), 0.188120104641),
        ("splice", (3175, 60), 0.338301771222),
        ("svmguide1", (3089, 4), 0.323334019575),
        ("german.numer_scale", (1000, 24), 0.470933753736),
    ],
)
def test_stored_sets_have_their_known_optimum(name, shape, optimum):
    problem = Logistic(name, data_dir=str(SHARED))
    assert problem.train.tensors[0].shape == shape
    assert problem.optimum == pytest.approx(optimum, abs=1e-11)
    assert (problem.test is None) == (name not in ("a9a", "ijcnn1"))
    assert problem.train.tensors[1].mean().item() == pytest.approx(
        {"a9a": 7841, "mushrooms": 4208, "ijcnn1": 4853, "splice": 1648, "svmguide1": 2000}.get(name, 300) / shape[0]
    )


@needs_data
def test_stored_images_text_and_old_faithful_load():
    digits = Logistic("mnist-t10k-images-idx3-ubyte", data_dir=str(SHARED))
    assert (digits.train.tensors[0].shape, digits.classes) == ((10_000, 784), 10)
    text = Logistic("tinyshakespeare.txt", data_dir=str(SHARED))
    assert (text.train.tensors[0].shape, text.classes) == ((1_115_393, 65), 65)
    assert math.log(2) < text.optimum < math.log(65)
    test_set = Logistic("a9a.t", data_dir=str(SHARED))
    assert test_set.train.tensors[0].shape == (16_281, 122)
    geyser = Mixture(data_dir=str(SHARED), covariance="full", standardise=False)
    assert len(geyser.train) == 272
    assert geyser.optimum * 272 == pytest.approx(1130.264, abs=1e-3)
