"""What the demo is compared with: alone, pooled, and plain-mean mixing under the same liars.

A program of its own (`python -m murmurate.peer.lab.baselines ROUNDS SEED FILE`), so that it can run beside the daemons.
It writes JSON: for each baseline a `curve` (mean accuracy of the honest peers per round) and the `final` accuracies.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from murmurate.peer.build import build_topology, degree_min
from murmurate.peer.config import Config, parse
from murmurate.peer.learning.make import make_trainer, prepare
from murmurate.peer.protocol.events import Mix, Turn

from .demo import LIARS, NAMES, demo_table, lying
from .simulator import simulate
from .tasks import task_plan

Curves = list[list[float]]


def main(rounds: int, seed: int, target: Path) -> None:
    """Measure the three, and write them."""
    table = demo_table(rounds, seed)
    peers = dict.fromkeys(NAMES, "127.0.0.1:0")
    configs = [parse({**table, "name": name, "peers": peers}) for name in NAMES]
    prepare(configs[0])
    honest = [config for config in configs if config.name not in LIARS]
    pooled = parse({**table, "name": "all", "peers": {"all": "127.0.0.1:0"}, "topology": {"rule": "complete"}})
    found = {
        "alone": [_alone(config, rounds) for config in honest],
        "pooled": [_alone(pooled.model_copy(update={"mixing": pooled.mixing.model_copy(update={"f": 0})}), rounds)],
        "mean": _mean_rule(configs),
    }
    target.write_text(json.dumps({name: _summary(curves) for name, curves in found.items()}), encoding="utf-8")


def _alone(config: Config, rounds: int) -> list[float]:
    """Accuracy after each round of one peer that hears nobody."""
    trainer = make_trainer(config, degree_min(build_topology(config)))
    curve: list[float] = []
    for round in range(1, rounds + 1):
        trainer.train(round)
        trainer.mix(Mix(Turn(round), {}, {}))
        curve.append(trainer.figures()["accuracy"])
    return curve


def _mean_rule(configs: Sequence[Config]) -> Curves:
    """Accuracy after each round of every honest peer when all mix by the plain mean, under the same liars."""
    plain = [
        config.model_copy(update={"mixing": config.mixing.model_copy(update={"rule": "mean", "f": 0})})
        for config in configs
    ]
    outcome = simulate(task_plan([lying(config) if config.name in LIARS else config for config in plain]))
    return [
        [milestone.figures["accuracy"] for milestone in milestones]
        for config, milestones in zip(configs, outcome.history, strict=True)
        if config.name not in LIARS
    ]


def _summary(curves: Curves) -> dict[str, Any]:
    mean = [statistics.mean(accuracies) for accuracies in zip(*curves, strict=False)]
    return {"curve": mean, "final": [curve[-1] for curve in curves]}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
