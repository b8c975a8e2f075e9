"""What the recipes train: a model, its data, its objective and the best value the objective can take."""

from recipes.problems.base import Problem
from recipes.problems.errors import DataError

__all__ = ["DataError", "Problem"]
