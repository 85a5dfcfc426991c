# SPDX-License-Identifier: Apache-2.0
"""Which class takes the place of which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..qtype import qtype

__all__ = ["quantize_module", "register_qmodule"]

_CLASSES: dict[type[nn.Module], type[Any]] = {}


def register_qmodule(module_cls: type[nn.Module]) -> Callable[[type[Any]], type[Any]]:
    """A decorator: the class quantizes modules of `module_cls` and of what derives from it."""

    def register(cls: type[Any]) -> type[Any]:
        for name in ("qcreate", "forward"):
            if not callable(getattr(cls, name, None)):
                raise TypeError(f"{cls.__name__} must offer {name} to quantize {module_cls.__name__}")
        _CLASSES[module_cls] = cls
        return cls

    return register


def quantize_module(
    module: nn.Module,
    weights: qtype | str | None = None,
    activations: qtype | str | None = None,
    optimizer: Any = None,
) -> Any:
    """The quantized twin of a module, or None if no class is registered for it."""
    for base, cls in _CLASSES.items():
        if isinstance(module, base):
            made = cls.from_module(module, weights=weights, activations=activations, optimizer=optimizer)
            if made is not None:
                made.train(module.training)
            return made
    return None
