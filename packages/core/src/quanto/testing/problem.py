# SPDX-License-Identifier: Apache-2.0
"""`Problem`: one call of an operator, by argument names, canonical and on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..kernels import KernelSpec, Layout, Request, kernels
from ..kernels.layout import WEIGHT_AT
from ..kernels.problems import arguments, random_weight
from ..weight import CANONICAL

__all__ = ["TOKENS", "WEIGHT", "Problem", "make", "names"]

#: arguments that have a row per token, by operator; the others have no tokens.
TOKENS = {
    "linear": ("x",),
    "linear_input_grad": ("grad",),
    "grouped_linear": ("x",),
    "scaled_linear": ("x_codes", "x_scale"),
    "embedding": ("indices",),
    "dynamic_quantize": ("x",),
}
WEIGHT = ("codes", "scale", "zero_point", "global_scale")


def names(op: str) -> list[str]:
    """The names of an operator's arguments."""
    return [a.name for a in getattr(torch.ops.quanto_core, op).default._schema.arguments]


@dataclass(frozen=True)
class Problem:
    """Arguments of an operator.

    Attributes:
        request: what a layer would ask.
        given: by name, in order; weights canonical, tensors on the CPU.
    """

    request: Request
    given: dict[str, Any]

    def having(self, **changed: Any) -> Problem:
        """The same with other arguments."""
        return replace(self, given={**self.given, **changed})

    def mapped(self, change: Callable[[Tensor], Tensor], *which: str) -> Problem:
        """The same with `change` applied to the named tensors, where there are any."""
        found = {n: self.given[n] for n in which if isinstance(self.given.get(n), Tensor)}
        return self.having(**{n: change(t) for n, t in found.items()})

    def reshaped(self, *lead: int) -> Problem:
        """The same with other leading dimensions of the activations; their product must stay."""
        if self.request.op == "embedding":
            return self.mapped(lambda t: t.reshape(lead), "indices")
        return self.mapped(lambda t: t.reshape(*lead, t.shape[-1]) if t.ndim else t, *TOKENS[self.request.op])

    def arguments(self, spec: KernelSpec) -> list[Any]:
        """What the kernel is called with: on its device, weights in its layout. Strides of tensors on a CPU stay."""
        device = self.request.device
        values = [v.to(device) if isinstance(v, Tensor) else v for v in self.given.values()]
        layout = self.layout(spec)
        if layout is not None:
            at, r = WEIGHT_AT[self.request.op], self.request
            values[at : at + 4] = layout.pack(tuple(values[at : at + 4]), r.qtype, r.block_size, r.shape[-1])  # type: ignore[arg-type]
        return values

    def layout(self, spec: KernelSpec) -> Layout | None:
        """The kernel's own layout of the weight, or None."""
        return None if spec.layout == CANONICAL else kernels.layouts[spec.layout]


def make(request: Request, tokens: int = 17, seed: int = 0, features: int | None = None) -> Problem:
    """A random problem of the requested kind.

    Args:
        request: the operator and the weight.
        tokens: rows of the activations, where there are any.
        seed: of the numbers.
        features: of a dynamic quantization, whose request does not say.
    """
    generator = torch.Generator().manual_seed(seed)
    home = replace(request, device="cpu", layout=CANONICAL)
    values, _ = arguments(home, random_weight(home, generator), tokens, generator)
    problem = Problem(request, dict(zip(names(request.op), values, strict=True)))
    if features is not None:
        x = torch.randn((tokens, features), generator=generator).to(request.dtype)
        problem = problem.having(x=x)
    if request.op == "dynamic_quantize" and tokens > 2:
        problem.given["x"][1] = 0  # a token of nothing but zeros
    if request.op == "grouped_linear" and seed % 2:
        problem = problem.having(offsets=_ends(tokens, request.shape[0]))
    return problem


def _ends(tokens: int, experts: int) -> Tensor:
    """Offsets of a grouped problem that leave an expert without rows, and rows without an expert."""
    cuts: Sequence[int] = [min(tokens, (e + 1) // 2 * max(tokens // max(experts, 1), 1)) for e in range(experts)]
    return torch.tensor(cuts, dtype=torch.int32)
