"""What cannot be meant is refused before a kernel would read it wrongly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from murmurate.kernels import noise

D = noise.Directions(np.arange(3, dtype=np.uint64), np.arange(3, dtype=np.uint64))
C = np.array([5, -6, 7])
REAL: Any = C * 1.0
ONE = noise.Direction(2**64 - 1, 2**64 - 1)
F32, I32 = torch.zeros(10), torch.zeros(10, dtype=torch.int32)
INDICES = np.arange(3, dtype=np.uint64)
SIGNED: Any = np.arange(3)

REFUSED: list[tuple[str, Callable[[], object]]] = [
    ("int32 or int64, is float32", lambda: noise.accumulate(F32, D, C, 1)),
    ("float32, is float64", lambda: noise.replay(F32.double(), D, C, 1, -8)),
    (r"int64 \[3\], is int64 \[2\]", lambda: noise.accumulate(I32, D, C[:2], 1)),
    (r"int64 \[3\], is float64", lambda: noise.replay(F32, D, REAL, 1, -8)),
    ("below 2", lambda: noise.replay(F32, D, np.array([2**62, 0, 0]), 1, -8)),
    ("flat and contiguous", lambda: noise.perturb(F32[::2], F32[::2], ONE, 1.0, 1)),
    ("flat and contiguous", lambda: noise.project(torch.zeros(2, 5), D, 1)),
    ("9 entries on cpu, out_D has 10", lambda: noise.materialise(F32, F32[:9], I32, -8, 1)),
    ("sums_D: 9 entries", lambda: noise.materialise(F32, F32, I32[:9], -8, 1)),
    ("weights_D: 9 entries", lambda: noise.perturb(F32, F32[:9], ONE, 1.0, 1)),
    ("weights_D: should not require a gradient", lambda: noise.replay(F32.clone().requires_grad_(), D, C, 1, -8)),
    ("base_D: should not require a gradient", lambda: noise.materialise(F32, F32 + leaf(), I32, -8, 1)),
    ("unit_log2 = 1: ", lambda: noise.replay(F32, D, C, 1, 1)),
    ("unit_log2 = -101: ", lambda: noise.materialise(F32, F32, I32, -101, 1)),
    ("unit_log2 = 1: ", lambda: noise.to_grid(F32, 1)),
    ("64-bit key", lambda: noise.project(F32, D, -1)),
    ("first_block = -1", lambda: noise.perturb(F32, F32, ONE, 1.0, 1, first_block=-1)),
    ("epsilon = nan", lambda: noise.perturb(F32, F32, ONE, float("nan"), 1)),
    ("epsilon = -inf", lambda: noise.perturb(F32, F32, ONE, float("-inf"), 1)),
    ("epsilon = 1e\\+39", lambda: noise.perturb(F32, F32, ONE, 1e39, 1)),
    ("epsilon = inf", lambda: noise.materialise(F32, F32, I32, -8, 1, ONE, float("inf"))),
    ("key -1, index 0", lambda: noise.Direction(-1, 0)),
    ("key 0, index 18446744073709551616", lambda: noise.Direction(0, 2**64)),
    ("keys: should be uint64", lambda: noise.Directions(SIGNED, INDICES)),
    ("3 keys for 2 indices", lambda: noise.Directions(INDICES, INDICES[:2])),
    ("bound = 0", lambda: noise.draws(1, INDICES, 0)),
    ("bound = 18446744073709551616", lambda: noise.draws(1, INDICES, 2**64)),
    ("key = -1", lambda: noise.draws(-1, INDICES, 5)),
    ("indices_K: should be uint64, is int64", lambda: noise.draws(1, SIGNED, 5)),
    ("from 0 to 255, are int64 3 to 256", lambda: noise.decode([3, 256])),
    ("from 0 to 255, are int64 -1 to 3", lambda: noise.decode(np.array([3, -1]))),
    ("from 0 to 255, are float64 3.0 to 3.0", lambda: noise.decode(np.array([3.0]))),
]


def leaf() -> torch.Tensor:
    return torch.zeros(10, requires_grad=True)


@pytest.mark.parametrize(("message", "call"), REFUSED)
def test_what_cannot_be_meant_is_refused(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_largest_of_everything_is_taken() -> None:
    largest = float(np.finfo(np.float32).max)
    out_D = torch.zeros(10)
    noise.perturb(out_D, out_D, ONE, largest, 2**64 - 1, 2**48 - 1)
    assert (out_D.abs() == largest).all()
    sums_D = torch.full((10,), 2**62)
    for unit_log2 in (-100, 0):
        noise.materialise(out_D, torch.zeros(10), sums_D, unit_log2, 1)
        assert out_D.tolist() == [-(2.0 ** (62 + unit_log2))] * 10
    assert (noise.draws(2**64 - 1, INDICES, 1) == 0).all()
    assert noise.decode([]).tolist() == []


def test_directions_are_compared_by_identity() -> None:
    """Element by element there is no answer, and a hash of arrays raises."""
    other = noise.Directions(D.keys, D.indices)
    assert D == D
    assert other != D
    assert {D: 1, other: 2}[other] == 2
