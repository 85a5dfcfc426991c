# SPDX-License-Identifier: Apache-2.0
"""Weights: values by hand, copies, gradients, edits."""

from __future__ import annotations

import copy

import pytest
import torch

from optimum.quanto import (
    AbsmaxOptimizer,
    MaxOptimizer,
    QTensor,
    qfloat8,
    qint2,
    qint4,
    qint8,
    quantize_weight,
    ungroup,
)


def make(qtype, shape=(16, 64), axis=0, group_size=None, dtype=torch.float32) -> tuple[torch.Tensor, QTensor]:
    torch.manual_seed(0)
    base = torch.randn(shape, dtype=dtype)
    if qtype.bits == 8:
        return base, quantize_weight(base, qtype, axis, AbsmaxOptimizer()(base, qtype, axis))
    scale, shift = MaxOptimizer()(base, qtype, axis, group_size)
    return base, quantize_weight(base, qtype, axis, scale, shift, group_size)


def test_int8_by_hand() -> None:
    base, q = make(qint8)
    scale = base.abs().amax(1, keepdim=True) / 127
    assert torch.equal(q._scale, scale)
    assert torch.equal(q._data, (base / scale).round().to(torch.int8))
    assert torch.equal(q.dequantize(), scale * q._data)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("qtype", [qint2, qint4])
def test_bits_lie_within_half_a_step(qtype, axis: int, group_size: int | None) -> None:
    base, q = make(qtype, axis=axis, group_size=group_size)
    error = (q.dequantize() - base).abs()
    like = torch.ones(q._data.shape) * q._scale
    step = like if group_size is None else ungroup(like, axis, base.shape)
    assert bool((error <= step / 2 + 1e-6).all())


@pytest.mark.parametrize("qtype", [qint2, qint4, qint8, qfloat8])
def test_zeros_stay_zeros(qtype) -> None:
    zeros = torch.zeros(4, 32)
    if qtype.bits == 8:
        q = quantize_weight(zeros, qtype, 0, AbsmaxOptimizer()(zeros, qtype, 0))
    else:
        q = quantize_weight(zeros, qtype, 0, *MaxOptimizer()(zeros, qtype, 0))
    assert torch.equal(q.dequantize(), zeros)


@pytest.mark.parametrize("qtype", [qint2, qint4, qint8, qfloat8])
def test_copies_and_casts(qtype) -> None:
    _, q = make(qtype)
    copied = copy.deepcopy(q)
    assert torch.equal(copied, q)
    assert copied._scale.data_ptr() != q._scale.data_ptr()
    half = q.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.dequantize().float(), q.dequantize(), atol=0.05, rtol=0.02)


def test_edits_are_refused() -> None:
    _, q = make(qint8)
    with pytest.raises(RuntimeError, match="in place"):
        q.add_(1)
    with pytest.raises(RuntimeError, match="in place"):
        q.copy_(torch.zeros(16, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((qint8, 1, torch.ones(4, 1)), "axis must be 0 or -1, got 1"),
        ((qint8, 0, torch.ones(4, 1), torch.ones(4, 1)), "shift must be None for qint8"),
        ((qint8, 0, torch.ones(4, 1), None, 8), "group_size must be None for qint8"),
        ((qint4, 0, torch.ones(4, 1)), "shift must be given for qint4"),
    ],
)
def test_bad_input(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_weight(torch.randn(4, 32), *arguments)
