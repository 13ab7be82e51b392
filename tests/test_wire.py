"""Frames: what goes in comes out, whatever else comes in is one kind of error, and memory stays within the cap."""

import random
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmurate.peer.errors import RemoteError
from murmurate.peer.manifest import Manifest
from murmurate.peer.protocol.events import Body, Goodbye, Have, Heartbeat, PeerId, Rumor, Turn, Update, Vector
from murmurate.peer.protocol.records import Batch, FeedState, Origin
from murmurate.peer.runtime import wire
from murmurate.peer.runtime.packing import BODY_BYTES
from murmurate.peer.runtime.wire import (
    CHUNK_BYTES,
    FRAME_BYTES_MAX,
    Assembler,
    Hello,
    Outbox,
    Refusal,
    encode_body,
    encode_hello,
    encode_refusal,
)
from murmurate.proto import link_pb2 as pb

CAP = 4 * CHUNK_BYTES
HELLO = Hello(b"i" * 32, '{"a":1}', PeerId("ada"), 7, Turn(3, 1))
TURNS = st.builds(Turn, st.integers(0, wire.ROUND_MAX), st.integers(0, wire.HOP_MAX))
TURN = pb.Turn(round=4)


def greeted(cap: int = CAP) -> Assembler:
    assembler = Assembler(cap)
    assembler.feed(encode_hello(HELLO))
    return assembler


def feed(assembler: Assembler, body: Body) -> list[object]:
    return [assembler.feed(frame) for frame in encode_body(body)]


def begin(size: int, data: bytes = b"", turn: pb.Turn = TURN) -> bytes:
    return pb.Frame(begin=pb.Begin(turn=turn, size_bytes=size, data=data)).SerializeToString()


def chunk(data: bytes) -> bytes:
    return pb.Frame(chunk=data).SerializeToString()


# What goes in comes out -------------------------------------------------------------------------


@given(
    st.builds(
        Hello,
        st.binary(min_size=32, max_size=32),
        st.text(max_size=50),
        st.from_regex(r"[a-z0-9.-]{1,64}", fullmatch=True).map(PeerId),
        st.integers(0, wire.INCARNATION_MAX),
        TURNS,
    )
)
def test_a_hello_comes_out_as_it_went_in(hello: Hello) -> None:
    assert Assembler(0).feed(encode_hello(hello)) == hello


@given(TURNS.map(Heartbeat) | st.just(Goodbye()) | st.builds(Update, TURNS, st.binary(max_size=100)))
def test_a_small_body_is_one_frame_and_comes_out_as_it_went_in(body: Body) -> None:
    assert feed(greeted(), body) == [body]


