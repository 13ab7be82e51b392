"""How fast a link is, against a plain TCP socket: the same payload, between the same two processes, in turns.

The yardstick copies nothing that it need not: `sendall` of 1 MiB blocks, `recv_into` memory touched before.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from murmurate.peer.errors import LocalError
from murmurate.peer.runtime.sink import Source, serve_sink

BLOCK_BYTES = 2**20


def measure_link(payload_bytes: int, repeats: int) -> dict[str, list[float]]:
    """Send a payload over TCP and over a link, `repeats` times each, alternately, to a process of its own.

    Returns `tcp_s` and `link_s`: seconds from the first byte to the answer, one per repetition,
    after one unmeasured transfer each. Raises LocalError when the other process does not start.
    """
    payload = os.urandom(payload_bytes)
    command = [sys.executable, "-P", "-m", "murmurate.peer.lab.bench_link", str(payload_bytes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sink:
        assert sink.stdin is not None
        assert sink.stdout is not None
        with sink.stdin:  # closing it ends the sink
            line = sink.stdout.readline()
            if not line:
                raise LocalError("the receiving process of the benchmark did not start")
            ports = json.loads(line)
            with (
                socket.create_connection(("127.0.0.1", ports["tcp"])) as connection,
                Source(ports["link"]) as source,
            ):
                seconds = [
                    (_time(lambda: _send(connection, payload)), _time(lambda: source.transfer(payload)))
                    for _ in range(repeats + 1)
                ]
    tcp_s, link_s = zip(*seconds[1:], strict=True)
    return {"tcp_s": list(tcp_s), "link_s": list(link_s)}


def main() -> None:
    """The receiving process: prints its two ports, ends when its standard input does."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_receive, args=(server, int(sys.argv[1])), daemon=True).start()

    def ready(port: int) -> None:
        sys.stdout.write(json.dumps({"tcp": server.getsockname()[1], "link": port}) + "\n")
        sys.stdout.flush()

    serve_sink(ready, sys.stdin.read)


def _send(connection: socket.socket, payload: bytes) -> None:
    view = memoryview(payload)
    for start in range(0, len(payload), BLOCK_BYTES):
        connection.sendall(view[start : start + BLOCK_BYTES])
    connection.recv(1)


def _receive(server: socket.socket, payload_bytes: int) -> None:
    buffer = memoryview(bytearray(b"\1") * payload_bytes)
    with server, server.accept()[0] as connection:
        while True:
            filled = 0
            while filled < payload_bytes:
                received = connection.recv_into(buffer[filled:])
                if received == 0:
                    return
                filled += received
            connection.sendall(b"\1")


def _time(action: Callable[[], None]) -> float:
    began_at = time.perf_counter()
    action()
    return time.perf_counter() - began_at


if __name__ == "__main__":
    main()
