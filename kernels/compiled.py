"""numba as the kernels use it: no fast-math, so every float operation is one that is written; code kept on disk.

numba keeps machine code by the date of the file with the loops: who changes something in a module that such a file
imports touches that file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache


class Kept(FunctionCache):
    """numba's machine code on disk. Where that fails, as on a full disk, the next process compiles again."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What is kept for these types, or None."""
        try:
            return super().load_overload(sig, target_context)
        except OSError:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep it, if possible."""
        try:
            super().save_overload(sig, data)
        except OSError:
            # numba writes the index first: without the code beside it, it may name code of an earlier version.
            with contextlib.suppress(OSError):
                Path(self.cache_path, f"{self._impl.filename_base}.nbi").unlink()


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first call, without the interpreter's lock; keep the machine code on disk where there is a place."""
    compiled: Any = njit(nogil=True)(function)
    with contextlib.suppress(RuntimeError):  # neither the package's folder nor the user's cache can be written
        compiled._cache = Kept(function)  # njit(cache=True) sets it to one that an OSError stops
    return compiled
