"""Directions on CPU tensors: the compiled `loops` on runs of blocks, spread over as many threads as torch has.

No run shares an output with another and every sum has a fixed order, so the result does not depend on how many there
are. Arguments are checked in `__init__`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from murmurate.kernels.threads import RUNS_PER_THREAD, Run, spread

from . import loops
from .directions import BLOCK, GROUP, Direction, Directions

PIECE = 64 * BLOCK  # of a narrow float vector in float32 at a time: 8 MiB
PARTIALS = 2**20  # float64 in the groups' partial sums of `project`: 8 MiB


def accumulate(
    sums_D: Tensor, directions: Directions, coefficients_K: NDArray[np.int64], signs: int, first_block: int = 0
) -> None:
    """As `reference.accumulate`."""
    keys, indices, coefficients = _effective(directions, coefficients_K)
    sums, key = _array(sums_D), np.uint64(signs)

    def run(begin: int, end: int) -> None:
        loops.add_records(sums, first_block, begin, end, keys, indices, coefficients, key, None)

    _spread(run, first_block, len(sums) if len(keys) else 0)


def replay(
    weights_D: Tensor,
    directions: Directions,
    coefficients_K: NDArray[np.int64],
    signs: int,
    unit_log2: int,
    first_block: int = 0,
) -> None:
    """As `reference.replay`."""
    keys, indices, coefficients = _effective(directions, coefficients_K)
    weights, key, unit = _array(weights_D), np.uint64(signs), np.float32(2.0**unit_log2)

    def run(begin: int, end: int) -> None:
        loops.add_records(weights, first_block, begin, end, keys, indices, coefficients, key, unit)

    def run_one(begin: int, end: int) -> None:
        step = -unit * np.float32(coefficients[0])
        loops.perturb(weights, weights, None, None, True, first_block, begin, end, keys, indices, step, key)

    _spread(run_one if len(keys) == 1 else run, first_block, len(weights) if len(keys) else 0)


def materialise(
    out_D: Tensor,
    base_D: Tensor,
    sums_D: Tensor,
    unit_log2: int,
    signs: int,
    direction: Direction | None = None,
    epsilon: float = 0.0,
    first_block: int = 0,
) -> None:
    """As `reference.materialise`."""
    key, unit = np.uint64(signs), np.float32(2.0**unit_log2)
    for first, place, out_P, base_P in _pieces(out_D, base_D, first_block):
        out, base, sums = _array(out_P), _array(base_P), _array(sums_D[place])
        same = out_P.data_ptr() == base_P.data_ptr()
        arguments: tuple[Any, ...] = (out, base, sums, unit, same, first)
        if direction is None:
            _spread(lambda begin, end, a=arguments: loops.materialise(*a, begin, end), first, len(out))
        else:
            along = (*_one(direction), np.float32(epsilon), key)
            _spread(lambda begin, end, a=arguments, z=along: loops.perturb(*a, begin, end, *z), first, len(out))
        _deliver(out_P, out_D[place])


def perturb(
    out_D: Tensor, weights_D: Tensor, direction: Direction, epsilon: float, signs: int, first_block: int = 0
) -> None:
    """As `reference.perturb`."""
    along = (*_one(direction), np.float32(epsilon), np.uint64(signs))
    for first, place, out_P, weights_P in _pieces(out_D, weights_D, first_block):
        same = out_P.data_ptr() == weights_P.data_ptr()
        arguments: tuple[Any, ...] = (_array(out_P), _array(weights_P), None, None, same, first)
        _spread(lambda begin, end, a=arguments: loops.perturb(*a, begin, end, *along), first, out_P.numel())
        _deliver(out_P, out_D[place])


def project(update_D: Tensor, directions: Directions, signs: int, first_block: int = 0) -> NDArray[np.float64]:
    """As `reference.project`."""
    update, key = _array(update_D), np.uint64(signs)
    total_K = np.zeros(len(directions), dtype=np.float64)
    last = first_block - (-len(update) // BLOCK)
    all_groups = range(first_block // GROUP, -(-last // GROUP))
    groups = max(1, min(len(all_groups), PARTIALS // len(directions)))
    for begin in all_groups[::groups]:
        totals_GK = np.zeros((groups, len(directions)), dtype=np.float64)

        def run(start: int, end: int, origin: int = begin, totals_GK: NDArray[np.float64] = totals_GK) -> None:
            mine_GK = totals_GK[start // GROUP - origin :]
            loops.project(mine_GK, update, first_block, start, end, directions.keys, directions.indices, key)

        start, end = max(first_block, begin * GROUP), min(last, (begin + groups) * GROUP)
        _spread(run, start, (end - start) * BLOCK)
        for row_K in totals_GK:  # in order: a library's sum may pair them as it likes
            total_K += row_K
    return total_K


def _spread(run: Run, first_block: int, size: int) -> None:
    """Call `run(begin, end)` for runs of whole groups, on torch's number of threads; this thread is one of them."""
    blocks = -(-size // BLOCK)
    if not blocks:
        return
    first, last = first_block, first_block + blocks
    length = GROUP * max(1, round(blocks / (GROUP * RUNS_PER_THREAD * torch.get_num_threads())))
    edges = [first, *range((first // GROUP + 1) * GROUP, last, length), last]
    spread(run, itertools.pairwise(edges))


def _effective(
    directions: Directions, coefficients_K: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[Any]]:
    """Keys, indices and coefficients of the records that change something, as narrow as no sum can leave."""
    kept = np.flatnonzero(coefficients_K)
    keys, indices, coefficients = directions.keys[kept], directions.indices[kept], coefficients_K[kept]
    bound = np.abs(coefficients).sum()
    # int16 halves what a transform moves: 24 ms instead of 31 (measured: Zen 4, one thread, d = 5e7, K = 64).
    width = np.int16 if bound < 2**15 else np.int32 if bound < 2**31 else np.int64
    return keys, indices, coefficients.astype(width)


def _one(direction: Direction) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    return np.array([direction.key], dtype=np.uint64), np.array([direction.index], dtype=np.uint64)


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().numpy()


def _pieces(out_D: Tensor, source_D: Tensor, first_block: int) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """(first block, place, out, source) in float32: the tensors themselves, or piece by piece in between."""
    if out_D.dtype == source_D.dtype == torch.float32:
        yield first_block, slice(0, out_D.numel()), out_D, source_D
        return
    for start in range(0, out_D.numel(), PIECE):
        place = slice(start, start + PIECE)
        source_P = source_D[place].float()
        out_P = out_D[place] if out_D.dtype == torch.float32 else torch.empty_like(source_P)
        yield first_block + start // BLOCK, place, out_P, source_P


def _deliver(piece: Tensor, out: Tensor) -> None:
    if piece.dtype != out.dtype:
        out.copy_(piece)
