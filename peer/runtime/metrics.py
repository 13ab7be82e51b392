"""Facts and figures out: metrics.jsonl always, TensorBoard and Prometheus on request.

One row is one flat mapping with a `kind`: "round" rows carry figures, the others say what happened. A metrics sink
that fails (a full disk) is reported once and never stops the training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from tensorboardX import SummaryWriter

from murmurate.peer.config import split_address
from murmurate.peer.errors import LocalError

Row = Mapping[str, Any]


class Metrics:
    """The open sinks of one peer."""

    def __init__(
        self, folder: Path, peer: str, tensorboard: bool, prometheus: str, warn: Callable[[str], None]
    ) -> None:
        self._warn = warn
        self._failed = False
        try:
            self._file: IO[str] = (folder / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise LocalError(f"{folder / 'metrics.jsonl'}: cannot be written: {error.strerror}") from None
        self._tensorboard = SummaryWriter(str(folder / "tensorboard")) if tensorboard else None
        self._prometheus = _Prometheus(prometheus, peer) if prometheus else None

    @property
    def address(self) -> str:
        """host:port of the Prometheus endpoint, empty without one."""
        return self._prometheus.address if self._prometheus else ""

    def write(self, row: Row) -> None:
        """One row into every sink."""
        try:
            self._file.write(json.dumps({"time": round(time.time(), 3), **row}) + "\n")
            if self._tensorboard and row["kind"] == "round":
                for name, value in _figures(row):
                    self._tensorboard.add_scalar(name, value, row["round"])
        except OSError as error:
            if not self._failed:
                self._warn(f"metrics are not written any more: {error.strerror}")
            self._failed = True
        if self._prometheus:
            self._prometheus.write(row)

    def close(self) -> None:
        """Flush and close every sink."""
        try:
            self._file.close()
            if self._tensorboard:
                self._tensorboard.close()
        except OSError as error:
            self._warn(f"metrics could not be flushed: {error.strerror}")
        if self._prometheus:
            self._prometheus.close()


def _figures(row: Row) -> list[tuple[str, float]]:
    return [(k, float(v)) for k, v in row.items() if k != "round" and isinstance(v, int | float)]


class _Prometheus:
    """An HTTP endpoint in a thread of its own, with a registry of its own."""

    def __init__(self, address: str, peer: str) -> None:
        host, port = split_address(address, "runtime.prometheus")
        registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._registry = registry
        self._peer = peer
        self._facts = Counter("murmurate_facts", "What happened, by kind", ["peer", "kind"], registry=registry)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise LocalError(f"runtime.prometheus = {address!r}: cannot listen there: {error.strerror}") from None
        self.address = f"{host}:{self._server.server_port}"

    def write(self, row: Row) -> None:
        self._facts.labels(self._peer, row["kind"]).inc()
        if row["kind"] == "round":
            for name, value in [("round", float(row["round"])), *_figures(row)]:
                if name not in self._gauges:
                    help = f"{name} of the newest round"
                    self._gauges[name] = Gauge(f"murmurate_{name}", help, ["peer"], registry=self._registry)
                self._gauges[name].labels(self._peer).set(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
