# SPDX-License-Identifier: Apache-2.0
"""Rearranging a quantized tensor is rearranging its values, to the bit, and keeps it quantized where it can."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import quanto
from quanto import QTensor
from quanto.contracts import check_weight

QTYPES = sorted(quanto.qtypes)


def _plain(t: Tensor) -> Tensor:
    return t.dequantize() if isinstance(t, QTensor) else t


def _assert_same(got: Any, want: Any) -> None:
    if isinstance(want, Tensor):
        assert tuple(got.shape) == tuple(want.shape)
        assert got.dtype == want.dtype
        if isinstance(got, QTensor) and got.settled and got.ndim:
            check_weight(got.weight(), tuple(got.shape))
            assert all(b <= max(n, 1) for b, n in zip(got.block_size, got.shape, strict=False))
        values = _plain(got)
        assert tuple(values.shape) == tuple(want.shape)
        assert torch.equal(values, want)
    else:
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            _assert_same(g, w)


NAMES = ("cat", "chunk", "flatten", "permute", "reshape", "select", "slice", "split", "split_sizes", "squeeze", "stack")
NAMES = (*NAMES, "transpose", "unbind", "unsqueeze")


def test_every_step_has_its_name_here(steps: dict[str, Any]) -> None:
    assert sorted(NAMES) == sorted(steps)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_each_commutes_with_dequantize(name: str, samples: Any, steps: dict[str, Any], data: st.DataObject) -> None:
    q = data.draw(samples)
    step = steps[name](data.draw, q)
    _assert_same(step(q), step(q.dequantize()))


@given(data=st.data())
def test_chains_commute_with_dequantize(samples: Any, steps: dict[str, Any], data: st.DataObject) -> None:
    got = data.draw(samples)
    want = got.dequantize()
    for _ in range(4):
        step = steps[data.draw(st.sampled_from(NAMES))](data.draw, want)
        got, want = step(got), step(want)
        _assert_same(got, want)
        if not isinstance(want, Tensor):
            assume(len(want) > 0)
            got, want = got[-1], want[-1]


@given(data=st.data())
def test_view_of_any_shape(samples: Any, data: st.DataObject) -> None:
    q = data.draw(samples)
    assume(q.numel() > 0)
    first = data.draw(st.sampled_from([n for n in range(1, q.numel() + 1) if q.numel() % n == 0]))
    for shape in ((first, -1), (q.numel() // first, 1, first), (-1,)):
        got = q.view(shape)
        assert isinstance(got, QTensor)
        _assert_same(got, q.dequantize().view(shape))


def _grouped(name: str, *shape: int) -> QTensor:
    x = torch.randn(shape or (4, 6, 96), generator=torch.Generator().manual_seed(0))
    blocks = (*(1,) * (x.ndim - 1), quanto.qtypes[name].block or 32)
    return quanto.quantize_tensor(x, name, block_size=blocks)


EXACT: dict[str, Callable[[Tensor], Any]] = {
    "rows": lambda x: x[1:3],
    "rows, inner": lambda x: x[:, 2:5],
    "every second row": lambda x: x[:, ::2],
    "one row": lambda x: x[2],
    "whole groups": lambda x: x[..., 32:],
    "narrow": lambda x: x.narrow(-1, 32, 64),
    "transposed": lambda x: x.mT,
    "transposed twice": lambda x: x.mT.mT,
    "rows of the transposed": lambda x: x.mT[:, 32:64],
    "one matrix of the transposed": lambda x: x.mT[1],
    "rows permuted": lambda x: x.permute(1, 0, 2),
    "split": lambda x: x.split(2),
    "split sizes": lambda x: x.split([32, 64], -1),
    "chunk": lambda x: x.chunk(3, -1),
    "unbind": lambda x: x.unbind(1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "unsqueeze at the end": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x[:1].squeeze(0),
    "merge rows": lambda x: x.view(24, 96),
    "split rows": lambda x: x.view(2, 2, 6, 96),
    "flatten": lambda x: x.flatten(),
    "contiguous": lambda x: x[:, ::2].contiguous(),
    "cat": lambda x: torch.cat([x, x[:1]]),
    "cat of columns": lambda x: torch.cat([x, x[..., :32]], -1),
    "stack": lambda x: torch.stack([x, x]),
    "cat of parts": lambda x: torch.cat(x.split([32, 64], -1), -1),
    "detach": lambda x: x.detach(),
    "the same view of the transposed": lambda x: x.mT.view(4, 96, 6),
    "no rows": lambda x: x[:0],
    "no columns": lambda x: x[..., :0],
}


@pytest.mark.parametrize("operation", EXACT)
@pytest.mark.parametrize("name", QTYPES)
def test_stays_quantized(name: str, operation: str, dequantized: list[str]) -> None:
    q = _grouped(name)
    got = EXACT[operation](q)
    assert dequantized == []
    parts = got if isinstance(got, (tuple, list)) else (got,)
    assert all(isinstance(p, QTensor) and p.qtype is q.qtype for p in parts)
    _assert_same(got, EXACT[operation](q.dequantize()))


@pytest.mark.parametrize("blocks", [(), (1, 1, 96), (1, 6, 96), (2, 3, 16), (4, 1, 48)])
@pytest.mark.parametrize("name", ["int8", "int4", "nf4", "float8_e5m2"])
def test_stays_quantized_at_every_granularity(name: str, blocks: tuple[int, ...], dequantized: list[str]) -> None:
    x = torch.randn(4, 6, 96, generator=torch.Generator().manual_seed(0))
    q = quanto.quantize_tensor(x, name, block_size=blocks)
    for step in (lambda t: t[2:], lambda t: t[:, 3:], lambda t: t[..., :48], lambda t: t.mT, lambda t: t.unsqueeze(0)):
        got = step(q)
        assert isinstance(got, QTensor)
        _assert_same(got, step(q.dequantize()))
    joined = torch.cat([q, q], 1) if blocks in ((), (1, 6, 96), (2, 3, 16)) else torch.cat([q, q], 0)
    assert isinstance(joined, QTensor)
    assert dequantized == []


INEXACT: dict[str, Callable[[Tensor], Any]] = {
    "part of a group": lambda x: x[..., 3:20],
    "every second column": lambda x: x[..., ::2],
    "columns reversed": lambda x: x.flip(-1),
    "gathered rows": lambda x: x[torch.tensor([0, 2])],
    "expanded": lambda x: x.unsqueeze(0).expand(2, 4, 6, 96),
    "cat with floats": lambda x: torch.cat([x, torch.ones(1, 6, 96)]),
    "cat after part of a group": lambda x: torch.cat([x[..., :8], x], -1),
    "rolled": lambda x: x.roll(1, -1),
}


@pytest.mark.parametrize("operation", INEXACT)
@pytest.mark.parametrize("name", ["int8", "int4", "int3", "mxfp4", "nvfp4"])
def test_what_no_block_can_say_is_dequantized(name: str, operation: str, dequantized: list[str]) -> None:
    q = _grouped(name)
    got = INEXACT[operation](q)
    assert type(got) is Tensor
    assert dequantized
    assert torch.equal(got, INEXACT[operation](q.dequantize()))


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.permute(2, 0, 1),
        lambda x: x.mT.contiguous().view(-1),
        lambda x: x.mT.flatten(),
        lambda x: x[..., :3],
        lambda x: torch.cat([x[..., 0], x[..., 0]], -1),
    ],
    ids=["permute", "contiguous", "flatten", "half a byte", "column"],
)
def test_packed_codes_stay_along_their_dimension_in_whole_bytes(step: Callable[[Tensor], Tensor]) -> None:
    for name, kind in (("int8", QTensor), ("int4", Tensor), ("int3", Tensor)):
        q = _grouped(name)
        assert type(step(q)) is kind
        _assert_same(step(q), step(q.dequantize()))


def _assert_joined_as_floats(a: QTensor, b: QTensor, dim: int = 0) -> None:
    got = torch.cat([a, b], dim)
    assert type(got) is Tensor
    assert torch.equal(got, torch.cat([a.dequantize(), b.dequantize()], dim))


def test_cat_of_what_cannot_be_joined() -> None:
    x = torch.arange(16.0).reshape(1, 16)
    low, high = (quanto.quantize_tensor(t, "int4", block_size=(), symmetric=False) for t in (x, x - 5))
    assert torch.equal(low.scale, high.scale)
    _assert_joined_as_floats(low, high)  # unlike zero points
    _assert_joined_as_floats(*(quanto.quantize_tensor(t, "nvfp4") for t in (x, x * 3)))  # unlike global scales
    odd = quanto.quantize_tensor(x[:, :5], "int4", block_size=())
    _assert_joined_as_floats(odd, odd, 1)  # the second would begin within a byte
    short = quanto.quantize_tensor(torch.cat([x, x, x], 1), "int8", block_size=(1, 32))
    _assert_joined_as_floats(short, short, 1)  # the second would begin within a group
    _assert_joined_as_floats(quanto.quantize_tensor(x, "int8"), quanto.quantize_tensor(x, "float8"))
    _assert_joined_as_floats(quanto.quantize_tensor(x, "int8"), quanto.quantize_tensor(x, "int8", symmetric=False))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_cat_of_unequal_scales(name: str) -> None:
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    a, b = (quanto.quantize_tensor(t, name, granularity="tensor", symmetric=True) for t in (x, x * 3))
    assert type(torch.cat([a, b])) is Tensor
    assert torch.equal(torch.cat([a, b]), torch.cat([a.dequantize(), b.dequantize()]))
    assert isinstance(torch.cat([a, a]), QTensor)
    affine = quanto.quantize_tensor(x, name, granularity="tensor", symmetric=False)
    assert torch.equal(torch.cat([a, affine]), torch.cat([a.dequantize(), affine.dequantize()]))
    fine, coarse = (quanto.quantize_tensor(x, name, symmetric=True, scale_dtype=d) for d in ("float32", "e8m0"))
    for pair in ((fine, coarse), (coarse, fine)):
        assert torch.equal(torch.cat(pair), torch.cat([p.dequantize() for p in pair]))
    channel = quanto.quantize_tensor(x[0], name, symmetric=True)
    assert torch.equal(torch.cat([channel, a[0]]), torch.cat([channel.dequantize(), a[0].dequantize()]))


def test_slices_share_memory() -> None:
    for name in ("int8", "int4"):
        q = _grouped(name)
        for part in (q[1:3], q[..., 32:], q.mT, q.view(24, 96)):
            assert part.codes.untyped_storage().data_ptr() == q.codes.untyped_storage().data_ptr()


WRONG: dict[str, Callable[[Tensor], Any]] = {
    "select beyond": lambda x: x.select(0, 4),
    "select before": lambda x: x.select(0, -5),
    "index beyond": lambda x: x[4],
    "select in no dimension": lambda x: x.select(3, 0),
    "split into less": lambda x: x.split([1, 2]),
    "split into more": lambda x: x.split([3, 2]),
    "split by zero": lambda x: x.split(0),
    "unsqueeze beyond": lambda x: x.unsqueeze(5),
    "squeeze beyond": lambda x: x.squeeze(4),
    "permute twice the same": lambda x: x.permute(0, 0, 1),
    "permute beyond": lambda x: x.permute(0, 1, 3),
    "permute too few": lambda x: x.permute(1, 0),
    "transpose beyond": lambda x: x.transpose(0, 3),
    "view of another size": lambda x: x.view(7, 3),
    "view that does not divide": lambda x: x.view(-1, 7),
    "ambiguous view": lambda x: x[:0].view(0, -1),
    "two unknowns": lambda x: x.view(-1, -1),
    "cat beyond": lambda x: torch.cat([x, x], 5),
    "cat of other rows": lambda x: torch.cat([x, x[:2]], 1),
    "stack of other shapes": lambda x: torch.stack([x, x[:2]]),
    "unbind beyond": lambda x: x.unbind(3),
}


@pytest.mark.parametrize("operation", WRONG)
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_errors_are_those_of_torch(name: str, operation: str) -> None:
    q = _grouped(name)
    with pytest.raises((IndexError, RuntimeError)) as expected:
        WRONG[operation](q.dequantize())
    with pytest.raises(expected.type):
        WRONG[operation](q)


NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "squeeze": lambda x: x.squeeze(0),
    "transpose": lambda x: x.transpose(0, -1),
    "slice": lambda x: x[0:1],
    "split": lambda x: x.split(1),
    "split into sizes": lambda x: x.split([1]),
    "unbind": lambda x: x.unbind(),
    "squeeze beyond": lambda x: x.squeeze(3),
}


@pytest.mark.parametrize("operation", NUMBERS)
def test_a_number_without_dimensions_is_torchs_affair(operation: str) -> None:
    q = quanto.quantize_tensor(torch.arange(1.0, 9.0), "int8")[-1]
    assert isinstance(q, QTensor)
    try:
        want = NUMBERS[operation](q.dequantize())
    except (IndexError, RuntimeError) as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            NUMBERS[operation](q)
    else:
        _assert_same(NUMBERS[operation](q), want)


def test_no_elements() -> None:
    steps = (torch.Tensor.flatten, lambda t: t.unsqueeze(0), lambda t: torch.cat([t, t]), lambda t: torch.stack([t, t]))
    for name in QTYPES:
        empty = [quanto.quantize_tensor(torch.ones(shape), name) for shape in ((0, 96), (3, 0), (0,), (2, 0, 32))]
        empty.append(quanto.quantize_tensor(torch.ones(2, 0, 3), name, block_size=(2, 1, 1)))
        empty.append(quanto.quantize_tensor(torch.ones(2, 4, 8), name, block_size=(2, 4, 8))[:, :0])
        for q in empty:
            for step in (*steps, lambda t: t[:1], lambda t: t.split(2)):
                _assert_same(step(q), step(q.dequantize()))
            assert q.numel() == 0
