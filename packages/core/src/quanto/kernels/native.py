# SPDX-License-Identifier: Apache-2.0
"""torch's own fast paths, registered where they are right and faster than the reference.

Each is wrapped as an operator of its own, so that the choice by token count is made inside of it, where it costs no
recompilation. Timings beside the guards: 2048 x 2048, 2 threads of an EPYC 9004 (AVX-512, VNNI, BF16), torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops, reference
from ..nonlinearity import apply
from ..qtypes import get_qtype
from . import int4pack
from .registry import KernelRegistry
from .spec import KernelSpec, Request

__all__ = ["register"]

_library = torch.library.Library("quanto_core", "FRAGMENT")


def _define(name: str, like: str, function: Callable[..., Any]) -> Any:
    """Defines an operator with the schema and fake of another."""
    _library.define(name + ops.SCHEMAS[like], tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"quanto_core::{name}", ops.FAKES[like], lib=_library)
    return getattr(torch.ops.quanto_core, name).default


# -- int8 weights, bfloat16 activations, on a CPU ----------------------------------------------------------------------
# M=1: 0.12 ms (decode + F.linear 1.09); M=16: 0.88 (1.27); M=128: 7.0 (3.5). Where the CPU has no bf16 dot product,
# F.linear itself is slow and this path wins up to any M measured (Zen 3: M=128 203 ms, decode + F.linear > 500).


def _int8pack_rows() -> int:
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return 16 if supported() else 128


def _aligned(t: Tensor) -> Tensor:
    # torch 2.13 crashes (AVX-512) where x is not aligned to 32 bytes, or codes to 16 with four rows or more; weights
    # mapped from a file and slices of activations lie anywhere.
    return t if t.data_ptr() % 64 == 0 else t.clone()


def _linear_int8pack(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Any,
    shared: Any,
    bias: Tensor | None,
    qtype: str,
    block: Sequence[int],
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if not 0 < rows.shape[0] <= _int8pack_rows():
        return reference.linear(x, codes, scale, zero, shared, bias, qtype, block)
    y = torch._weight_int8pack_mm(_aligned(rows.contiguous()), _aligned(codes), scale.reshape(-1).to(x.dtype))
    y = y if bias is None else y + bias.to(y.dtype)
    return y.reshape(*x.shape[:-1], -1)


def _refuse_int8pack(request: Request) -> str | None:
    # torch 2.13 reads past the row: with AVX2 192 crashes and 93 wrong results in 748 shapes, all of them with
    # K % 8 != 0; with AVX-512 a crash at every K of 8, 24, 40, 72, 104 and 136, none at multiples of 16.
    size = request.shape[-1]
    step = 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8
    if size % step == 0:
        return None
    return f"needs in_features that are a multiple of {step}, not {size}: torch's own function would crash"


# -- int8 x int8 -------------------------------------------------------------------------------------------------------
# CPU with VNNI: M=1 0.05 ms, M=128 1.8 ms (float32 F.linear 7.6). Without VNNI it is 32 times slower than float.


def _scaled_linear_int_mm(
    x_codes: Tensor,
    x_scale: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    bias: Tensor | None,
    x_qtype: str,
    qtype: str,
    block: Sequence[int],
    out_scale: Tensor | None,
    dtype: torch.dtype,
    nonlinearity: str = "",
) -> Tensor:
    rows = x_codes.reshape(-1, x_codes.shape[-1]).contiguous()
    count = rows.shape[0]
    if count == 0:
        args = (x_codes, x_scale, codes, scale, zero, shared, bias, x_qtype, qtype, block, out_scale, dtype)
        return reference.scaled_linear(*args, nonlinearity)
    if rows.device.type != "cpu" and count <= 16:  # cuBLAS wants more than 16 rows
        rows = torch.nn.functional.pad(rows, (0, 0, 0, 17 - count))
    total = torch._int_mm(rows, codes.t())[:count]
    xs = x_scale.float().reshape(-1, 1) if x_scale.ndim else x_scale.float()
    y = reference.rescale(total, xs, scale.float().reshape(1, -1), bias)
    y = apply(y, nonlinearity).reshape(*x_codes.shape[:-1], -1)
    return y.to(dtype) if out_scale is None else reference.encode(y / out_scale.float(), get_qtype(x_qtype))


def _refuse_int_mm_cpu(request: Request) -> str | None:
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return "is 32 times slower than float on a CPU without VNNI"
    return None


def _refuse_int_mm_gpu(request: Request) -> str | None:
    rows, size = request.shape[-2:]
    if rows % 8 or size % 8:
        return f"needs in_features and out_features that are multiples of 8 (here {size} and {rows})"
    return None


# -- float8 x float8 on a GPU that has it ------------------------------------------------------------------------------


def _scaled_linear_scaled_mm(
    x_codes: Tensor,
    x_scale: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    shared: Tensor | None,
    bias: Tensor | None,
    x_qtype: str,
    qtype: str,
    block: Sequence[int],
    out_scale: Tensor | None,
    dtype: torch.dtype,
    nonlinearity: str = "",
) -> Tensor:
    if x_codes.numel() == 0:
        args = (x_codes, x_scale, codes, scale, zero, shared, bias, x_qtype, qtype, block, out_scale, dtype)
        return reference.scaled_linear(*args, nonlinearity)
    element = torch.float8_e4m3fn
    rows = x_codes.reshape(-1, x_codes.shape[-1]).contiguous().view(element)
    scales = x_scale.float().reshape(-1, 1).expand(rows.shape[0], 1).contiguous()
    y = torch._scaled_mm(
        rows,
        codes.view(element).t(),
        scale_a=scales,
        scale_b=scale.float().reshape(1, -1).contiguous(),
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
    ).reshape(*x_codes.shape[:-1], -1)
    if nonlinearity:
        y = apply(y.float(), nonlinearity)
    return y.to(dtype) if out_scale is None else reference.encode(y.float() / out_scale.float(), get_qtype(x_qtype))


def _refuse_scaled_mm(request: Request) -> str | None:
    rows, size = request.shape[-2:]
    if rows % 16 or size % 16:
        return f"needs in_features and out_features that are multiples of 16 (here {size} and {rows})"
    return None


def register(registry: KernelRegistry) -> None:
    """Registers torch's kernels; the reference answers wherever they refuse."""
    bf16, channel = frozenset({torch.bfloat16}), frozenset({"channel"})
    int8 = frozenset({"int8"})
    registry.register(
        KernelSpec(
            name="torch.int8pack",
            op="linear",
            device="cpu",
            fn=_define("linear_int8pack", "linear", _linear_int8pack),
            qtypes=int8,
            dtypes=bf16,
            granularities=channel,
            priority=20,
            refuse=_refuse_int8pack,
        )
    )
    registry.register_layout(int4pack.LAYOUT)
    registry.register(
        KernelSpec(
            name="torch.int4pack",
            op="linear",
            device="cpu",
            fn=_define("linear_int4pack", "linear", int4pack.linear),
            qtypes=frozenset({"int4"}),
            dtypes=bf16,
            granularities=frozenset({"group", "channel"}),
            zero_points=frozenset({"none", "int", "float"}),
            layout=int4pack.LAYOUT.name,
            priority=20,
            scale_dtypes=bf16,
            refuse=int4pack.refuse,
        )
    )
    int_mm = _define("scaled_linear_int_mm", "scaled_linear", _scaled_linear_int_mm)
    for device, refuse in (("cpu", _refuse_int_mm_cpu), ("cuda", _refuse_int_mm_gpu)):
        registry.register(
            KernelSpec(
                name=f"torch.int_mm.{device}",
                op="scaled_linear",
                device=device,
                fn=int_mm,
                qtypes=int8,
                granularities=channel,
                activations=int8,
                priority=20,
                refuse=refuse,
            )
        )
    registry.register(
        KernelSpec(
            name="torch.scaled_mm.cuda",
            op="scaled_linear",
            device="cuda",
            fn=_define("scaled_linear_scaled_mm", "scaled_linear", _scaled_linear_scaled_mm),
            qtypes=frozenset({"float8_e4m3fn"}),
            dtypes=bf16,
            granularities=channel,
            activations=frozenset({"float8_e4m3fn"}),
            priority=20,
            min_capability=(8, 9),
            refuse=_refuse_scaled_mm,
        )
    )
