"""Run by test_noise_cuda in a process of its own, for Triton decides at import whether it interprets or compiles.

`interpret`: the kernels' bits against the golden vectors and the reference, on CPU tensors in Triton's interpreter.
`compile`: machine code for two GPUs, without any; nothing in it may fuse or flush.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import golden_noise
import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from murmurate.kernels import noise
from murmurate.kernels.noise import cuda, reference


class Case:
    """Random arguments: a vector of `size` entries from `first_block` on, and `count` directions."""

    def __init__(self, size: int, count: int, first_block: int, largest: int = 9) -> None:
        draw = np.random.default_rng(size)
        self.directions = noise.Directions(
            draw.integers(0, 2**64, count, dtype=np.uint64), draw.integers(0, 2**64, count, dtype=np.uint64)
        )
        self.coefficients_K = draw.integers(-largest, largest, count, endpoint=True)
        self.signs = int(draw.integers(0, 2**64, dtype=np.uint64))
        self.weights_D = torch.from_numpy(draw.standard_normal(size, dtype=np.float32))
        self.sums_D = torch.from_numpy(draw.integers(-(2**40), 2**40, size))
        self.first_block = first_block

    def transformed(self, form: Any) -> list[bytes]:
        """What `form` makes of it where there is a transform."""
        sums_D, weights_D = self.sums_D.clone(), self.weights_D.clone()
        form.accumulate(sums_D, self.directions, self.coefficients_K, self.signs, self.first_block)
        form.replay(weights_D, self.directions, self.coefficients_K, self.signs, -20, self.first_block)
        return [sums_D.numpy().tobytes(), weights_D.numpy().tobytes(), self.projected(form)]

    def projected(self, form: Any) -> bytes:
        """The projections."""
        return form.project(self.weights_D, self.directions, self.signs, self.first_block).tobytes()

    def moved(self, form: Any) -> list[bytes]:
        """What `form` makes of it where there is none."""
        half_D = self.weights_D.half()
        form.perturb(half_D, half_D, self.directions[0], 1e-2, self.signs, self.first_block)
        made = [half_D]
        for direction in (None, self.directions[0]):
            out_D = torch.empty_like(self.weights_D)
            form.materialise(out_D, self.weights_D, self.sums_D, -30, self.signs, direction, 1e-2, self.first_block)
            made.append(out_D)
        return [tensor.numpy().tobytes() for tensor in made]


CASES = [  # size, directions, first block, largest coefficient
    (1, 1, 0, 5),
    (33, 3, 9, 2**40),
    (noise.BLOCK + 5, 1030, 2**35 - 1, 9),
    (noise.BLOCK + 1, 2, 65_536, 9),  # from here on a place no longer fits into 31 bits
    (5, 2, 70_003, 9),
]


def interpret() -> None:
    golden_noise.check(cuda)
    for arguments in CASES:
        case = Case(*arguments)
        assert case.transformed(cuda) == case.transformed(reference), arguments
        assert case.moved(cuda) == case.moved(reference), arguments
    many = Case(noise.BLOCK * 17 + 5, 2, 9)  # three groups of blocks, two processors: two launches
    assert many.projected(cuda) == many.projected(reference)
    through_host()
    count_blocks()


def through_host() -> None:
    """The bits are the same where a card has no room for a transform: in pieces, of which the last one is cut."""
    case, pieces = Case(noise.BLOCK * 5 + 7, 3, 5), list[int]()

    def counted(vector_D: Tensor, first_block: int, update: Callable[[Tensor, int], None]) -> None:
        def one(piece_D: Tensor, at: int) -> None:
            pieces.append(at)
            update(piece_D, at)

        through(vector_D, first_block, one)

    through = cuda._through_host  # pyright: ignore[reportPrivateUsage]: counted
    with (
        patch.object(cuda, "_fits", return_value=False),
        patch.object(cuda, "HOST_PIECE", 2 * noise.BLOCK),
        patch.object(cuda, "_through_host", counted),
    ):
        assert case.transformed(cuda) == case.transformed(reference)
    assert pieces == 2 * [5, 7, 9]


blocks_of = cuda.blocks_of


@triton.jit
def count_kernel(out: Any, size: Any) -> None:
    """As the kernels count the blocks of a vector."""
    tl.store(out, blocks_of(size))


def count_blocks() -> None:
    """A size that fits into 31 bits, as Triton then passes it, and would not with a block more."""
    for size in (2**31 - noise.BLOCK, 2**31 - noise.BLOCK + 1, 2**31 - 1):
        found = torch.zeros(1, dtype=torch.int64)
        count_kernel[(1,)](found, size)
        assert found.item() == -(-size // noise.BLOCK), size


RECORDS = {"keys": "*i64", "indices": "*i64", "coefficients": "*i32", "count": "i32", "signs": "*i64"}
ONE = {"keys": "*i64", "indices": "*i64", "signs": "*i64"}
Row = tuple[Any, dict[str, str], dict[str, bool]]


def rows(size: str, first: str) -> Iterator[Row]:
    """(kernel, types of its arguments, constants) of all that is launched. Triton gives an integer, as the `size` and
    the `first` block and group, 32 bits if it fits, and makes a constant of 1.
    """
    place = {"size": size, "first_block": first, "first_group": first}
    for into, replayed in (("*i32", False), ("*i64", False), ("*fp32", True)):
        types = {"into_D": into, **place, "slots": "*i32", **RECORDS, "unit": "fp32", "REPLAYED": "constexpr"}
        yield cuda.records_kernel, types, {"REPLAYED": replayed}
    types = {"totals_GK": "*fp64", "update_D": "*fp32", **place, "slots": "*fp32"}
    yield cuda.project_kernel, {**types, **RECORDS}, {}
    for out, weights in (("*bf16", "*fp32"), ("*fp16", "*fp32"), ("*fp32", "*bf16")):
        floats = {"out_D": out, "weights_D": weights}
        yield cuda.perturb_kernel, {**floats, **place, **ONE, "epsilon": "fp32"}, {}
    scalars = {"unit": "fp32", "epsilon": "fp32", "PERTURBED": "constexpr"}
    for out, sums, perturbed in (("*bf16", "*i32", True), ("*fp16", "*i64", True), ("*fp32", "*i64", False)):
        types = {"out_D": out, "base_D": "*fp32", "sums_D": sums, **place, **ONE, **scalars}
        yield cuda.materialise_kernel, types, {"PERTURBED": perturbed}


def compile_ahead() -> None:
    """Each kernel and type once; the two GPUs differ in nothing that a type decides."""
    compiled = 0
    first_of = {row[0]: row for row in reversed(list(rows("i64", "constexpr")))}
    for capability, some in ((80, rows("i32", "i32")), (90, rows("i64", "i64")), (90, first_of.values())):
        for kernel, types, constants in some:
            signature = {name: types[name] for name in kernel.arg_names}
            fixed = {name: constants.get(name, 1) for name, kind in signature.items() if kind == "constexpr"}
            source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
            target = GPUTarget("cuda", capability, 32)
            made: Any = triton.compile(source, target=target, options=cuda.LAUNCHED[kernel])
            about = f"{kernel.fn.__name__} for {target}: {signature}"
            assert made.metadata.num_warps == cuda.LAUNCHED[kernel].get("num_warps", 4), about
            assert made.metadata.shared <= cuda.TRANSFORM_BYTES, f"{about}: {made.metadata.shared} bytes"
            assert len(made.asm["cubin"]) > 10_000, about
            assert "fma.rn.f32" not in made.asm["ptx"], about
            assert ".ftz" not in made.asm["ptx"], about
            compiled += 1
    assert compiled == 24, "a kernel was left out"


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_ahead}[sys.argv[1]]()