@pytest.mark.parametrize("size", [CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_large_payload_comes_out_whole_with_its_last_frame(size: int, kind: type) -> None:
    payload = random.Random(size).randbytes(size)
    *early, last = feed(greeted(), Update(Turn(2, 1), kind(payload)))
    assert early == [None] * ((size - 1) // CHUNK_BYTES)
    assert isinstance(last, Update)
    assert (last.turn, bytes(last.payload)) == (Turn(2, 1), payload)


def test_heartbeats_and_goodbyes_pass_between_chunks() -> None:
    assembler, update = greeted(), Update(Turn(2), b"x" * (3 * CHUNK_BYTES))
    first, second, third = encode_body(update)
    assert assembler.feed(first) is None
    assert feed(assembler, Heartbeat(Turn(9))) == [Heartbeat(Turn(9))]
    assert assembler.feed(second) is None
    assert feed(assembler, Goodbye()) == [Goodbye()]
    assert assembler.feed(third) == update


def test_every_frame_is_a_message_of_the_schema() -> None:
    first, second = encode_body(Update(Turn(2), b"a" * CHUNK_BYTES + b"b" * 300))
    assert pb.Frame.FromString(first).begin == pb.Begin(
        turn=pb.Turn(round=2), size_bytes=CHUNK_BYTES + 300, data=b"a" * CHUNK_BYTES
    )
    assert second == chunk(b"b" * 300)


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 2_097_151 - CHUNK_BYTES])
def test_a_chunk_is_encoded_as_protobuf_does(size: int) -> None:
    *_, last = encode_body(Update(Turn(2), bytes(CHUNK_BYTES + size)))
    assert last == chunk(bytes(size))


def test_a_chunk_in_another_encoding_is_understood() -> None:
    assembler = greeted()
    assembler.feed(begin(2))
    overlong = b"\x32\x82\x00ab"  # the length 2 in two bytes: unusual, and valid protobuf
    assert assembler.feed(overlong) == Update(Turn(4), b"ab")


def test_frames_fit_the_limit_that_grpc_enforces() -> None:
    largest = Hello(
        b"i" * 32, "m" * wire.MANIFEST_BYTES_MAX, PeerId("n" * 256), wire.INCARNATION_MAX, Turn(2**53, 2**16)
    )
    frames = [encode_hello(largest), *encode_body(Update(Turn(2**53, 2**16), bytes(2 * CHUNK_BYTES)))]
    assert max(map(len, frames)) <= FRAME_BYTES_MAX
    assert Assembler(0).feed(frames[0]) == largest


def test_a_refusal_may_come_first_and_is_cut_and_printable() -> None:
    assert Assembler(0).feed(encode_refusal("no")) == Refusal("no")
    assert Assembler(0).feed(encode_refusal("no\n\x1b[2J")) == Refusal("no??[2J")
    long = Assembler(0).feed(encode_refusal("é" * 5000))
    assert isinstance(long, Refusal)
    assert set(long.reason) == {"é"}


# What is not acceptable -------------------------------------------------------------------------

HEARD = [encode_hello(HELLO)]
LONG = pb.Turn(round=2**53 + 1)


def hello(**fields: object) -> bytes:
    message = pb.Frame.FromString(encode_hello(HELLO))
    for name, value in fields.items():
        setattr(message.hello, name, value)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([begin(1)], "first frame is begin"),
        ([chunk(b"x")], "first frame is chunk"),
        ([b""], "first frame is unknown"),
        ([*HEARD, *HEARD], "second hello"),
        ([*HEARD, b""], "unknown here"),
        ([*HEARD, b"\x82\x01\x01x"], "unknown here"),
        ([*HEARD, b"\xff" * 20], "no frame of this protocol"),
        ([*HEARD, b"\x12\x03\x0a\x01\xff"], "no frame of this protocol"),
        ([*HEARD, b"\x32"], "no frame of this protocol"),
        ([*HEARD, b"x" * (FRAME_BYTES_MAX + 1)], f"at most {FRAME_BYTES_MAX}"),
        ([*HEARD, chunk(b"x")], "no update has begun"),
        ([*HEARD, begin(9), chunk(b"")], "empty chunk"),
        ([*HEARD, begin(9), begin(9)], "before the one under way"),
        ([*HEARD, begin(9, b"12345"), chunk(b"12345")], "10 bytes of a payload announced with 9"),
        ([*HEARD, begin(4, b"12345")], "5 bytes of a payload announced with 4"),
        ([*HEARD, begin(CAP + 1)], f"payload of {CAP + 1} bytes: at most {CAP}"),
        ([*HEARD, begin(2**64 - 1)], f"at most {CAP}"),
        ([*HEARD, begin(9, turn=LONG)], r"turn 9007199254740993\.0"),
        ([*HEARD, begin(9, turn=pb.Turn(hop=2**16 + 1))], r"turn 0\.65537"),
        ([*HEARD, pb.Frame(heartbeat=pb.Heartbeat(turn=LONG)).SerializeToString()], "at most"),
        ([hello(peer="n" * 257)], "peer name of 257 bytes"),
        ([hello(swarm_id=b"short")], "swarm id of 5 bytes"),
        ([hello(incarnation=2**63)], "incarnation"),
        ([hello(manifest=zlib.compress(b"m" * (wire.MANIFEST_BYTES_MAX + 1)))], "manifest above"),
        ([hello(manifest=b"not deflated")], "manifest that cannot be read"),
        ([pb.Frame(refusal=pb.Refusal(reason="r" * 1025)).SerializeToString()], "reason of 1025 bytes"),
    ],
)
def test_what_is_not_acceptable_is_a_remote_error(frames: list[bytes], text: str) -> None:
    assembler = Assembler(CAP)
    *before, last = frames
    for frame in before:
        assembler.feed(frame)
    with pytest.raises(RemoteError, match=text):
        assembler.feed(last)


def test_the_names_of_a_models_parameters_cost_little() -> None:
    names = [[f"encoder.layer.{k}.attention.output.dense.weight", [384, 384], "float32"] for k in range(100)]
    text = Manifest.of({"schema": names}).text
    frame = encode_hello(Hello(HELLO.swarm_id, text, HELLO.peer, 1, Turn(1)))
    assert len(frame) < len(text) / 8
    found = Assembler(0).feed(frame)
    assert isinstance(found, Hello)
    assert found.manifest == text


def test_of_another_version_only_the_number_is_read() -> None:
    other = Assembler(0).feed(hello(protocol=wire.PROTOCOL + 1, manifest=b"who knows"))
    assert isinstance(other, Hello)
    assert (other.protocol, other.manifest) == (wire.PROTOCOL + 1, "")


