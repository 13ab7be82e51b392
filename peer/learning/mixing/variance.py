"""Variance-corrected averaging, around any rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from murmurate.peer.learning.flat import is_finite

from .mixer import Mixer

EPSILON = 1e-8
"""Of the target: a part is stretched by 10^4 at most, and what is nearly right moves by 5e-9 at most. (a guess)"""


def keeping_variance(mixer: Mixer, sizes: Sequence[int]) -> Mixer:
    """`mixer`, with the variance within every parameter tensor that the models had before; `sizes` are theirs.

    Models that began apart lose it when they are averaged, and then learn no more. For each tensor l:
    l = mean(l) + (l - mean(l)) sqrt(target / (Var(l) + epsilon target)), target = the mean of the models' Var(l_i).

    "The vanishing variance problem in fully decentralized neural-network systems" (Tian et al. 2024), algorithm 3,
    whose mean over the models is uniform; here it has the graph's weights, as the mean of the models itself, and
    epsilon is relative. For equal models it does nothing. Cost: one more pass over all vectors. Bears no liar: a
    model's variance counts in full; that of one that is not finite counts as ours.
    """

    def mix(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, *, refused: int = 0) -> Tensor:
        mixed_D = mixer(mine_D, theirs_KD, weights_K, refused=refused)
        if not len(theirs_KD):
            return mixed_D
        weights = weights_K.tolist()
        start = 0
        for size in sizes:
            piece = slice(start, start + size)
            start += size
            ours, *others = (_variance(row_D[piece]) for row_D in (mine_D, *theirs_KD))
            target = ours * (1 - sum(weights))
            for weight, other in zip(weights, others, strict=True):
                target += weight * (other if math.isfinite(other) else ours)
            if target > 0:
                part, mean = mixed_D[piece], mixed_D[piece].mean()
                part.sub_(mean).mul_(math.sqrt(target / (_variance(part) + EPSILON * target))).add_(mean)
        # Finite values beyond about 1e19 have a variance that is not: then the plain mixture is all there is.
        return mixed_D if is_finite(mixed_D) else mixer(mine_D, theirs_KD, weights_K)

    return mix


def _variance(part: Tensor) -> float:
    return float(torch.var(part, correction=0))
