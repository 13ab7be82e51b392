"""The world of simulated lives, whatever they exchange: who is up, when who crashes and returns, storm and calm.

Rules
* Everything is drawn from one integer. The same plan gives the same digest, in any process; a failing seed is the bug.
* Two phases: the storm, in which nothing unsafe may happen, and the calm, in which everybody must get on.
* Violations are collected, not raised; see referee.py and seeds_referee.py for what is judged.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import Body, Fact, LeaveRequested, PeerId, RoundDone
from murmurate.topology import Topology

from .life import Life, Pace, Stage
from .network import Mischief, Network
from .schedule import Schedule, Trace
from .weather import FAIR, Weather

ADVANCE_MIN = 3
"""Rounds that everybody must complete in the calm for the run to count as live."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One run, as far as it is the same for every exchange. Times are virtual seconds."""

    seed: int
    roster: tuple[PeerId, ...]
    topology: Topology
    weather: Weather = FAIR
    storm_s: float = 60.0
    calm_s: float = 60.0
    train_s: float = 1.0
    """Mean length of a local training."""
    spread: float = 0.1
    """Peers differ in speed by up to this share."""
    mix_s: float = 0.01
    """Mean length of every other job."""


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


class Swarm:
    """Who is up, the phases, and the fate of each life. An exchange adds its disks, its lives and its verdict."""

    def __init__(self, course: Course, mischief: Mischief) -> None:
        n = len(course.roster)
        self._course = course
        self._random = Random(course.seed)
        self._schedule = Schedule()
        self._trace = Trace()
        self._violations: list[str] = []
        self._graph = [course.topology.links(i) for i in range(n)]
        self._network = Network(self._graph, course.weather, self._schedule, self._random, mischief)
        self._paces = [self._draw_pace() for _ in range(n)]
        self._incarnations = [0] * n
        self._returning = [True] * n  # whether a peer that is down will be started again
        self._calm = False
        self._calm_round = 0  # the first that nobody had begun in the storm
        self._asked: set[Life] = set()  # to leave, by the weather
        self._gone: set[int] = set()
        self._crashes = 0
        self._advanced = [0] * n  # rounds completed in the calm

    def _draw_pace(self) -> Pace:
        course, random = self._course, self._random
        factor = random.uniform(1 - course.spread, 1 + course.spread)
        if random.random() < course.weather.slow:
            factor *= course.weather.slow_factor
        return Pace(course.train_s * factor, course.mix_s * factor)

    def run(self) -> Outcome:
        """Through the storm and the calm. Ends early when every peer has left."""
        began = time.perf_counter()
        collecting = gc.isenabled()
        gc.disable()  # a run makes millions of small objects and hardly a cycle (measured: a tenth faster)
        try:
            return self._run(began)
        finally:
            if collecting:
                gc.enable()

    def _run(self, began: float) -> Outcome:
        course = self._course
        for i in range(len(course.roster)):
            self._schedule.after(self._random.uniform(0, 1), self._start, i)
        self._schedule.run(course.storm_s)
        self._network.calm()
        self._calm = True
        self._on_calm()
        for i in range(len(course.roster)):
            self._schedule.after(self._random.uniform(0, 1), self._start, i)
        self._calm_round = 1 + max(life.core.round if life is not None else 0 for life in self._network.lives)
        self._schedule.run(course.storm_s + course.calm_s)
        return self._outcome(began)

    # What an exchange adds ----------------------------------------------------------------------------

    def _on_calm(self) -> None:
        """The storm is over."""

    def _make_life(self, i: int) -> Life:
        """A new life of peer i."""
        raise NotImplementedError

    def _begin(self, life: Life) -> None:
        """Its first events."""
        raise NotImplementedError

    def _on_crash(self, life: Life) -> None:
        """What is left on its disk."""

    def _wipe(self, i: int) -> None:
        """Its disk is lost."""
        raise NotImplementedError

    def _outcome(self, began: float) -> Outcome:
        """The verdict."""
        raise NotImplementedError

    # Lives --------------------------------------------------------------------------------------------

    def _start(self, i: int) -> None:
        old = self._network.lives[i]
        if (old is not None and old.up) or not self._returning[i]:
            return
        course = self._course
        self._incarnations[i] += 1
        life = self._make_life(i)
        self._network.join(life)
        self._begin(life)
        if self._random.random() < self._network.weather.crash:
            rest_s = course.storm_s - self._schedule.now
            self._schedule.after(self._random.uniform(0, max(0.0, rest_s)), self._crash, life)

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
        self._on_crash(life)
        if random.random() < weather.amnesia:
            self._wipe(i)
        if random.random() < weather.gone:
            self._gone.add(i)
            self._returning[i] = False
        self._restart(i)

    def _restart(self, i: int) -> None:
        self._schedule.after(self._random.expovariate(1 / self._course.weather.restart_s), self._start, i)

    # World, as lives see it ---------------------------------------------------------------------------

    def send(self, life: Life, other: Life, body: Body) -> None:
        """Best effort."""
        self._network.send(life, other, body)

    def left(self, life: Life) -> None:
        """A life ended by itself."""
        self._network.end(life, silent=False)
        if life in self._asked:
            self._restart(life.index)
            return
        self._returning[life.index] = False  # it has done all its rounds
        self._schedule.over = not any(self._returning)

    def reported(self, life: Life, fact: Fact) -> None:
        """What a core tells people."""
        if self._calm and isinstance(fact, RoundDone):
            self._advanced[life.index] += 1

    def rounds_of(self, i: int) -> int:
        """The last complete round of peer i."""
        life = self._network.lives[i]
        return life.core.rounds.complete if life is not None else 0

    def name_of(self, i: int) -> str:
        """Which life of which peer, for violations."""
        return f"{self._course.roster[i]}:{self._incarnations[i]}"

    def links_of(self, i: int) -> frozenset[PeerId]:
        """The neighbours of peer i."""
        return frozenset(self._course.roster[j] for j in self._graph[i])

    def stage(self, i: int, core: Peer) -> Stage:
        """Everything that a life of peer i needs, whatever it exchanges."""
        return Stage(
            index=i,
            name=self._course.roster[i],
            incarnation=self._incarnations[i],
            core=core,
            pace=self._paces[i],
            schedule=self._schedule,
            trace=self._trace,
            random=self._random,
        )
