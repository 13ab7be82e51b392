"""The learning rate of a round, as a pure function of the configuration."""

from __future__ import annotations

import math

from murmurate.peer.config import Config


def lr_of(config: Config, round: int) -> float:
    """local.lr as `local.schedule` has it in this round (from 1): from the whole towards 0, never beyond."""
    local = config.local
    if local.schedule == "constant":
        return local.lr
    done = min(1.0, (round - 1) / (local.schedule_rounds or config.rounds.max))
    return local.lr * (1 - done) if local.schedule == "linear" else local.lr * (1 + math.cos(math.pi * done)) / 2
