"""Who this peer is: an Ed25519 key in its folder, and what is signed with it.

    FOLDER/key.pem   PKCS #8, readable by this user only; made once, with the folder

Whoever has a key can continue its feed, and two machines that do so fork it: a copied folder is void at every peer.
"""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.records import Batch, Origin, Retraction

from .store import write_whole

KEY_FILE = "key.pem"
KEY_BYTES_MAX = 4096  # a PEM file of one Ed25519 key has 119

BATCH, RETRACTION = b"murmurate batch 1", b"murmurate retraction 1"
"""What a signature is for: one of these never passes for the other, nor for one of a later version."""


class Identity:
    """A key pair, and the swarm it signs for."""

    def __init__(self, key: Ed25519PrivateKey, swarm_id: bytes = b"") -> None:
        self._key = key
        self._swarm_id = swarm_id
        self.origin = Origin(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign_batch(self, batch: Batch) -> Batch:
        """The same batch, signed; it should be ours."""
        assert batch.origin == self.origin
        return replace(batch, signature=self._key.sign(batch_text(self._swarm_id, batch)))

    def sign_retraction(self, origin: Origin, from_seq: int) -> Retraction:
        """Our decision that the records of `origin` from `from_seq` on are void."""
        retraction = Retraction(origin, from_seq, self.origin, b"")
        return replace(retraction, signature=self._key.sign(retraction_text(self._swarm_id, retraction)))


def open_identity(folder: Path, swarm_id: bytes = b"") -> Identity:
    """The key in `folder`, made there if there is none. Raises LocalError for one that cannot be used or written."""
    path = folder / KEY_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise LocalError(f"{folder}: cannot be used as state_dir: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # two processes would each make one, and one of them lose its own
        if not path.exists():
            key = Ed25519PrivateKey.generate()
            text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_whole(path, lambda temporary: _write_private(temporary, text))
        return Identity(_load(path), swarm_id)
    finally:
        os.close(descriptor)


def _write_private(path: Path, text: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(KEY_BYTES_MAX + 1)
    except OSError as error:
        raise LocalError(f"{path}: cannot be read: {error.strerror}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise LocalError(f"{path}: others may read it, and a key is a secret: `chmod 600 {path}`")
    try:
        key = load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise LocalError(
            f"{path}: damaged, or no Ed25519 key; bring it back from a copy, or remove the folder: this peer is then a "
            "new origin, and what it has published stays"
        )
    return key


# What is signed --------------------------------------------------------------------------------------


def batch_text(swarm_id: bytes, batch: Batch) -> bytes:
    """The signed bytes of a batch. Raises OverflowError for a number that has no 8 bytes."""
    numbers = batch.number.to_bytes(8, "little") + batch.round.to_bytes(8, "little")
    return b"".join((BATCH, swarm_id, batch.origin, numbers, batch.codes))


def retraction_text(swarm_id: bytes, retraction: Retraction) -> bytes:
    """The signed bytes of a retraction. Raises OverflowError for a number that has no 8 bytes."""
    number = retraction.from_seq.to_bytes(8, "little")
    return b"".join((RETRACTION, swarm_id, retraction.origin, number, retraction.authority))


class Verifier:
    """Implements `seams.Verify`: whether its origin signed a batch, or its authority a retraction, for this swarm."""

    def __init__(self, swarm_id: bytes) -> None:
        self._swarm_id = swarm_id

    def __call__(self, value: Batch | Retraction) -> bool:
        """Never raises, whatever `value` holds."""
        try:
            match value:
                case Batch(origin=signer, signature=signature):
                    text = batch_text(self._swarm_id, value)
                case Retraction(authority=signer, signature=signature):
                    text = retraction_text(self._swarm_id, value)
        except OverflowError:  # a number that no honest peer writes
            return False
        return _signed(signer, signature, text)


def _signed(key: bytes, signature: bytes, text: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True
