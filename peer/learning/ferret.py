"""Ferret: first-order local steps, published as their projections on the directions that all peers share.

After Shu et al. 2024: with K shared directions z of +1 and -1, update = sum of <update, z_k> z_k / K in expectation, so
the K scalars <update, z_k> / K are a round's records. Peers' scalars mix by the rule of the swarm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from murmurate.peer import config
from murmurate.peer.learning.tasks import Task

from .flat import FlatModel
from .local_steps import make_step
from .optimizers import make_optimizer
from .randomness import seed_torch


class Ferret:
    """Takes the local steps of a round with an optimizer that begins anew every round, and puts the module back.

    Memory besides the model's: gradients, one copy of the weights, what the optimizer keeps.
    """

    def __init__(self, local: config.Local, task: Task, model: FlatModel) -> None:
        self._local, self._task, self._model = local, task, model
        make_optimizer(local, model)  # an impossible one is refused now, not in round 1

    def update(
        self, steps: Iterable[tuple[int, Tensor]], lr: float, interrupted: Callable[[], bool]
    ) -> tuple[Tensor | None, list[float]]:
        """Weights before minus weights after [D], valid until the next call, and the losses; None if interrupted.

        `steps`: torch seed and indices [B] of each.
        """
        model = self._model
        local = self._local.model_copy(update={"lr": lr})
        step = make_step(local, self._task, model, make_optimizer(local, model))
        home_D = model.flat_D.clone()
        losses: list[Tensor] = []
        ended = False
        for seed, indices_B in steps:
            if ended := interrupted():
                break
            seed_torch(seed, model.flat_D.device)
            losses.append(step(self._task.batch(indices_B)))
        update_D = torch.sub(home_D, model.flat_D, out=model.grad_D)  # the gradients are not needed any more
        model.flat_D.copy_(home_D)
        return None if ended else update_D, torch.stack(losses).tolist() if losses else []