def test_an_announced_size_without_memory_is_a_remote_error() -> None:
    with pytest.raises(RemoteError, match="no memory"):
        greeted(cap=2**62).feed(begin(2**62))


def test_no_memory_is_reserved_above_the_cap() -> None:
    assembler, frame = greeted(cap=1000), begin(2**33)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteError):
            assembler.feed(frame)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


# Any bytes --------------------------------------------------------------------------------------


def corpus() -> list[bytes]:
    update = Update(Turn(2, 1), b"p" * 40)
    return [
        encode_hello(HELLO),
        encode_refusal("no"),
        *encode_body(Heartbeat(Turn(5))),
        *encode_body(Goodbye()),
        *encode_body(update),
        begin(200, b"ab"),
        chunk(b"c" * 100),
        chunk(b"d"),
    ]


def mutated(rng: random.Random, good: list[bytes]) -> Iterator[bytes]:
    """Without end: good frames, and frames cut, with flipped bytes, joined, repeated, or random altogether."""
    while True:
        frame = bytearray(rng.choice(good))
        match rng.randrange(6):
            case 0:
                del frame[rng.randrange(len(frame) + 1) :]
            case 1:
                for _ in range(rng.randrange(1, 4)):
                    if frame:
                        frame[rng.randrange(len(frame))] = rng.randrange(256)
            case 2:
                frame += rng.choice(good)
            case 3:
                frame = bytearray(rng.randbytes(rng.randrange(30)))
            case 4:
                place = rng.randrange(len(frame) + 1)
                frame[place:place] = rng.randbytes(rng.randrange(1, 5))
            case _:
                pass
        yield bytes(frame)


@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_thousand_mutated_frames_meet_only_remote_errors(seed: int) -> None:
    rng = random.Random(seed)
    assembler, bodies = greeted(cap=1000), 0
    errors: list[str] = []
    for _, frame in zip(range(100_000), mutated(rng, corpus()), strict=False):
        try:
            body = assembler.feed(frame)
        except RemoteError as error:
            errors.append(str(error))
            assembler = greeted(cap=1000) if rng.random() < 0.5 else Assembler(1000)
        else:
            bodies += body is not None
            if isinstance(body, Update):
                assert len(body.payload) <= 1000
    assert all(map(str.isprintable, errors))
    assert len(errors) > 20_000  # and this is no fuzzer that
    assert bodies > 10_000  # only knocks at the door


@given(st.lists(st.binary(max_size=60) | st.sampled_from(corpus()), max_size=8))
def test_any_frames_meet_only_remote_errors(frames: list[bytes]) -> None:
    assembler = Assembler(1000)
    for frame in frames:
        try:
            assembler.feed(frame)
        except RemoteError:
            return


# Memory is used again, but never while somebody looks at it ---------------------------------------


def receive(assembler: Assembler, fill: bytes) -> memoryview:
    *_, update = feed(assembler, Update(Turn(1), fill * (2 * CHUNK_BYTES)))
    assert isinstance(update, Update)
    assert isinstance(update.payload, memoryview)
    return update.payload


def test_a_payload_nobody_looks_at_lends_its_memory_to_the_next() -> None:
    assembler = greeted()
    first = receive(assembler, b"a")
    home = id(first.obj)
    del first
    second = receive(assembler, b"b")
    assert id(second.obj) == home
    assert second == b"b" * (2 * CHUNK_BYTES)


def test_a_payload_that_is_looked_at_keeps_its_bytes() -> None:
    assembler = greeted()
    part = receive(assembler, b"a")[5:9]  # the view itself is gone, a part of it is not
    again = receive(assembler, b"b")
    assert (bytes(part), bytes(again[5:9])) == (b"aaaa", b"bbbb")


# Outbox -----------------------------------------------------------------------------------------


def drain(outbox: Outbox) -> list[object]:
    assembler = greeted()
    frames = iter(outbox.next_frame, None)
    return [body for frame in frames if (body := assembler.feed(frame)) is not None]


def test_the_newest_update_and_heartbeat_win() -> None:
    outbox = Outbox()
    for round in range(5):
        outbox.put(Update(Turn(round), b"u"))
        outbox.put(Heartbeat(Turn(round)))
    assert drain(outbox) == [Heartbeat(Turn(4)), Update(Turn(4), b"u")]
    assert outbox.next_frame() is None


def test_an_update_under_way_is_finished_before_the_next_and_heartbeats_pass_it() -> None:
    outbox, assembler = Outbox(), greeted()
    old, lost, new = (Update(Turn(round), bytes([round]) * (3 * CHUNK_BYTES)) for round in (1, 2, 3))
    outbox.put(old)
    assert assembler.feed(outbox.next_frame() or b"") is None
    outbox.put(lost)
    outbox.put(new)
    outbox.put(Heartbeat(Turn(3)))
    bodies = [body for frame in iter(outbox.next_frame, None) if (body := assembler.feed(frame)) is not None]
    assert bodies == [Heartbeat(Turn(3)), old, new]


