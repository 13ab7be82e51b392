"""Whom a transport refuses, how it says so, and what strangers can do to it. Tests wait for events, not for time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Generator

import grpc
import grpc.aio
import pytest

from murmurate.peer.protocol.events import (
    Goodbye,
    LinkDown,
    LinkUp,
    PeerId,
    Turn,
    Update,
)
from murmurate.peer.runtime import transport as module
from murmurate.peer.runtime.link import reason_of
from murmurate.peer.runtime.wire import (
    CHUNK_BYTES,
    FRAME_BYTES_MAX,
    PROTOCOL,
    Refusal,
    encode_body,
    encode_hello,
    encode_refusal,
)
from murmurate.proto import link_pb2 as pb

from .ear import OTHER, A, B, C, Run, Z, ear, hello, raw, runner


@pytest.fixture(scope="module")
def run() -> Generator[Run, None, None]:
    with runner() as together:
        yield together


# Refusals -------------------------------------------------------------------------------------------


def test_another_manifest_is_refused_by_name_once_on_each_side(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_RETRY_S", 0.001)

    async def test() -> None:
        async with ear(B, {A: "127.0.0.1:0"}) as b, ear(A, {B: b.address}, manifest=OTHER) as a:
            assert await b.refusals.get() == (A, "refused: mixing.f: ours 2, theirs 1")
            assert await a.refusals.get() == (B, "refuses us: mixing.f: ours 1, theirs 2")
            await a.attempts(4)  # it never gives up
            assert (a.refusals.empty(), b.refusals.empty()) == (True, True)
            assert a.transport.counters(B).refusals >= 3
            assert a.transport.counters(B).trouble == "refuses us: mixing.f: ours 1, theirs 2"
            assert (a.events.empty(), b.events.empty()) == (True, True)

    run(test)


@pytest.mark.parametrize(
    ("frame", "who", "reason"),
    [
        (encode_hello(hello(A, protocol=1)), "a", f"protocol version: ours 1, theirs {PROTOCOL}"),
        (encode_hello(hello(A, OTHER)), "a", "mixing.f: ours 1, theirs 2"),
        (encode_hello(hello(PeerId("eve"))), "eve", "eve is not in the roster of b"),
        (encode_hello(hello(Z)), "z", "z is not a neighbour of b"),
        (encode_hello(hello(C)), "c", "b dials c, not the other way round: the smaller id does"),
        (encode_hello(hello(B)), "b", "a second peer has the name b"),
        (next(encode_body(Goodbye())), "127.0.0.1", "the first frame is goodbye, not hello"),
        (b"\xff\xff", "127.0.0.1", "a frame of 2 bytes that is no frame of this protocol"),
    ],
)
def test_who_does_not_belong_is_told_why(run: Run, frame: bytes, who: str, reason: str) -> None:
    async def test() -> None:
        peers = {A: "127.0.0.1:0", C: "127.0.0.1:9", Z: "127.0.0.1:9"}
        async with ear(B, peers, [A, C]) as b, raw(b.address) as stranger:
            await stranger.say(frame)
            assert await stranger.hear() == Refusal(reason)
            assert await stranger.hear() is None
            assert (await b.refusals.get())[0] == who
            assert b.events.empty()

    run(test)


def test_another_peer_at_the_address_is_refused_by_the_dialler(run: Run) -> None:
    async def test() -> None:
        async with ear(C, {A: "127.0.0.1:0"}) as c, ear(A, {B: c.address}) as a:
            assert await a.refusals.get() == (B, "refused: c answers at the address of b")
            assert await c.refusals.get() == (A, "refuses us: c answers at the address of b")
            assert a.events.empty()

    run(test)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([pb.Frame(chunk=b"x")], "a chunk, but no update has begun"),
        (
            [pb.Frame(begin=pb.Begin(size_bytes=2**33))],
            f"a payload of {2**33} bytes: at most {8 * CHUNK_BYTES} are accepted",
        ),
        ([pb.Frame(heartbeat=pb.Heartbeat()), pb.Frame()], "an empty frame, or one of a kind unknown here"),
    ],
)
def test_a_malformed_frame_ends_the_link_with_a_reason(run: Run, frames: list[pb.Frame], reason: str) -> None:
    async def test() -> None:
        async with ear(B, {A: "127.0.0.1:0"}) as b, raw(b.address, A) as liar:
            await liar.say(*(frame.SerializeToString() for frame in frames))
            assert await liar.hear() == Refusal(reason)
            assert await b.refusals.get() == (A, f"refused: {reason}")
            assert isinstance(await b.next(), LinkUp)
            rest = [await b.next() for _ in frames]
            assert rest[-1] == LinkDown(A)
            assert b.transport.counters(A).refusals == 1

    run(test)


def test_a_dialler_that_refuses_says_so_even_in_the_middle_of_a_transfer(run: Run) -> None:
    async def test() -> None:
        async with ear(B, {A: "127.0.0.1:0"}) as b, ear(A, {B: b.address}, payload_bytes_max=100) as a:
            assert isinstance(await a.next(), LinkUp)
            assert isinstance(await b.next(), LinkUp)
            a.transport.send(B, Update(Turn(1), bytes(8 * CHUNK_BYTES)))
            b.transport.send(A, Update(Turn(1), bytes(101)))
            reason = "a payload of 101 bytes: at most 100 are accepted"
            assert await a.refusals.get() == (B, f"refused: {reason}")
            assert await b.refusals.get() == (A, f"refuses us: {reason}")
            assert await a.next() == LinkDown(B)

    run(test)


def test_a_refusal_in_mid_link_is_reported_and_ends_it(run: Run) -> None:
    async def test() -> None:
        async with ear(B, {A: "127.0.0.1:0"}) as b, raw(b.address, A) as other:
            await other.say(encode_refusal("enough"))
            assert await b.refusals.get() == (A, "refuses us: enough")
            assert [await b.next(), await b.next()] == [LinkUp(A, 4, Turn(2)), LinkDown(A)]

    run(test)


def test_invented_names_do_not_fill_the_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORTED_MAX", 2)

    async def test() -> None:
        async with ear(B) as b:
            for name in ("p", "q", "q", "r", "p"):  # q again is no news, p again is: it was forgotten
                async with raw(b.address) as stranger:
                    await stranger.say(encode_hello(hello(PeerId(name))))
                    assert isinstance(await stranger.hear(), Refusal)
                    assert await stranger.hear() is None
            assert [(await b.refusals.get())[0] for _ in range(4)] == ["p", "q", "r", "p"]

    run(test)


# Strangers do no harm -------------------------------------------------------------------------------


def test_after_random_bytes_on_its_port_a_transport_still_serves(run: Run) -> None:
    async def test() -> None:
        rng = random.Random(0)
        async with ear(B, {A: "127.0.0.1:0"}) as b:
            for size in (0, 1, 100, 10_000, 100_000):
                reader, writer = await asyncio.open_connection("127.0.0.1", b.transport.port)
                preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if size % 3 else b""
                writer.write(preface + rng.randbytes(size))
                if size < 100:
                    writer.write_eof()
                try:
                    while await reader.read(65536):
                        pass
                except ConnectionResetError:
                    pass
                writer.close()
            async with ear(A, {B: b.address}) as a:
                assert await a.next() == LinkUp(B, 1, Turn(5, 1))
                a.transport.send(B, Update(Turn(1), b"well"))
                assert await b.next() == LinkUp(A, 1, Turn(5, 1))
                assert await b.body() == Update(Turn(1), b"well")

    run(test)


def test_a_frame_above_the_limit_never_reaches_us(run: Run) -> None:
    async def test() -> None:
        async with ear(B, {A: "127.0.0.1:0"}) as b, raw(b.address, A) as stranger:
            await stranger.say(bytes(FRAME_BYTES_MAX + 1))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stranger.hear()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert reason_of(caught.value).startswith("a frame or the number of links is above a limit (")
            assert [await b.next(), await b.next()] == [LinkUp(A, 4, Turn(2)), LinkDown(A)]

    run(test)


def test_a_stream_without_a_hello_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.01)

    async def test() -> None:
        async with ear(B, {A: "127.0.0.1:0"}) as b, raw(b.address) as mute:
            assert await mute.hear() is None
            assert b.events.empty()

    run(test)
