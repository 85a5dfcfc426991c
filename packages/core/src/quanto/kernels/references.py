# SPDX-License-Identifier: Apache-2.0
"""The reference kernels: the operators themselves, for every device, qtype and granularity."""

from __future__ import annotations

import torch

from ..ops import SCHEMAS
from .registry import KernelRegistry
from .spec import KernelSpec

__all__ = ["register"]


def register(registry: KernelRegistry) -> None:
    """Registers `reference.<operator>` for each operator, device "any", priority 0."""
    for op in SCHEMAS:
        fn = getattr(torch.ops.quanto_core, op).default
        registry.register(KernelSpec(f"reference.{op}", op, "any", fn, frozenset(), priority=0))
