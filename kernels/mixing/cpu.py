"""The mixing kernels for CPU tensors: the arithmetic of `reference`, in pieces that stay in cache.

The plain form writes and reads back [K, D] temporaries from main memory; here a row is read once per pass and nothing
larger than a chunk is ever allocated besides the result. Chunks are of fixed size and no sum spans more than one block,
so the result is the same for every number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import nearest

# Measured (2 cores, 512 KiB of L2 each): below 2**17 the cost of a torch call shows, above 2**18 main memory does.
MEAN_CHUNK = 2**17
DISTANCE_CHUNK = 2**18
# Squares are summed in the models' precision inside a block (relative error below 1e-6), in float64 across blocks.
BLOCK = 2**12


def mean(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor) -> Tensor:
    """As `reference.mean`."""
    weights = weights_K.tolist()
    return _combine(mine_D, theirs_KD, 1 - sum(weights), list(enumerate(weights)))


def nna(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> Tensor:
    """As `reference.nna`."""
    del weights_K
    kept = nearest(_squares(mine_D, theirs_KD).tolist(), f)
    share = 1 / (len(kept) + 1)
    return _combine(mine_D, theirs_KD, share, [(row, share) for row in kept])


def _combine(mine_D: Tensor, theirs_KD: Tensor, own: float, rows: list[tuple[int, float]]) -> Tensor:
    """own x mine + the sum of weight x row, a chunk at a time."""
    mixed_D = torch.empty_like(mine_D)
    for start in range(0, mine_D.numel(), MEAN_CHUNK):
        piece = slice(start, start + MEAN_CHUNK)
        mixed = torch.mul(mine_D[piece], own, out=mixed_D[piece])
        for row, weight in rows:
            mixed.add_(theirs_KD[row, piece], alpha=weight)
    return mixed_D


def _squares(mine_D: Tensor, theirs_KD: Tensor) -> Tensor:
    """Squared distances [K] in float64. Differences come first: |a|^2 - 2ab + |b|^2 loses all digits of near models."""
    size = mine_D.numel()
    squares_K = torch.zeros(len(theirs_KD), dtype=torch.float64)
    padded = min(DISTANCE_CHUNK, -(-size // BLOCK) * BLOCK)
    difference = mine_D.new_zeros(padded)
    for start in range(0, size, padded):
        piece = slice(start, start + padded)
        mine = mine_D[piece]
        difference[len(mine) :] = 0  # the last chunk is shorter
        for row, theirs in enumerate(theirs_KD):
            torch.sub(theirs[piece], mine, out=difference[: len(mine)])
            norms = torch.linalg.vector_norm(difference.view(-1, BLOCK), dim=1, dtype=_wide(mine.dtype))
            squares_K[row] += norms.double().square_().sum()
    return squares_K


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
