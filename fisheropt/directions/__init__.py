"""Directions in the space of one parameter, typed by what they cost to contract with.

A group's k directions v₁..v_k live in the product of its parameters' spaces; an object here is the part of all k of
them in one parameter. Index legend: n sample, t position, o output, i input, k direction.
"""

from fisheropt.directions.base import Directions, Implicit
from fisheropt.directions.coordinates import Coordinates
from fisheropt.directions.dense import DenseDirections
from fisheropt.directions.dual import DualDirections
from fisheropt.directions.rank_one import RankOneDirections

__all__ = ["Coordinates", "DenseDirections", "Directions", "DualDirections", "Implicit", "RankOneDirections"]
