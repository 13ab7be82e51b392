"""Bytes and time to equal accuracy, gossiped models beside records: digits from scratch with P shared directions a
round, and a pretrained encoder that is to gain five points.

Both axes, because either alone misleads. One process does all peers' work, without a network; the bytes are those of
one link of a ring, on which every record passes once and every model both ways.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from murmurate.peer.config import Config
from murmurate.peer.learning.evaluation import evaluate
from murmurate.peer.learning.tasks import make_task

from .cohort import loopback_configs
from .demo_seeds import encoder
from .simulator import simulate
from .tasks import task_plan
from .together import begin, exchange

PEERS = 8
# Per probe: above it the noise of a round outweighs its step. (measured with 64 probes: 0.14 trains, 0.2 diverges)
LR_PER_PROBE = 0.14 / 64
LR_MAX = 0.3  # with many probes a step is as good as a gradient's, and no longer (measured)
LOOK_EVERY = 10  # rounds, scaled to the number of probes: looking costs about as much as 8 probes
BATCH_OVERHEAD_BYTES = 114  # a frame of one batch beside its codes: key, signature, numbers (178 bytes with 64 codes)


def digits_table(probes: int) -> dict[str, Any]:
    """From scratch, on shared directions."""
    return {
        "task": {"name": "digits"},
        "local": {"steps": 1, "batch_size": 180, "lr": min(LR_MAX, LR_PER_PROBE * probes)},
        "seeds": {"directions": "shared", "probes": probes, "rule": "mean"},
        "rounds": {"max": 20_000, "eval_every": max(LOOK_EVERY, LOOK_EVERY * 16 // probes)},
    }


def docstrings_table(probes: int) -> dict[str, Any]:
    """The demo's settings; `probes` private directions of a round, each at the next batch."""
    rounds = 320 // probes
    return {
        "task": encoder(),
        "local": {"steps": probes, "batch_size": 32, "lr": 5e-5, "schedule": "linear"},
        "rounds": {"max": rounds, "eval_every": 1},
    }


@dataclass(frozen=True, slots=True)
class Race:
    """What is to be learnt, and how."""

    gain: float
    """Of test accuracy, over that of the first weights; or the accuracy itself where those know nothing."""
    models: Mapping[str, Any]
    seeds: Callable[[int], Mapping[str, Any]]
    probes: tuple[int, ...]
    knows: bool = False


RACES = {
    "digits": Race(
        gain=0.85,
        models={
            "task": {"name": "digits"},
            "local": {"steps": 20, "batch_size": 32, "lr": 0.05},
            "rounds": {"max": 100},
        },
        seeds=digits_table,
        probes=(1, 16, 64, 256),
    ),
    "docstrings": Race(
        gain=0.05,
        models={
            "task": encoder(),
            "local": {"steps": 4, "batch_size": 32, "optimizer": "adamw", "lr": 5e-5},
            "rounds": {"max": 4},
        },
        seeds=docstrings_table,
        probes=(16,),
        knows=True,
    ),
}


def measure_traffic(task: str, seed: int) -> Iterator[dict[str, Any]]:
    """A row for models and one for each number of probes: rounds, seconds and bytes per link until the target."""
    race = RACES[task]
    table = {"swarm": {"seed": seed}, "topology": {"rule": "ring"}}
    models = _configs({**table, **race.models})
    target = race.gain + (_first_accuracy(models[0]) if race.knows else 0.0)
    yield {"task": task, "target": target, **_models(models, target)}
    for probes in race.probes:
        configs = _configs({**table, **race.seeds(probes), "exchange": {"name": "seeds"}})
        yield {"task": task, "target": target, **_seeds(configs, probes, target)}


def _configs(table: Mapping[str, Any]) -> list[Config]:
    return loopback_configs(Path(), [f"peer-{i}" for i in range(PEERS)], table)


def _first_accuracy(config: Config) -> float:
    task = make_task(config)
    return evaluate(task, task.model())["accuracy"]


def _models(configs: list[Config], target: float) -> dict[str, Any]:
    plan = task_plan(configs)
    began = time.perf_counter()
    outcome = simulate(plan)
    seconds = time.perf_counter() - began
    milestones = outcome.history[0]
    rounds = next((m.round for m in milestones if m.figures["accuracy"] >= target), 0)
    payload = plan.make_trainer(0).payload_bytes
    return _row("models", 0, rounds, seconds * rounds / len(milestones), 2 * rounds * payload)


def _seeds(configs: list[Config], probes: int, target: float) -> dict[str, Any]:
    blind = {"rounds": configs[0].rounds.model_copy(update={"eval_every": 0})}  # all would see the same: one looks
    configs = [config.model_copy(update=blind) if i else config for i, config in enumerate(configs)]
    probers = begin(configs)
    began = time.perf_counter()
    for round in range(1, configs[0].rounds.max + 1):
        exchange(configs, probers, round)
        if probers[0].figures().get("accuracy", 0.0) >= target:
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
