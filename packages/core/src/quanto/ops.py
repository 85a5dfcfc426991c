# SPDX-License-Identifier: Apache-2.0
"""The operators: the contract between layers and kernels.

Each schema below is defined once as `torch.ops.quanto_core.<name>`, whose implementation is the plain-torch reference,
with a fake implementation, so that it traces, exports and passes `torch.library.opcheck`. A kernel is any callable of
the same signature. The functions at the end are what layers call: they pick the kernel and add the gradient.

A weight is always `codes, scale, zero_point, global_scale` together with `qtype` and `block_size` (see
`quanto.weight.Weight`). `[…]` are leading dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import packing, reference
from .contracts import CHECKS
from .fakes import FAKES
from .kernels.registry import kernels
from .nonlinearity import apply, check_nonlinearity
from .weight import CANONICAL, Weight, constants_of

__all__ = [
    "FAKES",
    "SCHEMAS",
    "dequantize",
    "embedding",
    "grouped_linear",
    "linear",
    "quantized_linear",
    "scaled_linear",
]

_WEIGHT = "Tensor codes, Tensor scale, Tensor? zero_point, Tensor? global_scale"

SCHEMAS: dict[str, str] = {
    # x [… , K] -> codes [… , ceil(K * bits / 8)]
    "quantize": "(Tensor x, Tensor scale, Tensor? zero_point, Tensor? global_scale, str qtype, int[] block_size)"
    " -> Tensor",
    # codes -> [… , size] of dtype
    "dequantize": f"({_WEIGHT}, str qtype, int[] block_size, int size, ScalarType dtype) -> Tensor",
    # codes uint8 [… , K] <-> packed uint8 [… , ceil(K * bits / 8)]
    "pack": "(Tensor codes, int bits) -> Tensor",
    "unpack": "(Tensor packed, int bits, int size) -> Tensor",
    # x [… , K] -> codes [… , packed K], scale [… , 1]: one scale per token
    "dynamic_quantize": "(Tensor x, str qtype, ScalarType scale_dtype) -> (Tensor, Tensor)",
    # x [… , K], weight [N, K] -> [… , N]
    "linear": f"(Tensor x, {_WEIGHT}, Tensor? bias, str qtype, int[] block_size) -> Tensor",
    # grad [… , N] -> [… , size]
    "linear_input_grad": f"(Tensor grad, {_WEIGHT}, str qtype, int[] block_size, int size) -> Tensor",
    # x_codes [… , K], x_scale [] or [… , 1] -> [… , N] of dtype, or its codes where out_scale is given; through
    # a function of quanto.nonlinearity before it is rounded
    "scaled_linear": f"(Tensor x_codes, Tensor x_scale, {_WEIGHT}, Tensor? bias, str x_qtype, str qtype,"
    ' int[] block_size, Tensor? out_scale, ScalarType dtype, str nonlinearity="") -> Tensor',
    # x [T, K] sorted by expert, weight [E, N, K], offsets int32 [E] -> [T, N]
    "grouped_linear": f"(Tensor x, {_WEIGHT}, Tensor? bias, Tensor offsets, str qtype, int[] block_size) -> Tensor",
    # indices […], weight [V, size] -> [… , size] of dtype
    "embedding": f"(Tensor indices, {_WEIGHT}, str qtype, int[] block_size, int size, ScalarType dtype) -> Tensor",
}

_library = torch.library.Library("quanto_core", "FRAGMENT")
_any_autocast = torch._C._is_any_autocast_enabled  # 0.1 us


def _define() -> None:
    """Defines the operators in torch, once, at import: they must exist before any saved graph that holds them runs."""
    implementations = {"pack": packing.pack, "unpack": packing.unpack}
    for name, schema in SCHEMAS.items():
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        function = _checked(name, implementations.get(name) or getattr(reference, name))
        _library.impl(name, _fresh(function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"quanto_core::{name}", FAKES[name], lib=_library)


def _fresh(function: Any) -> Any:
    """Adds what an operator promises beyond its function.

    Results are contiguous, as the fake says; none is an argument (8-bit packing is the identity); and autocast, which
    would round exact integer sums to half precision, is off.
    """

    def call(*args: Any) -> Any:
        if _any_autocast():
            with torch.autocast(args[0].device.type, enabled=False):
                out = function(*args)
        else:
            out = function(*args)
        if isinstance(out, tuple):
            return tuple(t.contiguous() for t in out)
        return out.clone(memory_format=torch.contiguous_format) if out is args[0] else out.contiguous()

    return call


def _checked(name: str, function: Any) -> Any:
    check = CHECKS[name]

    def call(*args: Any) -> Any:
        check(*args)
        return function(*args)

    return call


# -- what layers call ------------------------------------------------------------------------------------------------


def _kernel(op: str, key: str, device: str, dtype: torch.dtype, activations: str = "") -> str:
    if torch.compiler.is_exporting():  # the program must run where the plugins of this machine are not installed
        refuse_export(key.rpartition(";")[2])
        return f"reference.{op}"
    return kernels.name_for(op, key, device, dtype, activations)


# The mark that torch.compiler.assume_constant_result sets (seen in torch 2.11 and 2.13); calling that would import all
# of torch._dynamo, a second of `import quanto`.
_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]

_calls = kernels.calls
_direct = kernels.direct


def refuse_export(layout: str) -> None:
    """Raises RuntimeError while a program is exported from a weight that lies as a kernel of this machine wants it."""
    if layout != CANONICAL and torch.compiler.is_exporting():
        raise RuntimeError(
            f"torch.export: a weight has the layout {layout}, which other machines need not have; "
            "call quanto.arrange(model, 'canonical') first, and quanto.arrange(model) afterwards"
        )


def _call_linear(x: Tensor, w: Weight, bias: Tensor | None) -> Tensor:
    codes, scale, zero_point, global_scale, qtype, block_size, size, key = w
    compiling = torch.compiler.is_compiling()
    if compiling:
        qtype, block_size, size = constants_of(key)
    call = None if compiling else _direct.get((key, x.device, x.dtype))
    if call is None:
        call = _calls[_kernel("linear", key, x.device.type, x.dtype)]
        if not compiling:
            call = getattr(call, "_op", call)  # what an overload calls: without its Python, 0.2 us
            _direct[key, x.device, x.dtype] = call
    if x.shape[-1] != size:
        raise RuntimeError(f"linear: x has {x.shape[-1]} features, the weight takes {size}")
    return call(x, codes, scale, zero_point, global_scale, bias, qtype, block_size)


def linear_input_grad(grad: Tensor, w: Weight) -> Tensor:
    """`grad @ weight`, `[…, in]`: the gradient of `linear` with respect to its input."""
    call = _calls[_kernel("linear_input_grad", w.key, grad.device.type, grad.dtype)]
    args = (w.codes, w.scale, w.zero_point, w.global_scale, w.qtype, w.block_size, w.size)
    return call(grad.contiguous(), *args)


def linear(x: Tensor, w: Weight, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` with a quantized weight.

    Args:
        x: floating, `[…, in]`.
        w: the weight, `[out, in]`.
        bias: `[out]` or None.

    Returns:
        `[…, out]` in x's dtype; differentiable with respect to x and bias.

    Raises:
        RuntimeError: if the last dimension of x is not `in`.
    """
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _Linear.apply(x, bias, "", None, *w)  # type: ignore[no-untyped-call]
    return _call_linear(x, w, bias)


