"""Replicas of the `seeds` exchange in one process, without a network: every round all hear all.

For experiments about learning, where the protocol would only cost time: what it promises (every record reaches every
peer) is done by hand here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from murmurate.peer.build import build_manifest, build_topology
from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.prober import Prober, make_prober
from murmurate.peer.protocol.events import Fold, PeerId
from murmurate.peer.protocol.records import Batch, Origin


def origin_of(name: str) -> Origin:
    """A stand-in for the public key of a peer."""
    return Origin(hashlib.sha256(name.encode()).digest())


def fold_of(round: int, batches: Sequence[Batch], names: Iterable[str]) -> Fold:
    """These batches, of peers of these names."""
    return Fold(round, tuple(batches), (), tuple((origin_of(name), PeerId(name)) for name in names))


def begin(configs: Sequence[Config]) -> list[Prober]:
    """The replicas of a swarm, before the first record. Raises ConfigError when they could not form a swarm."""
    probers = [make_prober(config) for config in configs]
    topology = build_topology(configs[0])
    manifests = {build_manifest(c, topology, p.schema, p.base) for c, p in zip(configs, probers, strict=True)}
    if len(manifests) > 1:
        raise ConfigError("the configurations are not of one swarm")
    swarm_id = manifests.pop().swarm_id
    for config, prober in zip(configs, probers, strict=True):
        prober.begin(swarm_id, origin_of(config.name))
    return probers


def exchange(configs: Sequence[Config], probers: Sequence[Prober], round: int) -> tuple[Batch, ...]:
    """One round: all measure, then all fold everything; returns the batches."""
    batches: list[Batch] = []
    for config, prober in zip(configs, probers, strict=True):
        origin = origin_of(config.name)
        codes = bytes(prober.train(round).payload)
        batches.append(Batch(origin, prober.counts.get(origin, 1), round, codes, b""))
    for prober in probers:
        prober.fold(fold_of(round, batches, configs[0].roster))
    return tuple(batches)


def together(configs: Sequence[Config], rounds: int) -> list[Mapping[str, float]]:
    """The first replica's figures after every round; at the end all must have the same weights."""
    probers = begin(configs)
    curve: list[Mapping[str, float]] = []
    for round in range(1, rounds + 1):
        exchange(configs, probers, round)
        curve.append(dict(probers[0].figures()))
    assert len({prober.weights_digest() for prober in probers}) == 1, "replicas of one set of records differ"
    return curve
