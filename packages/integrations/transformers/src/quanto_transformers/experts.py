# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-experts layers: 3-D parameters, one matrix for each expert, that transformers keeps in one module."""

from __future__ import annotations

from torch import nn

__all__ = ["arrangements", "runs_grouped"]

_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


def arrangements(module: nn.Module) -> dict[str, str] | None:
    """The parameters of an experts module that are quantized, by name, and how each lies; None for other modules.

    `"rows"` is `[experts, out, in]`, `"transposed"` is `[experts, in, out]`, as gpt-oss and Llama 4 have it.
    """
    names = (*_WEIGHTS, "weight") if "Experts" in type(module).__name__ else _WEIGHTS
    found = [n for n in names if (p := module._parameters.get(n)) is not None and p.ndim == 3]
    if not found:
        return None
    return dict.fromkeys(found, "transposed" if _is_transposed(module) else "rows")


def _is_transposed(module: nn.Module) -> bool:
    declared = getattr(module, "is_transposed", None)
    if declared is not None:
        return bool(declared)
    # Llama 4 doesn't declare it: its gate_up_proj is [E, H, 2 I] and its down_proj [E, I, H].
    down, up = module._parameters.get("down_proj"), module._parameters.get("gate_up_proj")
    return down is not None and up is not None and up.shape[1] == down.shape[2]


def runs_grouped(module: nn.Module) -> bool:
    """Whether a module computes what `QExperts` does; others, such as JetMoe's, keep their own forward."""
    gated = "gate_up_proj" in module._parameters or "up_proj" in module._parameters
    return gated and "down_proj" in module._parameters and (hasattr(module, "_apply_gate") or hasattr(module, "act_fn"))
