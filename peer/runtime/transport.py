"""The network side of a peer: one gRPC server, one dialling task per neighbour with a larger id, the links between.

    smaller id  ── dials ──▶  larger id        one stream per edge of the graph, frames of wire.py both ways

Rules
* `send` never waits and never fails: without a link the body is lost, and silence is the core's business.
* Nothing another peer does raises out of here: it becomes LinkDown, a refusal with a reason, or another attempt.
* A peer has at most one link; a newer one replaces the older, whose loss we may not have noticed yet.
"""

from __future__ import annotations

import asyncio
import random as random_
from collections.abc import Callable, Collection, Mapping
from typing import Any

import grpc
import grpc.aio

from murmurate.peer.errors import LocalError
from murmurate.peer.manifest import Manifest, first_difference
from murmurate.peer.protocol.events import Body, Envelope, Event, LinkDown, LinkUp, PeerId, Received, Turn

from .link import LINGER_S, Broken, Counters, Link, Refused, Stream, read_hello, refuse
from .wire import FRAME_BYTES_MAX, Assembler, Hello, encode_hello

METHOD = "/murmurate.Link/Open"

HANDSHAKE_S = 10.0
"""Longest time from dialling, or from an accepted stream, to both hellos. (a guess)"""

RETRY_S_FIRST = 0.05
RETRY_S_MAX = 1.0
"""Full jitter: the pause before dialling again is uniform below a bound that doubles from the first to the largest.
Several peers of one machine restart together, so the bounds are those of a LAN. (a guess)"""

REFUSED_RETRY_S = 5.0
"""Middle of the pause after a refusal, which a person must resolve; drawn between half and one and a half. (a guess)"""

UNREACHABLE_S = 3.0
"""A peer that cannot be reached for so long is told of; that one starts a little later than we is no news. (a guess)"""

REPORTED_MAX = 256
"""Refusals remembered in order not to be reported again; a stranger can invent names, so the oldest is forgotten."""

KEEPALIVE_MS = 5_000
"""HTTP/2 pings of a link without traffic, and the longest wait for their answer. gRPC's own thread answers them, so a
peer that is busy training is not cut off. (a guess)"""

OPTIONS = (
    ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
    ("grpc.max_send_message_length", FRAME_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a link may be silent for a long local training
)
SERVER_OPTIONS = (
    *OPTIONS,
    ("grpc.so_reuseport", 0),  # else two peers could listen on one port, each getting half of the links
    ("grpc.http2.max_ping_strikes", 0),  # the default would hang up on a dialler that pings while nothing is sent
)
CHANNEL_OPTIONS = (
    *OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),  # every attempt has its own connection and no back-off of an earlier one
    ("grpc.min_reconnect_backoff_ms", 5_000),  # gRPC's name for the longest wait for a TCP connection
    ("grpc.enable_http_proxy", 0),  # a proxy for web pages is not the way to a neighbour
    ("grpc.enable_retries", 0),
)


