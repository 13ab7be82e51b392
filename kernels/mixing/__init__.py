"""Folding models into one: CPU tensors go to `cpu`, those of any other device to `reference`."""

from __future__ import annotations

from torch import Tensor

from . import cpu, reference


def mean(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor) -> Tensor:
    """Weighted mean; see `reference.mean`."""
    return (cpu if mine_D.is_cpu else reference).mean(mine_D, theirs_KD, weights_K)


def nna(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, f: int) -> Tensor:
    """Nearest-neighbour averaging; see `reference.nna`."""
    return (cpu if mine_D.is_cpu else reference).nna(mine_D, theirs_KD, weights_K, f)
