"""What is learnt: the `Task` seam, the built-in tasks, and the way to your own.

Your own task is a function `make_task(config) -> Task` in a module that Python finds from the working directory, named
as `task.name = "module:make_task"`. It sees the whole configuration: `config.task.options` is its own to read,
`config.swarm.seed` is common to all peers, `config.index` and `len(config.peers)` say which shard is ours, and
`config.runtime.device` says where the model is. Code is never received from another peer.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn

from murmurate.peer import config
from murmurate.peer.errors import ConfigError, MurmurateError

from . import causal_lm, chars, cifar10, classification, digits, docstrings, mnist


class Task(Protocol):
    """A model, this peer's training data and a loss. A batch is whatever `batch` makes and `loss` understands.

    Optional, for seeds.objective = "score": `score(model, batch) -> float`, a figure of a batch, higher is better.
    Optional, for mixing.rule = "bristle": `predict(model, batch) -> (labels [B], predictions [B])`, the true and the
    predicted class of every example, int64; called in eval mode without gradients.
    Optional, for attacks on the data: `poison(kind)`, called at most once and before training; from then on this peer's
    training batches are poisoned, and `evaluate` stays honest. Kinds: "label_flip", label y becomes C - 1 - y of C
    classes; "backdoor", the first half of every batch shows a trigger and is labelled with its target class. It raises
    ConfigError for a kind that it has not.
    Optional, for audits: `public = True` where every peer holds all data, so that any peer can draw any other's shard.
    Optional as well: `common`, a text that all peers must have alike besides the options, such as a digest of the data
    they share. With it the manifest holds a digest of that text and of the first weights.
    """

    train_size: int
    """Number of this peer's training examples, at least 1."""

    def model(self) -> nn.Module:
        """A new model on the CPU. It may draw from torch's generator, which is seeded alike in all peers."""
        ...

    def batch(self, indices_B: Tensor) -> Any:
        """The examples at these positions in [0, train_size); `indices_B` is int64 on the configured device."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch, to be differentiated."""
        ...

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Figures on held-out data, e.g. accuracy (higher is better), loss; called in eval mode without gradients."""
        ...


TASKS: dict[str, Callable[[config.Config], Task]] = {
    "digits": digits.make_task,
    "mnist": mnist.make_task,
    "cifar10": cifar10.make_task,
    "chars": chars.make_task,
    "docstrings": docstrings.make_task,
    "classification": classification.make_task,
    "causal_lm": causal_lm.make_task,
}


def make_task(config: config.Config) -> Task:
    """The task of the configuration. Raises ConfigError for an unknown name, and for missing or too little data."""
    make = TASKS.get(config.task.name) or _find(config.task.name)
    try:
        task = make(config)
    except MurmurateError:
        raise
    except Exception as error:
        if config.task.name in TASKS:
            raise
        raise ConfigError(f"task.name = {config.task.name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(getattr(task, "train_size", None), int) or task.train_size < 1:
        raise ConfigError(
            f"task.name = {config.task.name!r}: should have train_size >= 1 training examples for this peer"
        )
    return task


def poison(task: Task, kind: str) -> None:
    """From now on this peer's training batches are poisoned, see Task. Raises ConfigError where they cannot be."""
    poisoned = getattr(task, "poison", None)
    if not callable(poisoned):
        raise ConfigError(f"attack.name = {kind!r}: the task {type(task).__name__} has no labels to poison")
    poisoned(kind)


def _find(name: str) -> Callable[[config.Config], Task]:
    """Import `module:function`, looking in the working directory first."""
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ConfigError(
            f"task.name = {name!r}: unknown; known are {', '.join(TASKS)}, or your own as module:function"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may fail in any way it likes
        raise ConfigError(
            f"task.name = {name!r}: importing {module_name} from {os.getcwd()} failed: {type(error).__name__}: {error}"
        ) from error
    make = getattr(module, function_name, None)
    if not callable(make):
        raise ConfigError(f"task.name = {name!r}: {module.__file__} has no function {function_name!r}")
    return cast("Callable[[config.Config], Task]", make)
