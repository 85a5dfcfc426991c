# SPDX-License-Identifier: Apache-2.0
"""The plugin: what quanto finds through the entry point."""

from __future__ import annotations

import quanto.plugins
from quanto.kernels import KernelRegistry

__all__ = ["QUANTO_API", "register_kernels"]

QUANTO_API = 1


@quanto.plugins.hookimpl
def register_kernels(registry: KernelRegistry) -> None:
    """Every kernel, on any machine; no shader is compiled before it runs."""
    from .specs import specs

    for spec in specs():
        registry.register(spec)
