"""The mixing kernels for CUDA tensors, in Triton. The tests run them in Triton's interpreter and compile them for sm_80
and sm_90; never yet timed, nor run on a GPU: tile sizes are guesses.

Every kernel writes the result once and reads each row once, with two exceptions: with a matrix, a row is read once per
row of the matrix that has something of it, and by `gram` once per 64 rows. `squares` and `gram` take differences to
ours first, sum them within a tile, and add the tiles in float64 in an order that depends on the sizes alone: no
atomics. Up to 33 values are sorted in registers, by the network of `cpu`: each number of values and choice of places is
compiled by itself, for up to 6 s, and Triton keeps that on disk. More are sorted by torch, some columns at a time.
float16 and bfloat16 are widened to float32 on the way in and rounded on the way out. Nothing is fused, so that the
interpreter rounds as a GPU does, inner products excepted. Arguments are checked in `__init__`.
"""

# Triton's launches have no Python types.
# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from . import programs, reference
from .networks import batcher

OPTIONS = {"enable_fp_fusion": False}
TILE = 1024  # parameters of a program of `combine`: 8 per thread
SQUARES_TILE = 4096  # whose squares are summed in the models' precision; a sum costs a barrier
NETWORK_MAX = 33  # values that are sorted in registers
WIDE_NETWORK = 16  # more than that take a program of half as many parameters, or registers run out
GRAM_ROWS = 64  # whose inner products a program holds in registers: 64^2 in both precisions
GRAM_TILE = 16384  # bytes of a tile of rows, of which shared memory holds three
GRAM_SUMS = 512  # parameters whose products are summed in the models' precision, as in `cpu`
GRAM_PROGRAMS = 2048  # at most, each with float64 sums of its own
SUMMED = 4096  # parts that are added at once: of one row of `squares`, or of so many products
PRODUCTS = 256
SORTED = 2**22  # values that torch sorts at a time: 100 MB with all that it needs


def mean(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor) -> Tensor:
    """As `reference.mean`."""
    weights = weights_K.tolist()
    return combine(mine_D, theirs_KD, 1 - sum(weights), weights)


