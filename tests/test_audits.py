"""Audits of neighbours, the pure part: an event in, the exact effects out."""

from __future__ import annotations

import pytest

from murmurate.peer.protocol.audits import (
    ASKS_MAX,
    Lots,
)
from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import (
    AuditDone,
    Banned,
    Evidence,
    Examine,
    Examined,
    Goodbye,
    Interrupt,
    Leave,
    LeaveRequested,
    LinkDown,
    LinkUp,
    Mix,
    PeerId,
    Question,
    Report,
    Send,
    SetTimer,
    Source,
    Timer,
    Turn,
)
from murmurate.peer.protocol.showing import PIECE_BYTES

from .audits_scene import (
    ME,
    PAYLOAD,
    SILENT,
    START,
    THIRD,
    WAIT_S,
    asked_again,
    asking,
    auditor,
    banned,
    cleared,
    digest,
    do_round,
    evidence,
    mixed,
    others,
    says,
    sources,
    trained,
    waited,
)
from .scene import B, C, D, all_speak, data, deadline, ours, update

# Asking -----------------------------------------------------------------------------------------------


def test_the_lots_are_drawn_from_the_secret() -> None:
    def some(secret: bytes) -> list[float]:
        lots = Lots(secret)
        return [lots.draw() for _ in range(1000)]

    assert some(b"a") == some(b"a") != some(b"b")
    assert 0.47 < sum(some(b"a")) / 1000 < 0.53
    assert all(0 <= lot < 1 for lot in some(b"a"))


def test_without_a_chance_nobody_is_asked() -> None:
    peer = auditor(rate=0.0)
    assert [do_round(peer, round, 10.0 * round) for round in range(1, 6)] == [[]] * 5


def test_who_spoke_before_in_this_life_is_asked_after_the_mix() -> None:
    peer, asked = asking()
    assert asked in (B, C, D)
    assert do_round(peer, 3, 21.0) == []  # one question at a time


def test_a_first_model_is_never_asked_about() -> None:
    peer = auditor()
    assert do_round(peer, 1, 10.0, (B,)) == []
    assert do_round(peer, 2, 50.0, (C, D)) == []
    (send, _) = do_round(peer, 3, 60.0)
    assert isinstance(send, Send)
    assert send.body == Question(3, 0)


def test_a_malformed_model_is_no_model() -> None:
    peer = auditor()
    do_round(peer, 1, 10.0)
    peer.handle(trained(2), 20.0)
    all_speak(peer, 2, 20.0)
    effects = peer.handle(mixed(2, "b", C, D), 20.0)
    assert [effect.to for effect in effects if isinstance(effect, Send)] == [B]


def test_a_model_of_another_life_is_a_first_one() -> None:
    peer = auditor()
    do_round(peer, 1, 10.0)
    for sender in (B, C, D):
        peer.handle(LinkUp(sender, 2, Turn(1)), 15.0)
    peer.handle(trained(2), 20.0)
    for sender in (B, C, D):
        peer.handle(update(sender, 2, incarnation=2), 20.0)
    assert not [effect for effect in peer.handle(mixed(2), 20.0) if isinstance(effect, Send)]


# Evidence ---------------------------------------------------------------------------------------------


def test_whole_evidence_is_examined_with_all_that_was_heard() -> None:
    peer, asked = asking()
    heard = {other: digest(data(other, 1)) for other in others(asked)}
    assert peer.handle(says(asked, evidence(asked)), 21.0) == [
        Examine(
            peer=asked,
            round=2,
            payload=data(asked, 2),
            before=1,
            sent=digest(data(asked, 1)),
            weights=dict.fromkeys(others(asked), THIRD),
            heard=heard,
            sources=sources(asked),
            evidence=bytearray(2 * START + 4 * PAYLOAD),
        )
    ]
    assert peer.audits is not None
    assert peer.audits.is_examining
    assert waited(peer) == []
    assert peer.handle(says(asked, evidence(asked)), 22.0) == []  # once
    assert peer.handle(Examined(asked, 2), 23.0) == [cleared(asked)]
    assert len(do_round(peer, 3, 24.0)) == 2  # and the next is asked


