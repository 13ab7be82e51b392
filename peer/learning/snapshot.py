"""Snapshot files: safetensors with everything a restart needs, and plain ones with the model alone.

A snapshot holds tensors (`model.NAME`, `buffer.NAME`, `optimizer.N`) and, in its metadata under `murmurate`, one JSON
document. Python values that are not JSON, such as tuples and dictionaries with integer keys, are spelled out, so any
optimizer's `state_dict` goes in. Nothing in a file is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from murmurate.peer.errors import ConfigError, LocalError

FORMAT = 1
KEY = "murmurate"


def save(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write a snapshot. Raises LocalError when the disk refuses."""
    text = json.dumps({"format": FORMAT, **document})
    _write(path, {name: value.contiguous() for name, value in tensors.items()}, {KEY: text})


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a snapshot: tensors on the CPU, document. Raises LocalError naming the file and the way out."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        document = json.loads(metadata[KEY])
        version = document["format"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise damaged(
            path, f"it is damaged or was not written by murmurate ({type(error).__name__}: {error})"
        ) from None
    if version != FORMAT:
        raise damaged(path, f"it has format {version}, and this version reads {FORMAT}")
    return tensors, document


def damaged(path: Path, why: str) -> LocalError:
    """The error for a snapshot that cannot be used."""
    return LocalError(f"{path}: cannot be restored: {why}; move the file away to start afresh and rejoin the swarm")


def save_model(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Write a plain model: `module.load_state_dict(safetensors.torch.load_file(path))`, or `task.weights`, reads it."""
    _write(path, dict(state_dict), {"format": "pt"})


def load_weights(path: Path, module: nn.Module) -> str:
    """Fill `module` from a plain model file; returns the file's digest. Raises ConfigError when it does not fit."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"task.weights = {str(path)!r}: not a readable safetensors file: {error}") from None
    expected = {name: tuple(value.shape) for name, value in module.state_dict(keep_vars=True).items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    # A file may name tied parameters once (as save_model of safetensors does): one of their names is then enough.
    tied = _tied_names(module)
    for name, value in list(weights.items()):
        for other in tied.get(name, ()):
            weights.setdefault(other, value)
            found.setdefault(other, tuple(value.shape))
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ConfigError(
                f"task.weights = {str(path)!r}: {name} is {found.get(name, 'missing')} in the file and "
                f"{expected.get(name, 'missing')} in the task's model (shapes)"
            )
    module.load_state_dict(weights)
    return f"sha256:{digest}"


def encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A JSON form of nested plain values; tensors go, copied, to `tensors`. Raises TypeError for anything else."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = f"optimizer.{len(tensors)}"
        # Files know no strides, but an optimizer's matrix products round differently after a transposition in memory.
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        tensors[name] = value.detach().permute(order).clone(memory_format=torch.contiguous_format)
        return {"tensor": [name, order]}
    if isinstance(value, Mapping):
        return {"map": [[encode(key, tensors), encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [encode(item, tensors) for item in value]}
    raise TypeError(f"a {type(value).__name__} cannot be saved")


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `encode`. Raises KeyError, TypeError or ValueError for what `encode` never makes."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        name, order = inner
        return tensors[name].permute([order.index(i) for i in range(len(order))])
    if kind == "map":
        return {decode(key, tensors): decode(item, tensors) for key, item in inner}
    return {"tuple": tuple, "list": list}[kind](decode(item, tensors) for item in inner)


def _tied_names(module: nn.Module) -> dict[str, list[str]]:
    groups: dict[int, list[str]] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(value), []).append(name)
    return {name: names for names in groups.values() for name in names if len(names) > 1}


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        save_file({name: value.cpu() for name, value in tensors.items()}, path, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise LocalError(f"{path}: cannot be written: {error}") from None


def copy_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Clones of the buffers that belong to the state of `module`."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    with torch.no_grad():
        return {name: value.clone() for name, value in module.state_dict().items() if name not in parameters}
