"""Rows of int8 codes: the CPU form and the reference against each other, and what is refused.

And small models of floats, which the CPU form takes in one piece.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from murmurate.kernels import mixing as kernels
from murmurate.kernels.mixing import cpu, reference

from . import mixing_checks


@pytest.mark.parametrize("form", [reference, cpu])
def test_rows_of_codes(form: Any) -> None:
    mixing_checks.check_quantised(form, "cpu")


def test_a_code_times_its_scale_is_rounded_to_float32() -> None:
    """Also where the sum is of float64."""
    code, scale = 127, np.float32(0.1)
    mine_D = torch.zeros(1, dtype=torch.float64)
    codes_KD, scales_KB = torch.tensor([[code]], dtype=torch.int8), torch.tensor([[scale]])
    for form in (reference, cpu):
        assert form.combine_quantised(mine_D, codes_KD, scales_KB, 1, 1.0, [1.0]).item() == float(
            np.float32(code) * scale
        )


def test_a_small_model_is_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Mock(wraps=cpu.loops.squares)
    monkeypatch.setattr(cpu.loops, "squares", calls)
    for size, pieces in ((6570, 1), (10**6, 123)):
        calls.reset_mock()
        cpu.squares(torch.zeros(size), torch.zeros(1, size))
        assert calls.call_count == pieces


MINE_D = torch.zeros(4)
CODES_KD, SCALES_KB = torch.zeros((2, 4), dtype=torch.int8), torch.zeros(2, 2)  # blocks of 3
WRONG: dict[str, Callable[[], object]] = {
    "floats as codes": lambda: kernels.squares_quantised(MINE_D, torch.zeros(2, 4), SCALES_KB, 3),
    "codes of another length": lambda: kernels.squares_quantised(torch.zeros(5), CODES_KD, SCALES_KB, 3),
    "columns for rows of codes": lambda: kernels.squares_quantised(MINE_D, torch.zeros(4, 2).char().T, SCALES_KB, 3),
    "codes on another device": lambda: kernels.squares_quantised(MINE_D, CODES_KD.to("meta"), SCALES_KB, 3),
    "half scales": lambda: kernels.squares_quantised(MINE_D, CODES_KD, SCALES_KB.half(), 3),
    "too few scales": lambda: kernels.squares_quantised(MINE_D, CODES_KD, SCALES_KB, 1),
    "scales on another device": lambda: kernels.squares_quantised(MINE_D, CODES_KD, SCALES_KB.to("meta"), 3),
    "no block": lambda: kernels.squares_quantised(MINE_D, CODES_KD, SCALES_KB, 0),
    "shares of codes": lambda: kernels.combine_quantised(MINE_D, CODES_KD, SCALES_KB, 3, 0.5, [0.5]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_arguments_that_cannot_be_meant_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"should be|for \d rows|, mine_D is"):
        WRONG[wrong]()
