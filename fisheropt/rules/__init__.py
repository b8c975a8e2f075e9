"""Layer rules: in what form a module's per-sample gradients come."""

from fisheropt.rules.attention import Attention
from fisheropt.rules.convolution import Convolution, TransposedConvolution
from fisheropt.rules.embedding import Embedding, EmbeddingBag
from fisheropt.rules.generic import Generic
from fisheropt.rules.linear import Linear
from fisheropt.rules.normalisation import ChannelNorm, FeatureNorm
from fisheropt.rules.recurrent import Recurrent
from fisheropt.rules.registry import Rule, find, refuse, rule

__all__ = [
    "Attention",
    "ChannelNorm",
    "Convolution",
    "Embedding",
    "EmbeddingBag",
    "FeatureNorm",
    "Generic",
    "Linear",
    "Recurrent",
    "Rule",
    "TransposedConvolution",
    "find",
    "refuse",
    "rule",
]
