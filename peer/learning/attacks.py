"""Lies for experiments: what a peer sends instead of its model or its scalars. It trains and mixes honestly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from murmurate.kernels import noise
from murmurate.peer import config

Codes = NDArray[np.uint8]


def distort(attack: config.Attack, flat_D: Tensor) -> Tensor:
    """What this peer sends in place of `flat_D`."""
    return ATTACKS[attack.name](flat_D, attack.scale)


def distort_codes(attack: config.Attack, codes: Codes) -> Codes:
    """What this peer sends in place of the codes that it measured. What it did not measure stays void."""
    return np.where(codes == noise.VOID, codes, CODE_ATTACKS[attack.name](codes, attack.scale)).astype(np.uint8)


def _none(flat_D: Tensor, scale: float) -> Tensor:
    del scale
    return flat_D


def _sign_flip(flat_D: Tensor, scale: float) -> Tensor:
    return flat_D * -scale


def _honest(codes: Codes, scale: float) -> Codes:
    del scale
    return codes


def _flipped(codes: Codes, scale: float) -> Codes:
    return noise.encode(noise.decode(codes) * -scale)


def _largest_flipped(codes: Codes, scale: float) -> Codes:
    del scale
    return noise.encode(np.sign(noise.decode(codes)) * -float(noise.CODE_MAX))


ATTACKS: dict[str, Callable[[Tensor, float], Tensor]] = {"none": _none, "sign_flip": _sign_flip}
CODE_ATTACKS: dict[str, Callable[[Codes, float], Codes]] = {
    "none": _honest,
    "sign_flip": _flipped,
    "max_flip": _largest_flipped,
}
