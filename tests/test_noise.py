"""Directions: the generator against its authors, the reference against the definition, the CPU form against it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from murmurate.kernels import noise
from murmurate.kernels.noise import cpu, loops, reference

from .golden_noise import BLOCKS, DIRECTIONS, ORIGIN, POOL, PRIVATE, SHARED, SIGNS, SWARM, check, sha256

BLOCK = noise.BLOCK


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# The specification --------------------------------------------------------------------------------------

# Philox4x32-10 in kat_vectors of Random123 (Salmon et al. 2011): counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_the_known_answers(counter: str, key: str, result: str) -> None:
    words: list[Any] = [np.array([int(word, 16)], dtype=np.uint64) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    whole = np.array([low | high << 32], dtype=np.uint64)
    expected = [int(word, 16) for word in result.split()]
    assert [int(word[0]) for word in reference.philox((words[0], words[1], words[2], words[3]), whole)] == expected
    assert [int(word) for word in loops.philox(*(word[0] for word in words), whole[0])] == expected


def test_keys_are_those_of_the_document() -> None:
    kinds = [(b"signs", b""), (b"private", ORIGIN), (b"pool", b""), (b"shared", b"")]
    assert [noise.derive_key(SWARM, kind, origin) for kind, origin in kinds] == [SIGNS, PRIVATE, POOL, SHARED]


@pytest.mark.parametrize("form", [reference, cpu, noise], ids=["reference", "cpu", "dispatch"])
def test_golden_vectors(form: Any) -> None:
    check(form)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_those_of_the_document(block: int) -> None:
    signs = reference.signs_of(SIGNS, block)
    rows_K, sigmas_K = reference.rows_of(DIRECTIONS, block)
    assert (written(signs[:16]), sha256(signs), rows_K.tolist(), written(sigmas_K)) == BLOCKS[block]


def written(signs: NDArray[Any]) -> str:
    return "".join("+" if sign > 0 else "-" for sign in signs)


def test_draws_are_those_of_the_document() -> None:
    assert noise.draws(POOL, np.arange(6, dtype=np.uint64), 4096).tolist() == [724, 3743, 3429, 991, 3524, 2086]
    far = np.arange(6, dtype=np.uint64) + np.uint64(2**33)
    assert noise.draws(PRIVATE, far, 4096).tolist() == [3133, 650, 2540, 281, 2280, 420]


def test_reference_is_the_definition() -> None:
    """Entry by entry, in Python's integers."""
    direction, block = noise.Direction(PRIVATE, 2**33 + 5), 2**35 + 11
    z = reference.direction_of(direction, SIGNS, block)
    rows, sigmas = reference.rows_of(directions_of([direction]), block)
    signs = reference.signs_of(SIGNS, block)
    for t in (*range(300), 32766, 32767):
        assert z[t] == signs[t] * sigmas[0] * (-1) ** (int(rows[0]) & t).bit_count()
    words = scalar_philox([block >> 3 & 0xFFFFFFFF, 5, 2, 1 + (block >> 35 << 8)], PRIVATE)
    field = words[(block & 7) >> 1] >> 16 * (block & 1) & 0xFFFF
    assert (int(rows[0]), int(sigmas[0])) == (field & 32767, -1 if field >> 15 else 1)
    i = block * BLOCK + 1000
    word = scalar_philox([i >> 7 & 0xFFFFFFFF, i >> 39, 0, 0], SIGNS)[i >> 5 & 3]
    assert signs[1000] == 1 - 2 * (word >> (i & 31) & 1)


def scalar_philox(counter: list[int], key: int) -> list[int]:
    words: Any = [np.array([word], dtype=np.uint64) for word in counter]
    return [int(word[0]) for word in reference.philox(tuple(words), np.array([key], dtype=np.uint64))]


