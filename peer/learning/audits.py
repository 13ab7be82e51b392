"""A trainer whose every round can be recomputed by others, and that recomputes theirs; see protocol/audits.py.

Behind the model a payload carries the SHA-256 of its round's *start*, which has one exact size:

    SHA-256 of how it came about (32) | whether the optimizer took steps (1) | model | buffers | optimizer's tensors

How it came about is what was sent in the round before and whose models were mixed then; zeros in the first round of a
life. The optimizer's tensors are zeros before its first step; all else of its state must be the same in all rounds.
Numbers are little-endian, as on every machine that torch runs on.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from murmurate.peer.config import Attack, Config
from murmurate.peer.errors import ConfigError, LocalError, MurmurateError
from murmurate.peer.learning.attacks import Board
from murmurate.peer.learning.mixing import Mixer
from murmurate.peer.learning.tasks import Task, make_task
from murmurate.peer.protocol.events import Adopt, Examine, Examined, Mix, Mixed, Payload, PeerId, Proof, Trained
from murmurate.peer.protocol.seams import Write

from . import snapshot
from .flat import FlatModel
from .optimizers import make_optimizer, use_hyperparameters
from .trainer import TorchTrainer

DIGEST_BYTES = 32
NO_MEMORY = (MemoryError, torch.OutOfMemoryError)
NOWHERE = bytes(DIGEST_BYTES)  # how the first start of a life came about

STEP_TOLERANCE = 1e-2
"""Of the update's length: how far recomputed local steps may be from those that were sent, since processors add up in
other orders. Measured on digits, 20 to 200 steps: other numbers of threads give 3e-8 to 7e-6; a random last bit in each
weight after each step 4e-7 to 1e-5, but 5e-2 after 200 steps of the convolutional net, which are not stable."""

MIX_TOLERANCE = 1e-4
"""Of the model's length: the same for a mix, whose shares may come from a Gram matrix in float32. (a guess)"""

ROUNDINGS = 16
"""Of the model's length, in units of its dtype: what is rounding however short the update is. (a guess)"""


