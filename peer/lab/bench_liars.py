"""How the rules for shared directions bear liars: accuracy of 8 peers, of which none or 2 send the largest scalar of
the wrong sign, every round, for every direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from murmurate.peer.config import Config

from .cohort import loopback_configs
from .together import together

PEERS = 8
ROUNDS = 1000
PROBES = 64
LR = 0.14  # (measured: 0.1 is slower; 0.2 diverges, with the median for some seeds only)
LOOKS = 10


class Case(NamedTuple):
    """A rule, and how many lie to it."""

    rule: str
    liars: int
    lr: float = LR
    rounds: int = ROUNDS


CASES = (
    Case("mean", 0),
    Case("nna", 2),
    Case("median", 2),
    Case("sum", 2, LR / PEERS, ROUNDS // 5),  # the sum is as long as the mean of the others; lost long before its end
)


def measure_liars(seed: int, cases: tuple[Case, ...] = CASES) -> Iterator[dict[str, Any]]:
    """A row for each case: the accuracy of an honest peer (all have the same weights) on the way and at the end."""
    for case in cases:
        looks = together(_configs(case, seed), case.rounds)[case.rounds // LOOKS - 1 :: case.rounds // LOOKS]
        curve = [figures["accuracy"] for figures in looks]
        yield {**case._asdict(), "seed": seed, "accuracy": curve[-1], "curve": curve}


def _configs(case: Case, seed: int) -> list[Config]:
    table: dict[str, Any] = {
        "swarm": {"seed": seed},
        "task": {"name": "digits"},
        "local": {"steps": 1, "batch_size": 180, "lr": case.lr, "schedule": "cosine"},  # as many examples as a peer has
        "exchange": {"name": "seeds"},
        "seeds": {"directions": "shared", "probes": PROBES, "rule": case.rule},
        "mixing": {"f": 2 if case.rule in ("nna", "median") else 0},
        "topology": {"rule": "complete"},
        "rounds": {"max": case.rounds, "eval_every": max(1, case.rounds // LOOKS)},
    }
    configs = loopback_configs(Path(), [f"peer-{i}" for i in range(PEERS)], table)
    lying = {"attack": configs[0].attack.model_copy(update={"name": "max_flip"})}
    return [config.model_copy(update=lying) if i >= PEERS - case.liars else config for i, config in enumerate(configs)]
