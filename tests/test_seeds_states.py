"""States that somebody else made, put into a whole replica: what is none changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from murmurate.kernels import noise
from murmurate.peer.lab.together import origin_of
from murmurate.peer.learning.exchange.states import NoState, check_table, pack_steps, pack_table
from murmurate.peer.learning.prober import Prober
from murmurate.peer.protocol.events import Install, Installed
from murmurate.peer.protocol.records import FeedState, Ground

from .seeds_peers import Bowl, batch_of, fold, made, prober_of

MOST, LEAST = 2**63 - 1, -(2**63)
POOL = 4
GROUND = Ground((FeedState(origin_of("b"), 3, b"h" * 16),), (5,), (), ())
MEMORIES: dict[str, dict[str, Any]] = {
    "exact": {"directions": "pool", "pool": POOL},
    "lean": {"directions": "pool", "pool": POOL, "memory": "lean"},
    "pro": {"directions": "pool", "pool": POOL, "sampling": "pro"},
}


def taking(prober: Prober, *rows: list[int]) -> Installed:
    table = np.array(rows, dtype=np.int64)
    return prober.install(Install(GROUND, (pack_table(table),)))


def begun(kind: str) -> Prober:
    """In the midst of its second round."""
    prober = prober_of("a", Bowl(), seeds=MEMORIES[kind])
    fold(prober, batch_of(prober, "a", 1), round=1)
    prober.train(2)
    return prober


def rest_of(kind: str) -> list[list[int]]:
    return [[9] * POOL, [3] * POOL] if kind == "pro" else []


HOSTILE = [[MOST] * 4, [LEAST, 0, 0, 0], [2**62, 0, 0, 0], [2**61] * 4, [2**58] * 4, [0, 0, 0, -(2**60)]]


@pytest.mark.parametrize("kind", MEMORIES)
@pytest.mark.parametrize("row", HOSTILE, ids=str)
def test_sums_that_no_records_have_change_nothing(kind: str, row: list[int]) -> None:
    prober, other = begun(kind), begun(kind)
    assert not taking(prober, row, *rest_of(kind)).sound
    assert prober.counts == other.counts
    assert prober.weights_digest() == other.weights_digest()
    for each in (prober, other):
        fold(each, made("b", 1, 7, bytes([5] * each.payload_bytes)), round=2)
    assert prober.weights_digest() == other.weights_digest()
    assert prober.train(3) == other.train(3)


@pytest.mark.parametrize(
    ("sizes", "uses"), [([-1, 0, 0, 0], [0] * 4), ([0] * 4, [LEAST, 1, 1, 1]), ([MOST] * 4, [1] * 4)]
)
def test_sizes_and_uses_that_no_records_have_change_nothing(sizes: list[int], uses: list[int]) -> None:
    prober, other = begun("pro"), begun("pro")
    assert not taking(prober, [0] * 4, sizes, uses).sound
    assert prober.counts == other.counts
    assert prober.train(3) == other.train(3)


@pytest.mark.parametrize("kind", MEMORIES)
def test_the_largest_sums_are_taken_and_taken_back(kind: str) -> None:
    """Off every grid, one such state after the other: the weights stay a function of what is held."""
    prober = begun(kind)
    row = [2**57, -(2**57), 2**57, 2**57 - 2**20]
    for sign in (1, -1):
        assert taking(prober, [sign * part for part in row], *rest_of(kind)).sound
        batch = made("c", 1, 1, noise.encode(np.full(prober.payload_bytes, 1e9)).tobytes())
        fold(prober, batch, round=2)
        assert prober.train(3).complete
    assert taking(prober, [1, 2, 3, 4], *rest_of(kind)).sound
    fresh = prober_of("a", Bowl(), seeds=MEMORIES[kind])
    assert taking(fresh, [1, 2, 3, 4], *rest_of(kind)).sound
    assert prober.weights_digest() == fresh.weights_digest()


@pytest.mark.parametrize("memory", ["exact", "lean"])
def test_steps_that_cannot_be_stood_on_change_nothing(memory: str) -> None:
    prober, other = (prober_of("a", Bowl(), seeds={"memory": memory}) for _ in range(2))
    for each in (prober, other):
        fold(each, batch_of(each, "a", 1), round=1)
        each.train(2)
    count = sum(int(np.prod(shape)) for _, shape, _ in prober.schema)
    wrong = [pack_steps(np.zeros(count + 1, dtype=np.int64))]
    if memory == "lean":
        wrong += [pack_steps(np.full(count, edge)) for edge in (2**23, -(2**31) + 1)]
    for data in wrong:
        assert not prober.install(Install(GROUND, (data,))).sound
        assert prober.counts == other.counts
        assert prober.weights_digest() == other.weights_digest()
    edge = pack_steps(np.full(count, 2**31 - 1 if memory == "exact" else 1 - 2**23))
    assert prober.install(Install(GROUND, (edge,))).sound
    assert prober.counts == {origin_of("b"): 3}
    fold(prober, made("c", 1, 1, noise.encode(np.full(2, 1e9)).tobytes()), round=2)
    assert prober.train(3).complete


def test_a_table_may_be_as_large_as_records_make_it() -> None:
    """2^40 of the largest scalars are beyond any swarm, and far below the limit."""
    check_table(np.full((1, 1), 2**40 * noise.CODE_MAX))
    check_table(np.zeros((1, 0), dtype=np.int64))
    with pytest.raises(NoState):
        check_table(np.full((1, 1), 2**60))
