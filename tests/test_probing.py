"""The pace of one peer that exchanges seeds: join, train, sign, wait, fold; an event in, the exact effects out."""

from __future__ import annotations

import pytest

from murmurate.peer.protocol.events import (
    Audit,
    Audited,
    Fold,
    Folded,
    Joined,
    LinkDown,
    LinkUp,
    Report,
    Restored,
    Sign,
    Signed,
    Skipped,
    Started,
    Timer,
    TimerFired,
    Train,
    Turn,
    Vector,
)
from murmurate.peer.protocol.probing import AUDIT_S
from murmurate.peer.protocol.rounds import Phase

from .scene import JOIN, NEXT_BEAT, SETTLE, SETTLING, B, C, D, changed, goodbye, told
from .seeds_scene import (
    NEXT_GOSSIP,
    RECORDS,
    batch,
    birth,
    deadline,
    done,
    feed,
    flooded,
    fold,
    fork,
    fresh,
    have,
    kept,
    key,
    linked,
    pace,
    publish,
    retraction,
    rumor,
    started,
    state,
    tell,
    trained,
    training,
    unsigned,
)

TIMEOUT = TimerFired(Timer("deadline", Turn(1)))


# Joining ----------------------------------------------------------------------------------------------


def test_a_new_peer_hears_its_neighbours_then_signs_its_birth_then_trains() -> None:
    peer = started()
    for link in (B, C, D):
        peer.handle(LinkUp(link, 1, Turn(0)), 0.0)
    assert peer.phase is Phase.JOINING
    assert peer.handle(told(B, have(peer)), 0.1) == []
    assert peer.handle(told(C, have(peer)), 0.1) == []
    assert peer.handle(told(D, have(peer)), 0.1) == [Sign(unsigned(birth("me")))]
    assert peer.phase is Phase.SIGNING
    assert peer.handle(Signed(birth("me")), 0.2) == [*flooded((B, C, D), birth("me")), Train(1)]
    assert (peer.phase, peer.round, peer.rounds.complete) == (Phase.TRAINING, 1, 0)


def test_a_joiner_waits_until_it_holds_what_its_neighbours_told_of() -> None:
    peer = started((B,))
    theirs = feed("b", 3)
    assert pace(peer.handle(LinkUp(B, 1, Turn(0)), 0.0)) == [changed(B, "alive")]
    assert pace(peer.handle(told(B, Vector((state("b", 3),))), 0.1)) == []
    assert peer.phase is Phase.JOINING
    assert tell(peer, *theirs[:2]) == []
    effects = tell(peer, theirs[2])
    assert effects == [fold(0, *theirs[1:]), Report(Joined(0, (B,)))]
    assert peer.phase is Phase.FOLDING
    assert peer.handle(Folded(0), 2.0) == [Sign(unsigned(birth("me")))]


def test_a_joiner_gives_up_on_a_neighbour_that_boasts() -> None:
    peer = started((B,))
    peer.handle(LinkUp(B, 1, Turn(0)), 0.0)
    peer.handle(told(B, Vector((state("b", 3),))), 0.1)
    assert peer.handle(TimerFired(JOIN), 10.0) == [Sign(unsigned(birth("me")))]


def test_in_a_running_swarm_a_joiner_waits_only_a_moment_for_the_other_neighbours() -> None:
    peer = started(held=[birth("me"), birth("b")])
    peer.handle(LinkUp(B, 1, Turn(0)), 0.0)
    assert peer.handle(told(B, have(peer)), 0.1) == [SETTLING]
    assert peer.handle(told(B, have(peer)), 0.2) == []
    assert peer.handle(TimerFired(SETTLE), 1.1) == [Train(1)]


def test_who_has_settled_too_early_waits_again() -> None:
    peer = started(held=[birth("me"), birth("b")])
    peer.handle(LinkUp(B, 1, Turn(0)), 0.0)
    peer.handle(told(B, have(peer)), 0.1)
    peer.handle(LinkDown(B), 0.2)
    assert peer.handle(TimerFired(SETTLE), 1.1) == []
    peer.handle(LinkUp(B, 1, Turn(0)), 2.0)
    assert peer.handle(told(B, have(peer)), 2.1) == [SETTLING]


