"""Daemons with real replicas and a long history that was written straight into their logs."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from murmurate.kernels import noise
from murmurate.peer.build import build_manifest, build_topology
from murmurate.peer.config import Config
from murmurate.peer.learning.prober import Prober
from murmurate.peer.protocol.events import Trained
from murmurate.peer.protocol.records import Batch
from murmurate.peer.runtime.identity import Verifier, open_identity
from murmurate.peer.runtime.log import Log

from .plot import NAP_S, Watched
from .seeds_peers import Bowl
from .toy import PATIENCE_S, make_config


class Still(Prober):
    """The real replica, of a bowl; it trains only as far as it is allowed to."""

    def __init__(self, config: Config, hands_over: bool) -> None:
        super().__init__(config, Bowl())
        self._hands_over = hands_over
        self._allowed = 0
        self._turn = threading.Condition()

    @property
    def state_bytes(self) -> int | None:
        return super().state_bytes if self._hands_over else None

    def allow(self, round: int) -> None:
        """Rounds up to this one may be trained."""
        with self._turn:
            self._allowed = round
            self._turn.notify_all()

    def train(self, round: int) -> Trained:
        with self._turn:
            if not self._turn.wait_for(lambda: round <= self._allowed, NAP_S):
                return Trained(round, b"", complete=False)
        return super().train(round)


class Grower(Watched):
    """One life of one daemon with such a replica."""

    def __init__(self, config: Config, hands_over: bool = True) -> None:
        self.replica = Still(config, hands_over)
        super().__init__(config, self.replica)

    @property
    def received(self) -> int:
        """Bytes of all frames."""
        return self.daemon.transport.bytes_received

    async def weights(self) -> bytes:
        """Their digest after all that was folded so far."""
        return await self.daemon.in_training(self.replica.weights_digest)


def garden(folder: Path, name: str, ports: Mapping[str, int], **tables: Any) -> Config:
    """Peers that all are neighbours."""
    seeds = {"gossip_s": 0.05, "directions": "pool", "pool": 4096, **tables.pop("seeds", {})}
    liveness = {"heartbeat_s": 0.05, "timeout_s": PATIENCE_S, "join_s": PATIENCE_S, **tables.pop("liveness", {})}
    local = {"steps": 8, "batch_size": 8, "lr": 0.01}
    topology = {"rule": "complete"}
    exchange = {"name": "seeds"}
    return make_config(
        folder, name, ports, exchange=exchange, local=local, seeds=seeds, liveness=liveness, topology=topology, **tables
    )


def write_history(config: Config, batches: int) -> None:
    """A feed of this peer, in its own log, as if it had trained for so many rounds."""
    replica = Prober(config, Bowl())
    swarm_id = build_manifest(config, build_topology(config), replica.schema, replica.base).swarm_id
    identity = open_identity(config.state_dir, swarm_id)
    log = Log(config.state_dir, swarm_id, Verifier(swarm_id))
    log.open()
    generator = random.Random(config.name)
    feed = [Batch(identity.origin, 0, 0, config.name.encode(), b"")]
    for round in range(1, batches + 1):
        scalars = [generator.gauss(0, 40) for _ in range(config.records)]
        ids = generator.randbytes(replica.payload_bytes - config.records)
        feed.append(Batch(identity.origin, round, round, noise.encode(np.array(scalars)).tobytes() + ids, b""))
    log.append([identity.sign_batch(batch) for batch in feed], sync=True)
    log.close()
