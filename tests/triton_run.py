"""Triton scripts in a process of their own: whether kernels are interpreted is decided at their import."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def run(script: str, what: str, **environment: str) -> None:
    """`script`: a file beside this one; `what`: its argument."""
    if find_spec("triton") is None:
        pytest.skip("Triton is only made for Linux on x86-64")
    paths = os.pathsep.join(filter(None, (str(HERE), str(HERE.parent / ".src"), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(HERE / script), what],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
