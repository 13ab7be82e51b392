"""Frames: what the peers say, as bytes, and back. Pure: no socket, no event loop, no clock.

Rules
* `Outbox` decides what goes next on one link, `Assembler` understands what came. Both keep at most one update.
* A rumor that does not fit a frame becomes several rumors (packing.py); a model's update becomes chunks.
* Whatever bytes arrive, `Assembler.feed` answers with a value or raises RemoteError, and reserves memory for a payload
  only after its announced size was found within the cap.
* Every frame is a `Frame` of proto/murmurate/link.proto. Chunks are written and read without the protobuf library,
  which would copy them twice more; their bytes are the same (a test compares).
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from murmurate.peer.errors import RemoteError
from murmurate.peer.manifest import MANIFEST_BYTES_MAX
from murmurate.peer.protocol.events import (
    Ask,
    Body,
    Evidence,
    Fetch,
    Goodbye,
    Have,
    Heartbeat,
    Offer,
    PeerId,
    Piece,
    Question,
    Rumor,
    Turn,
    Update,
    Vector,
)
from murmurate.proto import link_pb2 as pb

from .packing import (
    BODY_BYTES,
    FEED_BYTES,
    NAME_BYTES_MAX,
    Asked,
    pack_asked,
    pack_have,
    pack_rumor,
    pack_vector,
    read_asked,
    read_have,
    read_rumor,
    read_vector,
    size_of,
    size_of_asked,
)

PROTOCOL = 5
"""Grows when peers of two versions could no longer understand each other."""

CHUNK_BYTES = 2**20
"""Bytes of a payload per frame. Measured between two processes: at 256 KiB a transfer costs 1.5 times the CPU time,
at 4 MiB as much as here, but heartbeats wait longer."""

FRAME_BYTES_MAX = max(CHUNK_BYTES, MANIFEST_BYTES_MAX) + 4096
"""Largest frame: a full chunk or manifest, and the few fields beside it. gRPC refuses larger ones unread."""

RUMORS_BYTES_MAX = 4 * 2**20
"""Rumors that wait for one link; beyond it the oldest are dropped, and the vectors of both sides find out what is
missing. A neighbour that reads nothing costs no more than this. (a guess)"""

REASON_BYTES_MAX = 1024
SWARM_ID_BYTES = 32
ROUND_MAX = 2**53  # JSON and doubles hold it exactly
HOP_MAX = 2**16
INCARNATION_MAX = 2**63 - 1

_CHUNK_TAG = pb.Frame.CHUNK_FIELD_NUMBER << 3 | 2  # protobuf: field number and wire type "length-delimited"


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame each way."""

    swarm_id: bytes
    manifest: str
    peer: PeerId
    incarnation: int
    turn: Turn
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Refusal:
    """The last frame of a link that is not wanted, in words for its reader."""

    reason: str


# Out ----------------------------------------------------------------------------------------------


def encode_hello(hello: Hello) -> bytes:
    """One frame."""
    fields = pb.Hello(
        protocol=hello.protocol,
        swarm_id=hello.swarm_id,
        manifest=zlib.compress(hello.manifest.encode()),  # an encoder's 11 kB, mostly names, become 1 kB
        peer=hello.peer,
        incarnation=hello.incarnation,
        turn=_turn(hello.turn),
    )
    return pb.Frame(hello=fields).SerializeToString()


def encode_refusal(reason: str) -> bytes:
    """One frame; a long reason is cut."""
    text = reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
    return pb.Frame(refusal=pb.Refusal(reason=text)).SerializeToString()


def encode_body(body: Body) -> Iterator[bytes]:
    """The frames of a body, each made when it is asked for. Reads an update's payload, never copies it whole."""
    match body:
        case Heartbeat(turn):
            yield pb.Frame(heartbeat=pb.Heartbeat(turn=_turn(turn))).SerializeToString()
        case Goodbye():
            yield pb.Frame(goodbye=pb.Goodbye()).SerializeToString()
        case Update(turn, payload):
            view = memoryview(payload).cast("B")
            begin = pb.Begin(turn=_turn(turn), size_bytes=len(view), data=bytes(view[:CHUNK_BYTES]))
            yield pb.Frame(begin=begin).SerializeToString()
            for start in range(CHUNK_BYTES, len(view), CHUNK_BYTES):
                yield _encode_chunk(view[start : start + CHUNK_BYTES])
        case Rumor():
            for message in pack_rumor(body):
                yield pb.Frame(rumor=message).SerializeToString()
        case Have():
            yield pb.Frame(have=pack_have(body)).SerializeToString()
        case Vector():
            yield pb.Frame(vector=pack_vector(body)).SerializeToString()
        case Ask() | Offer() | Fetch() | Piece() | Question() | Evidence():
            yield pack_asked(body).SerializeToString()


Brief = Heartbeat | Have | Vector
"""One frame, and only the newest of its kind is worth sending; of a vector, if it is whole."""

Queued = Rumor | Vector | Asked
"""What waits in line: rumors, vectors that are not whole, and all of handovers and audits."""