def test_a_goodbye_goes_last() -> None:
    outbox = Outbox()
    outbox.put(Goodbye())
    outbox.put(Update(Turn(1), b"u" * (CHUNK_BYTES + 1)))
    outbox.put(Heartbeat(Turn(1)))
    heartbeat, update, goodbye = drain(outbox)
    assert (heartbeat, goodbye) == (Heartbeat(Turn(1)), Goodbye())
    assert isinstance(update, Update)


def test_after_the_end_what_waits_goes_out_and_nothing_is_added() -> None:
    outbox = Outbox()
    outbox.put(Update(Turn(1), b"u"))
    outbox.end()
    outbox.put(Heartbeat(Turn(1)))
    assert outbox.ended
    assert drain(outbox) == [Update(Turn(1), b"u")]


def test_a_refusal_is_all_that_goes_out() -> None:
    outbox = Outbox()
    outbox.put(Update(Turn(1), b"u" * (3 * CHUNK_BYTES)))
    outbox.next_frame()
    outbox.put(Heartbeat(Turn(1)))
    outbox.put(Goodbye())
    outbox.refuse("enough")
    assert drain(outbox) == [Refusal("enough")]
    assert outbox.next_frame() is None


def rumor(number: int, size: int = 10) -> Rumor:
    return Rumor((Batch(Origin(b"o" * 32), number, number, bytes(size), b"s" * 64),))


def test_rumors_queue_in_order_and_the_newest_of_the_brief_bodies_wins() -> None:
    outbox = Outbox()
    for round in range(3):
        outbox.put(Have(bytes([round])))
        outbox.put(rumor(round))
        outbox.put(Vector((FeedState(Origin(b"o" * 32), round + 1, b"h" * 16),)))
        outbox.put(Heartbeat(Turn(round)))
    newest = Vector((FeedState(Origin(b"o" * 32), 3, b"h" * 16),))
    assert drain(outbox) == [Heartbeat(Turn(2)), newest, *map(rumor, range(3)), Have(b"\x02")]


def test_vectors_that_are_not_whole_queue_as_rumors_do() -> None:
    outbox = Outbox()
    parts = [Vector((FeedState(Origin(b"o" * 32), n, b"h" * 16),), whole=False) for n in (1, 2)]
    bodies = [parts[0], rumor(1), parts[1]]
    for body in bodies:
        outbox.put(body)
    assert drain(outbox) == bodies


def test_beyond_the_bound_the_oldest_rumors_are_dropped() -> None:
    outbox, size = Outbox(), 2**17
    count = 2 * wire.RUMORS_BYTES_MAX // size
    for number in range(count):
        outbox.put(rumor(number, size))
    kept = [body.batches[0].number for body in drain(outbox) if isinstance(body, Rumor)]
    assert kept == list(range(count - len(kept), count))
    assert len(kept) == wire.RUMORS_BYTES_MAX // (size + 72 + BODY_BYTES)
    outbox.put(rumor(7))  # what was dropped does not count any more
    assert drain(outbox) == [rumor(7)]


def test_a_rumor_above_the_bound_goes_out_all_the_same() -> None:
    outbox = Outbox()
    long = Rumor(tuple(rumor(number, 2**17).batches[0] for number in range(wire.RUMORS_BYTES_MAX // 2**17 + 1)))
    outbox.put(rumor(0))
    outbox.put(long)
    parts = [body for body in drain(outbox) if isinstance(body, Rumor)]
    assert tuple(batch for part in parts for batch in part.batches) == long.batches


def test_an_update_under_way_starves_no_rumor_and_a_goodbye_goes_last() -> None:
    outbox, assembler = Outbox(), greeted()
    update = Update(Turn(1), bytes(3 * CHUNK_BYTES))
    outbox.put(update)
    assert assembler.feed(outbox.next_frame() or b"") is None
    bodies: list[Body] = [rumor(1), rumor(2), Have(b"h")]
    for body in (Goodbye(), *bodies):
        outbox.put(body)
    heard = [body for frame in iter(outbox.next_frame, None) if (body := assembler.feed(frame)) is not None]
    assert heard == [*bodies, update, Goodbye()]


def test_a_refusal_forgets_rumors_as_well() -> None:
    outbox = Outbox()
    for body in (rumor(1), Have(b""), Vector(()), rumor(2)):
        outbox.put(body)
    outbox.next_frame()
    outbox.next_frame()
    outbox.refuse("enough")
    assert drain(outbox) == [Refusal("enough")]
