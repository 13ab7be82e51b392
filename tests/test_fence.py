"""Relays between real sockets, and the fence that closes them."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from murmurate.peer.config import split_address
from murmurate.peer.lab.cohort import loopback_configs
from murmurate.peer.lab.fence import Fence


@pytest.fixture
def fence(tmp_path: Path) -> Iterator[Fence]:
    with Fence(loopback_configs(tmp_path, ["a", "b", "c"], {})) as fence:
        yield fence


@pytest.fixture
def listener(fence: Fence) -> Iterator[socket.socket]:
    """Where b listens itself."""
    with socket.create_server(split_address(fence.configs[1].listen, "b")) as listener:
        listener.settimeout(30)
        yield listener


def dial(fence: Fence) -> socket.socket:
    """As a dials b."""
    end = socket.create_connection(split_address(fence.configs[0].peers["b"], "b"))
    end.settimeout(30)
    return end


def test_a_dials_b_through_a_relay_and_both_can_speak(fence: Fence, listener: socket.socket) -> None:
    near = dial(fence)
    far, _ = listener.accept()
    with near, far:
        near.sendall(b"to b")
        assert far.recv(4) == b"to b"
        far.sendall(b"to a")
        assert near.recv(4) == b"to a"


def test_each_peer_keeps_its_own_address_and_those_that_dial_it(fence: Fence) -> None:
    a, b, c = fence.configs
    assert a.peers["a"] == b.peers["a"] == c.peers["a"]
    assert c.peers["b"] == b.peers["b"] != a.peers["b"]
    assert a.peers["c"] != b.peers["c"]  # each dialler has a relay of its own


def test_a_fence_ends_the_links_between_the_groups(fence: Fence, listener: socket.socket) -> None:
    near = dial(fence)
    far, _ = listener.accept()
    with near, far:
        fence.cut({"b", "c"})
        assert near.recv(1) == b""
        assert far.recv(1) == b""


def test_behind_a_fence_nobody_comes_through_until_it_is_gone(fence: Fence, listener: socket.socket) -> None:
    fence.cut({"a"})
    with dial(fence) as near:
        assert near.recv(1) == b""
    fence.heal()
    with dial(fence) as near:
        near.sendall(b"again")
        # Behind the fence the relay may have reached b and hung up at once: that one comes first.
        while not (heard := _first_bytes(listener)):
            pass
        assert heard == b"again"


def test_a_fence_elsewhere_does_not_matter(fence: Fence, listener: socket.socket) -> None:
    fence.cut({"c"})
    with dial(fence) as near:
        near.sendall(b"x")
        assert _first_bytes(listener) == b"x"


def test_a_peer_that_is_not_there_is_a_closed_connection(fence: Fence) -> None:
    with dial(fence) as near:
        assert near.recv(1) == b""


def _first_bytes(listener: socket.socket) -> bytes:
    far, _ = listener.accept()
    with far:
        far.settimeout(30)
        return far.recv(100)
