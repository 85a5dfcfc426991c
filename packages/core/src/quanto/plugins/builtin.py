# SPDX-License-Identifier: Apache-2.0
"""quanto-core's own contributions, through the same hooks as everyone's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from ..kernels import KernelRegistry
    from ..nn.registry import ModuleRegistry
    from ..quantizers import Quantizer


@hookimpl
def register_quantizers(register: Callable[[Quantizer], None]) -> None:
    """Absmax, min/max, least squares and half-quadratic."""
    from ..quantizers import AbsmaxQuantizer, HQQQuantizer, MinMaxQuantizer, MSEQuantizer

    for quantizer in (AbsmaxQuantizer, MinMaxQuantizer, MSEQuantizer, HQQQuantizer):
        register(quantizer())


@hookimpl
def register_kernels(registry: KernelRegistry) -> None:
    """The references, and torch's own fast paths."""
    from ..kernels import native, references

    references.register(registry)
    native.register(registry)


@hookimpl
def register_modules(registry: ModuleRegistry) -> None:
    """Twins of torch's modules."""
    from ..nn import twins

    twins.register(registry)


@hookimpl
def register_commands(app: Any) -> None:
    """The subcommands of `quanto`."""
    from ..cli import commands

    commands.register(app)
