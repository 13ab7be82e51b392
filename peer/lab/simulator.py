"""A whole swarm in one thread and in virtual time: the same cores and trainers as the daemon's, under any weather.

Rules
* Everything is drawn from one integer. The same plan gives the same digest, in any process; a failing seed is the bug.
* Two phases: the storm, in which nothing unsafe may happen, and the calm, in which everybody must get on.
* Violations are collected, not raised; see referee.py for what is judged.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import Fact, LeaveRequested, PeerId, RoundDone
from murmurate.peer.protocol.seams import Trainer, Write
from murmurate.topology import Topology

from .consensus import Consensus, rate
from .life import Life, Pace
from .network import Network
from .referee import Referee
from .schedule import Schedule, Trace
from .weather import FAIR, Weather

ADVANCE_MIN = 3
"""Rounds that everybody must complete in the calm for the run to count as live."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run. Times are virtual seconds."""

    seed: int
    roster: tuple[PeerId, ...]
    topology: Topology
    make_core: Callable[[int], Peer]
    """A fresh core for peer i: one for each of its lives."""
    make_trainer: Callable[[int], Trainer]
    """A fresh trainer for peer i: one for each of its lives."""
    stale_max: int = 8
    """As in the cores' pacing; judged."""
    weather: Weather = FAIR
    storm_s: float = 60.0
    calm_s: float = 60.0
    train_s: float = 1.0
    """Mean length of a local training."""
    spread: float = 0.1
    """Peers differ in speed by up to this share."""
    mix_s: float = 0.01
    honest: frozenset[int] | None = None
    """Whose models count for the consensus distance; None: all."""
    payload_dtype: str = "<f8"
    """Of the numbers in a payload, for the consensus distance."""
    on_calm: Callable[[Trainer], None] | None = None
    """Done to every trainer when the storm is over."""
    history: bool = False
    """Keep every peer's figures after every round."""


@dataclass(frozen=True, slots=True)
class Milestone:
    """A peer completed a round."""

    round: int
    virtual_s: float
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run showed."""

    seed: int
    peers: int
    rounds_min: int
    rounds_max: int
    """Last complete rounds at the end, of those not gone for ever."""
    crashes: int
    violations: tuple[str, ...]
    live: bool
    """Nobody is stalled, and no two neighbours are apart."""
    stalled: tuple[str, ...]
    """Who, though not gone for ever nor done, is not there at the end or completed too few rounds in the calm."""
    apart: tuple[tuple[str, str], ...]
    """Neighbours, both there at the end, whose rounds are too far from each other to mix: more than `stale_max`."""
    digest: str
    virtual_s: float
    wall_s: float
    events: int
    messages: int
    distances: tuple[tuple[int, float], ...]
    """(round, consensus distance) of every round that all honest peers sent."""
    rate: float | None
    """Measured factor of the consensus distance per round of the calm; None when too few rounds tell."""
    figures: tuple[Mapping[str, float], ...]
    """Each peer's last."""
    history: tuple[tuple[Milestone, ...], ...]
    """Each peer's rounds over all its lives; empty unless the plan asks for it."""

    @property
    def safe(self) -> bool:
        """Whether no invariant was violated."""
        return not self.violations


def simulate(plan: Plan) -> Outcome:
    """Run a swarm through storm and calm. Ends early when every peer has left."""
    began = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # a run makes millions of small objects and hardly a cycle (measured: a tenth faster)
    try:
        return _simulate(plan, began)
    finally:
        if collecting:
            gc.enable()


def _simulate(plan: Plan, began: float) -> Outcome:
    with TemporaryDirectory(prefix="murmurate-") as folder:
        return _Swarm(plan, Path(folder)).run(began)


