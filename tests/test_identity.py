"""Keys and signatures: made once, a secret, and nothing that is not exactly as signed passes."""

from __future__ import annotations

import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.records import Batch, Origin, Retraction
from murmurate.peer.runtime.identity import Identity, Verifier, open_identity

SWARM, OTHER = b"5" * 32, b"6" * 32
VICTIM = Origin(b"v" * 32)


def identity(number: int = 0, swarm: bytes = SWARM) -> Identity:
    return Identity(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32), swarm)


def batch(number: int = 1, codes: bytes = b"codes") -> Batch:
    return identity().sign_batch(Batch(identity().origin, number, number + 5, codes, b""))


# Signatures -------------------------------------------------------------------------------------------


def test_exactly_these_bytes_are_signed() -> None:
    """Other programs may want to check a feed: docs/noise.md has these bytes, too."""
    signed, me = batch(), identity().origin
    text = b"murmurate batch 1" + SWARM + me + b"\x01" + bytes(7) + b"\x06" + bytes(7) + b"codes"
    Ed25519PublicKey.from_public_bytes(me).verify(signed.signature, text)
    retraction = identity().sign_retraction(VICTIM, 258)
    assert (retraction.origin, retraction.from_seq, retraction.authority) == (VICTIM, 258, me)
    text = b"murmurate retraction 1" + SWARM + VICTIM + b"\x02\x01" + bytes(6) + me
    Ed25519PublicKey.from_public_bytes(me).verify(retraction.signature, text)


def test_what_was_signed_passes_and_nothing_else() -> None:
    verify, good, retraction = Verifier(SWARM), batch(), identity().sign_retraction(VICTIM, 3)
    assert verify(good)
    assert verify(retraction)
    assert not Verifier(OTHER)(good)
    assert not Verifier(OTHER)(retraction)
    for change in (
        {"origin": identity(1).origin},
        {"number": 2},
        {"round": 7},
        {"codes": b"codez"},
        {"codes": b""},
        {"signature": bytes(64)},
        {"signature": retraction.signature},
    ):
        assert not verify(replace(good, **change))  # pyright: ignore[reportArgumentType]: any field
    for change in (
        {"origin": identity(1).origin},
        {"from_seq": 4},
        {"authority": identity(1).origin},
        {"signature": good.signature},
    ):
        assert not verify(replace(retraction, **change))  # pyright: ignore[reportArgumentType]: any field


ANYTHING = st.binary(max_size=100) | st.sampled_from([bytes(32), b"\xff" * 32, bytes(64), identity().origin])
INTEGERS = st.integers(-(2**70), 2**70)


@given(
    st.builds(Batch, ANYTHING.map(Origin), INTEGERS, INTEGERS, ANYTHING, ANYTHING)
    | st.builds(Retraction, ANYTHING.map(Origin), INTEGERS, ANYTHING, ANYTHING)
)
def test_rubbish_is_refused_in_silence(value: Batch | Retraction) -> None:
    assert not Verifier(SWARM)(value)


# The file ---------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_is_a_secret(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    origin = open_identity(folder).origin
    assert len(origin) == 32
    assert open_identity(folder, SWARM).origin == origin
    assert open_identity(tmp_path / "b").origin != origin
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().startswith("-----BEGIN PRIVATE KEY-----")


def test_who_asks_at_the_same_time_gets_the_same_key(tmp_path: Path) -> None:
    origins: list[Origin] = []
    threads = [threading.Thread(target=lambda: origins.append(open_identity(tmp_path).origin)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(origins) == 8
    assert len(set(origins)) == 1


def complaint(folder: Path) -> str:
    with pytest.raises(LocalError) as raised:
        open_identity(folder)
    return str(raised.value)


def other_kind() -> bytes:
    return X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 5000, b"-----BEGIN PRIVATE KEY-----\n", other_kind()])
def test_a_damaged_key_is_named_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    assert complaint(tmp_path).startswith(f"{path}: damaged, or no Ed25519 key; ")
    assert path.read_bytes() == content


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    open_identity(tmp_path)
    path = tmp_path / "key.pem"
    path.chmod(0o640)
    assert complaint(tmp_path) == f"{path}: others may read it, and a key is a secret: `chmod 600 {path}`"


def test_a_key_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "key.pem").mkdir()
    assert complaint(tmp_path) == f"{tmp_path / 'key.pem'}: cannot be read: Is a directory"
    (tmp_path / "file").touch()
    assert complaint(tmp_path / "file") == f"{tmp_path / 'file'}: cannot be used as state_dir: File exists"
