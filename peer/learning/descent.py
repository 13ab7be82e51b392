"""Zeroth-order descent of one module in a plain loop, without a swarm: what kinds of directions and scalars do to
learning, everything else being equal.

Some records are measured at one point, then all are applied (n-SPSA). Seeds give the first weights, the batches and the
directions: with one seed two curves differ in what they compare alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from murmurate.kernels import noise
from murmurate.peer.config import Config
from murmurate.peer.learning.tasks import make_task

from .evaluation import evaluate
from .flat import FlatModel
from .randomness import derive, seed_torch

Draw = Callable[[Tensor, int], None]
"""Writes the direction of this number [D]."""


def _structured(seed: int) -> Draw:
    of_seed = seed.to_bytes(8, "little")
    key, signs = noise.derive_key(of_seed, b"pool"), noise.derive_key(of_seed, b"signs")

    def draw(out_D: Tensor, number: int) -> None:
        noise.perturb(out_D, out_D.zero_(), noise.Direction(key, number), 1.0, signs)

    return draw


def _rademacher(seed: int) -> Draw:
    def draw(out_D: Tensor, number: int) -> None:
        out_D.bernoulli_(0.5, generator=torch.Generator().manual_seed(derive(seed, "direction", number)))
        out_D.mul_(2).sub_(1)

    return draw


def _gaussian(seed: int) -> Draw:
    def draw(out_D: Tensor, number: int) -> None:
        out_D.normal_(generator=torch.Generator().manual_seed(derive(seed, "direction", number)))

    return draw


DIRECTIONS: dict[str, Callable[[int], Draw]] = {
    "structured": _structured,
    "rademacher": _rademacher,
    "gaussian": _gaussian,
}
SCALARS = ("float32", "byte")


@dataclass(frozen=True, slots=True)
class Course:
    """How far to go, and where to look around."""

    points: int
    records: int
    """Measured at each point."""
    looks: int
    """Evaluations after the one at the start."""


def descend(config: Config, course: Course, directions: str, scalar: str) -> Iterator[dict[str, float]]:
    """The task's figures at every look. `local.lr` falls linearly to 0; also taken from the configuration: the batch
    size, seeds.epsilon, and the unit of a byte.
    """
    seed, local, epsilon = config.swarm.seed, config.local, config.seeds.epsilon
    torch.manual_seed(seed)
    task = make_task(config)
    model = FlatModel(task.model(), gradients=False)
    weights_D = model.flat_D
    home_D, z_D, step_D = weights_D.clone(), torch.empty_like(weights_D), torch.zeros_like(weights_D)
    draw, batches = DIRECTIONS[directions](seed), np.random.default_rng(derive(seed, "batches"))
    unit = 2.0**config.unit_log2

    def rounded(step: float) -> float:
        return step if scalar == "float32" else unit * float(noise.decode(noise.encode(np.array([step / unit])))[0])

    def loss(shift: float, batch: Any, number: int) -> float:
        seed_torch(derive(seed, "dropout", number), weights_D.device)  # both passes drop the same units
        torch.add(home_D, z_D, alpha=shift, out=weights_D)
        return float(task.loss(model.module, batch))

    with torch.no_grad():
        yield {"records": 0, **evaluate(task, model.module)}
        for point in range(course.points):
            lr = local.lr * (1 - point / course.points)
            for number in range(point * course.records, (point + 1) * course.records):
                chosen_B = torch.from_numpy(batches.choice(task.train_size, local.batch_size, replace=False))
                batch = task.batch(chosen_B)
                draw(z_D, number)
                slope = (loss(epsilon, batch, number) - loss(-epsilon, batch, number)) / (2 * epsilon)
                if math.isfinite(slope):
                    step_D.add_(z_D, alpha=-rounded(lr * slope))
            home_D.add_(step_D)
            weights_D.copy_(home_D)
            step_D.zero_()
            if (point + 1) * course.looks % course.points < course.looks:
                yield {"records": (point + 1) * course.records, **evaluate(task, model.module)}
