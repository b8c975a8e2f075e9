"""Layers without a rule of their own: what the generic rule, or the rules of their parts, make of them."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

from tests.layers import layer_case, moved, numbers

OTHERS = {}


def other(name, layer, *inputs):
    layer_case(name, layer, *inputs, among=OTHERS)


class Adapter(nn.Module):
    """A frozen layer and two bare factors beside it, as a product of its own or merged into one weight."""

    def __init__(self, merged):
        super().__init__()
        self.base = nn.Linear(4, 5).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(5, 2))
        self.merged = merged

    def forward(self, x):
        if self.merged:
            return F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)
        return self.base(x) + x @ self.down.T @ self.up.T


class Wrapped(nn.Module):
    """A base layer that is called, and named adapters in dictionaries of modules, as adapter libraries write them."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(4, 5).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 5, bias=False)})
        self.lora_dropout = nn.ModuleDict({"default": nn.Identity()})

    def forward(self, x):
        result = self.base_layer(x)
        for name, down in self.lora_A.items():
            result = result + self.lora_B[name](down(self.lora_dropout[name](x))) * 2.0
        return result


class Factors(nn.Module):
    """A parametrisation with parameters of its own: the adapter as torch.nn.utils.parametrize has it."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, weight):
        return weight + self.up @ self.down


def adapted():
    layer = nn.Linear(4, 5)
    register_parametrization(layer, "weight", Factors(5, 4))
    layer.parametrizations.weight.original.requires_grad_(False)
    return layer


class Listed(nn.Module):
    """Parameters in a list, in a dictionary, and in a list inside a list of modules."""

    def __init__(self, held):
        super().__init__()
        self.held = held

    def forward(self, x):
        if isinstance(self.held, nn.ModuleList):
            return torch.tanh(x * self.held[0][0]) + self.held[1](x)
        first, second = self.held.values() if isinstance(self.held, nn.ParameterDict) else self.held
        return torch.tanh(x * first) * second


class Attending(nn.Module):
    """Attention as users write it: projections that are called, or a bare matrix, around scaled_dot_product_attention."""

    def __init__(self, causal=False, bare=False):
        super().__init__()
        self.causal, self.bare = causal, bare
        self.project, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.randn(12, 4)) if bare else None

    def forward(self, x):
        projected = F.linear(x, self.weight) if self.bare else self.project(x)
        q, k, v = projected.unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(attended.transpose(1, 2).flatten(2))


class Steps(nn.Module):
    """A recurrent cell called once a step."""

    def __init__(self, cell, size):
        super().__init__()
        self.cell, self.size = cell, size

    def forward(self, x):
        h = x.new_zeros(len(x), self.size)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return h


class InPlace(nn.Module):
    """An activation that overwrites the layer's output."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return torch.relu_(self.layer(x)) + 1


def bare_only():
    layer = Attending(bare=True)
    del layer.project
    return layer


def frozen():
    layer = nn.Linear(4, 5)
    layer.weight.requires_grad_(False)
    return layer


def listed():
    return nn.ModuleList([nn.ParameterList([nn.Parameter(torch.randn(4))]), nn.Linear(4, 4)])


parts = [nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(1))) for _ in range(2)]
other("Bilinear", lambda: nn.Bilinear(4, 3, 5), numbers(6, 4), numbers(6, 3))
other("Bilinear sequence", lambda: nn.Bilinear(4, 3, 5, bias=False), numbers(6, 2, 4), numbers(6, 2, 3))
other("PReLU", lambda: nn.PReLU(), numbers(6, 4))
other("PReLU channels", lambda: nn.PReLU(4), numbers(6, 4, 3))
other("InstanceNorm1d", lambda: moved(nn.InstanceNorm1d(4, affine=True)), numbers(6, 4, 5))
other("RNNCell", lambda: Steps(nn.RNNCell(4, 3), 3), numbers(6, 5, 4))
other("GRUCell", lambda: Steps(nn.GRUCell(4, 3), 3), numbers(6, 5, 4))
other("adapter beside", lambda: Adapter(False), numbers(6, 4))
other("adapter merged", lambda: Adapter(True), numbers(6, 4))
other("adapter wrapped", Wrapped, numbers(6, 4))
other("adapter parametrised", adapted, numbers(6, 4))
other("weight_norm", lambda: weight_norm(nn.Linear(4, 5)), numbers(6, 4))
other("weight_norm convolution", lambda: weight_norm(nn.Conv1d(4, 5, 2)), numbers(6, 4, 3))
other("orthogonal", lambda: orthogonal(nn.Linear(4, 5)), numbers(6, 4))
other("spectral_norm", lambda: spectral_norm(nn.Linear(4, 5)).eval(), numbers(6, 4))
other("ParameterList", lambda: Listed(nn.ParameterList(parts)), numbers(6, 4))
other("ParameterDict", lambda: Listed(nn.ParameterDict({"a": parts[0], "b": parts[1]})), numbers(6, 4))
other("ParameterList listed", lambda: Listed(listed()), numbers(6, 4))
other("attention written", Attending, numbers(6, 5, 4))
other("attention causal", lambda: Attending(causal=True), numbers(6, 5, 4))
other("attention bare", bare_only, numbers(6, 5, 4))
for name, layer, size in (
    ("Linear", lambda: nn.Linear(4, 5), (6, 4)),
    ("Conv1d", lambda: nn.Conv1d(4, 3, 2), (6, 4, 3)),
    ("LayerNorm", lambda: nn.LayerNorm(4), (6, 4)),
    ("GroupNorm", lambda: nn.GroupNorm(2, 4), (6, 4, 3)),
    ("PReLU", lambda: nn.PReLU(), (6, 4)),
    ("a frozen weight", frozen, (6, 4)),
):
    other(f"in place after {name}", lambda layer=layer: InPlace(layer()), numbers(*size))
