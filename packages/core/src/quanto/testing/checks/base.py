# SPDX-License-Identifier: Apache-2.0
"""`Check`: a property of kernels, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..cases import Case
from ..problem import Problem
from ..truth import judge

__all__ = ["CHECKS", "Check", "Disagreement", "always", "check", "verify"]


class Disagreement(AssertionError):
    """A kernel does not do what its claim says; the message is a sentence for its author."""


@dataclass(frozen=True)
class Check:
    """One property.

    Attributes:
        name: of the function.
        run: raises `Disagreement` where the property does not hold.
        applies: whether a case has the property at all.
        once: whether one case per qtype is enough, because it costs much and depends on little.
    """

    name: str
    run: Callable[[Case], None]
    applies: Callable[[Case], bool]
    once: bool = False


#: every check, in the order of the suite.
CHECKS: dict[str, Check] = {}


def always(case: Case) -> bool:
    """Applies to every case."""
    return True


def check(
    applies: Callable[[Case], bool] = always, once: bool = False
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Adds a function to the table."""

    def add(function: Callable[[Case], None]) -> Callable[[Case], None]:
        CHECKS[function.__name__] = Check(function.__name__, function, applies, once)
        return function

    return add


def verify(case: Case, problem: Problem, what: str = "", coherent: bool = False) -> None:
    """Calls the kernel and compares.

    Args:
        case: names the kernel.
        problem: the call.
        what: was special about it.
        coherent: see `judge`.

    Raises:
        Disagreement: naming the request, what was special about it, and the worst element.
    """
    with torch.no_grad():
        sentence = judge(case.spec, problem, case.spec.fn(*problem.arguments(case.spec)), coherent)
    if sentence is not None:
        raise Disagreement(f"{describe(problem)}{', ' + what if what else ''}: {sentence}")


def describe(problem: Problem) -> str:
    """The request in words."""
    r = problem.request
    blocks = f" in blocks of {'x'.join(map(str, r.block_size))}" if r.block_size else ""
    scale = str(r.scale_dtype).removeprefix("torch.")
    return f"{r}{blocks} with {scale} scales"
