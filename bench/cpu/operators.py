# SPDX-License-Identifier: Apache-2.0
"""The operators beside linear layers: embedding, quantize, packing, layouts, gradient; and the cost of a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import quanto
from quanto import reference
from quanto.kernels import kernels

from .problem import Problem
from .quanto_kernels import panels

__all__ = ["measure", "overhead"]

OPS = torch.ops.quanto_cpu
QTYPES = ("int8", "int4", "int3", "int2", "nf4", "fp4", "float8_e4m3fn")
Case = tuple[str, str, int, Callable[[], Any], Callable[[], Any] | None]  # operator, weights, bytes, call, peer's call


@torch.no_grad()
def measure(problem: Problem, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each, and of core's reference, which is plain torch; GB/s of what is read and written."""
    torch.set_num_threads(threads)
    rows = []
    for operator, weights, nbytes, call, slow in _cases(problem):
        seconds = _best(call, rounds)
        plain = None if slow is None or rounds < 3 else _best(slow, 1)
        row = {"operator": operator, "weights": weights, "n": problem.n, "k": problem.k, "threads": threads}
        row |= {"ms": seconds * 1e3, "gbs": nbytes / seconds / 1e9, "reference_ms": plain and plain * 1e3}
        rows.append(row)
    return rows


def overhead(calls: int) -> dict[str, float]:
    """Microseconds of a 64 × 64 layer for one token: operators and modules, float and quantized; best of five."""
    torch.set_num_threads(1)
    plain, x = nn.Linear(64, 64), torch.randn(1, 64)
    layer = quanto.freeze(quanto.quantize(nn.Linear(64, 64), "int8"))
    problem = Problem(64, 64)
    tensors, qtype, blocks = panels(problem, "int8")
    # what quanto's layers call: the function in C++ that an overload wraps in Python, as F.linear is one
    exact, integer = OPS.linear_panels.default._op, OPS.linear_integer_panels.default._op
    weight, bias = plain.weight.detach(), plain.bias.detach()  # a module's attributes take 0.3 us each
    subjects: dict[str, Callable[[], Any]] = {
        "F.linear": lambda: F.linear(x, weight, bias),
        "operator, exact": lambda: exact(x, *tensors, bias, qtype, blocks),
        "operator, integer": lambda: integer(x, *tensors, bias, qtype, blocks),
        "nn.Linear": lambda: plain(x),
        "quantized nn.Linear": lambda: layer(x),
    }
    best = dict.fromkeys(subjects, float("inf"))
    with torch.no_grad():
        for _ in range(5):
            for name, call in subjects.items():
                call()
                start = time.perf_counter()
                for _ in range(calls):
                    call()
                best[name] = min(best[name], (time.perf_counter() - start) / calls * 1e6)
    return best


def _cases(problem: Problem) -> Iterator[Case]:
    n, k = problem.n, problem.k
    indices = torch.randint(0, n, (512,), generator=torch.Generator().manual_seed(0))
    layout = kernels.layouts["cpu.panels"]
    grad = torch.randn(128, n)
    yield "F.embedding, 512 of them", "float32", 2 * 512 * k * 4, lambda: F.embedding(indices, problem.values), None
    for qtype in QTYPES:
        w = problem.quantized(qtype).weight()
        canonical, blocks = w[:4], w.block_size
        held, _, _ = panels(problem, qtype)
        rest = [qtype, list(blocks)]
        size = sum(t.nbytes for t in canonical if t is not None)
        values = n * k * 4
        yield (
            "dequantize",
            qtype,
            size + values,
            lambda held=held, rest=rest: OPS.dequantize_panels(*held, *rest, k, torch.float32),
            lambda c=canonical, rest=rest: reference.dequantize(*c, *rest, k, torch.float32),
        )
        yield (
            "quantize",
            qtype,
            size + values,
            lambda c=canonical, rest=rest: OPS.quantize(problem.values, *c[1:], *rest),
            lambda c=canonical, rest=rest: reference.quantize(problem.values, *c[1:], *rest),
        )
        yield (
            "embedding, 512 of them",
            qtype,
            512 * (size // n + k * 4),
            lambda held=held, rest=rest: OPS.embedding_panels(indices, *held, *rest, k, torch.float32),
            lambda c=canonical, rest=rest: reference.embedding(indices, *c, *rest, k, torch.float32),
        )
        yield (
            "to panels",
            qtype,
            2 * size,
            lambda c=canonical, q=qtype, b=blocks: layout.pack(c, q, b, k),
            None,
        )
        yield (
            "from panels",
            qtype,
            2 * size,
            lambda held=held, q=qtype, b=blocks: layout.unpack(held, q, b, k),
            None,
        )
        kernel = _input_grad(held, rest)
        yield "gradient of 128 tokens", qtype, size, lambda call=kernel: call(grad, k), None
    yield "gradient of 128 tokens", "float32", n * k * 4, lambda: grad @ problem.values, None
    for bits in (4, 3, 2):
        codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8)
        packed = quanto.packing.pack(codes, bits)
        size = codes.nbytes + packed.nbytes
        yield (
            "pack",
            f"int{bits}",
            size,
            lambda c=codes, b=bits: OPS.pack(c, b),
            lambda c=codes, b=bits: quanto.packing.pack(c, b),
        )
        yield (
            "unpack",
            f"int{bits}",
            size,
            lambda p=packed, b=bits: OPS.unpack(p, b, k),
            lambda p=packed, b=bits: quanto.packing.unpack(p, b, k),
        )


def _input_grad(held: tuple[Any, ...], rest: list[Any]) -> Callable[[Tensor, int], Tensor]:
    """The registered kernel."""
    spec = kernels.specs["cpu.linear_input_grad"]
    return lambda grad, size: spec.fn(grad, *held, *rest, size)


def _best(call: Callable[[], Any], rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
