"""Layer rules: in what form a module's per-sample gradients come."""

from fisheropt.rules.generic import Generic
from fisheropt.rules.linear import Linear
from fisheropt.rules.registry import Rule, find, refuse, rule

__all__ = ["Generic", "Linear", "Rule", "find", "refuse", "rule"]
