"""`mnist`: 70,000 images of 28x28 handwritten digits, read from the four files of the data set; nothing is downloaded.

`task.data` is the folder with the files, plain or as .gz; every peer has its own copy, and peers whose copies differ
refuse each other. Training images are split by `task.partition`; the test images are the test set of all peers. Other
data sets in the same four files do as well: Fashion-MNIST, for one.
Options: `model` = "cnn" (MoNNA's, 431,080 parameters) or "linear" (SybilWall's, 7,850); `trigger` as in images.py.
"""

from __future__ import annotations

import functools
import gzip
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from murmurate.peer import config

from .images import Images, Pixels, Scale, Table, fault, folder_of, model_of, table_of, task_of
from .options import read_options
from .partition import Indices

# Of the training images' pixels in [0, 1]; those of torch's MNIST example, which everyone uses.
SCALE = Scale((0.1307,), (0.3081,))
SIDE = 28  # pixels
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
WHERE = f"the files {', '.join(f'{name}.gz' for name in FILES)} are named on http://yann.lecun.com/exdb/mnist"
UBYTE = b"\0\0\x08"  # the first bytes of an idx file of bytes; the fourth is the number of dimensions


class Mnist(Images):
    """Images are [B, 1, 28, 28], normalised."""

    shape = (1, SIDE, SIDE)
    brightest = SCALE.brightest()


def make_task(config: config.Config) -> Images:
    """The images as this peer sees them."""
    options = read_options(config.task, {"model": "cnn", "trigger": False})
    model = model_of(MODELS, options["model"])
    return task_of(Mnist, config, _load(folder_of(config, WHERE)), model, options["trigger"])


@functools.lru_cache(maxsize=1)  # one process may simulate many peers
def _load(folder: str) -> Table:
    train, test = (_pair(Path(folder), FILES[i], FILES[i + 1]) for i in (0, 2))
    return table_of(SCALE, train, test)


def _pair(folder: Path, images_name: str, labels_name: str) -> tuple[Pixels, Indices]:
    """Images [N, 1, 28, 28] and labels [N]."""
    images_path, labels_path = _found(folder, images_name), _found(folder, labels_name)
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise fault(images_path, f"images of {images.shape[1]}x{images.shape[2]}, not {SIDE}x{SIDE}", WHERE)
    if len(images) != len(labels):
        raise fault(labels_path, f"{len(labels)} labels for {len(images)} images of {images_path.name}", WHERE)
    if not len(labels):
        raise fault(labels_path, "is empty", WHERE)
    if labels.max() >= Mnist.classes:
        raise fault(labels_path, f"a label {labels.max()}, where 9 is the last", WHERE)
    return images[:, None], labels.astype(np.int64)


def _found(folder: Path, name: str) -> Path:
    """The file or its .gz."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise fault(folder / name, "no such file, nor its .gz", WHERE)


def read_idx(path: Path, dimensions: int) -> Pixels:
    """An idx file of bytes, plain or .gz, as an array. Raises ConfigError when it is damaged or is something else."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise fault(path, str(error), WHERE) from None
    head = 4 + 4 * dimensions
    magic = UBYTE + bytes([dimensions])
    if content[:4] != magic:
        raise fault(path, f"starts with {content[:4].hex()}, not {magic.hex()}", WHERE)
    shape = tuple(np.frombuffer(content[4:head].ljust(4 * dimensions, b"\0"), ">u4").tolist())
    if len(content) != head + math.prod(shape):
        raise fault(path, f"has {len(content)} bytes, where its head says {head + math.prod(shape)}", WHERE)
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def _linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {"cnn": _cnn, "linear": _linear}
