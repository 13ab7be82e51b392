"""The mixing rules beside byzfl's aggregators (0.0.11, MIT), where both define the same thing.

Three things are compared: byzfl, our rules, and the formulas in float64 (`mixing_exact`), which decide. In float64 all
three must agree to rounding, for models that are 1, 1e-3 or 1e-4 of their size apart. In float32 our kernels must be at
most twice as far from the formulas as byzfl's torch form is.

`make` installs byzfl without what it depends on: of it only the aggregators are loaded, without the package's own
imports (torchvision, matplotlib, seaborn). byzfl turns torch tensors into float32, so float64 goes to it as arrays.

Where the two differ on purpose
* Krum and Multi-Krum: byzfl sums M - f - 1 distances (Allouah et al. 2023), we M - f - 2 (Blanchard et al. 2017) unless
  `less = 1`, as here.
* MDA: of subsets with the same widest pair byzfl takes the first, we the one with the least variance. Compared where
  there is one such subset.
* Geometric median: byzfl makes 3 steps from the zero vector with a smoothing of 0.1; we go on until it is found.
  Compared with our smoothing and more steps.
* Centred clipping: byzfl starts from the zero vector and remembers its result; we start from our own vector. Compared
  on differences to ours.
* Bucketing: byzfl shuffles all vectors, ours among them; our buckets follow the ids, and our own vector stays alone.
  Compared on the neighbours, with a shuffle that does nothing.
* After NNM, which makes equal vectors, two values may be equally far from meamed's median, and two vectors may have the
  same Krum score. Meamed: both must be one of the choices; Krum: compared where there is none.
* With more than 25 vectors torch's `cdist`, and so byzfl's float32 form, takes distances from inner products: of models
  1e-4 apart it then chooses other neighbours than the formula does. Ours must not.
* A vector of NaN makes most of byzfl's results NaN. Not compared.
* Of byzfl's rules CAF, SMEA, static clipping and ARC are not ours; of ours byzfl lacks MVA, phocas, self-centred
  clipping and flag: those are beside their formulas in test_mixing_rules.py only.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from murmurate.peer.config import Mixing
from murmurate.peer.learning.mixing import make_mixer

from . import mixing_exact as exact
from .mixing_exact import Floats

N, F = 9, 2
SEEDS = range(10)
APART = [1.0, 1e-3, 1e-4]
LESS = {"less": 1}
# Vectors, liars to bear, parameters: 1, 2 and 3 neighbours, even and odd counts, lengths that fill no block of 8.
SIZES = [(2, 0, 33), (3, 1, 7), (4, 1, 1), (N, F, 33), (12, 3, 1003)]


@pytest.fixture(scope="module")
def byzfl() -> Iterator[Any]:
    """`byzfl.aggregators` under a package that imports nothing else."""
    found = importlib.util.find_spec("byzfl")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("byzfl is not installed; `make test` installs it")
    package = ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations)
    before = dict(sys.modules)
    sys.modules["byzfl"] = package
    yield importlib.import_module("byzfl.aggregators")
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] == "byzfl":
            del sys.modules[name]


def models(seed: int, apart: float, n: int = N, size: int = 33) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.normal(size=size) + apart * rng.normal(size=(n, size))


def ours(rule: str, X_ND: Floats, f: int = F, **values: Any) -> Floats:
    return mixed(rule, torch.from_numpy(X_ND), f, **values).numpy()


def mixed(rule: str, X_ND: Tensor, f: int = F, **values: Any) -> Tensor:
    rows = len(X_ND) - 1
    mixer = make_mixer(Mixing(rule=rule, f=f, **values), rows)
    return mixer(X_ND[0].clone(), X_ND[1:].clone(), X_ND.new_full((rows,), 1 / (rows + 1)))


def aggregators(byzfl: Any, f: int) -> dict[str, tuple[dict[str, Any], Callable[[Any], Any]]]:
    """Rule -> our options, theirs."""
    return {
        "median": ({}, byzfl.Median()),
        "trimmed_mean": ({}, byzfl.TrMean(f)),
        "meamed": ({}, byzfl.Meamed(f)),
        "nna": ({}, byzfl.MoNNA(f, idx=0)),
        "krum": (LESS, byzfl.Krum(f)),
        "multi_krum": (LESS, byzfl.MultiKrum(f)),
    }


# float64 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", APART)
@pytest.mark.parametrize(("n", "f", "size"), SIZES)
def test_the_same_rules(byzfl: Any, apart: float, n: int, f: int, size: int) -> None:
    for seed in SEEDS:
        X_ND = models(seed, apart, n, size)
        close: dict[str, Any] = {"rtol": 0, "atol": 1e-9 * apart}
        np.testing.assert_allclose(ours("mean", X_ND, f=0), byzfl.Average()(X_ND), **close)
        for name, (options, aggregate) in aggregators(byzfl, f).items():
            mixed_D = ours(name, X_ND, f, options=options)
            np.testing.assert_allclose(mixed_D, aggregate(X_ND), **close, err_msg=name)
            if "krum" not in name:  # the formula there is that of the other sum
                np.testing.assert_allclose(mixed_D, exact.RULES[name](X_ND, np.full(n, 1 / n), f), **close)


@pytest.mark.parametrize("apart", APART)
@pytest.mark.parametrize(("n", "f", "size"), SIZES[1:])
def test_nnm_before_other_rules(byzfl: Any, apart: float, n: int, f: int, size: int) -> None:
    for seed in SEEDS:
        X_ND = models(seed, apart, n, size)
        mixed_ND = byzfl.NNM(f)(X_ND)
        for name, (options, aggregate) in aggregators(byzfl, f).items():
            mixed_D, theirs_D = ours(name, X_ND, f, before="nnm", options=options), aggregate(mixed_ND)
            if name == "meamed":
                for value, other, column in zip(mixed_D, theirs_D, mixed_ND.T, strict=True):
                    values = sorted(column.tolist())
                    choices = exact.choices_around(values, exact.middle(values), n - f, 1e-12)
                    assert min(abs(value - choice) for choice in choices) <= 1e-9 * apart
                    assert min(abs(other - choice) for choice in choices) <= 1e-9 * apart
            elif "krum" not in name or is_decided(mixed_ND, f, 1 if name == "krum" else n - f):
                np.testing.assert_allclose(mixed_D, theirs_D, rtol=0, atol=1e-9 * apart, err_msg=name)


def is_decided(X_ND: Floats, f: int, count: int) -> bool:
    """Whether Krum's scores say which `count` vectors are the best: different ones may have the same score."""
    scores = exact.krum_scores(X_ND, f, less=1)
    best = sorted(range(len(X_ND)), key=lambda i: scores[i])
    edge = scores[best[count - 1]]
    tied = X_ND[[i for i in best if scores[i] == edge]]
    return scores[best[count]] > edge or bool(np.allclose(tied, tied[0], rtol=0, atol=1e-13))


