"""A handover as bytes: on links, in the log, and the states themselves; and what is refused of all that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmurate.peer.errors import LocalError, RemoteError
from murmurate.peer.learning.exchange.seeds import Ledger, Terms
from murmurate.peer.learning.exchange.states import NoState, cut_up, pack_steps, pack_table, read_steps, read_table
from murmurate.peer.protocol.events import Ask, Body, Fetch, Offer, Piece
from murmurate.peer.protocol.ground import PIECE_BYTES
from murmurate.peer.protocol.records import Batch, FeedState, Fork, Ground, Origin
from murmurate.peer.runtime.log import Log
from murmurate.proto import link_pb2 as pb

from .frames import check_that_it_arrives, listening
from .seeds_peers import SWARM

A, B = Origin(b"a" * 32), Origin(b"b" * 32)


def batch(origin: Origin, number: int, codes: bytes = b"1234") -> Batch:
    return Batch(origin, number, number, codes if number else origin[:1], b"s" * 64)


FORK = Fork(batch(B, 3), batch(B, 3, b"5678"))
GROUND = Ground(
    (FeedState(A, 10, b"h" * 16), FeedState(B, 3, b"i" * 16, 8)),
    (12, 2),
    (batch(A, 0), batch(B, 0)),
    (FORK,),
)
BODIES: list[Body] = [
    Ask(),
    Ask(GROUND.cut),
    Offer(GROUND, (b"1" * 32, b"2" * 32)),
    Fetch(b"n" * 32, 7),
    Piece(b"n" * 32, 7, b"data"),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_what_is_said_arrives(body: Body) -> None:
    check_that_it_arrives(body)


def wrong_frames() -> Iterator[pb.Frame]:
    cut = pb.Vector(origins=A, counts=[1], heads=b"h" * 16)
    yield pb.Frame(piece=pb.Piece(capture=b"n" * 32, data=bytes(PIECE_BYTES + 1)))
    yield pb.Frame(piece=pb.Piece(capture=b"n", data=b""))
    yield pb.Frame(fetch=pb.Fetch(capture=b"n" * 33))
    yield pb.Frame(offer=pb.Offer(ground=pb.Ground(cut=cut), digests=b"1" * 32))
    yield pb.Frame(offer=pb.Offer(digests=b"1" * 31))
    yield pb.Frame(offer=pb.Offer(digests=b"1" * 32 * 4097))
    yield pb.Frame(offer=pb.Offer())
    yield pb.Frame(ask=pb.Ask(cut=pb.Vector(origins=A, counts=[1], heads=b"h" * 16, floors=[1])))
    yield pb.Frame(ask=pb.Ask(cut=pb.Vector(origins=A, counts=[1], heads=b"h" * 16, partial=True)))
    yield pb.Frame(ask=pb.Ask(cut=pb.Vector(origins=A, counts=[1, 2], heads=b"h" * 16)))


@pytest.mark.parametrize("frame", list(wrong_frames()))
def test_what_has_another_form_is_refused(frame: pb.Frame) -> None:
    with pytest.raises(RemoteError):
        listening().feed(frame.SerializeToString())


# In the log ---------------------------------------------------------------------------------------------


def test_a_state_takes_the_place_of_what_it_covers(tmp_path: Path) -> None:
    log = Log(tmp_path, SWARM, lambda _: True)
    log.open()
    log.append([batch(A, number) for number in range(13)], (FORK,))
    log.append([batch(B, number) for number in range(2)])
    long = log.path.stat().st_size
    log.install(GROUND, (b"state",))
    log.append([batch(A, 13), batch(A, 15)])
    log.close()
    again = Log(tmp_path, SWARM, lambda _: True)
    restored = again.open()
    assert restored.ground == GROUND
    assert (again.take_pieces(), again.take_pieces()) == ((b"state",), ())
    assert [(one.origin, one.number) for one in restored.batches] == [(A, 10), (A, 11), (A, 12), (A, 13)]
    assert restored.rulings == (FORK,)
    assert log.path.stat().st_size < long
    # Another one above it.
    later = Ground((FeedState(A, 12, b"h" * 16),), (12,), (batch(A, 0),), ())
    again.install(later, (b"other",))
    again.close()
    third = Log(tmp_path, SWARM, lambda _: True)
    restored = third.open()
    assert (restored.ground, third.take_pieces()) == (later, (b"other",))
    assert [one.number for one in restored.batches] == [12, 13]
    third.close()


def test_a_state_whose_births_nobody_signed_is_damage(tmp_path: Path) -> None:
    log = Log(tmp_path, SWARM, lambda _: True)
    log.open()
    log.install(GROUND, (b"state",))
    log.close()
    with pytest.raises(LocalError, match="a signature is wrong"):
        Log(tmp_path, SWARM, lambda _: False).open()


# States -------------------------------------------------------------------------------------------------

ENTRIES = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300), min_size=1, max_size=30)


@given(ENTRIES)
def test_a_table_is_read_as_it_was_written(entries: list[int]) -> None:
    table = np.array([entries], dtype=np.int64)
    data = pack_table(table)
    assert (read_table((data[:3], data[3:]), 1, len(entries)) == table).all()
    expected = b"".join(map(_varint, ((entry << 1) ^ (entry >> 63) for entry in entries)))
    assert data == expected


def _varint(value: int) -> bytes:
    """As protobuf's encoding says."""
    value &= 2**64 - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


@given(st.binary(max_size=40), st.integers(1, 4))
def test_any_bytes_are_a_table_or_none(data: bytes, pool: int) -> None:
    try:
        table = read_table((data,), 1, pool)
    except NoState:
        return
    assert pack_table(table) == data


def test_steps_are_whole_numbers_of_four_bytes() -> None:
    steps = np.array([0, -1, 2**31 - 1, 1 - 2**31], dtype=np.int64)
    assert (read_steps((pack_steps(steps),), 4) == steps).all()
    assert pack_steps(np.array([2**31])) == b""
    with pytest.raises(NoState):
        read_steps((pack_steps(steps),), 5)
    assert list(map(len, cut_up(bytes(PIECE_BYTES + 1)))) == [PIECE_BYTES, 1]


@given(at=st.integers(1, 6), end=st.integers(6, 9), closed=st.none() | st.integers(0, 40), pro=st.booleans())
def test_a_ledger_on_a_state_goes_on_as_one_with_the_log(at: int, end: int, closed: int | None, pro: bool) -> None:
    terms = Terms("pool", records=4, pool=8, sent_ids=pro)
    feed = [batch(A, number, bytes(range(number, number + terms.batch_bytes))) for number in range(1, end)]
    whole, giver, joiner = (Ledger(terms, SWARM) for _ in range(3))
    giver.fold(feed[: max(at - 1, end - 2)])
    table = giver.table({A: at})
    joiner.fold(feed[:1])
    joiner.install((FeedState(A, at, b"h" * 16),), (at - 1,), table)
    joiner.fold(feed[at - 1 :])
    whole.fold(feed)
    assert (joiner.table({A: end}) == whole.table({A: end})).all()
    assert (joiner.importance() == whole.importance()).all()
    assert (joiner.records, joiner.counts) == (whole.records, whole.counts)
    if closed is not None and closed >= (at - 1) * 4:
        joiner.fold((), ((A, closed),))
        whole.fold((), ((A, closed),))
        assert (joiner.table({A: end}) == whole.table({A: end})).all()
    if at > 1:
        with pytest.raises(LocalError):
            joiner.table({A: at - 1})
