"""The weights of the `seeds` exchange: a module's flat vector as a pure function of integer coefficients.

w = f32(w0) - 2^unit_log2 x f32(S), S the sum of coefficient x direction: integers, so their order cannot matter, and a
power of two, so no product rounds. Two ways to keep it, for D parameters:

* `Exact`: base weights and S beside the module. Memory besides the module: D x (bytes of the base dtype + 4), or + 8
  once a sum could leave 32 bits.
* `Lean`: the module alone. The base is rounded to the grid of the unit and every weight stays below 2^23 units, so
  adding, perturbing and undoing are exact in float32, in place. Memory besides the module: none.

The vector is cut into `parts` at the borders of tensors; a direction moves the part numbered index mod parts, and every
part begins blocks of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from murmurate.kernels import noise
from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.learning.exchange.seeds import Changes

from .flat import FlatModel

CHUNK = 2**22  # entries that are hashed or rounded at a time: 16 MiB (a guess)
SUMS_MAX = 2**31  # what int32 cannot hold
GRID_MAX = 2**23  # units; twice as many are still exact in float32, which leaves room for one step and one probe


class Place(NamedTuple):
    """One part of the vector and the number of its first block."""

    span: slice
    first_block: int


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


def make_weights(model: FlatModel, unit_log2: int, parts: int, memory: str, signs: int) -> Weights:
    """The configured way to keep the weights `model` has now. Raises ConfigError for what it cannot keep."""
    kind = {"exact": Exact, "lean": Lean}[memory]
    return kind(model, unit_log2, places_of(model, parts), signs)


def places_of(model: FlatModel, parts: int) -> list[Place]:
    """Runs of tensors of about equal size. Raises ConfigError when there are fewer tensors than parts."""
    sizes = [value.numel() for value in model.parameters]
    if parts > len(sizes):
        raise ConfigError(f"seeds.parts = {parts}: the model has only {len(sizes)} trainable tensors")
    places: list[Place] = []
    start, first_block, used = 0, 0, 0
    for number in range(parts):
        stop, goal = start, sum(sizes) * (number + 1) / parts
        # At least one tensor, up to the border nearest to an even share, and one must be left for each later part.
        while stop == start or (used < len(sizes) - (parts - 1 - number) and stop + sizes[used] / 2 <= goal):
            stop += sizes[used]
            used += 1
        if number == parts - 1:
            stop = sum(sizes)
        places.append(Place(slice(start, stop), first_block))
        first_block += -(-(stop - start) // noise.BLOCK)
        start = stop
    return places


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

    def __init__(self, model: FlatModel, unit_log2: int, places: list[Place], signs: int) -> None:
        super().__init__(model, unit_log2, places, signs)
        self._base_D = self._flat_D.clone()
        self._sums_D = torch.zeros(self._flat_D.numel(), dtype=torch.int32, device=self._flat_D.device)
        self._reach = 0  # no |sum| is larger
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

    def __init__(self, model: FlatModel, unit_log2: int, places: list[Place], signs: int) -> None:
        super().__init__(model, unit_log2, places, signs)
        if self._flat_D.dtype != torch.float32:
            raise ConfigError(f"seeds.memory = 'lean': needs a model in float32, and this one is {self._flat_D.dtype}")
        for start in range(0, self._flat_D.numel(), CHUNK):
            piece = self._flat_D[start : start + CHUNK]
            piece.copy_(noise.to_grid(piece, unit_log2))
        self._reach = self._measured()  # units; no |weight| is larger
        if self._reach >= GRID_MAX:
            fitting = unit_log2 + (self._reach // GRID_MAX).bit_length()
            raise ConfigError(
                f"seeds.memory = 'lean': the weights go up to {self._reach * self._unit:.3g}, beyond a grid of "
                f"2^{unit_log2}; set seeds.unit_log2 = {fitting} or more, or memory = 'exact'"
            )
        self._shifted: tuple[noise.Direction, float] | None = None

    def move(self, changes: Changes) -> None:
        """See `Weights`. Raises LocalError when a weight leaves the grid."""
        self.settle()
        for part, directions, coefficients in self._portions(changes, 2**62):
            span, first_block = self._places[part]
            noise.replay(self._flat_D[span], directions, coefficients, self._signs, self._unit_log2, first_block)
            self._reach += int(np.abs(coefficients).sum())
            if self._reach >= GRID_MAX:
                # Were both |w| before and after below 2^23 units, then the step was below 2^24: nothing was rounded.
                self._reach = self._measured()
                if self._reach >= GRID_MAX:
                    raise LocalError(
                        f"seeds.memory = 'lean': weights grew to {self._reach * self._unit:.3g}, beyond the grid of "
                        f"2^{self._unit_log2}; the swarm needs a larger seeds.unit_log2 or memory = 'exact'"
                    )

    def shift(self, direction: noise.Direction, epsilon: float) -> None:
        """See `Weights`."""
        here = 0.0
        if self._shifted is not None:
            if self._shifted[0] == direction:
                here = self._shifted[1]
            else:
                self.settle()
        there = self.length(epsilon)
        self._add(direction, there - here)
        self._shifted = (direction, there)

    def settle(self) -> None:
        """See `Weights`."""
        if self._shifted is not None:
            self._add(self._shifted[0], -self._shifted[1])
            self._shifted = None

    def length(self, epsilon: float) -> float:
        """The nearest multiple of the unit, so that it can be undone, but never none at all."""
        return math.copysign(max(1, round(abs(epsilon) / self._unit)) * self._unit, epsilon)

    def _add(self, direction: noise.Direction, epsilon: float) -> None:
        span, first_block = self._places[direction.index % len(self._places)]
        flat = self._flat_D[span]
        noise.perturb(flat, flat, direction, epsilon, self._signs, first_block)

    def _measured(self) -> int:
        low, high = torch.aminmax(self._flat_D)
        return int(max(-float(low), float(high)) / self._unit)


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