def test_a_restart_goes_on_from_its_log() -> None:
    held = [*feed("me", 3), *feed("b", 2)]
    peer = linked(held=held)
    assert (peer.phase, peer.round, peer.rounds.complete) == (Phase.TRAINING, 3, 2)
    assert peer.handle(trained(3), 1.0) == [Sign(unsigned(batch("me", 3)))]


def test_what_happens_while_the_log_is_folded_is_not_lost() -> None:
    peer = fresh((B,))
    peer.handle(Restored(tuple(feed("me", 2)), ()), 0.0)
    assert peer.handle(Started(1), 0.0)[-1] == fold(1, batch("me", 1))
    peer.handle(LinkUp(B, 1, Turn(0)), 0.1)
    peer.handle(told(B, have(peer)), 0.2)
    assert peer.phase is Phase.FOLDING
    assert peer.handle(Folded(1), 5.0) == [Train(2)]


def test_a_peer_whose_log_was_rolled_back_continues_its_feed_instead_of_forking_it() -> None:
    peer = started((B,), held=feed("me", 2))
    peer.handle(LinkUp(B, 1, Turn(0)), 0.0)
    peer.handle(told(B, Vector((state("me", 4),))), 0.1)
    effects = tell(peer, *feed("me", 4)[2:])
    assert effects == [fold(1, *feed("me", 4)[2:]), Report(Joined(3, (B,)))]
    assert peer.handle(Folded(1), 1.0) == [Train(4)]
    assert peer.handle(trained(4), 2.0) == [Sign(unsigned(batch("me", 4)))]


def test_a_second_batch_of_one_number_in_our_own_log_convicts_nobody() -> None:
    peer = fresh(())
    peer.handle(Restored((*feed("me", 2), batch("me", 1, codes="twin")), ()), 0.0)
    assert peer.feeds is not None
    assert [one.closed for one in peer.feeds] == [None]


def test_a_log_keeps_its_rulings() -> None:
    peer = fresh(())
    peer.handle(Restored(tuple(feed("b", 4)), (fork("b", 2),)), 0.0)
    assert peer.handle(Started(0), 0.0)[2:] == [fold(0, batch("b", 1), closed=((key("b"), RECORDS),))]


def test_a_peer_without_neighbours_trains_alone() -> None:
    peer = fresh(())
    assert peer.handle(Restored((), ()), 0.0) == []
    assert peer.handle(Started(0), 0.0) == [NEXT_BEAT, NEXT_GOSSIP, Sign(unsigned(birth("me")))]
    assert peer.handle(Signed(birth("me")), 0.0) == [Train(1)]
    assert publish(peer, 1, 1.0) == [fold(1, batch("me", 1))]
    assert peer.handle(Folded(1), 1.1) == [done(1), Train(2)]


# The round --------------------------------------------------------------------------------------------


def test_private_directions_wait_for_nobody() -> None:
    peer = training(others="bcd")
    tell(peer, batch("b", 1))
    effects = publish(peer, 1, 2.0)
    assert effects == [*flooded((B, C, D), batch("me", 1)), fold(1, batch("b", 1), batch("me", 1))]
    assert peer.phase is Phase.FOLDING
    assert tell(peer, batch("b", 2)) == []
    assert peer.handle(Folded(1), 3.0) == [done(1, folded="b"), Train(2)]
    assert publish(peer, 2, 4.0)[-1] == fold(2, batch("b", 2), batch("me", 2))


def test_shared_directions_wait_for_the_votes_of_all_that_are_active() -> None:
    peer = training(others="bc", shared=True)
    assert publish(peer, 1, 2.0)[-1] == deadline(1)
    assert peer.phase is Phase.WAITING
    assert tell(peer, batch("b", 1)) == []
    effects = pace(peer.handle(rumor(C, batch("c", 1)), 5.0))
    assert effects == [kept(batch("c", 1)), fold(1, batch("me", 1), batch("b", 1), batch("c", 1))]
    assert peer.handle(Folded(1), 6.0) == [done(1, 3.0, "bc"), Train(2)]


