"""Links between real transports on loopback. Tests wait for events, not for time."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Generator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from murmurate.peer.errors import LocalError
from murmurate.peer.lab.bench_link import measure_link
from murmurate.peer.protocol.events import (
    Goodbye,
    Heartbeat,
    LinkDown,
    LinkUp,
    Received,
    Turn,
    Update,
)
from murmurate.peer.runtime import transport
from murmurate.peer.runtime.wire import (
    CHUNK_BYTES,
)

from .ear import PATIENCE_S, A, B, C, Ear, Run, Z, ear, linked_pair, raw, runner


@pytest.fixture(scope="module")
def run() -> Generator[Run, None, None]:
    with runner() as together:
        yield together


# A link carries bodies ----------------------------------------------------------------------------


def test_bodies_cross_a_link_both_ways_in_order(run: Run) -> None:
    async def test() -> None:
        async with linked_pair() as (a, b):
            large = random.Random(0).randbytes(3 * CHUNK_BYTES + 17)
            for near, far, me in ((a, b, A), (b, a, B)):
                far_id = B if me == A else A
                near.transport.send(far_id, Update(Turn(1), b"small"))
                assert await far.body() == Update(Turn(1), b"small")
                near.transport.send(far_id, Update(Turn(2, 1), large))
                event = await far.next()
                assert isinstance(event, Received)
                assert (event.envelope.sender, event.envelope.incarnation) == (me, 1)
                assert isinstance(event.envelope.body, Update)
                assert event.envelope.body.payload == large
                near.transport.send(far_id, Goodbye())
                assert await far.body() == Goodbye()
            sent, received = a.transport.counters(B), b.transport.counters(A)
            assert sent.bytes_sent == received.bytes_received
            assert (sent.links_opened, a.transport.linked(B), b.transport.linked(C)) == (1, True, False)
            assert a.transport.bytes_sent == sent.bytes_sent > len(large)

    run(test)


def test_a_heartbeat_overtakes_a_long_transfer(run: Run) -> None:
    async def test() -> None:
        async with linked_pair() as (a, b):
            a.transport.send(B, Update(Turn(1), bytes(8 * CHUNK_BYTES)))
            a.transport.send(B, Heartbeat(Turn(1)))
            assert await b.body() == Heartbeat(Turn(1))
            assert isinstance(await b.body(), Update)

    run(test)


def test_while_a_peer_does_not_read_only_the_newest_update_waits(run: Run) -> None:
    async def test() -> None:
        async with ear(B, {A: "127.0.0.1:0"}) as b, raw(b.address, A) as slow:
            assert isinstance(await b.next(), LinkUp)
            for round in range(1, 400):  # far more than sockets and flow control can hold
                b.transport.send(A, Update(Turn(round), bytes(CHUNK_BYTES)))
                await asyncio.sleep(0)
            while (update := await slow.hear()) != Update(Turn(399), bytes(CHUNK_BYTES)):
                assert isinstance(update, Update)
            assert b.transport.bytes_sent < 100 * CHUNK_BYTES

    run(test)


def test_a_body_for_a_peer_without_a_link_is_silently_lost(run: Run) -> None:
    async def test() -> None:
        async with ear(A, {B: "127.0.0.1:9"}) as a:
            a.transport.send(B, Heartbeat(Turn(1)))
            a.transport.send(Z, Heartbeat(Turn(1)))
            assert a.events.empty()

    run(test)


# Links end and come back ----------------------------------------------------------------------------


def test_a_restarted_peer_is_linked_again(run: Run) -> None:
    async def test() -> None:
        async with ear(B, {A: "127.0.0.1:0"}) as b, ear(A, {B: b.address}) as a:
            assert await a.next() == LinkUp(B, 1, Turn(5, 1))
            address = b.address
            await b.transport.stop(flush_s=1.0)
            assert await a.next() == LinkDown(B)
            async with ear(B, {A: "127.0.0.1:0"}, listen=address, incarnation=2) as again:
                assert await a.next() == LinkUp(B, 2, Turn(5, 1))
                assert await again.next() == LinkUp(A, 1, Turn(5, 1))
                assert a.transport.counters(B).links_opened == 2

    run(test)


def test_a_dialler_that_vanishes_is_noticed(run: Run) -> None:
    async def test() -> None:
        async with ear(B, {A: "127.0.0.1:0"}) as b:
            async with raw(b.address, A):
                assert await b.next() == LinkUp(A, 4, Turn(2))
            assert await b.next() == LinkDown(A)

    run(test)


def test_a_newer_link_of_the_same_peer_replaces_the_older(run: Run) -> None:
    async def test() -> None:
        async with ear(B, {A: "127.0.0.1:0"}) as b, raw(b.address, A) as old, raw(b.address, A) as new:
            assert [await b.next() for _ in range(3)] == [LinkUp(A, 4, Turn(2)), LinkDown(A), LinkUp(A, 4, Turn(2))]
            assert await old.hear() is None
            b.transport.send(A, Heartbeat(Turn(8)))
            assert await new.hear() == Heartbeat(Turn(8))
            assert b.events.empty()

    run(test)


def test_what_is_queued_at_the_stop_arrives_before_the_link_ends(run: Run) -> None:
    async def test() -> None:
        for stopping, waiting in ((0, 1), (1, 0)):
            async with linked_pair() as pair:
                near, far, to = pair[stopping], pair[waiting], (B, A)[stopping]
                near.transport.send(to, Update(Turn(1), bytes(8 * CHUNK_BYTES)))
                near.transport.send(to, Goodbye())
                await near.transport.stop(flush_s=PATIENCE_S)
                assert isinstance(await far.body(), Update)
                assert await far.body() == Goodbye()
                assert isinstance(await far.next(), LinkDown)

    run(test)


def test_a_stop_does_not_wait_for_a_peer_that_does_not_read(run: Run) -> None:
    async def test() -> None:
        async with ear(B, {A: "127.0.0.1:0"}) as b, raw(b.address, A):
            assert isinstance(await b.next(), LinkUp)
            b.transport.send(A, Update(Turn(1), bytes(200 * CHUNK_BYTES)))
            await b.transport.stop(flush_s=0.01)
            assert await b.next() == LinkDown(A)

    run(test)


def test_a_peer_that_cannot_be_reached_is_told_of_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "UNREACHABLE_S", 0.0)
    told: list[tuple[str, str]] = []

    def unreachable(who: str, why: str) -> None:
        told.append((who, why))

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        async with ear(A, {B: address}, unreachable=unreachable) as a:
            await a.attempts(4)
        ((who, why),) = told
        assert who == B
        assert why.startswith(f"{address} cannot be reached")

    run(test)


def test_an_unreachable_peer_is_trouble_but_no_refusal(run: Run) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            free = server.getsockname()[1]
        async with ear(A, {B: f"127.0.0.1:{free}"}) as a:
            await a.attempts(3)
            assert "cannot be reached" in a.transport.counters(B).trouble
            assert (a.events.empty(), a.refusals.empty()) == (True, True)

    run(test)


def test_another_kind_of_server_at_the_address_is_named(run: Run) -> None:
    async def test() -> None:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with ear(A, {B: f"127.0.0.1:{port}"}) as a:
            await a.attempts(2)
            assert "is no peer" in a.transport.counters(B).trouble
        await server.stop(grace=None)

    run(test)


# The server -----------------------------------------------------------------------------------------


def test_a_port_in_use_is_a_local_error_that_names_it(run: Run) -> None:
    async def test() -> None:
        async with ear(B) as b:
            other = Ear(C, {}, [], listen=b.address)
            with pytest.raises(LocalError, match=b.address):
                await other.transport.start()
            await other.transport.stop(flush_s=0.0)

    run(test)


def test_further_services_share_the_port(run: Run) -> None:
    async def test() -> None:
        b = Ear(B, {}, [])
        b.transport.extend(lambda server: health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server))
        await b.transport.start()
        async with grpc.aio.insecure_channel(b.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            reply = await stub.Check(health_pb2.HealthCheckRequest())
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        await b.transport.stop(flush_s=0.0)

    run(test)


def test_the_benchmark_measures_both_ways() -> None:
    figures = measure_link(3 * CHUNK_BYTES, repeats=2)
    for key in ("tcp_s", "link_s"):
        seconds = figures[key]
        assert len(seconds) == 2
        assert min(seconds) > 0
