# SPDX-License-Identifier: Apache-2.0
"""Which kernel each layer runs, and why not a faster one."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn

from .kernels import Choice, kernels
from .nn.base import QModule

__all__ = ["Explanation", "LayerReport", "explain"]


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: dotted name in the model.
        module: class name.
        scheme: what it is quantized to; empty if floating.
        kernel: name of the kernel that runs.
        layout: of the weight in memory.
        bytes: held by weights, scales and zero points.
        refused: `(kernel, sentence)` for each faster kernel of this device that was refused.
        note: why the layer is floating or slow, where there is something to say.
    """

    name: str
    module: str
    scheme: str
    kernel: str
    layout: str
    bytes: int
    refused: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Explanation:
    """The layers of a model; printing it gives a table."""

    layers: tuple[LayerReport, ...]

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {"layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        if not self.layers:
            return "no quantized layers"
        rows = [("layer", "module", "scheme", "kernel")]
        rows += [(r.name or "(root)", r.module, r.scheme or "float", r.kernel or "-") for r in self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * w for w in widths))
        reasons: dict[str, list[str]] = {}
        for layer in self.layers:
            for kernel, sentence in layer.refused:
                reasons.setdefault(f"{kernel}: {sentence}", []).append(layer.name)
            if layer.note:
                reasons.setdefault(layer.note, []).append(layer.name)
        if reasons:
            lines.append("")
            for reason, names in reasons.items():
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"{names[0] or '(root)'}{more}: {reason}")
        return "\n".join(lines)


def explain(model: nn.Module, dtype: torch.dtype | None = None) -> Explanation:
    """Explains, per layer, which kernel runs and why faster ones were refused.

    Args:
        model: a quantized model.
        dtype: of the activations; default: the dtype each layer's weight had.
    """
    return Explanation(tuple(r for name, m in model.named_modules() if (r := _layer(name, m, dtype)) is not None))


def _layer(name: str, module: nn.Module, dtype: torch.dtype | None) -> LayerReport | None:
    kind = type(module).__name__
    if not isinstance(module, QModule):
        reason = module.__dict__.get("_quanto_skipped")
        return None if reason is None else LayerReport(name, kind, "", "", "", 0, note=f"stays floating: {reason}")
    size = sum(p.nbytes for p in module._parameters.values() if p is not None)
    if not module._slots:
        note = "" if module.output_scale is not None else "computes in float; its output is not quantized"
        return LayerReport(name, kind, str(module.scheme), "torch", "canonical", size, note=note)
    first, slot = next(iter(module._slots.items()))
    if not module.frozen:
        note = "trainable: weights are rounded on the fly in float; quanto.freeze(model) turns them into codes"
        return LayerReport(name, kind, str(slot.scheme), "fake quantization", "canonical", size, note=note)
    choice = kernels.choose(module.request(first, dtype))
    return LayerReport(name, kind, _describe(module), choice.spec.name, slot.layout, size, _refused(choice))


def _describe(module: QModule) -> str:
    scheme = module.scheme
    if scheme.activations is None or scheme.dynamic is False:
        return str(scheme)
    return str(scheme).replace("dynamic", "static") if module.input_scale is not None else str(scheme)


def _refused(choice: Choice) -> tuple[tuple[str, str], ...]:
    """Kernels made for this qtype and device that rank above the chosen one."""
    out = []
    for candidate in choice.candidates:
        if candidate.spec.name == choice.spec.name:
            break
        made_for = candidate.spec.device == choice.request.device and choice.request.qtype in candidate.spec.qtypes
        if candidate.refusal is not None and made_for:
            out.append((candidate.spec.name, candidate.refusal))
    return tuple(out)
