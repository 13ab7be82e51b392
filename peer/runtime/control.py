"""The local control service: what `murmurate status | peers | leave | export | retract | config` talk to.

It listens on a Unix socket in the peer's folder, which only this user may open; there is no remote control.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.message import Message

from murmurate.peer.errors import LocalError, MurmurateError
from murmurate.peer.protocol.events import PeerId
from murmurate.peer.toml import to_toml
from murmurate.proto import control_pb2

from .cuts import cut_text

if TYPE_CHECKING:
    from .daemon import Daemon
    from .seeds import Seeds

SERVICE = "murmurate.Control"
# sun_path has 108 bytes on Linux and 104 on macOS, the final zero included.
SOCKET_PATH_MAX = 100
# A daemon answers at once: its loop never blocks. Export copies and writes the model.
CALL_S_MAX = 10.0
EXPORT_S_MAX = 600.0

# Request and reply of each method; the generated classes have no common typed base.
MESSAGES: dict[str, tuple[Any, Any]] = {
    "Status": (control_pb2.StatusRequest, control_pb2.StatusReply),
    "Leave": (control_pb2.LeaveRequest, control_pb2.LeaveReply),
    "Export": (control_pb2.ExportRequest, control_pb2.ExportReply),
    "Config": (control_pb2.ConfigRequest, control_pb2.ConfigReply),
    "Retract": (control_pb2.RetractRequest, control_pb2.RetractReply),
}


def socket_path(folder: Path) -> Path:
    """Where the control socket of a peer's folder is: inside it or, when that path is too long, in a private folder."""
    inside = folder.resolve() / "control.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_MAX:
        return inside
    name = hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"murmurate-{os.getuid()}" / f"{name}.sock"


def _target(path: Path) -> str:
    """gRPC's name of a Unix socket: a URI, in which `%`, `#` and `?` have a meaning."""
    return f"unix:{quote(os.fsencode(path))}"


def _make_private(folder: Path) -> None:
    """Raises LocalError when others could put their own socket in our socket's place."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise LocalError(
            f"{folder}: should be a folder that only this user may write to; remove it, or choose another state_dir"
        )


class ControlServer:
    """The service of one running daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._server = grpc.aio.server()
        self._path: Path | None = None

    async def start(self, folder: Path) -> None:
        """Listen. Raises LocalError when the socket cannot be made."""
        path = socket_path(folder)
        try:
            if path.parent != folder.resolve():
                _make_private(path.parent)
            path.unlink(missing_ok=True)  # the folder's lock is ours, so this is a dead daemon's
            handlers: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
                "Status": self._status,
                "Leave": self._leave,
                "Export": self._export,
                "Config": self._config,
                "Retract": self._retract,
            }
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _unary(handlers)),))
            before = os.umask(0o177)
            try:
                self._server.add_insecure_port(_target(path))  # makes the socket
            finally:
                os.umask(before)  # before anybody else has a turn: it is the whole process's
            await self._server.start()
        except (OSError, RuntimeError) as error:
            raise LocalError(f"{path}: the control socket cannot be made: {error}") from None
        self._path = path

    async def stop(self) -> None:
        """Answer what is under way, then close."""
        if self._path is not None:
            await self._server.stop(grace=1.0)
            self._path.unlink(missing_ok=True)

    async def _status(self, _request: Any, _context: Any) -> control_pb2.StatusReply:
        daemon = self._daemon
        figures = daemon.trainer.figures()
        return control_pb2.StatusReply(
            peer=daemon.config.name,
            swarm=daemon.manifest.swarm_id.hex(),
            phase=daemon.core.phase.value,
            round=daemon.core.rounds.complete,
            incarnation=daemon.store.incarnation,
            uptime_s=time.monotonic() - daemon.started_at,
            figures=figures,
            bytes_sent=daemon.transport.bytes_sent,
            bytes_received=daemon.transport.bytes_received,
            snapshot_round=daemon.snapshot_round,
            listen=daemon.config.listen,
            metrics=daemon.metrics.address,
            peers=[self._peer(peer) for peer in daemon.neighbourhood.links],
            exchange=daemon.config.exchange.name,
            records=None if daemon.seeds is None else _records(daemon.seeds),
        )

    def _peer(self, peer: PeerId) -> control_pb2.PeerStatus:
        daemon = self._daemon
        counters = daemon.transport.counters(peer)
        heard_at = daemon.core.membership.heard_at(peer)
        return control_pb2.PeerStatus(
            peer=peer,
            state=daemon.core.state(peer).value,
            address=daemon.config.peers[peer],
            linked=daemon.transport.linked(peer),
            round=daemon.core.rounds.round_of(peer),
            bytes_sent=counters.bytes_sent,
            bytes_received=counters.bytes_received,
            heard_ago_s=daemon.now() - heard_at if heard_at else -1.0,
            refusals=daemon.marks[peer],
            last_refusal=daemon.refusals.get(peer, ""),
            trouble=counters.trouble,
        )

    async def _leave(self, _request: Any, _context: Any) -> control_pb2.LeaveReply:
        if not self._daemon.leaving:  # to ask again is no second signal
            self._daemon.leave()
        return control_pb2.LeaveReply()

    async def _export(self, request: control_pb2.ExportRequest, context: Any) -> control_pb2.ExportReply:
        try:
            exported = await self._daemon.export(Path(request.path), request.cut)
        except MurmurateError as error:
            return await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return control_pb2.ExportReply(path=request.path, round=exported.round, cut=exported.cut)

    async def _retract(self, request: control_pb2.RetractRequest, context: Any) -> control_pb2.RetractReply:
        try:
            retracted = await self._daemon.retract(request.peer, request.from_seq)
        except MurmurateError as error:
            return await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        feed, from_seq, awaits = retracted
        return control_pb2.RetractReply(
            peer=feed.name, origin=feed.origin.hex(), from_seq=from_seq, awaits_state=awaits
        )

    async def _config(self, _request: Any, _context: Any) -> control_pb2.ConfigReply:
        return control_pb2.ConfigReply(toml=to_toml(self._daemon.config))


