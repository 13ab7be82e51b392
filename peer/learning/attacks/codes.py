"""Lies about scalars, for the exchange `seeds`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from murmurate.kernels import noise
from murmurate.peer import config

Codes = NDArray[np.uint8]


def distort_codes(attack: config.Attack, codes: Codes) -> Codes:
    """What this peer sends in place of the codes that it measured. What it did not measure stays void."""
    distorted = CODE_ATTACKS.get(attack.name, _honest)(codes, attack.scale)
    return np.where(codes == noise.VOID, codes, distorted).astype(np.uint8)


def _honest(codes: Codes, scale: float) -> Codes:
    del scale
    return codes


def _flipped(codes: Codes, scale: float) -> Codes:
    return noise.encode(noise.decode(codes) * -scale)


def _largest_flipped(codes: Codes, scale: float) -> Codes:
    del scale
    return noise.encode(np.sign(noise.decode(codes)) * -float(noise.CODE_MAX))


CODE_ATTACKS: dict[str, Callable[[Codes, float], Codes]] = {"sign_flip": _flipped, "max_flip": _largest_flipped}
"""Whoever poisons its data instead measures honestly."""
