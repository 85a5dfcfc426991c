# SPDX-License-Identifier: Apache-2.0
"""Guards a float parameter that `freeze` took out of its module.

An optimizer built before would go on stepping it: its work would be lost without a word. So its next step raises.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

__all__ = ["guard_orphan"]

_orphans: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
_installed = False


def guard_orphan(parameter: Tensor) -> None:
    """Makes every optimizer that holds `parameter` raise at its next step."""
    global _installed
    if not parameter.requires_grad:
        return
    parameter.requires_grad_(False)
    parameter.grad = None
    _orphans[id(parameter)] = parameter
    if not _installed:
        register_optimizer_step_pre_hook(_check)
        _installed = True


def _check(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        params: list[Tensor] = group["params"]
        for parameter in params:
            if _orphans.get(id(parameter)) is parameter:
                raise RuntimeError(
                    f"this optimizer holds a float weight of shape {tuple(parameter.shape)} that quanto.freeze has "
                    "replaced by codes; steps on it would be lost. Build a new optimizer from "
                    "[p for p in model.parameters() if p.requires_grad]"
                )
