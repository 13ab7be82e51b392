"""The mixing kernels for CPU tensors: the compiled `loops` on runs of parameters, spread over as many threads as torch
has.

Nothing larger than a few chunks is ever allocated besides the result. Sums over parameters are taken in pieces that
depend on the size alone, and added in their order, so the result is the same for every number of threads. float16 and
bfloat16 are widened to float32 on the way in and rounded on the way out. Arguments are checked in `__init__`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from murmurate.kernels.threads import RUNS_PER_THREAD, Run, spread
from murmurate.kernels.vectors import BYTE

from . import loops
from .networks import MIXED, TILE, batcher
from .reference import shares_of_nearest

# Parameters of `combine` at a time. Measured (Zen 4, K = 16, D = 1e7): 2048 takes a fifth longer.
CHUNK = 512
# Parameters whose products are summed in the models' precision, before float64 takes over. Measured: 2048 takes
# half as long again, for then the rows of `gram` leave the first cache.
BLOCK = 512
PIECES = 256  # of `squares` and `gram`, each with sums of its own,
PIECE = 8192  # and no shorter: a call costs 4 us, which was half of all for a model of 6,570 parameters
WORK = 2**13  # values sorted at a time: 32 KiB
NETWORK_MAX = 33  # rows that are sorted in registers, with machine code of their own; more follow a table
NARROW = 2**15  # parameters of a narrow result at a time: more, and torch rounds them with threads of its own

Fill = Callable[[NDArray[Any], int, int], None]


def mean(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor) -> Tensor:
    """As `reference.mean`."""
    weights = weights_K.tolist()
    return combine(mine_D, theirs_KD, 1 - sum(weights), weights)


def nna(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> Tensor:
    """As `reference.nna`."""
    del weights_K
    return combine(mine_D, theirs_KD, *shares_of_nearest(squares(mine_D, theirs_KD).tolist(), f))


def combine(mine_D: Tensor, theirs_KD: Tensor, own: float, shares_K: Sequence[float]) -> Tensor:
    """As `reference.combine`."""
    mine, theirs, dtype = _array(mine_D), _array(theirs_KD), _wide(mine_D)
    ours, rows, shares = _shares(own, shares_K, dtype)

    def fill(out: NDArray[Any], begin: int, end: int) -> None:
        loops.combine(out, mine, theirs, begin, end, ours, rows, shares, CHUNK)

    return _columns(mine_D, fill, CHUNK)


def _shares(own: float, shares_K: Sequence[float], dtype: np.dtype[Any]) -> tuple[Any, NDArray[Any], NDArray[Any]]:
    """Ours, the rows with a share, and theirs."""
    shares_of = np.asarray(shares_K, dtype=np.float64)
    rows = np.flatnonzero(shares_of)
    with np.errstate(over="ignore"):  # as torch does: a share too large for float32 is infinite
        return dtype.type(own), rows, shares_of[rows].astype(dtype)


def squares(mine_D: Tensor, theirs_KD: Tensor) -> NDArray[np.float64]:
    """As `reference.squares`."""
    mine, theirs = _array(mine_D), _array(theirs_KD)

    def add(totals_K: NDArray[np.float64], begin: int, end: int, dtype: np.dtype[Any]) -> None:
        loops.squares(totals_K, mine, theirs, begin, end, np.empty(BLOCK, _wide(mine_D)), np.empty(loops.SUMS, dtype))

    return _totals(mine_D, (len(theirs),), add)


def combine_quantised(
    mine_D: Tensor, codes_KD: Tensor, scales_KB: Tensor, block: int, own: float, shares_K: Sequence[float]
) -> Tensor:
    """As `reference.combine_quantised`."""
    mine, codes, scales, dtype = _array(mine_D), _array(codes_KD), _array(scales_KB), _wide(mine_D)
    ours, rows, shares = _shares(own, shares_K, dtype)

    def fill(out: NDArray[Any], begin: int, end: int) -> None:
        row = np.empty(CHUNK, np.float32)
        loops.combine_quantised(out, mine, codes, scales, block, begin, end, ours, rows, shares, row)

    return _columns(mine_D, fill, CHUNK)


def squares_quantised(mine_D: Tensor, codes_KD: Tensor, scales_KB: Tensor, block: int) -> NDArray[np.float64]:
    """As `reference.squares_quantised`."""
    mine, codes, scales = _array(mine_D), _array(codes_KD), _array(scales_KB)

    def add(totals_K: NDArray[np.float64], begin: int, end: int, dtype: np.dtype[Any]) -> None:
        ours, sums, row = np.empty(BLOCK, _wide(mine_D)), np.empty(loops.SUMS, dtype), np.empty(BLOCK, np.float32)
        loops.squares_quantised(totals_K, mine, codes, scales, block, begin, end, ours, sums, row)

    return _totals(mine_D, (len(codes),), add)


def gram(mine_D: Tensor, theirs_KD: Tensor) -> NDArray[np.float64]:
    """As `reference.gram`."""
    mine, theirs = _array(mine_D), _array(theirs_KD)
    rows = -(-len(theirs) // TILE[0]) * TILE[0]
    tiles = sum((rows - row) // TILE[1] for row in range(0, rows, TILE[0]))

    def add(totals_KK: NDArray[np.float64], begin: int, end: int, dtype: np.dtype[Any]) -> None:
        work, lanes = np.empty((rows, BLOCK), dtype), np.empty(tiles * loops.PRODUCTS * BYTE)
        loops.gram(totals_KK, mine, theirs, begin, end, work, lanes)

    triangle_KK = _totals(mine_D, (len(theirs), len(theirs)), add)
    return np.triu(triangle_KK) + np.triu(triangle_KK, 1).T


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


def _places(
    mine_D: Tensor, theirs_KD: Tensor, first: int, last: int, keep: int, matrix_MN: NDArray[np.float64] | None
) -> Tensor:
    mine, theirs, dtype = _array(mine_D), _array(theirs_KD), _wide(mine_D)
    n = len(theirs) + 1
    m = n if matrix_MN is None else len(matrix_MN)
    ends, columns, shares = _mixture(np.empty((0, n)) if matrix_MN is None else matrix_MN, dtype)
    network = (0,) * m if m <= NETWORK_MAX else None
    pairs = np.array(list(batcher(m)) if network is None else [], dtype=np.int64).reshape(-1, 2)
    step = BYTE * MIXED
    chunk = step * max(1, min(WORK // 8, WORK // max(n, m)) // step)
    bits = np.dtype(f"i{dtype.itemsize}")

    def fill(out: NDArray[Any], begin: int, end: int) -> None:
        # Zeros, so that no lane that nobody asks for holds something odd.
        raw, scratch = np.zeros((n, chunk), dtype), np.empty(chunk, dtype)
        work = raw if matrix_MN is None else np.zeros((m, chunk), dtype)
        mixture = (ends, columns, shares, scratch)
        loops.places(
            out, mine, theirs, begin, end, first, last, keep, raw, mixture, work, work.view(bits), pairs, network
        )

    return _columns(mine_D, fill, chunk)


def _mixture(matrix_MN: NDArray[np.float64], dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The shares that are not 0, row after row: where each row's end, their columns, and how much they are."""
    rows, columns = np.nonzero(matrix_MN)
    ends = np.searchsorted(rows, np.arange(len(matrix_MN) + 1))
    # numpy's own are every other entry of one array, which the loops do not expect
    return ends, np.ascontiguousarray(columns), matrix_MN[rows, columns].astype(dtype)


