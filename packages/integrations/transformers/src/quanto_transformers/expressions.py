# SPDX-License-Identifier: Apache-2.0
"""Expressions in graphs of torch.compile: what a function of tensors becomes there, and where it stands.

A function is traced with the decompositions that Inductor uses, so that an expression looks as it does in the graphs of
the torch at hand. What stands in its place has the same operators and constants; its arguments may be anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

__all__ = ["Expression"]

_COMMUTE = (torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor)


class Expression:
    """What a function computes, to be found in graphs.

    Args:
        function: of tensors, which returns one.
        shapes, dtype: of the tensors that it is traced with.
        constants: numbers in the function that stand for any number, by name.
    """

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        shapes: dict[str, tuple[int, ...]],
        dtype: torch.dtype,
        **constants: float,
    ) -> None:
        from torch._inductor.decomposition import select_decomp_table
        from torch.fx.experimental.proxy_tensor import make_fx

        given = [torch.zeros(shape, dtype=dtype) for shape in shapes.values()]
        with torch.no_grad():
            graph: Any = make_fx(function, decomposition_table=select_decomp_table())(*given).graph
        graph.eliminate_dead_code()
        names = iter(shapes)
        self._names = {node: next(names) for node in graph.nodes if node.op == "placeholder"}
        self._constants = {number: name for name, number in constants.items()}
        (self._root,) = next(n for n in graph.nodes if n.op == "output").args
        self.target = self._root.target

    def match(self, node: Any) -> dict[str, Any] | None:
        """What the names of the expression are, if it ends in this node; what is within has no other users."""
        found: dict[str, Any] = {}
        inner: dict[Node, Node] = {}
        if not self._same(self._root, node, found, inner):
            return None
        within = set(inner.values())
        alone = all(user in within for n in within if n is not node for user in n.users)
        return found if alone else None

    def _same(self, want: Any, got: Any, found: dict[str, Any], inner: dict[Node, Node]) -> bool:
        if isinstance(want, Node):
            if not isinstance(got, Node):
                return False
            if want in self._names:
                return found.setdefault(self._names[want], got) is got
            if want in inner:
                return inner[want] is got
            if got.op != "call_function" or got.target != want.target or got.kwargs != want.kwargs:
                return False
            orders = [got.args]
            if got.target in _COMMUTE and len(got.args) == 2:
                orders.append(got.args[::-1])
            for order in orders:
                try_found, try_inner = dict(found), {**inner, want: got}
                if self._same(want.args, order, try_found, try_inner):
                    found.update(try_found)
                    inner.update(try_inner)
                    return True
            return False
        if isinstance(want, (tuple, list)):
            fits = isinstance(got, (tuple, list)) and len(got) == len(want)
            return fits and all(self._same(w, g, found, inner) for w, g in zip(want, got, strict=True))
        if isinstance(want, float) and want in self._constants:
            name = self._constants[want]
            return isinstance(got, float) and found.setdefault(name, got) == got
        return bool(want == got)
