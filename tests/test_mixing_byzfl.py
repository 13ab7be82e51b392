"""The mixing rules beside byzfl's aggregators (0.0.11), where both define the same thing.

`pip install --no-deps byzfl` is enough: only its aggregators are loaded, without the package's own imports
(torchvision, matplotlib, seaborn). It gets float64 arrays: torch tensors become float32 there, and are measured with
`torch.cdist`, which is 1 to 4 % wrong for models that are 1e-2 apart.

Where the two differ on purpose
* Krum and Multi-Krum: byzfl sums M - f - 1 distances (Allouah et al. 2023), we M - f - 2 (Blanchard et al. 2017) unless
  `less = 1`.
* MDA: of subsets with the same widest pair byzfl takes the first, we the one with the least variance.
* Geometric median: byzfl makes 3 steps from the zero vector with a smoothing of 0.1; we go on until it is found.
* Centred clipping: byzfl starts from the zero vector and remembers its result; we start from our own vector.
* Bucketing: byzfl draws the buckets; ours follow the ids, and our own vector stays alone. Not compared.
* A vector of NaN makes most of byzfl's results NaN. Not compared.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from murmurate.peer.config import Mixing
from murmurate.peer.learning.mixing import make_mixer

from . import mixing_exact as exact
from .mixing_exact import Floats

N, F = 9, 2
SEEDS = range(20)
APART = [1.0, 1e-3]

pytestmark = pytest.mark.parametrize("apart", APART)


@pytest.fixture(scope="module")
def byzfl() -> Iterator[Any]:
    """`byzfl.aggregators` under a package that imports nothing else."""
    found = importlib.util.find_spec("byzfl")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("byzfl is not installed")
    package = ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations)
    before = dict(sys.modules)
    sys.modules["byzfl"] = package
    yield importlib.import_module("byzfl.aggregators")
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] == "byzfl":
            del sys.modules[name]


def models(seed: int, apart: float) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.normal(size=33) + apart * rng.normal(size=(N, 33))


def ours(rule: str, X_ND: Floats, f: int = F, **values: Any) -> Floats:
    mine_D, theirs_KD = torch.from_numpy(X_ND[0]), torch.from_numpy(X_ND[1:])
    weights_K = mine_D.new_full((N - 1,), 1 / N)
    return make_mixer(Mixing(rule=rule, f=f, **values), N - 1)(mine_D, theirs_KD, weights_K).numpy()


def test_the_same_rules(byzfl: Any, apart: float) -> None:
    less = {"less": 1}
    for seed in SEEDS:
        X_ND = models(seed, apart)
        pairs = {
            "mean": (ours("mean", X_ND, f=0), byzfl.Average()),
            "median": (ours("median", X_ND), byzfl.Median()),
            "trimmed_mean": (ours("trimmed_mean", X_ND), byzfl.TrMean(F)),
            "meamed": (ours("meamed", X_ND), byzfl.Meamed(F)),
            "nna": (ours("nna", X_ND), byzfl.MoNNA(F, idx=0)),
            "krum": (ours("krum", X_ND, options=less), byzfl.Krum(F)),
            "multi_krum": (ours("multi_krum", X_ND, options=less), byzfl.MultiKrum(F)),
        }
        for name, (mixed_D, aggregate) in pairs.items():
            np.testing.assert_allclose(mixed_D, aggregate(X_ND), rtol=0, atol=1e-9 * apart, err_msg=name)


def test_nnm_before_other_rules(byzfl: Any, apart: float) -> None:
    for seed in SEEDS:
        X_ND = models(seed, apart)
        mixed_ND = byzfl.NNM(F)(X_ND)
        for rule, aggregate in (("trimmed_mean", byzfl.TrMean(F)), ("median", byzfl.Median())):
            mixed_D = ours(rule, X_ND, before="nnm")
            np.testing.assert_allclose(mixed_D, aggregate(mixed_ND), rtol=0, atol=1e-9 * apart, err_msg=rule)


def test_geometric_median(byzfl: Any, apart: float) -> None:
    """byzfl with our smoothing and more steps; ours is no worse than its usual 3."""
    for seed in SEEDS:
        X_ND = models(seed, apart)
        mixed_D = ours("geometric_median", X_ND)
        np.testing.assert_allclose(mixed_D, byzfl.GeometricMedian(nu=1e-6, T=500)(X_ND), rtol=0, atol=1e-7 * apart)
        assert exact.sum_of_distances(X_ND, mixed_D) <= exact.sum_of_distances(X_ND, byzfl.GeometricMedian()(X_ND))


def test_centred_clipping(byzfl: Any, apart: float) -> None:
    """The same start: both see differences to our own vector."""
    for seed in SEEDS:
        X_ND = models(seed, apart)
        mixed_D = ours("centred_clipping", X_ND, options={"radius": 5.0 * apart, "steps": 4})
        with np.errstate(divide="ignore"):  # it divides by the length of our own difference, 0
            clipped_D = byzfl.CenteredClipping(L=4, tau=5.0 * apart)(X_ND - X_ND[0])
        np.testing.assert_allclose(mixed_D - X_ND[0], clipped_D, rtol=0, atol=1e-9)


def test_minimum_diameter(byzfl: Any, apart: float) -> None:
    compared = 0
    for seed in SEEDS:
        X_ND = models(seed, apart)
        widths = [
            max(exact.distance(X_ND[i], X_ND[j]) for i, j in itertools.combinations(subset, 2))
            for subset in itertools.combinations(range(N), N - F)
        ]
        if widths.count(min(widths)) == 1:
            compared += 1
            np.testing.assert_allclose(ours("mda", X_ND), byzfl.MDA(F)(X_ND), rtol=0, atol=1e-9 * apart)
    assert compared >= 5
