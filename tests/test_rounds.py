"""The rounds of one peer: train, send, wait, mix, hop by hop; an event in, the exact effects out."""

from __future__ import annotations

import pytest

from murmurate.peer.protocol.events import (
    Heartbeat,
    LinkDown,
    Mix,
    PeerState,
    Received,
    Save,
    Send,
    Started,
    Timer,
    TimerFired,
    Train,
    Turn,
    Verdict,
)
from murmurate.peer.protocol.neighbourhood import Edges
from murmurate.peer.protocol.rounds import DEADLINES_MISSED_MAX, Phase

from .scene import (
    BEAT,
    NEXT_BEAT,
    B,
    C,
    D,
    all_speak,
    beat,
    begun,
    changed,
    data,
    deadline,
    done,
    dropped,
    farewell,
    fresh,
    goodbye,
    mix,
    mixed,
    ours,
    too_late,
    trained,
    up,
    update,
    waiting,
)

# A round ---------------------------------------------------------------------------------------------


def test_a_round_is_train_send_wait_mix_and_the_next_begins() -> None:
    peer = begun()
    assert (peer.phase, peer.round) == (Phase.TRAINING, 1)
    assert peer.handle(trained(1), 10.0) == [ours(B, 1), ours(C, 1), ours(D, 1), deadline(1)]
    assert peer.phase is Phase.WAITING
    assert peer.handle(update(B, 1), 11.0) == []
    assert peer.handle(update(C, 1), 12.0) == []
    assert peer.handle(update(D, 1), 12.5) == [mix(1, b=1, c=1, d=1)]
    assert peer.phase is Phase.MIXING
    assert peer.handle(mixed(1), 13.0) == [done(1, 2.5, "bcd"), Train(2)]
    assert (peer.phase, peer.round) == (Phase.TRAINING, 2)


def test_who_spoke_before_us_is_not_waited_for() -> None:
    peer = begun()
    for sender in (B, C, D):
        assert peer.handle(update(sender, 1), 5.0) == []
    assert peer.handle(trained(1), 10.0) == [ours(B, 1), ours(C, 1), ours(D, 1), mix(1, b=1, c=1, d=1)]
    assert peer.handle(mixed(1), 10.5) == [done(1, 0.0, "bcd"), Train(2)]


def test_a_deadline_ends_the_wait_and_names_who_is_missing() -> None:
    peer = waiting()
    peer.handle(update(C, 1), 11.0)
    assert peer.handle(too_late(1), 40.0) == [mix(1, c=1)]
    assert peer.handle(mixed(1), 40.0) == [done(1, 30.0, "c", "bd"), Save(), Train(2)]


def test_a_silent_neighbours_weight_stays_ours_down_to_an_empty_inbox() -> None:
    peer = waiting()
    assert peer.handle(too_late(1), 40.0) == [Mix(Turn(1), {}, {})]
    assert peer.handle(mixed(1), 40.0) == [done(1, 30.0, "", "bcd"), Save(), Train(2)]


def test_a_deadline_of_a_turn_that_is_over_is_ignored() -> None:
    peer = waiting()
    all_speak(peer, 1, 11.0)
    assert peer.handle(too_late(1), 11.0) == []  # mixing
    peer.handle(mixed(1), 11.0)
    assert peer.handle(too_late(1), 12.0) == []  # training
    peer.handle(trained(2), 13.0)
    assert peer.handle(too_late(1), 40.0) == []  # waiting for another turn
    assert peer.phase is Phase.WAITING


def test_malformed_payloads_are_reported_and_do_not_count_as_folded() -> None:
    peer = waiting()
    all_speak(peer, 1, 11.0)
    assert peer.handle(mixed(1, 0, C, D), 11.0) == [
        dropped(C, Verdict.MALFORMED),
        dropped(D, Verdict.MALFORMED),
        done(1, 1.0, "b"),
        Train(2),
    ]


