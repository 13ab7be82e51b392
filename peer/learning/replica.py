"""The weights of the `seeds` exchange: a module's flat vector as a pure function of integer coefficients.

w = f32(w0) - 2^unit_log2 x f32(S), S the sum of coefficient x direction: integers, so their order cannot matter, and a
power of two, so no product rounds. Two ways to keep it, for D parameters:

* `Exact`: base weights and S beside the module. Memory besides the module: D x (bytes of the base dtype + 4), or + 8
  once a sum could leave 32 bits.
* `Lean`: the module alone. The base is rounded to the grid of the unit and while every weight stays below 2^23 units,
  adding, perturbing and undoing are exact in float32, in place. Memory besides the module: none. Beyond that it goes on
  as `Exact` does, from the rounded base, which gives the same bits on the grid: so the weights are one function of the
  coefficients, whatever happened on the way. A liar can so cost its swarm memory, but no peer its life.

The vector is cut into `parts` at the borders of tensors; a direction moves the part numbered index mod parts, and every
part begins blocks of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from murmurate.kernels import noise
from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.learning.exchange.seeds import Changes
from murmurate.peer.learning.exchange.states import NoState

from .flat import FlatModel
from .places import Place, places_of

CHUNK = 2**22  # entries that are hashed or rounded at a time: 16 MiB (a guess)
GLANCE = 32 * noise.BLOCK  # entries whose sums are looked at before they are applied: 8 MiB (a guess)
SUMS_MAX = 2**31  # what int32 cannot hold
NARROW = (torch.float32, torch.bfloat16, torch.float16)  # what the kernels round sums to
GRID_MAX = 2**23  # units; twice as many are still exact in float32, which leaves room for one step and one probe


class Weights(Protocol):
    """What the module holds, and how to move it."""

    def move(self, changes: Changes) -> None:
        """Add to the coefficients; the module follows at the latest with `settle`."""
        ...

    def shift(self, direction: noise.Direction, epsilon: float) -> None:
        """Put the module at w + epsilon x direction."""
        ...

    def settle(self) -> None:
        """Put the module at w."""
        ...

    def length(self, epsilon: float) -> float:
        """The length that `shift` really goes for this epsilon."""
        ...

    def write(self, out_D: Tensor, direction: noise.Direction) -> None:
        """out = direction: 0 outside of its part."""
        ...

    def project(self, update_D: Tensor, directions: noise.Directions) -> NDArray[np.float64]:
        """<update, direction> [K], each within its part."""
        ...

    def steps(self) -> NDArray[np.int64]:
        """Where it stands [D], in whole numbers that are equal at all peers of equal weights."""
        ...

    def put(self, steps_D: NDArray[np.int32]) -> None:
        """Stand there instead, wherever it stood. Raises NoState for what it cannot keep."""
        ...


Again = Callable[[], Tensor]
"""Makes the flat vector of the first weights anew [D]. Raises LocalError when it cannot."""


def make_weights(
    model: FlatModel, unit_log2: int, parts: int, memory: str, signs: int, again: Again | None = None
) -> Weights:
    """The configured way to keep the weights `model` has now. Raises ConfigError for what it cannot keep.

    Without `again` lean weights cannot leave their grid: `move` then raises LocalError.
    """
    places = places_of(model, parts)
    if model.flat_D.dtype not in NARROW:
        raise ConfigError(
            "exchange.name = 'seeds': needs a model in float32, bfloat16 or float16, and this one is "
            f"{model.flat_D.dtype}"
        )
    if memory == "exact":
        return Exact(model, unit_log2, places, signs)
    return Lean(model, unit_log2, places, signs, again)


class _Vector:
    """What both ways share."""

    def __init__(self, model: FlatModel, unit_log2: int, places: list[Place], signs: int) -> None:
        self._flat_D = model.flat_D
        self._unit_log2, self._unit = unit_log2, 2.0**unit_log2
        self._places, self._signs = places, signs

    def length(self, epsilon: float) -> float:
        """See `Weights`."""
        return float(np.float32(epsilon))

    def write(self, out_D: Tensor, direction: noise.Direction) -> None:
        """See `Weights`."""
        span, first_block = self._places[direction.index % len(self._places)]
        out = out_D.zero_()[span]
        noise.perturb(out, out, direction, 1.0, self._signs, first_block)

    def project(self, update_D: Tensor, directions: noise.Directions) -> NDArray[np.float64]:
        """See `Weights`."""
        part_K = self._part_of(directions.indices)
        projected_K = np.zeros(len(directions), dtype=np.float64)
        for part, (span, first_block) in enumerate(self._places):
            mine = part_K == part
            some = noise.Directions(directions.keys[mine], directions.indices[mine])
            projected_K[mine] = noise.project(update_D[span].float(), some, self._signs, first_block)
        return projected_K

    def _part_of(self, indices_K: NDArray[np.uint64]) -> NDArray[np.int64]:
        return (indices_K % np.uint64(len(self._places))).astype(np.int64)

    def _portions(self, changes: Changes, sum_max: int) -> Iterator[tuple[int, noise.Directions, NDArray[np.int64]]]:
        """(part, directions, coefficients): by part, and no portion of several has a sum of |coefficient| above the
        maximum."""
        part_K = self._part_of(changes.indices)
        for part in range(len(self._places)):
            mine = np.flatnonzero(part_K == part)
            sums = np.abs(changes.deltas[mine]).cumsum()
            while len(mine):
                count = max(1, int(np.searchsorted(sums, sum_max, side="right")))
                some = mine[:count]
                directions = noise.Directions(changes.keys[some], changes.indices[some])
                yield part, directions, changes.deltas[some]
                mine, sums = mine[count:], sums[count:] - sums[count - 1]


class Exact(_Vector):
    """Base weights, integer sums, and the module, which is made from both when it is needed."""

    def __init__(
        self, model: FlatModel, unit_log2: int, places: list[Place], signs: int, base_D: Tensor | None = None
    ) -> None:
        """`base_D`: not what the model holds, but the rounded base of lean weights, which are kept as it is."""
        super().__init__(model, unit_log2, places, signs)
        self._base_D = self._flat_D.clone() if base_D is None else base_D
        self._sums_D = torch.zeros(self._flat_D.numel(), dtype=torch.int32, device=self._flat_D.device)
        self._reach = 0  # no |sum| is larger
        if base_D is not None:  # exact: both are on the grid and below 2^23 units
            self._sums_D.copy_((base_D - self._flat_D).div_(self._unit))
            self._reach = 2 * GRID_MAX
        self._stale: set[int] = set()  # parts of which the module is not at w

    def move(self, changes: Changes) -> None:
        """See `Weights`."""
        for part, directions, coefficients in self._portions(changes, SUMS_MAX // 2 - 1):
            self._widen_if_needed(int(np.abs(coefficients).sum()))
            span, first_block = self._places[part]
            noise.accumulate(self._sums_D[span], directions, coefficients, self._signs, first_block)
            self._stale.add(part)

    def shift(self, direction: noise.Direction, epsilon: float) -> None:
        """See `Weights`."""
        part = direction.index % len(self._places)
        self._make(self._stale - {part})
        span, first_block = self._places[part]
        noise.materialise(
            self._flat_D[span],
            self._base_D[span],
            self._sums_D[span],
            self._unit_log2,
            self._signs,
            direction,
            epsilon,
            first_block,
        )
        self._stale = {part}

    def settle(self) -> None:
        """See `Weights`."""
        self._make(self._stale)
        self._stale = set()

    def steps(self) -> NDArray[np.int64]:
        """See `Weights`."""
        return self._sums_D.cpu().numpy().astype(np.int64)

    def put(self, steps_D: NDArray[np.int32]) -> None:
        """See `Weights`."""
        self._sums_D = torch.from_numpy(steps_D).to(self._flat_D.device, copy=True)
        self._reach = int(np.abs(steps_D.astype(np.int64)).max(initial=0))
        self._stale = set(range(len(self._places)))

    def _make(self, parts: set[int]) -> None:
        for part in parts:
            span, first_block = self._places[part]
            noise.materialise(
                self._flat_D[span],
                self._base_D[span],
                self._sums_D[span],
                self._unit_log2,
                self._signs,
                first_block=first_block,
            )

    def _widen_if_needed(self, more: int) -> None:
        """The tracked bound only grows; when it reaches the end of int32 the sums themselves say where they are."""
        self._reach += more
        if self._sums_D.dtype == torch.int32 and self._reach >= SUMS_MAX:
            low, high = torch.aminmax(self._sums_D)
            self._reach = max(-int(low), int(high)) + more
            if self._reach >= SUMS_MAX:
                self._sums_D = self._sums_D.long()


class Lean(_Vector):
    """The module alone, on the grid of the unit."""

    def __init__(
        self, model: FlatModel, unit_log2: int, places: list[Place], signs: int, again: Again | None = None
    ) -> None:
        super().__init__(model, unit_log2, places, signs)
        self._model, self._again = model, again
        self._beyond: Exact | None = None  # since a weight left the grid
        if self._flat_D.dtype != torch.float32:
            raise ConfigError(f"seeds.memory = 'lean': needs a model in float32, and this one is {self._flat_D.dtype}")
        _to_grid(self._flat_D, unit_log2)
        self._reach = self._measured()  # units; no |weight| is larger
        if self._reach >= GRID_MAX:
            fitting = unit_log2 + (self._reach // GRID_MAX).bit_length()
            raise ConfigError(
                f"seeds.memory = 'lean': the weights go up to {self._reach * self._unit:.3g}, beyond a grid of "
                f"2^{unit_log2}; set seeds.unit_log2 = {fitting} or more, or memory = 'exact'"
            )
        self._shifted: tuple[noise.Direction, float] | None = None

    @property
    def is_beyond(self) -> bool:
        """Whether it needs the memory of exact weights."""
        return self._beyond is not None

    def move(self, changes: Changes) -> None:
        """See `Weights`. Raises LocalError when a weight would leave the grid and cannot; then nothing was changed."""
        self.settle()
        if self._beyond is None and self._leaves(changes):
            self._beyond = self._go_beyond()
        if self._beyond is not None:
            return self._beyond.move(changes)
        for part, directions, coefficients in self._portions(changes, 2**62):
            span, first_block = self._places[part]
            noise.replay(self._flat_D[span], directions, coefficients, self._signs, self._unit_log2, first_block)
        return None

    def shift(self, direction: noise.Direction, epsilon: float) -> None:
        """See `Weights`."""
        there = self.length(epsilon)
        if self._beyond is not None:
            return self._beyond.shift(direction, there)
        here = 0.0
        if self._shifted is not None:
            if self._shifted[0] == direction:
                here = self._shifted[1]
            else:
                self.settle()
        self._add(direction, there - here)
        self._shifted = (direction, there)
        return None

    def settle(self) -> None:
        """See `Weights`."""
        if self._beyond is not None:
            return self._beyond.settle()
        if self._shifted is not None:
            self._add(self._shifted[0], -self._shifted[1])
            self._shifted = None
        return None

    def steps(self) -> NDArray[np.int64]:
        """See `Weights`. Raises NoState beyond the grid: a joiner could not stand there."""
        self.settle()
        if self._beyond is not None and self._measured() >= GRID_MAX:
            raise NoState("a weight beyond the grid")
        return (self._flat_D / self._unit).cpu().numpy().astype(np.int64)

    def put(self, steps_D: NDArray[np.int32]) -> None:
        """See `Weights`."""
        reach = int(np.abs(steps_D.astype(np.int64)).max(initial=0))
        if reach >= GRID_MAX:
            raise NoState("a weight beyond the grid")
        self._shifted, self._beyond, self._reach = None, None, reach
        self._flat_D.copy_(torch.from_numpy(steps_D).to(self._flat_D.device).float() * self._unit)

    def length(self, epsilon: float) -> float:
        """The nearest multiple of the unit, so that it can be undone, but never none at all."""
        return math.copysign(max(1, round(abs(epsilon) / self._unit)) * self._unit, epsilon)

    def _add(self, direction: noise.Direction, epsilon: float) -> None:
        span, first_block = self._places[direction.index % len(self._places)]
        flat = self._flat_D[span]
        noise.perturb(flat, flat, direction, epsilon, self._signs, first_block)

    def _leaves(self, changes: Changes) -> bool:
        """Whether a weight would leave the grid. The tracked bound only grows; then the weights say where they are, and
        at last where they would be."""
        more = int(np.abs(changes.deltas).sum())
        if self._reach + more >= GRID_MAX:
            self._reach = self._measured()
        if self._reach + more < GRID_MAX:
            self._reach += more
            return False
        reach = self._after(changes)
        if reach < GRID_MAX:
            self._reach = reach
        return reach >= GRID_MAX

    def _after(self, changes: Changes) -> int:
        """The largest |weight| in units that there would be, a piece at a time."""
        portions = list(self._portions(changes, 2**62))
        most = 0
        for part, (span, first_block) in enumerate(self._places):
            for start in range(span.start, span.stop, GLANCE):
                piece = self._flat_D[start : min(span.stop, start + GLANCE)]
                after = torch.zeros(len(piece), dtype=torch.int64, device=piece.device)
                block = first_block + (start - span.start) // noise.BLOCK
                for _, directions, coefficients in (portion for portion in portions if portion[0] == part):
                    noise.accumulate(after, directions, coefficients, self._signs, block)
                low, high = torch.aminmax((piece / self._unit).long() - after)
                most = max(most, -int(low), int(high))
        return most

    def _go_beyond(self) -> Exact:
        """The same weights, as exact ones."""
        if self._again is None:
            raise LocalError(
                f"seeds.memory = 'lean': a weight leaves the grid of 2^{self._unit_log2}; the swarm needs a larger "
                "seeds.unit_log2 or memory = 'exact'"
            )
        base_D = _to_grid(self._again(), self._unit_log2)
        return Exact(self._model, self._unit_log2, self._places, self._signs, base_D)

    def _measured(self) -> int:
        low, high = torch.aminmax(self._flat_D)
        return int(max(-float(low), float(high)) / self._unit)


def _to_grid(vector_D: Tensor, unit_log2: int) -> Tensor:
    """Rounds in place, and returns it."""
    for start in range(0, vector_D.numel(), CHUNK):
        piece = vector_D[start : start + CHUNK]
        piece.copy_(noise.to_grid(piece, unit_log2))
    return vector_D


# Integers as wide as an entry, through which numpy (which knows no bfloat16) moves the bits.
WIDTHS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(vector_D: Tensor) -> bytes:
    """SHA-256 of the entries as little-endian bytes."""
    found = hashlib.sha256()
    for piece in _bytes_of(vector_D):
        found.update(piece)
    return found.digest()


def base_of(module: nn.Module, common: str = "") -> str:
    """`sha256:...` of all first weights and buffers: names, dtypes, shapes, values; and of the task's `common`."""
    found = hashlib.sha256(common.encode())
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        for piece in _bytes_of(value.reshape(-1)):
            found.update(piece)
    return f"sha256:{found.hexdigest()}"


def _bytes_of(vector_D: Tensor) -> Iterator[memoryview]:
    """A chunk at a time: never a second copy of everything."""
    width = vector_D.itemsize
    for start in range(0, vector_D.numel(), CHUNK):
        piece = vector_D[start : start + CHUNK].detach().cpu().contiguous()
        yield piece.view(WIDTHS[width]).numpy().astype(f"<i{width}", copy=False).data
