"""Who is live: every transition between alive, suspect, dead and left, and the facts that tell of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmurate.peer.protocol.events import (
    Body,
    Effect,
    Envelope,
    Event,
    Goodbye,
    Heartbeat,
    LeaveRequested,
    LinkDown,
    LinkUp,
    Mixed,
    PeerChanged,
    PeerId,
    PeerState,
    Received,
    Report,
    Send,
    SetTimer,
    Started,
    Timer,
    TimerFired,
    Trained,
    Turn,
    Update,
)
from murmurate.peer.protocol.membership import Heartbeats, Membership

B, C, Z = PeerId("b"), PeerId("c"), PeerId("z")
HERE = Turn(7, 1)
HEARTBEAT_S, TIMEOUT_S = 0.5, 3.0
BEAT = Timer("heartbeat", Turn(0))
NEXT_BEAT = SetTimer(BEAT, HEARTBEAT_S)


def make() -> Heartbeats:
    return Heartbeats((B, C), HEARTBEAT_S, TIMEOUT_S, where=lambda: HERE)


def up(peer: PeerId, incarnation: int = 1) -> LinkUp:
    return LinkUp(peer, incarnation, Turn(0))


def said(peer: PeerId, body: Body | None = None, incarnation: int = 1) -> Received:
    return Received(Envelope(peer, incarnation, body or Heartbeat(Turn(0))))


def became(peer: PeerId, state: PeerState) -> list[Effect]:
    return [Report(PeerChanged(peer, state))]


def with_b(state: PeerState) -> Heartbeats:
    """B was heard at 10.0 in its life 2 and is now in this state; C was never heard of."""
    members = make()
    members.handle(up(B, 2), 10.0)
    match state:
        case PeerState.ALIVE:
            pass
        case PeerState.SUSPECT:
            members.handle(LinkDown(B), 10.0)
        case PeerState.DEAD:
            members.handle(LinkDown(B), 10.0)
            members.handle(TimerFired(BEAT), 13.5)
        case PeerState.LEFT:
            members.handle(said(B, Goodbye(), 2), 10.0)
    assert members.state(B) is state
    return members


def test_heartbeats_are_a_membership() -> None:
    members: Membership = make()
    assert members.state(B) is PeerState.DEAD


def test_who_was_never_heard_of_is_dead_neighbour_or_not() -> None:
    members = make()
    assert [members.state(peer) for peer in (B, C, Z)] == [PeerState.DEAD] * 3
    assert not any(members.alive(peer) for peer in (B, C, Z))
    assert members.handle(TimerFired(BEAT), 100.0) == [NEXT_BEAT]  # and nothing becomes dead a second time


def test_the_first_beat_is_set_at_the_start() -> None:
    assert make().handle(Started(4), 0.0) == [NEXT_BEAT]


def test_a_beat_says_where_we_are_to_every_linked_neighbour_and_sets_the_next() -> None:
    members = make()
    members.handle(up(B), 0.0)
    assert members.handle(TimerFired(BEAT), 0.5) == [Send(B, Heartbeat(HERE)), NEXT_BEAT]
    members.handle(up(C), 0.6)
    both: list[Effect] = [Send(B, Heartbeat(HERE)), Send(C, Heartbeat(HERE)), NEXT_BEAT]
    assert members.handle(TimerFired(BEAT), 1.0) == both
    members.handle(LinkDown(B), 1.2)
    assert members.handle(TimerFired(BEAT), 1.5) == [Send(C, Heartbeat(HERE)), NEXT_BEAT]


def test_a_dead_peer_with_an_open_link_still_gets_our_beat() -> None:
    members = with_b(PeerState.ALIVE)
    assert members.handle(TimerFired(BEAT), 14.0) == [
        Send(B, Heartbeat(HERE)),
        *became(B, PeerState.DEAD),
        NEXT_BEAT,
    ]
    assert members.handle(TimerFired(BEAT), 14.5) == [Send(B, Heartbeat(HERE)), NEXT_BEAT]


def test_an_open_link_says_alive() -> None:
    members = make()
    assert members.handle(up(B), 1.0) == became(B, PeerState.ALIVE)
    assert members.alive(B)
    assert members.heard_at(B) == 1.0
    assert members.handle(up(B), 2.0) == []
    assert members.heard_at(B) == 2.0


@pytest.mark.parametrize("body", [Heartbeat(Turn(3)), Update(Turn(3), b"")])
def test_any_word_says_alive_with_or_without_a_link(body: Body) -> None:
    members = make()
    assert members.handle(said(B, body), 1.0) == became(B, PeerState.ALIVE)
    assert members.handle(said(B, body), 2.0) == []
    assert members.heard_at(B) == 2.0
    assert members.handle(TimerFired(BEAT), 2.5) == [NEXT_BEAT]  # there is no link to beat on


@pytest.mark.parametrize("state", [PeerState.ALIVE, PeerState.SUSPECT])
def test_silence_beyond_the_timeout_is_death_with_or_without_a_link(state: PeerState) -> None:
    members = with_b(state)
    beat: list[Effect] = [Send(B, Heartbeat(HERE))] if state is PeerState.ALIVE else []
    assert members.handle(TimerFired(BEAT), 10.0 + TIMEOUT_S) == [*beat, NEXT_BEAT]  # within
    assert members.state(B) is state
    assert members.handle(TimerFired(BEAT), 10.0 + TIMEOUT_S + 0.25) == [*beat, *became(B, PeerState.DEAD), NEXT_BEAT]


def test_every_word_postpones_death() -> None:
    members = with_b(PeerState.ALIVE)
    members.handle(said(B, incarnation=2), 12.0)
    assert members.handle(TimerFired(BEAT), 15.0) == [Send(B, Heartbeat(HERE)), NEXT_BEAT]
    assert members.alive(B)


def test_a_broken_link_makes_suspect_at_once() -> None:
    members = with_b(PeerState.ALIVE)
    assert members.handle(LinkDown(B), 10.1) == became(B, PeerState.SUSPECT)
    assert not members.alive(B)
    assert members.handle(LinkDown(B), 10.2) == []


@pytest.mark.parametrize("state", [PeerState.DEAD, PeerState.LEFT])
def test_a_broken_link_tells_nothing_new_of_the_dead_and_the_left(state: PeerState) -> None:
    members = with_b(state)
    assert members.handle(LinkDown(B), 20.0) == []
    assert members.state(B) is state


@pytest.mark.parametrize("state", [PeerState.SUSPECT, PeerState.DEAD])
def test_suspect_and_dead_come_back_by_a_link_or_a_word(state: PeerState) -> None:
    for event in (up(B, 2), said(B, incarnation=2), up(B, 3), said(B, incarnation=3)):
        assert with_b(state).handle(event, 20.0) == became(B, PeerState.ALIVE)


def test_a_goodbye_is_not_a_death() -> None:
    members = with_b(PeerState.ALIVE)
    assert members.handle(said(B, Goodbye(), 2), 10.5) == became(B, PeerState.LEFT)
    assert not members.alive(B)
    members.handle(LinkDown(B), 10.6)
    assert members.handle(TimerFired(BEAT), 1000.0) == [NEXT_BEAT]
    assert members.state(B) is PeerState.LEFT
    assert members.handle(said(B, Goodbye(), 2), 1000.0) == []


@pytest.mark.parametrize("body", [Heartbeat(Turn(3)), Update(Turn(3), b"")])
def test_what_was_said_before_the_goodbye_does_not_resurrect(body: Body) -> None:
    members = with_b(PeerState.LEFT)
    assert members.handle(said(B, body, 2), 10.5) == []
    assert members.state(B) is PeerState.LEFT


def test_a_new_life_resurrects_the_left() -> None:
    assert with_b(PeerState.LEFT).handle(said(B, incarnation=3), 20.0) == became(B, PeerState.ALIVE)
    assert with_b(PeerState.LEFT).handle(up(B, 3), 20.0) == became(B, PeerState.ALIVE)


@pytest.mark.parametrize("state", list(PeerState))
def test_an_earlier_life_is_not_listened_to(state: PeerState) -> None:
    members = with_b(state)
    for body in (Heartbeat(Turn(9)), Update(Turn(9), b""), Goodbye()):
        assert members.handle(said(B, body, 1), 11.0) == []
    assert members.state(B) is state
    assert members.heard_at(B) == 10.0


def test_a_link_of_an_earlier_life_says_nothing() -> None:
    members = with_b(PeerState.DEAD)
    assert members.handle(up(B, 1), 20.0) == []
    assert members.state(B) is PeerState.DEAD
    assert members.handle(said(B, incarnation=1), 20.0) == []


def test_a_link_of_the_life_that_said_goodbye_does_not_resurrect() -> None:
    members = with_b(PeerState.LEFT)
    assert members.handle(up(B, 2), 10.5) == []
    assert members.state(B) is PeerState.LEFT


def test_what_the_goodbye_of_an_earlier_life_does_not_end() -> None:
    members = with_b(PeerState.LEFT)
    members.handle(up(B, 3), 20.0)
    assert members.handle(said(B, Goodbye(), 2), 20.1) == []
    assert members.alive(B)


def test_only_our_neighbours_are_watched() -> None:
    members = make()
    for event in (up(Z), said(Z), said(Z, Goodbye()), LinkDown(Z)):
        assert members.handle(event, 1.0) == []
    assert members.state(Z) is PeerState.DEAD
    assert members.handle(TimerFired(BEAT), 1.5) == [NEXT_BEAT]


def test_other_events_are_not_its_business() -> None:
    members = with_b(PeerState.ALIVE)
    others: list[Event] = [
        Trained(1, b""),
        Mixed(Turn(1)),
        LeaveRequested(),
        TimerFired(Timer("deadline", Turn(1))),
        TimerFired(Timer("join", Turn(0))),
        TimerFired(Timer("settle", Turn(0))),
    ]
    for event in others:
        assert members.handle(event, 100.0) == []
    assert members.alive(B)


words = st.builds(
    said,
    st.sampled_from((B, C, Z)),
    st.sampled_from((Heartbeat(Turn(1)), Update(Turn(1), b""), Goodbye())),
    st.integers(0, 3),
)
links = st.builds(up, st.sampled_from((B, C, Z)), st.integers(0, 3)) | st.builds(LinkDown, st.sampled_from((B, C, Z)))


@given(st.lists(st.tuples(words | links | st.just(TimerFired(BEAT)), st.sampled_from((0.0, 0.5, 4.0)))))
def test_facts_are_exactly_the_changes_of_state(steps: list[tuple[Event, float]]) -> None:
    members, now, due = make(), 0.0, 0.0
    believed = {peer: members.state(peer) for peer in (B, C)}
    for event, pause_s in steps:
        now += pause_s
        for effect in members.handle(event, now):
            if isinstance(effect, Report) and isinstance(effect.fact, PeerChanged):
                assert believed[effect.fact.peer] is not effect.fact.state
                believed[effect.fact.peer] = effect.fact.state
        assert believed == {peer: members.state(peer) for peer in (B, C)}
        if event == TimerFired(BEAT):
            starved_s = max(0.0, now - due) if due else 0.0
            due = now + HEARTBEAT_S
            patience_s = TIMEOUT_S + starved_s
            assert all(now - members.heard_at(peer) <= patience_s for peer in (B, C) if members.alive(peer))


def test_a_peer_that_was_starved_itself_is_slower_to_accuse() -> None:
    member = make()
    member.handle(Started(0), 0.0)
    member.handle(up(B), 0.0)
    late = TIMEOUT_S + 2.0  # the beat was due at HEARTBEAT_S: until now we could not have heard anybody
    assert member.handle(TimerFired(BEAT), late) == [Send(B, Heartbeat(HERE)), NEXT_BEAT]
    in_time = late + HEARTBEAT_S
    assert became(B, PeerState.DEAD)[0] in member.handle(TimerFired(BEAT), in_time)
