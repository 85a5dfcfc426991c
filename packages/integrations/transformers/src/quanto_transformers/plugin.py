# SPDX-License-Identifier: Apache-2.0
"""What this package gives to quanto-core: twins of transformers' own modules, and its folders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quanto.plugins import hookimpl

if TYPE_CHECKING:
    from quanto.nn import ModuleRegistry

QUANTO_API = 1


@hookimpl
def register_modules(registry: ModuleRegistry) -> None:
    """Twins by name, so that nothing imports transformers unless a model does."""
    registry.register_by_name("transformers.pytorch_utils.Conv1D", "quanto_transformers.conv1d:QConv1D")


@hookimpl
def register_formats(register: Callable[[str, Any], None]) -> None:
    """Folders of transformers, for `quanto.load` and the command line."""
    from .checkpoint import Checkpoint

    register("transformers", Checkpoint())
