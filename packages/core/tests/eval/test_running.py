# SPDX-License-Identifier: Apache-2.0
"""Feeding models, and leaving them as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quanto.eval.running import call, check_tokens, device_of, evaluating, move


def test_evaluating_gives_each_module_its_own_flag_back_even_after_an_error() -> None:
    one, two = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)), nn.Dropout()
    one[0].eval()

    def measure() -> None:
        with evaluating(one, len, two):
            raise ZeroDivisionError([m.training for m in (*one.modules(), two)])

    with pytest.raises(ZeroDivisionError) as raised:
        measure()
    assert raised.value.args[0] == [False] * 4
    assert [one.training, one[0].training, one[1].training, two.training] == [True, False, True, True]


def test_call_unpacks_tuples_and_mappings() -> None:
    def model(a: int, b: int = 5) -> int:
        return 10 * a + b

    assert call(model, 1) == 15
    assert call(model, (1, 2)) == 12
    assert call(model, {"b": 3, "a": 1}) == 13


def test_move_reaches_nested_tensors_and_nothing_else() -> None:
    moved = move({"x": (torch.ones(1), "word"), "n": 3}, torch.device("meta"))
    assert moved["x"][0].is_meta
    assert (moved["x"][1], moved["n"]) == ("word", 3)


def test_device_of_what_has_none_is_the_cpu() -> None:
    assert device_of(len) == device_of(nn.Identity()) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")


def test_blocks_leave_the_rest_out() -> None:
    assert check_tokens(torch.arange(7, dtype=torch.int16), 3).tolist() == [[0, 1, 2], [3, 4, 5]]
