# SPDX-License-Identifier: Apache-2.0
"""Codes are compared as ranks of values: a step in a tie is forgiven, and nothing else."""

from __future__ import annotations

import pytest
import torch

from quanto import packing
from quanto.kernels.codes import compare_codes
from quanto.qtypes import QType, get_qtype, qtypes

SIZE = 100


def _codes(q: QType) -> torch.Tensor:
    """Ten rows of packed codes that are far from the ends of the qtype."""
    generator = torch.Generator().manual_seed(0)
    if q.is_integer:
        plain = torch.randint(q.qmin + 1, q.qmax, (10, SIZE), generator=generator)
        plain = plain.to(torch.int8) if q.bits == 8 else (plain - q.qmin).to(torch.uint8)
    else:
        plain = torch.randint(1, 6, (10, SIZE), generator=generator).to(torch.uint8)
    return packing.pack(plain, q.bits)


def _moved(codes: torch.Tensor, q: QType, places: int, by: int) -> torch.Tensor:
    plain = packing.unpack(codes, q.bits, SIZE).clone()
    plain.view(-1)[:places] += by
    return packing.pack(plain, q.bits)


@pytest.mark.parametrize("name", sorted(qtypes))
def test_equal_codes(name: str) -> None:
    q = get_qtype(name)
    assert compare_codes(_codes(q), _codes(q), q, SIZE) is None


@pytest.mark.parametrize("name", ["int8", "int4", "int3", "float8_e4m3fn", "nf4", "fp4"])
def test_a_few_steps_are_ties(name: str) -> None:
    q = get_qtype(name)
    want = _codes(q)
    assert compare_codes(_moved(want, q, 20, 1), want, q, SIZE) is None, "2 % may be ties"
    assert "and 2.1% of all codes differ" in str(compare_codes(_moved(want, q, 21, 1), want, q, SIZE))
    assert "code [0, 0] is 2 steps off" in str(compare_codes(_moved(want, q, 1, 2), want, q, SIZE))


def test_one_step_in_a_small_tensor_is_a_tie() -> None:
    q = get_qtype("int8")
    want = torch.zeros(1, 4, dtype=torch.int8)
    got = want.clone()
    got[0, 3] = 1
    assert compare_codes(got, want, q, 4) is None
    got[0, 2] = 1
    assert compare_codes(got, want, q, 4) is not None


def test_steps_are_steps_of_values() -> None:
    # the codes of fp4 count away from zero on both sides: 1 is 0.5, 8 is -0, 9 is -0.5
    q = get_qtype("fp4")
    zero, minus_zero, half, minus_half = (torch.tensor([[c]], dtype=torch.uint8) for c in (0, 8, 1, 9))
    assert compare_codes(zero, minus_zero, q, 1) is None
    assert compare_codes(minus_half, zero, q, 1) is None
    assert "2 steps off" in str(compare_codes(minus_half, half, q, 1))


def test_nan_is_far_from_everything() -> None:
    q = get_qtype("float8_e4m3fn")
    nan, largest = (torch.tensor([[c]], dtype=torch.uint8) for c in (0x7F, 0x00))
    assert compare_codes(nan, nan, q, 1) is None
    assert "steps off" in str(compare_codes(nan, largest, q, 1))


def test_shapes_and_dtypes_count() -> None:
    q = get_qtype("int8")
    want = _codes(q)
    assert "returned codes torch.int8 (9, 100), not torch.int8 (10, 100)" in str(compare_codes(want[:9], want, q, SIZE))
    assert "torch.uint8" in str(compare_codes(want.view(torch.uint8), want, q, SIZE))
    assert compare_codes(want[:0], want[:0], q, SIZE) is None
