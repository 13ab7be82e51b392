"""How a record is measured: the slope of a batch's loss along directions of +1 and -1, without a gradient.

All passes of a step run in training mode under the same torch seed, so dropout drops the same units in each: the
difference of two losses is then the direction's doing alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from murmurate.kernels import noise
from murmurate.peer import config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.tasks import Task

from .flat import FlatModel
from .randomness import seed_torch
from .replica import Weights


class Scored(Protocol):
    """A task with a figure of its own to improve."""

    def score(self, model: nn.Module, batch: Any) -> float: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One batch, the seed of its randomness, its directions, and how far a slope of 1 moves the weights."""

    batch: Any
    seed: int
    directions: noise.Directions
    rate: float


class Reading(NamedTuple):
    """The slope along each direction, NaN where a loss was not finite, and all losses that were looked at."""

    slopes: list[float]
    losses: list[float]


class Objective:
    """What is to be made small, as a function of where the module is put."""

    def __init__(self, seeds: config.Seeds, task: Task, model: FlatModel, weights: Weights, unit: float) -> None:
        self.task, self.model, self.weights, self.unit = task, model, weights, unit
        self.epsilon = weights.length(seeds.epsilon)
        self._score = cast("Scored", task).score if seeds.objective == "score" else None

    def at(self, step: Step, direction: noise.Direction, epsilon: float) -> float:
        """At w + epsilon x direction; NaN when it is not finite."""
        self.weights.shift(direction, epsilon)
        return self.here(step)

    def home(self, step: Step) -> float:
        """At w."""
        self.weights.settle()
        return self.here(step)

    def here(self, step: Step) -> float:
        """Wherever the module is."""
        seed_torch(step.seed, self.model.flat_D.device)
        module = self.model.module
        with torch.no_grad():
            value = (
                float(self.task.loss(module, step.batch)) if self._score is None else -self._score(module, step.batch)
            )
        return value if math.isfinite(value) else math.nan


Probe = Callable[[Objective, Step], Reading]


def spsa(objective: Objective, step: Step) -> Reading:
    """Two passes per direction: (L(w + eps z) - L(w - eps z)) / 2 eps (MeZO, Malladi et al. 2023, Algorithm 1)."""
    slopes: list[float] = []
    losses: list[float] = []
    for direction in step.directions:
        up = objective.at(step, direction, objective.epsilon)
        down = objective.at(step, direction, -objective.epsilon)
        slopes.append((up - down) / (2 * objective.epsilon))
        losses += up, down
    return Reading(slopes, losses)


def sign(objective: Objective, step: Step) -> Reading:
    """Only the sign of spsa's slope (ZO-SGD-Sign of ZO-Bench, Zhang et al. 2024)."""
    slopes, losses = spsa(objective, step)
    return Reading([slope if math.isnan(slope) else float((slope > 0) - (slope < 0)) for slope in slopes], losses)


def conservative(objective: Objective, step: Step) -> Reading:
    """Of staying, the step along spsa's slope and the opposite one, what is best on the batch (ZO-SGD-Cons, ibid.).

    The candidates are the very steps that the record's code can express.
    """
    slopes, losses = spsa(objective, step)
    home = objective.home(step)
    chosen: list[float] = []
    for direction, slope in zip(step.directions, slopes, strict=True):
        steps = int(noise.decode(noise.encode(step.rate * slope / objective.unit)))
        if math.isnan(slope) or math.isnan(home) or steps == 0:
            chosen.append(slope + 0 * home)
            continue
        forth = objective.at(step, direction, -steps * objective.unit)
        back = objective.at(step, direction, steps * objective.unit)
        best = min(value for value in (home, forth, back) if not math.isnan(value))
        chosen.append(0.0 if home == best else slope if forth == best else -slope)
    return Reading(chosen, [*losses, home])


class _Bound(nn.Module):
    """A task's loss as a module's forward, so that functional_call can lend it other parameters."""

    def __init__(self, task: Task, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._task = task

    def forward(self, batch: Any) -> Tensor:
        return self._task.loss(self.module, batch)


def forward(objective: Objective, step: Step) -> Reading:
    """The exact slope, by one pass of forward-mode differentiation each (Baydin et al. 2022).

    Needs one vector more, for the direction. Raises ConfigError when an operation of the model has no such derivative.
    """
    objective.weights.settle()
    model = objective.model
    bound = _Bound(objective.task, model.module)
    primals = {f"module.{name}": value.detach() for name, value in model.named(model.flat_D).items()}
    tangent_D = torch.empty_like(model.flat_D)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        seed_torch(step.seed, model.flat_D.device)
        # What a module writes into its buffers (BatchNorm) has derivatives: only copies that are made here bear them.
        buffers = {name: value.clone() for name, value in bound.named_buffers()}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no forward derivative
            return torch.func.functional_call(bound, {**parameters, **buffers}, (step.batch,))

    slopes: list[float] = []
    losses: list[float] = []
    for direction in step.directions:
        objective.weights.write(tangent_D, direction)
        tangents = {f"module.{name}": value for name, value in model.named(tangent_D).items()}
        try:
            found: Any = torch.func.jvp(loss, (primals,), (tangents,))
        except NotImplementedError as error:
            first_line = next(iter(str(error).splitlines()), "no forward derivative")
            raise ConfigError(f"seeds.probe = 'forward': the model cannot be differentiated so: {first_line}") from None
        value, slope = (float(part) for part in found)
        slopes.append(slope if math.isfinite(value) and math.isfinite(slope) else math.nan)
        losses.append(value)
    return Reading(slopes, losses)


def _prepare_forward() -> None:
    """torch loads its forward derivatives at their first use, by means that it calls deprecated itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))


PROBES: dict[str, Probe] = {"spsa": spsa, "sign": sign, "conservative": conservative, "forward": forward}
FIRST_ORDER = "ferret"  # the one way to measure that takes a whole round: see `ferret`


def find_probe(seeds: config.Seeds, task: Task) -> Probe | None:
    """The configured probe, None for ferret. Raises ConfigError for an unknown one, and for a task without a score."""
    if seeds.objective == "score" and not callable(getattr(task, "score", None)):
        raise ConfigError(
            "seeds.objective = 'score': the task has no `score(model, batch) -> float`; add one (docs/tasks.md), or "
            "use 'loss'"
        )
    if seeds.probe == FIRST_ORDER:
        return None
    if seeds.probe not in PROBES:
        raise ConfigError(f"seeds.probe = {seeds.probe!r}: unknown; known are {', '.join([*PROBES, FIRST_ORDER])}")
    if seeds.probe == "forward":
        _prepare_forward()
    return PROBES[seeds.probe]
