"""Bytes and time until 8 peers classify digits from scratch: gossiped models beside records, P directions a round.

Both axes, because either alone misleads. One process does all peers' work, without a network; the bytes are those of
one link of a ring, on which every record passes once and every model both ways.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from murmurate.peer.config import Config

from .cohort import loopback_configs
from .simulator import simulate
from .tasks import task_plan
from .together import begin, exchange

PEERS = 8
TARGET = 0.85  # test accuracy
PROBES = (1, 16, 64, 256)
# Per probe: above it the noise of a round outweighs its step. (measured with 64 probes: 0.14 trains, 0.2 diverges)
LR_PER_PROBE = 0.14 / 64
LR_MAX = 0.3  # with many probes a step is as good as a gradient's, and no longer (measured)
ROUNDS_MAX = 20_000
LOOK_EVERY = 10  # rounds, scaled to the number of probes: looking costs about as much as 8 probes
BATCH_OVERHEAD_BYTES = 114  # a frame of one batch beside its codes: key, signature, numbers (178 bytes with 64 codes)

MODELS: dict[str, Any] = {
    "task": {"name": "digits"},
    "local": {"steps": 20, "batch_size": 32, "lr": 0.05},
    "topology": {"rule": "ring"},
    "rounds": {"max": 100},
}


def seeds_table(probes: int, seed: int) -> dict[str, Any]:
    """A swarm of the seeds exchange on shared directions."""
    return {
        "swarm": {"seed": seed},
        "task": {"name": "digits"},
        "local": {"steps": 1, "batch_size": 180, "lr": min(LR_MAX, LR_PER_PROBE * probes)},
        "exchange": {"name": "seeds"},
        "seeds": {"directions": "shared", "probes": probes, "rule": "mean"},
        "topology": {"rule": "ring"},
        "rounds": {"max": ROUNDS_MAX, "eval_every": max(LOOK_EVERY, LOOK_EVERY * 16 // probes)},
    }


def measure_traffic(seed: int) -> list[dict[str, Any]]:
    """A row for models and one for each number of probes: rounds, seconds and bytes per link until the target."""
    return [_models(seed), *(_seeds(probes, seed) for probes in PROBES)]


def _configs(table: Mapping[str, Any]) -> list[Config]:
    return loopback_configs(Path(), [f"peer-{i}" for i in range(PEERS)], table)


def _models(seed: int) -> dict[str, Any]:
    plan = task_plan(_configs({**MODELS, "swarm": {"seed": seed}}))
    began = time.perf_counter()
    outcome = simulate(plan)
    seconds = time.perf_counter() - began
    milestones = outcome.history[0]
    rounds = next((m.round for m in milestones if m.figures["accuracy"] >= TARGET), 0)
    payload = plan.make_trainer(0).payload_bytes
    return _row("models", 0, rounds, seconds * rounds / len(milestones), 2 * rounds * payload)


def _seeds(probes: int, seed: int) -> dict[str, Any]:
    configs = _configs(seeds_table(probes, seed))
    probers = begin(configs)
    began = time.perf_counter()
    for round in range(1, ROUNDS_MAX + 1):
        exchange(configs, probers, round)
        if probers[0].figures().get("accuracy", 0.0) >= TARGET:
            break
    else:
        round = 0
    seconds = time.perf_counter() - began
    return _row("seeds", probes, round, seconds, round * PEERS * (probes + BATCH_OVERHEAD_BYTES))


def _row(name: str, probes: int, rounds: int, seconds: float, bytes_per_link: int) -> dict[str, Any]:
    """`rounds` 0: the target was not reached."""
    return {
        "exchange": name,
        "probes": probes,
        "rounds": rounds,
        "seconds": seconds,
        "bytes_per_link": bytes_per_link,
    }
