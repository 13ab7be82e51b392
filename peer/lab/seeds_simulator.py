"""The simulator's other exchange: a swarm that gossips seeds, with logs on disks, liars and retractions.

After a storm and some training in the calm, everybody rests, and then all honest peers must hold the same set and the
same weights; in it are all batches that those who are there ever published with the keys that they have now, but for
what was retracted, and no honest peer's feed ends anywhere but there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import Body, Ruled
from murmurate.peer.protocol.feeds import ORIGIN_BYTES, Feeds
from murmurate.peer.protocol.records import Origin, Retraction
from murmurate.peer.protocol.rounds import Phase

from .liars import Liar, Lies, Noise
from .life import Life
from .seeds_life import Disk, SeedsLife, retracted
from .seeds_referee import Book, SeedsReferee
from .swarm import Course, Outcome, Swarm
from .tally import Ledger, Tally

AUTHORITY = b"authority".ljust(ORIGIN_BYTES, b".")
"""The key that retracts, in every run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedsPlan(Course):
    """One run. Times are virtual seconds."""

    records: int
    """Of every batch but births."""
    make_core: Callable[[int, Origin], Peer]
    """A fresh core for peer i with this origin: one for each of its lives."""
    liars: tuple[tuple[int, Lies], ...] = ()
    """Who lies, and how."""
    retractions: int = 0
    """So many, each of a random peer at a random time of the storm."""
    halves_s: float = 0.0
    """So long, from the beginning, two halves of the swarm hear nothing of each other; 0: never."""
    rest_s: float = 20.0
    """For so long before the end nobody makes a batch any more."""


def simulate_seeds(plan: SeedsPlan) -> Outcome:
    """Run a swarm through storm, calm and rest. Ends early when every peer has left."""
    return SeedsSwarm(plan).run()


