"""Virtual time: one heap of calls to come, and a running digest of what happened. Equal times keep their order."""

from __future__ import annotations

import hashlib
import heapq
import struct
from collections.abc import Callable
from typing import Any

# Hash in large pieces: a call of hashlib for every record of some thirty bytes would cost more than the hashing.
TRACE_BYTES = 1 << 16

record = struct.Struct("<dhBqq").pack
"""One event: when, of which peer, which kind, and the two numbers that matter most in it."""


class Schedule:
    """What will happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self.over = False
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call `call(*arguments)` in `delay_s` virtual seconds."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, call, arguments))

    def run(self, until: float) -> None:
        """Make everything happen up to and including `until`, or until `over`."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until and not self.over:
            self.now, _, call, arguments = pop(heap)
            self.events += 1
            call(*arguments)
        if not self.over:
            self.now = until


class Trace:
    """SHA-256 over every event and effect in order: two runs with one digest went the same way.

    Whoever notes something appends to `bytes`, an event as a `record`: this is the busiest place of a run.
    """

    def __init__(self) -> None:
        self.bytes = bytearray()
        self._hash = hashlib.sha256()

    def flush(self) -> None:
        """Hash what has gathered, when it is worth a call."""
        if len(self.bytes) > TRACE_BYTES:
            self._flush()

    def digest(self) -> str:
        """Of everything noted so far, in hexadecimal."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        self._hash.update(self.bytes)
        self.bytes.clear()
