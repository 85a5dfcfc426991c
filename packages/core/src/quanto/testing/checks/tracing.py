# SPDX-License-Identifier: Apache-2.0
"""The kernel traces: its fake agrees with it, and a compiled graph serves every token count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cases import Case
from ..problem import TOKENS, Problem, make
from ..truth import judge
from .base import Disagreement, check, describe

__all__: list[str] = []


@check(lambda case: isinstance(case.spec.fn, torch._ops.OpOverload), once=True)
def passes_opcheck(case: Case) -> None:
    """`torch.library.opcheck`: schema, fake implementation, dynamic shapes. Kernels that are plain code have none."""
    given = make(case.first, 3, seed=1).arguments(case.spec)
    # torch 2.13's schema test multiplies every input by itself, which float8 dtypes can't; it is left out there.
    narrow = any(isinstance(v, Tensor) and v.is_floating_point() and v.itemsize == 1 for v in given)
    tests = ("test_schema",) if not narrow else ()
    rest = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(case.spec.fn, tuple(given), test_utils=(*tests, *rest))  # type: ignore[arg-type]


@check(lambda case: case.spec.op in TOKENS, once=True)
def compiles_once(case: Case) -> None:
    """`torch.compile(fullgraph=True, dynamic=True)`: right for 19, 3, 130 and 5 tokens, in one compilation."""
    compilations = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        nonlocal compilations
        compilations += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    rows = [n in TOKENS[case.spec.op] or n == "offsets" for n in make(case.first, 3).given]
    fixed: list[Any] = make(case.first, 3, seed=2).arguments(case.spec)

    def call(*moving: Tensor) -> Any:
        rest = iter(moving)
        return case.spec.fn(*(next(rest) if r else f for r, f in zip(rows, fixed, strict=True)))

    torch._dynamo.reset()
    compiled = torch.compile(call, backend=count, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for tokens in (19, 3, 130, 5):
            problem = _with_rows(make(case.first, 3, seed=2), make(case.first, tokens, seed=3))
            values = problem.arguments(case.spec)
            got = compiled(*(v for r, v in zip(rows, values, strict=True) if r))
            sentence = judge(case.spec, problem, got)
            if sentence is not None:
                raise Disagreement(f"{describe(problem)}, compiled, {tokens} tokens: {sentence}")
    if compilations != 1:
        raise Disagreement(f"compiled {compilations} times for four token counts")


def _with_rows(weight: Problem, rows: Problem) -> Problem:
    """The activations of one problem with the weight of another."""
    names = (*TOKENS[weight.request.op], "offsets")
    return weight.having(**{n: rows.given[n] for n in names if n in rows.given})
