"""Too much of everything: lives that crowd each other out, origins that nobody has, rulings without end."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from murmurate.peer.lab import tally
from murmurate.peer.lab.seeds_life import signed, verify
from murmurate.peer.learning.exchange.seeds import Changes, Ledger, Terms, sum_of
from murmurate.peer.protocol.difference import RULINGS_MAX, Difference, pack
from murmurate.peer.protocol.events import Fold, Have, Report, Rumor, Send, Verdict
from murmurate.peer.protocol.feeds import ORIGINS_PER_PEER_MAX, Feeds
from murmurate.peer.protocol.records import Batch, Fork, Origin, Ruling
from murmurate.peer.protocol.rumors import SIGN_BYTES

from .scene import B, C, D, dropped, told
from .seeds_scene import (
    RECORDS,
    RULES,
    batch,
    birth,
    hear,
    holding,
    key,
    retraction,
    rumor,
    state,
    training,
)
from .test_rumors import partly


def test_a_life_that_comes_back_is_folded_anew() -> None:
    feeds = holding(*(birth("d", life) for life in range(2, 10)), batch("d", 1, life=9), retraction("d", 1, life=9))
    assert feeds.take() == ((batch("d", 1, life=9),), ((key("d", 9), 1),), ())
    hear(feeds, birth("d", 1))
    hear(feeds, signed(Batch(key("d", 1), 0, 0, b"b", b"")))  # it is a life of b now, and here is room again
    hear(feeds, [birth("d", 9), batch("d", 1, life=9)])
    assert feeds.take() == ((batch("d", 1, life=9),), ((key("d", 1), 0),), (key("d", 9),))


def test_what_the_weights_never_heard_of_is_not_dropped() -> None:
    births = [signed(Batch(Origin(bytes([255 - n]) * 32), 0, 0, b"b", b"")) for n in range(200)]
    feeds = holding(births)
    assert not feeds.pending
    assert len(feeds.take_crowded_out()) == len(births) - ORIGINS_PER_PEER_MAX


# Equal sets, equal weights ----------------------------------------------------------------------------

TWINS = [signed(Batch(key("d", 1), 0, 0, name, b"")) for name in (b"d", b"b")]
CROWD: list[Batch | Ruling] = [
    *(one for life in (2, 3, 4, 5, 6, 7, 8, 9) for one in (birth("d", life), batch("d", 1, life=life))),
    batch("d", 2, life=9),
    batch("d", 1, codes="evil", life=8),
    retraction("d", 1, life=9),
    *TWINS,
    batch("d", 1),
    Fork(TWINS[0], TWINS[1]),
    birth("b", 2),
    batch("b", 1, life=2),
]


class Follower:
    """A set and the coefficients that follow it."""

    def __init__(self, directions: str) -> None:
        self.feeds = Feeds(RULES, verify)
        self.ledger = Ledger(Terms(directions, RECORDS, pool=5 if directions == "pool" else 0), bytes(32))
        self.told: list[Changes] = []

    def fold(self) -> tuple[bytes, bytes]:
        batches, closed, gone = self.feeds.take()
        held = [(one.origin, feed.name) for one in batches if (feed := self.feeds.get(one.origin)) is not None]
        self.told.append(self.ledger.fold(batches, closed, held, gone))
        applied = sum_of([*self.told])
        assert _bytes_of(applied) == _bytes_of(sum_of([self.ledger.coefficients()]))
        return self.feeds.digest, _bytes_of(applied)


def _bytes_of(changes: Changes) -> bytes:
    return b"".join(column.tobytes() for column in changes)


@pytest.mark.parametrize("directions", ["private", "pool", "shared"])
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_any_order_and_division_gives_equal_sets_equal_weights(directions: str, seed: int) -> None:
    random = Random(seed)
    weights: dict[bytes, bytes] = {}
    followers = [Follower(directions) for _ in range(3)]
    for follower in followers:
        for _ in range(3):
            for item in random.sample(CROWD, len(CROWD)):
                hear(follower.feeds, item)
                if random.random() < 0.4:
                    digest, found = follower.fold()
                    assert weights.setdefault(digest, found) == found
    for follower in followers:
        hear(follower.feeds, CROWD)
        hear(follower.feeds, CROWD)
        digest, found = follower.fold()
        assert weights.setdefault(digest, found) == found


# Bounds -----------------------------------------------------------------------------------------------


def test_invented_origins_hide_nobody_elses_gaps() -> None:
    peer = training(others="b")
    for n in range(3):
        invented = [signed(Batch(Origin(bytes([n, k]) * 16), 1, 1, b"0001", b"")) for k in range(100)]
        peer.handle(rumor(B, *invented), 1.0)
    assert peer.handle(rumor(C, batch("b", 3)), 1.0) == [Send(C, partly(state("b", 1)))]


def test_lives_that_crowd_each_other_out_fill_no_memory() -> None:
    peer = training()
    births = [signed(Batch(Origin((2**250 - n).to_bytes(32, "big")), 0, 0, b"far", b"")) for n in range(2000)]
    facts: list[object] = []
    for start in range(0, len(births), 100):
        peer.handle(told(C, Have(b"?" * SIGN_BYTES)), 1.0)
        effects = peer.handle(rumor(B, *births[start : start + 100]), 1.0 + start)
        facts += [effect.fact for effect in effects if isinstance(effect, Report)]
    assert peer.feeds is not None
    assert len(list(peer.feeds)) == 1 + ORIGINS_PER_PEER_MAX
    assert not peer.feeds.pending
    assert peer.feeds.take_crowded_out() == []
    rumors = peer._rumors  # pyright: ignore[reportPrivateUsage]: memory shows nowhere else
    assert rumors is not None
    for neighbour in rumors._neighbours.values():  # pyright: ignore[reportPrivateUsage]: as above
        assert len(neighbour.known) <= 1 + ORIGINS_PER_PEER_MAX
    assert len(facts) == (len(births) // 100 - 1) * ORIGINS_PER_PEER_MAX  # those that were held between two rumors


def test_a_rumor_has_only_so_many_rulings_and_its_first_forged_one_ends_it() -> None:
    peer = training(others="b")
    rulings = [retraction("b", 1000 - n) for n in range(RULINGS_MAX + 1)]
    assert peer.handle(rumor(B, *rulings), 1.0) == [dropped(B, Verdict.MALFORMED)]
    forgery = replace(retraction("b", 900), signature=b"")
    effects = peer.handle(rumor(B, forgery, retraction("b", 3)), 1.0)
    assert effects == [dropped(B, Verdict.FORGED)]
    assert peer.feeds is not None
    assert peer.feeds.state_of(key("b")).closed is None


def test_many_rulings_are_told_in_several_answers() -> None:
    answer = pack(Difference(rulings=[retraction("b", n) for n in range(RULINGS_MAX + 5)]))
    assert len(answer.rulings) == RULINGS_MAX
    assert answer.more


def test_more_rulings_at_once_than_a_rumor_carries() -> None:
    """A rumor with as many retractions as it may carry, and forks beside them: those become rulings here as well."""
    roster = tuple(f"p{number:03}" for number in range(RULINGS_MAX + 2))
    peer = training((B, C, D), rules=replace(RULES, roster=RULES.roster | set(roster)))
    births = tuple(birth(name) for name in roster)
    first, last = births[: len(births) // 2], births[len(births) // 2 :]
    for some in (first, last):
        peer.handle(rumor(B, *some, *(batch(one.codes.decode(), 1) for one in some)), 1.0)
    forks = (batch(roster[-1], 1, codes="evil"), batch(roster[-2], 1, codes="evil"))
    effects = peer.handle(rumor(B, *forks, *(retraction(name, 0) for name in roster[:RULINGS_MAX])), 2.0)
    for to in (C, D):
        sent = [effect.body for effect in effects if isinstance(effect, Send) and effect.to == to]
        rulings = [body.rulings for body in sent if isinstance(body, Rumor)]
        assert [len(some) for some in rulings] == [RULINGS_MAX, 2]
        assert len({ruling for some in rulings for ruling in some}) == RULINGS_MAX + 2


def test_the_toy_replica_forgets_what_is_dropped() -> None:
    """And what comes back after that counts once, up to where it was closed anew."""
    weights = tally.Ledger(RECORDS)
    kept, gone = batch("b", 1), [batch("d", 1), batch("d", 2)]
    replica, other = tally.Tally(weights, key("me")), tally.Tally(weights, key("me"))
    replica.fold(Fold(1, (kept, *gone), ((key("d"), RECORDS + 1),)))
    replica.fold(Fold(2, (), (), dropped=(key("d"),)))
    other.fold(Fold(1, (kept,), ()))
    assert replica.weights == other.weights != 0
    for one in (replica, other):
        one.fold(Fold(3, tuple(gone), ()))
    assert replica.weights == other.weights
