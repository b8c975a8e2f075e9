"""Every layer that has a rule of its own, in the settings that its rule must know; a new one enters by one line."""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import nn

from tests.cases import Case

LAYERS: dict[str, Callable[[], Case]] = {}


class Head(nn.Module):
    """One layer, a nonlinearity, and a loss that reads every output: a row of random numbers for each."""

    def __init__(self, layer, *inputs):
        super().__init__()
        self.layer = layer
        self.register_buffer("read", torch.randn(layer(*inputs)[:1].numel()))

    def forward(self, *inputs):
        return torch.tanh(self.layer(*inputs)).flatten(1) * self.read


GEOMETRIES = {
    "plain": {},
    "strided": {"stride": 2},
    "padded": {"padding": 2, "stride": 3},
    "dilated": {"dilation": 2, "padding": 1},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 4, "stride": 2, "padding": 1},
    "unbiased": {"bias": False},
}
MARGINS = {
    "same": {"padding": "same", "kernel_size": 2, "dilation": 3},
    "valid": {"padding": "valid"},
    "reflected": {"padding": 1, "padding_mode": "reflect"},
    "replicated": {"padding": "same", "padding_mode": "replicate", "kernel_size": 4},
    "circular": {"padding": 1, "padding_mode": "circular", "stride": 2},
}
TRANSPOSED = {"wider": {"stride": 2, "output_padding": 1}, "far": {"dilation": 3, "stride": 2, "output_padding": 2}}


def layer_case(name, layer, *inputs, written=None, among=LAYERS):
    """Enrols one layer under the name, with the squares of a random reading of its outputs as losses.

    `written` maps the layer to the same in operations that vmap knows.
    """
    assert name not in among, name

    def build():
        torch.manual_seed(len(name))
        module = layer().double()
        made = [make() for make in inputs]
        with warnings.catch_warnings():  # torch tells once that an even kernel has uneven margins
            warnings.simplefilter("ignore")
            model = Head(module, *made)
        twin = None if written is None else copy.copy(model)
        if twin is not None:
            twin._modules = {"layer": written(module)}
        return Case(model, tuple(made), squares, written=twin)

    among[name] = build


def squares(model, *inputs):
    return model(*inputs).sum(1).square()


def _convolutions():
    for axes, (plain, transposed) in enumerate(
        ((nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d)), 1
    ):
        size = (7, 6, 5)[:axes] if axes < 3 else (5, 4, 4)
        for layer, settings in ((plain, GEOMETRIES | MARGINS), (transposed, GEOMETRIES | TRANSPOSED)):
            for title, options in settings.items():
                if axes == 3 and title in ("reflected", "dilated", "padded") and layer is transposed:
                    continue
                given = {"kernel_size": 3 if axes < 3 else 2} | options
                layer_case(
                    f"{layer.__name__} {title}",
                    lambda layer=layer, given=given: layer(4, 4, **given),
                    lambda size=size: torch.randn(5, 4, *size, dtype=torch.float64),
                )


def numbers(*shape):
    return lambda: torch.randn(*shape, dtype=torch.float64)


def indices(*shape, size=6):
    return lambda: torch.randint(0, size, shape)


def moved(norm):
    """Running statistics and parameters that are not those of a fresh layer, in eval mode."""
    for tensor in (*norm.parameters(), *(b for b in norm.buffers() if b.is_floating_point())):
        tensor.data.uniform_(0.5, 2)
    return norm.eval()


class Bag(nn.Module):
    """nn.EmbeddingBag written out."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.mean, self.padding = layer.weight, layer.mode == "mean", layer.padding_idx

    def forward(self, index, per_sample_weights=None):
        counted = torch.ones_like(index) if self.padding is None else index != self.padding
        counted = counted.to(self.weight.dtype)
        share = counted.unsqueeze(-1) / (counted.sum(1)[:, None, None].clamp_min(1) if self.mean else 1)
        rows = self.weight[index] * share
        return (rows if per_sample_weights is None else rows * per_sample_weights.unsqueeze(-1)).sum(1)


class Weighted(nn.Module):
    """A bag with a weight for each of its members."""

    def __init__(self, bag):
        super().__init__()
        self.bag = bag

    def forward(self, index, weights):
        return self.bag(index, per_sample_weights=weights)


class Attending(nn.Module):
    """Attention as it is called: by itself, or to another sequence, with and without masks and weights."""

    def __init__(self, *arguments, mask=None, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(*arguments, **options, batch_first=True)
        self.mask = mask

    def forward(self, x, other=None, absent=None):
        other = x if other is None else other
        return self.attention(x, other, other, absent, need_weights=self.mask is None, attn_mask=self.mask)[0]


class Recurring(nn.Module):
    """A recurrent layer of which all steps, or the last layer's final states, are used."""

    def __init__(self, recurrent, final=False):
        super().__init__()
        self.recurrent, self.final = recurrent, final

    def forward(self, x):
        output, states = self.recurrent(x)
        states = states[0] if isinstance(states, tuple) else states
        return states[-1] if self.final else output


class Unrolled(nn.Module):
    """The same by torch's cells, with the same names of parameters."""

    def __init__(self, layer):
        super().__init__()
        for name, p in layer.named_parameters():
            self.register_parameter(name, p)
        self.layers, self.ways, self.kind = layer.num_layers, 2 if layer.bidirectional else 1, type(layer)
        self.size = layer.hidden_size

    def forward(self, x):
        final = []
        for layer in range(self.layers):
            outputs = []
            for way in range(self.ways):
                suffix = f"_l{layer}" + "_reverse" * way
                names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                weights = [getattr(self, name + suffix, None) for name in names]
                h = c = x.new_zeros(len(x), self.size)
                steps = []
                for step in (x.flip(1) if way else x).unbind(1):
                    if self.kind is nn.LSTM:
                        h, c = torch.lstm_cell(step, (h, c), *weights)
                    else:
                        h = (torch.gru_cell if self.kind is nn.GRU else torch.rnn_tanh_cell)(step, h, *weights)
                    steps.append(h)
                final.append(h)
                outputs.append(torch.stack(steps[::-1] if way else steps, 1))
            x = torch.cat(outputs, 2)
        return x, torch.stack(final)


