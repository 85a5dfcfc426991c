# SPDX-License-Identifier: Apache-2.0
"""Parameters become rows whose last dimension is contracted, and come back."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

import quanto
from quanto.nn.slot import ARRANGEMENTS, Slot

SHAPES = {
    "rows": ((6, 32), (6, 32)),
    "flatten": ((6, 4, 3, 2), (6, 24)),
    "transposed_flatten": ((4, 6, 3, 2), (6, 24)),
    "transposed": ((3, 32, 6), (3, 6, 32)),
}


def test_every_arrangement_is_tried() -> None:
    assert set(ARRANGEMENTS) == set(SHAPES)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_there_and_back(arrangement: str) -> None:
    shape, rows_shape = SHAPES[arrangement]
    parameter = torch.randn(shape)
    slot = Slot(quanto.Scheme("int8"), shape, torch.float32, arrangement)
    rows = slot.rows(parameter)
    assert tuple(rows.shape) == slot.rows_shape() == rows_shape
    assert torch.equal(slot.to_float(rows), parameter)
    q = quanto.quantize_tensor(rows, "int8")
    presented = slot.present(q)
    assert isinstance(presented, quanto.QTensor)
    assert torch.equal(presented.dequantize(), slot.to_float(q.dequantize()))
    assert tuple(presented.shape) == shape


@pytest.mark.parametrize("arrangement", ["flatten", "transposed_flatten"])
def test_rows_belong_to_output_channels(arrangement: str) -> None:
    """A row holds what one output channel is summed from, so that it has its own scale."""
    shape, _ = SHAPES[arrangement]
    parameter = torch.zeros(shape)
    channel = parameter[2] if arrangement == "flatten" else parameter[:, 2]
    channel += 1
    rows = Slot(quanto.Scheme("int8"), shape, torch.float32, arrangement).rows(parameter)
    assert torch.equal(rows.sum(1), torch.tensor([0, 0, 24.0, 0, 0, 0]))


def test_what_it_says_of_its_scheme_follows_the_scheme() -> None:
    slot = Slot(quanto.Scheme("int4"), (4, 8), torch.float32)
    assert (slot.activations, slot.rank) == (None, None)
    slot.scheme = quanto.Scheme("int8", "int8")
    assert slot.activations == "int8"
    slot.scheme = quanto.Scheme("int4", rank=2)
    other = pickle.loads(pickle.dumps(replace(slot, key="k")))
    assert (other.activations, other.rank, other.key) == (None, 2, "k")
