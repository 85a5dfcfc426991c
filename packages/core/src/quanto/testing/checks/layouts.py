# SPDX-License-Identifier: Apache-2.0
"""A kernel's own layout gives back the canonical tensors bit for bit: files are written from them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...weight import CANONICAL
from ..cases import Case
from ..problem import WEIGHT, make
from .base import Disagreement, check, describe

__all__: list[str] = []


@check(lambda case: case.spec.layout != CANONICAL)
def gives_its_layout_back(case: Case) -> None:
    """`unpack(pack(weight))` over every shape."""
    for seed, request in enumerate(case.requests):
        problem = make(request, 1, seed)
        layout = problem.layout(case.spec)
        assert layout is not None
        tensors = tuple(_moved(problem.given[n], request.device) for n in WEIGHT)
        kind = (request.qtype, request.block_size, request.shape[-1])
        back = layout.unpack(layout.pack(tensors, *kind), *kind)  # type: ignore[arg-type]
        for name, now, then in zip(WEIGHT, back, tensors, strict=True):
            if (now is None) != (then is None) or (now is not None and not _same(now, then)):
                raise Disagreement(f"{describe(problem)}: {layout.name} does not give {name} back bit for bit")


def _moved(value: Tensor | None, device: str) -> Tensor | None:
    return None if value is None else value.to(device)


def _same(a: Tensor, b: Tensor | None) -> bool:
    if b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(t.cpu().contiguous().view(-1).view(torch.uint8) for t in (a, b)))