class GrpcTransport:
    """All links of one peer. Everything happens on the event loop that called `start`."""

    def __init__(
        self,
        me: PeerId,
        incarnation: int,
        listen: str,
        peers: Mapping[PeerId, str],
        links: Collection[PeerId],
        manifest: Manifest,
        where: Callable[[], Turn],
        payload_bytes_max: int,
        deliver: Callable[[Event], None],
        refused: Callable[[str, str], None],
        random: random_.Random,
        unreachable: Callable[[str, str], None] = lambda _who, _why: None,
    ) -> None:
        """`peers`: the roster, id -> host:port. `links`: with whom we may have a link. `where`: our newest turn.

        `deliver` gets LinkUp, Received and LinkDown; `refused` gets who (a peer's id, or what is known of a stranger)
        and why, once for every new reason; `unreachable` whom we dial in vain, and why, once until there is a
        link again. All are called on the event loop, never from within `send`.
        """
        self.port = 0
        self._me = me
        self._incarnation = incarnation
        self._listen = listen
        self._peers = dict(peers)
        self._manifest = manifest
        self._where = where
        self._payload_bytes_max = payload_bytes_max
        self._deliver = deliver
        self._refused = refused
        self._unreachable = unreachable
        self._random = random
        self._counters = {peer: Counters() for peer in links}
        self._links: dict[PeerId, Link] = {}
        self._tasks: dict[asyncio.Task[Any], Link | None] = {}  # each drives one link, or tries to get one
        self._reported: dict[str, str] = {}
        self._extensions: list[Callable[[grpc.aio.Server], None]] = []
        self._server: grpc.aio.Server | None = None
        self._stopping = False

    # What the daemon uses -----------------------------------------------------------------------------

    def extend(self, add: Callable[[grpc.aio.Server], None]) -> None:
        """Before `start`: let `add` register further services (health, ...) on the same port."""
        self._extensions.append(add)

    async def start(self) -> None:
        """Listen and begin to dial. Raises LocalError when the address cannot be bound."""
        _raise_malloc_thresholds()
        # Two streams per neighbour (one is being replaced), and room for strangers to be told why not.
        rpcs_max = 2 * len(self._counters) + 64
        server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=rpcs_max)
        accept = grpc.stream_stream_rpc_method_handler(self._accept)
        service, method = METHOD.strip("/").split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: accept}),))
        for add in self._extensions:
            add(server)
        self.port = _open_port(server, self._listen)
        await server.start()
        self._server = server
        for peer in sorted(self._counters):
            if self._me < peer:
                task = asyncio.create_task(self._dial(peer), name=f"dial {peer}")
                self._tasks[task] = None
                task.add_done_callback(self._tasks.pop)

    def send(self, to: PeerId, body: Body) -> None:
        """Best effort, at once. What waits for the same peer is replaced, the newest wins; rumors wait in line."""
        if (link := self._links.get(to)) is not None:
            link.put(body)

    async def stop(self, flush_s: float) -> None:
        """Send what is queued for at most `flush_s`, then close everything."""
        self._stopping = True
        for task, link in self._tasks.items():
            if link is None:
                task.cancel()
            else:
                link.end()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=flush_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._server is not None:
            await self._server.stop(grace=LINGER_S)  # every link is closed by now, so it takes no time

    def linked(self, peer: PeerId) -> bool:
        """Whether there is a link to `peer` now."""
        return peer in self._links

    def counters(self, peer: PeerId) -> Counters:
        """What passed between us and one of `links`."""
        return self._counters[peer]

    @property
    def bytes_sent(self) -> int:
        """Bytes of frames sent to all neighbours since the start."""
        return sum(counters.bytes_sent for counters in self._counters.values())

    @property
    def bytes_received(self) -> int:
        """Bytes of frames received from all neighbours since the start."""
        return sum(counters.bytes_received for counters in self._counters.values())

    # Dialling -----------------------------------------------------------------------------------------

    async def _dial(self, peer: PeerId) -> None:
        """Link with `peer`, again and again."""
        loop, counters, attempts = asyncio.get_running_loop(), self._counters[peer], 0
        failing_since, told = loop.time(), False
        while not self._stopping:
            began_at, links_before = loop.time(), counters.links_opened
            try:
                await self._dial_once(peer)
            except Refused as refusal:
                self._report(peer, str(refusal))
                await asyncio.sleep(REFUSED_RETRY_S * self._random.uniform(0.5, 1.5))
                continue
            except Broken as broken:
                counters.trouble = str(broken)
            ended_at, opened = loop.time(), counters.links_opened > links_before
            # A link that lasted was a success; one that ends at once, again and again, must not be a busy loop.
            attempts = 0 if opened and ended_at - began_at > RETRY_S_MAX else attempts + 1
            if opened:
                failing_since, told = ended_at, False
            elif not told and ended_at - failing_since > UNREACHABLE_S:
                told = True
                self._unreachable(peer, f"{self._peers[peer]} {counters.trouble}")
            if not self._stopping:
                await asyncio.sleep(self._random.uniform(0, min(RETRY_S_MAX, RETRY_S_FIRST * 2 ** min(attempts, 10))))

    async def _dial_once(self, peer: PeerId) -> None:
        assembler = Assembler(self._payload_bytes_max)
        async with _open_channel(self._peers[peer]) as channel:
            stream = Stream(channel.stream_stream(METHOD)())
            stream.counters = self._counters[peer]
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    await stream.write(encode_hello(self._hello()))
                    theirs = await read_hello(stream, assembler)
                    await self._object(stream, theirs, peer)
            except TimeoutError:
                raise Broken("does not answer in time") from None
            await self._run(Link(peer, theirs.incarnation, stream, assembler), theirs.turn)

    # Accepting ----------------------------------------------------------------------------------------

    async def _accept(self, _requests: object, context: Any) -> None:
        """gRPC calls this for every stream opened to us; its end ends the stream, its cancellation means it is gone."""
        if self._stopping:
            return
        task = asyncio.create_task(self._serve(context), name="accept")  # gRPC's own goes on until its status is sent
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        try:
            await task
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            # `stop` gave up the task; returning lets gRPC close the stream in good order.

    async def _serve(self, context: Any) -> None:
        who = PeerId(_host(context.peer()))
        stream, assembler = Stream(context), Assembler(self._payload_bytes_max)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                theirs = await read_hello(stream, assembler)
                who = theirs.peer
                await self._object(stream, theirs, None)
                self._counters[who].bytes_received += stream.counters.bytes_received
                stream.counters = self._counters[who]
                await stream.write(encode_hello(self._hello()))
            await self._run(Link(who, theirs.incarnation, stream, assembler), theirs.turn)
        except Refused as refusal:
            self._report(who, str(refusal))
        except (Broken, TimeoutError):
            pass  # whoever it was, it is its turn to dial again

    # Both ---------------------------------------------------------------------------------------------

    def _hello(self) -> Hello:
        return Hello(self._manifest.swarm_id, self._manifest.text, self._me, self._incarnation, self._where())

    async def _object(self, stream: Stream, theirs: Hello, dialled: PeerId | None) -> None:
        """Refuse the link unless we should have it. `dialled`: whom we called, None when we were called."""
        mine = self._hello()
        if problem := _mismatch(mine, theirs):
            await refuse(stream, _mismatch(theirs, mine))
        elif problem := self._misplaced(theirs.peer, dialled):
            await refuse(stream, problem)
        if problem:
            raise Refused(f"refused: {problem}")

    def _misplaced(self, peer: PeerId, dialled: PeerId | None) -> str:
        if dialled is not None:
            return "" if peer == dialled else f"{peer} answers at the address of {dialled}"
        if peer == self._me:
            return f"a second peer has the name {peer}"
        if peer not in self._peers:
            return f"{peer} is not in the roster of {self._me}"
        if peer not in self._counters:
            return f"{peer} is not a neighbour of {self._me}"
        if self._me < peer:
            return f"{self._me} dials {peer}, not the other way round: the smaller id does"
        return ""

    async def _run(self, link: Link, turn: Turn) -> None:
        """From LinkUp to LinkDown."""
        peer, task = link.peer, asyncio.current_task()
        assert task is not None
        if (old := self._links.pop(peer, None)) is not None:
            old.abort()
            self._deliver(LinkDown(peer))
        self._links[peer] = link
        self._tasks[task] = link
        counters = self._counters[peer]
        counters.links_opened += 1
        counters.trouble = ""
        self._reported.pop(peer, None)
        self._deliver(LinkUp(peer, link.incarnation, turn))
        try:
            await link.run(self._receive)
        finally:
            self._tasks[task] = None
            counters.trouble = "the link is closed"  # until the next attempt knows more
            if self._links.get(peer) is link:
                del self._links[peer]
                self._deliver(LinkDown(peer))

    def _receive(self, envelope: Envelope) -> None:
        self._deliver(Received(envelope))

    def _report(self, who: str, reason: str) -> None:
        """Count a refusal, and tell of it unless it is the same as the last one of that peer."""
        if (counters := self._counters.get(PeerId(who))) is not None:
            counters.refusals += 1
            counters.trouble = reason
        if self._reported.pop(who, None) != reason:
            self._refused(who, reason)
        self._reported[who] = reason
        if len(self._reported) > REPORTED_MAX:
            del self._reported[next(iter(self._reported))]


