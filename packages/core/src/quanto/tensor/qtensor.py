# SPDX-License-Identifier: Apache-2.0
"""`QTensor`: a tensor that is stored quantized and behaves like the floating tensor it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import ops
from ..contracts import check_weight
from ..qtypes import QType, get_qtype
from ..weight import Weight, make_key

__all__ = ["QTensor"]

_INNER = ("codes", "scale", "zero_point", "global_scale")


class QTensor(torch.Tensor):
    """A quantized tensor.

    Its shape and dtype are those of the values it stands for. Views, slices on whole groups, transposes, `cat` of equal
    scales, `relu`, positive scalar factors, `clone`, `to` and pickling keep it quantized; `linear`, `mm` and
    `embedding` go to the kernels; everything else computes on the dequantized values. It cannot be edited in place.

    Attributes:
        codes: packed codes, `[*lead, ceil(columns * bits / 8)]`, int8 for int8, else uint8 (see `quanto.packing`).
        scale: one per block (see `quanto.blocks`), floating; `[]` per tensor.
        zero_point: int8 or floating of the scale's shape, or None.
        global_scale: float32 `[]`, or None.
        qtype: the `QType` of the codes.
        block_size: one entry per dimension of `[*lead, columns]`, or `()`.
        columns: values per row of codes.
        transposed: whether the last two dimensions are swapped with respect to the codes.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    global_scale: Tensor | None
    qtype: QType
    block_size: tuple[int, ...]
    columns: int
    transposed: bool
    #: the module whose output this is, followed by `quanto.Calibration`
    producer: Any
    #: called with the tensor whenever an operation dequantizes it
    on_dequantize: ClassVar[Callable[[QTensor, str], None] | None] = None

    @staticmethod
    def __new__(
        cls,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor | None = None,
        global_scale: Tensor | None = None,
        *,
        qtype: str | QType,
        block_size: Sequence[int] = (),
        columns: int | None = None,
        dtype: torch.dtype = torch.float32,
        shape: Sequence[int] | None = None,
        transposed: bool = False,
    ) -> QTensor:
        q = get_qtype(qtype)
        if columns is None:
            if q.bits != 8:
                raise ValueError(f"columns must be given for {q.name}: packed codes do not tell it")
            columns = codes.shape[-1] if codes.ndim else 1
        inner = (*codes.shape[:-1], columns) if codes.ndim else ()
        if shape is None:
            shape = (*inner[:-2], inner[-1], inner[-2]) if transposed else inner
        strides: Sequence[int] | None = None
        if tuple(shape) == tuple(inner) and q.bits == 8 and not transposed:
            strides = codes.stride()
        elif transposed:
            *lead, rows, one = _contiguous((*shape[:-2], shape[-1], shape[-2]))
            strides = (*lead, one, rows)
        self = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), strides=strides, dtype=dtype, device=codes.device, requires_grad=False
        )
        self.codes, self.scale, self.zero_point, self.global_scale = codes, scale, zero_point, global_scale
        self.qtype, self.block_size, self.columns = q, tuple(block_size), columns
        self.transposed = transposed
        self.producer = None
        return self

    # -- the traceable wrapper protocol ------------------------------------------------------------------------

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        names = [n for n in _INNER if getattr(self, n) is not None]
        return names, (self.qtype.name, self.block_size, self.columns, self.dtype, self.transposed)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], context: tuple[Any, ...], outer_size: Any, outer_stride: Any
    ) -> QTensor:
        qtype, block_size, columns, dtype, transposed = context
        return QTensor(
            *(inner.get(n) for n in _INNER),  # type: ignore[arg-type]
            qtype=qtype,
            block_size=block_size,
            columns=columns,
            dtype=dtype,
            shape=outer_size,
            transposed=transposed,
        )

    # -- values ------------------------------------------------------------------------------------------------

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """Shape of the codes before packing."""
        return (*self.codes.shape[:-1], self.columns) if self.codes.ndim else ()

    @property
    def settled(self) -> bool:
        """Whether the shape is that of the codes, neither viewed nor transposed."""
        return not self.transposed and tuple(self.shape) == self.inner_shape

    def weight(self) -> Weight:
        """The plain tensors and constants that operators take."""
        key = make_key(self.qtype.name, self.block_size, self.inner_shape, self.scale, self.zero_point)
        tensors = (self.codes, self.scale, self.zero_point, self.global_scale)
        return Weight(*tensors, self.qtype.name, self.block_size, self.columns, key)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The values as an ordinary tensor of `dtype` (default: this tensor's)."""
        values = ops.dequantize(self.weight(), dtype or self.dtype)
        if self.transposed:
            return values.reshape(*self.shape[:-2], self.shape[-1], self.shape[-2]).transpose(-1, -2)
        return values if tuple(values.shape) == tuple(self.shape) else values.reshape(self.shape)

    def rewrap(self, function: Callable[[Tensor], Tensor], **changes: Any) -> QTensor:
        """The same tensor with `function` applied to each inner tensor and some attributes changed."""
        inner = [None if getattr(self, n) is None else function(getattr(self, n)) for n in _INNER]
        attributes = {
            "qtype": self.qtype,
            "block_size": self.block_size,
            "columns": self.columns,
            "dtype": self.dtype,
            "shape": tuple(self.shape),
            "transposed": self.transposed,
        }
        return QTensor(*inner, **(attributes | changes))  # type: ignore[arg-type]

    # -- honesty about memory ----------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes held: codes, scales and zero points."""
        return sum(t.nbytes for t in (getattr(self, n) for n in _INNER) if t is not None)

    def element_size(self) -> int:
        """Bytes per stored element of `codes`: 1 (a byte may hold several values; `nbytes` is the true size)."""
        return self.codes.element_size()

    def share_memory_(self) -> QTensor:
        """Moves the inner tensors to shared memory."""
        for name in _INNER:
            tensor = getattr(self, name)
            if tensor is not None:
                tensor.share_memory_()
        return self

    def is_shared(self) -> bool:
        return self.codes.is_shared()

    def numpy(self, *, force: bool = False) -> Any:
        return self.dequantize().numpy(force=force)

    def tolist(self) -> Any:
        return self.dequantize().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> QTensor:
        copy = self.rewrap(torch.clone)
        copy.requires_grad_(self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        names, context = self.__tensor_flatten__()
        inner = {n: getattr(self, n) for n in names}
        dtype = self.scale.dtype
        if is_small_float(dtype):  # torch 2.13 pickles these but cannot read them back
            inner["scale"] = self.scale.view(torch.uint8)
        return _rebuild, (inner, context, tuple(self.shape), dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        blocks = f", block_size={self.block_size}" if self.block_size else ""
        where = "" if self.device.type == "cpu" else f", device='{self.device}'"
        return f"QTensor({self.qtype.name}, shape={tuple(self.shape)}, dtype={self.dtype}{blocks}{where})"

    def __format__(self, spec: str) -> str:
        return repr(self) if self.ndim and not spec else format(self.dequantize(), spec)

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
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        from .dispatch import dispatch

        return dispatch(func, args, kwargs or {})


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1]
    for n in reversed(shape[1:]):
        strides.insert(0, strides[0] * n)
    return tuple(strides)


def is_small_float(dtype: torch.dtype) -> bool:
    """Whether a floating dtype has one byte."""
    return dtype.is_floating_point and dtype.itemsize == 1


def same(a: Tensor, b: Tensor) -> bool:
    """Whether dtype, shape and values are the same; also of one-byte floats, which torch 2.13 does not compare."""
    if a.dtype != b.dtype:
        return False
    if is_small_float(a.dtype):
        return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)) and a.shape == b.shape
    return torch.equal(a, b)


def _rebuild(inner: dict[str, Tensor], context: tuple[Any, ...], shape: tuple[int, ...], scale: torch.dtype) -> QTensor:
    if inner["scale"].dtype != scale:
        inner["scale"] = inner["scale"].view(scale)
    made = QTensor.__tensor_unflatten__(inner, context, shape, None)
    check_weight(made.weight(), made.inner_shape or (1,))
    if math.prod(made.inner_shape) != math.prod(shape):
        raise ValueError(f"a QTensor of shape {tuple(shape)} cannot have codes of {made.inner_shape}")
    return made


# torch.load(weights_only=True) asks for it before anything of quanto runs. It reads plain tensors, and checks them.
torch.serialization.add_safe_globals([_rebuild])
