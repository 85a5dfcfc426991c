# SPDX-License-Identifier: Apache-2.0
"""`torch.ops.quanto`: values, schemas, fakes."""

from __future__ import annotations

import pytest
import torch

from optimum.quanto import get_extension, is_extension_available
from optimum.quanto.library.operators import SCHEMAS, define_operators
from optimum.quanto.tensor.packed import pack_weights

ops = torch.ops.quanto


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas(name: str) -> None:
    assert str(getattr(ops, name).default._schema) == f"quanto::{name}{SCHEMAS[name]}"


def test_what_others_defined_stays() -> None:
    define_operators()  # a second time


def test_symmetric() -> None:
    base = torch.randn(4, 8)
    scale = base.abs().amax(1, keepdim=True) / 127
    codes = ops.quantize_symmetric(base, torch.int8, 0, scale)
    assert torch.equal(codes, (base / scale).round().to(torch.int8))
    halves = ops.quantize_symmetric(base, torch.float8_e4m3fn, None, torch.tensor(0.5))
    assert torch.equal(halves.float(), (base * 2).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize(
    ("axis", "scale", "message"),
    [
        (None, torch.ones(4, 1), "scale must be a scalar"),
        (2, torch.ones(4, 1), "axis must be the first or the last"),
        (0, torch.ones(1, 8), "scale must have the dimensions"),
        (0, torch.ones(4), "scale must have the dimensions"),
    ],
)
def test_scales_that_do_not_fit(axis: int | None, scale: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.quantize_symmetric(torch.ones(4, 8), torch.int8, axis, scale)


@pytest.mark.parametrize("bits", [2, 4])
def test_affine_and_unpack(bits: int) -> None:
    base = torch.randn(8, 16)
    groups = base.reshape(-1, 8)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    codes = ops.quantize_affine(base, bits, 0, 8, scale, -low)
    assert torch.equal(codes, ((groups - low) / scale).round().to(torch.uint8))
    assert torch.equal(ops.unpack(pack_weights(codes, bits), bits), codes)
    with pytest.raises(ValueError, match="bits must be 2 or 4"):
        ops.unpack(codes, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_products(kind: torch.dtype, per_row: bool, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 32, dtype=dtype)
    weight = torch.randint(-100, 100, (8, 32)).to(kind)
    scale = torch.rand(8, 1).to(dtype) / 100 if per_row else torch.tensor(0.01, dtype=dtype)
    for left in (x, torch.randint(-100, 100, (2, 3, 32), dtype=torch.int8)):
        expected = left.double() @ (weight.double() * scale.double()).T
        bound = expected.abs().max().item() * (1e-5 if dtype == torch.float32 else 0.02)
        torch.testing.assert_close(ops.qbytes_mm(left, weight, scale).double(), expected, atol=bound, rtol=0)


def test_fakes() -> None:
    codes, scale = torch.zeros(4, 8, dtype=torch.int8), torch.ones(4, 1)
    for op, arguments in (
        (ops.quantize_symmetric, (torch.ones(4, 8), torch.int8, 0, scale)),
        (ops.quantize_affine, (torch.ones(4, 8), 4, 0, 4, torch.ones(8, 1), torch.ones(8, 1))),
        (ops.quantize_affine, (torch.ones(4, 8), 4, -1, 4, torch.ones(1, 8), torch.ones(1, 8))),
        (ops.unpack, (torch.ones(4, 8, dtype=torch.uint8), 2)),
        (ops.qbytes_mm, (torch.ones(2, 3, 8), codes, scale)),
    ):
        torch.library.opcheck(op.default, arguments)


def test_extensions() -> None:
    assert is_extension_available("quanto_cpp")
    assert get_extension("quanto_cpp").lib.unpack is torch.ops.quanto.unpack
    assert not is_extension_available("quanto_cuda")
    with pytest.raises(KeyError, match="quanto-backend-cpu"):
        get_extension("quanto_cuda")
