# SPDX-License-Identifier: Apache-2.0
"""What each aten operation does to a `QTensor`. Anything not listed dequantizes and computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import ops
from . import views
from .functions import is_activation, refuse_edit
from .functions import linear as _linear
from .qtensor import QTensor, is_small_float, same

__all__ = ["dispatch"]

aten = torch.ops.aten
_TABLE: dict[Any, Callable[..., Any]] = {}


def _implements(*operations: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for operation in operations:
            _TABLE[operation] = function
        return function

    return register


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs one aten operation."""
    handler = _TABLE.get(func)
    if handler is not None:
        out = handler(*args, **kwargs)
        if out is not NotImplemented and out is not None:
            return _follow(out, args)
    _refuse_mutation(func, args, kwargs)

    def plain(q: QTensor) -> Tensor:
        if QTensor.on_dequantize is not None:
            QTensor.on_dequantize(q, str(func))
        return q.dequantize()

    args, kwargs = tree_map_only(QTensor, plain, (args, kwargs))
    return func(*args, **kwargs)


def _follow(out: Any, args: tuple[Any, ...]) -> Any:
    """Marks results with the module that produced their input, for `quanto.Calibration`."""
    source = next((a.producer for a in args if isinstance(a, QTensor) and a.producer is not None), None)
    if source is not None:
        for o in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(o, QTensor):
                o.producer = source
    return out


