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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from murmurate.peer.build import build_core, build_neighbourhood
from murmurate.peer.config import Config, split_address
from murmurate.peer.errors import ConfigError, LocalError, MurmurateError
from murmurate.peer.manifest import Manifest
from murmurate.peer.protocol.events import (
    Adopt,
    Dropped,
    Effect,
    Event,
    Fact,
    Interrupt,
    Joined,
    Leave,
    LeaveRequested,
    Mix,
    PeerChanged,
    PeerId,
    Report,
    RoundDone,
    Save,
    Send,
    SetTimer,
    Skipped,
    Started,
    TimerFired,
    Train,
    Verdict,
)
from murmurate.peer.protocol.seams import Trainer, Write
from murmurate.topology import Topology

from .control import ControlServer
from .metrics import Metrics, Row
from .store import Store, write_whole
from .transport import GrpcTransport


class Daemon:
    """One peer: built once, run once."""

    def __init__(
        self, config: Config, trainer: Trainer, manifest: Manifest, topology: Topology, tell: Callable[[Row], None]
    ) -> None:
        check_listen(config)
        self.config = config
        self.manifest = manifest
        self.trainer = trainer
        self.store = Store(config.state_dir, config.name, manifest.swarm_id.hex())
        self.neighbourhood = build_neighbourhood(config, topology)
        self.core = build_core(config, self.neighbourhood)
        self.started_at = time.monotonic()
        self.snapshot_round = 0
        self.dropped: Counter[Verdict] = Counter()
        self.marks: Counter[PeerId] = Counter()  # how often each peer was refused something
        self.refusals: dict[PeerId, str] = {}  # the newest reason
        self._tell = tell
        self._training = ThreadPoolExecutor(1, "training")
        self._disk = ThreadPoolExecutor(1, "disk")
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._saves = 0  # how many were asked for: an older one is not worth writing any more
        self._leaving = False
        self._error: MurmurateError | None = None
        self._round_began_at = self.started_at

    def run(self) -> None:
        """Run until this peer has left. Raises LocalError or ConfigError when it could not start or go on."""
        asyncio.run(self._run())

    # Life ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        runtime = self.config.runtime
        self.store.open()
        try:
            self.metrics = Metrics(
                self.store.folder, self.config.name, runtime.tensorboard, runtime.prometheus, self._warn
            )
            try:
                await self._serve(await self._restore())
            finally:
                self.metrics.close()
        finally:
            self._training.shutdown(wait=False, cancel_futures=True)
            self._disk.shutdown()
            self.store.close()
        if self._error is not None:
            raise self._error

    async def _restore(self) -> int:
        if not self.store.snapshot.exists():
            return 0
        restoring = self._loop.run_in_executor(self._training, self.trainer.restore, self.store.snapshot)
        self.snapshot_round = await restoring
        return self.snapshot_round

    async def _serve(self, round: int) -> None:
        self.transport = self._make_transport()
        control = ControlServer(self)
        await self.transport.start()
        try:
            await control.start(self.store.folder)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self.leave)
            async with asyncio.TaskGroup() as self._tasks:  # its end waits for the last snapshot to be written
                self.tell("started", round=round, incarnation=self.store.incarnation, port=self.transport.port)
                self.feed(Started(round))
                await self._over.wait()
                for timer in self._timers.values():
                    timer.cancel()
        finally:
            await self.transport.stop(flush_s=self.config.runtime.shutdown_s_max / 4)
            await control.stop()

    def _make_transport(self) -> GrpcTransport:
        exact, cap = self.trainer.payload_bytes, self.config.runtime.payload_bytes_max
        if exact > cap:
            raise ConfigError(f"runtime.payload_bytes_max = {cap}: should be at least {exact}, this model's payload")
        return GrpcTransport(
            me=PeerId(self.config.name),
            incarnation=self.store.incarnation,
            listen=self.config.listen,
            peers={PeerId(name): address for name, address in self.config.peers.items()},
            links=self.neighbourhood.links,
            manifest=self.manifest,
            where=lambda: self.core.rounds.turn,
            payload_bytes_max=exact,
            deliver=self.feed,
            refused=self._refused,
            random=random.Random(),
        )

    def now(self) -> float:
        """Seconds on the clock that the core is told."""
        return self._loop.time()

    async def export(self, path: Path) -> int:
        """Write the model to `path`; returns its last complete round. Raises LocalError when it cannot be written."""
        round = self.core.rounds.complete
        write = await self._loop.run_in_executor(self._training, self.trainer.export)
        await self._loop.run_in_executor(self._disk, write_whole, path, write)
        return round

    def leave(self) -> None:
        """Begin to leave; asked a second time, end at once."""
        if self._leaving:
            self._end_at_once("asked twice to leave")
        self._leaving = True
        limit = self.config.runtime.shutdown_s_max
        self._loop.call_later(limit, self._end_at_once, f"could not leave within shutdown_s_max = {limit} s")
        self.feed(LeaveRequested())

    def _end_at_once(self, why: str) -> None:
        self.tell("ended", text=f"{why}: ended without a new snapshot")
        os._exit(1)  # a training thread cannot be stopped in any other way; every file is whole at any instant

    def _fail(self, error: MurmurateError) -> None:
        self._error = self._error or error
        self._over.set()

    # Events in, effects out ---------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Give one event to the core and perform what it asks for. On the event loop only, never from an effect."""
        if self._over.is_set():
            return
        for effect in self.core.handle(event, self._loop.time()):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(to, body):
                self.transport.send(to, body)
            case SetTimer(timer, delay_s):
                if (running := self._timers.get(timer.kind)) is not None:
                    running.cancel()
                self._timers[timer.kind] = self._loop.call_later(delay_s, self.feed, TimerFired(timer))
            case Train(round):
                self._in_thread(self.trainer.train, round)
            case Mix():
                self._in_thread(self.trainer.mix, effect)
            case Adopt():
                self._in_thread(self.trainer.adopt, effect)
            case Interrupt():
                self.trainer.interrupt()
            case Save():
                self._save()
            case Report(fact):
                self._report(fact)
            case Leave():
                self._over.set()

    def _in_thread(self, job: Callable[..., Event], argument: object) -> None:
        future = self._loop.run_in_executor(self._training, job, argument)  # queued now: jobs keep their order
        self._tasks.create_task(self._answer(future))

    async def _answer(self, future: asyncio.Future[Event]) -> None:
        try:
            self.feed(await future)
        except MurmurateError as error:
            self._fail(error)
        except Exception as error:  # the user's own model, data or loss
            failure = LocalError(f"the task failed in round {self.core.round}: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._fail(failure)

    def _save(self) -> None:
        self._saves += 1
        round = self.core.rounds.complete
        copying = self._loop.run_in_executor(self._training, self.trainer.snapshot)
        self._tasks.create_task(self._write(copying, round, self._saves))

    async def _write(self, copying: asyncio.Future[Write], round: int, number: int) -> None:
        write = await copying
        if number < self._saves:
            return  # a newer one follows
        try:
            await self._loop.run_in_executor(self._disk, self.store.save, write)
        except LocalError as error:
            self._warn(str(error))
            if self._leaving:
                self._fail(error)
        else:
            self.snapshot_round = round

    # Facts --------------------------------------------------------------------------------------------

    def tell(self, kind: str, **fields: object) -> None:
        """One row for the metrics and for people."""
        row = {"kind": kind, **fields}
        self.metrics.write(row)
        self._tell(row)

    def _warn(self, text: str) -> None:
        self._tell({"kind": "warning", "text": text})

    def _refused(self, peer: str, reason: str) -> None:
        self.marks[PeerId(peer)] += 1
        self.refusals[PeerId(peer)] = reason
        self.tell("refused", peer=peer, reason=reason)

    def _report(self, fact: Fact) -> None:
        match fact:
            case RoundDone(round, waited_s, folded, missing):
                now = self._loop.time()
                seconds, self._round_began_at = now - self._round_began_at, now
                self.tell(
                    "round",
                    round=round,
                    **self.trainer.figures(),
                    seconds=round_to(seconds),
                    waited_s=round_to(waited_s),
                    folded=list(folded),
                    missing=list(missing),
                    bytes_sent=self.transport.bytes_sent,
                    bytes_received=self.transport.bytes_received,
                )
            case Joined(round, sources):
                self._round_began_at = self._loop.time()
                self.tell("joined", round=round, sources=list(sources))
            case Skipped(from_round, to_round):
                self.tell("skipped", from_round=from_round, to_round=to_round)
            case PeerChanged(peer, state):
                self.tell("peer", peer=peer, state=state.value)
            case Dropped(sender, verdict):
                self.dropped[verdict] += 1
                if verdict in (Verdict.FOREIGN, Verdict.MALFORMED):
                    self._refused(sender, f"{verdict.value} payload")


def round_to(seconds: float) -> float:
    """Seconds with the precision worth keeping in a log."""
    return round(seconds, 6)


def check_listen(config: Config) -> None:
    """Refuse to be reachable from other machines without consent: links are not encrypted yet."""
    host, _ = split_address(config.listen, "runtime.listen")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not config.runtime.insecure:
        raise ConfigError(
            f"runtime.listen = {config.listen!r}: reaches beyond this machine, and links are not encrypted yet; "
            "set runtime.insecure = true to accept that, or listen on 127.0.0.1"
        )
