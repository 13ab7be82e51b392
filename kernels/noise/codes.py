"""The scalar of a record in one byte: a sign and a 7-bit logarithm, decoded to an integer through a fixed table.

bit 7 is the sign; bits 6..3 are the exponent e, bits 2..0 the mantissa m. The magnitude is m if e is 0, else
(8 + m) << (e - 1): every integer up to 16, then eight steps per octave, up to 15 << 14. From 8 on a step is at most
1/8 of the magnitude, so rounding moves a scalar by at most 1/16 of itself; below, by at most 1/2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

VOID = 0x80  # "no record": negative zero is free, for the code of zero is 0x00
SIGN = 0x80


def _magnitudes() -> NDArray[np.int32]:
    code = np.arange(128, dtype=np.int32)
    exponent, mantissa = code >> 3, code & 7
    return np.where(exponent == 0, mantissa, (8 + mantissa) << np.maximum(exponent - 1, 0)).astype(np.int32)


MAGNITUDES = _magnitudes()
CODE_MAX = int(MAGNITUDES[-1])  # 245,760: nothing larger can be said in one record
DECODE = np.concatenate([MAGNITUDES, -MAGNITUDES])  # by code; VOID decodes to 0
_MIDDLES = (MAGNITUDES[:-1] + MAGNITUDES[1:]) / 2


def encode(values: ArrayLike) -> NDArray[np.uint8]:
    """Real numbers of any shape to the codes nearest to them.

    Halfway cases go to the even code, what is beyond the table to its end, what rounds to zero to 0x00, NaN to VOID.
    """
    real = np.asarray(values, dtype=np.float64)
    size = np.abs(real)
    below = np.searchsorted(_MIDDLES, size, side="left")
    # searchsorted leaves a halfway case at the lower code; if that one is odd, the even one is above.
    halfway = (below < len(_MIDDLES)) & (size == _MIDDLES[np.minimum(below, len(_MIDDLES) - 1)])
    code = below + (halfway & (below % 2 == 1))
    code = np.where((real < 0) & (code > 0), code | SIGN, code)
    return np.where(np.isnan(real), VOID, code).astype(np.uint8)


def decode(codes: ArrayLike | bytes) -> NDArray[np.int32]:
    """Codes (bytes, or integers 0..255 of any shape) to integers; VOID to 0: check for it where it matters.

    Raises ValueError for what is no byte.
    """
    code = np.frombuffer(codes, dtype=np.uint8) if isinstance(codes, bytes) else np.asarray(codes)
    if code.dtype != np.uint8 and code.size and (code.dtype.kind not in "iu" or code.min() < 0 or code.max() > 255):
        raise ValueError(f"codes: should be integers from 0 to 255, are {code.dtype} {code.min()} to {code.max()}")
    return DECODE[code.astype(np.uint8, copy=False)]
