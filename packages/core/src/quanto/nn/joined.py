# SPDX-License-Identifier: Apache-2.0
"""Linear layers that read the same input, run as one: queries, keys and values; the gate and the way up.

A product with few tokens takes as long as its weight takes to be read, plus some microseconds that it costs to begin
and to end. Llama's keys and values are so small that these are most of their time: joined to the queries they are free.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..kernels import kernels
from ..weight import CANONICAL, Weight, make_key
from .linear import QLinear
from .slot import PARTS

__all__ = ["GROUPS", "Joined", "Seat", "join"]

#: names of layers side by side that read the same input, in decoders of many families.
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"), ("query", "key", "value"))
# After so many products of which nobody took more than a part, the layers do not read the same input.
_WASTED = 3


class Seat:
    """A layer's place among those it runs with; not copied with the layer, whose copies are by themselves.

    Args:
        joined: those.
        index: the layer's place in the order of their weights.
        codes: the layer's own, a view.
    """

    def __init__(self, joined: Joined, index: int, codes: Tensor | None) -> None:
        self.joined = joined
        self.index = index
        self.codes = codes

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


class Joined:
    """Several layers whose weights lie behind one another in memory; each layer's own parameters are views of them.

    The first layer called with an input computes for all, the others take their part. A layer that gets another input
    computes alone, so the results are right whatever the model does.

    Args:
        members: at least two layers that are `_alike`.
    """

    def __init__(self, members: Sequence[QLinear]) -> None:
        self._members = tuple(members)
        first = members[0].operand()
        stacked = [_stack([m._parameters[f"weight_{part}"] for m in members]) for part in PARTS[:3]
                   if f"weight_{part}" in members[0]._parameters]  # fmt: skip
        codes, scale = stacked[:2]
        zero = stacked[2] if len(stacked) > 2 else None
        self._rows = rows = [m.out_features for m in members]
        slot = members[0]._slots["weight"]
        key = make_key(first.qtype, first.block_size, (sum(rows), first.size), scale, zero, slot.layout)
        self._weight = Weight(codes, scale, zero, None, first.qtype, first.block_size, first.size, key)
        tell = kernels.layouts[slot.layout].stacked
        if tell is not None:
            tell((codes, scale, zero, None), first.qtype, first.block_size, first.size)
        self._bias = None if members[0].bias is None else _stack([m.bias for m in members])
        #: input, its version, the parts of the result, and how many have yet to be taken
        self._last: tuple[Tensor, int, tuple[Tensor, ...], int] | None = None
        self._wasted = 0
        for index, member in enumerate(members):
            member.__dict__["_joined"] = Seat(self, index, member._parameters["weight_packed"])

    def take(self, seat: Seat, parameters: dict[str, Tensor | None], x: Tensor) -> Tensor | None:
        """The result of a member, a view; None if it has to compute alone.

        Args:
            seat: the member's.
            parameters: its present ones.
            x: its input.
        """
        last = self._last
        version = _version(x)
        if last is not None and last[0] is x and last[1] == version:
            self._last = (x, version, last[2], last[3] - 1) if last[3] > 1 else None
            return last[2][seat.index]
        if seat.codes is not parameters.get("weight_packed"):
            self.part()  # somebody else put another tensor in the place of ours
            return None
        if torch.is_grad_enabled() and (x.requires_grad or self._bias is not None):
            return None
        if not torch.compiler.is_compiling():
            self._wasted = self._wasted + 1 if last is not None else 0
            if self._wasted == _WASTED:
                self.part()
                return None
        # all parts at once: 2 us for three, where slices take 1.5 each
        parts = torch.split_with_sizes(ops.linear(x, self._weight, self._bias), self._rows, -1)
        self._last = (x, version, tuple(parts), len(parts) - 1)
        return parts[seat.index]

    def part(self) -> None:
        """Each layer is by itself again; its parameters stay what they are."""
        self._last = None
        for member in self._members:
            member.__dict__.pop("_joined", None)


def _version(x: Tensor) -> int:
    """What tells that x was written to; graphs and inference mode keep no count."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def _stack(tensors: Sequence[Tensor | None]) -> Tensor:
    """One tensor of all rows, of which the given ones become views.

    A parameter: graphs know that one stays where it is, and do not ask before each call whether it overlaps others.
    """
    whole = nn.Parameter(torch.cat([t.detach() for t in tensors if t is not None]), requires_grad=False)
    begin = 0
    for t in tensors:
        assert t is not None
        t.data = whole.data[begin : begin + t.shape[0]]
        begin += t.shape[0]
    return whole


def join(model: nn.Module, groups: Sequence[Sequence[str]] = GROUPS) -> list[tuple[str, ...]]:
    """Has layers that read the same input run as one, in place; for models that generate, after `freeze` or `load`.

    Moving the model, arranging it anew or loading into it parts them again, and so does `quanto.dequantize`. Files do
    not depend on it, nor do results, beyond the rounding of a sum taken in another order.

    Args:
        model: a quantized model.
        groups: names of layers within one parent, in the order of their weights in memory.

    Returns:
        The names of the layers that were joined, group by group. Layers stay as they are where one of a group has
        quantized activations, a low-rank correction, another qtype or input size, or a layout whose rows can't be
        stacked, as the canonical one, whose tensors go to files as they are.
    """
    made = []
    for name, parent in model.named_modules():
        for group in groups:
            members = [parent._modules.get(child) for child in group]
            layers = [m for m in members if isinstance(m, QLinear)]
            if len(layers) == len(group) > 1 and _alike(layers):
                Joined(layers)
                made.append(tuple(f"{name}.{child}".lstrip(".") for child in group))
    return made


def _alike(layers: Sequence[QLinear]) -> bool:
    """Whether the rows of all can be stacked."""
    if len({id(layer) for layer in layers}) < len(layers) or not all(layer.frozen for layer in layers):
        return False
    kinds = {_kind(layer) for layer in layers}
    return len(kinds) == 1 and None not in kinds


def _kind(layer: QLinear) -> tuple[object, ...] | None:
    """What stacked layers have in common; None for one that can't be stacked."""
    slot, w = layer._slots["weight"], layer.operand()
    unit = 0 if slot.layout == CANONICAL else kernels.layouts[slot.layout].stacks
    plain = slot.scheme.activations is None and slot.scheme.rank is None and w.global_scale is None
    by_rows = w.scale.ndim == 2 and len(w.block_size) == 2 and w.block_size[0] == 1
    if not unit or layer.out_features % unit or not plain or not by_rows or type(layer) is not QLinear:
        return None
    if "_joined" in layer.__dict__ or w.codes.is_meta:
        return None
    bias = None if layer.bias is None else layer.bias.dtype
    tensors = tuple(None if t is None else (t.dtype, t.device) for t in (w.codes, w.scale, w.zero_point))
    return slot.layout, w.qtype, w.block_size, w.size, slot.dtype, bias, tensors
