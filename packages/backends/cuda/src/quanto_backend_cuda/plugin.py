# SPDX-License-Identifier: Apache-2.0
"""The plugin: what quanto finds through the entry point."""

from __future__ import annotations

from typing import Any

import quanto.plugins
from quanto.kernels import KernelRegistry

__all__ = ["QUANTO_API", "register_commands", "register_kernels"]

QUANTO_API = 1


@quanto.plugins.hookimpl
def register_kernels(registry: KernelRegistry) -> None:
    """Every kernel; none of them imports Triton before it runs."""
    from . import specs

    specs.register(registry)


@quanto.plugins.hookimpl
def register_commands(app: Any) -> None:
    """`quanto tune`."""
    from .tune.command import tune

    app.command("tune")(tune)
