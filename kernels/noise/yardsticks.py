"""What replay is measured against: the way of MeZO's published code, and one pass over the weights."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .directions import Direction, Directions

TENSOR = 1_000_000  # parameters per call of the generator: MeZO draws tensor by tensor


def model(size: int, device: str = "cpu") -> Tensor:
    """Some weights, float32 [size]."""
    return torch.full((size,), 0.01, device=device)


def history(records: int) -> tuple[Directions, NDArray[np.int64]]:
    """Records of one origin with scalars of the size that training sends: codes up to 127."""
    draw = np.random.default_rng(0)
    coefficients_K = draw.integers(1, 128, records) * draw.choice([-1, 1], records)
    return Directions.of_key(7, np.arange(records, dtype=np.uint64)), coefficients_K


def direction() -> Direction:
    """One of them."""
    return Direction(7, 0)


def mezo_step(weights_D: Tensor, seed: int) -> None:
    """One record the way of MeZO (Malladi et al. 2023): seed torch's generator, draw normal numbers, add them."""
    generator = torch.Generator(weights_D.device).manual_seed(seed)
    for tensor in weights_D.split(TENSOR):
        z = torch.normal(0.0, 1.0, tensor.shape, generator=generator, device=tensor.device)
        tensor.add_(z, alpha=-1e-9)


def pass_in_place(weights_D: Tensor) -> None:
    """Read and write every weight once: what no update of all weights can beat."""
    weights_D.mul_(1.0)


def seconds(call: Callable[[], object], device: str = "cpu") -> float:
    """Wall time of one call, the device's queue included."""
    _settle(device)
    began = time.perf_counter()
    call()
    _settle(device)
    return time.perf_counter() - began


def _settle(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def kind_and_threads(name: str) -> tuple[str, int]:
    """(the kind of the device of this name, torch's threads); "auto" is CUDA if there is one, else the CPU."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    return kind, torch.get_num_threads()


def empty_sums(size: int, device: str = "cpu") -> Tensor:
    """int32 zeros [size]."""
    return torch.zeros(size, dtype=torch.int32, device=device)
