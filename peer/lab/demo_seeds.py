"""The seeds demo: 6 real daemons fine-tune a pretrained encoder together, one byte per gradient.

One of them joins late, one is killed and returns, two are cut off from the others for a while and train on. At the end
all hold the same records, and the digests of their weights are equal. The accuracies are those of the base weights and
of a model that one peer exported.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.runtime.control import ControlClient

from .cohort import Cohort, loopback_configs
from .demo import clear
from .fence import Fence

NAMES = tuple(f"peer-{i}" for i in range(6))
LATE, VICTIM, ISLAND = "peer-5", "peer-2", ("peer-3", "peer-4")
# When things happen, as shares of the rounds of the slowest peer that has been there from the start.
KILLED_AT, CUT_AT, LATE_AT, HEALED_AT = 0.15, 0.3, 0.4, 0.7
LATE_SHARE = 0.4  # of the rounds, for the late one: about when the others end
ROUNDS_MIN = 8  # for all that to fit in
TIMEOUT_S = 3600.0
LOOK_S = 1.0
EVALUATOR = "peer-0"  # all would find the same: one looks


def demo_table(rounds: int, seed: int) -> dict[str, Any]:
    """The swarm's configuration, without names and addresses. Settings measured in docs/results.md."""
    return {
        "swarm": {"name": "demo-seeds", "seed": seed},
        "task": encoder(),
        "local": {"steps": 16, "batch_size": 32, "lr": 5e-5, "schedule": "linear", "schedule_rounds": rounds},
        "exchange": {"name": "seeds"},
        "seeds": {"gossip_s": 15.0},
        "topology": {"rule": "ring"},
        # Who is done waits for the demo to look, and is then told to leave.
        "rounds": {"max": rounds, "deadline_s": TIMEOUT_S, "eval_every": 0},
        "liveness": {"heartbeat_s": 5.0, "timeout_s": 20.0, "join_s": 120.0},
        "runtime": {"threads": 1},
    }


def encoder() -> dict[str, Any]:
    """The task, with settings measured in docs/results.md."""
    return {"name": "docstrings", "options": {"scale": 10.0, "length": 24, "compute": _fast_format()}}


