"""How strong a lie should be: a line search against the very rule that is to be fooled.

Farhadkhani et al. 2023 (MoNNA) give ALIE and FOE this: 16 evaluations of the defence, for the strength that moves an
honest peer's mixture farthest from the honest mean. (in their code)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from murmurate.peer.learning.mixing import Mixer

from .view import View

EVALUATIONS = 16  # MoNNA's code
GOLDEN = 0.6180339887498949


def strongest(mixer: Mixer, view: View, lie: Callable[[float], Tensor]) -> float:
    """The strength at which a lie of one family does an honest peer the most harm; another peer each round.

    The peer is thought to hear all that the view knows of, and all liars.
    """
    victim = view.round % len(view.honest)
    victim_D = view.honest[victim]
    others_HD = torch.cat([view.honest[:victim], view.honest[victim + 1 :]])
    theirs_KD = torch.cat([others_HD, others_HD.new_empty(view.liars, others_HD.shape[1])])
    weights_K = theirs_KD.new_full((len(theirs_KD),), 1 / (len(theirs_KD) + 1))
    mean_D = view.honest.mean(0)

    def harm(strength: float) -> float:
        theirs_KD[len(others_HD) :] = lie(strength)
        return float(torch.linalg.vector_norm(mixer(victim_D, theirs_KD, weights_K) - mean_D))

    return maximum(harm, EVALUATIONS)


def maximum(value: Callable[[float], float], evaluations: int) -> float:
    """Where in (0, inf) `value` is largest, as far as so many evaluations tell: exact for one hill only.

    From 1 in steps of a factor of 2 uphill, until it goes down again; then the golden section between the neighbours.
    """
    best, height = 1.0, value(1.0)
    evaluations -= 1
    for factor in (2.0, 0.5):
        began = best
        while evaluations > 0:
            evaluations -= 1
            if (other := value(best * factor)) <= height:
                break
            best, height = best * factor, other
        if best != began:  # it went up this way, so not the other
            break
    low, high = best / 2, best * 2
    while evaluations > 0:
        evaluations -= 1
        # The larger side of the best is where a point tells more.
        point = best + (1 - GOLDEN) * (high - best) if high - best > best - low else best - (1 - GOLDEN) * (best - low)
        other = value(point)
        if other > height:
            low, high = (best, high) if point > best else (low, best)
            best, height = point, other
        elif point > best:
            high = point
        else:
            low = point
    return best
