"""Points that are mixtures of N vectors, known by the vectors' Gram matrix alone: numpy float64, never torch.

Shapes: N vectors, ours first; M points, each a row of coefficients over the N vectors (before any pre-aggregation the
vectors themselves); ours, or what stands for it, is point 0. The Gram matrix is that of the differences to ours, so its
first row and column are 0. Every iterate of the rules is a mixture of the vectors, so its distances follow from the
matrix, at any number of steps, and what comes out are shares: coefficients over the N vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVELS = 2.0**33
"""Steps per power of two within which values tie: 10 digits, where rounding spoils the last 3 of 16. (a guess)"""


@dataclass(frozen=True, eq=False)
class Points:
    """M mixtures of N vectors."""

    rows: Floats
    """Coefficients [M, N]; each row's sum is 1."""
    gram: Floats
    """Inner products of the differences to ours [N, N]; finite, symmetric, first row and column 0."""
    weights: Floats
    """The graph's weights [M], of which most rules know nothing; their sum is 1."""

    def __len__(self) -> int:
        return len(self.rows)

    def squares_to(self, mixture_N: Floats) -> Floats:
        """Squared distances of all points to a mixture [M]."""
        return _squares(self.rows - mixture_N, self.gram)

    def squares(self) -> Floats:
        """Squared distances between the points [M, M].

        Coefficients are subtracted first: what two mixtures share, however large, cancels exactly.
        """
        squares_MM = np.stack([self.squares_to(row_N) for row_N in self.rows])
        return (squares_MM + squares_MM.T) / 2  # so that equal distances are equal to the last bit

    def mixture(self, shares_M: Floats) -> Floats:
        """Shares of the points as shares of the vectors [N]."""
        return shares_M @ self.rows


def points_of(gram_KK: Floats, weights_K: Floats) -> tuple[Points, Ints]:
    """Ours and all neighbours that are finite, as points, and which rows those are.

    A row is left out when its square is not finite (or so large that a distance might not be); its weight is ours.
    """
    rows = np.flatnonzero(gram_KK.diagonal() < np.finfo(np.float64).max / 4)
    gram_NN = np.zeros((len(rows) + 1, len(rows) + 1))
    gram_NN[1:, 1:] = gram_KK[np.ix_(rows, rows)]
    kept_K = weights_K[rows]
    weights_N = np.concatenate([[1.0 - kept_K.sum()], kept_K])
    return Points(np.eye(len(gram_NN)), (gram_NN + gram_NN.T) / 2, weights_N), rows


def smallest(values_M: Floats, count: int) -> Ints:
    """Where the `count` smallest values stand, ascending; equal ones in the order of the rows."""
    return np.sort(np.argsort(level(values_M), kind="stable")[: max(0, count)])


def level(values: Floats) -> Floats:
    """Values without their last digits, so that those that differ by rounding alone are equal.

    Ties are common: mutually nearest vectors in Krum, points that NNM makes of the same vectors.
    """
    fractions, exponents = np.frexp(values)
    return np.ldexp(np.round(fractions * LEVELS) / LEVELS, exponents)


def nearest_neighbour_mixing(points: Points, f: int) -> Points:
    """NNM: y_i = the mean of the M - f points nearest to x_i, itself among them.

    Allouah et al. 2023, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", its NNM (in MoNNA's
    code `cenna`). Whatever rule follows, the spread of what it sees is about f/M of what it was, so that its error is
    of the best possible order for f < M/2.

    Cost: nothing beside the Gram matrix; rules over single parameters mix while they sort. Bears f < M/2.
    """
    squares_MM = points.squares()
    keep = len(points) - f
    near_MM = np.zeros_like(squares_MM)
    for row_M, squares_M in zip(near_MM, squares_MM, strict=True):
        row_M[smallest(squares_M, keep)] = 1.0 / keep
    return Points(near_MM @ points.rows, points.gram, points.weights)


def bucketing(points: Points, size: int) -> Points:
    """Means of `size` points each: those of the neighbours in the order of their ids; ours stays alone, and first.

    Karimireddy et al. 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", its s-bucketing. Two
    things differ. The paper draws the buckets anew each time; here they follow the ids, so that the result is a
    function of what was received: the count of bad buckets is the same, the variance between buckets is not averaged
    over rounds. And ours is never mixed with a stranger, so that rules which start from it still can.

    Cost: nothing beside the Gram matrix. f liars make at most f of the 1 + ceil(K / size) buckets bad: bears what the
    rule behind it bears among so many. A bucket's weight is that of its members.
    """
    starts = range(1, len(points), size)
    groups = [slice(0, 1), *(slice(start, start + size) for start in starts)]
    rows = np.stack([points.rows[group].mean(axis=0) for group in groups])
    return Points(rows, points.gram, np.array([points.weights[group].sum() for group in groups]))


def buckets(vectors: int, size: int) -> int:
    """How many points `bucketing` makes of so many vectors, ours among them."""
    return 1 + -(-(vectors - 1) // size)


def _squares(differences_MN: Floats, gram_NN: Floats) -> Floats:
    return np.maximum(((differences_MN @ gram_NN) * differences_MN).sum(axis=1), 0.0)
