"""How far apart the models of a swarm are, round by round, and how fast that falls.

The distance of a round is sqrt(sum_i |x_i - mean|^2) over what the honest peers sent in that round: their models,
and SybilWall's notes with them. Without training it shrinks by lambda = ||W - 11'/n|| per exchange (topology.spectrum),
which `rate` is to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Rounds that not everybody sends (a peer joined a later one) never become complete; forget them after so many.
ROUNDS_KEPT_MAX = 64
# Below this share of the first distance, rounding errors of the models are measured. (float64 has 1e-16)
FLOOR = 1e-11
POINTS_MIN = 6


class Consensus:
    """Collects what was sent."""

    def __init__(self, peers: frozenset[int], dtype: str) -> None:
        """`peers`: whose models count. `dtype`: of the numbers in a payload."""
        self.distances: list[tuple[int, float]] = []
        self._peers = peers
        self._dtype = np.dtype(dtype)
        self._rounds: dict[int, dict[int, bytes]] = {}

    def sent(self, peer: int, round: int, payload: bytes) -> None:
        """`peer` begins its exchange of `round` with this model."""
        if peer not in self._peers:
            return
        models = self._rounds.setdefault(round, {})
        models[peer] = payload
        if len(models) == len(self._peers):
            self.distances.append((round, _distance([models[i] for i in sorted(models)], self._dtype)))
            del self._rounds[round]
        elif len(self._rounds) > ROUNDS_KEPT_MAX:
            del self._rounds[min(self._rounds)]


def _distance(payloads: Sequence[bytes], dtype: np.dtype[np.float64]) -> float:
    models_nD: NDArray[np.float64] = np.frombuffer(b"".join(payloads), dtype).reshape(len(payloads), -1).astype("f8")
    models_nD = models_nD - models_nD[0]  # first: else the mean's rounding error hides small distances
    # Not linalg.norm: its dot product wakes a BLAS thread per core, and they spin on (measured: a simulation took twice
    # the processor time).
    return math.sqrt(float(np.square(models_nD - models_nD.mean(axis=0)).sum()))


def rate(distances: Sequence[tuple[int, float]], from_round: int) -> float | None:
    """The factor per round (least squares on the logarithm) after `from_round`; None when too few rounds tell.

    The first half is left out: until the slowest direction dominates, the distance falls faster.
    """
    later = sorted((round, distance) for round, distance in distances if round >= from_round)
    if not later or later[0][1] == 0:
        return None
    told = [(round, math.log(distance)) for round, distance in later if distance > FLOOR * later[0][1]]
    told = told[len(told) // 2 :]
    if len(told) < POINTS_MIN:
        return None
    rounds, logarithms = zip(*told, strict=True)
    return math.exp(float(np.polyfit(rounds, logarithms, 1)[0]))