def test_large_evidence_is_asked_for_piece_by_piece() -> None:
    start_bytes = PIECE_BYTES
    peer, asked = asking(start_bytes=start_bytes)
    size = 2 * start_bytes + 4 * PAYLOAD
    first = evidence(asked, size=size, data=bytes(PIECE_BYTES))
    timer = SetTimer(Timer("audit", Turn(2)), WAIT_S)
    assert peer.handle(says(asked, first), 21.0) == [Send(asked, Question(2, 1)), timer]
    assert peer.handle(says(asked, first), 21.5) == []  # doubled on its way
    second = Evidence(2, 1, size, data=bytes(PIECE_BYTES))
    assert peer.handle(says(asked, second), 22.0) == [Send(asked, Question(2, 2)), timer]
    (examine,) = peer.handle(says(asked, Evidence(2, 2, size, data=bytes(4 * PAYLOAD))), 23.0)
    assert isinstance(examine, Examine)
    assert len(examine.evidence) == size


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": 15}, "its evidence has a wrong size"),
        ({"size": 2**53, "data": bytes(PIECE_BYTES)}, "its evidence has a wrong size"),
        ({"data": b""}, "its evidence has a wrong size"),
        ({"data": bytes(15)}, "its evidence has a wrong size"),
        ({"before": 0}, "it leaves out a round that we heard"),
        ({"before": 2}, "it leaves out a round that we heard"),
        ({"before": 3}, "it leaves out a round that we heard"),
        ({"sources": (Source(PeerId("z"), 1, 1),)}, "it mixed models of peers that are no neighbours"),
        ({"sources": (Source(ME, 7, 1),) * 2}, "it mixed models of peers that are no neighbours"),
        ({"sources": (Source(ME, 7, 2),)}, "it mixed models of rounds to come"),
        ({"sources": (Source(ME, 8, 1),)}, "it mixed a model of ours that we never sent"),
        ({"sources": (Source(ME, 7, 0),)}, "it mixed a model of ours that we never sent"),
    ],
)
def test_impossible_evidence_convicts(changes: dict[str, object], reason: str) -> None:
    peer, asked = asking()
    assert peer.handle(says(asked, evidence(asked, **changes)), 21.0) == [banned(asked, reason)]


def test_a_later_piece_has_to_fit_as_well() -> None:
    peer, asked = asking(start_bytes=PIECE_BYTES)
    size = 2 * PIECE_BYTES + 4 * PAYLOAD
    peer.handle(says(asked, evidence(asked, size=size, data=bytes(PIECE_BYTES))), 21.0)
    assert peer.handle(says(asked, Evidence(2, 1, size, data=b"short")), 22.0) == [
        banned(asked, "its evidence has a wrong size")
    ]


def test_evidence_of_others_of_other_rounds_and_lives_has_no_effect() -> None:
    peer, asked = asking()
    other = next(name for name in (B, C, D) if name != asked)
    for event in (
        says(other, evidence(asked)),
        says(asked, evidence(asked, round=1)),
        says(asked, evidence(asked, number=1)),
        says(asked, evidence(asked), incarnation=0),
    ):
        assert not [effect for effect in peer.handle(event, 21.0) if isinstance(effect, Examine)]
    assert peer.audits is not None
    assert not peer.audits.banned


def test_a_round_between_that_we_missed_leaves_the_audit_open() -> None:
    peer = auditor()
    do_round(peer, 1, 10.0)
    do_round(peer, 2, 50.0, ())
    (send, _) = do_round(peer, 3, 90.0)
    assert isinstance(send, Send)
    asked = send.to
    told = evidence(asked, round=3, before=2)
    assert peer.handle(says(asked, told), 91.0) == [Report(AuditDone(asked, 3, "we did not hear what it sent before"))]


# Silence ----------------------------------------------------------------------------------------------


def test_who_is_alive_and_silent_is_asked_again_and_then_banned() -> None:
    peer, asked = asking()
    for _ in range(ASKS_MAX - 1):
        assert waited(peer) == [Send(asked, Question(2, 0)), SetTimer(Timer("audit", Turn(2)), WAIT_S)]
    assert waited(peer) == [banned(asked, SILENT)]


@pytest.mark.parametrize("how", ["down", "goodbye"])
def test_who_cannot_be_reached_is_not_guilty(how: str) -> None:
    peer, asked = asking()
    peer.handle(LinkDown(asked) if how == "down" else says(asked, Goodbye()), 21.0)
    for _ in range(ASKS_MAX - 1):
        waited(peer)
    assert waited(peer) == [cleared(asked, "it could not be reached")]


def test_a_new_life_owes_nothing() -> None:
    peer, asked = asking()
    peer.handle(LinkUp(asked, 2, Turn(0)), 21.0)
    assert waited(peer) == [cleared(asked, "it began a new life")]


def test_none_is_no_fault_of_one_that_is_two_rounds_further() -> None:
    peer, asked = asking()
    peer.handle(update(asked, 4), 21.0)
    assert peer.handle(says(asked, Evidence(2, 0, 0)), 22.0) == [cleared(asked, "it was two rounds further")]


def test_none_of_a_round_that_it_must_still_hold_convicts() -> None:
    peer, asked = asking()
    peer.handle(update(asked, 3), 21.0)
    for _ in range(ASKS_MAX - 1):
        assert peer.handle(says(asked, Evidence(2, 0, 0)), 22.0) == []
        waited(peer)
    assert waited(peer) == [banned(asked, SILENT)]


# Verdicts ---------------------------------------------------------------------------------------------


