"""Mixing with rows that stay in the host's memory: more models than the device has room for.

`rows` are K flat vectors of D, each on the CPU or on the device of `mine_D`, all of its dtype. They pass through the
device some columns at a time: while the kernels are at one staging buffer, a stream of its own copies into the other.
Rows in pinned memory (`Tensor.pin_memory`) are copied while the kernels run, others before. On the CPU a chunk is a
copy. What is asked for parameter by parameter has the bits of the kernels on whole rows, where at most 33 values are
sorted: torch, to which a GPU's kernels leave more, may sum in an order that depends on a chunk's width. Sums over
parameters differ in the last digits, for the chunks are summed in order. Never yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from murmurate.kernels import mixing

from .reference import shares_of_nearest

STAGED = 2**26  # values of a staging buffer: 256 MiB of float32, 10 ms of PCIe 5.0 x16 (a guess)
ALIGNED = 128  # values of which a chunk's width is a multiple: rows begin at whole cache lines, whatever their dtype

Vectors = Sequence[Tensor]


def chunked(mine_D: Tensor, rows: Vectors, length: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """(columns, those columns of all rows [K, C] on the device of `mine_D`), from the first to the last.

    The next step overwrites the tensor: what is done with it must be in the device's current stream by then.
    """
    _check(mine_D, rows)
    rows = [row_D.detach() for row_D in rows]  # a copy of what autograd watches would be watched too
    width = min(length or max(1, STAGED // max(1, len(rows)) // ALIGNED * ALIGNED), max(1, len(mine_D)))
    spans = [slice(start, min(start + width, len(mine_D))) for start in range(0, len(mine_D), width)]
    staging = _Staging(mine_D, len(rows) * width)
    try:
        for number, columns in enumerate(spans):
            if number == 0:
                staging.load(0, rows, columns)
            for following in spans[number + 1 : number + 2]:
                staging.load(number + 1, rows, following)
            yield columns, staging.begin(number)
            staging.end(number)
    finally:
        staging.close()


def on_cuda(device: torch.device) -> bool:
    """Whether it copies beside its kernels."""
    return device.type == "cuda"


class _Staging:
    """Two buffers that are filled in turn: on CUDA in a stream beside the current one, elsewhere at once."""

    def __init__(self, mine_D: Tensor, values: int) -> None:
        self._device = mine_D.device
        self._buffers = [mine_D.new_empty(values) for _ in range(2)]
        self._chunks = list(self._buffers)
        self._side = torch.cuda.Stream(self._device) if on_cuda(self._device) else None
        if self._side:
            self._loaded, self._free = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))
            for free in self._free:
                free.record(self._current())  # before, the buffers' memory may still be in use for something else

    def load(self, number: int, rows: Vectors, columns: slice) -> None:
        """Fill a buffer, once what was done with it two chunks before has ended."""
        which, width = number % 2, columns.stop - columns.start
        into_KC = self._buffers[which][: len(rows) * width].view(len(rows), width)
        self._chunks[which] = into_KC
        with torch.cuda.stream(self._side):  # which does nothing for None
            if self._side:
                self._side.wait_event(self._free[which])
            for into_C, row_D in zip(into_KC, rows, strict=True):
                into_C.copy_(row_D[columns], non_blocking=True)
            if self._side:
                self._loaded[which].record(self._side)

    def begin(self, number: int) -> Tensor:
        """A chunk; what follows in the current stream waits until it is there."""
        if self._side:
            self._current().wait_event(self._loaded[number % 2])
        return self._chunks[number % 2]

    def end(self, number: int) -> None:
        """Its buffer may be filled anew when all that the current stream has by now is done."""
        if self._side:
            self._free[number % 2].record(self._current())

    def close(self) -> None:
        """No copy may be under way any more: the caller may change the rows, and others get the buffers' memory."""
        if self._side:
            self._side.synchronize()

    def _current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)


# The operations --------------------------------------------------------------------------------------


def mean(mine_D: Tensor, rows: Vectors, weights_K: Tensor, length: int | None = None) -> Tensor:
    """As `mixing.mean`."""
    weights = weights_K.tolist()
    return combine(mine_D, rows, 1 - sum(weights), weights, length)


def nna(mine_D: Tensor, rows: Vectors, weights_K: Tensor, f: int, length: int | None = None) -> Tensor:
    """As `mixing.nna`."""
    del weights_K
    own, shares = shares_of_nearest(squares(mine_D, rows, length).tolist(), f)
    return combine(mine_D, rows, own, shares, length)


def combine(mine_D: Tensor, rows: Vectors, own: float, shares_K: Sequence[float], length: int | None = None) -> Tensor:
    """As `mixing.combine`; what has a share of 0 is not copied either."""
    if len(shares_K) != len(rows):
        raise ValueError(f"shares_K: {len(shares_K)} for {len(rows)} rows")
    _check(mine_D, rows)
    shares = [share for share in shares_K if share]
    out_D = torch.empty_like(mine_D)
    for columns, theirs_KC in chunked(mine_D, [rows[k] for k, share in enumerate(shares_K) if share], length):
        out_D[columns] = mixing.combine(mine_D[columns], theirs_KC, own, shares)
    return out_D


def squares(mine_D: Tensor, rows: Vectors, length: int | None = None) -> NDArray[np.float64]:
    """As `mixing.squares`."""
    total_K = np.zeros(len(rows))
    for columns, theirs_KC in chunked(mine_D, rows, length):
        total_K += mixing.squares(mine_D[columns], theirs_KC)
    return total_K


def gram(mine_D: Tensor, rows: Vectors, length: int | None = None) -> NDArray[np.float64]:
    """As `mixing.gram`."""
    total_KK = np.zeros((len(rows), len(rows)))
    for columns, theirs_KC in chunked(mine_D, rows, length):
        total_KK += mixing.gram(mine_D[columns], theirs_KC)
    return total_KK


def ranks(
    mine_D: Tensor,
    rows: Vectors,
    first: int,
    last: int,
    matrix_MN: NDArray[np.float64] | None = None,
    length: int | None = None,
) -> Tensor:
    """As `mixing.ranks`."""
    out_D = torch.empty_like(mine_D)
    for columns, theirs_KC in chunked(mine_D, rows, length):
        out_D[columns] = mixing.ranks(mine_D[columns], theirs_KC, first, last, matrix_MN)
    return out_D


def around(
    mine_D: Tensor,
    rows: Vectors,
    first: int,
    last: int,
    keep: int,
    matrix_MN: NDArray[np.float64] | None = None,
    length: int | None = None,
) -> Tensor:
    """As `mixing.around`."""
    out_D = torch.empty_like(mine_D)
    for columns, theirs_KC in chunked(mine_D, rows, length):
        out_D[columns] = mixing.around(mine_D[columns], theirs_KC, first, last, keep, matrix_MN)
    return out_D


def _check(mine_D: Tensor, rows: Vectors) -> None:
    for number, row_D in enumerate(rows):
        if row_D.shape != mine_D.shape or row_D.dtype != mine_D.dtype:
            found = f"{row_D.dtype} {list(row_D.shape)}"
            raise ValueError(f"row {number}: should be {mine_D.dtype} {list(mine_D.shape)}, is {found}")
        if row_D.device != mine_D.device and not row_D.is_cpu:
            raise ValueError(f"row {number}: should be on the CPU or on {mine_D.device}, is on {row_D.device}")
