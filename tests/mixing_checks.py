"""What every fast form of the mixing kernels has to get right: `check(form, device)`, for any device it runs on.

`form` has the names of `kernels.mixing`. The truth is `reference` in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from murmurate.kernels.mixing import reference

Matrix = NDArray[np.float64]

SHAPES = [(1, 1), (2, 3), (3, 127), (8, 4097), (16, 1000), (32, 300), (33, 1000), (66, 130), (0, 5)]
EVERYWHERE = [(*shape, torch.float32) for shape in SHAPES] + [
    (K, D, dtype)
    for dtype in (torch.float64, torch.bfloat16, torch.float16)
    for K, D in ((3, 1030), (16, 127), (40, 20))
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STRANGE = [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1.0, 2.0, 3.0]


def check(form: Any, device: str) -> None:
    """All of it."""
    for K, D, dtype in EVERYWHERE:
        check_shape(form, K, D, dtype, device)
    for dtype in DTYPES:
        check_odd_columns(form, dtype, device)
    for one in SINGLE:
        one(form, device)


def check_shape(form: Any, K: int, D: int, dtype: torch.dtype, device: str) -> None:
    """All that takes floats."""
    mine_D, theirs_KD = models(K, D, dtype, device, 0.01)
    about = f"K = {K}, D = {D}, {dtype}"
    check_whole_vectors(form, mine_D, theirs_KD, about)
    check_products(form, mine_D, theirs_KD, 1e-6, about)
    check_places(form, mine_D, theirs_KD, about)


def models(K: int, D: int, dtype: torch.dtype, device: str, apart: float) -> tuple[Tensor, Tensor]:
    """Ours, and theirs `apart` from them."""
    draw = torch.Generator().manual_seed(1000 * K + D)
    mine_D = torch.randn(D, generator=draw, dtype=torch.float64)
    theirs_KD = mine_D + apart * torch.randn(K, D, generator=draw, dtype=torch.float64)
    return mine_D.to(dtype).to(device), theirs_KD.to(dtype).to(device)


def exact(mine_D: Tensor, theirs_KD: Tensor) -> tuple[Tensor, Tensor]:
    return mine_D.double().cpu(), theirs_KD.double().cpu()


def check_close(found_D: Tensor, exact_D: Tensor, about: str, slack: float = 4.0) -> None:
    """Of values of about 1, within some roundings of the type that is calculated in, and one of the result's."""
    dtype = found_D.dtype
    tolerance = slack * max(torch.finfo(dtype).eps / 8, torch.finfo(torch.promote_types(dtype, torch.float32)).eps * 4)
    torch.testing.assert_close(
        found_D.double().cpu(), exact_D, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{about}: {m}"
    )


def check_whole_vectors(form: Any, mine_D: Tensor, theirs_KD: Tensor, about: str) -> None:
    K = len(theirs_KD)
    shares = [(row % 3) / (K + 1) for row in range(K)]
    spoilt_KD = theirs_KD.clone()
    spoilt_KD[::3] = math.nan  # those with a share of 0
    mixed_D = form.combine(mine_D, spoilt_KD, 1 / 3, shares)
    assert mixed_D.dtype == mine_D.dtype, about
    assert mixed_D.device == mine_D.device, about
    check_close(mixed_D, reference.combine(*exact(mine_D, theirs_KD), 1 / 3, shares), f"combine, {about}")
    weights_K = torch.full((K,), 1 / (K + 1), device=mine_D.device, dtype=torch.float64)
    exactly_D = torch.cat([mine_D[None], theirs_KD]).double().cpu().mean(0)
    check_close(form.mean(mine_D, theirs_KD, weights_K), exactly_D, f"mean, {about}")


def check_products(form: Any, mine_D: Tensor, theirs_KD: Tensor, tolerance: float, about: str) -> None:
    exact_KK = reference.gram(*exact(mine_D, theirs_KD))
    norms_K = np.sqrt(exact_KK.diagonal())
    gram_KK, squares_K = form.gram(mine_D, theirs_KD), form.squares(mine_D, theirs_KD)
    assert gram_KK.dtype == squares_K.dtype == np.float64, about
    assert gram_KK.shape == exact_KK.shape, about
    assert (np.abs(gram_KK - exact_KK) <= tolerance * norms_K[:, None] * norms_K).all(), f"gram, {about}"
    assert (np.abs(squares_K - norms_K**2) <= tolerance * norms_K**2).all(), f"squares, {about}"
    assert (gram_KK == gram_KK.T).all(), f"gram, {about}"


def check_near_models(form: Any, device: str) -> None:
    """1e-4 of their norm apart: |a|^2 - 2ab + |b|^2 in float32 would be noise."""
    mine_D, theirs_KD = models(5, 6000, torch.float32, device, 1e-4)
    check_products(form, mine_D, theirs_KD, 1e-5, "near models")
    theirs_KD = mine_D + 1e-4 * torch.ones(5, 1, device=device)  # nothing cancels: all roundings may go one way
    check_products(form, mine_D, theirs_KD, 1e-5, "near models, all on one side")


