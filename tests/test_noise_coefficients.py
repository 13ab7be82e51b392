"""The tables of docs/noise.md that say how votes and ages become coefficients."""

import numpy as np
import pytest

from murmurate.kernels import noise
from murmurate.peer.learning.exchange.seeds import multipliers
from murmurate.peer.learning.exchange.votes import RULES, combine

VOTES = [  # of six names in a round of four directions; None: void
    [5, -5, 8, None],
    [8, 3, 9, None],
    [10, None, 16, 4],
    [2, -4, 18, None],
    [-60, 40, 256, 3],
    [None, None, None, None],
]
COMBINED = {  # with f = 1
    "sum": [-35, 34, 307, 7],
    "mean": [-7, 8, 61, 4],
    "median": [5, 0, 16, 0],
    "trimmed_mean": [5, 0, 14, 0],
    "nna": [6, -2, 13, 0],
    "nnm_trimmed_mean": [6, -2, 13, 0],
}
APPLIED = {  # momentum: M(0), M(1), ..., and from which age on it is 256
    0.5: ([128, 192, 224, 240, 248, 252], 8),
    0.9: ([26, 49, 69, 88, 105, 120], 59),
    0.99: ([3, 5, 8, 10, 13, 15], 620),
}


@pytest.mark.parametrize("rule", RULES)
def test_votes_are_combined_as_in_the_document(rule: str) -> None:
    codes = np.array([[noise.VOID if vote is None else int(noise.encode(vote)) for vote in votes] for votes in VOTES])
    scalars = noise.decode(codes).astype(np.int64)
    assert scalars.tolist() == [[vote or 0 for vote in votes] for votes in VOTES]
    assert combine(rule, scalars, codes != noise.VOID, 1).tolist() == COMBINED[rule]


@pytest.mark.parametrize("momentum", APPLIED)
def test_records_are_applied_as_in_the_document(momentum: float) -> None:
    first, whole = APPLIED[momentum]
    found = multipliers(momentum).tolist()
    assert found[: len(first)] == first
    assert found.index(256) == whole == len(found) - 1
