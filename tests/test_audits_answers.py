"""Audits of neighbours, the pure part: what a peer shows of its own rounds."""

from __future__ import annotations

from murmurate.peer.protocol.audits import (
    DIGESTS_MAX,
    Audits,
)
from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import (
    Effect,
    Evidence,
    LinkUp,
    PeerId,
    Proof,
    Question,
    Send,
    Source,
    Started,
    Train,
    Trained,
    Turn,
)
from murmurate.peer.protocol.neighbourhood import Neighbourhood
from murmurate.peer.protocol.rounds import Pacing
from murmurate.peer.protocol.showing import HELD_MAX, PIECE_BYTES
from murmurate.topology import Topology

from .audits_scene import (
    ME,
    auditor,
    digest,
    do_round,
    mixed,
    says,
    start,
    trained,
)
from .scene import B, C, D, all_speak, changed, data, update

# Answering --------------------------------------------------------------------------------------------


def shown(peer: Peer, round: int, who: PeerId = B, number: int = 0) -> list[Effect]:
    return peer.handle(says(who, Question(round, number)), 500.0)


def test_a_peer_shows_how_its_newest_two_rounds_began() -> None:
    peer = auditor(rate=0.0)
    for round in (1, 2, 3, 4):
        do_round(peer, round, 10.0 * round)
    for round in (3, 4):
        before = round - 1
        parts = [start(before), data("me", before), *(data(name, before) for name in "bcd"), start(round)]
        told = tuple(Source(name, 1, before) for name in (B, C, D))
        whole = b"".join(bytes(part) for part in parts)
        assert shown(peer, round) == [Send(B, Evidence(round, 0, len(whole), before, told, whole))]
    for round in (1, 2, 5, 2**53):
        assert shown(peer, round) == [Send(B, Evidence(round, 0, 0))]


def test_there_is_nothing_to_show_of_a_first_round() -> None:
    peer = auditor(rate=0.0)
    do_round(peer, 1, 10.0)
    assert shown(peer, 1) == [Send(B, Evidence(1, 0, 0))]


def test_who_heard_everybody_before_it_had_trained_shows_them_too() -> None:
    peer = auditor(rate=0.0)
    for name in (B, C, D):
        peer.handle(update(name, 1), 5.0)
    peer.handle(trained(1), 10.0)  # mixes at once
    peer.handle(mixed(1), 10.0)
    peer.handle(trained(2), 20.0)
    (send,) = shown(peer, 2)
    assert isinstance(send, Send)
    assert isinstance(send.body, Evidence)
    assert [source.peer for source in send.body.sources] == [B, C, D]


def test_malformed_models_and_undone_mixes_are_not_shown() -> None:
    peer = auditor(rate=0.0)
    peer.handle(trained(1), 10.0)
    all_speak(peer, 1, 10.0)
    peer.handle(mixed(1, "bd", C), 10.0)
    do_round(peer, 2, 20.0)
    peer.handle(trained(3, undone=True), 30.0)
    told: list[tuple[Source, ...]] = []
    for round in (2, 3):
        (send,) = shown(peer, round)
        assert isinstance(send, Send)
        assert isinstance(send.body, Evidence)
        told.append(send.body.sources)
    assert told == [(Source(B, 1, 1), Source(D, 1, 1)), ()]


def test_large_evidence_is_cut_into_pieces_which_are_not_given_for_ever() -> None:
    peer = auditor(rate=0.0)
    large = bytes(range(256)) * (PIECE_BYTES // 256)
    payload = b"xy"
    for round in (1, 2):
        peer.handle(Trained(round, payload, proof=Proof(large + bytes([round]), digest(payload))), 10.0)
        all_speak(peer, round, 10.0)
        peer.handle(mixed(round), 10.0)
    whole = large + b"\1" + payload + b"".join(bytes(data(name, 1)) for name in "bcd") + large + b"\2"
    got = b""
    for number in range(3):
        (send,) = shown(peer, 2, C, number)
        assert isinstance(send, Send)
        assert isinstance(send.body, Evidence)
        assert send.body.size == len(whole)
        got += bytes(send.body.data)
    assert got == whole
    assert shown(peer, 2, C, 3) == []
    assert shown(peer, 2, C, 2**32 - 1) == []
    assert [] in [shown(peer, 2, C) for _ in range(100)]
    assert shown(peer, 2, D) != []  # a bound for each neighbour


def test_strangers_and_earlier_lives_get_no_answer() -> None:
    peer = auditor(rate=0.0)
    do_round(peer, 1, 10.0)
    do_round(peer, 2, 20.0)
    assert not [e for e in shown(peer, 2, PeerId("z")) if isinstance(e, Send)]
    assert not [e for e in peer.handle(says(B, Question(2, 0), 0), 30.0) if isinstance(e, Send)]


def test_what_is_remembered_is_bounded() -> None:
    peer = auditor(rate=0.0)
    for round in range(1, 3 * DIGESTS_MAX):
        do_round(peer, round, 10.0 * round)
    audits = peer.audits
    assert isinstance(audits, Audits)
    held = vars(audits)
    assert len(vars(held["_showing"])["_pasts"]) == HELD_MAX
    assert {len(digests) for digests in held["_digests"].values()} == {DIGESTS_MAX}


def test_without_audits_questions_have_no_effect() -> None:
    around = Neighbourhood(ME, [B, ME], Topology("complete", 2))
    peer = Peer(around, Pacing(), 0.5, 3.0)
    peer.handle(Started(0), 0.0)
    assert peer.handle(LinkUp(B, 1, Turn(0)), 0.0) == [changed(B, "alive"), Train(1)]
    assert peer.handle(says(B, Question(1, 0)), 1.0) == []


def test_what_a_neighbour_has_begun_to_ask_for_stays_until_it_was_given() -> None:
    peer = auditor(rate=0.0)
    large = bytes(PIECE_BYTES)
    for round in range(1, 7):
        payload = data("me", round)
        peer.handle(Trained(round, payload, proof=Proof(large, digest(payload))), 10.0 * round)
        all_speak(peer, round, 10.0 * round)
        peer.handle(mixed(round), 10.0 * round)
        if round == 2:
            assert shown(peer, 2) != [Send(B, Evidence(2, 0, 0))]
    for number in (1, 2):  # four rounds later
        assert shown(peer, 2, B, number) != [Send(B, Evidence(2, number, 0))]
    assert shown(peer, 2, C) == [Send(C, Evidence(2, 0, 0))]
    peer.handle(Trained(7, b"x", proof=Proof(large, digest(b"x"))), 80.0)
    assert shown(peer, 2) == [Send(B, Evidence(2, 0, 0))]
