"""Optimizers by name: our own two, then torch.optim, then pytorch-optimizer.

An elementwise optimizer is given the whole model as one parameter, which is the same arithmetic in a fraction of the
calls; any other sees the real layers. Before an optimizer is used it takes two steps on a toy, so what cannot work
here (no closure, no second derivatives) is a ConfigError at start-up and not a crash in round 1.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from murmurate.peer import config
from murmurate.peer.errors import ConfigError

from .flat import FlatModel

# Classes of torch.optim whose update of an entry depends on that entry and its gradient alone.
ELEMENTWISE = {"adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "rprop"}
# Of these, the ones that torch can run in one pass over memory, on the devices named by `FUSED_DEVICES`.
FUSED = {"adagrad", "adam", "adamw"}
FUSED_DEVICES = {"cpu", "cuda"}
# What `local.options` means when it is not given.
DEFAULTS: dict[str, dict[str, config.Option]] = {"sgd": {"momentum": 0.9}, "polyak": {"momentum": 0.99}}


class Optimizer(Protocol):
    """The part of torch.optim.Optimizer that we use."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> None: ...


class Sgd:
    """`sgd`: torch.optim.SGD, bit for bit (but for `dampening` in the very first step), in two vector operations.

    m = momentum x m + (1 - dampening) x g;  w -= lr x m. Its bookkeeping is what a small model's step would spend most
    of its time on in torch.optim (measured: 10 us instead of 40 to 60).
    """

    def __init__(
        self,
        model: FlatModel,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(f"momentum = {momentum} should be in [0, 1), weight_decay = {weight_decay} not negative")
        self.param_groups: list[dict[str, Any]] = [{"lr": lr}]
        self._flat_D, self._grad_D = model.flat_D, model.grad_D
        self._momentum_D = torch.zeros_like(model.flat_D) if momentum else None
        self._momentum, self._share = momentum, 1 - dampening
        self._nesterov, self._weight_decay = nesterov, weight_decay

    def step(self) -> None:
        """One step along `grad_D`, which it may change."""
        update_D = self._grad_D
        if self._weight_decay:
            update_D.add_(self._flat_D, alpha=self._weight_decay)
        if self._momentum_D is not None:
            self._momentum_D.mul_(self._momentum).add_(update_D, alpha=self._share)
            if self._nesterov:
                update_D.add_(self._momentum_D, alpha=self._momentum)
            else:
                update_D = self._momentum_D
        self._flat_D.add_(update_D, alpha=-self.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """The momentum, not copied."""
        return {"momentum": self._momentum_D}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take the momentum of `state_dict`, if it has one and we use one."""
        if self._momentum_D is not None and state_dict["momentum"] is not None:
            self._momentum_D.copy_(state_dict["momentum"])


class Polyak(Sgd):
    """`polyak`: momentum as an average of gradients, m = beta m + (1 - beta) g from m = 0 (MoNNA, Algorithm 1)."""

    def __init__(self, model: FlatModel, lr: float, momentum: float = 0.99, weight_decay: float = 0.0) -> None:
        super().__init__(model, lr, momentum, dampening=momentum, weight_decay=weight_decay)


OWN: dict[str, type[Sgd]] = {"sgd": Sgd, "polyak": Polyak}


def make_optimizer(local: config.Local, model: FlatModel) -> Optimizer:
    """The optimizer of the configuration. Raises ConfigError for an unknown name or option, or what cannot work."""
    name = local.optimizer.lower()
    options = _options(local)
    kind = OWN.get(name) or _find(name)
    _check_options(name, kind, options)
    if name in OWN:
        return _build(kind, name, model, local.lr, options)
    _try_on_a_toy(name, kind, local.lr, options)
    if kind.__module__.startswith("torch.") and name in ELEMENTWISE:
        if name in FUSED and model.flat_D.device.type in FUSED_DEVICES and not {"fused", "foreach"} & options.keys():
            options["fused"] = True
        whole = nn.Parameter(model.flat_D)  # shares the storage
        whole.grad = model.grad_D
        return _build(kind, name, [whole], local.lr, options)
    return _build(kind, name, model.parameters, local.lr, options)


def use_hyperparameters(optimizer: Optimizer, local: config.Local) -> None:
    """After `load_state_dict`, which also brings the old ones back: the configuration decides."""
    for group in optimizer.param_groups:
        group.update({key: value for key, value in {"lr": local.lr, **_options(local)}.items() if key in group})


def use_lr(optimizer: Optimizer, lr: float) -> None:
    """The learning rate of the next steps."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _options(local: config.Local) -> dict[str, config.Option]:
    """What was given, over what is usual for this optimizer."""
    return {**DEFAULTS.get(local.optimizer.lower(), {}), **local.options}


def _find(name: str) -> type[torch.optim.Optimizer]:
    """A class by its name in small letters: torch.optim first, then pytorch-optimizer."""
    known: dict[str, type[torch.optim.Optimizer]] = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name in known:
        return known[name]
    names, hint = [*OWN, *known], ""
    try:
        library = importlib.import_module("pytorch_optimizer")
    except ImportError:
        hint = "; many more come with `pip install murmurate[optimizers]`"
    else:
        more: list[str] = library.get_supported_optimizers()
        if name in more:
            return library.load_optimizer(name)
        names += more
    close = difflib.get_close_matches(name, names, n=3)
    advice = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(set(names)))}"
    raise ConfigError(f"local.optimizer = {name!r}: unknown; {advice}{hint}")


def _check_options(name: str, kind: type, options: Mapping[str, config.Option]) -> None:
    accepted = [key for key in inspect.signature(kind).parameters if key not in ("params", "model", "lr", "kwargs")]
    unknown = [key for key in options if key not in accepted]
    if unknown:
        raise ConfigError(f"local.options.{unknown[0]}: {name} has no such option; it has {', '.join(accepted)}")


def _try_on_a_toy(name: str, kind: type, lr: float, options: Mapping[str, config.Option]) -> None:
    toy = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))]
    optimizer: Optimizer = _build(kind, name, toy, lr, options)
    try:
        for _ in range(2):
            for value in toy:
                value.grad = torch.full_like(value, 0.1)
            optimizer.step()
    except Exception as error:  # a library's optimizer may fail in any way it likes
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"local.optimizer = {name!r} cannot be used here, where step() gets plain gradients: {first_line}"
        ) from None


def _build(kind: Any, name: str, target: FlatModel | list[nn.Parameter], lr: float, options: Mapping[str, Any]) -> Any:
    try:
        return kind(target, lr=lr, **options)
    except Exception as error:  # as above
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"local.optimizer = {name!r} with options {dict(options)}: {first_line}") from None
