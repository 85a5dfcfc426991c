# SPDX-License-Identifier: Apache-2.0
"""What a layer's inputs look like: streamed second moments, shared by layers that read the same tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from .._hooks import first_input
from .convolutions import rows_of
from .step import Block, as_float, first_tensor
from .stream import Stream

__all__ = ["Moments", "input_groups", "moments", "watching"]


@contextmanager
def watching(module: nn.Module, layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block a module computes as its float class does, and `see(name, x)` is told what layers are given."""

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, args, kwargs: see(name, first_input(args, kwargs).detach())

    handles = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with as_float(module):
            yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def input_groups(block: Block, more: Mapping[str, nn.Module] = MappingProxyType({})) -> list[list[str]]:
    """The names of layers still floating, those that read the same tensor together, in the order they are called.

    Args:
        block: with the layers in it.
        more: layers beside the linear ones, each of which makes a group of its own.
    """
    order: dict[tuple[Any, ...], list[str]] = {}
    alive: list[Tensor] = []  # addresses mean something only while the tensors live

    def see(name: str, x: Tensor) -> None:
        alive.append(x)
        order.setdefault((*_identity(x), name if name in more else ""), []).append(name)

    layers = {**block.layers(), **more}
    with watching(block.module, layers, see):
        block.inputs.run(block.module, 0)
    seen: set[str] = set()
    groups = []
    for names in order.values():
        fresh = [n for n in dict.fromkeys(names) if n not in seen]
        seen.update(fresh)
        if fresh:
            groups.append(fresh)
    return groups + [[name] for name in layers if name not in seen]


def _identity(x: Tensor) -> tuple[Any, ...]:
    """What tensors that hold the same rows share: views as other batches do, transposed and changed ones don't."""
    version = 0 if x.is_inference() else x._version
    rows = (x.numel(), x.shape[-1:]) if x.is_contiguous() else (x.shape, x.stride())
    return x.data_ptr(), version, *rows


class Moments:
    """Streamed sums over tokens.

    Attributes:
        hessian: `[in, in]` float32, the mean of `x x^T` over the inputs behind quantized predecessors; of a
            convolution with several groups `[groups, in, in]`.
        cross: the same of `x_float x^T`, with the inputs that the float model has; None if not asked for.
        tokens: how many were seen.
    """

    def __init__(self) -> None:
        self.hessian: Tensor | None = None
        self.cross: Tensor | None = None
        self.tokens = 0

    def add(self, x: Tensor, original: Tensor | None = None) -> None:
        """Takes inputs `[tokens, in]` or `[groups, tokens, in]` and, of the float model, as many."""
        x = x.float()
        self.hessian = _added(self.hessian, x, x)
        self.tokens += x.shape[-2]
        if original is not None:
            self.cross = _added(self.cross, original.float(), x)

    def finish(self) -> Moments:
        """Turns sums into means."""
        for tensor in (self.hessian, self.cross):
            if tensor is not None:
                tensor.div_(max(self.tokens, 1))
        return self


def _added(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """`total + a^T b`, in place: a second matrix as large would be the largest thing in memory."""
    if total is None:
        return a.mT @ b
    return total.addmm_(a.mT, b) if total.ndim == 2 else total.baddbmm_(a.mT, b)


@torch.no_grad()
def moments(block: Block, name: str, crossed: bool = False, last: bool = False) -> Moments:
    """The moments of one layer's inputs over all batches.

    Args:
        block: with the layer in it.
        name: of the layer in the block.
        crossed: whether to run the float block on the float inputs beside it.
        last: whether to run that to its end, for it ends soon, and to keep what it returns in `block.outputs`.
    """
    out = Moments()
    outputs: list[Tensor] = []
    crossed = crossed and _EXPERT.match(name) is None  # routed otherwise, the tokens of the two don't pair up
    for index in range(len(block.inputs)):
        x = _inputs(block.module, name, block.inputs, index)
        if x is None:
            continue
        original = None
        if crossed:
            original = _inputs(block.original, name, block.originals, index, outputs if last else None)
            if last and len(outputs) > index:
                outputs[index] = block.originals.keep(outputs[index])
            if original is None or original.shape != x.shape:  # something chose other tokens
                original = x
        layer = block.module.get_submodule(name)
        pairs = zip(rows_of(layer, x), rows_of(layer, x if original is None else original), strict=True)
        for rows, other in pairs:
            out.add(rows, None if original is None else other)
    if len(outputs) == len(block.inputs):
        block.outputs = outputs
    return out.finish()


def _inputs(
    module: nn.Module, name: str, stream: Stream, index: int, outputs: list[Tensor] | None = None
) -> Tensor | None:
    """What a layer is given on one batch; the block's forward pass ends there, or adds its output to a list.

    A layer of an expert is given what any of its siblings was: each expert is calibrated on all tokens, routed or not.
    """
    layer = module.get_submodule(name)
    experts = _EXPERT.match(name)
    if experts is None:
        return _catch(layer, lambda: stream.run(module, index), module, outputs)
    siblings = dict(module.get_submodule(experts["list"]).named_children())
    routed: list[Tensor] = []
    with watching(module, siblings, lambda _, x: routed.append(x.reshape(-1, x.shape[-1]))):
        stream.run(module, index)
    if not routed:
        return None
    expert = siblings[experts["index"]]
    return _catch(layer, lambda: expert(torch.cat(routed)), module)


#: the name of a layer in an expert of a list of experts
_EXPERT = re.compile(r"(?P<list>(?:.*\.)?experts)\.(?P<index>\d+)(?:\.|$)")


def _catch(
    layer: nn.Module, run: Callable[[], Any], module: nn.Module, outputs: list[Tensor] | None = None
) -> Tensor | None:
    found: list[Tensor] = []

    def see(name: str, x: Tensor) -> None:
        found.append(x)
        if outputs is None:
            raise _Enough

    with suppress(_Enough), watching(module, {"": layer}, see):
        made = run()
        if outputs is not None:
            outputs.append(first_tensor(made))
    return found[0] if found else None


class _Enough(Exception):
    """Ends a forward pass early."""
