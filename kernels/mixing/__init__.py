"""Folding models into one: CPU tensors go to `cpu` (numba, all of torch's threads), those on CUDA to `cuda` (Triton),
those of any other device, and where there is no Triton, to `reference`.

Shapes: D parameters, K neighbours, N = K + 1 vectors, ours first. Vectors are contiguous, of float32, float64, bfloat16
or float16, all of one dtype on one device. `cpu` and `cuda` calculate 16-bit floats in float32 and round last, where
`reference` rounds each step. Rows of int8 codes have their own kernels, which never make floats of a whole row; rows
that stay in the host's memory go through `streams`. Arguments that cannot be meant raise ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import reference

__all__ = [
    "around",
    "combine",
    "combine_quantised",
    "gram",
    "mean",
    "nna",
    "ranks",
    "squares",
    "squares_quantised",
]

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def mean(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor) -> Tensor:
    """Weighted mean; see `reference.mean`."""
    form = _form(mine_D, theirs_KD)
    _check_weights(weights_K, len(theirs_KD))
    mixed_D: Tensor = form.mean(mine_D, theirs_KD, weights_K)
    return mixed_D


def nna(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> Tensor:
    """Nearest-neighbour averaging; see `reference.nna`."""
    form = _form(mine_D, theirs_KD)
    _check_weights(weights_K, len(theirs_KD))
    if f < 0:
        raise ValueError(f"f = {f}: should be at least 0")
    mixed_D: Tensor = form.nna(mine_D, theirs_KD, weights_K, f)
    return mixed_D


def combine(mine_D: Tensor, theirs_KD: Tensor, own: float, shares_K: Sequence[float]) -> Tensor:
    """Weighted sum; see `reference.combine`."""
    form = _form(mine_D, theirs_KD)
    _check_shares(shares_K, len(theirs_KD))
    mixed_D: Tensor = form.combine(mine_D, theirs_KD, own, shares_K)
    return mixed_D


def squares(mine_D: Tensor, theirs_KD: Tensor) -> NDArray[np.float64]:
    """Squared distances to ours; see `reference.squares`. The error is relative: below 1e-6 in `cpu`.

    Float32 differences below 1e-19, whose squares it cannot hold, may count as 0.
    """
    squares_K: NDArray[np.float64] = _form(mine_D, theirs_KD).squares(mine_D, theirs_KD)
    return squares_K


def gram(mine_D: Tensor, theirs_KD: Tensor) -> NDArray[np.float64]:
    """Inner products of the differences to ours; see `reference.gram`. The error is as that of `squares`, relative to
    the product of two distances."""
    gram_KK: NDArray[np.float64] = _form(mine_D, theirs_KD).gram(mine_D, theirs_KD)
    return gram_KK


def combine_quantised(
    mine_D: Tensor, codes_KD: Tensor, scales_KB: Tensor, block: int, own: float, shares_K: Sequence[float]
) -> Tensor:
    """Weighted sum of ours and rows of int8 codes, of which `block` share a float32 scale; see
    `reference.combine_quantised`."""
    form = _form_quantised(mine_D, codes_KD, scales_KB, block)
    _check_shares(shares_K, len(codes_KD))
    mixed_D: Tensor = form.combine_quantised(mine_D, codes_KD, scales_KB, block, own, shares_K)
    return mixed_D


def squares_quantised(mine_D: Tensor, codes_KD: Tensor, scales_KB: Tensor, block: int) -> NDArray[np.float64]:
    """Squared distances of rows of int8 codes to ours; see `reference.squares_quantised`. The error is as that of
    `squares`."""
    form = _form_quantised(mine_D, codes_KD, scales_KB, block)
    squares_K: NDArray[np.float64] = form.squares_quantised(mine_D, codes_KD, scales_KB, block)
    return squares_K


def ranks(
    mine_D: Tensor, theirs_KD: Tensor, first: int, last: int, matrix_MN: NDArray[np.float64] | None = None
) -> Tensor:
    """Mean of places in ascending order; see `reference.ranks`."""
    form = _form(mine_D, theirs_KD)
    _check_places(_vectors(theirs_KD, matrix_MN), first, last)
    mixed_D: Tensor = form.ranks(mine_D, theirs_KD, first, last, matrix_MN)
    return mixed_D


def around(
    mine_D: Tensor,
    theirs_KD: Tensor,
    first: int,
    last: int,
    keep: int,
    matrix_MN: NDArray[np.float64] | None = None,
) -> Tensor:
    """Mean of the values nearest to a mean of places; see `reference.around`."""
    form = _form(mine_D, theirs_KD)
    vectors = _vectors(theirs_KD, matrix_MN)
    _check_places(vectors, first, last)
    if not 1 <= keep <= vectors:
        raise ValueError(f"keep = {keep}: should be from 1 to {vectors}, the number of vectors")
    mixed_D: Tensor = form.around(mine_D, theirs_KD, first, last, keep, matrix_MN)
    return mixed_D


def _form(mine_D: Tensor, theirs_KD: Tensor) -> ModuleType:
    """The implementation for these."""
    _check_mine(mine_D)
    if theirs_KD.ndim != 2 or theirs_KD.shape[1] != mine_D.numel() or not theirs_KD.is_contiguous():
        raise ValueError(f"theirs_KD: should be contiguous rows of {mine_D.numel()}, is {_layout(theirs_KD)}")
    if theirs_KD.dtype != mine_D.dtype or theirs_KD.device != mine_D.device:
        theirs, mine = (f"{tensor.dtype} on {tensor.device}" for tensor in (theirs_KD, mine_D))
        raise ValueError(f"theirs_KD: {theirs}, mine_D is {mine}")
    return _form_on(mine_D.device.type)


def _form_quantised(mine_D: Tensor, codes_KD: Tensor, scales_KB: Tensor, block: int) -> ModuleType:
    """The implementation for these."""
    _check_mine(mine_D)
    if block < 1:
        raise ValueError(f"block = {block}: should be at least 1")
    shape = (len(codes_KD), -(-mine_D.numel() // block))
    wanted = {
        "codes_KD": (codes_KD, torch.int8, (shape[0], mine_D.numel())),
        "scales_KB": (scales_KB, torch.float32, shape),
    }
    for name, (tensor, dtype, dimensions) in wanted.items():
        if tensor.dtype != dtype or tensor.shape != dimensions or not tensor.is_contiguous():
            found = f"{tensor.dtype} {_layout(tensor)}"
            raise ValueError(f"{name}: should be contiguous {dtype} {list(dimensions)}, is {found}")
        if tensor.device != mine_D.device:
            raise ValueError(f"{name}: on {tensor.device}, mine_D is on {mine_D.device}")
    return _form_on(mine_D.device.type)


@cache
def _form_on(kind: str) -> ModuleType:
    """The implementation for a kind of device. Imported on first use: numba and Triton take a second."""
    if kind == "cpu":
        from . import cpu

        return cpu
    if kind == "cuda":
        try:
            from . import cuda
        except ModuleNotFoundError:  # torch has no Triton everywhere
            return reference
        return cuda
    return reference


def _check_mine(mine_D: Tensor) -> None:
    if mine_D.dtype not in FLOATS:
        raise ValueError(f"mine_D: should be of floats, is {mine_D.dtype}")
    if mine_D.ndim != 1 or not mine_D.is_contiguous():
        raise ValueError(f"mine_D: should be flat and contiguous, is {_layout(mine_D)}")


def _layout(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} by {tensor.stride()}"


def _check_shares(shares_K: Sequence[float], rows: int) -> None:
    if len(shares_K) != rows:
        raise ValueError(f"shares_K: {len(shares_K)} for {rows} rows")


def _check_weights(weights_K: Tensor, rows: int) -> None:
    if weights_K.shape != (rows,):
        raise ValueError(f"weights_K: {list(weights_K.shape)} for {rows} rows")


def _vectors(theirs_KD: Tensor, matrix_MN: NDArray[np.float64] | None) -> int:
    """How many values are sorted: N, or M."""
    vectors = len(theirs_KD) + 1
    if matrix_MN is None:
        return vectors
    if matrix_MN.dtype != np.float64 or matrix_MN.ndim != 2 or matrix_MN.shape[1] != vectors or not len(matrix_MN):
        shape = f"{matrix_MN.dtype} {list(matrix_MN.shape)}"
        raise ValueError(f"matrix_MN: should be float64 [M, {vectors}], is {shape}")
    return len(matrix_MN)


def _check_places(vectors: int, first: int, last: int) -> None:
    if not 0 <= first < last <= vectors:
        raise ValueError(f"places {first} to {last}: should be at least one of {vectors}")
