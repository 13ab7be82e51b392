"""Starts of rounds as bytes, and as tensors: what learning/audits.py commits to, shows and compares."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from murmurate.peer.config import Config
from murmurate.peer.errors import ConfigError
from murmurate.peer.protocol.events import Payload, PeerId, Source

from . import snapshot
from .flat import FlatModel
from .optimizers import make_optimizer

DIGEST_BYTES = 32

ROUNDINGS = 16
"""Of the model's length, in units of its dtype: what is rounding however short the update is. (a guess)"""


def slots_of(config: Config, like: FlatModel) -> tuple[Any, list[Tensor]]:
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
        document, tensors = encoded(optimizer)
        documents.append(document)
    if documents[0] != documents[1]:
        raise ConfigError(
            f"audit.rate = {config.audit.rate}: the state of local.optimizer = {config.local.optimizer!r} has numbers "
            "that change and are no tensors, so it cannot be audited; sgd and adamw can"
        )
    return documents[0], [torch.zeros_like(tensor) for tensor in tensors]


def encoded(optimizer: Any) -> tuple[Any, list[Tensor]]:
    """The optimizer's state: what is the same in all rounds, and tensors."""
    state: dict[str, Any] = dict(optimizer.state_dict())
    if "param_groups" in state:  # the learning rate is the schedule's
        state["param_groups"] = [{**group, "lr": 0.0} for group in state["param_groups"]]
    tensors: dict[str, Tensor] = {}
    document = snapshot.encode(state, tensors)
    return document, list(tensors.values())


def kinds_of(document: Any, kind: str = "") -> Iterator[str]:
    """What each tensor of an optimizer's state is called, in their order: exp_avg, momentum, ..."""
    if isinstance(document, dict):
        ((form, inner),) = cast("dict[str, list[Any]]", document).items()
        if form == "tensor":
            yield kind
        elif form == "map":
            for key, item in inner:
                yield from kinds_of(item, f"{key}")
        else:
            for item in inner:
                yield from kinds_of(item, kind)


def came_of(sent: bytes, named: Iterable[tuple[Source, bytes]]) -> bytes:
    """How a start came about: from this payload of its peer and those of others, sorted by name."""
    return hashlib.sha256(sent + b"".join(line(source) + digest for source, digest in named)).digest()


def line(source: Source) -> bytes:
    """Whose model, of which life and round, in 48 bytes."""
    peer, *numbers = source
    return hashlib.sha256(peer.encode()).digest() + b"".join(number.to_bytes(8, "little") for number in numbers)


def digests(inbox: Mapping[PeerId, Payload], malformed: tuple[PeerId, ...]) -> tuple[tuple[PeerId, bytes], ...]:
    """SHA-256 of what was mixed, sorted by name."""
    return tuple((peer, hashlib.sha256(inbox[peer]).digest()) for peer in sorted(inbox) if peer not in malformed)


def parts(whole: bytes | bytearray | memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """Cut into pieces of these sizes."""
    view, found, first = memoryview(whole), list[memoryview](), 0
    for size in sizes:
        found.append(view[first : first + size])
        first += size
    return found


def bytes_of(tensor: Tensor) -> int:
    """The length of `raw`."""
    return tensor.numel() * tensor.element_size()


def raw(tensor: Tensor) -> bytes:
    """Its numbers, as they lie in memory."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()


def read_like(tensor: Tensor, raw: memoryview) -> Tensor:
    """These bytes as a tensor of the same form."""
    if not len(raw):
        return torch.empty_like(tensor)
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(tensor.dtype)
    return flat.view(tensor.shape).to(tensor.device)


def length(vector: Tensor) -> float:
    """Euclidean, added up in float64."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def is_near(one_D: Tensor, other_D: Tensor, tolerance: float) -> bool:
    """Whether they are no farther apart than this and rounding."""
    rounding = ROUNDINGS * torch.finfo(one_D.dtype).eps * length(other_D)
    return length(one_D - other_D) <= tolerance + rounding  # false for what is not finite
