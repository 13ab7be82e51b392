"""The kernels: the reference against the definition, the CPU form against the reference."""

import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from murmurate.kernels import mixing as kernels
from murmurate.kernels.mixing import cpu, networks, reference

from . import mixing_checks

SMALL = 64  # the smallest chunk and block
Rule = Callable[[Tensor, Tensor, Tensor, int], Tensor]
Matrix = np.ndarray[Any, np.dtype[np.float64]]

# Empty, single, even, odd; the longest that is sorted in registers; more than that.
COUNTS = (0, 1, 2, 3, 16, 32, 40)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small vectors span several blocks, chunks and pieces, and end raggedly."""
    monkeypatch.setattr(cpu, "BLOCK", SMALL)
    monkeypatch.setattr(cpu, "CHUNK", SMALL)
    monkeypatch.setattr(cpu, "WORK", SMALL)
    monkeypatch.setattr(cpu, "NARROW", 100)
    monkeypatch.setattr(cpu, "PIECES", 3)
    monkeypatch.setattr(cpu, "PIECE", SMALL)


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


@pytest.mark.parametrize("mean", [reference.mean, cpu.mean])
def test_mean_has_the_models_type_and_reads_no_row_of_weight_0(mean: Callable[..., Tensor]) -> None:
    mine_D, theirs_KD = torch.full((70,), 2.0).bfloat16(), torch.full((2, 70), 4.0).bfloat16()
    theirs_KD[0] = torch.nan
    mixed_D = mean(mine_D, theirs_KD, torch.tensor([0.0, 0.5]))
    assert mixed_D.dtype == torch.bfloat16
    assert (mixed_D == 3).all()


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
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch, small: bool, dtype: torch.dtype) -> None:
    if not small:
        monkeypatch.undo()
    mine_D, theirs_KD, weights_K = models(5, 2000 if small else 2**18 + 2**16 + 3, seed=4)
    mine_D, theirs_KD = mine_D.to(dtype), theirs_KD.to(dtype)
    found: list[list[Tensor]] = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(
            [
                cpu.mean(mine_D, theirs_KD, weights_K),
                cpu.nna(mine_D, theirs_KD, weights_K, 1),
                torch.from_numpy(cpu.squares(mine_D, theirs_KD)),
                torch.from_numpy(cpu.gram(mine_D, theirs_KD)),
                cpu.ranks(mine_D, theirs_KD, 1, 5),
                cpu.around(mine_D, theirs_KD, 1, 5, 4, nnm(6, 2)),
            ]
        )
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))


def test_other_devices_get_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    mine_D, theirs_KD = torch.empty(3, device="meta"), torch.empty((2, 3), device="meta")
    calls: dict[str, tuple[Any, ...]] = {
        "mean": (torch.empty(2),),
        "nna": (torch.empty(2), 1),
        "combine": (0.5, [0.2, 0.3]),
        "squares": (),
        "gram": (),
        "ranks": (0, 1, None),
        "around": (0, 1, 2, None),
    }
    scales_KB = torch.empty((2, 2), device="meta")
    quantised = {"combine_quantised": (scales_KB, 2, 0.5, [0.2, 0.3]), "squares_quantised": (scales_KB, 2)}
    assert {*calls, *quantised} == set(kernels.__all__)
    for name, arguments in {**calls, **quantised}.items():
        rows_KD = theirs_KD.to(torch.int8) if name in quantised else theirs_KD
        there = Mock(return_value=name)
        monkeypatch.setattr(reference, name, there)
        assert getattr(kernels, name)(mine_D, rows_KD, *arguments) == name
        there.assert_called_once_with(mine_D, rows_KD, *arguments)


# Whole vectors -----------------------------------------------------------------------------------------

# Each count and dtype is compiled by itself: those that are rarer are tried with two counts only.
kinds = st.one_of(
    st.tuples(st.sampled_from(COUNTS), st.just(torch.float32)),
    st.tuples(st.sampled_from((2, 40)), st.sampled_from([torch.float64, torch.float16, torch.bfloat16])),
)
cases = st.tuples(kinds, st.integers(1, 300), st.integers(0, 10**6))
Case = tuple[tuple[int, torch.dtype], int, int]


def vectors(case: Case, apart: float = 1.0) -> tuple[Tensor, Tensor, float]:
    """Ours, theirs and how much a value of this size may be off, relatively."""
    (K, dtype), D, seed = case
    mine_D, theirs_KD, _ = models(K, D, seed, apart)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps)
    return mine_D.to(dtype), theirs_KD.to(dtype), tolerance


def exactly(tensor: Tensor) -> Tensor:
    """What `cpu` calculates in, or more."""
    return tensor.double() if tensor.dtype == torch.float64 else tensor.float()


@given(cases)
def test_combine_is_the_sum_of_the_shares(case: Case) -> None:
    mine_D, theirs_KD, tolerance = vectors(case)
    shares = [(row % 3) / (len(theirs_KD) + 1) for row in range(len(theirs_KD))]
    theirs_KD[::3] = torch.nan  # those with a share of 0
    exact_D = 0.25 * mine_D.double()
    for share, theirs_D in zip(shares, theirs_KD.double(), strict=True):
        if share:
            exact_D += share * theirs_D
    mixed_D = kernels.combine(mine_D, theirs_KD, 0.25, shares)
    assert mixed_D.dtype == mine_D.dtype
    torch.testing.assert_close(mixed_D.double(), exact_D, rtol=tolerance, atol=10 * tolerance)


@given(cases, st.sampled_from([1.0, 1e-3]))
def test_products_of_the_differences(case: Case, apart: float) -> None:
    mine_D, theirs_KD, _ = vectors(case, apart)
    exact_KK = reference.gram(exactly(mine_D), exactly(theirs_KD))
    norms_K = np.sqrt(exact_KK.diagonal())
    gram_KK, squares_K = kernels.gram(mine_D, theirs_KD), kernels.squares(mine_D, theirs_KD)
    assert (np.abs(gram_KK - exact_KK) <= 1e-6 * norms_K[:, None] * norms_K).all()
    assert (np.abs(squares_K - norms_K**2) <= 1e-6 * norms_K**2).all()
    assert (gram_KK == gram_KK.T).all()


@given(cases, st.randoms())
def test_the_order_of_rows_does_not_change_a_bit_of_their_products(case: Case, random: Any) -> None:
    mine_D, theirs_KD, _ = vectors(case)
    order = list(range(len(theirs_KD)))
    random.shuffle(order)
    assert (kernels.squares(mine_D, theirs_KD[order]) == kernels.squares(mine_D, theirs_KD)[order]).all()
    assert (kernels.gram(mine_D, theirs_KD[order]) == kernels.gram(mine_D, theirs_KD)[np.ix_(order, order)]).all()


@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4])
def test_products_are_as_near_as_the_plain_form_is(monkeypatch: pytest.MonkeyPatch, apart: float) -> None:
    monkeypatch.undo()
    mine_D, theirs_KD, _ = models(9, 100_003, seed=5, apart=apart)
    exact_KK = reference.gram(mine_D, theirs_KD)
    scale_KK = np.sqrt(np.outer(exact_KK.diagonal(), exact_KK.diagonal()))

    def error(found_KK: Matrix) -> float:
        return float((np.abs(found_KK - exact_KK) / scale_KK).max())

    plain = error(reference.gram(mine_D, theirs_KD, torch.float32))
    assert error(cpu.gram(mine_D, theirs_KD)) <= 2 * plain
    assert error(np.diag(cpu.squares(mine_D, theirs_KD)) * np.eye(9) + exact_KK * (1 - np.eye(9))) <= 2 * plain


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 1e38, -3e38])
@pytest.mark.parametrize("at", [0, 130, 199])
def test_products_with_a_row_that_is_not_finite_or_far(poison: float, at: int) -> None:
    mine_D, theirs_KD, _ = models(6, 200, seed=6)
    theirs_KD[2, at] = poison
    exact_KK = reference.gram(mine_D, theirs_KD)
    for found, exact in (
        (cpu.gram(mine_D, theirs_KD), exact_KK),
        (cpu.squares(mine_D, theirs_KD), exact_KK.diagonal()),
    ):
        assert (np.isfinite(found) == np.isfinite(exact)).all()
        finite = np.isfinite(exact)
        np.testing.assert_allclose(found[finite], exact[finite], rtol=1e-5, atol=1e-4)
    assert math.isfinite(exact_KK[2, 2]) == math.isfinite(poison)


def test_products_of_odd_rows() -> None:
    mixing_checks.check_products_of_odd_rows(cpu, "cpu")


# Single parameters -------------------------------------------------------------------------------------


def nnm(n: int, f: int) -> Matrix:
    """A matrix as nearest-neighbour mixing has: each row the mean of n - f."""
    matrix_MN = np.zeros((n, n))
    for row in range(n):
        matrix_MN[row, [(row + step) % n for step in range(n - f)]] = 1 / (n - f)
    return matrix_MN


@st.composite
def matrices(draw: st.DrawFn, n: int) -> Matrix | None:
    match draw(st.integers(0, 2)):
        case 0:
            return None
        case 1:
            return nnm(n, n // 4)
        case _:
            random = np.random.default_rng(draw(st.integers(0, 10**6)))
            matrix_MN = random.random((draw(st.sampled_from([1, 3])), n))
            return matrix_MN * random.integers(0, 2, matrix_MN.shape)


@given(cases, st.data())
def test_ranks_and_around_are_those_of_the_reference(case: Case, data: st.DataObject) -> None:
    mine_D, theirs_KD, tolerance = vectors(case)
    matrix_MN = data.draw(matrices(len(theirs_KD) + 1))
    count = len(theirs_KD) + 1 if matrix_MN is None else len(matrix_MN)
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count))
    wide = exactly(mine_D), exactly(theirs_KD), first, last
    close: dict[str, Any] = {"rtol": tolerance, "atol": 20 * tolerance, "check_dtype": False}
    ranks_D = kernels.ranks(mine_D, theirs_KD, first, last, matrix_MN)
    assert ranks_D.dtype == mine_D.dtype
    torch.testing.assert_close(ranks_D, reference.ranks(*wide, matrix_MN), **close)
    keep = data.draw(st.integers(1, count))
    around_D = kernels.around(mine_D, theirs_KD, first, last, keep, matrix_MN)
    values_MD = reference.in_order(*wide[:2], matrix_MN)
    mixing_checks.check_windows(around_D, values_MD, first, last, keep, 20 * tolerance, 1, "around")


whole_numbers = st.integers(-3, 3).map(float)
strange = [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40]


@given(st.sampled_from((1, 2, 3, 16, 40)), st.data())
def test_what_is_not_finite_is_sorted_as_the_reference_says(K: int, data: st.DataObject) -> None:
    """Few values, so that there are ties; with a power of two in each mean, nothing rounds.

    Of one sign where they are huge, and no sum of them overflows: beside an infinity that depends on the sum's order.
    """
    one = st.one_of(whole_numbers, st.sampled_from([*strange, data.draw(st.sampled_from([1e36, -1e36]))]))
    values = data.draw(st.lists(one, min_size=3 * (K + 1), max_size=3 * (K + 1)))
    mine_D, *theirs = torch.tensor(values).view(K + 1, 3)
    theirs_KD = torch.stack(theirs)
    width = data.draw(st.sampled_from([w for w in (1, 2, 4, 8) if w <= K + 1]))
    first = data.draw(st.integers(0, K + 1 - width))
    keep = data.draw(st.integers(1, K + 1))
    arguments = mine_D, theirs_KD, first, first + width
    close: dict[str, Any] = {"equal_nan": True, "rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(cpu.ranks(*arguments), reference.ranks(*arguments), **close)
    torch.testing.assert_close(cpu.around(*arguments, keep), reference.around(*arguments, keep), **close)


@given(cases, st.data())
def test_the_order_of_rows_does_not_change_a_bit_of_what_is_sorted(case: Case, data: st.DataObject) -> None:
    mine_D, theirs_KD, _ = vectors(case)
    order = data.draw(st.permutations(range(len(theirs_KD) + 1)))
    other_D, *others = torch.cat([mine_D[None], theirs_KD])[order]
    others_KD = torch.stack(others) if others else theirs_KD
    count = len(order)
    first, last = count // 4, count - count // 4
    assert torch.equal(kernels.ranks(mine_D, theirs_KD, first, last), kernels.ranks(other_D, others_KD, first, last))
    one, other = (
        kernels.around(mine, theirs, first, last, last) for mine, theirs in ((mine_D, theirs_KD), (other_D, others_KD))
    )
    assert torch.equal(one, other)


def test_trimming_removes_rows_that_are_not_finite() -> None:
    mine_D, theirs_KD, _ = models(6, 150, seed=7)
    theirs_KD[1] = torch.nan
    theirs_KD[4] = -torch.inf
    honest = torch.cat([mine_D[None], theirs_KD])[[0, 1, 3, 4, 6]].sort(0).values
    torch.testing.assert_close(cpu.ranks(mine_D, theirs_KD, 2, 5), honest[1:4].mean(0))
    assert cpu.around(mine_D, theirs_KD, 2, 5, 4).isfinite().all()


@pytest.mark.parametrize("form", [reference, cpu])
def test_a_matrix_does_not_read_what_it_has_nothing_of(form: Any) -> None:
    mine_D, theirs_KD, _ = models(3, 70, seed=8)
    theirs_KD[1] = torch.nan
    matrix_MN = np.array([[0.5, 0.5, 0, 0], [0, 0, 0, 1], [0.25, 0.25, 0, 0.5]])
    made = torch.stack([(mine_D + theirs_KD[0]) / 2, theirs_KD[2], (mine_D + theirs_KD[0] + 2 * theirs_KD[2]) / 4])
    torch.testing.assert_close(form.ranks(mine_D, theirs_KD, 1, 2, matrix_MN), made.median(0).values)


@pytest.mark.parametrize("n", range(1, 13))
def test_networks_sort(n: int) -> None:
    """A network that sorts all zeros and ones sorts everything (Knuth 5.3.4, theorem Z)."""
    values = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    for low, high in networks.batcher(n):
        pair = values[:, [low, high]]
        values[:, low], values[:, high] = pair.min(1), pair.max(1)
    assert (np.diff(values, axis=1) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_narrow_number_is_read_as_what_it_is(dtype: torch.dtype) -> None:
    every_D = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    nobody = torch.empty((0, len(every_D)), dtype=dtype)
    read_D = cpu.ranks(every_D, nobody, 0, 1)
    assert torch.equal(read_D.isnan(), every_D.isnan())
    assert torch.equal(read_D.nan_to_num(nan=0.0), every_D.nan_to_num(nan=0.0))


# Arguments ---------------------------------------------------------------------------------------------

MINE_D, THEIRS_KD, WEIGHTS_K = torch.zeros(4), torch.zeros(2, 4), torch.zeros(2)
WRONG: dict[str, Callable[[], object]] = {
    "integers": lambda: kernels.squares(MINE_D.int(), THEIRS_KD.int()),
    "a matrix as ours": lambda: kernels.squares(THEIRS_KD, THEIRS_KD),
    "ours with gaps": lambda: kernels.squares(torch.zeros(8)[::2], THEIRS_KD),
    "a flat theirs": lambda: kernels.gram(MINE_D, MINE_D),
    "another length": lambda: kernels.gram(MINE_D, torch.zeros(2, 5)),
    "columns for rows": lambda: kernels.gram(MINE_D, torch.zeros(4, 2).T),
    "another dtype": lambda: kernels.gram(MINE_D, THEIRS_KD.half()),
    "another device": lambda: kernels.gram(MINE_D, THEIRS_KD.to("meta")),
    "weights": lambda: kernels.mean(MINE_D, THEIRS_KD, torch.zeros(3)),
    "weights of nna": lambda: kernels.nna(MINE_D, THEIRS_KD, torch.zeros(3), 1),
    "f": lambda: kernels.nna(MINE_D, THEIRS_KD, WEIGHTS_K, -1),
    "shares": lambda: kernels.combine(MINE_D, THEIRS_KD, 0.5, [0.5]),
    "no place": lambda: kernels.ranks(MINE_D, THEIRS_KD, 1, 1),
    "a place below": lambda: kernels.ranks(MINE_D, THEIRS_KD, -1, 1),
    "a place beyond": lambda: kernels.ranks(MINE_D, THEIRS_KD, 1, 4),
    "a place beyond the matrix": lambda: kernels.ranks(MINE_D, THEIRS_KD, 0, 2, np.ones((1, 3))),
    "nothing kept": lambda: kernels.around(MINE_D, THEIRS_KD, 0, 1, 0),
    "too much kept": lambda: kernels.around(MINE_D, THEIRS_KD, 0, 1, 4),
    "a narrow matrix": lambda: kernels.ranks(MINE_D, THEIRS_KD, 0, 1, np.ones((3, 2))),
    "a flat matrix": lambda: kernels.ranks(MINE_D, THEIRS_KD, 0, 1, np.ones(3)),
    "an empty matrix": lambda: kernels.ranks(MINE_D, THEIRS_KD, 0, 1, np.ones((0, 3))),
    "a float32 matrix": lambda: kernels.around(MINE_D, THEIRS_KD, 0, 1, 1, np.ones((3, 3), np.float32)),  # pyright: ignore[reportArgumentType]: on purpose
}


@pytest.mark.parametrize("wrong", WRONG)
def test_arguments_that_cannot_be_meant_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"should be|for \d rows|, mine_D is"):
        WRONG[wrong]()
