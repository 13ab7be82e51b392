"""What the machine's limit is and how near we come: every figure is a ratio to a peer of it measured in the same run.

Each repetition measures both sides one after the other, so that a machine whose speed drifts drifts under both.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from murmurate.peer.build import build_neighbourhood, build_topology, degree_min
from murmurate.peer.config import Config
from murmurate.peer.protocol.events import Mix, PeerId, Turn
from murmurate.peer.protocol.seams import Trainer

from .bench_directions import COURSES, measure_directions
from .bench_liars import measure_liars
from .bench_link import measure_link
from .bench_memory import measure_memory
from .bench_mixing import measure_mixing
from .bench_replay import measure_replay
from .bench_traffic import RACES, measure_traffic
from .cohort import Cohort, loopback_configs

PEERS = 8
WARM_UP = 20  # rounds not counted: links come up, caches and clocks settle
ROUNDS = 220
LINK_BYTES = 100_000_000
DIGITS_ROUNDS: dict[str, Any] = {
    "task": {"name": "digits"},
    "local": {"steps": 20, "batch_size": 32, "lr": 0.05},
    "topology": {"rule": "ring"},
    "rounds": {"max": ROUNDS, "eval_every": ROUNDS},
    "liveness": {"join_s": 60.0},
    "runtime": {"threads": 1, "snapshot_s": 3600.0},
}
AUDIT_RATES = (0.1, 1.0)

JOIN: dict[str, Any] = {
    **DIGITS_ROUNDS,
    "topology": {"rule": "random_regular", "options": {"degree": 4}},
    "rounds": {"max": 0},
    "liveness": {"join_s": 10.0},
}
JOIN_AT = 0.9  # accuracy of every peer of the swarm when the late one is started

Step = Callable[[], object]
"""Called after each repetition, for a progress bar."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def report(repeats: int, figures: Mapping[str, Sequence[float]], **fixed: object) -> dict[str, Any]:
    """A benchmark's result: each figure's median at the top, its spread below, and what it was measured on."""
    medians = {name: statistics.median(values) for name, values in figures.items()}
    packages = ("murmurate", "torch", "grpcio", "numpy")
    return {
        **fixed,
        **medians,
        "repeats": repeats,
        "spread": {name: spread(values) for name, values in figures.items()},
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "gpu": None},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def bench_rounds(repeats: int, step: Step) -> dict[str, Any]:
    """Seconds per round of 8 daemons on a ring: digits MLP (6,570 parameters), 20 local steps of batch 32; and how many
    times as long it takes when neighbours are audited."""
    figures: dict[str, list[float]] = {"seconds_per_round": [], "accuracy": []}
    for _ in range(repeats):
        seconds, accuracy = _daemons(DIGITS_ROUNDS)
        figures["seconds_per_round"].append(seconds)
        figures["accuracy"].append(accuracy)
        for rate in AUDIT_RATES:
            audited, _ = _daemons({**DIGITS_ROUNDS, "audit": {"rate": rate}})
            figures.setdefault(f"ratio_at_audit_rate_{rate:g}", []).append(audited / seconds)
        step()
    return report(repeats, figures, peers=PEERS, rounds=ROUNDS)


def bench_link(repeats: int, step: Step) -> dict[str, Any]:
    """Goodput of 100 MB payloads beside plain TCP; rounds of 8 daemons beside the same arithmetic in one loop."""
    tcp: list[float] = []
    link: list[float] = []
    daemons: list[float] = []
    loop: list[float] = []
    for _ in range(repeats):
        seconds = measure_link(LINK_BYTES, 3)
        tcp.append(statistics.median(seconds["tcp_s"]))
        link.append(statistics.median(seconds["link_s"]))
        daemons.append(_daemons(DIGITS_ROUNDS)[0])
        loop.append(_plain_loop(DIGITS_ROUNDS))
        step()
    cores = min(PEERS, len(os.sched_getaffinity(0)))
    figures = {
        "goodput_ratio_to_tcp": [a / b for a, b in zip(tcp, link, strict=True)],
        "goodput_bytes_per_s": [LINK_BYTES / s for s in link],
        "round_overhead_ratio": [a / b for a, b in zip(daemons, loop, strict=True)],
        # The harder comparison: the loop's work spread over all cores without any loss.
        "round_overhead_ratio_to_all_cores": [cores * a / b for a, b in zip(daemons, loop, strict=True)],
        "seconds_per_round": daemons,
        "loop_seconds_per_round": loop,
    }
    return report(repeats, figures, peers=PEERS, payload_bytes=LINK_BYTES)


def bench_join(repeats: int, step: Step) -> dict[str, Any]:
    """An eighth daemon without a snapshot joins seven that train: seconds from its start event, and its accuracy."""
    figures: dict[str, list[float]] = {"joined_s": [], "evaluated_s": [], "accuracy": [], "swarm_accuracy": []}
    for _ in range(repeats):
        with (
            tempfile.TemporaryDirectory(prefix="murmurate-bench-") as folder,
            Cohort(Path(folder), _configs(Path(folder), JOIN)) as cohort,
        ):
            *first, late = cohort.configs
            cohort.start(*first)
            cohort.wait(lambda c=cohort, f=first: all(_accuracy(c, name) > JOIN_AT for name in f), timeout_s=600)
            cohort.start(late)
            cohort.wait(lambda c=cohort, name=late: bool(c.rows(name)), timeout_s=600)
            started, joined = cohort.rows(late, "started")[0], cohort.rows(late, "joined")[0]
            evaluated = cohort.rows(late)[0]
            figures["joined_s"].append(joined["time"] - started["time"])
            figures["evaluated_s"].append(evaluated["time"] - started["time"])
            figures["accuracy"].append(evaluated["accuracy"])
            figures["swarm_accuracy"].append(statistics.mean(_accuracy(cohort, name) for name in first))
        step()
    return report(repeats, figures, peers=PEERS)


