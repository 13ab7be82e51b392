"""A trainer whose every round can be recomputed by others, and that recomputes theirs; see protocol/audits.py.

Behind the model a payload carries the SHA-256 of its round's *start*, which has one exact size:

    SHA-256 of how it came about (32) | whether the optimizer took steps (1) | model | buffers | optimizer's tensors

How it came about is what was sent in the round before, and which models were mixed then: whose, of which life and
round; zeros in the first round of a life. The optimizer's tensors are zeros before its first step; all else of its
state must be the same in all rounds.
Numbers are little-endian, as on every machine that torch runs on.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from murmurate.peer.config import Attack, Config
from murmurate.peer.errors import ConfigError, DivergedError, LocalError, MurmurateError
from murmurate.peer.learning.attacks import Board
from murmurate.peer.learning.mixing import Mixer
from murmurate.peer.learning.tasks import Task, make_task
from murmurate.peer.protocol.events import Adopt, Examine, Examined, Mix, Mixed, PeerId, Proof, Trained
from murmurate.peer.protocol.seams import Write

from . import snapshot
from .optimizers import use_hyperparameters
from .starts import (
    DIGEST_BYTES,
    bytes_of,
    came_of,
    digests,
    encoded,
    is_near,
    kinds_of,
    length,
    parts,
    raw,
    read_like,
    slots_of,
)
from .trainer import TorchTrainer

NO_MEMORY = (MemoryError, torch.OutOfMemoryError)
NOWHERE = bytes(DIGEST_BYTES)  # how the first start of a life came about

STEP_TOLERANCE = 5e-2
"""Of the update's length: how far recomputed local steps may be from those that were sent, since processors add up in
other orders. Measured on digits, 20 to 200 steps: other numbers of threads give 3e-8 to 7e-6; a random last bit in each
weight after each step 4e-7 to 1e-5, but 5e-2 after 200 steps of the convolutional net, which are not stable. AdamW
divides by what may be rounding only: 7e-3 after 20 steps of a layer before a batch norm. A lie has to be far larger
to be of use. (The margin is a guess.)"""

MIX_TOLERANCE = 1e-4
"""Of the model's length: the same for a mix, whose shares may come from a Gram matrix in float32. (a guess)"""


