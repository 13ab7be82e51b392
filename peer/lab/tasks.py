"""Real torch tasks in the simulator: the plan that the configurations of a swarm describe."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from murmurate.peer.build import build_auditing, build_core, build_neighbourhood, build_topology, degree_min
from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.attacks import Board
from murmurate.peer.learning.audits import DIGEST_BYTES
from murmurate.peer.learning.make import make_trainer, prepare
from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import PeerId
from murmurate.peer.protocol.seams import Trainer

from .simulator import Plan
from .weather import FAIR, Weather

DTYPES = {"float32": "<f4", "float16": "<f2"}


def task_plan(
    configs: Sequence[Config], *, seed: int = 0, weather: Weather = FAIR, storm_s: float = 0.0, calm_s: float = 1e6
) -> Plan:
    """The swarm of `configs` (one per peer, in the roster's order), one virtual second a training. Keeps the history.

    With `rounds.max` it ends when all have left, so `calm_s` may be long.
    """
    roster = tuple(PeerId(config.name) for config in configs)
    if configs[0].exchange.dtype not in DTYPES:
        raise ConfigError(f"exchange.dtype = {configs[0].exchange.dtype!r}: should be one of {', '.join(DTYPES)} here")
    if list(roster) != sorted(roster):
        raise ConfigError(f"peers {', '.join(roster)}: should come in the roster's order")
    topology = build_topology(configs[0])
    fewest = degree_min(topology)
    prepare(configs[0])

    lives = itertools.count()

    def make_core(i: int) -> Peer:
        neighbourhood = build_neighbourhood(configs[i], topology)
        secret = repr((seed, "audits", next(lives))).encode()
        auditing = build_auditing(configs[i], neighbourhood, trainers[i], secret)
        return build_core(configs[i], neighbourhood, auditing=auditing)

    honest = frozenset(i for i, config in enumerate(configs) if config.attack.name == "none")
    board = Board(frozenset(roster[i] for i in honest))

    trainers: dict[int, Trainer] = {}

    def trainer(i: int) -> Trainer:
        trainers[i] = make_trainer(configs[i], fewest, board)
        return trainers[i]

    def on_sent(i: int, round: int, payload: bytes) -> None:
        board.sent(roster[i], round, payload)

    return Plan(
        seed=seed,
        roster=roster,
        topology=topology,
        make_core=make_core,
        make_trainer=trainer,
        stale_max=configs[0].rounds.stale_max,
        weather=weather,
        storm_s=storm_s,
        calm_s=calm_s,
        honest=honest,
        payload_dtype=DTYPES[configs[0].exchange.dtype],
        history=True,
        last=frozenset(i for i, config in enumerate(configs) if config.attack.omniscient),
        on_sent=on_sent,
        tail_bytes=DIGEST_BYTES if configs[0].audit.rate else 0,
    )
