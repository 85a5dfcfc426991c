# SPDX-License-Identifier: Apache-2.0
"""`KernelSpec`: what a kernel can do, as data; `Request`: what a layer needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..weight import CANONICAL
from .devices import device_capability

__all__ = ["KernelSpec", "Request"]

FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})
GRANULARITIES = frozenset({"tensor", "channel", "group", "block"})


@dataclass(frozen=True)
class Request:
    """What is asked of a kernel.

    Attributes:
        op: operator name, such as `"linear"`.
        device: device type, such as `"cpu"`.
        dtype: of the floating activations (or of the result where there are none).
        qtype: of the weight.
        block_size: of the weight.
        shape: of the weight, unpacked.
        scale_dtype: of the weight's scale.
        zero_point: `"none"`, `"int"` or `"float"`.
        layout: of the weight in memory.
        activations: qtype of the activations, or `""` where they stay floating.
    """

    op: str
    device: str
    dtype: torch.dtype
    qtype: str = "int8"
    block_size: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    scale_dtype: torch.dtype = torch.float32
    zero_point: str = "none"
    layout: str = CANONICAL
    activations: str = ""

    @classmethod
    def parse(cls, op: str, key: str, device: str, dtype: torch.dtype, activations: str = "") -> Request:
        """Builds a request from the key of a weight (see `quanto.weight.make_key`)."""
        qtype, blocks, dims, scale, zero, layout = key.split(";")
        return cls(
            op=op,
            device=device,
            dtype=dtype,
            qtype=qtype,
            block_size=tuple(int(b) for b in blocks.split("x") if b),
            shape=tuple(int(n) for n in dims.split("x") if n),
            scale_dtype=getattr(torch, scale),
            zero_point=zero,
            layout=layout,
            activations=activations,
        )

    @property
    def granularity(self) -> str:
        """`"tensor"`, `"channel"` (one scale a row), `"group"` (several a row) or `"block"` (rows share one)."""
        if not self.block_size:
            return "tensor"
        if any(b > 1 for b in self.block_size[:-1]):
            return "block"
        return "channel" if self.block_size[-1] >= self.shape[-1] else "group"

    @property
    def group_size(self) -> int:
        """Elements along a row that share a scale."""
        return self.block_size[-1] if self.block_size else self.shape[-1] if self.shape else 0

    def __str__(self) -> str:
        acts = f" x {self.activations}" if self.activations else ""
        dims = "x".join(map(str, self.shape))
        return f"{self.op} {self.qtype}{acts} {self.granularity} [{dims}] {_short(self.dtype)} on {self.device}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(values: frozenset[Any]) -> str:
    return ", ".join(sorted(_short(v) if isinstance(v, torch.dtype) else str(v) for v in values))


@dataclass(frozen=True)
class KernelSpec:
    """A kernel and what it claims.

    Attributes:
        name: unique, `"<package>.<kernel>"`.
        op: the operator of `quanto.ops` it implements.
        device: the device type it runs on, or `"any"`.
        fn: the kernel; the operator's signature exactly. It must be traceable: a `torch.ops` overload with a fake
            implementation, or plain torch code.
        qtypes: of weights it takes.
        dtypes: of activations it takes.
        granularities: of weights it takes: `"tensor"`, `"channel"`, `"group"`, `"block"`.
        zero_points: `"none"`, `"int"`, `"float"`.
        scale_dtypes: of the weight's scale.
        activations: qtypes of quantized activations it takes; `""` is floating.
        layout: of the weight; a layout of the kernel's own must be registered too.
        priority: the highest that fits wins. Reference kernels have 0, torch's own 10 to 50, backends 100.
        min_capability: smallest `(major, minor)` compute capability of the device, or None.
        refuse: what the fields above can't say: given the request, a sentence why not, or None.
        tolerance: largest error accepted by the self check, in units of the output's typical magnitude;
            None takes the default of the dtype.
        compiles: whether it compiles when it is first called, and may be called from several threads: the self check
            then calls it with all of its problems at once, so that they compile side by side.
        checks_itself: whether it compares the first results of such a request with the reference itself; the self
            check, which would compile what nobody uses, is then left out.
        origin: the distribution it came from; filled in by the registry.
    """

    name: str
    op: str
    device: str
    fn: Callable[..., Any]
    qtypes: frozenset[str]
    dtypes: frozenset[torch.dtype] = FLOATS
    granularities: frozenset[str] = frozenset({"channel", "group"})
    zero_points: frozenset[str] = frozenset({"none"})
    scale_dtypes: frozenset[torch.dtype] = FLOATS
    activations: frozenset[str] = frozenset({""})
    layout: str = CANONICAL
    priority: int = 100
    min_capability: tuple[int, int] | None = None
    refuse: Callable[[Request], str | None] | None = field(default=None, compare=False)
    tolerance: float | None = None
    compiles: bool = False
    checks_itself: Callable[[Request], bool] | None = field(default=None, compare=False)
    origin: str = ""

    def __post_init__(self) -> None:
        for name in ("qtypes", "dtypes", "granularities", "zero_points", "scale_dtypes", "activations"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"kernel {self.name!r}: {name} must be a set of names, got the string {value!r}")
            object.__setattr__(self, name, frozenset(value))
        unknown = self.granularities - GRANULARITIES
        if unknown:
            raise ValueError(f"kernel {self.name!r}: unknown granularities {_names(unknown)}")
        if not callable(self.fn):
            raise TypeError(f"kernel {self.name!r}: fn must be callable")

    @property
    def reference(self) -> bool:
        """Whether it is a reference kernel, which takes everything in the canonical layout."""
        return self.device == "any" and not self.qtypes

    def refusal(self, request: Request) -> str | None:
        """Says why this kernel does not take the request, layout aside; None if it does."""
        if self.reference:
            return None
        if self.device not in ("any", request.device):
            return f"runs on {self.device}, not on {request.device}"
        for value, claimed, noun in (
            (request.qtype, self.qtypes, "weights"),
            (request.dtype, self.dtypes, "dtype"),
            (request.activations, self.activations, "activations"),
            (request.granularity, self.granularities, "granularity"),
            (request.zero_point, self.zero_points, "zero points"),
            (request.scale_dtype, self.scale_dtypes, "scale dtype"),
        ):
            if value not in claimed:
                shown = _names(frozenset({value or "floating"}))
                return f"takes {noun} {_names(frozenset(v or 'floating' for v in claimed))}, not {shown}"
        if self.min_capability is not None:
            found = device_capability(request.device)
            if found is not None and found < self.min_capability:
                need = ".".join(map(str, self.min_capability))
                return f"needs compute capability {need}, this device has {'.'.join(map(str, found))}"
        return self.refuse(request) if self.refuse is not None else None

    def overlaps(self, other: KernelSpec) -> bool:
        """Whether both claim some request in common at the same priority."""
        return (
            self.op == other.op
            and self.device == other.device
            and self.priority == other.priority
            and bool(self.qtypes & other.qtypes)
            and bool(self.dtypes & other.dtypes)
            and bool(self.granularities & other.granularities)
            and bool(self.zero_points & other.zero_points)
            and bool(self.scale_dtypes & other.scale_dtypes)
            and bool(self.activations & other.activations)
        )