def directions_of(directions: list[noise.Direction]) -> noise.Directions:
    keys = np.array([direction.key for direction in directions], dtype=np.uint64)
    return noise.Directions(keys, np.array([direction.index for direction in directions], dtype=np.uint64))


# The CPU form has the reference's bits ------------------------------------------------------------------

RAGGED = [1, 31, 32, 33, 1024, 1025, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77, 10 * BLOCK + 12_345]
sizes = st.sampled_from(RAGGED) | st.integers(1, 3 * BLOCK)
first_blocks = st.sampled_from([0, 1, 7, 8, 13, 2**35 - 1])
counts = st.sampled_from([0, 1, 2, 3, 7, 33])
seeds = st.integers(0, 2**32)


class Case:
    """Random arguments of all operations."""

    def __init__(self, size: int, count: int, seed: int, largest: int = 245_760) -> None:
        draw = np.random.default_rng(seed)
        self.directions = noise.Directions(
            draw.integers(0, 2**64, count, dtype=np.uint64), draw.integers(0, 2**64, count, dtype=np.uint64)
        )
        self.coefficients_K = draw.integers(-largest, largest, count, endpoint=True)
        self.signs = int(draw.integers(0, 2**64, dtype=np.uint64))
        self.direction = noise.Direction(int(draw.integers(0, 2**64, dtype=np.uint64)), seed)
        self.weights_D = torch.from_numpy(draw.standard_normal(size, dtype=np.float32))
        self.weights_D[::5], self.weights_D[1::7] = -0.0, 0.0
        self.wide_D = torch.from_numpy(draw.integers(-(2**40), 2**40, size))
        self.narrow_D = (self.wide_D >> 10).int()


@given(sizes, counts, seeds, first_blocks, st.booleans())
@settings(max_examples=30)
def test_accumulate_matches(size: int, count: int, seed: int, first_block: int, wide: bool) -> None:
    case = Case(size, count, seed)
    sums_D = case.wide_D if wide else case.narrow_D
    expected_D = sums_D.clone()
    reference.accumulate(expected_D, case.directions, case.coefficients_K, case.signs, first_block)
    noise.accumulate(sums_D, case.directions, case.coefficients_K, case.signs, first_block)
    assert torch.equal(sums_D, expected_D)


@given(sizes, counts, seeds, first_blocks, st.sampled_from([1, 127, 245_760, 2**45]))
@settings(max_examples=30)
def test_replay_matches(size: int, count: int, seed: int, first_block: int, largest: int) -> None:
    case = Case(size, count, seed, largest)
    expected_D, weights_D = case.weights_D.clone(), case.weights_D.clone()
    reference.replay(expected_D, case.directions, case.coefficients_K, case.signs, -19, first_block)
    noise.replay(weights_D, case.directions, case.coefficients_K, case.signs, -19, first_block)
    assert same_bits(weights_D, expected_D)


floats = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@given(sizes, seeds, first_blocks, floats, floats, st.booleans(), st.booleans())
@settings(max_examples=40)
def test_materialise_matches(
    size: int, seed: int, first_block: int, base: torch.dtype, out: torch.dtype, wide: bool, perturbed: bool
) -> None:
    case = Case(size, 1, seed)
    base_D, sums_D = case.weights_D.to(base), case.wide_D if wide else case.narrow_D
    expected_D, out_D = torch.empty(size, dtype=out), torch.empty(size, dtype=out)
    arguments: tuple[Any, ...] = (sums_D, -28, case.signs, case.direction if perturbed else None, 1e-3, first_block)
    reference.materialise(expected_D, base_D, *arguments)
    noise.materialise(out_D, base_D, *arguments)
    assert same_bits(out_D, expected_D)
    if base == out:
        noise.materialise(base_D, base_D, *arguments)
        assert same_bits(base_D, expected_D)


