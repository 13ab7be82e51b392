"""Rules that weigh whole vectors: points in, shares of the points out [M]; numpy float64, never torch.

Shares add up to 1. Of equal scores the first row's counts. A rule is called with as many points as `rules.py` says it
needs to bear `f`; `options` are complete. Costs are those beside the one Gram matrix (a pass that reads all N vectors
and does N^2/2 multiplications per parameter) and the one weighted sum, for M points: usually microseconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np

from .geometry import Floats, Ints, Points, level, smallest

Numbers = Mapping[str, float]
"""A rule's options; whole numbers come as floats too."""

SUBSETS_MAX = 2**17
"""Subsets that mda and mva try: MoNNA's n = 26, f = 5 needs 65780: mda 0.3 s, mva 0.13 s. (measured)"""
SUBSETS_AT_ONCE = 2**12  # so that their distances stay within some megabytes (a guess)

STILL = 1e-12
"""Weiszfeld's steps end when no coefficient moves by more: far below float32's rounding."""
FLAG_EPSILON = 1e-7
"""Keeps the weight of a vector that lies within the subspace finite. (Flag's code)"""


def nna(points: Points, f: int, options: Numbers) -> Floats:
    """Nearest-neighbour averaging: the mean of the M - f points nearest to ours, itself among them.

    Farhadkhani et al. 2023, "Robust Collaborative Learning with Linear Gradient Overhead" (MoNNA), its NNA, over a
    neighbourhood instead of everybody. Cost O(M log M). Bears f < M/2, then every liar that is kept is nearer to ours
    than some honest one. With fewer vectors it goes on with those that are left, with M <= f alone.
    """
    del options
    return _mean_of(smallest(points.squares_to(points.rows[0]), max(1, len(points) - f)), len(points))


def krum(points: Points, f: int, options: Numbers) -> Floats:
    """The vector with the smallest sum of squared distances to its M - f - `less` nearest others.

    Blanchard et al. 2017, "Machine Learning with Adversaries", section 4 ("The Krum Function"): less = 2, bears
    2f + 2 < M. Allouah et al. 2023 (and byzfl) sum one more, less = 1, and prove it for f < M/2. Cost O(M^2 log M).
    Breakdown point 1/2 for many vectors.
    """
    return _mean_of(smallest(_krum_scores(points, f, options), 1), len(points))


def multi_krum(points: Points, f: int, options: Numbers) -> Floats:
    """The mean of the `keep` vectors that Krum scores best, M - f at most; keep = 0: so many.

    Blanchard et al. 2017, section 6 ("Experimental Evaluation"), who leave their m open; byzfl takes M - f. Cost and
    what it bears as Krum.
    """
    keep = int(options["keep"]) or len(points) - f
    return _mean_of(smallest(_krum_scores(points, f, options), min(keep, len(points) - f)), len(points))


def _krum_scores(points: Points, f: int, options: Numbers) -> Floats:
    squares_MM = points.squares()
    np.fill_diagonal(squares_MM, np.inf)  # others only
    near = len(points) - f - int(options["less"])
    return np.sort(squares_MM, axis=1)[:, :near].sum(axis=1)


def mda(points: Points, f: int, options: Numbers) -> Floats:
    """Minimum diameter averaging: the mean of those M - f vectors whose largest distance is the smallest.

    El-Mhamdi et al. 2021 ("Collaborative Learning in the Jungle"), after Rousseeuw 1985. Often several subsets share
    their widest pair: then that with the smallest sum of squared distances, then the first in lexicographic order (the
    papers take any). Bears f < M/2. Cost: C(M, f) subsets, at most SUBSETS_MAX: start-up refuses more in the smallest
    neighbourhood; in a larger one only as many vectors as fit, the nearest to ours, are looked at.
    """
    del options
    return _best_subset(points, f, by_diameter=True)


def mva(points: Points, f: int, options: Numbers) -> Floats:
    """Minimum variance averaging: the mean of those M - f vectors with the smallest sum of squared distances.

    In MoNNA's code, beside mda (Farhadkhani et al. 2023); a trimmed likelihood, Rousseeuw 1985. Bears f < M/2; cost and
    ties as mda.
    """
    del options
    return _best_subset(points, f, by_diameter=False)


