"""What mixing is measured against: the obvious torch form of each rule, those of byzfl, and one reading of all rows."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import itertools
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from murmurate.kernels import mixing
from murmurate.kernels.compiled import jit
from murmurate.kernels.threads import spread

Ours = Callable[[Tensor, Tensor, int], object]
Plain = Callable[[Tensor, int], object]

SUMS = 1024  # of a reading: in the first cache, and no sum waits for another
APART = 0.01  # of models that train on the same task, relative to their parameters; a guess


def is_here(device: str) -> bool:
    """Whether it is one to measure on, and this machine has it."""
    return device == "cpu" or (device == "cuda" and torch.cuda.is_available())


def models(rows: int, size: int, device: str = "cpu") -> Tensor:
    """Ours and then theirs, a hundredth apart, in one tensor [rows + 1, size]: what the plain forms begin with."""
    draw = torch.Generator(device).manual_seed(0)
    all_ND = torch.empty((rows + 1, size), device=device)
    for number, row_D in enumerate(all_ND):
        torch.randn(size, generator=draw, out=row_D)
        if number:
            row_D.mul_(APART).add_(all_ND[0])
    return all_ND


def read(theirs_KD: Tensor) -> None:
    """Read all rows once, one after the other, on all of torch's threads: what no rule can beat.

    Not torch's sum: where other processes want the cores too, its threads wait for each other.
    """
    flat, runs = theirs_KD.view(-1).numpy(), 4 * torch.get_num_threads()
    edges = [theirs_KD.numel() * run // runs for run in range(runs + 1)]
    spread(lambda begin, end: add_up(flat, begin, end, np.zeros(SUMS, np.float32)), itertools.pairwise(edges))


@jit
def add_up(flat: NDArray[np.float32], begin: int, end: int, sums: NDArray[np.float32]) -> None:
    """As many sums as are given, of what lies that far apart."""
    for first in range(begin, end - len(sums) + 1, len(sums)):
        part = flat[first : first + len(sums)]
        for p in range(len(sums)):
            sums[p] += part[p]


def uniform(theirs_KD: Tensor) -> Tensor:
    """The weights of a complete graph [K]."""
    return torch.full((len(theirs_KD),), 1 / (len(theirs_KD) + 1), device=theirs_KD.device)


def _middle(theirs_KD: Tensor) -> tuple[int, int]:
    count = len(theirs_KD) + 1
    return (count - 1) // 2, count // 2 + 1


OURS: dict[str, Ours] = {
    "mean": lambda mine, theirs, _: mixing.mean(mine, theirs, uniform(theirs)),
    "nna": lambda mine, theirs, f: mixing.nna(mine, theirs, uniform(theirs), f),
    "gram": lambda mine, theirs, _: mixing.gram(mine, theirs),
    "trimmed_mean": lambda mine, theirs, f: mixing.ranks(mine, theirs, f, len(theirs) + 1 - f),
    "median": lambda mine, theirs, _: mixing.ranks(mine, theirs, *_middle(theirs)),
    "meamed": lambda mine, theirs, f: mixing.around(mine, theirs, *_middle(theirs), len(theirs) + 1 - f),
}
"""The kernels as the rules call them. What takes more than one is a rule of `peer.learning.mixing`."""


def _plain_nna(all_ND: Tensor, f: int) -> Tensor:
    order = (all_ND - all_ND[0]).norm(dim=1).argsort()
    return all_ND[order[: len(all_ND) - f]].mean(0)


def _plain_trimmed(all_ND: Tensor, f: int) -> Tensor:
    return all_ND.sort(dim=0).values[f : len(all_ND) - f].mean(0)


def _plain_meamed(all_ND: Tensor, f: int) -> Tensor:
    far_ND = (all_ND - all_ND.median(dim=0).values).abs()
    return all_ND.gather(0, far_ND.argsort(dim=0)[: len(all_ND) - f]).mean(0)


def _plain_krum(all_ND: Tensor, f: int) -> Tensor:
    near_NM = torch.cdist(all_ND, all_ND).square().topk(len(all_ND) - f - 1, dim=1, largest=False).values  # and itself
    return all_ND[near_NM.sum(1).argmin()]


def _plain_nnm_trimmed(all_ND: Tensor, f: int) -> Tensor:
    nearest = torch.cdist(all_ND, all_ND).argsort(dim=1)[:, : len(all_ND) - f]
    return _plain_trimmed(torch.stack([all_ND[rows].mean(0) for rows in nearest]), f)


PLAIN: dict[str, Plain] = {
    "mean": lambda all_ND, _: all_ND.mean(0),
    "nna": _plain_nna,
    "gram": lambda all_ND, _: torch.cdist(all_ND, all_ND),
    "trimmed_mean": _plain_trimmed,
    "median": lambda all_ND, _: all_ND.median(dim=0).values,
    "meamed": _plain_meamed,
    "krum": _plain_krum,
    "nnm_trimmed_mean": _plain_nnm_trimmed,
}


def byzfl() -> dict[str, Plain]:
    """The rules of byzfl (0.0.11) that are ours too; none where it is not installed.

    Only `byzfl.aggregators` is imported: the package itself asks for torchvision, which no rule needs.
    """
    if "byzfl" not in sys.modules and not _without_its_init("byzfl"):
        return {}
    rules: Any = importlib.import_module("byzfl.aggregators")
    return {
        "mean": lambda all_ND, _: rules.Average()(all_ND),
        "nna": lambda all_ND, f: rules.MoNNA(f=f)(all_ND),
        "trimmed_mean": lambda all_ND, f: rules.TrMean(f=f)(all_ND),
        "median": lambda all_ND, _: rules.Median()(all_ND),
        "meamed": lambda all_ND, f: rules.Meamed(f=f)(all_ND),
        "krum": lambda all_ND, f: rules.Krum(f=f)(all_ND),
        "nnm_trimmed_mean": lambda all_ND, f: rules.TrMean(f=f)(rules.NNM(f=f)(all_ND)),
    }


def _without_its_init(name: str) -> bool:
    """Put a package into sys.modules whose own code has not run, so that parts of it can be imported; if it exists."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        return False
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules[name] = package
    return True
