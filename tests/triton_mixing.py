"""Run by test_mixing_cuda in a process of its own, for Triton decides at import whether it interprets or compiles.

`interpret`: the kernels in Triton's interpreter, on CPU tensors, against the reference.
`compile`: machine code for two GPUs, without any, of exactly what the operations launch.
"""

# Triton's launches have no Python types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mixing_checks
import numpy as np
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from murmurate.kernels.mixing import cuda, programs

SHARED_MAX = 99 * 1024  # bytes of shared memory that a program may have on every card from sm_80 on
FAR = 2**30 + 7  # parameters, of which the third row begins beyond 2^31


def interpret() -> None:
    warnings.simplefilter("ignore")  # numpy's, of what is not finite
    mixing_checks.check(cuda, "cpu")
    every_narrow_number()
    far_rows()


def every_narrow_number() -> None:
    """Read and written as what it is, NaN with its sign."""
    for dtype in (torch.float16, torch.bfloat16):
        every_D = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        read_D = cuda.ranks(every_D, torch.empty((0, len(every_D)), dtype=dtype), 0, 1)
        assert torch.equal(read_D.isnan(), every_D.isnan())
        assert torch.equal(read_D.nan_to_num(nan=0.0), every_D.nan_to_num(nan=0.0))
        nans_D = torch.full((64,), torch.nan, dtype=dtype)
        for row_D, first in ((nans_D.copysign(-torch.ones_like(nans_D)), 1), (nans_D, 0)):
            ones_KD = torch.ones_like(nans_D)[None]
            assert torch.equal(cuda.ranks(row_D, ones_KD, first, first + 1), ones_KD[0]), dtype
    wide_D = torch.randn(4096)
    for dtype in (torch.float16, torch.bfloat16):
        rounded_D = cuda.combine(wide_D.to(dtype), wide_D.to(dtype)[None], 1 / 3, [1 / 7])
        third, seventh = torch.tensor([1 / 3, 1 / 7])
        exact_D = wide_D.to(dtype).float() * third + wide_D.to(dtype).float() * seventh
        assert torch.equal(rounded_D, exact_D.to(dtype)), dtype


def far_rows() -> None:
    """Places in rows beyond 2^31, in a file with holes: one program of each kernel reads the third row's beginning."""
    tile = 128
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rows")
        codes = torch.from_file(path, shared=True, size=3 * FAR, dtype=torch.int8)
        codes[2 * FAR : 2 * FAR + tile] = torch.arange(tile, dtype=torch.int8)
        mine_D, out_D = torch.zeros(tile), torch.zeros(tile)
        third, shares = torch.tensor([2]), torch.ones(2)
        programs.combine_kernel[(1,)](out_D, mine_D, codes, shares, FAR, third, shares, 1, tl.float32, 0, tile)
        assert torch.equal(out_D, torch.arange(float(tile)))
        parts_KP = torch.zeros(3)
        programs.squares_kernel[(1,)](parts_KP, mine_D, codes, shares, FAR, 3, tl.float32, tl.float32, 0, tile)
        assert parts_KP.tolist() == [0, 0, sum(k * k for k in range(tile))]
        parts_IJP = torch.zeros(256, dtype=torch.float64)
        kinds = (True, tl.float32, tl.float32, 16, tile, 1)
        programs.gram_kernel[(1,)](parts_IJP, mine_D, codes, FAR, 3, 0, 0, 1, *kinds)
        assert parts_IJP.view(16, 16)[2, 2] == sum(k * k for k in range(tile))
        # Of 3 sorted values of which two are 0, the greatest; once as they are, once mixed.
        ends, columns = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([3])
        kinds = (0, tl.float32, tl.int32, tile)
        none = torch.zeros(1)
        network = (0, 1, 1, 2, 0, 1, 2, 3, 1, 2, 0, 1)
        programs.places_kernel[(1,)](out_D, mine_D, codes, FAR, none, none, none, False, network, 4, 3, 4, *kinds)
        assert torch.equal(out_D, torch.arange(float(tile)))
        programs.places_kernel[(1,)](out_D, mine_D, codes, FAR, ends, columns, shares, True, (), 1, 0, 1, *kinds)
        assert torch.equal(out_D, torch.arange(float(tile)))
        del codes


class Target:
    """A GPU to compile for, as Triton's launcher sees it; nothing is launched."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # what was compiled is kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def operations(K: int, dtype: torch.dtype) -> list[Callable[[], object]]:
    """All that is launched for so many rows of a type."""
    mine_D, theirs_KD = torch.zeros(1000, dtype=dtype), torch.zeros((K, 1000), dtype=dtype)
    codes_KD, scales_KB = mixing_checks.quantised(K, 1000, 64, "cpu")
    matrix_MN = mixing_checks.matrix(K + 1, K + 1)
    return [
        lambda: cuda.combine(mine_D, theirs_KD, 0.5, [0.1] * K),
        lambda: cuda.squares(mine_D, theirs_KD),
        lambda: cuda.gram(mine_D, theirs_KD),
        lambda: cuda.ranks(mine_D, theirs_KD, K // 4, K + 1 - K // 4),
        lambda: cuda.ranks(mine_D, theirs_KD, 0, 1, matrix_MN),
        lambda: cuda.around(mine_D, theirs_KD, K // 2, K // 2 + 1, K),
        lambda: cuda.combine_quantised(mine_D, codes_KD, scales_KB, 64, 0.5, [0.1] * K),
        lambda: cuda.squares_quantised(mine_D, codes_KD, scales_KB, 64),
    ]


LAUNCHED = [
    (80, 16, torch.float32),
    (90, 16, torch.float32),
    (80, 3, torch.float64),
    (90, 3, torch.float64),
    (80, 2, torch.bfloat16),
    (90, 2, torch.float16),
]


def compile_ahead() -> None:
    made: list[Any] = []
    run = JITFunction.run

    def only_compiled(self: Any, *arguments: Any, **options: Any) -> Any:
        made.append(run(self, *arguments, **{**options, "warmup": True}))
        return made[-1]

    infinite = patch.object(np, "isfinite", return_value=np.array(False))  # so that sums are made in float64 too
    with patch.object(JITFunction, "run", only_compiled), infinite:
        for capability, K, dtype in LAUNCHED:
            triton.runtime.driver.set_active(Target(capability))
            for operation in operations(K, dtype):
                operation()
        largest_gram()
        largest_network()
    assert {kernel.metadata.name for kernel in made} == KERNELS
    for kernel in made:
        check_code(kernel)


def largest_gram() -> None:
    """66 rows: two blocks of rows with each other."""
    cuda.gram(torch.zeros(9), torch.zeros(66, 9))


def largest_network() -> None:
    cuda.ranks(torch.zeros(9), torch.zeros(32, 9), 16, 17)


KERNELS = {name for name in vars(programs) if name.endswith("_kernel")}


def check_code(kernel: Any) -> None:
    name, target, code = kernel.metadata.name, kernel.metadata.target, kernel.asm["ptx"]
    about = f"{name} for {target}"
    assert f".target sm_{target.arch}" in code, about
    assert len(kernel.asm["cubin"]) > 5000, about
    assert kernel.metadata.shared <= SHARED_MAX, f"{about}: {kernel.metadata.shared} bytes"
    assert "tf32" not in code, about
    assert ".ftz" not in code, about
    assert "atom" not in code, about
    assert "div.approx" not in code, about
    assert "div.full" not in code, about
    if name != "gram_kernel":
        assert "fma.rn" not in code, about


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_ahead}[sys.argv[1]]()
