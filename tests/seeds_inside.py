"""What tests look at inside of a replica, and a task whose model has buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from murmurate.peer.learning.prober import Prober

from .seeds_peers import Bowl


def weights(prober: Prober, path: Path, cut: Any = None) -> dict[str, Tensor]:
    """Exported, and read again."""
    prober.export(cut)(path)
    return load_file(path)


def private(prober: Prober, name: str) -> Any:
    """An attribute that is nobody else's business."""
    return getattr(prober, f"_{name}")


class Normed(Bowl):
    """With running statistics, which training would change."""

    def model(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))

    def loss(self, model: torch.nn.Module, batch: Tensor) -> Tensor:
        x_BI = batch[:, None].expand(-1, 3) / 64
        return model(x_BI).square().mean()

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        return {"loss": float(model(torch.ones(5, 3)).square().sum())}
