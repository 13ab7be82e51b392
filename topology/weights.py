"""Mixing weights: how much of a neighbour's model goes into ours, from the degrees alone.

Rules
* A weight belongs to an edge; what a peer's in-weights leave of 1 is its own. It is never negative.
* On undirected graphs W is symmetric, so rows and columns both sum to 1, and mixing keeps the swarm's mean.
* On directed graphs every edge has the same weight; columns sum to 1 where every peer sends as much as it hears
  (all of ours: `rules` refuses other files).
"""

from __future__ import annotations

from collections.abc import Callable

EdgeWeight = Callable[[int, int, int], float]
"""`(degree of one end, degree of the other, largest degree in the graph)` gives the weight of an edge."""


def metropolis(own: int, other: int, largest: int) -> float:  # noqa: ARG001  one signature for all
    """1 / (1 + the larger of the two degrees): good on uneven graphs (Xiao, Boyd and Kim 2007, section 3)."""
    return 1 / (1 + max(own, other))


def max_degree(own: int, other: int, largest: int) -> float:  # noqa: ARG001  see above
    """1 / (1 + largest degree) on every edge: slow where degrees are uneven (the same, section 3)."""
    return 1 / (1 + largest)


WEIGHTS: dict[str, EdgeWeight] = {
    "metropolis": metropolis,
    "max_degree": max_degree,
}

UNIFORM = "uniform"
"""What directed graphs use: `max_degree` of the in-degrees, 1/2 when everybody has one in-neighbour."""
