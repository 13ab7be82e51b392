"""Late, early, duplicate, reordered, outdated and foreign envelopes: what becomes of each, and what is mixed then."""

from __future__ import annotations

from murmurate.peer.protocol.events import (
    Goodbye,
    Heartbeat,
    LinkDown,
    Mix,
    PeerState,
    Save,
    Train,
    Turn,
    Update,
    Verdict,
)
from murmurate.peer.protocol.neighbourhood import Edges

from .scene import B, C, D, Z, all_speak, begun, done, dropped, mix, mixed, told, too_late, trained, up, update, waiting


def test_a_duplicate_is_dropped_and_folded_once() -> None:
    peer = waiting()
    peer.handle(update(B, 1), 11.0)
    assert peer.handle(update(B, 1), 11.5) == [dropped(B, Verdict.DUPLICATE)]
    peer.handle(update(C, 1), 12.0)
    assert peer.handle(update(D, 1), 12.0) == [mix(1, b=1, c=1, d=1)]
    assert peer.handle(update(B, 1), 12.0) == [dropped(B, Verdict.LATE)]  # folded already
    peer.handle(mixed(1), 13.0)
    peer.handle(trained(2), 20.0)
    assert peer.handle(too_late(2), 50.0) == [Mix(Turn(2), {}, {})]


def test_an_early_update_waits_for_its_turn() -> None:
    peer = waiting()
    assert peer.handle(update(B, 2), 11.0) == []
    peer.handle(update(C, 1), 11.0)
    assert peer.handle(update(D, 1), 11.0) == [mix(1, c=1, d=1)]  # B is ahead of us: not awaited, and not folded yet
    assert peer.handle(mixed(1), 11.0) == [done(1, 1.0, "cd"), Train(2)]
    peer.handle(trained(2), 20.0)
    peer.handle(update(C, 2), 21.0)
    assert peer.handle(update(D, 2), 21.0) == [mix(2, b=2, c=2, d=2)]


def test_a_reordered_pair_is_folded_each_in_its_own_turn() -> None:
    peer = begun()
    peer.handle(update(B, 2), 1.0)
    peer.handle(update(B, 1), 2.0)
    peer.handle(trained(1), 10.0)
    peer.handle(update(C, 1), 11.0)
    assert peer.handle(update(D, 1), 11.0) == [mix(1, b=1, c=1, d=1)]
    peer.handle(mixed(1), 11.0)
    peer.handle(trained(2), 20.0)
    peer.handle(update(C, 2), 21.0)
    assert peer.handle(update(D, 2), 21.0) == [mix(2, b=2, c=2, d=2)]


def test_an_older_update_after_a_newer_was_folded_is_late() -> None:
    peer = waiting(round=3)
    all_speak(peer, 3, 11.0)
    peer.handle(mixed(3), 11.0)
    assert peer.handle(update(B, 2), 12.0) == [dropped(B, Verdict.LATE)]


def test_a_slow_neighbours_update_is_folded_one_round_later() -> None:
    peer = waiting()
    peer.handle(update(C, 1), 11.0)
    peer.handle(update(D, 1), 11.0)
    assert peer.handle(too_late(1), 40.0) == [mix(1, c=1, d=1)]
    assert peer.handle(mixed(1), 40.0) == [done(1, 30.0, "cd", "b"), Save(), Train(2)]
    assert peer.handle(update(B, 1), 41.0) == []
    peer.handle(trained(2), 50.0)
    all_speak(peer, 2, 51.0, (C, D))
    assert peer.handle(too_late(2), 80.0) == [mix(2, b=1, c=2, d=2)]
    assert peer.handle(mixed(2), 80.0)[0] == done(2, 30.0, "bcd")


def test_an_update_is_useful_for_stale_max_rounds_and_late_beyond() -> None:
    peer = begun(round=9, stale_max=3)
    assert peer.handle(update(B, 5), 1.0) == [dropped(B, Verdict.LATE)]
    assert peer.handle(update(B, 6), 1.0) == []
    peer.handle(update(C, 9), 1.0)
    peer.handle(update(D, 9), 1.0)
    peer.handle(trained(9), 2.0)
    assert peer.handle(too_late(9), 32.0) == [mix(9, b=6, c=9, d=9)]


def test_what_became_stale_while_it_lay_here_is_not_folded() -> None:
    peer = begun(round=9, rounds={9: Edges((), {})}, stale_max=0)
    peer.handle(update(B, 9), 1.0)  # kept, but round 9 does not hear B
    peer.handle(trained(9), 2.0)
    peer.handle(mixed(9), 3.0)
    peer.handle(trained(10), 4.0)
    peer.handle(update(C, 10), 5.0)
    peer.handle(update(D, 10), 5.0)
    assert peer.handle(too_late(10), 35.0) == [mix(10, c=10, d=10)]


def test_a_foreign_envelope_is_dropped_whatever_it_says() -> None:
    peer = waiting((B,))
    for body in (Update(Turn(1), b"x"), Heartbeat(Turn(99)), Goodbye()):
        assert peer.handle(told(Z, body), 11.0) == [dropped(Z, Verdict.FOREIGN)]
    assert peer.handle(up(Z, 99), 11.0) == []
    assert peer.handle(LinkDown(Z), 11.0) == []
    assert peer.handle(update(B, 1), 12.0) == [mix(1, b=1)]


def test_an_outdated_envelope_is_dropped_whatever_it_says() -> None:
    peer = waiting((B,))
    peer.handle(up(B, 0, incarnation=2), 11.0)
    for body in (Update(Turn(1), b"x"), Heartbeat(Turn(99)), Goodbye()):
        assert peer.handle(told(B, body, incarnation=1), 12.0) == [dropped(B, Verdict.OUTDATED)]
    assert peer.state(B) is PeerState.ALIVE
    assert peer.handle(update(B, 1, incarnation=2), 12.0) == [mix(1, b=1)]


def test_a_reborn_neighbours_unfolded_updates_are_forgotten_and_its_new_ones_are_welcome() -> None:
    peer = begun((B, C))
    peer.handle(update(B, 1), 1.0)
    assert peer.handle(up(B, 0, incarnation=2), 2.0) == []
    peer.handle(trained(1), 10.0)
    assert peer.handle(update(C, 1), 11.0) == []  # B is awaited again: what it said belongs to another life
    assert peer.handle(update(B, 1, incarnation=2), 12.0) == [mix(1, b=1, c=1)]
