"""The mixing kernels in the plainest torch: the specification, and the form that runs on any device.

Shapes: D parameters, K neighbours. `mine_D` and every row of `theirs_KD` share dtype and device. No argument changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mean(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor) -> Tensor:
    """Weighted mean [D]; what `weights_K` leaves of 1 is the weight of `mine_D`."""
    return mine_D * (1 - weights_K.sum()) + (weights_K[:, None] * theirs_KD).sum(0)


def nna(
    mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int, accumulate: torch.dtype = torch.float64
) -> Tensor:
    """Nearest-neighbour averaging [D] (MoNNA, Farhadkhani et al. 2023): the mean of the K + 1 - f vectors nearest to
    `mine_D`, itself among them.

    Equal distances are kept in row order, so callers sort rows by peer id. A row that is not finite is never kept, nor
    is one whose squared distance overflows. With K <= f only `mine_D` is left. The rule is
    uniform: `weights_K` is ignored.
    """
    del weights_K
    squares_K = (theirs_KD - mine_D).to(accumulate).square().sum(1)
    kept = nearest(squares_K.tolist(), f)
    return (mine_D + theirs_KD[kept].sum(0)) / (len(kept) + 1)


def nearest(squares_K: Sequence[float], f: int) -> list[int]:
    """The rows to keep, ascending: the K - f smallest squares, ties in row order, never one that is not finite."""
    order = sorted((square, row) for row, square in enumerate(squares_K) if math.isfinite(square))
    return sorted(row for _, row in order[: max(0, len(squares_K) - f)])
