"""What a contraction of per-sample gradients costs, before it is made: the work model by which one is chosen.

One file a form has the ways to each quantity. A way is named by what is written out:

    sides       the lengths, squares or coordinates of g and of a, of each by itself
    gram        the products of positions gₙₜ·gₙₛ and aₙₜ·aₙₛ
    formed      hₙ, some samples at a time; of a convolution by one with a group for each sample
    patches     aₙₜ of a convolution, and hₙ from them
    direct      v_k aₙₜ, all directions at every position
    filters     q_k as more filters of the convolution
    only        where there is no choice

Index legend: n sample, t position inside a sample, o output and i input feature, k direction.
"""

from fisheropt.cost.choice import cheapest, options
from fisheropt.cost.machine import Machine, machine
from fisheropt.cost.work import Ways, Work

__all__ = ["Machine", "Ways", "Work", "cheapest", "machine", "options"]
