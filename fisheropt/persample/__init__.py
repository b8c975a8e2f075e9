"""Per-sample gradients in the form in which a layer gives them.

Index legend: n sample, t position inside a sample, o output and i input feature, k direction.
"""

from fisheropt.persample.base import PerSample
from fisheropt.persample.convolved import Convolved, Geometry
from fisheropt.persample.dense import Dense
from fisheropt.persample.outer import Outer
from fisheropt.persample.rows import Rows
from fisheropt.persample.tied import Tied, joined

__all__ = ["Convolved", "Dense", "Geometry", "Outer", "PerSample", "Rows", "Tied", "joined"]