class _Swarm:
    """The world of the lives: who is up, the disks, the phases."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        n = len(plan.roster)
        self._plan = plan
        self._folder = folder
        self._random = Random(plan.seed)
        self._schedule = Schedule()
        self._trace = Trace()
        self._violations: list[str] = []
        self._graph = [plan.topology.links(i) for i in range(n)]
        self._trainers = [plan.make_trainer(i) for i in range(n)]
        self._network = Network(
            self._graph, plan.weather, self._schedule, self._random, self._trainers[0].payload_bytes
        )
        self.send = self._network.send
        self._paces = [self._draw_pace() for _ in range(n)]
        self._incarnations = [0] * n
        self._disks: list[Write | None] = [None] * n
        self._returning = [True] * n  # whether a peer that is down will be started again
        self._calm = False
        self._asked: set[Life] = set()  # to leave, by the weather
        self._gone: set[int] = set()
        self._crashes = 0
        self._consensus = Consensus(plan.honest or frozenset(range(n)), plan.payload_dtype)
        self._advanced = [0] * n  # rounds completed in the calm
        self._history: list[list[Milestone]] = [[] for _ in range(n)]

    def _draw_pace(self) -> Pace:
        plan, random = self._plan, self._random
        factor = random.uniform(1 - plan.spread, 1 + plan.spread)
        if random.random() < plan.weather.slow:
            factor *= plan.weather.slow_factor
        return Pace(plan.train_s * factor, plan.mix_s * factor)

    def run(self, began: float) -> Outcome:
        plan = self._plan
        for i in range(len(plan.roster)):
            self._schedule.after(self._random.uniform(0, 1), self._start, i)
        self._schedule.run(plan.storm_s)
        self._network.calm()
        self._calm = True
        for trainer in self._trainers:
            self._settle(trainer)
        for i in range(len(plan.roster)):
            self._schedule.after(self._random.uniform(0, 1), self._start, i)
        calm_round = max(life.core.round if life is not None else 0 for life in self._network.lives)
        self._schedule.run(plan.storm_s + plan.calm_s)
        return self._outcome(calm_round + 1, began)

    def _outcome(self, calm_round: int, began: float) -> Outcome:
        plan, lives = self._plan, self._network.lives
        present = [i for i in range(len(lives)) if i not in self._gone]
        rounds = {i: life.core.rounds.complete if (life := lives[i]) is not None else 0 for i in present}
        bound = [i for i in present if self._returning[i]]  # the others have done all their rounds
        up = {i for i in bound if (life := lives[i]) is not None and life.up}
        stalled = [plan.roster[i] for i in bound if i not in up or self._advanced[i] < ADVANCE_MIN]
        apart = [
            (plan.roster[i], plan.roster[j])
            for i in bound
            for j in self._graph[i]
            if i < j and up.issuperset((i, j)) and abs(rounds[i] - rounds[j]) > plan.stale_max
        ]
        distances = tuple(self._consensus.distances)
        return Outcome(
            seed=plan.seed,
            peers=len(lives),
            rounds_min=min(rounds.values()),
            rounds_max=max(rounds.values()),
            crashes=self._crashes,
            violations=tuple(self._violations),
            live=not stalled and not apart,
            stalled=tuple(stalled),
            apart=tuple(apart),
            digest=self._trace.digest(),
            virtual_s=self._schedule.now,
            wall_s=time.perf_counter() - began,
            events=self._schedule.events,
            messages=self._network.messages,
            distances=distances,
            rate=rate(distances, calm_round),
            figures=tuple(dict(trainer.figures()) for trainer in self._trainers),
            history=tuple(tuple(milestones) for milestones in self._history),
        )

    # Lives --------------------------------------------------------------------------------------------

    def _start(self, i: int) -> None:
        old = self._network.lives[i]
        if (old is not None and old.up) or not self._returning[i]:
            return
        plan = self._plan
        trainer = self._trainers[i] if old is None else plan.make_trainer(i)
        self._trainers[i] = trainer
        self._settle(trainer)
        core = plan.make_core(i)
        self._incarnations[i] += 1
        name = f"{plan.roster[i]}:{self._incarnations[i]}"
        links = frozenset(plan.roster[j] for j in self._graph[i])
        referee = Referee(name, core, links, plan.stale_max, self._violations)
        life = Life(
            index=i,
            name=plan.roster[i],
            incarnation=self._incarnations[i],
            core=core,
            trainer=trainer,
            referee=referee,
            pace=self._paces[i],
            world=self,
            schedule=self._schedule,
            trace=self._trace,
            random=self._random,
        )
        self._network.join(life)
        life.start(self._restore(i, trainer))
        if self._random.random() < self._network.weather.crash:
            rest_s = plan.storm_s - self._schedule.now
            self._schedule.after(self._random.uniform(0, max(0.0, rest_s)), self._crash, life)

    def _settle(self, trainer: Trainer) -> None:
        if self._calm and self._plan.on_calm is not None:
            self._plan.on_calm(trainer)

    def _restore(self, i: int, trainer: Trainer) -> int:
        write = self._disks[i]
        if write is None:
            return 0
        path = self._folder / f"{i}.snapshot"
        write(path)
        return trainer.restore(path)

    def _crash(self, life: Life) -> None:
        weather, random = self._network.weather, self._random
        if not life.up or not weather.crash:
            return
        self._crashes += 1
        i = life.index
        if random.random() < weather.polite:
            self._asked.add(life)
            life.feed(LeaveRequested())
            return
        life.up = False
        self._network.end(life, silent=random.random() < weather.silent)
        if random.random() < weather.amnesia:
            self._disks[i] = None
        if random.random() < weather.gone:
            self._gone.add(i)
            self._returning[i] = False
        self._restart(i)

    def _restart(self, i: int) -> None:
        self._schedule.after(self._random.expovariate(1 / self._plan.weather.restart_s), self._start, i)

    # World, as lives see it ---------------------------------------------------------------------------

    def save(self, life: Life) -> None:
        self._schedule.after(self._plan.weather.write_s, self._written, life, life.trainer.snapshot())

    def _written(self, life: Life, write: Write) -> None:
        if life.up or life.left:
            self._disks[life.index] = write

    def left(self, life: Life) -> None:
        self._network.end(life, silent=False)
        if life in self._asked:
            self._restart(life.index)
            return
        self._returning[life.index] = False  # it has done all its rounds
        self._schedule.over = not any(self._returning)

    def sent(self, life: Life, round: int, payload: bytes) -> None:
        self._consensus.sent(life.index, round, payload)

    def reported(self, life: Life, fact: Fact) -> None:
        if not isinstance(fact, RoundDone):
            return
        if self._calm:
            self._advanced[life.index] += 1
        if self._plan.history:
            figures = dict(life.trainer.figures())
            self._history[life.index].append(Milestone(fact.round, self._schedule.now, figures))
