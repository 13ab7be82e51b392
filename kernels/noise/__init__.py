"""Directions of +1 and -1 that any machine can make anew from two 64-bit numbers (`noise = 1`; docs/noise.md).

Tensors on the CPU go to `cpu` (numba, all of torch's threads), those on CUDA to `cuda` (Triton), those of any other
device to `reference` (slow, on the host). All three give the same bits. Vectors are flat, contiguous and of any
length D; `first_block` is the number of the block their first entry begins. Arguments that cannot be meant raise
ValueError.

Block b of a direction is s x sigma x (-1)^popcount(r & t): a row r of the Walsh-Hadamard matrix and a sign sigma drawn
per direction and block, under a sign vector s that the swarm draws once. So K directions cost K additions per block and
one transform, and E[z z^T] = I.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import reference
from .codes import CODE_MAX, VOID, decode, encode
from .directions import BLOCK, LIMIT, NOISE, Direction, Directions, derive_key

__all__ = [
    "BLOCK",
    "CODE_MAX",
    "NOISE",
    "VOID",
    "Direction",
    "Directions",
    "accumulate",
    "decode",
    "derive_key",
    "draws",
    "encode",
    "materialise",
    "perturb",
    "project",
    "replay",
    "to_grid",
]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SUMS = (torch.int32, torch.int64)
EPSILON_MAX = float(np.finfo(np.float32).max)


def draws(key: int, indices_K: NDArray[np.uint64], bound: int) -> NDArray[np.uint64]:
    """One number below `bound` per index [K]."""
    if not 0 <= key < LIMIT:
        raise ValueError(f"key = {key}: should be a 64-bit key")
    if indices_K.dtype != np.uint64:
        raise ValueError(f"indices_K: should be uint64, is {indices_K.dtype}")
    if not 0 < bound < LIMIT:
        raise ValueError(f"bound = {bound}: should be from 1 to 2^64 - 1")
    return reference.draws(key, indices_K, bound)


def accumulate(
    sums_D: Tensor, directions: Directions, coefficients_K: NDArray[np.int64], signs: int, first_block: int = 0
) -> None:
    """sums += sum of coefficient x direction, exactly; sums are int32 or int64, coefficients int64.

    Sums of int32 wrap around silently when earlier calls filled them: the caller keeps the sum of |coefficient|.
    """
    _check_vector("sums_D", sums_D, SUMS)
    bound = _check_coefficients(directions, coefficients_K)
    if sums_D.dtype == torch.int32 and bound >= 2**31:
        raise ValueError(f"sum of |coefficient| = {bound}: sums_D should be int64")
    _check_place(signs, first_block)
    if sums_D.numel() and len(directions):
        _form(sums_D).accumulate(sums_D, directions, coefficients_K, signs, first_block)


def replay(
    weights_D: Tensor,
    directions: Directions,
    coefficients_K: NDArray[np.int64],
    signs: int,
    unit_log2: int,
    first_block: int = 0,
) -> None:
    """weights -= 2^unit_log2 x f32(sum of coefficient x direction), float32 and in place.

    One sum, one conversion, one subtraction, however many records: two calls round twice, unless on the grid of
    `to_grid`, where nothing rounds.
    """
    _check_vector("weights_D", weights_D, (torch.float32,))
    _check_coefficients(directions, coefficients_K)
    _check_unit(unit_log2)
    _check_place(signs, first_block)
    if weights_D.numel() and len(directions):
        _form(weights_D).replay(weights_D, directions, coefficients_K, signs, unit_log2, first_block)


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
    """out = base - 2^unit_log2 x f32(sums), then + f32(epsilon) x direction if given; out may be base.

    `out_D` and `base_D` are float32, bfloat16 or float16 each; the arithmetic is float32, rounded to out's dtype last.
    """
    _check_vector("out_D", out_D, FLOATS)
    _check_vector("base_D", base_D, FLOATS, like=out_D)
    _check_vector("sums_D", sums_D, SUMS, like=out_D)
    _check_unit(unit_log2)
    _check_epsilon(epsilon)
    _check_place(signs, first_block)
    if out_D.numel():
        _form(out_D).materialise(out_D, base_D, sums_D, unit_log2, signs, direction, epsilon, first_block)


def perturb(
    out_D: Tensor, weights_D: Tensor, direction: Direction, epsilon: float, signs: int, first_block: int = 0
) -> None:
    """out = weights + f32(epsilon) x direction, in float32, rounded to out's dtype; out may be weights."""
    _check_vector("out_D", out_D, FLOATS)
    _check_vector("weights_D", weights_D, FLOATS, like=out_D)
    _check_epsilon(epsilon)
    _check_place(signs, first_block)
    if out_D.numel():
        _form(out_D).perturb(out_D, weights_D, direction, epsilon, signs, first_block)