def check_nna(form: Any, device: str) -> None:
    mine_D, theirs_KD = models(5, 300, torch.float32, device, 0.0)
    theirs_KD += torch.tensor([5.0, 1, 4, 2, 3], device=device)[:, None] * 1e-4
    theirs_KD[3, 7] = math.nan
    kept_D = form.nna(mine_D, theirs_KD, torch.zeros(5, device=device), 3)
    check_close(kept_D, (mine_D + theirs_KD[1] + theirs_KD[4]).double().cpu() / 3, "nna")
    alone_D = form.nna(mine_D, theirs_KD, torch.zeros(5, device=device), 5)
    assert torch.equal(alone_D, mine_D)


def check_order(form: Any, device: str) -> None:
    """The order of rows does not change a bit, nor does doing it twice."""
    mine_D, theirs_KD = models(7, 1500, torch.float32, device, 1.0)
    order = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    other_KD = theirs_KD[order.to(device)]
    rows = order.numpy()
    assert (form.squares(mine_D, other_KD) == form.squares(mine_D, theirs_KD)[rows]).all()
    assert (form.gram(mine_D, theirs_KD) == form.gram(mine_D, theirs_KD)).all()
    if mine_D.is_cuda:  # the interpreter multiplies with a library of the CPU's, which may sum as it likes
        assert (form.gram(mine_D, other_KD) == form.gram(mine_D, theirs_KD)[np.ix_(rows, rows)]).all()
    assert torch.equal(form.ranks(mine_D, other_KD, 2, 6), form.ranks(mine_D, theirs_KD, 2, 6))
    assert torch.equal(form.around(mine_D, other_KD, 2, 6, 5), form.around(mine_D, theirs_KD, 2, 6, 5))


def check_products_of_odd_rows(form: Any, device: str) -> None:
    """The last beside one of ours: finite both, but not their difference, which is of the models' type."""
    for poison, at, ours in (
        *((math.nan, 0, 0.0), (math.inf, 130, 0.0), (1e38, 0, 0.0), (-3e38, 130, 0.0), (1e20, 0, 0.0)),
        (3e38, 0, -3e38),
        (3e38, 130, -3e38),
    ):
        mine_D, theirs_KD = models(6, 131, torch.float32, device, 1.0)
        theirs_KD[2, at], mine_D[at] = poison, ours
        exact_KK = reference.gram(mine_D.cpu(), theirs_KD.cpu())
        for found, wanted in (
            (form.gram(mine_D, theirs_KD), exact_KK),
            (form.squares(mine_D, theirs_KD), exact_KK.diagonal()),
        ):
            finite = np.isfinite(wanted)
            assert (np.isfinite(found) == finite).all(), poison
            np.testing.assert_allclose(found[finite], wanted[finite], rtol=1e-5, atol=1e-4)


