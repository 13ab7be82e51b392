"""A replica of one exact integer, without torch, and daemons of the `seeds` exchange around it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from murmurate.peer.config import Config
from murmurate.peer.protocol.events import (
    Audit,
    Audited,
    Capture,
    Captured,
    Envelope,
    Event,
    Fold,
    Folded,
    Install,
    Installed,
    Received,
    Rumor,
    Trained,
)
from murmurate.peer.protocol.feeds import Feeds
from murmurate.peer.protocol.records import Batch, Origin
from murmurate.peer.protocol.seams import Write
from murmurate.peer.runtime.log import Log
from murmurate.peer.runtime.seeds import Seeds

from .toy import PATIENCE_S, Life, Toy, living, make_config

RECORDS = 4  # in a batch
NAP_S = 0.02  # how long a training lasts that is not allowed


class Counting:
    """Implements `protocol.seams.Replica`: the weights are the sum of a hash of every record that counts.

    A round that is not allowed yet is interrupted again and again, so that what others made is folded meanwhile.
    """

    schema = (("value", (), "int64"),)
    base = "counting"
    state_bytes: int | None = None  # nobody hands over a single number

    def __init__(self, name: str, allowed: int = 0, records: int = RECORDS) -> None:
        self.payload_bytes = records
        self.folds = 0
        self._name = name
        self._records = records
        self._feeds: dict[Origin, list[Batch]] = {}
        self._closed: dict[Origin, int] = {}
        self._allowed = allowed
        self._interrupted = self._stuck = False
        self._turn = threading.Condition()

    def allow(self, round: int) -> None:
        """Rounds up to this one may be trained."""
        with self._turn:
            self._allowed, self._stuck = round, False
            self._turn.notify_all()

    def stick(self) -> None:
        """From the next training on: until something is allowed, it does not end."""
        self._stuck = True

    def begin(self, swarm_id: bytes, origin: Origin) -> None:
        assert len(swarm_id) == len(origin) == 32
        assert not self._feeds

    def train(self, round: int) -> Trained:
        with self._turn:
            assert self._turn.wait_for(lambda: not self._stuck or self._interrupted, PATIENCE_S)
            allowed = self._turn.wait_for(lambda: round <= self._allowed or self._interrupted, NAP_S)
            return Trained(round, codes(self._name, round, self._records), allowed and not self._interrupted)

    def fold(self, effect: Fold) -> Folded:
        self.folds += 1
        for batch in effect.batches:
            if batch.number:
                feed = self._feeds.setdefault(batch.origin, [])
                feed.append(batch)
                assert batch.number == len(feed), "not in the order of its feed, or twice"
        for origin, closed in effect.closed:
            self._closed[origin] = min(closed, self._closed.get(origin, closed))
            del self._feeds.setdefault(origin, [])[-(-closed // self._records) :]
        return Folded(effect.round)

    @property
    def records(self) -> int:
        """How many count."""
        feeds = list(self._feeds.items())
        return sum(len(weights(origin, feed)[: self._closed.get(origin)]) for origin, feed in feeds)

    def value(self, cut: Mapping[Origin, int] | None = None) -> int:
        """The sum over the records of the first `cut[origin]` batches, births included; None: over all."""
        total = 0
        for origin, feed in self._feeds.items():
            held = feed if cut is None else feed[: max(0, cut.get(origin, 0) - 1)]
            total += sum(weights(origin, held)[: self._closed.get(origin)])
        return total

    def audit(self, effect: Audit) -> Audited:
        return Audited(effect.digest, hashlib.sha256(str(self.value()).encode()).digest())

    def capture(self, effect: Capture) -> Captured:
        return Captured(effect.cut, ())

    def install(self, effect: Install) -> Installed:
        return Installed(effect.ground, sound=False)

    def interrupt(self) -> None:
        with self._turn:
            self._interrupted = True
            self._turn.notify_all()

    def export(self, cut: Mapping[Origin, int] | None = None) -> Write:
        text = json.dumps({"value": self.value(cut)})
        return lambda path: path.write_text(text)

    def figures(self) -> Mapping[str, float]:
        return {"loss": 0.5}


def codes(name: str, round: int, records: int = RECORDS) -> bytes:
    """What `name` measures in a round."""
    return hashlib.sha256(f"{name} {round}".encode()).digest()[:records]


def weights(origin: Origin, batches: list[Batch]) -> list[int]:
    """What each record is worth: depends on all that a record is."""
    found = enumerate(code for batch in batches for code in batch.codes)
    return [
        int.from_bytes(hashlib.sha256(origin + bytes([code]) + str(seq).encode()).digest()[:6]) for seq, code in found
    ]


class Watched(Life):
    """One life of one daemon of the seeds exchange, looked at after every event."""

    def __init__(self, config: Config, replica: Any) -> None:
        super().__init__(config, cast(Toy, replica))  # it only passes it on
        handle = self.daemon.core.handle

        def noting(event: Event, now: float) -> Any:
            self.note(event)
            effects = handle(event, now)
            self._news.set()
            return effects

        self.daemon.core.handle = noting

    def note(self, event: Event) -> None:
        """It is about to be handled."""

    @property
    def seeds(self) -> Seeds:
        assert self.daemon.seeds is not None
        return self.daemon.seeds

    @property
    def feeds(self) -> Feeds:
        return self.seeds.feeds

    @property
    def origin(self) -> Origin:
        return self.seeds.identity.origin

    async def until(self, true: Callable[[], bool]) -> None:
        """Looks again after every event and every row. Raises what the daemon raised."""
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                if self.task is not None and self.task.done():
                    await self.task
                    raise AssertionError(f"it ended: {self.rows}")
                self._news.clear()
                await self._news.wait()


class Sower(Watched):
    """With a replica that counts."""

    def __init__(self, config: Config, allowed: int = 0) -> None:
        self.replica = Counting(config.name, allowed)
        self.heard: list[Batch] = []
        super().__init__(config, self.replica)

    def note(self, event: Event) -> None:
        match event:
            case Received(Envelope(_, _, Rumor(batches))):
                self.heard += batches
            case _:
                pass

    async def holds(self, records: int) -> None:
        """Until its weights contain exactly so many records."""
        await self.until(lambda: self.feeds.records == self.replica.records == records)

    async def crash(self) -> None:
        """End without a word."""
        assert self.task is not None
        self.daemon.fail(Crash())
        try:
            await self.end()
        except Crash:
            return
        raise AssertionError("it lived on")


class Crash(Exception):  # noqa: N818 - it is none: a test asks for it
    """How a test ends a daemon."""


def seeds_config(folder: Path, name: str, ports: Mapping[str, int], **tables: Any) -> Config:
    """Peers in a line, in the order of their names."""
    seeds = {"gossip_s": 0.02, **tables.pop("seeds", {})}
    liveness = {"heartbeat_s": 0.02, "timeout_s": PATIENCE_S, "join_s": PATIENCE_S, **tables.pop("liveness", {})}
    line = folder / "line.txt"
    line.write_text("".join(f"{one} {other}\n" for one, other in pairwise(sorted(ports))))
    topology = {"rule": "file", "options": {"path": str(line)}} if len(ports) > 1 else {}
    local, exchange = {"steps": RECORDS}, {"name": "seeds"}
    return make_config(
        folder, name, ports, exchange=exchange, local=local, seeds=seeds, liveness=liveness, topology=topology, **tables
    )


# Several of them ----------------------------------------------------------------------------------------


async def begin(stack: AsyncExitStack, folder: Path, names: str = "abc", **tables: Any) -> list[Sower]:
    """A line of peers that live until the stack ends, and are linked."""
    lives: dict[str, Sower] = {}
    for name in reversed(names):  # the smaller one dials
        ports = {peer: lives[peer].port if peer in lives else 0 for peer in names}
        lives[name] = Sower(seeds_config(folder, name, ports, **tables))
        await stack.enter_async_context(living(lives[name]))
    found = [lives[name] for name in names]
    for life in found:
        await life.until(lambda life=life: len(list(life.feeds)) == len(names))
    return found


async def again(stack: AsyncExitStack, life: Sower, **ports: int) -> Sower:
    """Another life in the same folder."""
    peers = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    config = life.daemon.config
    config = config.model_copy(update={"peers": {**config.peers, **peers}})
    reborn = Sower(config)
    await stack.enter_async_context(living(reborn))
    return reborn


async def agree(lives: list[Sower], records: int) -> bytes:
    """All hold so many records, and all weights have one digest: returns it."""
    for life in lives:
        await life.holds(records)
    for life in lives:
        assert life.feeds.digest == lives[0].feeds.digest
    (value,) = {life.replica.value() for life in lives}
    return value.to_bytes(8)


def restored(life: Sower) -> dict[str, list[int]]:
    """Batches in the log of a daemon that ended: numbers by name@key."""
    log = Log(life.daemon.store.folder, life.daemon.manifest.swarm_id, lambda _: True)
    batches = log.open().batches
    log.close()
    found: dict[str, list[int]] = {}
    for batch in batches:
        found.setdefault(batch.origin.hex(), []).append(batch.number)
    return found


def rulings(life: Sower) -> list[Any]:
    """Those in the log of a daemon that ended."""
    log = Log(life.daemon.store.folder, life.daemon.manifest.swarm_id, lambda _: True)
    found = list(log.open().rulings)
    log.close()
    return found
