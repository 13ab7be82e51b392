"""The order of the data: which examples a peer's every step takes, as a pure function of numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from murmurate.peer.config import Config

from .randomness import derive


class Batches:
    """Passes over the shard, each a permutation drawn from (swarm.seed, peer, pass).

    What is left of a pass after its last whole batch sits out; a shard smaller than a batch is the batch.
    """

    def __init__(self, config: Config, train_size: int) -> None:
        self.size = min(config.local.batch_size, train_size)
        self._train_size = train_size
        self._key = (config.swarm.seed, config.index)
        self._device = config.runtime.device
        self._generator = torch.Generator()
        self._kept: tuple[object, tuple[Tensor, ...]] = (None, ())

    def seed(self, purpose: str, *numbers: int) -> int:
        """A seed of this peer's own."""
        return derive(*self._key, purpose, *numbers)

    def of(self, first: int, last: int, number: int = -1) -> Iterator[Tensor]:
        """Indices [B] of the steps first, ..., last - 1 of all this peer ever takes; `number` names another order."""
        per_pass = self._train_size // self.size
        while first < last:
            which, position = divmod(first, per_pass)
            batches = self._pass(number, which)[position : position + last - first]
            yield from batches
            first += len(batches)

    def _pass(self, number: int, which: int) -> tuple[Tensor, ...]:
        if self._kept[0] != (number, which):
            self._generator.manual_seed(self.seed("order", number, which))
            order = torch.randperm(self._train_size, generator=self._generator).to(self._device)
            whole = self._train_size // self.size * self.size
            self._kept = ((number, which), order[:whole].view(-1, self.size).unbind())
        return self._kept[1]
