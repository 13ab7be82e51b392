"""The `models` exchange in a daemon: training, mixing and adopting in one thread, snapshots written in another."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from murmurate.peer.build import build_auditing, build_core
from murmurate.peer.errors import ConfigError, LocalError, MurmurateError
from murmurate.peer.protocol.events import Adopt, Event, Examine, Mix, Save, Started, Train
from murmurate.peer.protocol.rounds import Phase
from murmurate.peer.protocol.seams import Auditor, Trainer, Write

from .exchange import Exported, Work
from .store import write_whole

if TYPE_CHECKING:
    from .daemon import Daemon


class Models:
    """Implements `exchange.Exchange`."""

    def __init__(self, daemon: Daemon, trainer: Trainer) -> None:
        auditing = build_auditing(daemon.config, daemon.neighbourhood, trainer, secrets.token_bytes(32))
        self.core = build_core(daemon.config, daemon.neighbourhood, auditing=auditing)
        self._daemon = daemon
        self._trainer = trainer
        self._saves = 0  # how many were asked for: an older one is not worth writing any more

    @property
    def payload_bytes_max(self) -> int:
        """Exactly a model. Raises ConfigError for a model above the limit."""
        exact, cap = self._trainer.payload_bytes, self._daemon.config.runtime.payload_bytes_max
        if exact > cap:
            raise ConfigError(f"runtime.payload_bytes_max = {cap}: should be at least {exact}, this model's payload")
        return exact

    async def restore(self) -> tuple[Event, ...]:
        """From the snapshot, if there is one."""
        daemon, path = self._daemon, self._daemon.store.snapshot
        if not path.exists():
            return (Started(0, daemon.store.incarnation),)
        daemon.snapshot_round = await daemon.outcome("restore", daemon.in_training(self._trainer.restore, path))
        return (Started(daemon.snapshot_round, daemon.store.incarnation),)

    def perform(self, effect: Work) -> None:
        match effect:
            case Train(round):
                self._daemon.answer(self._daemon.in_training(self._trainer.train, round))
            case Mix():
                self._daemon.answer(self._daemon.in_training(self._trainer.mix, effect))
            case Adopt():
                self._daemon.answer(self._daemon.in_training(self._trainer.adopt, effect))
            case Examine():
                auditor = cast(Auditor, self._trainer)
                self._daemon.answer(self._daemon.in_training(auditor.examine, effect))
            case Save():
                self._save()
            case _:
                raise AssertionError(f"{type(effect).__name__} in the models exchange")

    async def export(self, path: Path, cut: str) -> Exported:
        """See `exchange.Exchange`."""
        if cut:
            raise LocalError(f"--at {cut!r}: only the seeds exchange has records, and cuts through them")
        daemon = self._daemon
        write = await daemon.outcome("export", daemon.in_training(self._trainer.export))
        round = self.core.rounds.complete  # now: the copy had to wait its turn behind a training or a mix
        await daemon.on_disk(write_whole, path, write)
        return Exported(round)

    def facts(self) -> Mapping[str, object]:
        """Nothing beside what every exchange tells."""
        return {}

    def close(self) -> None:
        """Nothing is open."""

    def _save(self) -> None:
        self._saves += 1
        round, is_last = self.core.rounds.complete, self.core.phase is Phase.LEFT
        copying = self._daemon.in_training(self._trainer.snapshot)
        self._daemon.spawn(self._write(copying, round, self._saves, is_last))

    async def _write(self, copying: asyncio.Future[Write], round: int, number: int, is_last: bool) -> None:
        daemon = self._daemon
        try:
            write = await daemon.outcome("snapshot", copying)
            if number < self._saves:
                return  # a newer one follows
            await daemon.on_disk(daemon.store.save, write)
        except MurmurateError as error:
            if is_last:
                daemon.fail(error)
            else:
                daemon.warn(f"{error}; training goes on")
        else:
            daemon.snapshot_round = round
