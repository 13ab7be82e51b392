"""Weights as a function of integer coefficients: exact and lean, in parts, beside their place, and their digest."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from murmurate.kernels import noise
from murmurate.kernels.noise import reference
from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.learning.exchange.seeds import Changes
from murmurate.peer.learning.exchange.states import NoState
from murmurate.peer.learning.flat import FlatModel
from murmurate.peer.learning.replica import (
    CHUNK,
    GLANCE,
    Exact,
    Lean,
    Weights,
    base_of,
    digest,
    make_weights,
    places_of,
)

SIGNS = 7
UNIT_LOG2 = -12


def model_of(dtype: torch.dtype = torch.float32, sizes: tuple[int, ...] = (30, 50, 40)) -> FlatModel:
    torch.manual_seed(0)
    return FlatModel(nn.ParameterList([torch.randn(size) for size in sizes]).to(dtype), gradients=False)


def weights_of(model: FlatModel, memory: str = "exact", parts: int = 1) -> Weights:
    return make_weights(model, UNIT_LOG2, parts, memory, SIGNS)


def changes(*moves: tuple[int, int]) -> Changes:
    """Of directions of key 3, by index."""
    indices = np.array([index for index, _ in moves], dtype=np.uint64)
    deltas = np.array([delta for _, delta in moves], dtype=np.int64)
    return Changes(np.full_like(indices, 3), indices, deltas)


def z_of(index: int, model: FlatModel, parts: int = 1) -> Tensor:
    """The direction as a vector, by the specification."""
    out = torch.zeros(model.flat_D.numel(), dtype=torch.int64)
    span, first_block = places_of(model, parts)[index % parts]
    size = span.stop - span.start
    for block in range(-(-size // noise.BLOCK)):
        z = torch.from_numpy(reference.direction_of(noise.Direction(3, index), SIGNS, first_block + block))
        place = slice(span.start + block * noise.BLOCK, min(span.stop, span.start + (block + 1) * noise.BLOCK))
        out[place] = z[: place.stop - place.start]
    return out


@pytest.mark.parametrize("memory", ["exact", "lean"])
@pytest.mark.parametrize("parts", [1, 3])
def test_weights_are_the_base_minus_units_of_directions(memory: str, parts: int) -> None:
    model = model_of()
    weights = weights_of(model, memory, parts)
    base_D = model.flat_D.clone()
    weights.move(changes((0, 5), (1, -70), (2, 9), (3, 1000), (7, 2)))
    weights.move(changes((3, -1000), (7, 1)))
    weights.settle()
    sums_D = sum(delta * z_of(index, model, parts) for index, delta in ((0, 5), (1, -70), (2, 9), (7, 3)))
    assert torch.equal(model.flat_D, base_D - 2.0**UNIT_LOG2 * sums_D)


@settings(max_examples=30)
@given(
    moves=st.lists(st.tuples(st.integers(0, 5), st.integers(-300, 300)), min_size=1, max_size=12),
    data=st.data(),
    parts=st.integers(1, 3),
)
def test_lean_is_exact_on_the_grid(moves: list[tuple[int, int]], data: st.DataObject, parts: int) -> None:
    """Any order, any portions, with probes in between: both memories hold the same bits."""
    lean, exact = model_of(), model_of()
    exact.flat_D.copy_(noise.to_grid(exact.flat_D, UNIT_LOG2))
    both = [(lean, weights_of(lean, "lean", parts)), (exact, weights_of(exact, "exact", parts))]
    for model, weights in both:
        for move in data.draw(st.permutations(moves)):
            if data.draw(st.booleans()):
                index = data.draw(st.integers(0, 5))
                weights.shift(noise.Direction(3, index), 2.0**-10)
                if data.draw(st.booleans()):
                    weights.shift(noise.Direction(3, index), -(2.0**-10))
            weights.move(changes(move))
        weights.settle()
        assert model is lean or torch.equal(lean.flat_D, exact.flat_D)


@pytest.mark.parametrize("memory", ["exact", "lean"])
@pytest.mark.parametrize("parts", [1, 3])
def test_shifts_start_from_the_weights_each_time(memory: str, parts: int) -> None:
    model = model_of()
    weights = weights_of(model, memory, parts)
    weights.move(changes((0, 77), (1, -13), (2, 500)))
    weights.settle()
    home_D = model.flat_D.clone()
    for index, epsilon in ((0, 0.25), (0, -0.25), (1, 0.5), (4, -0.5), (2, 0.0), (2, 2.0**-12)):
        weights.shift(noise.Direction(3, index), epsilon)
        assert weights.length(epsilon) == pytest.approx(epsilon, abs=2.0**-12)
        expected_D = home_D + weights.length(epsilon) * z_of(index, model, parts)
        assert torch.equal(model.flat_D, expected_D)
    weights.settle()
    assert torch.equal(model.flat_D, home_D)


def test_a_lean_probe_can_be_undone() -> None:
    model = model_of()
    lean = weights_of(model, "lean")
    assert lean.length(1e-9) == 2.0**UNIT_LOG2
    assert lean.length(-1e-3) == -4 * 2.0**UNIT_LOG2
    assert weights_of(model_of()).length(1e-3) == float(np.float32(1e-3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_round_once(dtype: torch.dtype) -> None:
    """Small steps do not drown in a narrow format: they add up as integers."""
    model = model_of(dtype)
    base_D = model.flat_D.clone()
    weights = weights_of(model)
    for _ in range(200):
        weights.move(changes((0, 1)))
    weights.settle()
    assert torch.equal(model.flat_D, (base_D.float() - 200 * 2.0**UNIT_LOG2 * z_of(0, model)).to(dtype))
    with pytest.raises(ConfigError, match="needs a model in float32"):
        weights_of(model_of(dtype), "lean")


@pytest.mark.parametrize("memory", ["exact", "lean"])
def test_weights_of_64_bits_are_refused_at_the_start(memory: str) -> None:
    with pytest.raises(ConfigError, match=r"float32, bfloat16 or float16, and this one is torch\.float64"):
        weights_of(model_of(torch.float64), memory)


def test_sums_widen_before_they_overflow() -> None:
    model = model_of()
    weights = weights_of(model)
    assert isinstance(weights, Exact)
    base_D = model.flat_D.clone()

    def sums() -> Tensor:
        return weights._sums_D  # pyright: ignore[reportPrivateUsage] (to see its width)

    step = 2**30 - 1
    for _ in range(3):  # the tracked sum passes 2^31, the sums themselves do not
        weights.move(changes((0, step)))
        weights.move(changes((0, -step)))
    assert sums().dtype == torch.int32
    weights.move(changes((0, step), (1, step), (2, 5)))
    weights.move(changes((3, 2**33)))
    assert sums().dtype == torch.int64
    total_D = step * (z_of(0, model) + z_of(1, model)) + 5 * z_of(2, model) + 2**33 * z_of(3, model)
    assert torch.equal(sums(), total_D)
    weights.move(changes((0, -step), (1, -step), (2, -5), (3, -(2**33))))
    weights.settle()
    assert torch.equal(model.flat_D, base_D)


def test_lean_refuses_to_leave_the_grid() -> None:
    with pytest.raises(ConfigError, match=r"set seeds.unit_log2 = (-?\d+) or more") as raised:
        make_weights(model_of(), -30, 1, "lean", SIGNS)
    fitting = int(str(raised.value).split("unit_log2 = ")[1].split()[0])
    make_weights(model_of(), fitting, 1, "lean", SIGNS)
    weights = weights_of(model_of(), "lean")
    assert isinstance(weights, Lean)
    for _ in range(5):  # the tracked sum passes the limit, the weights do not
        weights.move(changes((0, 2**22)))
        weights.move(changes((0, -(2**22))))
    weights.settle()
    before_D = weights._flat_D.clone()  # pyright: ignore[reportPrivateUsage] (nothing else may be changed)
    for _ in range(2):
        with pytest.raises(LocalError, match="leaves the grid of 2\\^-12"):
            weights.move(changes((0, 2**23), (1, 1)))
        assert torch.equal(weights._flat_D, before_D)  # pyright: ignore[reportPrivateUsage] (as above)


WAYS = [
    [[(0, 2**26)], [(1, 77)], [(0, -(2**26) + 3)], [(2, -9), (4, 2**22)]],
    [[(1, 77), (2, -9)], [(0, 3)], [(4, 2**22)]],
    [[(4, 2**23 - 1), (1, 70)], [(4, -(2**22) + 1), (0, 3)], [(1, 7), (2, -9)], [(4, 0)]],
    [[(2, 2**40)], [(2, -(2**40) - 9)], [(0, 3), (1, 77), (4, 2**22)]],
]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("more", [0, 2**23, 2**25 + 1, -(2**33) - 5])
def test_lean_beyond_its_grid_is_still_a_function_of_the_coefficients(parts: int, more: int) -> None:
    """However they come, on the grid or beyond it: the bits are those of exact weights from the rounded base."""
    sizes = (20, 20, 2 * GLANCE)  # the last part has several pieces
    exact = model_of(sizes=sizes)
    first_D = exact.flat_D.clone()
    exact.flat_D.copy_(noise.to_grid(exact.flat_D, UNIT_LOG2))
    reference_ = weights_of(exact, "exact", parts)
    reference_.move(changes((0, 3), (1, 77), (2, -9), (4, 2**22), (5, more)))
    reference_.settle()
    for way in WAYS:
        model = model_of(sizes=sizes)
        lean = make_weights(model, UNIT_LOG2, parts, "lean", SIGNS, first_D.clone)
        for place, moves in enumerate(way):
            lean.shift(noise.Direction(3, 1), 2.0**-9)
            lean.move(changes(*(move for move in moves if move[1]), *[(5, more)] * (more != 0 and place == 1)))
        lean.shift(noise.Direction(3, 1), 2.0**-9)
        lean.settle()
        assert torch.equal(model.flat_D, exact.flat_D)


def test_lean_beyond_its_grid_offers_no_state_and_comes_back_with_one() -> None:
    model = model_of()
    first_D = model.flat_D.clone()
    lean = make_weights(model, UNIT_LOG2, 1, "lean", SIGNS, first_D.clone)
    assert isinstance(lean, Lean)
    home = lean.steps()
    lean.move(changes((0, 2**25)))
    assert lean.is_beyond
    with pytest.raises(NoState):
        lean.steps()
    lean.move(changes((0, -(2**25))))
    assert lean.is_beyond
    np.testing.assert_array_equal(lean.steps(), home)
    lean.put((home + 1).astype(np.int32))
    assert not lean.is_beyond
    np.testing.assert_array_equal(lean.steps(), home + 1)


def test_parts_are_runs_of_tensors_of_about_equal_size() -> None:
    model = model_of(sizes=(10, 10, 40_000, 10, 40_000, 33_000))
    places = places_of(model, 3)
    assert [(place.span.start, place.span.stop) for place in places] == [
        (0, 40_020),
        (40_020, 80_030),
        (80_030, 113_030),
    ]
    assert [place.first_block for place in places] == [0, 2, 4]
    assert [place.span.stop - place.span.start for place in places_of(model, 6)] == [10, 10, 40_000, 10, 40_000, 33_000]
    assert places_of(model, 1)[0].span == slice(0, 113_030)
    with pytest.raises(ConfigError, match=r"seeds.parts = 7: the model has only 6"):
        places_of(model, 7)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.data())
def test_parts_cover_everything_once(sizes: list[int], data: st.DataObject) -> None:
    model = model_of(sizes=tuple(sizes))
    places = places_of(model, data.draw(st.integers(1, len(sizes))))
    assert [place.span.start for place in places] == [0, *(place.span.stop for place in places[:-1])]
    assert places[-1].span.stop == sum(sizes)
    assert all(place.span.stop > place.span.start for place in places)


def test_projection_is_the_inner_product_within_the_part() -> None:
    model = model_of()
    weights = weights_of(model, parts=3)
    update_D = torch.randn(model.flat_D.numel())
    directions = changes(*((index, 1) for index in range(6))).directions
    expected = [float((update_D.double() * z_of(index, model, 3)).sum()) for index in range(6)]
    np.testing.assert_allclose(weights.project(update_D, directions), expected, rtol=1e-5, atol=1e-5)


def test_a_direction_can_be_written_down() -> None:
    model = model_of()
    weights = weights_of(model, parts=3)
    out_D = torch.full_like(model.flat_D, 9.0)
    weights.write(out_D, noise.Direction(3, 4))
    assert torch.equal(out_D, z_of(4, model, 3).float())


def test_digests_are_of_little_endian_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = torch.arange(10, dtype=torch.float32)
    whole = hashlib.sha256(vector.numpy().astype("<f4").tobytes()).digest()
    assert digest(vector) == whole
    monkeypatch.setattr("murmurate.peer.learning.replica.CHUNK", 3)
    assert digest(vector) == whole
    assert digest(torch.tensor([1.0, -2.0], dtype=torch.bfloat16)) == hashlib.sha256(b"\x80\x3f\x00\xc0").digest()
    assert CHUNK > 3


def test_the_base_is_all_that_the_model_starts_from() -> None:
    def module(**changed: Any) -> nn.Module:
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        made.load_state_dict({**made.state_dict(), **changed})
        return made

    known = base_of(module())
    assert known.startswith("sha256:")
    assert known == base_of(module().requires_grad_(False))
    found = {
        known,
        base_of(module(**{"0.weight": torch.zeros(2, 2)})),
        base_of(module(**{"1.running_mean": torch.ones(2)})),
    }
    assert len(found | {base_of(module().double())}) == 4
