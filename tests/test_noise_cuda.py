"""The Triton form of the directions, on machines without a GPU: interpreted, and compiled ahead; and on one, run."""

import sys

import pytest
import torch

from murmurate.kernels import noise

from .golden_noise import check
from .triton_run import run


def test_interpreted_kernels_have_the_references_bits() -> None:
    run("triton_noise.py", "interpret", TRITON_INTERPRET="1")


def test_kernels_compile_without_fused_operations() -> None:
    run("triton_noise.py", "compile", TRITON_INTERPRET="0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_golden_vectors_on_the_gpu() -> None:
    check(noise, "cuda")


def test_without_triton_a_cuda_tensor_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "murmurate.kernels.noise.cuda", raising=False)
    with pytest.raises(RuntimeError, match="need the package triton"):
        __import__("murmurate.kernels.noise.cuda")
