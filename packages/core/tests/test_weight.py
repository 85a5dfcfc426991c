# SPDX-License-Identifier: Apache-2.0
"""The key of a weight says everything that the choice of a kernel depends on, and nothing is lost in it."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quanto
from quanto.kernels import Request
from quanto.weight import CANONICAL, Weight, constants_of, make_key

SCALES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu, torch.float8_e4m3fn)


@given(data=st.data())
def test_keys_are_read_back_whole(data: st.DataObject) -> None:
    qtype = data.draw(st.sampled_from(sorted(quanto.qtypes)))
    shape = tuple(data.draw(st.lists(st.integers(0, 9999), max_size=3)))
    blocks = data.draw(st.one_of(st.just(()), st.tuples(*(st.integers(1, 9999) for _ in shape))))
    scale = torch.empty(1).to(data.draw(st.sampled_from(SCALES)))
    zero = data.draw(st.sampled_from([None, torch.ones(1, dtype=torch.int8), torch.ones(1)]))
    layout = data.draw(st.sampled_from([CANONICAL, "torch.int4pack"]))
    key = make_key(qtype, blocks, shape, scale, zero, layout)
    request = Request.parse("linear", key, "cpu", torch.float16, "int8")
    assert (request.qtype, request.block_size, request.shape) == (qtype, blocks, shape)
    assert (request.scale_dtype, request.layout) == (scale.dtype, layout)
    assert request.zero_point == ("none" if zero is None else "float" if zero.is_floating_point() else "int")
    assert (request.op, request.device, request.dtype, request.activations) == ("linear", "cpu", torch.float16, "int8")
    if shape:
        assert constants_of(key) == (qtype, blocks, shape[-1])


def test_a_key_is_a_readable_constant() -> None:
    key = make_key("int4", (1, 32), (8, 96), torch.ones(8, 3, dtype=torch.bfloat16), torch.ones(8, 3).to(torch.int8))
    assert key == "int4;1x32;8x96;bfloat16;int;canonical"
    assert make_key("int8", (), (8, 96), torch.ones(()), None, "mine") == "int8;;8x96;float32;none;mine"


@pytest.mark.parametrize(
    ("blocks", "shape", "granularity", "group"),
    [
        ((), (8, 96), "tensor", 96),
        ((1, 96), (8, 96), "channel", 96),
        ((1, 32), (8, 96), "group", 32),
        ((4, 32), (8, 96), "block", 32),
        ((8, 1), (8, 96), "block", 1),
        ((1, 1, 96), (3, 8, 96), "channel", 96),
        ((3, 1, 96), (3, 8, 96), "block", 96),
    ],
)
def test_keys_tell_the_granularity(
    blocks: tuple[int, ...], shape: tuple[int, ...], granularity: str, group: int
) -> None:
    request = Request.parse("linear", make_key("int8", blocks, shape, torch.ones(1), None), "cpu", torch.float32)
    assert (request.granularity, request.group_size) == (granularity, group)


def test_a_weight_is_a_plain_tuple() -> None:
    q = quanto.quantize_tensor(torch.ones(8, 96), "int4", group_size=32)
    w = q.weight()
    codes, scale, zero_point, global_scale, qtype, block_size, size, key = w
    assert (codes is q.codes, scale is q.scale, zero_point is q.zero_point, global_scale) == (True, True, True, None)
    assert (qtype, block_size, size) == ("int4", (1, 32), 96)
    assert key == make_key("int4", (1, 32), (8, 96), scale, zero_point)
    again = pickle.loads(pickle.dumps(w))
    assert isinstance(again, Weight)
    assert again[4:] == w[4:]
    assert torch.equal(again.codes, codes)
