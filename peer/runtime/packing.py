"""Records as protobuf messages and back: on links, and in the log. Pure.

Rules
* Whatever message comes in, reading it gives values or raises RemoteError; what it reserves is bounded by its own size.
* What a message says is checked for its form only: signatures are checked by whoever believes it.
* A long rumor becomes several messages, each a rumor of its own, so that none of them outgrows a frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from murmurate.peer.errors import RemoteError
from murmurate.peer.protocol.events import (
    Ask,
    Evidence,
    Fetch,
    Have,
    Offer,
    PeerId,
    Piece,
    Question,
    Rumor,
    Source,
    Vector,
)
from murmurate.peer.protocol.ground import DIGEST_BYTES, PIECE_BYTES, PIECES_MAX
from murmurate.peer.protocol.records import (
    HEAD_BYTES,
    ORIGIN_BYTES,
    Batch,
    FeedState,
    Fork,
    Ground,
    Origin,
    Retraction,
)
from murmurate.peer.protocol.showing import PIECE_BYTES as EVIDENCE_BYTES
from murmurate.proto import link_pb2 as pb

SIGNATURE_BYTES = 64
DIGEST_BYTES_MAX = 32  # SHA-256
NUMBER_MAX = 2**53  # of batches, rounds and sequence numbers: JSON and doubles hold it exactly

CODES_BYTES_MAX = 2**18
"""Largest batch. 4,096 probes in each of 20 steps, with FedKSeed-Pro's two more bytes, need 246 KB. (a guess)"""

RUMOR_BYTES = 2**18
"""A rumor is split so that its messages are no larger, unless one item is: a heartbeat never waits long behind one.
(a guess)"""

ITEMS_MAX = 4096
"""Batches and rulings in one message; `RUMOR_BYTES` hold fewer, even if they are empty. (a guess)"""

FEED_BYTES = ORIGIN_BYTES + HEAD_BYTES + 20  # at most, in a vector

NAME_BYTES_MAX = 256
SOURCES_MAX = 2048  # of one mix: as many neighbours (a guess)
SOURCE_BYTES = 80  # of one, in a frame

BODY_BYTES = 128
"""What the smallest body costs while it waits for a link: else a neighbour that asks and reads nothing is answered
without end. (a Python object with a few numbers)"""

FEEDS_MAX = 15_000
"""Feeds in one vector, which is one message and so at most a frame: eight for each of 1,800 peers."""

Item = Batch | Fork | Retraction


# Out ----------------------------------------------------------------------------------------------


def size_of(*items: Item) -> int:
    """About how many bytes they need."""
    return sum(map(_size, items))


def pack_rumor(rumor: Rumor) -> Iterator[pb.Rumor]:
    """One message, or several for a long rumor; only the last says that there is more."""
    portions = list(_portions((*rumor.rulings, *rumor.batches)))
    for place, portion in enumerate(portions, start=1):
        yield _pack_items(portion, more=rumor.more and place == len(portions))


def pack_have(have: Have) -> pb.Have:
    """One message."""
    return pb.Have(digest=have.digest, weights=have.weights)


def pack_vector(vector: Vector) -> pb.Vector:
    """One message. What is beyond its bound is left out: we are then told what we hold, which does no harm."""
    feeds = vector.feeds[:FEEDS_MAX]
    closed = [0 if feed.closed is None else feed.closed + 1 for feed in feeds]
    floors = [feed.floor for feed in feeds]
    return pb.Vector(
        origins=b"".join(feed.origin for feed in feeds),
        counts=[feed.count for feed in feeds],
        heads=b"".join(feed.head.ljust(HEAD_BYTES, b"\0") for feed in feeds),
        closed=closed if any(closed) else [],
        partial=not vector.whole,
        floors=floors if any(floors) else [],
    )


def pack_ask(ask: Ask) -> pb.Ask:
    """One message."""
    return pb.Ask(cut=pack_vector(Vector(ask.cut)))


def pack_ground(ground: Ground) -> pb.Ground:
    """One message."""
    proofs = _pack_items((*ground.births, *ground.rulings))
    return pb.Ground(cut=pack_vector(Vector(ground.cut)), rounds=ground.rounds, proofs=proofs)


def pack_offer(offer: Offer) -> pb.Offer:
    """One message."""
    return pb.Offer(ground=pack_ground(offer.ground), digests=b"".join(offer.digests))


