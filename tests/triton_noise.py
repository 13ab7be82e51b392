"""Run by test_noise_cuda in a process of its own, for Triton decides at import whether it interprets or compiles.

`interpret`: the kernels' bits against the golden vectors and the reference, on CPU tensors in Triton's interpreter.
`compile`: machine code for two GPUs, without any; nothing in it may fuse or flush.
"""

import sys
from typing import Any

import golden_noise
import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from murmurate.kernels import noise
from murmurate.kernels.noise import cuda, reference


def interpret() -> None:
    golden_noise.check(cuda)
    for size, count, first_block, largest in [(1, 1, 0, 5), (33, 3, 9, 2**40), (noise.BLOCK + 5, 1030, 2**35 - 1, 9)]:
        draw = np.random.default_rng(size)
        directions = noise.Directions(
            draw.integers(0, 2**64, count, dtype=np.uint64), draw.integers(0, 2**64, count, dtype=np.uint64)
        )
        coefficients_K = draw.integers(-largest, largest, count, endpoint=True)
        signs = int(draw.integers(0, 2**64, dtype=np.uint64))
        weights_D = torch.from_numpy(draw.standard_normal(size, dtype=np.float32))
        sums_D = torch.from_numpy(draw.integers(-(2**40), 2**40, size))
        results: list[list[bytes]] = []
        for form in (reference, cuda):
            into_D, replayed_D, half_D = sums_D.clone(), weights_D.clone(), weights_D.half()
            form.accumulate(into_D, directions, coefficients_K, signs, first_block)
            form.replay(replayed_D, directions, coefficients_K, signs, -20, first_block)
            form.perturb(half_D, half_D, directions[0], 1e-2, signs, first_block)
            made: list[Any] = [into_D, replayed_D, half_D]
            for direction in (None, directions[0]):
                out_D = torch.empty_like(weights_D)
                form.materialise(out_D, weights_D, sums_D, -30, signs, direction, 1e-2, first_block)
                made.append(out_D)
            projected_K = form.project(weights_D, directions, signs, first_block)
            results.append([projected_K.tobytes(), *(tensor.numpy().tobytes() for tensor in made)])
        assert results[0] == results[1], [a == b for a, b in zip(*results, strict=True)]


RECORDS = {"keys": "*i64", "indices": "*i64", "coefficients": "*i32", "count": "i32", "signs": "*i64"}
ONE = {"keys": "*i64", "indices": "*i64", "signs": "*i64"}
PLACE = {"size": "i64", "first_block": "i64"}
SIGNATURES = {
    "accumulate_kernel": {"sums_D": "*i32", **PLACE, "slots": "*i32", **RECORDS},
    "replay_kernel": {"weights_D": "*fp32", **PLACE, "slots": "*i32", **RECORDS, "unit": "fp32"},
    "perturb_kernel": {"out_D": "*bf16", "weights_D": "*fp32", **PLACE, **ONE, "epsilon": "fp32"},
    "materialise_kernel": {
        "out_D": "*bf16",
        "base_D": "*fp32",
        "sums_D": "*i32",
        **PLACE,
        **ONE,
        "unit": "fp32",
        "epsilon": "fp32",
        "PERTURBED": "constexpr",
    },
    "project_kernel": {
        "totals_GK": "*fp64",
        "update_D": "*fp32",
        **PLACE,
        "first_group": "i32",
        "slots": "*fp32",
        "keys": "*i64",
        "indices": "*i64",
        "count": "i32",
        "signs": "*i64",
    },
}


def compile_ahead() -> None:
    for capability in (80, 90):
        for kernel in cuda.KERNELS:
            name = kernel.fn.__name__
            source = ASTSource(
                fn=kernel,
                signature=SIGNATURES[name],
                constexprs={"PERTURBED": True} if name == "materialise_kernel" else {},
            )
            compiled: Any = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=cuda.OPTIONS)
            text = compiled.asm["ptx"]
            assert len(compiled.asm["cubin"]) > 10_000, name
            assert "fma.rn.f32" not in text, name
            assert ".ftz" not in text, name


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_ahead}[sys.argv[1]]()
