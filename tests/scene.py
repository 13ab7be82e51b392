"""The stage for scenarios of one peer, "me", among its neighbours b, c and d: events and effects in few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import (
    Body,
    Dropped,
    Effect,
    Envelope,
    Goodbye,
    Heartbeat,
    Leave,
    LinkUp,
    Mix,
    Mixed,
    PeerChanged,
    PeerId,
    PeerState,
    Received,
    Report,
    RoundDone,
    Save,
    Send,
    SetTimer,
    Started,
    Timer,
    TimerFired,
    Train,
    Trained,
    Turn,
    Update,
    Verdict,
)
from murmurate.peer.protocol.neighbourhood import Edges, Neighbourhood
from murmurate.peer.protocol.rounds import Pacing

B, C, D, Z = PeerId("b"), PeerId("c"), PeerId("d"), PeerId("z")  # z is a stranger
WEIGHTS = {B: 0.1, C: 0.2, D: 0.3}
HEARTBEAT_S, TIMEOUT_S, DEADLINE_S, JOIN_S, SETTLE_S = 0.5, 3.0, 30.0, 10.0, 1.0
BEAT, JOIN, SETTLE = (Timer(kind, Turn(0)) for kind in ("heartbeat", "join", "settle"))
NEXT_BEAT, PATIENCE, SETTLING = SetTimer(BEAT, HEARTBEAT_S), SetTimer(JOIN, JOIN_S), SetTimer(SETTLE, SETTLE_S)


class Constants(TypedDict, total=False):
    """What a scenario may change in `Pacing`."""

    rounds_max: int
    stale_max: int
    gossip_steps: int
    f: int
    save_s: float


class Around(Neighbourhood):
    """A place in a graph without a graph: everybody is heard and sent to, except in the rounds given."""

    def __init__(self, links: Sequence[PeerId], rounds: Mapping[int, Edges] | None = None) -> None:
        self.links = tuple(links)
        self._always = Edges(self.links, {peer: WEIGHTS[peer] for peer in links})
        self._given = rounds or {}

    def edges(self, round: int) -> Edges:
        return self._given.get(round, self._always)


# How far a scenario has come --------------------------------------------------------------------------


def fresh(
    links: Sequence[PeerId] = (B, C, D), rounds: Mapping[int, Edges] | None = None, **pacing: Unpack[Constants]
) -> Peer:
    """A peer that knows nothing yet."""
    return Peer(Around(links, rounds), Pacing(**pacing), HEARTBEAT_S, TIMEOUT_S)


def started(links: Sequence[PeerId] = (B, C, D), round: int = 0, **pacing: Unpack[Constants]) -> Peer:
    """A peer that has started at time 0 with a snapshot of `round` (0: none) and waits for its neighbours."""
    peer = fresh(links, **pacing)
    assert peer.handle(Started(round), 0.0) == [NEXT_BEAT, PATIENCE]
    return peer


def begun(
    links: Sequence[PeerId] = (B, C, D),
    round: int = 1,
    rounds: Mapping[int, Edges] | None = None,
    **pacing: Unpack[Constants],
) -> Peer:
    """A peer that has begun `round` at time 0; all neighbours are linked, and one round behind."""
    peer = fresh(links, rounds, **pacing)
    assert peer.handle(Started(round - 1), 0.0) == [NEXT_BEAT, PATIENCE]
    for link in links[:-1]:
        assert peer.handle(LinkUp(link, 1, Turn(round - 1)), 0.0) == [changed(link, "alive")]
    last = links[-1]
    assert peer.handle(LinkUp(last, 1, Turn(round - 1)), 0.0) == [changed(last, "alive"), Train(round)]
    return peer


def waiting(links: Sequence[PeerId] = (B, C, D), round: int = 1, **pacing: Unpack[Constants]) -> Peer:
    """The same after its local steps: at time 10 it sent its update, and it waits."""
    peer = begun(links, round, **pacing)
    assert peer.handle(trained(round), 10.0) == [*(ours(link, round) for link in links), deadline(round)]
    return peer


def all_speak(peer: Peer, round: int, now: float, senders: Sequence[PeerId] = (B, C, D)) -> list[Effect]:
    """The update of every sender arrives; returns what the last one brought about."""
    for sender in senders[:-1]:
        assert peer.handle(update(sender, round), now) == []
    return peer.handle(update(senders[-1], round), now)


def alone(peer: Peer, round: int, now: float) -> list[Effect]:
    """A whole round in no time, in which nobody else is heard; returns what its end brought about."""
    if peer.handle(trained(round), now)[-1] == deadline(round):
        peer.handle(too_late(round), now)
    return peer.handle(mixed(round), now)


# Events -----------------------------------------------------------------------------------------------


def data(sender: str, round: int, hop: int = 0) -> bytes:
    """A payload that tells whose and when."""
    return f"{sender} {round}.{hop}".encode()


def told(sender: PeerId, body: Body, incarnation: int = 1) -> Received:
    """Any envelope."""
    return Received(Envelope(sender, incarnation, body))


def update(sender: PeerId, round: int, hop: int = 0, incarnation: int = 1) -> Received:
    """A neighbour's update."""
    return told(sender, Update(Turn(round, hop), data(sender, round, hop)), incarnation)


