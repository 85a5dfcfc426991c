# SPDX-License-Identifier: Apache-2.0
"""Weights as optimum-quanto saves them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import quanto
from quanto.hosts.upstream import group_size, read_codes, scheme_of

# Widths whose groups optimum-quanto 0.2.7 was seen to choose.
GROUPS = {64: None, 128: None, 256: 128, 192: 96, 320: 64, 160: 32, 4304: None, 136: None}


def test_groups() -> None:
    assert {width: group_size(width) for width in GROUPS} == GROUPS


@pytest.mark.parametrize("shape", [(6, 256), (5, 200), (3, 4, 3, 3), (3, 40, 3, 3)])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("whole", [False, True])
def test_packed_codes_mean_the_same(shape: tuple[int, ...], bits: int, whole: bool) -> None:
    torch.manual_seed(bits)
    scheme = scheme_of(f"qint{bits}", shape)
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2:])
    slot = quanto.quantize(layer, scheme=scheme)._slots["weight"]  # type: ignore[union-attr, index]
    rows, width = slot.rows_shape()
    size = group_size(width) or width
    groups, each = rows * width // size, 8 // bits
    codes = torch.randint(0, 2**bits, (groups, size), dtype=torch.uint8)
    scale = torch.rand(groups, 1) + 0.1
    shift = torch.randint(0, 2**bits, (groups, 1), dtype=torch.uint8) if whole else torch.rand(groups, 1)
    expected = scale * (codes.float() - shift.float()) if whole else scale * codes - shift
    height = -(-groups // each)
    padded = torch.cat([codes, torch.zeros(height * each - groups, size, dtype=torch.uint8)]).view(each, height, size)
    data = sum((padded[i] << (bits * i) for i in range(each)), torch.zeros(height, size, dtype=torch.uint8))
    found = read_codes({"_data._data": data, "_scale": scale, "_shift": shift}, slot, torch.uint8)
    layer._adopt("weight", [found[p] for p in ("packed", "scale", "zero_point")] + [None])  # type: ignore[operator]
    got: Tensor = layer.weight.dequantize()  # type: ignore[operator]
    torch.testing.assert_close(got, expected.view(shape), rtol=1e-5, atol=1e-5)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="'qint3' is no qtype"):
        scheme_of("qint3", (4, 4))
    slot = quanto.quantize(nn.Linear(8, 4), "int8")._slots["weight"]  # type: ignore[union-attr, index]
    with pytest.raises(KeyError, match="_scale"):
        read_codes({"_data": torch.zeros(4, 8, dtype=torch.int8)}, slot, torch.int8)
    with pytest.raises(ValueError, match=r"_data has shape \(4, 9\)"):
        read_codes({"_data": torch.zeros(4, 9, dtype=torch.int8)}, slot, torch.int8)