RECURRENT = {
    "": {},
    "deep": {"num_layers": 2, "bidirectional": True},
    "unbiased": {"bias": False, "bidirectional": True},
}
for cell in (nn.RNN, nn.GRU, nn.LSTM):
    for title, options in RECURRENT.items():
        for final in (False, True):
            layer_case(
                f"{cell.__name__} {title}{' final' if final else ''}".strip(),
                lambda cell=cell, options=options, final=final: Recurring(
                    cell(4, 3, batch_first=True, **options), final
                ),
                numbers(6, 5, 4),
                written=lambda layer: Recurring(Unrolled(layer.recurrent), layer.final),
            )
_convolutions()
layer_case(
    "Conv2d channels_last",
    lambda: nn.Conv2d(4, 3, 3, padding=1).to(memory_format=torch.channels_last),
    lambda: torch.randn(5, 4, 5, 6, dtype=torch.float64).to(memory_format=torch.channels_last),
)
layer_case("Conv2d wide", lambda: nn.Conv2d(12, 10, 3, stride=2), numbers(5, 12, 4, 4))
layer_case("Conv2d point", lambda: nn.Conv2d(4, 3, 1), numbers(5, 4, 3, 3))
layer_case("Conv2d uneven", lambda: nn.Conv2d(2, 3, (3, 2), (1, 2), (0, 1), (1, 2)), numbers(5, 2, 5, 6))
layer_case("Embedding", lambda: nn.Embedding(6, 3), indices(9, 7))
layer_case("Embedding one", lambda: nn.Embedding(6, 3), indices(9))
layer_case("Embedding padded", lambda: nn.Embedding(6, 3, padding_idx=2), indices(9, 7))
layer_case("Embedding planes", lambda: nn.Embedding(6, 3, padding_idx=-1), indices(9, 2, 4))
for bag in ({"mode": "sum"}, {"mode": "mean"}, {"mode": "sum", "padding_idx": 1}, {"mode": "mean", "padding_idx": 1}):
    layer_case(f"EmbeddingBag {bag}", lambda bag=bag: nn.EmbeddingBag(6, 3, **bag), indices(9, 7), written=Bag)
layer_case(
    "EmbeddingBag weighted",
    lambda: Weighted(nn.EmbeddingBag(6, 3, mode="sum")),
    indices(9, 7),
    numbers(9, 7),
    written=lambda layer: Weighted(Bag(layer.bag)),
)
layer_case("LayerNorm", lambda: moved(nn.LayerNorm(6)), numbers(9, 6))
layer_case("LayerNorm sequence", lambda: moved(nn.LayerNorm(6)), numbers(9, 4, 6))
layer_case("LayerNorm planes", lambda: moved(nn.LayerNorm((3, 4))), numbers(9, 2, 2, 3, 4))
layer_case("LayerNorm unbiased", lambda: moved(nn.LayerNorm(6, bias=False)), numbers(9, 4, 6))
layer_case("RMSNorm", lambda: moved(nn.RMSNorm(6)), numbers(9, 4, 6))
layer_case("RMSNorm planes", lambda: moved(nn.RMSNorm((3, 4), eps=0.1)), numbers(9, 2, 3, 4))
layer_case("GroupNorm", lambda: moved(nn.GroupNorm(2, 6)), numbers(9, 6))
layer_case("GroupNorm planes", lambda: moved(nn.GroupNorm(3, 6, eps=0.1)), numbers(9, 6, 3, 4))
layer_case("BatchNorm1d", lambda: moved(nn.BatchNorm1d(6)), numbers(9, 6))
layer_case("BatchNorm1d sequence", lambda: moved(nn.BatchNorm1d(6)), numbers(9, 6, 4))
layer_case("BatchNorm2d", lambda: moved(nn.BatchNorm2d(6, eps=0.1)), numbers(9, 6, 3, 4))
layer_case("BatchNorm3d", lambda: moved(nn.BatchNorm3d(2)), numbers(9, 2, 2, 3, 2))
CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
layer_case("MultiheadAttention", lambda: Attending(4, 2), numbers(9, 5, 4))
layer_case("MultiheadAttention unbiased", lambda: Attending(4, 2, bias=False), numbers(9, 5, 4))
layer_case("MultiheadAttention across", lambda: Attending(4, 2), numbers(9, 5, 4), numbers(9, 3, 4))
layer_case("MultiheadAttention wide", lambda: Attending(4, 2, kdim=6, vdim=6), numbers(9, 5, 4), numbers(9, 3, 6))
layer_case(
    "MultiheadAttention padded",
    lambda: Attending(4, 2, mask=torch.randn(5, 3, dtype=torch.float64)),
    numbers(9, 5, 4),
    numbers(9, 3, 4),
    lambda: torch.zeros(9, 3).double().masked_fill(torch.arange(3) > torch.randint(0, 3, (9, 1)), -torch.inf),
)
layer_case("MultiheadAttention causal", lambda: Attending(4, 2, mask=CAUSAL), numbers(9, 5, 4))
layer_case(
    "TransformerEncoderLayer", lambda: nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True), numbers(9, 5, 4)
)