class AuditedTrainer(TorchTrainer):
    """Implements `protocol.seams.Trainer` and `Auditor`."""

    start_bytes: int

    def __init__(self, config: Config, task: Task, mixer: Mixer, board: Board | None = None) -> None:
        """Raises ConfigError for a task, a mixing rule or an optimizer that cannot be audited."""
        super().__init__(config, task, mixer, board)
        audit = f"audit.rate = {config.audit.rate}"
        if not getattr(task, "public", False):
            raise ConfigError(f"{audit}: the task {config.task.name!r} does not say that its data are `public`")
        if self._memory:
            raise ConfigError(f"{audit}: mixing.rule = {config.mixing.rule!r} remembers what no auditor knows")
        self.payload_bytes += DIGEST_BYTES
        self._document, self._slots = _slots_of(config, self._model)
        self._new, tensors = self._encoded()
        self._fresh = _Left(True, tensors) if self._new == self._document else _Left(False, self._slots)
        self.start_bytes = DIGEST_BYTES + 1 + sum(_bytes_of(tensor) for tensor in (*self._held(), *self._slots))
        self._first = self._start_of(NOWHERE)  # of round 1
        self._came = NOWHERE
        self._start = b""  # of the round in training
        self._sent = NOWHERE  # digest of our last payload
        self._left: list[Tensor] | None = None  # the model that it had, and its buffers
        self._undone = False  # whether the last mix was
        self._bench: AuditedTrainer | None = None  # where we recompute

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
        self._left = [tensor.clone() for tensor in self._held()] if self._kept else None
        proof, self._undone = Proof(self._start, self._sent, self._undone), False
        return Trained(round, payload, proof=proof)

    def mix(self, effect: Mix) -> Mixed:
        """See the seam."""
        models = {peer: memoryview(payload)[:-DIGEST_BYTES] for peer, payload in effect.inbox.items()}
        mixed = super().mix(Mix(effect.turn, models, effect.weights, effect.pack))
        digests = _digests(effect.inbox, mixed.malformed)
        self._came = _came_of(self._sent, digests) if self._start else NOWHERE
        return Mixed(mixed.turn, mixed.payload, mixed.malformed, digests)

    def adopt(self, effect: Adopt) -> Mixed:
        """See the seam."""
        models = {peer: memoryview(payload)[:-DIGEST_BYTES] for peer, payload in effect.inbox.items()}
        mixed = super().adopt(Adopt(effect.turn, models))
        return Mixed(mixed.turn, malformed=mixed.malformed, digests=_digests(effect.inbox, mixed.malformed))

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
        self._came, self._undone = _came_of(self._sent, ()), True
        self._start = self._start_of(self._came)

    def interrupt(self) -> None:
        """See the seam. Ends a running examination as well."""
        super().interrupt()
        if (bench := self._bench) is not None:
            bench.interrupt()

    # Auditing -----------------------------------------------------------------------------------------

    def examine(self, effect: Examine) -> Examined:
        """See `seams.Auditor`."""
        try:
            fault, differs = self._examine(effect)
        except _HinderedError as error:
            return Examined(effect.peer, effect.round, hindered=str(error))
        except NO_MEMORY:  # is no fault of theirs, and no reason to end
            self._bench = None
            return Examined(effect.peer, effect.round, hindered="there is no memory for its steps")
        return Examined(effect.peer, effect.round, fault, differs=differs)

    def _examine(self, effect: Examine) -> tuple[str, tuple[PeerId, ...]]:
        """The fault, if any, and whose models were heard otherwise."""
        sizes = [self.start_bytes, *[self.payload_bytes] * (1 + len(effect.weights)), self.start_bytes]
        if sum(sizes) != len(effect.evidence) or len(effect.payload) != self.payload_bytes:
            return "its evidence has a wrong size", ()
        began, sent, *mixed, begins = _parts(effect.evidence, sizes)
        digests = tuple((peer, hashlib.sha256(part).digest()) for peer, part in zip(effect.weights, mixed, strict=True))
        if hashlib.sha256(sent).digest() != effect.sent:
            return f"it shows another model of round {effect.before} than it sent", ()
        for start, payload in ((began, sent), (begins, effect.payload)):
            if hashlib.sha256(start).digest() != bytes(payload[-DIGEST_BYTES:]):
                return "it shows another start of a round than it committed to", ()
        if bytes(begins[:DIGEST_BYTES]) != _came_of(effect.sent, digests):
            return "it shows other models than it committed to have mixed", ()
        if effect.before == 1 and not self._is_near_first(began):
            return "it began its first round elsewhere", ()
        differs = tuple(peer for peer, digest in digests if effect.heard.get(peer, digest) != digest)
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
        held, next_held = bench._read(began)[0], bench._read(begins)[0]
        if not bench._takes_steps(began, effect.before):
            return f"its local steps in round {effect.before} are not possible"
        sent_D, theirs_KD = torch.empty_like(held[0]), held[0].new_empty(len(mixed), len(held[0]))
        try:
            for payload, row_D in zip((sent, *mixed), (sent_D, *theirs_KD), strict=True):
                self._payloads.unpack(payload[:-DIGEST_BYTES], row_D)
        except MurmurateError:
            return "it sent or mixed what is no model"
        if not _is_near(bench._model.flat_D, sent_D, STEP_TOLERANCE * _length(sent_D - held[0])):
            return f"its local steps do not lead to the model that it sent in round {effect.before}"
        left = [_Left(True, [*bench._held()[1:], *bench._encoded()[1]])]
        if not mixed:  # then its mix may have been undone
            left.append(_Left(self._fresh.took_steps, [*bench._held()[1:], *self._fresh.tensors]))
        if not any(begins[DIGEST_BYTES] == one.took_steps and _are_alike(next_held[1:], one.tensors) for one in left):
            return f"its optimizer is not what its local steps in round {effect.before} leave"
        weights_K = sent_D.new_tensor(list(effect.weights.values()))
        mixed_D = self._mixer(sent_D, theirs_KD, weights_K) if len(mixed) else sent_D
        if not _is_near(mixed_D, next_held[0], MIX_TOLERANCE * _length(mixed_D)):
            return f"mixing does not lead from what it sent in round {effect.before} to what it began the next with"
        return ""

    def _bench_of(self, peer: PeerId) -> AuditedTrainer:
        """A trainer in the place of `peer`; the last one is kept."""
        if self._bench is None or self._bench._config.name != peer:
            self._bench = None  # its memory first
            config = self._config.model_copy(update={"name": str(peer), "attack": Attack()})
            self._bench = AuditedTrainer(config, make_task(config), self._mixer)
            self._bench._kept = None  # who sends what it did has undone already what had to be
        return self._bench

    def _takes_steps(self, start: memoryview, round: int) -> bool:
        """The local steps from there; False where they lead nowhere. Raises _HinderedError when nothing can be said."""
        self._round = 0  # begin, whatever was before
        try:
            self._load(start)
            complete = TorchTrainer.train(self, round).complete
        except NO_MEMORY:
            raise
        except Exception:  # whatever a task makes of weights that nobody has trained
            return False
        if not complete:
            raise _HinderedError("we leave")
        return True

    def _is_near_first(self, start: memoryview) -> bool:
        """Whether it is what every life without a snapshot begins round 1 with."""
        (first_D, *first), took_steps = self._read(memoryview(self._first))
        (other_D, *other), took_others = self._read(start)
        return took_steps == took_others and _is_near(other_D, first_D, 0.0) and _are_alike(other, first)

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
        return _encoded(self._optimizer)

    def _start_of(self, came: bytes) -> bytes:
        document, tensors = self._encoded()
        took_steps = document == self._document
        if not took_steps and document != self._new:
            name = self._config.local.optimizer
            raise LocalError(f"local.optimizer = {name!r}: its state changes its form, so it cannot be audited")
        parts = map(_raw, (*self._held(), *(tensors if took_steps else self._slots)))
        return b"".join((came, bytes((took_steps,)), *parts))

    def _read(self, start: memoryview) -> tuple[list[Tensor], bool]:
        """Its tensors, on the model's device, and whether the optimizer took steps."""
        shapes = [*self._held(), *self._slots]
        parts = _parts(start[DIGEST_BYTES + 1 :], [_bytes_of(tensor) for tensor in shapes])
        return [_like(tensor, part) for tensor, part in zip(shapes, parts, strict=True)], bool(start[DIGEST_BYTES])

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


