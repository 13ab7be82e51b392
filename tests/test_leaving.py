"""Snapshots, and leaving in every phase of a round."""

from __future__ import annotations

import pytest

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import (
    Interrupt,
    LeaveRequested,
    LinkDown,
    Report,
    Save,
    Skipped,
    Started,
    TimerFired,
    Train,
)
from murmurate.peer.protocol.rounds import Phase

from .scene import (
    BEAT,
    NEXT_BEAT,
    B,
    C,
    D,
    all_speak,
    alone,
    announced,
    beat,
    begun,
    done,
    farewell,
    fresh,
    goodbye,
    mixed,
    ours,
    too_late,
    trained,
    up,
    update,
    waiting,
)

# Snapshots -------------------------------------------------------------------------------------------


def test_a_snapshot_every_save_s_after_a_round_and_before_the_next() -> None:
    peer = fresh((), save_s=10)
    peer.handle(Started(0), 100.0)
    assert alone(peer, 1, 109.9) == [done(1, 0.0), Train(2)]
    assert alone(peer, 2, 110.0) == [done(2, 0.0), Save(), Train(3)]
    assert alone(peer, 3, 119.9) == [done(3, 0.0), Train(4)]
    assert alone(peer, 4, 125.0) == [done(4, 0.0), Save(), Train(5)]
    assert alone(peer, 5, 134.0) == [done(5, 0.0), Train(6)]  # counted from the last one


def test_save_s_zero_takes_one_after_every_round() -> None:
    peer = begun((B,), save_s=0)
    peer.handle(beat(B, 6), 0.0)
    assert alone(peer, 1, 0.0) == [
        done(1, 0.0, "", "b"),
        Save(),
        Train(6),
        Report(Skipped(2, 6)),
        *announced(6, B),
    ]


# Leaving ---------------------------------------------------------------------------------------------


def assert_gone(peer: Peer) -> None:
    """Nothing follows, whatever happens."""
    assert peer.phase is Phase.LEFT
    word = (update(B, 9), beat(B, 9), goodbye(B), up(C, 9, incarnation=5), LinkDown(B))
    for event in (*word, trained(1), mixed(1), too_late(1), TimerFired(BEAT), LeaveRequested()):
        assert peer.handle(event, 50.0) == []


@pytest.mark.parametrize("complete", [True, False])
def test_leaving_while_training_interrupts_it_and_sends_only_what_is_complete(complete: bool) -> None:
    peer = begun((B, C))
    assert peer.handle(LeaveRequested(), 1.0) == [Interrupt()]
    assert peer.handle(update(B, 1), 1.0) == []
    sent = [ours(B, 1), ours(C, 1)] if complete else []
    assert peer.handle(trained(1, complete), 1.5) == [*sent, *farewell(B, C)]
    assert_gone(peer)


def test_leaving_while_waiting_is_at_once() -> None:
    peer = waiting((B, C))
    assert peer.handle(LeaveRequested(), 11.0) == farewell(B, C)
    assert_gone(peer)


def test_leaving_while_mixing_completes_the_round_first() -> None:
    peer = waiting((B, C))
    all_speak(peer, 1, 11.0, (B, C))
    assert peer.handle(LeaveRequested(), 11.5) == []
    assert peer.handle(mixed(1), 12.0) == [done(1, 1.0, "bc"), *farewell(B, C)]
    assert_gone(peer)


def test_leaving_between_two_hops_sends_the_mixed_model_and_goes() -> None:
    peer = waiting((B,), gossip_steps=2)
    all_speak(peer, 1, 11.0, (B,))
    assert peer.handle(LeaveRequested(), 11.5) == []
    assert peer.handle(mixed(1), 12.0) == [ours(B, 1, 1), *farewell(B)]
    assert_gone(peer)


def test_a_goodbye_is_said_to_the_living() -> None:
    peer = waiting()
    peer.handle(LinkDown(B), 11.0)
    peer.handle(goodbye(C), 11.0)
    assert peer.handle(LeaveRequested(), 11.0) == farewell(D)


def test_the_last_round_ends_in_leaving() -> None:
    peer = waiting((B,), round=3, rounds_max=3)
    peer.handle(update(B, 3), 11.0)
    assert peer.handle(mixed(3), 12.0) == [done(3, 1.0, "b"), *farewell(B)]
    assert_gone(peer)


def test_a_snapshot_of_the_last_round_leaves_at_once() -> None:
    peer = fresh((B,), rounds_max=3)
    assert peer.handle(Started(3), 0.0) == [NEXT_BEAT, *farewell()]
    assert_gone(peer)
