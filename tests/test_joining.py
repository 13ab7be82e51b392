"""How a peer enters a swarm: fresh or with a snapshot, early or late, with absent neighbours or among liars."""

from __future__ import annotations

import pytest

from murmurate.peer.protocol.events import (
    Adopt,
    Dropped,
    Joined,
    LeaveRequested,
    LinkDown,
    Mix,
    PeerId,
    Report,
    Save,
    Skipped,
    Started,
    Timer,
    TimerFired,
    Train,
    Turn,
    Verdict,
)
from murmurate.peer.protocol.rounds import SETTLES_MAX, Pacing, Phase

from .scene import (
    BEAT,
    JOIN,
    NEXT_BEAT,
    PATIENCE,
    SETTLE,
    SETTLING,
    B,
    C,
    D,
    announced,
    beat,
    changed,
    deadline,
    farewell,
    fresh,
    goodbye,
    inbox,
    mix,
    mixed,
    ours,
    started,
    trained,
    up,
    update,
)


def joined(round: int, sources: str) -> Report:
    return Report(Joined(round, tuple(map(PeerId, sources))))


# The first rounds of a swarm -----------------------------------------------------------------------------


def test_a_start_waits_for_all_neighbours_then_trains() -> None:
    peer = fresh()
    assert peer.phase is Phase.JOINING
    assert peer.handle(Started(0), 0.0) == [NEXT_BEAT, PATIENCE]
    assert peer.handle(up(B), 1.0) == [changed(B, "alive")]
    assert peer.handle(up(D), 2.0) == [changed(D, "alive")]
    assert peer.handle(up(C), 3.0) == [changed(C, "alive"), Train(1)]
    assert peer.handle(TimerFired(JOIN), 10.0) == []


def test_a_neighbour_that_is_one_round_ahead_is_no_reason_to_join_anything() -> None:
    peer = started((B, C))
    peer.handle(up(B, 1), 1.0)
    assert peer.handle(update(B, 1), 1.0) == []
    assert peer.handle(up(C), 2.0) == [changed(C, "alive"), Train(1)]
    assert peer.handle(trained(1), 3.0) == [ours(B, 1), ours(C, 1), deadline(1)]
    assert peer.handle(update(C, 1), 4.0) == [mix(1, b=1, c=1)]  # what B said before is not lost


def test_for_an_absent_neighbour_the_start_waits_join_s() -> None:
    peer = started((B, C))
    peer.handle(up(B), 1.0)
    assert peer.handle(beat(B, 0), 9.0) == []
    assert peer.handle(TimerFired(JOIN), 10.0) == [Train(1)]
    assert peer.handle(trained(1), 11.0) == [ours(B, 1), deadline(1)]


def test_when_nobody_comes_a_peer_trains_alone() -> None:
    peer = started((B, C))
    assert peer.handle(TimerFired(BEAT), 9.5) == [NEXT_BEAT]
    assert peer.handle(TimerFired(JOIN), 10.0) == [Train(1)]
    assert peer.handle(trained(1), 11.0) == [Mix(Turn(1), {}, {})]


def test_who_came_and_went_again_is_absent() -> None:
    peer = started((B, C))
    peer.handle(up(B), 1.0)
    assert peer.handle(LinkDown(B), 2.0) == [changed(B, "suspect")]
    assert peer.handle(up(C), 3.0) == [changed(C, "alive")]
    assert peer.handle(beat(B, 0), 4.0) == [changed(B, "alive"), Train(1)]


def test_a_snapshot_goes_on_where_it_ended() -> None:
    peer = started((B, C), round=7)
    assert peer.round == 7
    peer.handle(up(B, 8), 1.0)  # one ahead of us, that is in the round we begin
    assert peer.handle(up(C, 7), 2.0) == [changed(C, "alive"), Train(8)]


# Late ----------------------------------------------------------------------------------------------------