class _Left(NamedTuple):
    """What local steps leave besides the model."""

    took_steps: bool
    tensors: list[Tensor]  # buffers, optimizer


class _HinderedError(Exception):
    """Nothing can be said."""


def _slots_of(config: Config, like: FlatModel) -> tuple[Any, list[Tensor]]:
    """The optimizer's state after steps: what does not change, and zeros in the form of its tensors.

    Raises ConfigError for an optimizer in whose state something else than tensors changes.
    """
    model = FlatModel(copy.deepcopy(like.module))
    optimizer = make_optimizer(config.local, model)
    documents: list[Any] = []
    tensors: list[Tensor] = []
    for _ in range(2):
        model.grad_D.fill_(1e-3)
        optimizer.step()
        document, tensors = _encoded(optimizer)
        documents.append(document)
    if documents[0] != documents[1]:
        raise ConfigError(
            f"audit.rate = {config.audit.rate}: the state of local.optimizer = {config.local.optimizer!r} has numbers "
            "that change and are no tensors, so it cannot be audited; sgd and adamw can"
        )
    return documents[0], [torch.zeros_like(tensor) for tensor in tensors]


def _encoded(optimizer: Any) -> tuple[Any, list[Tensor]]:
    state: dict[str, Any] = dict(optimizer.state_dict())
    if "param_groups" in state:  # the learning rate is the schedule's
        state["param_groups"] = [{**group, "lr": 0.0} for group in state["param_groups"]]
    tensors: dict[str, Tensor] = {}
    document = snapshot.encode(state, tensors)
    return document, list(tensors.values())


def _came_of(sent: bytes, digests: tuple[tuple[PeerId, bytes], ...]) -> bytes:
    """How a start came about: from this payload of its peer and those of others, sorted by name."""
    lines = b"".join(hashlib.sha256(peer.encode()).digest() + digest for peer, digest in digests)
    return hashlib.sha256(sent + lines).digest()


def _digests(inbox: Mapping[PeerId, Payload], malformed: tuple[PeerId, ...]) -> tuple[tuple[PeerId, bytes], ...]:
    return tuple((peer, hashlib.sha256(inbox[peer]).digest()) for peer in sorted(inbox) if peer not in malformed)


def _parts(whole: bytes | bytearray | memoryview, sizes: Sequence[int]) -> list[memoryview]:
    view, parts, first = memoryview(whole), list[memoryview](), 0
    for size in sizes:
        parts.append(view[first : first + size])
        first += size
    return parts


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()


def _like(tensor: Tensor, raw: memoryview) -> Tensor:
    """These bytes as a tensor of the same form."""
    if not len(raw):
        return torch.empty_like(tensor)
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(tensor.dtype)
    return flat.view(tensor.shape).to(tensor.device)


def _length(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def _is_near(one_D: Tensor, other_D: Tensor, tolerance: float) -> bool:
    """Whether they are no farther apart than this and rounding."""
    rounding = ROUNDINGS * torch.finfo(one_D.dtype).eps * _length(other_D)
    return _length(one_D - other_D) <= tolerance + rounding  # false for what is not finite


def _are_alike(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(map(_is_alike, some, others))


def _is_alike(one: Tensor, other: Tensor) -> bool:
    """Buffers and optimizer states: near where they are real numbers, else equal."""
    if not one.is_floating_point():
        return torch.equal(one, other.to(one.device))
    return _length(one - other.to(one.device)) <= STEP_TOLERANCE * _length(other)