def test_a_peer_without_neighbours_trains_alone() -> None:
    peer = fresh((), rounds_max=2)
    assert peer.handle(Started(0), 0.0) == [NEXT_BEAT, Train(1)]
    assert peer.handle(trained(1), 1.0) == [Mix(Turn(1), {}, {})]
    assert peer.handle(mixed(1), 2.0) == [done(1, 0.0), Train(2)]
    assert peer.handle(trained(2), 3.0) == [Mix(Turn(2), {}, {})]
    assert peer.handle(mixed(2), 4.0) == [done(2, 0.0), *farewell()]


def test_a_round_sends_and_hears_along_its_own_edges() -> None:
    one_way = {1: Edges((B,), {C: 0.5}), 2: Edges((D,), {})}
    peer = begun(rounds=one_way)
    assert peer.handle(update(B, 1), 5.0) == []  # B is not heard in this round
    assert peer.handle(trained(1), 10.0) == [ours(B, 1), deadline(1)]
    assert peer.handle(update(C, 1), 11.0) == [Mix(Turn(1), {C: data("c", 1)}, {C: 0.5})]
    assert peer.handle(mixed(1), 12.0) == [done(1, 1.0, "c"), Train(2)]
    assert peer.handle(trained(2), 13.0) == [ours(D, 2), Mix(Turn(2), {}, {})]


# Waiting ---------------------------------------------------------------------------------------------


def test_a_heartbeat_alone_never_ends_a_wait() -> None:
    peer = waiting((B,))
    for event in (beat(B, 1), beat(B, 2), beat(B, 50), beat(B, 0, incarnation=2)):
        assert peer.handle(event, 11.0) == []
        assert peer.phase is Phase.WAITING


@pytest.mark.parametrize("event", [LinkDown(D), goodbye(D)])
def test_who_is_suspect_or_left_is_not_awaited(event: LinkDown | Received) -> None:
    peer = begun()
    peer.handle(event, 1.0)
    assert peer.handle(trained(1), 10.0) == [ours(B, 1), ours(C, 1), deadline(1)]
    peer.handle(update(B, 1), 11.0)
    assert peer.handle(update(C, 1), 11.0) == [mix(1, b=1, c=1)]
    assert peer.handle(mixed(1), 11.0) == [done(1, 1.0, "bc"), Train(2)]  # D is not missing: nobody awaited it


def test_who_is_dead_is_neither_sent_to_nor_awaited() -> None:
    peer = begun((B, C))
    peer.handle(beat(B, 0), 4.0)
    peer.handle(TimerFired(BEAT), 4.9)  # in time to be no later than half a second at the next
    assert peer.handle(TimerFired(BEAT), 5.0) == [
        Send(B, Heartbeat(Turn(1))),
        Send(C, Heartbeat(Turn(1))),
        changed(C, "dead"),
        NEXT_BEAT,
    ]
    assert peer.handle(trained(1), 10.0) == [ours(B, 1), deadline(1)]
    assert peer.handle(update(B, 1), 11.0) == [mix(1, b=1)]


def test_a_broken_link_during_a_wait_ends_it_when_nobody_else_is_awaited() -> None:
    peer = waiting((B, C))
    assert peer.handle(LinkDown(B), 11.0) == [changed(B, "suspect")]
    assert peer.handle(LinkDown(C), 12.0) == [changed(C, "suspect"), Mix(Turn(1), {}, {})]
    assert peer.handle(mixed(1), 12.0) == [done(1, 2.0), Train(2)]


def test_a_goodbye_during_a_wait_ends_it_when_nobody_else_is_awaited() -> None:
    peer = waiting((B, C))
    peer.handle(update(C, 1), 11.0)
    assert peer.handle(goodbye(B), 12.0) == [changed(B, "left"), mix(1, c=1)]


def test_a_beat_that_declares_somebody_dead_ends_the_wait() -> None:
    peer = waiting((B, C))
    peer.handle(update(C, 1), 12.0)
    peer.handle(TimerFired(BEAT), 12.4)
    assert peer.handle(TimerFired(BEAT), 12.5) == [
        Send(B, Heartbeat(Turn(1))),
        changed(B, "dead"),
        Send(C, Heartbeat(Turn(1))),
        NEXT_BEAT,
        mix(1, c=1),
    ]


