"""Audits of neighbours, the pure part: what one may leave open now and then, and not always."""

from __future__ import annotations

import pytest

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.doubts import CLAIMS_MAX, EVASIONS_MAX, Doubts
from murmurate.peer.protocol.events import (
    AuditDone,
    Banned,
    Effect,
    Evidence,
    Examine,
    Examined,
    LinkDown,
    LinkUp,
    PeerId,
    Question,
    Report,
    Send,
    Source,
    Turn,
)
from murmurate.peer.protocol.showing import PIECE_BYTES, SHOWN_ROUNDS_MAX

from .audits_scene import (
    ASKS_MAX,
    ME,
    PAYLOAD,
    START,
    asked_again,
    asking,
    cleared,
    do_round,
    evidence,
    mixed,
    says,
    sources,
    trained,
    waited,
)
from .scene import too_late, update

FURTHER = "it was two rounds further"
CLAIMS = "it says that it is two rounds further"
NONE_HEARD = "it mixed too many models that nobody else heard, now of "


def left_open(peer: PeerId, round: int, why: str) -> list[Report]:
    return [Report(AuditDone(peer, round, why))]


def too_seldom(peer: PeerId, round: int, why: str) -> list[Report]:
    return [Report(Banned(peer, round, f"it shows too seldom how its rounds began: {why}"))]


# These tests look inside: what is on a neighbour's account, and what we should know.
# pyright: reportPrivateUsage=false

# None, and two rounds further ---------------------------------------------------------------------------


def runs(peer: Peer, asked: PeerId, round: int) -> list[Effect]:
    """It leaves the question alone until it is two rounds further."""
    for later in (1, 2):
        peer.handle(update(asked, round + later), 21.0)
    return peer.handle(says(asked, Evidence(round, 0, 0)), 22.0)


def test_to_be_two_rounds_further_helps_for_a_while() -> None:
    peer, asked = asking()
    number = 2
    for _ in range(EVASIONS_MAX - 1):
        assert runs(peer, asked, number) == left_open(asked, number, FURTHER)
        number = asked_again(peer, asked, number + 1, answers=False)
    assert runs(peer, asked, number) == too_seldom(asked, number, FURTHER)


def test_what_was_passed_makes_good_for_that() -> None:
    peer, asked = asking()
    number = 2
    for _ in range(2 * EVASIONS_MAX):
        assert runs(peer, asked, number) == left_open(asked, number, FURTHER)
        number = asked_again(peer, asked, number + 1)
        assert peer.handle(Examined(asked, number), 22.0) == left_open(asked, number, "")
        number = asked_again(peer, asked, number + 1, answers=False)


def test_the_update_that_excuses_may_come_later() -> None:
    peer, asked = asking()
    assert peer.handle(says(asked, Evidence(2, 0, 0)), 21.0) == []
    peer.handle(update(asked, 4), 22.0)
    assert waited(peer) == [cleared(asked, FURTHER)]


def test_who_says_that_it_is_further_is_believed_for_a_while() -> None:
    doubts = Doubts(1)
    assert [doubts.claim(round, sent=9) for round in range(10, 10 + CLAIMS_MAX)] == [False] * (CLAIMS_MAX - 1) + [True]


def test_what_an_update_proves_later_was_no_claim() -> None:
    doubts = Doubts(1)
    assert not any(doubts.claim(round, sent=round - 1) for round in range(10, 100, 3))


# A long show --------------------------------------------------------------------------------------------


def large(peer: Peer, asked: PeerId, pieces: int) -> int:
    """It is asked, and gives the first piece of so many."""
    size = pieces * PIECE_BYTES + 4 * PAYLOAD
    first = evidence(asked, size=size, data=bytes(PIECE_BYTES))
    (send, _) = peer.handle(says(asked, first), 21.0)
    assert send == Send(asked, Question(2, 1))
    return size


def test_who_has_begun_to_show_goes_on_however_far_it_is() -> None:
    peer, asked = asking(start_bytes=PIECE_BYTES)
    large(peer, asked, 2)
    peer.handle(update(asked, 4), 22.0)
    for _ in range(ASKS_MAX - 1):
        assert peer.handle(says(asked, Evidence(2, 1, 0)), 22.0) == []
        waited(peer)
    assert peer.handle(says(asked, Evidence(2, 1, 0)), 22.0) == []
    assert waited(peer) == left_open(asked, 2, CLAIMS)
    assert peer.audits is not None
    assert peer.audits._doubts[asked].evaded == 1


