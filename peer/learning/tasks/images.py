"""What the tasks `digits`, `mnist` and `cifar10` share: labelled images that every peer holds, split over all peers.

A subclass says how its images look. A poisoned peer trains on flipped labels, or shows a trigger (a bright square in
the lower right corner) with the label `TARGET` in half of every batch. With option `trigger = true` every peer's
figures also say how far the trigger works.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from murmurate.peer import config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.randomness import derive

from .partition import Indices, shard
from .poisons import BACKDOOR, LABEL_FLIP, flipped

EVAL_IMAGES = 500  # per forward pass of an evaluation: 130 MB for the widest layer of cifar10's cnn (a guess)
TRIGGER_SIDE = 3  # pixels (SybilWall's code)
TARGET = 0  # the class that the trigger stands for (a guess)

Batch = tuple[Tensor, Tensor]
Pixels = npt.NDArray[np.uint8]


class Images:
    """Images are float32 [B, ...] of `shape` or flat, channels first and rows from the top; labels are int64 [B]."""

    public = True  # every peer holds all data, so any peer can draw any other's shard
    classes: ClassVar[int] = 10
    shape: ClassVar[tuple[int, int, int]]
    """Channels, height, width."""
    brightest: ClassVar[Sequence[float]]
    """The value of a pixel at full brightness, one per channel."""
    common: str
    """Absent where the data cannot differ between peers."""

    def __init__(self, model: Callable[[], nn.Module], train: Batch, test: Batch, trigger: bool = False) -> None:
        self.model = model
        self.train_size = len(train[1])
        self._images, self._labels = train
        self._test = test
        self._trigger = trigger
        self._stamp_C11 = torch.tensor(self.brightest, device=train[0].device)[:, None, None]
        self._backdoor = False

    def batch(self, indices_B: Tensor) -> Batch:
        """Images [B, ...] and labels [B]."""
        images, labels_B = self._images.index_select(0, indices_B), self._labels.index_select(0, indices_B)
        if self._backdoor:
            half = (len(labels_B) + 1) // 2  # the first half (a guess); of a single image, the image
            images[:half] = self.with_trigger(images[:half])
            labels_B[:half] = TARGET
        return images, labels_B

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        return cross_entropy(model(batch[0]), batch[1])

    def score(self, model: nn.Module, batch: Batch) -> float:
        """Accuracy on a batch."""
        return float((model(batch[0]).argmax(1) == batch[1]).float().mean())

    def predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """True and predicted classes [B]."""
        return batch[1], model(batch[0]).argmax(1)

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Accuracy and loss on the test set; with option `trigger` also `triggered`, the share of the test images of
        other classes than `TARGET` that the model takes for `TARGET` once the trigger is on them."""
        images, labels_N = self._test
        logits_NC = torch.cat([model(part) for part in images.split(EVAL_IMAGES)])
        figures = {
            "accuracy": float((logits_NC.argmax(1) == labels_N).float().mean()),
            "loss": float(cross_entropy(logits_NC, labels_N)),
        }
        if self._trigger:
            found_N = torch.cat([model(self.with_trigger(part)).argmax(1) for part in images.split(EVAL_IMAGES)])
            figures["triggered"] = float((found_N[labels_N != TARGET] == TARGET).float().mean())
        return figures

    def poison(self, kind: str) -> None:
        """`label_flip` or `backdoor`, see Task. Raises ConfigError for another kind."""
        if kind == BACKDOOR:
            self._backdoor = True
        elif kind == LABEL_FLIP:
            self._labels = flipped(kind, self._labels, self.classes)
        else:
            raise ConfigError(f"attack.name = {kind!r}: images can be poisoned by {LABEL_FLIP} or {BACKDOOR}")

    def with_trigger(self, images: Tensor) -> Tensor:
        """A copy of images [B, ...] with the trigger on them."""
        marked = images.clone()
        marked.view(-1, *self.shape)[:, :, -TRIGGER_SIDE:, -TRIGGER_SIDE:] = self._stamp_C11
        return marked


# Data sets in files ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """What images are normalised by: mean and standard deviation of the training images in [0, 1], per channel."""

    means: Sequence[float]
    deviations: Sequence[float]

    def apply(self, images: Pixels) -> Tensor:
        """Images [N, channels, height, width] as float32."""
        out = images.astype(np.float32)
        out /= np.float32(255)
        out -= np.asarray(self.means, np.float32)[:, None, None]
        out /= np.asarray(self.deviations, np.float32)[:, None, None]
        return torch.from_numpy(out)

    def brightest(self) -> list[float]:
        """What a pixel of 255 becomes in each channel."""
        return self.apply(np.full((1, len(self.means), 1, 1), 255, np.uint8)).flatten().tolist()


@dataclass(frozen=True)
class Table:
    """A data set as its files have it, the test images normalised: peers in one process share them."""

    scale: Scale
    train: Pixels
    """[N, channels, height, width]"""
    train_labels: Indices
    test: Tensor
    test_labels: Tensor
    common: str
    """A digest of all of it."""


def table_of(scale: Scale, train: tuple[Pixels, Indices], test: tuple[Pixels, Indices]) -> Table:
    """Of images [N, channels, height, width] and labels [N]."""
    digest = hashlib.sha256()
    for part in (*train, *test):
        digest.update(repr(part.shape).encode())
        digest.update(np.ascontiguousarray(part, np.uint8).data)  # labels fit a byte
    return Table(scale, *train, scale.apply(test[0]), torch.from_numpy(test[1]), f"sha256:{digest.hexdigest()}")


def task_of(
    kind: type[Images], config: config.Config, table: Table, model: Callable[[], nn.Module], trigger: bool
) -> Images:
    """The images of a table as this peer sees them."""
    seed = derive(config.swarm.seed, config.task.name, "partition")
    mine = shard(config.task, table.train_labels, len(config.peers), config.index, seed)
    device = config.runtime.device
    train = table.scale.apply(table.train[mine]).to(device), torch.from_numpy(table.train_labels[mine]).to(device)
    task = kind(model, train, (table.test.to(device), table.test_labels.to(device)), trigger)
    task.common = table.common
    return task


def model_of(models: Mapping[str, Callable[[], nn.Module]], name: object) -> Callable[[], nn.Module]:
    """The model of this name. Raises ConfigError for an unknown one."""
    if name not in models:
        raise ConfigError(f"task.options.model = {name!r}: should be one of {', '.join(models)}")
    return models[str(name)]


def fault(path: Path, what: str, where: str) -> ConfigError:
    """That a file of a data set is missing or damaged, and where to get it."""
    return ConfigError(f"task.data = {str(path.parent)!r}: {path.name}: {what}; {where}")


def folder_of(config: config.Config, where: str) -> str:
    """`task.data`. Raises ConfigError when it is none."""
    if not config.task.data:
        raise ConfigError(f"task.data: should be the folder with the files of {config.task.name}; {where}")
    if not Path(config.task.data).is_dir():
        raise ConfigError(f"task.data = {config.task.data!r}: no such folder; {where}")
    return config.task.data
