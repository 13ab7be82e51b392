"""The demo: 8 real daemons on this machine, 2 of them liars, one honest peer killed midway and restarted.

The baselines of its verdict (training alone, pooled training, plain-mean mixing under the same liars) run beside it in
a process of their own, on the simulator: the same core, tasks and attacks in virtual time.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError, LocalError

from .cohort import Cohort, loopback_configs

NAMES = tuple(f"peer-{i}" for i in range(8))
LIARS = ("peer-2", "peer-5")
VICTIM = "peer-4"
KILLED_AT = 0.3  # of the rounds: early enough that the restarted process is back well before the end
ATTACK_SCALE = 2.0  # a plain mean of 3 honest models and 2 of these points backwards
ROUNDS_BACK = 20  # that the returned peer does before the end
TIMEOUT_S = 300.0
LOOK_S = 0.5  # eight status calls each time: often enough for the eye, and the cores belong to the daemons


def demo_table(rounds: int, seed: int) -> dict[str, Any]:
    """The swarm's configuration, without names and addresses. Settings measured in docs/results.md."""
    return {
        "swarm": {"name": "demo", "seed": seed},
        "task": {"name": "digits", "partition": "dirichlet", "alpha": 0.5},
        "local": {"steps": 10, "batch_size": 32, "lr": 0.1, "options": {"momentum": 0.9}, "sam_rho": 0.1},
        "mixing": {"rule": "nna", "f": 2},
        "topology": {"rule": "small_world", "options": {"k": 4, "p": 0.0}},  # a ring with two neighbours each way
        "rounds": {"max": rounds, "deadline_s": 10.0},  # the demo's daemons are told when to leave instead
        "liveness": {"join_s": 60.0},
        "runtime": {"threads": 1, "snapshot_s": 1.0},
    }


def lying(config: Config) -> Config:
    """The same peer as a liar."""
    attack = config.attack.model_copy(update={"name": "sign_flip", "scale": ATTACK_SCALE})
    return config.model_copy(update={"attack": attack})


@dataclass(frozen=True, slots=True)
class PeerView:
    """One row of the live table."""

    name: str
    liar: bool
    state: str
    round: int
    loss: float | None
    accuracy: float | None
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class DemoState:
    """One moment of the demo."""

    headline: str
    peers: tuple[PeerView, ...]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Accuracy per round of the honest peers under another way of training; and at the end, per peer."""

    curve: tuple[float, ...]
    final: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo showed. Accuracies are on the shared test split."""

    curves: dict[str, list[tuple[int, float]]]
    baselines: dict[str, Baseline]
    killed_round: int
    rejoined_round: int
    bytes_sent: dict[str, int]
    wall_s: float
    report: Path
    final: dict[str, float] = field(default_factory=dict[str, float])
    failure = ""

    def honest(self) -> list[float]:
        """Final accuracy of each honest peer, the killed one included."""
        return [accuracy for name, accuracy in self.final.items() if name not in LIARS]

    def figures(self) -> dict[str, float]:
        """The stable machine-readable result."""
        return {
            "honest_accuracy": round(statistics.mean(self.honest()), 4),
            "rejoined_accuracy": round(self.final[VICTIM], 4),
            "alone_accuracy": round(statistics.mean(self.baselines["alone"].final), 4),
            "pooled_accuracy": round(statistics.mean(self.baselines["pooled"].final), 4),
            "mean_rule_accuracy": round(statistics.mean(self.baselines["mean"].final), 4),
            "wall_s": round(self.wall_s, 1),
            "bytes_per_peer": round(statistics.mean(self.bytes_sent.values())),
        }

    def comparison(self) -> list[tuple[str, float, float]]:
        """(name, mean, worst) rows of the verdict."""
        named = [
            ("this swarm: nearest-neighbour mixing, 2 of 8 lie", self.honest()),
            ("plain-mean mixing under the same liars", self.baselines["mean"].final),
            ("each honest peer alone", self.baselines["alone"].final),
            ("all data pooled in one place", self.baselines["pooled"].final),
        ]
        return [(name, statistics.mean(values), min(values)) for name, values in named]

    def sentences(self) -> list[str]:
        """The verdict in words."""
        others = statistics.mean(a for name, a in self.final.items() if name not in (*LIARS, VICTIM))
        gap = 100 * (others - self.final[VICTIM])
        return [
            f"{VICTIM} was killed in round {self.killed_round}, came back in round {self.rejoined_round} "
            f"and ended {abs(gap):.1f} points {'below' if gap > 0 else 'above'} the others.",
            f"{self.wall_s:.0f} s in all; each peer sent {statistics.mean(self.bytes_sent.values()) / 1e6:.1f} MB.",
            f"report: {self.report}",
        ]


def clear(folder: Path) -> None:
    """Remove what an earlier demo left in its folder, and nothing that is not a demo's."""
    mark = folder / "made-by-murmurate-demo"
    if folder.exists() and not mark.exists():
        raise ConfigError(f"{folder}: exists and is not a demo's; choose another --out")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        mark.touch()
    except OSError as error:
        raise ConfigError(f"{folder}: could not be made: {error.strerror}; choose another --out") from None