def _columns(mine_D: Tensor, fill: Fill, chunk: int) -> Tensor:
    """What `fill` puts into [begin, end) of the result, for all parameters."""
    mixed_D = _empty_like(mine_D)
    run = _rounded(mixed_D, fill) if mixed_D.element_size() == 2 else _direct(mixed_D, fill)
    size = mine_D.numel()
    length = chunk * max(1, round(size / (chunk * RUNS_PER_THREAD * torch.get_num_threads())))
    spread(run, _runs(size, length))
    return mixed_D


def _empty_like(mine_D: Tensor) -> Tensor:
    """In numpy's memory, for which it asks for huge pages: else first touching it costs as much as reading 10 rows."""
    bytes_of = np.empty(mine_D.numel() * mine_D.element_size(), np.uint8)
    return torch.from_numpy(bytes_of).view(mine_D.dtype)


def _direct(mixed_D: Tensor, fill: Fill) -> Run:
    mixed = mixed_D.numpy()
    return lambda begin, end: fill(mixed[begin:end], begin, end)


def _rounded(mixed_D: Tensor, fill: Fill) -> Run:
    def run(begin: int, end: int) -> None:
        for start in range(begin, end, NARROW):
            stop = min(start + NARROW, end)
            piece = torch.empty(stop - start)
            fill(piece.numpy(), start, stop)
            mixed_D[start:stop].copy_(piece)

    return run


def _totals(
    mine_D: Tensor,
    shape: tuple[int, ...],
    add: Callable[[NDArray[np.float64], int, int, np.dtype[Any]], None],
) -> NDArray[np.float64]:
    """The sum over all parameters of what `add` adds, piece by piece.

    A piece whose sum float32 cannot hold is summed in float64: differences of 1e20 are finite.
    """
    size, dtype = mine_D.numel(), _wide(mine_D)
    length = BLOCK * max(PIECE // BLOCK, math.ceil(size / (BLOCK * PIECES)))
    parts = np.zeros((-(-size // length), *shape))

    def run(begin: int, end: int) -> None:
        part = parts[begin // length]
        add(part, begin, end, dtype)
        if dtype != np.float64 and not np.isfinite(part).all():
            part[:] = 0
            add(part, begin, end, np.dtype(np.float64))

    spread(run, _runs(size, length))
    total = np.zeros(shape)
    for part in parts:  # in order: a library's sum may pair them as it likes
        total += part
    return total


def _runs(size: int, length: int) -> Iterator[tuple[int, int]]:
    return itertools.pairwise([*range(0, size, length), size])


def _wide(tensor: Tensor) -> np.dtype[Any]:
    """What is calculated in."""
    return np.dtype(np.float64 if tensor.dtype == torch.float64 else np.float32)


def _array(tensor: Tensor) -> NDArray[Any]:
    """With the integers that `networks.wide` reads for what numpy or numba do not know."""
    kinds = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}
    tensor = tensor.detach()
    return (tensor.view(kinds[tensor.dtype]) if tensor.dtype in kinds else tensor).numpy()
