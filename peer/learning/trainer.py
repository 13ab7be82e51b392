"""The real `Trainer`: a torch model, this peer's data, its optimizer, the mixing rule and the exchange.

Rules
* All randomness is a pure function of (swarm.seed, this peer's index, round, step): the order of the data, dropout, the
  adoption's trial batches. So nothing of a generator is saved, and a restart goes on exactly where it was interrupted
  (but for what a liar remembers of others, which is lost).
* One call at a time, except `interrupt` and `figures`. Seeding touches torch's global generator: two trainers of one
  process must not train at the same time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from murmurate.peer.config import Config
from murmurate.peer.errors import DivergedError, LocalError
from murmurate.peer.learning.attacks import Board, data_of, make_liar
from murmurate.peer.learning.mixing import Memory, Mixer, Received, keeping_variance, make_memory
from murmurate.peer.learning.tasks import Task
from murmurate.peer.protocol.events import Adopt, Mix, Mixed, Payload, Trained
from murmurate.peer.protocol.seams import Write

from . import snapshot
from .evaluation import evaluate, is_due
from .flat import FlatModel, Schema, is_finite
from .judging import Judge
from .local_steps import make_step
from .optimizers import make_optimizer, use_hyperparameters, use_lr
from .order import Batches
from .payloads import Payloads, Selection
from .randomness import seed_torch
from .rates import lr_of
from .replica import base_of
from .undo import Kept

# Batches of our own data on which a joiner judges the models it is offered. (a guess)
TRIAL_BATCHES = 8


class TorchTrainer:
    """Implements `protocol.seams.Trainer`."""

    schema: Schema
    """Names, shapes and dtypes of all that is trained, in the order of the payload; part of the manifest."""
    base: str
    """Where the first weights came from: `sha256:...` (of task.weights, or of what a task with `common` loads) or
    `seed:N`; part of the manifest."""
    payload_bytes: int
    """The exact length of every payload."""

    def __init__(self, config: Config, task: Task, mixer: Mixer, board: Board | None = None) -> None:
        self._config, self._task, self._mixer = config, task, mixer
        torch.manual_seed(config.swarm.seed)
        module = task.model()
        if config.task.weights:
            self.base = snapshot.load_weights(Path(config.task.weights), module)
        elif (common := getattr(task, "common", None)) is not None:
            self.base = base_of(module, common)
        else:
            self.base = f"seed:{config.swarm.seed}"
        self._model = FlatModel(module.to(config.runtime.device))
        self.schema = self._model.schema
        self._exchanged = Selection(self._model, config.exchange.parameters)
        if config.mixing.keep_variance:
            self._mixer = keeping_variance(mixer, self._exchanged.sizes)
        self._batches = Batches(data_of(config), task.train_size)
        self._memory = self._make_memory()
        self._payloads = Payloads(config.exchange, self._exchanged.get(), self._memory)
        self.payload_bytes = self._payloads.payload_bytes
        known = None if self._memory else mixer
        self._liar = make_liar(config, known, self._seal, self._payloads.unpack, board)
        # With f > 0 the mixing rule keeps what is mixed near what honest neighbours send.
        self._kept = Kept(self._model) if config.mixing.f == 0 else None
        self._reset_optimizer()
        self._interrupted = threading.Event()
        self._complete = 0  # the last complete round
        self._round, self._steps, self._loss_sum = 0, 0, 0.0  # the round in training, its steps and their losses
        self._figures: dict[str, float] = {}

    def warm_up(self, degree: int) -> None:
        """Mix once: compiling a kernel takes seconds, in which no heartbeat would leave."""
        if not degree:
            return
        self._payloads.make_room(degree)
        mine_E, theirs_KE = self._exchanged.get(), self._payloads.theirs(degree)
        if memory := self._make_memory():
            others = [peer for peer in range(len(self._config.roster)) if peer != self._config.index][:degree]
            rows = len(others)
            memory.mix(mine_E, Received(0, others, theirs_KE[:rows], self._payloads.notes(rows)))
        else:
            self._mixer(mine_E, theirs_KE, mine_E.new_zeros(degree))

    # Training -----------------------------------------------------------------------------------------

    def train(self, round: int) -> Trained:
        """See the seam. Where the model is not finite afterwards, the mix before is undone and the round begins anew;
        raises DivergedError where that does not help, or with f > 0."""
        if round != self._round:
            self._round, self._steps, self._loss_sum = round, 0, 0.0
        use_lr(self._optimizer, lr_of(self._config, round))
        steps = self._config.local.steps
        if self._liar and not self._liar.trains:
            self._steps = steps
        before = self._steps
        seed, device = self._batches.seed("dropout", round), self._model.flat_D.device
        step, batch_of, interrupted = self._step, self._task.batch, self._interrupted.is_set
        losses: list[Tensor] = []
        began = time.perf_counter()
        for indices_B in self._batches.of((round - 1) * steps + before, round * steps):
            if interrupted():
                break
            seed_torch(seed + self._steps, device)
            losses.append(step(batch_of(indices_B)))
            self._steps += 1
        self._interrupted.clear()
        if losses:
            self._loss_sum = sum(torch.stack(losses).tolist(), self._loss_sum)
            pace = len(losses) * self._batches.size / (time.perf_counter() - began)
            self._note(loss=self._loss_sum / self._steps, examples_per_s=pace)
        complete = self._steps == steps
        if not (math.isfinite(self._loss_sum) and is_finite(self._model.flat_D)):
            self._undo_mix()
            return self.train(round) if complete else Trained(round, b"", complete=False)
        if not complete:
            return Trained(round, b"", complete=False)
        if self._kept:
            self._kept.keep()
        return Trained(round, self._pack())

    def interrupt(self) -> None:
        """See the seam. Before a `train` has begun it ends that one before its first step."""
        self._interrupted.set()

    # Mixing -------------------------------------------------------------------------------------------

    def mix(self, effect: Mix) -> Mixed:
        """See the seam."""
        self._interrupted.clear()  # came too late for the steps that it meant
        senders, malformed = self._payloads.receive(effect.inbox)
        theirs_KE = self._payloads.theirs(len(senders))
        mine_E = self._exchanged.get()
        if self._memory:
            peers, notes_KA = list(map(self._config.roster.index, senders)), self._payloads.notes(len(senders))
            self._exchanged.put(self._memory.mix(mine_E, Received(effect.turn.round, peers, theirs_KE, notes_KA)))
        elif senders:
            weights_K = mine_E.new_tensor([effect.weights[sender] for sender in senders])
            self._exchanged.put(self._mixer(mine_E, theirs_KE, weights_K, refused=len(malformed)))
        if self._liar:
            self._liar.mixed(senders, theirs_KE, self._exchanged.get())
        if effect.pack:
            return Mixed(effect.turn, self._pack(), malformed)
        self._finish(effect.turn.round)
        return Mixed(effect.turn, malformed=malformed)

    def adopt(self, effect: Adopt) -> Mixed:
        """See the seam.

        A joiner has no model to measure liars against, but it has its own data: the offer with the lowest loss on them
        is the pivot, and the others are folded around it by the mixing rule. One that remembers does not know them yet,
        and takes the pivot alone.
        """
        self._interrupted.clear()
        senders, malformed = self._payloads.receive(effect.inbox)
        if senders:
            theirs_KE = self._payloads.theirs(len(senders))
            trial = list(self._batches.of(0, TRIAL_BATCHES, number=effect.turn.round))
            losses = [self._loss_of(row_E, trial) for row_E in theirs_KE]
            pivot = losses.index(min(losses))
            others = [row for row in range(len(senders)) if row != pivot]
            self._exchanged.put(theirs_KE[pivot])
            if self._kept:
                self._kept.keep()
            weights_K = theirs_KE.new_full((len(others),), 1 / len(senders))
            self._exchanged.put(self._mixer(theirs_KE[pivot], theirs_KE[others], weights_K))
            self._reset_optimizer()
            if self._memory:
                self._memory.begin(self._exchanged.get())
        self._finish(effect.turn.round)
        return Mixed(effect.turn, malformed=malformed)

    def _pack(self) -> Payload:
        if self._liar:
            return self._liar.say(self._round, self._exchanged.get())
        return self._seal(self._exchanged.get())

    def _seal(self, said_E: Tensor) -> Payload:
        """What we say of the model as bytes, with the notes of a rule that remembers."""
        notes_A = self._memory.attach(self._round, self._exchanged.get()) if self._memory else None
        return self._payloads.pack(said_E, notes_A)

    def _loss_of(self, part_E: Tensor, trial: list[Tensor]) -> float:
        """The mean loss with this part of the model; it stays there."""
        self._exchanged.put(part_E)
        module = self._model.module.eval()
        with torch.no_grad():
            losses = [float(self._task.loss(module, self._task.batch(indices_B))) for indices_B in trial]
        module.train()
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else math.inf

    def _finish(self, round: int) -> None:
        """The round is complete: evaluate if it is due."""
        self._complete = round
        if is_due(self._config.rounds, round):
            self._note(**evaluate(self._task, self._model.module))

    # State --------------------------------------------------------------------------------------------

    def snapshot(self) -> Write:
        """See the seam."""
        tensors = {f"model.{name}": part for name, part in self._model.named(self._model.flat_D.clone()).items()}
        tensors |= {f"buffer.{name}": value for name, value in snapshot.copy_buffers(self._model.module).items()}
        if self._memory:
            tensors |= {f"mixing.{name}": value for name, value in self._memory.state().items()}
        optimizer: dict[str, Tensor] = {}
        try:
            state = snapshot.encode(self._optimizer.state_dict(), optimizer)
        except TypeError as error:
            raise LocalError(f"local.optimizer = {self._config.local.optimizer!r} has a state that {error}") from None
        document = {
            "identity": self._identity(),
            "complete": self._complete,
            "round": self._round,
            "steps": self._steps,
            "loss_sum": self._loss_sum,
            "optimizer": [self._config.local.optimizer.lower(), state],
            "memory": self._memory_of(),
        }
        return lambda path: snapshot.save(path, tensors | optimizer, document)

    def restore(self, path: Path) -> int:
        """See the seam. The learning rate and options of the configuration count; another optimizer, and a mixing rule
        that remembers another roster or nothing yet, starts anew."""
        tensors, document = snapshot.load(path)
        try:
            for key, mine in self._identity().items():
                if document["identity"][key] != mine:
                    raise snapshot.damaged(path, f"its {key} is {document['identity'][key]}, and ours is {mine}")
            self._restore_model(tensors)
            name, state = document["optimizer"]
            if name == self._config.local.optimizer.lower():
                self._optimizer.load_state_dict(snapshot.decode(state, tensors))
                use_hyperparameters(self._optimizer, self._config.local)
            if self._memory:
                self._memory.begin(self._exchanged.get())
                if document.get("memory") == self._memory_of():
                    of = {name: value for name, value in tensors.items() if name.startswith("mixing.")}
                    self._memory.load({name.removeprefix("mixing."): value for name, value in of.items()})
            self._complete, self._round, self._steps = (int(document[key]) for key in ("complete", "round", "steps"))
            self._loss_sum = float(document["loss_sum"])
            if self._kept:
                self._kept.keep()
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise snapshot.damaged(path, f"its contents do not fit ({type(error).__name__}: {error})") from None
        return self._complete

    def export(self) -> Write:
        """See the seam. The file is a plain `state_dict`; `snapshot.save_model` says how to load it."""
        tensors = {name: value.detach().clone() for name, value in self._model.module.state_dict().items()}
        return lambda path: snapshot.save_model(path, tensors)

    def figures(self) -> Mapping[str, float]:
        """See the seam: loss (mean of the round so far), examples_per_s, what the task's `evaluate` gives, and
        mixes_undone, if there were any."""
        return self._figures  # replaced, never changed

    def _note(self, **figures: float) -> None:
        self._figures = {**self._figures, **figures}

    def _identity(self) -> dict[str, Any]:
        """What a snapshot must share with us, as JSON would give it back."""
        schema = [[name, list(shape), dtype] for name, shape, dtype in self.schema]
        task, swarm = self._config.task, self._config.swarm
        return {"swarm": [swarm.name, swarm.seed], "task": task.name, "base": self.base, "schema": schema}

    def _memory_of(self) -> list[str]:
        """Whose memory of whom a snapshot holds; empty where the mixing rule has none."""
        return [self._config.mixing.rule, *self._config.roster] if self._memory else []

    def _make_memory(self) -> Memory | None:
        """Without any memory yet."""
        judge = None
        if self._config.mixing.rule == "bristle":
            judge = Judge(self._task, self._model, self._exchanged, self._batches)
        return make_memory(self._config, self._exchanged.get(), self._exchanged.schema, judge)

    def _restore_model(self, tensors: Mapping[str, Tensor]) -> None:
        for name, part in self._model.named(self._model.flat_D).items():
            part.copy_(tensors[f"model.{name}"])
        buffers = snapshot.copy_buffers(self._model.module)
        state = {name: tensors[f"buffer.{name}"] for name in buffers}
        self._model.module.load_state_dict(state, strict=False)

    def _reset_optimizer(self) -> None:
        self._optimizer = make_optimizer(self._config.local, self._model)
        self._step = make_step(self._config.local, self._task, self._model, self._optimizer)

    def _undo_mix(self) -> None:
        """After training diverged: as if nothing had been mixed since the last round, and this one had not begun."""
        if self._kept is None or not self._kept.bring_back():
            raise DivergedError(
                f"training diverged in round {self._round}: the model is not finite any more; lower local.lr (now "
                f"{self._config.local.lr:g}) and start this peer again: it goes on from its last snapshot. (Neighbours "
                "that send huge values do this too where they are more than mixing.f.)"
            )
        self._reset_optimizer()
        if self._memory:
            self._memory.begin(self._exchanged.get())
        if self._liar:
            self._liar.mixed([], self._payloads.theirs(0), self._exchanged.get())
        self._steps, self._loss_sum = 0, 0.0
        self._note(mixes_undone=self._figures.get("mixes_undone", 0) + 1)
