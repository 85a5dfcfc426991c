# SPDX-License-Identifier: Apache-2.0
"""What kernels claim and layers ask, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from quanto.kernels import KernelSpec, Request, spec
from quanto.weight import make_key

Make = Callable[..., KernelSpec]
REQUEST = Request("linear", "cpu", torch.float32, "int8", (1, 64), (32, 64))


@pytest.mark.parametrize("block", [(), (1, 64), (1, 32), (2, 16)])
@pytest.mark.parametrize("zero", [None, torch.int8, torch.bfloat16])
def test_a_request_reads_the_key_of_a_weight(block: tuple[int, ...], zero: torch.dtype | None) -> None:
    scale = torch.empty(0, dtype=torch.bfloat16)
    key = make_key("int4", block, (32, 64), scale, None if zero is None else torch.empty(0, dtype=zero), "a.layout")
    request = Request.parse("scaled_linear", key, "cuda", torch.float16, "int8")
    assert request == Request(
        op="scaled_linear",
        device="cuda",
        dtype=torch.float16,
        qtype="int4",
        block_size=block,
        shape=(32, 64),
        scale_dtype=torch.bfloat16,
        zero_point={None: "none", torch.int8: "int", torch.bfloat16: "float"}[zero],
        layout="a.layout",
        activations="int8",
    )


@pytest.mark.parametrize(
    ("block", "shape", "granularity", "group"),
    [
        ((), (32, 64), "tensor", 64),
        ((), (), "tensor", 0),
        ((1, 64), (32, 64), "channel", 64),
        ((1, 16), (32, 64), "group", 16),
        ((4, 16), (32, 64), "block", 16),
        ((1, 1, 64), (3, 32, 64), "channel", 64),
        ((3, 1, 64), (3, 32, 64), "block", 64),
    ],
)
def test_granularity(block: tuple[int, ...], shape: tuple[int, ...], granularity: str, group: int) -> None:
    request = replace(REQUEST, block_size=block, shape=shape)
    assert (request.granularity, request.group_size) == (granularity, group)


def test_a_request_reads_well() -> None:
    assert str(REQUEST) == "linear int8 channel [32x64] float32 on cpu"
    assert str(replace(REQUEST, activations="int8")) == "linear int8 x int8 channel [32x64] float32 on cpu"


@pytest.mark.parametrize(
    ("claims", "error", "sentence"),
    [
        ({"qtypes": "int8"}, TypeError, "qtypes must be a set of names, got the string 'int8'"),
        ({"activations": ""}, TypeError, "activations must be a set of names"),
        ({"granularities": {"row"}}, ValueError, "unknown granularities row"),
        ({"fn": None}, TypeError, "fn must be callable"),
    ],
)
def test_unsound_claims_are_refused(make: Make, claims: dict, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=rf"kernel 'test\.kernel': {sentence}"):
        make(**claims)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, None),
        ({"device": "cuda"}, "runs on cpu, not on cuda"),
        ({"qtype": "int4"}, "takes weights int8, not int4"),
        ({"dtype": torch.float64}, "takes dtype bfloat16, float16, float32, not float64"),
        ({"activations": "int8"}, "takes activations floating, not int8"),
        ({"block_size": ()}, "takes granularity channel, group, not tensor"),
        ({"zero_point": "int"}, "takes zero points none, not int"),
        ({"scale_dtype": torch.float8_e8m0fnu}, "takes scale dtype bfloat16, float16, float32, not float8_e8m0fnu"),
        ({"shape": (31, 64)}, "rows must be even"),
    ],
)
def test_each_refusal_has_a_sentence(make: Make, change: dict, sentence: str | None) -> None:
    kernel = make(refuse=lambda request: "rows must be even" if request.shape[0] % 2 else None)
    assert kernel.refusal(replace(REQUEST, **change)) == sentence


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ((8, 0), "needs compute capability 8.9, this device has 8.0"),
        ((7, 5), "needs compute capability 8.9, this device has 7.5"),
        ((8, 9), None),
        ((10, 0), None),
        (None, None),
    ],
)
def test_capability(
    make: Make, monkeypatch: pytest.MonkeyPatch, found: tuple[int, int] | None, sentence: str | None
) -> None:
    monkeypatch.setattr(spec, "device_capability", lambda device: found)
    assert make(min_capability=(8, 9)).refusal(REQUEST) == sentence


def test_a_reference_takes_everything(make: Make) -> None:
    reference = make(device="any", qtypes=())
    assert reference.reference
    assert not make(device="any").reference
    assert reference.refusal(replace(REQUEST, dtype=torch.float64, zero_point="float", device="xpu")) is None


@pytest.mark.parametrize(
    ("change", "overlaps"),
    [
        ({}, True),
        ({"name": "other", "origin": "other"}, True),
        ({"qtypes": {"int8", "int4"}}, True),
        ({"layout": "test.own"}, True),
        ({"op": "dequantize"}, False),
        ({"device": "any"}, False),
        ({"priority": 99}, False),
        ({"qtypes": {"int4"}}, False),
        ({"dtypes": {torch.float64}}, False),
        ({"granularities": {"block"}}, False),
        ({"zero_points": {"int"}}, False),
        ({"scale_dtypes": {torch.float64}}, False),
        ({"activations": {"int8"}}, False),
    ],
)
def test_overlap(make: Make, change: dict, overlaps: bool) -> None:
    assert make().overlaps(make(**change)) is overlaps
    assert make(**change).overlaps(make()) is overlaps
