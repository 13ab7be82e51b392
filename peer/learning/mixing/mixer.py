"""A rule at work: Gram matrix or sorted columns, shares or places, one mixture; and nothing that is not finite.

A row that is not finite is never mixed, and counts as one of the f: f is less by one for the rest. (Rules of single
parameters sort its infinities to the ends; where they spread all the same, the row is taken out.) Rows that are
missing count for nothing. Where fewer vectors are left than the rule needs to bear what is left of f, ours stays as it
is, unless the rule starts from ours anyway (`Rule.pivot`) and goes on with those that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from murmurate.kernels import mixing as kernels
from murmurate.peer.learning.flat import is_finite

from .geometry import Ints, Points, bucketing, nearest_neighbour_mixing, points_of
from .rules import Rule


class Mixer(Protocol):
    """Folds neighbours' models into ours: [D], [K, D], [K] -> [D]. Rows come sorted by peer id; K may be 0."""

    def __call__(self, mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, *, refused: int = 0) -> Tensor:
        """What `weights_K` leaves of 1 is ours. `refused`: how many more sent what is no model, and count among the f.
        Changes no argument.
        """
        ...


class Fold(Protocol):
    """A mixer that is told f; at least one row."""

    def __call__(self, mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> Tensor:
        """[D]; may be not finite if a row is not."""
        ...


@dataclass(frozen=True)
class Guarded:
    """Implements `Mixer`: whatever comes, a finite vector stays finite."""

    fold: Fold
    f: int

    def __call__(self, mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, *, refused: int = 0) -> Tensor:
        """As `Mixer`. Only if the result is not finite are the rows looked at that made it so."""
        if not len(theirs_KD):
            return mine_D.clone()
        f = max(0, self.f - refused)
        mixed_D = self.fold(mine_D, theirs_KD, weights_K, f)
        if is_finite(mixed_D):
            return mixed_D
        rows = np.flatnonzero(np.isfinite(kernels.squares(mine_D, theirs_KD)))
        lost = len(theirs_KD) - len(rows)
        if lost and len(rows):
            mixed_D = self.fold(mine_D, theirs_KD[rows], weights_K[rows], max(0, f - lost))
            if is_finite(mixed_D):
                return mixed_D
        return mine_D.clone()


def mean(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> Tensor:
    """The mean by the graph's weights.

    Any one vector moves it anywhere: breakdown point 0, bears f = 0. Cost: one pass over all vectors.
    """
    del f
    return kernels.mean(mine_D, theirs_KD, weights_K)


def ours(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> Tensor:
    """Our own model, whatever came."""
    del theirs_KD, weights_K, f
    return mine_D.clone()


def nna(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> Tensor:
    """`shares.nna` by its own kernel, which needs distances to ours only, not the Gram matrix."""
    return kernels.nna(mine_D, theirs_KD, weights_K, f)


@dataclass(frozen=True)
class Plan:
    """A configured rule. What it sees, after `before`, are points: mixtures of ours and of the finite rows."""

    rule: Rule
    numbers: dict[str, float]
    before: str = ""

    def by_vectors(self, mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> Tensor:
        """A rule with `shares`."""
        assert self.rule.shares is not None
        points, rows, f = self._look(mine_D, theirs_KD, weights_K, f)
        if self._has_too_few(len(points), f):
            return mine_D.clone()
        own, *others = points.mixture(self.rule.shares(points, f, self.numbers)).tolist()
        shares_K = [0.0] * len(theirs_KD)
        for row, share in zip(rows.tolist(), others, strict=True):
            shares_K[row] = share
        return kernels.combine(mine_D, theirs_KD, own, shares_K)

    def by_parameters(self, mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> Tensor:
        """A rule with `places`.

        Without anything before it a value that is not finite is sorted to an end and trimmed there like any other.
        """
        assert self.rule.places is not None
        matrix_MN, n = None, len(theirs_KD) + 1
        if self.before:
            points, rows, f = self._look(mine_D, theirs_KD, weights_K, f)
            matrix_MN, n = points.rows, len(points)
            theirs_KD = theirs_KD if len(rows) == len(theirs_KD) else theirs_KD[rows]
        if self._has_too_few(n, f):
            return mine_D.clone()
        first, last, keep = self.rule.places(n, f)
        if keep:
            return kernels.around(mine_D, theirs_KD, first, last, keep, matrix_MN)
        return kernels.ranks(mine_D, theirs_KD, first, last, matrix_MN)

    def _look(self, mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> tuple[Points, Ints, int]:
        """The points that the rule sees, the rows that are finite, and what is left of f."""
        points, rows = points_of(kernels.gram(mine_D, theirs_KD), weights_K.double().cpu().numpy())
        f = max(0, f - (len(theirs_KD) - len(rows)))
        if self.before == "nnm":
            points = nearest_neighbour_mixing(points, min(f, len(points) - 1))
        elif self.before == "bucketing":
            points = bucketing(points, int(self.numbers["bucket_size"]))
        return points, rows, f

    def _has_too_few(self, points: int, f: int) -> bool:
        return not self.rule.pivot and points < self.rule.least(f, self.numbers)
