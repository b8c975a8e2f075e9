"""What one sample is: sequences or tokens, of which padding and what the loss leaves out are none."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from tests.cases import CASES, Case, classification
from tests.engine.test_statistics import EXACT
from tests.expected import JUDGES
from tests.oracle import per_sample_gradients

LEFT_OUT = -100
APART = ("sequence", "short_sequence_of_wide_layers", "embedding", "tied_table", "normalised_sequence")


def normalised_sequence():
    layers = nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.RMSNorm(6), nn.Linear(6, 3)
    x, y = torch.randn(9, 7, 4, dtype=torch.float64), torch.randint(0, 3, (9, 7))
    return Case(nn.Sequential(*layers).double(), (x, y), None)


def built(name):
    case = (CASES | {"normalised_sequence": normalised_sequence})[name]()
    return case.model, *case.batch


def of_tokens(model, x, y):
    """Every token as a sample of its own, for the oracle."""
    return Case(model, (x.flatten(0, 1), y.flatten()), classification)


def mean_over_tokens(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=LEFT_OUT)


def judged(title, model, batches, truth, sample, mask=None, loss=mean_over_tokens):
    """One statistic of the loss's backward on some batches against gradients; `mask` says what is no data."""
    judge, named = JUDGES[title], {n: p for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    with fisheropt.observe(model, judge.build(named), sample=sample) as tap:
        for x, y in batches:
            if mask is not None:
                tap.ignore(mask(y))
            loss(model, x, y).backward()
    for found, right in judge.pairs(tap, named, list(truth.values()), 1.0):
        torch.testing.assert_close(found, right, **EXACT)
    assert judge.dof(tap, named) == len(next(iter(truth.values()))) - 1


def left_out(y, *places):
    """The same targets with some tokens taken out of the loss."""
    y = y.clone()
    for n, tokens in places:
        y[n, tokens] = LEFT_OUT
    return y


@pytest.mark.parametrize("title", JUDGES)
@pytest.mark.parametrize("name", APART)
def test_tokens_are_samples_where_no_layer_mixes_them(name, title):
    model, x, y = built(name)
    judged(title, model, [(x, y)], per_sample_gradients(of_tokens(model, x, y)), "token")


@pytest.mark.parametrize("title", JUDGES)
@pytest.mark.parametrize("name", ["sequence", "tied_table"])
def test_padded_tokens_are_no_data(name, title):
    model, x, y = built(name)
    y = left_out(y, (0, slice(3, None)), (4, slice(1, None)), (5, slice(None)))
    case, kept = of_tokens(model, x, y), (y != LEFT_OUT).flatten()
    truth = per_sample_gradients(Case(model, tuple(z[kept] for z in case.batch), classification))
    judged(title, model, [(x, y)], truth, "token", lambda y: y == LEFT_OUT)


@pytest.mark.parametrize("title", JUDGES)
def test_padded_microbatches_add_up(title):
    model, x, y = built("sequence")
    y = left_out(y, (0, slice(3, None)), (7, slice(1, None)))
    kept = (y != LEFT_OUT).flatten()
    case = of_tokens(model, x, y)
    truth = per_sample_gradients(Case(model, tuple(z[kept] for z in case.batch), classification))

    def share(model, x, y):
        losses = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=LEFT_OUT, reduction="sum")
        return losses / kept.sum()

    judged(title, model, [(x[:4], y[:4]), (x[4:], y[4:])], truth, "token", lambda y: y == LEFT_OUT, share)


def share_of_the_mean(scale):
    """What a sequence adds to the mean over all tokens that count, times `scale`."""

    def losses(model, x, y):
        logits, kept = model(x).flatten(0, 1), (y != LEFT_OUT)
        each = F.cross_entropy(logits, y.flatten().clamp_min(0), reduction="none").unflatten(0, y.shape)
        return (each * kept).sum(1) * scale

    return losses


@pytest.mark.parametrize("title", JUDGES)
@pytest.mark.parametrize("name", ["sequence", "tied_table", "mixing"])
def test_sequences_of_several_lengths(name, title):
    """gₙ = c·hₙ is c/M times the sum over the sequence's tokens, M being the number of tokens in the batch's loss."""
    model, x, y = mixing() if name == "mixing" else built(name)
    y = left_out(y, (0, slice(3, None)), (4, slice(1, None)))
    losses = share_of_the_mean(len(x) / int((y != LEFT_OUT).sum()))
    judged(title, model, [(x, y)], per_sample_gradients(Case(model, (x, y), losses)), "sequence")


@pytest.mark.parametrize("title", JUDGES)
def test_a_sequence_without_any_token_is_no_data(title):
    model, x, y = built("sequence")
    y = left_out(y, (0, slice(3, None)), (5, slice(None)))
    kept = (y != LEFT_OUT).any(1)
    losses = share_of_the_mean(int(kept.sum()) / int((y != LEFT_OUT).sum()))
    truth = per_sample_gradients(Case(model, (x[kept], y[kept]), losses))
    judged(title, model, [(x, y)], truth, "sequence", lambda y: (y == LEFT_OUT).all(1))


class Copied(nn.Module):
    """Attention between linear layers; given a weight for each position, every position uses its own."""

    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(4, 12), nn.Linear(4, 3)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        names = dict(self.named_parameters())
        return attended(x, lambda z, name: self.get_submodule(name)(z), names)


def attended(x, call, names):
    q, k, v = call(x, "project").unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    return call(call(mixed, "norm"), "out")


def mixing():
    torch.manual_seed(3)
    return Copied().double(), torch.randn(9, 5, 4, dtype=torch.float64), torch.randint(0, 3, (9, 5))


