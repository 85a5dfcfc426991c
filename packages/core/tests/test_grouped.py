# SPDX-License-Identifier: Apache-2.0
"""The gradient of linear layers of many experts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import quanto
from quanto import ops
from quanto.grouped import expert

OFFSETS = torch.tensor([3, 3, 8, 9], dtype=torch.int32)  # the second expert has no row, and two rows no expert


@pytest.mark.parametrize(
    "options",
    [
        {"qtype": "int8"},
        {"qtype": "int4", "group_size": 32},
        {"qtype": "float8"},
        {"qtype": "int8", "granularity": "tensor"},
        {"qtype": "nvfp4"},
        {"qtype": "int8", "block_size": (2, 4, 32)},
    ],
    ids=str,
)
def test_gradients_are_those_of_the_dequantized_weight(options: dict) -> None:
    weight = torch.randn(4, 24, 64)
    q = quanto.quantize_tensor(weight, **options)
    x, bias = torch.randn(11, 64, requires_grad=True), torch.randn(4, 24, requires_grad=True)
    y = ops.grouped_linear(x, q.weight(), bias, OFFSETS)
    with torch.no_grad():
        torch.testing.assert_close(ops.grouped_linear(x, q.weight(), bias, OFFSETS), y)
    factor = torch.randn_like(y)
    grad_x, grad_bias = torch.autograd.grad((y * factor).sum(), (x, bias))

    values, start, rows = q.dequantize(), 0, []
    for index, end in enumerate(OFFSETS.tolist()):
        rows.append(F.linear(x[start:end], values[index], bias[index]))
        start = end
    expected = torch.cat([*rows, torch.zeros(2, 24)])
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    expected_x, expected_bias = torch.autograd.grad((expected * factor).sum(), (x, bias))
    torch.testing.assert_close(grad_x, expected_x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grad_bias, expected_bias, atol=1e-4, rtol=1e-4)


def test_one_expert_is_a_view() -> None:
    q = quanto.quantize_tensor(torch.randn(4, 24, 64), "int4", group_size=32)
    one = expert(q.weight(), 2)
    assert one.codes.untyped_storage().data_ptr() == q.codes.untyped_storage().data_ptr()
    assert torch.equal(ops.dequantize(one, torch.float32), q.dequantize()[2])


def test_features_that_do_not_fit() -> None:
    q = quanto.quantize_tensor(torch.randn(4, 24, 64), "int8")
    with pytest.raises(RuntimeError, match="x has 32 features, the weight takes 64"):
        ops.grouped_linear(torch.randn(11, 32, requires_grad=True), q.weight(), None, OFFSETS)
