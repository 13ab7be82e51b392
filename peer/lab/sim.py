"""`murmurate sim`: a swarm in virtual time, seed after seed, summed up."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from murmurate.peer.config import parse
from murmurate.peer.errors import ConfigError
from murmurate.topology import Topology

from .drill import drill_plan
from .seeds_drill import seeds_plan
from .seeds_simulator import simulate_seeds
from .simulator import Plan, simulate
from .swarm import Outcome
from .weather import FAIR, STORM, Weather

VIOLATIONS_SHOWN_MAX = 10
REST_S_MAX = 20.0
"""With seeds, at the end of the calm nobody makes a batch for so long, so that all peers can come to hold the same."""


def sim_weather(loss: float, crash: float, storm: bool) -> Weather:
    """The weather of the command line: what is asked for, on top of everything else at once or of nothing."""
    return replace(STORM if storm else FAIR, loss=loss, crash=crash)


def run_sim(
    *,
    peers: int,
    seeds: range,
    storm_s: float,
    calm_s: float,
    weather: Weather,
    topology: str,
    options: Mapping[str, Any],
    task: str,
    step: Callable[[], object],
    exchange: str = "models",
) -> dict[str, Any]:
    """Run every seed; `step` is called after each. `rounds_min` is over all peers and seeds."""
    if exchange == "seeds" and task != "quadratic":
        raise ConfigError(f"--task {task}: with --exchange seeds a toy is trained, and no task")
    began = time.perf_counter()
    outcomes: list[Outcome] = []
    for seed in seeds:
        try:
            graph = Topology(topology, peers, _with_seed(options, topology, seed))
        except ValueError as error:
            raise ConfigError(f"topology: {error}") from None
        outcomes.append(_run(exchange, task, graph, seed, weather, storm_s, calm_s))
        step()
    violations = [f"seed {o.seed}: {text}" for o in outcomes for text in o.violations]
    return {
        "peers": peers,
        "seeds": len(outcomes),
        "rounds_min": min(o.rounds_min for o in outcomes),
        "violations": len(violations),
        "violation_texts": violations[:VIOLATIONS_SHOWN_MAX],
        "stalled_seeds": [o.seed for o in outcomes if not o.live],
        "crashes": sum(o.crashes for o in outcomes),
        "events": sum(o.events for o in outcomes),
        "messages": sum(o.messages for o in outcomes),
        "accuracy": _mean([f["accuracy"] for o in outcomes for f in o.figures if "accuracy" in f]),
        "digest": outcomes[0].digest if len(outcomes) == 1 else _combined(outcomes),
        "virtual_s": sum(o.virtual_s for o in outcomes),
        "wall_s": round(time.perf_counter() - began, 3),
    }


def _run(
    exchange: str, task: str, graph: Topology, seed: int, weather: Weather, storm_s: float, calm_s: float
) -> Outcome:
    if exchange == "seeds":  # the toy is a sum of records: what a task would add is arithmetic, and not the protocol
        rest_s = min(calm_s / 2, REST_S_MAX)
        plan = seeds_plan(seed, graph.n, weather=weather, topology=graph, storm_s=storm_s, calm_s=calm_s, rest_s=rest_s)
        return simulate_seeds(plan)
    if task == "quadratic":
        return simulate(drill_plan(seed, graph.n, weather=weather, topology=graph, storm_s=storm_s, calm_s=calm_s))
    return simulate(_task_plan(task, graph, seed, weather, storm_s, calm_s))


def _with_seed(options: Mapping[str, Any], rule: str, seed: int) -> dict[str, Any]:
    """Random graphs are drawn anew with each seed, unless the options fix theirs."""
    from murmurate.topology import RULES

    if rule in RULES and "seed" in RULES[rule].options:
        return {"seed": seed, **options}
    return dict(options)


def _task_plan(task: str, graph: Topology, seed: int, weather: Weather, storm_s: float, calm_s: float) -> Plan:
    from .tasks import task_plan

    names = [f"p{i:04}" for i in range(graph.n)]
    table = {
        "peers": dict.fromkeys(names, "127.0.0.1:0"),
        "swarm": {"seed": seed},
        "task": {"name": task},
        "topology": {"rule": graph.rule, "options": dict(graph.options)},
        "runtime": {"threads": 1, "snapshot_s": 5.0},
    }
    configs = [parse({**table, "name": name}) for name in names]
    return task_plan(configs, seed=seed, weather=weather, storm_s=storm_s, calm_s=calm_s)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _combined(outcomes: list[Outcome]) -> str:
    return hashlib.sha256("".join(o.digest for o in outcomes).encode()).hexdigest()