def _records(seeds: Seeds) -> control_pb2.Records:
    feeds = seeds.feeds
    return control_pb2.Records(
        records=feeds.records,
        set=feeds.digest.hex(),
        weights=feeds.weights.hex(),
        cut=cut_text(feeds, feeds.cut()),
        key=seeds.identity.origin.hex(),
        origins=[
            control_pb2.OriginStatus(
                peer=feed.name,
                origin=feed.origin.hex(),
                batches=feed.count,
                records=feeds.counting(feed),
                round=feed.round,
                closed=feed.closed is not None,
                closed_at=feed.closed or 0,
            )
            for feed in sorted(feeds, key=lambda feed: (feed.name, feed.origin))
        ],
    )


def _unary(handlers: Mapping[str, Callable[[Any, Any], Awaitable[Any]]]) -> dict[str, Any]:
    return {
        name: grpc.unary_unary_rpc_method_handler(
            handler, MESSAGES[name][0].FromString, MESSAGES[name][1].SerializeToString
        )
        for name, handler in handlers.items()
    }


class ControlClient:
    """Calls into the daemon that runs on a folder. Every method raises LocalError when there is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = socket_path(folder)

    def status(self) -> dict[str, Any]:
        """The daemon's StatusReply as plain values."""
        return plain(self._call("Status"))

    def leave(self) -> None:
        """Ask the daemon to leave."""
        self._call("Leave")

    def export(self, path: Path, cut: str = "") -> dict[str, Any]:
        """Have the daemon write its model to `path`, as it is or at a cut; returns path, round and cut."""
        return plain(self._call("Export", EXPORT_S_MAX, path=str(path.resolve()), cut=cut))

    def retract(self, peer: str, from_seq: int) -> dict[str, Any]:
        """Have the daemon void the records of `peer` from a sequence number on; returns peer, origin, from_seq, and
        awaits_state, as in `seeds.Retracted`.
        """
        return plain(self._call("Retract", peer=peer, from_seq=from_seq))

    def config(self) -> str:
        """The daemon's effective configuration, as TOML."""
        return str(self._call("Config").toml)

    def _call(self, method: str, timeout_s: float | None = None, **fields: Any) -> Any:
        if not os.path.exists(self._path):
            raise LocalError(f"{self._folder}: no daemon is running here")
        request, reply = MESSAGES[method]
        with grpc.insecure_channel(_target(self._path)) as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/{method}",
                request_serializer=request.SerializeToString,
                response_deserializer=reply.FromString,
            )
            try:
                return call(request(**fields), timeout=timeout_s or CALL_S_MAX)
            except grpc.RpcError as error:
                raise LocalError(self._explain(error.code(), str(error.details()))) from None

    def _explain(self, code: grpc.StatusCode, details: str) -> str:
        match code:
            case grpc.StatusCode.FAILED_PRECONDITION:
                return details
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
                return f"{self._folder}: the daemon is not running any more"
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"{self._folder}: the daemon does not answer"
            case _:
                return f"{self._folder}: the daemon could not do it: {details}"


def finite(value: object) -> object:
    """`value`, or None for a number that JSON cannot express."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(message: Any) -> dict[str, Any]:
    """A protobuf message as dicts, lists and numbers (json_format would turn 64-bit integers into strings)."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values[field.name] = {key: finite(item) for key, item in value.items()}
        elif isinstance(value, Message):
            values[field.name] = plain(value) if message.HasField(field.name) else None
        elif field.message_type is not None:
            values[field.name] = [plain(item) for item in value]
        else:
            values[field.name] = value
    return values
