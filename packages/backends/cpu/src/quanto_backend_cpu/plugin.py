# SPDX-License-Identifier: Apache-2.0
"""What quanto loads through the entry point `cpu`."""

from __future__ import annotations

from quanto.kernels import KernelRegistry
from quanto.plugins import hookimpl

__all__ = ["QUANTO_API", "register_kernels"]

QUANTO_API = 1


@hookimpl
def register_kernels(registry: KernelRegistry) -> None:
    """Registers the layout and every kernel."""
    from .layout import PANELS
    from .library import instruction_set
    from .specs import specs

    instruction_set()  # raises if QUANTO_CPU_ISA names none: here, not in the self check of every kernel
    registry.register_layout(PANELS)
    for spec in specs():
        registry.register(spec)
