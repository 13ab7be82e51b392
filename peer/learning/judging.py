"""What a peer's own examples say of a part of the model that somebody else sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.tasks import Task

from .flat import FlatModel
from .order import Batches
from .payloads import Selection

EXAMPLES_MAX = 256
"""Of our own; some 25 for each of ten classes. (a guess)"""

Labels = NDArray[np.int64]


class Judge:
    """Classifies the same few of our own training examples every time. Raises ConfigError for a task that cannot."""

    def __init__(self, task: Task, model: FlatModel, selection: Selection, batches: Batches) -> None:
        self._predict: Any = getattr(task, "predict", None)
        if not callable(self._predict):
            raise ConfigError(
                "mixing.rule = 'bristle': scores models by the classes of examples, and the task "
                f"{type(task).__name__} has no `predict`"
            )
        self._task, self._model, self._selection = task, model, selection
        generator = torch.Generator().manual_seed(batches.seed("judge"))
        order = torch.randperm(task.train_size, generator=generator)
        self._indices_B = order[:EXAMPLES_MAX].to(model.flat_D.device)

    def __call__(self, part_E: Tensor) -> tuple[Labels, Labels]:
        """True and predicted classes [B] with this part of the model; ours comes back."""
        before_E = self._selection.get().clone()
        module = self._model.module.eval()
        try:
            self._selection.put(part_E)
            with torch.no_grad():
                labels_B, predicted_B = self._predict(module, self._task.batch(self._indices_B))
        finally:
            self._selection.put(before_E)
            module.train()
        return labels_B.cpu().numpy(), predicted_B.cpu().numpy()
