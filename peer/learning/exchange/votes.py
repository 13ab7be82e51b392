"""How the scalars that peers measured along the same directions become one: rules over integers, exact everywhere.

Shapes: n votes, P directions. `votes_NP` is int64; `given_NP` says where a vote was given at all: who measured no
finite loss abstains from that direction. Rows come in a canonical order, so the result is a function of the set of
votes. Quotients are rounded to the nearest integer, halves to the even one.

The robust rules bear `f` liars: where no more than 2 f votes were given along a direction, it is not moved at all.
Nobody has a vote of their own here: all peers compute the same, so the pivot of nearest-neighbour averaging is the
median along each direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
Rule = Callable[[Integers, Mask, int], Integers]

ABSENT = np.iinfo(np.int64).max  # sorts behind every vote


def divide(numerators: Integers, denominators: Integers | int) -> Integers:
    """The nearest integers to the quotients, halves to even. Denominators are positive."""
    quotients, rest = np.divmod(numerators, denominators)
    twice = 2 * rest
    up = (twice > denominators) | ((twice == denominators) & (quotients & 1 == 1))
    return quotients + up


def combine(rule: str, votes_NP: Integers, given_NP: Mask, f: int) -> Integers:
    """One scalar per direction [P] by the rule of that name; 0 where there are too few votes."""
    heard = given_NP.any(axis=1)
    votes_NP, given_NP = votes_NP[heard], given_NP[heard]
    if not len(votes_NP):
        return np.zeros(votes_NP.shape[1], dtype=np.int64)
    return RULES[rule](votes_NP, given_NP, f)


def _sum(votes_NP: Integers, given_NP: Mask, f: int) -> Integers:
    """All of them: as if every peer had stepped by itself."""
    del f
    return np.where(given_NP, votes_NP, 0).sum(axis=0)


def _mean(votes_NP: Integers, given_NP: Mask, f: int) -> Integers:
    return divide(_sum(votes_NP, given_NP, f), np.maximum(given_NP.sum(axis=0), 1))


def _median(votes_NP: Integers, given_NP: Mask, f: int) -> Integers:
    """The middle vote, or the mean of the two in the middle."""
    count_P = given_NP.sum(axis=0)
    ordered_NP = np.sort(np.where(given_NP, votes_NP, ABSENT), axis=0)
    last = len(ordered_NP) - 1
    lower_P, upper_P = np.clip((count_P - 1) // 2, 0, last), np.clip(count_P // 2, 0, last)
    enough_P = count_P > 2 * f
    middle_P = _at(ordered_NP, lower_P, enough_P) + _at(ordered_NP, upper_P, enough_P)
    return divide(middle_P, 2)


def _at(ordered_NP: Integers, row_P: Integers, enough_P: Mask) -> Integers:
    return np.where(enough_P, np.take_along_axis(ordered_NP, row_P[None], axis=0)[0], 0)


def _trimmed_mean(votes_NP: Integers, given_NP: Mask, f: int) -> Integers:
    """The mean without the f lowest and the f highest."""
    count_P = given_NP.sum(axis=0)
    ordered_NP = np.sort(np.where(given_NP, votes_NP, ABSENT), axis=0)
    rank_N = np.arange(len(ordered_NP))[:, None]
    kept_NP = (rank_N >= f) & (rank_N < count_P - f)
    return divide(np.where(kept_NP, ordered_NP, 0).sum(axis=0), np.maximum(count_P - 2 * f, 1))


def _nna(votes_NP: Integers, given_NP: Mask, f: int) -> Integers:
    """The mean of the n - f vectors nearest to the median (after MoNNA, Farhadkhani et al. 2023)."""
    filled_NP, median_P = _filled(votes_NP, given_NP)
    kept = _nearest(filled_NP, median_P, f)
    return _where_enough(divide(filled_NP[kept].sum(axis=0), max(len(kept), 1)), given_NP, f)


def _nnm_trimmed_mean(votes_NP: Integers, given_NP: Mask, f: int) -> Integers:
    """Each vector replaced by the mean of the n - f nearest to it, then the trimmed mean (Allouah et al. 2023)."""
    filled_NP, _ = _filled(votes_NP, given_NP)
    share = max(len(filled_NP) - f, 1)
    # Sums, not means, so that nothing is rounded before the end.
    near_NP = np.stack([filled_NP[_nearest(filled_NP, vote_P, f)].sum(axis=0) for vote_P in filled_NP])
    kept_NP = np.sort(near_NP, axis=0)[f : len(near_NP) - f]
    return _where_enough(divide(kept_NP.sum(axis=0), max(len(kept_NP), 1) * share), given_NP, f)


def _filled(votes_NP: Integers, given_NP: Mask) -> tuple[Integers, Integers]:
    """The votes with the median in place of those that were not given, so that vectors can be compared; the median."""
    median_P = _median(votes_NP, given_NP, 0)
    return np.where(given_NP, votes_NP, median_P), median_P


def _nearest(filled_NP: Integers, pivot_P: Integers, f: int) -> Integers:
    """The rows of the n - f nearest, equal distances in the order of the rows.

    A squared difference is below 2^38 (two of the largest codes), so 2^25 of them fit.
    """
    squares_N = np.square(filled_NP - pivot_P).sum(axis=1)
    return np.argsort(squares_N, kind="stable")[: max(len(filled_NP) - f, 0)]


def _where_enough(combined_P: Integers, given_NP: Mask, f: int) -> Integers:
    return np.where(given_NP.sum(axis=0) > 2 * f, combined_P, 0)


RULES: dict[str, Rule] = {
    "sum": _sum,
    "mean": _mean,
    "median": _median,
    "trimmed_mean": _trimmed_mean,
    "nna": _nna,
    "nnm_trimmed_mean": _nnm_trimmed_mean,
}
