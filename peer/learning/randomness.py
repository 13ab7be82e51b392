"""Every random choice is a pure function of named integers, so no generator's state is ever saved or shared."""

from __future__ import annotations

import hashlib

import torch


def derive(*parts: int | str) -> int:
    """A seed in [0, 2**63) from what the choice depends on, e.g. `derive(swarm_seed, "order", peer, number)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's global generator for a model on `device`."""
    # torch.manual_seed looks for every backend, which costs more than half a small step (measured: 200 us).
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
