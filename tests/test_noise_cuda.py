"""The Triton form of the directions, on machines without a GPU: interpreted, and compiled ahead; and on one, run."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from murmurate.kernels import noise

from .golden_noise import check

HERE = Path(__file__).resolve().parent


def run(what: str, **environment: str) -> None:
    if find_spec("triton") is None:
        pytest.skip("Triton is only made for Linux on x86-64")
    paths = os.pathsep.join(filter(None, (str(HERE), str(HERE.parent / ".src"), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(HERE / "triton_noise.py"), what],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_interpreted_kernels_have_the_references_bits() -> None:
    run("interpret", TRITON_INTERPRET="1")


def test_kernels_compile_without_fused_operations() -> None:
    run("compile", TRITON_INTERPRET="0")


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
