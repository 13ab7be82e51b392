"""One link: a gRPC stream with a peer at its other end, from the first frame to the last.

    frames in  -> Assembler -> deliver(Received(...))
    frames out <- Outbox    <- put(body)

Rules
* The writer waits for gRPC to take each frame, so a slow peer slows its own link and nothing piles up here.
* Whatever goes wrong at the other end or on the way is `Broken` (try again) or `Refused` (try again much later).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from murmurate.peer.errors import RemoteError
from murmurate.peer.protocol.events import Body, Envelope, PeerId

from .wire import Assembler, Hello, Outbox, Refusal, encode_refusal

LINGER_S = 1.0
"""Longest wait for the other side to take our last frame and close as well. (a guess)"""

REASONS = {
    grpc.StatusCode.UNAVAILABLE: "cannot be reached",
    grpc.StatusCode.CANCELLED: "closed the link",
    grpc.StatusCode.UNIMPLEMENTED: "answers, but is no peer: it does not know our protocol",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "a frame or the number of links is above a limit",
    grpc.StatusCode.DEADLINE_EXCEEDED: "does not answer in time",
    grpc.StatusCode.UNAUTHENTICATED: "does not accept our certificate",
    grpc.StatusCode.PERMISSION_DENIED: "does not let us in",
}
"""What a gRPC status means for a link; every other one is named as it is."""


class Broken(Exception):  # noqa: N818 - an outcome, not an error of this program
    """The link is no more; the text says why."""


class Refused(Exception):  # noqa: N818 - the same
    """One side does not want the link; the text says who and why."""


@dataclass(slots=True)
class Counters:
    """What passed between us and one peer, over all links since the start. Bytes are those of our frames."""

    bytes_sent: int = 0
    bytes_received: int = 0
    links_opened: int = 0
    refusals: int = 0
    trouble: str = ""
    """Why there is no link, as far as known; empty while there is one."""


class Stream:
    """Either end of a gRPC stream: whole frames in and out, and one way to fail."""

    def __init__(self, end: Any) -> None:
        self._end = end  # grpc.aio.StreamStreamCall or grpc.aio.ServicerContext: they share read and write
        self.dialled = isinstance(end, grpc.aio.StreamStreamCall)
        self.counters = Counters()  # the transport puts the peer's own here once it knows who this is

    async def read(self) -> bytes | None:
        """The next frame; None when the other side ended the stream in good order. Raises Broken."""
        try:
            frame = await self._end.read()
        except (grpc.RpcError, grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError) as error:
            raise Broken(reason_of(error)) from None
        if not isinstance(frame, bytes):  # grpc.aio.EOF, which gRPC's type stubs do not know
            return None
        self.counters.bytes_received += len(frame)
        return frame

    async def write(self, frame: bytes) -> None:
        """Returns when gRPC took the frame over. Raises Broken."""
        try:
            await self._end.write(frame)
        except (grpc.RpcError, grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError) as error:
            raise Broken(reason_of(error)) from None
        self.counters.bytes_sent += len(frame)

    async def end(self) -> None:
        """Tell the other side that nothing follows. An accepter does so by returning from its handler instead."""
        if self.dialled:
            await self._end.done_writing()

    async def drain(self) -> None:
        """After `end`: wait until the other side has read everything and closed as well, for a moment at most."""
        try:
            async with asyncio.timeout(LINGER_S):
                while self.dialled and await self.read() is not None:
                    pass
        except (TimeoutError, Broken):
            pass


class Link:
    """A stream after both hellos. `run` lasts as long as the link does."""

    def __init__(self, peer: PeerId, incarnation: int, stream: Stream, assembler: Assembler) -> None:
        self.peer = peer
        self.incarnation = incarnation
        self._stream = stream
        self._assembler = assembler
        self._outbox = Outbox()
        self._wake = asyncio.Event()
        self._jobs: tuple[asyncio.Task[None], ...] = ()

    def put(self, body: Body) -> None:
        """Queue a body for the writer."""
        self._outbox.put(body)
        self._wake.set()

    def end(self) -> None:
        """Send what waits, then close."""
        self._outbox.end()
        self._wake.set()

    def abort(self) -> None:
        """Close now."""
        for job in self._jobs:
            job.cancel()

    async def run(self, deliver: Callable[[Envelope], None]) -> None:
        """Read and write until either side ends the link. Raises Broken or Refused unless it ended in good order."""
        reader = asyncio.create_task(self._read(deliver))
        writer = asyncio.create_task(self._write())
        self._jobs = (reader, writer)
        try:
            await asyncio.wait(self._jobs, return_when=asyncio.FIRST_COMPLETED)
            if self._outbox.ended:  # by us, so our last frames are worth a wait
                await asyncio.wait((writer,), timeout=LINGER_S)
                if reader.done():
                    await self._stream.drain()
                elif self._stream.dialled:
                    await asyncio.wait((reader,), timeout=LINGER_S)
        finally:
            self.abort()
            await asyncio.wait(self._jobs)
        for job in self._jobs:
            if not job.cancelled() and (fault := job.exception()) is not None:
                raise fault

    async def _read(self, deliver: Callable[[Envelope], None]) -> None:
        while (frame := await self._stream.read()) is not None:
            self._take(frame, deliver)

    def _take(self, frame: bytes, deliver: Callable[[Envelope], None]) -> None:
        """Not a part of the loop above: there, a variable would hold on to a payload until the next one is complete."""
        try:
            body = self._assembler.feed(frame)
        except RemoteError as error:
            self._outbox.refuse(str(error))
            self._wake.set()
            raise Refused(f"refused: {error}") from None
        if isinstance(body, Refusal):
            raise Refused(f"refuses us: {body.reason}")
        if body is not None:
            assert not isinstance(body, Hello)  # the assembler lets no second one pass
            deliver(Envelope(self.peer, self.incarnation, body))

    async def _write(self) -> None:
        while True:
            frame = self._outbox.next_frame()
            if frame is not None:
                await self._stream.write(frame)
            elif self._outbox.ended:
                return await self._stream.end()
            else:
                self._wake.clear()
                await self._wake.wait()


async def read_hello(stream: Stream, assembler: Assembler) -> Hello:
    """The other side's first frame. Raises Broken or Refused."""
    frame = await stream.read()
    if frame is None:
        raise Broken("closed the link without a word")
    try:
        hello = assembler.feed(frame)
    except RemoteError as error:
        await refuse(stream, str(error))
        raise Refused(f"refused: {error}") from None
    if isinstance(hello, Refusal):
        raise Refused(f"refuses us: {hello.reason}")
    assert isinstance(hello, Hello)  # the assembler lets nothing else be first
    return hello


async def refuse(stream: Stream, reason: str) -> None:
    """Say why, as the last word."""
    await stream.write(encode_refusal(reason))
    await stream.end()
    await stream.drain()


def reason_of(error: BaseException) -> str:
    """A gRPC fault in words."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return "the link is closed"
    code = error.code()
    detail = (error.details() or "").strip().splitlines()
    meaning = REASONS.get(code, f"gRPC status {code.name}")
    return f"{meaning} ({detail[0][:200]})" if detail else meaning
