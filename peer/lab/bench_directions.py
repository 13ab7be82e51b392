"""What structured directions and one-byte scalars cost in learning: curves beside Rademacher and Gaussian directions
and float32 scalars, on a small perceptron from scratch and on a pretrained transformer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from murmurate.peer.config import Config, parse
from murmurate.peer.learning.descent import DIRECTIONS, SCALARS, Course, descend

from .demo_seeds import encoder

COURSES: dict[str, Course] = {
    "digits": Course(points=1200, records=16, looks=4),
    "docstrings": Course(points=20, records=12, looks=4),
}
TABLES: dict[str, Mapping[str, Any]] = {
    # 2e-3 learns more slowly. (measured)
    "digits": {"task": {"name": "digits"}, "local": {"batch_size": 32, "lr": 3e-3}},
    "docstrings": {"task": encoder(), "local": {"batch_size": 32, "lr": 6e-5}},
}


def measure_directions(task: str, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each look at the curve of each kind of direction and of scalar."""
    for directions in DIRECTIONS:
        for scalar in SCALARS:
            for figures in descend(_config(task, seed), COURSES[task], directions, scalar):
                yield {"task": task, "directions": directions, "scalar": scalar, "seed": seed, **figures}


def _config(task: str, seed: int) -> Config:
    swarm = {"name": "a", "peers": {"a": "127.0.0.1:0"}, "swarm": {"seed": seed}, "exchange": {"name": "seeds"}}
    return parse({**swarm, **TABLES[task]})