def _best_subset(points: Points, f: int, by_diameter: bool) -> Floats:
    count = len(points)
    while math.comb(count, f) > SUBSETS_MAX:
        count -= 1
    rows = smallest(points.squares_to(points.rows[0]), count)
    squares_MM = points.squares()[np.ix_(rows, rows)]
    best, chosen = (np.inf, np.inf), np.arange(count - f)
    subsets = itertools.combinations(range(count), count - f)
    while some := list(itertools.islice(subsets, SUBSETS_AT_ONCE)):
        members_SM = np.array(some)
        inside_SM = np.zeros((len(some), count))
        np.put_along_axis(inside_SM, members_SM, 1.0, axis=1)
        diameters_S = np.zeros(len(some))
        if by_diameter:
            diameters_S = squares_MM[members_SM[:, :, None], members_SM[:, None, :]].max(axis=(1, 2))
        sums_S = ((inside_SM @ squares_MM) * inside_SM).sum(axis=1)
        diameters_S, sums_S = level(diameters_S), level(sums_S)
        first = int(np.lexsort((sums_S, diameters_S))[0])  # stable: of equal ones the first
        if (score := (float(diameters_S[first]), float(sums_S[first]))) < best:
            best, chosen = score, members_SM[first]
    return _mean_of(rows[chosen], len(points))