def test_who_missed_a_deadline_is_not_awaited_before_it_was_in_time_for_another() -> None:
    peer = training(others="bc", shared=True)
    publish(peer, 1, 2.0)
    tell(peer, batch("b", 1))
    assert peer.handle(TIMEOUT, 32.0) == [fold(1, batch("me", 1), batch("b", 1))]
    assert peer.handle(Folded(1), 32.0) == [done(1, 30.0, "b", "c"), Train(2)]
    tell(peer, batch("b", 2))
    assert publish(peer, 2, 33.0)[-1] == fold(2, batch("b", 2), batch("me", 2))
    assert peer.handle(Folded(2), 33.0) == [done(2, folded="b"), Train(3)]
    late = [batch("c", 1), batch("c", 2)]  # votes of rounds that are over count as well
    tell(peer, batch("b", 3), *late, now=33.5)
    assert publish(peer, 3, 34.0)[-1] == deadline(3)
    assert tell(peer, batch("c", 3)) == [fold(3, batch("b", 3), *late, batch("c", 3), batch("me", 3))]


def test_nobody_waits_for_who_is_far_behind_or_void_or_known_to_be_gone() -> None:
    peer = linked(held=[*feed("me", 4), *feed("b", 3), *feed("c", 4), *feed("d", 4), *feed("far", 4)], shared=True)
    assert peer.round == 4
    tell(peer, retraction("far", 0))
    peer.handle(goodbye(D), 1.0)
    assert publish(peer, 4, 2.0)[-1] == deadline(4)
    assert tell(peer, batch("c", 4))[-1] == fold(4, batch("me", 4), batch("c", 4), closed=((key("far"), 0),))


def test_our_own_earlier_life_is_not_awaited() -> None:
    peer = linked(held=[birth("me"), birth("me", 2)], shared=True)
    assert publish(peer, 1, 1.0)[-1] == fold(1, batch("me", 1))


def test_a_neighbour_that_dies_ends_the_wait() -> None:
    peer = training(others="b", shared=True)
    publish(peer, 1, 2.0)
    assert pace(peer.handle(goodbye(B), 3.0)) == [changed(B, "left"), fold(1, batch("me", 1))]


def test_the_deadline_of_an_earlier_round_means_nothing() -> None:
    peer = training(others="b", shared=True)
    publish(peer, 1, 2.0)
    tell(peer, batch("b", 1))
    peer.handle(Folded(1), 3.0)
    publish(peer, 2, 4.0)
    assert peer.handle(TIMEOUT, 32.0) == []
    assert peer.phase is Phase.WAITING


@pytest.mark.parametrize(("f", "round"), [(0, 5), (1, 5), (2, 2), (3, 2)])
def test_with_shared_directions_the_next_round_is_that_of_half_of_all_and_of_more_than_f(f: int, round: int) -> None:
    peer = training(others="bcd", shared=True, f=f)
    tell(peer, batch("b", 1, 9), batch("c", 1, 5), batch("d", 1, 1))
    assert publish(peer, 1, 1.0)[-1] == fold(1, batch("b", 1, 9), batch("c", 1, 5), batch("d", 1, 1), batch("me", 1))
    skipped = [Report(Skipped(2, round))] if round > 2 else []
    assert peer.handle(Folded(1), 1.0)[1:] == [Train(round), *skipped]
    assert publish(peer, 2, 2.0, round=round)


@pytest.mark.parametrize(("others", "round"), [("b", 9), ("bc", 2), ("bcd", 2)])
def test_of_three_names_or_more_one_that_is_far_ahead_drags_nobody(others: str, round: int) -> None:
    peer = training(others=others, shared=True)
    tell(peer, batch("b", 1, 9), *(batch(name, 1) for name in others[1:]))
    publish(peer, 1, 1.0)
    assert Train(round) in peer.handle(Folded(1), 1.0)


def test_who_is_always_just_late_is_awaited_once() -> None:
    peer = training(others="b", shared=True)
    assert publish(peer, 1, 2.0)[-1] == deadline(1)
    assert peer.handle(TIMEOUT, 32.0) == [fold(1, batch("me", 1))]
    tell(peer, batch("b", 1), now=32.1)
    peer.handle(Folded(1), 32.2)
    assert publish(peer, 2, 33.0)[-1] == fold(2, batch("b", 1), batch("me", 2))
    peer.handle(Folded(2), 33.0)
    tell(peer, batch("b", 2), now=62.9)  # in time, had we waited
    assert publish(peer, 3, 63.0)[-1] == deadline(3)


