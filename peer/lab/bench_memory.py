"""Peak memory of a step of the `seeds` exchange beside that of inference: each in a fresh process of its own.

    inference   one forward pass of a batch by the same program, nothing else
    exact       a whole round: probes, codes, fold; beside the weights it keeps the base weights and one integer each
    lean        the same without those two

The bound of `exact` is what inference takes and 4 + 4 bytes per parameter; that of `lean` is what inference takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from murmurate.kernels import noise
from murmurate.kernels.noise import yardsticks
from murmurate.peer.config import Config, parse
from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.events import Fold
from murmurate.peer.protocol.records import Batch

MODES = ("inference", "exact", "lean")
STEPS = 2
BATCH = 16


def measure_memory() -> dict[str, float]:
    """Peaks in bytes, and their shares of what they should be. Linux only."""
    found = {mode: _in_a_process(mode) for mode in MODES}
    inference, parameters = found["inference"]["peak_bytes"], found["inference"]["parameters"]
    return {
        "parameters": parameters,
        **{f"{mode}_peak_bytes": found[mode]["peak_bytes"] for mode in MODES},
        "exact_share_of_bound": found["exact"]["peak_bytes"] / (inference + 8 * parameters),
        "lean_share_of_bound": found["lean"]["peak_bytes"] / inference,
    }


def _in_a_process(mode: str) -> dict[str, int]:
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="murmurate-bench-") as folder:
        target = Path(folder) / "found.json"
        command = [sys.executable, "-m", "murmurate.peer.lab.bench_memory", mode, str(target)]
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        if done.returncode:
            raise LocalError(f"bench memory {mode} ended with code {done.returncode}:\n{done.stderr.decode()[-2000:]}")
        return json.loads(target.read_text(encoding="utf-8"))


def _config(mode: str) -> Config:
    # A grid that holds the encoder's weights, for lean; exact does not mind.
    seeds = {"memory": "lean" if mode == "lean" else "exact", "unit_log2": -20}
    return parse(
        {
            "name": "a",
            "peers": {"a": "127.0.0.1:0"},
            "task": {"name": "docstrings"},
            "local": {"steps": STEPS, "batch_size": BATCH, "lr": 1e-5},
            "exchange": {"name": "seeds"},
            "seeds": seeds,
            "rounds": {"eval_every": 0},
            "runtime": {"threads": 1},
        }
    )


def _run(mode: str) -> dict[str, int]:
    from murmurate.peer.learning.make import prepare

    config = _config(mode)
    prepare(config)
    return _inference(config) if mode == "inference" else _step(config)


def _inference(config: Config) -> dict[str, int]:
    # The compiler of the kernels takes 60 MB in whichever of the three: it is the program's, not the step's.
    some_D = yardsticks.model(1)
    noise.perturb(some_D, some_D, yardsticks.direction(), 1.0, 0)
    from murmurate.peer.learning.evaluation import first_loss
    from murmurate.peer.learning.tasks import make_task

    task = make_task(config)
    module = task.model()
    _forget_peak()
    first_loss(task, module, BATCH)
    return {"peak_bytes": _peak(), "parameters": sum(value.numel() for value in module.parameters())}


def _step(config: Config) -> dict[str, int]:
    from .together import begin, origin_of

    (prober,) = begin([config])
    _forget_peak()
    codes = bytes(prober.train(1).payload)
    prober.fold(Fold(1, (Batch(origin_of("a"), 1, 1, codes, b""),), ()))
    return {"peak_bytes": _peak(), "parameters": 0}


def _forget_peak() -> None:
    """From now on the peak is counted anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(_run(sys.argv[1])), encoding="utf-8")
