# SPDX-License-Identifier: Apache-2.0
"""The checkpoint's layout of quantized experts: one matrix for each, as the family publishes them.

transformers merges `experts.0.gate_proj.weight`, `experts.1.gate_proj.weight` … into one parameter with converters, and
splits it with their inverses. Codes and scales of a row depend on that row alone, so the same converters serve them
under longer names: `experts.0.gate_proj.weight_packed`, `experts.0.gate_proj.weight_scale` …

Where a converter does something else than to stack and to join rows, the parameter is saved as it is in the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from quanto.nn import QModule
from quanto.nn.slot import PARTS

from .adapter import copy_converter

__all__ = ["for_loading", "for_saving"]

#: dimension of the 3-D weight along which an operation works -> whether rows stay whole.
_EXPERTS, _ROWS = 0, 1


def for_loading(conversions: Sequence[Any], modules: Iterable[tuple[str, QModule]]) -> list[Any]:
    """The model's converters, preceded by those of codes and scales."""
    names = _quantized(modules)
    return [*(copy for c in conversions for copy in _copies(c, names)), *conversions]


def for_saving(conversions: Sequence[Any], model: Any, modules: Iterable[tuple[str, QModule]]) -> list[Any]:
    """The converters that a model was loaded with, for the way back: without those that no float parameter needs."""
    names = _quantized(modules)
    floating = [name for name, _ in model.named_parameters()]
    kept, copies = [], []
    for conversion in conversions:
        copies += _copies(conversion, names)
        targets = conversion._original_target_patterns
        if not _is_converter(conversion) or not _any(targets, names) or _any(targets, floating):
            kept.append(conversion)
    known = [list(c._original_target_patterns) for c in kept]
    return [*kept, *(c for c in copies if list(c._original_target_patterns) not in known)]


def _is_converter(conversion: Any) -> bool:
    return hasattr(conversion, "operations")


def _quantized(modules: Iterable[tuple[str, QModule]]) -> dict[str, tuple[QModule, str]]:
    """Full name of each frozen weight -> its module and its name there."""
    return {
        f"{name}.{leaf}": (module, leaf)
        for name, module in modules
        for leaf in module._slots
        if f"{leaf}_packed" in module._parameters
    }


def _any(patterns: Iterable[str], names: Iterable[str]) -> bool:
    held = list(names)
    return any(re.search(rf"{pattern}\Z", name) for pattern in patterns for name in held)


def _copies(conversion: Any, names: dict[str, tuple[QModule, str]]) -> list[Any]:
    """Converters of the parts of quantized weights that a converter would make if they were floating."""
    if not _is_converter(conversion):
        return []
    sources, targets = conversion._original_source_patterns, conversion._original_target_patterns
    found = [names[name] for name in names if any(re.search(rf"{target}\Z", name) for target in targets)]
    if not found or len(targets) != 1 or not all(_keeps_rows(op) for op in conversion.operations):
        return []
    if not all(_rows_are_alone(*one) for one in found):
        return []
    parts = [p for p in PARTS if any(f"{leaf}_{p}" in module._parameters for module, leaf in found)]
    return [
        copy_converter(conversion, [f"{s}_{part}" for s in sources], [f"{t}_{part}" for t in targets])
        for part in parts
        if part != "global_scale"  # one for all experts
    ]


def _keeps_rows(operation: Any) -> bool:
    kinds = {"MergeModulelist": _EXPERTS, "Concatenate": _ROWS}
    dim = kinds.get(type(operation).__name__)
    return dim is not None and getattr(operation, "dim", None) == dim


def _rows_are_alone(module: QModule, leaf: str) -> bool:
    """Whether each row `[experts, out, in]` has scales of its own, and lies as transformers' operations think."""
    slot = module._slots[leaf]
    return slot.arrangement == "rows" and len(slot.block_size) == 3 and slot.block_size[:2] == (1, 1)
