# SPDX-License-Identifier: Apache-2.0
"""What hooks of modules are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["first_input"]


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The input of a layer, however its caller named it.

    Raises:
        TypeError: if it was called without a tensor.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise TypeError("a layer was called without a tensor")
