# SPDX-License-Identifier: Apache-2.0
"""A digest tells all bytes, shapes, dtypes and names apart, and no more."""

from __future__ import annotations

from collections import UserDict

import torch

from quanto._digest import digest_of


def test_equal_values_have_equal_digests() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert digest_of({"x": x}, [1, "a"]) == digest_of(UserDict(x=x.T.contiguous().T), (1, "a"))


def test_what_differs_is_told_apart() -> None:
    x = torch.arange(6, dtype=torch.int32)
    values = [
        x, x.flip(0), x.view(2, 3), x.view(torch.float32), x[:5], {"x": x}, {"y": x}, [x], [[x]], [x[:3], x[3:]],
        [x[:4], x[4:]], x.to("meta"), torch.tensor(0.0), torch.tensor(-0.0), torch.empty(0), None, "None.",
    ]  # fmt: skip
    assert len({digest_of(value) for value in values}) == len(values)
