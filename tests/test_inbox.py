"""One neighbour's record: what is kept, what is dropped and why, and that nothing is folded twice."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmurate.peer.protocol.events import Turn, Verdict
from murmurate.peer.protocol.inbox import SLOTS_MAX, Neighbour

NO_LIMIT = -1000  # an oldest round that refuses nothing


def payload(turn: Turn) -> bytes:
    """A payload that tells where it came from."""
    return f"{turn.round}.{turn.hop}".encode()


def keep(neighbour: Neighbour, round: int, hop: int = 0, oldest: int = NO_LIMIT) -> Verdict | None:
    turn = Turn(round, hop)
    return neighbour.keep(turn, payload(turn), oldest)


def test_an_update_is_kept_and_folded_once() -> None:
    neighbour = Neighbour()
    assert keep(neighbour, 1) is None
    assert neighbour.fold(Turn(1), NO_LIMIT) == b"1.0"
    assert neighbour.fold(Turn(1), NO_LIMIT) is None
    assert neighbour.fold(Turn(2), NO_LIMIT) is None


def test_a_turn_that_is_here_already_is_a_duplicate_and_the_first_payload_stays() -> None:
    neighbour = Neighbour()
    assert keep(neighbour, 1) is None
    assert neighbour.keep(Turn(1), b"another", NO_LIMIT) is Verdict.DUPLICATE
    assert neighbour.fold(Turn(1), NO_LIMIT) == b"1.0"


@pytest.mark.parametrize("turn", [Turn(5), Turn(4, 1), Turn(1), Turn(0), Turn(-3)])
def test_what_is_not_newer_than_the_last_folded_is_late(turn: Turn) -> None:
    neighbour = Neighbour()
    keep(neighbour, 5)
    neighbour.fold(Turn(5), NO_LIMIT)
    assert neighbour.keep(turn, b"", NO_LIMIT) is Verdict.LATE
    assert neighbour.payloads == {}


def test_a_later_hop_of_the_folded_round_is_not_late() -> None:
    neighbour = Neighbour()
    keep(neighbour, 5)
    neighbour.fold(Turn(5), NO_LIMIT)
    assert keep(neighbour, 5, hop=1) is None
    assert neighbour.fold(Turn(5), NO_LIMIT) is None  # but it is from the future
    assert neighbour.fold(Turn(5, 1), NO_LIMIT) == b"5.1"


def test_what_is_older_than_the_oldest_useful_round_is_late() -> None:
    neighbour = Neighbour()
    assert keep(neighbour, 4, oldest=5) is Verdict.LATE
    assert keep(neighbour, 5, oldest=5) is None
    assert neighbour.payloads == {Turn(5): b"5.0"}
    assert neighbour.sent == Turn(5)


def test_what_became_too_old_while_it_lay_here_is_not_folded() -> None:
    neighbour = Neighbour()
    keep(neighbour, 4, oldest=4)
    assert neighbour.fold(Turn(9), oldest_round=5) is None
    assert neighbour.fold(Turn(9), oldest_round=4) == b"4.0"


def test_round_zero_is_not_begun_and_has_no_updates() -> None:
    assert keep(Neighbour(), 0) is Verdict.LATE


def test_an_early_update_waits_for_its_turn() -> None:
    neighbour = Neighbour()
    assert keep(neighbour, 2) is None
    assert neighbour.sent == Turn(2)
    assert neighbour.fold(Turn(1), NO_LIMIT) is None
    assert neighbour.fold(Turn(2), NO_LIMIT) == b"2.0"


@pytest.mark.parametrize("order", list(permutations((1, 2, 3))))
def test_the_newest_usable_is_folded_whatever_the_order_of_arrival(order: tuple[int, ...]) -> None:
    neighbour = Neighbour()
    assert [keep(neighbour, round) for round in order] == [None] * 3
    assert list(neighbour.payloads) == [Turn(1), Turn(2), Turn(3)]
    assert neighbour.sent == neighbour.turn == Turn(3)
    assert neighbour.fold(Turn(2), NO_LIMIT) == b"2.0"
    assert neighbour.payloads == {Turn(3): b"3.0"}  # what it supersedes is forgotten, what is early stays
    assert keep(neighbour, 1) is Verdict.LATE
    assert neighbour.fold(Turn(3), NO_LIMIT) == b"3.0"


@pytest.mark.parametrize("order", list(permutations((2, 3, 4, 5))))
def test_of_four_the_second_oldest_goes_whatever_the_order_of_arrival(order: tuple[int, ...]) -> None:
    neighbour = Neighbour()
    assert [keep(neighbour, round) for round in order] == [None] * 4
    assert list(neighbour.payloads) == [Turn(2), Turn(4), Turn(5)]
    assert neighbour.fold(Turn(2), NO_LIMIT) == b"2.0"


def test_what_grew_too_old_makes_room_for_what_is_useful() -> None:
    neighbour = Neighbour()
    keep(neighbour, 1, oldest=0)
    for round in (30, 31, 32):
        assert keep(neighbour, round, oldest=22) is None
    assert neighbour.fold(Turn(30), 22) == b"30.0"


def test_a_dropped_update_still_tells_where_the_sender_is_and_that_it_speaks() -> None:
    neighbour = Neighbour()
    neighbour.missed = 2
    assert keep(neighbour, 6, oldest=9) is Verdict.LATE
    assert neighbour.turn == Turn(6)
    assert neighbour.sent == Turn(0)
    assert not neighbour.missed


def test_a_new_incarnation_starts_afresh() -> None:
    neighbour = Neighbour()
    assert neighbour.meet(3)
    keep(neighbour, 8)
    neighbour.fold(Turn(8), NO_LIMIT)
    keep(neighbour, 9)
    neighbour.missed = 2

    assert neighbour.meet(4)
    assert neighbour.turn == neighbour.sent == neighbour.folded == Turn(0)
    assert neighbour.payloads == {}
    assert not neighbour.missed
    assert keep(neighbour, 1) is None  # not late: this life has not said anything yet


def test_an_earlier_life_is_outdated_and_changes_nothing() -> None:
    neighbour = Neighbour()
    neighbour.meet(4)
    keep(neighbour, 1)
    assert not neighbour.meet(3)
    assert neighbour.incarnation == 4
    assert neighbour.meet(4)
    assert neighbour.payloads == {Turn(1): b"1.0"}


turns = st.builds(Turn, st.integers(0, 12), st.integers(0, 2))


@given(st.lists(st.tuples(st.booleans(), turns, st.integers(0, 6)), max_size=40))
def test_any_sequence_folds_each_payload_once_and_never_an_older_after_a_newer(
    steps: list[tuple[bool, Turn, int]],
) -> None:
    neighbour = Neighbour()
    kept: set[bytes] = set()
    folded: list[Turn] = []
    for is_keep, turn, stale in steps:
        oldest = turn.round - stale
        if is_keep:
            if neighbour.keep(turn, payload(turn), oldest) is None:
                kept.add(payload(turn))
            assert len(neighbour.payloads) <= SLOTS_MAX
            assert list(neighbour.payloads) == sorted(neighbour.payloads)
        elif (found := neighbour.fold(turn, oldest)) is not None:
            assert found in kept
            assert found == payload(neighbour.folded)
            assert oldest <= neighbour.folded.round
            assert neighbour.folded <= turn
            folded.append(neighbour.folded)
        assert neighbour.folded <= neighbour.sent <= neighbour.turn
        assert all(neighbour.folded < here <= neighbour.sent for here in neighbour.payloads)
    assert folded == sorted(set(folded))
