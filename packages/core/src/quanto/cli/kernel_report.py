# SPDX-License-Identifier: Apache-2.0
"""`KernelReport`: what a kernel claims, and whether this machine can run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch

from ..kernels import KernelRegistry, KernelSpec, Request
from ..kernels.devices import device_available, device_types
from ..qtypes import qtypes

__all__ = ["KernelReport", "dtype_name", "kernel_reports"]

READY = "ready"


@dataclass(frozen=True)
class KernelReport:
    """A kernel as `quanto info` shows it; names as in `KernelSpec`, a None among them meaning all.

    Attributes:
        selected: `"forced"`, `"blocked"` or an empty string.
        status: `"ready"`, or the sentence why it can't be used here.
    """

    name: str
    op: str
    device: str
    qtypes: tuple[str, ...] | None
    activations: tuple[str, ...] | None
    dtypes: tuple[str, ...] | None
    granularities: tuple[str, ...] | None
    zero_points: tuple[str, ...] | None
    scale_dtypes: tuple[str, ...] | None
    layout: str
    min_capability: tuple[int, int] | None
    priority: int
    origin: str
    selected: str
    ready: bool
    status: str


def kernel_reports(registry: KernelRegistry) -> tuple[KernelReport, ...]:
    """Every kernel, by operator, and within one in the order in which they are asked."""
    from ..ops import SCHEMAS

    forced, _ = registry.selection
    order = {op: index for index, op in enumerate(SCHEMAS)}
    ranked = sorted(registry.specs.values(), key=lambda s: (order[s.op], s.name not in forced, -s.priority, s.name))
    return tuple(_report(spec, registry) for spec in ranked)


def dtype_name(dtype: torch.dtype) -> str:
    """The name without `torch.`."""
    return str(dtype).removeprefix("torch.")


def _report(spec: KernelSpec, registry: KernelRegistry) -> KernelReport:
    forced, blocked = registry.selection
    out = registry.out_of_service(spec)
    status = " ".join((out or unusable(spec) or READY).split())

    def claim(values: Iterable[object]) -> tuple[str, ...] | None:
        if spec.reference:
            return None
        return tuple(sorted(dtype_name(v) if isinstance(v, torch.dtype) else str(v) or "floating" for v in values))

    return KernelReport(
        name=spec.name,
        op=spec.op,
        device=spec.device,
        qtypes=claim(spec.qtypes),
        activations=claim(spec.activations),
        dtypes=claim(spec.dtypes),
        granularities=claim(spec.granularities),
        zero_points=claim(spec.zero_points),
        scale_dtypes=claim(spec.scale_dtypes),
        layout=spec.layout,
        min_capability=spec.min_capability,
        priority=spec.priority,
        origin=spec.origin,
        selected="forced" if spec.name in forced else "blocked" if out and blocked & {spec.name, spec.origin} else "",
        ready=status == READY,
        status=status,
    )


def unusable(spec: KernelSpec) -> str | None:
    """Why a kernel would take no weight on this machine, however favourable its shape; None if it takes some."""
    if spec.reference:
        return None
    here = device_types() if spec.device == "any" else [spec.device]
    if not all(map(device_available, here)):
        return f"no {spec.device} device here"
    said: Counter[str] = Counter()
    try:
        for request in _favourable(spec, here):
            sentence = spec.refusal(request)
            if sentence is None:
                return None
            said[sentence] += 1
    except Exception as error:  # of a plugin's `refuse`, or of a driver
        return f"can't be asked: {type(error).__name__}: {error}"
    return said.most_common(1)[0][0] if said else f"takes unknown qtypes only: {', '.join(sorted(spec.qtypes))}"


def _favourable(spec: KernelSpec, devices: list[str]) -> Iterator[Request]:
    """Requests that a kernel claims, for weights whose sizes every usual tile and group divides."""
    size = 4096
    lead = (8,) if spec.op == "grouped_linear" else ()
    shape = () if spec.op == "dynamic_quantize" else (*lead, size, size)  # which has no weight
    claims = product(
        devices,
        spec.dtypes,
        spec.qtypes & qtypes.keys(),
        spec.granularities,
        spec.zero_points,
        spec.scale_dtypes,
        spec.activations,
    )
    for device, dtype, qtype, granularity, zero, scale, activations in claims:
        groups = (qtypes[qtype].block or 128, 64, 32) if granularity == "group" else (size,)
        for group in groups:
            block: tuple[int, ...] = (128, 128) if granularity == "block" else (1, group)
            block = () if granularity == "tensor" or not shape else (1,) * len(lead) + block
            yield Request(spec.op, device, dtype, qtype, block, shape, scale, zero, spec.layout, activations)
