# SPDX-License-Identifier: Apache-2.0
"""The shared search: never worse than where it starts, for every qtype, granularity and dtype; importance; padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quanto
from quanto import reference
from quanto.quantizers import Parameters, Target, fit
from quanto.quantizers.grid import as_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = [name for name in sorted(quanto.qtypes) if quanto.qtypes[name].is_integer]


def _target(x: torch.Tensor, qtype: str, blocks: tuple[int, ...], zero: str | None) -> Target:
    scheme = quanto.Scheme(qtype)
    dtype = {"int": torch.int8, "float": scheme.scales(x.dtype), None: torch.int8}[zero]
    return Target(quanto.qtypes[qtype], blocks, scheme.scales(x.dtype), zero is None, dtype)


def _errors(x: torch.Tensor, target: Target, p: Parameters) -> torch.Tensor:
    """The squared error of each block, computed from what is stored."""
    codes = reference.quantize(x, *p, target.qtype.name, target.block_size)
    values = reference.dequantize(codes, *p, target.qtype.name, target.block_size, x.shape[-1], torch.float64)
    return as_rows((values - x.double()).square(), target.block_size).sum(-1)


@pytest.mark.parametrize("qtype", sorted(quanto.qtypes))
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_never_worse_than_absmax(
    qtype: str, dtype: torch.dtype, make: Any, granularities: Any, data: st.DataObject
) -> None:
    shape = (data.draw(st.integers(1, 7)), data.draw(st.integers(1, 40)))
    blocks = data.draw(st.sampled_from(sorted(granularities(shape).items())))[1]
    x = make(shape, data.draw(st.integers(0, 999)), 1.0, dtype)
    q = quanto.quantize_tensor(x, qtype, block_size=blocks, algorithm="absmax", symmetric=_symmetric(qtype))
    start = Parameters(q.scale, None, q.global_scale)
    target = _target(x, qtype, blocks, None)
    # Scales of absmax are rounded up, these to nearest: where x fills its range, a last bit of the scale may be lost.
    least = _errors(x, target, start)
    slack = as_rows(x.double().square(), blocks).sum(-1) * torch.finfo(dtype).eps ** 2 * 4
    if target.qtype.scale_dtype is None:
        assert (_errors(x, target, fit(x, target)) <= least * (1 + 1e-2) + slack).all()
    else:
        assert _errors(x, target, fit(x, target)).sum() <= least.sum() * (1 + 1e-4) + slack.sum()


def _symmetric(qtype: str) -> bool | None:
    return True if quanto.qtypes[qtype].is_integer else None


@pytest.mark.parametrize("qtype", INTEGERS)
@pytest.mark.parametrize("zero", ["int", "float"])
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_never_worse_than_minmax(
    qtype: str, zero: str, dtype: torch.dtype, make: Any, granularities: Any, data: st.DataObject
) -> None:
    shape = (data.draw(st.integers(1, 7)), data.draw(st.integers(1, 40)))
    blocks = data.draw(st.sampled_from(sorted(granularities(shape).items())))[1]
    x = (make(shape, data.draw(st.integers(0, 999)), 1.0, dtype) + data.draw(st.sampled_from([0.0, 0.5]))).to(dtype)
    q = quanto.quantize_tensor(x, qtype, block_size=blocks, algorithm="minmax")
    target = _target(x, qtype, blocks, zero)
    found = fit(x, target)
    assert found.zero_point is not None
    assert found.zero_point.dtype == target.zero_dtype
    assert found.zero_point.shape == q.scale.shape
    assert (found.scale > 0).all()
    least = _errors(x, target, Parameters(q.scale, q.zero_point))
    slack = as_rows(x.double().square(), blocks).sum(-1) * torch.finfo(dtype).eps ** 2 * 4
    assert _errors(x, target, found).sum() <= (least * (1 + 1e-2) + slack).sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_clips_an_outlier(symmetric: bool) -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 6
    target = Target(quanto.qint3, (1, 64), torch.float32, symmetric, torch.float32)
    start = fit(x, target, starts=(1.0,), steps=0)
    assert _errors(x, target, fit(x, target)).sum() < 0.85 * _errors(x, target, start).sum()


def test_importance_moves_error_to_where_it_counts_little() -> None:
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    target = Target(quanto.qint3, (1, 64), torch.float32, False, torch.float32)
    importance = torch.ones(64)
    importance[:8] = 100
    plain, weighted = (fit(x, target, w) for w in (None, importance))

    def head(p: Parameters) -> float:
        codes = reference.quantize(x, *p, "int3", (1, 64))
        return float((reference.dequantize(codes, *p, "int3", (1, 64), 64, torch.float32) - x)[:, :8].square().sum())

    assert head(weighted) < 0.6 * head(plain)
    same = fit(x, target, torch.full((64,), 3.0))
    torch.testing.assert_close(same.scale, plain.scale, rtol=1e-4, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_padding_has_no_weight(symmetric: bool) -> None:
    x = torch.randn(8, 40, generator=torch.Generator().manual_seed(0)) + 2
    target = Target(quanto.qint4, (1, 32), torch.float32, symmetric, torch.float32)
    alone = Target(quanto.qint4, (1, 8), torch.float32, symmetric, torch.float32)
    whole, tail = fit(x, target), fit(x[:, 32:].contiguous(), alone)
    if symmetric:
        torch.testing.assert_close(whole.scale[:, 1:], tail.scale, rtol=1e-5, atol=0)
    error = _errors(x, target, whole).reshape(8, 2)[:, 1]
    least = _errors(x[:, 32:].contiguous(), alone, tail)
    # Padding widens the range that a search starts from, for it is zero; where that ends may differ a little.
    assert error.sum() <= 1.5 * least.sum() + 1e-6


@pytest.mark.parametrize("qtype", INTEGERS)
@pytest.mark.parametrize("zero", [None, "int", "float"])
def test_zeros_get_scale_one(qtype: str, zero: str | None) -> None:
    x = torch.zeros(4, 32)
    found = fit(x, _target(x, qtype, (1, 16), zero))
    assert found.scale.unique().tolist() == [1.0]
    codes = reference.quantize(x, *found, qtype, (1, 16))
    assert torch.equal(reference.dequantize(codes, *found, qtype, (1, 16), 32, torch.float32), x)


@pytest.mark.parametrize("zero", [None, "int", "float"])
def test_nan_stays_in_its_block(zero: str | None) -> None:
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    clean = fit(x, _target(x, "int4", (1, 16), zero))
    x[0, 3] = torch.nan
    dirty = fit(x, _target(x, "int4", (1, 16), zero))
    assert torch.equal(clean.scale.flatten()[1:], dirty.scale.flatten()[1:])
    assert dirty.zero_point is None or not dirty.zero_point.isnan().any()


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    target = Target(quanto.qint4, (1, 16), torch.float32, False, torch.float32)
    whole = fit(x, target)
    monkeypatch.setattr("quanto.quantizers.search._CHUNK", 100)
    parts = fit(x, target)
    torch.testing.assert_close(parts.scale, whole.scale, rtol=1e-6, atol=0)


def test_huge_values() -> None:
    top = torch.finfo(torch.float32).max
    x = torch.tensor([[top, -top, top / 2, 0.0]])
    for zero in ("int", "float"):
        found = fit(x, _target(x, "int4", (1, 4), zero))
        assert found.scale.isfinite().all()
