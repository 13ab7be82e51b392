"""Set up a process for training, and make the trainer that a configuration describes."""

from __future__ import annotations

import torch

from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError
from murmurate.peer.learning.attacks import Board, task_of
from murmurate.peer.learning.mixing import make_mixer

from .audits import AuditedTrainer
from .trainer import TorchTrainer


def prepare(config: Config) -> None:
    """Once per process, before any other use of torch: threads, device. Raises ConfigError for an unusable device."""
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    try:
        torch.empty(1, device=config.runtime.device).add_(1)
    except Exception as error:  # every backend has its own way to say no
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"runtime.device = {config.runtime.device!r}: cannot be used here: {first_line}") from None


def make_trainer(config: Config, degree_min: int, board: Board | None = None) -> TorchTrainer:
    """The trainer of the configuration, on a graph where no peer has fewer than `degree_min` neighbours.

    `board`: what an omniscient liar looks at, in simulations. Raises ConfigError for what cannot work together.
    """
    kind = AuditedTrainer if config.audit.rate else TorchTrainer
    trainer = kind(config, task_of(config), make_mixer(config.mixing, degree_min), board)
    trainer.warm_up(degree_min)
    return trainer
