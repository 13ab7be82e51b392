"""Gossip with neighbours: what one peer says when it hears something; an event in, the exact effects out."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmurate.peer.lab.liars import mutated
from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.difference import ITEMS_MAX, RUMOR_BYTES_MAX, TRACE_POINTS, compare, size
from murmurate.peer.protocol.events import (
    Audited,
    Diverged,
    Effect,
    Have,
    Heartbeat,
    LinkDown,
    LinkUp,
    PeerId,
    Report,
    Ruled,
    Rumor,
    Send,
    Sign,
    Signed,
    Timer,
    TimerFired,
    Turn,
    Update,
    Vector,
    Verdict,
    Voided,
)
from murmurate.peer.protocol.feeds import ORIGINS_PER_PEER_MAX
from murmurate.peer.protocol.records import Batch, FeedState, Origin
from murmurate.peer.protocol.rumors import ANSWERS_MAX, DIGESTS_KEPT_MAX, SIGN_BYTES

from .scene import NEXT_BEAT, B, C, D, Z, beat, changed, dropped, goodbye, told, up
from .seeds_scene import (
    GOSSIP,
    GOSSIP_S,
    NEXT_GOSSIP,
    RECORDS,
    ROSTER,
    batch,
    birth,
    bodies,
    feed,
    flooded,
    forged,
    fork,
    have,
    holding,
    kept,
    key,
    publish,
    retraction,
    rumor,
    started,
    state,
    trained,
    training,
    unsigned,
)

ANOTHER = Have(b"?" * SIGN_BYTES)


def vector_of(peer: Peer) -> Vector:
    assert peer.feeds is not None
    return Vector(peer.feeds.states())


def partly(*states: FeedState) -> Vector:
    return Vector(states, whole=False)


def voided(name: str, from_seq: int, forked: bool) -> Report:
    return Report(Voided(key(name), PeerId(name), from_seq, forked))


# Flooding ---------------------------------------------------------------------------------------------


def test_what_is_new_is_kept_and_goes_to_all_others_at_once() -> None:
    peer = training(others="b")
    one = batch("b", 1)
    assert peer.handle(rumor(B, one), 1.0) == [kept(one), *flooded((C, D), one)]
    assert peer.handle(rumor(C, one), 1.1) == []
    assert peer.handle(rumor(B, one), 1.2) == []


def test_a_rumor_of_many_is_passed_on_as_one() -> None:
    peer = training(others="bc")
    items = (batch("b", 1), batch("b", 2), batch("c", 1))
    assert peer.handle(rumor(B, *items), 1.0) == [kept(*items), *flooded((C, D), *items)]


def test_only_what_a_neighbour_lacks_is_sent_to_it() -> None:
    peer = training(others="bc")
    first, second, third = batch("b", 1), batch("b", 2), batch("c", 1)
    assert peer.handle(rumor(C, second), 1.0) == [Send(C, partly(state("b", 1)))]  # C has it, and more than we do
    assert peer.handle(rumor(D, third), 1.1) == [kept(third), *flooded((B, C), third)]
    assert peer.handle(rumor(B, first, second), 1.2) == [kept(first, second), *flooded((D,), first, second)]


def test_our_own_batch_is_sent_when_it_is_signed() -> None:
    peer = training()
    effects = publish(peer, 1, 5.0)
    assert effects[:3] == flooded((B, C, D), batch("me", 1))


def test_nothing_is_flooded_to_the_dead_or_to_who_has_not_told_what_it_holds() -> None:
    peer = training(others="b")
    assert peer.handle(LinkDown(C), 1.0) == [changed(C, "suspect")]
    one, two = batch("b", 1), batch("b", 2)
    assert peer.handle(rumor(B, one), 1.1) == [kept(one), *flooded((D,), one)]
    assert peer.handle(LinkUp(C, 1, Turn(0)), 1.2) == [changed(C, "alive"), Send(C, have(peer))]
    assert peer.handle(rumor(B, two), 1.3) == [kept(two), *flooded((D,), two)]
    assert peer.handle(told(C, Vector((state("me", 1), state("b", 1)))), 1.4) == flooded((C,), one, two)
    three = batch("b", 3)
    assert peer.handle(rumor(B, three), 1.5) == [kept(three), *flooded((C, D), three)]


def test_a_decision_of_our_user_spreads_and_is_not_logged_twice() -> None:
    peer = training(others="b")
    peer.handle(rumor(B, batch("b", 1), batch("b", 2)), 1.0)
    ruling = retraction("b", RECORDS + 1)
    expected = [voided("b", RECORDS + 1, forked=False), *flooded((B, C, D), ruling)]
    assert peer.handle(Ruled(ruling), 2.0) == expected
    assert peer.handle(Ruled(ruling), 3.0) == []


# Forks ------------------------------------------------------------------------------------------------


def test_a_fork_is_proved_kept_told_and_reported() -> None:
    peer = training(others="b")
    one, other = batch("b", 1), batch("b", 1, codes="evil")
    peer.handle(rumor(B, one), 1.0)
    proof = fork("b", 1, other="evil")
    assert proof.one == one
    expected = [kept(proof), voided("b", 0, forked=True), *flooded((B, C, D), proof)]
    assert peer.handle(rumor(C, other), 2.0) == expected
    assert peer.handle(rumor(C, other), 3.0) == flooded((C,), proof)  # it has not heard
    assert peer.handle(rumor(D, proof), 3.0) == []


def test_what_a_ruling_in_the_same_rumor_voids_is_not_passed_on() -> None:
    peer = training(others="b")
    items = (batch("b", 1), batch("b", 2), batch("b", 1, codes="evil"))
    proof = fork("b", 1, other="evil")
    effects = peer.handle(rumor(B, *items), 1.0)
    assert effects == [kept(proof), voided("b", 0, forked=True), *flooded((B, C, D), proof)]


def test_a_ruling_may_come_with_the_feed_that_it_closes() -> None:
    peer = training()
    ruling = retraction("b", RECORDS)
    items = (*feed("b", 2), ruling)
    effects = peer.handle(rumor(B, *items), 1.0)
    assert effects[:2] == [kept(*items), voided("b", RECORDS, forked=False)]
    assert peer.handle(rumor(C, batch("b", 2)), 2.0) == flooded((C,), ruling)


def test_a_fork_in_the_past_is_searched_and_found() -> None:
    peer = started(held=feed("b", 40))
    theirs = holding(feed("b", 11), batch("b", 11, codes="evil"))
    for number in range(12, 40):
        theirs.accept(batch("b", number))
    peer.handle(up(B), 0.0)
    (trace,) = bodies(peer.handle(told(B, Vector(theirs.states())), 1.0), B)
    assert isinstance(trace, Vector)
    assert not trace.whole
    assert [one.count for one in trace.feeds] == [*range(0, 40, 2), 40]
    (answer,) = (compare(theirs, trace).offers,)
    assert compare(theirs, trace).traces[0].count == 10
    narrower = Vector(tuple(compare(theirs, trace).traces), whole=False)
    assert answer == []
    assert bodies(peer.handle(told(B, narrower), 1.1), B) == [Rumor((batch("b", 11),))]


# Repair -----------------------------------------------------------------------------------------------


def test_every_beat_tells_all_live_neighbours_what_we_hold_in_a_few_bytes() -> None:
    peer = training(others="b")
    assert peer.handle(GOSSIP, 1.0) == [*(Send(to, have(peer)) for to in (B, C, D)), NEXT_GOSSIP]
    assert size(have(peer)) == SIGN_BYTES
    peer.handle(goodbye(C), 1.5)
    assert peer.handle(GOSSIP, 2.0) == [*(Send(to, have(peer)) for to in (B, D)), NEXT_GOSSIP]


def test_who_was_told_something_gets_no_heartbeat_as_well() -> None:
    peer = training(others="b")
    beat_of_life = TimerFired(Timer("heartbeat", Turn(0)))
    peer.handle(GOSSIP, 1.0)
    assert peer.handle(beat_of_life, 1.1) == [NEXT_BEAT]
    assert bodies(peer.handle(beat_of_life, 1.6), B) == [Heartbeat(Turn(1))]


def test_equal_sets_have_nothing_to_say() -> None:
    peer = training(others="b")
    assert peer.handle(told(B, have(peer)), 1.0) == []


def test_another_digest_is_answered_with_our_vector_but_not_twice_in_a_short_time() -> None:
    peer = training(others="b")
    assert peer.handle(told(B, ANOTHER), 1.0) == [Send(B, vector_of(peer))]
    assert peer.handle(told(B, ANOTHER), 1.0 + 0.4 * GOSSIP_S) == []
    assert peer.handle(told(C, ANOTHER), 1.0 + 0.4 * GOSSIP_S) == [Send(C, vector_of(peer))]
    assert peer.handle(told(B, ANOTHER), 1.0 + 0.5 * GOSSIP_S) == [Send(B, vector_of(peer))]


def test_who_is_only_a_moment_behind_is_not_asked() -> None:
    peer = training(others="b")
    before = have(peer)
    peer.handle(rumor(B, batch("b", 1)), 1.0)
    assert peer.handle(told(C, before), 1.1) == []
    assert peer.handle(told(C, before), 1.0 + 0.5 * GOSSIP_S) == [Send(C, vector_of(peer))]


def test_a_vector_is_answered_with_what_it_lacks_and_asked_for_what_it_has() -> None:
    peer = training(others="bc")
    peer.handle(rumor(B, batch("b", 1)), 1.0)
    theirs = Vector((state("b", 1), state("c", 3)))
    assert peer.handle(told(C, theirs), 2.0) == [
        *flooded((C,), batch("b", 1), birth("me")),
        Send(C, partly(state("c", 1))),
    ]
    assert peer.handle(told(C, partly(state("b", 1))), 2.1) == flooded((C,), batch("b", 1))


def test_a_gap_is_asked_about_at_once_but_not_twice_in_a_short_time() -> None:
    peer = training(others="b")
    late = batch("b", 3)
    assert peer.handle(rumor(B, late), 1.0) == [Send(B, partly(state("b", 1)))]
    assert peer.handle(rumor(B, late), 1.1) == []
    assert peer.handle(rumor(C, late), 1.1) == [Send(C, partly(state("b", 1)))]  # B may never answer
    assert peer.handle(rumor(B, late), 1.0 + 0.5 * GOSSIP_S) == [Send(B, partly(state("b", 1)))]
    assert peer.handle(rumor(C, batch("far", 3)), 1.2) == [Send(C, partly(FeedState(key("far"), 0, b"")))]


def test_an_answer_has_an_end_and_more_is_asked_for() -> None:
    long = feed("b", 1200)
    peer = started(held=long)
    peer.handle(up(C), 0.0)
    (answer,) = bodies(peer.handle(told(C, Vector(())), 1.0), C)
    assert isinstance(answer, Rumor)
    assert answer.more
    assert RUMOR_BYTES_MAX <= size(answer) < RUMOR_BYTES_MAX + 200
    assert answer.batches == tuple(long[: len(answer.batches)])
    assert len(answer.batches) <= ITEMS_MAX
    joiner = started()
    joiner.handle(up(B), 0.0)
    effects = joiner.handle(told(B, answer), 1.0)
    assert bodies(effects, B) == [vector_of(joiner)]
    (rest,) = bodies(peer.handle(told(C, vector_of(joiner)), 1.1), C)
    assert rest == Rumor(tuple(long[len(answer.batches) :]))
    assert bodies(joiner.handle(told(B, rest), 1.2), B) == []


def test_more_of_nothing_is_not_asked_for() -> None:
    peer = training(others="b")
    assert peer.handle(rumor(B, birth("b"), more=True), 1.0) == []
    assert peer.handle(rumor(B, more=True), 1.0) == []


def test_a_link_that_opens_again_begins_from_nothing() -> None:
    peer = training(others="b")
    one = batch("b", 1)
    peer.handle(rumor(B, one), 1.0)
    peer.handle(LinkUp(C, 1, Turn(0)), 2.0)
    lacking = Vector((state("b", 1), state("me", 1)))  # what was sent before got lost
    assert peer.handle(told(C, lacking), 2.1) == flooded((C,), one)


def test_who_is_a_moment_behind_when_its_link_opens_is_asked_as_nothing_was_sent_to_it() -> None:
    peer = training(others="b")
    before = have(peer)
    peer.handle(rumor(B, batch("b", 1)), 1.0)
    peer.handle(LinkUp(C, 1, Turn(0)), 1.05)
    assert peer.handle(told(C, before), 1.1) == [Send(C, vector_of(peer))]


def test_a_neighbour_with_other_weights_for_the_same_records_is_named_once() -> None:
    peer = training(others="b")
    assert peer.feeds is not None
    peer.handle(Audited(peer.feeds.digest, b"w" * 32), 1.0)
    ours = Have(have(peer).digest, b"w" * SIGN_BYTES)
    assert bodies(peer.handle(GOSSIP, 2.0), B) == [ours]
    assert peer.handle(told(B, ours), 2.1) == []
    wrong = replace(ours, weights=b"x" * SIGN_BYTES)
    assert peer.handle(told(B, wrong), 2.2) == [Report(Diverged(B))]
    assert peer.handle(told(B, wrong), 2.3) == []
    assert peer.handle(told(C, replace(ours, weights=b"")), 2.4) == []
    peer.handle(rumor(B, batch("b", 1)), 3.0)
    assert bodies(peer.handle(GOSSIP, 3.1), B) == [have(peer)]  # of these records the weights are not known


def test_an_audit_of_an_older_set_says_nothing_of_this_one() -> None:
    peer = training(others="b")
    assert peer.feeds is not None
    before = peer.feeds.digest
    peer.handle(rumor(B, batch("b", 1)), 1.0)
    peer.handle(Audited(before, b"w" * 32), 1.1)
    assert peer.feeds.weights == b""


# Refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        (Rumor((forged(batch("b", 1)),)), Verdict.FORGED),
        (Rumor((batch("b", 1, codes="long!"),)), Verdict.MALFORMED),
        (Rumor(rulings=(replace(retraction("b", 0), signature=b""),)), Verdict.FORGED),
        (Rumor(rulings=(fork("b", 1, one="evil", other="evil"),)), Verdict.MALFORMED),
        (Rumor((batch("b", 1),) * (ITEMS_MAX + 1)), Verdict.MALFORMED),
        (Vector((state("b", 1),) * (ORIGINS_PER_PEER_MAX * len(ROSTER) + TRACE_POINTS + 3)), Verdict.MALFORMED),
        (Update(Turn(1), b"a model"), Verdict.MALFORMED),
    ],
)
def test_what_no_honest_neighbour_says_is_reported(wrong: Rumor | Vector | Update, verdict: Verdict) -> None:
    peer = training(others="b")
    before = have(peer)
    assert peer.handle(told(B, wrong), 1.0) == [dropped(B, verdict)]
    assert have(peer) == before


def test_a_forgery_ends_its_rumor_but_not_what_came_before_it() -> None:
    peer = training(others="b")
    items = (batch("b", 1), forged(batch("b", 2)), batch("b", 2))
    expected = [kept(items[0]), *flooded((C, D), items[0]), dropped(B, Verdict.FORGED)]
    assert peer.handle(rumor(B, *items), 1.0) == expected


def test_strangers_and_earlier_lives_are_not_heard() -> None:
    peer = training(others="b")
    assert peer.handle(rumor(Z, batch("b", 1)), 1.0) == [dropped(Z, Verdict.FOREIGN)]
    peer.handle(LinkUp(B, 3, Turn(0)), 1.0)
    old = told(B, Rumor((batch("b", 1),)), incarnation=2)
    assert peer.handle(old, 1.1) == [dropped(B, Verdict.OUTDATED)]
    assert peer.handle(LinkUp(B, 2, Turn(0)), 1.2) == []


def test_a_newer_life_is_noticed_before_its_link() -> None:
    peer = training(others="b")
    peer.handle(told(C, Vector((state("b", 1),)), incarnation=2), 1.0)
    one = batch("b", 1)
    assert peer.handle(rumor(B, one), 1.1) == [kept(one), *flooded((C, D), one)]


def test_liveness_is_not_gossip() -> None:
    peer = training(others="b")
    assert peer.handle(beat(B, 3), 1.0) == []


# Bounds -----------------------------------------------------------------------------------------------


def answers(peer: Peer, questions: int, to: PeerId) -> int:
    said: list[Effect] = []
    for place in range(questions):
        said += peer.handle(told(to, Vector(())), 1.0 + place / 1e6)
    return len(bodies(said, to))


def test_a_neighbour_gets_only_so_many_answers_in_a_beat() -> None:
    peer = training(others="b")
    assert answers(peer, 3 * ANSWERS_MAX, B) == ANSWERS_MAX
    assert answers(peer, 1, C) == 1
    peer.handle(GOSSIP, 2.0)
    assert answers(peer, 1, B) == 1


def test_one_that_only_boasts_is_asked_twice_a_beat_and_nobody_else_suffers() -> None:
    peer = training(others="b")
    asked = 0
    for tenth in range(100):
        now = 1 + tenth / 10
        boast = Vector((state("me", 1), FeedState(key("b"), 1000, b"?" * 16)))
        asked += len(bodies(peer.handle(told(B, boast), now), B))
        asked += len(bodies(peer.handle(told(B, ANOTHER), now), B))
        peer.handle(rumor(B, more=True), now)
    assert asked <= 2 * 10 / GOSSIP_S + 1
    one = batch("b", 1)
    assert peer.handle(rumor(C, one), 11.0) == [kept(one), *flooded((D,), one)]  # B says that it has it


def test_invented_origins_fill_no_memory() -> None:
    peer = training(others="b")
    asked = 0
    for number in range(3000):
        invented = replace(batch("b", 5), origin=Origin(number.to_bytes(32)))
        asked += len(bodies(peer.handle(rumor(B, invented), 1.0), B))
    assert 0 < asked <= ORIGINS_PER_PEER_MAX * len(ROSTER) + TRACE_POINTS + 2
    assert peer.feeds is not None
    assert len(list(peer.feeds)) == 2


def test_only_our_latest_digests_are_remembered() -> None:
    peer = training(others="b")
    before = have(peer)
    for number in range(1, DIGESTS_KEPT_MAX + 2):
        peer.handle(rumor(B, batch("b", number)), 1.0)
    assert bodies(peer.handle(told(C, before), 1.1), C) == [vector_of(peer)]


@given(st.integers(0, 2**32))
def test_nothing_that_a_neighbour_says_raises(seed: int) -> None:
    random = Random(seed)
    peer = training(others="bcd")
    items = [*feed("b", 4), *feed("c", 3), batch("b", 2, codes="evil"), batch("d", 1)]
    for step in range(30):
        said = random.choice(
            (
                Rumor(tuple(random.sample(items, 3)), (fork("c", 2),), random.random() < 0.5),
                Vector(holding(random.sample(items, 5)).states(), random.random() < 0.5),
                have(peer),
            )
        )
        peer.handle(told(random.choice((B, C, D)), mutated(said, random)), step / 10)
    assert peer.handle(GOSSIP, 3.0)


def test_a_batch_of_ours_that_others_know_already_is_never_shown() -> None:
    """Our log was rolled back, and we learn of it while a new batch with an old number is being signed."""
    peer = training()
    new, old = batch("me", 1), batch("me", 1, codes="old!")
    assert peer.handle(trained(1), 1.0) == [Sign(unsigned(new))]
    assert peer.handle(rumor(B, old), 1.1) == [kept(old), *flooded((C, D), old)]
    effects = peer.handle(Signed(new), 1.2)
    assert [effect for effect in effects if isinstance(effect, Send)] == []
    assert peer.feeds is not None
    assert [(one.closed, one.batches) for one in peer.feeds] == [(None, [birth("me"), old])]


def test_a_batch_is_one_byte_a_record_and_its_share() -> None:
    assert size(Rumor((Batch(key("b"), 1, 1, bytes(64), b""),))) - 64 < 100