def project(update_D: Tensor, directions: Directions, signs: int, first_block: int = 0) -> NDArray[np.float64]:
    """<update, direction> [K] of a float32 vector and K directions: float32 within a block, float64 across blocks."""
    _check_vector("update_D", update_D, (torch.float32,))
    _check_place(signs, first_block)
    if not update_D.numel() or not len(directions):
        return np.zeros(len(directions), dtype=np.float64)
    projected_K: NDArray[np.float64] = _form(update_D).project(update_D, directions, signs, first_block)
    return projected_K


def to_grid(base_D: Tensor, unit_log2: int) -> Tensor:
    """The nearest multiples of 2^unit_log2 in float32 (ties to even, -0 to 0): on them `replay` never rounds.

    True while every |weight| stays at or below 2^24 units; the caller checks that.
    """
    _check_unit(unit_log2)
    unit = 2.0**unit_log2
    near_D = base_D if base_D.is_cpu or base_D.is_cuda else base_D.cpu()  # not every other device has float64
    return near_D.double().div_(unit).round_().mul_(unit).add_(0.0).float().to(base_D.device)


def _form(tensor: Tensor) -> ModuleType:
    """The implementation for a tensor's device. Imported on first use: numba and Triton take a second each."""
    if tensor.is_cpu:
        from . import cpu

        return cpu
    if tensor.is_cuda:
        from . import cuda

        return cuda
    return reference


def _check_vector(name: str, vector: Tensor, dtypes: tuple[torch.dtype, ...], like: Tensor | None = None) -> None:
    if vector.dtype not in dtypes:
        raise ValueError(f"{name}: should be {' or '.join(_word(d) for d in dtypes)}, is {_word(vector.dtype)}")
    if vector.requires_grad:
        raise ValueError(f"{name}: should not require a gradient, for no operation here has one; detach it")
    if vector.ndim != 1 or not vector.is_contiguous():
        raise ValueError(f"{name}: should be flat and contiguous, is {list(vector.shape)} by {vector.stride()}")
    if like is not None and (vector.numel() != like.numel() or vector.device != like.device):
        raise ValueError(
            f"{name}: {vector.numel()} entries on {vector.device}, out_D has {like.numel()} on {like.device}"
        )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_coefficients(directions: Directions, coefficients_K: NDArray[np.int64]) -> int:
    """The sum of |coefficient|."""
    if coefficients_K.dtype != np.int64 or coefficients_K.shape != (len(directions),):
        shape = f"{coefficients_K.dtype} {list(coefficients_K.shape)}"
        raise ValueError(f"coefficients_K: should be int64 [{len(directions)}], is {shape}")
    # The sum in float64 is within 1e-9 of the truth; numpy's in int64 could wrap around before anyone looked.
    if np.abs(coefficients_K.astype(np.float64)).sum() >= 2.0**62:
        raise ValueError("coefficients_K: sum of |coefficient| should be below 2^62")
    return int(np.abs(coefficients_K).sum())


def _check_unit(unit_log2: int) -> None:
    if not -100 <= unit_log2 <= 0:
        # Sums are 0 or from 1 to 2^63, so their products are from 2^-100 to 2^63: normal numbers of float32.
        raise ValueError(f"unit_log2 = {unit_log2}: should be from -100 to 0, so that float32 holds every product")


def _check_epsilon(epsilon: float) -> None:
    if not abs(epsilon) <= EPSILON_MAX:
        raise ValueError(f"epsilon = {epsilon}: should be a number that float32 can hold")


def _check_place(signs: int, first_block: int) -> None:
    if not 0 <= signs < LIMIT:
        raise ValueError(f"signs = {signs}: should be a 64-bit key")
    if not 0 <= first_block < 2**48:
        raise ValueError(f"first_block = {first_block}: should be from 0 to 2^48")
