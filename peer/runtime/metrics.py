"""Facts and figures out: metrics.jsonl always, TensorBoard and Prometheus on request.

One row is one flat mapping with a `kind`: "round" rows carry figures, the others say what happened. A metrics sink
that fails (a full disk) is reported once and never stops the training.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from murmurate.peer.config import split_address
from murmurate.peer.errors import LocalError

Row = Mapping[str, Any]


class Metrics:
    """The open sinks of one peer."""

    def __init__(
        self, folder: Path, peer: str, tensorboard: bool, prometheus: str, warn: Callable[[str], None]
    ) -> None:
        """Raises LocalError for a sink that cannot be opened."""
        self._warn = warn
        self._failed = False
        self._tensorboard: _TensorBoard | None = None
        self._prometheus: _Prometheus | None = None
        with ExitStack() as opened:
            try:
                self._file = opened.enter_context(_open_rows(folder / "metrics.jsonl"))
                if tensorboard:
                    self._tensorboard = _TensorBoard(folder / "tensorboard")
                    opened.callback(self._tensorboard.close)
            except OSError as error:
                raise LocalError(f"{folder}: metrics cannot be written: {error.strerror}") from None
            if prometheus:
                self._prometheus = _Prometheus(prometheus, peer)
                opened.callback(self._prometheus.close)
            self._opened = opened.pop_all()

    @property
    def address(self) -> str:
        """host:port of the Prometheus endpoint, empty without one."""
        return self._prometheus.address if self._prometheus else ""

    def write(self, row: Row) -> None:
        """One row into every sink."""
        try:
            self._file.write(json.dumps({"time": round(time.time(), 3), **row}) + "\n")
            if self._tensorboard:
                self._tensorboard.write(row)
        except OSError as error:
            if not self._failed:
                self._warn(f"metrics are not written any more: {error.strerror}")
            self._failed = True
        if self._prometheus:
            self._prometheus.write(row)

    def close(self) -> None:
        """Flush and close every sink."""
        try:
            self._opened.close()
        except OSError as error:
            self._warn(f"metrics could not be flushed: {error.strerror}")


def _open_rows(path: Path) -> IO[str]:
    """Open for appending, without the half row that a crash or a full disk may have left at the end."""
    with path.open("ab+") as file:
        whole = size = file.seek(0, os.SEEK_END)
        while whole:
            step = min(whole, 4096)
            file.seek(whole - step)
            newline = file.read(step).rfind(b"\n")
            whole += newline + 1 - step
            if newline >= 0:
                break
        if whole < size:
            file.truncate(whole)
    return path.open("a", encoding="utf-8", buffering=1)


def _figures(row: Row) -> list[tuple[str, float]]:
    return [(k, float(v)) for k, v in row.items() if k != "round" and isinstance(v, int | float)]


class _TensorBoard:
    """An event file in TFRecord's format.

    Not tensorboardX's own writers: one syncs the disk at every flush, the other's thread dies of a full disk, and then
    its queue blocks whoever writes.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        # Imported here because tensorboardX imports torch when there is one.
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c

        self._event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]: generated code
        self._crc: Callable[[bytes], int] = masked_crc32c
        # TensorBoard reads all files with this beginning; the rest tells lives apart, also on a shared disk.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb", buffering=0)
        self._add(file_version="brain.Event:2")

    def write(self, row: Row) -> None:
        if row["kind"] == "round":
            summary = {"value": [{"tag": name, "simple_value": value} for name, value in _figures(row)]}
            self._add(step=row["round"], summary=summary)

    def _add(self, **fields: object) -> None:
        event: bytes = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        self._file.write(b"".join((length, self._checksum(length), event, self._checksum(event))))

    def _checksum(self, data: bytes) -> bytes:
        return struct.pack("<I", self._crc(data))

    def close(self) -> None:
        self._file.close()


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
        self.address = f"{address.rpartition(':')[0]}:{self._server.server_port}"

    def write(self, row: Row) -> None:
        self._facts.labels(self._peer, row["kind"]).inc()
        if row["kind"] == "round":
            for name, value in [("round", float(row["round"])), *_figures(row)]:
                name = re.sub("[^A-Za-z0-9_]", "_", name)  # a task may call its figures what it likes
                if name not in self._gauges:
                    help = f"{name} of the newest round"
                    self._gauges[name] = Gauge(f"murmurate_{name}", help, ["peer"], registry=self._registry)
                self._gauges[name].labels(self._peer).set(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
