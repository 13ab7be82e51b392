"""The two ends of a link benchmark, for code that has no event loop: peer/lab/bench_link.py.

A `Source` sends updates; `serve_sink`, in another process, answers each with a heartbeat of the same turn.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Self

from murmurate.peer.manifest import Manifest
from murmurate.peer.protocol.events import Body, Event, Heartbeat, LinkUp, Payload, PeerId, Received, Turn, Update

from .transport import GrpcTransport

SOURCE, SINK = PeerId("a-source"), PeerId("b-sink")  # the smaller id dials
ANSWER_S_MAX = 120.0


class Source:
    """The sending end, one transfer at a time. A context manager."""

    def __init__(self, port: int) -> None:
        """`port`: where the sink listens on this machine."""
        self._runner = asyncio.Runner()
        self._round = 0
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()  # one answer per transfer
        self._transport = _transport(SOURCE, {SINK: f"127.0.0.1:{port}"}, self._inbox.put_nowait)

    def __enter__(self) -> Self:
        self._runner.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._transport.stop(flush_s=0.0))
        self._runner.close()

    def transfer(self, payload: Payload) -> None:
        """Send one update; returns when the sink has it whole."""
        self._runner.run(self._transfer(payload))

    async def _open(self) -> None:
        await self._transport.start()
        async with asyncio.timeout(ANSWER_S_MAX):
            while not isinstance(await self._inbox.get(), LinkUp):
                pass

    async def _transfer(self, payload: Payload) -> None:
        self._round += 1
        turn = Turn(self._round)
        self._transport.send(SINK, Update(turn, payload))
        async with asyncio.timeout(ANSWER_S_MAX):
            while _body(await self._inbox.get()) != Heartbeat(turn):
                pass


def serve_sink(ready: Callable[[int], None], wait: Callable[[], object]) -> None:
    """Be the receiving end. `ready` is told the port; the end comes when `wait`, in a thread of its own, returns."""
    asyncio.run(_serve(ready, wait))


async def _serve(ready: Callable[[int], None], wait: Callable[[], object]) -> None:
    def answer(event: Event) -> None:
        if isinstance(body := _body(event), Update):
            transport.send(SOURCE, Heartbeat(body.turn))

    transport = _transport(SINK, {SOURCE: "127.0.0.1:0"}, answer)
    await transport.start()
    ready(transport.port)
    await asyncio.to_thread(wait)
    await transport.stop(flush_s=0.0)


def _transport(me: PeerId, others: dict[PeerId, str], deliver: Callable[[Event], None]) -> GrpcTransport:
    return GrpcTransport(
        me=me,
        incarnation=1,
        listen="127.0.0.1:0",
        peers={me: "127.0.0.1:0", **others},
        links=list(others),
        manifest=Manifest.of({"benchmark": "link"}),
        where=lambda: Turn(0),
        payload_bytes_max=2**40,
        deliver=deliver,
        refused=lambda _who, _why: None,
        random=random.Random(0),
    )


def _body(event: Event) -> Body | None:
    return event.envelope.body if isinstance(event, Received) else None
