"""All runs of a scenario: side by side, each kept on the disk as soon as it is done, summed up at the end."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from murmurate.peer.errors import ConfigError, DivergedError, LocalError

from .cohort import Cohort, free_addresses
from .scenario import Cell, Scenario

Row = dict[str, Any]


class Grid:
    """The runs of a scenario and their results, in a folder. Only one process at a time may work on it."""

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
        """Every run's row: first those that are there already. At most `jobs` at a time, daemons one at a time.

        Raises LocalError when all others are done, for runs that could not be finished; at once for a worker that was
        killed, and for results that cannot be written. What is not finished is not kept.
        """
        with self._own() as (rows, keep):
            wanted, failures = set(self._keys.values()), list[str]()
            done = {row["key"]: row for row in rows if row["key"] in wanted}
            yield from done.values()
            left = [cell for cell, key in self._keys.items() if key not in done]
            found = self._daemons(left) if self.scenario.lab.backend == "daemons" else self._simulated(left, jobs)
            with closing(found):
                for row in found:
                    if isinstance(row, str):
                        failures.append(row)
                        continue
                    keep(row)
                    yield row
            if failures:
                raise LocalError("\n".join(failures))

    def in_order(self, rows: Sequence[Row]) -> list[Row]:
        """As the scenario lists them, whichever was done first."""
        places = {key: place for place, key in enumerate(self._keys.values())}
        return sorted(rows, key=lambda row: places[row["key"]])

    def _simulated(self, cells: Sequence[Cell], jobs: int) -> Generator[Row | str]:
        waiting = iter(cells)
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        pool = ProcessPoolExecutor(max(1, min(jobs, len(cells))), context, initializer=_end_with_parent)
        running: dict[Future[Row], Cell] = {}
        try:
            while True:
                while len(running) < jobs and (cell := next(waiting, None)) is not None:
                    running[pool.submit(simulated, self.scenario, cell, self._keys[cell], self._graphs)] = cell
                if not running:
                    return
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=lambda future: isinstance(future.exception(), BrokenProcessPool)):
                    yield _result(running.pop(future), future)
        finally:
            for process in list((pool._processes or {}).values()):  # pyright: ignore[reportPrivateUsage]: it has no other way
                process.terminate()  # what they are at would take minutes, and is not kept anyway
            pool.shutdown(wait=True, cancel_futures=True)

    def _daemons(self, cells: Sequence[Cell]) -> Generator[Row | str]:
        for cell in cells:
            folder = self.out / "daemons" / self._keys[cell]
            shutil.rmtree(folder, ignore_errors=True)  # snapshots of a run that was interrupted
            try:
                yield by_daemons(self.scenario, cell, self._keys[cell], self._graphs, folder)
            except LocalError as error:
                yield f"{_named(cell)}: {error}"
            else:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _own(self) -> Generator[tuple[list[Row], Callable[[Row], None]]]:
        """The rows so far, and a way to add one, while the file is ours. A line that a crash has torn is taken off."""
        try:
            file = self._results.open("a+b")
        except OSError as error:
            raise self._unusable(error) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LocalError(f"{self._results}: another process is at work on it") from None
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            rows = self._read(content[:whole])
            if whole < len(content):
                if not content[whole:].startswith(b'{"key"'[: len(content) - whole]):
                    raise self._foreign()
                file.truncate(whole)

            def keep(row: Row) -> None:
                try:
                    file.write(json.dumps(row).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                except OSError as error:
                    raise self._unusable(error) from None

            yield rows, keep

    def _read(self, lines: bytes) -> list[Row]:
        try:
            rows: list[Row] = [json.loads(line) for line in lines.splitlines()]
            if all(isinstance(row["key"], str) for row in rows):
                return rows
        except (ValueError, KeyError, TypeError):
            pass
        raise self._foreign()

    def _unusable(self, error: OSError) -> LocalError:
        return LocalError(f"{self._results}: cannot be written: {error.strerror}")

    def _foreign(self) -> ConfigError:
        return ConfigError(f"{self._results}: not a scenario's results; choose another --out")


def _end_with_parent() -> None:
    """In a worker: an interrupt is the parent's to handle, and nobody works for one that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _result(cell: Cell, future: Future[Row]) -> Row | str:
    """The row of a run, or why there is none."""
    try:
        return future.result()
    except LocalError as error:
        return f"{_named(cell)}: {error}"
    except BrokenProcessPool:
        raise LocalError(f"{_named(cell)}: its process, or that of a run beside it, was killed (memory?)") from None


def _named(cell: Cell) -> str:
    return f"{cell.rule} under {cell.attack}, alpha {cell.alpha:g}, seed {cell.seed}"


def simulated(scenario: Scenario, cell: Cell, key: str, folder: Path) -> Row:
    """One run in the simulator, in this process. Where any peer's training diverges the run's accuracy is 0."""
    from .simulator import simulate
    from .tasks import task_plan

    began, honest = time.perf_counter(), _honest(scenario)
    try:
        outcome = simulate(task_plan(scenario.configs(cell, folder), seed=cell.seed))
    except DivergedError as error:
        return _row(scenario, cell, key, [{"accuracy": 0.0} for _ in honest], began, str(error))
    if outcome.violations or outcome.stalled:
        fault = outcome.violations[0] if outcome.violations else f"{outcome.stalled[0]} stalled"
        raise LocalError(f"{fault}: a bug in the protocol")
    return _row(scenario, cell, key, [dict(outcome.figures[i]) for i in honest], began)


def by_daemons(scenario: Scenario, cell: Cell, key: str, graphs: Path, folder: Path) -> Row:
    """The same with real daemons on loopback, whose files are in `folder` meanwhile."""
    began, honest, names = time.perf_counter(), _honest(scenario), scenario.names()
    peers = dict(zip(names, free_addresses(len(names)), strict=True))
    configs = [
        config.model_copy(
            update={
                "peers": peers,
                "runtime": config.runtime.model_copy(update={"state_dir": str(folder.resolve() / config.name)}),
            }
        )
        for config in scenario.configs(cell, graphs)
    ]
    with Cohort(folder, configs) as cohort:
        cohort.start()
        try:
            cohort.wait(lambda: not cohort.running(), scenario.lab.timeout_s)
        except DivergedError as error:
            return _row(scenario, cell, key, [{"accuracy": 0.0} for _ in honest], began, str(error))
        last = [next(iter(cohort.rows(names[i])[-1:]), {}) for i in honest]
    for i, row in zip(honest, last, strict=True):
        if row.get("round") != configs[i].rounds.max:
            raise LocalError(f"{names[i]} ended after round {row.get('round', 0)}")
    return _row(scenario, cell, key, last, began)


def _honest(scenario: Scenario) -> list[int]:
    """Whose models count: those who would be honest under any attack, so that all runs look at the same peers."""
    return [i for i in range(scenario.lab.peers) if i not in scenario.liars()]


def _row(scenario: Scenario, cell: Cell, key: str, figures: Sequence[Row], began: float, failure: str = "") -> Row:
    if not all("accuracy" in figure for figure in figures):
        raise ConfigError(f"task.name: a scenario compares accuracies, and this task has {', '.join(figures[0])} only")
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
