# SPDX-License-Identifier: Apache-2.0
"""The plugin interface, whole.

A plugin is a module (entry-point group `quanto`) with `QUANTO_API = 1` and any of these.

```python
import quanto.plugins

QUANTO_API = 1


@quanto.plugins.hookimpl
def register_qtypes(register):
    register(QType("int5", 5, torch.int8))
```
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from ..kernels import KernelRegistry
    from ..nn.registry import ModuleRegistry
    from ..qtypes import QType
    from ..quantizers import Quantizer

__all__ = ["API_VERSION", "hookimpl", "hookspec"]

#: version of these hooks and of the operators' signatures; a plugin declares the one it was written for.
API_VERSION = 1

hookspec = pluggy.HookspecMarker("quanto")
hookimpl = pluggy.HookimplMarker("quanto")


@hookspec
def register_qtypes(register: Callable[[QType], None]) -> None:
    """Adds quantized data types: `register(QType(...))`."""


@hookspec
def register_kernels(registry: KernelRegistry) -> None:
    """Adds kernels and their layouts: `registry.register_layout(...)`, `registry.register(KernelSpec(...))`."""


@hookspec
def register_quantizers(register: Callable[[Quantizer], None]) -> None:
    """Adds algorithms that choose scales and codes: `register(MyQuantizer())`."""


@hookspec
def register_modules(registry: ModuleRegistry) -> None:
    """Adds quantized twins of modules: `registry.register(MyModule, QMyModule)`."""


@hookspec
def register_formats(register: Callable[[str, Any], None]) -> None:
    """Adds readers of other folder formats for `quanto.load`: `register("name", reader)`."""


@hookspec
def register_commands(app: Any) -> None:
    """Adds subcommands to the command line: `app` is the `typer.Typer` of `quanto`, with `app.command()` and so on.

    A name that core or an earlier plugin has is an error, and then none of this plugin's commands is added.
    """
