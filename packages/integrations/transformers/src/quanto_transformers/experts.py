# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-experts layers: 3-D parameters, one matrix for each expert, that transformers keeps in one module."""

from __future__ import annotations

from torch import nn

__all__ = ["arrangements"]

_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


def arrangements(module: nn.Module) -> dict[str, str] | None:
    """The parameters of an experts module that are quantized, by name, and how each lies; None for other modules.

    `"rows"` is `[experts, out, in]`, `"transposed"` is `[experts, in, out]`, as gpt-oss and Llama 4 have it.
    """
    found = [n for n in _WEIGHTS if (p := module._parameters.get(n)) is not None and p.ndim == 3]
    if not found:
        return None
    arrangement = "transposed" if _is_transposed(module) else "rows"
    return dict.fromkeys(found, arrangement)


def _is_transposed(module: nn.Module) -> bool:
    declared = getattr(module, "is_transposed", None)
    if declared is not None:
        return bool(declared)
    # Llama 4 doesn't declare it: its gate_up_proj is [E, H, 2 I] and its down_proj [E, I, H].
    down, up = module._parameters.get("down_proj"), module._parameters.get("gate_up_proj")
    return down is not None and up is not None and up.shape[1] == down.shape[2]
