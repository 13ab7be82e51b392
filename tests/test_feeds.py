"""The replicated set of records: what it takes, what it refuses, and that it is a function of what was heard."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmurate.peer.lab.liars import mutated
from murmurate.peer.lab.seeds_life import signed, verify
from murmurate.peer.protocol.difference import TRACE_POINTS, compare
from murmurate.peer.protocol.events import Rumor, Vector
from murmurate.peer.protocol.feeds import (
    BATCHES_MAX,
    ORIGINS_PER_PEER_MAX,
    ROUND_MAX,
    Feeds,
    Judgement,
)
from murmurate.peer.protocol.records import Batch, FeedState, Fork, Origin, Ruling

from .seeds_scene import RECORDS, RULES, batch, birth, feed, forged, fork, hear, holding, key, retraction, state

NEW, KNOWN, GAP, VOID = Judgement.NEW, Judgement.KNOWN, Judgement.GAP, Judgement.VOID
FORKED, MALFORMED, FORGED = Judgement.FORKED, Judgement.MALFORMED, Judgement.FORGED


def closed(feeds: Feeds, name: str) -> int | None:
    found = feeds.get(key(name))
    assert found is not None
    return found.closed


def count(feeds: Feeds, name: str) -> int:
    return feeds.state_of(key(name)).count


# Batches ----------------------------------------------------------------------------------------------


def test_a_feed_grows_at_its_end() -> None:
    feeds = holding()
    assert [feeds.accept(one) for one in feed("b", 3)] == [NEW, NEW, NEW]
    assert (count(feeds, "b"), feeds.records) == (3, 2 * RECORDS)
    assert feeds.accept(batch("b", 2)) is KNOWN
    assert feeds.accept(batch("b", 4)) is GAP
    assert feeds.accept(batch("c", 1)) is GAP
    assert count(feeds, "b") == 3


@pytest.mark.parametrize(
    "wrong",
    [
        batch("b", 2, codes="12345"),
        batch("b", 2, codes="123"),
        batch("b", 2, round=1),
        batch("b", 3, round=2),
        batch("b", 2, round=ROUND_MAX + 1),
        batch("b", BATCHES_MAX, round=BATCHES_MAX),
        signed(replace(batch("b", 2), number=-1)),
        signed(replace(batch("b", 2), origin=Origin(b"short"))),
        signed(Batch(key("x"), 0, 0, b"nobody", b"")),
        signed(Batch(key("x"), 0, 1, b"b", b"")),
        signed(Batch(key("x"), 0, 0, b"\xff", b"")),
    ],
)
def test_what_no_honest_peer_makes_is_refused(wrong: Batch) -> None:
    feeds = holding(feed("b", 2))
    before = feeds.digest
    assert feeds.accept(wrong) is MALFORMED
    assert feeds.digest == before


def test_rounds_may_be_skipped_but_not_repeated() -> None:
    feeds = holding(birth("b"), batch("b", 1, round=7))
    assert feeds.accept(forged(batch("b", 2, round=7))) is FORGED
    assert feeds.accept(batch("b", 2, round=7)) is GAP  # of another history than ours, which its teller need not know
    assert feeds.accept(batch("b", 2, round=ROUND_MAX)) is NEW


@pytest.mark.parametrize("wrong", [forged(birth("c")), forged(batch("b", 2)), forged(batch("b", 1, codes="evil"))])
def test_a_batch_without_its_origins_signature_is_refused(wrong: Batch) -> None:
    feeds = holding(feed("b", 2))
    before = feeds.digest
    assert feeds.accept(wrong) is FORGED
    assert feeds.digest == before
    assert feeds.accept(wrong, trusted=True) is not FORGED


def test_a_second_signature_under_the_same_content_is_no_fork() -> None:
    feeds = holding(feed("b", 2))
    assert feeds.accept(replace(batch("b", 1), signature=b"another valid one")) is KNOWN


def test_what_is_known_costs_no_verification() -> None:
    asked: list[object] = []
    feeds = Feeds(RULES, lambda value: asked.append(value) is None)
    for one in (*feed("b", 3), *feed("b", 3), batch("b", 9)):
        feeds.accept(one)
    assert asked == feed("b", 3)


# Voiding ----------------------------------------------------------------------------------------------


def test_a_fork_closes_its_feed_at_its_first_record_and_is_its_own_proof() -> None:
    feeds = holding(feed("b", 5))
    other = batch("b", 3, codes="evil")
    assert feeds.accept(other) is FORKED
    assert (closed(feeds, "b"), count(feeds, "b"), feeds.records) == (2 * RECORDS, 3, 2 * RECORDS)
    found = feeds.get(key("b"))
    assert found is not None
    assert found.ruling == Fork(batch("b", 3), other)
    assert [feeds.accept(one) for one in (batch("b", 3), other, batch("b", 4), batch("b", 2))] == [VOID] * 3 + [KNOWN]
    other_feeds = holding(feed("b", 2))
    assert found.ruling is not None
    assert other_feeds.rule(found.ruling) is NEW
    assert other_feeds.accept(batch("b", 2)) is NEW
    assert other_feeds.digest == feeds.digest


def test_an_earlier_fork_closes_earlier_and_a_later_one_changes_nothing() -> None:
    feeds = holding(feed("b", 6), fork("b", 4))
    before = feeds.digest
    assert feeds.rule(fork("b", 5)) is KNOWN
    assert feeds.digest == before
    assert feeds.accept(batch("b", 2, codes="evil")) is FORKED
    assert closed(feeds, "b") == RECORDS


@pytest.mark.parametrize(
    "wrong",
    [
        Fork(batch("b", 2), batch("b", 3)),
        Fork(batch("b", 2), batch("c", 2)),
        Fork(batch("b", 2), batch("b", 2)),
        Fork(batch("b", 2), replace(batch("b", 2), signature=b"again")),
        Fork(batch("b", 2), batch("b", 2, codes="too long")),
    ],
)
def test_two_batches_that_may_both_be_honest_prove_nothing(wrong: Fork) -> None:
    feeds = holding(feed("b", 4), feed("c", 4))
    assert feeds.rule(wrong) is MALFORMED
    assert closed(feeds, "b") is None


@pytest.mark.parametrize("part", [0, 1])
def test_a_fork_needs_both_signatures(part: int) -> None:
    feeds = holding(feed("b", 4))
    pair = [batch("b", 2), batch("b", 2, codes="evil")]
    pair[part] = forged(pair[part])
    assert feeds.rule(Fork(*pair)) is FORGED
    assert closed(feeds, "b") is None


@pytest.mark.parametrize(
    ("from_seq", "count_left", "records_left"),
    [(0, 1, 0), (1, 2, 1), (RECORDS, 2, RECORDS), (RECORDS + 1, 3, RECORDS + 1), (99, 5, 4 * RECORDS)],
)
def test_a_retraction_voids_from_any_record_on(from_seq: int, count_left: int, records_left: int) -> None:
    feeds = holding(feed("b", 5))
    assert feeds.rule(retraction("b", from_seq)) is NEW
    assert (closed(feeds, "b"), count(feeds, "b"), feeds.records) == (from_seq, count_left, records_left)
    assert feeds.rule(retraction("b", from_seq)) is KNOWN
    assert feeds.rule(retraction("b", from_seq + 1)) is KNOWN


def test_a_retraction_in_the_future_limits_what_is_taken_later() -> None:
    feeds = holding(feed("b", 2), retraction("b", RECORDS + 1))
    assert feeds.accept(batch("b", 2)) is NEW
    assert feeds.accept(batch("b", 3)) is VOID
    assert feeds.records == RECORDS + 1


def test_only_the_swarms_authorities_retract() -> None:
    feeds = holding(feed("b", 5))
    assert feeds.rule(replace(retraction("b", 2), signature=b"")) is FORGED
    assert feeds.rule(replace(retraction("b", 2), authority=key("b"))) is FORGED
    assert feeds.rule(replace(retraction("b", 2), from_seq=-1)) is MALFORMED
    assert feeds.rule(replace(retraction("b", 2), from_seq=2**60)) is MALFORMED
    assert feeds.rule(retraction("c", 2)) is GAP
    assert closed(feeds, "b") is None


# Births -----------------------------------------------------------------------------------------------


def two_births() -> tuple[Batch, Batch]:
    one, other = birth("b"), signed(replace(birth("b"), codes=b"c"))
    return one, other


def test_a_forked_birth_voids_all_and_all_peers_hold_the_same_one() -> None:
    one, other = two_births()
    first, second, third = holding(one, other), holding(other, one), holding(Fork(other, one))
    assert first.digest == second.digest == third.digest
    assert (closed(first, "b"), count(first, "b"), first.records) == (0, 1, 0)
    assert first.accept(batch("b", 1)) is VOID


def test_a_third_birth_is_taken_only_if_it_is_the_smallest() -> None:
    births = [*two_births(), signed(replace(birth("b"), codes=b"d"))]
    digests = {holding(*order).digest for order in permutations(births)}
    assert len(digests) == 1
    feeds = holding(births[1], births[2])
    assert feeds.accept(births[0]) is NEW
    assert [feeds.accept(one) for one in births] == [KNOWN, KNOWN, KNOWN]


def test_a_name_has_only_so_many_lives_and_all_peers_keep_the_same_ones() -> None:
    births = [birth("b", life) for life in range(1, 10)]  # key order is that of the numbers
    assert len(births) == ORIGINS_PER_PEER_MAX + 1
    feeds = holding(births)
    assert feeds.accept(births[-1]) is VOID
    assert feeds.accept(birth("c")) is NEW
    turned = holding(birth("c"), births[::-1])
    assert turned.digest == feeds.digest
    assert turned.get(key("b", 9)) is None
    assert len(turned.lives(feeds.lives(next(iter(feeds)).name)[0].name)) == ORIGINS_PER_PEER_MAX


def test_a_life_that_is_crowded_out_leaves_the_weights() -> None:
    feeds = holding(*(birth("b", life) for life in range(2, 10)), batch("b", 1, life=9))
    assert feeds.take() == ((batch("b", 1, life=9),), (), ())
    hear(feeds, birth("b", 1))
    assert feeds.pending
    assert feeds.take() == ((), (), (key("b", 9),))
    assert feeds.take_crowded_out() == [(key("b", 9), "b")]
    assert feeds.take_crowded_out() == []


def test_only_a_birth_that_its_origin_signed_calls_for_another_state() -> None:
    """What a state contains cannot be crowded out, so another state is needed; anybody can make up a small key."""
    others = holding(*(feed("b", 2, life) for life in range(2, 10)))
    others.take()
    ground = others.ground()
    assert ground is not None
    feeds = holding()
    feeds.install(ground)
    assert feeds.accept(forged(birth("b", 1))) is FORGED
    assert not feeds.crowded
    assert feeds.accept(birth("b", 1)) is VOID
    assert feeds.crowded


# A function of what was heard -------------------------------------------------------------------------

ITEMS: list[Batch | Ruling] = [
    *feed("b", 5),
    *feed("c", 4),
    *feed("d", 3),
    batch("c", 2, codes="evil"),
    batch("b", 4, codes="evil"),
    fork("b", 3, one="onee"),
    retraction("d", RECORDS + 2),
    retraction("d", RECORDS),
    retraction("c", 2 * RECORDS + 1),
    *two_births(),
]


@given(st.permutations(ITEMS), st.lists(st.sampled_from(ITEMS)))
def test_any_order_and_duplication_ends_in_one_state(order: list[Batch | Ruling], again: list[Batch | Ruling]) -> None:
    items = [*order, *again]
    feeds = holding(*items)
    for _ in range(6):  # what came before its predecessor was dropped: it is told again
        for item in items:
            hear(feeds, item)
    expected = holding(*ITEMS, *ITEMS)
    assert feeds.digest == expected.digest
    assert feeds.states() == expected.states()
    assert {one.origin: one.closed for one in feeds} == {key("b"): 0, key("c"): RECORDS, key("d"): RECORDS}


@given(st.integers(0, 2**32))
def test_folds_bring_every_batch_once_in_order_and_every_closing(seed: int) -> None:
    random = Random(seed)
    items = ITEMS * 3
    random.shuffle(items)
    feeds = holding()
    seen: dict[Origin, int] = {}
    closings: dict[Origin, int] = {}
    for item in items:
        hear(feeds, item)
        if random.random() < 0.3:
            batches, news, dropped = feeds.take()
            assert not feeds.pending
            assert dropped == ()
            for one in batches:
                assert one.number == seen.get(one.origin, 0) + 1
                seen[one.origin] = one.number
            for origin, seq in news:
                assert origin not in closings or seq < closings[origin]
                closings[origin] = seq
    feeds.take()
    assert feeds.take() == ((), (), ())


def test_equal_digests_are_equal_sets() -> None:
    sets = [
        holding(),
        holding(birth("b")),
        holding(birth("c")),
        holding(birth("b"), birth("c")),
        holding(feed("b", 2)),
        holding(birth("b"), batch("b", 1, round=2)),
        holding(birth("b"), batch("b", 1, codes="evil")),
        holding(feed("b", 2), retraction("b", RECORDS)),
        holding(feed("b", 2), retraction("b", RECORDS - 1)),
    ]
    assert len({feeds.digest for feeds in sets}) == len(sets)
    assert all(len(feeds.digest) == 32 for feeds in sets)


# Comparing --------------------------------------------------------------------------------------------


def offered(mine: Feeds, theirs: Vector) -> list[tuple[Origin, int, int]]:
    return [(one.origin, start, end) for one, start, end in compare(mine, theirs).offers]


def test_they_are_offered_what_they_lack() -> None:
    feeds = holding(feed("b", 5), feed("c", 2))
    assert offered(feeds, Vector(feeds.states())) == []
    assert offered(feeds, Vector(())) == [(key("b"), 0, 5), (key("c"), 0, 2)]
    assert offered(feeds, Vector((), whole=False)) == []
    assert offered(feeds, Vector((state("b", 3), state("c", 2)))) == [(key("b"), 3, 5)]
    assert offered(feeds, Vector((state("b", 3),), whole=False)) == [(key("b"), 3, 5)]
    assert offered(feeds, Vector((FeedState(key("b"), 0, b""),), whole=False)) == [(key("b"), 0, 5)]


def test_they_are_asked_for_what_we_lack() -> None:
    feeds = holding(feed("b", 3))
    found = compare(feeds, Vector((state("b", 5), state("d", 2))))
    assert found.asks == [state("b", 3), FeedState(key("d"), 0, b"")]
    assert found.goals == {key("b"): 5, key("d"): 2}
    assert feeds.reached(found.goals.items()) == []
    hear(feeds, feed("b", 5))
    assert feeds.reached(found.goals.items()) == [key("b")]


def test_rulings_are_told_to_who_has_not_heard_them() -> None:
    ruling = fork("b", 3)
    mine, theirs = holding(feed("b", 5), ruling), holding(feed("b", 5))
    found = compare(mine, Vector(theirs.states()))
    assert (found.rulings, found.offers, found.asks) == ([ruling], [], [])
    assert compare(theirs, Vector(mine.states())).asks == [theirs.state_of(key("b"))]
    assert compare(mine, Vector(())).rulings == [ruling]
    assert compare(mine, Vector(mine.states())).rulings == []
    assert compare(holding(feed("b", 1), ruling), Vector(mine.states())).goals == {key("b"): 3}


def test_what_they_closed_is_not_offered() -> None:
    theirs = holding(feed("b", 2), retraction("b", RECORDS))
    assert offered(holding(feed("b", 6)), Vector(theirs.states())) == []


@pytest.mark.parametrize(
    ("length", "forked", "other_length"),
    [
        (2, 1, 2),
        (3, 1, 3),
        (3, 2, 300),
        (300, 1, 2),
        (300, 2, 3),
        (300, 17, 40),
        (300, 1, 300),
        (300, 255, 300),
        (300, 299, 300),
    ],
)
def test_a_fork_hidden_in_the_past_is_found(length: int, forked: int, other_length: int) -> None:
    mine = holding(feed("b", length))
    theirs = holding(feed("b", forked), batch("b", forked, codes="evil"))
    for number in range(forked + 1, other_length):
        theirs.accept(batch("b", number))
    answers = converse(mine, theirs)
    assert mine.digest == theirs.digest
    assert closed(mine, "b") == (forked - 1) * RECORDS
    assert answers <= 12


def converse(one: Feeds, other: Feeds) -> int:
    """They tell each other what they find, beginning with whole vectors; returns how many answers it took."""
    queue = [(other, Vector(one.states())), (one, Vector(other.states()))]
    answers = 0
    while queue and answers < 100:
        hearer, vector = queue.pop(0)
        teller = one if hearer is other else other
        answers += 1
        found = compare(hearer, vector)
        assert len(found.traces) <= 2 * TRACE_POINTS + 2
        for offered_feed, start, end in found.offers:
            for item in offered_feed.batches[start:end]:
                teller.accept(item)
        for ruling in found.rulings:
            teller.rule(ruling)
        if found.traces:
            queue.append((teller, Vector(tuple(found.traces), whole=False)))
        if not queue and one.digest != other.digest:
            queue = [(other, Vector(one.states())), (one, Vector(other.states()))]
    return answers


@given(st.integers(0, 2**32))
def test_nothing_that_is_said_raises(seed: int) -> None:
    random = Random(seed)
    feeds = holding(ITEMS[:12])
    others = holding(*ITEMS[:9], retraction("d", 3))
    for _ in range(20):
        vector = mutated(Vector(others.states(), random.random() < 0.5), random)
        assert isinstance(vector, Vector)
        compare(feeds, vector)
        items = random.sample(ITEMS, 5)
        batches = tuple(item for item in items if isinstance(item, Batch))
        rulings = tuple(item for item in items if not isinstance(item, Batch))
        rumor = mutated(Rumor(batches, rulings), random)
        assert isinstance(rumor, Rumor)
        for item in (*rumor.batches, *rumor.rulings):
            hear(feeds, item)


def test_impossible_counts_are_nothing() -> None:
    feeds = holding(feed("b", 5))
    assert offered(feeds, Vector((FeedState(key("b"), -1000, b"?"),))) == [(key("b"), 0, 5)]
    found = compare(feeds, Vector((FeedState(key("b"), 2**63, b"?"), FeedState(key("c"), -1, b"?")), whole=False))
    assert (found.offers, found.asks) == ([], [state("b", 5)])


def test_who_contradicts_himself_is_told_no_nonsense() -> None:
    feeds = holding(feed("b", 5))
    wrong = FeedState(key("b"), 2, b"?" * 16)
    found = compare(feeds, Vector((state("b", 4), wrong), whole=False))
    assert [(start, end) for _, start, end in found.offers] == [(4, 5)]
    assert found.traces == []


def test_the_toy_signature_tells_forgeries() -> None:
    assert verify(batch("b", 1))
    assert not verify(forged(batch("b", 1)))
    assert not verify(replace(batch("b", 1), codes=b"evil"))