def quantized_linear(
    x: Tensor, w: Weight, bias: Tensor | None, activations: str, scale: Tensor | None = None, nonlinearity: str = ""
) -> Tensor:
    """`linear` on activations quantized on the way.

    Args:
        x: floating, `[…, in]`.
        w: the weight.
        bias: `[out]` or None.
        activations: their qtype.
        scale: `[]`, static; None quantizes each token with its own scale.
        nonlinearity: `"relu"`, `"gelu"`, `"gelu_tanh"` or `"silu"` of the result, in the same pass; `""` is none.

    Returns:
        `[…, out]` in x's dtype. Its gradient passes straight through the rounding of x.

    Raises:
        RuntimeError: if the last dimension of x is not `in`.
        ValueError: if there is no such nonlinearity.
    """
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return apply(_Linear.apply(x, bias, activations, scale, *w), nonlinearity)  # type: ignore[no-untyped-call]
    return _call_quantized(x, w, bias, activations, scale, nonlinearity)


def _call_quantized(
    x: Tensor, w: Weight, bias: Tensor | None, activations: str, scale: Tensor | None, nonlinearity: str = ""
) -> Tensor:
    _check_features(x, w)  # of x, not of codes: torch 2.11 cannot trace a size that turns constant within `_Linear`
    if scale is None:
        codes, scale = _calls[_kernel("dynamic_quantize", _activation_key(activations), x.device.type, x.dtype)](
            x, activations, torch.float32
        )
    else:
        codes = torch.ops.quanto_core.quantize(x, scale, None, None, activations, [])
    return scaled_linear(codes, scale, w, bias, activations, None, x.dtype, nonlinearity)