@given(sizes, seeds, first_blocks, floats, floats, st.sampled_from([1e-3, -1e-3, 0.0]))
@settings(max_examples=30)
def test_perturb_matches(
    size: int, seed: int, first_block: int, weights: torch.dtype, out: torch.dtype, epsilon: float
) -> None:
    case = Case(size, 1, seed)
    weights_D = case.weights_D.to(weights)
    expected_D, out_D = torch.empty(size, dtype=out), torch.empty(size, dtype=out)
    reference.perturb(expected_D, weights_D, case.direction, epsilon, case.signs, first_block)
    noise.perturb(out_D, weights_D, case.direction, epsilon, case.signs, first_block)
    assert same_bits(out_D, expected_D)
    if weights == out:
        noise.perturb(weights_D, weights_D, case.direction, epsilon, case.signs, first_block)
        assert same_bits(weights_D, expected_D)


@given(sizes, counts, seeds, first_blocks)
@settings(max_examples=30)
def test_project_matches(size: int, count: int, seed: int, first_block: int) -> None:
    case = Case(size, count, seed)
    expected_K = reference.project(case.weights_D, case.directions, case.signs, first_block)
    assert noise.project(case.weights_D, case.directions, case.signs, first_block).tobytes() == expected_K.tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_in_several_pieces(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(cpu, "PIECE", 2 * BLOCK)
    case = Case(5 * BLOCK + 9, 1, 7)
    for out in (torch.float32, dtype):
        results: list[tuple[Tensor, Tensor]] = []
        for form in (reference, cpu):
            base_D, out_D = case.weights_D.to(dtype), torch.empty(5 * BLOCK + 9, dtype=out)
            form.materialise(out_D, base_D, case.narrow_D, -28, case.signs, case.direction, 1e-3, 6)
            form.perturb(base_D, base_D, case.direction, 1e-3, case.signs, 6)
            results.append((out_D, base_D))
        assert same_bits(results[0][0], results[1][0])
        assert same_bits(results[0][1], results[1][1])


def test_project_in_several_rounds_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "PARTIALS", 5)
    case = Case(30 * BLOCK + 5, 4, 3)
    expected_K = reference.project(case.weights_D, case.directions, case.signs, 5)
    assert cpu.project(case.weights_D, case.directions, case.signs, 5).tobytes() == expected_K.tobytes()


def test_project_is_the_inner_product() -> None:
    case = Case(2 * BLOCK + 99, 5, 1)
    z_KD = matrix(case.directions, case.signs, 2 * BLOCK + 99)
    exact_K = z_KD @ case.weights_D.double().numpy()
    np.testing.assert_allclose(noise.project(case.weights_D, case.directions, case.signs), exact_K, atol=1e-3)


