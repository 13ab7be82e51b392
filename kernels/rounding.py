"""Rounding in Triton kernels."""

# Triton's language is compiled from the source, not run: its values have no Python types.
# pyright: basic, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32, or what has that type already, to `dtype`: to nearest, ties to even.

    bfloat16 by hand: the interpreter would cut the bits off.
    """
    if dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        nearest = bits + 0x7FFF + ((bits >> 16) & 1)
        quiet = bits | 0x400000  # or a NaN whose upper bits are 0 would become infinite
        return (tl.where(x == x, nearest, quiet) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)