class SeedsSwarm(Swarm):
    """Lives with replicas, and logs on disks."""

    def __init__(self, plan: SeedsPlan) -> None:
        n = len(plan.roster)
        self._plan = plan
        self._book = Book(Ledger(plan.records))
        self._liars = {i: Liar(lies) for i, lies in plan.liars}
        super().__init__(plan, Noise())
        self._keys = [0] * n
        self._disks = [Disk(self._make_key(i)) for i in range(n)]
        self._decided: dict[Origin, set[int]] = {}  # where feeds were retracted from
        self._resting = False
        self._schedule.after(max(0.0, plan.storm_s + plan.calm_s - plan.rest_s), self._rest)
        for _ in range(plan.retractions):
            self._schedule.after(self._random.uniform(0.2, 1) * plan.storm_s, self._retract)
        if plan.halves_s:
            self._network.halve()
            self._schedule.after(plan.halves_s, self._network.heal)

    def _make_key(self, i: int) -> Origin:
        self._keys[i] += 1
        return Origin(hashlib.sha256(b"%d %d %d" % (self._plan.seed, i, self._keys[i])).digest())

    # Lives --------------------------------------------------------------------------------------------

    def _make_life(self, i: int) -> Life:
        disk = self._disks[i]
        if i in self._liars:
            self._liars[i].wears(disk.origin)
        core = self._plan.make_core(i, disk.origin)
        replica = Tally(self._book.ledger, disk.origin)
        replica.resting = self._resting
        referee = SeedsReferee(self.name_of(i), core, self.links_of(i), self._book)
        return SeedsLife(self.stage(i, core), replica, disk, referee, self)

    def _begin(self, life: Life) -> None:
        assert isinstance(life, SeedsLife)
        life.start()

    def _on_crash(self, life: Life) -> None:
        """The log ends somewhere after what was synced; a batch that was being signed may be in it or not."""
        assert isinstance(life, SeedsLife)
        disk = life.disk
        if life.signing is not None and self._random.random() < 0.5:
            life.sign_unseen(life.signing)
        del disk.entries[self._random.randint(disk.synced, len(disk.entries)) :]

    def _wipe(self, i: int) -> None:
        self._disks[i] = Disk(self._make_key(i))

    def _rest(self) -> None:
        self._resting = True
        for life in self._network.lives:
            if isinstance(life, SeedsLife):
                life.replica.resting = True

    def _retract(self) -> None:
        """Somebody with the authority voids a part of somebody's newest feed."""
        lives = [life for life in self._network.lives if isinstance(life, SeedsLife) and life.up]
        if not lives:
            return
        judge, target = self._random.choice(lives), self._random.choice(self._disks).origin
        feed = feeds_of(judge).get(target)
        if feed is not None:
            self.retract(judge, target, self._random.randint(0, feed.count * self._plan.records))

    def retract(self, judge: SeedsLife, target: Origin, from_seq: int) -> None:
        """The user of `judge` decides."""
        retraction = retracted(target, from_seq, AUTHORITY)
        self._decided.setdefault(target, set()).add(from_seq)
        judge.disk.append(retraction, sync=True)
        judge.feed(Ruled(retraction), from_seq)

    def send(self, life: Life, other: Life, body: Body) -> None:
        liar = self._liars.get(life.index)
        for said in (body,) if liar is None else liar.say(body, other.index, self._random):
            super().send(life, other, said)

    # The verdict --------------------------------------------------------------------------------------

    def _outcome(self, began: float) -> Outcome:
        plan, lives = self._plan, self._network.lives
        present = [i for i in range(len(lives)) if i not in self._gone]
        bound = [i for i in present if self._returning[i] and i not in self._liars]
        up = [life for i in bound if isinstance(life := lives[i], SeedsLife) and life.up]
        self._judge_end(up)
        barred = {life.index for life in up if life.core.phase is Phase.IDLE}
        there = {life.index for life in up}
        stalled = [plan.roster[i] for i in bound if i not in there or self._is_stalled(i, barred)]
        rounds = [self.rounds_of(i) for i in present]
        return Outcome(
            seed=plan.seed,
            peers=len(lives),
            rounds_min=min(rounds),
            rounds_max=max(rounds),
            crashes=self._crashes,
            violations=tuple(self._book.violations),
            live=not stalled,
            stalled=tuple(stalled),
            apart=(),
            digest=self._trace.digest(),
            virtual_s=self._schedule.now,
            wall_s=time.perf_counter() - began,
            events=self._schedule.events,
            messages=self._network.messages,
            distances=(),
            rate=None,
            figures=tuple({"records": float(feeds_of(life).records)} for life in up),
            history=(),
        )

    def _is_stalled(self, i: int, barred: set[int]) -> bool:
        return not self._advanced[i] and i not in barred

    def _judge_end(self, up: list[SeedsLife]) -> None:
        """Every honest peer that is there holds the same, and all that any of them ever published."""
        for life in up:
            feeds = feeds_of(life)
            first = next(other for other in up if other.index in self._reached_from(life.index))
            if feeds.digest != feeds_of(first).digest:
                self._book.object(f"{life.name} and {first.name} end with different sets")
            if life.replica.weights != first.replica.weights:
                self._book.object(f"{life.name} and {first.name} end with different weights")
            self._judge_own(life)
            self._judge_decisions(life)

    def _judge_own(self, life: SeedsLife) -> None:
        """It holds all that it published, up to where it was retracted from."""
        feed = feeds_of(life).get(life.disk.origin)
        for batch in self._book.published.get(life.disk.origin, {}).values():
            first = (batch.number - 1) * self._plan.records
            is_void = batch.number and feed is not None and feed.closed is not None and feed.closed <= first
            if not is_void and (feed is None or batch.number >= feed.count):
                self._book.object(f"{life.name} published batch {batch.number}, and it is lost")

    def _judge_decisions(self, life: SeedsLife) -> None:
        """What it decided holds, and no feed but a liar's is closed where nobody decided that."""
        for feed in feeds_of(life):
            decided = self._decided.get(feed.origin, set())
            is_liars = any(liar.wore(feed.origin) for liar in self._liars.values())
            if feed.closed is not None and feed.closed not in decided and not is_liars:
                self._book.object(f"{life.name} ends {feed.name} at {feed.closed}, which nobody decided")
            own = [r.from_seq for r in life.disk.entries if isinstance(r, Retraction) and r.origin == feed.origin]
            if own and (feed.closed is None or feed.closed > min(own)):
                void = f"{feed.name} is void from {min(own)}"
                self._book.object(f"{life.name} knows that {void}, and goes on to {feed.closed}")

    def _reached_from(self, i: int) -> set[int]:
        """The peers that are joined to peer i by others that are there: who is gone for ever may leave two parts."""
        reached, fresh = set[int](), {i}
        while fresh:
            reached |= fresh
            beyond = {j for k in fresh for j in self._graph[k] if (life := self._network.lives[j]) and life.up}
            fresh = beyond - reached
        return reached

    @property
    def lives(self) -> list[SeedsLife]:
        """The newest life of each peer."""
        return [life for life in self._network.lives if isinstance(life, SeedsLife)]


def feeds_of(life: Life) -> Feeds:
    """What its core holds."""
    assert life.core.feeds is not None
    return life.core.feeds
