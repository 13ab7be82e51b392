"""The way back from a mixture that cannot be trained.

A rule that bears no liars may be moved to weights that are finite, and so huge that a training step overflows. No bound
on what neighbours send prevents that: what is huge depends on the model and the optimizer. (Measured on digits under
the mean: one neighbour's weights of 1e4 end the multilayer perceptron with SGD, 1e9 the convolutional net.) So a peer
keeps the model that its own training left last: where training diverges after a mix, the mix is undone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .flat import Buffers, FlatModel

GROWN = 2.0**10
"""A model with weights so many times as large as the largest of the first ones (or as 1) is not kept: it may have got
them from a neighbour, and be on its way to overflow in a later round. (a guess; the smallest that was seen to end a
peer is 1e4)"""


class Kept:
    """The model as its own training left it last, buffers and all. Costs another copy of the parameters."""

    def __init__(self, model: FlatModel) -> None:
        self._model = model
        self._most = GROWN * max(1.0, self._largest())
        self._room_D: Tensor | None = None
        self._buffers: Buffers | None = None  # None: nothing is kept

    def keep(self) -> None:
        """The model as it is now, unless it has grown too much: then what was kept before stays."""
        if self.has_grown():
            return
        if self._room_D is None:
            self._room_D = self._model.flat_D.clone()
        else:
            self._room_D.copy_(self._model.flat_D)
        self._buffers = Buffers(self._model.module)

    def has_grown(self) -> bool:
        """Whether the model has grown too much to be kept."""
        return self._largest() > self._most

    def bring_back(self) -> bool:
        """Make the model what was kept last, once; whether there was anything."""
        if self._room_D is None or self._buffers is None:
            return False
        self._model.flat_D.copy_(self._room_D)
        self._buffers.restore()
        self._buffers = None
        return True

    def _largest(self) -> float:
        return float(torch.linalg.vector_norm(self._model.flat_D, ord=torch.inf))
