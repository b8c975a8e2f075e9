"""One-dimensional roots by bracketing."""

from collections.abc import Callable

_STEPS = 200
_EPSILON = 2.0**-52


def bracketed_root(function: Callable[[float], float], low: float, high: float, rtol: float = 1e-12) -> float:
    """Root of a function of opposite signs at the ends of [low, high], by Chandrupatla's hybrid method.

    Inverse quadratic interpolation where it is safe and bisection elsewhere; infinite values are allowed, as
    they only ever lead to bisection.

    Args:
        function: Continuous on the bracket, or at least of one sign change.
        low: One end.
        high: The other end.
        rtol: Relative width of the final bracket.

    Reference: chandrupatla1997
    """
    a, b = high, low
    fa, fb = function(a), function(b)
    if fa == 0 or fb == 0:
        return a if fa == 0 else b
    if (fa > 0) == (fb > 0):
        raise ValueError(f"bracketed_root: no sign change between {low!r} ({fb!r}) and {high!r} ({fa!r})")
    fraction, resolution = 0.5, _EPSILON * (abs(low) + abs(high))
    for _ in range(_STEPS):
        x = a + fraction * (b - a)
        fx = function(x)
        if (fx > 0) == (fa > 0):
            c, fc, a, fa = a, fa, x, fx
        else:
            c, fc, b, fb, a, fa = b, fb, a, fa, x, fx
        best = a if abs(fa) < abs(fb) else b
        width = (rtol * abs(best) + resolution) / max(abs(b - a), 1e-300)
        if width > 0.5 or fx == 0:
            return best if fx else x
        fraction = min(max(_fraction(a, b, c, fa, fb, fc), width), 1 - width)
    raise RuntimeError(f"bracketed_root: no convergence in {_STEPS} steps on [{low!r}, {high!r}]")


def _fraction(a: float, b: float, c: float, fa: float, fb: float, fc: float) -> float:
    """Next point as a fraction of (a, b): inverse quadratic where it is monotone, else one half."""
    if fb == fc or fa == fc or max(abs(fa), abs(fb), abs(fc)) == float("inf"):
        return 0.5
    xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
    if not (phi**2 < xi and (1 - phi) ** 2 < 1 - xi):
        return 0.5
    return fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