def _mismatch(mine: Hello, theirs: Hello) -> str:
    """Why two hellos cannot belong to one swarm, seen from `mine`; "" when they do."""
    if mine.protocol != theirs.protocol:
        return f"protocol version: ours {mine.protocol}, theirs {theirs.protocol}"
    if mine.swarm_id != theirs.swarm_id:
        return first_difference(mine.manifest, theirs.manifest) or "swarm id: differs, though the manifests are equal"
    return ""


# Credentials: the only two places where a port or a connection is opened. Without encryption, for now. ---------


def _open_port(server: grpc.aio.Server, address: str) -> int:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise LocalError(f"{address}: cannot listen there; the port may be in use, or the address not this machine's")
    return port


def _open_channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


# Small things -------------------------------------------------------------------------------------------------


def _host(peer: str) -> str:
    """gRPC's `ipv4:127.0.0.1:40312` -> `127.0.0.1`: the port is another one each time."""
    return peer.partition(":")[2].rpartition(":")[0] or peer


def _raise_malloc_thresholds() -> None:
    """Let glibc keep the memory of a frame for the next frame.

    By default it gives blocks above 128 KiB back to the kernel, and every chunk pays for fresh pages: 1.5 instead of
    0.9 s of CPU time per GB received, measured. Freeing one large block raises that threshold to its size
    (mallopt(3), M_MMAP_THRESHOLD; 32 MiB is its limit). The block is never touched; elsewhere this does nothing.
    """
    bytes(31 * 2**20)
