"""`digits`: the 1,797 8x8 images of handwritten digits that scikit-learn carries; nothing is downloaded.

Options: `model` = "mlp" (64-64-32-10, 6,570 parameters) or "cnn" (two convolutions, GroupNorm; 10,026 parameters).
A fifth of every class, chosen by the swarm's seed, is the test set of all peers; the rest is split by `task.partition`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from murmurate.peer import config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.randomness import derive

from .options import read_options
from .partition import shard

TEST_SHARE = 0.2
Batch = tuple[Tensor, Tensor]


class Digits:
    """Images are [B, 64] in [0, 1]."""

    def __init__(self, model: Callable[[], nn.Module], train: Batch, test: Batch) -> None:
        self.model = model
        self.train_size = len(train[1])
        self._images, self._labels = train
        self._test = test

    def batch(self, indices_B: Tensor) -> Batch:
        """Images [B, 64] and labels [B]."""
        return self._images.index_select(0, indices_B), self._labels.index_select(0, indices_B)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        return cross_entropy(model(batch[0]), batch[1])

    def score(self, model: nn.Module, batch: Batch) -> float:
        """Accuracy on a batch."""
        return float((model(batch[0]).argmax(1) == batch[1]).float().mean())

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Accuracy and loss on the test set."""
        images, labels = self._test
        logits = model(images)
        return {
            "accuracy": float((logits.argmax(1) == labels).float().mean()),
            "loss": float(cross_entropy(logits, labels)),
        }


def make_task(config: config.Config) -> Digits:
    """The digits as this peer sees them."""
    name = str(read_options(config.task, {"model": "mlp"})["model"])
    if name not in MODELS:
        raise ConfigError(f"task.options.model = {name!r}: should be one of {', '.join(MODELS)}")
    images, labels = _load()
    rng = np.random.default_rng(derive(config.swarm.seed, "digits", "test"))
    test = np.concatenate([_some(rng, np.flatnonzero(labels == label)) for label in range(10)])
    rest = np.setdiff1d(np.arange(len(labels)), test)
    seed = derive(config.swarm.seed, "digits", "partition")
    mine = rest[shard(config.task, labels[rest], len(config.peers), config.index, seed)]

    def tensors(indices: npt.NDArray[np.int64]) -> Batch:
        device = config.runtime.device
        return torch.from_numpy(images[indices]).to(device), torch.from_numpy(labels[indices]).to(device)

    return Digits(MODELS[name], tensors(mine), tensors(test))


def _some(rng: np.random.Generator, members: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return rng.permutation(members)[: round(TEST_SHARE * len(members))]


@functools.cache  # one process may simulate many peers
def _load() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images [1797, 64] in [0, 1] and labels. Reads scikit-learn's file: importing the package takes two seconds."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ConfigError("the digits task needs scikit-learn's data: pip install scikit-learn")
    table = np.loadtxt(Path(found.origin).parent / "datasets/data/digits.csv.gz", delimiter=",", dtype=np.float32)
    return table[:, :-1] / np.float32(16), table[:, -1].astype(np.int64)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": _mlp, "cnn": _cnn}
