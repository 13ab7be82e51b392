"""The ledger: what all folds said, added up, is a function of the set of records, and it is the right one."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from murmurate.kernels import noise
from murmurate.peer.learning.exchange.seeds import ROUND_MAX, Changes, Ledger, Terms, multipliers, sum_of
from murmurate.peer.learning.exchange.votes import combine
from murmurate.peer.protocol.records import Batch, Origin

SWARM = hashlib.sha256(b"swarm").digest()
RECORDS = 3
POOL = 5
TERMS = [
    Terms("private", RECORDS),
    Terms("private", RECORDS, momentum=0.1),
    Terms("private", RECORDS, momentum=0.5),
    Terms("private", RECORDS, momentum=0.9),
    Terms("pool", RECORDS, pool=POOL),
    Terms("pool", RECORDS, pool=POOL, sent_ids=True, momentum=0.5),
    Terms("shared", RECORDS, rule="sum"),
    Terms("shared", RECORDS, rule="mean", momentum=0.1),
    Terms("shared", RECORDS, rule="median", f=1, momentum=0.1),
    Terms("shared", RECORDS, rule="median", f=1),
    Terms("shared", RECORDS, rule="nna", f=1, momentum=0.5),
    Terms("shared", RECORDS, rule="nnm_trimmed_mean", f=1),
]
NAMES = {Origin(bytes([65 + i]) * 32): name for i, name in enumerate("abcad")}  # two lives of a

Closed = tuple[Origin, int]
Coefficients = Counter[tuple[int, int]]


@dataclass(frozen=True)
class World:
    """All feeds, and what is closed in the order in which it is found out."""

    feeds: dict[Origin, list[Batch]]
    closed: list[Closed]

    @property
    def limits(self) -> dict[Origin, int]:
        found: dict[Origin, int] = {}
        for origin, seq in self.closed:
            found[origin] = min(seq, found.get(origin, seq))
        return found


@st.composite
def worlds(draw: st.DrawFn, terms: Terms) -> World:
    feeds: dict[Origin, list[Batch]] = {}
    for origin in NAMES:
        rounds = sorted(draw(st.sets(st.integers(1, 7), max_size=5)))
        size = terms.batch_bytes
        code = st.integers(0, 255) | st.sampled_from([noise.VOID, 0, 1, 0x81])
        codes = [bytes(draw(st.lists(code, min_size=size, max_size=size))) for _ in rounds]
        feeds[origin] = [Batch(origin, n + 1, r, c, b"") for n, (r, c) in enumerate(zip(rounds, codes, strict=True))]
    places = st.tuples(st.sampled_from(list(feeds)), st.integers(0, 5 * RECORDS))
    return World(feeds, draw(st.lists(places, max_size=3)))


Step = tuple[list[Batch], list[Closed]]


@st.composite
def folds(draw: st.DrawFn, world: World) -> list[Step]:
    """The world's batches and closings in any order that keeps that of every feed, cut into any number of folds."""
    queues = [list(feed) for feed in world.feeds.values()]
    turns = draw(st.permutations([i for i, queue in enumerate(queues) for _ in queue]))
    batches = [queues[turn].pop(0) for turn in turns]
    cuts = sorted(draw(st.lists(st.integers(0, len(batches)), max_size=4)))
    steps: list[Step] = [(batches[a:b], []) for a, b in pairwise([0, *cuts, len(batches)])]
    for closing in draw(st.permutations(world.closed)):
        steps[draw(st.integers(0, len(steps) - 1))][1].append(closing)
    return steps


def as_counter(changes: Changes) -> Coefficients:
    names = list(zip(changes.keys.tolist(), changes.indices.tolist(), strict=True))
    assert len(set(names)) == len(names), "a direction is named twice"
    assert all(changes.deltas), "a change of nothing"
    return Counter(dict(zip(names, changes.deltas.tolist(), strict=True)))


