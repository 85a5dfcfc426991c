# SPDX-License-Identifier: Apache-2.0
"""Operators between products of few tokens: norms and activations that let the next kernel begin early."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..runtime import dependent_launch, import_triton, launch
from .define import NAMESPACE

__all__ = ["activate_and_multiply", "add_rms_norm", "define_norms", "rms_norm"]

_HALVES = (torch.float16, torch.bfloat16)
_KINDS = ("silu", "gelu", "gelu_tanh")
_WIDEST = 1 << 14  # features that one block of threads holds in registers
_AT_ONCE = 1024  # features of a block that activates


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool) -> Tensor:
    """`x / sqrt(mean(x ** 2) + eps) * weight`, in float32, rounded before it is multiplied.

    Args:
        x: float16 or bfloat16 `[…, features]`, at most 16384 features.
        weight: of its dtype, `[features]`, contiguous.
        eps: is added to the mean.
        plus_one: multiplies with `weight + 1` instead, before it is rounded.

    Returns:
        As x, contiguous.

    Raises:
        ValueError: if a shape, dtype or device does not fit, naming the argument.
    """
    return _norm(x, None, weight, eps, plus_one)[1]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, plus_one: bool) -> tuple[Tensor, Tensor]:
    """`x + residual`, rounded, and its `rms_norm`; residual is as x."""
    if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
        raise ValueError(f"residual is {_said(residual)}, x {_said(x)}")
    return _norm(x, residual, weight, eps, plus_one)


def activate_and_multiply(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """`activation(gate) * up`, the activation in float32, rounded before it is multiplied.

    Args:
        gate: float16 or bfloat16 `[…, features]`.
        up: as gate.
        kind: "silu", "gelu" or "gelu_tanh".

    Returns:
        As gate, contiguous.

    Raises:
        ValueError: if a shape, dtype or device does not fit, or the kind is unknown, naming the argument.
    """
    if gate.dtype not in _HALVES or not gate.ndim:
        raise ValueError(f"gate must be halves […, features], got {_said(gate)}")
    if up.shape != gate.shape or up.dtype != gate.dtype or up.device != gate.device:
        raise ValueError(f"up is {_said(up)}, gate {_said(gate)}")
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    import_triton()
    from ..kernels.norm import activate_and_multiply as kernel

    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if not out.numel():
        return out
    size = gate.shape[-1]
    g, u = _rows(gate), _rows(up)
    grid = (g.shape[0], -(-size // _AT_ONCE))
    launch(
        kernel, grid, g, u, out, size, g.stride(0), u.stride(0), KIND=kind, BN=_AT_ONCE, num_warps=4,
        **_early(gate.device),
    )  # fmt: skip
    return out


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, plus_one: bool) -> tuple[Tensor, Tensor]:
    if x.dtype not in _HALVES or not x.ndim or x.shape[-1] > _WIDEST:
        raise ValueError(f"x must be halves […, features], at most {_WIDEST} features, got {_said(x)}")
    if weight.shape != x.shape[-1:] or weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(f"weight is {_said(weight)}, x {_said(x)}")
    if not weight.is_contiguous():
        raise ValueError(f"weight must be contiguous, its stride is {weight.stride(0)}")
    import_triton()
    from ..kernels.norm import rms_norm as kernel

    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = normed if residual is None else torch.empty_like(normed)
    if not normed.numel():
        return total, normed
    size = x.shape[-1]
    rows, more = _rows(x), None if residual is None else _rows(residual)
    launch(
        kernel, (rows.shape[0],), rows, more, weight, None if residual is None else total, normed, eps, size,
        rows.stride(0), 0 if more is None else more.stride(0), BN=max(1 << (size - 1).bit_length(), 16),
        PLUS_ONE=plus_one, num_warps=8 if size > 1024 else 4, **_early(x.device),
    )  # fmt: skip
    return total, normed


def _rows(t: Tensor) -> Tensor:
    """`[rows, features]`, features contiguous; a view where that is one."""
    rows = t.reshape(-1, t.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _early(device: torch.device) -> dict[str, Any]:
    pdl = dependent_launch(device)
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}


def _said(t: Tensor) -> str:
    return f"{t.dtype} {list(t.shape)} on {t.device}"


@functools.cache
def define_norms() -> dict[str, Any]:
    """Defines the operators, once, by name; Inductor is not shown the kernels, which begin early."""

    def like(x: Tensor, *_: Any) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)

    found = {}
    for name, function, schema, fake in (
        ("rms_norm", rms_norm, "(Tensor x, Tensor weight, float eps, bool plus_one) -> Tensor", like),
        (
            "add_rms_norm",
            add_rms_norm,
            "(Tensor x, Tensor residual, Tensor weight, float eps, bool plus_one) -> (Tensor, Tensor)",
            lambda x, *_: (like(x), like(x)),
        ),
        ("activate_and_multiply", activate_and_multiply, "(Tensor gate, Tensor up, str kind) -> Tensor", like),
    ):
        torch.library.custom_op(f"{NAMESPACE}::{name}", function, mutates_args=(), schema=schema).register_fake(fake)
        found[name] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return found
