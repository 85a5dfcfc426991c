# SPDX-License-Identifier: Apache-2.0
"""What differs between versions of transformers, 5.17 to 5.23: nothing else in this package asks for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["float_like_codes", "is_sharded", "watch_missing"]


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "_local_tensor")


def watch_missing(model: Any, tell: Callable[[set[str]], None]) -> None:
    """Calls `tell` once, with the names of tensors that no checkpoint file had, before they are given random values.

    transformers has no call for that; this is the method that gives them memory, in 5.17 as in 5.23.
    """
    original = model._move_missing_keys_from_meta_to_device

    def watched(missing_keys: Any, *args: Any, **kwargs: Any) -> Any:
        model.__dict__.pop("_move_missing_keys_from_meta_to_device", None)
        tell(set(missing_keys) - set(getattr(model, "all_tied_weights_keys", None) or {}))
        return original(missing_keys, *args, **kwargs)

    model.__dict__["_move_missing_keys_from_meta_to_device"] = watched


def float_like_codes(stand_in: Tensor, codes: Tensor) -> Tensor:
    """A float stand-in distributed as the codes it stands for."""
    if not is_sharded(codes):
        return stand_in
    raise NotImplementedError
