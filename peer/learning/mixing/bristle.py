"""Bristle: only a last layer is exchanged; its rows are mixed class by class, by what they do on our own examples.

C classes, h inputs of the layer, B examples, J models that are looked at, F classes of which we have examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from murmurate.kernels import mixing as kernels
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.flat import Schema, is_finite
from murmurate.peer.learning.randomness import derive

from .geometry import Floats, Ints
from .memory import Place, Received, usable
from .shares import Numbers

SCORE_MIN = -100.0
"""The least score of one class. (the authors' code, as all numbers in the formulas)"""

Labels = NDArray[np.int64]
Judge = Callable[[Tensor], tuple[Labels, Labels]]
"""True and predicted classes [B] of our own examples with this last layer [D]."""


class Bristle:
    """Row c of the layer <- (own + sum_j w_jc x_j) / (1 + sum_j w_jc), x_j row c of what neighbour j sent.

    Verbraeken, de Vos and Pouwelse 2021, "Bristle: Decentralized Federated Learning in Byzantine, Non-i.i.d.
    Environments", its distance-based prioritizer and performance-based integrator; the formulas are those of the
    authors' code. Prioritizer: of the models, sorted by distance to ours and cut in thirds, (1 - a)^2 of `models` from
    the nearest, 2a - 2a^2 from the middle and a^2 from the farthest third, a = `explore`, drawn anew each round; all,
    if no more came. Integrator: with F1_jc the F1 score of class c on examples of our own and d = 10 |F1_jc - F1_c|, j
    scores s_jc = d^(3 + F1_c) where it is better than we are, else -d^(4 + F1_c). Its certainty is the mean of its F1
    less their standard deviation, no less than 0. For classes of which we have examples w_jc = certainty_j max(0, 10
    sigmoid(max(-100, s_jc) / 100) - 4); for all others w_j = certainty_j max(0, 10 sigmoid(sum_c s_jc / 100) - 4).

    Where we differ: the draw is a function of (swarm.seed, peer, round); the examples are of our training data; and no
    peer is asked how many classes it knows. The layers before must be alike in all peers (frozen by the task, from
    one file of first weights; nothing here checks it), or a foreign head means nothing.

    Cost: J + 1 classifications of our examples, and one pass over the heads. It remembers nothing. No bound is proved:
    a model that is much worse than ours on our own examples has no weight, however many there are; but for classes of
    which we have none we believe whoever is good at the rest, so it bears f = 0 in the sense of the other rules.
    """

    attachment_size = 0

    def __init__(self, place: Place, mine_D: Tensor, schema: Schema, judge: Judge, numbers: Numbers) -> None:
        """Raises ConfigError if what is exchanged is not one last layer, or our examples are of none of its classes."""
        self._place, self._judge, self._numbers = place, judge, numbers
        shapes = [shape for _, shape, _ in schema]
        weights = [shape for shape in shapes if len(shape) == 2]
        if len(weights) != 1 or any(shape != weights[0][:1] for shape in shapes if len(shape) != 2) or len(shapes) > 2:
            raise ConfigError(
                "mixing.rule = 'bristle': mixes the rows of a last layer; exchange.parameters should select one weight "
                f"[classes, inputs] and perhaps its bias, not {', '.join(f'{name} {list(s)}' for name, s, _ in schema)}"
            )
        self._shapes, self._classes = shapes, weights[0][0]
        if not len(self._familiar(judge(mine_D)[0])):
            raise ConfigError(
                "mixing.rule = 'bristle': scores models by the classes of our own examples, and none is of a class "
                f"from 0 to {self._classes - 1}"
            )

    def begin(self, mine_D: Tensor) -> None:
        """See the seam: nothing to do."""

    def attach(self, round: int, mine_D: Tensor) -> Tensor:
        """See the seam: nothing."""
        del round
        return mine_D.new_empty(0).float()

    def check(self, notes_A: Tensor) -> None:
        """See the seam."""
        assert not len(notes_A)

    def mix(self, mine_D: Tensor, received: Received) -> Tensor:
        """See the seam."""
        rows = self._prioritise(mine_D, received)
        if not rows:
            return mine_D.clone()
        labels_B, predicted_B = self._judge(mine_D)
        familiar_F = self._familiar(labels_B)
        own_F = f1_scores(labels_B, predicted_B, familiar_F)
        theirs_JF = np.stack([f1_scores(*self._judge(received.theirs[row]), familiar_F) for row in rows])
        weights_JC = integrate(own_F, theirs_JF, familiar_F, self._classes)
        mixed_D = self._combine(mine_D, [received.theirs[row] for row in rows], weights_JC)
        return mixed_D if is_finite(mixed_D) else mine_D.clone()

    def state(self) -> dict[str, Tensor]:
        """See the seam: nothing."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See the seam."""
        if state:
            raise ValueError(f"{', '.join(state)}: bristle remembers nothing")

    def _familiar(self, labels_B: Labels) -> Labels:
        """The classes [F] of our examples, sorted."""
        return np.unique(labels_B[(labels_B >= 0) & (labels_B < self._classes)])

    def _prioritise(self, mine_D: Tensor, received: Received) -> list[int]:
        """The rows to look at, ascending."""
        rows = usable(mine_D, received.theirs)
        most, explore = int(self._numbers["models"]), self._numbers["explore"]
        if len(rows) <= most:
            return rows.tolist()
        squares_K = kernels.squares(mine_D, received.theirs)
        near: Ints = rows[np.argsort(squares_K[rows], kind="stable")]
        rng = np.random.default_rng(derive(self._place.seed, "bristle", self._place.index, received.round))
        thirds = [rng.permutation(third) for third in np.array_split(near, 3)]
        middle, far = round(2 * explore * (1 - explore) * most), round(explore**2 * most)
        wanted = [most - middle - far, middle, far]
        chosen = np.concatenate([third[:count] for third, count in zip(thirds, wanted, strict=True)])
        rest = [row for row in near.tolist() if row not in chosen]  # a third may be smaller than its part
        return sorted([*chosen.tolist(), *rest[: most - len(chosen)]])

    def _combine(self, mine_D: Tensor, heads: Sequence[Tensor], weights_JC: Floats) -> Tensor:
        """Adds row by row in the order of the heads, so that the bits do not depend on threads."""
        total_C = 1.0 + weights_JC.sum(axis=0)
        mixed_D = mine_D.clone()
        shares_JC = mine_D.new_tensor(weights_JC / total_C)
        own_C = mine_D.new_tensor(1.0 / total_C)
        start = 0
        for shape in self._shapes:
            size = int(np.prod(shape))
            across = (-1, *([1] * (len(shape) - 1)))
            part = mixed_D[start : start + size].view(shape).mul_(own_C.view(across))
            for head_D, share_C in zip(heads, shares_JC, strict=True):
                part.addcmul_(head_D[start : start + size].view(shape), share_C.view(across))
            start += size
        return mixed_D


def f1_scores(labels_B: Labels, predicted_B: Labels, classes_F: Labels) -> Floats:
    """2 TP / (2 TP + FP + FN) of each class [F], which occurs among the labels."""
    true_FB = labels_B == classes_F[:, None]
    said_FB = predicted_B == classes_F[:, None]
    return 2.0 * (true_FB & said_FB).sum(axis=1) / (true_FB.sum(axis=1) + said_FB.sum(axis=1))


def integrate(own_F: Floats, theirs_JF: Floats, familiar_F: Labels, classes: int) -> Floats:
    """The neighbours' weights [J, C], beside 1 for ours."""
    certainty_J = np.maximum(0.0, theirs_JF.mean(axis=1) - theirs_JF.std(axis=1))
    apart_JF = 10.0 * np.abs(theirs_JF - own_F)
    scores_JF = np.where(theirs_JF > own_F, apart_JF ** (3.0 + own_F), -(apart_JF ** (4.0 + own_F)))
    weights_JC = np.repeat(_pull(scores_JF.sum(axis=1))[:, None], classes, axis=1)
    weights_JC[:, familiar_F] = _pull(np.maximum(SCORE_MIN, scores_JF))
    return weights_JC * certainty_J[:, None]


def _pull(scores: Floats) -> Floats:
    """From 0, for -41 and less, through 1, for 0, up to 6."""
    return np.maximum(0.0, 5.0 * (1.0 + np.tanh(scores / 200.0)) - 4.0)
