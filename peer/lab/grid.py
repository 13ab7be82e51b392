"""All runs of a scenario: side by side, each kept on the disk as soon as it is done, summed up at the end."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError, LocalError

from .cohort import Cohort, free_addresses
from .scenario import Cell, Scenario

Row = dict[str, Any]


class Grid:
    """The runs of a scenario and their results, in a folder. Only one process at a time may have it open."""

    def __init__(self, scenario: Scenario, out: Path) -> None:
        """Raises ConfigError for a folder that cannot be used, and for what could not run."""
        self.scenario = scenario
        self.out = out
        self._results = out / "runs.jsonl"
        self._graphs = out / "graphs"
        try:
            self._graphs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{out}: cannot be made: {error.strerror}; choose another --out") from None
        scenario.check(self._graphs)
        self._keys = {cell: scenario.key(cell) for cell in scenario.cells()}

    def __len__(self) -> int:
        return len(self._keys)

    def run(self, jobs: int) -> Iterator[Row]:
        """Every run's row: first those that are there already. At most `jobs` at a time, daemons one at a time."""
        with self._own() as rows:
            wanted = set(self._keys.values())
            done = {row["key"]: row for row in rows if row["key"] in wanted}
            yield from done.values()
            left = [cell for cell, key in self._keys.items() if key not in done]
            for row in self._daemons(left) if self.scenario.lab.backend == "daemons" else self._simulated(left, jobs):
                with self._results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                yield row

    def _simulated(self, cells: Sequence[Cell], jobs: int) -> Iterator[Row]:
        waiting = iter(cells)
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(max(1, min(jobs, len(cells))), mp_context=context) as pool:
            running: set[Future[Row]] = set()
            try:
                while True:
                    while len(running) < jobs and (cell := next(waiting, None)) is not None:
                        running.add(pool.submit(simulated, self.scenario, cell, self._keys[cell], self._graphs))
                    if not running:
                        return
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _daemons(self, cells: Sequence[Cell]) -> Iterator[Row]:
        for cell in cells:
            configs = self.scenario.configs(cell, self._graphs)
            yield by_daemons(self.scenario, cell, self._keys[cell], configs, self.out / "daemons" / self._keys[cell])

    @contextmanager
    def _own(self) -> Generator[list[Row]]:
        """The rows so far, and the file is ours. A line that a crash has torn is taken off."""
        with self._results.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LocalError(f"{self._results}: another process is at work on it") from None
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
            try:
                rows = [json.loads(line) for line in content[:whole].splitlines()]
                keyed = [row for row in rows if isinstance(row["key"], str)]
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{self._results}: not a scenario's results; choose another --out") from None
            yield keyed


def simulated(scenario: Scenario, cell: Cell, key: str, folder: Path) -> Row:
    """One run in the simulator, in this process."""
    from .simulator import simulate
    from .tasks import task_plan

    began, honest = time.perf_counter(), _honest(scenario)
    try:
        outcome = simulate(task_plan(scenario.configs(cell, folder), seed=cell.seed))
    except LocalError as error:  # a peer could not go on: its model is not finite any more
        return _row(scenario, cell, key, [{"accuracy": 0.0} for _ in honest], began, str(error))
    if outcome.violations:
        raise LocalError(f"{cell}: {outcome.violations[0]}: a bug in the protocol")
    return _row(scenario, cell, key, [dict(outcome.figures[i]) for i in honest], began)


def by_daemons(scenario: Scenario, cell: Cell, key: str, configs: Sequence[Config], folder: Path) -> Row:
    """The same with real daemons on loopback. One that ends in failure counts as an accuracy of 0."""
    began, honest = time.perf_counter(), _honest(scenario)
    names = scenario.names()
    peers = dict(zip(names, free_addresses(len(names)), strict=True))
    here = [
        config.model_copy(
            update={
                "peers": peers,
                "runtime": config.runtime.model_copy(update={"state_dir": str(folder.resolve() / config.name)}),
            }
        )
        for config in configs
    ]
    with Cohort(folder, here) as cohort:
        cohort.start()
        cohort.wait(lambda: not cohort.running(), scenario.lab.timeout_s)
        figures = [_last_figures(cohort.rows(names[i])) for i in honest]
    return _row(scenario, cell, key, figures, began)


def _last_figures(rows: list[Row]) -> Row:
    evaluated = [row for row in rows if "accuracy" in row]
    return {name: evaluated[-1][name] for name in ("accuracy", "triggered") if name in evaluated[-1]}


def _honest(scenario: Scenario) -> list[int]:
    """Whose models count: those who would be honest under any attack, so that all runs look at the same peers."""
    return [i for i in range(scenario.lab.peers) if i not in scenario.liars()]


def _row(scenario: Scenario, cell: Cell, key: str, figures: Sequence[Row], began: float, failure: str = "") -> Row:
    accuracies = [float(figure["accuracy"]) for figure in figures]
    row: Row = {"key": key, "backend": scenario.lab.backend, **cell._asdict()}
    row |= {"accuracy": statistics.mean(accuracies), "worst": min(accuracies)}
    if all("triggered" in figure for figure in figures):
        row["triggered"] = statistics.mean(figure["triggered"] for figure in figures)
    row["wall_s"] = round(time.perf_counter() - began, 2)
    return {**row, "failure": failure} if failure else row


def summary(rows: Sequence[Row]) -> list[Row]:
    """One row for each rule, attack and alpha: mean and sample standard deviation over its seeds."""
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["rule"], row["attack"], row["alpha"]), []).append(row)
    found: list[Row] = []
    for (rule, attack, alpha), runs in groups.items():
        accuracies = [run["accuracy"] for run in runs]
        entry: Row = {
            "rule": rule,
            "attack": attack,
            "alpha": alpha,
            "accuracy_mean": round(statistics.mean(accuracies), 4),
            "accuracy_std": round(statistics.stdev(accuracies), 4) if len(runs) > 1 else 0.0,
            "seeds": len(runs),
        }
        if all("triggered" in run for run in runs):
            entry["triggered_mean"] = round(statistics.mean(run["triggered"] for run in runs), 4)
        found.append(entry)
    return found
