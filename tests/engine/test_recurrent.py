"""Recurrent layers: gradients of single samples by torch's own kernels, other outputs, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fisheropt
from fisheropt.rules import find
from tests.engine.test_statistics import EXACT

SETTINGS = {
    "RNN": (nn.RNN, {}),
    "RNN relu": (nn.RNN, {"nonlinearity": "relu", "num_layers": 3}),
    "LSTM": (nn.LSTM, {}),
    "LSTM deep": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "GRU": (nn.GRU, {"bidirectional": True}),
    "GRU deep": (nn.GRU, {"num_layers": 2, "bias": False}),
}


def built(name):
    """A layer, an input and initial states."""
    kind, options = SETTINGS[name]
    layer = kind(4, 3, batch_first=True, **options).double()
    x = torch.randn(6, 5, 4, dtype=torch.float64)
    start = torch.randn(layer.num_layers * (1 + layer.bidirectional), 6, 3, dtype=torch.float64)
    return layer, x, (start, start.flip(0)) if kind is nn.LSTM else start


def of_sample(start, n):
    if isinstance(start, tuple):
        return tuple(of_sample(states, n) for states in start)
    return None if start is None else start[:, n : n + 1].contiguous()


def every(returned):
    """All that a layer returns for each sample, [n, numbers]."""
    output, states = returned
    states = states if isinstance(states, tuple) else (states,)
    return torch.cat([output.flatten(1), *(z.transpose(0, 1).flatten(1) for z in states)], 1)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_forms_are_the_gradients_of_single_samples(name, given):
    """Whatever of the steps, the final states of all layers and the cells the loss uses."""
    layer, x, start = built(name)
    start = start if given else None
    names = tuple(name for name, _ in layer.named_parameters())
    cotangent = torch.randn_like(every(layer(x)))
    saved, context = find(layer).saved(layer, (x, start), {})
    forms = find(layer).forms(layer, names, saved, context, cotangent)
    for n in range(len(x)):
        output = every(layer(x[n : n + 1], of_sample(start, n)))
        for name, g in zip(
            names, torch.autograd.grad(output, list(layer.parameters()), cotangent[n : n + 1]), strict=True
        ):
            torch.testing.assert_close(forms[name].materialise()[n], g, **EXACT)


class Started(nn.Module):
    """A layer that starts from states of its own."""

    def __init__(self, layer, start):
        super().__init__()
        self.layer, self.start = layer, start

    def forward(self, x):
        return self.layer(x, self.start)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_layer_returns_is_left_as_it_was(name):
    """And so are the gradients, and the statistics are those of the samples' own."""
    layer, x, start = built(name)
    model, reading = Started(layer, start), torch.randn(1, every(layer(x)).shape[1], dtype=torch.float64)

    def run():
        layer.zero_grad()
        returned = model(x)
        (every(returned).sin() * reading).sum(1).mean().backward()
        states = returned[1] if isinstance(returned[1], tuple) else (returned[1],)
        return returned[0], *states, *(p.grad for p in layer.parameters())

    def of_one(n):
        loss = (every(layer(x[n : n + 1], of_sample(start, n))).sin() * reading).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(layer.parameters()))])

    plain = run()
    with fisheropt.observe(model, fisheropt.FullCovariance()) as tap:
        tapped = run()
    for found, right in zip(tapped, plain, strict=True):
        assert found.shape == right.shape and found.is_contiguous()
        torch.testing.assert_close(found, right)
    truth = torch.cov(torch.stack([of_one(n) for n in range(len(x))]).T)
    torch.testing.assert_close(tap.covariance().per_sample().matrix(), truth, **EXACT)


def test_padding_behind_the_last_step_that_counts_changes_nothing():
    layer, x, _ = built("GRU deep")
    kept = torch.arange(5) < torch.tensor([5, 3, 1, 2, 5, 4])[:, None]
    readings = []
    for padded in (x, x.where(kept[:, :, None], torch.tensor(9.0).double())):
        layer.zero_grad()
        with fisheropt.observe(layer, fisheropt.FullCovariance()) as tap:
            (layer(padded)[0].square().sum(2) * kept).sum(1).mean().backward()
        readings.append(tap.covariance().matrix())
    torch.testing.assert_close(readings[1], readings[0], **EXACT)


class Own(nn.GRU):
    def forward(self, x):
        return super().forward(x)[0]


REFUSED = {
    "time first": (lambda: nn.LSTM(4, 3), "batch_first=True"),
    "projected": (lambda: nn.LSTM(4, 3, proj_size=2, batch_first=True), "proj_size"),
    "overridden": (lambda: Own(4, 3, batch_first=True), "forward is overridden"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_are_refused_by_name(name):
    build, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        fisheropt.observe(build(), fisheropt.Trace())


CALLS = {
    "packed": (lambda: pack_sequence([torch.randn(3, 4), torch.randn(2, 4)]), TypeError, "on no axis of their own"),
    "alone": (lambda: torch.randn(5, 4), RuntimeError, "no axis of samples"),
    "dropout": (lambda: torch.randn(6, 5, 4), RuntimeError, "a second run cannot repeat"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_refused_by_name(name):
    give, error, words = CALLS[name]
    layer = nn.GRU(4, 3, 2, batch_first=True, dropout=0.5 if name == "dropout" else 0.0)
    with fisheropt.observe(layer, fisheropt.Trace()), pytest.raises(error, match=words):
        layer(give())