def guilty(f: int = 0) -> tuple[Peer, PeerId]:
    peer, asked = asking(f)
    peer.handle(says(asked, evidence(asked)), 21.0)
    assert peer.handle(Examined(asked, 2, "it lies"), 22.0) == [banned(asked, "it lies")]
    return peer, asked


def test_what_a_banned_peer_sends_has_no_effect_in_any_life() -> None:
    peer, asked = guilty()
    rest = [name for name in (B, C, D) if name != asked]
    for incarnation in (1, 2):
        peer.handle(LinkDown(asked), 22.5)
        assert not [
            effect for effect in peer.handle(LinkUp(asked, incarnation, Turn(3)), 22.5) if isinstance(effect, Send)
        ]
        assert peer.handle(update(asked, 3, incarnation=incarnation), 23.0) == []
        (answer,) = peer.handle(says(asked, Question(2, 0), incarnation), 23.0)  # one error must not become two
        assert isinstance(answer, Send)
    effects = peer.handle(trained(3), 30.0)
    assert effects == [*(ours(name, 3) for name in rest), deadline(3)]  # nothing goes there
    peer.handle(update(rest[0], 3), 31.0)
    mix = Mix(Turn(3), {name: data(name, 3) for name in rest}, dict.fromkeys(rest, THIRD))
    assert peer.handle(update(rest[1], 3), 31.0) == [mix]  # and nobody waits for it


def test_what_was_kept_of_a_banned_peer_is_not_mixed() -> None:
    peer, asked = asking()
    peer.handle(update(asked, 3), 21.0)
    peer.handle(says(asked, evidence(asked)), 22.0)
    peer.handle(Examined(asked, 2, "it lies"), 23.0)
    rest = [name for name in (B, C, D) if name != asked]
    for name in rest:
        peer.handle(update(name, 3), 24.0)
    mix = Mix(Turn(3), {name: data(name, 3) for name in rest}, dict.fromkeys(rest, THIRD))
    assert peer.handle(trained(3), 25.0)[-1] == mix


def test_a_ban_ends_the_wait() -> None:
    peer, asked = asking()
    rest = [name for name in (B, C, D) if name != asked]
    peer.handle(trained(3), 22.0)
    for name in rest:
        peer.handle(update(name, 3), 22.0)
    peer.handle(says(asked, evidence(asked)), 23.0)
    mix = Mix(Turn(3), {name: data(name, 3) for name in rest}, dict.fromkeys(rest, THIRD))
    assert peer.handle(Examined(asked, 2, "it lies"), 24.0) == [banned(asked, "it lies"), mix]


def test_what_hinders_us_convicts_nobody() -> None:
    peer, asked = asking()
    peer.handle(says(asked, evidence(asked)), 21.0)
    assert peer.handle(Examined(asked, 2, hindered="no memory"), 22.0) == [cleared(asked, "no memory")]


def test_with_f_liars_more_than_f_have_to_contradict() -> None:
    peer, asked = asking(f=1)
    peer.handle(says(asked, evidence(asked)), 21.0)
    one, other = others(asked)[:2]
    unlike = f"it mixed models of {one} that we heard otherwise"
    assert peer.handle(Examined(asked, 2, differs=(one,)), 22.0) == [cleared(asked, unlike)]
    second = asked_again(peer, asked, 3)
    again = peer.handle(Examined(asked, second, differs=(one,)), 1000.0)  # the same is one contradiction
    assert again == [Report(AuditDone(asked, second, unlike))]
    third = asked_again(peer, asked, second + 1)
    reason = f"it mixed models of {min(one, other)}, {max(one, other)} that we heard otherwise"
    assert peer.handle(Examined(asked, third, differs=(other,)), 1000.0) == [Report(Banned(asked, third, reason))]


def test_with_f_0_a_contradiction_decides_nothing() -> None:
    """Else one liar that tells its neighbours different things makes them ban each other."""
    peer, asked = asking()
    peer.handle(says(asked, evidence(asked)), 21.0)
    one, other = others(asked)[:2]
    unlike = f"it mixed models of {one}, {other} that we heard otherwise"
    assert peer.handle(Examined(asked, 2, differs=(one, other)), 22.0) == [cleared(asked, unlike)]


@pytest.mark.parametrize("f", [0, 1])
def test_what_it_says_to_have_from_us_we_know(f: int) -> None:
    peer, asked = asking(f)
    peer.handle(says(asked, evidence(asked)), 21.0)
    found = peer.handle(Examined(asked, 2, differs=(ME,)), 22.0)
    assert found == [banned(asked, "it mixed another model of ours than we sent")]


def test_a_leaving_peer_ends_its_examination() -> None:
    peer, asked = asking()
    peer.handle(trained(3), 20.5)
    peer.handle(says(asked, evidence(asked)), 21.0)
    effects = peer.handle(LeaveRequested(), 22.0)
    assert (effects[0], effects[-1]) == (Interrupt(), Leave())
