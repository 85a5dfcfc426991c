# SPDX-License-Identifier: Apache-2.0
"""Small problems for every kernel of quanto-backend-cuda, to be run under a checker of memory or of races.

    compute-sanitizer --tool memcheck python -m bench.cuda.sanitize
    compute-sanitizer --tool racecheck python -m bench.cuda.sanitize

Prints each problem and its relative error. No shape is a multiple of the tiles.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from torch import Tensor

import quanto
from quanto_backend_cuda.layout import TILED
from quanto_backend_cuda.ops import specialized, stream
from quanto_backend_cuda.ops.attend import define_attend
from quanto_backend_cuda.ops.weights import facts
from quanto_backend_cuda.runtime import warpgroups
from quanto_backend_cuda.specs import specs
from quanto_backend_cuda.tables import Tile

__all__ = ["main"]

_WEIGHTS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int4": {"symmetric": False},
    "int3": {"symmetric": True},
    "int2": {"symmetric": True},
    "nf4": {},
    "mxfp4": {},
    "float8_e4m3fn": {},
}
_WORST = 0.05


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def _say(name: str, got: Tensor, want: Tensor) -> bool:
    error = float((got.double() - want.double()).norm() / want.double().norm())
    print(f"{name}: {error:.1e}", flush=True)
    return error < _WORST


def _weight_only(qtype: str, options: dict[str, Any], tokens: tuple[int, ...], k: int = 640) -> bool:
    ops, good = torch.ops.quanto_cuda, True
    n = 272
    w = quanto.quantize_tensor(_random(n, k), qtype, **options)
    tensors, block = (w.codes, w.scale, w.zero_point, w.global_scale), list(w.block_size)
    tiles = TILED.pack(tensors, qtype, w.block_size, k)
    values, bias = w.dequantize(torch.float32).double(), _random(n)
    for m in tokens:
        x = _random(m, k)
        want = x.double() @ values.t() + bias.double()
        good &= _say(f"linear {qtype} {m}", ops.linear(x, *tensors, bias, qtype, block), want)
        for _ in range(2):  # above 64 tokens the first call is cuBLAS's
            good &= _say(f"linear_tiled {qtype} {m}", ops.linear_tiled(x, *tiles, bias, qtype, block), want)
    good &= _say(f"dequantize_tiled {qtype}", ops.dequantize_tiled(*tiles, qtype, block, k, torch.bfloat16), values)
    grad = _random(9, n)
    good &= _say(f"grad {qtype}", ops.linear_input_grad(grad, *tensors, qtype, block, k), grad.double() @ values)
    ids = torch.randint(0, n, (13,), device="cuda")
    good &= _say(f"embedding {qtype}", ops.embedding(ids, *tensors, qtype, block, k, torch.bfloat16), values[ids])
    return good


def _scaled(x_qtype: str, qtype: str, tokens: tuple[int, ...]) -> bool:
    ops, good = torch.ops.quanto_cuda, True
    n, k = 272, 640
    symmetric = {"symmetric": True} if qtype.startswith("int") else {}
    w = quanto.quantize_tensor(_random(n, k), qtype, granularity="channel", **symmetric)
    tensors, block = (w.codes, w.scale, w.zero_point, w.global_scale), list(w.block_size)
    linear = getattr(
        ops, {"int8": "scaled_linear_int8", "int4": "scaled_linear_int4"}.get(qtype, "scaled_linear_float8")
    )
    for m in tokens:
        x = _random(m, k)
        codes, scale = ops.dynamic_quantize(x, x_qtype, torch.float32)
        given = [*tensors, None, x_qtype, qtype, block, None, torch.bfloat16]
        want = x.double() @ w.dequantize(torch.float32).double().t()
        for _ in range(2):
            good &= _say(f"scaled {x_qtype} x {qtype} {m}", linear(codes, scale, *given), want)
    return good


def _grouped() -> bool:
    n, k, ends = 144, 256, [5, 5, 37, 70]
    w = quanto.quantize_tensor(_random(4, n, k), "int4", symmetric=True)
    x, offsets = _random(70, k), torch.tensor(ends, device="cuda", dtype=torch.int32)
    got = torch.ops.quanto_cuda.grouped_linear(
        x, w.codes, w.scale, None, None, None, offsets, "int4", list(w.block_size)
    )
    values = w.dequantize(torch.float32).double()
    spans = zip([0, *ends], ends, strict=False)
    want = torch.cat([x[a:b].double() @ values[e].t() for e, (a, b) in enumerate(spans)])
    return _say("grouped_linear int4", got, want)


def _clustered() -> bool:
    """Blocks that hand sums over inside their cluster: of eight, four and two."""
    if not warpgroups(torch.device("cuda", 0)):
        return True
    good, pairs = True, Tile(128, 128, stages=6, blocks=132, cluster=2)
    problems: tuple[tuple[int, int, int, Tile], ...] = (
        (272, 1024, 16, Tile(128, 16, stages=4, blocks=24, cluster=8)),
        (272, 1408, 13, Tile(64, 16, stages=3, blocks=20, cluster=4)),
        (272, 640, 33, Tile(128, 64, stages=3, blocks=6, cluster=8)),
        (4000, 1408, 250, pairs),
        (4000, 640, 130, pairs),
    )
    for (n, k, m, tile), qtype in itertools.product(problems, ("int4", "int8")):
        w = quanto.quantize_tensor(_random(n, k), qtype)
        weight = TILED.pack((w.codes, w.scale, w.zero_point, w.global_scale), qtype, w.block_size, k)
        x, bias, out = _random(m, k), _random(n), torch.full((m, n), float("nan"), device="cuda", dtype=torch.bfloat16)
        few = m <= stream.TOKENS
        size = tile.clustered(m, n, k // 128) if few else specialized.dealt(m, n, k, tile, x.device).cluster
        assert size > 1
        start = stream.start if few else specialized.start
        start(x, weight, bias, facts(qtype, list(w.block_size), k), out, tile)
        want = x.double() @ w.dequantize(torch.float32).double().t() + bias.double()
        good &= _say(f"linear_tiled {qtype} {m}, {size} blocks to a cluster", out, want)
    return good


def _attend() -> bool:
    """To a cache of one block of threads and of several; and with what stands before it."""
    ops, good, at = torch.ops.quanto_cuda, True, 20
    for length in (37, 700):
        query, key, value = _random(2, 6, 1, 80), _random(2, 2, length, 80), _random(2, 2, length, 80)
        seen = torch.arange(length, device="cuda").expand(2, 1, 1, length) < length - 9

        def want(query: Tensor, key: Tensor, value: Tensor, seen: Tensor = seen) -> Tensor:
            wide = [t.double().repeat_interleave(3, 1) for t in (key, value)]
            scores = (query.double() @ wide[0].mT * 0.1).masked_fill(~seen, float("-inf"))
            return (scores.softmax(-1) @ wide[1]).transpose(1, 2)

        good &= _say(f"attend {length}", ops.attend(query, key, value, seen, 0.1), want(query, key, value))
        new_key, new_value, position = _random(2, 2, 1, 80), _random(2, 2, 1, 80), torch.tensor([at], device="cuda")
        cos, sin = _random(2, 1, 1, 80), _random(2, 1, 1, 80)
        got = ops.rotate_and_attend(query, new_key, new_value, cos, sin, position, key, value, seen, 0.1)
        turned = [x * cos + torch.cat((-x[..., 40:], x[..., :40]), -1) * sin for x in (query, new_key)]
        key[:, :, at : at + 1], value[:, :, at : at + 1] = turned[1], new_value
        good &= _say(f"rotate_and_attend {length}", got, want(turned[0], key, value))
    return good


def main() -> int:
    """All of them; 1 if a result is wrong."""
    torch.manual_seed(0)
    specs()
    define_attend()
    few = tuple(int(m) for m in sys.argv[1:]) or (1, 19, 130)
    good = True
    for qtype, options in _WEIGHTS.items():
        good &= _weight_only(qtype, options, few)
    good &= _weight_only("nf4", {}, few, 576)  # the last stretch is half a one
    for pair in (("int8", "int8"), ("int8", "int4"), ("float8_e4m3fn", "float8_e4m3fn")):
        good &= _scaled(*pair, few)
    good &= _grouped()
    good &= _clustered()
    good &= _attend()
    torch.cuda.synchronize()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
