"""A whole swarm in one thread and in virtual time: the same cores and trainers as the daemon's, under any weather.

This is the exchange `models`; see swarm.py for the world, and seeds_simulator.py for the other exchange.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import Fact, RoundDone
from murmurate.peer.protocol.seams import Trainer, Write

from .consensus import Consensus, rate
from .life import Life, ModelsLife
from .network import Parcels
from .referee import Referee
from .swarm import ADVANCE_MIN, Course, Milestone, Outcome, Swarm

LATER = 1.5  # above how far the speeds of peers, and of one peer's trainings, lie apart: 1.1 x 1.05 / 0.9 / 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Course):
    """One run. Times are virtual seconds."""

    make_core: Callable[[int], Peer]
    """A fresh core for peer i: one for each of its lives."""
    make_trainer: Callable[[int], Trainer]
    """A fresh trainer for peer i: one for each of its lives."""
    stale_max: int = 8
    """As in the cores' pacing; judged."""
    honest: frozenset[int] | None = None
    """Whose models count for the consensus distance; None: all."""
    payload_dtype: str = "<f8"
    """Of the numbers in a payload, for the consensus distance."""
    on_calm: Callable[[Trainer], None] | None = None
    """Done to every trainer when the storm is over."""
    history: bool = False
    """Keep every peer's figures after every round."""
    last: frozenset[int] = frozenset()
    """Who takes half as long again to train as it would, and so sends after all others of its round."""
    on_sent: Callable[[int, int, bytes], None] | None = None
    """Told of every (peer, round, payload) with which an exchange begins."""
    on_fact: Callable[[int, Fact], None] | None = None
    """Told of every (peer, fact) that is reported."""
    tail_bytes: int = 0
    """Of each payload, behind the model: what neither the consensus distance nor `on_sent` is to see."""


def simulate(plan: Plan) -> Outcome:
    """Run a swarm through storm and calm. Ends early when every peer has left."""
    with TemporaryDirectory(prefix="murmurate-") as folder:
        return _Models(plan, Path(folder)).run()


class _Models(Swarm):
    """Lives with trainers, and snapshots on disks."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        n = len(plan.roster)
        self._plan = plan
        self._folder = folder
        self._trainers = [plan.make_trainer(i) for i in range(n)]
        super().__init__(plan, Parcels(self._trainers[0].payload_bytes))
        for i in plan.last:
            self._paces[i] = replace(self._paces[i], train_s=LATER * self._paces[i].train_s)
        self._disks: list[Write | None] = [None] * n
        self._consensus = Consensus(plan.honest or frozenset(range(n)), plan.payload_dtype)
        self._history: list[list[Milestone]] = [[] for _ in range(n)]

    def _outcome(self, began: float) -> Outcome:
        plan, lives = self._plan, self._network.lives
        present = [i for i in range(len(lives)) if i not in self._gone]
        rounds = {i: self.rounds_of(i) for i in present}
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
            rate=rate(distances, self._calm_round),
            figures=tuple(dict(trainer.figures()) for trainer in self._trainers),
            history=tuple(tuple(milestones) for milestones in self._history),
        )

    # Lives --------------------------------------------------------------------------------------------

    def _make_life(self, i: int) -> Life:
        if self._incarnations[i] > 1:
            self._trainers[i] = self._plan.make_trainer(i)
        trainer = self._trainers[i]
        self._settle(trainer)
        core = self._plan.make_core(i)
        referee = Referee(self.name_of(i), core, self.links_of(i), self._plan.stale_max, self._violations)
        return ModelsLife(self.stage(i, core), trainer, referee, self)

    def _begin(self, life: Life) -> None:
        assert isinstance(life, ModelsLife)
        life.start(self._restore(life.index, life.trainer))

    def _on_calm(self) -> None:
        for trainer in self._trainers:
            self._settle(trainer)

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

    def _wipe(self, i: int) -> None:
        self._disks[i] = None

    # World, as lives see it ---------------------------------------------------------------------------

    def save(self, life: ModelsLife) -> None:
        """A snapshot as it is now will be on the disk a little later."""
        self._schedule.after(self._plan.weather.write_s, self._written, life, life.trainer.snapshot())

    def _written(self, life: Life, write: Write) -> None:
        if life.up or life.left:
            self._disks[life.index] = write

    def sent(self, life: Life, round: int, payload: bytes) -> None:
        """An exchange of models begins."""
        payload = payload[: len(payload) - self._plan.tail_bytes]
        self._consensus.sent(life.index, round, payload)
        if self._plan.on_sent is not None:
            self._plan.on_sent(life.index, round, payload)

    def reported(self, life: Life, fact: Fact) -> None:
        super().reported(life, fact)
        if self._plan.on_fact is not None:
            self._plan.on_fact(life.index, fact)
        if self._plan.history and isinstance(fact, RoundDone):
            figures = dict(self._trainers[life.index].figures())
            self._history[life.index].append(Milestone(fact.round, self._schedule.now, figures))