def _accuracy(cohort: Cohort, name: str) -> float:
    rows = cohort.rows(name)
    return float(rows[-1]["accuracy"]) if rows else 0.0


def _configs(folder: Path, table: Mapping[str, Any]) -> list[Config]:
    return loopback_configs(folder, [f"peer-{i}" for i in range(PEERS)], table)


def _daemons(table: Mapping[str, Any]) -> tuple[float, float]:
    """(seconds per round after the warm-up, final mean accuracy) of real daemons."""
    with tempfile.TemporaryDirectory(prefix="murmurate-bench-") as folder:
        configs = _configs(Path(folder), table)
        with Cohort(Path(folder), configs) as cohort:
            cohort.start()
            cohort.wait(lambda: not cohort.running(), timeout_s=600)
            rows = {name: cohort.rows(name) for name in cohort.configs}
    # The slowest peer's clock: a swarm is as fast as its last.
    counted = [[row["seconds"] for row in peer if row["round"] > WARM_UP] for peer in rows.values()]
    accuracies = [peer[-1]["accuracy"] for peer in rows.values()]
    return max(statistics.mean(seconds) for seconds in counted), statistics.mean(accuracies)


def _plain_loop(table: Mapping[str, Any]) -> float:
    """Seconds per round of the same training and mixing in one loop: no network, no threads, no protocol."""
    from murmurate.peer.learning.make import make_trainer, prepare

    configs = _configs(Path(), table)
    prepare(configs[0])
    topology = build_topology(configs[0])
    hoods = [build_neighbourhood(config, topology) for config in configs]
    trainers: list[Trainer] = [make_trainer(config, degree_min(topology)) for config in configs]
    began = 0.0
    for round in range(1, ROUNDS + 1):
        if round == WARM_UP + 1:
            began = time.perf_counter()
        payloads = {PeerId(c.name): t.train(round).payload for c, t in zip(configs, trainers, strict=True)}
        for trainer, hood in zip(trainers, hoods, strict=True):
            weights = hood.edges(round).weights
            trainer.mix(Mix(Turn(round), {peer: payloads[peer] for peer in weights}, weights))
    return (time.perf_counter() - began) / (ROUNDS - WARM_UP)


def bench_replay(repeats: int, step: Step, parameters: int) -> dict[str, Any]:
    """Records into weights beside MeZO's way and one pass over the weights: a row per number of records."""
    rows, figures, fixed = measure_replay(repeats, step, parameters)
    return report(repeats, figures, rows=rows, **fixed)


def bench_mixing(repeats: int, step: Step, parameters: int, device: str = "cpu") -> dict[str, Any]:
    """Models into one beside torch's obvious forms, byzfl's, and one reading: a row per rule and neighbours."""
    rows, figures, fixed = measure_mixing(repeats, step, parameters, device)
    return report(repeats, figures, rows=rows, **fixed)


def bench_memory(repeats: int, step: Step) -> dict[str, Any]:
    """Peak memory of a step of the seeds exchange beside that of inference, on a 22.7M-parameter encoder."""
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, value in measure_memory().items():
            found.setdefault(name, []).append(value)
        step()
    return report(repeats, found)


def bench_traffic(repeats: int, step: Step) -> dict[str, Any]:
    """Bytes and time to equal accuracy, models beside records; each repetition is another seed, of some minutes."""
    rows: list[dict[str, Any]] = []
    for seed in range(repeats):
        for task in RACES:
            rows += [{"seed": seed, **row} for row in measure_traffic(task, seed)]
        step()
    return report(repeats, {}, rows=rows)


def bench_directions(repeats: int, step: Step) -> dict[str, Any]:
    """Accuracy by kind of direction and of scalar, on two tasks; each repetition is another seed, of some minutes."""
    rows: list[dict[str, Any]] = []
    figures: dict[str, list[float]] = {}
    for seed in range(repeats):
        for course in COURSES:
            rows += measure_directions(course, seed)
        step()
    ends = {(row["task"], row["directions"], row["scalar"], row["seed"]): row for row in rows}
    for (*names, _), row in ends.items():
        for figure in ("accuracy", "test_loss"):
            figures.setdefault(" ".join((*names, figure)), []).append(row[figure])
    return report(repeats, figures, rows=rows)


def bench_liars(repeats: int, step: Step) -> dict[str, Any]:
    """Accuracy by rule when 2 of 8 lie about shared directions; each repetition is another seed, of some minutes."""
    rows: list[dict[str, Any]] = []
    figures: dict[str, list[float]] = {}
    for seed in range(repeats):
        for row in measure_liars(seed):
            rows.append(row)
            figures.setdefault(f"{row['rule']}, {row['liars']} lie", []).append(row["accuracy"])
        step()
    return report(repeats, figures, rows=rows)


BENCHES: dict[str, Callable[..., dict[str, Any]]] = {
    "link": bench_link,
    "rounds": bench_rounds,
    "join": bench_join,
    "replay": bench_replay,
    "mixing": bench_mixing,
    "memory": bench_memory,
    "traffic": bench_traffic,
    "directions": bench_directions,
    "liars": bench_liars,
}
