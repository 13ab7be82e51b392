"""The machine code that numba keeps on disk."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest
from numba.core import config

from murmurate.kernels.compiled import Kept
from murmurate.kernels.noise import loops

# No file may grow beyond 0 bytes, as on a full disk: writing raises OSError.
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
import numpy as np
from murmurate.kernels.noise import loops
bits = np.zeros(1024, np.uint32)
loops.draw_signs(bits, np.uint64(5), 3)
print(int(bits[:4].sum()))
"""


def test_a_full_disk_stops_no_kernel(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    room = FULL.replace("(0, ", "(resource.RLIM_INFINITY, ")
    assert printed(FULL, tmp_path / "full") == printed(room, tmp_path / "room") != ""
    assert not list((tmp_path / "full").rglob("*.nb?")), "something was left behind"
    assert list((tmp_path / "room").rglob("*.nbi")), "nothing is kept where there is room"


def printed(script: str, kept: Path) -> str:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(kept)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_index_without_its_code_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it could name code that an earlier version left under the same name."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    function: Any = loops.place_of
    compiled: Any = numba.njit(function.py_func)
    compiled(5)
    (made,) = compiled.overloads.values()
    kept: Any = Kept(function.py_func)
    kept.save_overload(made.signature, made)
    assert [path.suffix for path in sorted(tmp_path.rglob("*.nb?"))] == [".nbc", ".nbi"]

    def full(_: str, __: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(kept._cache_file, "_save_data", full)
    kept.save_overload(made.signature, made)
    assert not list(tmp_path.rglob("*.nbi"))


def test_code_that_cannot_be_read_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    function: Any = loops.place_of
    kept: Any = Kept(function.py_func)
    index = Path(kept.cache_path) / f"{kept._impl.filename_base}.nbi"
    index.mkdir()
    compiled: Any = numba.njit(function.py_func)
    compiled._cache = kept
    assert compiled(33) == function(33)


def test_the_tests_keep_code_by_what_it_is_made_of() -> None:
    """A change of the vector instructions must not meet the machine code of before."""
    function: Any = loops.philox
    assert Path(function.stats.cache_path).is_relative_to(os.environ["NUMBA_CACHE_DIR"])
