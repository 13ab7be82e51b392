"""One life of one peer under virtual time: a core, a trainer, timers. The shell of the simulator; it decides nothing.

`Life` is what the lives of all exchanges have in common, `ModelsLife` trains, mixes, saves; seeds_life.py has another.
A job (train, mix, adopt) takes virtual time; it is computed at its end, so a crash in between leaves no trace of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol, cast

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import (
    Adopt,
    Audit,
    Audited,
    Body,
    Capture,
    Captured,
    Effect,
    Envelope,
    Event,
    Examine,
    Examined,
    Fact,
    Fold,
    Folded,
    Goodbye,
    Heartbeat,
    Install,
    Installed,
    Interrupt,
    Keep,
    Leave,
    LeaveRequested,
    LinkDown,
    LinkUp,
    Mix,
    Mixed,
    PeerId,
    Received,
    Report,
    Restored,
    Ruled,
    Save,
    Send,
    SetTimer,
    Sign,
    Signed,
    Started,
    Timer,
    TimerFired,
    Train,
    Trained,
    Turn,
    Update,
)
from murmurate.peer.protocol.seams import Auditor, Trainer

from .referee import Parcel, Referee
from .schedule import Schedule, Trace, record

KINDS: dict[type[Event] | type[Effect], int] = {
    Started: 0,
    LinkUp: 1,
    LinkDown: 2,
    Received: 3,
    Trained: 4,
    Mixed: 5,
    TimerFired: 6,
    LeaveRequested: 7,
    Train: 8,
    Mix: 9,
    Adopt: 10,
    Send: 11,
    SetTimer: 12,
    Save: 13,
    Interrupt: 14,
    Leave: 15,
    Report: 16,
    Restored: 17,
    Signed: 18,
    Folded: 19,
    Audited: 20,
    Ruled: 21,
    Sign: 22,
    Keep: 23,
    Fold: 24,
    Audit: 25,
    Captured: 26,
    Installed: 27,
    Capture: 28,
    Install: 29,
    Examine: 30,
    Examined: 31,
}
"""How events and effects are told apart in the trace."""


class World(Protocol):
    """What every life asks of its surroundings."""

    def send(self, life: Life, other: Life, body: Body) -> None: ...
    def left(self, life: Life) -> None: ...
    def reported(self, life: Life, fact: Fact) -> None: ...


class ModelsWorld(World, Protocol):
    """What a life that exchanges models asks beside that."""

    def save(self, life: ModelsLife) -> None: ...
    def sent(self, life: Life, round: int, payload: bytes) -> None: ...


class Judge(Protocol):
    """Who watches a life; see referee.py."""

    def asked(self, effect: Effect) -> None: ...
    def answered(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How long this peer's jobs take, in virtual seconds."""

    train_s: float
    mix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a life is made of."""

    index: int
    name: PeerId
    incarnation: int
    core: Peer
    pace: Pace
    schedule: Schedule
    trace: Trace
    random: Random


class Life:
    """From a start to a crash or a leave."""

    def __init__(self, stage: Stage, judge: Judge, world: World) -> None:
        self.index = stage.index
        self.name = stage.name
        self.incarnation = stage.incarnation
        self.core = stage.core
        self.up = True
        self.left = False
        self.links: dict[PeerId, Life] = {}  # open ones, as far as this end knows
        self._judge = judge
        self._pace = stage.pace
        self._world = world
        self._schedule = stage.schedule
        self._trace = stage.trace
        self._random = stage.random
        # No two machines' monotonic clocks agree; a core that compared them would show here.
        self._clock_s = stage.random.uniform(0, 1e5)
        self._timers: dict[str, int] = {}
        self._timer = 0
        self._job = 0
        self._training: int | None = None
        self._body: Body = Goodbye()
        self._received = Received(Envelope(self.name, self.incarnation, self._body))

    # Events in ----------------------------------------------------------------------------------------

    def feed(self, event: Event, first: int = 0, second: int = 0) -> None:
        """Give one event to the core and perform what it asks for. The numbers go into the trace."""
        now = self._schedule.now
        trace = self._trace.bytes
        trace += record(now, self.index, KINDS[type(event)], first, second)
        for effect in self.core.handle(event, now + self._clock_s):
            trace.append(KINDS[type(effect)])
            if isinstance(effect, Send):
                other = self.links.get(effect.to)
                if other is None or self.left:
                    self._judge.asked(effect)  # links are to neighbours only, so only this one can be wrong
                else:
                    self._world.send(self, other, effect.body)
            else:
                self._judge.asked(effect)
                self._perform(effect)

    def receive(self, received: Received, sender: int) -> None:
        """An envelope arrives, perhaps too late for this life. `sender`: its number, -1 for a stranger."""
        if self.up:
            body = received.envelope.body
            self.feed(received, sender, body.turn.round if isinstance(body, Update | Heartbeat) else -1)

    def received(self, body: Body) -> Received:
        """A body of ours as its receivers see it: one object for all of them."""
        if body is not self._body:
            self._body = body
            self._received = Received(Envelope(self.name, self.incarnation, body))
        return self._received

    # Effects out --------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SetTimer(timer, delay_s):
                self._timer += 1
                self._timers[timer.kind] = self._timer
                self._schedule.after(delay_s, self._on_timer, timer, self._timer)
            case Report(fact):
                self._world.reported(self, fact)
            case Train(round):
                self._training = round
                self._begin(self._pace.train_s, self._train, round)
            case Interrupt():
                if self._training is not None:
                    self._begin(self._pace.train_s / 20, self._interrupted, self._training)
            case Leave():
                self.up, self.left = False, True
                self._world.left(self)
            case _:
                self._do(effect)

    def _do(self, effect: Effect) -> None:
        """What only this exchange asks for."""
        raise NotImplementedError

    def _train(self, round: int) -> Trained:
        raise NotImplementedError

    def _begin(self, duration_s: float, job: Callable[..., Event], argument: object) -> None:
        self._job += 1  # an interrupted job is simply never finished
        self._schedule.after(duration_s * self._random.uniform(0.95, 1.05), self._finish, job, argument, self._job)

    def _finish(self, job: Callable[..., Event], argument: object, number: int) -> None:
        if self.up and number == self._job:
            event = job(argument)
            self._judge.answered()
            self.feed(event, number)

    def _interrupted(self, round: int) -> Trained:
        self._training = None
        return Trained(round, b"", complete=False)

    def _on_timer(self, timer: Timer, number: int) -> None:
        if self.up and self._timers.get(timer.kind) == number:
            self.feed(TimerFired(timer), timer.turn.round, timer.turn.hop)


class ModelsLife(Life):
    """A life that exchanges models."""

    def __init__(self, stage: Stage, trainer: Trainer, referee: Referee, world: ModelsWorld) -> None:
        super().__init__(stage, referee, world)
        self.trainer = trainer
        self._referee = referee
        self._home = world

    def start(self, round: int) -> None:
        """The first event."""
        self._referee.started(round)
        self.feed(Started(round, self.incarnation), round, self.incarnation)

    def receive(self, received: Received, sender: int) -> None:
        was_up = self.up
        super().receive(received, sender)
        if was_up and isinstance(received.envelope.body, Update):
            self._referee.received(received.envelope.sender)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Mix() | Adopt():
                self._begin(self._pace.mix_s, self._mix, effect)
            case Examine():
                self._schedule.after(self._pace.train_s, self._examine, effect)
            case Save():
                self._home.save(self)
            case _:
                raise AssertionError(f"{effect} is of another exchange")

    def _train(self, round: int) -> Trained:
        self._training = None
        self._trace.flush()
        trained = self.trainer.train(round)
        payload = Parcel.of(trained.payload, self.name, self.incarnation, Turn(round))
        self._trace.bytes.extend(payload)  # so that the digest also tells whether the arithmetic repeated
        self._home.sent(self, round, payload)
        return Trained(round, payload, trained.complete, trained.proof)

    def _examine(self, effect: Examine) -> None:
        """Not a job of its own: it fills pauses between the others, as in the daemon, where it waits for its turn."""
        if self.up:
            self.feed(cast(Auditor, self.trainer).examine(effect), effect.round)

    def _mix(self, effect: Mix | Adopt) -> Mixed:
        if isinstance(effect, Adopt):
            return self.trainer.adopt(effect)
        mixed = self.trainer.mix(effect)
        if not effect.pack:
            return mixed
        turn = Turn(effect.turn.round, effect.turn.hop + 1)
        parcel = Parcel.of(mixed.payload, self.name, self.incarnation, turn)
        return Mixed(mixed.turn, parcel, mixed.malformed, mixed.digests)
