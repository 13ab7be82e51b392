from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("peer", "swarm", "phase", "round", "incarnation", "uptime_s", "figures", "bytes_sent", "bytes_received", "snapshot_round", "listen", "metrics", "peers", "exchange", "records")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PEER_FIELD_NUMBER: _ClassVar[int]
    SWARM_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ROUND_FIELD_NUMBER: _ClassVar[int]
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    swarm: str
    phase: str
    round: int
    incarnation: int
    uptime_s: float
    figures: _containers.ScalarMap[str, float]
    bytes_sent: int
    bytes_received: int
    snapshot_round: int
    listen: str
    metrics: str
    peers: _containers.RepeatedCompositeFieldContainer[PeerStatus]
    exchange: str
    records: Records
    def __init__(self, peer: _Optional[str] = ..., swarm: _Optional[str] = ..., phase: _Optional[str] = ..., round: _Optional[int] = ..., incarnation: _Optional[int] = ..., uptime_s: _Optional[float] = ..., figures: _Optional[_Mapping[str, float]] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., snapshot_round: _Optional[int] = ..., listen: _Optional[str] = ..., metrics: _Optional[str] = ..., peers: _Optional[_Iterable[_Union[PeerStatus, _Mapping]]] = ..., exchange: _Optional[str] = ..., records: _Optional[_Union[Records, _Mapping]] = ...) -> None: ...

class Records(_message.Message):
    __slots__ = ("records", "set", "weights", "cut", "key", "origins")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    records: int
    set: str
    weights: str
    cut: str
    key: str
    origins: _containers.RepeatedCompositeFieldContainer[OriginStatus]
    def __init__(self, records: _Optional[int] = ..., set: _Optional[str] = ..., weights: _Optional[str] = ..., cut: _Optional[str] = ..., key: _Optional[str] = ..., origins: _Optional[_Iterable[_Union[OriginStatus, _Mapping]]] = ...) -> None: ...

class OriginStatus(_message.Message):
    __slots__ = ("peer", "origin", "batches", "records", "round", "closed", "closed_at")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_AT_FIELD_NUMBER: _ClassVar[int]
    peer: str
    origin: str
    batches: int
    records: int
    round: int
    closed: bool
    closed_at: int
    def __init__(self, peer: _Optional[str] = ..., origin: _Optional[str] = ..., batches: _Optional[int] = ..., records: _Optional[int] = ..., round: _Optional[int] = ..., closed: bool = ..., closed_at: _Optional[int] = ...) -> None: ...

class PeerStatus(_message.Message):
    __slots__ = ("peer", "state", "address", "linked", "round", "bytes_sent", "bytes_received", "heard_ago_s", "refusals", "last_refusal", "trouble")
    PEER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LINKED_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    HEARD_AGO_S_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    LAST_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    peer: str
    state: str
    address: str
    linked: bool
    round: int
    bytes_sent: int
    bytes_received: int
    heard_ago_s: float
    refusals: int
    last_refusal: str
    trouble: str
    def __init__(self, peer: _Optional[str] = ..., state: _Optional[str] = ..., address: _Optional[str] = ..., linked: bool = ..., round: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., heard_ago_s: _Optional[float] = ..., refusals: _Optional[int] = ..., last_refusal: _Optional[str] = ..., trouble: _Optional[str] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("path", "cut")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    path: str
    cut: str
    def __init__(self, path: _Optional[str] = ..., cut: _Optional[str] = ...) -> None: ...

class ExportReply(_message.Message):
    __slots__ = ("path", "round", "cut")
    PATH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    path: str
    round: int
    cut: str
    def __init__(self, path: _Optional[str] = ..., round: _Optional[int] = ..., cut: _Optional[str] = ...) -> None: ...

class ConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConfigReply(_message.Message):
    __slots__ = ("toml",)
    TOML_FIELD_NUMBER: _ClassVar[int]
    toml: str
    def __init__(self, toml: _Optional[str] = ...) -> None: ...

class RetractRequest(_message.Message):
    __slots__ = ("peer", "from_seq")
    PEER_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQ_FIELD_NUMBER: _ClassVar[int]
    peer: str
    from_seq: int
    def __init__(self, peer: _Optional[str] = ..., from_seq: _Optional[int] = ...) -> None: ...

class RetractReply(_message.Message):
    __slots__ = ("peer", "origin", "from_seq", "awaits_state")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQ_FIELD_NUMBER: _ClassVar[int]
    AWAITS_STATE_FIELD_NUMBER: _ClassVar[int]
    peer: str
    origin: str
    from_seq: int
    awaits_state: bool
    def __init__(self, peer: _Optional[str] = ..., origin: _Optional[str] = ..., from_seq: _Optional[int] = ..., awaits_state: bool = ...) -> None: ...
