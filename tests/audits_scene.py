"""The stage for audits: one peer, "me", in a complete graph with b, c and d; more words beside those of scene.py."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from murmurate.peer.protocol.audits import (
    ASKS_MAX,
    Auditing,
)
from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import (
    AuditDone,
    Banned,
    Body,
    Effect,
    Evidence,
    Examine,
    Examined,
    LinkUp,
    Mixed,
    PeerId,
    Proof,
    Question,
    Received,
    Report,
    Send,
    SetTimer,
    Source,
    Started,
    Timer,
    TimerFired,
    Trained,
    Turn,
)
from murmurate.peer.protocol.neighbourhood import Neighbourhood
from murmurate.peer.protocol.rounds import Pacing
from murmurate.topology import Topology

from .scene import B, C, D, data, told, too_late, update

ME = PeerId("me")
START, PAYLOAD = 3, 5  # bytes; a start of ours is "s07", a payload "b 7.0"
SILENT = "it does not show how its round began (asked 5 times in 30 s)"
WAIT_S = 30.0 / ASKS_MAX
THIRD = 1 / 4  # Metropolis weights of a complete graph of four


def digest(payload: object) -> bytes:
    return hashlib.sha256(bytes(payload)).digest()  # type: ignore[call-overload]: a payload


def start(round: int) -> bytes:
    return b"s%02d" % round


def auditor(rate: float = 1.0, f: int = 0, start_bytes: int = START) -> Peer:
    """A peer in a complete graph of four that has begun round 1 at time 0; it may audit anybody in each round."""
    around = Neighbourhood(ME, [B, C, D, ME], Topology("complete", 4))
    rule = Auditing(rate=rate, deadline_s=30.0, f=f, secret=b"?", start_bytes=start_bytes, payload_bytes=PAYLOAD)
    peer = Peer(around, Pacing(f=f), 0.5, 3.0, auditing=rule)
    peer.handle(Started(0, 7), 0.0)
    for link in (B, C, D):
        peer.handle(LinkUp(link, 1, Turn(0)), 0.0)
    return peer


def trained(round: int, undone: bool = False) -> Trained:
    payload = data("me", round)
    return Trained(round, payload, proof=Proof(start(round), digest(payload), undone))


def mixed(round: int, senders: str = "bcd", *malformed: PeerId) -> Mixed:
    digests = tuple((PeerId(name), digest(data(name, round))) for name in senders)
    return Mixed(Turn(round), malformed=malformed, digests=digests)


def do_round(peer: Peer, round: int, now: float, senders: Sequence[PeerId] = (B, C, D)) -> list[Effect]:
    """A whole round in no time; returns what its end brought about, without the round's own effects."""
    for sender in senders:
        peer.handle(update(sender, round), now)
    peer.handle(trained(round), now)
    if len(senders) < 3:
        peer.handle(too_late(round), now)
    effects = peer.handle(mixed(round, "".join(senders)), now)
    return [effect for effect in effects if isinstance(effect, Send | SetTimer)]


def asking(f: int = 0, start_bytes: int = START) -> tuple[Peer, PeerId]:
    """A peer that has mixed two rounds, and whom it asks how the second one began."""
    peer = auditor(f=f, start_bytes=start_bytes)
    assert do_round(peer, 1, 10.0) == []
    send, timer = do_round(peer, 2, 20.0)
    assert isinstance(send, Send)
    assert (send.body, timer) == (Question(2, 0), SetTimer(Timer("audit", Turn(2)), WAIT_S))
    return peer, send.to


def others(peer: PeerId) -> list[PeerId]:
    return [other for other in (B, C, D, ME) if other != peer]


def sources(peer: PeerId, round: int = 1) -> tuple[Source, ...]:
    """Everybody else's models of a round, as an honest peer mixed them."""
    return tuple(Source(other, 7 if other == ME else 1, round) for other in others(peer))


def evidence(peer: PeerId, **changes: object) -> Evidence:
    given: dict[str, object] = {
        "round": 2,
        "number": 0,
        "before": 1,
        "sources": sources(peer),
        "data": bytes(2 * START + 4 * PAYLOAD),
    }
    given |= changes
    given.setdefault("size", 2 * START + (1 + len(given["sources"])) * PAYLOAD)  # type: ignore[arg-type]: a tuple
    return Evidence(**given)  # type: ignore[arg-type]: as given


def says(peer: PeerId, body: Body, incarnation: int = 1) -> Received:
    return told(peer, body, incarnation)


def waited(peer: Peer, round: int = 2) -> list[Effect]:
    return peer.handle(TimerFired(Timer("audit", Turn(round))), 30.0)


def cleared(peer: PeerId, why: str = "") -> Report:
    return Report(AuditDone(peer, 2, why))


def banned(peer: PeerId, reason: str) -> Report:
    return Report(Banned(peer, 2, reason))


def asked_again(peer: Peer, asked: PeerId, first: int, answers: bool = True) -> int:
    """Rounds go by until the same neighbour is asked again (and has answered); returns about which one."""
    for round in range(first, first + 40):
        send, _ = do_round(peer, round, 10.0 * round)
        assert isinstance(send, Send)
        if send.to == asked and not answers:
            return round
        whole = bytes(2 * START + PAYLOAD)
        shown = evidence(send.to, round=round, before=round - 1, sources=(), data=whole)
        (examine,) = peer.handle(says(send.to, shown), 10.0 * round)
        assert isinstance(examine, Examine)
        if send.to == asked:
            return round
        peer.handle(Examined(send.to, round), 10.0 * round)
    raise AssertionError(asked)
