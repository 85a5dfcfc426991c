# SPDX-License-Identifier: Apache-2.0
"""Editing frozen weights: floats for the time of the edit, codes before and after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..nn import QModule
from ..nn.slot import PARTS
from ..tensor.quantize import quantize_parts
from ..weight import CANONICAL

__all__ = ["Codes", "codes", "editable", "restore"]

#: the parts of each frozen weight of a module, in the canonical layout.
Codes = dict[str, list[nn.Parameter | None]]


def codes(module: QModule) -> Codes:
    """The present codes and scales of a frozen module; `restore` puts them back, to the bit."""
    module.arrange(CANONICAL)
    return {leaf: [module._parameters.get(f"{leaf}_{part}") for part in PARTS] for leaf in module._slots}


def restore(module: QModule, held: Codes) -> None:
    """Gives a module the codes that `codes` told, and arranges them for their kernel, if it arranges them at all."""
    for leaf, parts in held.items():
        module._adopt(leaf, list(parts))
    _arrange(module)


@contextmanager
def editable(module: QModule) -> Iterator[None]:
    """Within, `module.weight` is a float32 parameter that may be edited in place; afterwards it is quantized again.

    If the edit fails, the module is as it was.
    """
    held = codes(module)
    for leaf, slot in module._slots.items():
        value = module.effective(leaf, torch.float32).contiguous()
        for part in PARTS:
            module._parameters.pop(f"{leaf}_{part}", None)
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        slot.layout = CANONICAL
    try:
        yield
        made = {leaf: _quantize(module, leaf) for leaf in module._slots}
    except BaseException:
        restore(module, held)
        raise
    for leaf, parts in made.items():
        module._adopt(leaf, parts)
    _arrange(module)


def _arrange(module: QModule) -> None:
    """Not where other modules hold the codes too, or an offloader takes them to and fro."""
    if module._arranges:
        module.arrange()


def _quantize(module: QModule, leaf: str) -> list[Tensor | None]:
    """Codes of an edited weight, from its float32 values; scales keep the dtype they have in this model."""
    slot = module._slots[leaf]
    scheme = slot.scheme
    if scheme.qtype.scale_dtype is None:
        dtype = str(scheme.scales(slot.dtype)).removeprefix("torch.")
        scheme = replace(scheme, scale_dtype=dtype)
    value = module._parameters[leaf]
    assert value is not None
    rows = slot.rows(value.detach().float())
    return list(quantize_parts(rows, scheme, scheme.block_size(tuple(rows.shape))))
