# SPDX-License-Identifier: Apache-2.0
"""Quantized layers under diffusers' group offloading."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from quanto.nn import QModule
from quanto.weight import CANONICAL

__all__ = ["settle", "teach_group_offloading"]


def settle(model: nn.Module) -> None:
    """Arranges quantized weights as files have them, and keeps them so while they go to and fro.

    Groups of tensors travel by assignment to `.data`, which no module notices, and back by `.to`, which would arrange
    them for a device where they only wait: on a CPU each time anew.
    """
    for module in model.modules():
        if isinstance(module, QModule):
            module.arrange(CANONICAL)
            module._arranges = False


def teach_group_offloading(offloading: Any) -> None:
    """Wraps what puts a model's layers into groups.

    Args:
        offloading: `diffusers.hooks.group_offloading`.
    """
    original = offloading._apply_group_offloading
    if hasattr(original, "_quanto"):
        return

    @functools.wraps(original)
    def _apply_group_offloading(module: nn.Module, config: Any) -> None:
        if config.onload_device.type != config.offload_device.type:
            settle(module)
        original(module, config)

    _apply_group_offloading._quanto = True  # type: ignore[attr-defined]
    offloading._apply_group_offloading = _apply_group_offloading
