"""The simulated network: links that open late, break one end at a time or fall silent; envelopes that are lost,
doubled, overtaken, replayed; partitions; strangers.

A link belongs to two lives. Each end learns of its opening and its end on its own, as from a real transport; the end
of a life is noticed by its neighbours as a broken link, or, when its cable was pulled, not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Protocol

from murmurate.peer.protocol.events import (
    Body,
    Envelope,
    Goodbye,
    Heartbeat,
    LinkDown,
    LinkUp,
    PeerId,
    Received,
    Turn,
    Update,
)

from .life import Life
from .referee import Parcel
from .schedule import Schedule
from .weather import Weather

STRANGER = PeerId("stranger")


class Mischief(Protocol):
    """What else than the truth can arrive, in one exchange."""

    def garbage(self, life: Life, body: Body, random: Random, /) -> Body | None:
        """What a bad link makes of a body; None: it never harms such ones."""
        ...

    def stranger(self, life: Life, name: PeerId, incarnation: int, random: Random, /) -> Body:
        """What somebody who is no neighbour of `life` tells it, under this name."""
        ...


class Parcels:
    """Mischief with models."""

    def __init__(self, payload_bytes: int) -> None:
        # What cannot be a model: too short, or right in length and not a number in any float format.
        self._garbage = (b"short", b"\xff" * payload_bytes)

    def garbage(self, life: Life, body: Body, random: Random) -> Body | None:
        """A payload that is no model."""
        if not isinstance(body, Update):
            return None
        return Update(body.turn, Parcel.of(random.choice(self._garbage), life.name, life.incarnation, body.turn))

    def stranger(self, life: Life, name: PeerId, incarnation: int, random: Random) -> Body:
        """A model of zeros, which looks like any other."""
        turn = life.core.rounds.turn
        turn = Turn(max(1, turn.round + random.randrange(-1, 3)))
        return Update(turn, Parcel.of(bytes(len(self._garbage[1])), name, incarnation, turn))


class Network:
    """Everything between the peers."""

    def __init__(
        self,
        graph: Sequence[Sequence[int]],
        weather: Weather,
        schedule: Schedule,
        random: Random,
        mischief: Mischief,
    ) -> None:
        """`graph`: the neighbours of each peer."""
        self.weather = weather
        self.messages = 0
        self.lives: list[Life | None] = [None] * len(graph)
        self._graph = graph
        self._schedule = schedule
        self._random = random
        self._side: list[int] | None = None  # during a partition: where each peer is
        self._whole_since = 0.0
        self._mischief = mischief
        schedule.after(self._mean(weather.stranger_s), self._stranger)
        if weather.partition_s:
            schedule.after(self._mean(weather.whole_s), self._partition)
        if weather.break_s:
            schedule.after(self._mean(weather.break_s), self._break)

    def calm(self) -> None:
        """The storm is over."""
        self.weather = self.weather.calm()
        self._side = None

    def _mean(self, mean_s: float) -> float:
        return self._random.expovariate(1 / mean_s)

    def _latency(self) -> float:
        return self.weather.latency_s - self.weather.jitter_s * math.log(1.0 - self._random.random())

    def _parted(self, one: Life, other: Life) -> bool:
        return self._side is not None and self._side[one.index] != self._side[other.index]

    # Envelopes ----------------------------------------------------------------------------------------

    def send(self, life: Life, other: Life, body: Body) -> None:
        """Best effort."""
        self.messages += 1
        weather, random = self.weather, self._random
        if weather.loss and random.random() < weather.loss:
            return
        if self._side is not None and self._parted(life, other):
            return
        received = life.received(body)
        if weather.garbage and not isinstance(body, Heartbeat | Goodbye) and random.random() < weather.garbage:
            garbage = self._mischief.garbage(life, body, random)
            if garbage is not None:
                received = Received(Envelope(life.name, life.incarnation, garbage))
        delay_s = weather.latency_s - weather.jitter_s * math.log(1.0 - random.random())
        self._schedule.after(delay_s, other.receive, received, life.index)
        if weather.duplication and random.random() < weather.duplication:
            self._schedule.after(self._latency(), other.receive, received, life.index)
        if weather.replay and random.random() < weather.replay:
            self._schedule.after(random.uniform(0, weather.replay_s), self._replay, other.index, received, life.index)

    def _replay(self, to: int, received: Received, sender: int) -> None:
        life = self.lives[to]
        if life is not None:
            life.receive(received, sender)

    def _stranger(self) -> None:
        """An update for a random peer from nobody, or from a peer of the swarm that is no neighbour of it."""
        life = self._random.choice(self.lives)
        if life is not None and life.up:
            index = self._random.randrange(len(self.lives))
            other = self.lives[index]
            near = index == life.index or index in self._graph[life.index]
            known = other is not None and not near and self._random.random() < 0.5
            name, incarnation = (other.name, other.incarnation) if other is not None and known else (STRANGER, 1)
            body = self._mischief.stranger(life, name, incarnation, self._random)
            life.receive(Received(Envelope(name, incarnation, body)), index if known else -1)
        self._schedule.after(self._mean(self.weather.stranger_s), self._stranger)

    # Links --------------------------------------------------------------------------------------------

    def join(self, life: Life) -> None:
        """A life begins: it links with its neighbours that are there. (The others will, when they start.)"""
        self.lives[life.index] = life
        for index in self._graph[life.index]:
            other = self.lives[index]
            if other is not None and other.up:
                self._schedule.after(2 * self._latency(), self._greet, life, other)

    def end(self, life: Life, silent: bool) -> None:
        """A life is over."""
        for index in self._graph[life.index]:
            other = self.lives[index]
            if other is not None and not silent:
                self._schedule.after(self._latency(), self._down, other, life)

    def _greet(self, one: Life, other: Life) -> None:
        """Try to open a link; on failure try again, as long as both live."""
        if not (one.up and other.up) or (one.links.get(other.name) is other and other.links.get(one.name) is one):
            return
        if self._parted(one, other) or self._random.random() < self.weather.loss:
            self._redial(one, other)
            return
        self._schedule.after(self._latency(), self._up, one, other, other.core.rounds.turn)
        self._schedule.after(self._latency(), self._up, other, one, one.core.rounds.turn)

    def _redial(self, one: Life, other: Life) -> None:
        self._schedule.after(self._random.uniform(0, self.weather.redial_s), self._greet, one, other)

    def _up(self, life: Life, other: Life, turn: Turn) -> None:
        current = life.links.get(other.name)
        if not life.up or (current is not None and current.incarnation > other.incarnation):
            return  # a newer life was faster
        if current is not None:
            self._down(life, current)  # as a transport does: a newer link replaces the older
        life.links[other.name] = other
        life.feed(LinkUp(other.name, other.incarnation, turn), other.index, turn.round)
        if not other.up:
            self._schedule.after(self._latency(), self._down, life, other)

    def _down(self, life: Life, other: Life) -> None:
        if life.up and life.links.get(other.name) is other:
            del life.links[other.name]
            life.feed(LinkDown(other.name), other.index)
            self._redial(life, other)

    def _sever(self, one: Life, other: Life) -> None:
        """Both ends will notice, each in its own time."""
        self._schedule.after(self._random.uniform(0, 1), self._down, one, other)
        self._schedule.after(self._random.uniform(0, 1), self._down, other, one)

    def _break(self) -> None:
        if self.weather.break_s:
            life = self._random.choice(self.lives)
            if life is not None and life.links:
                self._sever(life, self._random.choice(list(life.links.values())))
            self._schedule.after(self._mean(self.weather.break_s), self._break)

    # Partitions ---------------------------------------------------------------------------------------

    def halve(self) -> None:
        """The first half of the peers hears nothing of the second, until `heal`."""
        self._side = [2 * i // len(self.lives) for i in range(len(self.lives))]

    def heal(self) -> None:
        """Everybody can hear everybody."""
        self._side = None

    def _partition(self) -> None:
        if not self.weather.partition_s:
            return
        self._side = [self._random.randrange(2) for _ in self.lives]
        for life in filter(None, self.lives):
            for other in life.links.values():
                if self._parted(life, other) and self._random.random() < self.weather.severed / 2:
                    self._sever(life, other)
        self._schedule.after(self._mean(self.weather.partition_s), self._heal)

    def _heal(self) -> None:
        self._side = None
        if self.weather.partition_s:
            self._schedule.after(self._mean(self.weather.whole_s), self._partition)