def test_what_the_dead_and_the_left_sent_is_folded_all_the_same() -> None:
    peer = waiting()
    peer.handle(update(B, 1), 11.0)
    peer.handle(LinkDown(B), 11.0)
    peer.handle(goodbye(C), 11.0)
    assert peer.handle(update(C, 1), 11.0) == []  # sent before the goodbye, arrived after it
    assert peer.state(C) is PeerState.LEFT
    assert peer.handle(update(D, 1), 12.0) == [mix(1, b=1, c=1, d=1)]


def test_a_tardy_neighbour_is_not_awaited_again_before_it_has_spoken() -> None:
    peer = waiting((B, C))
    peer.handle(update(C, 1), 11.0)
    peer.handle(too_late(1), 40.0)
    peer.handle(mixed(1), 40.0)
    assert peer.handle(beat(B, 1), 41.0) == []  # a sign of life is not an update
    peer.handle(trained(2), 50.0)
    assert peer.handle(update(C, 2), 51.0) == [mix(2, c=2)]
    assert peer.handle(mixed(2), 51.0) == [done(2, 1.0, "c"), Train(3)]

    assert peer.handle(update(B, 2), 52.0) == []  # it spoke: awaited again
    peer.handle(trained(3), 60.0)
    assert peer.handle(update(C, 3), 61.0) == []
    assert peer.handle(update(B, 3), 62.0) == [mix(3, b=3, c=3)]


def test_a_neighbour_two_rounds_behind_is_not_awaited_and_one_behind_is() -> None:
    peer = begun((B, C), round=5)  # its links said round 4
    peer.handle(up(B, 3, incarnation=2), 1.0)  # reborn, with less
    assert peer.handle(trained(5), 10.0) == [ours(B, 5), ours(C, 5), deadline(5)]
    assert peer.handle(update(C, 5), 11.0) == [mix(5, c=5)]
    peer.handle(mixed(5), 11.0)
    peer.handle(beat(B, 5, incarnation=2), 12.0)
    peer.handle(trained(6), 20.0)
    assert peer.handle(update(C, 6), 21.0) == []
    assert peer.handle(too_late(6), 50.0) == [mix(6, c=6)]


def test_who_comes_during_a_wait_is_awaited_until_the_same_deadline() -> None:
    peer = begun((B, C))
    peer.handle(LinkDown(B), 1.0)
    assert peer.handle(trained(1), 10.0) == [ours(C, 1), deadline(1)]
    assert peer.handle(up(B, 1), 11.0) == [changed(B, "alive"), ours(B, 1)]
    assert peer.handle(update(C, 1), 12.0) == []
    assert peer.handle(update(B, 1), 13.0) == [mix(1, b=1, c=1)]


def test_a_link_begins_with_our_newest_update() -> None:
    peer = begun((B, C))
    assert peer.handle(up(B, 0), 1.0) == []  # nothing was sent yet
    peer.handle(trained(1), 10.0)
    assert peer.handle(up(B, 0), 11.0) == [ours(B, 1)]
    all_speak(peer, 1, 12.0, (B, C))
    peer.handle(mixed(1), 12.0)
    assert peer.handle(up(B, 0, incarnation=2), 13.0) == [ours(B, 1)]  # training round 2: 1 is still the newest
    assert peer.handle(up(B, 0), 13.0)[-1:] != [ours(B, 1)]  # not to an earlier life


# More than one exchange a round --------------------------------------------------------------------------


