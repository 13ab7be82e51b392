"""Where a configuration becomes objects: the graph, the core, and the manifest. No torch, no sockets."""

from __future__ import annotations

from collections.abc import Sequence

from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError
from murmurate.peer.manifest import Manifest
from murmurate.peer.protocol.core import Peer
from murmurate.peer.protocol.events import PeerId
from murmurate.peer.protocol.neighbourhood import Neighbourhood
from murmurate.peer.protocol.rounds import Pacing
from murmurate.topology import Topology


def build_topology(config: Config) -> Topology:
    """The graph of the whole swarm. Raises ConfigError when the rule cannot draw it."""
    try:
        return Topology(
            config.topology.rule, len(config.peers), config.topology.options, config.topology.weights, config.roster
        )
    except ValueError as error:
        raise ConfigError(f"topology: {error}") from None


def degree_min(topology: Topology) -> int:
    """The fewest neighbours that any peer hears in any round."""
    rounds = range(topology.period or 1)
    return min(len(topology.row(i, round).weights) for i in range(topology.n) for round in rounds)


def build_neighbourhood(config: Config, topology: Topology) -> Neighbourhood:
    """This peer's rows of the graph."""
    return Neighbourhood(PeerId(config.name), [PeerId(name) for name in config.roster], topology)


def build_core(config: Config, neighbourhood: Neighbourhood) -> Peer:
    """This peer's protocol."""
    pacing = Pacing(
        rounds_max=config.rounds.max,
        deadline_s=config.rounds.deadline_s,
        stale_max=config.rounds.stale_max,
        gossip_steps=config.mixing.gossip_steps,
        f=config.mixing.f,
        join_s=config.liveness.join_s,
        settle_s=config.liveness.settle_s,
        save_s=config.runtime.snapshot_s,
    )
    return Peer(neighbourhood, pacing, config.liveness.heartbeat_s, config.liveness.timeout_s)


def build_manifest(
    config: Config, topology: Topology, schema: Sequence[tuple[str, tuple[int, ...], str]], base: str
) -> Manifest:
    """All that the peers of a swarm must agree on.

    `schema`: name, shape and dtype of every parameter in canonical order; `base`: where the first weights came from.
    """
    return Manifest.of(
        {
            "swarm": config.swarm.model_dump(),
            "peers": list(config.roster),
            "task": {"name": config.task.name, "options": config.task.options},
            "base": base,
            "parameters": {name: f"{dtype} {list(shape)}" for name, shape, dtype in schema},
            "parameter_order": [name for name, _, _ in schema],
            "exchange": config.exchange.model_dump(),
            "local": {"optimizer": config.local.optimizer, "sam": config.local.sam_rho > 0},
            "mixing": config.mixing.model_dump(),
            # The graph itself, not its options: a file's path is each peer's own.
            "topology": {"rule": topology.rule, "graph": topology.digest()},
            "security": "none",
        }
    )