def _check_features(x: Tensor, w: Weight) -> None:
    if x.shape[-1] != w.size:
        raise RuntimeError(f"linear: x has {x.shape[-1]} features, the weight takes {w.size}")


def _activation_key(activations: str) -> str:
    return f"{activations};;;float32;none;canonical"


def scaled_linear(
    codes: Tensor,
    scale: Tensor,
    w: Weight,
    bias: Tensor | None,
    activations: str,
    out_scale: Tensor | None,
    dtype: torch.dtype,
    nonlinearity: str = "",
) -> Tensor:
    """The `scaled_linear` operator by the best kernel; no gradient. See `quanto.reference.scaled_linear`.

    Raises:
        RuntimeError: if the last dimension of codes is not the weight's.
        ValueError: if there is no such nonlinearity.
    """
    check_nonlinearity(nonlinearity)
    _check_features(codes, w)
    call = _calls[_kernel("scaled_linear", w.key, codes.device.type, dtype, activations)]
    weight = (w.codes, w.scale, w.zero_point, w.global_scale)
    args = (codes, scale, *weight, bias, activations, w.qtype, w.block_size, out_scale, dtype)
    return call(*args, nonlinearity) if nonlinearity else call(*args)


class _Linear(torch.autograd.Function):
    """Gives every kernel, whoever wrote it, the gradient of a linear layer with a frozen weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, activations: str, scale: Tensor | None, *weight: Any
    ) -> Tensor:
        w = Weight(*weight)
        ctx.save_for_backward(*w[:4])
        ctx.constants = w[4:]
        ctx.bias = None if bias is None else bias.dtype
        if activations:
            return _call_quantized(x, w, bias, activations, scale)
        return _call_linear(x, w, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w = Weight(*ctx.saved_tensors, *ctx.constants)
        grad_x = linear_input_grad(grad, w) if ctx.needs_input_grad[0] else None
        grad_bias = None
        if ctx.bias is not None and ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias)
        return grad_x, grad_bias, *(None,) * (2 + len(Weight._fields))


def embedding(indices: Tensor, w: Weight, dtype: torch.dtype) -> Tensor:
    """Rows of a quantized table, decoded to `dtype`: `[*indices.shape, size]`."""
    call = _calls[_kernel("embedding", w.key, w.codes.device.type, dtype)]
    args = (w.codes, w.scale, w.zero_point, w.global_scale, w.qtype, w.block_size, w.size, dtype)
    return call(indices, *args)


def grouped_linear(x: Tensor, w: Weight, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """Linear layers of many experts in one call; see `quanto.reference.grouped_linear`.

    Returns:
        `[T, out]` in x's dtype; differentiable with respect to x and bias.

    Raises:
        RuntimeError: if the last dimension of x is not the weight's.
    """
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        from .grouped import GroupedLinear

        return GroupedLinear.apply(x, bias, offsets, *w)  # type: ignore[no-untyped-call]
    return call_grouped_linear(x, w, bias, offsets)


def call_grouped_linear(x: Tensor, w: Weight, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """The `grouped_linear` operator by the best kernel; no gradient."""
    if x.shape[-1] != w.size:
        raise RuntimeError(f"grouped_linear: x has {x.shape[-1]} features, the weight takes {w.size}")
    call = _calls[_kernel("grouped_linear", w.key, x.device.type, x.dtype)]
    weight = (w.codes, w.scale, w.zero_point, w.global_scale)
    return call(x, *weight, bias, offsets, w.qtype, w.block_size)


def dequantize(w: Weight, dtype: torch.dtype) -> Tensor:
    """The values of a weight, `[…, size]` of `dtype`."""
    call = _calls[_kernel("dequantize", w.key, w.codes.device.type, dtype)]
    return call(w.codes, w.scale, w.zero_point, w.global_scale, w.qtype, w.block_size, w.size, dtype)


_define()