def test_what_is_told_while_our_birth_is_signed_is_folded_before_we_train() -> None:
    peer = linked()
    tell(peer, *feed("me", 4))  # a log that was lost
    assert peer.handle(Signed(birth("me")), 1.0) == [fold(0, *feed("me", 4)[1:])]
    assert peer.handle(Folded(0), 1.0) == [Train(4)]


def test_our_own_batches_that_come_during_a_fold_are_folded_before_we_train() -> None:
    peer = training(others="b")
    publish(peer, 1, 1.0)
    tell(peer, batch("me", 2), batch("b", 1))
    assert peer.handle(Folded(1), 1.1) == [done(1), fold(1, batch("me", 2), batch("b", 1))]
    assert peer.handle(Folded(1), 1.2) == [Train(3)]


def test_many_lives_of_one_peer_drag_nobody() -> None:
    peer = training(others="b", shared=True, f=1)
    tell(peer, *(item for life in (2, 3, 4) for item in (birth("b", life), batch("b", 1, 50, life=life))))
    publish(peer, 1, 1.0)
    peer.handle(TIMEOUT, 32.0)
    assert peer.handle(Folded(1), 33.0)[-1] == Train(2)


def test_with_private_directions_rounds_are_our_own() -> None:
    peer = training(others="b")
    tell(peer, batch("b", 1, 9))
    publish(peer, 1, 1.0)
    assert peer.handle(Folded(1), 1.0)[-1] == Train(2)


def test_an_interrupted_round_publishes_nothing_and_is_trained_again() -> None:
    peer = training(others="b")
    assert peer.handle(trained(1, complete=False), 1.0) == [Train(1)]
    tell(peer, batch("b", 1))
    assert peer.handle(trained(1, complete=False), 2.0) == [fold(1, batch("b", 1))]
    assert peer.handle(Folded(1), 2.0) == [Train(1)]
    assert peer.rounds.complete == 0


def test_a_round_that_others_know_of_is_not_published_again() -> None:
    peer = training()
    tell(peer, batch("me", 1, codes="old!"))
    assert peer.handle(trained(1), 2.0) == [fold(1, batch("me", 1, codes="old!"))]
    assert peer.handle(Folded(1), 2.0) == [Train(2)]
    assert peer.handle(trained(2), 3.0) == [Sign(unsigned(batch("me", 2)))]


def test_a_fold_tells_whose_lives_its_feeds_are() -> None:
    peer = training(others="b")
    tell(peer, batch("b", 1), birth("b", 2), batch("b", 1, life=2), birth("c"))
    (told_to_fold,) = [effect for effect in publish(peer, 1, 2.0) if isinstance(effect, Fold)]
    assert dict(told_to_fold.names) == {key("b"): B, key("b", 2): B, key("me"): "me"}


def test_what_is_void_is_told_to_the_weights_once() -> None:
    peer = training(others="b")
    tell(peer, batch("b", 1))
    publish(peer, 1, 1.0)
    tell(peer, retraction("b", 1))
    peer.handle(Folded(1), 1.5)
    assert publish(peer, 2, 2.0)[-1] == fold(2, batch("me", 2), closed=((key("b"), 1),))
    peer.handle(Folded(2), 2.5)
    assert publish(peer, 3, 3.0)[-1] == fold(3, batch("me", 3))


def test_weights_are_audited_now_and_then() -> None:
    peer = training()
    publish(peer, 1, 1.0)
    assert peer.handle(Folded(1), AUDIT_S - 1)[-1] == Train(2)
    publish(peer, 2, AUDIT_S)
    assert peer.feeds is not None
    assert peer.handle(Folded(2), AUDIT_S) == [done(2), Audit(peer.feeds.digest)]
    assert peer.handle(Audited(peer.feeds.digest, b"w" * 32), AUDIT_S) == [Train(3)]
    assert peer.feeds.weights == b"w" * 32


def test_rounds_of_others_are_known_from_their_feeds() -> None:
    peer = training(others="b")
    tell(peer, batch("b", 1, 7), birth("b", 2))
    assert (peer.rounds.round_of(B), peer.rounds.round_of(C)) == (7, 0)
