"""Where a configuration becomes objects: the graph, the core, and the manifest. No torch, no sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError
from murmurate.peer.manifest import Manifest
from murmurate.peer.protocol.audits import Auditing
from murmurate.peer.protocol.core import Peer, Seeds
from murmurate.peer.protocol.events import PeerId
from murmurate.peer.protocol.feeds import Rules
from murmurate.peer.protocol.neighbourhood import Neighbourhood
from murmurate.peer.protocol.records import Origin
from murmurate.peer.protocol.rounds import Pacing
from murmurate.peer.protocol.seams import Auditor, Verify
from murmurate.topology import Topology

NOISE = 1
"""The version of directions and codes that all peers must share: `kernels.noise.NOISE`, without importing torch."""


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


def build_core(
    config: Config,
    neighbourhood: Neighbourhood,
    origin: Origin | None = None,
    verify: Verify | None = None,
    state_bytes: int | None = None,
    auditing: Auditing | None = None,
) -> Peer:
    """This peer's protocol. With the exchange `seeds`, `origin` (ours) and `verify` are needed, and `state_bytes` as in
    core.Seeds; with audits `auditing`.
    """
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
    seeds = None
    if config.exchange.name == "seeds":
        assert origin is not None
        assert verify is not None
        seeds = Seeds(
            me=PeerId(config.name),
            origin=origin,
            rules=build_rules(config),
            verify=verify,
            shared=config.seeds.directions == "shared",
            gossip_s=config.seeds.gossip_s,
            state_bytes=state_bytes if config.seeds.vouchers else None,
            vouchers=config.seeds.vouchers,
        )
    return Peer(neighbourhood, pacing, config.liveness.heartbeat_s, config.liveness.timeout_s, seeds, auditing)


def build_auditing(config: Config, neighbourhood: Neighbourhood, auditor: object, secret: bytes) -> Auditing | None:
    """How `auditor`, a trainer, audits; None without audits. `secret`: nobody else may know it, and it is new in each
    life. Raises ConfigError on a graph on which a neighbour's last model is rarely heard.
    """
    if not config.audit.rate:
        return None
    if neighbourhood.changes:
        raise ConfigError(
            f"audit.rate = {config.audit.rate}: an auditor has to hear every round of its neighbours, and "
            f"topology.rule = {config.topology.rule!r} has other edges in each"
        )
    sizes = cast(Auditor, auditor)
    return Auditing(
        rate=config.audit.rate,
        deadline_s=config.audit.deadline_s,
        f=config.mixing.f,
        secret=secret,
        start_bytes=sizes.start_bytes,
        payload_bytes=sizes.payload_bytes,
    )


def build_rules(config: Config) -> Rules:
    """What every batch of the swarm has to be like."""
    records = config.local.steps * config.seeds.probes
    # FedKSeed-Pro's ids need two more bytes each: which of the pool was drawn depends on what the sender had seen.
    has_ids = config.seeds.directions == "pool" and config.seeds.sampling == "pro"
    return Rules(
        roster=frozenset(config.roster),
        records=records,
        codes=records * (3 if has_ids else 1),
        authorities=frozenset(map(bytes.fromhex, config.seeds.authority)),
    )


def build_manifest(
    config: Config, topology: Topology, schema: Sequence[tuple[str, tuple[int, ...], str]], base: str
) -> Manifest:
    """All that the peers of a swarm must agree on.

    `schema`: name, shape and dtype of every parameter in canonical order; `base`: what the first weights are.
    """
    exchange: dict[str, Any] = config.exchange.model_dump()
    local: dict[str, Any] = {"optimizer": config.local.optimizer, "sam": config.local.sam_rho > 0}
    if config.exchange.name == "seeds":
        exchange, local = _records(config), {}  # how a peer measures its scalars is its own choice
    audits = _audits(config) if config.audit.rate else {}
    return Manifest.of(
        {
            "swarm": config.swarm.model_dump(),
            "peers": list(config.roster),
            "task": {"name": config.task.name, "options": config.task.options},
            "base": base,
            "parameters": {name: f"{dtype} {list(shape)}" for name, shape, dtype in schema},
            "parameter_order": [name for name, _, _ in schema],
            "exchange": exchange,
            "local": local,
            "mixing": config.mixing.model_dump(),
            # The graph itself, not its options: a file's path is each peer's own.
            "topology": {"rule": topology.rule, "graph": topology.digest()},
            "security": "none",
            **audits,
        }
    )


def _audits(config: Config) -> dict[str, Any]:
    """What an auditor has to know to take the steps of another peer."""
    local = config.local.model_dump()
    if config.local.schedule != "constant":
        local["schedule_rounds"] = config.local.schedule_rounds or config.rounds.max
    data = {"partition": config.task.partition, "alpha": config.task.alpha}
    return {"audit": {"local": local, "data": data, "device": config.runtime.device.split(":")[0]}}


def _records(config: Config) -> dict[str, Any]:
    """What makes the weights a function of the records, and who may void some."""
    agreed = {"directions", "rule", "pool", "sampling", "momentum", "parts", "memory"}
    return {
        "name": config.exchange.name,
        "noise": NOISE,
        "records": config.records,
        "unit_log2": config.unit_log2,
        "authority": sorted(set(config.seeds.authority)),
        **config.seeds.model_dump(include=agreed),
    }
