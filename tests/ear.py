"""Transports on loopback that remember what they hear, and strangers who write their frames by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import grpc.aio

from murmurate.peer.manifest import Manifest
from murmurate.peer.protocol.events import (
    Body,
    Event,
    LinkUp,
    PeerId,
    Received,
    Turn,
)
from murmurate.peer.runtime.transport import METHOD, GrpcTransport
from murmurate.peer.runtime.wire import (
    CHUNK_BYTES,
    PROTOCOL,
    Assembler,
    Hello,
    encode_hello,
)

SWARM = Manifest.of({"mixing": {"f": 2}, "swarm": "test"})
OTHER = Manifest.of({"mixing": {"f": 1}, "swarm": "test"})
PATIENCE_S = 60.0  # only a broken test waits this long
A, B, C, Z = (PeerId(name) for name in "abcz")


class Ear:
    """A transport, and all that it delivers and reports, in order."""

    def __init__(self, me: PeerId, peers: dict[PeerId, str], links: Sequence[PeerId], **changes: Any) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.refusals: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.asked = 0
        self.waiting: list[tuple[int, asyncio.Event]] = []
        settings: dict[str, Any] = {
            "me": me,
            "incarnation": 1,
            "listen": "127.0.0.1:0",
            "peers": {me: "127.0.0.1:0", **peers},
            "links": links,
            "manifest": SWARM,
            "where": self._where,
            "payload_bytes_max": 8 * CHUNK_BYTES,
            "deliver": self.events.put_nowait,
            "refused": self._refused,
            "random": random.Random(0),
        }
        self.transport = GrpcTransport(**{**settings, **changes})

    def _refused(self, who: str, why: str) -> None:
        self.refusals.put_nowait((who, why))

    def _where(self) -> Turn:
        """A hello is made only for an attempt to link, so counting the calls counts the attempts."""
        self.asked += 1
        for count, reached in self.waiting:
            if self.asked >= count:
                reached.set()
        return Turn(5, 1)

    async def attempts(self, count: int) -> None:
        reached = asyncio.Event()
        self.waiting.append((self.asked + count, reached))
        await reached.wait()

    async def next(self) -> Event:
        return await self.events.get()

    async def body(self) -> Body:
        event = await self.events.get()
        assert isinstance(event, Received)
        return event.envelope.body

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.transport.port}"


@asynccontextmanager
async def ear(
    me: PeerId, peers: dict[PeerId, str] | None = None, links: Sequence[PeerId] | None = None, **changes: Any
) -> AsyncGenerator[Ear]:
    peers = peers or {}
    listener = Ear(me, peers, list(peers) if links is None else links, **changes)
    await listener.transport.start()
    try:
        yield listener
    finally:
        await listener.transport.stop(flush_s=0.0)


@asynccontextmanager
async def linked_pair(**changes: Any) -> AsyncGenerator[tuple[Ear, Ear]]:
    async with ear(B, {A: "127.0.0.1:0"}, **changes) as b, ear(A, {B: b.address}, **changes) as a:
        assert await a.next() == LinkUp(B, 1, Turn(5, 1))
        assert await b.next() == LinkUp(A, 1, Turn(5, 1))
        yield a, b


class Raw:
    """The dialling end of a link whose frames the test writes itself."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.assembler = Assembler(2**30)

    async def say(self, *frames: bytes) -> None:
        for frame in frames:
            await self.call.write(frame)

    async def hear(self) -> object:
        """The next value; None when the other end closed in good order."""
        while isinstance(frame := await self.call.read(), bytes):
            if (value := self.assembler.feed(frame)) is not None:
                return value
        return None


@asynccontextmanager
async def raw(address: str, me: PeerId | None = None) -> AsyncGenerator[Raw]:
    """`me`: say hello as this peer and wait for the answer."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stranger = Raw(channel.stream_stream(METHOD)())
        if me is not None:
            await stranger.say(encode_hello(hello(me)))
            assert isinstance(await stranger.hear(), Hello)
        yield stranger


def hello(peer: PeerId, manifest: Manifest = SWARM, protocol: int = PROTOCOL) -> Hello:
    return Hello(manifest.swarm_id, manifest.text, peer, 4, Turn(2), protocol)


Run = Callable[[Callable[[], Awaitable[None]]], None]


@contextmanager
def runner() -> Generator[Run, None, None]:
    """Runs tests in one event loop: gRPC's answers to what a test gave up may still come during the next one."""
    with asyncio.Runner() as loop:
        yield lambda test: loop.run(leave_no_task(test))


async def leave_no_task(test: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await test()
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    assert [name for name in names if name.startswith(("GrpcTransport.", "Link."))] == []
