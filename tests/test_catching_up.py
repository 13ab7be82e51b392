"""A peer that finds its neighbours ahead joins their round; liars cannot drag it."""

from __future__ import annotations

import pytest

from murmurate.peer.protocol.events import LinkDown, Mix, Report, Skipped, Train, Turn

from .scene import B, C, D, alone, announced, beat, begun, done, farewell, mix, ours, trained, update


def test_a_peer_that_is_behind_joins_its_neighbours_round_and_says_so() -> None:
    peer = begun((B, C))
    peer.handle(beat(B, 6), 1.0)
    assert alone(peer, 1, 2.0) == [
        done(1, 0.0, "", "bc"),
        Train(6),
        Report(Skipped(2, 6)),
        *announced(6, B, C),
    ]
    assert peer.round == 6
    assert peer.handle(trained(6), 3.0) == [ours(B, 6), ours(C, 6), Mix(Turn(6), {}, {})]


def test_one_round_ahead_is_no_reason_to_skip() -> None:
    peer = begun((B,))
    peer.handle(beat(B, 2), 1.0)
    assert alone(peer, 1, 2.0) == [done(1, 0.0, "", "b"), Train(2)]


@pytest.mark.parametrize(("f", "joined"), [(0, 90), (1, 40), (2, 7)])
def test_how_far_ahead_counts_the_most_advanced_neighbour_that_is_no_liar(f: int, joined: int) -> None:
    peer = begun(f=f)
    for sender, round in ((B, 7), (C, 90), (D, 40)):
        peer.handle(beat(sender, round), 1.0)
    assert alone(peer, 1, 2.0) == [
        done(1, 0.0, "", "bcd"),
        Train(joined),
        Report(Skipped(2, joined)),
        *announced(joined, B, C, D),
    ]


def test_f_liars_cannot_drag_us() -> None:
    peer = begun(f=2)
    for sender in (B, C):
        peer.handle(beat(sender, 10**9), 1.0)
        peer.handle(update(sender, 10**9), 1.0)
    assert alone(peer, 1, 2.0) == [done(1, 0.0, "", "d"), Train(2)]
    small = begun((B, C), f=2)  # f or fewer neighbours never drag anybody
    small.handle(beat(B, 50), 1.0)
    small.handle(beat(C, 50), 1.0)
    assert alone(small, 1, 2.0) == [done(1, 0.0, "", "bc"), Train(2)]


def test_only_the_living_drag_us() -> None:
    peer = begun((B, C))
    peer.handle(beat(B, 50), 1.0)
    peer.handle(LinkDown(B), 1.0)
    assert alone(peer, 1, 2.0) == [done(1, 0.0, "", "c"), Train(2)]


@pytest.mark.parametrize("limit", [4, 2])
def test_rounds_max_clamps_how_far_we_skip(limit: int) -> None:
    peer = begun((B,), rounds_max=limit)
    peer.handle(beat(B, 50), 1.0)
    skipped = [Report(Skipped(2, limit)), *announced(limit, B)] if limit > 2 else []
    assert alone(peer, 1, 2.0) == [done(1, 0.0, "", "b"), Train(limit), *skipped]
    assert alone(peer, limit, 3.0) == [done(limit, 0.0), *farewell(B)]


def test_a_peer_that_skipped_folds_what_waited_for_it() -> None:
    peer = begun((B, C))
    for round in (4, 5, 6, 7):
        peer.handle(update(B, round), 1.0)
    alone(peer, 1, 2.0)
    assert peer.round == 7
    assert peer.handle(trained(7), 4.0) == [ours(B, 7), ours(C, 7), mix(7, b=7)]
