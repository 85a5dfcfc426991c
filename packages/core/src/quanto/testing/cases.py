# SPDX-License-Identifier: Apache-2.0
"""Which requests a kernel is asked: the product of what it claims, over ragged and round shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, product

import torch

from ..kernels import KernelSpec, Request
from ..kernels.spec import FLOATS, GRANULARITIES
from ..qtypes import QType, get_qtype, qtypes

__all__ = ["Case", "cases", "refusals"]

# [out, in]; vector widths, tiles and groups divide some of them and not the others.
_SHAPES = {
    "tensor": ((1, 32), (7, 129), (64, 128), (33, 576), (129, 7)),
    "channel": ((1, 32), (7, 129), (64, 128), (33, 576), (129, 7), (5, 2048), (256, 512)),
    "group": ((1, 128), (7, 129), (64, 256), (33, 576), (130, 192), (5, 2048), (256, 512)),
    "block": ((64, 256), (7, 129), (130, 200), (128, 512)),
}
_GROUPS = (32, 64, 128)
_BLOCKS = ((128, 128), (32, 32), (16, 64))
# Asked only where none of the above is claimed: a kernel may be made for large weights alone.
_LARGE = (1024, 4096)
_EXPERTS = (3, 1, 4)
_ACTIVATIONS = frozenset({"int8", "float8_e4m3fn"})


@dataclass(frozen=True)
class Case:
    """Requests of one kind to one kernel.

    Attributes:
        spec: the kernel.
        requests: all of one qtype, dtype, granularity, kind of zero point and qtype of activations; every one claimed.
    """

    spec: KernelSpec
    requests: tuple[Request, ...]

    @property
    def first(self) -> Request:
        return self.requests[0]

    def __str__(self) -> str:
        r = self.first
        parts = [self.spec.name, r.qtype, r.activations, r.granularity, str(r.dtype).removeprefix("torch.")]
        return " ".join(p for p in [*parts, "" if r.zero_point == "none" else f"{r.zero_point} zero point"] if p)


def cases(spec: KernelSpec, device: str) -> list[Case]:
    """Everything the suite can ask that the kernel claims, on a device type."""
    found = []
    for kind in _kinds(spec, device):
        claimed = tuple(r for r in _requests(kind, spec) if spec.refusal(r) is None)
        if not claimed:
            claimed = tuple(r for r in _requests(kind, spec, (_LARGE,)) if spec.refusal(r) is None)
        if claimed:
            found.append(Case(spec, claimed))
    return found


def refusals(spec: KernelSpec, device: str) -> str:
    """The sentence with which a kernel refused most of what the suite asked."""
    said = Counter(spec.refusal(r) for kind in _kinds(spec, device) for r in _requests(kind, spec))
    return said.most_common(1)[0][0] or "" if said else "its claims name no known qtype and granularity together"


def _kinds(spec: KernelSpec, device: str) -> Iterator[Request]:
    known = sorted(spec.qtypes) if spec.qtypes else sorted(qtypes)
    dtypes = sorted(FLOATS if spec.reference else spec.dtypes, key=str)
    for name, dtype, granularity in product(known, dtypes, sorted(GRANULARITIES)):
        if name not in qtypes or (not spec.reference and granularity not in spec.granularities):
            continue
        q = get_qtype(name)
        if not _exists(spec.op, q, granularity):
            continue
        zeros = {"none", "int", "float"} if spec.reference else spec.zero_points
        for zero, activations in product(sorted(zeros, reverse=True), _activations(spec)):
            if zero == "none" or (q.is_integer and spec.op not in ("dynamic_quantize", "pack", "unpack")):
                request = Request(spec.op, device, dtype, name, zero_point=zero, layout=spec.layout)
                yield replace(request, activations=activations, block_size=_marker(granularity))


def _exists(op: str, q: QType, granularity: str) -> bool:
    """Whether weights of that qtype come in that granularity, for that operator."""
    if op == "dynamic_quantize":
        return granularity == "tensor" and q.bits == 8 and q.block is None
    if op in ("pack", "unpack"):
        return granularity == "channel" and q.bits < 8
    if op == "grouped_linear" and granularity in ("tensor", "block"):
        return False
    return q.block is None or granularity == "group"


def _activations(spec: KernelSpec) -> list[str]:
    if spec.op != "scaled_linear":
        return [""]
    return sorted(_ACTIVATIONS if spec.reference else spec.activations - {""})


def _marker(granularity: str) -> tuple[int, ...]:
    """Carries the wanted granularity until the shape is known."""
    return (sorted(GRANULARITIES).index(granularity),)


def _requests(kind: Request, spec: KernelSpec, shapes: tuple[tuple[int, int], ...] = ()) -> Iterator[Request]:
    granularity = sorted(GRANULARITIES)[kind.block_size[0]]
    q = get_qtype(kind.qtype)
    if kind.op == "dynamic_quantize":  # has no weight: layers ask without a shape
        yield replace(kind, block_size=(), scale_dtype=torch.float32)
        return
    allowed = FLOATS if spec.reference else spec.scale_dtypes
    scales = [q.scale_dtype] if q.scale_dtype is not None else sorted(allowed & FLOATS, key=str)
    if not scales:
        return
    groups = cycle([q.block] if q.block is not None else _GROUPS)
    scale, block, experts = cycle(scales), cycle(_BLOCKS), cycle(_EXPERTS)
    # twice, so that each shape meets two group sizes and two scale dtypes
    for rows, size in (shapes or _SHAPES[granularity]) * (2 if granularity == "group" else 1):
        blocks: tuple[int, ...] = {"tensor": (), "channel": (1, size)}.get(granularity, ())
        if granularity == "group":
            blocks = (1, min(next(groups), size))
        elif granularity == "block":
            b = next(block)
            blocks = (min(b[0], rows), min(b[1], size))
        shape: tuple[int, ...] = (rows, size)
        if kind.op == "grouped_linear":
            shape, blocks = (next(experts), *shape), (1, *blocks)
        yield replace(kind, shape=shape, block_size=blocks, scale_dtype=next(scale))