@pytest.mark.parametrize("apart", APART)
@pytest.mark.parametrize("size", [2, 3])
def test_bucketing_before_other_rules(byzfl: Any, monkeypatch: pytest.MonkeyPatch, apart: float, size: int) -> None:
    def as_it_came(vectors: Floats) -> Floats:
        return vectors

    still = SimpleNamespace(permutation=as_it_came)
    monkeypatch.setattr(sys.modules["byzfl.aggregators.preaggregators"], "random_tool", Mock(return_value=still))
    options = {"bucket_size": size}
    for seed in SEEDS:
        X_ND = models(seed, apart, n=12)  # 11 neighbours: the last bucket is not full
        buckets_MD = np.concatenate([X_ND[:1], byzfl.Bucketing(size)(X_ND[1:])])
        for name, (more, aggregate) in aggregators(byzfl, 1).items():
            mixed_D = ours(name, X_ND, 1, before="bucketing", options=options | more)
            np.testing.assert_allclose(mixed_D, aggregate(buckets_MD), rtol=0, atol=1e-9 * apart, err_msg=name)


@pytest.mark.parametrize("apart", APART)
def test_geometric_median(byzfl: Any, apart: float) -> None:
    """byzfl with our smoothing and more steps; ours is no worse than its usual 3."""
    for seed in SEEDS:
        X_ND = models(seed, apart)
        mixed_D = ours("geometric_median", X_ND)
        np.testing.assert_allclose(mixed_D, byzfl.GeometricMedian(nu=1e-6, T=500)(X_ND), rtol=0, atol=1e-7 * apart)
        assert exact.sum_of_distances(X_ND, mixed_D) <= exact.sum_of_distances(X_ND, byzfl.GeometricMedian()(X_ND))


