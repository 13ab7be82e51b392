"""Records on a link: what goes in comes out, a record costs a byte, any message is values or one kind of error."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmurate.peer.errors import RemoteError
from murmurate.peer.protocol.events import Body, Have, PeerId, Rumor, Turn, Vector
from murmurate.peer.protocol.records import HEAD_BYTES, Batch, FeedState, Fork, Origin, Retraction
from murmurate.peer.runtime import packing
from murmurate.peer.runtime.packing import CODES_BYTES_MAX, FEEDS_MAX, ITEMS_MAX, NUMBER_MAX, RUMOR_BYTES
from murmurate.peer.runtime.wire import FRAME_BYTES_MAX, Assembler, Hello, encode_body, encode_hello
from murmurate.proto import link_pb2 as pb

from .test_wire import mutated

A, B = Origin(b"a" * 32), Origin(b"b" * 32)
SIGNATURE = b"s" * 64
HELLO = encode_hello(Hello(b"i" * 32, "{}", PeerId("ada"), 7, Turn(3)))


def batch(number: int, origin: Origin = A, round: int | None = None, codes: bytes = b"\x01" * 64) -> Batch:
    return Batch(origin, number, number if round is None else round, codes, SIGNATURE)


def through(body: Body) -> list[object]:
    """What arrives of a body."""
    assembler = Assembler(0)
    assembler.feed(HELLO)
    return [assembler.feed(frame) for frame in encode_body(body)]


def size(body: Body) -> int:
    return sum(map(len, encode_body(body)))


# What goes in comes out -------------------------------------------------------------------------------


def forked(one: Batch, round: int, codes: bytes, signature: bytes) -> Fork:
    return Fork(one, replace(one, round=round, codes=codes, signature=signature))


def feed_state(origin: Origin, count: int, head: bytes, closed: int | None) -> FeedState:
    return FeedState(origin, count, head if count else b"", closed)


def vector_of(feeds: list[FeedState]) -> Vector:
    return Vector(tuple(feeds), whole=len({feed.origin for feed in feeds}) == len(feeds))


NUMBERS = st.integers(0, 5) | st.integers(0, NUMBER_MAX)
KEYS = st.sampled_from([A, B]) | st.binary(min_size=32, max_size=32).map(Origin)
SIGNATURES = st.binary(min_size=64, max_size=64)
BATCHES = st.builds(Batch, KEYS, NUMBERS, NUMBERS, st.binary(max_size=9), SIGNATURES)
FORKS = st.builds(forked, BATCHES, NUMBERS, st.binary(max_size=9), SIGNATURES)
RETRACTIONS = st.builds(Retraction, KEYS, NUMBERS, st.binary(min_size=32, max_size=32), SIGNATURES)
RUMORS = st.builds(
    Rumor,
    st.lists(BATCHES, max_size=8).map(tuple),
    st.lists(FORKS, max_size=2).flatmap(
        lambda forks: st.lists(RETRACTIONS, max_size=2).map(lambda others: (*forks, *others))
    ),
    st.booleans(),
)
FEEDS = st.builds(
    feed_state,
    KEYS,
    NUMBERS,
    st.binary(min_size=HEAD_BYTES, max_size=HEAD_BYTES),
    st.none() | NUMBERS,
)
VECTORS = st.lists(FEEDS, max_size=5).map(vector_of)
HAVES = st.builds(Have, st.binary(max_size=32), st.binary(max_size=32))


@given(RUMORS | VECTORS | HAVES)
def test_a_body_is_one_frame_and_comes_out_as_it_went_in(body: Body) -> None:
    assert through(body) == [body]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=30), st.integers(0, 99))
def test_a_feed_with_gaps_and_sizes_comes_out_as_it_went_in(steps: list[tuple[int, int]], first: int) -> None:
    feed: list[Batch] = []
    round = first
    for number, (gap, codes) in enumerate(steps, start=first):
        feed.append(batch(number, round=round, codes=b"c" * codes))
        round += gap
    assert through(Rumor(tuple(feed))) == [Rumor(tuple(feed))]


def test_rounds_that_do_not_grow_come_out_as_they_went_in() -> None:
    """No honest feed has them, but a fork may be shown with them."""
    feed = (batch(1, round=5), batch(2, round=5), batch(3, round=2), batch(4, round=3), batch(6, round=4))
    assert through(Rumor(feed)) == [Rumor(feed)]


def test_a_long_rumor_becomes_several_and_the_last_says_that_there_is_more() -> None:
    batches = tuple(batch(number, codes=bytes(1000)) for number in range(1, 1001))
    rulings = tuple(Retraction(A, number, B, SIGNATURE) for number in range(1500))
    bodies = through(Rumor(batches, rulings, more=True))
    parts = [body for body in bodies if isinstance(body, Rumor)]
    assert len(parts) == len(bodies) > 3
    assert tuple(item for part in parts for item in part.batches) == batches
    assert tuple(item for part in parts for item in part.rulings) == rulings
    assert [part.more for part in parts] == [False] * (len(parts) - 1) + [True]
    assert max(map(len, encode_body(Rumor(batches, rulings)))) < RUMOR_BYTES * 1.1


def test_the_number_of_items_in_a_message_is_bounded_as_well() -> None:
    tiny = tuple(batch(number, codes=b"") for number in range(2 * ITEMS_MAX + 1))
    parts = [body for body in through(Rumor(tiny)) if isinstance(body, Rumor)]
    assert max(len(part.batches) for part in parts) <= ITEMS_MAX
    assert tuple(item for part in parts for item in part.batches) == tiny


def test_the_largest_items_fit_a_frame() -> None:
    largest = batch(NUMBER_MAX, codes=bytes(CODES_BYTES_MAX))
    fork = Fork(largest, replace(largest, codes=b"\x01" * CODES_BYTES_MAX))
    feeds = tuple(
        FeedState(Origin(place.to_bytes(32, "big")), NUMBER_MAX, bytes(HEAD_BYTES), NUMBER_MAX)
        for place in range(FEEDS_MAX)
    )
    for body in (Rumor((largest,), (fork,)), Vector(feeds)):
        assert max(map(len, encode_body(body))) <= FRAME_BYTES_MAX
    assert through(Vector(feeds)) == [Vector(feeds)]


# What it costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 100, 20_000])
def test_one_batch_of_64_records_costs_at_most_180_bytes(number: int) -> None:
    assert size(Rumor((batch(number),))) <= 180


def test_in_a_long_run_a_record_costs_its_byte_and_a_batch_its_signature() -> None:
    run = tuple(batch(number) for number in range(1, 1001))
    assert size(Rumor(run)) <= 1000 * (64 + 64) + 60
    assert size(Rumor(run)) / 64_000 < 2.01  # per record, at 64 a batch


def test_a_word_on_what_we_hold_costs_little() -> None:
    assert size(Have(bytes(32), bytes(32))) <= 72
    assert (
        size(Vector(tuple(FeedState(Origin(bytes([n]) * 32), 100, bytes(HEAD_BYTES)) for n in range(50))))
        <= 50 * 49 + 16
    )


# What is not acceptable -------------------------------------------------------------------------------

KEY, LONG = bytes(32), 2**53 + 1
RUN = {"origin": KEY, "number": 1, "round": 1, "codes": b"cc", "signatures": bytes(64)}
PRONG = pb.Prong(round=1, codes=b"c", signature=bytes(64))


def run(**fields: object) -> pb.Frame:
    return pb.Frame(rumor=pb.Rumor(runs=[pb.Run(**{**RUN, **fields})]))  # pyright: ignore[reportArgumentType]: any field


def fork(**fields: object) -> pb.Frame:
    whole: dict[str, object] = {"origin": KEY, "number": 1, "one": PRONG, "other": PRONG, **fields}
    return pb.Frame(rumor=pb.Rumor(forks=[pb.Fork(**whole)]))  # pyright: ignore[reportArgumentType]: any field


def retraction(**fields: object) -> pb.Frame:
    whole: dict[str, object] = {"origin": KEY, "from_seq": 1, "authority": KEY, "signature": bytes(64), **fields}
    return pb.Frame(rumor=pb.Rumor(retractions=[pb.Retraction(**whole)]))  # pyright: ignore[reportArgumentType]: any field


def vector(
    origins: bytes = KEY, counts: tuple[int, ...] = (1,), heads: bytes = bytes(16), closed: tuple[int, ...] = ()
) -> pb.Frame:
    return pb.Frame(vector=pb.Vector(origins=origins, counts=counts, heads=heads, closed=closed))


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (run(origin=bytes(31)), "an origin of 31 bytes: should be 32"),
        (run(signatures=b""), "0 bytes of signatures"),
        (run(signatures=bytes(65)), "65 bytes of signatures"),
        (run(number=LONG), f"a number of {LONG}"),
        (run(number=LONG - 1, signatures=bytes(128)), f"a number of {LONG}"),
        (run(round=LONG), f"a round of {LONG}"),
        (run(signatures=bytes(128), skipped=[2**64 - 1]), "a round of "),
        (run(signatures=bytes(128), skipped=[1, 1]), "2 gaps between 2 rounds"),
        (run(signatures=bytes(192)), "2 codes of 3 batches"),
        (run(signatures=bytes(128), sizes=[1]), "1 sizes of 2 batches"),
        (run(signatures=bytes(128), sizes=[2, 1]), "2 codes of 2 batches"),
        (run(codes=bytes(CODES_BYTES_MAX + 1)), f"a batch of {CODES_BYTES_MAX + 1} codes"),
        (run(codes=b"", signatures=bytes(64 * (ITEMS_MAX + 1))), f"a rumor of {ITEMS_MAX + 1} batches"),
        (pb.Frame(rumor=pb.Rumor(runs=[pb.Run()] * (ITEMS_MAX + 1))), f"a rumor of {ITEMS_MAX + 1} batches"),
        (pb.Frame(rumor=pb.Rumor(retractions=[pb.Retraction()] * (ITEMS_MAX + 1))), "at most"),
        (pb.Frame(rumor=pb.Rumor(forks=[pb.Fork()] * (ITEMS_MAX + 1))), "at most"),
        (fork(origin=b""), "an origin of 0 bytes"),
        (fork(number=LONG), f"a number of {LONG}"),
        (fork(one=pb.Prong(signature=bytes(63))), "a signature of 63 bytes"),
        (fork(other=pb.Prong(round=LONG)), f"a round of {LONG}"),
        (fork(one=pb.Prong(codes=bytes(CODES_BYTES_MAX + 1))), "a batch of 262145 bytes"),
        (retraction(origin=b"x"), "an origin of 1 bytes"),
        (retraction(from_seq=LONG), f"a sequence number of {LONG}"),
        (retraction(authority=b""), "an authority of 0 bytes"),
        (retraction(signature=b""), "a signature of 0 bytes"),
        (pb.Frame(have=pb.Have(digest=bytes(33))), "a digest of 33 bytes"),
        (pb.Frame(have=pb.Have(weights=bytes(33))), "a digest of 33 bytes"),
        (vector(counts=(1, 2)), "columns are not equally long"),
        (vector(heads=b""), "columns are not equally long"),
        (vector(origins=bytes(33)), "columns are not equally long"),
        (vector(closed=(1, 2)), "columns are not equally long"),
        (vector(closed=(LONG + 1,)), f"a sequence number of {LONG}"),
        (vector(counts=(LONG,)), f"a count of {LONG}"),
        (vector(bytes(64), (1, 2), bytes(32)), "names a feed twice"),
        (vector(b"", (0,) * (FEEDS_MAX + 1), b""), f"a vector of {FEEDS_MAX + 1} feeds"),
    ],
)
def test_what_is_not_acceptable_is_a_remote_error(frame: pb.Frame, text: str) -> None:
    assembler = Assembler(0)
    assembler.feed(HELLO)
    with pytest.raises(RemoteError, match=text):
        assembler.feed(frame.SerializeToString())


@pytest.mark.parametrize("body", [Rumor((batch(1),)), Have(b""), Vector(())])
def test_nothing_is_said_before_hello(body: Body) -> None:
    (frame,) = encode_body(body)
    with pytest.raises(RemoteError, match="not hello"):
        Assembler(0).feed(frame)


# Any bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_mutated_frames_meet_only_remote_errors(seed: int) -> None:
    rng = random.Random(seed)
    feed = tuple(batch(number, codes=rng.randbytes(rng.randrange(4)), round=2 * number) for number in range(1, 4))
    other = replace(feed[0], codes=b"another")
    bodies = [
        Rumor(feed, (Fork(feed[0], other), Retraction(A, 9, B, SIGNATURE)), more=True),
        Have(bytes(32)),
        Vector((FeedState(A, 3, b"headheadheadhead"), FeedState(B, 4, b"headheadheadhead", 9))),
    ]
    good = [frame for body in bodies for frame in encode_body(body)]
    assembler, values = Assembler(1000), 0
    errors: list[str] = []
    assembler.feed(HELLO)
    for _, frame in zip(range(30_000), mutated(rng, good), strict=False):
        try:
            values += assembler.feed(frame) is not None
        except RemoteError as error:
            errors.append(str(error))
    assert all(map(str.isprintable, errors))
    assert len(errors) > 5_000
    assert values > 5_000


@given(st.builds(pb.Run, origin=KEYS, codes=st.binary(max_size=9), sizes=st.lists(st.integers(0, 9), max_size=3)))
def test_what_is_read_is_as_large_as_the_message(message: pb.Run) -> None:
    message.signatures = bytes(64 * (len(message.sizes) or 2))
    try:
        batches = packing.read_rumor(pb.Rumor(runs=[message])).batches
    except RemoteError:
        return
    assert b"".join(batch.codes for batch in batches) == message.codes