def test_a_late_joiner_adopts_when_all_are_linked_and_all_models_are_here() -> None:
    peer = started((B, C))
    assert peer.handle(up(B, 20), 1.0) == [changed(B, "alive"), SETTLING]
    assert peer.handle(update(B, 19), 1.1) == []
    assert peer.handle(up(C, 21), 1.2) == [changed(C, "alive")]
    assert peer.handle(update(C, 20), 1.3) == [Adopt(Turn(20), inbox(b=19, c=20))]
    assert (peer.phase, peer.round) == (Phase.ADOPTING, 20)
    assert peer.handle(mixed(20), 2.0) == [joined(20, "bc"), Train(21)]
    assert peer.handle(TimerFired(SETTLE), 2.0) == []
    assert peer.handle(TimerFired(JOIN), 10.0) == []
    assert peer.handle(trained(21), 11.0) == [ours(B, 21), ours(C, 21), deadline(21)]
    assert peer.handle(update(C, 20), 12.0) == [Report(Dropped(C, Verdict.LATE))]  # adopted from: folded
    assert peer.handle(update(B, 20), 12.0) == []
    peer.handle(update(C, 21), 13.0)
    assert peer.handle(update(B, 21), 13.0) == [mix(21, b=21, c=21)]


def test_a_late_joiner_gives_the_others_settle_s_to_link_as_well() -> None:
    peer = started()
    assert peer.handle(up(B, 20), 1.0) == [changed(B, "alive"), SETTLING]
    assert peer.handle(update(B, 20), 1.0) == []
    assert peer.handle(up(C, 20), 1.5) == [changed(C, "alive")]
    assert peer.handle(update(C, 20), 1.5) == []
    assert peer.handle(TimerFired(SETTLE), 2.0) == [Adopt(Turn(20), inbox(b=20, c=20))]
    assert peer.handle(up(D, 21), 2.1) == [changed(D, "alive")]
    assert peer.handle(update(D, 21), 2.1) == []
    assert peer.handle(mixed(20), 3.0) == [joined(20, "bc"), Train(21)]


def test_the_join_timer_ends_the_patience_as_well() -> None:
    peer = started()
    peer.handle(up(B, 20), 9.5)
    peer.handle(update(B, 20), 9.5)
    assert peer.handle(TimerFired(JOIN), 10.0) == [Adopt(Turn(20), inbox(b=20))]
    assert peer.handle(TimerFired(SETTLE), 10.5) == []


@pytest.mark.parametrize("timer", [SETTLE, JOIN])
def test_models_that_are_still_on_the_way_are_waited_for(timer: Timer) -> None:
    peer = started((B, C))
    assert peer.handle(up(B, 20), 1.0) == [changed(B, "alive"), SETTLING]
    assert peer.handle(up(C, 20), 1.0) == [changed(C, "alive")]
    assert peer.handle(TimerFired(timer), 2.0) == [SETTLING]
    assert peer.handle(TimerFired(SETTLE), 3.0) == [SETTLING]
    assert peer.handle(update(B, 20), 3.5) == []
    assert peer.handle(TimerFired(SETTLE), 4.0) == [Adopt(Turn(20), inbox(b=20))]


def test_a_late_joiner_with_a_snapshot_mixes_theirs_into_its_own() -> None:
    peer = started((B, C, D), round=10)
    peer.handle(up(B, 20), 1.0)
    peer.handle(up(C, 21), 1.0)
    peer.handle(up(D, 11), 1.0)  # not ahead: nothing to take from it
    peer.handle(update(D, 11), 1.0)
    peer.handle(update(B, 20), 1.0)
    taken = peer.handle(update(C, 21), 1.0)
    assert taken == [Mix(Turn(21), inbox(b=20, c=21), {B: 1 / 3, C: 1 / 3})]
    assert peer.handle(mixed(21), 2.0) == [joined(21, "bc"), Train(22)]


