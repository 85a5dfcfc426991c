# SPDX-License-Identifier: Apache-2.0
"""Operators called directly refuse what does not fit, and name the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import quanto
from quanto import contracts
from quanto.weight import Weight

OPERATORS = torch.ops.quanto_core


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _weight() -> Weight:
    return quanto.quantize_tensor(_randn(6, 40), "int4", group_size=16, symmetric=False).weight()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"codes": torch.ones(6, 40, dtype=torch.uint8)},
            r"codes must be torch.uint8 \(6, 20\) for int4 \(6, 40\), got",
        ),
        ({"codes": torch.ones(6, 20, dtype=torch.int8)}, r"got torch.int8 \(6, 20\)"),
        ({"scale": torch.ones(6, 2)}, r"scale must have shape \(6, 3\) for block_size \(1, 16\), got \(6, 2\)"),
        ({"scale": torch.ones(())}, r"scale must have shape \(6, 3\)"),
        ({"zero_point": torch.ones(3, 6)}, r"zero_point must have shape \(6, 3\) .* got \(3, 6\)"),
        ({"block_size": (16,)}, r"block_size \(16,\) must have one entry per dimension of shape \(6, 40\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    w = _weight()
    contracts.check_weight(w, (6, 40))
    contracts.check_weight(w._replace(zero_point=None), (6, 40))
    with pytest.raises(ValueError, match=message):
        contracts.check_weight(w._replace(**changes), (6, 40))


_W = _weight()
_TENSORS = (_W.codes, _W.scale, _W.zero_point, None)
_SHORT = (_W.codes, _W.scale[:, :1], _W.zero_point, None)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: OPERATORS.pack(torch.ones(4, 8), 4), ValueError, "codes must be uint8"),
        (lambda: OPERATORS.pack(torch.ones(4, 8, dtype=torch.uint8), 9), ValueError, "bits must be 1 to 8, got 9"),
        (lambda: OPERATORS.unpack(_W.codes, 4, 80), ValueError, "packed must have 40 bytes in a row for 80 codes"),
        (lambda: OPERATORS.quantize(torch.ones(6, 40).int(), *_TENSORS[1:], "int4", [1, 16]), TypeError, "x must be a"),
        (lambda: OPERATORS.quantize(_randn(6, 40), *_SHORT[1:], "int4", [1, 16]), ValueError, "scale must have shape"),
        (
            lambda: OPERATORS.dequantize(*_TENSORS, "int4", [1, 16], 41, torch.float32),
            ValueError,
            r"codes must be torch.uint8 \(6, 21\)",
        ),
        (
            lambda: OPERATORS.dequantize(*_SHORT, "int4", [1, 16], 40, torch.float32),
            ValueError,
            r"scale must have shape \(6, 3\)",
        ),
        (lambda: OPERATORS.dynamic_quantize(torch.ones(()), "int8", torch.float32), ValueError, "x must have a dim"),
        (
            lambda: OPERATORS.linear_input_grad(_randn(3, 5), *_TENSORS, "int4", [1, 16], 40),
            RuntimeError,
            "grad has 5 features, the weight gives 6",
        ),
        (
            lambda: OPERATORS.embedding(torch.ones(2), *_TENSORS, "int4", [1, 16], 40, torch.float32),
            TypeError,
            "indices must be int32 or int64",
        ),
        (lambda: quanto.quantize_activation(torch.ones(()), "int8"), ValueError, "x must have a dimension"),
    ],
)
def test_arguments_that_do_not_fit_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