def told(ledger: Ledger, steps: list[Step]) -> Coefficients:
    total: Coefficients = Counter()
    for batches, closed in steps:
        names = {(batch.origin, NAMES[batch.origin]) for batch in batches}
        total.update(as_counter(ledger.fold(batches, closed, names)))
    return Counter({name: value for name, value in total.items() if value})


# The same function, one record at a time -------------------------------------------------------------


def kept(world: World, origin: Origin) -> list[tuple[int, list[tuple[int, int | None, int]]]]:
    """(round, [(seq, scalar or None, sent id)]) of every batch that counts."""
    limit = world.limits.get(origin, 10**9)
    found: list[tuple[int, list[tuple[int, int | None, int]]]] = []
    for batch in world.feeds[origin]:
        first = (batch.number - 1) * RECORDS
        if first >= limit:
            break
        ids = np.frombuffer(batch.codes[RECORDS:], "<u2").tolist() or [0] * RECORDS
        records = [
            (first + j, None if first + j >= limit or code == noise.VOID else int(noise.decode(code)), ids[j] % POOL)
            for j, code in enumerate(batch.codes[:RECORDS])
        ]
        found.append((batch.round, records))
    return found


def grown(scalar: int, age: int, momentum: float) -> int:
    return round(Fraction(scalar * round(256 * (1 - momentum ** (max(0, age) + 1))), 256))


def expected(terms: Terms, world: World) -> Coefficients:
    found = _of_shared(terms, world) if terms.directions == "shared" else _of_records(terms, world)
    return Counter({name: value for name, value in found.items() if value})


def _of_records(terms: Terms, world: World) -> Coefficients:
    found: Coefficients = Counter()
    for origin in world.feeds:
        private = noise.derive_key(SWARM, b"private", origin)
        batches = kept(world, origin)
        for round, records in batches:
            for seq, scalar, sent in records:
                value = grown(scalar or 0, batches[-1][0] - round, terms.momentum)
                if terms.directions == "private":
                    found[private, seq] += value
                    continue
                drawn = int(noise.draws(private, np.array([seq], dtype=np.uint64), POOL)[0])
                found[noise.derive_key(SWARM, b"pool"), sent if terms.sent_ids else drawn] += value
    return found


def _of_shared(terms: Terms, world: World) -> Coefficients:
    votes: dict[int, dict[str, list[int | None]]] = {}
    newest: Counter[str] = Counter(dict.fromkeys(NAMES.values(), 0))
    for origin in sorted(world.feeds):
        for round, records in kept(world, origin):
            newest[NAMES[origin]] = max(round, newest[NAMES[origin]])
            votes.setdefault(round, {}).setdefault(NAMES[origin], [scalar for _, scalar, _ in records])
    now = sorted(newest.values(), reverse=True)[terms.f]
    key = noise.derive_key(SWARM, b"shared")
    found: Coefficients = Counter()
    for round, by_name in votes.items():
        rows = list(by_name.values())  # by origin
        given = np.array([[value is not None for value in row] for row in rows])
        scalars = np.array([[value or 0 for value in row] for row in rows], dtype=np.int64)
        for j, value in enumerate(combine(terms.rule, scalars, given, terms.f).tolist()):
            found[key, round * RECORDS + j] = grown(value, now - round, terms.momentum)
    return found


@pytest.mark.parametrize("terms", TERMS, ids=str)
@settings(max_examples=25)
@given(data=st.data())
def test_any_order_and_division_tells_the_same(terms: Terms, data: st.DataObject) -> None:
    world = data.draw(worlds(terms))
    ledger = Ledger(terms, SWARM)
    assert told(ledger, data.draw(folds(world))) == expected(terms, world) == as_counter(ledger.coefficients())
    scalars = [scalar for origin in world.feeds for _, records in kept(world, origin) for _, scalar, _ in records]
    assert ledger.records == sum(scalar is not None for scalar in scalars)
    assert {origin: ledger.count(origin) - 1 for origin in world.feeds if ledger.count(origin)} == {
        origin: len(kept(world, origin)) for origin in ledger.counts
    }


