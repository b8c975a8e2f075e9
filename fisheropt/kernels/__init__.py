"""Tensors in, tensors out: what is worth a kernel, one folder each.

A folder has a `contract.py`, the custom op with its fake implementation, which chooses by device; a `reference.py` in torch,
which is the definition; and a `triton.py`, imported at the first call that it serves.
"""

from fisheropt.kernels.kernel import KERNELS, Kernel, Sizes, accumulator, on_cuda, register, served
from fisheropt.kernels.norm_backward.contract import norm_backward
from fisheropt.kernels.norm_samples.contract import norm_samples
from fisheropt.kernels.outer_project.contract import outer_project
from fisheropt.kernels.outer_square_sum.contract import outer_square_sum
from fisheropt.kernels.rank_one_project.contract import rank_one_project
from fisheropt.kernels.sgd_update.contract import sgd_update

__all__ = [
    "KERNELS",
    "Kernel",
    "Sizes",
    "accumulator",
    "norm_backward",
    "norm_samples",
    "on_cuda",
    "outer_project",
    "outer_square_sum",
    "rank_one_project",
    "register",
    "served",
    "sgd_update",
]