def _refuse_mutation(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        for one in value if isinstance(value, (list, tuple)) else (value,):  # a list in `_foreach_` operations
            if isinstance(one, QTensor):
                refuse_edit(str(func), one)


# -- copies ------------------------------------------------------------------------------------------------------------


@_implements(aten.detach.default, aten.alias.default, aten.lift_fresh.default)
def _detach(q: QTensor) -> QTensor:
    return q.rewrap(torch.Tensor.detach)


@_implements(aten.clone.default)
def _clone(q: QTensor, *, memory_format: Any = None) -> Any:
    if memory_format is torch.contiguous_format:
        if q.transposed:  # codes are packed along the other dimension
            return NotImplemented
        return q.rewrap(lambda t: t.clone(memory_format=torch.contiguous_format))
    return q.rewrap(torch.clone)


@_implements(aten._to_copy.default)
def _to(
    q: QTensor, *, dtype: torch.dtype | None = None, device: Any = None, non_blocking: bool = False, **_: Any
) -> Any:
    if dtype is not None and (not dtype.is_floating_point or is_small_float(dtype)):
        return NotImplemented
    where = q.device if device is None else device
    return q.rewrap(lambda t: t.to(where, non_blocking=non_blocking, copy=True), dtype=dtype or q.dtype)


@_implements(aten.copy_.default)
def _copy(target: Any, source: Any, non_blocking: bool = False) -> Any:
    if not isinstance(target, QTensor):
        return NotImplemented  # copying quantized values into a float tensor is an ordinary dequantization
    names = target.__tensor_flatten__()[0]  # of the tensors: a zero point on both sides or on none
    alike = isinstance(source, QTensor) and target.settled and source.settled and source.qtype == target.qtype
    alike = alike and source.block_size == target.block_size and source.shape == target.shape
    if not alike or source.__tensor_flatten__()[0] != names:
        raise RuntimeError(
            f"copy_ into a quantized tensor ({target!r} with {', '.join(names)}) takes a QTensor of the same format, "
            f"not {type(source).__name__} {tuple(source.shape)}: quantize it first (quanto.quantize_tensor)"
        )
    for name in names:
        getattr(target, name).copy_(getattr(source, name), non_blocking=non_blocking)
    return target


# -- views -------------------------------------------------------------------------------------------------------------


def _has(q: QTensor, dim: int) -> bool:
    """Whether q has that dimension; of one that it has not, and of numbers without any, torch says what is right."""
    return -q.ndim <= dim < q.ndim


@_implements(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def _view(q: QTensor, shape: Any) -> Any:
    return views.view(q, shape)


@_implements(aten.t.default)
def _t(q: QTensor) -> Any:
    return views.permute(q, range(q.ndim)[::-1])


@_implements(aten.transpose.int)
def _transpose(q: QTensor, a: int, b: int) -> Any:
    if not _has(q, a) or not _has(q, b):
        return NotImplemented
    order = list(range(q.ndim))
    order[a], order[b] = order[b], order[a]
    return views.permute(q, order)


@_implements(aten.permute.default)
def _permute(q: QTensor, dims: Any) -> Any:
    return views.permute(q, dims)


@_implements(aten.slice.Tensor)
def _slice(q: QTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    if not _has(q, dim):
        return NotImplemented
    size = q.shape[dim]
    start = 0 if start is None else start + size if start < 0 else start
    end = size if end is None else end + size if end < 0 else end
    return views.take(q, dim, start, end, step)


@_implements(aten.select.int)
def _select(q: QTensor, dim: int, index: int) -> Any:
    if not _has(q, dim):
        return NotImplemented
    size = q.shape[dim]
    dim %= q.ndim
    if q.transposed:
        inner = _select(views.swap(q), views.swapped(dim, q.ndim), index)
        return views.swap(inner) if isinstance(inner, QTensor) and dim < q.ndim - 2 else inner
    if not -size <= index < size:
        return NotImplemented  # torch says what is wrong
    index += size if index < 0 else 0
    one = views.take(q, dim, index, index + 1)
    return None if one is None else views.view(one, [n for i, n in enumerate(q.shape) if i != dim])


@_implements(aten.split_with_sizes.default)
def _split_sizes(q: QTensor, sizes: Any, dim: int = 0) -> Any:
    out, start = [], 0
    if not _has(q, dim) or sum(sizes) != q.shape[dim] or any(size < 0 for size in sizes):
        return NotImplemented
    for size in sizes:
        part = views.take(q, dim, start, start + size)
        if part is None:
            return NotImplemented
        out.append(part)
        start += size
    return out


@_implements(aten.split.Tensor)
def _split(q: QTensor, size: int, dim: int = 0) -> Any:
    if size <= 0 or not _has(q, dim):
        return NotImplemented
    total = q.shape[dim]
    return _split_sizes(q, [min(size, total - i) for i in range(0, max(total, 1), size)], dim)


@_implements(aten.unbind.int)
def _unbind(q: QTensor, dim: int = 0) -> Any:
    if not _has(q, dim):
        return NotImplemented
    parts = [_select(q, dim, i) for i in range(q.shape[dim])]
    return NotImplemented if any(p is None for p in parts) else parts


@_implements(aten.unsqueeze.default)
def _unsqueeze(q: QTensor, dim: int) -> Any:
    shape = list(q.shape)
    if not -q.ndim - 1 <= dim <= q.ndim:
        return NotImplemented
    shape.insert(dim % (q.ndim + 1), 1)
    return views.view(q, shape)


@_implements(aten.squeeze.dim)
def _squeeze(q: QTensor, dim: int) -> Any:
    if not _has(q, dim):
        return NotImplemented
    if q.shape[dim] != 1:
        return q.rewrap(torch.Tensor.detach)
    return views.view(q, [n for i, n in enumerate(q.shape) if i != dim % q.ndim])


@_implements(aten.cat.default)
def _cat(tensors: Any, dim: int = 0) -> Any:
    return views.cat(tensors, dim)


@_implements(aten.stack.default)
def _stack(tensors: Any, dim: int = 0) -> Any:
    parts = [_unsqueeze(t, dim) if isinstance(t, QTensor) else None for t in tensors]
    whole = [p for p in parts if p is not None]
    return views.cat(whole, dim) if len(whole) == len(parts) else None


# -- exact arithmetic --------------------------------------------------------------------------------------------------


@_implements(aten.mul.Tensor, aten.mul.Scalar)
def _mul(a: Any, b: Any) -> Any:
    q, factor = (a, b) if isinstance(a, QTensor) else (b, a)
    return _rescale(q, factor, lambda s, f: s * f)


@_implements(aten.div.Tensor, aten.div.Scalar)
def _div(q: Any, factor: Any) -> Any:
    return _rescale(q, factor, lambda s, f: s / f)


def _rescale(q: Any, factor: Any, function: Callable[[Tensor, float], Tensor]) -> Any:
    """A positive finite number goes into the scale; formats with two levels take it in the upper one."""
    if not isinstance(q, QTensor) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        return NotImplemented
    if q.global_scale is not None:
        target = q.global_scale
    elif q.scale.dtype.itemsize == 1:
        return NotImplemented
    else:
        target = q.scale
    # float16 ends at 6e-8, where a value that is still a normal number may have its scale
    dtype = torch.float32 if target.dtype == torch.float16 else target.dtype
    return q.rewrap(lambda t: function(t.float(), factor).to(dtype) if t is target else t)


@_implements(aten.relu.default)
def _relu(q: QTensor) -> Any:
    if q.qtype.bits != 8 or q.zero_point is not None or q.qtype.element is None:
        return NotImplemented
    element = q.qtype.element
    if q.qtype.is_integer:
        return q.rewrap(lambda t: t.clamp_min(0) if t is q.codes else t)
    return q.rewrap(lambda t: t.view(element).float().relu().to(element).view(torch.uint8) if t is q.codes else t)


@_implements(aten.equal.default)
def _equal(a: Any, b: Any) -> Any:
    if not isinstance(a, QTensor) or not isinstance(b, QTensor):
        return NotImplemented
    names, context = a.__tensor_flatten__()
    alike = (names, context, a.shape) == (*b.__tensor_flatten__(), b.shape)
    if alike and all(same(getattr(a, n), getattr(b, n)) for n in names):
        return True
    return NotImplemented  # other codes may stand for the same values


# -- matrix products ---------------------------------------------------------------------------------------------------


@_implements(aten.mm.default)
def _mm(a: Any, b: Any) -> Any:
    return _product(a, b, None)


@_implements(aten.addmm.default)
def _addmm(bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if beta != 1 or alpha != 1 or isinstance(bias, QTensor) or bias.ndim != 1:
        return NotImplemented
    return _product(a, b, bias)


@_implements(aten.linear.default)
def _linear_op(x: Any, weight: Any, bias: Any = None) -> Any:
    return _linear(x, weight, bias)


def _product(a: Any, b: Any, bias: Tensor | None) -> Any:
    """`a @ b` is a linear layer if b is a transposed weight."""
    if isinstance(b, QTensor):
        weight = views.permute(b, (1, 0))
        if weight is None or not weight.settled or not _is_weight(weight):
            return NotImplemented
        if isinstance(a, QTensor) and not is_activation(a):
            return NotImplemented
        return _linear(a, weight, bias)
    return NotImplemented


def _is_weight(q: QTensor) -> bool:
    """Whether the blocks are those of `[out, in]` weights: rows may share scales, columns are grouped."""
    return not q.block_size or q.block_size[-1] > 1 or q.columns == 1


@_implements(aten.embedding.default)
def _embedding(weight: Any, indices: Tensor, *_: Any, **__: Any) -> Any:
    if not isinstance(weight, QTensor) or not weight.settled or weight.ndim != 2:
        return NotImplemented
    return ops.embedding(indices, weight.weight(), weight.dtype)
