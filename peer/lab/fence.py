"""Partitions for real daemons on one machine: every link goes through a relay here, and a fence can close any of them.

Each peer's configuration names, instead of another peer's own address, the relay for the two of them. While a fence
stands between two peers, their relay accepts nothing and what it had is closed, as when a cable is pulled.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Self

from murmurate.peer.config import Config, split_address

PIECE_BYTES = 2**16


class Fence:
    """Relays between all pairs of `configs`, as a context."""

    def __init__(self, configs: Sequence[Config]) -> None:
        """`configs`: as `cohort.loopback_configs` makes them, with every peer's own address."""
        self._relays: dict[frozenset[str], _Relay] = {}
        self.configs = [self._behind(config) for config in configs]
        """The same peers, each of which dials the others through the relays."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for relay in self._relays.values():
            relay.close()

    def cut(self, group: Collection[str]) -> None:
        """Nothing passes any more between `group` and the others."""
        for pair, relay in self._relays.items():
            if len(pair.intersection(group)) == 1:
                relay.block()

    def heal(self) -> None:
        """Everything passes again."""
        for relay in self._relays.values():
            relay.blocked = False

    def _behind(self, config: Config) -> Config:
        peers: Mapping[str, str] = {
            # The smaller name dials, so each pair has one direction.
            name: self._relay(config.name, name, address) if config.name < name else address
            for name, address in config.peers.items()
        }
        return config.model_copy(update={"peers": peers})

    def _relay(self, dialler: str, name: str, address: str) -> str:
        relay = _Relay(split_address(address, f"peers.{name}"))
        self._relays[frozenset((dialler, name))] = relay
        return f"127.0.0.1:{relay.port}"


class _Relay:
    """A listening port whose connections are passed on to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.blocked = False
        self._target = target
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def block(self) -> None:
        self.blocked = True
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            _close(end)

    def close(self) -> None:
        _close(self._listener)
        self.block()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            if (far := self._reach()) is None:
                _close(near)  # the dialler is told so, and tries again
                continue
            with self._lock:
                if through := not self.blocked:
                    self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                if through:
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()
                else:  # blocked while we reached for it
                    _close(source)

    def _reach(self) -> socket.socket | None:
        if not self.blocked:
            with suppress(OSError):  # nobody listens there now
                return socket.create_connection(self._target)
        return None

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
        _close(source)
        _close(sink)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes whoever reads or accepts there, which close alone does not
    end.close()
