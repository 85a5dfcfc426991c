# SPDX-License-Identifier: Apache-2.0
"""Replaces what stands between products by a backend's kernels that let the next product begin early.

Inductor's own norms, activations and rotations let the kernel behind them begin when they end, and memory is idle
meanwhile. Where a backend registers `rms_norm`, `add_rms_norm`, `activate_and_multiply` or `rotate_and_attend`
(see `quanto_backend_cuda.ops.norm`, `quanto_backend_cuda.ops.attend`), this pass over the graphs of Inductor puts them
where the graph computes just that, for few tokens of halves. All else is left as it is. Models are not known by name.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

from quanto.kernels import kernels

from . import expressions
from .expressions import Expression

__all__ = ["EarlyPass"]

_aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)
_TOKENS, _WIDEST = 16, 1 << 14
_EPS = 0.0123456789  # in place of any
_OPERATORS = ("rms_norm", "add_rms_norm", "activate_and_multiply", "attend", "rotate_and_attend")
_DEVICES = ("cpu", "cuda", "mps", "xpu")


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    """Llama's."""
    f = x.to(torch.float32)
    f = f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + _EPS)
    return weight * f.to(x.dtype)


def _norm_plus_one(x: Tensor, weight: Tensor) -> Tensor:
    """Gemma's."""
    f = x.float()
    f = f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + _EPS)
    return (f * (1.0 + weight.float())).type_as(x)


def _activation(kind: str, gate: Tensor, up: Tensor) -> Tensor:
    f = torch.nn.functional
    if kind == "silu":
        return f.silu(gate) * up
    return f.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none") * up


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    other = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + other * sin


@functools.cache
def _norms(dtype: torch.dtype) -> list[tuple[Expression, bool]]:
    shapes: dict[str, tuple[int, ...]] = {"x": (2, 8), "weight": (8,)}
    return [(Expression(f, shapes, dtype, eps=_EPS), f is _norm_plus_one) for f in (_norm, _norm_plus_one)]


@functools.cache
def _activations(dtype: torch.dtype) -> list[tuple[Expression, str]]:
    shapes: dict[str, tuple[int, ...]] = {"gate": (2, 8), "up": (2, 8)}
    kinds = ("silu", "gelu", "gelu_tanh")
    return [(Expression(functools.partial(_activation, kind), shapes, dtype), kind) for kind in kinds]


@functools.cache
def _rotation(dtype: torch.dtype, size: int) -> Expression:
    one = (1, 1, 1, size)
    return Expression(_rotate, {"x": (1, 2, 1, size), "cos": one, "sin": one}, dtype)


