"""Replicas beyond the usual: weights off the lean grid, exports that fail, buffers that training changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from murmurate.kernels import noise
from murmurate.peer.lab.together import origin_of

from .seeds_inside import Normed, private, weights
from .seeds_peers import Bowl, batch_of, fold, made, prober_of, rounds

TABLES: dict[str, dict[str, Any]] = {
    "private": {},
    "lean": {"memory": "lean"},
    "conservative": {"probe": "conservative"},
    "forward": {"probe": "forward"},
    "ferret": {"probe": "ferret", "directions": "shared"},
}


MAXIMAL = noise.encode(np.full(64, 1e9)).tobytes()
BEYOND: dict[str, Any] = {"memory": "lean", "unit_log2": -20, "directions": "pool", "pool": 1, "probes": 32}


def test_maximal_codes_end_no_lean_replica() -> None:
    """A liar's batches lead off the grid: every division into folds has one outcome, and a retraction undoes it."""
    fresh = prober_of("a", Bowl(), seeds=BEYOND)
    before = fresh.weights_digest()
    batches = [made("b", n, n, MAXIMAL) for n in range(1, 9)] + [made("c", 1, 1, bytes(range(64)))]
    one, several, never = (prober_of("a", Bowl(), names="abc", seeds=BEYOND) for _ in range(3))
    fold(one, *batches, round=1)
    for place in (8, 0, 1, 2, 3, 4, 5, 6, 7):
        fold(several, batches[place], round=1)
        batch_of(several, "a", 1)  # it goes on
    assert one.weights_digest() == several.weights_digest() != before
    assert one.figures()["off_grid"] == 1
    fold(never, *batches, closed=[(origin_of("b"), 0)], round=1)
    assert "off_grid" not in never.figures()
    for prober in (one, several):
        fold(prober, closed=[(origin_of("b"), 0)], round=2)
        assert prober.weights_digest() == never.weights_digest()
    assert one.train(3).payload == never.train(3).payload


def test_an_export_beyond_the_grid_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """What cancels in the whole set does not in a part of it."""
    down = noise.encode(np.full(64, -1e9)).tobytes()
    prober, then = (prober_of("a", Bowl(), names="abc", seeds=BEYOND) for _ in range(2))
    fold(prober, made("b", 1, 1, MAXIMAL), made("c", 1, 1, down), round=1)
    fold(then, made("b", 1, 1, MAXIMAL))
    before = prober.weights_digest()
    found = weights(prober, tmp_path / "cut", {origin_of("b"): 2, origin_of("c"): 1})
    assert prober.weights_digest() == before
    expected = weights(then, tmp_path / "then")
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_an_export_that_fails_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    prober = prober_of()
    fold(prober, batch_of(prober, "a", 1), round=1)
    before = prober.weights_digest()

    def failing(*_: object, **__: object) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(private(prober, "model").module, "state_dict", failing)
        with pytest.raises(MemoryError):
            prober.export({})
    assert prober.weights_digest() == before


@pytest.mark.parametrize("kind", TABLES)
def test_buffers_are_the_same_at_every_peer(kind: str, tmp_path: Path) -> None:
    peers = {me: prober_of(me, Normed(), seeds=TABLES[kind]) for me in "ab"}
    before = {name: value.clone() for name, value in private(peers["a"], "model").module.named_buffers()}
    rounds(peers, 3)
    assert peers["a"].weights_digest() == peers["b"].weights_digest()
    exported = [weights(prober, tmp_path / me) for me, prober in peers.items()]
    assert all(torch.equal(value, exported[1][name]) for name, value in exported[0].items())
    assert all(torch.equal(value, exported[0][name]) for name, value in before.items())
    assert peers["a"].figures()["test_loss"] == peers["b"].figures()["test_loss"]
