"""What mixing is measured against, and how."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from murmurate.kernels.mixing import yardsticks
from murmurate.peer.errors import ConfigError, LocalError
from murmurate.peer.lab import bench_mixing


@pytest.mark.parametrize("rule", bench_mixing.OURS)
def test_the_obvious_form_says_the_same(rule: str) -> None:
    """With 16 neighbours, where torch still takes differences for distances."""
    all_ND = yardsticks.models(16, 500)
    ours: Any = bench_mixing.OURS[rule](all_ND[0], all_ND[1:], 4)
    plain: Any = yardsticks.PLAIN[rule](all_ND, 4)
    if rule == "gram":
        ours, plain = torch.from_numpy(ours.diagonal().copy()).sqrt().float(), plain[0, 1:]
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_models_are_a_hundredth_apart() -> None:
    all_ND = yardsticks.models(3, 5000)
    apart_KD = all_ND[1:] - all_ND[0]
    torch.testing.assert_close(apart_KD.std(1), torch.full((3,), 0.01), rtol=0.1, atol=0)
    torch.testing.assert_close(all_ND.std(1), torch.ones(4), rtol=0.1, atol=0)


def test_byzfl_is_found_without_what_it_does_not_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k.split(".")[0] != "byzfl"})
    (tmp_path / "byzfl" / "aggregators").mkdir(parents=True)
    (tmp_path / "byzfl" / "__init__.py").write_text("raise ImportError('torchvision')\n")
    median = "class Median:\n    def __call__(self, vectors):\n        return 'the median of', vectors\n"
    (tmp_path / "byzfl" / "aggregators" / "__init__.py").write_text(median)
    monkeypatch.syspath_prepend(tmp_path)
    all_ND = torch.zeros(3, 2)
    assert yardsticks.byzfl()["median"](all_ND, 1) == ("the median of", all_ND)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_mixing, "COUNTS", (4,))
    monkeypatch.setattr(yardsticks, "byzfl", lambda: {"median": yardsticks.PLAIN["median"]})


@pytest.mark.usefixtures("few")
def test_the_benchmark_has_a_row_for_each_rule() -> None:
    steps = Mock()
    rows, figures, fixed = bench_mixing.measure_mixing(2, steps, parameters=300)
    assert [row["rule"] for row in rows] == list(bench_mixing.OURS)
    assert {row["rule"] for row in rows if "speedup_over_byzfl" in row} == {"median"}
    for row in rows:
        assert (row["k"], row["d"], row["device"]) == (4, 300, "cpu")
        assert min(row["seconds"], row["speedup_over_torch"], row["fraction_of_read_bandwidth"]) > 0
    assert steps.call_count == 2
    assert [len(values) for values in figures.values()] == [2]
    assert fixed["parameters"] == 300


def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many parameters each of torch's forms gets, call by call. Every call takes a second."""
    widths: dict[str, list[int]] = {rule: [] for rule in yardsticks.PLAIN}

    def plain(rule: str, all_ND: Tensor, f: int) -> None:
        del f
        assert all_ND.is_contiguous()
        widths[rule].append(all_ND.shape[1])

    monkeypatch.setattr(yardsticks, "PLAIN", {rule: partial(plain, rule) for rule in widths})
    monkeypatch.setattr(yardsticks, "byzfl", dict)

    def seconds(call: Any, device: str = "cpu") -> float:
        del device
        call()
        return 1.0

    monkeypatch.setattr(bench_mixing, "seconds", seconds)
    return widths


@pytest.mark.usefixtures("few")
def test_plain_forms_are_timed_on_what_they_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = recorded(monkeypatch)
    monkeypatch.setattr(bench_mixing, "PLAIN_PARAMETERS", 100)
    for most, whole in ((1000, 400), (200, 200)):
        monkeypatch.setattr(bench_mixing, "WHOLE_PARAMETERS", most)
        rows, _, fixed = bench_mixing.measure_mixing(1, Mock(), parameters=400)
        wanted = {rule: whole if rule in ("mean", "nna") else 100 for rule in widths}
        assert {rule: found[-1] for rule, found in widths.items()} == wanted
        assert {row["rule"]: row["speedup_over_torch"] for row in rows} == {r: 400 / wanted[r] for r in wanted}
        assert fixed["plain"] == {rule: f"timed on {wanted[rule]} parameters, scaled" for rule in wanted}


@pytest.mark.usefixtures("few")
def test_a_gpu_is_warmed_up_with_what_is_then_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything at full size."""
    widths, models = recorded(monkeypatch), yardsticks.models
    monkeypatch.setattr(bench_mixing, "PLAIN_PARAMETERS", 100)
    monkeypatch.setattr(yardsticks, "is_here", Mock(return_value=True))

    def on_the_cpu(rows: int, size: int, device: str) -> Tensor:
        del device
        return models(rows, size)

    monkeypatch.setattr(yardsticks, "models", on_the_cpu)
    rows, _, _ = bench_mixing.measure_mixing(2, Mock(), parameters=300, device="cuda")
    assert widths == {rule: [300, 300, 300] for rule in yardsticks.PLAIN}
    assert {row["device"] for row in rows} == {"cuda"}


@pytest.mark.usefixtures("few")
def test_too_little_memory_for_a_plain_form_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(yardsticks.PLAIN, "nna", Mock(side_effect=[None, RuntimeError("no memory\nat all")]))
    with pytest.raises(LocalError, match=r"^--parameters 300: no memory$"):
        bench_mixing.measure_mixing(1, Mock(), parameters=300)


@pytest.mark.parametrize("device", ["cuda", "abacus"])
def test_the_benchmark_refuses_a_device_that_is_not_here(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"--device {device}: should be cpu, or cuda"):
        bench_mixing.measure_mixing(1, Mock(), parameters=300, device=device)
