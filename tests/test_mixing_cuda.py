"""The Triton form of the mixing kernels, on machines without a GPU: interpreted, and compiled ahead; and on one, run.

Rows in the host's memory, too.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from murmurate.kernels import mixing as kernels
from murmurate.kernels.mixing import cpu, reference, streams

from . import mixing_checks
from .mixing_checks import matrix, models
from .triton_run import run


def test_interpreted_kernels_do_what_the_reference_does() -> None:
    run("triton_mixing.py", "interpret", TRITON_INTERPRET="1")


def test_what_is_launched_compiles_without_atomics_or_lost_digits() -> None:
    run("triton_mixing.py", "compile", TRITON_INTERPRET="0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
class TestOnTheGpu:
    @pytest.mark.parametrize(("K", "D", "dtype"), mixing_checks.EVERYWHERE)
    def test_kernels_do_what_the_reference_does(self, K: int, D: int, dtype: torch.dtype) -> None:
        mixing_checks.check_shape(kernels, K, D, dtype, "cuda")

    @pytest.mark.parametrize("dtype", mixing_checks.DTYPES)
    def test_odd_columns(self, dtype: torch.dtype) -> None:
        mixing_checks.check_odd_columns(kernels, dtype, "cuda")

    @pytest.mark.parametrize("check", mixing_checks.SINGLE)
    def test_the_rest(self, check: Callable[[Any, str], None]) -> None:
        check(kernels, "cuda")

    def test_a_whole_model_has_the_bits_of_its_parts(self) -> None:
        mine_D, theirs_KD = models(5, 3_000_017, torch.bfloat16, "cuda", 0.01)
        half = slice(1_500_001, None)
        arguments = mine_D[half].contiguous(), theirs_KD[:, half].contiguous()
        assert torch.equal(kernels.ranks(mine_D, theirs_KD, 1, 5)[half], kernels.ranks(*arguments, 1, 5))
        shares = [0.1] * 5
        assert torch.equal(
            kernels.combine(mine_D, theirs_KD, 0.5, shares)[half], kernels.combine(*arguments, 0.5, shares)
        )

    def test_rows_in_pinned_memory(self) -> None:
        mine_D, theirs_KD = models(5, 300_001, torch.float32, "cuda", 0.01)
        rows = [row_D.cpu().pin_memory() for row_D in theirs_KD]
        rows[3] = theirs_KD[3]
        check_streamed(mine_D, theirs_KD, rows, 10_000)


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in [name for name in sys.modules if name.split(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("cuda", "programs"):
        monkeypatch.delitem(sys.modules, f"murmurate.kernels.mixing.{name}", raising=False)
        monkeypatch.delattr(kernels, name, raising=False)
    form_on.cache_clear()
    yield
    form_on.cache_clear()


form_on: Any = kernels._form_on  # pyright: ignore[reportPrivateUsage]: there may be no tensor of its kinds


@pytest.mark.usefixtures("no_triton")
def test_without_triton_a_cuda_tensor_gets_the_reference() -> None:
    assert form_on("cuda") is reference


def test_each_kind_of_device_has_its_form() -> None:
    form_on.cache_clear()
    found: dict[str, ModuleType] = {kind: form_on(kind) for kind in ("cpu", "cuda", "mps", "meta")}
    assert found["cpu"] is cpu
    assert found["mps"] is found["meta"] is reference
    if find_spec("triton"):
        assert found["cuda"].__name__ == "murmurate.kernels.mixing.cuda"


# Rows in the host's memory -----------------------------------------------------------------------------


def check_streamed(mine_D: Tensor, theirs_KD: Tensor, rows: list[Tensor], length: int | None) -> None:
    """As the kernels say of whole rows: per parameter with the same bits."""
    K = len(rows)
    shares = [(row % 3) / (K + 1) for row in range(K)]
    weights_K = torch.full((K,), 1 / (K + 1))
    first, last, matrix_MN = K // 4, K + 1 - K // 4, matrix(K + 1, K + 1)
    same: list[tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Any, ...]]] = [
        (streams.combine, kernels.combine, (0.3, shares)),
        (streams.mean, kernels.mean, (weights_K,)),
        (streams.nna, kernels.nna, (weights_K, K // 3)),
        (streams.ranks, kernels.ranks, (first, last)),
        (streams.ranks, kernels.ranks, (first, last, matrix_MN)),
        (streams.around, kernels.around, (first, last, max(1, K - 1), matrix_MN)),
    ]
    for streamed, whole, arguments in same:
        assert torch.equal(streamed(mine_D, rows, *arguments, length=length), whole(mine_D, theirs_KD, *arguments))
    for streamed, whole in ((streams.squares, kernels.squares), (streams.gram, kernels.gram)):
        found, wanted = (torch.from_numpy(x) for x in (streamed(mine_D, rows, length), whole(mine_D, theirs_KD)))
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("K", [0, 1, 6])
@pytest.mark.parametrize(("D", "length"), [(1, 1), (7, 1), (1000, 130), (1000, 500), (300, 4096), (300, None)])
def test_chunks_are_the_whole(K: int, D: int, length: int | None) -> None:
    mine_D, theirs_KD = models(K, D, torch.float32, "cpu", 0.1)
    check_streamed(mine_D, theirs_KD, list(theirs_KD.unbind()), length)


def test_chunks_begin_at_whole_cache_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STAGED", 1000)
    for K, width in ((3, 256), (7, 128), (10, 1)):
        mine_D, theirs_KD = models(K, 600, torch.float32, "cpu", 0.1)
        spans = [columns for columns, _ in streams.chunked(mine_D, list(theirs_KD))]
        assert [columns.start for columns in spans] == list(range(0, 600, width))


def test_rows_that_autograd_watches() -> None:
    mine_D, theirs_KD = models(3, 100, torch.float32, "cpu", 0.1)
    rows = [row_D.clone().requires_grad_() for row_D in theirs_KD]
    check_streamed(mine_D, theirs_KD, rows, 30)


def test_a_row_without_a_share_is_not_copied() -> None:
    mine_D, theirs_KD = models(3, 100, torch.float32, "cpu", 0.1)
    absent: Any = SimpleNamespace(shape=mine_D.shape, dtype=mine_D.dtype, device=mine_D.device)  # nothing to read
    mixed_D = streams.combine(mine_D, [theirs_KD[0], absent, theirs_KD[2]], 0.5, [0.25, 0, 0.25], 30)
    assert torch.equal(mixed_D, kernels.combine(mine_D, theirs_KD, 0.5, [0.25, 0, 0.25]))


@pytest.mark.parametrize("rows", [[torch.zeros(4)], [torch.zeros(3).half()], [torch.zeros(3, device="meta")]])
def test_rows_of_something_else_are_refused(rows: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="row 0: should be"):
        streams.squares(torch.zeros(3), rows)
    with pytest.raises(ValueError, match="2 for 1 rows"):
        streams.combine(torch.zeros(3), [torch.zeros(3)], 0.5, [0.2, 0.3])


class Stream:
    """Of a stream, and of torch.cuda around it, what the staging buffers use: who does what when is written down."""

    def __init__(self, name: str, done: list[str]) -> None:
        self.name = name
        self.done = done

    def wait_event(self, event: "Event") -> None:
        self.done.append(f"{self.name} waits for {event.name}")

    def synchronize(self) -> None:
        self.done.append(f"the host waits for {self.name}")


class Event:
    """Named after its stream, and counted."""

    name = "nothing"

    def record(self, stream: Stream) -> None:
        self.name = f"{stream.name} {stream.done.count(stream.name)}"
        stream.done.append(stream.name)


def test_copies_wait_for_the_kernels_and_the_kernels_for_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "Stream", Mock(return_value=Stream("side", done)))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", Mock(return_value=Stream("main", done)))
    monkeypatch.setattr(streams, "on_cuda", Mock(return_value=True))
    mine_D, theirs_KD = models(2, 50, torch.float32, "cpu", 0.1)
    for columns, theirs_KC in streams.chunked(mine_D, list(theirs_KD), 20):
        assert torch.equal(theirs_KC, theirs_KD[:, columns])
        done.append(f"chunk {columns.start}")
    assert done == [
        *("main", "main"),  # 0 and 1: the buffers are ours
        *("side waits for main 0", "side"),  # 0: the first chunk is there
        *("side waits for main 1", "side"),  # 1: the second
        *("main waits for side 0", "chunk 0", "main"),  # 2: the first is done with
        *("side waits for main 2", "side"),  # 2: the third, where the first was
        *("main waits for side 1", "chunk 20", "main"),
        *("main waits for side 2", "chunk 40", "main"),
        "the host waits for side",
    ]


def test_what_is_not_finite_passes_through_chunks() -> None:
    mine_D, theirs_KD = models(3, 100, torch.float32, "cpu", 0.1)
    theirs_KD[1, 70] = math.nan
    assert [math.isfinite(square) for square in streams.squares(mine_D, list(theirs_KD), 30)] == [True, False, True]
