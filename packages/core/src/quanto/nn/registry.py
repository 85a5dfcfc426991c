# SPDX-License-Identifier: Apache-2.0
"""Which quantized twin a module gets."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .base import QModule
from .correction import DOWN, UP
from .learned import forget
from .slot import PARTS

__all__ = ["ModuleRegistry", "Twin", "bake_parametrization", "convert", "modules", "restore"]


@dataclass(frozen=True)
class Twin:
    """A quantized class and when it is used.

    Attributes:
        quantized: the class, a `QModule` and a subclass of the float one.
        default: whether `quantize` takes such modules unless told otherwise; the others need a rule or `include`.
        only_activations: whether it only makes sense with quantized activations.
        refuse: given the module, a sentence why it can't be quantized, or None.
    """

    quantized: type[QModule]
    default: bool = True
    only_activations: bool = False
    refuse: Any = None


class ModuleRegistry:
    """Quantized twins by float class."""

    def __init__(self) -> None:
        self.twins: dict[type[nn.Module], Twin] = {}
        self.named: dict[str, tuple[str, dict[str, Any]]] = {}

    def register(self, float_class: type[nn.Module], quantized: type[QModule], **options: Any) -> None:
        """Adds a twin; options are the fields of `Twin`.

        Raises:
            TypeError: if `quantized` is not a `QModule` that inherits `float_class`.
            ValueError: if the class has a twin already.
        """
        if not issubclass(quantized, QModule) or not issubclass(quantized, float_class):
            raise TypeError(f"{quantized.__name__} must inherit quanto.nn.QModule and {float_class.__name__}")
        if float_class in self.twins:
            raise ValueError(
                f"{float_class.__name__} has the twin {self.twins[float_class].quantized.__name__} already"
            )
        self.twins[float_class] = Twin(quantized, **options)

    def register_by_name(self, float_class: str, quantized: str, **options: Any) -> None:
        """Adds a twin of a class of another library without importing that: both are names until a model has one.

        Args:
            float_class: `"library.module.Class"`, by the module that defines it.
            quantized: `"package.module:Class"`, imported when the first such module is met.
            **options: the fields of `Twin`.

        Raises:
            ValueError: if the class has a twin already.
        """
        if float_class in self.named:
            raise ValueError(f"{float_class} has the twin {self.named[float_class][0]} already")
        self.named[float_class] = (quantized, options)

    def _has_twin(self, float_class: type) -> bool:
        if float_class not in self.twins and self.named:
            found = self.named.get(f"{float_class.__module__}.{float_class.__qualname__}")
            if found is not None:
                module, _, name = found[0].partition(":")
                self.register(float_class, getattr(importlib.import_module(module), name), **found[1])
        return float_class in self.twins

    def find(self, module: nn.Module) -> tuple[Twin | None, str]:
        """The twin of a module, or None and the reason."""
        from ..plugins.manager import plugins

        plugins.load()
        cls = type(module)
        base: type[nn.Module] | None = next((c for c in cls.__mro__ if self._has_twin(c)), None)
        if base is None:
            return None, f"{cls.__name__} has no quantized twin"
        twin = self.twins[base]
        if cls is not base and cls.forward is not base.forward:
            return None, f"{cls.__name__} has a forward of its own, which quantizing would replace"
        for name in twin.quantized.quantized_parameters:
            if name in module.__dict__:
                return None, f"its {name} is computed by a hook, not a parameter"
        reason = twin.refuse(module) if twin.refuse is not None else None
        return (None, reason) if reason else (twin, "")


_subclasses: dict[tuple[type, type], type] = {}


def _quantized_class(quantized: type[QModule], float_class: type[nn.Module]) -> type[Any]:
    """The quantized class for a float class: the twin itself, or a subclass of both made on demand."""
    if float_class in quantized.__bases__:
        return quantized
    key = (quantized, float_class)
    if key not in _subclasses:
        body = {"__module__": quantized.__module__, "__reduce_ex__": _reduce}
        _subclasses[key] = type(f"Q{float_class.__name__}", (quantized, float_class), body)
    return _subclasses[key]


def _reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
    quantized, float_class = type(module).__bases__
    return _remake, (quantized, float_class), module.__getstate__()


def _remake(quantized: type[QModule], float_class: type[nn.Module]) -> Any:
    return object.__new__(_quantized_class(quantized, float_class))


def convert(module: nn.Module, quantized: type[QModule]) -> QModule:
    """Changes a module's class in place to its quantized twin."""
    float_class = type(module)
    module.__class__ = _quantized_class(quantized, float_class)
    module.__dict__["_float_class"] = float_class
    return module  # type: ignore[return-value]


def bake_parametrization(module: QModule, name: str) -> None:
    """Replaces a parametrized weight by its present value; torch does that by changing the class, under ours."""
    quantized = type(module).__bases__[0]
    module.__class__ = module._float_class  # type: ignore[assignment]
    nn.utils.parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    convert(module, quantized)


def restore(module: QModule) -> nn.Module:
    """Changes a quantized module back, in place: float parameters with the quantized values."""
    module.leave()
    for name in list(module._slots):
        if f"{name}_packed" in module._parameters:
            with torch.no_grad():
                value = module.effective(name).contiguous()
            for part in PARTS:
                module._parameters.pop(f"{name}_{part}", None)
            module._parameters[name] = nn.Parameter(value)
        forget(module, name)
    for name in (DOWN, UP):
        module._parameters.pop(name, None)
    for name in ("input_scale", "output_scale"):
        module._buffers.pop(name, None)
    for name in ("_scheme", "_arranges"):
        module.__dict__.pop(name, None)
    del module.__dict__["_slots"]
    module.__class__ = module.__dict__.pop("_float_class")
    return module


#: the process's twins.
modules = ModuleRegistry()
