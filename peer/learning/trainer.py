"""The real `Trainer`: a torch model, this peer's data, its optimizer, the mixing rule and the exchange.

Rules
* All randomness is a pure function of (swarm.seed, this peer's index, round, step): the order of the data, dropout, the
  adoption's trial batches. So nothing of a generator is saved, and a restart goes on exactly where it was interrupted.
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
from murmurate.peer.errors import ConfigError, LocalError, RemoteError
from murmurate.peer.learning.exchange import make_exchange
from murmurate.peer.learning.mixing import Mixer, keeping_variance, make_mixer
from murmurate.peer.learning.tasks import Task, make_task
from murmurate.peer.protocol.events import Adopt, Mix, Mixed, Payload, PeerId, Trained
from murmurate.peer.protocol.seams import Write

from . import snapshot
from .attacks import distort
from .evaluation import evaluate, is_due
from .flat import FlatModel, Schema, is_finite
from .local_steps import make_step
from .optimizers import make_optimizer, use_hyperparameters
from .order import Batches
from .randomness import seed_torch
from .replica import base_of

# Batches of our own data on which a joiner judges the models it is offered. (a guess)
TRIAL_BATCHES = 8


def prepare(config: Config) -> None:
    """Once per process, before any other use of torch: threads, device. Raises ConfigError for an unusable device."""
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    try:
        torch.empty(1, device=config.runtime.device).add_(1)
    except Exception as error:  # every backend has its own way to say no
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"runtime.device = {config.runtime.device!r}: cannot be used here: {first_line}") from None


def make_trainer(config: Config, degree_min: int) -> TorchTrainer:
    """The trainer of the configuration, on a graph where no peer has fewer than `degree_min` neighbours."""
    trainer = TorchTrainer(config, make_task(config), make_mixer(config.mixing, degree_min))
    trainer.warm_up(degree_min)
    return trainer


class TorchTrainer:
    """Implements `protocol.seams.Trainer`."""

    schema: Schema
    """Names, shapes and dtypes of what is exchanged, in the order of the payload; part of the manifest."""
    base: str
    """Where the first weights came from: `sha256:...` (of task.weights, or of what a task with `common` loads) or
    `seed:N`; part of the manifest."""
    payload_bytes: int
    """The exact length of every payload."""

    def __init__(self, config: Config, task: Task, mixer: Mixer) -> None:
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
        if config.mixing.keep_variance:
            self._mixer = keeping_variance(mixer, [math.prod(shape) for _, shape, _ in self.schema])
        self._exchange = make_exchange(config.exchange, self._model.flat_D.numel())
        self.payload_bytes = self._exchange.payload_bytes
        self._theirs_KD = self._model.flat_D.new_empty(0, self._model.flat_D.numel())
        self._batches = Batches(config, task.train_size)
        self._reset_optimizer()
        self._interrupted = threading.Event()
        self._complete = 0  # the last complete round
        self._round, self._steps, self._loss_sum = 0, 0, 0.0  # the round in training, its steps and their losses
        self._figures: dict[str, float] = {}

    def warm_up(self, degree: int) -> None:
        """Mix once: compiling a kernel takes seconds, in which no heartbeat would leave."""
        flat_D = self._model.flat_D
        if degree:
            self._theirs_KD = flat_D.new_zeros(degree, len(flat_D))
            self._mixer(flat_D, self._theirs_KD, flat_D.new_zeros(degree))

    # Training -----------------------------------------------------------------------------------------

    def train(self, round: int) -> Trained:
        """See the seam. Raises LocalError when the model is not finite afterwards."""
        if round != self._round:
            self._round, self._steps, self._loss_sum = round, 0, 0.0
        steps, before = self._config.local.steps, self._steps
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
        self._check()
        if self._steps < steps:
            return Trained(round, b"", complete=False)
        return Trained(round, self._pack())

    def interrupt(self) -> None:
        """See the seam. Before a `train` has begun it ends that one before its first step."""
        self._interrupted.set()

    # Mixing -------------------------------------------------------------------------------------------

    def mix(self, effect: Mix) -> Mixed:
        """See the seam."""
        self._interrupted.clear()  # came too late for the steps that it meant
        senders, malformed = self._unpack(effect.inbox)
        if senders:
            flat_D = self._model.flat_D
            weights_K = flat_D.new_tensor([effect.weights[sender] for sender in senders])
            flat_D.copy_(self._mixer(flat_D, self._theirs_KD[: len(senders)], weights_K))
        if effect.pack:
            return Mixed(effect.turn, self._pack(), malformed)
        self._finish(effect.turn.round)
        return Mixed(effect.turn, malformed=malformed)

    def adopt(self, effect: Adopt) -> Mixed:
        """See the seam.

        A joiner has no model to measure liars against, but it has its own data: the offer with the lowest loss on them
        is the pivot, and the others are folded around it by the mixing rule.
        """
        self._interrupted.clear()
        senders, malformed = self._unpack(effect.inbox)
        if senders:
            flat_D, theirs_KD = self._model.flat_D, self._theirs_KD[: len(senders)]
            trial = list(self._batches.of(0, TRIAL_BATCHES, number=effect.turn.round))
            losses = [self._loss_of(row_D, trial) for row_D in theirs_KD]
            pivot = losses.index(min(losses))
            others = [row for row in range(len(senders)) if row != pivot]
            weights_K = flat_D.new_full((len(others),), 1 / len(senders))
            flat_D.copy_(self._mixer(theirs_KD[pivot], theirs_KD[others], weights_K))
            self._reset_optimizer()
        self._finish(effect.turn.round)
        return Mixed(effect.turn, malformed=malformed)

    def _unpack(self, inbox: Mapping[PeerId, Payload]) -> tuple[list[PeerId], tuple[PeerId, ...]]:
        """Fills the first rows of `theirs_KD`; returns whose they are, sorted, and who sent rubbish."""
        if len(inbox) > len(self._theirs_KD):
            self._theirs_KD = self._theirs_KD.new_empty(len(inbox), self._theirs_KD.shape[1])
        senders: list[PeerId] = []
        malformed: list[PeerId] = []
        for sender in sorted(inbox):
            try:
                self._exchange.unpack(inbox[sender], self._theirs_KD[len(senders)])
            except RemoteError:
                malformed.append(sender)
            else:
                senders.append(sender)
        return senders, tuple(malformed)

    def _pack(self) -> Payload:
        return self._exchange.pack(distort(self._config.attack, self._model.flat_D))

    def _loss_of(self, weights_D: Tensor, trial: list[Tensor]) -> float:
        """The mean loss of these weights; they stay in the model."""
        self._model.flat_D.copy_(weights_D)
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
        }
        return lambda path: snapshot.save(path, tensors | optimizer, document)

    def restore(self, path: Path) -> int:
        """See the seam. The learning rate and options of the configuration count, and another optimizer starts anew."""
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
            self._complete, self._round, self._steps = (int(document[key]) for key in ("complete", "round", "steps"))
            self._loss_sum = float(document["loss_sum"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise snapshot.damaged(path, f"its contents do not fit ({type(error).__name__}: {error})") from None
        return self._complete

    def export(self) -> Write:
        """See the seam. The file is a plain `state_dict`; `snapshot.save_model` says how to load it."""
        tensors = {name: value.detach().clone() for name, value in self._model.module.state_dict().items()}
        return lambda path: snapshot.save_model(path, tensors)

    def figures(self) -> Mapping[str, float]:
        """See the seam: loss (mean of the round so far), examples_per_s, and what the task's `evaluate` gives."""
        return self._figures  # replaced, never changed

    def _note(self, **figures: float) -> None:
        self._figures = {**self._figures, **figures}

    def _identity(self) -> dict[str, Any]:
        """What a snapshot must share with us, as JSON would give it back."""
        schema = [[name, list(shape), dtype] for name, shape, dtype in self.schema]
        task, swarm = self._config.task, self._config.swarm
        return {"swarm": [swarm.name, swarm.seed], "task": task.name, "base": self.base, "schema": schema}

    def _restore_model(self, tensors: Mapping[str, Tensor]) -> None:
        for name, part in self._model.named(self._model.flat_D).items():
            part.copy_(tensors[f"model.{name}"])
        buffers = snapshot.copy_buffers(self._model.module)
        state = {name: tensors[f"buffer.{name}"] for name in buffers}
        self._model.module.load_state_dict(state, strict=False)

    def _reset_optimizer(self) -> None:
        self._optimizer = make_optimizer(self._config.local, self._model)
        self._step = make_step(self._config.local, self._task, self._model, self._optimizer)

    def _check(self) -> None:
        if not (math.isfinite(self._loss_sum) and is_finite(self._model.flat_D)):
            raise LocalError(
                f"training diverged in round {self._round}: the model is not finite any more; lower local.lr (now "
                f"{self._config.local.lr:g}) and start this peer again: it goes on from its last snapshot. (Under "
                "mixing.rule = 'mean' a neighbour that sends huge values does this too; 'nna' bears it.)"
            )
