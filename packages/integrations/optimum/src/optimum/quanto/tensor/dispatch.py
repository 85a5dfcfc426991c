# SPDX-License-Identifier: Apache-2.0
"""What operations of torch do with quantized tensors: a few keep them, all others see their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .qbits import WeightQBitsTensor
from .qbytes import ActivationQBytesTensor, WeightQBytesTensor, quantize_symmetric
from .qtensor import QTensor

__all__ = ["dispatch"]

aten = torch.ops.aten


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the operator on what is stored, where that gives what it gives on the values, else on the values."""
    packet = func.overloadpacket
    q = args[0] if args else None
    if isinstance(q, QTensor):
        if packet in COMMON and (out := COMMON[packet](func, q, args, kwargs)) is not None:
            return out
        if packet is aten.t and isinstance(q, WeightQBytesTensor) and (out := _transposed(q)) is not None:
            return out
    if packet in ACTIVATIONS and (out := ACTIVATIONS[packet](func, args, kwargs)) is not None:
        return out
    if func._schema.is_mutable and _mutates_quantized(func, args, kwargs):
        raise RuntimeError(f"{func} would edit a quantized tensor in place, and the edit would be lost")
    return func(*pytree.tree_map_only(QTensor, _values, args), **pytree.tree_map_only(QTensor, _values, kwargs))


def _values(q: QTensor) -> Tensor:
    if QTensor.on_fallback is not None:
        QTensor.on_fallback(q)
    return q.values()


def _mutates_quantized(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            if isinstance(value, QTensor):
                return True
    return False


# -- all quantized tensors --------------------------------------------------------------------------------------------


def _same(func: Any, q: QTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return q.rewrap(lambda t: func(t, *args[1:], **kwargs))


def _clone(func: Any, q: QTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(q, WeightQBitsTensor):  # its codes have another shape, so another memory format
        return q.rewrap(torch.clone)
    return q.rewrap(lambda t: func(t, **kwargs))


def _to_copy(func: Any, q: QTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    dtype = kwargs.get("dtype") or q.dtype
    if not dtype.is_floating_point or dtype.itemsize == 1:
        return None
    others = {name: value for name, value in kwargs.items() if name not in ("dtype", "memory_format")}

    settled = q.settled()

    def move(t: Tensor) -> Tensor:
        casts = t is not settled._data and t.is_floating_point()
        out: Tensor = aten._to_copy(t, dtype=dtype if casts else t.dtype, **others)
        return out

    moved = settled.rewrap(move)
    return moved if settled is q else moved.optimize()  # another device or dtype may have another kernel


def _copy(func: Any, q: QTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    source = args[1]
    if type(source) is not type(q):
        return None
    if isinstance(q, WeightQBitsTensor):
        q.settle()
    source = source.settled()
    if source.constants() != q.constants():
        return None
    for name in q.stored:
        mine, its = getattr(q, name), getattr(source, name)
        if hasattr(mine, "_bits"):
            mine, its = mine._data, its._data
        mine.copy_(its)
    return q


COMMON: dict[Any, Callable[..., Any]] = {
    aten.detach: _same,
    aten.clone: _clone,
    aten._to_copy: _to_copy,
    aten.copy_: _copy,
}


def _transposed(q: WeightQBytesTensor) -> Any:
    if q.ndim != 2:
        return None
    axis = {0: -1, -1: 0, None: None}[q.axis]
    size, stride = q.size()[::-1], q.stride()[::-1]
    scale = q._scale.t() if q._scale.ndim == 2 else q._scale
    return WeightQBytesTensor(q.qtype, axis, size, stride, q._data.t(), scale, q.activation_qtype)


# -- activations ------------------------------------------------------------------------------------------------------


def _made(q: ActivationQBytesTensor, data: Tensor, scale: Tensor | None = None) -> ActivationQBytesTensor:
    made = ActivationQBytesTensor(q.qtype, data.size(), data.stride(), data, q._scale if scale is None else scale)
    made.producer = q.producer
    return made


def _moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    q = args[0]
    if not isinstance(q, ActivationQBytesTensor):
        return None
    out = func(q._data, *args[1:], **kwargs)
    return [_made(q, t) for t in out] if isinstance(out, (list, tuple)) else _made(q, out)


def _relu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    q = args[0]
    if not isinstance(q, ActivationQBytesTensor):
        return None
    if q._data.is_floating_point():
        return _made(q, q._data.to(q.dtype).clamp(min=0).to(q._data.dtype))
    return _made(q, q._data.clamp(min=0))


def _scaled(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    divides = func.overloadpacket is aten.div
    q, other = args[:2]
    if not divides and not isinstance(q, ActivationQBytesTensor):
        q, other = other, q
    if not isinstance(q, ActivationQBytesTensor) or isinstance(other, QTensor) or kwargs:
        return None
    if isinstance(other, Tensor) and (other.ndim or not other.is_floating_point()):
        return None
    scale = func(q._scale, other)
    return _made(q, q._data, scale) if scale.dtype == q.dtype else None


def _joined(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = args[0]
    first = tensors[0]
    if not all(isinstance(t, ActivationQBytesTensor) for t in tensors):
        return None
    if any(t.qtype != first.qtype or not torch.equal(t._scale, first._scale) for t in tensors[1:]):
        return None
    return _made(first, func([t._data for t in tensors], *args[1:], **kwargs))


def _softmax(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    q = args[0]
    if not isinstance(q, ActivationQBytesTensor):
        return None
    out = func(q.values(), *args[1:], **kwargs)
    scale = torch.tensor(1 / q.qtype.qmax, dtype=out.dtype, device=out.device)  # its largest value is one
    return _made(q, quantize_symmetric(out, q.qtype.dtype, scale), scale)


ACTIVATIONS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            aten.view,
            aten._unsafe_view,
            aten.t,
            aten.transpose,
            aten.permute,
            aten.expand,
            aten.select,
            aten.slice,
            aten.split,
            aten.unbind,
            aten.squeeze,
            aten.unsqueeze,
        ),
        _moved,
    ),
    aten.relu: _relu,
    aten.mul: _scaled,
    aten.div: _scaled,
    aten.cat: _joined,
    aten.stack: _joined,
    aten._softmax: _softmax,
}