def pack_fetch(fetch: Fetch) -> pb.Fetch:
    """One message."""
    return pb.Fetch(capture=fetch.capture, number=fetch.number)


def pack_piece(piece: Piece) -> pb.Piece:
    """One message."""
    return pb.Piece(capture=piece.capture, number=piece.number, data=piece.data)


Asked = Ask | Offer | Fetch | Piece | Question | Evidence
"""One frame each: a handover (protocol/handover.py), and audits (protocol/showing.py)."""


def pack_asked(body: Asked) -> pb.Frame:
    """One frame."""
    match body:
        case Ask():
            return pb.Frame(ask=pack_ask(body))
        case Offer():
            return pb.Frame(offer=pack_offer(body))
        case Fetch():
            return pb.Frame(fetch=pack_fetch(body))
        case Piece():
            return pb.Frame(piece=pack_piece(body))
        case Question(round, number):
            return pb.Frame(question=pb.Question(round=round, number=number))
        case Evidence(round, number, size, before, sources, data):
            told = [pb.Source(peer=one.peer, incarnation=one.incarnation, round=one.round) for one in sources]
            evidence = pb.Evidence(
                round=round, number=number, size_bytes=size, before=before, sources=told, data=bytes(data)
            )
            return pb.Frame(evidence=evidence)


def size_of_asked(body: Asked) -> int:
    """About how many bytes it needs while it waits; never nothing."""
    match body:
        case Ask(feeds):
            return BODY_BYTES + FEED_BYTES * len(feeds)
        case Offer(ground, digests):
            proofs = size_of(*ground.births, *ground.rulings)
            return BODY_BYTES + proofs + FEED_BYTES * len(ground.cut) + 32 * len(digests)
        case Fetch() | Question():
            return BODY_BYTES
        case Piece(data=data):
            return BODY_BYTES + len(data)
        case Evidence(sources=sources, data=data):
            return BODY_BYTES + SOURCE_BYTES * len(sources) + len(data)


def _pack_items(items: Sequence[Item], more: bool = False) -> pb.Rumor:
    return pb.Rumor(
        runs=[_pack_run(run) for run in _runs(item for item in items if isinstance(item, Batch))],
        forks=[_pack_fork(item) for item in items if isinstance(item, Fork)],
        retractions=[_pack_retraction(item) for item in items if isinstance(item, Retraction)],
        more=more,
    )


def _size(item: Item) -> int:
    match item:
        case Batch():
            return len(item.codes) + SIGNATURE_BYTES + 8
        case Fork(one, other):
            return _size(one) + _size(other) + 64
        case Retraction():
            return 2 * ORIGIN_BYTES + SIGNATURE_BYTES + 16