def test_who_dawdles_keeps_us_from_others_for_so_many_rounds_only() -> None:
    pieces = 2 * SHOWN_ROUNDS_MAX + 10
    peer, asked = asking(start_bytes=pieces * PIECE_BYTES // 2)
    size = large(peer, asked, pieces)
    found: list[Effect] = []
    for number in range(1, pieces):
        do_round(peer, 2 + number, 20.0 + number)
        found = peer.handle(says(asked, Evidence(2, number, size, data=bytes(PIECE_BYTES))), 20.0 + number)
        if isinstance(found[0], Report):
            break
    assert found == left_open(asked, 2, "it takes too long to show it")
    assert peer.round == 2 + SHOWN_ROUNDS_MAX + 2


# What nobody else heard ---------------------------------------------------------------------------------


def audits_with(peer: Peer, asked: PeerId, shown: tuple[Source, ...], most: int = 40) -> list[Effect]:
    """How the last of so many audits ends in which it names these sources, but for the round before."""
    number, effects = 2, list[Effect]()
    for _ in range(most):
        told = tuple(one._replace(round=number - 1) if one.round == 1 else one for one in shown)
        body = evidence(
            asked, round=number, before=number - 1, sources=told, data=bytes(2 * START + (1 + len(told)) * PAYLOAD)
        )
        effects = peer.handle(says(asked, body), 10.0 * number)
        if not isinstance(effects[0], Examine):
            return effects
        effects = peer.handle(Examined(asked, number), 10.0 * number)
        number = asked_again(peer, asked, number + 1, answers=False)
    return effects


@pytest.mark.parametrize("label", [{"incarnation": 99}, {"incarnation": 0}, {"round": 0}], ids=str)
def test_who_names_lives_and_rounds_that_nobody_heard_is_found(label: dict[str, int]) -> None:
    peer, asked = asking(f=1)
    invented = tuple(one if one.peer == ME else one._replace(**label) for one in sources(asked))
    (report,) = audits_with(peer, asked, invented)
    assert isinstance(report, Report)
    assert isinstance(report.fact, Banned)
    assert report.fact.reason.startswith(NONE_HEARD)


def test_an_old_life_of_ours_is_believed_now_and_then() -> None:
    peer, asked = asking()
    shown = tuple(one._replace(incarnation=6) if one.peer == ME else one for one in sources(asked))
    (report,) = audits_with(peer, asked, shown, 1)
    assert report == Report(AuditDone(asked, 2, "we did not hear its models of me"))
    peer, asked = asking()
    (report,) = audits_with(peer, asked, shown[-1:])  # and nothing else
    assert isinstance(report, Report)
    assert isinstance(report.fact, Banned)


@pytest.mark.parametrize(("f", "most"), [(0, 2), (1, 1)])
def test_what_liars_may_have_kept_from_us_is_no_fault_of_others(f: int, most: int) -> None:
    """Else they could make honest peers ban each other: f of them, and with f = 0 any number."""
    peer, asked = asking(f)
    one, *rest = sources(asked)
    rest = [source._replace(round=0) if most == 2 and source.peer != ME else source for source in rest]
    shown = (one._replace(round=0), *rest)
    (report,) = audits_with(peer, asked, shown)
    assert isinstance(report, Report)
    assert isinstance(report.fact, AuditDone)
    missed = [source.peer for source in shown if not source.round]
    assert len(missed) == most
    assert report.fact.open == f"we did not hear its models of {', '.join(missed)}"


@pytest.mark.parametrize("f", [0, 1])
def test_whoever_sends_us_nothing_makes_nobody_guilty(f: int) -> None:
    """Those who banned us are alive, and we hear no model of theirs."""
    peer, asked = asking(f)
    others = [one._replace(round=2) for one in sources(asked) if one.peer != ME]
    peer.handle(trained(3), 30.0)
    peer.handle(update(asked, 3), 30.0)
    peer.handle(too_late(3), 60.0)
    peer.handle(mixed(3, asked), 60.0)
    assert peer.audits is not None
    unknown = [peer.audits._should_know(one._replace(round=3)) for one in others]
    assert not any(unknown)


def test_what_comes_from_one_that_we_do_not_hear_counts_for_nothing() -> None:
    peer, asked = asking()
    other = next(one.peer for one in sources(asked) if one.peer != ME)
    peer.handle(LinkDown(other), 20.0)
    shown = evidence(asked, sources=(Source(other, 9, 0),), data=bytes(2 * START + 2 * PAYLOAD))
    (examine,) = peer.handle(says(asked, shown), 21.0)
    assert isinstance(examine, Examine)
    assert examine.heard == {}
    assert peer.handle(Examined(asked, 2), 22.0) == [cleared(asked)]


# What cannot be computed --------------------------------------------------------------------------------


def test_what_hinders_us_and_is_its_own_doing_is_allowed_now_and_then() -> None:
    peer, asked = asking()
    number = 2
    peer.handle(says(asked, evidence(asked)), 21.0)
    for _ in range(EVASIONS_MAX - 1):
        found = peer.handle(Examined(asked, number, hindered="an error", theirs=True), 22.0)
        assert found == left_open(asked, number, "an error")
        number = asked_again(peer, asked, number + 1)
    found = peer.handle(Examined(asked, number, hindered="an error", theirs=True), 22.0)
    assert found == too_seldom(asked, number, "an error")


def test_a_new_life_has_evaded_nothing() -> None:
    peer, asked = asking()
    for round in range(2, 2 + EVASIONS_MAX):
        peer.handle(LinkUp(asked, round, Turn(0)), 21.0)
        audits = peer.audits
        assert audits is not None
        assert not audits._doubts_of(asked).evade()