def matrix(directions: noise.Directions, signs: int, size: int) -> NDArray[np.int64]:
    blocks = range(-(-size // BLOCK))
    return np.stack([np.concatenate([reference.direction_of(d, signs, b) for b in blocks])[:size] for d in directions])


def same_bits(one: Tensor, other: Tensor) -> bool:
    kind = torch.int32 if one.dtype == torch.float32 else torch.int16
    return torch.equal(one.view(kind), other.view(kind))


def test_no_records_change_nothing() -> None:
    none = Case(5, 0, 0)
    weights_D, sums_D = torch.tensor([-0.0, 1.0]), torch.tensor([3, 4])
    noise.replay(weights_D, none.directions, none.coefficients_K, 1, -8)
    noise.accumulate(sums_D, none.directions, none.coefficients_K, 1)
    assert str(weights_D.tolist()) == "[-0.0, 1.0]"
    assert sums_D.tolist() == [3, 4]
    assert noise.project(torch.ones(5), none.directions, 1).shape == (0,)


def test_no_parameters_are_a_model_too() -> None:
    case, empty_D = Case(1, 3, 0), torch.empty(0)
    none_D = torch.empty(0, dtype=torch.int32)
    noise.accumulate(none_D, case.directions, case.coefficients_K, 1)
    noise.replay(empty_D, case.directions, case.coefficients_K, 1, -8)
    noise.materialise(empty_D, empty_D, none_D, -8, 1, case.direction, 1.0)
    noise.perturb(empty_D, empty_D, case.direction, 1.0, 1)
    assert noise.project(empty_D, case.directions, 1).tolist() == [0, 0, 0]


# What the exactness is for ------------------------------------------------------------------------------


@pytest.mark.usefixtures("threads")
def test_threads_change_no_bit() -> None:
    case = Case(50 * BLOCK + 1, 9, 4)
    results: list[tuple[bytes, ...]] = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        sums_D, weights_D = case.wide_D.clone(), case.weights_D.clone()
        noise.accumulate(sums_D, case.directions, case.coefficients_K, case.signs, 3)
        noise.replay(weights_D, case.directions, case.coefficients_K, case.signs, -19, 3)
        noise.perturb(weights_D, weights_D, case.direction, 1e-3, case.signs, 3)
        noise.materialise(weights_D, weights_D, sums_D, -30, case.signs, case.direction, 1e-3, 3)
        projected_K = noise.project(weights_D, case.directions, case.signs, 3)
        results.append((sums_D.numpy().tobytes(), weights_D.numpy().tobytes(), projected_K.tobytes()))
    assert results[0] == results[1] == results[2]


@given(seeds, st.integers(0, 12))
@settings(max_examples=20)
def test_order_and_batches_change_no_bit(seed: int, cut: int) -> None:
    case = Case(BLOCK + 7, 12, seed)
    at_once_D, in_parts_D = torch.zeros(BLOCK + 7, dtype=torch.int32), torch.zeros(BLOCK + 7, dtype=torch.int32)
    noise.accumulate(at_once_D, case.directions, case.coefficients_K, case.signs)
    order = np.random.default_rng(seed).permutation(12)
    for part in (order[cut:], order[:cut]):
        some = noise.Directions(case.directions.keys[part], case.directions.indices[part])
        noise.accumulate(in_parts_D, some, case.coefficients_K[part], case.signs)
    assert torch.equal(at_once_D, in_parts_D)


@given(seeds, st.integers(0, 5))
@settings(max_examples=20)
def test_a_vector_may_be_cut_at_blocks(seed: int, blocks: int) -> None:
    case = Case(5 * BLOCK + 9, 3, seed)
    whole_D, parts_D = case.weights_D.clone(), case.weights_D.clone()
    noise.replay(whole_D, case.directions, case.coefficients_K, case.signs, -19, 6)
    cut = blocks * BLOCK
    noise.replay(parts_D[cut:], case.directions, case.coefficients_K, case.signs, -19, 6 + blocks)
    noise.replay(parts_D[:cut], case.directions, case.coefficients_K, case.signs, -19, 6)
    assert same_bits(whole_D, parts_D)


def test_sums_beyond_int32_stay_exact() -> None:
    case = Case(BLOCK + 3, 3, 8)
    sums_D = torch.zeros(BLOCK + 3, dtype=torch.int64)
    coefficients_K = np.array([2**40 + 1, -(2**39), 2**31])
    noise.accumulate(sums_D, case.directions, coefficients_K, case.signs)
    assert (sums_D.numpy() == coefficients_K @ matrix(case.directions, case.signs, BLOCK + 3)).all()
    with pytest.raises(ValueError, match="should be int64"):
        noise.accumulate(sums_D.int(), case.directions, coefficients_K, case.signs)


@pytest.mark.parametrize("largest", [2**15 - 1, 2**15, 2**31 - 1, 2**31, 2**61])
def test_every_width_is_wide_enough(largest: int) -> None:
    """The sums of one record are as large as they can be."""
    case = Case(BLOCK, 1, 2)
    sums_D = torch.zeros(BLOCK, dtype=torch.int64)
    for coefficient in (largest, -largest):
        sums_D.zero_()
        noise.accumulate(sums_D, case.directions, np.array([coefficient]), case.signs)
        assert (sums_D.numpy() == coefficient * matrix(case.directions, case.signs, BLOCK)[0]).all()


def test_retraction_restores_the_bits() -> None:
    """On the grid nothing rounds: any record can be taken back, in any order."""
    case = Case(2 * BLOCK + 5, 20, 6, largest=500)
    before_D = noise.to_grid(case.weights_D, -18)
    weights_D = before_D.clone()
    noise.replay(weights_D, case.directions, case.coefficients_K, case.signs, -18)
    assert not torch.equal(weights_D, before_D)
    for k in np.random.default_rng(0).permutation(20):
        one = noise.Directions(case.directions.keys[k : k + 1], case.directions.indices[k : k + 1])
        noise.replay(weights_D, one, -case.coefficients_K[k : k + 1], case.signs, -18)
    assert same_bits(weights_D, before_D)


def test_the_grid() -> None:
    grid_D = noise.to_grid(torch.tensor([0.0, -0.0, -0.1, 0.24, 0.25, 0.5, 0.75, -0.25, -0.75, 1e6]), -1)
    assert str(grid_D.tolist()) == "[0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 0.0, -1.0, 1000000.0]"


class Elsewhere(Tensor):
    """As on a device that has no float64."""

    is_cpu = False  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]: torch has a property

    def double(self, *_: Any, **__: Any) -> Tensor:
        raise TypeError("no float64 here")

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.as_subclass(Tensor)


def test_the_grid_on_a_device_without_float64() -> None:
    values_D = Case(100, 0, 5).weights_D
    assert same_bits(noise.to_grid(values_D.as_subclass(Elsewhere), -7), noise.to_grid(values_D, -7))


# Moments ------------------------------------------------------------------------------------------------

RECORDS = 200_000
# In each of these blocks. No two pairs have the same exclusive or: then their products are independent.
PLACES = [0, 1, 2, 4, 64, 128, 1024, 16384, 32767]
FAR_BLOCKS = [0, 1, 2, 7, 8, 9, 1000]


def test_directions_are_uncorrelated() -> None:
    """E[z z^T] = I within and across blocks: 63 entries, the first ones of seven blocks among them.

    Each product of two entries has mean 0 and variance 1 over the records, so the mean of N of them times sqrt(N) is
    near normal: beyond 5.2 with probability 2e-7, here 1,953 times. The sum of their squares is near chi-square.
    """
    directions = noise.Directions.of_key(PRIVATE, np.arange(RECORDS, dtype=np.uint64))
    entries: list[NDArray[np.float32]] = []
    for block in FAR_BLOCKS:
        rows_K, sigmas_K = reference.rows_of(directions, block)
        signs = reference.signs_of(SIGNS, block)
        entries += [(signs[t] * sigmas_K * reference.walsh(t)[rows_K]).astype(np.float32) for t in PLACES]
    z_EN = np.stack(entries)
    scores = z_EN @ z_EN.T / np.sqrt(RECORDS)
    assert (z_EN**2 == 1).all()
    pairs = scores[np.triu_indices(len(entries), 1)]
    assert np.abs(pairs).max() < 5.2
    assert abs((pairs**2).sum() - len(pairs)) < 5.2 * np.sqrt(2 * len(pairs))
    means = z_EN.mean(1) * np.sqrt(RECORDS)
    assert np.abs(means).max() < 5.2


def test_rows_are_uniform() -> None:
    directions = noise.Directions.of_key(SHARED, np.arange(RECORDS, dtype=np.uint64))
    for block in (0, 7, 8):
        rows_K, _ = reference.rows_of(directions, block)
        counts = np.bincount(rows_K, minlength=BLOCK)
        expected = RECORDS / BLOCK
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - (BLOCK - 1)) < 5.2 * np.sqrt(2 * BLOCK)
