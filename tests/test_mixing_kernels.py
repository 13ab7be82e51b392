"""The kernels: the reference against the definition, the CPU form against the reference."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from murmurate.kernels import mixing as kernels
from murmurate.kernels.mixing import cpu, reference

BLOCK, CHUNK = 4, 12
Rule = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small vectors span several blocks and chunks, and end raggedly."""
    monkeypatch.setattr(cpu, "BLOCK", BLOCK)
    monkeypatch.setattr(cpu, "MEAN_CHUNK", CHUNK)
    monkeypatch.setattr(cpu, "DISTANCE_CHUNK", CHUNK)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def models(K: int, D: int, seed: int, apart: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Ours, theirs and weights that leave us something."""
    generator = torch.Generator().manual_seed(seed)
    common_D = torch.randn(D, generator=generator)
    theirs_KD = common_D + apart * torch.randn(K, D, generator=generator)
    return common_D, theirs_KD, torch.rand(K, generator=generator) / (K + 1)


sizes = st.tuples(st.integers(0, 6), st.integers(1, 40), st.integers(0, 10**6))


@given(sizes)
def test_mean_is_the_weighted_sum(size: tuple[int, int, int]) -> None:
    mine_D, theirs_KD, weights_K = models(*size)
    exact_D = mine_D.double() * (1 - weights_K.double().sum()) + weights_K.double() @ theirs_KD.double()
    for mean in (reference.mean, cpu.mean, kernels.mean):
        torch.testing.assert_close(mean(mine_D, theirs_KD, weights_K).double(), exact_D, rtol=1e-5, atol=1e-5)


@given(sizes, st.integers(0, 7))
def test_nna_is_the_mean_of_the_nearest(size: tuple[int, int, int], f: int) -> None:
    mine_D, theirs_KD, weights_K = models(*size)
    everyone = torch.cat([mine_D[None], theirs_KD]).double()
    order = (everyone - everyone[0]).norm(dim=1).argsort(stable=True)
    exact_D = everyone[order[: max(1, len(everyone) - f)]].mean(0)
    for nna in (reference.nna, cpu.nna, kernels.nna):
        torch.testing.assert_close(nna(mine_D, theirs_KD, weights_K, f).double(), exact_D, rtol=1e-5, atol=1e-5)


@given(sizes, st.permutations(range(6)))
def test_order_of_the_neighbours_does_not_matter(size: tuple[int, int, int], permutation: list[int]) -> None:
    mine_D, theirs_KD, weights_K = models(*size)
    rows = [row for row in permutation if row < len(theirs_KD)]
    for form in (reference, cpu):
        one, other = (form.nna(mine_D, theirs, weights_K, 2) for theirs in (theirs_KD, theirs_KD[rows]))
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("nna", [reference.nna, cpu.nna])
def test_near_models_are_told_apart(nna: Rule) -> None:
    """Models 0.01 % apart: |a|^2 - 2ab + |b|^2 in float32 would be noise."""
    mine_D, theirs_KD, weights_K = models(5, 1000, seed=1, apart=0.0)
    theirs_KD += torch.tensor([5.0, 1, 4, 2, 3])[:, None] * 1e-5
    kept_D = nna(mine_D, theirs_KD, weights_K, 3)
    torch.testing.assert_close(kept_D, (mine_D + theirs_KD[1] + theirs_KD[3]) / 3, rtol=0, atol=1e-6)


@pytest.mark.parametrize("nna", [reference.nna, cpu.nna])
def test_ties_are_kept_in_row_order(nna: Rule) -> None:
    mine_D = torch.zeros(3)
    theirs_KD = torch.tensor([[0.0, 0, 9], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(nna(mine_D, theirs_KD, torch.zeros(4), 2), torch.tensor([1 / 3, 1 / 3, 0]))


@pytest.mark.parametrize("nna", [reference.nna, cpu.nna])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_row_that_is_not_finite_is_never_kept(nna: Rule, poison: float) -> None:
    mine_D, theirs_KD, weights_K = models(3, 30, seed=2)
    theirs_KD[0, 29] = poison
    theirs_KD[2, 20] = poison  # what the last chunk, which is shorter, finds left over
    expected_D = (mine_D + theirs_KD[1]) / 2
    f = 2 if poison == 3e38 else 0  # finite, and in float64 not too far: then it needs f to be left out
    torch.testing.assert_close(nna(mine_D, theirs_KD, weights_K, f), expected_D)


@pytest.mark.parametrize("form", [reference, cpu])
def test_arguments_stay_as_they_are(form: Any) -> None:
    arguments = models(3, 30, seed=3)
    copies = [value.clone() for value in arguments]
    results = [form.mean(*arguments), form.nna(*arguments, f=1), form.nna(*arguments, f=3)]
    for result in results:
        result.zero_()
    assert all(torch.equal(*pair) for pair in zip(arguments, copies, strict=True))


@pytest.mark.usefixtures("threads")
def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    arguments = models(3, 2**18 + 2**16 + 3, seed=4)
    found: list[tuple[Tensor, Tensor]] = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append((cpu.mean(*arguments), cpu.nna(*arguments, f=1)))
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))


def test_other_devices_get_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere: Any = SimpleNamespace(is_cpu=False)
    monkeypatch.setattr(reference, "mean", Mock(return_value="mean there"))
    monkeypatch.setattr(reference, "nna", Mock(return_value="nna there"))
    assert kernels.mean(elsewhere, elsewhere, elsewhere) == "mean there"
    assert kernels.nna(elsewhere, elsewhere, elsewhere, 1) == "nna there"
