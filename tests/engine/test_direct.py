"""A model that is one linear layer is read by a way of its own, and reads as in a container."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisheropt
from tests.engine.test_statistics import EXACT


def reading(wrapped, outputs, change):
    """[[Σhhᵀ, Σh], [Σhᵀ, n]] of one backward, and p.grad."""
    torch.manual_seed(0)
    layer = nn.Linear(4, outputs).double()
    change(layer)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with fisheropt.observe(nn.Sequential(layer) if wrapped else layer, fisheropt.FullCovariance()) as tap:
        output = tap.model(x)
        if change is hooked:
            output.register_hook(lambda g: 2 * g)
        output.square().sum().backward()
        return tap.augmented(), torch.cat([p.grad.flatten() for p in layer.parameters()])


def plain(layer):
    """Nothing beside."""


def hooked(layer):
    """A hook on the output, placed after the tap's."""


def replaced(layer):
    """A forward of its own, which is no longer linear in the weight."""
    layer.forward = lambda x: F.linear(x, layer.weight.square(), layer.bias)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("change", [plain, hooked, replaced])
def test_the_short_way_reads_as_the_long_one(change, outputs):
    found, gradient = reading(False, outputs, change)
    torch.testing.assert_close(found, reading(True, outputs, change)[0], **EXACT)
    torch.testing.assert_close(found[:-1, -1], gradient, **EXACT)
