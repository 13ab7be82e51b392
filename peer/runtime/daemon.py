"""The asyncio shell of one peer: events in, effects out, signals, files. It decides nothing.

The event loop never runs training, mixing or disk writes: those go to two threads of one job each, and their results
come back as events. So heartbeats flow during a training step of any length.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health  # pyright: ignore[reportAttributeAccessIssue]: its public name

from murmurate.peer.build import build_neighbourhood
from murmurate.peer.config import Config, split_address
from murmurate.peer.errors import ConfigError, LocalError, MurmurateError
from murmurate.peer.manifest import Manifest
from murmurate.peer.protocol.events import (
    AuditDone,
    Banned,
    CrowdedOut,
    Diverged,
    Dropped,
    Effect,
    Event,
    Fact,
    Interrupt,
    Joined,
    Leave,
    LeaveRequested,
    PeerChanged,
    PeerId,
    Report,
    RoundDone,
    Send,
    SetTimer,
    Skipped,
    Started,
    TimerFired,
    Took,
    Train,
    Unreached,
    Verdict,
    Voided,
)
from murmurate.peer.protocol.seams import Replica, Trainer
from murmurate.topology import Topology

from .control import ControlServer, finite
from .exchange import Exchange, Exported
from .metrics import Metrics, Row
from .models import Models
from .seeds import Retracted, Seeds
from .store import Store
from .transport import GrpcTransport

T = TypeVar("T")

REASONS = {
    Verdict.FOREIGN: "foreign payload",
    Verdict.MALFORMED: "malformed payload",
    Verdict.FORGED: "forged signature",
}
"""What is held against the sender."""


class Daemon:
    """One peer: built once, run once."""

    def __init__(
        self,
        config: Config,
        trainer: Trainer | Replica,
        manifest: Manifest,
        topology: Topology,
        tell: Callable[[Row], None],
    ) -> None:
        """`trainer` is a Replica with the `seeds` exchange, else a Trainer. Raises ConfigError or LocalError."""
        check_listen(config)
        self.config = config
        self.manifest = manifest
        self.trainer = trainer
        self.store = Store(config.state_dir, config.name, manifest.swarm_id.hex())
        self.neighbourhood = build_neighbourhood(config, topology)
        is_seeds = config.exchange.name == "seeds"
        self.seeds = Seeds(self, cast(Replica, trainer)) if is_seeds else None
        self.exchange: Exchange = self.seeds or Models(self, cast(Trainer, trainer))
        self.core = self.exchange.core
        self.started_at = time.monotonic()
        self.snapshot_round = 0
        self.marks: Counter[PeerId] = Counter()  # how often each peer was refused something
        self.refusals: dict[PeerId, str] = {}  # the newest reason
        self._told: set[tuple[PeerId, str]] = set()  # what a neighbour says costs it nothing, and us a row: once each
        self._tell = tell
        self._training = ThreadPoolExecutor(1, "training")
        self._disk = ThreadPoolExecutor(1, "disk")
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._early: list[Event] | None = []  # what came before the core was told that we started
        self.leaving = False
        self._error: Exception | None = None
        self._ends_at: asyncio.TimerHandle | None = None
        self._round_began_at = 0.0

    def run(self) -> None:
        """Run until this peer has left, which SIGTERM and SIGINT make it do. Raises as `live` does."""
        asyncio.run(self.live((signal.SIGTERM, signal.SIGINT)))

    # Life ---------------------------------------------------------------------------------------------

    async def live(self, signals: Collection[signal.Signals] = ()) -> None:
        """The same on a loop where other peers may live as well.

        Raises LocalError or ConfigError when it could not start or go on.
        """
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        runtime = self.config.runtime
        self.store.open()
        try:
            self.metrics = Metrics(
                self.store.folder, self.config.name, runtime.tensorboard, runtime.prometheus, self.warn
            )
            try:
                await self._serve(await self.exchange.restore(), signals)
            finally:
                self.metrics.close()
        finally:
            self._training.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(self._disk.shutdown)
            await asyncio.to_thread(self.exchange.close)
            self.store.close()
            if self._ends_at is not None:
                self._ends_at.cancel()
        if self._error is not None:
            raise self._error

    async def _serve(self, first: Sequence[Event], signals: Collection[signal.Signals]) -> None:
        self.transport = self._make_transport()
        health = grpc_health.HealthServicer()  # says SERVING from the start
        self.transport.extend(lambda server: health_pb2_grpc.add_HealthServicer_to_server(health, server))
        control = ControlServer(self)
        await self.transport.start()
        try:
            await control.start(self.store.folder)
            for number in signals:
                self._loop.add_signal_handler(number, self.leave)
            async with asyncio.TaskGroup() as self._tasks:  # its end waits for the last snapshot to be written
                round = next(event.round for event in first if isinstance(event, Started))
                self.tell("started", round=round, incarnation=self.store.incarnation, port=self.transport.port)
                early, self._early = self._early, None
                for event in (*first, *(early or ())):
                    self.feed(event)
                await self._over.wait()
                await health.enter_graceful_shutdown()
                for timer in self._timers.values():
                    timer.cancel()
        finally:
            await self.transport.stop(flush_s=self.config.runtime.shutdown_s_max / 4)
            await control.stop()

    def _make_transport(self) -> GrpcTransport:
        return GrpcTransport(
            me=PeerId(self.config.name),
            incarnation=self.store.incarnation,
            listen=self.config.listen,
            peers={PeerId(name): address for name, address in self.config.peers.items()},
            links=self.neighbourhood.links,
            manifest=self.manifest,
            where=lambda: self.core.rounds.turn,
            payload_bytes_max=self.exchange.payload_bytes_max,
            deliver=self.feed,
            refused=self._refused,
            random=random.Random(),
            unreachable=lambda peer, why: self.tell("unreachable", peer=peer, reason=why),
        )

    def now(self) -> float:
        """Seconds on the clock that the core is told."""
        return self._loop.time()

    async def export(self, path: Path, cut: str = "") -> Exported:
        """Write the model to `path`; `cut` as in cuts.py, empty: as it is. Raises LocalError when that cannot be."""
        return await self.exchange.export(path, cut)

    async def retract(self, who: str, from_seq: int) -> Retracted:
        """Void records at every peer: see Seeds.retract. Raises LocalError."""
        if self.seeds is None:
            raise LocalError("only the seeds exchange has records that could be retracted")
        return await self.seeds.retract(who, from_seq)

    def leave(self) -> None:
        """Begin to leave; asked a second time, end at once."""
        if self.leaving:
            self._end_at_once("asked twice to leave")
        self.leaving = True
        self._hurry()
        self.feed(LeaveRequested())

    def _hurry(self) -> None:
        """From now on, the end comes within the limit."""
        limit = self.config.runtime.shutdown_s_max
        if self._ends_at is None:
            why = f"could not leave within shutdown_s_max = {limit} s"
            self._ends_at = self._loop.call_later(limit, self._end_at_once, why)

    def _end_at_once(self, why: str) -> None:
        cause = f" ({self._error})" if self._error else ""
        try:
            self.tell("ended", text=f"{why}: ended without a new snapshot{cause}")
        finally:
            os._exit(1)  # a training thread cannot be stopped in any other way; every file is whole at any instant

    def fail(self, error: Exception) -> None:
        """End without a goodbye, as a crash would. The first error is the one that counts."""
        self._error = self._error or error
        self._over.set()
        self.trainer.interrupt()
        self._hurry()

    # Events in, effects out ---------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Give one event to the core and perform what it asks for. On the event loop only, never from an effect."""
        if self._early is not None:
            return self._early.append(event)
        if self._over.is_set():
            return None
        try:
            for effect in self.core.handle(event, self._loop.time()):
                self._perform(effect)
        except Exception as error:  # a broken promise of ours: out of `live` with it, not into the loop's log
            self.fail(error)
        return None

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(to, body):
                self.transport.send(to, body)
            case SetTimer(timer, delay_s):
                if (running := self._timers.get(timer.kind)) is not None:
                    running.cancel()
                self._timers[timer.kind] = self._loop.call_later(delay_s, self.feed, TimerFired(timer))
            case Interrupt():
                self.trainer.interrupt()
            case Report(fact):
                self._report(fact)
            case Leave():
                self._over.set()
            case _:
                if isinstance(effect, Train):
                    self._round_began_at = self._loop.time()
                self.exchange.perform(effect)

    # What an exchange needs ---------------------------------------------------------------------------

    def in_training(self, job: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Run in the one thread that may touch the model; queued now: jobs keep their order."""
        return self._loop.run_in_executor(self._training, job, *arguments)

    def on_disk(self, job: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Run in the one thread that writes large files."""
        return self._loop.run_in_executor(self._disk, job, *arguments)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Our end waits for it."""
        self._tasks.create_task(coroutine)

    def answer(self, future: asyncio.Future[Event]) -> None:
        """Feed what comes out; a fault ends us."""
        self.spawn(self._answer(future))

    async def _answer(self, future: asyncio.Future[Event]) -> None:
        try:
            event = await self.outcome(f"round {self.core.round}", future)
        except MurmurateError as error:
            self.fail(error)
        else:
            self.feed(event)

    async def outcome(self, what: str, future: asyncio.Future[T]) -> T:
        """What comes out of the trainer. Whatever is wrong with the user's own model, data or loss is a LocalError."""
        try:
            return await future
        except MurmurateError:
            raise
        except Exception as error:
            raise LocalError(f"the task failed in {what}: {type(error).__name__}: {error}") from error

    # Facts --------------------------------------------------------------------------------------------

    def tell(self, kind: str, **fields: object) -> None:
        """One row for the metrics and for people."""
        self._write_row({"kind": kind, **fields})

    def _write_row(self, row: Row) -> None:
        self.metrics.write(row)
        self._say(row)

    def warn(self, text: str) -> None:
        self._say({"kind": "warning", "text": text})

    def _say(self, row: Row) -> None:
        # Nobody reads our output any more, its disk is full, it cannot show a letter: training is worth more.
        with suppress(OSError, ValueError):
            self._tell(row)

    def _refused(self, peer: str, reason: str, is_told: bool = False) -> None:
        if peer in self.neighbourhood.links:  # a stranger can invent names
            self.marks[PeerId(peer)] += 1
            self.refusals[PeerId(peer)] = reason
        if not is_told:
            self.tell("refused", peer=peer, reason=reason)

    def _dropped(self, peer: PeerId, reason: str) -> None:
        """As a refusal; only the first of each kind is told, and `murmurate peers` has the count."""
        is_told = (peer, reason) in self._told
        self._told.add((peer, reason))
        self._refused(peer, reason, is_told)

    def _report(self, fact: Fact) -> None:
        match fact:
            case RoundDone(round, waited_s, folded, missing):
                facts: dict[str, object] = {
                    "kind": "round",
                    "round": round,
                    "seconds": round_to(self._loop.time() - self._round_began_at),
                    "waited_s": round_to(waited_s),
                    "folded": list(folded),
                    "missing": list(missing),
                    "bytes_sent": self.transport.bytes_sent,
                    "bytes_received": self.transport.bytes_received,
                    **self.exchange.facts(),
                }
                figures = {name: finite(value) for name, value in self.trainer.figures().items()}
                self._write_row(facts | figures | facts)  # a task's figure never replaces a fact
            case Joined(round, sources):
                self.tell("joined", round=round, sources=list(sources), bytes_received=self.transport.bytes_received)
            case Skipped(from_round, to_round):
                self.tell("skipped", from_round=from_round, to_round=to_round)
            case PeerChanged(peer, state):
                self.tell("peer", peer=peer, state=state.value)
            case Dropped(sender, verdict):
                if verdict in REASONS:
                    self._dropped(sender, REASONS[verdict])
            case Voided(origin, peer, from_seq, forked):
                self.tell("voided", peer=peer, origin=origin.hex(), from_seq=from_seq, forked=forked)
            case Diverged(peer):
                self.tell("diverged", peer=peer)
            case Took(sources, batches, size):
                self.tell("took", sources=list(sources), batches=batches, bytes=size)
            case Unreached(origin, peer, from_seq):
                self.tell("unreached", peer=peer, origin=origin.hex(), from_seq=from_seq)
            case AuditDone(peer, round, why):
                self.tell("audited", peer=peer, round=round, open=why)
            case Banned(peer, round, reason):
                self.tell("banned", peer=peer, round=round, reason=reason)
                self._refused(peer, f"banned: {reason}", is_told=True)
            case CrowdedOut(origin, peer):
                self.tell("crowded_out", peer=peer, origin=origin.hex())


def round_to(seconds: float) -> float:
    """Seconds with the precision worth keeping in a log."""
    return round(seconds, 6)


def check_listen(config: Config) -> None:
    """Refuse to be reachable from other machines without consent: links are not encrypted yet."""
    for key, address in (("runtime.listen", config.listen), ("runtime.prometheus", config.runtime.prometheus)):
        if address and not config.runtime.insecure and not _is_loopback(split_address(address, key)[0]):
            raise ConfigError(
                f"{key} = {address!r}: reaches beyond this machine, and nothing is encrypted yet; "
                "set runtime.insecure = true to accept that, or listen on 127.0.0.1"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
