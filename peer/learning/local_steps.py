"""Local steps: what happens to the model for one batch."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from murmurate.peer import config
from murmurate.peer.learning.tasks import Task

from .flat import FlatModel
from .optimizers import Optimizer


class LocalStep(Protocol):
    """Changes the model by one batch and returns the batch's loss: before the step, detached, not yet synchronized."""

    def __call__(self, batch: Any, /) -> Tensor: ...


def make_step(local: config.Local, task: Task, model: FlatModel, optimizer: Optimizer) -> LocalStep:
    """The local step of the configuration."""
    if local.sam_rho:
        return sam(task, model, optimizer, local.sam_rho)
    return plain(task, model, optimizer)


def plain(task: Task, model: FlatModel, optimizer: Optimizer) -> LocalStep:
    """One gradient, one optimizer step."""
    gradient = _gradient(task, model)
    descend = optimizer.step

    def step(batch: Any, /) -> Tensor:
        loss = gradient(batch)
        descend()
        return loss

    return step


def sam(task: Task, model: FlatModel, optimizer: Optimizer, rho: float) -> LocalStep:
    """The optimizer steps along the gradient found `rho` uphill (SAM; DFedSAM, Shi et al. 2023, Algorithm 1).

    Afterwards the weights are copied back, not subtracted back: in-place arithmetic would leave rounding in them.
    """
    gradient = _gradient(task, model)
    descend = optimizer.step
    flat_D, grad_D = model.flat_D, model.grad_D
    home_D = torch.empty_like(flat_D)
    radius = flat_D.new_tensor(rho)
    norm_min = torch.finfo(flat_D.dtype).tiny  # a gradient of zero moves nothing

    def step(batch: Any, /) -> Tensor:
        loss = gradient(batch)
        home_D.copy_(flat_D)
        flat_D.addcmul_(grad_D, radius / torch.linalg.vector_norm(grad_D).clamp_(min=norm_min))
        gradient(batch)
        flat_D.copy_(home_D)
        descend()
        return loss

    return step


def _gradient(task: Task, model: FlatModel) -> LocalStep:
    """Fills `grad_D` and returns the loss."""
    loss_of, module, zero = task.loss, model.module, model.grad_D.zero_

    def gradient(batch: Any, /) -> Tensor:
        zero()
        loss = loss_of(module, batch)
        loss.backward()
        return loss.detach()

    return gradient
