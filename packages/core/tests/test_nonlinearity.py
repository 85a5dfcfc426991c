# SPDX-License-Identifier: Apache-2.0
"""Functions by name."""

from __future__ import annotations

import pytest
import torch

from quanto.nonlinearity import apply


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("relu", torch.nn.ReLU()),
        ("gelu", torch.nn.GELU()),
        ("gelu_tanh", torch.nn.GELU("tanh")),
        ("silu", torch.nn.SiLU()),
    ],
)
def test_names_are_those_of_modules(name: str, module: torch.nn.Module) -> None:
    y = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0, torch.nan])
    assert torch.equal(apply(y, name).nan_to_num(7), module(y).nan_to_num(7))


def test_no_name_is_no_function() -> None:
    y = torch.randn(3)
    assert apply(y, "") is y
    with pytest.raises(ValueError, match=r"nonlinearity must be one of .*, got 'tanh'"):
        apply(y, "tanh")