def beat(sender: PeerId, round: int, incarnation: int = 1) -> Received:
    """A neighbour's heartbeat."""
    return told(sender, Heartbeat(Turn(round)), incarnation)


def goodbye(sender: PeerId) -> Received:
    """A neighbour leaves."""
    return told(sender, Goodbye())


def up(peer: PeerId, round: int = 0, incarnation: int = 1) -> LinkUp:
    """A link to a neighbour that has begun `round`."""
    return LinkUp(peer, incarnation, Turn(round))


def trained(round: int, complete: bool = True) -> Trained:
    """Our local steps are over."""
    return Trained(round, data("me", round), complete)


def mixed(round: int, hop: int = 0, *malformed: PeerId) -> Mixed:
    """Our mix is done; its payload is that of the next hop."""
    return Mixed(Turn(round, hop), data("me", round, hop + 1), malformed)


def too_late(round: int, hop: int = 0) -> TimerFired:
    """The deadline of a turn has come."""
    return TimerFired(Timer("deadline", Turn(round, hop)))


# Effects ----------------------------------------------------------------------------------------------


def ours(to: PeerId, round: int, hop: int = 0) -> Send:
    """Our update on its way."""
    return Send(to, Update(Turn(round, hop), data("me", round, hop)))


def deadline(round: int, hop: int = 0) -> SetTimer:
    """A wait begins."""
    return SetTimer(Timer("deadline", Turn(round, hop)), DEADLINE_S)


def inbox(**turns: int | tuple[int, int]) -> dict[PeerId, bytes]:
    """Whose update of which round, or of which (round, hop)."""
    whole = {PeerId(name): turn if isinstance(turn, tuple) else (turn, 0) for name, turn in turns.items()}
    return {peer: data(peer, *turn) for peer, turn in whole.items()}


def mix(round: int, hop: int = 0, pack: bool = False, **turns: int | tuple[int, int]) -> Mix:
    """A mix of exactly these updates."""
    payloads = inbox(**turns)
    return Mix(Turn(round, hop), payloads, {peer: WEIGHTS[peer] for peer in payloads}, pack)


def done(round: int, waited_s: float, folded: str = "", missing: str = "") -> Report:
    """A round is complete; peers are named by their letters."""
    return Report(RoundDone(round, waited_s, tuple(map(PeerId, folded)), tuple(map(PeerId, missing))))


def dropped(peer: PeerId, verdict: Verdict) -> Report:
    """An envelope had no effect."""
    return Report(Dropped(peer, verdict))


def changed(peer: PeerId, state: str) -> Report:
    """A neighbour is alive, suspect, dead or has left."""
    return Report(PeerChanged(peer, PeerState(state)))


def announced(round: int, *peers: PeerId) -> list[Effect]:
    """Heartbeats that tell where we are."""
    return [Send(peer, Heartbeat(Turn(round))) for peer in peers]


def farewell(*peers: PeerId) -> list[Effect]:
    """How a peer leaves."""
    return [*(Send(peer, Goodbye()) for peer in peers), Save(), Leave()]
