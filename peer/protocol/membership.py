"""Who is live. `Membership` is the interface; `Heartbeats` is the plain rule behind it.

The plain rule: whoever spoke within `timeout_s` is alive; an open link says so as well, a broken one makes a peer
suspect at once and dead after `timeout_s` of silence; a goodbye is not a death. Only our neighbours are watched.
Nobody is sent a heartbeat who was sent something else since the last one, so silence is at most two beats long.
By how much our own beat comes late, by so much we are slower to accuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from .events import (
    Effect,
    Envelope,
    Event,
    Goodbye,
    Heartbeat,
    LinkDown,
    LinkUp,
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
    Turn,
)


class Membership(Protocol):
    """Knows every other peer's state, and says so when it changes."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """`now`: seconds on our own monotonic clock."""
        ...

    def alive(self, peer: PeerId) -> bool:
        """Whether it is worth waiting for `peer`."""
        ...

    def state(self, peer: PeerId) -> PeerState:
        """What we believe of `peer`; a peer never heard of is dead."""
        ...

    def heard_at(self, peer: PeerId) -> float:
        """When `peer` last spoke, on our clock; 0 for never."""
        ...

    def told(self, peer: PeerId, now: float) -> None:
        """Something else than a heartbeat was sent to `peer`: a sign of life as well."""
        ...


@dataclass(slots=True)
class _Watched:
    state: PeerState = PeerState.DEAD
    linked: bool = False
    heard_at: float = 0.0
    told_at: float = -math.inf  # when we last sent it anything
    incarnation: int = 0


class Heartbeats:
    """A sign of life to every linked neighbour in each `heartbeat_s`; silence beyond `timeout_s` is death."""

    def __init__(
        self, neighbours: Iterable[PeerId], heartbeat_s: float, timeout_s: float, where: Callable[[], Turn]
    ) -> None:
        self._watched = {peer: _Watched() for peer in neighbours}
        self._alive: set[PeerId] = set()
        self._next_beat = SetTimer(Timer("heartbeat", Turn(0)), heartbeat_s)
        self._heartbeat_s = heartbeat_s
        self._timeout_s = timeout_s
        self._where = where
        self._beat_at: float | None = None  # when the next beat is due

    def alive(self, peer: PeerId) -> bool:
        return peer in self._alive

    def state(self, peer: PeerId) -> PeerState:
        watched = self._watched.get(peer)
        return PeerState.DEAD if watched is None else watched.state

    def heard_at(self, peer: PeerId) -> float:
        return self._watched[peer].heard_at

    def told(self, peer: PeerId, now: float) -> None:
        self._watched[peer].told_at = now

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Received(envelope):
                return self._on_received(envelope, now)
            case LinkUp(peer, incarnation, _):
                watched = self._watched.get(peer)
                if watched is None or incarnation < watched.incarnation:
                    return []
                if watched.state is PeerState.LEFT and incarnation == watched.incarnation:
                    return []  # opened before the goodbye, told after it
                watched.linked, watched.heard_at, watched.incarnation = True, now, incarnation
                return self._become(peer, PeerState.ALIVE)
            case LinkDown(peer):
                watched = self._watched.get(peer)
                if watched is None:
                    return []
                watched.linked = False
                return self._become(peer, PeerState.SUSPECT) if watched.state is PeerState.ALIVE else []
            case Started():
                self._beat_at = now + self._heartbeat_s
                return [self._next_beat]
            case TimerFired(Timer("heartbeat")):
                return self._on_beat(now)
            case _:
                return []

    def _on_received(self, envelope: Envelope, now: float) -> list[Effect]:
        watched = self._watched.get(envelope.sender)
        if watched is None or envelope.incarnation < watched.incarnation:
            return []
        reborn = envelope.incarnation > watched.incarnation
        watched.incarnation = envelope.incarnation
        watched.heard_at = now
        if isinstance(envelope.body, Goodbye):
            return self._become(envelope.sender, PeerState.LEFT)
        if watched.state is PeerState.LEFT and not reborn:
            return []  # said before the goodbye, arrived after it
        return self._become(envelope.sender, PeerState.ALIVE)

    def _on_beat(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        heartbeat = Heartbeat(self._where())
        # Who is starved itself has not listened, and must not call the others silent (Lifeguard, Dadgar et al. 2018).
        starved_s = 0.0 if self._beat_at is None else max(0.0, now - self._beat_at)
        self._beat_at = now + self._heartbeat_s
        for peer, watched in self._watched.items():
            if watched.linked and now - watched.told_at >= self._heartbeat_s:
                effects.append(Send(peer, heartbeat))  # whoever got an update since the last beat knows that we live
            silent = now - watched.heard_at > self._timeout_s + starved_s
            if silent and watched.state in (PeerState.ALIVE, PeerState.SUSPECT):
                effects += self._become(peer, PeerState.DEAD)
        effects.append(self._next_beat)
        return effects

    def _become(self, peer: PeerId, state: PeerState) -> list[Effect]:
        watched = self._watched[peer]
        if watched.state is state:
            return []
        watched.state = state
        (self._alive.add if state is PeerState.ALIVE else self._alive.discard)(peer)
        return [Report(PeerChanged(peer, state))]