def matrix(M: int, N: int) -> Matrix:
    """Means of a quarter of the vectors each."""
    matrix_MN = np.zeros((M, N))
    width = max(1, N // 4)
    for row in range(M):
        matrix_MN[row, [(row + step) % N for step in range(width)]] = 1 / width
    return matrix_MN


def check_places(form: Any, mine_D: Tensor, theirs_KD: Tensor, about: str) -> None:
    """Vectors themselves, as many mixed ones, and fewer."""
    N = len(theirs_KD) + 1
    for matrix_MN in (None, matrix(N, N), matrix(-(-N // 4), N)):
        count = N if matrix_MN is None else len(matrix_MN)
        first, last = count // 4, count - count // 4
        wide = exact(mine_D, theirs_KD)
        what = f"{about}, {count} values"
        ranks_D = form.ranks(mine_D, theirs_KD, first, last, matrix_MN)
        assert ranks_D.dtype == mine_D.dtype, what
        check_close(ranks_D, reference.ranks(*wide, first, last, matrix_MN), f"ranks, {what}")
        keep = max(1, count - count // 3)
        around_D = form.around(mine_D, theirs_KD, first, last, keep, matrix_MN)
        few = 0 if mine_D.dtype in (torch.float32, torch.float64) else len(mine_D) // 4
        values_MD, tolerance = reference.in_order(*wide, matrix_MN), 8 * torch.finfo(mine_D.dtype).eps
        others = 1 + few if len(mine_D) > 1 else 0
        check_windows(around_D, values_MD, first, last, keep, tolerance, others, f"around, {what}")


def check_windows(
    found_D: Tensor, values_MD: Tensor, first: int, last: int, keep: int, tolerance: float, others: int, about: str
) -> None:
    """`around` of values in ascending order; up to `others` parameters may have another of the windows.

    Where two are equally near, a last digit of the mean decides, and either is right.
    """
    windows_WD = values_MD.double().unfold(0, keep, 1).mean(2)
    near_WD = (found_D.double().cpu() - windows_WD).abs() <= tolerance * (1 + windows_WD.abs())
    assert near_WD.any(0).all(), f"{about}: the mean of no window"
    exact_D = reference.nearest_mean(values_MD.double(), first, last, keep)
    right_D = (found_D.double().cpu() - exact_D).abs() <= tolerance * (1 + exact_D.abs())
    assert (~right_D).sum() <= others, f"{about}: {(~right_D).sum()} of other windows"


def check_odd_columns(form: Any, dtype: torch.dtype, device: str) -> None:
    """Each place of columns of few values, with ties: NaN by its sign at the ends, -0.0 before 0.0."""
    for K in (4, 35):
        random = np.random.default_rng(K)
        values_ND = torch.tensor(random.choice([*STRANGE, 1e38 if dtype != torch.float16 else 6e4], (K + 1, 130)))
        values_ND = values_ND.to(dtype)
        values_ND[torch.from_numpy(random.random((K + 1, 130)) < 0.05)] = -torch.tensor(math.nan, dtype=dtype)
        sorted_ND = reference.in_order(values_ND[0], values_ND[1:], None)
        mine_D, theirs_KD = values_ND[0].to(device), values_ND[1:].to(device)
        for place in range(0, K + 1, 1 if K == 4 else 7):
            found_D, wanted_D = form.ranks(mine_D, theirs_KD, place, place + 1).cpu(), sorted_ND[place]
            assert torch.equal(found_D.isnan(), wanted_D.isnan()), f"place {place} of {K + 1}, {dtype}"
            numbers = ~wanted_D.isnan()
            assert torch.equal(found_D[numbers], wanted_D[numbers]), f"place {place} of {K + 1}, {dtype}"
            if K == 4:  # torch's mean of one -0.0 is 0.0
                assert torch.equal(found_D[numbers].signbit(), wanted_D[numbers].signbit()), f"place {place}, {dtype}"
        # Of columns in which no sum overflows: of all windows, those around each place.
        modest = ~(values_ND.isfinite() & (values_ND.abs() > 1e4)).any(0)
        wide_ND = values_ND.double()
        for first, last, keep in ((0, 1, K), (1, K, K - 1), (K, K + 1, 2), (1, 2, 1)):
            found_D = form.around(mine_D, theirs_KD, first, last, keep).double().cpu()
            wanted_D = reference.around(wide_ND[0], wide_ND[1:], first, last, keep)
            about = f"around {first} to {last} of {K + 1}, {dtype}"
            check_close(found_D[modest].to(dtype), wanted_D[modest], about)


def check_ties(form: Any, device: str) -> None:
    """Of a low and a high value that are equally far, the low one."""
    values_ND = torch.tensor([[3.0, -1, 1], [1, 0, 2], [-1, 5, 0]], device=device).T.contiguous()
    found_D = form.around(values_ND[0], values_ND[1:], 1, 2, 2)
    assert found_D.tolist() == [0.0, 0.5, -0.5], found_D


def quantised(K: int, D: int, block: int, device: str) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(D)
    codes_KD = torch.randint(-128, 128, (K, D), generator=draw, dtype=torch.int8)
    return codes_KD.to(device), (torch.rand(K, -(-D // block), generator=draw) / 100).to(device)


def check_quantised(form: Any, device: str) -> None:
    """Distances and sums of what the codes stand for."""
    for K, D, block, dtype in (
        (1, 1, 64, torch.float32),
        (3, 1030, 64, torch.float32),
        (4, 1000, 7, torch.float32),
        (2, 5000, 4096, torch.float32),
        (0, 5, 2, torch.float32),
        *((2, 300, 256, dtype) for dtype in DTYPES[1:]),
    ):
        mine_D, _ = models(0, D, dtype, device, 0.0)
        codes_KD, scales_KB = quantised(K, D, block, device)
        shares = [(row % 3) / (K + 1) for row in range(K)]
        about = f"quantised K = {K}, D = {D}, {block}, {dtype}"
        host = mine_D.double().cpu(), codes_KD.cpu(), scales_KB.cpu(), block
        squares_K = form.squares_quantised(mine_D, codes_KD, scales_KB, block)
        np.testing.assert_allclose(squares_K, reference.squares_quantised(*host), rtol=1e-6, err_msg=about)
        scales_KB[::3] = math.nan  # those with a share of 0
        mixed_D = form.combine_quantised(mine_D, codes_KD, scales_KB, block, 0.3, shares)
        assert mixed_D.dtype == dtype, about
        check_close(mixed_D, reference.combine_quantised(*host, 0.3, shares), about)


# Those of one shape each.
SINGLE = (
    check_near_models,
    check_nna,
    check_order,
    check_products_of_odd_rows,
    check_ties,
    check_quantised,
)
