"""Which k directions of a group an optimizer watches."""

from fisheropt.optim.critical.choice import Chosen, elsewhere, statistic
from fisheropt.optim.critical.contrast import Contrast
from fisheropt.optim.critical.layers import Block, block_diagonal, blocks_of
from fisheropt.optim.critical.named import WHOLE_SPACE

__all__ = ["WHOLE_SPACE", "Block", "Chosen", "Contrast", "block_diagonal", "blocks_of", "elsewhere", "statistic"]