class EarlyPass(CustomGraphPass):
    """The pass, for Inductor's option `post_grad_custom_pre_pass`; `replaced` counts what it put where."""

    def __init__(self) -> None:
        self.replaced: Counter[str] = Counter()

    def __eq__(self, other: object) -> bool:
        return type(other) is EarlyPass

    def __hash__(self) -> int:
        return hash(EarlyPass)

    def uuid(self) -> Any:
        """Of the sources and of what backends offer, so that Inductor may keep what it compiled."""
        offered = [kernels.function(name, device) for device in _DEVICES for name in _OPERATORS]
        said = [str(getattr(function, "_schema", function)) for function in offered]
        return get_hash_for_files((__file__, str(Path(expressions.__file__))), "\n".join(said))

    def __call__(self, graph: Graph) -> None:
        """Changes the graph in place."""
        for node in list(graph.nodes):
            val = node.meta.get("val") if node.op == "call_function" else None
            if not isinstance(val, Tensor) or val.dtype not in _HALVES or not val.ndim:
                continue
            if any(type(n) is not int for n in val.shape) or not val.numel():
                continue
            if node.target == kernels.function("attend", val.device.type):
                self._attend(graph, node, val)
            elif val.numel() <= _TOKENS * val.shape[-1]:
                self._norm(graph, node, val) or self._activation(graph, node, val)
        graph.eliminate_dead_code()

    def _norm(self, graph: Graph, node: Any, val: Tensor) -> bool:
        alone, added = (kernels.function(name, val.device.type) for name in ("rms_norm", "add_rms_norm"))
        if alone is None or added is None or val.shape[-1] > _WIDEST:
            return False
        for expression, plus_one in _norms(val.dtype):
            found = expression.match(node) if node.target == expression.target else None
            if found is None:
                continue
            x, weight = found["x"], found["weight"]
            fits = _like(x, val) and _of(weight).dtype == val.dtype and _of(weight).shape == val.shape[-1:]
            if not fits or weight.op not in ("placeholder", "get_attr") or not _of(weight).is_contiguous():
                continue
            rest = (weight, found["eps"], plus_one)
            if _calls(x, _aten.add.Tensor) and _adds(x):
                both = self._put(graph, x, added, (x.args[1], x.args[0], *rest))
                total, normed = (self._put(graph, x, operator.getitem, (both, i)) for i in range(2))
                x.replace_all_uses_with(total)
                node.replace_all_uses_with(normed)
            else:
                node.replace_all_uses_with(self._put(graph, node, alone, (x, *rest)))
            return True
        return False

    def _activation(self, graph: Graph, node: Any, val: Tensor) -> bool:
        function = kernels.function("activate_and_multiply", val.device.type)
        for expression, kind in _activations(val.dtype) if function is not None else ():
            found = expression.match(node) if node.target == expression.target else None
            if found is not None and _like(found["gate"], val) and _like(found["up"], val):
                node.replace_all_uses_with(self._put(graph, node, function, (found["gate"], found["up"], kind)))
                return True
        return False

    def _attend(self, graph: Graph, node: Any, val: Tensor) -> None:
        """The rotation of query and key and the writes to the cache join the attention that reads it."""
        function = kernels.function("rotate_and_attend", val.device.type)
        query, key, value, mask, scale = node.args
        if function is None or not _calls(query, _aten.add.Tensor):
            return
        k, v = _written(key, node), _written(value, node)
        if k is None or v is None or k["at"] is not v["at"] or k["cache"] is v["cache"]:
            return
        size = _of(query).shape[-1]
        rotation = _rotation(val.dtype, size)
        q, new = rotation.match(query), rotation.match(k["new"])
        if q is None or new is None or q["cos"] is not new["cos"] or q["sin"] is not new["sin"] or len(query.users) > 1:
            return
        texts, kept = _of(k["cache"]).shape[:2]
        shape = (texts, kept, 1, size)  # nothing is broadcast but angles
        cos, sin = (_of(q[name]) for name in ("cos", "sin"))
        if cos.shape not in ((1, 1, 1, size), (texts, 1, 1, size)) or sin.shape != cos.shape:
            return
        if not _like(q["x"], _of(query)) or any(_of(n).shape != shape for n in (new["x"], v["new"])):
            return
        if any(_of(n).dtype != val.dtype for n in (q["cos"], q["sin"], new["x"], v["new"])):
            return
        given = (q["x"], new["x"], v["new"], q["cos"], q["sin"], k["at"], k["cache"], v["cache"], mask, scale)
        node.replace_all_uses_with(self._put(graph, node, function, given))
        graph.erase_node(node)
        for write in (k, v):
            graph.erase_node(write["copy"])

    def _put(self, graph: Graph, before: Node, function: Any, args: tuple[Any, ...]) -> Node:
        from torch._guards import detect_fake_mode

        with graph.inserting_before(before):
            node = graph.call_function(function, args)
        values = torch.fx.map_arg(args, lambda n: n.meta["val"])
        mode: Any = detect_fake_mode([v for v in torch.utils._pytree.tree_leaves(values) if isinstance(v, Tensor)])
        with mode:
            node.meta["val"] = function(*values)
        if function is not operator.getitem:
            self.replaced[function._schema.name.partition("::")[2]] += 1
        return node


def _calls(node: Any, target: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target == target


def _of(node: Any) -> Tensor:
    """What a node computes, without data."""
    val: Tensor = node.meta["val"]
    return val


def _like(node: Node, val: Tensor) -> bool:
    x = node.meta.get("val")
    return isinstance(x, Tensor) and x.shape == val.shape and x.dtype == val.dtype and x.device == val.device


def _adds(x: Any) -> bool:
    """Whether a sum is that of two tensors of its own shape and dtype."""
    return not x.kwargs and all(isinstance(a, Node) and _like(a, _of(x)) for a in x.args)


def _written(key: Any, reader: Node) -> dict[str, Any] | None:
    """The parts of `cache[:, :, at] = new`, whose one reader is the attention, and which is written back at the end."""
    if not _calls(key, _aten.index_put.default) or len(key.args) != 3 or key.kwargs:
        return None
    cache, indices, new = key.args
    if cache.op != "placeholder" or list(indices[:2]) != [None, None] or len(indices) != 3:
        return None
    copies = [u for u in cache.users if u is not key]
    back = len(copies) == 1 and copies[0].target == _aten.copy_.default and copies[0].args[:2] == (cache, key)
    if not back or set(key.users) != {reader, copies[0]} or copies[0].users:
        return None
    at = _position(indices[2])
    whole = _of(cache).ndim == 4 and _of(cache).stride(-1) == 1 and _of(indices[2]).device == _of(cache).device
    return {"cache": cache, "at": at, "new": new, "copy": copies[0]} if whole and at is not None else None


def _position(node: Any) -> Any:
    """An int64 of one element that says the same; a range of one position that is moved by it, is it."""
    val = _of(node)
    if val.dtype != torch.int64 or math.prod(val.shape) != 1:
        return None
    if node.target == _aten.add.Tensor and not node.kwargs:
        for moved, by in (node.args, node.args[::-1]):
            zero = _calls(moved, torch.ops.prims.iota.default) and _starts(moved)
            if zero and isinstance(by, Node) and _of(by).dtype == torch.int64 and _of(by).device == val.device:
                return by
    return node


def _starts(node: Any) -> bool:
    """Whether a range is just zero."""
    return bool(node.args == (1,) and node.kwargs.get("start") == 0)