class Outbox:
    """What waits for one link: at most one update, and one of each brief body; a newer one takes the older's place.

    Rumors wait in line, up to a bound. Brief bodies and rumors go between the chunks of an update, and a `Have` behind
    the rumors: what they bring is in it, and must not look as if it were lost. An update whose first frame went out is
    finished; a goodbye goes last.
    """

    def __init__(self) -> None:
        self._brief: dict[type[Brief], Brief] = {}
        self._rumors: deque[Queued] = deque()
        self._rumors_bytes = 0
        self._rumor: Iterator[bytes] = iter(())  # the rest of the one under way
        self._update: Update | None = None
        self._goodbye: Goodbye | None = None
        self._rest: Iterator[bytes] = iter(())
        self._refusal = b""
        self.ended = False

    def put(self, body: Body) -> None:
        """Queue a body; after the end it is dropped."""
        if self.ended:
            return
        match body:
            case Heartbeat() | Have() | Vector(whole=True):
                self._brief[type(body)] = body
            case Rumor() | Vector() | Ask() | Offer() | Fetch() | Piece() | Question() | Evidence():
                self._rumors.append(body)
                self._rumors_bytes += _size(body)
                while self._rumors_bytes > RUMORS_BYTES_MAX and len(self._rumors) > 1:
                    self._next_rumor()
            case Update():
                self._update = body
            case Goodbye():
                self._goodbye = body

    def end(self) -> None:
        """Accept no more; what waits still goes out."""
        self.ended = True

    def refuse(self, reason: str) -> None:
        """Forget what waits; the refusal is the last frame."""
        self._brief.clear()
        self._rumors.clear()
        self._rumors_bytes = 0
        self._update = self._goodbye = None
        self._rumor = self._rest = iter(())
        self._refusal = encode_refusal(reason)
        self.ended = True

    def next_frame(self) -> bytes | None:
        """Take the frame that goes next; None when nothing waits."""
        if (frame := self._next_brief(Heartbeat) or self._next_brief(Vector)) is not None:
            return frame
        if (frame := next(self._rumor, None)) is not None:
            return frame
        if self._rumors:
            self._rumor = encode_body(self._next_rumor())
            return next(self._rumor)
        if (frame := self._next_brief(Have)) is not None:
            return frame
        if (frame := next(self._rest, None)) is not None:
            return frame
        if (update := self._update) is not None:
            self._update = None
            self._rest = encode_body(update)
            return next(self._rest)
        if (goodbye := self._goodbye) is not None:
            self._goodbye = None
            return next(encode_body(goodbye))
        refusal, self._refusal = self._refusal, b""
        return refusal or None

    def _next_brief(self, kind: type[Brief]) -> bytes | None:
        body = self._brief.pop(kind, None)
        return None if body is None else next(encode_body(body))

    def _next_rumor(self) -> Queued:
        rumor = self._rumors.popleft()
        self._rumors_bytes -= _size(rumor)
        return rumor


def _size(body: Queued) -> int:
    match body:
        case Rumor(batches, rulings):
            return BODY_BYTES + size_of(*batches, *rulings)
        case Vector(feeds):
            return BODY_BYTES + FEED_BYTES * len(feeds)
        case _:
            return size_of_asked(body)


def _encode_chunk(data: memoryview) -> bytes:
    head, size = bytearray((_CHUNK_TAG,)), len(data)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return b"".join((head, data))


def _turn(turn: Turn) -> pb.Turn:
    return pb.Turn(round=turn.round, hop=turn.hop)


# In -----------------------------------------------------------------------------------------------


