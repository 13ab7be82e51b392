"""The asyncio shell and everything that touches the world: sockets, files, signals, clocks."""

import os

# Otherwise gRPC's core writes a line on stderr about every connection that a neighbour closes.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
