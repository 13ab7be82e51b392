"""Frames of a link that has already been greeted."""

from __future__ import annotations

from murmurate.peer.protocol.events import Body, PeerId, Turn
from murmurate.peer.runtime.wire import PROTOCOL, Assembler, Hello, Outbox, encode_body, encode_hello


def listening() -> Assembler:
    """The end that hears, after a hello."""
    assembler = Assembler(0)
    assembler.feed(encode_hello(Hello(b"s" * 32, "{}", PeerId("b"), 1, Turn(0), PROTOCOL)))
    return assembler


def check_that_it_arrives(body: Body) -> None:
    """In one frame, whoever writes it."""
    (frame,) = encode_body(body)
    assert listening().feed(frame) == body
    outbox = Outbox()
    outbox.put(body)
    assert outbox.next_frame() == frame