@pytest.mark.parametrize("terms", TERMS, ids=str)
@settings(max_examples=12)
@given(data=st.data())
def test_a_cut_is_as_if_the_rest_had_not_been_heard(terms: Terms, data: st.DataObject) -> None:
    world = data.draw(worlds(terms))
    ledger = Ledger(terms, SWARM)
    told(ledger, data.draw(folds(world)))
    cut = {origin: data.draw(st.integers(0, 6)) for origin in world.feeds}
    short = World({origin: feed[: max(0, cut[origin] - 1)] for origin, feed in world.feeds.items()}, world.closed)
    assert as_counter(ledger.coefficients(cut)) == expected(terms, short)
    assert as_counter(ledger.coefficients({})) == {}


@pytest.mark.parametrize("terms", TERMS, ids=str)
@settings(max_examples=12)
@given(data=st.data())
def test_retraction_is_as_if_those_records_were_never_made(terms: Terms, data: st.DataObject) -> None:
    """Whole batches void: not even momentum remembers them."""
    world = data.draw(worlds(terms))
    liar = data.draw(st.sampled_from(list(world.feeds)))
    length = data.draw(st.integers(0, 4))
    without = World({**world.feeds, liar: world.feeds[liar][:length]}, world.closed)
    retracted = replace(world, closed=[*world.closed, (liar, length * RECORDS)])
    found = told(Ledger(terms, SWARM), data.draw(folds(retracted)))
    assert found == told(Ledger(terms, SWARM), data.draw(folds(without)))


@pytest.mark.parametrize("terms", TERMS, ids=str)
@settings(max_examples=12)
@given(data=st.data())
def test_what_is_dropped_was_never_there(terms: Terms, data: st.DataObject) -> None:
    """Its closings included; and in the same fold it may begin anew."""
    world = data.draw(worlds(terms))
    gone = data.draw(st.sampled_from(list(world.feeds)))
    anew = data.draw(worlds(terms)).feeds[gone] if data.draw(st.booleans()) else []
    ledger, fresh = Ledger(terms, SWARM), Ledger(terms, SWARM)
    found = told(ledger, data.draw(folds(world)))
    found.update(as_counter(ledger.fold(anew, (), [(gone, NAMES[gone])] if anew else [], [gone])))
    rest = World({**world.feeds, gone: anew}, [(origin, seq) for origin, seq in world.closed if origin != gone])
    assert Counter({name: value for name, value in found.items() if value}) == expected(terms, rest)
    assert as_counter(ledger.coefficients()) == expected(terms, rest)
    told(fresh, data.draw(folds(rest)))
    assert ledger.records == fresh.records
    if terms.sent_ids:
        assert ledger.importance().tolist() == fresh.importance().tolist()


def feed(*rounds: int, origin: bytes = b"A" * 32, codes: bytes = b"\x05\x06\x07") -> list[Batch]:
    return [Batch(Origin(origin), n + 1, round, codes, b"") for n, round in enumerate(rounds)]


def test_momentum_comes_in_portions() -> None:
    """One record of 104 units, then silence: what has arrived tends to 104, and arrives at it."""
    code = int(noise.encode(104.0))
    ledger = Ledger(Terms("private", 1, momentum=0.5), SWARM)
    key = noise.derive_key(SWARM, b"private", b"A" * 32)
    arrived: list[int] = []
    total = 0
    for batch in feed(*range(1, 13), codes=b"\0"):
        batch = replace(batch, codes=bytes([code])) if batch.number == 1 else batch
        total += as_counter(ledger.fold([batch]))[key, 0]
        arrived.append(total)
    assert arrived[:4] == [52, 78, 91, 98]  # 97.5 is a half, and goes to the even number
    assert arrived[-1] == arrived[-2] == 104


