# SPDX-License-Identifier: Apache-2.0
"""What one scheme gains and costs: size, quality, speed, and the time it takes to make."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import quanto
from quanto.eval import Perplexity, perplexity

from .generate import greedy
from .schemes import EXCLUDE, FLOAT

__all__ = ["CHECK", "Row", "Workload", "measure_float", "measure_quantized"]

# What a quantized layer stores for its weight.
STORED = ("weight_packed", "weight_scale", "weight_zero_point", "weight_global_scale")
CHECK = "check.safetensors"  # the logits that a reloaded model must repeat, beside the folder of each scheme

T = TypeVar("T")


@dataclass(frozen=True)
class Workload:
    """What every scheme is measured on.

    Attributes:
        tokens: the text for the perplexity, int64 `[n]`; its beginning gives the logits that are compared later.
        prompt: the tokens to continue, int64 `[m]`.
        block: tokens per block of the perplexity.
        generate: tokens to generate.
        progress: whether to show progress bars; None shows them on a terminal.
    """

    tokens: Tensor
    prompt: Tensor
    block: int = 512
    generate: int = 48
    progress: bool | None = None

    @property
    def check(self) -> Tensor:
        """The tokens whose logits are compared after reloading, int64 `[1, at most 64]`."""
        return self.tokens[: min(self.block, 64)].unsqueeze(0)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        scheme: its name.
        bits: bits per weight of the quantized layers, scales and zero points included.
        groups: how many weights share a scale; "row" for a scale per output feature.
        kernels: that run the quantized layers.
        file_bytes: size of the whole saved model.
        perplexity: with its convention.
        per_second: generated tokens per second.
        continuation: the generated tokens.
        quantize_s: seconds to quantize and freeze, None for the float model.
        save_s: seconds to save.
        load_s: seconds to load into an empty architecture.
        equal: whether the logits after reloading in a fresh process are bit-equal; None until that was checked.
    """

    scheme: str
    bits: float
    groups: str
    kernels: tuple[str, ...]
    file_bytes: int
    perplexity: Perplexity
    per_second: float
    continuation: tuple[int, ...]
    quantize_s: float | None
    save_s: float
    load_s: float | None = None
    equal: bool | None = None

    def reloaded(self, load_s: float, equal: bool) -> Row:
        """The same row with what the fresh process found."""
        return replace(self, load_s=load_s, equal=equal)


def measure_float(model: Any, work: Workload, folder: Path) -> Row:
    """Measures the model as it is; writes it in the format of transformers to `folder`."""
    bits = 8 * next(model.parameters()).element_size()
    _, save_s = _timed(lambda: model.save_pretrained(folder))
    return _measure(model, work, folder, FLOAT, bits=bits, groups="–", kernels=(), quantize_s=None, save_s=save_s)


def measure_quantized(model: Any, work: Workload, folder: Path, scheme: str, options: dict[str, Any]) -> Row:
    """Quantizes the model in place, measures it and saves it to `folder`.

    Args:
        model: the float model; it is changed.
        work: what to measure on.
        folder: where the quantized model goes.
        scheme: the row's name.
        options: the arguments of `quanto.quantize`.

    Raises:
        RuntimeError: if other layers were quantized than all linear ones but those in `EXCLUDE`.
    """
    layers = {
        name: module.weight.shape
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in EXCLUDE
    }

    def quantize() -> None:
        quanto.quantize(model, exclude=EXCLUDE, progress=work.progress, **options)
        quanto.freeze(model, progress=work.progress)

    _, quantize_s = _timed(quantize)
    bits, groups = _stored(model, layers)
    _, save_s = _timed(lambda: quanto.save(model, folder))
    kernels = tuple(sorted({layer.kernel for layer in quanto.explain(model).layers if layer.kernel}))
    known = {"bits": bits, "groups": groups, "kernels": kernels, "quantize_s": quantize_s, "save_s": save_s}
    return _measure(model, work, folder, scheme, **known)


def _measure(model: Any, work: Workload, folder: Path, scheme: str, **known: Any) -> Row:
    result = perplexity(model, work.tokens, block=work.block, progress=work.progress)
    generation = greedy(model, work.prompt, work.generate)
    with torch.no_grad():
        logits = model(work.check).logits
    save_file({"tokens": work.check, "logits": logits.contiguous()}, folder.with_name(f"{folder.name}.{CHECK}"))
    return Row(
        scheme=scheme,
        file_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        perplexity=result,
        per_second=generation.per_second,
        continuation=tuple(generation.tokens),
        **known,
    )


def _stored(model: nn.Module, layers: dict[str, torch.Size]) -> tuple[float, str]:
    """Bits per weight over the quantized layers, and how many weights along a row share a scale."""
    quantized = {name: module for name, module in model.named_modules() if hasattr(module, "weight_packed")}
    state = model.state_dict()  # canonical, whatever layout a kernel holds in memory
    if quantized.keys() != layers.keys():
        raise RuntimeError(f"quantized other layers than meant: {sorted(quantized.keys() ^ layers.keys())}")
    stored, groups = 0, set()
    for name in quantized:
        stored += sum(state[f"{name}.{key}"].nbytes for key in STORED if f"{name}.{key}" in state)
        per_row = state[f"{name}.weight_scale"].shape[-1]
        groups.add(math.ceil(layers[name][1] / per_row) if per_row > 1 else 0)
    words = ["row" if size == 0 else str(size) for size in sorted(groups)]
    return 8 * stored / sum(shape.numel() for shape in layers.values()), ", ".join(words)


def _timed(action: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start
