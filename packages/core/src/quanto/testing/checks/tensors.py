# SPDX-License-Identifier: Apache-2.0
"""Tensors as models pass them: strided, misaligned, empty, of any rank, from several threads, and never written to."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from ..cases import Case
from ..problem import TOKENS, Problem, make
from ..truth import judge
from .base import Disagreement, check, describe, verify

__all__ = ["misaligned"]

_THREADS = 4


def _has_tokens(case: Case) -> bool:
    return case.spec.op in TOKENS


@check(lambda case: case.spec.op in TOKENS and case.spec.op != "grouped_linear")
def takes_any_rank(case: Case) -> None:
    """`[in]`, `[2, 3, in]`, and batches of nothing."""
    for tokens, lead in ((1, ()), (6, (2, 3)), (0, (0,)), (0, (2, 0)), (5, (1, 5, 1))):
        verify(case, make(case.first, tokens, seed=1).reshaped(*lead), f"leading dimensions {list(lead)}")


@check(_has_tokens)
def takes_strides(case: Case) -> None:
    """Activations that are a transpose, every second row or column, or one row expanded."""
    views = {
        "transposed": lambda t: t.t().contiguous().t() if t.ndim == 2 else t,
        "every second row": lambda t: t.repeat_interleave(2, 0)[::2] if t.ndim else t,
        "every second column": lambda t: t.repeat_interleave(2, -1)[..., ::2] if t.ndim else t,
        "one row expanded": lambda t: t[:1].expand(t.shape) if t.ndim else t,
    }
    for name, view in views.items():
        for tokens in (1, 17):
            problem = make(case.first, tokens, seed=2)
            verify(case, problem.mapped(view, *TOKENS[case.spec.op]), f"{tokens} tokens, activations {name}")


def misaligned(t: Tensor) -> Tensor:
    """The same values one element behind the start of an allocation: aligned for its dtype and for nothing wider."""
    return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape).copy_(t)


@check()
def takes_misaligned_memory(case: Case) -> None:
    """Weights out of a memory-mapped file and slices of activations lie at any address."""
    problem = make(case.requests[-1], 5, seed=3)
    every = [n for n, v in problem.given.items() if isinstance(v, Tensor) and v.ndim]
    verify(case, problem.mapped(misaligned, *every), "every tensor misaligned")


@check()
def leaves_its_inputs_alone(case: Case) -> None:
    """No argument is written to, nor returned."""
    problem = make(case.first, 5, seed=4)
    given = problem.arguments(case.spec)
    before = [v.clone() if isinstance(v, Tensor) else v for v in given]
    with torch.no_grad():
        got = case.spec.fn(*given)
    for index, (now, then) in enumerate(zip(given, before, strict=True)):
        if isinstance(now, Tensor) and not _identical(now, then):
            raise Disagreement(f"{describe(problem)}: argument {index} was written to")
    memory = {v.untyped_storage().data_ptr() for v in given if isinstance(v, Tensor) and v.numel()}
    for out in got if isinstance(got, tuple) else (got,):
        if out.numel() and out.untyped_storage().data_ptr() in memory:
            raise Disagreement(f"{describe(problem)}: the result shares memory with an argument")


def _identical(a: Tensor, b: Tensor) -> bool:
    a, b = (t.contiguous().view(-1).view(torch.uint8) if t.numel() else t for t in (a, b))
    return torch.equal(a, b)


@check(_has_tokens, once=True)
def serves_several_threads(case: Case) -> None:
    """Four threads at once, each with tokens of its own."""
    problems = [make(case.first, 3 + 7 * i, seed=i) for i in range(_THREADS)]
    given = [p.arguments(case.spec) for p in problems]
    barrier = threading.Barrier(_THREADS)
    results: list[list[object]] = [[] for _ in problems]

    def work(index: int) -> None:
        with torch.no_grad():
            barrier.wait(timeout=60)
            results[index] = [case.spec.fn(*given[index]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for problem, found in zip(problems, results, strict=True):
        if not found:
            raise Disagreement(f"{describe(problem)}: raised in a thread, see above")
        _agree(case, problem, found)


def _agree(case: Case, problem: Problem, found: list[object]) -> None:
    for got in found:
        sentence = judge(case.spec, problem, got)
        if sentence is not None:
            raise Disagreement(f"{describe(problem)}, {_THREADS} threads at once: {sentence}")