class AuditedTrainer(TorchTrainer):
    """Implements `protocol.seams.Trainer` and `Auditor`."""

    start_bytes: int

    def __init__(
        self,
        config: Config,
        task: Task,
        mixer: Mixer,
        board: Board | None = None,
        like: AuditedTrainer | None = None,
    ) -> None:
        """`like`: one of the same swarm, whose optimizer need not be tried again.

        Raises ConfigError for a task, a mixing rule or an optimizer that cannot be audited.
        """
        super().__init__(config, task, mixer, board)
        audit = f"audit.rate = {config.audit.rate}"
        if not getattr(task, "public", False):
            raise ConfigError(f"{audit}: the task {config.task.name!r} does not say that its data are `public`")
        if self._memory:
            raise ConfigError(f"{audit}: mixing.rule = {config.mixing.rule!r} remembers what no auditor knows")
        self.payload_bytes += DIGEST_BYTES
        self._mixer = _of_heard(self._mixer)
        self._document, self._slots = (like._document, like._slots) if like else slots_of(config, self._model)
        buffers = [name.rpartition(".")[2] for name in snapshot.copy_buffers(self._model.module)]
        self._kinds = [*buffers, *kinds_of(self._document)]
        self._new, tensors = self._encoded()
        self._fresh = _Left(True, tensors) if self._new == self._document else _Left(False, self._slots)
        self.start_bytes = DIGEST_BYTES + 1 + sum(bytes_of(tensor) for tensor in (*self._held(), *self._slots))
        self._first = like._first if like else self._start_of(NOWHERE)  # of round 1
        self._came = NOWHERE
        self._start = b""  # of the round in training
        self._sent = NOWHERE  # digest of our last payload
        self._left: list[Tensor] | None = None  # the model that it had, and its buffers
        self._undone = False  # whether the last mix was
        self._bench: AuditedTrainer | None = None  # where we recompute
        self._leaving = like._leaving if like else threading.Event()  # for good

    # Being audited ------------------------------------------------------------------------------------

    def train(self, round: int) -> Trained:
        """See the seam. An interrupted round begins anew, so that every start is one that can be shown."""
        self._start = self._start_of(self._came)
        trained = super().train(round)
        if trained.proof is not None:
            return trained  # its mix was undone, and it began anew
        if not trained.complete:
            self._load(self._start)
            self._steps, self._loss_sum = 0, 0.0
            return trained
        payload = bytes(trained.payload) + hashlib.sha256(self._start).digest()
        self._sent = hashlib.sha256(payload).digest()
        has_left = self._kept and not self._kept.has_grown()
        self._left = [tensor.clone() for tensor in self._held()] if has_left else None
        proof, self._undone = Proof(self._start, self._sent, self._undone), False
        return Trained(round, payload, proof=proof)

    def mix(self, effect: Mix) -> Mixed:
        """See the seam."""
        models = {peer: memoryview(payload)[:-DIGEST_BYTES] for peer, payload in effect.inbox.items()}
        mixed = super().mix(Mix(effect.turn, models, effect.weights, effect.pack))
        heard = digests(effect.inbox, mixed.malformed)
        named = ((effect.sources[peer], digest) for peer, digest in heard)
        self._came = came_of(self._sent, named) if self._start else NOWHERE
        return Mixed(mixed.turn, mixed.payload, mixed.malformed, heard)

    def adopt(self, effect: Adopt) -> Mixed:
        """See the seam."""
        models = {peer: memoryview(payload)[:-DIGEST_BYTES] for peer, payload in effect.inbox.items()}
        mixed = super().adopt(Adopt(effect.turn, models))
        return Mixed(mixed.turn, malformed=mixed.malformed, digests=digests(effect.inbox, mixed.malformed))

    def snapshot(self) -> Write:
        """See the seam. Of a round that is trained and not mixed yet, what it began with: it is trained again."""
        if self._round <= self._complete or not self._steps:
            return super().snapshot()
        now, steps, loss_sum = self._start_of(NOWHERE), self._steps, self._loss_sum
        self._load(self._start)
        self._steps, self._loss_sum = 0, 0.0
        try:
            return super().snapshot()
        finally:
            self._load(now)
            self._steps, self._loss_sum = steps, loss_sum

    def _undo_mix(self) -> None:
        """As the trainer's, but to the model that we sent last: its neighbours know that one."""
        if self._undone:
            self._kept = None  # that model cannot be trained either: this raises
        if self._left is None or self._undone:
            super()._undo_mix()
            return
        self._put(self._left)
        self._reset_optimizer()
        self._steps, self._loss_sum = 0, 0.0
        self._came, self._undone = came_of(self._sent, ()), True
        self._start = self._start_of(self._came)
        self._note(mixes_undone=self._figures.get("mixes_undone", 0) + 1)

    def interrupt(self) -> None:
        """See the seam. Ends a running examination as well, and all that would follow: who is interrupted leaves."""
        self._leaving.set()
        super().interrupt()
        if (bench := self._bench) is not None:
            bench.interrupt()

    # Auditing -----------------------------------------------------------------------------------------

    def examine(self, effect: Examine) -> Examined:
        """See `seams.Auditor`."""
        try:
            fault, differs = self._examine(effect)
        except _HinderedError as error:
            return Examined(effect.peer, effect.round, hindered=str(error), theirs=error.theirs)
        except NO_MEMORY:  # is no fault of theirs, and no reason to end
            self._bench = None
            return Examined(effect.peer, effect.round, hindered="there is no memory for its steps")
        return Examined(effect.peer, effect.round, fault, differs=differs)

    def _examine(self, effect: Examine) -> tuple[str, tuple[PeerId, ...]]:
        """The fault, if any, and whose models were heard otherwise."""
        sizes = [self.start_bytes, *[self.payload_bytes] * (1 + len(effect.weights)), self.start_bytes]
        if sum(sizes) != len(effect.evidence) or len(effect.payload) != self.payload_bytes:
            return "its evidence has a wrong size", ()
        began, sent, *mixed, begins = parts(effect.evidence, sizes)
        shown = tuple((peer, hashlib.sha256(part).digest()) for peer, part in zip(effect.weights, mixed, strict=True))
        if hashlib.sha256(sent).digest() != effect.sent:
            return f"it shows another model of round {effect.before} than it sent", ()
        for start, payload in ((began, sent), (begins, effect.payload)):
            if hashlib.sha256(start).digest() != bytes(payload[-DIGEST_BYTES:]):
                return "it shows another start of a round than it committed to", ()
        named = zip(effect.sources, (digest for _, digest in shown), strict=True)
        if bytes(begins[:DIGEST_BYTES]) != came_of(effect.sent, named):
            return "it shows other models than it committed to have mixed", ()
        if effect.before == 1 and not self._is_near_first(began):
            return "it began its first round elsewhere", ()
        differs = tuple(peer for peer, digest in shown if effect.heard.get(peer, digest) != digest)
        return self._recompute(effect, began, sent, mixed, begins), differs

    def _recompute(
        self,
        effect: Examine,
        began: memoryview,
        sent: memoryview,
        mixed: Sequence[memoryview],
        begins: memoryview,
    ) -> str:
        """The fault in the local steps of a round, or in its mix."""
        bench = self._bench_of(effect.peer)
        for start in (began, begins):
            if not self._is_in_range(start, effect.round):
                return "it shows a start with a whole number that none has"
        held, next_held = bench._read(began)[0], bench._read(begins)[0]
        if why := bench._takes_steps(began, effect.before):
            return f"its local steps in round {effect.before} are not possible: {why}"
        sent_D, theirs_KD = torch.empty_like(held[0]), held[0].new_empty(len(mixed), len(held[0]))
        try:
            for payload, row_D in zip((sent, *mixed), (sent_D, *theirs_KD), strict=True):
                self._payloads.unpack(payload[:-DIGEST_BYTES], row_D)
        except MurmurateError:
            return "it sent or mixed what is no model"
        if not is_near(bench._model.flat_D, sent_D, STEP_TOLERANCE * length(sent_D - held[0])):
            return f"its local steps do not lead to the model that it sent in round {effect.before}"
        left = [_Left(True, [*bench._held()[1:], *bench._encoded()[1]])]
        if not mixed:  # then its mix may have been undone
            left.append(_Left(self._fresh.took_steps, [*bench._held()[1:], *self._fresh.tensors]))
        if not any(
            begins[DIGEST_BYTES] == one.took_steps and self._are_alike(next_held[1:], one.tensors) for one in left
        ):
            return f"its optimizer is not what its local steps in round {effect.before} leave"
        weights_K = sent_D.new_tensor(list(effect.weights.values()))
        mixed_D = self._mixer(sent_D, theirs_KD, weights_K) if len(mixed) else sent_D
        if not is_near(mixed_D, next_held[0], MIX_TOLERANCE * length(mixed_D)):
            return f"mixing does not lead from what it sent in round {effect.before} to what it began the next with"
        return ""

    def _bench_of(self, peer: PeerId) -> AuditedTrainer:
        """A trainer in the place of `peer`; the last one is kept. Raises _HinderedError where there can be none."""
        if self._bench is None or self._bench._config.name != peer:
            self._bench = None  # its memory first
            config = self._config.model_copy(update={"name": str(peer), "attack": Attack()})
            try:
                self._bench = AuditedTrainer(config, make_task(config), self._mixer, like=self)
            except NO_MEMORY:
                raise
            except Exception as error:  # whatever a task makes of files that are gone
                raise _HinderedError(f"its place cannot be taken: {_said(error)}") from error
            self._bench._kept = None  # who sends what it did has undone already what had to be
        return self._bench

    def _takes_steps(self, start: memoryview, round: int) -> str:
        """The local steps from there; why they lead nowhere. Raises _HinderedError when nothing can be said.

        No error but divergence is a fault: it may be ours. Where our own first start does without, it may be theirs.
        """
        self._round = 0  # begin, whatever was before
        try:
            self._load(start)
            complete = not self._leaving.is_set() and TorchTrainer.train(self, round).complete
        except NO_MEMORY:
            raise
        except DivergedError as error:
            return _said(error)
        except Exception as error:  # whatever a task makes of weights that nobody has trained
            said = f"its local steps end with {_said(error)}"
            raise _HinderedError(said, theirs=self._can_train(round)) from error
        if not complete:
            raise _HinderedError("we leave")
        return ""

    def _can_train(self, round: int) -> bool:
        """Whether these steps can be taken from the swarm's first start."""
        self._round = 0
        try:
            self._load(self._first)
            return TorchTrainer.train(self, round).complete
        except Exception:  # ours, then
            return False

    def _is_in_range(self, start: memoryview, round: int) -> bool:
        """Whether its whole numbers, which may be indices, are such as ours were in round 1 or are now; those that
        change may count up to four times in each step."""
        known = zip(self._read(memoryview(self._first))[0], [*self._held(), *self._slots], strict=True)
        for part, (first, now) in zip(self._raw_parts(start), known, strict=True):
            if now.dtype == torch.bool:
                if max(part, default=0) > 1:
                    return False
            elif len(part) and not (now.is_floating_point() or now.is_complex()):
                most = 0 if torch.equal(first, now) else 4 * self._config.local.steps * round
                values, ours = read_like(now, part), torch.stack([first, now])
                if int(values.min()) < int(ours.min()) or int(values.max()) > int(ours.max()) + most:
                    return False
        return True

    def _is_near_first(self, start: memoryview) -> bool:
        """Whether it is what every life without a snapshot begins round 1 with."""
        (first_D, *first), took_steps = self._read(memoryview(self._first))
        (other_D, *other), took_others = self._read(start)
        return took_steps == took_others and is_near(other_D, first_D, 0.0) and self._are_alike(other, first)

    def _are_alike(self, some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
        """Buffers and optimizer states: near where they are real numbers, else equal.

        All of one kind are one vector: a tensor of them that should be zero has nothing but rounding.
        """
        apart, lengths = defaultdict[str, float](float), defaultdict[str, float](float)
        for kind, one, other in zip(self._kinds, some, others, strict=True):
            if not one.is_floating_point():
                if not torch.equal(one, other.to(one.device)):
                    return False
                continue
            apart[kind] = math.hypot(apart[kind], length(one - other.to(one.device)))
            lengths[kind] = math.hypot(lengths[kind], length(other))
        return all(apart[kind] <= STEP_TOLERANCE * lengths[kind] < math.inf for kind in apart)

    def _raw_parts(self, start: memoryview) -> list[memoryview]:
        """The bytes of each of its tensors."""
        return parts(start[DIGEST_BYTES + 1 :], [bytes_of(tensor) for tensor in (*self._held(), *self._slots)])

    # Starts -------------------------------------------------------------------------------------------

    def _held(self) -> list[Tensor]:
        """What a round begins with beside the optimizer."""
        return [self._model.flat_D, *snapshot.copy_buffers(self._model.module).values()]

    def _put(self, held: Sequence[Tensor]) -> None:
        """The model and its buffers."""
        self._model.flat_D.copy_(held[0])
        names = snapshot.copy_buffers(self._model.module)
        self._model.module.load_state_dict(dict(zip(names, held[1:], strict=True)), strict=False)

    def _encoded(self) -> tuple[Any, list[Tensor]]:
        """The optimizer's state: what is the same in all rounds, and tensors."""
        return encoded(self._optimizer)

    def _start_of(self, came: bytes) -> bytes:
        document, tensors = self._encoded()
        took_steps = document == self._document
        if not took_steps and document != self._new:
            name = self._config.local.optimizer
            raise LocalError(f"local.optimizer = {name!r}: its state changes its form, so it cannot be audited")
        raws = map(raw, (*self._held(), *(tensors if took_steps else self._slots)))
        return b"".join((came, bytes((took_steps,)), *raws))

    def _read(self, start: memoryview) -> tuple[list[Tensor], bool]:
        """Its tensors, on the model's device, and whether the optimizer took steps."""
        shapes, raws = [*self._held(), *self._slots], self._raw_parts(start)
        return [read_like(tensor, part) for tensor, part in zip(shapes, raws, strict=True)], bool(start[DIGEST_BYTES])

    def _load(self, start: bytes | memoryview) -> None:
        """Go there."""
        tensors, took_steps = self._read(memoryview(start))
        count = len(tensors) - len(self._slots)
        self._put(tensors[:count])
        self._reset_optimizer()
        if took_steps:
            named = {f"optimizer.{number}": tensor for number, tensor in enumerate(tensors[count:])}
            self._optimizer.load_state_dict(snapshot.decode(self._document, named))
            use_hyperparameters(self._optimizer, self._config.local)


def _of_heard(mixer: Mixer) -> Mixer:
    """The same for an auditor, who is shown what was mixed, and not how many others had sent no model: with f = 1 that
    makes another mix."""

    def mix(mine_D: Tensor, theirs_KD: Tensor, weights_K: Tensor, *, refused: int = 0) -> Tensor:
        del refused
        return mixer(mine_D, theirs_KD, weights_K)

    return mix


class _Left(NamedTuple):
    """What local steps leave besides the model."""

    took_steps: bool
    tensors: list[Tensor]  # buffers, optimizer


class _HinderedError(Exception):
    """Nothing can be said. `theirs`: that may be the audited peer's doing."""

    def __init__(self, why: str, theirs: bool = False) -> None:
        super().__init__(why)
        self.theirs = theirs


def _said(error: Exception) -> str:
    """What an exception says, in one short line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
