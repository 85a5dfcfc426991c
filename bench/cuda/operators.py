# SPDX-License-Identifier: Apache-2.0
"""The other operators: bytes read and written, each over the read ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import quanto
from quanto_backend_cuda.layout import TILED
from quanto_backend_cuda.tune.timing import COLD, copies_for, replayed

__all__ = ["rows"]

DEVICE = torch.device("cuda", 0)


def rows(n: int, k: int, read_gbs: float) -> Iterator[dict[str, Any]]:
    """One row per operator and kind of weight."""
    torch.manual_seed(0)
    weight = torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16)
    ops = torch.ops.quanto_cuda
    for m in (1, 256, 4096):
        x = torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16)
        for qtype in ("int8", "float8_e4m3fn"):
            yield _row(f"dynamic_quantize {qtype}, {m} tokens", 3 * m * k, _over(ops.dynamic_quantize, x, 3 * m * k,
                       qtype, torch.float32), read_gbs)  # fmt: skip
    for name, options in {"int4": {"symmetric": False}, "int8": {}, "nf4": {}}.items():
        w = quanto.quantize_tensor(weight, name, **options)
        tensors = (w.codes, w.scale, w.zero_point, w.global_scale)
        block, both = list(w.block_size), w.codes.numel() + 2 * n * k
        tiles = TILED.pack(tensors, name, w.block_size, k)
        quantize = _over(ops.quantize, weight, both, w.scale, w.zero_point, None, name, block)
        yield _row(f"quantize {name}", both, quantize, read_gbs)
        for kind, kernel, parts in (("", ops.dequantize, tensors), (" tiled", ops.dequantize_tiled, tiles)):
            yield _row(f"dequantize {name}{kind}", both,
                       _over(kernel, parts[0], both, *parts[1:], name, block, k, torch.bfloat16), read_gbs)  # fmt: skip
        grad = torch.randn(256, n, device=DEVICE, dtype=torch.bfloat16)
        back = _over(partial(ops.linear_input_grad_tiled, grad), tiles[0], both, *tiles[1:], name, block, k)
        yield _row(f"linear_input_grad {name}, 256 tokens", w.codes.numel(), back, read_gbs)
        ids = torch.randint(0, n, (256,), device=DEVICE)
        found = _over(partial(ops.embedding, ids), w.codes, both, *tensors[1:], name, block, k,
                      torch.bfloat16)  # fmt: skip
        yield _row(f"embedding {name}, 256 indices", 256 * (w.codes.shape[1] + 2 * k), found, read_gbs)
    codes = torch.randint(0, 16, (n, k), device=DEVICE, dtype=torch.uint8)
    packed = ops.pack(codes, 4)
    yield _row("pack 4 bits", n * k * 3 // 2, _over(ops.pack, codes, n * k * 3 // 2, 4), read_gbs)
    yield _row("unpack 4 bits", n * k * 3 // 2, _over(ops.unpack, packed, n * k * 3 // 2, 4, k), read_gbs)
    yield from _grouped(n, k, read_gbs)


def _grouped(n: int, k: int, read_gbs: float) -> Iterator[dict[str, Any]]:
    experts = 8
    weight = torch.randn(experts, n, k, device=DEVICE, dtype=torch.bfloat16)
    w = quanto.quantize_tensor(weight, "int4", symmetric=True)
    block = list(w.block_size)
    nbytes = w.codes.numel() + 2 * w.scale.numel()
    for tokens in (8, 64, 1024):
        x = torch.randn(tokens, k, device=DEVICE, dtype=torch.bfloat16)
        ends = torch.arange(1, experts + 1, device=DEVICE, dtype=torch.int32) * (tokens // experts)
        call = _over(
            lambda c, *a, x=x, ends=ends: torch.ops.quanto_cuda.grouped_linear(x, c, *a, None, ends, "int4", block),
            w.codes, nbytes, w.scale, None, None,
        )  # fmt: skip
        yield _row(f"grouped_linear int4, {experts} experts, {tokens} tokens", nbytes, call, read_gbs)


def _over(function: Callable[..., Any], first: Tensor, nbytes: int, *rest: Any) -> list[Callable[[], Any]]:
    """Calls on copies of the first argument, so that they find nothing in the L2."""
    copies = [first, *(first.clone() for _ in range(min(copies_for(nbytes, COLD), 64) - 1))]
    return [lambda c=c: function(c, *rest) for c in copies]


def _row(name: str, nbytes: int, calls: list[Callable[[], Any]], read_gbs: float) -> dict[str, Any]:
    try:
        us = replayed(calls, DEVICE)
    except Exception as error:
        return {"operator": name, "note": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
    return {"operator": name, "us": us, "gbs": nbytes / us / 1e3, "share": nbytes / us / 1e3 / read_gbs}
