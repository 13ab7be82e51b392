"""`chars`: a small GPT that predicts the next byte of the text files in a folder.

Data: `task.data` is this peer's own folder, all of it its own training data. With option `shared = true` every peer
holds the same folder, and its files are split by `task.partition` (a file's label is its top folder). Without
`task.data` the text is the source code of Python's standard library, which every peer has, so it is shared. A tenth of
the files, chosen by a hash of their path, is held out for evaluation. Text is kept in memory, a byte each.
Options: `n_layer`, `n_head`, `n_embd`, `block` (bytes of context), `dropout`, `shared`. The vocabulary is the 256
bytes, so peers with different corpora agree on the model.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from murmurate.peer import config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.randomness import derive

from .gpt import GPT
from .options import at_least, read_options
from .partition import shard

OPTIONS: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block": 64, "dropout": 0.0, "shared": False}
EVAL_WINDOWS_MAX = 64  # 4,096 predictions at the default block: a standard error below 1 % (a guess)
END_OF_FILE = b"\0"


class Chars:
    """A batch is [B, block + 1] bytes: the last `block` are to be predicted from those before them."""

    def __init__(self, options: Mapping[str, Any], train: bytes, test: bytes, device: str) -> None:
        self._options = options
        self._train = _windows(train, options["block"]).to(device)
        windows = _windows(test, options["block"])
        spread = torch.linspace(0, len(windows) - 1, min(EVAL_WINDOWS_MAX, len(windows))).long()
        self._test = windows[spread].to(device)
        self.train_size = len(self._train)

    def model(self) -> nn.Module:
        """A new GPT over bytes."""
        o = self._options
        return GPT(256, o["n_layer"], o["n_head"], o["n_embd"], o["block"], o["dropout"])

    def batch(self, indices_B: Tensor) -> Tensor:
        """Windows [B, block + 1], int64."""
        return self._train.index_select(0, indices_B).long()

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean cross entropy per byte, in nats."""
        logits_BTV = model(batch[:, :-1])
        return cross_entropy(logits_BTV.flatten(0, 1), batch[:, 1:].flatten())

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Accuracy and loss of the next byte on a fixed sample of the held-out files."""
        windows = self._test.long()
        logits_BTV = model(windows[:, :-1])
        targets_BT = windows[:, 1:]
        return {
            "accuracy": float((logits_BTV.argmax(2) == targets_BT).float().mean()),
            "loss": float(cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())),
        }


def make_task(config: config.Config) -> Chars:
    """The text of this peer."""
    options = read_options(config.task, OPTIONS)
    for key in ("n_layer", "n_head", "n_embd", "block"):
        at_least(config.task, key, options[key], 1)
    if options["n_embd"] % options["n_head"]:
        raise ConfigError(f"task.options.n_embd = {options['n_embd']}: should be a multiple of n_head")
    if not 0 <= options["dropout"] < 1:
        raise ConfigError(f"task.options.dropout = {options['dropout']}: should be in [0, 1)")
    shared = options["shared"] or not config.task.data
    folder = Path(config.task.data or sysconfig.get_path("stdlib"))
    files = _files(folder, "" if config.task.data else ".py")
    held_out = [path for path in files if _is_held_out(path.relative_to(folder))]
    files = sorted(set(files) - set(held_out))
    if shared and files:
        _, labels = np.unique([path.relative_to(folder).parts[0] for path in files], return_inverse=True)
        seed = derive(config.swarm.seed, "chars", "partition")
        mine = shard(config.task, labels.astype(np.int64), len(config.peers), config.index, seed)
        files = [files[i] for i in mine]
    train, test = _read(files), _read(held_out)
    if not files or not held_out:  # too few files to hold any out: cut the text itself
        text = train + test
        cut = len(text) - len(text) // 10
        train, test = text[:cut], text[cut:]
    if min(len(train), len(test)) <= options["block"]:
        raise ConfigError(f"task.data = {str(folder)!r}: too little text for a block of {options['block']} bytes")
    return Chars(options, train, test, config.runtime.device)


def _files(folder: Path, suffix: str) -> list[Path]:
    """Text files below a folder, sorted; hidden ones, installed packages and tests of the standard library left out."""
    if not folder.is_dir():
        raise ConfigError(f"task.data = {str(folder)!r}: no such folder")
    skipped = {"site-packages", "dist-packages", "__pycache__"} | ({"test", "tests", "idlelib"} if suffix else set())
    found: list[Path] = []
    for here, folders, names in os.walk(folder):
        # In place: the walk goes on into what is left.
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        found += [Path(here, name) for name in names if name.endswith(suffix) and not name.startswith(".")]
    if not found:
        raise ConfigError(f"task.data = {str(folder)!r}: holds no files")
    return sorted(path for path in found if path.is_file())


def _is_held_out(path: Path) -> bool:
    return hashlib.blake2b(path.as_posix().encode(), digest_size=4).digest()[0] % 10 == 0


def _read(files: list[Path]) -> bytes:
    try:
        return END_OF_FILE.join(path.read_bytes() for path in files)
    except OSError as error:
        raise ConfigError(f"task.data: {error}") from None


def _windows(text: bytes, block: int) -> Tensor:
    """Every `block` bytes a window [block + 1], sharing memory with its neighbours."""
    return torch.from_numpy(np.frombuffer(bytearray(text), np.uint8)).unfold(0, block + 1, block)