def copies(model, x, y):
    """The gradient of the mean loss at each position's own copy of the weights, times their number: [n·t, *parameter]."""
    own = {n: p.detach().expand(*x.shape[:2], *p.shape).clone().requires_grad_() for n, p in model.named_parameters()}

    def call(z, name):
        weight, bias = own[f"{name}.weight"], own[f"{name}.bias"]
        if name == "norm":
            return F.layer_norm(z, (z.shape[-1],)) * weight + bias
        return torch.einsum("nti,ntoi->nto", z, weight) + bias

    loss = F.cross_entropy(attended(x, call, own).flatten(0, 1), y.flatten(), ignore_index=LEFT_OUT)
    found = torch.autograd.grad(loss, list(own.values()))
    return {name: g.flatten(0, 1) * x.shape[0] * x.shape[1] for name, g in zip(own, found, strict=True)}


@pytest.mark.parametrize("title", JUDGES)
def test_behind_attention_a_token_is_its_own_copy_of_the_weights(title):
    model, x, y = mixing()
    judged(title, model, [(x, y)], copies(model, x, y), "token")


@pytest.mark.parametrize("statistic", [fisheropt.Trace(), fisheropt.FullCovariance()])
def test_tokens_without_a_gradient_must_be_explained(statistic):
    model, x, y = built("sequence")
    y = left_out(y, (0, slice(3, None)))
    parameter = None if isinstance(statistic, fisheropt.FullCovariance) else next(model.parameters())
    with fisheropt.observe(model, statistic, sample="token") as tap:
        mean_over_tokens(model, x, y).backward()
        with pytest.raises(RuntimeError, match=r"more than 59 of the 63 tokens.*tap\.ignore\(targets == -100\)"):
            tap.read(parameter)
        for wrong, words in ((y[:3] == LEFT_OUT, "have 21 entries in all"), (y > 0, "in the loss")):
            model.zero_grad()
            tap.clear()
            tap.ignore(wrong)
            mean_over_tokens(model, x, y).backward()
            with pytest.raises(RuntimeError, match=words):
                tap.covariance(parameter)
        tap.clear()
        tap.ignore(torch.zeros_like(y, dtype=torch.bool))
        mean_over_tokens(model, x, y).backward()
        assert tap.read(parameter).count == 63


def test_a_token_that_the_loss_reaches_through_others_is_in_it():
    """A prompt has no target, and yet a gradient where later tokens attend to it."""
    model, x, y = mixing()
    y = left_out(y, *((n, slice(0, 2)) for n in range(9)))
    with fisheropt.observe(model, fisheropt.Trace(), sample="token") as tap:
        tap.ignore(y == LEFT_OUT)
        mean_over_tokens(model, x, y).backward()
    with pytest.raises(RuntimeError, match="through the other tokens"):
        tap.covariance(model.out.weight)


def test_a_sequence_that_is_in_the_loss_cannot_be_ignored():
    model, x, y = built("sequence")
    with fisheropt.observe(model, fisheropt.Trace()) as tap:
        tap.ignore(torch.arange(9) < 2)
        mean_over_tokens(model, x, y).backward()
    with pytest.raises(RuntimeError, match="leaves 7 of 9"):
        tap.covariance(model[0].weight)


@pytest.mark.filterwarnings("ignore")  # torch looks at .grad of what is no leaf, and hides its own warning of it
@pytest.mark.parametrize("title", ["Trace", "FullCovariance"])
def test_tokens_of_a_compiled_model(title):
    model, x, y = built("sequence")
    y = left_out(y, (0, slice(3, None)))
    kept = (y != LEFT_OUT).flatten()
    case = of_tokens(model, x, y)
    truth = per_sample_gradients(Case(model, tuple(z[kept] for z in case.batch), classification))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    judged(
        title,
        model,
        [(x, y)],
        truth,
        "token",
        lambda y: y == LEFT_OUT,
        lambda _, x, y: mean_over_tokens(compiled, x, y),
    )


MIXING = {
    "convolution": lambda: nn.Conv1d(7, 4, 1),
    "attention": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    "group norm": lambda: nn.GroupNorm(1, 7),
    "bare": lambda: nn.Bilinear(4, 4, 2),
}


@pytest.mark.parametrize("name", MIXING)
def test_layers_that_mix_tokens_are_refused_by_name(name):
    model = nn.Sequential(nn.Linear(4, 4), MIXING[name]())
    with pytest.raises(ValueError, match=r"sample='token'.*1\.weight|1\.in_proj_weight"):
        fisheropt.observe(model, fisheropt.Trace(), sample="token")
    fisheropt.observe(model, fisheropt.Trace(), ["0.weight"], sample="token").remove()


class Pooled(nn.Module):
    """The mean over tokens has no token."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.first(x).mean(1))


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (Pooled(), (9, 5, 4), "second axis is not the token"),
        (nn.Linear(4, 3), (9, 4), "second axis is not the token"),
        (nn.LayerNorm((5, 4)), (9, 5, 4), "second axis is not the token"),
        (nn.Embedding(5, 3), (9,), r"needs an input \[samples, tokens"),
    ],
)
def test_outputs_without_tokens_are_refused(model, shape, words):
    x = torch.randint(0, 5, shape) if isinstance(model, nn.Embedding) else torch.randn(shape)
    with fisheropt.observe(model, fisheropt.Trace(), sample="token"), pytest.raises(RuntimeError, match=words):
        model(x)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="'sequence'.*'token'"):
        fisheropt.observe(nn.Linear(2, 2), fisheropt.Trace(), sample="word")
