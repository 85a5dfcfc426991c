# SPDX-License-Identifier: Apache-2.0
"""torch's own fast paths, registered where they are right and faster than the reference."""

from __future__ import annotations

from .registry import KernelRegistry

__all__ = ["register"]


def register(registry: KernelRegistry) -> None:
    """Registers them."""