def test_two_rounds_beyond_a_snapshot_is_ahead_and_one_is_not() -> None:
    peer = started((B,), round=10)
    assert peer.handle(up(B, 12), 1.0) == [changed(B, "alive"), SETTLING]
    peer = started((B,), round=10)
    assert peer.handle(up(B, 11), 1.0) == [changed(B, "alive"), Train(11)]


def test_a_joiner_skips_to_the_round_its_neighbours_have_begun() -> None:
    peer = started((B, C), save_s=0)
    peer.handle(up(B, 24), 1.0)
    peer.handle(up(C, 24), 1.0)
    peer.handle(update(B, 20), 1.0)
    assert peer.handle(update(C, 20), 1.0) == [Adopt(Turn(20), inbox(b=20, c=20))]
    assert peer.handle(mixed(20), 2.0) == [
        joined(20, "bc"),
        Save(),
        Train(24),
        Report(Skipped(21, 24)),
        *announced(24, B, C),
    ]


def test_joining_takes_the_newest_of_several_updates() -> None:
    peer = started((B, C))
    peer.handle(up(B, 20), 1.0)
    for round in (18, 20, 19):
        peer.handle(update(B, round), 1.0)
    assert peer.handle(TimerFired(SETTLE), 2.0) == [Adopt(Turn(20), inbox(b=20))]


def test_joining_a_swarm_of_several_hops_counts_as_their_last_hop() -> None:
    peer = started((B,), gossip_steps=3)
    peer.handle(up(B, 20), 1.0)
    assert peer.handle(update(B, 20, 1), 1.0) == [Adopt(Turn(20, 2), inbox(b=(20, 1)))]
    assert peer.handle(mixed(20, 2), 2.0) == [joined(20, "b"), Train(21)]


def test_malformed_models_are_not_sources() -> None:
    peer = started((B, C))
    peer.handle(up(B, 20), 1.0)
    peer.handle(up(C, 20), 1.0)
    peer.handle(update(B, 20), 1.0)
    peer.handle(update(C, 20), 1.0)
    malformed = Report(Dropped(B, Verdict.MALFORMED))
    assert peer.handle(mixed(20, 0, B), 2.0) == [malformed, joined(20, "c"), Train(21)]


def test_who_joins_a_swarm_that_is_over_leaves_with_its_model() -> None:
    peer = started((B,), rounds_max=20)
    peer.handle(up(B, 20), 1.0)
    peer.handle(update(B, 20), 1.0)
    assert peer.handle(mixed(20), 2.0) == [joined(20, "b"), *farewell(B)]


def test_a_reborn_source_is_not_taken_from_before_it_has_spoken_again() -> None:
    peer = started((B, C))
    peer.handle(up(B, 20), 1.0)
    peer.handle(update(B, 20), 1.0)
    peer.handle(up(B, 0, incarnation=2), 1.5)
    assert peer.handle(TimerFired(SETTLE), 2.0) == []
    assert peer.handle(up(C), 3.0) == [changed(C, "alive"), Train(1)]


def test_those_ahead_may_go_again_and_others_come() -> None:
    peer = started((B, C))
    assert peer.handle(up(B, 20), 1.0) == [changed(B, "alive"), SETTLING]
    peer.handle(LinkDown(B), 1.5)
    assert peer.handle(TimerFired(SETTLE), 2.0) == []
    assert peer.handle(up(C, 20), 3.0) == [changed(C, "alive"), SETTLING]  # a settling of its own
    peer.handle(LinkDown(C), 3.5)
    assert peer.handle(TimerFired(SETTLE), 4.0) == []
    assert peer.handle(TimerFired(JOIN), 10.0) == [Train(1)]


def test_those_ahead_may_go_after_the_join_timer_and_nobody_is_waited_for_any_more() -> None:
    peer = started((B, C))
    peer.handle(up(B, 20), 9.5)
    assert peer.handle(TimerFired(JOIN), 10.0) == [SETTLING]  # B's model is on the way
    assert peer.handle(goodbye(B), 10.2) == [changed(B, "left")]
    assert peer.handle(TimerFired(SETTLE), 11.0) == [Train(1)]


