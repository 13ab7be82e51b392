"""What every test can rely on: our packages do not shadow others, torch keeps to one thread, no example is timed."""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# `python -m pytest` puts the checkout on sys.path, where ./proto and ./kernels would answer to other packages' names.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

# Read by torch when it is first imported, and inherited by the daemons that tests start: tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Read by numba when it is first imported. It keeps machine code by the date of the file with the loops alone, and would
# run old code after a change of the vector instructions or constants that they are made of.
SOURCES = b"".join(path.read_bytes() for path in sorted((ROOT / "kernels").rglob("*.py")))
KEPT = Path(tempfile.gettempdir()) / f"murmurate-numba-{hashlib.sha256(SOURCES).hexdigest()}"
os.environ.setdefault("NUMBA_CACHE_DIR", str(KEPT))

# No deadline: a busy machine is not a bug. Elsewhere than in CI each run draws new examples, and keeps those that fail.
settings.register_profile("murmurate", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("murmurate")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