@pytest.mark.parametrize("apart", APART)
def test_centred_clipping(byzfl: Any, apart: float) -> None:
    """The same start: both see differences to our own vector."""
    for seed in SEEDS:
        X_ND = models(seed, apart)
        mixed_D = ours("centred_clipping", X_ND, options={"radius": 5.0 * apart, "steps": 4})
        with np.errstate(divide="ignore"):  # it divides by the length of our own difference, 0
            clipped_D = byzfl.CenteredClipping(L=4, tau=5.0 * apart)(X_ND - X_ND[0])
        np.testing.assert_allclose(mixed_D - X_ND[0], clipped_D, rtol=0, atol=1e-9 * apart)


@pytest.mark.parametrize("apart", APART)
def test_minimum_diameter(byzfl: Any, apart: float) -> None:
    compared = 0
    for seed in range(20):
        X_ND = models(seed, apart)
        widths = [
            max(exact.distance(X_ND[i], X_ND[j]) for i, j in itertools.combinations(subset, 2))
            for subset in itertools.combinations(range(N), N - F)
        ]
        if widths.count(min(widths)) == 1:
            compared += 1
            np.testing.assert_allclose(ours("mda", X_ND), byzfl.MDA(F)(X_ND), rtol=0, atol=1e-9 * apart)
    assert compared >= 5


# float32 ---------------------------------------------------------------------------------------------


def error(found_D: Tensor, exact_D: Floats) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean((found_D.double().numpy() - exact_D) ** 2)))


def exact_of(rule: str, X_ND: Floats, f: int) -> Floats:
    if rule == "krum":
        scores = exact.krum_scores(X_ND, f, less=1)
        return X_ND[scores.index(min(scores))]
    if rule == "multi_krum":
        scores = exact.krum_scores(X_ND, f, less=1)
        return X_ND[sorted(range(len(X_ND)), key=lambda i: scores[i])[: len(X_ND) - f]].mean(0)
    return exact.RULES[rule](X_ND, np.full(len(X_ND), 1 / len(X_ND)), f)


@pytest.mark.parametrize("apart", APART)
@pytest.mark.parametrize(("n", "f"), [(N, F), (33, 8)])
def test_float32_is_at_most_twice_as_far_off(byzfl: Any, apart: float, n: int, f: int) -> None:
    X_ND = torch.from_numpy(models(3, apart, n, 5003)).float()
    exact_ND = X_ND.double().numpy()
    pairs = {"mean": ({}, byzfl.Average()), **aggregators(byzfl, f)}
    for name, (options, aggregate) in pairs.items():
        f_or_none = 0 if name == "mean" else f
        exact_D = exact_of(name, exact_ND, f_or_none)
        mine = error(mixed(name, X_ND, f_or_none, options=options), exact_D)
        theirs = error(aggregate(X_ND), exact_D)
        assert mine <= 2 * theirs, (name, mine, theirs)
        assert mine <= 2e-7, (name, mine)  # a few roundings of numbers around 1


def test_beyond_25_vectors_float32_inner_products_choose_wrongly(byzfl: Any) -> None:
    """What the text above says of torch's `cdist`, and why our distances start from differences."""
    chosen_wrongly = 0
    for seed in SEEDS:
        X_ND = torch.from_numpy(models(seed, 1e-4, 33, 503)).float()
        exact_D = exact_of("nna", X_ND.double().numpy(), 8)
        assert error(mixed("nna", X_ND, 8), exact_D) <= 2e-7
        chosen_wrongly += error(byzfl.MoNNA(8, idx=0)(X_ND), exact_D) > 5e-6
    assert chosen_wrongly >= 8