def nna(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> Tensor:
    """As `reference.nna`."""
    del weights_K
    return combine(mine_D, theirs_KD, *reference.shares_of_nearest(squares(mine_D, theirs_KD).tolist(), f))


def combine(mine_D: Tensor, theirs_KD: Tensor, own: float, shares_K: Sequence[float]) -> Tensor:
    """As `reference.combine`."""
    return _combine(mine_D, theirs_KD, None, 0, own, shares_K)


def squares(mine_D: Tensor, theirs_KD: Tensor) -> NDArray[np.float64]:
    """As `reference.squares`."""
    return _squares(mine_D, theirs_KD, None, 0)


def combine_quantised(
    mine_D: Tensor, codes_KD: Tensor, scales_KB: Tensor, block: int, own: float, shares_K: Sequence[float]
) -> Tensor:
    """As `reference.combine_quantised`."""
    return _combine(mine_D, codes_KD, scales_KB, block, own, shares_K)


def squares_quantised(mine_D: Tensor, codes_KD: Tensor, scales_KB: Tensor, block: int) -> NDArray[np.float64]:
    """As `reference.squares_quantised`."""
    return _squares(mine_D, codes_KD, scales_KB, block)


def gram(mine_D: Tensor, theirs_KD: Tensor) -> NDArray[np.float64]:
    """As `reference.gram`. More than 64 rows are read once per 64 others."""
    count = len(theirs_KD)
    rows = min(GRAM_ROWS, max(16, triton.next_power_of_2(count)))
    gram_KK = np.zeros((count, count))
    for left in range(0, count, rows):
        for right in range(left, count, rows):
            found = _products(mine_D, theirs_KD, left, right, rows)
            gram_KK[left : left + rows, right : right + rows] = found[: count - left, : count - right]
    return np.triu(gram_KK) + np.triu(gram_KK, 1).T


def ranks(
    mine_D: Tensor, theirs_KD: Tensor, first: int, last: int, matrix_MN: NDArray[np.float64] | None = None
) -> Tensor:
    """As `reference.ranks`."""
    return _places(mine_D, theirs_KD, first, last, 0, matrix_MN)


def around(
    mine_D: Tensor,
    theirs_KD: Tensor,
    first: int,
    last: int,
    keep: int,
    matrix_MN: NDArray[np.float64] | None = None,
) -> Tensor:
    """As `reference.around`."""
    return _places(mine_D, theirs_KD, first, last, keep, matrix_MN)


# How they are launched -------------------------------------------------------------------------------


def _combine(
    mine_D: Tensor, rows_KD: Tensor, scales_KB: Tensor | None, block: int, own: float, shares_K: Sequence[float]
) -> Tensor:
    out_D, wide = torch.empty_like(mine_D), _wide(mine_D)
    rows = [row for row, share in enumerate(shares_K) if share]
    # Ours among them, in a tensor: as an argument, Triton would make a float32 of it.
    shares = torch.tensor([own, *(shares_K[row] for row in rows)], dtype=wide, device=mine_D.device)
    numbers = torch.tensor(rows, dtype=torch.int64, device=mine_D.device)
    scales = shares if scales_KB is None else scales_KB
    arguments = (out_D, mine_D, rows_KD, scales, mine_D.numel(), numbers, shares, len(rows))
    with torch.cuda.device_of(mine_D):
        programs.combine_kernel[(triton.cdiv(mine_D.numel(), TILE),)](*arguments, _triton(wide), block, TILE, **OPTIONS)
    return out_D


def _squares(mine_D: Tensor, rows_KD: Tensor, scales_KB: Tensor | None, block: int) -> NDArray[np.float64]:
    tiles, wide = triton.cdiv(mine_D.numel(), SQUARES_TILE), _wide(mine_D)
    scales_KB = mine_D if scales_KB is None else scales_KB

    def launch(sums: torch.dtype) -> Tensor:
        parts_KP = torch.empty((len(rows_KD), tiles), dtype=sums, device=mine_D.device)
        kinds = (_triton(wide), _triton(sums), block, SQUARES_TILE)
        programs.squares_kernel[(tiles,)](
            parts_KP, mine_D, rows_KD, scales_KB, mine_D.numel(), len(rows_KD), *kinds, **OPTIONS
        )
        return parts_KP

    return _totals(mine_D, launch, 1)


def _products(mine_D: Tensor, theirs_KD: Tensor, left: int, right: int, rows: int) -> NDArray[np.float64]:
    """The inner products of `rows` rows from `left` on with as many from `right` on."""
    size = mine_D.numel()
    tiles = max(1, triton.cdiv(size, GRAM_SUMS * GRAM_PROGRAMS))
    grid = triton.cdiv(size, GRAM_SUMS * tiles)

    def launch(sums: torch.dtype) -> Tensor:
        parts_IJP = torch.empty((rows * rows, grid), dtype=torch.float64, device=mine_D.device)
        tile = GRAM_TILE // sums.itemsize // rows
        kinds = (left == right, _triton(_wide(mine_D)), _triton(sums), rows, tile, GRAM_SUMS // tile)
        programs.gram_kernel[(grid,)](
            parts_IJP, mine_D, theirs_KD, size, len(theirs_KD), left, right, tiles, *kinds, **OPTIONS
        )
        return parts_IJP

    return _totals(mine_D, launch, PRODUCTS).reshape(rows, rows)


def _totals(mine_D: Tensor, launch: Callable[[torch.dtype], Tensor], lines: int) -> NDArray[np.float64]:
    """The sums of the rows that `launch` makes, in order; `lines` of them at a time.

    Where float32 cannot hold one, all are made again in float64: differences of 1e20 are finite.
    """
    with torch.cuda.device_of(mine_D):
        found = _summed(launch(_wide(mine_D)), lines)
        if not np.isfinite(found).all() and _wide(mine_D) != torch.float64:
            found = _summed(launch(torch.float64), lines)
    return found


def _summed(parts: Tensor, lines: int) -> NDArray[np.float64]:
    totals = torch.empty(len(parts), dtype=torch.float64, device=parts.device)
    grid = triton.cdiv(len(parts), lines)
    programs.totals_kernel[(grid,)](totals, parts, *parts.shape, lines, SUMMED // lines, **OPTIONS)
    return totals.cpu().numpy()


def _places(
    mine_D: Tensor, theirs_KD: Tensor, first: int, last: int, keep: int, matrix_MN: NDArray[np.float64] | None
) -> Tensor:
    count = len(theirs_KD) + 1 if matrix_MN is None else len(matrix_MN)
    if count > NETWORK_MAX:
        return _sorted_by_torch(mine_D, theirs_KD, first, last, keep, matrix_MN)
    out_D, wide = torch.empty_like(mine_D), _wide(mine_D)
    mixture = [mine_D] * 3 if matrix_MN is None else _mixture(matrix_MN, wide, mine_D.device)
    bits = tl.int64 if wide == torch.float64 else tl.int32
    # Registers of a thread: two for float64, and 33 vectors want most of what there are.
    tile = 512 // (2 if wide == torch.float64 else 1) // (2 if count > WIDE_NETWORK else 1)
    places = (matrix_MN is not None, _network(count), count, first, last, keep)
    with torch.cuda.device_of(mine_D):
        programs.places_kernel[(triton.cdiv(mine_D.numel(), tile),)](
            out_D, mine_D, theirs_KD, mine_D.numel(), *mixture, *places, _triton(wide), bits, tile, **OPTIONS
        )
    return out_D


@cache
def _network(count: int) -> tuple[int, ...]:
    return tuple(place for pair in batcher(count) for place in pair)


def _mixture(matrix_MN: NDArray[np.float64], wide: torch.dtype, device: torch.device) -> list[Tensor]:
    """The shares that are not 0, row after row: where each row's end, their columns, and how much they are."""
    rows, columns = np.nonzero(matrix_MN)
    ends = torch.from_numpy(np.searchsorted(rows, np.arange(len(matrix_MN) + 1)).astype(np.int32))
    shares = torch.from_numpy(matrix_MN[rows, columns]).to(wide)
    return [tensor.to(device) for tensor in (ends, torch.from_numpy(columns.copy()), shares)]


def _sorted_by_torch(
    mine_D: Tensor, theirs_KD: Tensor, first: int, last: int, keep: int, matrix_MN: NDArray[np.float64] | None
) -> Tensor:
    """Some columns at a time, so that what torch needs beside them is bounded."""
    out_D, wide = torch.empty_like(mine_D), _wide(mine_D)
    length = max(1, SORTED // (len(theirs_KD) + 1))
    for start in range(0, mine_D.numel(), length):
        columns = slice(start, start + length)
        mine_C, theirs_KC = mine_D[columns], theirs_KD[:, columns]
        if matrix_MN is not None:
            mine_C, theirs_KC = mine_C.to(wide), theirs_KC.to(wide)
        values_MC = reference.in_order(mine_C, theirs_KC, matrix_MN).to(wide)
        out_D[columns] = reference.nearest_mean(values_MC, first, last, keep) if keep else values_MC[first:last].mean(0)
    return out_D


def _wide(tensor: Tensor) -> torch.dtype:
    """What is calculated in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _triton(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32
