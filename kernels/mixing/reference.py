"""The mixing kernels in the plainest torch: the specification, and the form that runs on any device.

Shapes: D parameters, K neighbours, N = K + 1 vectors, ours first. `mine_D` and every row of `theirs_KD` share dtype and
device. No argument changes. A rule that only weighs whole vectors is a `combine` by shares that `squares` or `gram`
give; one that looks at single parameters is `ranks` or `around`. Rows that are not finite are the callers' to leave
out: a share of 0 is never read, and in a sorted column NaN stands at the ends, so that trimming removes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def mean(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor) -> Tensor:
    """Weighted mean [D]; what `weights_K` leaves of 1 is the weight of `mine_D`. A row of weight 0 is not read."""
    weights = weights_K.tolist()
    return combine(mine_D, theirs_KD, 1 - sum(weights), weights)


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
    kept = nearest(squares(mine_D, theirs_KD, accumulate).tolist(), f)
    return (mine_D + theirs_KD[kept].sum(0)) / (len(kept) + 1)


def shares_of_nearest(squares_K: Sequence[float], f: int) -> tuple[float, list[float]]:
    """(own share, the rows' [K]) with which `combine` gives what `nna` does."""
    kept = set(nearest(squares_K, f))
    share = 1 / (len(kept) + 1)
    return share, [share if row in kept else 0.0 for row in range(len(squares_K))]


def nearest(squares_K: Sequence[float], f: int) -> list[int]:
    """The rows to keep, ascending: the K - f smallest squares, ties in row order, never one that is not finite."""
    order = sorted((square, row) for row, square in enumerate(squares_K) if math.isfinite(square))
    return sorted(row for _, row in order[: max(0, len(squares_K) - f)])


def combine(mine_D: Tensor, theirs_KD: Tensor, own: float, shares_K: Sequence[float]) -> Tensor:
    """own x mine + the sum of share x row [D], in row order; a row with a share of 0 is not read."""
    mixed_D = mine_D * own
    for row, share in enumerate(shares_K):
        if share:
            mixed_D = mixed_D + theirs_KD[row] * share
    return mixed_D


def squares(mine_D: Tensor, theirs_KD: Tensor, accumulate: torch.dtype = torch.float64) -> NDArray[np.float64]:
    """Squared distances to `mine_D` [K]. Differences first: |a|^2 - 2ab + |b|^2 loses all digits of near models."""
    return (theirs_KD - mine_D).to(accumulate).square().sum(1).double().cpu().numpy()


def gram(mine_D: Tensor, theirs_KD: Tensor, accumulate: torch.dtype = torch.float64) -> NDArray[np.float64]:
    """Inner products of all differences to `mine_D` [K, K]: all distances and all angles between the N vectors."""
    differences_KD = (theirs_KD - mine_D).to(accumulate)
    return (differences_KD @ differences_KD.T).double().cpu().numpy()


def combine_quantised(
    mine_D: Tensor, codes_KD: Tensor, scales_KB: Tensor, block: int, own: float, shares_K: Sequence[float]
) -> Tensor:
    """`combine` with the rows that int8 codes stand for: f32(code x scale), where `block` codes share a scale."""
    wide_D = _widened(mine_D)
    mixed_D = wide_D * own
    for row, share in enumerate(shares_K):
        if share:
            mixed_D = mixed_D + dequantised(codes_KD[row], scales_KB[row], block).to(mixed_D.dtype) * share
    return mixed_D.to(mine_D.dtype)


def squares_quantised(mine_D: Tensor, codes_KD: Tensor, scales_KB: Tensor, block: int) -> NDArray[np.float64]:
    """`squares` of the rows that int8 codes stand for, as in `combine_quantised` [K]."""
    wide_D = _widened(mine_D)
    rows = zip(codes_KD, scales_KB, strict=True)
    return np.array([squares(wide_D, dequantised(*row, block).to(wide_D.dtype)[None])[0] for row in rows], np.float64)


def dequantised(codes_D: Tensor, scales_B: Tensor, block: int) -> Tensor:
    """float32 [D]."""
    return codes_D.float() * scales_B.repeat_interleave(block)[: len(codes_D)]


def _widened(mine_D: Tensor) -> Tensor:
    return mine_D.to(torch.promote_types(mine_D.dtype, torch.float32))


def ranks(
    mine_D: Tensor, theirs_KD: Tensor, first: int, last: int, matrix_MN: NDArray[np.float64] | None = None
) -> Tensor:
    """Per parameter, the mean of the values at places first, ..., last - 1 in ascending order [D].

    Of N values, or of the M that `matrix_MN` makes of them before (its columns: ours, then the rows; what it has 0 of
    is not read). NaN with its sign bit set comes before everything else, any other behind everything else; at which of
    the two ends a NaN stands that the matrix made is unspecified, for inf - inf has another sign on other machines.
    """
    return in_order(mine_D, theirs_KD, matrix_MN)[first:last].mean(0)


def around(
    mine_D: Tensor,
    theirs_KD: Tensor,
    first: int,
    last: int,
    keep: int,
    matrix_MN: NDArray[np.float64] | None = None,
) -> Tensor:
    """Per parameter, the mean of the `keep` values nearest to the mean of the places first, ..., last - 1 [D].

    The values as in `ranks`. In ascending order those are `keep` neighbours. Of a low and a high value that are equally
    far, for one of which only there is room, the low one is kept.
    """
    return nearest_mean(in_order(mine_D, theirs_KD, matrix_MN), first, last, keep)


def nearest_mean(values_MD: Tensor, first: int, last: int, keep: int) -> Tensor:
    """`around` of values in ascending order."""
    centre_D = values_MD[first:last].mean(0)
    # The lowest window moves up while what it loses is farther below than what it wins is above; NaN at the low end is
    # lost, at the high end it is not won.
    lost_WD, won_WD = centre_D - values_MD[:-keep], values_MD[keep:] - centre_D
    moves_WD = (won_WD < math.inf) & ~(lost_WD <= won_WD)
    steps_W1 = torch.arange(1, len(moves_WD) + 1, device=moves_WD.device)[:, None]
    begin_D = torch.cat([moves_WD.new_zeros(1, centre_D.numel()).long(), moves_WD * steps_W1]).amax(0)
    windows_WMD = values_MD.unfold(0, keep, 1).transpose(1, 2)  # [W, keep, D]
    means_WD = windows_WMD.mean(1)
    return means_WD.gather(0, begin_D[None])[0]


def in_order(mine_D: Tensor, theirs_KD: Tensor, matrix_MN: NDArray[np.float64] | None) -> Tensor:
    """The values that `ranks` takes its places of, ascending [N or M, D]."""
    values_ND = torch.cat([mine_D[None], theirs_KD])
    if matrix_MN is not None:
        shares_MN = torch.from_numpy(matrix_MN).to(values_ND)
        values_ND = torch.stack([shares_N[shares_N != 0] @ values_ND[shares_N != 0] for shares_N in shares_MN])
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values_ND.element_size()]
    keys_ND = values_ND.view(bits)
    largest = torch.iinfo(bits).max
    # As integers, negative floats stand in the wrong order: turn it round.
    order_ND = torch.where(keys_ND < 0, keys_ND ^ largest, keys_ND).argsort(dim=0, stable=True)
    return values_ND.gather(0, order_ND)
