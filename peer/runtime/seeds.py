"""The `seeds` exchange in a daemon: probing and folding in one thread, signing and the log in another.

What is ours is on the disk before the core hears that it is signed, so before anybody else sees it. There are no
snapshots: the log is all that a restart needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from murmurate.peer.build import build_core
from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.events import (
    Audit,
    Capture,
    Event,
    Fold,
    Install,
    Keep,
    Ruled,
    Sign,
    Signed,
    Started,
    Train,
)
from murmurate.peer.protocol.feeds import BATCHES_MAX, Feed, Feeds
from murmurate.peer.protocol.records import Batch, Ground, Origin, Retraction
from murmurate.peer.protocol.seams import Replica

from .cuts import cut_text, find, name_of, read_cut
from .exchange import Exported, Work
from .identity import Verifier, open_identity
from .log import WAY_OUT, Log
from .packing import CODES_BYTES_MAX
from .store import write_whole

if TYPE_CHECKING:
    from .daemon import Daemon

T = TypeVar("T")


class Retracted(NamedTuple):
    """What became of a wish to void records."""

    feed: Feed
    from_seq: int  # the first that is void
    awaits_state: bool  # our own weights contain them until a neighbour hands over a state without them


class Seeds:
    """Implements `exchange.Exchange`."""

    payload_bytes_max = 0  # nobody sends models

    def __init__(self, daemon: Daemon, replica: Replica) -> None:
        """Raises LocalError for a key that cannot be used."""
        assert replica.payload_bytes <= CODES_BYTES_MAX  # the configuration bounds the records of a round
        config, swarm_id = daemon.config, daemon.manifest.swarm_id
        verify = Verifier(swarm_id)
        self.identity = open_identity(config.state_dir, swarm_id)
        self.core = build_core(config, daemon.neighbourhood, self.identity.origin, verify, replica.state_bytes)
        assert replica.payload_bytes == self.feeds.rules.codes
        self._daemon = daemon
        self._replica = replica
        self._swarm_id = swarm_id
        self._log = Log(config.state_dir, swarm_id, verify)
        self._disk = ThreadPoolExecutor(1, "records")
        self._is_full = False  # the last attempt to keep others' records failed, which was told
        self._is_beyond = False  # whether lean weights left their grid, which was told
        self._batches = 0  # folded since the last row of a round
        self._closed: dict[Origin, int] = {}  # as far as the weights were told
        self._next_fold = asyncio.Event()

    @property
    def feeds(self) -> Feeds:
        """What we hold."""
        assert self.core.feeds is not None
        return self.core.feeds

    async def restore(self) -> tuple[Event, ...]:
        """From the log."""
        daemon = self._daemon
        await daemon.outcome("begin", daemon.in_training(self._replica.begin, self._swarm_id, self.identity.origin))
        restored = await self._in_log(self._log.open)
        if self._log.loss:
            daemon.warn(self._log.loss)
        own = self.identity.origin
        rounds = [batch.round for batch in restored.batches if batch.origin == own]
        if (ground := restored.ground) is not None:
            installing = daemon.in_training(self._replica.install, Install(ground, self._log.take_pieces()))
            if not (await daemon.outcome("install", installing)).sound:
                raise LocalError(f"{self._log.path}: the state in it does not fit this swarm; {WAY_OUT}")
            self._stand_on(ground)
            rounds += [r for state, r in zip(ground.cut, ground.rounds, strict=True) if state.origin == own]
        return restored, Started(max(rounds, default=0))

    def perform(self, effect: Work) -> None:
        match effect:
            case Train(round):
                self._daemon.answer(self._daemon.in_training(self._replica.train, round))
            case Fold(batches=batches, closed=closed, dropped=dropped):
                self._batches += len(batches)
                for origin in dropped:
                    self._closed.pop(origin, None)
                self._closed.update(closed)
                self._daemon.answer(self._daemon.in_training(self._replica.fold, effect))
                self._next_fold.set()
                self._next_fold = asyncio.Event()
            case Audit():
                self._daemon.answer(self._daemon.in_training(self._replica.audit, effect))
            case Capture():
                self._daemon.answer(self._daemon.in_training(self._replica.capture, effect))
            case Install():
                self._daemon.answer(asyncio.ensure_future(self._install(effect)))
            case Sign(batch):
                self._daemon.answer(self._in_log(self._sign, batch))
            case Keep():
                # Queued now: what is signed next must not get before it.
                self._daemon.spawn(self._keep(effect, self._in_log(self._write, effect)))
            case _:
                raise AssertionError(f"{type(effect).__name__} in the seeds exchange")

    def facts(self) -> Mapping[str, object]:
        """How many records count now, and how many batches the weights took in since the last round."""
        batches, self._batches = self._batches, 0
        if not self._is_beyond and self._replica.figures().get("off_grid"):
            self._is_beyond = True
            self._daemon.warn(
                "seeds.memory = 'lean': a weight left the grid, so this peer needs the memory of 'exact' from now on; "
                "whose records are so large can be retracted, and a swarm with a larger seeds.unit_log2 has more room"
            )
        return {"records": self.feeds.records, "batches": batches}

    def close(self) -> None:
        """See `exchange.Exchange`."""
        self._disk.shutdown()
        self._log.close()

    # Asked by the user --------------------------------------------------------------------------------

    async def export(self, path: Path, cut: str) -> Exported:
        """See `exchange.Exchange`. Waits until the weights contain what we hold of the cut."""
        daemon, feeds = self._daemon, self.feeds
        wanted: dict[Origin, int] | None = None
        if cut:
            wanted = read_cut(feeds, cut)
            while not all(self._is_folded(feed, wanted.get(feed.origin, 0)) for feed in feeds):
                await self._next_fold.wait()
        held = {feed.origin: feed.folded or 1 for feed in feeds} if wanted is None else wanted
        contained = {feed.origin: min(held.get(feed.origin, 0), feed.count) for feed in feeds}
        rounds = [feed.round_at(count) for feed in feeds if (count := contained[feed.origin]) >= max(1, feed.floor)]
        exported = Exported(max(rounds, default=0), cut or cut_text(feeds, contained))
        # What was folded by now comes before this in the thread's queue, and nothing else does.
        copying = daemon.in_training(self._replica.export, None if wanted is None else contained)
        await daemon.on_disk(write_whole, path, await daemon.outcome("export", copying))
        return exported

    async def retract(self, who: str, from_seq: int) -> Retracted:
        """Void the records of a feed from a sequence number on, at every peer. Raises LocalError.

        The first number that is void is smaller if it was so before.
        """
        feeds, key = self.feeds, self.identity.origin
        feed = find(feeds, who)
        if key not in feeds.rules.authorities:
            raise LocalError(
                f"{self._daemon.config.name} may not retract: seeds.authority does not name its key {key.hex()}"
            )
        ends_at = feeds.ends_at(feed)
        if ends_at is None and from_seq >= BATCHES_MAX * feeds.rules.records:
            raise LocalError(f"{name_of(feed)}: --from {from_seq} is beyond every feed")
        if ends_at is None or ends_at > from_seq:
            retraction = self.identity.sign_retraction(feed.origin, from_seq)
            await self._in_log(self._keep_own, retraction)
            self._daemon.feed(Ruled(retraction))
            feed = feeds.get(feed.origin) or feed  # a state may have come meanwhile
            ends_at = feeds.ends_at(feed)
        if ends_at is None:
            raise LocalError(f"{name_of(feed)}: its feed was forgotten meanwhile, or this peer ends: nothing is void")
        return Retracted(feed, ends_at, awaits_state=feed.origin in feeds.deep)

    def _is_folded(self, feed: Feed, count: int) -> bool:
        """Whether the weights contain the first `count` batches, as far as they count, and nothing that is void."""
        if feed.closed is not None and self._closed.get(feed.origin) != feed.closed:
            return False
        return count <= 1 or feed.folded >= min(count, feed.count)  # a birth has no records

    # The log --------------------------------------------------------------------------------------------

    def _in_log(self, job: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._disk, job, *arguments)

    def _sign(self, batch: Batch) -> Signed:
        signed = self.identity.sign_batch(batch)
        self._log.append((signed,), sync=True)
        return Signed(signed)

    async def _install(self, effect: Install) -> Event:
        """First the weights, which find out whether it is a state; then the log."""
        installed = await self._daemon.in_training(self._replica.install, effect)
        if installed.sound:
            self._stand_on(effect.ground)
            await self._in_log(self._log.install, effect.ground, effect.pieces)
        return installed

    def _stand_on(self, ground: Ground) -> None:
        """The weights were told what is closed in a state, and nothing else."""
        self._closed = {state.origin: state.closed for state in ground.cut if state.closed is not None}

    def _has_own(self, effect: Keep) -> bool:
        return any(batch.origin == self.identity.origin for batch in effect.batches)

    def _write(self, effect: Keep) -> None:
        """What is ours among it stands for one that we signed in its place, if we did: no crash may lose only this."""
        self._log.append(effect.batches, effect.rulings, sync=self._has_own(effect), told=True)

    def _keep_own(self, retraction: Retraction) -> None:
        self._log.append((), (retraction,), sync=True)

    async def _keep(self, effect: Keep, writing: asyncio.Future[None]) -> None:
        try:
            await writing
        except LocalError as error:
            if self._has_own(effect):
                self._daemon.fail(error)  # what is ours comes back once only
            elif not self._is_full:
                self._daemon.warn(f"{error}; training goes on, and the neighbours still have these records")
            self._is_full = True
        else:
            self._is_full = False