def test_a_snapshot_never_goes_back() -> None:
    peer = started((B,), round=58)
    peer.handle(up(B, 60), 1.0)  # it has just skipped from 50 to 60
    assert peer.handle(update(B, 50), 1.0) == [Mix(Turn(58), inbox(b=50), {B: 1 / 2})]
    assert peer.handle(mixed(58), 2.0)[:2] == [joined(58, "b"), Train(60)]


# Liars -----------------------------------------------------------------------------------------------------


def test_liars_alone_cannot_make_a_joiner_adopt() -> None:
    peer = started(f=2)
    for liar in (B, C):
        peer.handle(up(liar, 10**9), 1.0)
        assert peer.handle(update(liar, 10**9), 1.0) == []
    assert peer.handle(up(D, 0), 2.0) == [changed(D, "alive"), Train(1)]


def test_liars_alone_cannot_make_a_joiner_wait_beyond_join_s() -> None:
    peer = started(f=2)
    for liar in (B, C):
        peer.handle(up(liar, 10**9), 1.0)
    assert peer.handle(TimerFired(JOIN), 10.0) == [Train(1)]


@pytest.mark.parametrize(("f", "round"), [(0, 90), (1, 40), (2, 20)])
def test_the_round_joined_is_that_of_the_most_advanced_that_is_no_liar(f: int, round: int) -> None:
    peer = started(f=f)
    rounds = {B: 20, C: 90, D: 40}
    for neighbour in rounds:
        peer.handle(up(neighbour, rounds[neighbour]), 1.0)
    for neighbour in (B, C):
        assert peer.handle(update(neighbour, rounds[neighbour]), 1.0) == []
    recent = {peer: at for peer, at in rounds.items() if at >= round - Pacing().stale_max}
    assert peer.handle(update(D, 40), 1.0) == [Adopt(Turn(round), inbox(**recent))]


def test_as_many_models_as_liars_are_not_enough() -> None:
    peer = started(f=1)
    peer.handle(up(B, 20), 1.0)
    peer.handle(up(C, 20), 1.0)
    peer.handle(update(C, 10**9), 1.0)  # the liar is quick
    assert peer.handle(TimerFired(SETTLE), 2.0) == [SETTLING]
    assert peer.handle(update(B, 20), 2.5) == []
    assert peer.handle(TimerFired(SETTLE), 3.0) == [Adopt(Turn(20), inbox(b=20, c=10**9))]


def test_liars_that_send_nothing_cannot_keep_a_joiner_out_for_ever() -> None:
    peer = started((B, C), round=4, f=1)
    peer.handle(up(B, 20), 1.0)
    peer.handle(update(B, 20), 1.0)
    peer.handle(up(C, 20), 1.0)  # and never a model: one alone is not more than f
    assert peer.handle(TimerFired(JOIN), 10.0) == [SETTLING]
    for _ in range(SETTLES_MAX - 1):
        assert peer.handle(TimerFired(SETTLE), 11.0) == [SETTLING]
    assert peer.handle(TimerFired(SETTLE), 12.0) == [Train(5)]


# Leaving before it has begun -----------------------------------------------------------------------------


def test_leaving_while_joining_is_at_once() -> None:
    peer = started((B, C))
    peer.handle(up(B), 1.0)
    assert peer.handle(LeaveRequested(), 2.0) == farewell(B)
    assert peer.phase is Phase.LEFT
    assert peer.handle(TimerFired(JOIN), 10.0) == []


def test_leaving_while_adopting_keeps_what_was_adopted() -> None:
    peer = started((B,))
    peer.handle(up(B, 20), 1.0)
    peer.handle(update(B, 20), 1.0)
    assert peer.phase is Phase.ADOPTING
    assert peer.handle(LeaveRequested(), 2.0) == []
    assert peer.handle(mixed(20), 3.0) == [joined(20, "b"), *farewell(B)]
