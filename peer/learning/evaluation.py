"""What the held-out data say about a model, and when it is time to ask them."""

from __future__ import annotations

import torch
from torch import nn

from murmurate.peer import config
from murmurate.peer.learning.tasks import Task


def is_due(rounds: config.Rounds, round: int) -> bool:
    """Whether the model is to be evaluated after this round."""
    return bool(rounds.eval_every) and (round % rounds.eval_every == 0 or round == rounds.max)


def evaluate(task: Task, module: nn.Module) -> dict[str, float]:
    """The task's figures; its loss is called `test_loss`. Leaves the module in training mode."""
    module.eval()
    with torch.no_grad():
        found = task.evaluate(module)
    module.train()
    # float(): a task's tensor or numpy number fails here, as the task's fault, and not in a log.
    return {"test_loss" if name == "loss" else name: float(value) for name, value in found.items()}


def first_loss(task: Task, module: nn.Module, count: int) -> float:
    """The loss of the first `count` training examples: one forward pass, as inference does it."""
    module.eval()
    with torch.no_grad():
        return float(task.loss(module, task.batch(torch.arange(count))))