def test_every_hop_sends_waits_and_mixes_and_the_round_is_done_once() -> None:
    peer = waiting((B, C), gossip_steps=3)
    peer.handle(update(B, 1), 11.0)
    assert peer.handle(update(C, 1), 11.0) == [mix(1, 0, True, b=1, c=1)]
    assert peer.handle(mixed(1), 12.0) == [ours(B, 1, 1), ours(C, 1, 1), deadline(1, 1)]
    assert peer.handle(too_late(1, 0), 12.5) == []
    peer.handle(update(B, 1, 1), 13.0)
    assert peer.handle(update(C, 1, 1), 14.0) == [mix(1, 1, True, b=(1, 1), c=(1, 1))]
    peer.handle(update(B, 1, 2), 14.5)
    peer.handle(update(C, 1, 2), 14.5)
    last = [ours(B, 1, 2), ours(C, 1, 2), mix(1, 2, False, b=(1, 2), c=(1, 2))]
    assert peer.handle(mixed(1, 1), 15.0) == last
    assert peer.handle(mixed(1, 2), 16.0) == [done(1, 3.0, "bc"), Train(2)]


def test_an_earlier_hop_is_folded_in_a_later_one_and_a_link_begins_with_the_newest_hop() -> None:
    peer = waiting((B,), gossip_steps=2)
    peer.handle(too_late(1), 40.0)
    assert peer.handle(mixed(1), 40.0) == [ours(B, 1, 1), mix(1, 1)]  # tardy: not awaited
    assert peer.handle(update(B, 1), 40.5) == []
    assert peer.handle(mixed(1, 1), 41.0) == [done(1, 30.0, "", "b"), Save(), Train(2)]
    assert peer.handle(up(B, 1), 42.0) == [ours(B, 1, 1)]
    peer.handle(trained(2), 50.0)
    assert peer.handle(too_late(2), 80.0) == [mix(2, 0, True, b=1)]


def test_who_was_missing_in_one_hop_and_heard_in_another_is_not_missing() -> None:
    peer = waiting((B, C), gossip_steps=2)
    peer.handle(update(C, 1), 11.0)
    assert peer.handle(too_late(1), 40.0) == [mix(1, 0, True, c=1)]
    peer.handle(update(B, 1), 40.5)
    peer.handle(mixed(1), 41.0)
    peer.handle(update(C, 1, 1), 42.0)
    assert peer.handle(update(B, 1, 1), 42.0) == [mix(1, 1, b=(1, 1), c=(1, 1))]
    assert peer.handle(mixed(1, 1), 43.0) == [done(1, 31.0, "bc"), Save(), Train(2)]


def test_whose_payload_was_malformed_in_one_hop_only_was_folded_in_the_other() -> None:
    peer = waiting((B, C), gossip_steps=2)
    all_speak(peer, 1, 11.0, (B, C))
    peer.handle(mixed(1), 11.0)
    peer.handle(update(B, 1, 1), 12.0)
    assert peer.handle(update(C, 1, 1), 12.0) == [mix(1, 1, b=(1, 1), c=(1, 1))]
    assert peer.handle(mixed(1, 1, B), 13.0) == [dropped(B, Verdict.MALFORMED), done(1, 2.0, "bc"), Train(2)]


def test_who_ran_away_waits_for_those_it_left_behind_but_not_for_ever() -> None:
    peer = begun((B, C), round=9, f=1)
    for word in (beat(B, 5, incarnation=2), beat(C, 5, incarnation=2)):  # reborn, and far behind
        peer.handle(word, 1.0)
    now = 10.0
    for round in range(9, 9 + DEADLINES_MISSED_MAX):
        assert peer.handle(trained(round), now) == [ours(B, round), ours(C, round), deadline(round)]
        now += 10.0
        assert peer.handle(TimerFired(Timer("deadline", Turn(round))), now) == [Mix(Turn(round), {}, {})]
        peer.handle(mixed(round), now)
    last = 9 + DEADLINES_MISSED_MAX
    assert peer.handle(trained(last), now) == [ours(B, last), ours(C, last), Mix(Turn(last), {}, {})]


def test_without_liars_in_mind_those_behind_are_not_awaited_because_they_will_follow() -> None:
    peer = begun((B, C), round=9, f=0)
    for word in (beat(B, 5, incarnation=2), beat(C, 5, incarnation=2)):
        peer.handle(word, 1.0)
    assert peer.handle(trained(9), 10.0) == [ours(B, 9), ours(C, 9), Mix(Turn(9), {}, {})]
