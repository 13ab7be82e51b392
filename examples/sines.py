"""A task of your own in thirty lines: peers learn a sine together, each from its own piece of the axis.

murmurate init sines.toml --task sines:make_task       # in this folder
murmurate run sines.toml
"""

import torch
from torch import Tensor, nn


class Sines:
    """Each peer sees one interval; together they see the whole curve."""

    train_size = 512

    def __init__(self, index: int, peers: int) -> None:
        low, high = -3 + 6 * index / peers, -3 + 6 * (index + 1) / peers
        self.mine = torch.linspace(low, high, self.train_size)[:, None]
        self.all = torch.linspace(-3, 3, 200)[:, None]

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))

    def batch(self, indices_B: Tensor) -> Tensor:
        return self.mine[indices_B]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return nn.functional.mse_loss(model(batch), batch.sin())

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"loss": self.loss(model, self.all).item()}


def make_task(config) -> Sines:
    return Sines(config.index, len(config.peers))
