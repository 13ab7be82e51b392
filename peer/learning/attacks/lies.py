"""Lies about models: what is sent in place of `View.mine`. Each is made once for a peer, and may remember.

Rows of a view are honest models, as far as the liar knows; while it knows of none it sends its honest model.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from murmurate.peer.learning.mixing import Mixer
from murmurate.peer.learning.randomness import derive
from murmurate.peer.protocol.events import Payload

from .search import strongest
from .view import View

HUGE = 1e38
"""Finite in float32, its square is not."""


@dataclass(frozen=True)
class Means:
    """What a liar works with."""

    scale: float
    """As configured."""
    seed: int
    """Its own."""
    pack: Callable[[Tensor], Payload]
    mixer: Mixer | None = None
    """The rule to be fooled, if it can be tried out."""
    search_every: int = 1
    """Rounds between two line searches; in between the last strength serves."""


class Lie:
    """A family of lies."""

    shared = False
    """Whether liars who see the same say the same."""
    trains = True
    """Whether it takes local steps."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._strength, self._searched = means.scale, -math.inf  # found in that round

    def __call__(self, view: View) -> Tensor | Payload:
        """The model [D] to send, or the bytes of something that is none. This one: the honest model."""
        return view.mine

    def _normal(self, view: View) -> Tensor:
        generator = torch.Generator().manual_seed(derive(self._means.seed, "lie", view.round))
        return torch.randn(len(view.mine), generator=generator).to(view.mine)

    def _strongest(self, view: View, lie: Callable[[float], Tensor]) -> Tensor:
        """As strong as the rule bears; against a rule that cannot be tried out, as strong as `scale`."""
        means = self._means
        if means.mixer is not None and view.round >= self._searched + means.search_every:
            self._strength, self._searched = strongest(means.mixer, view, lie), view.round
        return lie(self._strength)


class SignFlip(Lie):
    """-scale x the honest model."""

    def __call__(self, view: View) -> Tensor:
        return view.mine * -self._means.scale


class Noise(Lie):
    """The honest model + scale x the standard deviation of its values x standard normal numbers."""

    def __call__(self, view: View) -> Tensor:
        return view.mine + self._means.scale * float(view.mine.std()) * self._normal(view)


class LittleIsEnough(Lie):
    """ALIE (Baruch et al. 2019, "A Little Is Enough"): mean + z x standard deviation of the honest models, per
    parameter: within what honest models do, and all liars on the same side. z by line search, as in MoNNA.
    """

    shared = True

    def __call__(self, view: View) -> Tensor:
        if len(view.honest) < 2:
            return view.mine
        mean_D, std_D = view.honest.mean(0), view.honest.std(0)
        return self._strongest(view, lambda z: mean_D + z * std_D)


class FallOfEmpires(Lie):
    """FOE, or inner product manipulation (Xie et al. 2020, "Fall of Empires"): (1 - z) x the mean of the honest
    models. z by line search, as in MoNNA.
    """

    shared = True

    def __call__(self, view: View) -> Tensor:
        if not len(view.honest):
            return view.mine
        mean_D = view.honest.mean(0)
        return self._strongest(view, lambda z: (1 - z) * mean_D)


class Mimic(Lie):
    """All liars repeat one honest peer, that which is farthest along the direction in which honest models differ most
    (Karimireddy et al. 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", mimic attack).

    The direction by one step of the power method each round, the peer by the sum of its places over all rounds.
    """

    shared = True

    def __init__(self, means: Means) -> None:
        super().__init__(means)
        self._direction_D: Tensor | None = None
        self._places: dict[str, float] = {}

    def __call__(self, view: View) -> Tensor:
        if not len(view.honest):
            return view.mine
        spread_HD = view.honest - view.honest.mean(0)
        if self._direction_D is None:
            self._direction_D = self._normal(view)
        direction_D = spread_HD.T @ (spread_HD @ self._direction_D)
        if (length := float(torch.linalg.vector_norm(direction_D))) > 0 and math.isfinite(length):
            self._direction_D = direction_D / length
        for name, place in zip(view.names, (spread_HD @ self._direction_D).tolist(), strict=True):
            self._places[name] = self._places.get(name, 0.0) + place
        chosen = max(view.names, key=lambda name: (abs(self._places[name]), name))
        return view.honest[view.names.index(chosen)]


class Boost(Lie):
    """For poisoned data: the honest model of those data, its local steps `scale` times as long.

    1 is a quiet poisoner; more is model replacement (Bagdasaryan et al. 2020, "How To Backdoor Federated Learning").
    """

    def __call__(self, view: View) -> Tensor:
        if view.mixed is None or self._means.scale == 1.0:
            return view.mine
        return view.mixed + self._means.scale * (view.mine - view.mixed)


class Stale(Lie):
    """The honest model of `scale` rounds ago, under today's date."""

    def __init__(self, means: Means) -> None:
        super().__init__(means)
        self._past = deque[Tensor](maxlen=max(1, round(means.scale)) + 1)

    def __call__(self, view: View) -> Tensor:
        self._past.append(view.mine)
        return self._past[0]


class FreeRider(Lie):
    """What the last mix made, without any training, behind noise as large as `scale` x the last change of that
    (disguised free-rider: Fraboni et al. 2021, "Free-rider Attacks on Model Aggregation in Federated Learning").
    """

    trains = False

    _before: Tensor | None = None

    def __call__(self, view: View) -> Tensor:
        if view.mixed is None:
            return view.mine
        before_D, self._before = self._before, view.mixed
        change = 0.0 if before_D is None else float((view.mixed - before_D).square().mean().sqrt())
        return view.mixed + self._means.scale * change * self._normal(view)


class Bomb(Lie):
    """What is no model, or hardly: one kind after the other, round by round."""

    def __call__(self, view: View) -> Tensor | Payload:
        model_D = view.mine.clone()
        match view.round % 7:
            case 0:
                return model_D.fill_(math.nan)
            case 1:
                model_D[len(model_D) // 2] = math.inf
                return model_D
            case 2:
                return model_D.fill_(HUGE)
            case 3:
                return model_D.sign_().mul_(-HUGE)
            case 4:
                payload = self._means.pack(model_D)
                return payload[: len(payload) // 2]
            case 5:
                return b""
            case _:
                return torch.full_like(model_D, -math.inf)


LIES: dict[str, type[Lie]] = {
    "sign_flip": SignFlip,
    "noise": Noise,
    "label_flip": Boost,
    "backdoor": Boost,
    "sybil": Boost,
    "alie": LittleIsEnough,
    "foe": FallOfEmpires,
    "mimic": Mimic,
    "stale": Stale,
    "free_rider": FreeRider,
    "bomb": Bomb,
}
