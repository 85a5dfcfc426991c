# SPDX-License-Identifier: Apache-2.0
"""The numeric check of a native kernel at its first use in a process.

Kernels that compile and return wrong numbers exist (an int8 Metal kernel on the M4, a Marlin kernel that dropped the
bias for a year), so a kernel is believed only after it has agreed with the reference on a small random problem of the
kind it is about to solve: milliseconds, once per kernel and qtype.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from .layout import Layout
from .problems import arguments, compare_result, default_tolerance, random_weight
from .spec import KernelSpec, Request

__all__ = ["Check", "check"]

_MAX_SIZE = 1024
_MIN_ROWS = 32  # errors are judged by the root mean square of a row of the result, which few elements do not have
_TOKENS = (1, 19)


def _smaller(request: Request) -> Request:
    """The same kind of problem at a few hundred rows and columns; what divides the sizes still divides them."""
    if not request.shape:
        return request
    *lead, size = request.shape
    blocks = list(request.block_size)
    if size > _MAX_SIZE:
        unit = blocks[-1] if blocks and blocks[-1] < size else 64
        small = _MAX_SIZE // unit * unit or unit
        small += size % unit
        if blocks and blocks[-1] >= size:
            blocks[-1] = small
        size = small
    rows = lead[-1] if lead else 1
    if rows > 256 and (not blocks or blocks[-2] == 1):
        rows = 128 + rows % 64
    if 0 < rows < _MIN_ROWS and (not blocks or blocks[-2] == 1):
        rows *= -(-_MIN_ROWS // rows)
    lead = [*(min(n, 3) for n in lead[:-1]), rows] if lead else []
    return replace(request, shape=(*lead, size), block_size=tuple(blocks))


def check(spec: KernelSpec, request: Request, layout: Layout | None, reference: Callable[..., Any]) -> str | None:
    """Compares a kernel with the reference; returns what is wrong, or None."""
    return Check(spec, request, layout, reference).result()


class Check:
    """A comparison of a kernel with the reference, begun.

    Runs in a thread of its own: dispatch modes, autocast, gradients and fake tensors of the caller are thread-local and
    so cannot reach it, not even while a graph is being traced.
    """

    def __init__(
        self, spec: KernelSpec, request: Request, layout: Layout | None, reference: Callable[..., Any]
    ) -> None:
        self._found: list[str | None] = []
        self._given = (spec, request, layout, reference)
        self._thread = threading.Thread(target=self._run, name=f"quanto-selfcheck-{spec.name}")
        self._thread.start()

    def _run(self) -> None:
        spec, request, layout, reference = self._given
        try:
            with torch.no_grad():
                self._found.append(_compare(spec, _smaller(request), layout, reference))
        except BaseException as error:  # SystemExit too: nobody else would hear of it
            self._found.append(f"raised {type(error).__name__}: {error}")

    def result(self) -> str | None:
        """What is wrong, or None; waits for it."""
        self._thread.join()
        return self._found[0]


def _compare(spec: KernelSpec, request: Request, layout: Layout | None, reference: Callable[..., Any]) -> str | None:
    if spec.refusal(request) is not None:
        return None  # the small problem is outside of what it claims; nothing can be said
    generator = torch.Generator().manual_seed(20)
    # The truth is made on the CPU: there are devices on which the reference lacks a dtype (float8 on Apple's).
    home = replace(request, device="cpu")
    weight = random_weight(home, generator)
    tolerance = spec.tolerance if spec.tolerance is not None else default_tolerance(request.dtype)
    cases = [arguments(home, weight, tokens, generator) for tokens in _TOKENS]

    def compare(case: tuple[list[Any], int | None]) -> str | None:
        args, at = case
        given = [a.to(request.device, copy=True) if isinstance(a, torch.Tensor) else a for a in args]
        if layout is not None and at is not None:
            size = request.shape[-1]
            given[at : at + 4] = layout.pack(tuple(given[at : at + 4]), request.qtype, request.block_size, size)  # type: ignore[arg-type]
        kept = [a.clone() if isinstance(a, torch.Tensor) else a for a in given]
        with torch.no_grad():  # which other threads do not inherit
            problem = compare_result(request, args, spec.fn(*given), reference(*args), tolerance)
        if problem is not None:
            return problem
        tensors = ((a, b) for a, b in zip(given, kept, strict=True) if isinstance(a, torch.Tensor))
        return None if all(torch.equal(_bytes(a), _bytes(b)) for a, b in tensors) else "wrote into its arguments"

    if not spec.compiles:
        return next(filter(None, map(compare, cases)), None)
    with ThreadPoolExecutor(len(cases)) as pool:
        return next(filter(None, pool.map(compare, cases)), None)


def _bytes(t: torch.Tensor) -> torch.Tensor:
    return t.reshape(-1).view(torch.uint8)  # which torch can compare, unlike one-byte floats
