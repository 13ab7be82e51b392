"""Real daemon processes on this machine's loopback: start, watch, kill, restart, clean up.

A cohort is a context: on the way out, whatever the reason, every process it started is gone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from murmurate.peer.config import Config, parse
from murmurate.peer.errors import DivergedError, LocalError
from murmurate.peer.runtime.control import ControlClient
from murmurate.peer.toml import to_toml

# Below Linux's ephemeral range (32768 and up), so that no outgoing connection takes a port before its peer binds it.
PORTS = range(20000, 32000)
# How often `polls` looks, unless told: often enough for a test, seldom enough to leave the cores to the daemons.
POLL_S = 0.1


def free_addresses(count: int) -> list[str]:
    """`count` loopback addresses nobody listens on at this moment."""
    found: list[str] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(f"127.0.0.1:{port}")
        if len(found) == count:
            return found
    raise LocalError(f"fewer than {count} free ports on 127.0.0.1")


class Cohort:
    """Daemons of one swarm, one process each, with their files in `folder`/NAME."""

    def __init__(self, folder: Path, configs: Sequence[Config]) -> None:
        self.folder = folder.resolve()
        self.configs = {config.name: config for config in configs}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {config.name: [] for config in configs}
        self._offsets = dict.fromkeys(self._rows, 0)  # how much of each metrics.jsonl has been read
        folder.mkdir(parents=True, exist_ok=True)
        for config in configs:
            self.reconfigure(config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def path(self, name: str) -> Path:
        """The configuration file of one daemon."""
        return self.folder / f"{name}.toml"

    def reconfigure(self, config: Config) -> None:
        """Give one daemon another configuration, for its next start."""
        self.configs[config.name] = config
        self.path(config.name).write_text(to_toml(config), encoding="utf-8")

    def start(self, *names: str) -> None:
        """Start these daemons, or all."""
        for name in names or self.configs:
            log = (self.folder / f"{name}.log").open("ab")
            # One thread each: as many daemons as cores would otherwise fight with each other's thread pools.
            environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "murmurate.peer.cli", "run", str(self.path(name)), "--json"]
            with log:
                self.processes[name] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
                )

    def kill(self, name: str) -> None:
        """SIGKILL: no goodbye, no snapshot."""
        self.processes[name].kill()
        self.processes[name].wait()

    def leave(self, name: str) -> None:
        """SIGTERM: the daemon leaves in its own time."""
        self.processes[name].send_signal(signal.SIGTERM)

    def running(self) -> list[str]:
        """The daemons whose process is there."""
        return [name for name, process in self.processes.items() if process.poll() is None]

    def status(self, name: str) -> dict[str, Any] | None:
        """What a daemon says of itself; None when it does not answer (yet, or any more)."""
        with suppress(LocalError):
            return ControlClient(self.configs[name].state_dir).status()
        return None

    def rows(self, name: str, kind: str = "round") -> list[dict[str, Any]]:
        """The rows of one kind that a daemon has written so far, over all its lives."""
        file = self.configs[name].state_dir / "metrics.jsonl"
        if file.exists():
            with file.open("rb") as lines:
                lines.seek(self._offsets[name])
                for line in lines:
                    if not line.endswith(b"\n"):  # half written
                        break
                    self._offsets[name] += len(line)
                    self._rows[name].append(json.loads(line))
        return [row for row in self._rows[name] if row["kind"] == kind]

    def round(self, name: str) -> int:
        """The newest complete round of one daemon."""
        rows = self.rows(name)
        return int(rows[-1]["round"]) if rows else 0

    def wait(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Poll until `done`. Raises what `polls` raises."""
        for _ in self.polls(timeout_s):
            if done():
                return

    def polls(self, timeout_s: float, every_s: float = POLL_S) -> Iterator[None]:
        """One turn per poll. Raises LocalError after `timeout_s` or when a daemon ended in failure, DivergedError when
        its training diverged."""
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            yield
            for name, process in self.processes.items():
                if process.poll() not in (None, 0, -signal.SIGKILL):
                    kind = DivergedError if process.returncode == DivergedError.exit_code else LocalError
                    raise kind(f"daemon {name} ended with code {process.returncode}:\n{self.log(name)}")
            time.sleep(every_s)
        raise LocalError(f"not finished after {timeout_s} s")

    def log(self, name: str) -> str:
        """The end of what a daemon printed."""
        return "\n".join((self.folder / f"{name}.log").read_text(encoding="utf-8").splitlines()[-20:])

    def stop(self) -> None:
        """End every process: SIGKILL, as nothing here is worth a goodbye."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for process in self.processes.values():
            process.wait()


def loopback_configs(folder: Path, names: Sequence[str], table: Mapping[str, Any]) -> list[Config]:
    """One Config per name: `table` plus a name, a free address and a folder for each."""
    peers = dict(zip(names, free_addresses(len(names)), strict=True))
    folder, runtime = folder.resolve(), table.get("runtime", {})
    return [
        parse({**table, "name": name, "peers": peers, "runtime": {"state_dir": str(folder / name), **runtime}})
        for name in names
    ]
