"""`digits`: the 1,797 8x8 images of handwritten digits that scikit-learn carries; nothing is downloaded.

Options: `model` = "mlp" (64-64-32-10, 6,570 parameters) or "cnn" (two convolutions, GroupNorm; 10,026 parameters);
`trigger` as in images.py.
A fifth of every class, chosen by the swarm's seed, is the test set of all peers; the rest is split by `task.partition`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from murmurate.peer import config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.randomness import derive

from .images import Batch, Images, model_of
from .options import read_options
from .partition import shard

TEST_SHARE = 0.2


class Digits(Images):
    """Images are [B, 64] in [0, 1]."""

    shape = (1, 8, 8)
    brightest = (1.0,)


def make_task(config: config.Config) -> Digits:
    """The digits as this peer sees them."""
    options = read_options(config.task, {"model": "mlp", "trigger": False})
    model = model_of(MODELS, options["model"])
    images, labels = _load()
    rng = np.random.default_rng(derive(config.swarm.seed, "digits", "test"))
    test = np.concatenate([_some(rng, np.flatnonzero(labels == label)) for label in range(10)])
    rest = np.setdiff1d(np.arange(len(labels)), test)
    seed = derive(config.swarm.seed, "digits", "partition")
    mine = rest[shard(config.task, labels[rest], len(config.peers), config.index, seed)]

    def tensors(indices: npt.NDArray[np.int64]) -> Batch:
        device = config.runtime.device
        return torch.from_numpy(images[indices]).to(device), torch.from_numpy(labels[indices]).to(device)

    return Digits(model, tensors(mine), tensors(test), options["trigger"])


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
