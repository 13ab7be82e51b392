"""Rules that look at single parameters: which places of the sorted values count; numbers only, never torch.

n values of a parameter, ours among them, in ascending order; what is not a finite number stands at an end. All bear
f < n/2: whatever f of the values are, the result lies within the honest ones, or no farther out than these are apart.
Cost: one pass that reads all vectors and sorts n values per parameter. They know neither the graph's weights nor whole
vectors: liars that stay among the honest values of every parameter are not seen; NNM before them helps (Allouah et al.
2023).
"""

from __future__ import annotations

from typing import NamedTuple


class Places(NamedTuple):
    """The mean of the values at places first, ..., last - 1; with `keep`, that of the `keep` values nearest to it."""

    first: int
    last: int
    keep: int = 0


def trimmed_mean(n: int, f: int) -> Places:
    """The mean without the f lowest and the f highest values.

    Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", definition 2, the
    coordinate-wise trimmed mean. Within the honest values, since each that is left has honest ones, or is one, on both
    sides. (BRIDGE trims the neighbours' values only and adds ours untrimmed; here ours is trimmed like any other.)
    """
    return Places(f, n - f)


def median(n: int, f: int) -> Places:
    """The middle value, or the mean of the two in the middle: within the honest values while f < n/2.

    Yin et al. 2018, definition 1, the coordinate-wise median. Breakdown point 1/2, whatever f the swarm assumes.
    """
    del f
    return Places((n - 1) // 2, n // 2 + 1)


def meamed(n: int, f: int) -> Places:
    """The mean of the n - f values nearest to the median; of a low and a high one that are equally far, the low one.

    Xie et al. 2018, "Generalized Byzantine-tolerant SGD", "mean around median". No kept value is farther from the
    median than the farthest honest one, so the result is within the honest spread of the honest range.
    """
    return median(n, f)._replace(keep=n - f)


def phocas(n: int, f: int) -> Places:
    """The mean of the n - f values nearest to the trimmed mean.

    Xie et al. 2018, "Phocas: dimensional Byzantine-resilient stochastic gradient descent", the rule of that name. As
    meamed, with the trimmed mean for the median.
    """
    return trimmed_mean(n, f)._replace(keep=n - f)