def _fast_format() -> str:
    """What the matrix units of this machine are fast in; elsewhere bfloat16 would be slower than float32."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


@dataclass(frozen=True, slots=True)
class SeedsView:
    """One row of the live table."""

    name: str
    state: str
    round: int
    records: int
    accuracy: float | None
    bytes_sent: int
    set: str
    weights: str


@dataclass(frozen=True, slots=True)
class SeedsState:
    """One moment of the demo."""

    headline: str
    peers: tuple[SeedsView, ...]


@dataclass(frozen=True, slots=True)
class SeedsResult:
    """What the demo showed. Accuracies are on the shared test split."""

    accuracy_before: float
    accuracy_after: float
    peers: tuple[SeedsView, ...]
    links: int
    joiner_bytes: int
    model_bytes: int
    """Of one update, if models were gossiped instead."""
    wall_s: float

    def figures(self) -> dict[str, Any]:
        """The stable machine-readable result."""
        return {
            "accuracy_before": round(self.accuracy_before, 4),
            "accuracy_after": round(self.accuracy_after, 4),
            "digests": [peer.weights for peer in self.peers],
            "records": self.records,
            "bytes_per_record_per_link": round(self.bytes_per_record_per_link, 2),
            "joiner_bytes": self.joiner_bytes,
            "wall_s": round(self.wall_s, 1),
        }

    @property
    def failure(self) -> str:
        """What must never happen, in words; "" when it did not."""
        is_equal = len({peer.weights for peer in self.peers}) == 1
        return "" if is_equal else "the weights differ: a bug, or a machine that computes wrongly"

    @property
    def records(self) -> int:
        """In the set that all hold at the end."""
        return self.peers[0].records

    @property
    def bytes_per_record_per_link(self) -> float:
        """All that was sent, heartbeats included, spread over the records and the links."""
        return sum(peer.bytes_sent for peer in self.peers) / (self.records * self.links)

    def sentences(self) -> list[str]:
        """The verdict in words."""
        sent = sum(peer.bytes_sent for peer in self.peers)
        gain = 100 * (self.accuracy_after - self.accuracy_before)
        return [
            f"accuracy {self.accuracy_before:.3f} before, {self.accuracy_after:.3f} after: {gain:+.1f} points in "
            f"{self.wall_s:.0f} s.",
            f"weights: {'NOT EQUAL' if self.failure else 'bit-identical on all peers'}, {self.records} records, "
            f"{sent / 1e3:.0f} kB sent in all; one gossiped model alone is {self.model_bytes / 1e6:.0f} MB.",
            f"{self.bytes_per_record_per_link:.1f} bytes per record and link, heartbeats and repairs included; "
            f"{LATE} joined late with {self.joiner_bytes / 1e3:.1f} kB.",
        ]


class SeedsDemo:
    """One run, as a context: on the way out every process is gone."""

    OUT = "runs/demo-seeds"
    ROUNDS = 20

    def __init__(self, out: Path, rounds: int, seed: int) -> None:
        if rounds < ROUNDS_MIN:
            raise ConfigError(f"--rounds {rounds}: should be at least {ROUNDS_MIN}, for all that happens to fit in")
        self.out = out
        self.rounds = rounds
        self._began = time.monotonic()
        folder = out / "swarm"
        clear(folder)
        configs = [self._configured(config) for config in loopback_configs(folder, NAMES, demo_table(rounds, seed))]
        self.fence = Fence(configs)
        self.cohort = Cohort(folder, self.fence.configs)
        self._status: dict[str, dict[str, Any]] = {}
        self._done: set[str] = set()  # what has happened
        self._sent_before: dict[str, int] = {}  # by the killed one's first life
        self._joiner_bytes = 0

    def _configured(self, config: Config) -> Config:
        """The same for all, but for the number of rounds and who looks."""
        changes: dict[str, int] = {}
        if config.name == LATE:
            changes["max"] = round(LATE_SHARE * self.rounds)
        if config.name == EVALUATOR:
            changes["eval_every"] = max(1, self.rounds // 6)
        return config.model_copy(update={"rounds": config.rounds.model_copy(update=changes)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cohort.stop()
        self.fence.__exit__()

    def run(self) -> Iterator[SeedsState]:
        """Run it, yielding what is to be seen."""
        self.cohort.start(*(name for name in NAMES if name != LATE))
        for _ in self.cohort.polls(TIMEOUT_S, LOOK_S):
            for name in self.cohort.running():
                if (status := self.cohort.status(name)) is not None:
                    self._status[name] = status
            self._disturb()
            yield self._state()
            if self._is_over():
                break

    def _disturb(self) -> None:
        """What has to happen at this stage, each thing once."""
        stayers = [name for name in NAMES if name not in (LATE, VICTIM)]
        share = min(self._round(name) for name in stayers) / self.rounds
        for happening, at, act in (
            ("killed", KILLED_AT, self._kill),
            ("cut", CUT_AT, lambda: self.fence.cut(ISLAND)),
            ("late", LATE_AT, lambda: self.cohort.start(LATE)),
            ("healed", HEALED_AT, self.fence.heal),
        ):
            if share >= at and happening not in self._done:
                self._done.add(happening)
                act()
        if not self._joiner_bytes and (rows := self.cohort.rows(LATE, "joined")):
            self._joiner_bytes = int(rows[0]["bytes_received"])

    def _kill(self) -> None:
        self._sent_before[VICTIM] = int(self._status.get(VICTIM, {}).get("bytes_sent", 0))
        self.cohort.kill(VICTIM)
        self.cohort.start(VICTIM)

    def _is_over(self) -> bool:
        """Whether all have made their rounds, hold the same records and have digested their weights."""
        views = [self._view(name) for name in NAMES]
        if any(view.state != "idle" or not view.weights for view in views):
            return False
        return len({view.set for view in views}) == 1

    def _round(self, name: str) -> int:
        return int(self._status[name]["round"]) if name in self._status else 0

    def _state(self) -> SeedsState:
        if not self._status:
            return SeedsState(f"starting {len(NAMES) - 1} daemons", tuple(map(self._view, NAMES)))
        headlines = [
            ("healed", "all links are back; everybody gets what it lacks"),
            ("late", f"{LATE} joins; {' and '.join(ISLAND)} are still cut off"),
            ("cut", f"{' and '.join(ISLAND)} are cut off from the others, and train on"),
            ("killed", f"{VICTIM} was killed and starts again"),
        ]
        headline = next((text for happening, text in headlines if happening in self._done), "training")
        return SeedsState(headline, tuple(map(self._view, NAMES)))

    def _view(self, name: str) -> SeedsView:
        status = self._status.get(name)
        rows = [row for row in self.cohort.rows(name) if "accuracy" in row]
        if status is None:
            state = "starting" if name in self.cohort.running() else "not there yet"
            return SeedsView(name, state, 0, 0, None, 0, "", "")
        records = status["records"]
        return SeedsView(
            name,
            str(status["phase"]),
            int(status["round"]),
            int(records["records"]),
            float(rows[-1]["accuracy"]) if rows else None,
            int(status["bytes_sent"]) + self._sent_before.get(name, 0),
            str(records["set"]),
            str(records["weights"]),
        )

    def result(self) -> SeedsResult:
        """The figures, after `run` has ended."""
        exported = self.out / "model.safetensors"
        config = self.cohort.configs[EVALUATOR]
        ControlClient(config.state_dir).export(exported)
        wall_s = time.monotonic() - self._began
        for name in self.cohort.running():
            self.cohort.leave(name)
        self.cohort.wait(lambda: not self.cohort.running(), timeout_s=120)
        before, after, model_bytes = _accuracies(config, exported)
        peers = tuple(map(self._view, NAMES))
        if not self._joiner_bytes:
            raise LocalError(f"{LATE} never joined")
        links = sum(len(status["peers"]) for status in self._status.values()) // 2
        return SeedsResult(before, after, peers, links, self._joiner_bytes, model_bytes, wall_s)


def _accuracies(config: Config, exported: Path) -> tuple[float, float, int]:
    """Test accuracy of the base weights and of an exported model, and the model's size in bytes."""
    from murmurate.peer.learning.evaluation import evaluate
    from murmurate.peer.learning.snapshot import load_weights
    from murmurate.peer.learning.tasks import make_task

    task = make_task(config)
    module = task.model()
    before = evaluate(task, module)["accuracy"]
    load_weights(exported, module)
    size = sum(value.numel() * value.element_size() for value in module.parameters())
    return before, evaluate(task, module)["accuracy"], size
