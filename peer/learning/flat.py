"""A module whose trainable parameters are views of one vector, and their gradients, if any, views of another.

Packing, mixing, zeroing gradients and the SAM ascent are then single vector operations, and no parameter is ever copied
to cross a seam. Rules
* The order is that of `named_parameters()`; `schema` spells it out, and all peers must agree on it.
* Frozen parameters (`requires_grad = False`) are not exchanged: every peer has them from the same base weights.
* Buffers stay local. The running statistics of a BatchNorm belong to one peer's data and do not survive mixing; with
  records they keep their first values (`Buffers`). So models for gossip should use GroupNorm or LayerNorm.
* `.grad` must stay the view it is: `zero_grad(set_to_none=True)` is not for these models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from murmurate.peer.errors import ConfigError

Schema = tuple[tuple[str, tuple[int, ...], str], ...]


class FlatModel:
    """`module` re-seated on `flat_D`; gradients gather in `grad_D`. Tied parameters appear once.

    Without `gradients` nothing is allocated for them, and `grad_D` is empty: who only looks at losses needs none.
    Raises ConfigError when nothing is trainable or the parameters do not share one floating dtype and device.
    """

    def __init__(self, module: nn.Module, gradients: bool = True) -> None:
        named = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
        if not named:
            raise ConfigError("the task's model has no trainable parameter")
        kinds = sorted({f"{value.dtype} on {value.device}" for _, value in named})
        if len(kinds) > 1 or not named[0][1].is_floating_point():
            raise ConfigError(
                "the parameters of the task's model should share one floating dtype and one device, not "
                + ", ".join(kinds)
            )
        self.module = module
        self.parameters = [value for _, value in named]
        self.schema: Schema = tuple(
            (name, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in named
        )
        self.flat_D = torch.cat([value.detach().reshape(-1) for value in self.parameters])
        for value, weights in zip(self.parameters, self._split(self.flat_D), strict=True):
            value.data = weights
        _leave_file(module, self.flat_D.nbytes)
        self.grad_D = torch.zeros_like(self.flat_D) if gradients else self.flat_D.new_empty(0)
        if gradients:
            for value, gradient in zip(self.parameters, self._split(self.grad_D), strict=True):
                value.grad = gradient

    def named(self, vector_D: Tensor) -> dict[str, Tensor]:
        """Views of the parts of any vector laid out like `flat_D`, by parameter name."""
        return {name: part for (name, _, _), part in zip(self.schema, self._split(vector_D), strict=True)}

    def _split(self, vector_D: Tensor) -> list[Tensor]:
        parts = vector_D.split([value.numel() for value in self.parameters])
        return [part.view(value.shape) for part, value in zip(parts, self.parameters, strict=True)]


class Buffers:
    """The buffers of a module as they are now, to be brought back after it was used."""

    def __init__(self, module: nn.Module) -> None:
        self._held = [(value, value.detach().clone()) for value in module.buffers()]

    def restore(self) -> None:
        """Whatever was done to their entries. One that was replaced by another tensor is not found."""
        with torch.no_grad():
            for value, before in self._held:
                if not torch.equal(value, before):  # the most are constants, which may lie in a file's pages
                    value.copy_(before)


def is_finite(vector: Tensor) -> bool:
    """Whether no entry is NaN or infinite: one pass and no temporary, unlike `isfinite().all()`.

    A sum is finite only if all its terms are; one that is not may have overflowed, which the slower norm cannot.
    """
    return math.isfinite(vector.sum().item()) or bool(torch.linalg.vector_norm(vector, ord=torch.inf).isfinite())


def _leave_file(module: nn.Module, trained_bytes: int) -> None:
    """Copy the few tensors that are not trained: a view of the weights' file keeps the whole file in memory.

    When most of the model is frozen, the file's pages are the cheaper place for it.
    """
    frozen = [value for value in module.parameters() if not value.requires_grad] + list(module.buffers())
    if sum(value.nbytes for value in frozen) < trained_bytes:
        for value in frozen:
            value.data = value.data.clone()
