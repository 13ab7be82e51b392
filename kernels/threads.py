"""Runs of a vector, spread over as many threads as torch has.

The threads are ours: numba's own pool is not safe to enter from two threads at once, and a daemon trains, evaluates
and mixes from several.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

RUNS_PER_THREAD = 4  # so that a thread that is held up leaves its work to the others; a guess

Run = Callable[[int, int], None]


def spread(run: Run, runs: Iterable[tuple[int, int]]) -> None:
    """Call `run(begin, end)` for each of `runs`, on torch's number of threads; this thread is one of them."""
    waiting = deque(runs)
    helpers = min(torch.get_num_threads(), len(waiting)) - 1

    def work() -> None:
        while True:
            try:
                begin, end = waiting.popleft()
            except IndexError:
                return
            run(begin, end)

    if helpers < 1:
        work()
        return
    with ThreadPoolExecutor(helpers) as pool:
        others = [pool.submit(work) for _ in range(helpers)]
        work()
        for other in others:
            other.result()
