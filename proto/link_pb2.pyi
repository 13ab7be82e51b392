from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("hello", "refusal", "heartbeat", "goodbye", "begin", "chunk", "rumor", "have", "vector", "ask", "offer", "fetch", "piece", "question", "evidence")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    RUMOR_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    refusal: Refusal
    heartbeat: Heartbeat
    goodbye: Goodbye
    begin: Begin
    chunk: bytes
    rumor: Rumor
    have: Have
    vector: Vector
    ask: Ask
    offer: Offer
    fetch: Fetch
    piece: Piece
    question: Question
    evidence: Evidence
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., chunk: _Optional[bytes] = ..., rumor: _Optional[_Union[Rumor, _Mapping]] = ..., have: _Optional[_Union[Have, _Mapping]] = ..., vector: _Optional[_Union[Vector, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., fetch: _Optional[_Union[Fetch, _Mapping]] = ..., piece: _Optional[_Union[Piece, _Mapping]] = ..., question: _Optional[_Union[Question, _Mapping]] = ..., evidence: _Optional[_Union[Evidence, _Mapping]] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("round", "hop")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    HOP_FIELD_NUMBER: _ClassVar[int]
    round: int
    hop: int
    def __init__(self, round: _Optional[int] = ..., hop: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "swarm_id", "manifest", "peer", "incarnation", "turn")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SWARM_ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    swarm_id: bytes
    manifest: bytes
    peer: str
    incarnation: int
    turn: Turn
    def __init__(self, protocol: _Optional[int] = ..., swarm_id: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., peer: _Optional[str] = ..., incarnation: _Optional[int] = ..., turn: _Optional[_Union[Turn, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("turn",)
    TURN_FIELD_NUMBER: _ClassVar[int]
    turn: Turn
    def __init__(self, turn: _Optional[_Union[Turn, _Mapping]] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Begin(_message.Message):
    __slots__ = ("turn", "size_bytes", "data")
    TURN_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    turn: Turn
    size_bytes: int
    data: bytes
    def __init__(self, turn: _Optional[_Union[Turn, _Mapping]] = ..., size_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Rumor(_message.Message):
    __slots__ = ("runs", "forks", "retractions", "more")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    FORKS_FIELD_NUMBER: _ClassVar[int]
    RETRACTIONS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    forks: _containers.RepeatedCompositeFieldContainer[Fork]
    retractions: _containers.RepeatedCompositeFieldContainer[Retraction]
    more: bool
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ..., forks: _Optional[_Iterable[_Union[Fork, _Mapping]]] = ..., retractions: _Optional[_Iterable[_Union[Retraction, _Mapping]]] = ..., more: bool = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("origin", "number", "round", "codes", "signatures", "sizes", "skipped")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    origin: bytes
    number: int
    round: int
    codes: bytes
    signatures: bytes
    sizes: _containers.RepeatedScalarFieldContainer[int]
    skipped: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, origin: _Optional[bytes] = ..., number: _Optional[int] = ..., round: _Optional[int] = ..., codes: _Optional[bytes] = ..., signatures: _Optional[bytes] = ..., sizes: _Optional[_Iterable[int]] = ..., skipped: _Optional[_Iterable[int]] = ...) -> None: ...

class Fork(_message.Message):
    __slots__ = ("origin", "number", "one", "other")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ONE_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    origin: bytes
    number: int
    one: Prong
    other: Prong
    def __init__(self, origin: _Optional[bytes] = ..., number: _Optional[int] = ..., one: _Optional[_Union[Prong, _Mapping]] = ..., other: _Optional[_Union[Prong, _Mapping]] = ...) -> None: ...

class Prong(_message.Message):
    __slots__ = ("round", "codes", "signature")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    round: int
    codes: bytes
    signature: bytes
    def __init__(self, round: _Optional[int] = ..., codes: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Retraction(_message.Message):
    __slots__ = ("origin", "from_seq", "authority", "signature")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQ_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    origin: bytes
    from_seq: int
    authority: bytes
    signature: bytes
    def __init__(self, origin: _Optional[bytes] = ..., from_seq: _Optional[int] = ..., authority: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Have(_message.Message):
    __slots__ = ("digest", "weights")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    weights: bytes
    def __init__(self, digest: _Optional[bytes] = ..., weights: _Optional[bytes] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("origins", "counts", "heads", "closed", "partial", "floors")
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    FLOORS_FIELD_NUMBER: _ClassVar[int]
    origins: bytes
    counts: _containers.RepeatedScalarFieldContainer[int]
    heads: bytes
    closed: _containers.RepeatedScalarFieldContainer[int]
    partial: bool
    floors: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, origins: _Optional[bytes] = ..., counts: _Optional[_Iterable[int]] = ..., heads: _Optional[bytes] = ..., closed: _Optional[_Iterable[int]] = ..., partial: bool = ..., floors: _Optional[_Iterable[int]] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("cut",)
    CUT_FIELD_NUMBER: _ClassVar[int]
    cut: Vector
    def __init__(self, cut: _Optional[_Union[Vector, _Mapping]] = ...) -> None: ...

class Ground(_message.Message):
    __slots__ = ("cut", "rounds", "proofs")
    CUT_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    PROOFS_FIELD_NUMBER: _ClassVar[int]
    cut: Vector
    rounds: _containers.RepeatedScalarFieldContainer[int]
    proofs: Rumor
    def __init__(self, cut: _Optional[_Union[Vector, _Mapping]] = ..., rounds: _Optional[_Iterable[int]] = ..., proofs: _Optional[_Union[Rumor, _Mapping]] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("ground", "digests")
    GROUND_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    ground: Ground
    digests: bytes
    def __init__(self, ground: _Optional[_Union[Ground, _Mapping]] = ..., digests: _Optional[bytes] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("capture", "number")
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    capture: bytes
    number: int
    def __init__(self, capture: _Optional[bytes] = ..., number: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("capture", "number", "data")
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    capture: bytes
    number: int
    data: bytes
    def __init__(self, capture: _Optional[bytes] = ..., number: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Question(_message.Message):
    __slots__ = ("round", "number")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    round: int
    number: int
    def __init__(self, round: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("round", "number", "size_bytes", "before", "sources", "data")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    round: int
    number: int
    size_bytes: int
    before: int
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    data: bytes
    def __init__(self, round: _Optional[int] = ..., number: _Optional[int] = ..., size_bytes: _Optional[int] = ..., before: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("peer", "incarnation", "round")
    PEER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    peer: str
    incarnation: int
    round: int
    def __init__(self, peer: _Optional[str] = ..., incarnation: _Optional[int] = ..., round: _Optional[int] = ...) -> None: ...

class Stored(_message.Message):
    __slots__ = ("ground", "pieces")
    GROUND_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    ground: Ground
    pieces: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ground: _Optional[_Union[Ground, _Mapping]] = ..., pieces: _Optional[_Iterable[bytes]] = ...) -> None: ...