def test_multipliers_end_at_the_whole() -> None:
    assert multipliers(0.0).tolist() == [256]
    for momentum in (0.1, 0.5, 0.9, 0.99):
        found = multipliers(momentum)
        assert found[0] == round(256 * (1 - momentum))
        assert found[-1] == 256
        assert (np.diff(found) >= 0).all()
        assert 256 * momentum ** len(found) <= 0.5 < 256 * momentum ** (len(found) - 1)


def test_what_the_protocol_should_have_refused_counts_as_void() -> None:
    """Whatever a feed holds is the same function at every peer, and moves nothing where it makes no sense."""
    good, later = feed(1, 2)
    for strange in (
        replace(later, codes=b"\x05"),
        replace(later, codes=b"\x05" * 4),
        replace(later, round=1),
        replace(later, round=ROUND_MAX + 1),
        replace(later, round=2**64 - 1),
    ):
        for terms in (Terms("private", RECORDS, momentum=0.5), Terms("shared", RECORDS, rule="sum")):
            ledger, plain = Ledger(terms, SWARM), Ledger(terms, SWARM)
            assert told(ledger, [([good, strange], [])]) == told(plain, [([good], [])])
            assert told(ledger, [([replace(later, number=3, round=7)], [])])


def test_lives_of_one_name_have_one_vote() -> None:
    """The one with the smallest key; an origin of which nobody said the name has a vote of its own."""
    terms = Terms("shared", RECORDS, rule="sum")
    two = feed(1) + feed(1, origin=b"B" * 32, codes=b"\x01\x01\x01")
    for names, expected in (("", {6, 7, 8}), ("11", {5, 6, 7}), ("12", {6, 7, 8})):
        known = list(zip((batch.origin for batch in two), names, strict=False))
        for batches in (two, two[::-1]):
            assert set(as_counter(Ledger(terms, SWARM).fold(batches, (), known)).values()) == expected
            late = Ledger(terms, SWARM)
            found = as_counter(late.fold(batches))
            found.update(as_counter(late.fold([], (), known)))
            assert set(found.values()) == expected
            assert as_counter(late.coefficients()) == found


def test_pro_sampling_knows_which_ids_matter() -> None:
    terms = Terms("pool", 2, pool=3, sent_ids=True, momentum=0.9)
    ledger = Ledger(terms, SWARM)
    sent = np.array([0, 2], dtype="<u2").tobytes()
    batches = feed(1, 2, codes=bytes([0x85, 0x03]) + sent)
    ledger.fold(batches)
    assert ledger.importance().tolist() == [5, 0, 3]
    ledger.fold([replace(batches[0], number=3, round=3, codes=bytes([0x0B, noise.VOID]) + sent)])
    assert ledger.importance().tolist() == [7, 0, 3]
    ledger.fold([], [(Origin(b"A" * 32), 1)])
    assert ledger.importance().tolist() == [5, 0, 0]


def test_sums_of_changes_name_a_direction_once() -> None:
    def changes(**values: int) -> Changes:
        keys = np.array([ord(name) for name in values], dtype=np.uint64)
        return Changes(keys, np.zeros_like(keys), np.array(list(values.values()), dtype=np.int64))

    found = sum_of([changes(b=1, a=2), changes(), changes(a=-2, c=5), changes(b=1)])
    assert as_counter(found) == {(ord("b"), 0): 2, (ord("c"), 0): 5}
    assert not len(sum_of([]).deltas)


def test_a_million_records_take_about_a_byte_each() -> None:
    terms = Terms("private", 64)
    ledger = Ledger(terms, SWARM)
    codes = bytes(range(1, 65))
    changes = ledger.fold([Batch(Origin(b"A" * 32), n + 1, n + 1, codes, b"") for n in range(15_625)])
    assert ledger.records == len(changes.deltas) == 1_000_000
    held = ledger._feeds[Origin(b"A" * 32)]  # pyright: ignore[reportPrivateUsage] (to weigh it)
    assert held.codes.__sizeof__() + held.rounds.__sizeof__() < 1.5e6
    assert not held.ids