def _portions(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Cut into runs that each fit a message; one run, empty, when there is nothing."""
    portion: list[Item] = []
    bytes_so_far = 0
    for item in items:
        size = _size(item)
        if portion and bytes_so_far + size > RUMOR_BYTES:
            yield portion
            portion, bytes_so_far = [], 0
        portion.append(item)
        bytes_so_far += size
    yield portion


def _runs(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Neighbouring batches of one origin whose numbers follow each other and whose rounds grow."""
    run: list[Batch] = []
    for batch in batches:
        last = run[-1] if run else batch
        follows = (last.origin, last.number + 1) == (batch.origin, batch.number) and last.round < batch.round
        if run and not follows:
            yield run
            run = []
        run.append(batch)
    if run:
        yield run


def _pack_run(run: list[Batch]) -> pb.Run:
    first, sizes = run[0], [len(batch.codes) for batch in run]
    skipped = [later.round - earlier.round - 1 for earlier, later in pairwise(run)]
    return pb.Run(
        origin=first.origin,
        number=first.number,
        round=first.round,
        codes=b"".join(batch.codes for batch in run),
        signatures=b"".join(batch.signature for batch in run),
        sizes=sizes if len(set(sizes)) > 1 else [],
        skipped=skipped if any(skipped) else [],
    )


def _pack_fork(fork: Fork) -> pb.Fork:
    one, other = (
        pb.Prong(round=batch.round, codes=batch.codes, signature=batch.signature) for batch in (fork.one, fork.other)
    )
    return pb.Fork(origin=fork.one.origin, number=fork.one.number, one=one, other=other)


def _pack_retraction(retraction: Retraction) -> pb.Retraction:
    return pb.Retraction(
        origin=retraction.origin,
        from_seq=retraction.from_seq,
        authority=retraction.authority,
        signature=retraction.signature,
    )


# In -----------------------------------------------------------------------------------------------


def read_rumor(message: pb.Rumor) -> Rumor:
    """Raises RemoteError."""
    runs = message.runs
    # One signature is the least that a batch has, so this bounds what is built below.
    count = len(message.forks) + len(message.retractions)
    count += sum(max(1, len(run.signatures) // SIGNATURE_BYTES) for run in runs)
    if count > ITEMS_MAX:
        raise RemoteError(f"a rumor of {count} batches and rulings: at most {ITEMS_MAX} are allowed")
    return Rumor(
        batches=tuple(batch for run in runs for batch in _read_run(run)),
        rulings=(*map(_read_fork, message.forks), *map(_read_retraction, message.retractions)),
        more=message.more,
    )


def read_have(message: pb.Have) -> Have:
    """Raises RemoteError."""
    for digest in (message.digest, message.weights):
        if len(digest) > DIGEST_BYTES_MAX:
            raise RemoteError(f"a digest of {len(digest)} bytes: at most {DIGEST_BYTES_MAX} are allowed")
    return Have(message.digest, message.weights)


def read_vector(message: pb.Vector) -> Vector:
    """Raises RemoteError."""
    count = len(message.counts)
    if count > FEEDS_MAX:
        raise RemoteError(f"a vector of {count} feeds: at most {FEEDS_MAX} are allowed")
    if (len(message.origins), len(message.heads)) != (count * ORIGIN_BYTES, count * HEAD_BYTES):
        raise RemoteError(f"a vector of {count} feeds whose columns are not equally long")
    if len(message.closed) not in (0, count) or len(message.floors) not in (0, count):
        raise RemoteError(f"a vector of {count} feeds whose columns are not equally long")
    origins, heads = _cut(message.origins, ORIGIN_BYTES), _cut(message.heads, HEAD_BYTES)
    if len(set(origins)) < count and not message.partial:
        raise RemoteError("a whole vector that names a feed twice")
    counts = [_number("a count", value) for value in message.counts]
    heads = [head if held else b"" for head, held in zip(heads, counts, strict=True)]
    closed = [_number("a sequence number", at - 1) if at else None for at in message.closed or [0] * count]
    floors = [_number("a floor", value) for value in message.floors] or [0] * count
    return Vector(tuple(map(FeedState, map(Origin, origins), counts, heads, closed, floors)), whole=not message.partial)


def read_ask(message: pb.Ask) -> Ask:
    """Raises RemoteError."""
    return Ask(_read_cut(message.cut))


def read_ground(message: pb.Ground) -> Ground:
    """Raises RemoteError."""
    cut, proofs = _read_cut(message.cut), read_rumor(message.proofs)
    if not len(cut) == len(message.rounds) == len(proofs.batches):
        raise RemoteError(f"a state of {len(cut)} feeds whose columns are not equally long")
    rounds = tuple(_number("a round", round) for round in message.rounds)
    return Ground(cut, rounds, proofs.batches, proofs.rulings)


def read_offer(message: pb.Offer) -> Offer:
    """Raises RemoteError."""
    count, rest = divmod(len(message.digests), DIGEST_BYTES)
    if rest or not 0 < count <= PIECES_MAX:
        raise RemoteError(f"{len(message.digests)} bytes of digests: 1 to {PIECES_MAX} of {DIGEST_BYTES} are allowed")
    return Offer(read_ground(message.ground), tuple(_cut(message.digests, DIGEST_BYTES)))


def read_fetch(message: pb.Fetch) -> Fetch:
    """Raises RemoteError."""
    return Fetch(_exactly("a name of a state", message.capture, DIGEST_BYTES), message.number)


def read_piece(message: pb.Piece) -> Piece:
    """Raises RemoteError."""
    data = _at_most("a piece", message.data, PIECE_BYTES)
    return Piece(_exactly("a name of a state", message.capture, DIGEST_BYTES), message.number, data)


def read_asked(frame: pb.Frame) -> Asked:
    """Raises RemoteError."""
    match frame.WhichOneof("body"):
        case "ask":
            return read_ask(frame.ask)
        case "offer":
            return read_offer(frame.offer)
        case "fetch":
            return read_fetch(frame.fetch)
        case "piece":
            return read_piece(frame.piece)
        case "question":
            return Question(_number("a round", frame.question.round), frame.question.number)
        case _:
            return read_evidence(frame.evidence)


def read_evidence(message: pb.Evidence) -> Evidence:
    """Raises RemoteError."""
    if len(message.sources) > SOURCES_MAX:
        raise RemoteError(f"evidence with {len(message.sources)} sources: at most {SOURCES_MAX} are allowed")
    return Evidence(
        _number("a round", message.round),
        message.number,
        _number("a size", message.size_bytes),
        _number("a round", message.before),
        tuple(map(_read_source, message.sources)),
        _at_most("a piece of evidence", message.data, EVIDENCE_BYTES),
    )


def _read_source(message: pb.Source) -> Source:
    if len(message.peer) > NAME_BYTES_MAX:
        raise RemoteError(f"a name of {len(message.peer)} letters: at most {NAME_BYTES_MAX} are allowed")
    return Source(PeerId(message.peer), message.incarnation, _number("a round", message.round))


def _read_cut(message: pb.Vector) -> tuple[FeedState, ...]:
    vector = read_vector(message)
    if not vector.whole or any(state.floor for state in vector.feeds):
        raise RemoteError("a cut that is partial, or has floors")
    return vector.feeds


def _read_run(run: pb.Run) -> Iterator[Batch]:
    origin = Origin(_exactly("an origin", run.origin, ORIGIN_BYTES))
    if not run.signatures or len(run.signatures) % SIGNATURE_BYTES:
        raise RemoteError(f"{len(run.signatures)} bytes of signatures: should be {SIGNATURE_BYTES} for each batch")
    signatures = _cut(run.signatures, SIGNATURE_BYTES)
    count = len(signatures)
    number = _number("a number", run.number)
    _number("a number", run.number + count - 1)
    if len(run.skipped) not in (0, count - 1):
        raise RemoteError(f"{len(run.skipped)} gaps between {count} rounds")
    codes, start, round = run.codes, 0, run.round
    for place, size in enumerate(_sizes(run, count)):
        if place:
            round += 1 + (run.skipped[place - 1] if run.skipped else 0)
        yield Batch(origin, number + place, _number("a round", round), codes[start : start + size], signatures[place])
        start += size


def _sizes(run: pb.Run, count: int) -> Sequence[int]:
    """How many codes each of `count` batches has."""
    if len(run.sizes) not in (0, count):
        raise RemoteError(f"{len(run.sizes)} sizes of {count} batches")
    sizes = list(run.sizes) or [len(run.codes) // count] * count
    if sum(sizes) != len(run.codes):
        raise RemoteError(f"{len(run.codes)} codes of {count} batches do not have the sizes announced")
    if max(sizes) > CODES_BYTES_MAX:
        raise RemoteError(f"a batch of {max(sizes)} codes: at most {CODES_BYTES_MAX} are allowed")
    return sizes


def _read_fork(fork: pb.Fork) -> Fork:
    origin = Origin(_exactly("an origin", fork.origin, ORIGIN_BYTES))
    number = _number("a number", fork.number)
    one, other = (
        Batch(
            origin,
            number,
            _number("a round", prong.round),
            _at_most("a batch", prong.codes, CODES_BYTES_MAX),
            _exactly("a signature", prong.signature, SIGNATURE_BYTES),
        )
        for prong in (fork.one, fork.other)
    )
    return Fork(one, other)


def _read_retraction(retraction: pb.Retraction) -> Retraction:
    return Retraction(
        Origin(_exactly("an origin", retraction.origin, ORIGIN_BYTES)),
        _number("a sequence number", retraction.from_seq),
        _exactly("an authority", retraction.authority, ORIGIN_BYTES),
        _exactly("a signature", retraction.signature, SIGNATURE_BYTES),
    )


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _number(what: str, value: int) -> int:
    if value > NUMBER_MAX:
        raise RemoteError(f"{what} of {value}: at most {NUMBER_MAX} is believed")
    return value


def _exactly(what: str, data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise RemoteError(f"{what} of {len(data)} bytes: should be {size}")
    return data


def _at_most(what: str, data: bytes, size: int) -> bytes:
    if len(data) > size:
        raise RemoteError(f"{what} of {len(data)} bytes: at most {size} are allowed")
    return data
