"""The real `Replica`: a torch model that learns by records, its own and everybody's.

Rules
* What a peer measures is a pure function of (swarm.seed, this peer's index, round, step) and of the weights; the
  weights are one of the records that were folded. So the log of records is all that a restart needs.
* With private directions or a pool a step's records move our own weights at once. What was so moved ahead is taken back
  in the fold that brings the round's batch: what the ledger says is all that remains.
* Buffers are no parameters, so no record brings them: training leaves them as they were, and they stay what the task's
  model had at first, at every peer.
* One call at a time, except `interrupt` and `figures`. Seeding touches torch's global generator: two replicas of one
  process must not train at the same time.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from murmurate.kernels import noise
from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.learning.attacks import distort_codes, task_of
from murmurate.peer.learning.exchange.seeds import NONE, Changes, Ledger, Terms, sum_of
from murmurate.peer.learning.exchange.states import (
    NoState,
    check_table,
    cut_up,
    pack_steps,
    pack_table,
    read_steps,
    read_table,
)
from murmurate.peer.learning.exchange.votes import divide
from murmurate.peer.learning.tasks import Task
from murmurate.peer.protocol.events import Audit, Audited, Capture, Captured, Fold, Folded, Install, Installed, Trained
from murmurate.peer.protocol.ground import PIECE_BYTES, PIECES_MAX
from murmurate.peer.protocol.records import Origin
from murmurate.peer.protocol.seams import Write

from . import snapshot
from .evaluation import evaluate, is_due
from .ferret import Ferret
from .flat import Buffers, FlatModel, Schema, is_finite
from .order import Batches
from .probes import Objective, Step, find_probe
from .rates import lr_of
from .replica import Lean, base_of, digest, make_weights

Codes = NDArray[np.uint8]
Ids = NDArray[np.uint64]


def make_prober(config: Config) -> Prober:
    """The replica of the configuration."""
    return Prober(config, task_of(config))


def terms_of(config: Config) -> Terms:
    """What the peers of this swarm agreed on about records."""
    seeds = config.seeds
    return Terms(
        directions=seeds.directions,
        records=config.records,
        pool=seeds.pool,
        sent_ids=seeds.sampling == "pro",
        rule=seeds.rule,
        f=config.mixing.f,
        momentum=seeds.momentum,
    )


class Prober:
    """Implements `protocol.seams.Replica`, in two phases: its schema and base go into the manifest, whose hash is the
    swarm id, and with that id `begin` makes it whole. Nothing else may be called before.
    """

    schema: Schema
    """Names, shapes and dtypes of what is learnt, in the order of the flat vector; part of the manifest."""
    base: str
    """`sha256:...` of all first weights, frozen ones and buffers included; part of the manifest."""
    payload_bytes: int
    """The exact length of every batch but the birth."""

    def __init__(self, config: Config, task: Task) -> None:
        self._config, self._task = config, task
        self._terms = terms_of(config)
        self.payload_bytes = self._terms.batch_bytes
        self._probe = find_probe(config.seeds, task)
        module = _first_module(config, task)
        self.base = base_of(module, getattr(task, "common", ""))
        _select(module, config.seeds.parameters)
        self._model = FlatModel(module.to(config.runtime.device), gradients=self._probe is None)
        if not is_finite(self._model.flat_D):
            raise ConfigError("the first weights of the task's model are not all finite")
        self.schema = self._model.schema
        self._ferret = None if self._probe else Ferret(config.local, task, self._model)
        self._batches = Batches(config, task.train_size)
        self._buffers = Buffers(module)
        self._interrupted = threading.Event()
        self._unit = 2.0**config.unit_log2
        self._round, self._step, self._codes = 0, 0, b""  # the round in training
        self._losses: list[float] = []
        self._ahead = NONE  # what it moved already
        self._evaluated = 0  # the last round after which we looked
        self._figures: dict[str, float] = {}

    def begin(self, swarm_id: bytes, origin: Origin) -> None:
        """The second phase: the swarm's id, and our own public key. Raises ConfigError for weights it cannot keep."""
        seeds = self._config.seeds
        signs = noise.derive_key(swarm_id, b"signs")
        self._origin = origin
        self._ledger = Ledger(self._terms, swarm_id)
        self._weights = make_weights(self._model, self._config.unit_log2, seeds.parts, seeds.memory, signs, self._again)
        self._objective = Objective(seeds, self._task, self._model, self._weights, self._unit)
        kind = b"shared" if seeds.directions == "shared" else b"pool"
        self._common_key = noise.derive_key(swarm_id, kind)
        self._note(records=0)

    def _again(self) -> Tensor:
        """The first weights anew [D]. Raises LocalError when the task makes others the second time."""
        state = torch.get_rng_state()
        module = _first_module(self._config, self._task)
        torch.set_rng_state(state)
        if base_of(module, getattr(self._task, "common", "")) != self.base:
            raise LocalError("seeds.memory = 'lean': a weight left the grid, and the task's first weights changed")
        _select(module, self._config.seeds.parameters)
        return FlatModel(module.to(self._config.runtime.device), gradients=False).flat_D

    # Training -----------------------------------------------------------------------------------------

    def train(self, round: int) -> Trained:
        """See the seam. An interrupted round goes on where it stopped, unless something was folded since."""
        if round != self._round:
            self._restart(round)
        began, before = time.perf_counter(), self._step
        complete = self._first_order() if self._ferret else self._probe_steps()
        self._buffers.restore()  # what ferret's steps left there
        self._interrupted.clear()
        if taken := self._step - before:
            pace = taken * self._batches.size / (time.perf_counter() - began)
            self._note(examples_per_s=pace)
        finite = [loss for loss in self._losses if math.isfinite(loss)]
        if finite:
            mean = sum(finite) / len(finite)
            self._note(**({"loss": mean} if self._config.seeds.objective == "loss" else {"score": -mean}))
        if not complete:
            return Trained(round, b"", complete=False)
        lied = distort_codes(self._config.attack, np.frombuffer(self._codes, np.uint8))
        ids = self._ids_of_round().astype("<u2").tobytes() if self._terms.sent_ids else b""
        return Trained(round, lied.tobytes() + ids)

    def interrupt(self) -> None:
        """See the seam. Before a `train` has begun it ends that one before its first step."""
        self._interrupted.set()

    def _restart(self, round: int) -> None:
        """Forget the round in training and what it moved."""
        self._weights.move(self._ahead.undone())
        self._ahead = NONE
        self._round, self._step, self._codes, self._losses = round, 0, b"", []

    def _probe_steps(self) -> bool:
        """The steps that are left of the round; false when interrupted."""
        assert self._probe is not None
        config, probes = self._config, self._config.seeds.probes
        seed, first = self._batches.seed("dropout", self._round), (self._round - 1) * config.local.steps
        rate = lr_of(self._config, self._round) / probes  # the mean of the probes is one step
        directions = self._directions_of_round()
        self._model.module.train()
        for indices_B in self._batches.of(first + self._step, first + config.local.steps):
            if self._interrupted.is_set():
                return False
            mine = slice(self._step * probes, (self._step + 1) * probes)
            some = noise.Directions(directions.keys[mine], directions.indices[mine])
            slopes, losses = self._probe(
                self._objective, Step(self._task.batch(indices_B), seed + self._step, some, rate)
            )
            self._buffers.restore()
            codes = noise.encode(np.array(slopes) * (rate / self._unit))
            self._codes += codes.tobytes()
            self._losses += losses
            self._move_ahead(some, codes)
            self._step += 1
        return True

    def _first_order(self) -> bool:
        """All steps of the round at once, by gradients; false when interrupted."""
        assert self._ferret is not None
        steps, first = self._config.local.steps, (self._round - 1) * self._config.local.steps
        seed = self._batches.seed("dropout", self._round)
        self._weights.settle()
        self._model.module.train()
        order = ((seed + step, indices_B) for step, indices_B in enumerate(self._batches.of(first, first + steps)))
        update_D, losses = self._ferret.update(order, lr_of(self._config, self._round), self._interrupted.is_set)
        self._losses = losses
        if update_D is None:
            return False
        self._step = steps
        directions = self._directions_of_round()
        # A direction covers one part: only those of its own part share in bringing an update back.
        part_K = directions.indices % np.uint64(self._config.seeds.parts)
        share_K = np.bincount(part_K.astype(np.int64))[part_K.astype(np.int64)]
        scalars_K = self._weights.project(update_D, directions) / share_K
        scalars_K[~np.isfinite(scalars_K)] = np.nan
        self._codes = noise.encode(scalars_K / self._unit).tobytes()
        return True

    def _move_ahead(self, directions: noise.Directions, codes: Codes) -> None:
        """Let a step's records move our weights at once, as much as they will in their own round."""
        if self._terms.directions == "shared":
            return  # all peers measure a round at the same weights
        deltas_K = divide(noise.decode(codes).astype(np.int64) * self._ledger.first_multiplier, 256)
        changes = sum_of([Changes(directions.keys, directions.indices, deltas_K)])
        self._weights.move(changes)
        self._ahead = sum_of([self._ahead, changes])

    # Directions ---------------------------------------------------------------------------------------

    def _directions_of_round(self) -> noise.Directions:
        """Where the records of the round point, in their order [R]."""
        match self._terms.directions:
            case "private":
                return noise.Directions.of_key(self._ledger.private_key(self._origin), self._seqs())
            case "pool":
                return noise.Directions.of_key(self._common_key, self._ids_of_round())
            case _:
                return noise.Directions.of_key(self._common_key, self._numbers(self._round))

    def _seqs(self) -> Ids:
        """The sequence numbers of our next batch."""
        return self._numbers(max(0, self._ledger.count(self._origin) - 1))

    def _numbers(self, batch: int) -> Ids:
        return np.uint64(batch * self._terms.records) + np.arange(self._terms.records, dtype=np.uint64)

    def _ids_of_round(self) -> Ids:
        """Pool ids of our next batch: drawn evenly, or more often those whose scalars were large (FedKSeed-Pro)."""
        if not self._terms.sent_ids:
            return self._ledger.draw(self._ledger.private_key(self._origin), self._seqs())
        importance_K = self._ledger.importance()
        spread = float(np.ptp(importance_K)) or 1.0
        odds_K = np.exp((importance_K - importance_K.min()) / spread)
        generator = np.random.default_rng(self._batches.seed("pool", self._round))
        return generator.choice(len(odds_K), self._terms.records, p=odds_K / odds_K.sum()).astype(np.uint64)

    # Records ------------------------------------------------------------------------------------------

    def fold(self, effect: Fold) -> Folded:
        """See the seam."""
        self._interrupted.clear()  # came too late for the steps that it meant
        changes = self._ledger.fold(effect.batches, effect.closed, effect.names, effect.dropped)
        if len(self._ahead.deltas):
            changes = sum_of([changes, self._ahead.undone()])
        self._ahead = NONE
        self._round = 0
        self._weights.move(changes)
        self._note(records=self._ledger.records)
        if isinstance(self._weights, Lean) and self._weights.is_beyond:
            self._note(off_grid=1.0)
        news = bool(effect.batches or effect.closed or effect.dropped)
        if effect.round and is_due(self._config.rounds, effect.round) and (news or effect.round != self._evaluated):
            self._evaluated = effect.round
            self._weights.settle()
            self._note(**evaluate(self._task, self._model.module))
            self._buffers.restore()
        return Folded(effect.round)

    def audit(self, effect: Audit) -> Audited:
        """See the seam."""
        return Audited(effect.digest, self.weights_digest())

    def weights_digest(self) -> bytes:
        """SHA-256 of the weights after the last fold, as little-endian numbers in the schema's order."""
        self._weights.move(self._ahead.undone())
        self._weights.settle()
        found = digest(self._model.flat_D)
        self._weights.move(self._ahead)
        return found

    # States -------------------------------------------------------------------------------------------

    @property
    def state_bytes(self) -> int | None:
        """See the seam. A pool's coefficients were measured at two to three bytes each."""
        if not self._terms.has_states:
            return None
        size = 3 * self._columns * self._terms.pool
        if self._terms.directions == "private":
            size = 4 * self._model.flat_D.numel()
        return size if size <= PIECE_BYTES * PIECES_MAX else None

    @property
    def _columns(self) -> int:
        return 3 if self._terms.sent_ids else 1

    def capture(self, effect: Capture) -> Captured:
        """See the seam."""
        cut = {state.origin: state.count for state in effect.cut}
        if not self._terms.has_states:
            return Captured(effect.cut, ())
        try:
            if self._terms.directions == "pool":
                return Captured(effect.cut, cut_up(pack_table(self._ledger.table(cut))))
            there = sum_of([self._ahead.undone(), *self._way_to(cut)])
        except LocalError:
            return Captured(effect.cut, ())
        self._weights.move(there)
        try:
            data = pack_steps(self._weights.steps())
        except NoState:
            data = b""
        finally:
            self._weights.move(there.undone())
        return Captured(effect.cut, cut_up(data))

    def _way_to(self, cut: Mapping[Origin, int]) -> tuple[Changes, Changes]:
        """What has to change to have only these batches."""
        return self._ledger.coefficients().undone(), self._ledger.coefficients(cut)

    def install(self, effect: Install) -> Installed:
        """See the seam."""
        ground = effect.ground
        try:
            if self._terms.directions == "pool":
                table_CK = read_table(effect.pieces, self._columns, self._terms.pool)
                check_table(table_CK)
                before = (self._ahead, self._ledger.base, self._ledger.coefficients())
                self._ledger.install(ground.cut, ground.rounds, table_CK)
                self._weights.move(sum_of([*(part.undone() for part in before), self._ledger.base]))
            else:
                self._weights.put(read_steps(effect.pieces, self._model.flat_D.numel()))
                self._ledger.install(ground.cut, ground.rounds, np.zeros((1, 0), dtype=np.int64))
        except NoState:
            return Installed(ground, sound=False)
        self._ahead = NONE
        self._round = 0
        self._note(records=self._ledger.records)
        return Installed(ground)

    @property
    def counts(self) -> Mapping[Origin, int]:
        """How many batches of each feed the weights contain: a cut for `export`."""
        return self._ledger.counts

    def export(self, cut: Mapping[Origin, int] | None = None) -> Write:
        """See the seam. The file is a plain `state_dict`; `snapshot.save_model` says how to load it."""
        there = self._ahead.undone()
        if cut is not None:
            there = sum_of([there, *self._way_to(cut)])
        self._weights.move(there)
        try:
            self._weights.settle()
            tensors = {name: value.detach().clone() for name, value in self._model.module.state_dict().items()}
        finally:
            self._weights.move(there.undone())
        return lambda path: snapshot.save_model(path, tensors)

    def figures(self) -> Mapping[str, float]:
        """See the seam: loss or score (mean of the round's passes), examples_per_s, records, the task's figures; with
        lean weights that once left their grid also off_grid.
        """
        return self._figures  # replaced, never changed

    def _note(self, **figures: float) -> None:
        self._figures = {**self._figures, **figures}


def _first_module(config: Config, task: Task) -> nn.Module:
    """The task's model with its first weights. Raises ConfigError for a file that does not fit."""
    torch.manual_seed(config.swarm.seed)
    module = task.model()
    if config.task.weights:
        snapshot.load_weights(Path(config.task.weights), module)
    return module


def _select(module: nn.Module, pattern: str) -> None:
    """Freeze all parameters whose names do not contain a match. Raises ConfigError when none is left."""
    if not pattern:
        return
    named: list[tuple[str, Tensor]] = [
        (name, value) for name, value in module.named_parameters() if value.requires_grad
    ]
    for name, value in named:
        value.requires_grad_(re.search(pattern, name) is not None)
    if not any(value.requires_grad for _, value in named):
        names = ", ".join(name for name, _ in named[:8])
        raise ConfigError(f"seeds.parameters = {pattern!r}: matches no trainable parameter; there are {names}, ...")
