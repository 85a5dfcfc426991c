# SPDX-License-Identifier: Apache-2.0
"""The list of quantized modules, written and read."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import quanto
from quanto.hosts.layers import by_name, describe, parse_layers


def test_a_model_is_described_and_read_back() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    quanto.freeze(quanto.quantize(model, rules={"0": "int4", "*": "int8"}))
    found = describe(model)
    assert parse_layers([layers.to_dict() for layers in found]) == found
    assert {name: layers.scheme.weights for name, layers in by_name(found)} == {"0": "int4", "1": "int8", "2": "int8"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "must be a list"),
        ([1], r"modules\[0\]: must be an object"),
        ([{"names": ["a"], "scheme": {"weights": "int8"}, "dtype": "int3"}], "dtype must be one of"),
        ([{"names": ["a", "a"], "scheme": {"weights": "int8"}, "dtype": "float32"}], "names 'a' twice"),
        ([{"names": ["a"], "scheme": {"weights": "int8"}, "dtype": "float32", "x": 1}], "unknown fields 'x'"),
    ],
)
def test_what_is_unsound_is_named(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_layers(data)