class Demo:
    """One run, as a context: on the way out every process is gone."""

    OUT = "runs/demo"
    ROUNDS = 120

    def __init__(self, out: Path, rounds: int, seed: int) -> None:
        if rounds < 30:
            raise ConfigError(f"--rounds {rounds}: should be at least 30, for a crash and a return to fit in")
        self.out = out
        self.rounds = rounds
        self._began = time.monotonic()
        clear(out / "swarm")
        table = demo_table(rounds, seed)
        # A fast machine is through before a killed process has started again: all go on until that one is back.
        table["rounds"] = {**table["rounds"], "max": 0}
        configs = loopback_configs(out / "swarm", NAMES, table)
        configs = [lying(config) if config.name in LIARS else config for config in configs]
        self.cohort = Cohort(out / "swarm", configs)
        self._killed_round = 0
        self._rejoined_round = 0
        self._ending = False
        self._baselines: subprocess.Popen[bytes] | None = None
        self._seed = seed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cohort.stop()
        if self._baselines is not None and self._baselines.poll() is None:
            self._baselines.kill()
            self._baselines.wait()

    def run(self) -> Iterator[DemoState]:
        """Run it, yielding what is to be seen."""
        self.cohort.start()
        self._baselines = self._start_baselines()
        for _ in self.cohort.polls(TIMEOUT_S, LOOK_S):
            self._disturb()
            self._end_when_done()
            yield self._state()
            if not self.cohort.running() and self._baselines.poll() is not None:
                break
        if self._baselines.returncode != 0:
            raise LocalError(f"the baselines ended with code {self._baselines.returncode}")
        yield self._state()

    def _start_baselines(self) -> subprocess.Popen[bytes]:
        target = self.out / "swarm" / "baselines.json"
        module = "murmurate.peer.lab.baselines"
        command = [sys.executable, "-m", module, str(self.rounds), str(self._seed), str(target)]
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)

    def _disturb(self) -> None:
        """Kill the victim when its time has come, and start it again at once."""
        if not self._killed_round and self.cohort.round(VICTIM) >= KILLED_AT * self.rounds:
            self._killed_round = self.cohort.round(VICTIM)
            self.cohort.kill(VICTIM)
            self.cohort.start(VICTIM)
        elif self._killed_round and not self._rejoined_round:
            lives = self.cohort.rows(VICTIM, "started")
            if len(lives) > 1:  # the first round it completes in its second life
                rounds = [row["round"] for row in self.cohort.rows(VICTIM) if row["time"] >= lives[-1]["time"]]
                self._rejoined_round = int(rounds[0]) if rounds else 0

    def _end_when_done(self) -> None:
        """Ask all to leave once everybody has done the rounds, and the returned one enough of them."""
        if self._ending or not self._rejoined_round:
            return
        since = self.cohort.round(VICTIM) - self._rejoined_round
        if since >= ROUNDS_BACK and all(self.cohort.round(name) >= self.rounds for name in NAMES):
            self._ending = True
            for name in self.cohort.running():
                self.cohort.leave(name)

    def _state(self) -> DemoState:
        views = tuple(self._view(name) for name in NAMES)
        if not any(view.round for view in views):
            headline = "starting 8 daemons"
        elif not self._killed_round:
            headline = f"training; {VICTIM} will be killed"
        elif not self._rejoined_round:
            headline = f"{VICTIM} was killed in round {self._killed_round} and starts again"
        elif self.cohort.running():
            headline = f"{VICTIM} is back since round {self._rejoined_round}" + ("; all leave" if self._ending else "")
        else:
            headline = "done; the baselines are still running"
        return DemoState(headline, views)

    def _view(self, name: str) -> PeerView:
        rows = self.cohort.rows(name)
        status = self.cohort.status(name) if name in self.cohort.running() else None
        last = rows[-1] if rows else {}
        if status is not None:
            state = str(status["phase"])
        else:
            state = "starting" if name in self.cohort.running() else "left"
        return PeerView(
            name,
            name in LIARS,
            state,
            int(last.get("round", 0)),
            last.get("loss"),
            last.get("accuracy"),
            int(last.get("bytes_sent", 0)),
        )

    def result(self) -> DemoResult:
        """The figures, after `run` has ended; writes the report."""
        from .report import write_report

        raw = json.loads((self.out / "swarm" / "baselines.json").read_text(encoding="utf-8"))
        curves = {
            name: [(int(row["round"]), float(row["accuracy"])) for row in self.cohort.rows(name) if "accuracy" in row]
            for name in NAMES
        }
        result = DemoResult(
            curves=curves,
            baselines={name: Baseline(tuple(b["curve"]), tuple(b["final"])) for name, b in raw.items()},
            killed_round=self._killed_round,
            rejoined_round=self._rejoined_round,
            bytes_sent={name: self._bytes_sent(name) for name in NAMES},
            wall_s=time.monotonic() - self._began,
            report=self.out / "report.html",
            final={name: curve[-1][1] for name, curve in curves.items()},
        )
        write_report(result, self.out)
        return result

    def _bytes_sent(self, name: str) -> int:
        """Over all lives of a daemon: its counter starts anew with each."""
        sent = [int(row["bytes_sent"]) for row in self.cohort.rows(name)]
        return sum(value for value, later in zip(sent, [*sent[1:], 0], strict=True) if later < value)