def geometric_median(points: Points, f: int, options: Numbers) -> Floats:
    """The point z with the smallest sum of distances to all vectors, by the smoothed Weiszfeld algorithm.

    z <- sum_i b_i x_i / sum_i b_i with b_i = 1 / max(smoothing, ||x_i - z||): Pillutla et al. 2022, "Robust Aggregation
    for Federated Learning" (RFA), its algorithm of that name, with their smoothing of 1e-6. They stop after a few
    steps, each of which costs them a pass over all vectors; here a step costs O(M N^2) in all, so it goes on until
    nothing moves, at most `steps`. It starts from the mean of the majority nearest to ours: Weiszfeld leaves a start at
    one of the vectors very slowly, and far liars would move a plain mean far away.

    Breakdown point 1/2: bears f < M/2, and then ||z - y|| <= 2 (M - f) / (M - 2f) max_honest ||x_i - y|| for any y.
    """
    del f
    shares_M = _mean_of(smallest(points.squares_to(points.rows[0]), len(points) // 2 + 1), len(points))
    for _ in range(int(options["steps"])):
        distances_M = np.sqrt(points.squares_to(points.mixture(shares_M)))
        pulls_M = 1.0 / np.maximum(distances_M, options["smoothing"])
        before_M, shares_M = shares_M, pulls_M / pulls_M.sum()
        if np.abs(shares_M - before_M).max() <= STILL:
            break
    return shares_M


def centred_clipping(points: Points, f: int, options: Numbers) -> Floats:
    """v <- v + 1/M sum_i (x_i - v) min(1, radius / ||x_i - v||), `steps` times, from our own vector.

    Karimireddy et al. 2021, "Learning from History for Byzantine Robust Optimization", section on centered clipping.
    They start from the last aggregate, which ours is here. radius = 0: in each step the distance of the (M - f)-th
    nearest vector, no larger than that of the farthest honest one. (a guess, after the adaptive radius of He et al.
    2022; the paper's radius is a constant for gradients, MoNNA's experiments with models take 2 on MNIST and 5 on
    CIFAR-10, and 3 steps)

    Cost O(M N^2) a step. A step moves v by at most the radius whoever lies; f liars pull by at most f/M of it. Bears
    f < M/2; the paper's proof wants f <= M/10. With fewer vectors it goes on with those that are left.
    """
    ours_M = np.eye(len(points))[0]
    shares_M = ours_M
    for _ in range(int(options["steps"])):
        distances_M = np.sqrt(points.squares_to(points.mixture(shares_M)))
        pulls_M = _clipped(distances_M, options["radius"], len(points) - f) / len(points)
        shares_M = shares_M * (1.0 - pulls_M.sum()) + pulls_M
    return shares_M


def self_centred_clipping(points: Points, f: int, options: Numbers) -> Floats:
    """x + sum_j w_j (x_j - x) min(1, radius / ||x_j - x||), x ours and w the graph's weights (ClippedGossip).

    He, Karimireddy and Jaggi 2022, "Byzantine-Robust Decentralized Learning via ClippedGossip", its self-centered
    clipping. radius = 0: the (f + 1)-th largest distance to a neighbour, so that f neighbours at most are clipped; the
    authors' code does this with f = 1. Without liars (f = 0) it is the mean by the graph's weights.

    Cost O(M). Moves ours by at most the radius times the weight of all neighbours. Bears f < M/2 in this sense; to what
    the swarm converges depends on the liars' weight against the graph's spectral gap (the paper's theorems). With fewer
    vectors it goes on with those that are left.
    """
    distances_M = np.sqrt(points.squares_to(points.rows[0]))
    pulls_M = _clipped(distances_M, options["radius"], len(points) - f) * points.weights
    pulls_M[0] = 0.0
    pulls_M[0] = 1.0 - pulls_M.sum()
    return pulls_M


def _clipped(distances_M: Floats, radius: float, keep: int) -> Floats:
    """By how much each difference is shortened; a radius of 0 is the `keep`-th smallest distance."""
    limit = radius or np.sort(distances_M)[max(0, keep - 1)]
    return limit / np.maximum(distances_M, limit) if limit else (distances_M == 0.0).astype(np.float64)


def flag(points: Points, f: int, options: Numbers) -> Floats:
    """Ours + 1/M Y Y^T sum_i g_i: the mean difference g_i = x_i - ours within the subspace that explains most of them.

    Almasi et al. 2024, "Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses using Convex
    Optimization", without the pairwise regulariser. Y, of `rank` r orthonormal columns, minimises sum_i sqrt(1 - ||Y^T
    g_i / ||g_i|| ||^2) by reweighted least squares: `steps` times the first r left singular vectors of the normed
    differences, each scaled by (1 - ||Y^T g_i||^2 / ||g_i||^2 + 1e-7)^(-1/4). rank = 0: ceil((p + 1) / 2) for p
    neighbours. All of it follows from the p x p Gram matrix: cost O(steps p^3).

    The paper proves no breakdown point, and there is none: a liar whose direction is its own is a singular vector by
    itself, and within the subspace its length counts in full. Refused with f > 0; here for comparison.
    """
    del f
    differences_PN = points.rows[1:] - points.rows[0]
    gram_PP = differences_PN @ points.gram @ differences_PN.T
    lengths_P = np.sqrt(np.maximum(gram_PP.diagonal(), 0.0))
    some = np.flatnonzero(lengths_P > 0)  # who agrees with us exactly has no direction
    shares_M = np.zeros(len(points))
    if len(some):
        lengths_P = lengths_P[some]
        normed_PP = gram_PP[np.ix_(some, some)] / np.outer(lengths_P, lengths_P)
        rank = int(options["rank"]) or -(-(len(points)) // 2)
        projected_P = _project(normed_PP, lengths_P, min(rank, len(some)), int(options["steps"]))
        shares_M[some + 1] = projected_P / lengths_P / len(points)
    shares_M[0] = 1.0 - shares_M.sum()
    return shares_M


def _project(normed_PP: Floats, lengths_P: Floats, rank: int, steps: int) -> Floats:
    """Y Y^T sum_i g_i in coefficients of the normed differences [P]."""
    scales_P = np.ones(len(normed_PP))
    projector_PP = np.zeros_like(normed_PP)
    for _ in range(steps):
        values, vectors = np.linalg.eigh(normed_PP * np.outer(scales_P, scales_P))
        values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
        real = values > values[0] * len(values) * np.finfo(float).eps * 4  # below that is rounding, not a direction
        basis_PR = scales_P[:, None] * vectors[:, real] / np.sqrt(values[real])
        projector_PP = basis_PR @ basis_PR.T
        explained_P = ((normed_PP @ projector_PP) * normed_PP).sum(axis=1)
        scales_P = (np.clip(1.0 - explained_P, 0.0, 1.0) + FLAG_EPSILON) ** -0.25
    return projector_PP @ (normed_PP @ lengths_P)


def _mean_of(rows: Ints, points: int) -> Floats:
    shares_M = np.zeros(points)
    shares_M[rows] = 1.0 / len(rows)
    return shares_M
