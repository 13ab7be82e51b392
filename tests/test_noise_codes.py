"""The one-byte scalar: every code, every halfway case."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmurate.kernels import noise


def magnitude(code: int) -> int:
    """By the definition in docs/noise.md."""
    exponent, mantissa = code >> 3 & 15, code & 7
    return mantissa if exponent == 0 else (8 + mantissa) << (exponent - 1)


def test_all_codes_decode_as_defined() -> None:
    expected = [-magnitude(code) if code & 0x80 else magnitude(code) for code in range(256)]
    assert noise.decode(np.arange(256)).tolist() == expected
    assert noise.decode(bytes(range(256))).tolist() == expected
    assert noise.decode([noise.VOID]).tolist() == [0]
    assert max(expected) == noise.CODE_MAX == 245_760


def test_all_codes_come_back() -> None:
    codes = np.array([code for code in range(256) if code != noise.VOID], dtype=np.uint8)
    assert noise.encode(noise.decode(codes)).tolist() == codes.tolist()


def test_magnitudes_rise() -> None:
    assert (np.diff(noise.decode(np.arange(128))) > 0).all()


def test_halfway_goes_to_the_even_code() -> None:
    for code in range(127):
        middle = (magnitude(code) + magnitude(code + 1)) / 2
        even = code + code % 2
        signed = even | 0x80 if even else 0
        values = [middle, np.nextafter(middle, 0), np.nextafter(middle, 1e9), -middle]
        assert noise.encode(values).tolist() == [even, code, code + 1, signed]


@given(st.floats(width=64))
def test_encode_takes_the_nearest(value: float) -> None:
    code = int(noise.encode([value])[0])
    if value != value:
        assert code == noise.VOID
        return
    clipped = Fraction(max(-noise.CODE_MAX, min(noise.CODE_MAX, value)))
    nearest = min(abs(magnitude(other) - abs(clipped)) for other in range(128))
    assert code != noise.VOID
    assert abs(int(noise.decode([code])[0]) - clipped) == nearest


@pytest.mark.parametrize("value", [0.0, -0.0, 0.5, -0.5, 1e-300, -1e-300])
def test_what_rounds_to_zero_is_code_zero(value: float) -> None:
    assert noise.encode([value]).tolist() == [0]


def test_infinities_are_clipped() -> None:
    assert noise.encode([np.inf, -np.inf, 1e9]).tolist() == [0x7F, 0xFF, 0x7F]