class Assembler:
    """Understands the frames of one direction of one link."""

    def __init__(self, payload_bytes_max: int) -> None:
        self.payload_bytes_max = payload_bytes_max
        self._greeted = False
        self._turn: Turn | None = None  # of the update under way
        self._target = memoryview(b"")
        self._filled = 0
        self._spare = bytearray()

    def feed(self, data: bytes) -> Hello | Refusal | Body | None:
        """What one frame completes, if anything. Raises RemoteError when the frame is not acceptable here.

        A large payload is a writable view of memory that is used again once nobody looks at it any more.
        """
        if len(data) > FRAME_BYTES_MAX:
            raise RemoteError(f"a frame of {len(data)} bytes: at most {FRAME_BYTES_MAX} are allowed")
        chunk = _chunk_of(data)
        if chunk is not None:
            return self._chunk(chunk)
        try:
            frame = pb.Frame.FromString(data)
        except (DecodeError, ValueError):  # ValueError: the pure Python protobuf, for text that is not UTF-8
            raise RemoteError(f"a frame of {len(data)} bytes that is no frame of this protocol") from None
        kind = frame.WhichOneof("body")
        if kind != "hello" and kind != "refusal":
            self._after_hello(kind)
        match kind:
            case "hello":
                return self._hello(frame.hello)
            case "refusal":
                return Refusal(_checked_text("reason", frame.refusal.reason, REASON_BYTES_MAX))
            case "heartbeat":
                return Heartbeat(_checked_turn(frame.heartbeat.turn))
            case "goodbye":
                return Goodbye()
            case "begin":
                return self._begin(frame.begin)
            case "chunk":  # encoded in a way that `_chunk_of` does not know
                return self._chunk(memoryview(frame.chunk))
            case "rumor":
                return read_rumor(frame.rumor)
            case "have":
                return read_have(frame.have)
            case "vector":
                return read_vector(frame.vector)
            case "ask" | "offer" | "fetch" | "piece" | "question" | "evidence":
                return read_asked(frame)
            case _:
                raise RemoteError("an empty frame, or one of a kind unknown here")

    def _after_hello(self, kind: str | None) -> None:
        if not self._greeted:
            raise RemoteError(f"the first frame is {kind or 'unknown'}, not hello")

    def _hello(self, hello: pb.Hello) -> Hello:
        if self._greeted:
            raise RemoteError("a second hello")
        if len(hello.swarm_id) != SWARM_ID_BYTES:
            raise RemoteError(f"a swarm id of {len(hello.swarm_id)} bytes: should be {SWARM_ID_BYTES}")
        # Of another version only the number is sure to be understood.
        manifest = _inflated(hello.manifest) if hello.protocol == PROTOCOL else ""
        if hello.incarnation > INCARNATION_MAX:
            raise RemoteError(f"incarnation {hello.incarnation}: at most {INCARNATION_MAX} is believed")
        name = PeerId(_checked_text("peer name", hello.peer, NAME_BYTES_MAX))
        turn = _checked_turn(hello.turn)
        self._greeted = True
        return Hello(hello.swarm_id, manifest, name, hello.incarnation, turn, hello.protocol)

    def _begin(self, begin: pb.Begin) -> Update | None:
        if self._turn is not None:
            raise RemoteError("an update begins before the one under way is complete")
        turn, size, data = _checked_turn(begin.turn), begin.size_bytes, begin.data
        if size > self.payload_bytes_max:
            raise RemoteError(f"a payload of {size} bytes: at most {self.payload_bytes_max} are accepted")
        if len(data) > size:
            raise RemoteError(f"{len(data)} bytes of a payload announced with {size}")
        if len(data) == size:
            return Update(turn, data)
        self._target, self._filled, self._turn = self._reserve(size), 0, turn
        return self._fill(memoryview(data))

    def _chunk(self, data: memoryview) -> Update | None:
        self._after_hello("chunk")
        if self._turn is None:
            raise RemoteError("a chunk, but no update has begun")
        if not data:
            raise RemoteError("an empty chunk")
        if self._filled + len(data) > len(self._target):
            raise RemoteError(f"{self._filled + len(data)} bytes of a payload announced with {len(self._target)}")
        return self._fill(data)

    def _fill(self, data: memoryview) -> Update | None:
        end = self._filled + len(data)
        self._target[self._filled : end] = data
        self._filled = end
        if self._turn is None or end < len(self._target):
            return None
        update = Update(self._turn, self._target)
        self._turn, self._target = None, memoryview(b"")
        return update

    def _reserve(self, size: int) -> memoryview:
        """Memory for one payload, the last one's when it is free: touching fresh memory was measured to cost more than
        the transfer itself (0.5 instead of 1.4 GB/s)."""
        if len(self._spare) != size or _is_looked_at(self._spare):
            try:
                self._spare = bytearray(size)
            except MemoryError:
                raise RemoteError(f"a payload of {size} bytes: there is no memory for it") from None
        return memoryview(self._spare)


def _is_looked_at(buffer: bytearray) -> bool:
    """Whether any view of it, or array over it, is left: Python resizes no bytearray that has one."""
    try:
        buffer.append(0)
    except BufferError:
        return True
    del buffer[-1]
    return False


def _chunk_of(data: bytes) -> memoryview | None:
    """The bytes of a frame that is exactly one chunk as `_encode_chunk` writes it; None for all other frames."""
    if not data or data[0] != _CHUNK_TAG:
        return None
    size = shift = 0
    for place in range(1, min(len(data), 6)):
        byte = data[place]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return memoryview(data)[place + 1 :] if place + 1 + size == len(data) else None
        shift += 7
    return None


def _inflated(data: bytes) -> str:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MANIFEST_BYTES_MAX + 1)
    except zlib.error:
        raise RemoteError("a manifest that cannot be read") from None
    if len(text) > MANIFEST_BYTES_MAX:
        raise RemoteError(f"a manifest above {MANIFEST_BYTES_MAX} bytes")
    return text.decode(errors="replace")


def _checked_turn(turn: pb.Turn) -> Turn:
    if turn.round > ROUND_MAX or turn.hop > HOP_MAX:
        raise RemoteError(f"turn {turn.round}.{turn.hop}: at most {ROUND_MAX}.{HOP_MAX} is believed")
    return Turn(turn.round, turn.hop)


def _checked_text(what: str, text: str, bytes_max: int) -> str:
    """Ends in people's logs, so it is short and printable."""
    if len(text.encode()) > bytes_max:
        raise RemoteError(f"a {what} of {len(text.encode())} bytes: at most {bytes_max} are allowed")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
