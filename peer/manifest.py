"""The swarm manifest: what all peers of a swarm must agree on, as one text and one hash.

Rules
* The text is canonical JSON: sorted keys, no spaces, ASCII, finite numbers. Equal values give equal texts anywhere.
* The swarm id is the SHA-256 of the text. Two peers whose ids differ can name the first field that does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from murmurate.peer.errors import ConfigError

MANIFEST_BYTES_MAX = 2**20
"""Longest text; every handshake carries it. A model of 700 named tensors needs about 60 KB. (a guess)"""

SHOWN_MAX = 80  # characters of a value in an explanation (a guess)

ADVICE = {"base": "; give all peers one file of first weights: task.weights"}
"""By field: what to do about a difference that nobody chose."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One swarm's agreement."""

    text: str

    @classmethod
    def of(cls, table: Mapping[str, object]) -> Manifest:
        """The manifest of a table of JSON values. Raises ConfigError for other values and for too long a text."""
        try:
            text = _canonical(table)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the manifest holds a value that is not plain, finite JSON: {error}") from None
        if len(text) > MANIFEST_BYTES_MAX:
            raise ConfigError(f"the manifest has {len(text)} bytes: should be at most {MANIFEST_BYTES_MAX}")
        return cls(text)

    @property
    def swarm_id(self) -> bytes:
        """32 bytes that no other manifest has."""
        return hashlib.sha256(self.text.encode()).digest()


def first_difference(mine: str, theirs: str) -> str:
    """The first field, in canonical order, in which two texts differ: `mixing.f: ours 2, theirs 1`; "" when none does.
    Where it is not plain what to do, that follows.

    `theirs` may be anything: what cannot be read is named as such.
    """
    if mine == theirs:
        return ""
    try:
        other = json.loads(theirs)
    except (ValueError, RecursionError):
        return "manifest: theirs is not JSON"
    found = _difference("", json.loads(mine), other) or "manifest: equal fields, written differently"
    return found + ADVICE.get(found.partition(":")[0], "")


def _difference(path: str, mine: Any, theirs: Any) -> str:
    """Goes only where both sides have the same shape, so never deeper than our own manifest."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        ours: dict[str, Any] = mine
        others: dict[str, Any] = theirs
        for key in sorted(ours.keys() | others.keys()):
            below = f"{path}.{key}" if path else key
            if key not in ours:
                return f"{_short(below)}: ours nothing, theirs {_show(others[key])}"
            if key not in others:
                return f"{_short(below)}: ours {_show(ours[key])}, theirs nothing"
            if found := _difference(below, ours[key], others[key]):
                return found
        return ""
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        pairs: zip[tuple[Any, Any]] = zip(mine, theirs, strict=True)
        found = (_difference(f"{path}[{place}]", *pair) for place, pair in enumerate(pairs))
        return next(filter(None, found), "")
    if type(mine) is type(theirs) and mine == theirs:  # in JSON 1, 1.0 and true are three values
        return ""
    return f"{_short(path or 'manifest')}: ours {_show(mine)}, theirs {_show(theirs)}"


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _show(value: object) -> str:
    try:
        return _short(json.dumps(value))
    except RecursionError:
        return "a value nested too deep"


def _short(text: str) -> str:
    """Printable, because it may be a stranger's, and no longer than a line."""
    plain = text.encode("ascii", "backslashreplace").decode()
    plain = "".join(letter if letter.isprintable() else "?" for letter in plain)
    return plain if len(plain) <= SHOWN_MAX else f"{plain[: SHOWN_MAX - 3]}..."
