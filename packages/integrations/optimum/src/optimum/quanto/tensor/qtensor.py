# SPDX-License-Identifier: Apache-2.0
"""`QTensor`: what every quantized tensor of optimum.quanto is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..qtype import qtype, qtypes

__all__ = ["QTensor", "qfallback"]


class QTensor(torch.Tensor):
    """A floating tensor that is stored quantized; classes of it differ in what they store."""

    #: called with a tensor that an operation dequantizes
    on_fallback: ClassVar[Callable[[QTensor], None] | None] = None

    _qtype: qtype
    _axis: int | None
    _data: Tensor
    _scale: Tensor
    #: the module whose output this is, during calibration
    producer: Any = None

    @property
    def qtype(self) -> qtype:
        return self._qtype

    @property
    def axis(self) -> int | None:
        return self._axis

    @property
    def stored(self) -> tuple[str, ...]:
        """The attributes that are tensors."""
        return "_data", "_scale"

    def settled(self) -> Any:
        """The same tensor as files have it; itself unless a kernel holds it another way."""
        return self

    def values(self) -> Tensor:
        """The values, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} must implement values")

    def constants(self) -> tuple[Any, ...]:
        """What `assemble` needs beside tensors; hashable."""
        raise NotImplementedError(f"{type(self).__name__} must implement constants")

    @classmethod
    def assemble(cls, tensors: dict[str, Tensor], constants: tuple[Any, ...]) -> Any:
        """The inverse of `constants` and `stored`."""
        raise NotImplementedError(f"{cls.__name__} must implement assemble")

    def dequantize(self) -> Tensor:
        """The floating values; gradients go straight to what was quantized."""
        return Dequantize.apply(self)  # type: ignore[no-any-return, no-untyped-call]

    def rewrap(self, function: Callable[[Tensor], Tensor]) -> Any:
        """The same tensor with `function` applied to what it stores."""
        made = self.assemble({n: function(getattr(self, n)) for n in self.stored}, self.constants())
        made.producer = self.producer
        return made

    def save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Adds what is stored, under `<prefix>_data` and so on."""
        settled = self.settled()
        for name in settled.stored:
            tensor = getattr(settled, name)
            if hasattr(tensor, "save_to_state_dict"):
                tensor.save_to_state_dict(destination, f"{prefix}{name}.", keep_vars)
            else:
                destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def numpy(self, *, force: bool = False) -> Any:
        return self.dequantize().numpy(force=force)

    def equal(self, other: Tensor) -> bool:
        """Whether the other is of the same class and stores the same."""
        if not isinstance(other, QTensor) or type(self) is not type(other):
            return False
        a, b = self.settled(), other.settled()
        return a.constants() == b.constants() and all(_same(getattr(a, n), getattr(b, n)) for n in a.stored)

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return list(self.stored), self.constants()

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], context: Any, size: Any, stride: Any) -> Any:
        return cls.assemble(inner, context)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        settled = self.settled()
        return _rebuild, (type(self), {n: getattr(settled, n) for n in settled.stored}, settled.constants())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = self.rewrap(torch.clone).requires_grad_(self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({self._qtype}, shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .functions import FUNCTIONS

        if func in FUNCTIONS:
            out = FUNCTIONS[func](*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        from .dispatch import dispatch

        return dispatch(func, args, kwargs or {})


class Dequantize(torch.autograd.Function):
    """Values forward, the gradient as it is backward."""

    @staticmethod
    def forward(ctx: Any, q: QTensor) -> Tensor:
        """Floating values."""
        return q.values()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Straight through."""
        return grad


def qfallback(callable: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls with every quantized tensor dequantized."""
    args, kwargs = pytree.tree_map_only(QTensor, lambda q: q.dequantize(), (args, kwargs))
    return callable(*args, **kwargs)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.dtype.is_floating_point and a.dtype.itemsize == 1:
        return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    return torch.equal(a, b)


def _rebuild(kind: type[QTensor], tensors: dict[str, Tensor], constants: tuple[Any, ...]) -> Any:
    return kind.assemble(tensors, constants)


def by_name(name: str | None) -> qtype | None:
    """The qtype of that name; None for None."""
    return None if name is None else qtypes[name]
