"""`cifar10`: 60,000 colour images of 32x32 in ten classes, read from the data set's binary version; nothing is
downloaded.

`task.data` is the folder with the six .bin files; every peer has its own copy, and peers whose copies differ refuse
each other. Training images are split by `task.partition`; the test batch is the test set of all peers. Images are not
augmented: MoNNA and others flip half of them, but here the same positions always give the same batch.
Options: `model` = "cnn" (1,310,922 parameters: MoNNA's with GroupNorm in place of BatchNorm, whose buffers would stay
with each peer) or "lenet" (GN-LeNet as SybilWall has it, 89,834); `dropout` of the cnn; `trigger` as in images.py.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from torch import nn

from murmurate.peer import config
from murmurate.peer.errors import ConfigError

from .images import Images, Pixels, Scale, Table, fault, folder_of, model_of, table_of, task_of
from .options import read_options
from .partition import Indices

# Of the training images' pixels in [0, 1], per channel. The deviations are the means over images of each image's own,
# smaller than those of all pixels (0.247, 0.243, 0.262), but they are what MoNNA's code and most others divide by.
SCALE = Scale((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
SIDE = 32  # pixels
RECORD = 1 + 3 * SIDE * SIDE  # bytes: the label, then red, green and blue, each row by row
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
WHERE = (
    "the files are in cifar-10-binary.tar.gz (the binary version, not the one for Python) of "
    "https://www.cs.toronto.edu/~kriz/cifar.html"
)


class Cifar10(Images):
    """Images are [B, 3, 32, 32], normalised."""

    shape = (3, SIDE, SIDE)
    brightest = SCALE.brightest()


def make_task(config: config.Config) -> Images:
    """The images as this peer sees them."""
    options = read_options(config.task, {"model": "cnn", "dropout": 0.25, "trigger": False})
    if not 0 <= options["dropout"] < 1:
        raise ConfigError(f"task.options.dropout = {options['dropout']}: should be in [0, 1)")
    model = model_of({"cnn": functools.partial(_cnn, options["dropout"]), "lenet": _lenet}, options["model"])
    return task_of(Cifar10, config, _load(folder_of(config, WHERE)), model, options["trigger"])


@functools.lru_cache(maxsize=1)  # one process may simulate many peers
def _load(folder: str) -> Table:
    parts = [read_records(Path(folder, name)) for name in TRAIN_FILES]
    train = np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])
    return table_of(SCALE, train, read_records(Path(folder, TEST_FILE)))


def read_records(path: Path) -> tuple[Pixels, Indices]:
    """Images [N, 3, 32, 32] and labels [N] of a .bin file. Raises ConfigError when it is missing or damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise fault(path, "no such file", WHERE) from None
    except OSError as error:
        raise fault(path, str(error), WHERE) from None
    if not content or len(content) % RECORD:
        raise fault(path, f"has {len(content)} bytes, not a multiple of {RECORD}, an image and its label", WHERE)
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= Cifar10.classes:
        raise fault(path, f"a label {labels.max()}, where 9 is the last", WHERE)
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE), labels


def _cnn(dropout: float) -> nn.Module:
    return nn.Sequential(
        *_convolution(3, 64),
        *_convolution(64, 64),
        nn.MaxPool2d(2),
        nn.Dropout(dropout),
        *_convolution(64, 128),
        *_convolution(128, 128),
        nn.MaxPool2d(2),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(8192, 128),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(128, 10),
    )


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    # 32 groups: Wu and He 2018, GroupNorm's default.
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.GroupNorm(32, outputs)


def _lenet() -> nn.Module:
    return nn.Sequential(*_halving(3, 32), *_halving(32, 32), *_halving(32, 64), nn.Flatten(), nn.Linear(1024, 10))


def _halving(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    # Pools of 2: with the pools of 3 of Hsieh et al. 2020 the last layer has 576 inputs and not the 1,024 of SybilWall.
    return nn.Conv2d(inputs, outputs, 5, padding=2), nn.GroupNorm(2, outputs), nn.MaxPool2d(2), nn.ReLU()
