"""Small swarms of the seeds exchange for tests: configurations, replicas, batches, and a bowl as a task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from murmurate.peer.config import Config, parse
from murmurate.peer.lab.together import origin_of
from murmurate.peer.learning.prober import Prober, make_prober
from murmurate.peer.learning.tasks import Task, make_task
from murmurate.peer.protocol.events import Fold, Payload, PeerId
from murmurate.peer.protocol.records import Batch, Origin

SWARM = bytes(range(32))
DROPOUT = {"name": "chars", "options": {"n_layer": 1, "n_head": 1, "n_embd": 8, "block": 8, "dropout": 0.5}}


class Bowl:
    """A task whose loss is half the squared distance of the weights to the batch, scaled by index."""

    train_size = 64

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.poison = False

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(self.dtype)

    def batch(self, indices_B: Tensor) -> Tensor:
        return indices_B.to(self.dtype)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        scale = float("nan") if self.poison else 0.5
        return scale * sum(((value - 0.01 * batch.mean()) ** 2).sum() for value in model.parameters()) + torch.zeros(())

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"loss": float(sum(value.square().sum() for value in model.parameters()))}


def config_of(me: str = "a", names: str = "ab", **tables: Any) -> Config:
    peers = dict.fromkeys(names, "127.0.0.1:0")
    tables["local"] = {"steps": 2, "batch_size": 8, "lr": 0.01, **tables.get("local", {})}
    tables["exchange"] = {"name": "seeds"}
    return parse({"name": me, "peers": peers, **tables})


def prober_of(me: str = "a", task: Task | None = None, names: str = "ab", **tables: Any) -> Prober:
    """A replica that has begun, of a task of its own if one is given."""
    config = config_of(me, names, **tables)
    prober = make_prober(config) if task is None else Prober(config, task)
    prober.begin(SWARM, origin_of(me))
    return prober


def task_of(me: str = "a", names: str = "ab", **tables: Any) -> Task:
    return make_task(config_of(me, names, **tables))


def batch_of(prober: Prober, me: str, round: int) -> Batch:
    """One round's training, as a batch."""
    trained = prober.train(round)
    assert trained.complete
    return made(me, prober.counts.get(origin_of(me), 1), round, trained.payload)


def made(me: str, number: int, round: int, payload: Payload) -> Batch:
    return Batch(origin_of(me), number, round, bytes(payload), b"")


def fold(prober: Prober, *batches: Batch, closed: Iterable[tuple[Origin, int]] = (), round: int = 0) -> None:
    prober.fold(Fold(round, batches, tuple(closed), tuple((origin_of(name), PeerId(name)) for name in "abcd")))


def rounds(probers: dict[str, Prober], last: int, first: int = 1) -> list[Batch]:
    """Rounds in which all hear all; returns every batch."""
    found: list[Batch] = []
    for round in range(first, last + 1):
        batches = [batch_of(prober, me, round) for me, prober in probers.items()]
        for prober in probers.values():
            fold(prober, *batches, round=round)
        found += batches
    return found
